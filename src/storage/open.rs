//! Puts the pieces of a data folder together, and takes them apart again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::durability::blocking;
use super::durability::disk_error::engine_error;
use super::durability::flush;
use super::durability::poison::{closed, guarded};
use super::engine::seal;
use super::engine::shrink::{self, EngineContent};
use super::engine::{self, OpenedFolder, SledEngine, flatten};
use super::folder::format::{self, FolderIdentity, OpenError};
use super::folder::restoring::{self, RestoreClaim};
use super::folder::side_mark::{self, SideMark, SideMarks};
use super::log::message::{LogCommand, Message};
use super::log::thread::{self as log_thread, LoadedLog, LogThread};
use super::log::{self, LogShared, SledLog};
use super::room::{DiskRoom, RoomThresholds};
use super::rows::tables::{RowsPressure, SledTables, TablesShared};
use super::rows::writer::{self, RowsWriter};
use super::scrub::Scrub;
use super::snapshot::SledSnapshots;
use super::{BoxFuture, Close, StartMark, StartMarks, Stores};
use crate::ids::LogIndex;

/// How often the mark beside the engine is synced, at least.
const SYNC_MARK: Duration = Duration::from_secs(2);

/// Opens a node's data folder, or makes it. Blocks on the disk.
pub fn open(dir: &Path, identity: &FolderIdentity) -> Result<Stores, OpenError> {
    open_in(dir, identity, DiskRoom::of(dir, RoomThresholds::default()))
}

/// The same with thresholds of how much room must be left.
pub fn open_in(dir: &Path, identity: &FolderIdentity, room: Arc<DiskRoom>) -> Result<Stores, OpenError> {
    open_with(dir, identity, room, shrink::SLACK)
}

/// The same as [`open`]; the engine is copied where its files have more than twice what is in them, and `slack` bytes more.
pub fn open_shrunk(dir: &Path, identity: &FolderIdentity, slack: u64) -> Result<Stores, OpenError> {
    open_with(dir, identity, DiskRoom::of(dir, RoomThresholds::default()), slack)
}

/// Makes the folder that a claim is on.
pub fn open_claimed(claim: &RestoreClaim, identity: &FolderIdentity) -> Result<Stores, OpenError> {
    let room = DiskRoom::of(claim.dir(), RoomThresholds::default());
    open_checked(claim.dir(), identity, room, shrink::SLACK)
}

fn open_with(dir: &Path, identity: &FolderIdentity, room: Arc<DiskRoom>, slack: u64) -> Result<Stores, OpenError> {
    if restoring::is_there(dir) {
        return Err(OpenError::Restoring { dir: dir.to_path_buf() });
    }
    open_checked(dir, identity, room, slack)
}

fn open_checked(dir: &Path, identity: &FolderIdentity, room: Arc<DiskRoom>, slack: u64) -> Result<Stores, OpenError> {
    let opened = engine::open(dir, identity)?;
    room.measure();
    let (opened, mark, found) = match look(dir, &opened) {
        Ok((mark, found)) => shrunk(dir, opened, mark, found, slack)?,
        Err(error) => {
            opened.engine.let_go();
            return Err(error);
        }
    };
    let OpenedFolder { engine, identity, unmarked, snapshots, lock, poison, .. } = opened;
    let FoundInEngine { rows: found, log: LoadedLog { state: log_state, .. }, .. } = found;
    let marks = match SideMarks::create(dir, mark).and_then(|marks| shrink::discard(dir).map(|()| Arc::new(marks))) {
        Ok(marks) => marks,
        Err(error) => {
            drop(found);
            engine.let_go();
            return Err(OpenError::io(dir)(error));
        }
    };
    if unmarked {
        format::mark_ready(dir, &identity)?;
    }
    let shared = TablesShared::new(found.rows.clone(), found.applied.clone(), poison.clone());
    let kept = Arc::new(Mutex::new(Some(engine.clone())));
    let starts = SledStarts { engine: kept.clone(), marks: marks.clone() };
    let store =
        SledSnapshots::open(snapshots, shared.clone(), kept.clone(), LogIndex(found.applied.index), room.clone());
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
        flush_time: flush::usual_time,
        close,
    })
}

/// What an engine holds, and the mark that says so; an error where it is not all that it must hold.
fn look(dir: &Path, opened: &OpenedFolder) -> Result<(SideMark, FoundInEngine), OpenError> {
    look_into(dir, &opened.engine, opened.opens, opened.known.as_ref())
}

fn look_into(
    dir: &Path,
    engine: &SledEngine,
    opens: u64,
    known: Option<&SideMark>,
) -> Result<(SideMark, FoundInEngine), OpenError> {
    let mut found = find(dir, engine, known.map_or(LogIndex(0), |known| known.end))?;
    check_rows(dir, &mut found)?;
    let mark = mark_of(opens, &found);
    match known.and_then(|known| known.lost(&mark, found.log.watched)) {
        Some(lost) => Err(OpenError::lost(dir, lost)),
        None => Ok((mark, found)),
    }
}

