//! A backup while it is written: it has its name only when it is whole.

use std::cmp::Reverse;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::contents::{failed, whole};
use super::scratch::ScratchClaim;
use crate::backup::names::{BackupFolder, BackupName, SegmentName};
use crate::backup::store::BackupStore;
use crate::cli::waiting::nobody_answered;
use crate::cli::{CliResult, CommandError};
use crate::client::rest::RestClient;
use crate::client::{ClientError, ClusterTarget, NodeUrl};
use crate::consensus::segment::SegmentContents;
use crate::ids::LogIndex;
use crate::storage::{SnapshotContents, read_header};

/// Where a backup is written before it is whole.
const PART: &str = ".tillsync-backup.part";
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;
/// Of a backup, enough to read of which entry of the log it is.
const HEADER: u64 = 64 << 10;

/// The exit code where what is stored is of another history than the cluster.
pub(in crate::cli) const OTHER_HISTORY: u8 = 3;

/// What is being written; removed if nothing comes of it.
pub(super) struct PartFile {
    file: File,
    path: PathBuf,
    kept: bool,
    /// Where what goes to a bucket is written first, and what of it is read.
    staging: Option<ScratchClaim>,
}

/// What was stored last of a chain.
pub(super) struct ChainEnd {
    pub backup: BackupName,
    pub entry: LogIndex,
    /// As the rows keep it.
    log_id: bytes::Bytes,
}

impl PartFile {
    /// In the folder that it is for; if it is for a bucket, in one for a moment in `scratch`.
    pub(super) fn open(store: &BackupStore, scratch: &Path) -> CliResult<Self> {
        match store {
            BackupStore::Folder(dir) => Self::open_in(dir, None),
            BackupStore::Bucket(_) => {
                let staging = ScratchClaim::make(scratch)?;
                let dir = staging.path()?.to_path_buf();
                Self::open_in(&dir, Some(staging))
            }
        }
    }

