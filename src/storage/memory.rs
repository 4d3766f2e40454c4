//! Storage in memory behind the same traits: no threads, no clock, no randomness, for tests and simulation.
//!
//! A [`MemoryDisk`] outlives the [`Stores`] opened on it, as a data folder does. By default every write is durable
//! at once; with [`MemoryDisk::hold`] writes wait for [`MemoryDisk::sync`], and [`MemoryDisk::crash`] drops those
//! that still wait.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use self::log::{MemoryLog, MemoryLogState};
use self::snapshots::MemorySnapshots;
pub(crate) use self::snapshots::snapshot_of;
use super::durability::poison::closed;
use super::room::DiskRoom;
use super::{Backpressure, BoxFuture, Close, StartMark, StartMarks, Stores};
use crate::ids::LogIndex;
use crate::model::tables::{MemoryTables, Tables};

mod log;
mod snapshots;

/// Empty stores in memory.
pub fn stores() -> Stores {
    MemoryDisk::default().open()
}

/// What a node in memory keeps when it is restarted.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<MemoryLogState>>);

impl MemoryDisk {
    /// Opens the disk as it is; stores opened earlier are cut off from it.
    pub fn open(&self) -> Stores {
        let mut disk = self.0.lock();
        // What a closed process had handed to the disk stays there.
        drop(disk.sync());
        disk.opened += 1;
        let session = disk.opened;
        let tables = MemoryTables::default();
        tables.replace(disk.rows.rows(), disk.rows.applied());
        disk.tables = tables.clone();
        drop(disk);
        Stores {
            starts: Arc::new(MemoryStarts(self.0.clone())),
            log: Arc::new(MemoryLog { disk: self.0.clone(), session }),
            tables: Box::new(tables),
            snapshots: Arc::new(MemorySnapshots { disk: self.0.clone(), session }),
            pressure: Arc::new(NoPressure),
            room: DiskRoom::unbounded(),
            flush_time: || Duration::ZERO,
            close: Arc::new(CloseMemory { disk: self.0.clone(), session }),
        }
    }

    /// A copy of the disk as it is, as that of a folder or of a whole machine.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().copy())))
    }

    /// From now on writes are durable only with the next [`MemoryDisk::sync`].
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Writes are durable at once again.
    pub fn release(&self) {
        self.0.lock().held = false;
        self.sync();
    }

    /// Makes the waiting writes durable and tells who waits.
    pub fn sync(&self) {
        let waiting = self.0.lock().sync();
        // Not under the lock: who is told may call back.
        waiting.into_iter().for_each(|done| done(Ok(())));
    }

    /// The index that the newest snapshot reaches.
    pub fn snapshot_index(&self) -> Option<LogIndex> {
        self.0.lock().snapshot.as_ref().map(|snapshot| LogIndex(snapshot.applied.index))
    }

    /// How many writes wait for a sync.
    pub fn unsynced(&self) -> usize {
        self.0.lock().unsynced()
    }

    /// Resolves when a write waits for a sync.
    pub async fn written(&self) {
        let written = self.0.lock().written.clone();
        while self.unsynced() == 0 {
            written.notified().await;
        }
    }

    /// Makes the oldest waiting writes durable: those that were there when a sync began.
    pub fn sync_oldest(&self, count: usize) {
        let waiting = self.0.lock().sync_oldest(count);
        waiting.into_iter().for_each(|done| done(Ok(())));
    }

    /// A crash that finds the oldest `kept` of the waiting writes on the disk, though nobody was told; and, with `rows`,
    /// the rows as they are.
    pub fn crash_keeping(&self, kept: usize, rows: bool) {
        let waiting = self.0.lock().crash_keeping(kept, rows);
        waiting.into_iter().for_each(|done| done(Err(closed())));
    }

    /// A crash: writes that wait are gone, and so are rows since they were last made durable (by a snapshot or a
    /// purge; the log replays the others). Stores opened earlier are cut off.
    pub fn crash(&self) {
        let waiting = self.0.lock().crash();
        waiting.into_iter().for_each(|done| done(Err(closed())));
    }
}

struct MemoryStarts(Arc<Mutex<MemoryLogState>>);

impl StartMarks for MemoryStarts {
    fn last(&self) -> io::Result<StartMark> {
        Ok(self.0.lock().start)
    }

    fn save(&self, mark: StartMark) -> BoxFuture<'_, io::Result<()>> {
        self.0.lock().start = mark;
        Box::pin(std::future::ready(Ok(())))
    }

    fn epoch(&self) -> io::Result<u64> {
        Ok(self.0.lock().epoch)
    }

    fn save_epoch(&self, epoch: u64) -> BoxFuture<'_, io::Result<()>> {
        self.0.lock().epoch = epoch;
        Box::pin(std::future::ready(Ok(())))
    }
}

struct NoPressure;

impl Backpressure for NoPressure {
    fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

struct CloseMemory {
    disk: Arc<Mutex<MemoryLogState>>,
    session: u64,
}

impl Close for CloseMemory {
    fn close(&self) -> BoxFuture<'_, io::Result<()>> {
        let mut disk = self.disk.lock();
        let waiting = if disk.opened == self.session { disk.close() } else { Vec::new() };
        drop(disk);
        waiting.into_iter().for_each(|done| done(Ok(())));
        Box::pin(std::future::ready(Ok(())))
    }
}