/// The folder with a copy of its engine, where that is worth it (`shrink`), or as it is.
fn shrunk(
    dir: &Path,
    opened: OpenedFolder,
    mark: SideMark,
    found: FoundInEngine,
    slack: u64,
) -> Result<(OpenedFolder, SideMark, FoundInEngine), OpenError> {
    let begun = Instant::now();
    let content = EngineContent {
        generation: found.rows.rows.generation,
        purged: found.log.state.bounds.purged.as_ref().map(|(index, _)| *index),
        bytes: found.bytes,
    };
    let copied = flatten(dir, guarded(|| shrink::copy_if_due(dir, &opened.engine, &content, slack)));
    let copy = match copied {
        Ok(Some(copy)) => copy,
        Ok(None) => return Ok((opened, mark, found)),
        Err(why) => {
            tracing::warn!("the engine's files stay as large as they are: {why}");
            return usable(dir, opened, mark, found);
        }
    };
    // Held against the whole of what was found, not only against what must be there.
    let same =
        look_into(dir, &copy, opened.opens, Some(&mark)).map(|(theirs, other)| theirs == mark && other.is_same(&found));
    copy.let_go();
    if !matches!(same, Ok(true)) {
        tracing::error!("the copy of the engine is not what was copied, and is not used: {same:?}");
        return usable(dir, opened, mark, found);
    }
    drop(found);
    let opened = engine::exchange(dir, opened)?;
    match look_into(dir, &opened.engine, opened.opens, Some(&mark)) {
        Ok((mark, found)) => {
            tracing::info!("the copy of the engine is in its place after {} ms", begun.elapsed().as_millis());
            Ok((opened, mark, found))
        }
        Err(error) => {
            opened.engine.let_go();
            Err(error)
        }
    }
}

/// The folder, unless a sync has failed meanwhile: then nothing that it acknowledged would count.
fn usable(
    dir: &Path,
    opened: OpenedFolder,
    mark: SideMark,
    found: FoundInEngine,
) -> Result<(OpenedFolder, SideMark, FoundInEngine), OpenError> {
    match flush::check() {
        Ok(()) => Ok((opened, mark, found)),
        Err(error) => {
            // The engine panics where it is let go of last, and cannot flush.
            drop(found);
            opened.engine.let_go();
            Err(OpenError::io(dir)(error))
        }
    }
}

/// Whether the rows are those that were written. Also where the files are as they were closed: what the disk lost before
/// went into the seal.
fn check_rows(dir: &Path, found: &mut FoundInEngine) -> Result<(), OpenError> {
    let (sum, bytes) = match guarded(|| writer::add_up(&found.rows.rows)) {
        Ok(Ok(sum)) => sum,
        Ok(Err(error)) => return Err(OpenError::corrupt(dir, error)),
        Err(panic) => return Err(OpenError::corrupt(dir, panic)),
    };
    found.bytes += bytes;
    match found.rows.sum.replace(sum) {
        Some(written) if written != sum => Err(OpenError::lost(dir, "some of its rows are missing, or older ones")),
        _ => Ok(()),
    }
}

/// The mark that says what the engine gives.
fn mark_of(opens: u64, found: &FoundInEngine) -> SideMark {
    let log = &found.log;
    let purged = log.state.bounds.purged.as_ref().map_or(LogIndex(0), |(index, _)| *index);
    SideMark {
        opens,
        end: log.state.bounds.last.unwrap_or_default().max(purged),
        end_hash: log.end_hash,
        votes: log.votes,
        vote_hash: log.state.vote.as_ref().map_or(0, |vote| side_mark::hash(vote)),
        purged,
        applied: LogIndex(found.rows.applied.index),
        start: found.start,
        seal: None,
    }
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
    /// Of its entries, and of its rows once they were added up; with their keys.
    pub bytes: u64,
}

impl FoundInEngine {
    /// Whether two engines, of which the same marks say what is in them, hold the same also in what no mark says.
    fn is_same(&self, other: &Self) -> bool {
        let ((rows, log), (rows2, log2)) = ((&self.rows, &self.log.state), (&other.rows, &other.log.state));
        rows.applied == rows2.applied
            && rows.sum == rows2.sum
            && self.bytes == other.bytes
            && (log.first, &log.bounds.purged) == (log2.first, &log2.bounds.purged)
            && log.committed == log2.committed
    }
}

/// Reads the engine; of its log, the entry at `watch` is looked at.
pub(super) fn find(dir: &Path, engine: &SledEngine, watch: LogIndex) -> Result<FoundInEngine, OpenError> {
    let rows = flatten(dir, guarded(|| writer::find(engine)))?;
    let rest = guarded(|| Ok((log_thread::load(engine, watch)?, last_start(engine)?)));
    match rest {
        Ok(Ok((log, start))) => Ok(FoundInEngine { bytes: log.state.sizes.bytes(), rows, log, start }),
        Ok(Err(error)) => Err(OpenError::io(dir)(error)),
        Err(panic) => Err(OpenError::corrupt(dir, panic)),
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
            engine::still_there(&parts.dir, &parts.lock)?;
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

    fn engine_size(&self) -> BoxFuture<'_, io::Result<u64>> {
        let dir = self.0.lock().as_ref().map(|parts| parts.dir.clone());
        Box::pin(blocking(move || shrink::engine_size(&dir.ok_or_else(closed)?)))
    }

    fn worth_a_copy(&self, content: u64) -> BoxFuture<'_, io::Result<Option<u64>>> {
        let parts = self.0.lock().as_ref().map(|parts| (parts.dir.clone(), parts.engine.clone()));
        Box::pin(blocking(move || {
            let (dir, engine) = parts.ok_or_else(closed)?;
            let engine = engine.lock().clone().ok_or_else(closed)?;
            shrink::worth_it(&dir, &engine, content, shrink::SLACK).map_err(engine_error)
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
