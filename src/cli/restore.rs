//! `tillsync restore`: a new cluster of one, with everything that a backup holds.

use std::path::{Path, PathBuf};

use super::backup::contents::{failed, moment, whole};
use super::backup::local::{LocalBackup, Wanted};
use super::serve::node_settings;
use super::{CliResult, CommandError};
use crate::backup::names::{BackupFolder, BackupName};
use crate::consensus::recovery::{RestorePoint, StoppedNode};
use crate::consensus::runtime::random;
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId, Seq, UnixMs};
use crate::model::time::{iso, parse_iso};
use crate::storage::{self, FolderIdentity, RestoreClaim, SnapshotContents};

#[derive(clap::Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup; or the folder, or s3://BUCKET/PREFIX, whose newest one is meant that goes no further than `--at`
    backup: String,
    /// How far: a moment such as 2026-11-30T14:05:00Z, or the number of a change. Default: all that the backup's folder has
    #[arg(long, value_name = "TIME|CHANGE", value_parser = restore_point)]
    at: Option<RestorePoint>,
    /// The settings of the node that is to have it; its data folder must not be there yet
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting over those of the file and of the environment; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where what comes from a bucket is put for a moment. Default: the folder for temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Who the restored node is.
pub(super) struct RestoredNode {
    pub node: NodeId,
    pub address: MemberAddress,
}

pub(super) async fn execute(args: RestoreArgs) -> CliResult {
    let config = node_settings(args.config.as_deref(), &args.set)?;
    let (dir, node) = (&config.data_dir, config.node_id);
    let refused = |why: String| CommandError::usage(format!("{why}: nothing was changed"));
    let refuse = |why: String| Err(refused(why));
    let until = args.at.unwrap_or(RestorePoint::End);
    let wanted = Wanted {
        cluster: Some(&config.cluster_name),
        until: if let RestorePoint::Time(last) = until { last } else { UnixMs(u64::MAX) },
        entry: if let RestorePoint::Entry(last) = until { last } else { LogIndex(u64::MAX) },
    };
    let backup = LocalBackup::open(&args.backup, wanted, args.scratch.as_deref()).await?;
    let contents = whole(&backup.file).await?;
    if contents.meta.cluster_id != config.cluster_name {
        let (theirs, ours) = (&contents.meta.cluster_id, &config.cluster_name);
        return refuse(format!("the backup is of cluster {theirs:?}, and the settings name {ours:?} (cluster_name)"));
    }
    if contents.meta.removed_nodes.contains(&node.get()) {
        return refuse(format!("node {node} was removed from the cluster: give the node a number that was never used"));
    }
    let Some(me) = config.me() else {
        return refuse(format!("the settings do not say where node {node} is reached: name it in `members`"));
    };
    let address = MemberAddress { raft: me.raft.clone(), gateway: me.gateway.clone() };
    let others = config.members.iter().filter(|member| member.id != node).map(|member| member.id.to_string());
    let others = others.collect::<Vec<_>>().join(", ");
    if !others.is_empty() {
        // They would found a cluster of their own.
        return refuse(format!(
            "`members` names node {others} as well: a restored cluster begins with one node, name node {node} alone and add \
             the others afterwards"
        ));
    }
    let claim = RestoreClaim::take(dir).map_err(|error| refused(error.to_string()))?;
    let restored = Some(RestoredNode { node, address });
    let stopped = match restored_in(&claim, &backup.file, &contents, restored, until).await {
        Ok(stopped) => stopped,
        Err(error) => {
            claim.give_up();
            return Err(error);
        }
    };
    let (applied, meta) = stopped.reached();
    stopped.close().await.map_err(failed(dir))?;
    claim.finish().map_err(failed(dir))?;
    say!("{}: {}", backup.shown, moment(&applied, &meta));
    say!("node {node} is a cluster of one with all of it, in {}, with an epoch of its own.", dir.display());
    say!("Start it, then add empty machines under numbers that were never used (`tillsync cluster add`).");
    Ok(())
}

