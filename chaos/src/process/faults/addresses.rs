//! A machine that gets other addresses.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::super::cluster::ListedAddress;
use super::{AGAIN, START, Strike, Struck};

/// How long it takes until every member names a node's new addresses.
const RECORDED: Duration = Duration::from_secs(20);
const ASKED: Duration = Duration::from_secs(1);

impl Strike<'_> {
    /// The node comes back elsewhere: its own settings say so, or an operator does.
    pub(super) async fn moved(&mut self, node: u64) -> Struck {
        let world = self.world;
        let cluster = &world.cluster;
        let _room = world.machine_room.lock().await;
        let told = self.rng.percent(50);
        self.say(format!("node {node} moves"));
        self.stop(node).await;
        let now = cluster.move_node(node, told)?;
        sleep(self.lasts).await;
        cluster.revive(node)?;
        if !told {
            let words = format!("move {node} --raft {} --gateway {} --timeout 10", now.raft, now.gateway);
            self.order(node, &words).await?;
            cluster.list(node, now);
        }
        let began = world.recorder.us();
        let until = Instant::now() + RECORDED;
        let mut missing = self.not_named(node, now).await;
        while !missing.is_empty() && Instant::now() < until {
            sleep(AGAIN).await;
            missing = self.not_named(node, now).await;
        }
        if !missing.is_empty() {
            let why = format!("nodes {missing:?} do not name its new addresses within {RECORDED:?}");
            world.recorder.anomaly(format!("node {node} moved to {} and {}: {why}", now.raft, now.gateway));
        }
        if !cluster.serves(node, START).await {
            let why = cluster.last_line(node);
            world.recorder.anomaly(format!("node {node} does not serve at its new addresses: {why}"));
        }
        let took = (world.recorder.us() - began) / 1_000;
        let by = if told { "by its own settings" } else { "by cluster move" };
        Ok(format!("node {node} moved {by}; all named and it served {took} ms later"))
    }

    /// Members that do not say that the node is there.
    async fn not_named(&self, node: u64, at: ListedAddress) -> Vec<u64> {
        let mut missing = Vec::new();
        for member in self.world.cluster.members() {
            let answer = self.world.ask(member, "GET", "/system/cluster", None, ASKED).await.unwrap_or_default();
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let nodes = answer["nodes"].as_array().map_or(&[][..], |nodes| nodes);
            let named = nodes.iter().any(|row| {
                row["node"] == node && row["raft"] == at.raft.to_string() && row["gateway"] == at.gateway.to_string()
            });
            if !named {
                missing.push(member);
            }
        }
        missing
    }
}
