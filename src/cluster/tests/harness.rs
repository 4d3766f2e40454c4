//! Whole nodes in one process, for tests: a cell of them on one router, or over loopback.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::clock::{Clock, SystemClock};
use crate::cluster::boot::{NodeConfig, PeerLinks, Stopper, listen, start};
use crate::cluster::raft_cluster::RaftCluster;
use crate::cluster::{Cluster, SharedCluster};
use crate::consensus::types::MemberAddress;
use crate::ids::{NodeId, UnixMs};
use crate::model::effect::{Effect, Effects};
use crate::model::tables::RowKey;
use crate::model::version::Build;
use crate::proto::command::Intent;
use crate::proto::{DataUpdate, DeviceOnline, Operation, Outcome, Presence, outcome};
use crate::storage::memory::MemoryDisk;
use crate::storage::{Close, FolderIdentity, LogStore, Stores, open};
use crate::testkit::simulated_network::Router;

/// Generous: a test fails by it only when something hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct RunningCell {
    pub cluster: Arc<RaftCluster>,
    pub effects: mpsc::UnboundedReceiver<Effects>,
    pub stopper: Stopper,
    pub log: Arc<dyn LogStore>,
    close: Arc<dyn Close>,
}

/// The machine's clock, set wrong by so many milliseconds.
#[derive(Default)]
pub(super) struct WrongClock(AtomicI64);

impl WrongClock {
    pub(super) fn set(&self, ms: i64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for WrongClock {
    fn now_ms(&self) -> UnixMs {
        UnixMs(SystemClock.now_ms().get().saturating_add_signed(self.0.load(Ordering::SeqCst)))
    }

    fn even_ms(&self) -> u64 {
        SystemClock.even_ms()
    }
}

pub(super) async fn run(config: NodeConfig, stores: Stores, wire: PeerLinks, clock: Arc<WrongClock>) -> RunningCell {
    let (log, close) = (stores.log.clone(), stores.close.clone());
    let node = start(config, stores, wire, clock).await.unwrap();
    let (cluster, effects, stopper) = node.split();
    RunningCell { cluster, effects: collected(effects), stopper, log, close }
}

/// A node waits for whoever takes its effects once some thousands of entries are ahead. The gateway's hub always takes
/// them; a test looks at them when it likes, or never.
fn collected(mut effects: mpsc::Receiver<Effects>) -> mpsc::UnboundedReceiver<Effects> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(next) = effects.recv().await {
            if sender.send(next).is_err() {
                return;
            }
        }
    });
    receiver
}

pub(super) fn member(id: u64) -> MemberAddress {
    MemberAddress { raft: format!("node-{id}"), ..MemberAddress::default() }
}

/// Every row of a node.
pub(super) async fn rows(cluster: &RaftCluster) -> Vec<(RowKey, Bytes)> {
    let last = RowKey::end();
    cluster.replica().read_rows(move |rows| rows.range(&RowKey::Meta, &last, usize::MAX, false)).await.unwrap()
}

pub(super) struct Cell {
    pub router: Arc<Router>,
    pub disks: BTreeMap<u64, MemoryDisk>,
    pub nodes: BTreeMap<u64, RunningCell>,
    /// Of every node that was ever started; right at first.
    pub clocks: BTreeMap<u64, Arc<WrongClock>>,
    config: NodeConfig,
}

impl Cell {
    pub(super) async fn new(size: u64, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let members = (1..=size).map(|id| (NodeId(id), member(id))).collect();
        let mut config = NodeConfig::new(NodeId(0), "cell", members);
        config.snapshot_every = 1_000_000;
        change(&mut config);
        let disks = (1..=size).map(|id| (id, MemoryDisk::default())).collect();
        let mut cell = Self { router: Router::new(), disks, nodes: BTreeMap::new(), clocks: BTreeMap::new(), config };
        for id in 1..=size {
            cell.start(id).await;
        }
        cell
    }

    /// Nodes that start from now on run this program.
    pub(super) fn run_by(&mut self, build: Build) {
        self.config.build = build;
    }

    /// Three nodes that talk over loopback.
    pub(super) async fn over_grpc() -> Self {
        let disks: BTreeMap<u64, MemoryDisk> = (1..=3).map(|id| (id, MemoryDisk::default())).collect();
        let mut cell = Self::on_stores(|id| disks[&id].open()).await;
        cell.disks = disks;
        cell
    }

    /// Three nodes on stores of any kind that talk over loopback.
    pub(super) async fn on_stores(stores: impl Fn(u64) -> Stores) -> Self {
        let mut listeners = BTreeMap::new();
        let mut members = BTreeMap::new();
        for id in 1..=3u64 {
            let listener = listen("127.0.0.1:0").await.unwrap();
            let raft = listener.local_addr().unwrap().to_string();
            members.insert(id, MemberAddress { raft, ..MemberAddress::default() });
            listeners.insert(id, listener);
        }
        let taken = listen(&members[&1].raft).await.unwrap_err().to_string();
        assert!(taken.contains(&members[&1].raft), "{taken}");
        let mut cell =
            Self::new(0, |config| config.members = members.into_iter().map(|(id, at)| (NodeId(id), at)).collect())
                .await;
        for (id, listener) in listeners {
            let config = NodeConfig { id: NodeId(id), ..cell.config.clone() };
            cell.nodes.insert(id, run(config, stores(id), PeerLinks::Grpc(listener), Arc::default()).await);
        }
        cell
    }

