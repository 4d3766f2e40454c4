//! Wall clocks that may be wrong.

use std::sync::atomic::{AtomicI64, Ordering};

use tillsync::clock::Clock;
use tillsync::ids::UnixMs;
use tillsync::limits;
use tokio::time::Instant;

/// Unix milliseconds at the start of every run.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

/// No two clocks agree: how far a machine's is off when nothing is wrong with it, by its number.
const OFF_MS: [i64; 5] = [0, 350, -200, 120, -400];

pub(crate) struct SimClock {
    began: Instant,
    off_ms: i64,
    skew_ms: AtomicI64,
}

impl SimClock {
    /// The clock of this machine.
    pub(crate) fn new(began: Instant, id: u64) -> Self {
        let off_ms = OFF_MS[(id % OFF_MS.len() as u64) as usize];
        Self { began, off_ms, skew_ms: AtomicI64::new(0) }
    }

    pub(crate) fn skew(&self, ms: i64) {
        self.skew_ms.store(ms, Ordering::SeqCst);
    }
}

impl SimClock {
    /// What it would say if it were right.
    pub(crate) fn right_ms(&self) -> u64 {
        START_MS + self.began.elapsed().as_millis() as u64
    }

    /// Near enough that the other nodes let its node serve, whatever a message takes.
    pub(crate) fn is_right(&self) -> bool {
        self.skew_ms.load(Ordering::SeqCst).unsigned_abs() < limits::NODE_CLOCK_APART_MS - 1_000
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> UnixMs {
        UnixMs(self.right_ms().saturating_add_signed(self.off_ms + self.skew_ms.load(Ordering::SeqCst)))
    }

    fn even_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}
