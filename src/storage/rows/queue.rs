//! What the apply thread hands to the writer of the rows, in order, and how much of it waits.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::memtable::RowWrites;
use super::scan::ScanReader;
use crate::ids::LogIndex;
use crate::limits::{PENDING_BYTES, PENDING_ROWS};
use crate::proto::Applied;
use crate::storage::BoxFuture;
use crate::storage::durability::poison::{Poison, closed};

/// Rows that go to the engine in one batch: it keeps everybody else out for as long as a batch takes.
const BATCH_ROWS: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;
/// How long a small write set waits for others: rows that change often are then written once for many applies.
const GATHER: Duration = Duration::from_millis(20);
/// Multiple of the pending limits at which commit itself waits, should the caller not heed the pressure.
const HARD: usize = 4;

/// What one apply wrote.
pub(crate) struct WriteSet {
    pub set: u64,
    pub rows: RowWrites,
    pub applied: Applied,
    pub bytes: usize,
}

pub(crate) enum WriteJob {
    Write(WriteSet),
    /// Answers with a reader of the rows as of all writes before this job.
    Scan(oneshot::Sender<ScanReader>),
    Install {
        path: PathBuf,
        done: oneshot::Sender<io::Result<()>>,
    },
}

/// The writer's next piece of work.
pub(crate) enum WriterWork {
    /// Write sets in order: one batch.
    Write(Vec<WriteSet>),
    Scan(oneshot::Sender<ScanReader>),
    Install {
        path: PathBuf,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Nothing to write.
    Idle,
    Closed,
}

#[derive(Default)]
struct WriteQueueState {
    jobs: VecDeque<WriteJob>,
    /// Jobs that are not write sets.
    others: usize,
    rows: usize,
    oldest: Option<Instant>,
    /// Somebody waits for the write sets up to this one.
    flush_to: u64,
    /// The newest write set that the engine has, and the index up to which its rows go.
    written: u64,
    written_index: LogIndex,
    closed: bool,
    /// The writer has ended.
    ended: bool,
}

/// The queue. The limits of what waits in it are in `limits`.
pub(crate) struct WriteQueue {
    inner: Mutex<WriteQueueState>,
    to_writer: Condvar,
    from_writer: Condvar,
    pending_rows: AtomicUsize,
    pending_bytes: AtomicUsize,
    eased: Notify,
    poison: Poison,
}

impl WriteQueue {
    pub(crate) fn new(poison: Poison) -> Self {
        Self {
            inner: Mutex::default(),
            to_writer: Condvar::new(),
            from_writer: Condvar::new(),
            pending_rows: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            eased: Notify::new(),
            poison,
        }
    }

    /// Hands over a write set. Blocks only far beyond the limits that [`WriteQueue::ready`] keeps.
    pub(crate) fn write(&self, sealed: WriteSet) {
        let (rows, bytes) = (sealed.rows.len() + 1, sealed.bytes);
        let mut inner = self.inner.lock();
        while self.over(HARD) && !inner.closed && !self.poison.is_failed() {
            self.from_writer.wait(&mut inner);
        }
        if inner.closed || self.poison.is_failed() {
            return;
        }
        self.pending_rows.fetch_add(rows, Ordering::Relaxed);
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        inner.rows += rows;
        let wake = inner.oldest.is_none() || inner.rows >= BATCH_ROWS;
        inner.oldest.get_or_insert_with(Instant::now);
        inner.jobs.push_back(WriteJob::Write(sealed));
        drop(inner);
        if wake {
            self.to_writer.notify_one();
        }
    }

