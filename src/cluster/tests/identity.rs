//! A node is what it says it is: older copies of folders, clusters founded apart, founders that disagree.

use std::time::Duration;

use super::harness::{Cell, PATIENCE, online, write};
use crate::cluster::{Cluster, MembershipChange};
use crate::consensus::transport::{ConnectionClass, LinkError};
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId};
use crate::model::version::Build;
use crate::proto::{Principal, StatusRequest, StatusResponse};

/// A leader, a follower and the third one.
async fn three() -> (Cell, u64, u64, u64) {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    cell.at(leader).propose(online("till")).await.unwrap();
    let mut others = (1..=3).filter(|id| *id != leader);
    let (follower, third) = (others.next().unwrap(), others.next().unwrap());
    cell.converge().await;
    (cell, leader, follower, third)
}

/// All nodes have told each other what they know.
async fn starts_are_known(cell: &Cell, node: u64, boot: u64) {
    let known = async {
        let knows =
            |id: &u64| cell.nodes[id].cluster.replica().state().boot_of(NodeId(node)).is_some_and(|b| b.boot == boot);
        while !cell.nodes.keys().all(knows) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("the start is not replicated");
}

async fn tell_start(cell: &Cell, node: u64) {
    let cluster = cell.at(node);
    cluster.propose(crate::proto::command::Intent::NodeBooted(cluster.booted())).await.unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_know_the_clusters_version_is_refused_and_its_node_returns_with_another() {
    let (mut cell, leader, follower, third) = three().await;
    let by = Principal { sub: "admin".into(), ..Principal::default() };
    let leads = cell.at(leader);
    let finalize = || leads.change(MembershipChange::Finalize, by.clone(), PATIENCE);
    let early = finalize().await.unwrap_err();
    assert!(early.message.contains("was started anew meanwhile"), "no start is replicated: {early}");
    for node in [leader, follower, third] {
        tell_start(&cell, node).await;
        starts_are_known(&cell, node, 1).await;
    }
    let raised = finalize().await.unwrap();
    assert_eq!(raised.version, Build::THIS.newest());
    cell.converge().await;
    cell.stop(follower).await;
    cell.run_by(Build::BEFORE);
    cell.start(follower).await;
    let asks = cell.nodes[&follower].cluster.identity.handshake(NodeId(leader));
    for check in [
        cell.nodes[&leader].cluster.identity.check(Some(&asks)),
        cell.nodes[&third].cluster.identity.check_any(Some(&crate::proto::Handshake { to: 0, ..asks.clone() })),
    ] {
        let Err(LinkError::Refused(why)) = check else { panic!("{check:?}") };
        assert!(why.contains("version is 2, and the program of node") && why.contains("knows up to 1"), "{why}");
    }
    write(&cell.at(leader), "till", 1).await;
    cell.stop(follower).await;
    cell.run_by(Build::THIS);
    cell.start(follower).await;
    cell.converge().await;
}

#[tokio::test]
async fn an_older_copy_of_a_disk_ends_before_it_votes_and_nothing_acknowledged_is_lost() {
    let (mut cell, leader, follower, third) = three().await;
    cell.stop(follower).await;
    let copy = cell.disks[&follower].copy();
    cell.start(follower).await;
    tell_start(&cell, follower).await;
    starts_are_known(&cell, follower, 2).await;
    cell.stop(third).await;
    cell.leader(&[leader, follower]).await;
    let mut acknowledged = 0;
    for record in 0..5 {
        acknowledged = write(&cell.at(leader), "till", record).await;
    }
    cell.stop(follower).await;
    cell.disks.insert(follower, copy);
    cell.start(follower).await;
    let why = cell.ended(follower).await;
    assert!(why.contains("copy from before its start 2") && why.contains("new number"), "{why}");
    // The one that knew is gone, and the other one was away for the writes: still it takes no part.
    cell.stop(follower).await;
    cell.stop(leader).await;
    cell.start(third).await;
    cell.start(follower).await;
    let why = cell.ended(follower).await;
    assert!(why.contains("copy from before its start 2"), "{why}");
    assert!(!cell.at(third).status().quorum, "two voters, and one of them is none");
    cell.stop(follower).await;
    cell.start(leader).await;
    let now = cell.leader(&[leader, third]).await;
    cell.at(third).read_barrier().await.unwrap();
    assert_eq!(cell.at(third).replica().state().meta().head_seq, acknowledged);
    write(&cell.at(now), "till", 99).await;
    cell.shutdown().await;
}

/// One was away, one is put back to an older copy, and the third one is off: those two serve, and nobody who is there
/// knows that the second one is a copy. The third one, how far it had come, the second and the first.
async fn two_serve_without_the_third() -> (Cell, u64, u64, u64, u64) {
    let (mut cell, leader, follower, away) = three().await;
    cell.stop(away).await;
    cell.stop(follower).await;
    let copy = cell.disks[&follower].copy();
    cell.start(follower).await;
    cell.leader(&[leader, follower]).await;
    tell_start(&cell, follower).await;
    starts_are_known(&cell, follower, 2).await;
    for record in 0..5 {
        write(&cell.at(leader), "till", record).await;
    }
    let genuine = cell.at(leader).replica().state().meta().head_seq;
    cell.stop(follower).await;
    cell.stop(leader).await;
    cell.disks.insert(follower, copy);
    cell.start(away).await;
    cell.start(follower).await;
    cell.leader(&[away, follower]).await;
    tell_start(&cell, follower).await;
    write(&cell.at(away), "till", 50).await;
    (cell, leader, genuine, follower, away)
}

/// The copy has started once more before the third one returns: by its number, it is the newest.
#[tokio::test]
async fn a_copy_that_counted_on_is_told_by_the_entries_that_both_committed() {
    let (mut cell, leader, genuine, follower, away) = two_serve_without_the_third().await;
    for record in 60..80 {
        write(&cell.at(away), "till", record).await;
    }
    cell.stop(follower).await;
    cell.start(follower).await;
    cell.leader(&[away, follower]).await;
    tell_start(&cell, follower).await;
    let head = write(&cell.at(away), "till", 80).await;

    cell.start(leader).await;
    told_of_two_histories(&cell, leader).await;
    assert!(
        cell.at(leader).waiting().is_some_and(|why| why.contains("another entry")),
        "it is not ready, and says why"
    );
    assert_eq!(cell.at(away).waiting(), None);
    assert_eq!(cell.at(leader).replica().state().meta().head_seq, genuine, "its history is as it was");
    assert_eq!(cell.nodes[&follower].cluster.identity.is_outdated(), None, "else another rule tells it");
    // It has asked, claimed nothing, and the others go on.
    assert!(write(&cell.at(away), "till", 81).await > head);
    cell.stop(follower).await;
    cell.start(follower).await;
    cell.stop(away).await;
    cell.start(away).await;
    // Whoever hears it as they start does not know whose is right, either.
    told_of_two_histories(&cell, follower).await;
    told_of_two_histories(&cell, away).await;
    cell.shutdown().await;
}

#[tokio::test]
async fn two_histories_are_told_by_whoever_returns_and_neither_is_served_as_the_other() {
    let (mut cell, leader, genuine, follower, away) = two_serve_without_the_third().await;
    cell.start(leader).await;
    let why = cell.ended(follower).await;
    assert!(why.contains("copy from before its start 2") && why.contains("recover --alone"), "{why}");
    told_of_two_histories(&cell, leader).await;
    // Started again by whatever supervises it, it counts on: its own history says that it took part.
    cell.stop(follower).await;
    cell.start(follower).await;
    told_of_two_histories(&cell, follower).await;
    cell.stop(away).await;
    cell.start(away).await;
    told_of_two_histories(&cell, away).await;
    let asked = [leader, follower, away].map(|node| cell.at(node).read_barrier());
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(cell.at(leader).replica().state().meta().head_seq, genuine, "its history is as it was");
    cell.shutdown().await;
}

async fn told_of_two_histories(cell: &Cell, node: u64) {
    let says = || cell.nodes[&node].cluster.lifecycle.why_it_waits().unwrap_or_default();
    let told = async {
        while !says().contains("there are two histories") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("node {node} says {:?}", says()));
}

#[tokio::test]
async fn a_copy_that_was_made_while_the_node_ran_ends_by_what_it_lacks() {
    let (mut cell, leader, follower, third) = three().await;
    let copy = cell.disks[&follower].copy();
    for record in 0..5 {
        write(&cell.at(leader), "till", record).await;
    }
    cell.converge().await;
    cell.stop(follower).await;
    cell.disks.insert(follower, copy);
    cell.start(follower).await;
    let why = cell.ended(follower).await;
    assert!(why.contains("copy from before entry"), "{why}");
    cell.stop(follower).await;
    let now = cell.leader(&[leader, third]).await;
    write(&cell.at(now), "till", 9).await;
    cell.shutdown().await;
}

/// The third one cannot know what the copy lacks, and must not take its start for the newest.
#[tokio::test]
async fn a_copy_that_is_turned_away_does_not_shut_the_genuine_node_out() {
    let (mut cell, leader, follower, third) = three().await;
    let copy = cell.disks[&follower].copy();
    cell.router.isolate(third);
    for record in 0..5 {
        write(&cell.at(leader), "till", record).await;
    }
    cell.converge_among(&[leader, follower]).await;
    cell.stop(follower).await;
    let genuine = cell.disks.insert(follower, copy).unwrap();
    for (from, to) in [(follower, third), (third, follower)] {
        cell.router.join(from, to);
    }
    cell.start(follower).await;
    let why = cell.ended(follower).await;
    assert!(why.contains("copy from before entry"), "{why}");
    cell.stop(follower).await;
    cell.disks.insert(follower, genuine);
    cell.router.heal();
    cell.start(follower).await;
    cell.leader(&[leader, follower, third]).await;
    cell.converge().await;
    // The other one, that knows which of them is the copy, is gone: these two are a quorum only if they get on.
    cell.stop(leader).await;
    let now = cell.leader(&[follower, third]).await;
    write(&cell.at(now), "till", 9).await;
    assert_eq!(cell.nodes[&follower].cluster.identity.is_outdated(), None);
    cell.shutdown().await;
}

#[tokio::test]
async fn a_node_that_is_told_a_newer_start_of_its_own_ends() {
    let (cell, _, follower, _) = three().await;
    let mut newer = cell.at(follower).booted();
    (newer.boot, newer.instance) = (newer.boot + 1, newer.instance ^ 2);
    // Another process that runs as this node, from a copy of its folder.
    cell.at(follower).propose(crate::proto::command::Intent::NodeBooted(newer)).await.unwrap();
    let why = cell.ended(follower).await;
    assert!(why.contains("another process runs from a copy"), "{why}");
    cell.shutdown().await;
}

async fn status_of(cell: &Cell, from: u64, to: u64) -> Result<StatusResponse, LinkError> {
    let handshake = Some(cell.nodes[&from].cluster.identity.handshake(NodeId(to)));
    let link = cell.router.transport(from).link(NodeId(to), &MemberAddress::default(), ConnectionClass::Control);
    link.status(StatusRequest { handshake, ..StatusRequest::default() }).await
}

#[tokio::test]
async fn clusters_of_one_name_that_were_founded_apart_do_not_speak() {
    let mut cell = Cell::new(0, |_| {}).await;
    for id in [1, 2] {
        cell.start_naming(id, &[id]).await;
        cell.leader(&[id]).await;
    }
    let epoch = async |id: u64| {
        while cell.nodes[&id].cluster.identity.epoch() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        format!("{:016x}", cell.nodes[&id].cluster.identity.epoch())
    };
    let (one, two) = tokio::time::timeout(PATIENCE, async { (epoch(1).await, epoch(2).await) }).await.unwrap();
    for (from, to) in [(1, 2), (2, 1)] {
        let refused = status_of(&cell, from, to).await;
        let Err(LinkError::Refused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains(&one) && why.contains(&two) && why.contains("founded apart"), "{why}");
    }
    cell.shutdown().await;
}

#[tokio::test]
async fn founders_that_disagree_found_nothing_and_each_says_with_whom() {
    let mut cell = Cell::new(0, |_| {}).await;
    cell.start_naming(1, &[1, 2]).await;
    cell.start_naming(2, &[1, 2, 3]).await;
    cell.start_naming(3, &[2, 3]).await;
    let waiting = |id: u64| cell.nodes[&id].cluster.lifecycle.why_it_waits().unwrap_or_default();
    let all_say = async {
        while !(1..=3).all(|id| waiting(id).contains("differ in `members`")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_say).await.expect("they do not say so");
    assert!(waiting(1).contains("node 2 names 1 at node-1") && waiting(3).contains("node 2 names"), "{}", waiting(1));
    // Also after another of their rounds.
    tokio::time::sleep(crate::cluster::membership::admission::SETTLE * 2).await;
    assert!(cell.nodes.values().all(|node| node.cluster.node().view().last_log_index == LogIndex(0)));
    // The settings are made equal.
    for id in 1..=3 {
        cell.stop(id).await;
    }
    for id in 1..=3 {
        cell.start_naming(id, &[1, 2, 3]).await;
    }
    cell.leader(&[1, 2, 3]).await;
    cell.shutdown().await;
}

#[tokio::test]
async fn a_cluster_that_was_off_starts_again_also_with_one_node_lost() {
    let (mut cell, leader, follower, third) = three().await;
    let seq = write(&cell.at(leader), "till", 1).await;
    for id in 1..=3 {
        cell.stop(id).await;
    }
    // Alone, a node does not know whether it is the newest of its kind.
    cell.start(follower).await;
    cell.start(third).await;
    cell.leader(&[follower, third]).await;
    cell.at(third).read_barrier().await.unwrap();
    assert_eq!(cell.at(third).replica().state().meta().head_seq, seq);
    cell.shutdown().await;
}
