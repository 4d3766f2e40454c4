//! Opens the engine so that it is safe to use, and nothing else is.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::durability::disk_error::plain;
use super::durability::flush;
use super::durability::poison::{Poison, guarded};
use super::durability::stalls::{CallUnderWay, DiskCall};
use super::durability::sync_dir;
use super::folder::format::{self, FolderFound, FolderIdentity, FolderStage, OpenError};
use super::folder::side_mark::{self, SideMark, SideMarks};

pub(crate) mod chunks;
pub(crate) mod keys;
pub(crate) mod seal;
pub(crate) mod segments;
pub(crate) mod shrink;

const CACHE: u64 = 64 << 20;
const FLUSH_EVERY_MS: u64 = 500;
/// The end of a segment costs a sync of its own: in the engine's default of 512 KiB that was every third sync under load.
pub(super) const SEGMENT: usize = crate::allocator::ENGINE_BUFFER;
/// Room that a full disk gives back, so that the engine can be opened again.
const RESERVE: i64 = 8 << 20;
/// Bytes read at once.
const READ: usize = 1 << 20;
pub(super) const ENGINE: &str = "engine";
const RESERVE_FILE: &str = "ballast";
/// The number of the node whose data the engine holds.
const OWNER: &[u8] = b"owner";
/// How long threads of an engine closed in this process may take to let go of their lock.
const RELEASE: Duration = Duration::from_secs(10);

/// The engine's trees. A clone shares them; the folder is free again when the last one is dropped.
#[derive(Clone)]
pub(super) struct SledEngine {
    pub rows: sled::Tree,
    pub log: sled::Tree,
    pub meta: sled::Tree,
    db: sled::Db,
    /// Shared with the engine.
    config: sled::Config,
}

impl SledEngine {
    pub(super) fn open(config: sled::Config) -> sled::Result<Self> {
        let db = config.open()?;
        let (rows, log, meta) = (db.open_tree("rows")?, db.open_tree("log")?, db.open_tree("meta")?);
        Ok(Self { rows, log, meta, db, config })
    }

    /// Everything written before is on disk when this returns.
    pub(super) fn flush(&self) -> sled::Result<()> {
        let _under_way = CallUnderWay::begin(DiskCall::Flush);
        self.db.flush()?;
        // Also what the engine flushed by itself.
        Ok(flush::check()?)
    }

    /// What the engine's own threads failed at: its next flush would say so.
    pub(super) fn background_error(&self) -> sled::Result<()> {
        self.config.global_error()
    }

    /// The engine flushes when it is let go of, and panics where it cannot.
    pub(super) fn let_go(self) {
        if let Err(panic) = guarded(|| drop(self)) {
            tracing::warn!("the engine's last flush failed: {panic}");
        }
    }
}

/// An opened data folder.
pub(super) struct OpenedFolder {
    pub engine: SledEngine,
    pub identity: FolderIdentity,
    /// It is new, or of a version without marks: it is not ready before it has one.
    pub unmarked: bool,
    /// What the engine must hold.
    pub known: Option<SideMark>,
    /// How often it was opened, this one included.
    pub opens: u64,
    pub snapshots: PathBuf,
    pub lock: File,
    pub poison: Poison,
}

/// Checks, locks and opens a data folder.
pub(super) fn open(dir: &Path, identity: &FolderIdentity) -> Result<OpenedFolder, OpenError> {
    let io = OpenError::io(dir);
    let engine_dir = dir.join(ENGINE);
    if dir.is_file() {
        return Err(OpenError::File { dir: dir.to_path_buf() });
    }
    fs::create_dir_all(dir).map_err(&io)?;
    let lock = lock(dir)?;
    shrink::settle(dir).map_err(&io)?;
    let FolderFound { stage, identity, marked } = format::check(dir, &engine_dir, identity)?;
    if stage == FolderStage::Creating {
        // An interrupted first open: the engine may be half made, and nobody was ever promised anything.
        if engine_dir.exists() {
            fs::remove_dir_all(&engine_dir).map_err(&io)?;
        }
        side_mark::remove(dir).map_err(&io)?;
    }
    let known = known_mark(dir, marked && stage == FolderStage::Ready)?;
    check_seal(dir, known.as_ref())?;
    let snapshots = dir.join("snapshots");
    fs::create_dir_all(&snapshots).map_err(&io)?;
    let engine = open_engine(dir, &engine_dir)?;
    let opens = match prepare(dir, &identity, stage, &engine, known.as_ref()) {
        Ok(opens) => opens,
        Err(error) => {
            engine.let_go();
            return Err(error);
        }
    };
    keep_reserve_file(dir);
    let unmarked = known.is_none();
    let poison = Poison::default();
    Ok(OpenedFolder { engine, identity, unmarked, known, opens, snapshots, lock, poison })
}

