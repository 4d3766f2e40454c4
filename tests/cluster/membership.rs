//! A cluster grows and shrinks while clients go on writing; machines are replaced.

use tillsync::client::rest::RestClient;

use crate::processes::Processes;
use crate::retrying_clients::{RetryingClients, TABLE, same};

/// Acknowledged between two changes.
const SOME: u64 = 30;

async fn settings(processes: &Processes, writers: &RetryingClients) {
    *writers.shared.nodes.lock() = processes.urls();
    processes.ready().await;
    writers.go_on(SOME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_node_to_three_to_five_and_back_to_three_under_load() {
    let mut processes = Processes::found(1).await;
    let writers = RetryingClients::start(3, processes.urls(), processes.token());
    writers.go_on(SOME).await;
    for node in 2..=5 {
        processes.start_new(node);
        let (well, said) = processes.add(node).await;
        assert!(well && said.contains(&format!("node {node} was added")), "{said}\n{}", processes.said(node));
        settings(&processes, &writers).await;
    }
    // The leader is one of those that go.
    let leader = processes.ready().await[0].leader.unwrap();
    let other = if leader == 5 { 4 } else { 5 };
    for node in [other, leader] {
        let (well, said) = processes.remove(node).await;
        assert!(well && said.contains(&format!("node {node} was removed")), "{said}");
        let ended = processes.ended(node).await;
        assert_eq!(ended.code(), Some(2), "{}", processes.said(node));
        assert!(processes.said(node).contains("was removed from the cluster"), "{}", processes.said(node));
        settings(&processes, &writers).await;
    }
    let (well, said) = processes.cluster(&["status".to_owned()]).await;
    assert!(well && said.matches("voter").count() == 2 && said.matches("leader").count() == 2, "{said}");
    let acknowledged = writers.finish().await;
    for url in processes.urls() {
        let mut feed = Vec::new();
        processes.rest().each_change(&url, &[TABLE], |change| feed.push(change)).await.unwrap();
        same(&acknowledged, &feed);
    }
    let audit: serde_json::Value =
        processes.rest().get(&processes.urls()[0], "/sync/audit-logs?event_type=node_removed").await.unwrap();
    assert_eq!(audit["pagination"]["total"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_disk_is_replaced_under_a_new_id() {
    let mut processes = Processes::found(3).await;
    processes.kill(2);
    std::fs::remove_dir_all(processes.data(2)).unwrap();
    processes.start(2);
    let ended = processes.ended(2).await;
    assert_eq!(ended.code(), Some(2), "{}", processes.said(2));
    assert!(processes.said(2).contains("must come back under a new id"), "{}", processes.said(2));
    // A node that is away and one that nobody has started.
    let (well, said) = processes
        .cluster(
            &"add --id 9 --raft 127.0.0.1:9 --gateway 127.0.0.1:10".split(' ').map(str::to_owned).collect::<Vec<_>>(),
        )
        .await;
    assert!(!well && said.contains("1002: node 9 cannot be reached"), "{said}");
    let (well, said) = processes.remove(2).await;
    assert!(well, "{said}");
    processes.start_new(4);
    let (well, said) = processes.add(4).await;
    assert!(well, "{said}\n{}", processes.said(4));
    let statuses = processes.ready().await;
    assert_eq!(statuses[0].voters, [1, 3, 4]);
    let (well, said) = processes.cluster(&["transfer".to_owned(), "4".to_owned()]).await;
    assert!(well && said.contains("node 4 leads"), "{said}");
    let rest: RestClient = processes.rest();
    assert_eq!(rest.status(&processes.url(4)).await.unwrap().leader, Some(4));
    // The new node knows the cluster after a restart, without a word in its settings.
    assert_eq!(processes.stop(4).await.code(), Some(0));
    processes.start(4);
    processes.ready().await;
}
