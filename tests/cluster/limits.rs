//! What is kept is bounded: old changes and audit rows go on every node, and who comes too late is told.

use std::time::Instant;

use serde_json::Value;
use tillsync::client::NodeUrl;
use tillsync::client::frame::ws_frame;
use tillsync::client::ws::WsSocket;

use crate::harness::{Dev, PATIENCE, csv, succeeds, tillsync};

const WRITTEN: u64 = 6_000;
const KEPT: u64 = 1_000;
/// A step of the compaction is due when it is full.
const AT_MOST: u64 = KEPT + 2_000;

async fn get(dev: &Dev, node: &NodeUrl, path: &str) -> Value {
    dev.rest().get(node, path).await.unwrap()
}

/// The next event of this name.
async fn wait(socket: &mut WsSocket, event: &str) -> Value {
    loop {
        let frame: Value = serde_json::from_str(&socket.next().await.unwrap()).unwrap();
        if frame["event"] == event {
            return frame["data"].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_changes_and_audit_rows_go_on_every_node() {
    let dev = Dev::start(&["--set", "keep_changes=1000", "--set", "keep_audit_rows=1000"]);
    dev.ready().await;
    csv(&dev.path("articles.csv"), WRITTEN as usize);
    tokio::task::block_in_place(|| {
        let mut load = tillsync();
        load.arg("load").arg(dev.path("articles.csv")).args(["--table", "articles", "--key", "id"]);
        succeeds(load.args(["--url", &dev.url_flag(), "--token", &dev.token()]))
    });
    let end = Instant::now() + PATIENCE;
    for node in &dev.urls() {
        // Followers apply a moment later.
        let all = loop {
            let all = get(&dev, node, "/system/export").await;
            let [head, gone] = ["head_seq", "compacted_seq"].map(|name| all[name].as_u64().unwrap());
            assert_eq!(head, WRITTEN);
            // It may go on while this looks.
            let feed = format!("/sync/changes?limit=1&cursor={}", all["cursor"].as_str().unwrap());
            let oldest = dev.rest().get::<Value>(node, &feed).await;
            if head - gone <= AT_MOST && oldest.is_ok_and(|page| page["changes"][0]["seq"] == gone + 1) {
                break all;
            }
            assert!(Instant::now() < end, "{node} keeps {} changes", head - gone);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        // The rows themselves are gone, not only counted as gone.
        let exported = get(&dev, node, "/system/export/audit?limit=1000").await["rows"].clone();
        let first_of = |event: &str| {
            let row = exported.as_array().unwrap().iter().find(|row| row["event_type"] == event);
            row.unwrap_or_else(|| panic!("{node}: no {event}"))["id"].as_u64().unwrap()
        };
        let first = first_of("data_update");
        // Who was made master first is evidence, and outlives them.
        assert!(first_of("master_elected") < first);
        assert!(all["audit_head"].as_u64().unwrap() - first < AT_MOST, "{node}: the audit log begins at {first}");
        let listed = get(&dev, node, "/sync/audit-logs?event_type=data_update").await["pagination"]["total"].clone();
        assert!(listed.as_u64().unwrap() <= AT_MOST, "{node}: {listed} rows are listed");
        let epoch = all["cursor"].as_str().unwrap().split(['.', '-']).next().unwrap();
        for late in ["/sync/changes".to_owned(), format!("/sync/changes?cursor={epoch}.7")] {
            let refused = dev.rest().get::<Value>(node, &late).await.unwrap_err().to_string();
            assert!(refused.contains("1005") && refused.contains("full sync"), "{refused}");
        }
        too_late_for_an_incremental_sync(&dev, node, epoch).await;
    }
    dev.same_digest().await;
}

/// An old cursor: a resume is refused, an incremental sync becomes a full one that has every record.
async fn too_late_for_an_incremental_sync(dev: &Dev, node: &NodeUrl, epoch: &str) {
    let cursor = format!("{epoch}.7");
    let mut socket = WsSocket::connect(node, &dev.token()).await.unwrap();
    let online = format!(r#"{{"device_id":"late","cursor":"{cursor}"}}"#);
    socket.send(ws_frame("device_online", &online)).await.unwrap();
    let refused = wait(&mut socket, "error").await;
    assert_eq!((&refused["error_code"], &refused["field"]), (&"1005".into(), &"cursor".into()), "{refused}");
    let ask = format!(r#"{{"device_id":"late","sync_type":"incremental","cursor":"{cursor}"}}"#);
    socket.send(ws_frame("sync_request", &ask)).await.unwrap();
    let mut records = 0;
    loop {
        let page = wait(&mut socket, "sync_response").await;
        assert_eq!(page["sync_type"], "full");
        records += page["changes"].as_array().unwrap().len() as u64;
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!(records, WRITTEN);
    // A cursor that is kept is enough for an incremental one.
    let done = r#"{"device_id":"late"}"#;
    socket.send(ws_frame("sync_complete", done)).await.unwrap();
    let ask = format!(r#"{{"device_id":"late","sync_type":"incremental","cursor":"{epoch}.{}"}}"#, WRITTEN - 5);
    socket.send(ws_frame("sync_request", &ask)).await.unwrap();
    assert_eq!(wait(&mut socket, "sync_response").await["sync_type"], "incremental");
}
