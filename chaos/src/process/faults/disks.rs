//! Disks that are full: of one node at a stroke, and of all together, slowly.

use std::time::Duration;

use serde_json::json;
use tillsync::token::Class;
use tokio::time::{Instant, sleep};

use super::super::http::{HttpClient, Refusal};
use super::super::scenario::ScenarioFault;
use super::{Strike, Struck, list};

/// How long the nodes may take to see that their disks are full, and that they have room again.
const NOTICED: Duration = Duration::from_secs(10);
/// What the ballast grows by, and how often.
const STEP: u64 = 2 << 20;
const STEP_EVERY: Duration = Duration::from_millis(100);
const TRY_EVERY: Duration = Duration::from_millis(300);
const WITHIN: Duration = Duration::from_secs(5);
/// Who tries what a full disk takes; its table has the same name.
const PROBE: &str = "disk-probe";
/// Records that are there before the disks are full: some are read, the others deleted.
const READ: i64 = 1;
const DELETE_FROM: i64 = 100;
const RECORDS: i64 = 150;

impl Strike<'_> {
    pub(super) async fn full_disk(&mut self, nodes: &[u64]) -> Struck {
        self.say(format!("the disk of {} is full", list(nodes)));
        for id in nodes {
            self.world.cluster.disks.fill(*id)?;
            self.world.cluster.set_serving(*id, false);
        }
        sleep(self.lasts).await;
        for id in nodes {
            self.world.cluster.disks.free(*id);
        }
        self.bring_back(nodes).await;
        Ok(format!("the disk of {} was full", list(nodes)))
    }

    /// While the disks are full, devices are refused with 5003, reads and deletes go on and no node ends; when they have
    /// room again, so do writes.
    pub(super) async fn disks_fill(&mut self, fault: &ScenarioFault, nodes: &[u64]) -> Struck {
        let world = self.world;
        let leaves = fault.leaves_mb.unwrap_or(16) << 20;
        let token = world.cluster.token_of(PROBE, Class::Manager)?;
        let before = self.boots(nodes);
        let probes: Vec<(u64, Probe)> = nodes
            .iter()
            .map(|id| (*id, Probe { authority: world.cluster.gateway(*id).unwrap_or_default(), token: token.clone() }))
            .collect();
        let (_, first) = probes.first().ok_or("there is nobody to strike")?;
        first.prepare().await.map_err(|why| format!("what it tries could not be prepared: {why}"))?;
        self.say(format!("the disks of {} run full", list(nodes)));
        let mut filling = true;
        while filling {
            filling = false;
            for id in nodes {
                filling |= world.cluster.disks.fill_some(*id, STEP, leaves)?;
            }
            sleep(STEP_EVERY).await;
        }
        // Writes are refused from here on: not for the lack of a majority, but no more is promised.
        nodes.iter().for_each(|id| world.cluster.set_serving(*id, false));
        let mut wrong = Vec::new();
        for (id, probe) in &probes {
            if !probe.writes_until(2, |answer| answer.as_ref().is_err_and(is_full)).await {
                wrong.push(format!("node {id} takes writes {NOTICED:?} after its disk was full"));
            }
        }
        self.say(format!("the disks of {} are full", list(nodes)));
        let until_freed = Instant::now() + self.lasts;
        let (mut tries, mut deleted) = (0, DELETE_FROM);
        while Instant::now() < until_freed {
            for (id, probe) in &probes {
                match probe.write(2).await {
                    Err(why) if is_full(&why) => {}
                    other => wrong.push(format!("a write on node {id} with a full disk: {other:?}")),
                }
                if let Err(why) = probe.read().await {
                    wrong.push(format!("a read on node {id} with a full disk: {why}"));
                }
                if deleted < RECORDS {
                    if let Err(why) = probe.delete(deleted).await {
                        wrong.push(format!("a delete on node {id} with a full disk: {why}"));
                    }
                    deleted += 1;
                }
                tries += 1;
            }
            sleep(TRY_EVERY).await;
        }
        let freed = Instant::now();
        nodes.iter().for_each(|id| world.cluster.disks.free(*id));
        for (id, probe) in &probes {
            if !probe.writes_until(3, Result::is_ok).await {
                wrong.push(format!("node {id} takes no write {NOTICED:?} after its disk was freed"));
            }
        }
        let again = freed.elapsed();
        let after = self.boots(nodes);
        if after != before {
            wrong.push(format!("nodes ended with full disks: starts {before:?}, then {after:?}"));
        }
        self.bring_back(nodes).await;
        wrong.into_iter().for_each(|what| world.recorder.anomaly(what));
        let (what, again) = (list(nodes), again.as_secs_f64());
        Ok(format!(
            "the disks of {what} were full: {tries} times a write was refused, and reads and deletes went on; written again \
             {again:.1} s after there was room"
        ))
    }

    /// Which start of each node this is.
    fn boots(&self, nodes: &[u64]) -> Vec<Option<u64>> {
        nodes.iter().map(|id| self.world.cluster.boot(*id)).collect()
    }
}

fn is_full(why: &Refusal) -> bool {
    matches!(why, Refusal::Refused(503, text) if text.starts_with("5003 disks are full"))
}

/// Asks one node what it takes.
struct Probe {
    authority: String,
    token: String,
}

impl Probe {
    async fn call(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Result<Vec<u8>, Refusal> {
        HttpClient { authority: &self.authority, token: &self.token, within: WITHIN }.call(method, path, body).await
    }

    async fn prepare(&self) -> Result<(), Refusal> {
        let online = json!({ "device_id": PROBE, "priority": 0, "capabilities": ["no-master"] });
        self.call("POST", "/device/register", Some(&online)).await?;
        for record in std::iter::once(READ).chain(DELETE_FROM..RECORDS) {
            self.write(record).await?;
        }
        Ok(())
    }

    async fn write(&self, record: i64) -> Result<(), Refusal> {
        let body = json!({ "operation": "update", "new_data": { "v": record } });
        self.call("POST", &format!("/data/{PROBE}/{record}"), Some(&body)).await.map(drop)
    }

    /// Writes again and again until it is answered so; false: it never was.
    async fn writes_until(&self, record: i64, wanted: fn(&Result<(), Refusal>) -> bool) -> bool {
        let end = Instant::now() + NOTICED;
        while Instant::now() < end {
            if wanted(&self.write(record).await) {
                return true;
            }
            sleep(TRY_EVERY).await;
        }
        false
    }

    async fn delete(&self, record: i64) -> Result<(), Refusal> {
        let body = json!({ "operation": "delete" });
        self.call("POST", &format!("/data/{PROBE}/{record}"), Some(&body)).await.map(drop)
    }

    async fn read(&self) -> Result<(), Refusal> {
        self.call("GET", &format!("/data/{PROBE}/{READ}"), None).await.map(drop)
    }
}
