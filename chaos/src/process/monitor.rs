//! Looks at every node over REST while the run goes on, and at the processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::world::ProcessWorld;
use crate::history::{FaultWindow, Sample};

/// How often a node is asked, and how often who has which role.
const EVERY: Duration = Duration::from_millis(100);
const ROLES_EVERY: u64 = 10;
/// How often it is looked whether there is a majority, and whether all processes are there.
const LOOK: Duration = Duration::from_millis(20);
/// A look that comes so late, in microseconds, says that the machine is overloaded.
const STALL: u64 = 500_000;
/// A pause before a node that fell over is started again.
const PAUSE: Duration = Duration::from_millis(500);
/// A node that falls over more often is left down.
const RESTARTS: u32 = 5;

/// Samples one node until it is aborted.
pub(super) async fn watch_node(world: Arc<ProcessWorld>, node: u64) {
    let (mut turn, mut led) = (0_u64, None);
    loop {
        sleep(EVERY).await;
        turn += 1;
        let Some(boot) = world.cluster.boot(node) else { continue };
        let (tick, us) = world.recorder.now();
        let Some(status) = world.status(node).await else { continue };
        // An answer from the start before or after would be taken for this one's.
        if world.cluster.boot(node) != Some(boot) || status.node != node {
            continue;
        }
        // A node that took longer to come back than its fault waited.
        if status.quorum && !world.cluster.is_claimed(node) {
            world.cluster.set_serving(node, true);
        }
        let leads = (status.leader == Some(node)).then_some((boot, status.term));
        if let Some((_, term)) = leads.filter(|_| leads != led) {
            world.recorder.led(node, term.get());
        }
        led = leads;
        let master = status.master.clone().unwrap_or_default();
        world.recorder.sample(Sample {
            tick,
            us,
            node,
            boot,
            applied: status.digest_index,
            digest: status.digest.clone(),
            head: status.head_seq,
            // Who has the role is asked apart, see below: one answer does not tell both.
            masters: if master.is_empty() { Vec::new() } else { vec![master.clone()] },
            master,
            master_term: status.master_term.get(),
            electing: 0,
            settled: 0,
            version: status.cluster_version.unwrap_or(1),
            knows: Sample::knows(&status),
            ungated: 0,
        });
        world.seen.lock().insert(node, status);
        if turn % ROLES_EVERY == 0 {
            roles(&world, node).await;
        }
    }
}

/// At most one device has the role.
async fn roles(world: &ProcessWorld, node: u64) {
    let path = "/device/roles?consistency=stale";
    let Ok(answer) = world.ask(node, "GET", path, None, Duration::from_secs(1)).await else { return };
    let Ok(answer) = serde_json::from_slice::<Value>(&answer) else { return };
    let devices = answer["devices"].as_array().map_or(&[][..], |devices| devices);
    let masters: Vec<_> = devices.iter().filter(|d| d["role"] == json!("master")).map(|d| &d["device_id"]).collect();
    if masters.len() > 1 {
        world.recorder.anomaly(format!("node {node} shows several masters at once: {masters:?}"));
    }
}

/// Notes the times without a majority, and those in which this process itself stood still, until it is aborted, which must not be before it is back.
pub(super) async fn watch_majority(world: Arc<ProcessWorld>) {
    let mut gone = None;
    let mut last = world.recorder.us();
    loop {
        let now = world.recorder.us();
        // What stops this loop stops the nodes as well: no fault of the cluster.
        if now.saturating_sub(last) > STALL {
            let (name, what) = ("machine_stalled".into(), "this machine had no time for the run".into());
            world.recorder.band(FaultWindow { name, what, from_us: last, to_us: now, majority: false });
        }
        last = now;
        world.recorder.majority(&mut gone, world.cluster.majority());
        sleep(LOOK).await;
    }
}

/// A node that ends by itself is trouble, unless a fault has it; it is started again either way.
pub(super) async fn watch_processes(world: Arc<ProcessWorld>) {
    let mut restarts: BTreeMap<u64, u32> = BTreeMap::new();
    loop {
        sleep(LOOK).await;
        for (node, status) in world.cluster.fallen() {
            if world.cluster.is_claimed(node) {
                // The fault that has it looks after it.
                world.note(format!("node {node} ended by itself under its fault: {status}"));
                continue;
            }
            world.recorder.anomaly(format!("node {node} ended by itself: {status}: {}", world.cluster.last_line(node)));
            let restarts = restarts.entry(node).or_default();
            *restarts += 1;
            if *restarts > RESTARTS {
                continue;
            }
            let world = world.clone();
            tokio::spawn(async move {
                sleep(PAUSE).await;
                start(&world, node, Duration::from_secs(30)).await;
            });
        }
    }
}

/// Starts a node, and waits until it serves.
pub(super) async fn start(world: &ProcessWorld, node: u64, within: Duration) -> bool {
    if let Err(why) = world.cluster.revive(node) {
        world.recorder.anomaly(format!("node {node} cannot be started: {why}"));
        return false;
    }
    world.cluster.serves(node, within).await
}

/// Waits until it is so, or the time is up.
pub(super) async fn until(within: Duration, mut is_so: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + within;
    loop {
        if is_so().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(LOOK).await;
    }
}
