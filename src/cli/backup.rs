//! `tillsync backup`: everything that a cluster keeps, in one file, taken while it goes on; or what came after the last one.
//! `tillsync backup verify` proves that a file can be restored.

use std::cmp::Reverse;
use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::contents::{failed, moment, told, whole};
use self::names::{BackupFolder, BackupName, SegmentName};
use super::restore::restored_in;
use super::target::TargetArgs;
use super::waiting::nobody_answered;
use super::{CliResult, CommandError};
use crate::client::rest::RestClient;
use crate::client::{ClientError, ClusterTarget, NodeUrl};
use crate::consensus::recovery::RestorePoint;
use crate::consensus::segment::SegmentContents;
use crate::ids::LogIndex;
use crate::model::time::iso;
use crate::storage::{RestoreClaim, read_header};

pub(super) mod contents;
pub(super) mod names;

/// Where a backup is restored to be proved.
const SCRATCH: &str = ".tillsync-verify-";
/// Where a backup is written before it is whole.
const PART: &str = ".tillsync-backup.part";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The folder that the backup is written to; it is made if it is not there
    #[arg(required = true)]
    to: Option<PathBuf>,
    /// Take only what came after the newest backup in the folder: it can be restored up to any moment then
    #[arg(long)]
    incremental: bool,
    /// Keep this many of the cluster's backups in the folder, and remove older ones
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    keep: Option<u64>,
    /// Take what one node has, without asking the others: also where most of them are lost
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Subcommand, Debug)]
enum BackupCommand {
    /// Read a backup and what follows it, and restore it beside itself for a moment: exit code 1 if anything is wrong with it
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The backup
    file: PathBuf,
    /// Where it is restored for a moment. Default: beside the backup
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

pub(super) async fn execute(args: BackupArgs) -> CliResult {
    if let Some(BackupCommand::Verify(verify)) = args.command {
        return verified(&verify).await;
    }
    let Some(to) = &args.to else { return Err(CommandError::usage("no folder was given")) };
    let target = args.target.resolve()?;
    fs::create_dir_all(to).map_err(failed(to))?;
    let mut part = PartFile::open(to)?;
    let written = if args.incremental {
        take_what_came_after(to, &mut part, args.stale, &target).await?
    } else {
        take_everything(to, &mut part, args.stale, &target).await?
    };
    let Some(keep) = args.keep else { return Ok(()) };
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    for name in BackupFolder::read(to).map_err(failed(to))?.outdated(&written, keep) {
        let path = to.join(name);
        fs::remove_file(&path).map_err(failed(&path))?;
        say!("removed {}", path.display());
    }
    Ok(())
}

async fn take_everything(to: &Path, part: &mut PartFile, stale: bool, target: &ClusterTarget) -> CliResult<BackupName> {
    let node = part.download("/system/backup?", stale, target).await?;
    let contents = whole(&part.path).await?;
    let name = BackupName::of(&contents.meta, contents.applied.index);
    let file = part.become_file(to, &name.file())?;
    say!("{}: {}", file.display(), told(&contents));
    say!("taken from {node}; prove it with: tillsync backup verify {}", file.display());
    Ok(name)
}

async fn take_what_came_after(
    to: &Path,
    part: &mut PartFile,
    stale: bool,
    target: &ClusterTarget,
) -> CliResult<BackupName> {
    let folder = BackupFolder::read(to).map_err(failed(to))?;
    let Some(last) = folder.newest() else {
        let why = format!("{} has no backup to go on from: take one without --incremental first", to.display());
        return Err(CommandError::usage(why));
    };
    let chain = folder.after(&last.prefix, last.entry);
    let (entry, id) = match chain.last() {
        Some(segment) => {
            let contents = SegmentContents::read(&to.join(segment.file())).map_err(failed(&to.join(segment.file())))?;
            (segment.last, contents.last_log_id)
        }
        None => {
            let file = to.join(last.file());
            (last.entry, read_header(&file).map_err(failed(&file))?.last_log_id)
        }
    };
    let node = part.download(&format!("/system/backup/entries?after={entry}&"), stale, target).await?;
    let contents = SegmentContents::read(&part.path).map_err(failed(&part.path))?;
    if contents.before_log_id != id {
        let why = format!(
            "entry {entry} of the cluster's log is another one than in {}: the cluster has another history, take a whole backup",
            to.display()
        );
        return Err(CommandError::new(why));
    }
    if contents.entries == 0 {
        say!("nothing came after entry {entry}");
        return Ok(last.clone());
    }
    let name = SegmentName::of(&last.prefix, contents.at, entry + 1, entry + contents.entries);
    let file = part.become_file(to, &name.file())?;
    say!(
        "{}: {} entries up to {}, {:.1} MB, taken from {node}",
        file.display(),
        contents.entries,
        iso(contents.at),
        contents.bytes as f64 / 1e6
    );
    Ok(last.clone())
}

/// What is being written; removed if nothing comes of it.
struct PartFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl PartFile {
    fn open(to: &Path) -> CliResult<Self> {
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
            return Ok(Self { file, path, kept: false });
        }
        Err(busy())
    }