    fn open_in(to: &Path, staging: Option<ScratchClaim>) -> CliResult<Self> {
        let path = to.join(PART);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed(&path))?;
        let busy = || CommandError::new(format!("another backup is being written to {}", to.display()));
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
        }
        // Between our open and our lock, who had it may have made a backup of the very file.
        let (opened, now) = (file.metadata().map_err(failed(&path))?, fs::metadata(&path));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino())) {
            return Ok(Self { file, path, kept: false, staging });
        }
        Err(busy())
    }

    fn empty(&mut self) -> CliResult {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(failed(&self.path))
    }

    /// From the first node that gives it whole.
    pub(super) async fn download(&mut self, path: &str, stale: bool, target: &ClusterTarget) -> CliResult<NodeUrl> {
        let rest = RestClient::new(&target.token)?;
        let path = format!("{path}consistency={}", if stale { "stale" } else { "linearizable" });
        let mut reasons: Vec<ClientError> = Vec::new();
        for node in in_order(&rest, &target.nodes, stale).await {
            self.empty()?;
            let mut written = Ok(());
            let taken = rest.download(&node, &path, |piece| {
                written = self.file.write_all(piece);
                if written.is_ok() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
            });
            let taken = taken.await;
            written.map_err(failed(&self.path))?;
            match taken {
                Ok(()) => {
                    self.file.sync_all().map_err(failed(&self.path))?;
                    if stale {
                        say!("stale: this is what {node} has, and of the nodes that answer it has most");
                    }
                    return Ok(node);
                }
                Err(error) if error.is_passing() => reasons.push(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(nobody_answered(&reasons))
    }

    /// From whoever writes to this process. Blocks until that one has ended.
    pub(super) fn receive(&mut self, mut from: impl Read) -> CliResult {
        self.empty()?;
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return self.file.sync_all().map_err(failed(&self.path)),
                Ok(read) => self.file.write_all(&piece[..read]).map_err(failed(&self.path))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CommandError::new(format!("the node gave no more of it: {error}"))),
            }
        }
    }

    /// It holds everything, and is stored under the name of what is in it.
    pub(super) async fn store_whole(self, store: &BackupStore) -> CliResult<(BackupName, SnapshotContents)> {
        let contents = whole(&self.path).await?;
        let name = BackupName::of(&contents.meta, contents.applied.index);
        self.store_as(store, &name.file()).await?;
        Ok((name, contents))
    }

    /// What is stored last, for what is to go on from there.
    pub(super) async fn chain_end(&self, store: &BackupStore, folder: &BackupFolder) -> CliResult<ChainEnd> {
        let Some(last) = folder.newest() else {
            let place = store.shown("");
            let why = format!("{place} has no backup to go on from: take one without --incremental first");
            return Err(CommandError::usage(why));
        };
        let scratch = self.path.parent().unwrap_or(Path::new("."));
        let chain = folder.after(&last.prefix, last.entry);
        let (entry, log_id) = match chain.last() {
            Some(segment) => {
                let file = store.read(&segment.file(), scratch, None).await?;
                (segment.last, SegmentContents::read(&file).map_err(failed(&file))?.last_log_id)
            }
            None => {
                let file = store.read(&last.file(), scratch, Some(HEADER)).await?;
                (last.entry, read_header(&file).map_err(failed(&file))?.last_log_id)
            }
        };
        Ok(ChainEnd { backup: last.clone(), entry: LogIndex(entry), log_id })
    }

    /// It holds what came after `end`, and is stored under the name of what is in it; `None`: nothing came.
    pub(super) async fn store_entries(
        self,
        store: &BackupStore,
        end: &ChainEnd,
    ) -> CliResult<Option<(SegmentName, SegmentContents)>> {
        let contents = SegmentContents::read(&self.path).map_err(failed(&self.path))?;
        if contents.before_log_id != end.log_id {
            let message = format!(
                "entry {} of the cluster's log is another one than in {}: the cluster has another history, take a whole backup",
                end.entry,
                store.shown("")
            );
            return Err(CommandError { message, exit: OTHER_HISTORY });
        }
        if contents.entries == 0 {
            return Ok(None);
        }
        let (first, last) = (end.entry.next(), end.entry.plus(contents.entries));
        let name = SegmentName::of(&end.backup.prefix, contents.at, first.get(), last.get());
        self.store_as(store, &name.file()).await?;
        Ok(Some((name, contents)))
    }

    /// It is stored under a name, whatever it holds.
    pub(super) async fn store_as(mut self, store: &BackupStore, name: &str) -> CliResult {
        store.take(&self.path, name).await?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
        drop(self.staging.take());
    }
}

/// The order in which nodes are asked: the leader last, which has enough to do; without the others' word, the node that has
/// most first.
async fn in_order(rest: &RestClient, nodes: &[NodeUrl], stale: bool) -> Vec<NodeUrl> {
    let mut ordered: Vec<((bool, Reverse<LogIndex>), NodeUrl)> = Vec::new();
    for node in nodes {
        let status = rest.status(node).await.ok();
        let leads = status.as_ref().is_some_and(|status| status.leader == Some(status.node));
        let applied = status.map_or(LogIndex(0), |status| LogIndex(status.applied_index));
        let rank = if stale { (false, Reverse(applied)) } else { (leads, Reverse(LogIndex(0))) };
        ordered.push((rank, node.clone()));
    }
    ordered.sort_by_key(|(rank, _)| *rank);
    ordered.into_iter().map(|(_, node)| node).collect()
}

/// Removes what is too old beside what was written, or gone on from.
pub(super) async fn remove_outdated(store: &BackupStore, written: &BackupName, keep: u64) -> CliResult<Vec<String>> {
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let mut removed = Vec::new();
    for name in store.list().await?.outdated(written, keep) {
        store.remove(&name).await?;
        removed.push(store.shown(&name));
    }
    Ok(removed)
}
