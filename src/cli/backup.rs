//! `tillsync backup`: everything that a cluster keeps, in one file, taken while it goes on. `tillsync backup verify` proves
//! that a file can be restored.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use clap::{Args, Subcommand};

use super::restore::restored_in;
use super::target::TargetArgs;
use super::waiting::nobody_answered;
use super::{CliResult, CommandError};
use crate::client::rest::RestClient;
use crate::client::{ClientError, ClusterTarget, NodeUrl};
use crate::model::time::iso;
use crate::storage::{SnapshotContents, read_contents};

/// Where a backup is written before it is whole.
const PART: &str = ".tillsync-backup.part";
const SUFFIX: &str = ".backup";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The folder that the backup is written to; it is made if it is not there
    #[arg(required = true)]
    to: Option<PathBuf>,
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
    /// Read a backup, and restore it beside itself for a moment: exit code 1 if anything is wrong with it
    Verify(VerifyArgs),
}

#[derive(Args, Debug)]
struct VerifyArgs {
    /// The backup
    file: PathBuf,
}

pub(super) async fn execute(args: BackupArgs) -> CliResult {
    match (args.command, &args.to) {
        (Some(BackupCommand::Verify(verify)), _) => verified(&verify.file).await,
        (None, Some(to)) => {
            let target = args.target.resolve()?;
            taken(to, args.keep, args.stale, &target).await
        }
        (None, None) => Err(CommandError::usage("no folder was given")),
    }
}

async fn taken(to: &Path, keep: Option<u64>, stale: bool, target: &ClusterTarget) -> CliResult {
    fs::create_dir_all(to).map_err(failed(to))?;
    let part = to.join(PART);
    let mut file = File::options().write(true).create(true).truncate(false).open(&part).map_err(failed(&part))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(CommandError::new(format!("another backup is being written to {}", to.display())));
        }
        Err(TryLockError::Error(error)) => return Err(failed(&part)(error)),
    }
    let node = downloaded(&mut file, &part, stale, target).await?;
    file.sync_all().map_err(failed(&part))?;
    let contents = whole(&part).await?;
    let name = to.join(name_of(&contents));
    fs::rename(&part, &name).map_err(failed(&name))?;
    File::open(to).and_then(|dir| dir.sync_all()).map_err(failed(to))?;
    say!("{}: {}", name.display(), told(&contents));
    say!("taken from {node}; prove it with: tillsync backup verify {}", name.display());
    if let Some(keep) = keep {
        remove_older(to, &contents, keep)?;
    }
    Ok(())
}

