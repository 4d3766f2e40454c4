//! A folder that was large once does not stay so while its node runs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::processes::Processes;

/// Three turns of 30 s, and each node's start.
const PATIENCE: Duration = Duration::from_secs(300);
const MB: u64 = 1 << 20;
/// 2.5 times what is live (16 MB of changes, and 4 of log), and 64 MB.
const MOST: u64 = 114 * MB;

fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_files_are_far_larger_than_their_content_start_again_one_by_one_and_are_small() {
    let processes =
        Processes::with_settings("keep_changes = 1000\nkeep_audit_rows = 1000\nkeep_changes_mb = 16\nlog_mb = 4");
    let processes = processes.founded(3).await;
    let rest = processes.rest();
    let picture = "x".repeat(150_000);
    let engine = |node| processes.data(node).join("engine");
    let end = Instant::now() + PATIENCE;
    let mut number = 0;
    // One record, replaced again and again.
    while (1..=3).any(|node| size(&engine(node)) < 125 * MB) {
        number += 1;
        let write =
            json!({"device_id": "till", "operation": "update", "new_data": {"number": number, "picture": picture}});
        if number == 1 {
            let _: Value =
                rest.post(&processes.url(1), "/device/register", &json!({"device_id": "till"})).await.unwrap();
        }
        let _: Value = rest.post(&processes.url(1), "/data/pictures/1", &write).await.unwrap();
        assert!(Instant::now() < end, "{number} writes did not make the files large");
    }
    // Small ones, so that the large ones are not kept any more.
    for n in 0..1_200 {
        let write = json!({"device_id": "till", "operation": "update", "new_data": {"number": n}});
        let _: Value = rest.post(&processes.url(1), "/data/small/1", &write).await.unwrap();
    }
    let end = Instant::now() + PATIENCE;
    for node in 1..=3 {
        while size(&processes.data(node)) > MOST {
            let mb = size(&processes.data(node)) / MB;
            assert!(Instant::now() < end, "node {node} has {mb} MB:\n{}", processes.said(node));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // One whose files were not that large any more does not start again.
    let starts_again = |node: &u64| processes.said(*node).contains("starting again, which copies it");
    assert!((1..=3).any(|node| starts_again(&node)));
    processes.ready().await;
    for node in 1..=3 {
        let kept: Value = rest.get(&processes.url(node), "/data/pictures/1").await.unwrap();
        assert_eq!(kept["data"]["number"], number);
    }
}
