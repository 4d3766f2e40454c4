//! A cluster grows and shrinks while clients go on writing; machines are replaced.

use tillsync::cli::client::rest::Rest;

use crate::fleet::Fleet;
use crate::writers::{TABLE, Writers, same};

/// Acknowledged between two changes.
const SOME: u64 = 30;

async fn settings(fleet: &Fleet, writers: &Writers) {
    *writers.shared.nodes.lock() = fleet.urls();
    fleet.ready().await;
    writers.go_on(SOME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_node_to_three_to_five_and_back_to_three_under_load() {
    let mut fleet = Fleet::found(1).await;
    let writers = Writers::start(3, fleet.urls(), fleet.token());
    writers.go_on(SOME).await;
    for node in 2..=5 {
        fleet.start_new(node);
        let (well, said) = fleet.add(node).await;
        assert!(well && said.contains(&format!("node {node} was added")), "{said}\n{}", fleet.said(node));
        settings(&fleet, &writers).await;
    }
    // The leader is one of those that go.
    let leader = fleet.ready().await[0].leader.unwrap();
    let other = if leader == 5 { 4 } else { 5 };
    for node in [other, leader] {
        let (well, said) = fleet.remove(node).await;
        assert!(well && said.contains(&format!("node {node} was removed")), "{said}");
        let ended = fleet.ended(node).await;
        assert_eq!(ended.code(), Some(2), "{}", fleet.said(node));
        assert!(fleet.said(node).contains("was removed from the cluster"), "{}", fleet.said(node));
        settings(&fleet, &writers).await;
    }
    let (well, said) = fleet.cluster(&["status".to_owned()]).await;
    assert!(well && said.matches("voter").count() == 2 && said.matches("leader").count() == 2, "{said}");
    let acknowledged = writers.finish().await;
    for url in fleet.urls() {
        let mut feed = Vec::new();
        fleet.rest().each_change(&url, &[TABLE], |change| feed.push(change)).await.unwrap();
        same(&acknowledged, &feed);
    }
    let audit: serde_json::Value =
        fleet.rest().get(&fleet.urls()[0], "/sync/audit-logs?event_type=node_removed").await.unwrap();
    assert_eq!(audit["pagination"]["total"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_disk_is_replaced_under_a_new_id() {
    let mut fleet = Fleet::found(3).await;
    fleet.kill(2);
    std::fs::remove_dir_all(fleet.data(2)).unwrap();
    fleet.start(2);
    let ended = fleet.ended(2).await;
    assert_eq!(ended.code(), Some(2), "{}", fleet.said(2));
    assert!(fleet.said(2).contains("must come back under a new id"), "{}", fleet.said(2));
    // A node that is away and one that nobody has started.
    let (well, said) = fleet
        .cluster(
            &"add --id 9 --raft 127.0.0.1:9 --gateway 127.0.0.1:10".split(' ').map(str::to_owned).collect::<Vec<_>>(),
        )
        .await;
    assert!(!well && said.contains("1002: node 9 cannot be reached"), "{said}");
    let (well, said) = fleet.remove(2).await;
    assert!(well, "{said}");
    fleet.start_new(4);
    let (well, said) = fleet.add(4).await;
    assert!(well, "{said}\n{}", fleet.said(4));
    let statuses = fleet.ready().await;
    assert_eq!(statuses[0].voters, [1, 3, 4]);
    let (well, said) = fleet.cluster(&["transfer".to_owned(), "4".to_owned()]).await;
    assert!(well && said.contains("node 4 leads"), "{said}");
    let rest: Rest = fleet.rest();
    assert_eq!(rest.status(&fleet.url(4)).await.unwrap().leader, Some(4));
    // The new node knows the cluster after a restart, without a word in its settings.
    assert_eq!(fleet.stop(4).await.code(), Some(0));
    fleet.start(4);
    fleet.ready().await;
}
