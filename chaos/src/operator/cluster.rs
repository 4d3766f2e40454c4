//! A cluster as it looks from outside, over REST.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tillsync::client::rest::{NodeStatus, RestClient};
use tillsync::client::{ClusterTarget, NodeUrl};
use tokio::time::{Instant, sleep, timeout};

/// How long a node may take to say how it is.
const ASK: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(100);
/// Entries that a node of a well cluster may be behind.
const BEHIND: u64 = 1_000;

#[derive(Clone)]
pub(crate) struct OperatedCluster {
    pub rest: RestClient,
    pub target: ClusterTarget,
}

impl OperatedCluster {
    pub(crate) fn new(target: ClusterTarget) -> Result<Self, String> {
        Ok(Self { rest: RestClient::new(&target.token).map_err(|error| error.to_string())?, target })
    }

    /// How each node is; in the order of the URLs.
    pub(crate) async fn statuses(&self) -> Vec<Result<NodeStatus, String>> {
        join_all(self.target.nodes.iter().map(|node| self.status(node))).await
    }

    pub(crate) async fn status(&self, node: &NodeUrl) -> Result<NodeStatus, String> {
        match timeout(ASK, self.rest.status(node)).await {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{node} does not answer")),
        }
    }

    /// The leader as most recent a node knows it.
    pub(crate) async fn leader(&self) -> Option<u64> {
        let known = self.statuses().await;
        let newest = known.iter().flatten().filter(|status| status.quorum).max_by_key(|status| status.term);
        newest.and_then(|status| status.leader)
    }

    /// Waits until every node answers, all hear each other, follow one leader and are not far behind.
    pub(crate) async fn well(&self, within: Duration) -> Result<Vec<NodeStatus>, String> {
        let end = Instant::now() + within;
        loop {
            let why = match self.statuses().await.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(statuses) => match unwell(&statuses) {
                    None => return Ok(statuses),
                    Some(why) => why,
                },
                Err(why) => why,
            };
            if Instant::now() >= end {
                return Err(format!("the cluster is not well after {} s: {why}", within.as_secs()));
            }
            sleep(AGAIN).await;
        }
    }

    /// Has a node lead. Asked of every node that answers, until one does it.
    pub(crate) async fn transfer(&self, to: u64, within: Duration) -> Result<(), String> {
        let body = json!({"to": to, "timeout_ms": within.as_millis() as u64});
        let mut why = "no node was given".to_owned();
        for node in &self.target.nodes {
            let asked = self.rest.post::<Value>(node, "/system/cluster/transfer", &body);
            match timeout(within + ASK, asked).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => why = format!("{node} does not answer"),
            }
        }
        Err(why)
    }
}

/// What is wrong with them together.
fn unwell(statuses: &[NodeStatus]) -> Option<String> {
    let first = statuses.first()?;
    for status in statuses {
        let node = status.node;
        if status.leader.is_none() || !status.quorum {
            return Some(format!("node {node} sees no leader"));
        }
        if status.leader != first.leader {
            return Some(format!("node {node} follows another leader than node {}", first.node));
        }
        if let Some(peer) = status.peers.iter().find(|peer| !peer.reachable) {
            return Some(format!("node {node} does not hear node {}", peer.node));
        }
    }
    let newest = statuses.iter().map(|status| status.applied_index).max()?;
    let behind = statuses.iter().find(|status| status.applied_index + BEHIND < newest)?;
    Some(format!("node {} is behind", behind.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_cluster_is_said() {
        let node = |node: u64, leader: Option<u64>, applied: u64, hears: bool| -> NodeStatus {
            serde_json::from_value(json!({
                "node": node, "leader": leader, "term": 2, "applied_index": applied, "digest": "d", "digest_index": 9,
                "master": null, "master_term": 0, "head_seq": 4, "sessions": 0, "quorum": true, "voters": [1, 2],
                "peers": [{"node": 7, "reachable": hears, "latency_ms": null, "silent_ms": null}], "nodes": [],
                "version": "v"}))
            .unwrap()
        };
        let wrong = |a, b| unwell(&[a, b]).unwrap_or_default();
        assert_eq!(wrong(node(1, Some(1), 9, true), node(2, Some(1), 9, true)), "");
        assert_eq!(wrong(node(1, Some(1), 9, true), node(2, None, 9, true)), "node 2 sees no leader");
        assert!(wrong(node(1, Some(1), 9, true), node(2, Some(2), 9, true)).contains("another leader"));
        assert_eq!(wrong(node(1, Some(1), 9, false), node(2, Some(1), 9, true)), "node 1 does not hear node 7");
        assert_eq!(wrong(node(1, Some(1), 9_999, true), node(2, Some(1), 9, true)), "node 2 is behind");
    }
}
