//! Puts the pieces of a data folder together, and takes them apart again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::engine::{self, OpenedFolder, SledEngine, flatten};
use super::format::{self, FolderIdentity, OpenError};
use super::log::{self, LogShared, SledLog};
use super::log_thread::{self, LoadedLog, LogCommand, LogThread, Message};
use super::poison::{closed, guarded};
use super::room::{DiskRoom, RoomThresholds};
use super::scrub::Scrub;
use super::side_mark::{self, SideMark, SideMarks};
use super::snapshot::{SledSnapshots, blocking};
use super::tables::{RowsPressure, SledTables, TablesShared};
use super::writer::{self, RowsWriter, engine_error};
use super::{BoxFuture, Close, StartMark, StartMarks, Stores, flush, seal};

/// How often the mark beside the engine is synced, at least.
const SYNC_MARK: Duration = Duration::from_secs(2);

/// Opens a node's data folder, or makes it. Blocks on the disk.
pub fn open(dir: &Path, identity: &FolderIdentity) -> Result<Stores, OpenError> {
    open_in(dir, identity, DiskRoom::of(dir, RoomThresholds::default()))
}

/// The same with thresholds of how much room must be left.
pub fn open_in(dir: &Path, identity: &FolderIdentity, room: Arc<DiskRoom>) -> Result<Stores, OpenError> {
    let opened = engine::open(dir, identity)?;
    room.measure();
    let checked =
        find(dir, &opened.engine, opened.known.as_ref().map_or(0, |known| known.end)).and_then(|mut found| {
            check_rows(dir, &mut found.rows)?;
            Ok((mark_of(dir, &opened, &found)?, found))
        });
    let OpenedFolder { engine, identity, unmarked, snapshots, lock, poison, .. } = opened;
    let (marks, FoundInEngine { rows: found, log: LoadedLog { state: log_state, .. }, .. }) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            engine.let_go();
            return Err(error);
        }
    };
    if unmarked {
        format::mark_ready(dir, &identity)?;
    }
    let shared = TablesShared::new(found.rows.clone(), found.applied.clone(), poison.clone());
    let kept = Arc::new(Mutex::new(Some(engine.clone())));
    let starts = SledStarts { engine: kept.clone(), marks: marks.clone() };
    let store = SledSnapshots::open(snapshots, shared.clone(), kept.clone(), found.applied.index, room.clone());
    let snapshots = match store {
        Ok(snapshots) => snapshots,
        Err(error) => {
            drop((shared, kept, found, starts));
            engine.let_go();
            return Err(OpenError::io(dir)(error));
        }
    };

    let log_shared =
        Arc::new(LogShared { state: Mutex::new(log_state), poison, tree: RwLock::new(Some(engine.log.clone())) });
    let kept_log = log_shared.clone();
    let (sender, messages) = sync_channel(log::QUEUE);
    let log_thread = LogThread::new(engine.clone(), log_shared.clone(), shared.clone(), marks.clone(), messages);
    let writer = RowsWriter::new(engine, shared.clone(), found);
    let (open, closed) = channel();
    let (synced, syncing) = (marks.clone(), shared.clone());
    let threads = [
        spawn("rows", move || writer.run()),
        spawn("log", move || log_thread.run()),
        spawn("mark", move || sync_marks(&synced, &syncing, &closed)),
    ];
    let [Ok(writer), Ok(log), Ok(mark)] = threads else {
        return Err(OpenError::io(dir)(io::Error::other("no thread could be started")));
    };
    let parts = StorageParts {
        shared: shared.clone(),
        log_shared: kept_log,
        sender: sender.clone(),
        engine: kept,
        marks,
        writer,
        log,
        mark,
        open,
        lock,
        dir: dir.to_path_buf(),
    };
    let close: Arc<dyn Close> = Arc::new(Closer(Mutex::new(Some(parts))));
    Ok(Stores {
        starts: Arc::new(starts),
        log: Arc::new(SledLog { shared: log_shared, sender, tables: shared.clone(), _closer: close.clone() }),
        tables: Box::new(SledTables::new(shared.clone())),
        snapshots: Arc::new(snapshots),
        pressure: Arc::new(RowsPressure(shared)),
        room,
        close,
    })
}

