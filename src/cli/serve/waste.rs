//! When a node starts again by itself, because the files of its engine have become much larger than what is in them.
//!
//! The engine uses the room of what it no longer needs again, and gives none of it back; a start copies what is in it into a
//! new one (`storage`). So a node whose files are worth a copy starts anew, in order, as for an upgrade: its devices go on
//! at the others, which go on writing. Each node has its turn, and takes it only when all others are there, when little is
//! written, and hardly more often than once a day.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::cluster::raft_cluster::RaftCluster;
use crate::ids::NodeId;
use crate::storage::{Close, LogStore, SnapshotStore, Stores};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);
/// So few entries between two looks are little, and so often in a row make it quiet.
const LITTLE: u64 = 20;
const QUIET_LOOKS: u32 = 5;
/// A node that started again for its files does not soon do so once more: a busy one would every hour.
const REST: Duration = Duration::from_secs(86_400);
/// But for so many bytes that can be had back.
const MUCH: u64 = 1 << 30;
const REST_OF_MUCH: Duration = Duration::from_secs(3_600);
/// A node's turn, by the clock, and in which part of it it begins. Clocks of nodes that serve are 5 s apart at most, and a stop
/// in order takes less than ten: before the next one begins, this one has gone and is missed.
const TURN_MS: u64 = 30_000;
const BEGINS_MS: u64 = 5_000;
/// Others that are further behind do not count as there.
const BEHIND: u64 = 1_000;
/// Where no majority would be left, nobody may be connected.
const ENOUGH: usize = 3;
/// Files that the last start left as they are have to grow by this before another one is tried.
const GROWN_PERCENT: u64 = 150;

/// What is known of an engine's files and of what is in them.
#[derive(Clone)]
pub(super) struct EngineWaste {
    close: Arc<dyn Close>,
    log: Arc<dyn LogStore>,
    snapshots: Arc<dyn SnapshotStore>,
    /// What the files had right after the start.
    made: u64,
}

impl EngineWaste {
    pub(super) async fn of(stores: &Stores) -> Self {
        let made = stores.close.engine_size().await.unwrap_or(0);
        Self { close: stores.close.clone(), log: stores.log.clone(), snapshots: stores.snapshots.clone(), made }
    }

    /// How many bytes the files have, if a copy of what is in them would be much smaller and has room.
    async fn size(&self) -> Option<u64> {
        let snapshot = self.snapshots.current()?;
        let content = snapshot.bytes() + self.log.bytes();
        let size = self.close.worth_a_copy(content).await.ok().flatten()?;
        (size > self.made / 100 * GROWN_PERCENT).then_some(size)
    }

    /// Resolves with the bytes of the files when the node should start again; `last`: when it did so before.
    pub(super) async fn calls_for_a_start(&self, cluster: &RaftCluster, last: Option<Instant>) -> u64 {
        let began = Instant::now();
        let (mut quiet, mut before) = (0, cluster.replica().applied_index().get());
        loop {
            sleep(LOOK).await;
            let applied = cluster.replica().applied_index().get();
            let written = applied - std::mem::replace(&mut before, applied).min(applied);
            quiet = if written <= LITTLE { quiet + 1 } else { 0 };
            if last.is_some_and(|at| at.elapsed() < REST_OF_MUCH) {
                continue;
            }
            let Some(size) = self.size().await else { continue };
            let is_time = match size >= MUCH {
                true => quiet > 0 || began.elapsed() >= REST,
                false => quiet >= QUIET_LOOKS && last.is_none_or(|at| at.elapsed() >= REST),
            };
            if is_time && may_go(cluster) {
                return size;
            }
        }
    }
}

/// It is this node's turn, and the others do without it.
fn may_go(cluster: &RaftCluster) -> bool {
    let (status, nodes) = (cluster.status(), cluster.nodes());
    let all_there = nodes.iter().all(|node| node.reachable && node.lag.is_some_and(|lag| lag <= BEHIND));
    // Who does not say how many it has may have some.
    let connected = nodes.iter().any(|node| node.said.as_ref().is_none_or(|said| said.sessions > 0));
    let alone = status.voters.len() < ENOUGH && connected;
    let now_ms = cluster.clock().now_ms().get();
    status.quorum && all_there && !alone && is_turn(&status.voters, cluster.node_id(), now_ms)
}

fn is_turn(voters: &[NodeId], me: NodeId, now_ms: u64) -> bool {
    let turn = now_ms / TURN_MS % (voters.len().max(1) as u64);
    let place = voters.iter().filter(|voter| **voter < me).count() as u64;
    now_ms % TURN_MS < BEGINS_MS && voters.contains(&me) && place == turn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_voters_one_has_its_turn_and_there_is_a_pause_before_the_next() {
        let voters = [1, 4, 7].map(NodeId);
        for ms in (0..10 * TURN_MS).step_by(500) {
            let turns: Vec<NodeId> = voters.into_iter().filter(|me| is_turn(&voters, *me, ms)).collect();
            // Also by a clock that is as far off as one that serves can be.
            let others = voters.into_iter().filter(|me| is_turn(&voters, *me, ms + 4_900)).collect::<Vec<_>>();
            assert!(turns.len() <= 1 && (others == turns || turns.is_empty() || others.is_empty()), "{ms}");
        }
        assert!(is_turn(&[NodeId(3)], NodeId(3), 0));
        assert!(!is_turn(&voters, NodeId(3), TURN_MS), "a learner");
    }
}
