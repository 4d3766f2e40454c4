//! What storage promises to those above: the traits that the engine and its twin in memory implement.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::room;
use crate::ids::LogIndex;
use crate::model::tables::Tables;
use crate::proto::Applied;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Called once, when the entries are on disk so that neither a crash nor a power cut takes them back.
pub type Durable = Box<dyn FnOnce(io::Result<()>) + Send>;
/// Resolves when the write is durable. A closed channel means the log thread ended: treat it as an error.
pub type WriteAck = oneshot::Receiver<io::Result<()>>;

/// What the log holds, as known in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// The newest purged index, and the bytes given with it to [`LogStore::purge`].
    pub purged: Option<(LogIndex, Bytes)>,
    /// The newest index ever appended and not truncated; `None` if none is left (look at `purged`).
    pub last: Option<LogIndex>,
}

/// The Raft log: entries are opaque bytes under dense indexes. Calls take effect in the order they are made.
/// None of them blocks the caller on a disk.
pub trait LogStore: Send + Sync + 'static {
    fn bounds(&self) -> LogBounds;

    /// Appends after the last entry. Readable when this returns, durable when `done` is called.
    /// The first index must be `last + 1` (or `purged + 1`, or anything if the log was never used).
    fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Durable);

    /// The entries with `from <= index < to`, ascending, at least one if there is one, else at most
    /// `max_bytes`. A hole is an error.
    fn read(&self, from: LogIndex, to: LogIndex, max_bytes: usize)
    -> BoxFuture<'_, io::Result<Vec<(LogIndex, Bytes)>>>;

    /// The bytes of all entries.
    fn bytes(&self) -> u64;

    /// The bytes of every entry with a greater index.
    fn bytes_behind(&self, index: LogIndex) -> u64;

    /// The oldest entry behind which the log has at most so many bytes; `None`: it has no more in all.
    fn leaves(&self, bytes: u64) -> Option<LogIndex>;

    /// Removes every entry with a greater index (`None`: all).
    fn truncate_after(&self, index: Option<LogIndex>) -> WriteAck;

    /// Removes every entry up to `index`, inclusive; `mark` comes back in [`LogBounds::purged`]. The rows are
    /// made durable first: what is purged can never be replayed. Resolves when the mark is durable, which may
    /// take as long as the rows' writer is behind; nothing need wait for it.
    fn purge(&self, index: LogIndex, mark: Bytes) -> WriteAck;

    /// Durable when the acknowledgement comes, in order with appends.
    fn save_vote(&self, vote: Bytes) -> WriteAck;
    fn vote(&self) -> Option<Bytes>;

    /// Rides on the next durable write.
    fn save_committed(&self, committed: Option<Bytes>);
    fn committed(&self) -> Option<Bytes>;
}

/// A whole state, as built or received: rows in key order behind `applied`.
#[derive(Clone, Debug)]
pub struct StateSnapshot {
    pub applied: Applied,
    pub body: SnapshotBody,
}

impl StateSnapshot {
    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        match &self.body {
            SnapshotBody::File { len, .. } => *len,
            SnapshotBody::Memory(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Clone, Debug)]
pub enum SnapshotBody {
    File { path: std::path::PathBuf, len: u64 },
    Memory(Bytes),
}

/// Builds, receives and installs snapshots. One of each at a time.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Writes all rows as of the last commit made before this call. Writes go on meanwhile. The rows are
    /// durable when it returns (the log may be purged up to there).
    fn build(&self) -> BoxFuture<'_, io::Result<StateSnapshot>>;

    /// The newest complete snapshot, also after a restart.
    fn current(&self) -> Option<StateSnapshot>;

