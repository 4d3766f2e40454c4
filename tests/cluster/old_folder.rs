//! A folder that an earlier build made is opened, and a backup of one restored; both hold what they held.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillsync::client::NodeUrl;
use tillsync::client::rest::RestClient;

use crate::harness::{succeeds, tillsync};
use crate::single_node::{Alone, wait};

/// One node, stopped in order, by the build of 28 November 2026: five products, one of them changed and one deleted, and
/// an insert that met another one.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/folder-of-november");

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A node that serves, until its standard input ends; and somebody who asks it.
async fn serve(alone: &Alone, id: u64, more: &[&str]) -> (Child, RestClient, NodeUrl) {
    let mut child = tillsync()
        .args(["serve", "--stop-with-stdin", "--config"])
        .arg(alone.config(id, ""))
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let issue = ["token", "issue", "--class", "admin", "--sub", "office", "--key"];
    let token = succeeds(tillsync().args(issue).arg(alone.path("token.key")));
    let (rest, node) = (
        RestClient::new(token.split_whitespace().next().unwrap()).unwrap(),
        NodeUrl::plain(format!("127.0.0.1:{}", alone.ports[0])),
    );
    let end = Instant::now() + Duration::from_secs(30);
    while let Err(error) = rest.get::<Value>(&node, "/sync/changes?limit=100").await {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (child, rest, node)
}

fn changes_of(changes: &Value) -> Vec<(u64, i64, &str, &Value)> {
    let all = changes["changes"].as_array().unwrap().iter();
    all.map(|c| {
        let (seq, record) = (c["seq"].as_u64().unwrap(), c["record_id"].as_i64().unwrap());
        (seq, record, c["operation"].as_str().unwrap(), &c["data"])
    })
    .collect()
}

#[tokio::test]
async fn a_folder_of_an_earlier_build_opens_and_holds_what_it_held() {
    let alone = Alone::new();
    copy(Path::new(FOLDER), &alone.data());
    let (mut child, rest, node) = serve(&alone, 1, &[]).await;
    let changes: Value = rest.get(&node, "/sync/changes?limit=100").await.unwrap();
    let tea = |n: i64| json!({ "name": format!("tea {n}"), "stock": n * 10 });
    let inserted: Vec<Value> = (1..=5).map(tea).collect();
    let (stock, nothing) = (json!({ "stock": 19 }), json!({}));
    let mut expected: Vec<_> = (1..=5).zip(&inserted).map(|(n, data)| (n as u64, n, "insert", data)).collect();
    expected.extend([(6, 2, "update", &stock), (7, 3, "delete", &nothing)]);
    assert_eq!(changes_of(&changes), expected);
    // The cursor that the earlier build would give is one still; this build's says more of the change.
    let cursor = changes["cursor"].as_str().unwrap();
    assert!(cursor.starts_with("31464970b5c42937-") && cursor.ends_with(".7"), "{cursor}");
    let after: Value = rest.get(&node, "/sync/changes?cursor=31464970b5c42937.7").await.unwrap();
    assert_eq!(after["changes"], json!([]));
    let conflicts: Value = rest.get(&node, "/sync/conflicts").await.unwrap();
    assert_eq!(conflicts["conflicts"][0]["conflict_data"]["remote_version"], json!({ "name": "coffee" }));
    let devices: Value = rest.get(&node, "/device/roles").await.unwrap();
    assert!(devices["devices"].as_array().unwrap().iter().any(|d| d["device_id"] == "till-1"), "{devices}");
    // It goes on where it stopped.
    let write = json!({ "device_id": "till-1", "operation": "update", "new_data": { "stock": 18 } });
    let written: Value = rest.post(&node, "/data/products/2", &write).await.unwrap();
    assert_eq!(written["seq"], 8);
    drop(child.stdin.take());
    assert!(wait(child).success());
}

/// Of a cluster of one, by the last build without cluster versions (30 November 2026): the same products; the fourth one changed
/// after the backup was taken.
const BACKUP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/backup-of-november");
const BACKUP_FILE: &str = "tillsync-store-17-12d21676-20261130T202145Z-13.backup";

#[tokio::test]
async fn a_backup_of_an_earlier_build_is_proved_and_restored_with_what_came_after() {
    let alone = Alone::new();
    let folder = alone.path("backups");
    copy(Path::new(BACKUP), &folder);
    let file = folder.join(BACKUP_FILE);
    let said = succeeds(tillsync().args(["backup", "verify"]).arg(&file));
    assert!(said.contains("it can be restored"), "{said}");
    let named = ["--set", "cluster_name=store-17"];
    succeeds(tillsync().arg("restore").arg(&file).arg("--config").arg(alone.config(7, "")).args(named));
    let (mut child, rest, node) = serve(&alone, 7, &named).await;
    let changes: Value = rest.get(&node, "/sync/changes?limit=100").await.unwrap();
    let tea = |n: i64| json!({ "name": format!("tea {n}"), "stock": n * 10 });
    let inserted: Vec<Value> = (1..=5).map(tea).collect();
    let (two, four, nothing) = (json!({ "stock": 19 }), json!({ "stock": 39 }), json!({}));
    let mut expected: Vec<_> = (1..=5).zip(&inserted).map(|(n, data)| (n as u64, n, "insert", data)).collect();
    expected.extend([(6, 2, "update", &two), (7, 3, "delete", &nothing), (8, 4, "update", &four)]);
    assert_eq!(changes_of(&changes), expected);
    // It is a new cluster, and its node has run no other program.
    let end = Instant::now() + Duration::from_secs(30);
    while rest.status(&node).await.unwrap().cluster_version != Some(2) {
        assert!(Instant::now() < end, "the version is not raised");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(child.stdin.take());
    assert!(wait(child).success());
}
