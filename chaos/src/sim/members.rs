//! Nodes that join and leave for good, by the cluster's own changes of its members, asked on any node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tillsync::cluster::{Cluster, MembershipChange};
use tillsync::ids::NodeId;
use tillsync::proto::Principal;
use tokio::time::{Instant, sleep};

use super::world::SimWorld;

/// For one try of a change; one that meets other faults is tried again.
const WITHIN: Duration = Duration::from_secs(5);
/// A change is done after this, whatever else goes on: other faults are shorter.
const PATIENCE: Duration = Duration::from_secs(25);
const PAUSE: Duration = Duration::from_millis(50);
/// A cluster is not made larger or smaller than this.
const MOST: usize = 7;
const LEAST: usize = 3;

/// A machine joins, and is there for a while before the fault counts as over.
pub(crate) async fn add(world: &Arc<SimWorld>, lasts: Duration) -> Option<String> {
    let _turn = world.changing.lock().await;
    if world.ids().len() >= MOST {
        return None;
    }
    let id = join(world).await;
    sleep(lasts).await;
    Some(format!("node {id} joined"))
}

/// A node leaves; its machine runs on for a while, and is turned off then.
pub(crate) async fn remove(world: &Arc<SimWorld>, id: u64, dead: bool, lasts: Duration) -> Option<String> {
    let _turn = world.changing.lock().await;
    let voters = voters(world);
    if !voters.contains(&id) || !world.has(id) {
        return None;
    }
    world.leaves(id);
    if dead {
        world.crash(id, true);
    }
    let mut what = format!("node {id} {}", if dead { "died and was removed" } else { "was removed" });
    let left: BTreeSet<u64> = voters.iter().copied().filter(|voter| *voter != id).collect();
    change(world, &voters, &left, MembershipChange::Remove { node: NodeId(id) }).await;
    sleep(lasts).await;
    world.retire(id).await;
    if left.len() < LEAST {
        let id = join(world).await;
        what += &format!(", node {id} took its place");
    }
    Some(what)
}

async fn join(world: &Arc<SimWorld>) -> u64 {
    let id = world.build();
    world.start(id).await;
    let voters = voters(world);
    let joined: BTreeSet<u64> = voters.iter().copied().chain([id]).collect();
    let (raft, gateway) = (format!("node-{id}"), format!("gateway-{id}"));
    change(world, &voters, &joined, MembershipChange::Add { node: NodeId(id), raft, gateway }).await;
    id
}

fn voters(world: &SimWorld) -> BTreeSet<u64> {
    world.voters.lock().first().cloned().unwrap_or_default()
}

/// Asks for a change until it is made.
async fn change(world: &Arc<SimWorld>, old: &BTreeSet<u64>, new: &BTreeSet<u64>, asked: MembershipChange) {
    *world.voters.lock() = vec![old.clone(), new.clone()];
    let until = Instant::now() + PATIENCE;
    let mut why = String::new();
    while Instant::now() < until {
        for id in world.serving().into_keys() {
            // A try takes long enough for others to die meanwhile.
            let Some(up) = world.serving().remove(&id) else { continue };
            let by = Principal { sub: "chaos".into(), ..Principal::default() };
            let asking = up.cluster.change(asked.clone(), by, WITHIN);
            let answer = tokio::select! {
                biased;
                answer = asking => answer.map_err(|error| error.to_string()),
                () = up.dead.cancelled() => Err(format!("node {id} died while it was asked")),
            };
            match answer {
                Ok(done) => world.recorder.say(|| format!("{asked:?}: {done:?}")),
                Err(error) => {
                    world.recorder.say(|| error.clone());
                    why = error;
                }
            }
            if is_made(world, new) {
                *world.voters.lock() = vec![new.clone()];
                return;
            }
            if Instant::now() >= until {
                break;
            }
        }
        sleep(PAUSE).await;
    }
    world.recorder.anomaly(format!("{asked:?} could not be made: {why}"));
}

/// Whether the leader has these voters and no others.
fn is_made(world: &SimWorld, voters: &BTreeSet<u64>) -> bool {
    let leader = world.leader().and_then(|leader| world.up().remove(&leader));
    leader.is_some_and(|up| {
        let group = up.cluster.node().group();
        !group.joint && group.voters.iter().copied().eq(voters.iter().copied().map(NodeId))
    })
}
