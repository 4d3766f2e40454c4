//! `tillsync backup`: everything that a cluster keeps, in one file, taken while it goes on; or what came after the last one.
//! `tillsync backup verify` proves that a file can be restored.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use self::names::{BackupFolder, BackupName, SegmentName};
use super::restore::restored_in;
use super::target::TargetArgs;
use super::waiting::nobody_answered;
use super::{CliResult, CommandError};
use crate::client::rest::RestClient;
use crate::client::{ClientError, ClusterTarget, NodeUrl};
use crate::consensus::recovery::RestorePoint;
use crate::consensus::segment::SegmentContents;
use crate::ids::UnixMs;
use crate::model::time::iso;
use crate::proto::{Applied, Meta};
use crate::storage::{SnapshotContents, read_contents, read_header};

pub(super) mod names;

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
    /// Read a backup and what follows it, and restore it beside itself for a moment: exit code 1 if anything is wrong
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The backup
    file: PathBuf,
}

pub(super) async fn execute(args: BackupArgs) -> CliResult {
    if let Some(BackupCommand::Verify(verify)) = args.command {
        return verified(&verify.file).await;
    }
    let Some(to) = &args.to else { return Err(CommandError::usage("no folder was given")) };
    let target = args.target.resolve()?;
    fs::create_dir_all(to).map_err(failed(to))?;
    let mut part = PartFile::open(to)?;
    let prefix = if args.incremental {
        take_what_came_after(to, &mut part, args.stale, &target).await?
    } else {
        take_everything(to, &mut part, args.stale, &target).await?
    };
    let Some(keep) = args.keep else { return Ok(()) };
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    for name in BackupFolder::read(to).map_err(failed(to))?.outdated(&prefix, keep) {
        let path = to.join(name);
        fs::remove_file(&path).map_err(failed(&path))?;
        say!("removed {}", path.display());
    }
    Ok(())
}

/// The beginning of the names of the cluster's files.
async fn take_everything(to: &Path, part: &mut PartFile, stale: bool, target: &ClusterTarget) -> CliResult<String> {
    let node = part.download("/system/backup?", stale, target).await?;
    let contents = whole(&part.path).await?;
    let name = BackupName::of(&contents.meta.cluster_id, UnixMs(contents.meta.now_ms), contents.applied.index);
    let file = part.become_file(to, &name.file())?;
    say!("{}: {}", file.display(), told(&contents));
    say!("taken from {node}; prove it with: tillsync backup verify {}", file.display());
    Ok(name.prefix)
}

async fn take_what_came_after(
    to: &Path,
    part: &mut PartFile,
    stale: bool,
    target: &ClusterTarget,
) -> CliResult<String> {
    let folder = BackupFolder::read(to).map_err(failed(to))?;
    let Some(last) = folder.backups.last() else {
        let why = format!("{} has no backup to go on from: take one without --incremental first", to.display());
        return Err(CommandError::usage(why));
    };
    if folder.backups.iter().any(|other| other.prefix != last.prefix) {
        return Err(CommandError::usage(format!("{} has backups of several clusters", to.display())));
    }
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
        return Ok(last.prefix.clone());
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
    Ok(last.prefix.clone())
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
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path, kept: false }),
            Err(TryLockError::WouldBlock) => {
                Err(CommandError::new(format!("another backup is being written to {}", to.display())))
            }
            Err(TryLockError::Error(error)) => Err(failed(&path)(error)),
        }
    }

    /// From a node that does not lead, if one answers: the leader has enough to do.
    async fn download(&mut self, path: &str, stale: bool, target: &ClusterTarget) -> CliResult<NodeUrl> {
        let rest = RestClient::new(&target.token)?;
        let path = format!("{path}consistency={}", if stale { "stale" } else { "linearizable" });
        let mut reasons: Vec<ClientError> = Vec::new();
        for node in followers_first(&rest, &target.nodes).await {
            self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(failed(&self.path))?;
            match rest.download(&node, &path, |piece| self.file.write_all(piece)).await {
                Ok(()) => {
                    self.file.sync_all().map_err(failed(&self.path))?;
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

async fn followers_first(rest: &RestClient, nodes: &[NodeUrl]) -> Vec<NodeUrl> {
    let mut ordered: Vec<(bool, NodeUrl)> = Vec::new();
    for node in nodes {
        let leads = rest.status(node).await.is_ok_and(|status| status.leader == Some(status.node));
        ordered.push((leads, node.clone()));
    }
    ordered.sort_by_key(|(leads, _)| *leads);
    ordered.into_iter().map(|(_, node)| node).collect()
}

/// What a file holds, if it is whole.
pub(super) async fn whole(file: &Path) -> CliResult<SnapshotContents> {
    let path = file.to_path_buf();
    let read = tokio::task::spawn_blocking(move || read_contents(&path)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| CommandError::new(format!("{} is no whole backup: {error}", file.display())))
}

fn told(contents: &SnapshotContents) -> String {
    let SnapshotContents { applied, meta, rows, bytes } = contents;
    format!("{}: {rows} rows, {:.1} MB", moment(applied, meta), *bytes as f64 / 1e6)
}

/// How far a cluster had come.
pub(super) fn moment(applied: &Applied, meta: &Meta) -> String {
    format!(
        "cluster {:?}, up to change {} of {} (log entry {}, digest {:016x}{:016x})",
        meta.cluster_id,
        meta.head_seq,
        iso(UnixMs(meta.now_ms)),
        applied.index,
        applied.digest_high,
        applied.digest_low
    )
}

async fn verified(file: &Path) -> CliResult {
    let contents = whole(file).await?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".verify");
    let scratch = PathBuf::from(beside);
    let outcome = match restored_in(&scratch, file, &contents, None, RestorePoint::End).await {
        Ok(stopped) => {
            let (applied, meta) = stopped.reached();
            stopped.close().await.map_err(failed(&scratch)).map(|()| moment(&applied, &meta))
        }
        Err(error) => Err(error),
    };
    let removed = fs::remove_dir_all(&scratch).map_err(failed(&scratch));
    let reached = outcome?;
    removed?;
    say!("{}: {}", file.display(), told(&contents));
    say!("it can be restored, with what follows it in its folder: {reached}");
    Ok(())
}

pub(super) fn failed(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    move |error| CommandError::new(format!("{}: {error}", path.display()))
}
