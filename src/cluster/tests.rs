//! Whole nodes in one process: they elect, take writes and reads anywhere, and survive cuts and restarts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::boot::{NodeConfig, Stopper, Wire, listen, start};
use super::raft_cluster::RaftCluster;
use super::{Cluster, SharedCluster};
use crate::clock::SystemClock;
use crate::consensus::doubles::Disk;
use crate::consensus::memory::Router;
use crate::consensus::types::Member;
use crate::model::effect::{Effect, Effects};
use crate::model::error::Code;
use crate::proto::command::Intent;
use crate::proto::{DataUpdate, DeviceOnline, Operation, Outcome, Presence, outcome};

/// Generous: a test fails by it only when something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    cluster: Arc<RaftCluster>,
    effects: mpsc::Receiver<Effects>,
    stopper: Stopper,
}

pub struct Cell {
    router: Arc<Router>,
    disks: BTreeMap<u64, Disk>,
    nodes: BTreeMap<u64, Running>,
    config: NodeConfig,
}

impl Cell {
    pub async fn new(size: u64, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let members = (1..=size).map(|id| (id, Member { raft: format!("node-{id}"), ..Member::default() })).collect();
        let mut config = NodeConfig::new(0, "cell", members);
        config.snapshot_every = 1_000_000;
        change(&mut config);
        let disks = (1..=size).map(|id| (id, Disk::default())).collect();
        let mut cell = Self { router: Router::new(), disks, nodes: BTreeMap::new(), config };
        for id in 1..=size {
            cell.start(id).await;
        }
        cell
    }

    /// Three nodes that talk over loopback.
    pub async fn over_grpc() -> Self {
        let mut listeners = BTreeMap::new();
        let mut members = BTreeMap::new();
        for id in 1..=3u64 {
            let listener = listen("127.0.0.1:0").await.unwrap();
            let raft = listener.local_addr().unwrap().to_string();
            members.insert(id, Member { raft, ..Member::default() });
            listeners.insert(id, listener);
        }
        let taken = listen(&members[&1].raft).await.unwrap_err().to_string();
        assert!(taken.contains(&members[&1].raft), "{taken}");
        let mut cell = Self::new(0, |config| config.members = members).await;
        for (id, listener) in listeners {
            let disk = Disk::default();
            let config = NodeConfig { id, ..cell.config.clone() };
            let node = start(config, disk.stores(), Wire::Grpc(listener), Arc::new(SystemClock)).await.unwrap();
            let (cluster, effects, stopper) = node.split();
            cell.disks.insert(id, disk);
            cell.nodes.insert(id, Running { cluster, effects, stopper });
        }
        cell
    }

    /// Takes the effects of all nodes and drops them, as nobody else does.
    pub fn ignore_effects(&mut self) {
        for node in self.nodes.values_mut() {
            let mut effects = std::mem::replace(&mut node.effects, mpsc::channel(1).1);
            tokio::spawn(async move { while effects.recv().await.is_some() {} });
        }
    }

    async fn start(&mut self, id: u64) {
        let config = NodeConfig { id, ..self.config.clone() };
        let wire = Wire::Memory(self.router.clone());
        let node = start(config, self.disks[&id].stores(), wire, Arc::new(SystemClock)).await.unwrap();
        let (cluster, effects, stopper) = node.split();
        self.nodes.insert(id, Running { cluster, effects, stopper });
    }

    async fn stop(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stopper.shutdown().await;
    }

    pub fn at(&self, id: u64) -> SharedCluster {
        self.nodes[&id].cluster.clone()
    }

