//! Nodes are restarted one after the other, as for an upgrade, while clients go on writing.

use crate::processes::Processes;
use crate::retrying_clients::{RetryingClients, TABLE, same};

/// Acknowledged between two restarts.
const SOME: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request_and_loses_and_doubles_nothing() {
    let mut processes = Processes::found(3).await;
    let writers = RetryingClients::start(3, processes.urls(), processes.token());
    writers.go_on(SOME).await;
    // The leader is among them: each is restarted, it as well.
    for node in 1..=3 {
        let term = processes.ready().await[0].term;
        let led = processes.ready().await[0].leader == Some(node);
        let ended = processes.stop(node).await;
        assert_eq!(ended.code(), Some(0), "{}", processes.said(node));
        writers.go_on(SOME).await;
        if led {
            assert!(processes.said(node).contains("leadership was handed over"), "{}", processes.said(node));
            let now = processes.rest().status(&processes.urls()[0]).await.unwrap();
            assert!(now.term > term && now.leader != Some(node));
        }
        processes.start(node);
        processes.ready().await;
        writers.go_on(SOME).await;
    }
    let acknowledged = writers.finish().await;
    for node in 1..=3 {
        let said = processes.said(node);
        assert!(!said.contains("ERROR"), "nothing failed: {said}");
    }
    for url in processes.urls() {
        let mut feed = Vec::new();
        processes.rest().each_change(&url, &[TABLE], |change| feed.push(change)).await.unwrap();
        same(&acknowledged, &feed);
    }
}
