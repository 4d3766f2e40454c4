//! When writes are durable: a sync takes its time, and covers what was written before it began.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::storage::memory::MemoryDisk;
use tokio::time::sleep;

use crate::rng::Rng;

/// Nothing becomes durable before this is lowered.
const STUCK: u64 = u64::MAX;

pub(crate) struct SimDisk {
    pub disk: MemoryDisk,
    /// The longest sync, microseconds.
    slowest_us: AtomicU64,
    rng: Mutex<Rng>,
}

const USUAL_US: u64 = 900;

impl SimDisk {
    pub(crate) fn new(rng: Rng) -> Arc<Self> {
        let disk = MemoryDisk::default();
        Arc::new(Self { disk, slowest_us: AtomicU64::new(USUAL_US), rng: Mutex::new(rng) })
    }

    pub(crate) fn slow(&self, slowest: Duration) {
        self.slowest_us.store(slowest.as_micros() as u64, Ordering::SeqCst);
    }

    pub(crate) fn stick(&self) {
        self.slowest_us.store(STUCK, Ordering::SeqCst);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.slowest_us.load(Ordering::SeqCst) == STUCK
    }

    pub(crate) fn mend(&self) {
        self.slowest_us.store(USUAL_US, Ordering::SeqCst);
    }

    /// Syncs what is written, until the node is gone.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.disk.written().await;
            while self.is_stuck() {
                sleep(Duration::from_millis(5)).await;
            }
            let count = self.disk.unsynced();
            let slowest = self.slowest_us.load(Ordering::SeqCst);
            let took = self.rng.lock().micros(slowest / 6, slowest.min(10_000_000));
            sleep(took).await;
            while self.is_stuck() {
                sleep(Duration::from_millis(5)).await;
            }
            self.disk.sync_oldest(count);
        }
    }

    /// The power is gone: of what waits, a part had reached the disk.
    pub(crate) fn power_cut(&self) {
        let mut rng = self.rng.lock();
        let kept = rng.below(self.disk.unsynced() as u64 + 1) as usize;
        let rows = rng.percent(50);
        drop(rng);
        self.disk.crash_keeping(kept, rows);
    }

    /// Only the process is gone: what it had written is there.
    pub(crate) fn kill(&self) {
        self.disk.crash_keeping(self.disk.unsynced(), true);
    }
}