    /// Up to `len` bytes from `offset`; empty at the end.
    fn read_chunk(&self, snapshot: &StateSnapshot, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>>;

    /// Starts receiving; an earlier unfinished one is dropped.
    fn receive(&self) -> BoxFuture<'_, io::Result<Box<dyn SnapshotReceiver>>>;

    /// Replaces all rows, atomically and durably: after a crash either the old state is there or the new one.
    /// It becomes the current snapshot. [`Tables`] handed out earlier see the new rows.
    fn install(&self, snapshot: StateSnapshot) -> BoxFuture<'_, io::Result<()>>;
}

/// A snapshot on its way in.
pub trait SnapshotReceiver: Send {
    /// The next bytes; `offset` must be where the last ones ended.
    fn write(&mut self, offset: u64, data: Bytes) -> BoxFuture<'_, io::Result<()>>;
    /// Checks that it is whole (its own checksum) and makes it durable.
    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<StateSnapshot>>;
}

/// A start of the node: the last one that the folder knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartMark {
    /// Counts those that took part.
    pub boot: u64,
    /// Drawn for it.
    pub instance: u64,
    /// It took part: it may have voted, and acknowledged entries.
    pub took_part: bool,
}

/// Keeps the mark of the last start.
pub trait StartMarks: Send + Sync + 'static {
    fn last(&self) -> io::Result<StartMark>;
    /// Durable when it resolves.
    fn save(&self, mark: StartMark) -> BoxFuture<'_, io::Result<()>>;

    /// The epoch of the history that the folder is to belong to, where its rows may not have come there yet; 0: theirs.
    fn epoch(&self) -> io::Result<u64>;
    /// Durable when it resolves.
    fn save_epoch(&self, epoch: u64) -> BoxFuture<'_, io::Result<()>>;
}

impl StartMark {
    pub(crate) fn encode(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[..8].copy_from_slice(&self.boot.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.instance.to_be_bytes());
        bytes[16] = u8::from(self.took_part);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the mark of the last start does not decode");
        let (boot, rest) = bytes.split_first_chunk().ok_or_else(corrupt)?;
        let (instance, took_part) = rest.split_first_chunk().ok_or_else(corrupt)?;
        let [took_part @ (0 | 1)] = took_part else { return Err(corrupt()) };
        let (boot, instance) = (u64::from_be_bytes(*boot), u64::from_be_bytes(*instance));
        Ok(Self { boot, instance, took_part: *took_part == 1 })
    }
}

/// Everything a node keeps.
pub struct Stores {
    /// Which start of the node this folder knows.
    pub starts: std::sync::Arc<dyn StartMarks>,
    pub log: std::sync::Arc<dyn LogStore>,
    pub tables: Box<dyn Tables>,
    pub snapshots: std::sync::Arc<dyn SnapshotStore>,
    /// Resolves when rows that were applied but are not in the engine yet are few enough to go on.
    pub pressure: std::sync::Arc<dyn Backpressure>,
    /// How much room its disk has.
    pub room: std::sync::Arc<room::DiskRoom>,
    /// How long a flush to its disk takes now.
    pub flush_time: fn() -> std::time::Duration,
    /// Ends the use of the data folder. Dropping this and the log ends it, too, but without a last flush.
    pub close: std::sync::Arc<dyn Close>,
}

/// Ends the use of a data folder, so that it can be opened again, also in the same process.
pub trait Close: Send + Sync + 'static {
    /// Makes everything durable and lets go of the folder; every later call to the stores fails.
    fn close(&self) -> BoxFuture<'_, io::Result<()>>;

    /// An error if something has failed by now, in the background too, where nobody waits for it, or if the folder is gone.
    /// Waits for nothing but a look at the folder, off the runtime.
    /// Of the kind `InvalidData` if what is kept is damaged.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// The bytes of the engine's files.
    fn engine_size(&self) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    /// The same, if with about `content` bytes in them a copy would be much smaller and has room: the next start makes it.
    fn worth_a_copy(&self, _content: u64) -> BoxFuture<'_, io::Result<Option<u64>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Reads all that is kept, so many bytes a second; how many there were. Damage is found by `check`, too.
    fn scrub(&self, _bytes_per_second: u64) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(std::future::ready(Ok(0)))
    }
}

/// Holds `apply` back while the state machine's writer is behind (`limits::PENDING_ROWS`).
pub trait Backpressure: Send + Sync + 'static {
    fn ready(&self) -> BoxFuture<'_, io::Result<()>>;
}
