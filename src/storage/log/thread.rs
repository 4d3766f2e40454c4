//! The one thread that writes the log: it drains its queue, writes, flushes once, then tells all who wait.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;

use super::message::{LogCommand, Message, Purge};
use super::rows;
use super::{LogShared, LogState};
use crate::ids::LogIndex;
use crate::storage::Durable;
use crate::storage::durability::disk_error::engine_error;
use crate::storage::durability::poison::{closed, guarded};
use crate::storage::durability::stalls::{CallUnderWay, DiskCall};
use crate::storage::engine::{self, SledEngine};
use crate::storage::folder::side_mark::{self, SideMark, SideMarks};
use crate::storage::rows::tables::TablesShared;

/// What goes into one flush at most.
const GROUP_ENTRIES: usize = 512;
const GROUP_BYTES: usize = 1 << 20;
/// How often a purge looks whether the rows that it waits for have come.
const LOOK: Duration = Duration::from_millis(5);

const VOTE: &[u8] = b"vote";
/// How many votes were saved.
const VOTES: &[u8] = b"votes";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

pub(crate) struct LogThread {
    engine: SledEngine,
    shared: Arc<LogShared>,
    tables: Arc<TablesShared>,
    messages: Receiver<Message>,
    /// Waiting for a place in the next flush.
    committed: Option<Option<Bytes>>,
    /// Waiting for rows. As many as calls fit in the queue at most: a caller waits for the answer.
    purges: VecDeque<(Purge, Option<Durable>)>,
    /// The newest purge mark on disk.
    purged: Option<LogIndex>,
    /// Entries up to here are still to be removed.
    removing: Option<LogIndex>,
    /// What is written but not flushed goes into the mark beside the engine after the flush.
    marks: Arc<SideMarks>,
    ahead: SideMark,
    scratch: Vec<u8>,
}

/// The log as it was found.
pub(crate) struct LoadedLog {
    pub state: LogState,
    /// Of the last entry; 0: there is none.
    pub end_hash: u64,
    /// How many votes were saved.
    pub votes: u64,
    /// The hash of the entry that was asked about.
    pub watched: Option<u64>,
}

/// The log as it is on disk, with what a crash cut off removed; looks at the entry `watch`.
pub(crate) fn load(engine: &SledEngine, watch: LogIndex) -> io::Result<LoadedLog> {
    let mut state = LogState::default();
    let (mut end_hash, mut watched) = (0, None);
    let get = |key| engine.meta.get(key).map_err(engine_error);
    state.vote = get(VOTE)?.map(|vote| Bytes::copy_from_slice(&vote));
    // In front of it stands whether there is one: "none" is a value that can be saved, too.
    state.committed = get(COMMITTED)?.filter(|c| c.first() == Some(&1)).map(|c| Bytes::copy_from_slice(&c[1..]));
    state.bounds.purged = get(PURGED)?.map(|bytes| decode_mark(&bytes)).transpose()?;
    let purged = state.bounds.purged.as_ref().map(|(index, _)| *index);
    let (tail, sizes) = (&mut state.tail, &mut state.sizes);
    let mut last = Bytes::new();
    let found = rows::scan(&engine.log, purged, |index, entry| {
        if index == watch {
            watched = Some(side_mark::hash(&entry));
        }
        last = entry.clone();
        sizes.push(index.get(), entry.len());
        tail.push(index, entry);
        tail.written(index);
    })?;
    if found.last.is_some() {
        end_hash = side_mark::hash(&last);
    }
    let votes = get(VOTES)?.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
    state.bounds.last = found.last;
    state.first = found.first.unwrap_or_default();
    if let Some(torn) = found.torn {
        tracing::info!("log entry {torn} was being written when the node was stopped; it is dropped");
        rows::remove_from(&engine.log, torn).map_err(engine_error)?;
        engine.flush().map_err(engine_error)?;
    }
    Ok(LoadedLog { state, end_hash, votes, watched })
}

fn encode_mark(index: LogIndex, mark: &[u8]) -> Vec<u8> {
    [&index.get().to_be_bytes(), mark].concat()
}

fn decode_mark(bytes: &[u8]) -> io::Result<(LogIndex, Bytes)> {
    match bytes.split_first_chunk() {
        Some((index, mark)) => Ok((LogIndex(u64::from_be_bytes(*index)), Bytes::copy_from_slice(mark))),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the purge mark does not decode")),
    }
}