/// Whether the rows are those that were written. Also where the files are as they were closed: what the disk lost before
/// went into the seal.
fn check_rows(dir: &Path, found: &mut writer::OpenedRows) -> Result<(), OpenError> {
    let sum = match guarded(|| writer::add_up(&found.rows)) {
        Ok(Ok(sum)) => sum,
        Ok(Err(error)) => return Err(OpenError::corrupt(dir, error)),
        Err(panic) => return Err(OpenError::corrupt(dir, panic)),
    };
    match found.sum.replace(sum) {
        Some(written) if written != sum => Err(OpenError::lost(dir, "some of its rows are missing, or older ones")),
        _ => Ok(()),
    }
}

/// Holds what the engine gives against what it must hold; the mark from here on.
fn mark_of(dir: &Path, opened: &OpenedFolder, found: &FoundInEngine) -> Result<Arc<SideMarks>, OpenError> {
    let log = &found.log;
    let purged = log.state.bounds.purged.as_ref().map_or(0, |(index, _)| *index);
    let mark = SideMark {
        opens: opened.opens,
        end: log.state.bounds.last.unwrap_or(0).max(purged),
        end_hash: log.end_hash,
        votes: log.votes,
        vote_hash: log.state.vote.as_ref().map_or(0, |vote| side_mark::hash(vote)),
        purged,
        applied: found.rows.applied.index,
        start: found.start,
        seal: None,
    };
    if let Some(lost) = opened.known.as_ref().and_then(|known| known.lost(&mark, log.watched)) {
        return Err(OpenError::lost(dir, lost));
    }
    Ok(Arc::new(SideMarks::create(dir, mark).map_err(OpenError::io(dir))?))
}

/// Syncs the mark now and then, until the folder is closed.
fn sync_marks(marks: &SideMarks, shared: &TablesShared, closed: &Receiver<()>) {
    while closed.recv_timeout(SYNC_MARK) == Err(RecvTimeoutError::Timeout) {
        if let Err(error) = marks.sync() {
            shared.poison.fail("writing the mark beside the engine", &error);
            return;
        }
    }
}

/// In the engine's tree of marks.
const START: &[u8] = b"start";
const EPOCH: &[u8] = b"epoch";

struct SledStarts {
    engine: Arc<Mutex<Option<SledEngine>>>,
    marks: Arc<SideMarks>,
}

fn last_start(engine: &SledEngine) -> io::Result<StartMark> {
    let mark = engine.meta.get(START).map_err(engine_error)?;
    mark.map_or(Ok(StartMark::default()), |bytes| StartMark::decode(&bytes))
}

impl SledStarts {
    /// Durable when it resolves.
    fn put(&self, key: &'static [u8], value: Vec<u8>) -> BoxFuture<'_, io::Result<()>> {
        let engine = self.engine.lock().clone();
        Box::pin(blocking(move || {
            let engine = engine.ok_or_else(closed)?;
            engine.meta.insert(key, value).map_err(engine_error)?;
            engine.flush().map_err(engine_error)
        }))
    }
}

impl StartMarks for SledStarts {
    fn last(&self) -> io::Result<StartMark> {
        last_start(&self.engine.lock().clone().ok_or_else(closed)?)
    }

    fn save(&self, mark: StartMark) -> BoxFuture<'_, io::Result<()>> {
        let saved = self.put(START, mark.encode().to_vec());
        let marks = self.marks.clone();
        Box::pin(async move {
            saved.await?;
            blocking(move || marks.settle(|kept| kept.start = mark)).await
        })
    }

    fn epoch(&self) -> io::Result<u64> {
        let engine = self.engine.lock().clone().ok_or_else(closed)?;
        let Some(bytes) = engine.meta.get(EPOCH).map_err(engine_error)? else { return Ok(0) };
        let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the mark of the folder's epoch does not decode");
        Ok(u64::from_be_bytes(bytes[..].try_into().map_err(|_| corrupt())?))
    }

    fn save_epoch(&self, epoch: u64) -> BoxFuture<'_, io::Result<()>> {
        self.put(EPOCH, epoch.to_be_bytes().to_vec())
    }
}

