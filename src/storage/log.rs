//! The Raft log over the engine: [`SledLog`] for callers, [`thread`] for the disk.
//!
//! Calls change what is in memory at once, and go to the thread in the same order; they never wait for it. The
//! newest entries stay in memory, so that appends and replication do not read from the engine.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use self::cache::LogCache;
use self::message::{LogCommand, Message, Purge};
use super::durability::blocking;
use super::durability::poison::{Poison, closed};
use super::rows::tables::TablesShared;
use super::{BoxFuture, Close, Durable, LogBounds, LogStore, WriteAck};
use crate::ids::LogIndex;
use crate::sizes::Sizes;

pub(crate) mod cache;
pub(crate) mod message;
pub(crate) mod rows;
pub(crate) mod thread;

/// Calls that wait for the thread. Far more than openraft ever has in flight: an overflow is an error.
pub(super) const QUEUE: usize = 4_096;

/// What callers see at once.
#[derive(Default)]
pub(super) struct LogState {
    pub bounds: LogBounds,
    /// The oldest entry, if there is one.
    pub first: LogIndex,
    pub tail: LogCache,
    pub sizes: Sizes,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    /// A new `committed` that goes to the thread with the next call: alone it is not worth waking it.
    pub unsent: Option<Option<Bytes>>,
    /// Grows with every truncation: a read that spans one starts again.
    pub truncations: u64,
}

/// What callers and the thread share.
pub(super) struct LogShared {
    pub state: Mutex<LogState>,
    pub poison: Poison,
    /// For reads; `None` after close.
    pub tree: RwLock<Option<sled::Tree>>,
}

pub(super) struct SledLog {
    pub(super) shared: Arc<LogShared>,
    pub(super) sender: SyncSender<Message>,
    /// Purging needs the rows to be durable first.
    pub(super) tables: Arc<TablesShared>,
    /// Whoever keeps the log keeps the folder open.
    pub(super) _closer: Arc<dyn Close>,
}

impl SledLog {
    /// Sends while `state` is locked, so that the thread sees calls in the order in which memory changed.
    fn send(&self, state: &mut LogState, op: LogCommand, done: Durable) -> Result<(), (io::Error, Message)> {
        let message = Message { op, done: Some(done), committed: state.unsent.take() };
        if let Err(error) = self.shared.poison.check() {
            return Err((error, message));
        }
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => {
                (io::Error::new(io::ErrorKind::WouldBlock, "the log's queue is full"), message)
            }
            TrySendError::Disconnected(message) => (closed(), message),
        })
    }

    fn send_acked(&self, state: &mut LogState, op: LogCommand) -> (WriteAck, bool) {
        let (ack, acked) = oneshot::channel();
        let done: Durable = Box::new(move |outcome| drop(ack.send(outcome)));
        let sent = self.send(state, op, done);
        let ok = sent.is_ok();
        if let Err((error, message)) = sent {
            message.fail(error);
        }
        (acked, ok)
    }
}

