//! A clock for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;
use crate::ids::UnixMs;

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub(crate) struct ManualClock(AtomicU64);

impl ManualClock {
    pub(crate) fn at(ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(ms)))
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }
}
