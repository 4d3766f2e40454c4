//! A node whose folder is damaged while it is down, where the only other one that is there was away: together they would be
//! a majority that has forgotten what was acknowledged.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};

use crate::harness::PATIENCE;
use crate::processes::Processes;
use kinds::copy;

mod folders;
mod kinds;
mod many;

const RECORDS: u64 = 30;

/// Takes a part of the engine's file away, or changes it.
fn damage(data: &Path, older: &Path, kind: &str) {
    let path = data.join("engine/db");
    let bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let db = File::options().write(true).open(&path).unwrap();
    match kind {
        "a bit" => db.write_all_at(&[bytes[end as usize / 2] ^ 4], end / 2).unwrap(),
        // So far from the end that entries are among it, and not only rows that the log brings again.
        "zeros" => db.write_all_at(&[0; 4_096], end - 60_000).unwrap(),
        "a cut" => db.set_len(end - 60_000).unwrap(),
        "an older engine" => {
            fs::remove_dir_all(data.join("engine")).unwrap();
            copy(&older.join("engine"), &data.join("engine"));
        }
        "no mark" => fs::remove_file(data.join("mark")).unwrap(),
        other => panic!("{other}"),
    }
}

async fn written(nodes: &Processes, at: u64) -> Option<u64> {
    let changes: Value = nodes.rest().get(&nodes.url(at), "/sync/changes?limit=100").await.ok()?;
    Some(changes["changes"].as_array()?.len() as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_folder_and_one_that_was_away_are_no_majority() {
    let mut nodes = Processes::found(3).await;
    let rest = nodes.rest();
    let device = json!({"device_id": "till-1"});
    let _: Value = rest.post(&nodes.url(1), "/device/register", &device).await.unwrap();
    assert!(nodes.stop(3).await.success());
    assert!(nodes.stop(2).await.success());
    let older = nodes.path("older");
    copy(&nodes.data(2), &older);
    nodes.start(2);
    let both = async {
        while rest.post::<Value>(&nodes.url(1), "/device/register", &device).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, both).await.unwrap();
    for n in 1..=RECORDS {
        let record = json!({"device_id": "till-1", "new_data": {"n": n, "text": "x".repeat(500)}});
        let _: Value = rest.post(&nodes.url(1), &format!("/data/stock/{n}"), &record).await.unwrap();
    }
    // Node 1 is lost. What was acknowledged is on node 2, and only there.
    nodes.kill(2);
    nodes.kill(1);
    let killed = nodes.path("killed");
    fs::rename(nodes.data(2), &killed).unwrap();
    nodes.start(3);
    for kind in ["zeros", "a cut", "an older engine", "no mark"] {
        copy(&killed, &nodes.data(2));
        damage(&nodes.data(2), &older, kind);
        nodes.start(2);
        let ended = nodes.ended(2).await;
        let said = nodes.said(2);
        assert_eq!(ended.code(), Some(1), "{kind}: {said}");
        let sentence = said.lines().rfind(|line| line.contains("5001")).unwrap();
        assert!(sentence.contains(&nodes.data(2).display().to_string()), "{kind}: {sentence}");
        assert!(sentence.contains("new number"), "{kind}: {sentence}");
        assert_eq!(written(&nodes, 3).await.unwrap_or(0), 0, "{kind}");
        fs::remove_dir_all(nodes.data(2)).unwrap();
    }
    // Whole, it brings what was acknowledged.
    fs::rename(&killed, nodes.data(2)).unwrap();
    nodes.start(2);
    let all = async {
        while written(&nodes, 3).await != Some(RECORDS) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(PATIENCE, all).await.is_ok(), "{}", nodes.said(2));
    // A node that is stopped in order has its files sealed: one bit is enough.
    assert!(nodes.stop(2).await.success());
    damage(&nodes.data(2), &older, "a bit");
    nodes.start(2);
    assert_eq!(nodes.ended(2).await.code(), Some(1));
    assert!(nodes.said(2).contains("not those that the node closed"), "{}", nodes.said(2));
}