impl LogThread {
    pub(crate) fn new(
        engine: SledEngine,
        shared: Arc<LogShared>,
        tables: Arc<TablesShared>,
        marks: Arc<SideMarks>,
        messages: Receiver<Message>,
    ) -> Self {
        let purged = shared.state.lock().bounds.purged.as_ref().map(|(index, _)| *index);
        Self {
            engine,
            shared,
            tables,
            messages,
            committed: None,
            purges: VecDeque::new(),
            purged,
            // A purge that a crash interrupted goes on.
            removing: purged,
            ahead: marks.current(),
            marks,
            scratch: Vec::new(),
        }
    }

    /// Works until it is told to close, or all senders are gone; after a failure it only says so.
    pub(crate) fn run(mut self) {
        while let Some((group, closing)) = self.gather() {
            let mut waiting = Vec::new();
            let outcome = self.guarded(|thread| thread.write(group, closing, &mut waiting));
            for done in waiting {
                done(copy(&outcome));
            }
            engine::free_dropped_pages();
            let removed = outcome.and_then(|()| self.guarded(Self::remove_some));
            if removed.is_err() {
                self.purges.drain(..).filter_map(|(_, done)| done).for_each(|done| done(copy(&removed)));
            }
            if closing {
                break;
            }
        }
        self.purges.drain(..).filter_map(|(_, done)| done).for_each(|done| done(Err(closed())));
        *self.shared.tree.write() = None;
    }

