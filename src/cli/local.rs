//! A cluster of three nodes on this machine, as child processes: what `dev` and `demo` stand on.

mod folder;
mod layout;
mod ports;
mod supervisor;

use std::time::{Duration, Instant};

pub(super) use folder::TempFolder;
pub(super) use layout::Layout;
pub(super) use ports::free_ports;
pub(super) use supervisor::{NodeEvent, Supervisor};

use super::{CliResult, CommandError};
use crate::client::NodeUrl;
use crate::client::rest::{NodeStatus, RestClient};

/// Nodes of a local cluster.
pub(super) const NODES: usize = 3;

/// Waits until every node answers and sees the same leader. `tick` is asked between tries whether to go on.
pub(super) async fn wait_ready(
    rest: &RestClient,
    nodes: &[NodeUrl],
    patience: Duration,
    mut tick: impl FnMut() -> CliResult,
) -> CliResult<Vec<NodeStatus>> {
    let end = Instant::now() + patience;
    loop {
        tick()?;
        let mut statuses = Vec::with_capacity(nodes.len());
        let mut why = String::from("the nodes do not agree on a leader");
        for node in nodes {
            match rest.status(node).await {
                Ok(status) => statuses.push(status),
                Err(e) => {
                    why = e.to_string();
                    break;
                }
            }
        }
        let agreed =
            statuses.first().is_some_and(|f| f.leader.is_some() && statuses.iter().all(|s| s.leader == f.leader));
        if statuses.len() == nodes.len() && agreed {
            return Ok(statuses);
        }
        if Instant::now() >= end {
            return Err(CommandError::new(format!("the cluster is not ready after {} s: {why}", patience.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
