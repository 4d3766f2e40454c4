//! `tillsync restore`: a new cluster of one, with everything that a backup holds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::backup::{failed, told, whole};
use super::serve::node_settings;
use super::{CliResult, CommandError};
use crate::consensus::recovery::StoppedNode;
use crate::consensus::runtime::random;
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::storage::{self, FolderIdentity, SnapshotContents};

#[derive(clap::Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The settings of the node that is to have it; its data folder must not be there yet
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting over those of the file and of the environment; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Who the restored node is.
pub(super) struct RestoredNode {
    pub node: NodeId,
    pub address: MemberAddress,
}

pub(super) async fn execute(args: RestoreArgs) -> CliResult {
    let config = node_settings(args.config.as_deref(), &args.set)?;
    let (dir, node) = (&config.data_dir, config.node_id);
    let refuse = |why: String| Err(CommandError::usage(format!("{why}: nothing was changed")));
    if !is_free(dir).map_err(failed(dir))? {
        return refuse(format!("{} is there already, and a restore makes a new data folder", dir.display()));
    }
    let contents = whole(&args.file).await?;
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
    // Whole or not at all: a folder that is half restored never has the node's name.
    let mut beside = dir.as_os_str().to_owned();
    beside.push(".restoring");
    let scratch = PathBuf::from(beside);
    let stopped = restored_in(&scratch, &args.file, &contents, Some(RestoredNode { node, address })).await?;
    stopped.close().await.map_err(failed(&scratch))?;
    if dir.exists() {
        fs::remove_dir(dir).map_err(failed(dir))?;
    }
    fs::rename(&scratch, dir).map_err(failed(dir))?;
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above).and_then(|above| above.sync_all()).map_err(failed(above))?;
    say!("{}: {}", args.file.display(), told(&contents));
    say!("node {node} is a cluster of one with all of it, in {}, with an epoch of its own.", dir.display());
    say!("Start it, then add empty machines under numbers that were never used (`tillsync cluster add`).");
    Ok(())
}

fn is_free(dir: &Path) -> std::io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes a data folder with the rows of a backup, for a node, or only to see whether that can be done.
pub(super) async fn restored_in(
    dir: &Path,
    file: &Path,
    contents: &SnapshotContents,
    restored: Option<RestoredNode>,
) -> CliResult<StoppedNode> {
    let node = restored.as_ref().map_or(NodeId(1), |restored| restored.node);
    let identity = FolderIdentity { node_id: node.get(), cluster_id: contents.meta.cluster_id.clone() };
    // What an attempt before left behind.
    if storage::format::is_there(dir) {
        fs::remove_dir_all(dir).map_err(failed(dir))?;
    }
    let (path, whose) = (dir.to_path_buf(), identity);
    let stores = tokio::task::spawn_blocking(move || storage::open(&path, &whose)).await;
    let stores = stores.map_err(|error| CommandError::new(error.to_string()))?;
    let stores = stores.map_err(|error| CommandError::new(error.to_string()))?;
    let wrong = |error: std::io::Error| {
        CommandError::new(format!("{} cannot be restored to {}: {error}", file.display(), dir.display()))
    };
    let stopped = StoppedNode::restore(stores, file).await.map_err(wrong)?;
    if let Some(RestoredNode { node, address }) = restored {
        stopped.go_on_from_its_last_start(node).await.map_err(wrong)?;
        stopped.make_alone(node, address, random() | 1).await.map_err(wrong)?;
    }
    Ok(stopped)
}
