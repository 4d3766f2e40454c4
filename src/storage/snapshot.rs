//! Snapshots as files of the data folder: `snapshots/snapshot-<index>.snap`, written beside, synced, then renamed.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::file::{SnapshotRows, SnapshotWriter};
use self::receiver::FileReceiver;
use super::durability::blocking;
use super::durability::disk_error::engine_error;
use super::durability::poison::{Poison, closed};
use super::durability::sync_dir;
use super::engine::chunks::Joiner;
use super::engine::keys;
use super::engine::{self, SledEngine};
use super::room::{DiskRoom, SNAPSHOT_LEAVES, SNAPSHOT_STEP, megabytes};
use super::rows::queue::WriteJob;
use super::rows::scan::ScanReader;
use super::rows::tables::TablesShared;
use super::{BoxFuture, SnapshotBody, SnapshotReceiver, SnapshotStore, StateSnapshot};
use crate::ids::LogIndex;

pub(super) mod contents;
pub(crate) mod file;
pub(super) mod reader;
pub(crate) mod receiver;

/// Files of snapshots kept open: one that is being sent stays readable while a newer one takes its place.
const OPEN_FILES: usize = 2;
/// The longest chunk that is read at once.
const MAX_CHUNK: usize = 16 << 20;

struct SnapshotSlot {
    current: Option<StateSnapshot>,
    files: VecDeque<(PathBuf, Arc<File>)>,
}

pub(super) struct SledSnapshots {
    dir: PathBuf,
    shared: Arc<TablesShared>,
    /// `None` after close.
    engine: Arc<Mutex<Option<SledEngine>>>,
    state: Arc<Mutex<SnapshotSlot>>,
    builds: AtomicU64,
    /// The number of the newest receiver.
    receivers: Arc<AtomicU64>,
    room: Arc<DiskRoom>,
}

/// What became of an attempt to build a snapshot.
enum BuildOutcome {
    Done(StateSnapshot),
    /// It would have filled the disk; it has at least so many bytes.
    NoRoom(u64),
}

impl SledSnapshots {
    /// Finds the newest snapshot that the rows contain, and removes everything else; one that is damaged, too: where none
    /// is left, it is built anew.
    pub(super) fn open(
        dir: PathBuf,
        shared: Arc<TablesShared>,
        engine: Arc<Mutex<Option<SledEngine>>>,
        applied_index: LogIndex,
        room: Arc<DiskRoom>,
    ) -> io::Result<Self> {
        let mut newest: Option<(LogIndex, PathBuf)> = None;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            // One that is ahead of the rows belongs to an install that a crash ended: it never happened.
            match index_of(&path).filter(|index| *index <= applied_index) {
                Some(index) if newest.as_ref().is_none_or(|(other, _)| *other < index) => {
                    if let Some((_, older)) = newest.replace((index, path)) {
                        fs::remove_file(older)?;
                    }
                }
                _ => fs::remove_file(path)?,
            }
        }
        let current = match newest.map(|(index, path)| (whole(&path, index), path)) {
            Some((Ok(snapshot), _)) => Some(snapshot),
            Some((Err(error), path)) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a damaged snapshot is removed, and will be built anew: {}", path.display());
                fs::remove_file(path)?;
                None
            }
            Some((Err(error), _)) => return Err(error),
            None => None,
        };
        let state = Arc::new(Mutex::new(SnapshotSlot { current, files: VecDeque::new() }));
        Ok(Self { dir, shared, engine, state, builds: AtomicU64::new(0), receivers: Arc::default(), room })
    }

    /// Begins to build one: what the rows are now, as soon as the writer comes to it.
    fn attempt(&self) -> BoxFuture<'static, io::Result<BuildOutcome>> {
        let (reply, scan) = oneshot::channel();
        // Asked for at once, so that no later commit comes before it.
        let asked = self.shared.queue.push(WriteJob::Scan(reply));
        let temporary = self.dir.join(format!("build-{}.tmp", self.builds.fetch_add(1, Ordering::Relaxed)));
        let (dir, state, poison) = (self.dir.clone(), self.state.clone(), self.shared.poison.clone());
        let (engine, room) = (self.engine.lock().clone(), self.room.clone());
        Box::pin(async move {
            asked?;
            let scan = scan.await.map_err(|_| poison.check().err().unwrap_or_else(closed))?;
            let engine = engine.ok_or_else(closed)?;
            blocking(move || write_out(&dir, &temporary, scan, &engine, &state, &poison, &room)).await
        })
    }

    /// What the next one takes, as far as the last one tells.
    fn expected_bytes(&self) -> u64 {
        let last = self.state.lock().current.as_ref().map_or(0, StateSnapshot::bytes);
        last.saturating_add(last / 4).saturating_add(SNAPSHOT_LEAVES)
    }
}