/// From a node that does not lead, if one answers: the leader has enough to do.
async fn downloaded(file: &mut File, part: &Path, stale: bool, target: &ClusterTarget) -> CliResult<NodeUrl> {
    let rest = RestClient::new(&target.token)?;
    let path = if stale { "/system/backup?consistency=stale" } else { "/system/backup" };
    let mut reasons: Vec<ClientError> = Vec::new();
    for node in followers_first(&rest, &target.nodes).await {
        file.set_len(0).map_err(failed(part))?;
        let mut out: &File = file;
        std::io::Seek::rewind(&mut out).map_err(failed(part))?;
        match rest.download(&node, path, |piece| out.write_all(piece)).await {
            Ok(()) => return Ok(node),
            Err(error) if error.is_passing() => reasons.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(nobody_answered(&reasons))
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

pub(super) fn told(contents: &SnapshotContents) -> String {
    let SnapshotContents { applied, meta, rows, bytes, .. } = contents;
    format!(
        "cluster {:?}, up to change {} of {} (log entry {}, digest {:016x}{:016x}): {rows} rows, {:.1} MB",
        meta.cluster_id,
        meta.head_seq,
        iso(meta.now_ms),
        applied.index,
        applied.digest_high,
        applied.digest_low,
        *bytes as f64 / 1e6
    )
}

/// `tillsync-CLUSTER-TIME-INDEX.backup`: names sort by the time of what is in them.
fn name_of(contents: &SnapshotContents) -> String {
    let at = i64::try_from(contents.meta.now_ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default();
    let (time, index) = (at.format("%Y%m%dT%H%M%SZ"), contents.applied.index);
    format!("{}{time}-{index}{SUFFIX}", prefix_of(&contents.meta.cluster_id))
}

fn prefix_of(cluster: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    format!("tillsync-{}-", cluster.chars().map(plain).collect::<String>())
}

/// The names of a cluster's backups are as long as each other up to the index.
fn remove_older(dir: &Path, newest: &SnapshotContents, keep: u64) -> CliResult {
    let prefix = prefix_of(&newest.meta.cluster_id);
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let name = entry.map_err(failed(dir))?.file_name();
        names.extend(name.to_str().filter(|name| is_backup(name, &prefix)).map(str::to_owned));
    }
    names.sort_unstable_by_key(|name| std::cmp::Reverse(name.clone()));
    for name in names.iter().skip(usize::try_from(keep).unwrap_or(usize::MAX)) {
        let path = dir.join(name);
        fs::remove_file(&path).map_err(failed(&path))?;
        say!("removed {}", path.display());
    }
    Ok(())
}

/// Whether a file is a backup of that cluster, and not of one whose name begins so.
fn is_backup(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX)) else { return false };
    let Some((time, index)) = rest.split_once('-') else { return false };
    time.len() == 16 && time.ends_with('Z') && index.bytes().all(|byte| byte.is_ascii_digit())
}

async fn verified(file: &Path) -> CliResult {
    let contents = whole(file).await?;
    let mut beside = file.as_os_str().to_owned();
    beside.push(".verify");
    let scratch = PathBuf::from(beside);
    let outcome = match restored_in(&scratch, file, &contents, None).await {
        Ok(stopped) => stopped.close().await.map_err(failed(&scratch)),
        Err(error) => Err(error),
    };
    let removed = fs::remove_dir_all(&scratch).map_err(failed(&scratch));
    outcome?;
    removed?;
    say!("{}: {}", file.display(), told(&contents));
    say!("it can be restored: its rows and their digest are those that the cluster had");
    Ok(())
}

pub(super) fn failed(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    move |error| CommandError::new(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Applied, Meta};

    fn contents(cluster: &str, at_ms: u64, index: u64) -> SnapshotContents {
        let meta = Meta { cluster_id: cluster.into(), now_ms: at_ms, ..Meta::default() };
        SnapshotContents { applied: Applied { index, ..Applied::default() }, meta, rows: 1, bytes: 1 }
    }

    #[test]
    fn the_newest_backups_of_a_cluster_are_kept_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = |cluster: &str, at_ms: u64| {
            let name = name_of(&contents(cluster, at_ms, at_ms % 977));
            fs::write(dir.path().join(&name), b"").unwrap();
            name
        };
        let hour = 3_600_000;
        let ours: Vec<String> = (1..=5).map(|n| made("shop", 1_795_341_600_000 + n * hour)).collect();
        let mut kept = vec![made("shop-2", 1_795_341_600_000), made("other", 1_795_341_600_000)];
        for other in ["tillsync-shop-notes.backup", "tillsync-shop-20261122T100000Z-1.backup.old", "store.db"] {
            fs::write(dir.path().join(other), b"").unwrap();
            kept.push(other.to_owned());
        }
        remove_older(dir.path(), &contents("shop", 0, 1), 2).unwrap();
        kept.extend_from_slice(&ours[3..]);
        kept.sort_unstable();
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort_unstable();
        assert_eq!(left, kept);
    }

    #[test]
    fn a_cluster_with_any_name_gives_a_plain_file() {
        let name = name_of(&contents("Läden/Süd 1", 1_795_341_600_007, 42));
        assert_eq!(name, "tillsync-L-den-S-d-1-20261122T100000Z-42.backup");
    }
}
