//! The Raft log in memory, and what of it a crash leaves.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::ids::LogIndex;
use crate::model::tables::{MemoryTables, Tables};
use crate::sizes::Sizes;
use crate::storage::durability::poison::closed;
use crate::storage::log::cache;
use crate::storage::log::{check_dense, check_read};
use crate::storage::{BoxFuture, Durable, LogBounds, LogStore, StartMark, StateSnapshot, WriteAck};

/// One state of a log.
#[derive(Clone, Default)]
struct Image {
    entries: BTreeMap<LogIndex, Bytes>,
    sizes: Sizes,
    purged: Option<(LogIndex, Bytes)>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
}

enum LogWrite {
    Append(Vec<(LogIndex, Bytes)>),
    Truncate(Option<LogIndex>),
    /// With the rows as they were, which become durable first.
    Purge(LogIndex, Bytes, MemoryTables),
    Vote(Bytes),
    Committed(Option<Bytes>),
}

impl Image {
    fn bounds(&self) -> LogBounds {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        LogBounds { purged: self.purged.clone(), last }
    }

    fn run(&mut self, op: &LogWrite) {
        match op {
            LogWrite::Append(entries) => {
                entries.iter().for_each(|(index, entry)| self.sizes.push(index.get(), entry.len()));
                self.entries.extend(entries.iter().cloned());
            }
            LogWrite::Truncate(after) => {
                let from = after.map_or(LogIndex(0), LogIndex::next);
                self.entries.split_off(&from);
                self.sizes.truncate_after(after.map(LogIndex::get));
            }
            LogWrite::Purge(index, mark, _) => {
                self.entries = self.entries.split_off(&index.next());
                self.sizes.purge(index.get());
                if self.purged.as_ref().is_none_or(|(purged, _)| purged < index) {
                    self.purged = Some((*index, mark.clone()));
                }
            }
            LogWrite::Vote(vote) => self.vote = Some(vote.clone()),
            LogWrite::Committed(committed) => self.committed = committed.clone(),
        }
    }
}

/// What one node's disk holds.
#[derive(Default)]
pub(super) struct MemoryLogState {
    /// Counts opens and crashes: handles of an earlier one are cut off.
    pub opened: u64,
    /// Durable at once.
    pub start: StartMark,
    pub epoch: u64,
    /// Writes wait for a sync.
    pub held: bool,
    live: Image,
    durable: Image,
    waiting: Vec<(LogWrite, Option<Durable>)>,
    /// Notified of every write that waits.
    pub written: Arc<Notify>,
    /// The rows that the open stores work on, and those that a crash leaves.
    pub tables: MemoryTables,
    pub rows: MemoryTables,
    pub snapshot: Option<StateSnapshot>,
}

impl MemoryLogState {
    /// Makes waiting writes durable; who is to be told.
    pub(super) fn sync(&mut self) -> Vec<Durable> {
        self.sync_oldest(self.waiting.len())
    }

    pub(super) fn unsynced(&self) -> usize {
        self.waiting.len()
    }

    /// Makes the oldest waiting writes durable; who is to be told.
    pub(super) fn sync_oldest(&mut self, count: usize) -> Vec<Durable> {
        let count = count.min(self.waiting.len());
        let waiting: Vec<_> = self.waiting.drain(..count).collect();
        for (op, _) in &waiting {
            if let LogWrite::Purge(_, _, rows) = op {
                self.rows = rows.clone();
            }
            self.durable.run(op);
        }
        waiting.into_iter().filter_map(|(_, done)| done).collect()
    }

    /// As [`MemoryLogState::crash`], but some of the writes had reached the disk.
    pub(super) fn crash_keeping(&mut self, kept: usize, rows: bool) -> Vec<Durable> {
        let mut told = self.sync_oldest(kept);
        if rows {
            self.rows = self.copy_rows();
        }
        told.extend(self.crash());
        told
    }

    /// Drops waiting writes and cuts handles off; who is to be told.
    pub(super) fn crash(&mut self) -> Vec<Durable> {
        self.opened += 1;
        self.live = self.durable.clone();
        std::mem::take(&mut self.waiting).into_iter().filter_map(|(_, done)| done).collect()
    }

    /// Makes everything durable and cuts handles off.
    pub(super) fn close(&mut self) -> Vec<Durable> {
        self.opened += 1;
        self.rows = self.copy_rows();
        self.sync()
    }

