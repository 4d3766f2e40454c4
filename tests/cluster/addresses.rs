//! Nodes come back at other addresses; what is recorded of them is state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillsync::client::rest::NodeStatus;

use crate::harness::PATIENCE;
use crate::processes::Processes;

/// Where each member is, as a node tells.
fn recorded(status: &NodeStatus) -> BTreeMap<u64, (String, String)> {
    status.nodes.iter().map(|node| (node.node, (node.raft.clone(), node.gateway.clone()))).collect()
}

/// Waits until every node that runs tells these addresses of these members.
async fn are_recorded(nodes: &Processes, ids: &[u64]) {
    let expected: BTreeMap<u64, (String, String)> =
        ids.iter().map(|id| (*id, (nodes.raft(*id), nodes.gateway(*id)))).collect();
    let (rest, end) = (nodes.rest(), Instant::now() + PATIENCE);
    loop {
        let mut told = Vec::new();
        for url in nodes.urls() {
            told.extend(rest.status(&url).await.ok().map(|status| recorded(&status)));
        }
        if told.len() == nodes.urls().len() && told.iter().all(|one| *one == expected) {
            return;
        }
        let logs: Vec<String> = ids.iter().map(|id| nodes.said(*id)).collect();
        assert!(Instant::now() < end, "{told:?} for {expected:?}\n{}", logs.join("\n--\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_come_back_at_other_addresses_are_recorded_there() {
    let mut nodes = Processes::found(3).await;
    nodes.start_new(4);
    let (well, said) = nodes.add(4).await;
    assert!(well, "{said}");
    nodes.ready().await;
    for id in 1..=4 {
        assert!(nodes.stop(id).await.success());
        nodes.give_ports(id);
    }
    let members = nodes.members(&[1, 2, 3]);
    for id in 1..=3 {
        nodes.configure(id, &members);
        nodes.start(id);
    }
    nodes.start_joining(4, &[1, 2, 3]);
    nodes.ready().await;
    are_recorded(&nodes, &[1, 2, 3, 4]).await;
    // The rows of the audit log follow.
    let (rest, end) = (nodes.rest(), Instant::now() + PATIENCE);
    loop {
        let audit: Value = rest.get(&nodes.url(1), "/sync/audit-logs?event_type=node_moved").await.unwrap();
        if audit["pagination"]["total"] == 4 {
            break;
        }
        assert!(Instant::now() < end, "{audit}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One that knows the members by what is recorded only.
    nodes.start_new(5);
    let (well, said) = nodes.add(5).await;
    assert!(well, "{said}\n{}", nodes.said(5));
    nodes.ready().await;
    let (well, said) = nodes.cluster(&["transfer".to_owned(), "5".to_owned()]).await;
    assert!(well && said.contains("node 5 leads"), "{said}");
    let _: Value =
        nodes.rest().post(&nodes.url(5), "/device/register", &json!({ "device_id": "admin" })).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_alone_and_comes_back_elsewhere_is_found_by_the_one_that_is_added_at_once() {
    let mut nodes = Processes::found(1).await;
    assert!(nodes.stop(1).await.success());
    nodes.give_ports(1);
    let members = nodes.members(&[1]);
    nodes.configure(1, &members);
    nodes.start(1);
    nodes.start_new(2);
    // At once, but not before it listens: the other one does not know the cluster yet.
    nodes.says(1, &nodes.gateway(1)).await;
    let (well, said) = nodes.add(2).await;
    assert!(well, "{said}\n{}", nodes.said(1));
    nodes.ready().await;
    are_recorded(&nodes, &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_moved_and_nobody_gets_a_vote_who_does_not_reach_every_voter() {
    let mut nodes = Processes::found(3).await;
    assert!(nodes.stop(3).await.success());
    // It listens elsewhere, and says still that it is where it was; the others' settings know better.
    let before = nodes.members(&[1, 2, 3]);
    nodes.give_ports(3);
    let now = nodes.members(&[1, 2, 3]);
    nodes.configure(3, &before);
    nodes.start(3);
    for id in [1, 2] {
        assert!(nodes.stop(id).await.success());
        nodes.configure(id, &now);
        nodes.start(id);
    }
    nodes.ready().await;
    nodes.start_new(4);
    let (well, said) = nodes.add(4).await;
    assert!(!well && said.contains("1002") && said.contains("node 4 does not reach node 3 at"), "{said}");
    // It is taken out again; a follower hears of it a moment later.
    let (rest, end) = (nodes.rest(), Instant::now() + PATIENCE);
    loop {
        let status = rest.status(&nodes.url(1)).await.unwrap();
        assert_eq!(status.voters, [1, 2, 3]);
        if status.nodes.len() == 3 {
            break;
        }
        assert!(Instant::now() < end, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Where nobody is, or another node, it is not moved to.
    let raft = nodes.raft(2);
    let words = |raft: &str, gateway: &str| {
        ["move", "3", "--timeout", "10", "--raft", raft, "--gateway", gateway].map(str::to_owned)
    };
    let (well, said) = nodes.cluster(&words(&raft, &nodes.gateway(3))).await;
    assert!(!well && said.contains("1002: node 3 cannot be reached at"), "{said}");
    let (well, said) = nodes.cluster(&words(&nodes.raft(3), &nodes.gateway(2))).await;
    assert!(!well && said.contains("4002: the gateway of node 2 is there"), "{said}");
    // Where it is, it is moved to, however long the machine takes.
    let mut there = words(&nodes.raft(3), &format!("http://{}", nodes.gateway(3))).to_vec();
    there.drain(2..4);
    let (well, said) = nodes.cluster(&there).await;
    assert!(well && said.contains("node 3 is at"), "{said}");
    let (well, said) = nodes.add(4).await;
    assert!(well, "{said}\n{}", nodes.said(4));
    nodes.ready().await;
    are_recorded(&nodes, &[1, 2, 3, 4]).await;
    let audit: Value = nodes.rest().get(&nodes.url(4), "/sync/audit-logs?event_type=node_moved").await.unwrap();
    assert!(audit["logs"][0]["details"].as_str().unwrap().contains("Node 3 moved to"), "{audit}");
    assert_eq!((&audit["logs"][0]["by"], &audit["pagination"]["total"]), (&json!("admin"), &json!(1)), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_reaches_nobody_is_not_handed_leadership_and_raises_no_term() {
    let mut nodes = Processes::found(3).await;
    let old = nodes.members_by_id(&[1, 2, 3]);
    for id in [1, 2] {
        assert!(nodes.stop(id).await.success());
        nodes.give_ports(id);
    }
    let new = nodes.members_by_id(&[1, 2, 3]);
    // Nodes 1 and 2 have moved and do not say so; they know of each other, and node 3 knows nothing.
    for (id, other) in [(1, 2), (2, 1)] {
        let members = format!("members = [{}, {}, {}]", old[&id], new[&other], old[&3]);
        nodes.configure(id, &members);
        nodes.start(id);
    }
    nodes.ready_but_for_reach().await;
    nodes.says(3, "reaches too few of the voters").await;
    let rest = nodes.rest();
    // What was begun before comes to its end; then nothing more happens.
    let end = Instant::now() + PATIENCE;
    let now = loop {
        let term = rest.status(&nodes.url(1)).await.unwrap().term;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (well, said) = nodes.cluster(&["transfer".to_owned(), "3".to_owned()]).await;
        assert!(!well && said.contains("node 3 cannot lead now"), "{said}");
        let now = rest.status(&nodes.url(1)).await.unwrap();
        if now.term == term && now.quorum {
            break now;
        }
        assert!(Instant::now() < end, "the term grows and grows: {}\n{}", now.term, nodes.said(3));
    };
    // With the leader gone it still votes, so the rest goes on.
    let leader = now.leader.unwrap();
    let left = 3 - leader;
    nodes.kill(leader);
    let end = Instant::now() + PATIENCE;
    loop {
        if rest.status(&nodes.url(left)).await.is_ok_and(|status| status.leader == Some(left) && status.quorum) {
            break;
        }
        assert!(Instant::now() < end, "{}\n--\n{}", nodes.said(left), nodes.said(3));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