    /// Hands over another job, behind all write sets so far.
    pub(crate) fn push(&self, job: WriteJob) -> io::Result<()> {
        self.poison.check()?;
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(closed());
        }
        if inner.others >= 64 {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "too many snapshots are asked for"));
        }
        inner.others += 1;
        inner.jobs.push_back(job);
        drop(inner);
        self.to_writer.notify_one();
        Ok(())
    }

    /// Asks for the write sets up to `set` to be written without waiting for more.
    pub(crate) fn flush_now(&self, set: u64) {
        let mut inner = self.inner.lock();
        inner.flush_to = inner.flush_to.max(set);
        drop(inner);
        self.to_writer.notify_one();
    }

    /// The engine has the write sets up to this one.
    pub(crate) fn written(&self) -> u64 {
        self.inner.lock().written
    }

    /// Up to which index the engine's rows go, as far as they came through here.
    pub(crate) fn written_index(&self) -> LogIndex {
        self.inner.lock().written_index
    }

    /// The writer's side: the engine's rows go up to this index.
    pub(crate) fn wrote_to(&self, index: LogIndex) {
        self.inner.lock().written_index = index;
    }

    /// Blocks until the engine has the write sets up to `set`.
    pub(crate) fn wait_written(&self, set: u64) -> io::Result<()> {
        self.flush_now(set);
        let mut inner = self.inner.lock();
        while inner.written < set {
            self.poison.check()?;
            if inner.ended {
                return Err(closed());
            }
            self.from_writer.wait(&mut inner);
        }
        Ok(())
    }

    /// Resolves when few enough rows wait.
    pub(crate) fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            loop {
                let eased = self.eased.notified();
                self.poison.check()?;
                if !self.over(1) {
                    return Ok(());
                }
                if self.inner.lock().ended {
                    return Err(closed());
                }
                eased.await;
            }
        })
    }

    fn over(&self, times: usize) -> bool {
        self.pending_rows.load(Ordering::Relaxed) > PENDING_ROWS * times
            || self.pending_bytes.load(Ordering::Relaxed) > PENDING_BYTES * times
    }

    /// The writer's side: what to do next. With `busy` it does not wait.
    pub(crate) fn next(&self, busy: bool) -> WriterWork {
        let mut inner = self.inner.lock();
        loop {
            match inner.jobs.front() {
                Some(WriteJob::Write(sealed)) => {
                    let age = inner.oldest.map_or(GATHER, |at| at.elapsed());
                    let now = inner.rows >= BATCH_ROWS
                        || inner.others > 0
                        || inner.closed
                        || inner.flush_to >= sealed.set
                        || age >= GATHER;
                    if now {
                        return WriterWork::Write(take_sets(&mut inner));
                    }
                    if busy {
                        return WriterWork::Idle;
                    }
                    self.to_writer.wait_for(&mut inner, GATHER - age);
                }
                Some(_) => {
                    inner.others -= 1;
                    match inner.jobs.pop_front() {
                        Some(WriteJob::Scan(reply)) => return WriterWork::Scan(reply),
                        Some(WriteJob::Install { path, done }) => return WriterWork::Install { path, done },
                        _ => {}
                    }
                }
                None if inner.closed => return WriterWork::Closed,
                None if busy => return WriterWork::Idle,
                None => self.to_writer.wait(&mut inner),
            }
        }
    }

    /// The writer's side: the engine has these rows.
    pub(crate) fn done(&self, set: u64, rows: usize, bytes: usize) {
        self.pending_rows.fetch_sub(rows, Ordering::Relaxed);
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.inner.lock().written = set;
        self.wake_waiters();
    }

    /// No more jobs; the writer ends when it has done those it has.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.to_writer.notify_one();
        self.wake_waiters();
    }

    /// The writer has ended, well or not.
    pub(crate) fn ended(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.ended = true;
        inner.jobs.clear();
        drop(inner);
        self.wake_waiters();
    }

    fn wake_waiters(&self) {
        self.from_writer.notify_all();
        self.eased.notify_waiters();
    }
}

fn take_sets(inner: &mut WriteQueueState) -> Vec<WriteSet> {
    let (mut sets, mut rows, mut bytes) = (Vec::new(), 0, 0);
    while let Some(WriteJob::Write(sealed)) = inner.jobs.front() {
        // A write set is never split, so the first one goes whatever its size.
        let (more_rows, more_bytes) = (sealed.rows.len() + 1, sealed.bytes);
        if !sets.is_empty() && (rows + more_rows > BATCH_ROWS || bytes + more_bytes > BATCH_BYTES) {
            break;
        }
        rows += more_rows;
        bytes += more_bytes;
        if let Some(WriteJob::Write(sealed)) = inner.jobs.pop_front() {
            sets.push(sealed);
        }
    }
    inner.rows -= rows;
    // What is left gathers anew.
    inner.oldest = (inner.rows > 0).then(Instant::now);
    sets
}
