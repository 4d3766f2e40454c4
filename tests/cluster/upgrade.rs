//! Programs of two releases in one cluster: an upgrade under load, the way back, and the end of it.

use std::time::{Duration, Instant};

use crate::harness::PATIENCE;
use crate::processes::Processes;
use crate::retrying_clients::{RetryingClients, TABLE, same};

/// Acknowledged between two steps.
const SOME: u64 = 50;

/// Waits until every node says that the cluster has this version.
async fn version_is(processes: &Processes, version: u32) {
    let end = Instant::now() + PATIENCE;
    for url in processes.urls() {
        loop {
            let told = processes.rest().status(&url).await.unwrap().cluster_version;
            if told == Some(version) {
                break;
            }
            assert!(Instant::now() < end, "{url} has version {told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until `cluster status` shows this: nodes ask each other once a second.
async fn shown(processes: &Processes, line: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, said) = processes.cluster(&["status".to_owned()]).await;
        if said.contains(line) {
            return;
        }
        assert!(Instant::now() < end, "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_under_load_and_back_until_its_version_is_raised() {
    let mut processes = Processes::new();
    processes.have_program_of_before(&[1, 2, 3]);
    let mut processes = processes.founded(3).await;
    let finalize = ["finalize".to_owned()];
    let writers = RetryingClients::start(2, processes.urls(), processes.token());
    writers.go_on(SOME).await;
    for (node, program_of_before) in [(1, &[2, 3][..]), (1, &[1, 2, 3]), (3, &[1, 2]), (1, &[2]), (2, &[])] {
        processes.have_program_of_before(program_of_before);
        assert_eq!(processes.stop(node).await.code(), Some(0), "{}", processes.said(node));
        processes.start(node);
        processes.ready().await;
        writers.go_on(SOME).await;
        version_is(&processes, 1).await;
        if program_of_before == [2] {
            let (done, said) = processes.cluster(&finalize).await;
            assert!(!done && said.contains("the program of node 2 knows no newer one"), "{said}");
            shown(&processes, "cluster version 1; being upgraded to 2: node 2 not yet").await;
        }
    }
    shown(&processes, "cluster version 1; every node knows 2: tillsync cluster finalize").await;
    // All nodes are asked: one that is away may come back with any program.
    processes.stop(3).await;
    let (done, said) = processes.cluster(&finalize).await;
    assert!(!done && said.contains("node 3 cannot be reached"), "{said}");
    processes.start(3);
    processes.ready().await;
    let (done, said) = processes.cluster(&finalize).await;
    assert!(done && said.contains("the cluster's version is 2"), "{said}");
    version_is(&processes, 2).await;
    let (done, said) = processes.cluster(&finalize).await;
    assert!(!done && said.contains("the cluster's version is 2 already"), "{said}");
    writers.go_on(SOME).await;

    // From now on there is no way back, and the others go on.
    processes.stop(2).await;
    processes.have_program_of_before(&[2]);
    processes.hush(2);
    processes.start(2);
    processes.says(2, "knows up to 1").await;
    writers.go_on(SOME).await;
    processes.kill(2);
    processes.have_program_of_before(&[]);
    processes.start(2);
    processes.ready().await;
    let acknowledged = writers.finish().await;
    for url in processes.urls() {
        let mut feed = Vec::new();
        processes.rest().each_change(&url, &[TABLE], |change| feed.push(change)).await.unwrap();
        same(&acknowledged, &feed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_begins_with_the_newest_version() {
    let processes = Processes::found(3).await;
    version_is(&processes, 2).await;
    // Programs that know no versions read up to format 2.
    let end = Instant::now() + PATIENCE;
    for node in 1..=3 {
        let identity = processes.data(node).join("identity");
        while !std::fs::read_to_string(&identity).unwrap().contains("format 3") {
            assert!(Instant::now() < end, "node {node}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
