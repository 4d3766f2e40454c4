//! Time as everything above storage takes it, so that a simulation can bring its own.

use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::ids::UnixMs;

/// Wall-clock time. Elapsed time is tokio's, which a simulation can pause.
pub trait Clock: Send + Sync + 'static {
    fn now_ms(&self) -> UnixMs;

    /// Milliseconds since any moment, which go on evenly when somebody sets the clock. A clock that cannot be set has
    /// only one time.
    fn even_ms(&self) -> u64 {
        self.now_ms().get()
    }
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> UnixMs {
        UnixMs(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
    }

    fn even_ms(&self) -> u64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed().as_millis() as u64
    }
}