/// What the engine holds.
pub(super) struct FoundInEngine {
    pub rows: writer::OpenedRows,
    pub log: LoadedLog,
    pub start: StartMark,
}

/// Reads the engine; of its log, the entry at `watch` is looked at.
pub(super) fn find(dir: &Path, engine: &SledEngine, watch: u64) -> Result<FoundInEngine, OpenError> {
    let rows = flatten(dir, guarded(|| writer::find(engine)))?;
    let rest = guarded(|| Ok((log_thread::load(engine, watch)?, last_start(engine)?)));
    match rest {
        Ok(Ok((log, start))) => Ok(FoundInEngine { rows, log, start }),
        Ok(Err(error)) => Err(damage_or_io(dir, error)),
        Err(panic) => Err(OpenError::corrupt(dir, panic)),
    }
}

fn damage_or_io(dir: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::InvalidData => OpenError::corrupt(dir, error),
        _ => OpenError::io(dir)(error),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("tillsync-{name}")).spawn(run)
}

struct StorageParts {
    shared: Arc<TablesShared>,
    log_shared: Arc<LogShared>,
    sender: SyncSender<Message>,
    engine: Arc<Mutex<Option<SledEngine>>>,
    marks: Arc<SideMarks>,
    writer: JoinHandle<()>,
    log: JoinHandle<()>,
    mark: JoinHandle<()>,
    /// The thread that syncs the mark ends when this is dropped.
    open: Sender<()>,
    lock: File,
    dir: PathBuf,
}

impl StorageParts {
    fn close(self) -> io::Result<()> {
        // The rows first: the log's last flush then covers them.
        self.shared.queue.close();
        let writer = self.writer.join();
        // Fails only if the thread is gone already.
        let _ = self.sender.send(Message { op: LogCommand::Close, done: None, committed: None });
        let log = self.log.join();
        *self.shared.rows.write() = None;
        if let Some(engine) = self.engine.lock().take() {
            engine.let_go();
        }
        let released = engine::wait_released(&self.dir);
        drop(self.open);
        let mark = self.mark.join();
        // What failed first says more than what it led to.
        self.shared.poison.check()?;
        if writer.is_err() || log.is_err() || mark.is_err() {
            return Err(io::Error::other("a storage thread panicked"));
        }
        flush::check()?;
        if released {
            let seal = seal::soon(&engine::sealed_dir(&self.dir))?;
            self.marks.settle(|mark| mark.seal = seal)?;
        }
        drop(self.lock);
        Ok(())
    }
}

struct Closer(Mutex<Option<StorageParts>>);

impl Close for Closer {
    fn check(&self) -> io::Result<()> {
        if let Some(parts) = self.0.lock().as_ref() {
            parts.shared.poison.check()?;
            if let Some(engine) = parts.engine.lock().as_ref() {
                engine.background_error().map_err(engine_error)?;
            }
        }
        flush::failed()
    }

    fn scrub(&self, bytes_per_second: u64) -> BoxFuture<'_, io::Result<u64>> {
        let scrub = self.0.lock().as_ref().map(|parts| {
            let (tables, log, poison) = (parts.shared.clone(), parts.log_shared.clone(), parts.shared.poison.clone());
            (Scrub { tables, log, poison, bytes_per_second }, parts.dir.clone())
        });
        Box::pin(blocking(move || {
            let (scrub, dir) = scrub.ok_or_else(closed)?;
            scrub.run(&dir)
        }))
    }

    fn close(&self) -> BoxFuture<'_, io::Result<()>> {
        let parts = self.0.lock().take();
        Box::pin(async move {
            match parts {
                Some(parts) => blocking(move || parts.close()).await,
                None => Ok(()),
            }
        })
    }
}

impl Drop for Closer {
    /// Without [`Close::close`], what was not flushed is left to the log's replay, and the threads end by themselves.
    fn drop(&mut self) {
        if let Some(parts) = self.0.lock().take() {
            parts.shared.queue.close();
            let _ = parts.sender.try_send(Message { op: LogCommand::Close, done: None, committed: None });
        }
    }
}
