//! Nodes whose data differs: who goes on, who stops, and when nothing is written.

use std::time::Duration;

use prost::Message;

use super::harness::{Cell, PATIENCE, online, write};
use crate::cluster::peers::compared_digests::DigestVerdict;
use crate::cluster::{Cluster, MembershipChange, SharedCluster};
use crate::consensus::transport::ConnectionClass;
use crate::ids::{LogIndex, NodeId};
use crate::model::error::{Code, Error};
use crate::model::tables::RowKey;
use crate::proto::{Meta, Principal, StatusRequest};
use crate::storage::memory::MemoryDisk;

/// A bit of a row flips while the node is down.
fn corrupt(disk: &MemoryDisk) {
    let mut tables = disk.open().tables;
    let mut meta = Meta::decode(tables.get(&RowKey::Meta).unwrap().unwrap()).unwrap();
    meta.term ^= 1 << 20;
    tables.put(RowKey::Meta, meta.encode_to_vec().into());
    tables.commit(tables.applied());
    // What is there stays: nothing is in the disk's hands.
    disk.crash_keeping(0, true);
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn ended(cell: &Cell, node: u64) -> Error {
    tokio::time::timeout(PATIENCE, cell.nodes[&node].cluster.told_to_end()).await.expect("it is not told")
}

fn differs_from(at: &SharedCluster, node: u64) -> Option<LogIndex> {
    at.nodes().into_iter().find(|info| info.node == NodeId(node)).unwrap().differs_from
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_other_data_than_most_stops_with_5001_and_the_others_go_on() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    write(&cell.at(leader), "till-1", 1).await;
    cell.converge().await;
    // Any of them, the leader too.
    let wrong = leader;
    cell.stop(wrong).await;
    corrupt(&cell.disks[&wrong]);
    cell.start(wrong).await;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != wrong).collect();
    // The next command of all shows it.
    until("a write", || cell.at(others[0]).status().leader.is_some()).await;
    write(&cell.at(others[0]), "till-1", 2).await;
    let why = ended(&cell, wrong).await;
    assert_eq!(why.code, Code::Storage, "{why}");
    let words = format!("this node holds other data than nodes {}, {} since log index", others[0], others[1]);
    assert!(why.message.contains(&words) && why.message.contains("cluster remove"), "{why}");
    assert_eq!(cell.at(wrong).propose(online("till-1")).await.unwrap_err().code, Code::Storage);
    for node in &others {
        let at = cell.at(*node);
        until("they know which", || differs_from(&at, wrong).is_some()).await;
        assert_eq!(at.status().digests, DigestVerdict::Agrees);
        assert_eq!((differs_from(&at, others[0]), differs_from(&at, others[1])), (None, None));
    }
    cell.stop(wrong).await;
    cell.leader(&others).await;
    write(&cell.at(others[1]), "till-1", 3).await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_that_differ_write_nothing_until_the_third_is_back() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.converge().await;
    cell.stop(3).await;
    cell.stop(2).await;
    corrupt(&cell.disks[&2]);
    cell.start(2).await;
    cell.leader(&[1, 2]).await;
    for (node, other) in [(1, 2), (2, 1)] {
        let at = cell.at(node);
        // Until it is known, a write may still be taken: it shows that they differ.
        until("it refuses", || {
            std::mem::drop(at.propose(online("till-1")));
            matches!(at.status().digests, DigestVerdict::Undecided { .. })
        })
        .await;
        let why = at.propose(online("till-1")).await.unwrap_err();
        assert!(why.code == Code::Storage && why.message.contains("no majority tells"), "{why}");
        assert!(why.message.contains(&format!("node {other} hold different data")), "{why}");
        assert!(at.read_barrier().await.is_ok());
    }
    cell.start(3).await;
    ended(&cell, 2).await;
    cell.stop(2).await;
    cell.leader(&[1, 3]).await;
    let at = cell.at(1);
    until("it is decided", || at.status().digests == DigestVerdict::Agrees).await;
    let written = async {
        while at.propose(online("till-1")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
    write(&cell.at(3), "till-1", 1).await;
    cell.shutdown().await;
}

/// The way out that the sentence names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_decides_between_two_by_removing_one() {
    let mut cell = Cell::new(2, |_| {}).await;
    cell.leader(&[1, 2]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.converge().await;
    cell.stop(2).await;
    corrupt(&cell.disks[&2]);
    cell.start(2).await;
    cell.leader(&[1, 2]).await;
    let at = cell.at(1);
    until("it refuses", || {
        std::mem::drop(at.propose(online("till-1")));
        matches!(at.status().digests, DigestVerdict::Undecided { index: LogIndex(1..), .. })
    })
    .await;
    let by = Principal { sub: "admin".into(), jti: String::new() };
    at.change(MembershipChange::Remove { node: NodeId(2) }, by, PATIENCE).await.unwrap();
    until("it is decided", || at.status().digests == DigestVerdict::Agrees).await;
    cell.leader(&[1]).await;
    write(&at, "till-1", 1).await;
    cell.shutdown().await;
}

/// What a node that is behind, or not asked for digests, is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_is_told_up_to_the_index_that_was_asked_for() {
    let cell = Cell::new(2, |_| {}).await;
    cell.leader(&[1, 2]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.converge().await;
    let ring = cell.nodes[&2].cluster.replica().digests();
    let newest = ring.newest().unwrap();
    let link = cell.router.transport(1).link(NodeId(2), &super::harness::member(2), ConnectionClass::Control);
    let before = LogIndex(newest.get() - 1);
    let cases = [(None, vec![]), (Some(LogIndex::MAX), ring.up_to(newest)), (Some(before), ring.up_to(before))];
    for (asked, told) in cases {
        let handshake = Some(cell.nodes[&1].cluster.identity.handshake(NodeId(2)));
        let request = StatusRequest { handshake, digests_up_to: asked.map(LogIndex::get), ..StatusRequest::default() };
        assert_eq!(link.status(request).await.unwrap().digests, told, "{asked:?}");
    }
    cell.shutdown().await;
}