    /// The disk as a copy of it finds it.
    pub(super) fn copy(&self) -> Self {
        Self {
            opened: self.opened,
            start: self.start,
            epoch: self.epoch,
            live: self.durable.clone(),
            durable: self.durable.clone(),
            rows: self.copy_rows(),
            snapshot: self.snapshot.clone(),
            ..Self::default()
        }
    }

    /// The rows as they are now.
    pub(super) fn copy_rows(&self) -> MemoryTables {
        let copy = MemoryTables::default();
        copy.replace(self.tables.rows(), self.tables.applied());
        copy
    }
}

pub(super) struct MemoryLog {
    pub disk: Arc<Mutex<MemoryLogState>>,
    pub session: u64,
}

impl MemoryLog {
    fn submit(&self, make: impl FnOnce(&MemoryLogState) -> io::Result<LogWrite>, done: Durable) {
        let mut disk = self.disk.lock();
        let op = if disk.opened == self.session { make(&disk) } else { Err(closed()) };
        let told = match op {
            Ok(op) => {
                disk.live.run(&op);
                disk.waiting.push((op, Some(done)));
                disk.written.notify_one();
                if disk.held { Vec::new() } else { disk.sync() }
            }
            Err(error) => {
                drop(disk);
                return done(Err(error));
            }
        };
        drop(disk);
        told.into_iter().for_each(|done| done(Ok(())));
    }

    fn acked(&self, make: impl FnOnce(&MemoryLogState) -> LogWrite) -> WriteAck {
        let (ack, acked) = oneshot::channel();
        self.submit(|disk| Ok(make(disk)), Box::new(move |outcome| drop(ack.send(outcome))));
        acked
    }

    fn read_now(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> io::Result<Vec<(LogIndex, Bytes)>> {
        let disk = self.disk.lock();
        if disk.opened != self.session {
            return Err(closed());
        }
        let to = check_read(&disk.live.bounds(), from, to)?;
        let (mut out, mut budget) = (Vec::new(), max_bytes);
        for index in from.until(to) {
            let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("entry {index} is missing"));
            let entry = disk.live.entries.get(&index).ok_or_else(missing)?;
            if !cache::take(&mut budget, entry.len(), out.is_empty()) {
                break;
            }
            out.push((index, entry.clone()));
        }
        Ok(out)
    }
}

impl LogStore for MemoryLog {
    fn bounds(&self) -> LogBounds {
        self.disk.lock().live.bounds()
    }

    fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Durable) {
        self.submit(
            |disk| {
                check_dense(&disk.live.bounds(), &entries)?;
                Ok(LogWrite::Append(entries))
            },
            done,
        );
    }

    fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> BoxFuture<'_, io::Result<Vec<(LogIndex, Bytes)>>> {
        Box::pin(std::future::ready(self.read_now(from, to, max_bytes)))
    }

    fn bytes(&self) -> u64 {
        self.disk.lock().live.sizes.bytes()
    }

    fn bytes_behind(&self, index: LogIndex) -> u64 {
        self.disk.lock().live.sizes.bytes_behind(index.get())
    }

    fn leaves(&self, bytes: u64) -> Option<LogIndex> {
        self.disk.lock().live.sizes.leaves(bytes).map(LogIndex)
    }

    fn truncate_after(&self, index: Option<LogIndex>) -> WriteAck {
        self.acked(|_| LogWrite::Truncate(index))
    }

    fn purge(&self, index: LogIndex, mark: Bytes) -> WriteAck {
        self.acked(|disk| LogWrite::Purge(index, mark, disk.copy_rows()))
    }

    fn save_vote(&self, vote: Bytes) -> WriteAck {
        self.acked(|_| LogWrite::Vote(vote))
    }

    fn vote(&self) -> Option<Bytes> {
        self.disk.lock().live.vote.clone()
    }

    fn save_committed(&self, committed: Option<Bytes>) {
        let mut disk = self.disk.lock();
        if disk.opened == self.session {
            let op = LogWrite::Committed(committed);
            disk.live.run(&op);
            // Waits for the next durable write, as on a real disk.
            disk.waiting.push((op, None));
        }
    }

    fn committed(&self) -> Option<Bytes> {
        self.disk.lock().live.committed.clone()
    }
}
