//! A cluster grows and shrinks, and what must not be done is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::harness::{Cell, PATIENCE, online, update, write};
use crate::cluster::{MembershipChange, MembershipChanged};
use crate::ids::{NodeId, RaftTerm};
use crate::model::error::{Code, Error};
use crate::proto::Principal;
use crate::storage::memory::MemoryDisk;

fn add(node: u64) -> MembershipChange {
    MembershipChange::Add { node: NodeId(node), raft: format!("node-{node}"), gateway: format!("gateway-{node}") }
}

async fn change(cell: &Cell, at: u64, change: MembershipChange) -> Result<MembershipChanged, Error> {
    cell.at(at).change(change, Principal { sub: "admin".into(), jti: "t".into() }, PATIENCE).await
}

async fn refused(cell: &Cell, at: u64, asked: MembershipChange, code: Code, words: &str) {
    let error = cell
        .at(at)
        .change(asked, Principal { sub: "admin".into(), jti: "t".into() }, Duration::from_secs(8))
        .await
        .unwrap_err();
    assert!(error.code == code && error.message.contains(words), "{error}");
}

/// Why a node must not serve any more.
async fn ended(cell: &Cell, node: u64) -> String {
    let cluster = cell.nodes[&node].cluster.clone();
    tokio::time::timeout(PATIENCE, cluster.told_to_end()).await.expect("it is not told").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_node_to_three_to_five_and_back_under_load() {
    let mut cell = Cell::new(1, |config| config.keep_entries = 10).await;
    cell.leader(&[1]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    let (stop, first) = (Arc::new(AtomicBool::new(false)), cell.at(1));
    let writer = {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut written = 0;
            while !stop.load(Ordering::SeqCst) {
                first.propose(update("till-1", written, "{}".into())).await.unwrap();
                written += 1;
            }
            written as u64
        })
    };
    for node in 2..=5 {
        cell.start_new(node).await;
        // Any node takes the wish.
        let done = change(&cell, node - 1, add(node)).await.unwrap();
        assert_eq!((done.node, done.voters), (NodeId(node), (1..=node).map(NodeId).collect()));
    }
    let leader = cell.leader(&[1, 2, 3, 4, 5]).await;
    change(&cell, leader, MembershipChange::Transfer { to: NodeId(5) }).await.unwrap();
    // The leader itself goes: another one leads before that.
    for node in [5, 4] {
        assert_eq!(change(&cell, 2, MembershipChange::Remove { node: NodeId(node) }).await.unwrap().node, NodeId(node));
        assert!(ended(&cell, node).await.contains("was removed"));
        cell.stop(node).await;
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    cell.leader(&[1, 2, 3]).await;
    cell.converge().await;
    let hot = cell.at(3).replica().state().meta().clone();
    assert_eq!((hot.head_seq, hot.removed_nodes), (written, vec![4, 5]));
    assert!(cell.at(1).nodes().iter().all(|n| n.voter && n.node <= NodeId(3) && n.said.is_some()));
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_runs_on_disturbs_nobody() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let gone = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    let left: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != gone).collect();
    change(&cell, leader, MembershipChange::Remove { node: NodeId(gone) }).await.unwrap();
    ended(&cell, gone).await;
    // Nobody tells it of another term any more: it grows only if it begins an election.
    let term = cell.at(gone).status().term;
    tokio::time::sleep(cell.nodes[&gone].cluster.node().timing().election_max * 8).await;
    assert_eq!(cell.at(gone).status().term, term);
    cell.leader(&left).await;
    cell.at(leader).propose(online("till-1")).await.unwrap();
    write(&cell.at(left[0]), "till-1", 1).await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_under_a_new_id_and_its_own_is_never_taken_again() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.stop(3).await;
    let leader = cell.leader(&[1, 2]).await;
    change(&cell, leader, MembershipChange::Remove { node: NodeId(3) }).await.unwrap();
    cell.start_new(4).await;
    change(&cell, leader, add(4)).await.unwrap();
    cell.start_new(3).await;
    assert!(ended(&cell, 3).await.contains("new id"));
    refused(&cell, leader, add(3), Code::RoleChange, "never used again").await;
    cell.stop(3).await;
    // What was lost comes back with its old disk: it is told.
    write(&cell.at(4), "till-1", 1).await;
    cell.converge().await;
    cell.shutdown().await;
}

