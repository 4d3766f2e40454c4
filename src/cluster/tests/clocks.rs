//! Nodes whose clocks are wrong: what they cost themselves, and nobody else.

use std::time::Duration;

use prost::Message;

use super::harness::{Cell, PATIENCE, online, write};
use super::strangers::Rogue;
use crate::clock::{Clock, SystemClock};
use crate::cluster::MembershipChange;
use crate::ids::NodeId;
use crate::limits;
use crate::model::error::Code;
use crate::model::state::into_result;
use crate::proto::{Command, CommandId, Principal};

const MONTH: i64 = 30 * 86_400_000;

/// The applied time is what an honest clock says, or was.
fn time_is_honest(cell: &Cell) {
    for node in cell.nodes.values() {
        let now_ms = node.cluster.node().replica().state().meta().now_ms;
        assert!(now_ms <= SystemClock.now_ms().get() + limits::NODE_CLOCK_APART_MS, "{now_ms}");
    }
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_jumps_a_month_hands_over_and_the_time_stays() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != leader).collect();
    cell.at(leader).propose(online("till-1")).await.unwrap();
    for jump in [MONTH, -MONTH] {
        let leader = cell.leader(&[1, 2, 3]).await;
        cell.clocks[&leader].set(jump);
        // Refused at once, before anybody was asked.
        let error = cell.at(leader).propose(online("till-2")).await.unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("clock"), "{error}");
        assert!(cell.at(leader).read_barrier().await.is_err());
        let at = cell.at(others[0]);
        until("another one leads", || at.status().leader.is_some_and(|now| now != NodeId(leader))).await;
        let objects = cell.at(leader);
        until("it says why", || objects.objection().is_some_and(|why| why.contains("other nodes ("))).await;
        let honest = if others[0] == leader { others[1] } else { others[0] };
        write(&cell.at(honest), "till-1", 1).await;
        time_is_honest(&cell);
        cell.clocks[&leader].set(0);
        until("it serves again", || objects.objection().is_none()).await;
        objects.propose(online("till-1")).await.unwrap();
        time_is_honest(&cell);
    }
    cell.shutdown().await;
}

/// A machine whose clock was lost with its battery: it leads before anybody could say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_with_a_wrong_clock_takes_no_command_of_anybody() {
    for jump in [MONTH, -MONTH] {
        let mut cell = Cell::new(0, |config| {
            config.members = (1..=3u64).map(|id| (NodeId(id), super::harness::member(id))).collect();
        })
        .await;
        for id in 1..=3u64 {
            cell.disks.insert(id, Default::default());
            cell.clocks.entry(id).or_default().set(if id == 1 { jump } else { 0 });
        }
        for id in 1..=3 {
            cell.start(id).await;
        }
        let honest = cell.at(2);
        let registered = async {
            while honest.propose(online("till-1")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, registered).await.unwrap();
        write(&cell.at(3), "till-1", 1).await;
        assert_ne!(honest.status().leader, Some(NodeId(1)));
        let wrong = cell.at(1);
        until("it says so", || wrong.objection().is_some()).await;
        assert!(wrong.propose(online("till-2")).await.is_err());
        time_is_honest(&cell);
        cell.shutdown().await;
    }
}

/// A node that does not look at its own clock: the leader does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_from_next_month_is_refused_by_the_leader() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let me = if leader == 1 { 2 } else { 1 };
    let rogue = Rogue::new(&cell, me, leader);
    let now_ms = SystemClock.now_ms().get();
    for (number, at_ms) in
        [now_ms + MONTH as u64, now_ms + 20_000, u64::MAX, now_ms - MONTH as u64, 1].into_iter().enumerate()
    {
        let origin = Some(CommandId { node: me, boot: 7, number: number as u64 + 1 });
        let command = Command { origin, at_ms, intent: Some(online("till-1")), principal: None };
        let answer = rogue.propose(command.encode_to_vec().into()).await.unwrap().unwrap();
        let error = into_result(answer).unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("clock of node"), "{error}");
    }
    assert!(cell.at(leader).replica().state().device("till-1").is_none());
    time_is_honest(&cell);
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_wrong_clock_is_not_added() {
    let mut cell = Cell::new(1, |_| {}).await;
    cell.leader(&[1]).await;
    cell.clocks.entry(2).or_default().set(-MONTH);
    cell.start_new(2).await;
    let add = MembershipChange::Add { node: NodeId(2), raft: "node-2".into(), gateway: "gateway-2".into() };
    let error = cell
        .at(1)
        .change(add.clone(), Principal { sub: "admin".into(), jti: String::new() }, PATIENCE)
        .await
        .unwrap_err();
    assert!(error.message.contains("clock of node 2 is 30 days behind"), "{error}");
    cell.clocks[&2].set(0);
    cell.at(1).change(add, Principal { sub: "admin".into(), jti: String::new() }, PATIENCE).await.unwrap();
    cell.shutdown().await;
}

/// Off, but not wrong yet: everybody can see it, and the node serves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_a_little_off_is_shown_by_every_node_and_serves_on() {
    let cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    for off in [1_600, -1_600] {
        cell.clocks[&2].set(off);
        for at in [1, 2, 3] {
            let ahead =
                |node: u64| cell.at(at).nodes().into_iter().find(|info| info.node == NodeId(node))?.clock_ahead_ms;
            let near = |ms: Option<i64>, to: i64| ms.is_some_and(|ms| (ms - to).abs() < 600);
            until("every node shows it", || near(ahead(2), off) && near(ahead(1), 0) && near(ahead(3), 0)).await;
        }
        assert_eq!(cell.at(2).objection(), None);
        write(&cell.at(2), "till-1", 1).await;
    }
    cell.shutdown().await;
}