/// The snapshot in a file that says what its name says, and whose checksum is right.
fn whole(path: &Path, index: LogIndex) -> io::Result<StateSnapshot> {
    file::check_sum(BufReader::with_capacity(1 << 20, File::open(path)?))?;
    let snapshot = describe(path)?;
    match LogIndex(snapshot.applied.index) == index {
        true => Ok(snapshot),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is another snapshot than its name says")),
    }
}

fn index_of(path: &Path) -> Option<LogIndex> {
    path.file_name()?.to_str()?.strip_prefix("snapshot-")?.strip_suffix(".snap")?.parse().ok().map(LogIndex)
}

fn path_of(dir: &Path, index: LogIndex) -> PathBuf {
    dir.join(format!("snapshot-{index}.snap"))
}

fn describe(path: &Path) -> io::Result<StateSnapshot> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let applied = SnapshotRows::new(io::BufReader::new(file))?.applied;
    Ok(StateSnapshot { applied, body: SnapshotBody::File { path: path.to_path_buf(), len } })
}

impl SnapshotStore for SledSnapshots {
    fn build(&self) -> BoxFuture<'_, io::Result<StateSnapshot>> {
        let mut needed = self.expected_bytes();
        let mut begun = self.room.holds(needed).then(|| self.attempt());
        Box::pin(async move {
            loop {
                let attempt = match begun.take() {
                    Some(attempt) => attempt,
                    None => {
                        let (place, free) = (self.room.place(), megabytes(self.room.reading().free));
                        let needs = megabytes(needed);
                        tracing::warn!(
                            "a snapshot waits for room: it needs {needs} MiB, {free} are left on the disk of {place}"
                        );
                        self.room.wait_for(needed).await;
                        tracing::info!("a snapshot is built: there is room for it again");
                        self.attempt()
                    }
                };
                match attempt.await? {
                    BuildOutcome::Done(snapshot) => return Ok(snapshot),
                    // At least twice as much, or it would be tried again for every megabyte that comes back.
                    BuildOutcome::NoRoom(bytes) => needed = needed.max(bytes.saturating_mul(2) + 2 * SNAPSHOT_LEAVES),
                }
            }
        })
    }

    fn current(&self) -> Option<StateSnapshot> {
        self.state.lock().current.clone()
    }

    fn read_chunk(&self, snapshot: &StateSnapshot, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let body = snapshot.body.clone();
        Box::pin(async move {
            let (path, size) = match body {
                SnapshotBody::File { path, len } => (path, len),
                SnapshotBody::Memory(bytes) => return Ok(slice(&bytes, offset, len)),
            };
            let kept = self.state.lock().files.iter().find(|(kept, _)| *kept == path).map(|(_, file)| file.clone());
            blocking(move || {
                let file = kept.map_or_else(|| File::open(&path).map(Arc::new), Ok)?;
                let left = size.saturating_sub(offset);
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(len).min(MAX_CHUNK);
                let mut chunk = BytesMut::zeroed(len);
                file.read_exact_at(&mut chunk, offset)?;
                Ok(chunk.freeze())
            })
            .await
        })
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Box<dyn SnapshotReceiver>>> {
        let number = self.receivers.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.dir.join(format!("receive-{number}.tmp"));
        let (newest, room) = (self.receivers.clone(), self.room.clone());
        Box::pin(async move {
            let receiver = blocking(move || FileReceiver::create(path, number, newest, room)).await?;
            Ok(Box::new(receiver) as Box<dyn SnapshotReceiver>)
        })
    }

    fn install(&self, snapshot: StateSnapshot) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let SnapshotBody::File { path, .. } = snapshot.body else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a snapshot in memory, for rows on a disk"));
            };
            let target = path_of(&self.dir, LogIndex(snapshot.applied.index));
            let (dir, renamed) = (self.dir.clone(), target.clone());
            // Before the rows change: a node whose log was purged must not be left without a snapshot. Until they
            // have changed, the next open takes this file away again.
            blocking(move || {
                if path != renamed {
                    fs::rename(&path, &renamed)?;
                    sync_dir(&dir)?;
                }
                Ok(())
            })
            .await?;
            let (done, outcome) = oneshot::channel();
            self.shared.queue.push(WriteJob::Install { path: target.clone(), done })?;
            let (dir, state, poison) = (self.dir.clone(), self.state.clone(), self.shared.poison.clone());
            let outcome = outcome.await.map_err(|_| poison.check().err().unwrap_or_else(closed))?;
            blocking(move || match outcome {
                Ok(()) => publish(&dir, &target, &state, true).map(|_| ()).map_err(|e| poison.fail("snapshot", &e)),
                Err(error) => {
                    let _ = fs::remove_file(&target);
                    Err(error)
                }
            })
            .await
        })
    }
}

