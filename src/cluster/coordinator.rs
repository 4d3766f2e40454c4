//! Carries out what [`crate::model::duty`] decides: the node's own device, lost nodes, elections, compaction.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::SharedCluster;
use crate::model::duty::{self, Retention};
use crate::proto::NodeBooted;
use crate::proto::command::Intent;

/// How the coordinator behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The id of this node's own device.
    pub node_device: String,
    /// A node that was silent for this long is lost, and its devices are offline.
    pub lost_after: Duration,
    /// How often duties are looked for when nothing is applied.
    pub every: Duration,
    pub retention: Retention,
}

impl Settings {
    pub fn of(node: u64) -> Self {
        Self {
            node_device: format!("node-{node}"),
            lost_after: Duration::from_secs(6),
            every: Duration::from_millis(200),
            retention: Retention::default(),
        }
    }
}

/// Runs until `stop`. Every node runs one; only the leader's has the leader's duties.
pub async fn run(cluster: SharedCluster, settings: Settings, stop: CancellationToken) {
    let work = async {
        boot(&cluster).await;
        let mut leading = None;
        let mut tick = tokio::time::interval(settings.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for intent in duties(&cluster, &settings, &mut leading) {
                if let Err(error) = cluster.propose(intent).await {
                    tracing::debug!(%error, "a duty could not be done yet");
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Devices that were at home here before this boot are offline until they return.
async fn boot(cluster: &SharedCluster) {
    while let Err(error) = cluster.propose(Intent::NodeBooted(NodeBooted {})).await {
        tracing::debug!(%error, "the cluster does not take this node's boot yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `leading` is since when this node leads.
fn duties(cluster: &SharedCluster, settings: &Settings, leading: &mut Option<Instant>) -> Vec<Intent> {
    let node = cluster.node_id();
    let status = cluster.status();
    let mut duties: Vec<Intent> = Vec::new();
    duties.extend(duty::of_node(&cluster.replica().hot(), node, &settings.node_device));
    if status.leader != Some(node) || !status.quorum {
        *leading = None;
        return duties;
    }
    // A new leader gives every node the full time before it calls it lost.
    let since = leading.get_or_insert_with(Instant::now).elapsed();
    let lost = |silent: Option<Duration>| silent.unwrap_or(since).min(since) >= settings.lost_after;
    let silent: Vec<u64> = status.peers.iter().filter(|p| lost(p.silent_for)).map(|p| p.node).collect();
    duties.extend(duty::of_leader(&cluster.replica().hot(), &silent, settings.retention));
    duties
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::cluster::local::LocalCluster;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_first_node_registers_its_device_and_finds_a_master() {
        let (cluster, _effects) = LocalCluster::start(ManualClock::at(1)).await.unwrap();
        let cluster: SharedCluster = Arc::<LocalCluster>::clone(&cluster);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(cluster.clone(), Settings::of(1), stop.clone()));
        let mut applied = cluster.replica().watch_applied();
        while cluster.replica().hot().meta().master != "node-1" {
            applied.changed().await.unwrap();
        }
        stop.cancel();
        running.await.unwrap();
    }
}