    /// From the first node that gives it whole.
    async fn download(&mut self, path: &str, stale: bool, target: &ClusterTarget) -> CliResult<NodeUrl> {
        let rest = RestClient::new(&target.token)?;
        let path = format!("{path}consistency={}", if stale { "stale" } else { "linearizable" });
        let mut reasons: Vec<ClientError> = Vec::new();
        for node in in_order(&rest, &target.nodes, stale).await {
            self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(failed(&self.path))?;
            let mut written = Ok(());
            let taken = rest.download(&node, &path, |piece| {
                written = self.file.write_all(piece);
                if written.is_ok() { Ok(()) } else { Err(std::io::ErrorKind::StorageFull.into()) }
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

    /// From now on it has its name, also after a power cut.
    fn become_file(&mut self, to: &Path, name: &str) -> CliResult<PathBuf> {
        let file = to.join(name);
        // The same moment of the same cluster is the same file.
        fs::rename(&self.path, &file).map_err(failed(&file))?;
        self.kept = true;
        File::open(to).and_then(|dir| dir.sync_all()).map_err(failed(to))?;
        Ok(file)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
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

async fn verified(args: &VerifyArgs) -> CliResult {
    let file = &args.file;
    let contents = whole(file).await?;
    let claim = scratch(args)?;
    let outcome = match restored_in(&claim, file, &contents, None, RestorePoint::End).await {
        Ok(stopped) => {
            let (applied, meta) = stopped.reached();
            stopped.close().await.map_err(failed(claim.dir())).map(|()| moment(&applied, &meta))
        }
        Err(error) => Err(error),
    };
    claim.give_up();
    let reached = outcome?;
    say!("{}: {}", file.display(), told(&contents));
    say!("it can be restored, with what follows it in its folder: {reached}");
    Ok(())
}

/// A folder for a moment, of this process alone. What processes that were killed left is removed.
fn scratch(args: &VerifyArgs) -> CliResult<RestoreClaim> {
    let beside = args.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = args.scratch.as_deref().unwrap_or(beside);
    let unusable = |why: String| {
        CommandError::usage(format!("{why}: the backup was not proved; --scratch names another folder for the moment"))
    };
    let left = fs::read_dir(dir).map_err(|error| unusable(format!("{}: {error}", dir.display())))?;
    for entry in left.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH)) {
        // One that runs keeps its own.
        if let Ok(claim) = RestoreClaim::take(&entry.path()) {
            claim.give_up();
        }
    }
    let own = dir.join(format!("{SCRATCH}{}", std::process::id()));
    RestoreClaim::take(&own).map_err(|error| unusable(error.to_string()))
}
