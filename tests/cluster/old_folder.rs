//! A folder that an earlier build made is opened, and holds what it held.

use std::fs;
use std::path::Path;
use std::process::Stdio;
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

#[tokio::test]
async fn a_folder_of_an_earlier_build_opens_and_holds_what_it_held() {
    let alone = Alone::new();
    copy(Path::new(FOLDER), &alone.data());
    let mut child = tillsync()
        .args(["serve", "--stop-with-stdin", "--config"])
        .arg(alone.config(1, ""))
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
    let changes = loop {
        match rest.get::<Value>(&node, "/sync/changes?limit=100").await {
            Ok(changes) => break changes,
            Err(error) => assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let told: Vec<(u64, i64, &str, &Value)> = changes["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            let (seq, record) = (c["seq"].as_u64().unwrap(), c["record_id"].as_i64().unwrap());
            (seq, record, c["operation"].as_str().unwrap(), &c["data"])
        })
        .collect();
    let tea = |n: i64| json!({ "name": format!("tea {n}"), "stock": n * 10 });
    let inserted: Vec<Value> = (1..=5).map(tea).collect();
    let (stock, nothing) = (json!({ "stock": 19 }), json!({}));
    let mut expected: Vec<_> = (1..=5).zip(&inserted).map(|(n, data)| (n as u64, n, "insert", data)).collect();
    expected.extend([(6, 2, "update", &stock), (7, 3, "delete", &nothing)]);
    assert_eq!(told, expected);
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