    pub(super) async fn start(&mut self, id: u64) {
        let config = NodeConfig { id: NodeId(id), ..self.config.clone() };
        let wire = PeerLinks::Memory(self.router.clone());
        let clock = self.clocks.entry(id).or_default().clone();
        let node = run(config, self.disks[&id].open(), wire, clock).await;
        self.nodes.insert(id, node);
    }

    /// Starts a node whose settings name other members.
    pub(super) async fn start_naming(&mut self, id: u64, members: &[u64]) {
        self.disks.entry(id).or_default();
        let named = members.iter().map(|id| (NodeId(*id), member(*id))).collect();
        let members = std::mem::replace(&mut self.config.members, named);
        self.start(id).await;
        self.config.members = members;
    }

    /// Why a node serves no more.
    pub(super) async fn ended(&self, id: u64) -> String {
        let ended = self.nodes[&id].cluster.told_to_end();
        tokio::time::timeout(PATIENCE, ended).await.expect("the node goes on").to_string()
    }

    /// Starts a node with an empty disk that waits to be added.
    pub(super) async fn start_new(&mut self, id: u64) {
        let known = self.nodes.keys().map(|node| (NodeId(*node), MemberAddress::default())).collect();
        let config = NodeConfig { id: NodeId(id), members: BTreeMap::new(), join: known, ..self.config.clone() };
        let disk = self.disks.entry(id).insert_entry(MemoryDisk::default());
        let clock = self.clocks.entry(id).or_default().clone();
        let node = run(config, disk.get().open(), PeerLinks::Memory(self.router.clone()), clock).await;
        self.nodes.insert(id, node);
    }

    pub(super) async fn stop(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        node.stopper.shutdown().await;
        node.close.close().await.unwrap();
    }

    pub(super) fn at(&self, id: u64) -> SharedCluster {
        self.nodes[&id].cluster.clone()
    }

    /// The node that leads in the eyes of all nodes in `among`.
    pub(super) async fn leader(&self, among: &[u64]) -> u64 {
        let agreed = async {
            loop {
                let seen: Vec<_> = among.iter().map(|id| self.at(*id).status()).collect();
                if let Some(leader) = seen[0].leader.map(NodeId::get)
                    && among.contains(&leader)
                    && seen.iter().all(|status| status.leader == Some(NodeId(leader)) && status.quorum)
                    && self.nodes[&leader].cluster.node().leading().is_some()
                {
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, agreed).await.expect("no leader")
    }

    /// These nodes have applied what the one that is furthest has.
    pub(super) async fn converge_among(&self, nodes: &[u64]) {
        let applied = |node: &u64| self.nodes[node].cluster.replica().applied_index();
        let target = nodes.iter().map(applied).max().unwrap_or_default();
        for node in nodes {
            let applied = self.nodes[node].cluster.replica().wait_applied(target);
            tokio::time::timeout(PATIENCE, applied).await.expect("the nodes do not converge");
        }
    }

    /// All nodes have applied the same and hold the same rows.
    pub(super) async fn converge(&self) {
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
        let mut first = None;
        for node in self.nodes.values() {
            let all = rows(&node.cluster).await;
            assert!(!all.is_empty());
            assert_eq!(*first.get_or_insert_with(|| all.clone()), all);
        }
    }

    pub(super) async fn shutdown(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

pub(super) fn online(device: &str) -> Intent {
    let presence = Presence::Rest as i32;
    Intent::DeviceOnline(DeviceOnline { device_id: device.into(), presence, ..DeviceOnline::default() })
}

pub(super) fn update(device: &str, record_id: i64, data: String) -> Intent {
    Intent::DataUpdate(DataUpdate {
        device_id: device.into(),
        table_name: "stock".into(),
        record_id,
        operation: Operation::Update as i32,
        data: Bytes::from(data),
        ..DataUpdate::default()
    })
}

pub(super) fn seq(outcome: &Outcome) -> u64 {
    match &outcome.result {
        Some(outcome::Result::Accepted(accepted)) => accepted.seq,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn write(cluster: &SharedCluster, device: &str, record: i64) -> u64 {
    seq(&cluster.propose(update(device, record, format!("{{\"n\":{record}}}"))).await.unwrap())
}

pub(super) async fn changes(effects: &mut mpsc::UnboundedReceiver<Effects>, count: usize) -> Vec<u64> {
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

/// A data folder of each node.
pub(super) fn on_disk(dir: &Path) -> impl Fn(u64) -> Stores {
    move |node_id| open(&dir.join(node_id.to_string()), &FolderIdentity { node_id, cluster_id: "cell".into() }).unwrap()
}