/// Closes the engine, and opens the copy of it that has been made, in its place.
pub(super) fn exchange(dir: &Path, opened: OpenedFolder) -> Result<OpenedFolder, OpenError> {
    let OpenedFolder { engine, identity, unmarked, known, opens, snapshots, lock, poison } = opened;
    engine.let_go();
    // An engine that could not flush never lets go of its files.
    flush::check().map_err(OpenError::io(dir))?;
    if !wait_released(dir) {
        return Err(OpenError::Locked { dir: dir.to_path_buf() });
    }
    shrink::exchange(dir).map_err(OpenError::io(dir))?;
    let engine = open_engine(dir, &dir.join(ENGINE))?;
    Ok(OpenedFolder { engine, identity, unmarked, known, opens, snapshots, lock, poison })
}

/// What the engine must hold. A folder that has a mark is never without it.
fn known_mark(dir: &Path, must: bool) -> Result<Option<SideMark>, OpenError> {
    match side_mark::read(dir) {
        Ok(None) if must => Err(OpenError::corrupt(dir, "its mark of what it must hold is missing")),
        Ok(mark) => Ok(mark),
        // Its first one may have been cut off.
        Err(error) if error.kind() == io::ErrorKind::InvalidData && !must => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(OpenError::corrupt(dir, error)),
        Err(error) => Err(OpenError::io(dir)(error)),
    }
}

/// Whether the files are those that were closed in order. From here on they may change.
fn check_seal(dir: &Path, known: Option<&SideMark>) -> Result<(), OpenError> {
    let io = OpenError::io(dir);
    let Some((known, seal)) = known.and_then(|known| Some((known, known.seal?))) else { return Ok(()) };
    if seal::of(&sealed_dir(dir)).map_err(&io)? != seal {
        return Err(OpenError::corrupt(dir, "its files are not those that the node closed when it was stopped"));
    }
    SideMarks::create(dir, SideMark { seal: None, ..known.clone() }).map(drop).map_err(&io)
}

/// What a close in order seals.
pub(super) fn sealed_dir(dir: &Path) -> PathBuf {
    dir.join(ENGINE)
}

fn open_engine(dir: &Path, engine_dir: &Path) -> Result<SledEngine, OpenError> {
    let reserve_file = dir.join(RESERVE_FILE);
    let attempt = || {
        // Also after an attempt that failed: it leaves such a file where the disk is full.
        remove_torn(engine_dir)?;
        wait_released(dir);
        read_whole(&engine_dir.join("db"))?;
        match guarded(|| open_trees(engine_dir)) {
            Ok(Err(sled::Error::Io(error))) => Err(plain(error)),
            other => Ok(other),
        }
    };
    let opened = match attempt() {
        Err(error) if is_full(&error) && reserve_file.exists() => {
            tracing::warn!("the disk is full: giving up the ballast file to open the data");
            fs::remove_file(reserve_file).and_then(|()| attempt())
        }
        other => other,
    };
    flatten(dir, opened.map_err(OpenError::io(dir))?)
}

/// The engine takes what the disk cannot read for the end of what was written, and writes over it. So all is read
/// before, and a disk that fails is seen; what the engine then reads comes from the system's memory.
fn read_whole(path: &Path) -> io::Result<()> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut buffer = vec![0; READ];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// The engine says whose it is as well: another node's files beside this node's identity would be two nodes' promises in one.
fn check_owner(dir: &Path, engine: &SledEngine, node_id: u64) -> Result<(), OpenError> {
    let owner = flatten(dir, guarded(|| engine.meta.get(OWNER)))?;
    match owner.map(|owner| owner.as_ref().try_into().map(u64::from_le_bytes)) {
        Some(Ok(found)) if found == node_id => Ok(()),
        Some(Ok(found)) => Err(OpenError::OtherNode { dir: dir.to_path_buf(), found, expected: node_id }),
        Some(Err(_)) => Err(OpenError::corrupt(dir, "its engine does not say whose it is")),
        // New, or of a version that did not write it. The open flushes it.
        None => flatten(dir, guarded(|| engine.meta.insert(OWNER, &node_id.to_le_bytes()))).map(drop),
    }
}