    /// Turns an error, or a panic of the engine, into the end of all storage.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let poison = self.shared.poison.clone();
        match guarded(|| work(self)) {
            Ok(outcome) => outcome.map_err(|error| match poison.is_failed() {
                true => error,
                false => poison.failed("writing the log", &error),
            }),
            Err(panic) => Err(poison.fail("writing the log", &panic)),
        }
    }

    /// Messages for one flush. Waits for the first one unless there is something else to do.
    fn gather(&mut self) -> Option<(Vec<Message>, bool)> {
        let mut next = if self.shared.poison.is_failed() || (self.removing.is_none() && self.purges.is_empty()) {
            Some(self.messages.recv().ok()?)
        } else {
            let wait = if self.removing.is_some() { Duration::ZERO } else { LOOK };
            match self.messages.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        };
        let (mut group, mut entries, mut bytes) = (Vec::new(), 0, 0);
        while let Some(message) = next {
            if matches!(message.op, LogCommand::Close) {
                return Some((group, true));
            }
            let (more, more_bytes) = message.weight();
            entries += more;
            bytes += more_bytes;
            group.push(message);
            if entries >= GROUP_ENTRIES || bytes >= GROUP_BYTES {
                break;
            }
            next = self.messages.try_recv().ok();
        }
        Some((group, false))
    }

    /// Writes a group and flushes it. Who is to be told is in `waiting`, whatever the outcome.
    fn write(&mut self, group: Vec<Message>, closing: bool, waiting: &mut Vec<Durable>) -> io::Result<()> {
        let mut outcome = self.shared.poison.check();
        let mut written = None;
        let mut dirty = closing;
        let last = if closing { self.shared.state.lock().unsent.take() } else { None };
        for Message { op, done, committed } in group {
            self.committed = committed.or(self.committed.take());
            if outcome.is_err() {
                // The rest of the group only needs its answer.
                waiting.extend(done);
                continue;
            }
            if let LogCommand::Purge(purge) = op {
                match purge.empties {
                    true => {
                        waiting.extend(done);
                        outcome = self.purge_in_order(&purge);
                        dirty = true;
                    }
                    false => self.purges.push_back((purge, done)),
                }
                continue;
            }
            dirty = true;
            waiting.extend(done);
            outcome = self.write_one(op, &mut written);
        }
        // Rows that the engine has by now are on disk after the flush below.
        let mut marks = Vec::new();
        for (purge, done) in self.ready_purges() {
            waiting.extend(done);
            marks.push(purge);
        }
        outcome?;
        self.committed = last.or(self.committed.take());
        if dirty || !marks.is_empty() {
            self.flush()?;
        }
        if let Some((index, epoch)) = written {
            let mut state = self.shared.state.lock();
            // After a truncation these indexes are other entries.
            if state.truncations == epoch {
                state.tail.written(index);
            }
        }
        if !marks.is_empty() {
            for purge in &marks {
                self.mark(purge)?;
            }
            self.flush()?;
        }
        Ok(())
    }

    fn write_one(&mut self, op: LogCommand, written: &mut Option<(LogIndex, u64)>) -> io::Result<()> {
        let _under_way = CallUnderWay::begin(DiskCall::WriteLog);
        match op {
            LogCommand::Append { entries, epoch } => {
                for (index, entry) in &entries {
                    rows::put(&self.engine.log, *index, entry, &mut self.scratch).map_err(engine_error)?;
                    *written = Some((*index, epoch));
                }
                if let Some((index, entry)) = entries.last() {
                    (self.ahead.end, self.ahead.end_hash) = (*index, side_mark::hash(entry));
                }
            }
            LogCommand::Truncate { after } => {
                self.take_back(after.unwrap_or_default())?;
                let from = after.map_or(LogIndex(0), LogIndex::next);
                rows::remove_from(&self.engine.log, from).map_err(engine_error)?;
            }
            LogCommand::Vote(vote) => {
                self.ahead.votes += 1;
                self.ahead.vote_hash = side_mark::hash(&vote);
                // The number first: with it alone, after a crash, the mark still knows less.
                self.engine.meta.insert(VOTES, &self.ahead.votes.to_be_bytes()).map_err(engine_error)?;
                self.engine.meta.insert(VOTE, &vote[..]).map_err(engine_error)?;
            }
            LogCommand::Purge(_) | LogCommand::Close => {}
        }
        Ok(())
    }

    /// Before entries are: what the mark says is always there.
    fn take_back(&mut self, after: LogIndex) -> io::Result<()> {
        if after < self.ahead.end {
            (self.ahead.end, self.ahead.end_hash) = (after, 0);
        }
        match after < self.marks.current().end {
            true => self.marks.settle(|mark| (mark.end, mark.end_hash) = (after, 0)),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // What the engine has before the flush is on disk after it.
        self.ahead.applied = self.ahead.applied.max(self.tables.queue.written_index());
        self.ahead.purged = self.ahead.purged.max(self.purged.unwrap_or_default());
        if self.ahead.purged > self.ahead.end {
            (self.ahead.end, self.ahead.end_hash) = (self.ahead.purged, 0);
        }
        self.flush_engine()?;
        let SideMark { end, end_hash, votes, vote_hash, purged, applied, .. } = self.ahead;
        let ahead = |mark: &mut SideMark| {
            *mark = SideMark { end, end_hash, votes, vote_hash, purged, applied, ..mark.clone() };
        };
        // A vote is never forgotten; for the rest the next seconds will do.
        match votes > self.marks.current().votes {
            true => self.marks.settle(ahead),
            false => self.marks.update(ahead),
        }
    }

    fn flush_engine(&mut self) -> io::Result<()> {
        if let Some(committed) = self.committed.take() {
            let bytes = committed.map_or(vec![0], |committed| [&[1], &committed[..]].concat());
            self.engine.meta.insert(COMMITTED, bytes).map_err(engine_error)?;
        }
        self.engine.flush().map_err(engine_error)
    }

    /// A purge of everything comes after a snapshot was installed, and what is appended next does not follow what
    /// was there: the mark must come first, or a crash would leave a hole.
    fn purge_in_order(&mut self, purge: &Purge) -> io::Result<()> {
        self.tables.queue.wait_written(purge.rows)?;
        self.flush()?;
        self.mark(purge)
    }

    /// Purges whose rows have come. Others wait without holding up appends.
    fn ready_purges(&mut self) -> Vec<(Purge, Option<Durable>)> {
        if self.purges.is_empty() {
            return Vec::new();
        }
        let written = self.tables.queue.written();
        let ready = self.purges.iter().take_while(|(purge, _)| purge.rows <= written).count();
        self.purges.drain(..ready).collect()
    }

    fn mark(&mut self, purge: &Purge) -> io::Result<()> {
        if self.purged.is_some_and(|purged| purged >= purge.index) {
            return Ok(());
        }
        self.engine.meta.insert(PURGED, encode_mark(purge.index, &purge.mark)).map_err(engine_error)?;
        self.purged = Some(purge.index);
        self.removing = self.purged;
        Ok(())
    }

    /// A chunk of what a durable mark covers.
    fn remove_some(&mut self) -> io::Result<()> {
        if let Some(index) = self.removing
            && rows::remove_some_up_to(&self.engine.log, index).map_err(engine_error)?
        {
            self.removing = None;
        }
        Ok(())
    }
}

fn copy(outcome: &io::Result<()>) -> io::Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}
