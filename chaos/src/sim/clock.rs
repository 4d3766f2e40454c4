//! Wall clocks that may be wrong.

use std::sync::atomic::{AtomicI64, Ordering};

use tillsync::clock::Clock;
use tokio::time::Instant;

/// Unix milliseconds at the start of every run.
pub const START_MS: u64 = 1_800_000_000_000;

pub struct SimClock {
    began: Instant,
    skew_ms: AtomicI64,
}

impl SimClock {
    pub fn new(began: Instant) -> Self {
        Self { began, skew_ms: AtomicI64::new(0) }
    }

    pub fn skew(&self, ms: i64) {
        self.skew_ms.store(ms, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        let right = START_MS + self.began.elapsed().as_millis() as u64;
        right.saturating_add_signed(self.skew_ms.load(Ordering::SeqCst))
    }

    fn even_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}