/// Proves that the engine is what it must be and makes its files durable; how often it was opened.
fn prepare(
    dir: &Path,
    identity: &FolderIdentity,
    stage: FolderStage,
    engine: &SledEngine,
    known: Option<&SideMark>,
) -> Result<u64, OpenError> {
    let opens = flatten(dir, guarded(|| flush::probes(&engine.meta)))?;
    if stage == FolderStage::Ready && opens == 0 {
        // The engine takes some kinds of damage for a new database; going on would forget votes and entries.
        return Err(OpenError::corrupt(dir, "the engine finds nothing in its files"));
    }
    let found = SideMark { opens, ..SideMark::default() };
    if let Some(known) = known
        && opens < known.opens
        && let Some(lost) = known.lost(&found, None)
    {
        return Err(OpenError::lost(dir, lost));
    }
    check_owner(dir, engine, identity.node_id)?;
    if !flatten(dir, guarded(|| flush::probe(&engine.meta)))? {
        return Err(OpenError::FlushNotDurable);
    }
    // A flush of the engine's own thread that failed has dropped what these syncs then do not find.
    sync_all(dir, &dir.join(ENGINE)).and_then(|()| flush::check()).map_err(OpenError::io(dir))?;
    Ok(opens.wrapping_add(1))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let file = File::create(dir.join("lock")).map_err(OpenError::io(dir))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(dir)(error)),
    }
}

/// Whether the folder is still the one that was opened. What is written to one that was taken away is acknowledged by files
/// that nobody finds again.
pub(super) fn still_there(dir: &Path, lock: &File) -> io::Result<()> {
    let (opened, path) = (lock.metadata()?, dir.join("lock"));
    match fs::metadata(path) {
        Ok(now) if (now.dev(), now.ino()) == (opened.dev(), opened.ino()) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Err(io::Error::other("the folder was removed, moved or replaced while the node ran")),
    }
}

/// The engine writes `snap.N.generating` and renames it; a torn one, left by a crash, makes its open fail.
fn remove_torn(engine_dir: &Path) -> io::Result<()> {
    if !engine_dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(engine_dir)? {
        let entry = entry?;
        if is_torn(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Such a file.
pub(super) fn is_torn(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("snap.") && name.ends_with(".generating")
}

/// Waits for the engine's lock. We hold our own, so it can only be held by threads of an engine that was closed in
/// this process just now. Whether they have.
pub(super) fn wait_released(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(ENGINE).join("db")) else { return true };
    let begun = Instant::now();
    while file.try_lock().is_err() {
        if begun.elapsed() >= RELEASE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

pub(super) fn open_trees(engine_dir: &Path) -> sled::Result<SledEngine> {
    let config = sled::Config::new()
        .path(engine_dir)
        .cache_capacity(CACHE)
        .segment_size(segment_size(engine_dir))
        .flush_every_ms(Some(FLUSH_EVERY_MS))
        .use_compression(false);
    SledEngine::open(config)
}

/// What the engine writes as one piece: as its folder was made, since it cannot be changed later.
pub(super) fn segment_size(engine_dir: &Path) -> usize {
    let conf = fs::read(engine_dir.join("conf")).unwrap_or_default();
    let size = |line: &str| line.strip_prefix("segment_size: ")?.trim().parse().ok();
    String::from_utf8_lossy(&conf).lines().find_map(size).unwrap_or(SEGMENT)
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

/// An error of the engine, or its panic, as a sentence.
pub(super) fn flatten<T>(dir: &Path, outcome: Result<sled::Result<T>, String>) -> Result<T, OpenError> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(OpenError::io(dir)(plain(error))),
        Ok(Err(error)) => Err(OpenError::corrupt(dir, error)),
        Err(panic) => Err(OpenError::corrupt(dir, panic)),
    }
}

/// The engine never syncs its `conf`, its blobs or its folder.
pub(super) fn sync_all(dir: &Path, engine_dir: &Path) -> io::Result<()> {
    File::open(engine_dir.join("conf"))?.sync_all()?;
    File::open(engine_dir.join("db"))?.sync_all()?;
    sync_dir(&engine_dir.join("blobs"))?;
    sync_dir(engine_dir)?;
    sync_dir(dir)?;
    match dir.canonicalize()?.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Fails quietly: a node without reserve file works.
fn keep_reserve_file(dir: &Path) {
    let path = dir.join(RESERVE_FILE);
    if path.exists() {
        return;
    }
    let made = File::create(&path).and_then(|file| {
        // SAFETY: the descriptor is open as long as `file` lives.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, RESERVE) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    });
    if let Err(error) = made {
        tracing::warn!(%error, "no ballast file could be made");
        // Half a reserve file would be taken for a whole one.
        let _ = fs::remove_file(&path);
    }
}

/// Frees the pages that this thread evicted or replaced. sled hands them to crossbeam's collector, which keeps up to 64 of
/// a thread (4 MB) until that thread has more of them, and thread after thread did: 100 MB beside a few full syncs.
pub(super) fn free_dropped_pages() {
    crossbeam_epoch::pin().flush();
}
