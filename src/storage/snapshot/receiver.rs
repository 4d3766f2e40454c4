//! A snapshot that comes in chunks and goes to a temporary file.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::file::SnapshotRows;
use crate::storage::durability::blocking;
use crate::storage::room::{DiskRoom, SNAPSHOT_LEAVES, SNAPSHOT_STEP, megabytes};
use crate::storage::{BoxFuture, SnapshotBody, SnapshotReceiver, StateSnapshot};

pub(crate) struct FileReceiver {
    file: Arc<File>,
    path: PathBuf,
    number: u64,
    /// The number of the newest receiver: an older one takes nothing more.
    newest: Arc<AtomicU64>,
    at: u64,
    room: Arc<DiskRoom>,
    /// Where the room is measured next.
    measure_at: u64,
    keep: bool,
}

impl FileReceiver {
    pub(crate) fn create(path: PathBuf, number: u64, newest: Arc<AtomicU64>, room: Arc<DiskRoom>) -> io::Result<Self> {
        let file = Arc::new(File::options().read(true).write(true).create(true).truncate(true).open(&path)?);
        Ok(Self { file, path, number, newest, at: 0, room, measure_at: 0, keep: false })
    }

    /// A snapshot that does not fit is refused, and sent again later. To fill the disk with it would end the node.
    fn must_fit(&self, more: u64) -> io::Result<()> {
        let free = self.room.measure().free;
        if free >= more.saturating_add(SNAPSHOT_LEAVES) {
            return Ok(());
        }
        let why = format!(
            "there is no room for another node's snapshot: {} MiB are left on the disk of {}",
            megabytes(free),
            self.room.place()
        );
        tracing::warn!("{why}");
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }
}

/// The next chunk must begin where the last one ended.
pub(crate) fn check_offset(at: u64, offset: u64) -> io::Result<()> {
    if at == offset {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the snapshot is at {at}, the chunk at {offset}")))
}

impl SnapshotReceiver for FileReceiver {
    fn write(&mut self, offset: u64, data: Bytes) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            check_offset(self.at, offset)?;
            if self.newest.load(Ordering::Relaxed) != self.number {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "another snapshot is being received"));
            }
            let (file, len) = (self.file.clone(), data.len() as u64);
            if self.at + len > self.measure_at {
                self.must_fit(len)?;
                self.measure_at = self.at + SNAPSHOT_STEP;
            }
            blocking(move || file.write_all_at(&data, offset)).await?;
            self.at += len;
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, io::Result<StateSnapshot>> {
        Box::pin(async move {
            let (path, len) = (self.path.clone(), self.at);
            // Its rows are written once more, into the engine.
            self.must_fit(len)?;
            let checked = path.clone();
            let file = self.file.clone();
            let applied = blocking(move || {
                file.sync_all()?;
                SnapshotRows::new(BufReader::with_capacity(1 << 20, File::open(checked)?))?.verify()
            })
            .await?;
            self.keep = true;
            Ok(StateSnapshot { applied, body: SnapshotBody::File { path, len } })
        })
    }
}

impl Drop for FileReceiver {
    fn drop(&mut self) {
        if !self.keep {
            // Left over, it is removed at the next open.
            let _ = fs::remove_file(&self.path);
        }
    }
}