    /// The node that leads in the eyes of all nodes in `among`.
    pub async fn leader(&self, among: &[u64]) -> u64 {
        let agreed = async {
            loop {
                let seen: Vec<_> = among.iter().map(|id| self.at(*id).status()).collect();
                if let Some(leader) = seen[0].leader
                    && among.contains(&leader)
                    && seen.iter().all(|status| status.leader == Some(leader) && status.quorum)
                    && self.nodes[&leader].cluster.node().leading().is_some()
                {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, agreed).await.expect("no leader")
    }

    /// All nodes have applied the same and hold the same rows.
    async fn converge(&self) {
        let applied = self.nodes.values().map(|node| node.cluster.replica().applied_index());
        let target = applied.max().unwrap();
        let same = async {
            for node in self.nodes.values() {
                node.cluster.replica().wait_applied(target).await;
            }
            loop {
                let seen: Vec<_> = self.nodes.values().map(|node| node.cluster.replica().applied()).collect();
                if seen.iter().all(|applied| *applied == seen[0]) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, same).await.expect("the nodes do not converge");
        let mut rows = self.nodes.keys().map(|id| self.disks[id].rows());
        let first = rows.next().unwrap();
        assert!(!first.is_empty());
        assert!(rows.all(|other| other == first));
    }

    pub async fn shutdown(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

pub fn online(device: &str) -> Intent {
    let presence = Presence::Rest as i32;
    Intent::DeviceOnline(DeviceOnline { device_id: device.into(), presence, ..DeviceOnline::default() })
}

pub fn update(device: &str, record_id: i64, data: String) -> Intent {
    Intent::DataUpdate(DataUpdate {
        device_id: device.into(),
        table_name: "stock".into(),
        record_id,
        operation: Operation::Update as i32,
        data: Bytes::from(data),
        ..DataUpdate::default()
    })
}

fn seq(outcome: &Outcome) -> u64 {
    match &outcome.result {
        Some(outcome::Result::Accepted(accepted)) => accepted.seq,
        other => panic!("{other:?}"),
    }
}

async fn write(cluster: &SharedCluster, device: &str, record: i64) -> u64 {
    seq(&cluster.propose(update(device, record, format!("{{\"n\":{record}}}"))).await.unwrap())
}

async fn changes(effects: &mut mpsc::Receiver<Effects>, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        let next = tokio::time::timeout(PATIENCE, effects.recv()).await.unwrap().unwrap();
        seqs.extend(next.effects.into_iter().filter_map(|effect| match effect {
            Effect::Changed(change) => Some(change.seq),
            _ => None,
        }));
    }
    seqs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_writes_and_reads() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        assert_eq!(write(&cell.at(id), "till-1", id as i64).await, id);
        for reader in [1, 2, 3] {
            cell.at(reader).read_barrier().await.unwrap();
            assert_eq!(cell.at(reader).replica().hot().meta().head_seq, id);
        }
    }
    // A refusal by the state machine comes back as an error, from followers too.
    for id in [1, 2, 3] {
        let refused = cell.at(id).propose(update("nobody", 1, "{}".into())).await.unwrap_err();
        assert_eq!(refused.code, Code::NotRegistered);
    }
    cell.converge().await;
    for node in cell.nodes.values_mut() {
        assert_eq!(changes(&mut node.effects, 3).await, [1, 2, 3]);
        assert_eq!(node.cluster.replica().hot().meta().cluster_id, "cell");
        assert_ne!(node.cluster.replica().hot().meta().epoch, 0);
    }
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_made_in_order_are_applied_in_order() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        let cluster = cell.at(id);
        let proposed: Vec<_> = (0..2_000).map(|n| cluster.propose(update("till-1", n, "{}".into()))).collect();
        let mut last = 0;
        for answer in proposed {
            let seq = seq(&answer.await.unwrap());
            assert!(seq > last);
            last = seq;
        }
    }
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_is_cut_off() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_secs(10)).await;
    let old = cell.leader(&[1, 2, 3]).await;
    cell.at(old).propose(online("till-1")).await.unwrap();
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != old).collect();
    cell.router.isolate(old);
    // Not a word about who leads: the requests find out.
    for (n, id) in rest.iter().enumerate() {
        assert_eq!(write(&cell.at(*id), "till-1", 1).await, n as u64 + 1);
        cell.at(*id).read_barrier().await.unwrap();
    }
    let new = cell.leader(&rest).await;
    assert_ne!(new, old);
    assert!(!cell.at(old).status().quorum);
    // A read on the old leader must not be answered from its past. It is, once it can be answered.
    let read = cell.at(old).read_barrier();
    cell.router.heal();
    read.await.unwrap();
    assert_eq!(cell.at(old).replica().hot().meta().head_seq, 2);
    assert_eq!(write(&cell.at(old), "till-1", 2).await, 3);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_requests_fail_in_time() {
    let cell = Cell::new(3, |config| config.request_timeout = Duration::from_millis(600)).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        cell.router.isolate(id);
    }
    // On the leader it is in the log; whether it will stay there nobody knows.
    let error = cell.at(leader).propose(update("till-1", 1, "{}".into())).await.unwrap_err();
    assert!([Code::Timeout, Code::NoMaster].contains(&error.code), "{error:?}");
    let other = if leader == 1 { 2 } else { 1 };
    let error = cell.at(other).propose(update("till-1", 1, "{}".into())).await.unwrap_err();
    assert_eq!(error.code, Code::NoMaster);
    for id in [1, 2, 3] {
        assert!(cell.at(id).read_barrier().await.is_err());
    }
    cell.router.heal();
    cell.leader(&[1, 2, 3]).await;
    write(&cell.at(other), "till-1", 2).await;
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_catches_up_by_log() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    cell.stop(leader).await;
    for n in 0..20 {
        write(&cell.at(rest[0]), "till-1", n).await;
    }
    cell.start(leader).await;
    cell.at(leader).read_barrier().await.unwrap();
    assert_eq!(cell.at(leader).replica().hot().meta().head_seq, 20);
    cell.converge().await;
    // And all of them at once, from their disks.
    for id in [1, 2, 3] {
        cell.stop(id).await;
    }
    for id in [1, 2, 3] {
        cell.start(id).await;
    }
    cell.at(1).read_barrier().await.unwrap();
    assert_eq!(cell.at(1).replica().hot().meta().head_seq, 20);
    assert_eq!(write(&cell.at(2), "till-1", 99).await, 21);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_long_catches_up_by_snapshot() {
    let low = |config: &mut NodeConfig| (config.snapshot_every, config.keep_entries) = (50, 10);
    let mut cell = Cell::new(3, low).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    let away = if leader == 1 { 2 } else { 1 };
    cell.stop(away).await;
    let mut written = 0;
    while !cell.disks[&leader].has_purged() || written < 400 {
        write(&cell.at(leader), "till-1", written).await;
        written += 1;
        assert!(written < 100_000, "the log is never purged");
    }
    cell.start(away).await;
    cell.at(away).read_barrier().await.unwrap();
    assert_eq!(cell.at(away).replica().hot().meta().head_seq, written as u64);
    assert_eq!(write(&cell.at(away), "till-1", 1).await, written as u64 + 1);
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reordered_while_leadership_moves() {
    let cell = Cell::new(3, |_| {}).await;
    let first = cell.leader(&[1, 2, 3]).await;
    cell.at(first).propose(online("till-1")).await.unwrap();
    let writers: Vec<_> = [1, 2, 3]
        .into_iter()
        .map(|id| {
            let cluster = cell.at(id);
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                // Bursts of calls without waiting in between, as a session makes them.
                for burst in 0..60 {
                    let calls: Vec<_> =
                        (0..20).map(|n| cluster.propose(update("till-1", burst * 20 + n, "{}".into()))).collect();
                    for call in calls {
                        seqs.push(seq(&call.await.unwrap()));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                seqs
            })
        })
        .collect();
    for turn in 1..=6 {
        let leader = cell.leader(&[1, 2, 3]).await;
        let to = (leader + turn % 2) % 3 + 1;
        if to != leader {
            let _ = cell.nodes[&leader].cluster.transfer_leader(to, Duration::from_secs(2)).await;
        }
    }
    let mut all = Vec::new();
    for writer in writers {
        let seqs = writer.await.unwrap();
        assert!(seqs.is_sorted(), "a burst was applied out of order");
        all.extend(seqs);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=3 * 60 * 20).collect::<Vec<u64>>());
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_grpc() {
    let mut cell = Cell::over_grpc().await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for id in [1, 2, 3] {
        let cluster = cell.at(id);
        let calls: Vec<_> = (0..500).map(|n| cluster.propose(update("till-1", n, "{}".into()))).collect();
        for call in calls {
            call.await.unwrap();
        }
        cluster.read_barrier().await.unwrap();
    }
    let to = leader % 3 + 1;
    cell.nodes[&leader].cluster.transfer_leader(to, Duration::from_secs(5)).await.unwrap();
    write(&cell.at(leader), "till-1", 7).await;
    cell.converge().await;
    // The leader goes down; the others go on.
    cell.stop(to).await;
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != to).collect();
    for id in &rest {
        write(&cell.at(*id), "till-1", 8).await;
        cell.at(*id).read_barrier().await.unwrap();
    }
    cell.converge().await;
    cell.shutdown().await;
}
