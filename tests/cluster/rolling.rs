//! Nodes are restarted one after the other, as for an upgrade, while clients go on writing.

use crate::fleet::Fleet;
use crate::writers::{TABLE, Writers, same};

/// Acknowledged between two restarts.
const SOME: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request_and_loses_and_doubles_nothing() {
    let mut fleet = Fleet::found(3).await;
    let writers = Writers::start(3, fleet.urls(), fleet.token());
    writers.go_on(SOME).await;
    // The leader is among them: each is restarted, it as well.
    for node in 1..=3 {
        let term = fleet.ready().await[0].term;
        let led = fleet.ready().await[0].leader == Some(node);
        let ended = fleet.stop(node).await;
        assert_eq!(ended.code(), Some(0), "{}", fleet.said(node));
        writers.go_on(SOME).await;
        if led {
            assert!(fleet.said(node).contains("leadership was handed over"), "{}", fleet.said(node));
            let now = fleet.rest().status(&fleet.urls()[0]).await.unwrap();
            assert!(now.term > term && now.leader != Some(node));
        }
        fleet.start(node);
        fleet.ready().await;
        writers.go_on(SOME).await;
    }
    let acknowledged = writers.finish().await;
    for url in fleet.urls() {
        let mut feed = Vec::new();
        fleet.rest().each_change(&url, &[TABLE], |change| feed.push(change)).await.unwrap();
        same(&acknowledged, &feed);
    }
}