/// Fills a folder with the rows of a backup and what follows it, for a node, or only to see whether that can be done.
pub(super) async fn restored_in(
    claim: &RestoreClaim,
    file: &Path,
    contents: &SnapshotContents,
    restored: Option<RestoredNode>,
    until: RestorePoint,
) -> CliResult<StoppedNode> {
    let node = restored.as_ref().map_or(NodeId(1), |restored| restored.node);
    let identity = FolderIdentity { node_id: node.get(), cluster_id: contents.meta.cluster_id.clone() };
    let dir = claim.dir();
    let stores = storage::open_claimed(claim, &identity).map_err(|error| CommandError::usage(error.to_string()))?;
    let wrong = |error: std::io::Error| {
        CommandError::new(format!("{} cannot be restored to {}: {error}", file.display(), dir.display()))
    };
    let stopped = StoppedNode::restore(stores, file).await.map_err(wrong)?;
    let filled = async {
        go_on(&stopped, file, until).await?;
        if let Some(RestoredNode { node, address }) = restored {
            stopped.go_on_from_its_last_start(node).await.map_err(wrong)?;
            stopped.make_alone(node, address, random() | 1).await.map_err(wrong)?;
        }
        Ok(())
    };
    match filled.await {
        Ok(()) => Ok(stopped),
        Err(error) => {
            // Nobody writes to the folder any more when it is cleared.
            if let Err(left_open) = stopped.close().await {
                note!("{}: {left_open}", dir.display());
            }
            Err(error)
        }
    }
}

/// Also `entry:N`: up to that entry of the log, for whoever compares digests.
fn restore_point(text: &str) -> Result<RestorePoint, String> {
    let number = |digits: &str| digits.parse::<u64>().ok();
    if let Some(entry) = text.strip_prefix("entry:").and_then(number) {
        return Ok(RestorePoint::Entry(LogIndex(entry)));
    }
    let found = number(text).map(|change| RestorePoint::Change(Seq(change)));
    found
        .or_else(|| parse_iso(text).map(RestorePoint::Time))
        .ok_or_else(|| "neither a moment such as 2026-11-30T14:05:00Z nor the number of a change".to_owned())
}

/// Applies what follows the backup in its folder, up to a point.
async fn go_on(stopped: &StoppedNode, file: &Path, until: RestorePoint) -> CliResult {
    let (applied, meta) = stopped.reached();
    let too_new = match until {
        RestorePoint::End => false,
        RestorePoint::Entry(entry) => LogIndex(applied.index) > entry,
        RestorePoint::Change(change) => meta.head() > change,
        RestorePoint::Time(last) => UnixMs(meta.now_ms) > last,
    };
    if too_new {
        let why =
            format!("{} is of a later moment ({}): take an older backup", file.display(), iso(UnixMs(meta.now_ms)));
        return Err(CommandError::usage(why));
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().and_then(|name| name.to_str()).and_then(BackupName::parse);
    let folder = BackupFolder::read(dir).map_err(failed(dir))?;
    let prefix = name.map(|name| name.prefix);
    let chain = prefix.as_ref().map(|prefix| folder.after(prefix, applied.index)).unwrap_or_default();
    let mut reached = false;
    for segment in chain {
        let path = dir.join(segment.file());
        reached = stopped
            .go_on_with(&path, until)
            .await
            .map_err(|error| CommandError::new(format!("{} cannot be restored: {error}", path.display())))?;
        if reached {
            break;
        }
    }
    let (applied, meta) = stopped.reached();
    let complete = match until {
        RestorePoint::End => false,
        RestorePoint::Entry(entry) => LogIndex(applied.index) >= entry,
        RestorePoint::Change(change) => meta.head() >= change,
        RestorePoint::Time(_) => reached,
    };
    if complete {
        return Ok(());
    }
    if let Some(first) = prefix.and_then(|prefix| folder.hole_after(&prefix, applied.index)) {
        return Err(CommandError::new(format!(
            "{} has entries from {first} on, and those from {} on are missing: restore up to an earlier point (--at), or \
             find the file",
            dir.display(),
            applied.index + 1
        )));
    }
    match until {
        RestorePoint::End => Ok(()),
        // Whether there was anything between the last entry and that moment, no file says.
        RestorePoint::Time(_) => {
            note!("the backups end with {}: what came after that is in none", iso(UnixMs(meta.now_ms)));
            Ok(())
        }
        RestorePoint::Entry(_) | RestorePoint::Change(_) => Err(CommandError::usage(format!(
            "the backup and what follows it in {} end with change {} (log entry {})",
            dir.display(),
            meta.head_seq,
            applied.index
        ))),
    }
}
