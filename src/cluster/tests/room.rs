//! Nodes tell each other how much room their disks have, and agree on what may be written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::harness::{Cell, PATIENCE, online, write};
use crate::cluster::Cluster;
use crate::storage::room::{DiskRoom, RoomState, RoomThresholds};
use crate::storage::{Stores, memory};

const MIB: u64 = 1 << 20;
const THRESHOLDS: RoomThresholds = RoomThresholds { low: 1_000 * MIB, min: 100 * MIB };

/// Three nodes, and how many bytes are free on the disk of each.
struct OnDisks {
    cell: Cell,
    free: BTreeMap<u64, Arc<AtomicU64>>,
}

impl OnDisks {
    async fn start() -> Self {
        let free: BTreeMap<u64, Arc<AtomicU64>> =
            (1..=3).map(|id| (id, Arc::new(AtomicU64::new(9_000 * MIB)))).collect();
        let cell = Cell::on_stores(|id| {
            let source = free[&id].clone();
            let read = Box::new(move || Ok(source.load(Ordering::Relaxed)));
            let room = DiskRoom::measured(format!("node {id}"), THRESHOLDS, read);
            Stores { room, ..memory::stores() }
        });
        Self { cell: cell.await, free }
    }

    fn has(&self, node: u64, mib: u64) {
        self.free[&node].store(mib * MIB, Ordering::Relaxed);
    }

    /// All nodes come to this, and give this reason.
    async fn all_see(&self, state: RoomState, reason: &str) {
        let agreed = async {
            let nodes = || self.cell.nodes.values();
            while nodes().any(|node| {
                node.cluster.room() != state || !node.cluster.room_reason().unwrap_or_default().contains(reason)
            }) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = || self.cell.nodes.values().map(|node| (node.cluster.room(), node.cluster.room_reason()));
        let within = tokio::time::timeout(PATIENCE, agreed).await;
        assert!(within.is_ok(), "not {state:?}, {reason}: {:?}", seen().collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_refuse_when_no_majority_has_room_and_go_on_when_it_comes_back() {
    let mut disks = OnDisks::start().await;
    let leader = disks.cell.leader(&[1, 2, 3]).await;
    disks.cell.at(leader).propose(online("till-1")).await.unwrap();
    disks.all_see(RoomState::Plenty, "").await;
    disks.has(1, 500);
    disks.all_see(RoomState::Low, "node 1 has 500 MiB left").await;
    disks.has(1, 50);
    disks.all_see(RoomState::Low, "node 1 has 50 MiB left").await;
    disks.has(3, 60);
    disks.all_see(RoomState::Full, "node 1 has 50 MiB left, node 3 has 60 MiB left").await;
    disks.has(1, 9_000);
    disks.all_see(RoomState::Low, "node 3 has 60 MiB left").await;
    // Of the two that are left one is full: were it to end as well, nothing could be written at all.
    let other = if leader == 1 { 2 } else { 1 };
    disks.cell.stop(other).await;
    disks.all_see(RoomState::Full, "node 3 has 60 MiB left").await;
    disks.has(3, 9_000);
    disks.all_see(RoomState::Plenty, "").await;
    assert_eq!(write(&disks.cell.at(3), "till-1", 1).await, 1);
    disks.cell.shutdown().await;
}
