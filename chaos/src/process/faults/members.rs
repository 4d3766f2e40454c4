//! Changes of who belongs to the cluster, and of who leads.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::monitor::start;
use super::{AGAIN, CHANGE, START, Strike, Struck};

impl Strike<'_> {
    pub(super) async fn transfer(&mut self, nodes: &[u64]) -> Struck {
        let [to] = nodes else { return Err("to one node only".into()) };
        self.say(format!("leadership to node {to}"));
        let body = json!({ "to": to, "timeout_ms": 10_000 });
        let path = "/system/cluster/transfer";
        let moved = self.world.ask(*to, "POST", path, Some(&body), Duration::from_secs(15)).await;
        let came = moved.map_or_else(|why| format!("it did not come: {why}"), |_| "it came".into());
        Ok(format!("leadership was ordered to node {to}: {came}"))
    }

    /// The node leaves for good; another one with a new number takes its place.
    pub(super) async fn members(&mut self, old: u64) -> Struck {
        let world = self.world;
        let new = world.cluster.unused().ok_or("there is no number left for a new node")?;
        self.say(format!("node {old} is removed"));
        world.cluster.set_serving(old, false);
        let path = format!("/system/cluster/nodes/{old}?timeout_ms=10000");
        self.change("DELETE", &path, None, old).await.map_err(|why| {
            world.recorder.anomaly(format!("node {old} could not be removed: {why}"));
            why
        })?;
        world.cluster.set_member(old, false);
        world.seen.lock().remove(&old);
        if world.cluster.ended(old, Duration::from_secs(20)).await.is_none() {
            world.recorder.anomaly(format!("node {old} was removed, and did not end within 20 s"));
        }
        sleep(self.lasts).await;
        self.say(format!("node {new} is added"));
        world.cluster.start_new(new)?;
        let at = world.cluster.listed(new).ok_or("the new node has no address")?;
        let (raft, gateway) = (at.raft.to_string(), at.gateway.to_string());
        let body = json!({ "node": new, "raft": raft, "gateway": gateway, "timeout_ms": 10_000 });
        let recorded = world.cluster.network.open_recorded();
        if let Err(why) = self.change("POST", "/system/cluster/nodes", Some(&body), new).await {
            world.recorder.anomaly(format!("node {new} could not be added: {why}"));
            world.cluster.kill(new).await;
            return Err(why);
        }
        world.cluster.set_member(new, true);
        // From now on it goes through the proxies as well; until then it finds the others only as they are recorded.
        self.stop(new).await;
        drop(recorded);
        if !start(world, new, START).await {
            world.recorder.anomaly(format!("node {new} was added and does not serve"));
        }
        Ok(format!("node {old} was removed, and node {new} added"))
    }

    /// Asks one node after the other for a change of the members, until it is done.
    async fn change(&self, method: &str, path: &str, body: Option<&Value>, not: u64) -> Result<(), String> {
        let until = Instant::now() + CHANGE;
        loop {
            let mut last = "nobody was asked".to_owned();
            for node in self.world.cluster.members().into_iter().filter(|node| *node != not) {
                match self.world.ask(node, method, path, body, Duration::from_secs(12)).await {
                    Ok(_) => return Ok(()),
                    Err(why) => last = why.to_string(),
                }
            }
            if Instant::now() >= until {
                return Err(last);
            }
            sleep(AGAIN).await;
        }
    }
}