/// A disk that was replaced: the node may have voted, so it may not vote again under its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_data_is_refused_under_its_old_id() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    cell.at(3).propose(crate::proto::command::Intent::NodeBooted(crate::proto::NodeBooted::default())).await.unwrap();
    cell.stop(3).await;
    cell.disks.insert(3, MemoryDisk::default());
    cell.start(3).await;
    let why = ended(&cell, 3).await;
    assert!(why.contains("data folder is empty") && why.contains("new id"), "{why}");
    // It has taken nothing and voted for nobody.
    assert_eq!(cell.at(3).status().term, RaftTerm(0));
    assert!(cell.nodes[&3].cluster.node().is_pristine().await.unwrap());
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_third_founder_may_come_late() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.stop(3).await;
    cell.disks.insert(3, MemoryDisk::default());
    cell.leader(&[1, 2]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.start(3).await;
    cell.leader(&[1, 2, 3]).await;
    cell.converge().await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_end_the_cluster_is_refused() {
    let mut cell = Cell::new(1, |_| {}).await;
    cell.leader(&[1]).await;
    refused(&cell, 1, MembershipChange::Remove { node: NodeId(1) }, Code::RoleChange, "last voter").await;
    refused(&cell, 1, MembershipChange::Remove { node: NodeId(7) }, Code::InvalidData, "not a node").await;
    refused(&cell, 1, MembershipChange::Transfer { to: NodeId(7) }, Code::InvalidData, "not a node").await;
    refused(&cell, 1, MembershipChange::Transfer { to: NodeId(1) }, Code::RoleChange, "leads already").await;
    refused(&cell, 1, add(1), Code::RoleChange, "member already, at").await;
    refused(&cell, 1, add(2), Code::PeerUnreachable, "node 2 cannot be reached").await;
    cell.start_new(2).await;
    change(&cell, 1, add(2)).await.unwrap();
    refused(&cell, 1, add(2), Code::RoleChange, "voter already").await;
    cell.start_new(3).await;
    change(&cell, 2, add(3)).await.unwrap();
    let leader = cell.leader(&[1, 2, 3]).await;
    let (dead, alive) = if leader == 3 { (2, 1) } else { (3, 3 - leader) };
    cell.stop(dead).await;
    let lost = async {
        while cell.at(leader).nodes().iter().any(|node| node.node == NodeId(dead) && node.reachable) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
    refused(&cell, leader, MembershipChange::Remove { node: NodeId(alive) }, Code::RoleChange, "quorum would be lost")
        .await;
    refused(&cell, alive, MembershipChange::Transfer { to: NodeId(dead) }, Code::PeerUnreachable, "cannot be reached")
        .await;
    assert_eq!(change(&cell, alive, MembershipChange::Remove { node: NodeId(dead) }).await.unwrap().node, NodeId(dead));
    refused(&cell, leader, MembershipChange::Remove { node: NodeId(dead) }, Code::RoleChange, "was removed before")
        .await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_at_a_time() {
    let mut cell = Cell::new(1, |_| {}).await;
    cell.leader(&[1]).await;
    cell.start_new(2).await;
    // It does not take the log, so it does not catch up.
    cell.router.cut(2, 1);
    let first = cell.at(1);
    let adding = tokio::spawn(async move { first.change(add(2), Principal::default(), Duration::from_secs(4)).await });
    let busy = async {
        while cell.nodes[&1].cluster.membership.busy.lock().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, busy).await.unwrap();
    refused(&cell, 1, MembershipChange::Remove { node: NodeId(1) }, Code::Unavailable, "node 2 is being added").await;
    assert_eq!(adding.await.unwrap().unwrap_err().code, Code::PeerUnreachable);
    cell.router.heal();
    assert_eq!(change(&cell, 1, add(2)).await.unwrap().voters, [1, 2].map(NodeId));
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_a_vote_who_does_not_reach_the_voters_and_members_move() {
    let mut cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let other = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    cell.start_new(4).await;
    cell.router.cut(4, other);
    let words = format!("node 4 does not reach node {other} at node-{other}");
    refused(&cell, leader, add(4), Code::PeerUnreachable, &words).await;
    assert!(!cell.at(leader).nodes().iter().any(|node| node.node == NodeId(4)), "it was taken out again");
    cell.router.heal();
    assert_eq!(change(&cell, leader, add(4)).await.unwrap().voters, [1, 2, 3, 4].map(NodeId));
    let to = |node: u64| MembershipChange::Move {
        node: NodeId(node),
        raft: format!("new-{node}"),
        gateway: format!("newer-{node}"),
    };
    // The leader, too: another node looks whether it is there.
    for node in [other, leader] {
        assert_eq!(change(&cell, 4, to(node)).await.unwrap().node, NodeId(node));
    }
    refused(&cell, leader, to(other), Code::RoleChange, "already").await;
    refused(&cell, leader, to(9), Code::InvalidData, "not a node").await;
    cell.converge().await;
    for node in [1, 2, 3, 4] {
        let members = cell.nodes[&node].cluster.node().members();
        assert_eq!(
            (&members[&NodeId(other)].raft, &members[&NodeId(leader)].gateway),
            (&format!("new-{other}"), &format!("newer-{leader}"))
        );
    }
    let meta = cell.at(4).replica().state().meta().clone();
    assert!(meta.removed_nodes.is_empty());
    cell.shutdown().await;
}