/// Writes the rows of a scan to a file and makes it the current snapshot, unless a newer one was installed.
fn write_out(
    dir: &Path,
    temporary: &Path,
    scan: ScanReader,
    engine: &SledEngine,
    state: &Mutex<SnapshotSlot>,
    poison: &Poison,
    room: &DiskRoom,
) -> io::Result<BuildOutcome> {
    let index = LogIndex(scan.applied.index);
    let written = write_rows(temporary, scan, room).and_then(|wrote| {
        if let Some(bytes) = wrote {
            fs::remove_file(temporary)?;
            room.measure();
            return Ok(BuildOutcome::NoRoom(bytes));
        }
        // What is in the snapshot may be purged from the log, so the rows must not need the log any more.
        engine.flush().map_err(engine_error)?;
        let target = path_of(dir, index);
        fs::rename(temporary, &target)?;
        sync_dir(dir)?;
        publish(dir, &target, state, false).map(BuildOutcome::Done)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(temporary);
        poison.failed("building a snapshot", &error)
    })
}

/// How many bytes it has so far, if it would fill the disk.
fn write_rows(temporary: &Path, mut scan: ScanReader, room: &DiskRoom) -> io::Result<Option<u64>> {
    let mut out = SnapshotWriter::new(BufWriter::with_capacity(1 << 20, File::create(temporary)?), &scan.applied)?;
    let mut joiner = Joiner::default();
    let torn = |what: &dyn std::fmt::Debug| io::Error::other(format!("a row is torn in the engine: {what:?}"));
    let mut measure_at = 0;
    loop {
        let chunk = scan.next_chunk().map_err(engine_error)?;
        if chunk.is_empty() {
            break;
        }
        if out.bytes() >= measure_at {
            if room.measure().free < SNAPSHOT_LEAVES {
                return Ok(Some(out.bytes()));
            }
            measure_at = out.bytes() + SNAPSHOT_STEP;
        }
        for (key, value) in chunk {
            let (row, part) = keys::parse_row(&key).ok_or_else(|| torn(&key))?;
            if let Some(whole) = joiner.push(part, &value).map_err(|_| torn(&row))? {
                out.row(&row, &whole)?;
            }
        }
        // The scan reads every page, and drops as many as the engine's cache does not hold.
        engine::free_dropped_pages();
    }
    if joiner.is_open() {
        return Err(torn(&"the last one"));
    }
    let (out, _) = out.finish()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(None)
}

/// Makes a complete file the current snapshot and removes the others.
fn publish(dir: &Path, path: &Path, state: &Mutex<SnapshotSlot>, installed: bool) -> io::Result<StateSnapshot> {
    let snapshot = describe(path)?;
    let mut state = state.lock();
    if let Some(current) = state.current.as_ref().filter(|c| !installed && c.applied.index > snapshot.applied.index) {
        fs::remove_file(path)?;
        return Ok(current.clone());
    }
    let replaced = state.current.replace(snapshot.clone());
    if let Some(StateSnapshot { body: SnapshotBody::File { path: old, .. }, .. }) = &replaced
        && old != path
    {
        // Kept open first, for whoever is sending it.
        if !state.files.iter().any(|(kept, _)| kept == old)
            && let Ok(file) = File::open(old)
        {
            state.files.push_back((old.clone(), Arc::new(file)));
        }
        fs::remove_file(old)?;
    }
    state.files.retain(|(kept, _)| kept != path);
    state.files.push_back((path.to_path_buf(), Arc::new(File::open(path)?)));
    while state.files.len() > OPEN_FILES {
        state.files.pop_front();
    }
    sync_dir(dir)?;
    Ok(snapshot)
}

/// A chunk of a snapshot in memory.
pub(super) fn slice(bytes: &Bytes, offset: u64, len: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(start..start.saturating_add(len).min(bytes.len()))
}
