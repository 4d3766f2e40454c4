//! `tillsync recover`: a stopped node's folder goes on without the nodes whose disks are lost.

use std::io::BufRead;
use std::path::PathBuf;

use super::serve::node_settings;
use super::{CliResult, CommandError};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::consensus::recovery::{FolderContents, StoppedNode};
use crate::consensus::runtime::random;
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::model::time::iso;
use crate::storage::{self, FolderIdentity};

#[derive(clap::Args, Debug)]
pub(super) struct RecoverArgs {
    /// Make the node's data folder a cluster of one: the other nodes are out for good
    #[arg(long, required = true)]
    alone: bool,
    /// The node's settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A setting over those of the file and of the environment; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn execute(args: RecoverArgs) -> CliResult {
    let config = node_settings(args.config.as_deref(), &args.set)?;
    let (dir, node) = (config.data_dir.display().to_string(), config.node_id);
    if !storage::format::is_there(&config.data_dir) {
        return Err(CommandError::usage(format!("{dir} is no node's data folder: nothing was changed")));
    }
    let identity = FolderIdentity { node_id: node.get(), cluster_id: config.cluster_name.clone() };
    let stores = storage::open(&config.data_dir, &identity);
    let stores = stores.map_err(|error| CommandError::usage(format!("{error}: nothing was changed")))?;
    let failed = |error: std::io::Error| CommandError::new(format!("data folder {dir}: {error}"));
    let stopped = StoppedNode::open(stores).await.map_err(failed)?;
    let done = recover(&config, &stopped, args.yes).await;
    stopped.close().await.map_err(failed)?;
    if done? {
        say!(
            "node {node} is a cluster of one. Start it, then add empty machines under new numbers (`tillsync cluster add`)"
        );
        return Ok(());
    }
    Err(CommandError::new("nothing was changed: the answer was not \"yes\" (--yes asks nothing)"))
}

/// False: it was not wanted.
async fn recover(config: &Config, stopped: &StoppedNode, sure: bool) -> CliResult<bool> {
    let (node, dir, holds) = (config.node_id, config.data_dir.display(), &stopped.contents);
    let refuse = |why: String| Err(CommandError::usage(format!("data folder {dir}: {why}: nothing was changed")));
    if holds.epoch == 0 || holds.voters.is_empty() {
        return refuse("it holds nothing of a cluster yet".into());
    }
    if holds.removed.contains(&node) {
        return refuse(format!("node {node} was removed from the cluster: the others go on without it"));
    }
    if holds.members.keys().eq([&node]) {
        return refuse(format!("node {node} is a cluster of one already: start it"));
    }
    let Some(address) = own_address(config, holds) else {
        return refuse(format!("it does not say where node {node} is reached: name it in `members`"));
    };
    tell(config, holds);
    if !sure && !confirmed() {
        return Ok(false);
    }
    let failed = |error| CommandError::new(format!("data folder {dir}: {error}"));
    stopped.make_alone(node, address, random() | 1).await.map_err(failed)?;
    Ok(true)
}

/// What the settings say comes first: the machine may have moved.
fn own_address(config: &Config, holds: &FolderContents) -> Option<MemberAddress> {
    let configured = config.me().map(|me| MemberAddress { raft: me.raft.clone(), gateway: me.gateway.clone() });
    configured.or_else(|| holds.members.get(&config.node_id).cloned())
}

fn tell(config: &Config, holds: &FolderContents) {
    let list = |nodes: &mut dyn Iterator<Item = &NodeId>| nodes.map(NodeId::to_string).collect::<Vec<_>>().join(", ");
    let node = config.node_id;
    let others = list(&mut holds.members.keys().filter(|other| **other != node));
    let (others, are) = match holds.members.len() {
        2 => (format!("node {others}"), "is"),
        _ => (format!("nodes {others}"), "are"),
    };
    say!("data folder {}", config.data_dir.display());
    say!("  node {node} of cluster {:?}; its voters: {}", holds.cluster, list(&mut holds.voters.iter()));
    say!(
        "  holds the log up to entry {}, and had applied change {} of {} ({})",
        holds.last_entry,
        holds.head_seq,
        iso(holds.applied_ms),
        age(SystemClock.now_ms().ms_since(holds.applied_ms))
    );
    if !holds.voters.contains(&node) {
        say!("  it had no vote: it may lack more than another folder does");
    }
    say!(
        "It becomes a cluster of node {node} alone. What only the other nodes had is lost, {others} {are} out for good,"
    );
    say!("and devices take everything anew. Do this only when most of the voters' disks are lost for good, and on one");
    say!("folder only: the one whose log goes furthest.");
}

/// How long ago, as people say it.
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} minutes ago", seconds / 60),
        7_200..172_800 => format!("{} hours ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn confirmed() -> bool {
    say!("Type yes to go on:");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.is_ok() && line.trim() == "yes"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_said_as_people_say_it() {
        let said = [0, 119_000, 120_000, 7_200_000, 172_800_000].map(age);
        assert_eq!(said, ["0 s ago", "119 s ago", "2 minutes ago", "2 hours ago", "2 days ago"]);
    }
}