/// The error of an append that does not follow the last entry.
pub(super) fn check_dense(bounds: &LogBounds, entries: &[(LogIndex, Bytes)]) -> io::Result<()> {
    let Some((first, _)) = entries.first() else { return Ok(()) };
    let expected = bounds.last.or(bounds.purged.as_ref().map(|(index, _)| *index)).map_or(*first, LogIndex::next);
    if expected.until(LogIndex::MAX).zip(entries).any(|(expected, (index, _))| expected != *index) {
        let message = format!("an append at {first} where the log goes on at {expected}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// The end of a read within the log, or why it cannot begin where it should.
pub(super) fn check_read(bounds: &LogBounds, from: LogIndex, to: LogIndex) -> io::Result<LogIndex> {
    if let Some((purged, _)) = bounds.purged.as_ref().filter(|(purged, _)| from <= *purged && from < to) {
        let message = format!("entry {from} was purged, as all up to {purged}");
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(bounds.last.map_or(from, |last| to.min(last.next())))
}

impl LogStore for SledLog {
    fn bounds(&self) -> LogBounds {
        self.shared.state.lock().bounds.clone()
    }

    fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Durable) {
        let mut state = self.shared.state.lock();
        if let Err(error) = check_dense(&state.bounds, &entries) {
            drop(state);
            return done(Err(error));
        }
        let op = LogCommand::Append { entries: entries.clone(), epoch: state.truncations };
        match self.send(&mut state, op, done) {
            Ok(()) => {
                for (index, entry) in entries {
                    if state.bounds.last.replace(index).is_none() {
                        state.first = index;
                    }
                    state.sizes.push(index.get(), entry.len());
                    state.tail.push(index, entry);
                }
            }
            Err((error, message)) => {
                drop(state);
                message.fail(error);
            }
        }
    }

    fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> BoxFuture<'_, io::Result<Vec<(LogIndex, Bytes)>>> {
        Box::pin(async move {
            'again: loop {
                let (mut out, mut budget, mut next) = (Vec::new(), max_bytes, from);
                let mut truncations = None;
                loop {
                    let (end, tail_first) = {
                        let state = self.shared.state.lock();
                        if *truncations.get_or_insert(state.truncations) != state.truncations {
                            continue 'again;
                        }
                        self.shared.poison.check()?;
                        let end = check_read(&state.bounds, next, to)?;
                        let tail_first = state.tail.first().unwrap_or(LogIndex::MAX);
                        if next >= end || next >= tail_first {
                            state.tail.read(next, end, &mut budget, &mut out);
                            return Ok(out);
                        }
                        (end, tail_first)
                    };
                    let tree = self.shared.tree.read().clone().ok_or_else(closed)?;
                    let (left, stop, first) = (budget, end.min(tail_first), out.is_empty());
                    let older = blocking(move || rows::read(&tree, next, stop, left, first)).await;
                    {
                        let state = self.shared.state.lock();
                        if state.truncations != truncations.unwrap_or_default() {
                            continue 'again;
                        }
                        // Purged meanwhile is the caller's matter; anything else is damage.
                        check_read(&state.bounds, next, to)?;
                    }
                    let older = older.map_err(|error| self.shared.poison.failed("reading the log", &error))?;
                    let complete = older.len() as u64 == stop.ahead_of(next);
                    next = next.plus(older.len() as u64);
                    for (_, entry) in &older {
                        cache::take(&mut budget, entry.len(), true);
                    }
                    out.extend(older);
                    if !complete {
                        return Ok(out);
                    }
                }
            }
        })
    }

    fn bytes(&self) -> u64 {
        self.shared.state.lock().sizes.bytes()
    }

    fn bytes_behind(&self, index: LogIndex) -> u64 {
        self.shared.state.lock().sizes.bytes_behind(index.get())
    }

    fn leaves(&self, bytes: u64) -> Option<LogIndex> {
        self.shared.state.lock().sizes.leaves(bytes).map(LogIndex)
    }

    fn truncate_after(&self, index: Option<LogIndex>) -> WriteAck {
        let mut state = self.shared.state.lock();
        let (acked, sent) = self.send_acked(&mut state, LogCommand::Truncate { after: index });
        if sent {
            state.truncations += 1;
            state.tail.truncate_after(index);
            state.sizes.truncate_after(index.map(LogIndex::get));
            let last = state.bounds.last.zip(index).map(|(last, index)| last.min(index));
            state.bounds.last = last.filter(|last| *last >= state.first);
        }
        acked
    }

    fn purge(&self, index: LogIndex, mark: Bytes) -> WriteAck {
        let mut state = self.shared.state.lock();
        // Rows committed later are not needed: what is purged was applied before.
        let rows = self.tables.memtable.read().newest;
        let empties = state.bounds.last.is_none_or(|last| last <= index);
        let (acked, sent) =
            self.send_acked(&mut state, LogCommand::Purge(Purge { index, mark: mark.clone(), rows, empties }));
        if sent {
            self.tables.queue.flush_now(rows);
            state.tail.purge(index);
            state.sizes.purge(index.get());
            if state.bounds.purged.as_ref().is_none_or(|(purged, _)| *purged < index) {
                state.bounds.purged = Some((index, mark));
            }
            state.bounds.last = state.bounds.last.filter(|last| *last > index);
            state.first = state.first.max(index.next());
        }
        acked
    }

    fn save_vote(&self, vote: Bytes) -> WriteAck {
        let mut state = self.shared.state.lock();
        let (acked, sent) = self.send_acked(&mut state, LogCommand::Vote(vote.clone()));
        if sent {
            state.vote = Some(vote);
        }
        acked
    }

    fn vote(&self) -> Option<Bytes> {
        self.shared.state.lock().vote.clone()
    }

    fn save_committed(&self, committed: Option<Bytes>) {
        let mut state = self.shared.state.lock();
        // In order with appends, so that what is on disk never says more than the log there holds. Whatever does not
        // get there loses nothing: the next call says more.
        state.unsent = Some(committed.clone());
        state.committed = committed;
    }

    fn committed(&self) -> Option<Bytes> {
        self.shared.state.lock().committed.clone()
    }
}
