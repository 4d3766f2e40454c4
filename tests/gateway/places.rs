//! A time is a place in the log: a client that knows only the document, and so only times, misses nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::ids::UnixMs;
use tokio_tungstenite::tungstenite::Message;

use futures_util::StreamExt;

use crate::harness::{PATIENCE, Server, Ws, place_of};
use crate::order::fill;

async fn shop() -> (Server, Ws, Ws) {
    let server = Server::start().await;
    let mut writer = server.ws(&server.admin()).await;
    let master = json!({"device_id": "m", "role": "master", "subscribe": []});
    writer.call("device_online", master, "device_online_ack").await;
    writer.call("device_online", json!({"device_id": "w"}), "device_online_ack").await;
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "subscribe": []}), "device_online_ack").await;
    (server, writer, ws)
}

/// All pages of a sync: its changes, and the last page.
async fn sync(ws: &mut Ws, ask: Value) -> (Vec<Value>, Value) {
    ws.send("sync_request", ask).await;
    let mut changes = Vec::new();
    loop {
        let page = ws.wait("sync_response").await;
        changes.extend(page["changes"].as_array().unwrap().iter().cloned());
        if page["has_more"] == false {
            return (changes, page);
        }
    }
}

async fn since(ws: &mut Ws, time: &Value) -> (BTreeSet<u64>, String) {
    let ask = json!({"device_id": "d", "sync_type": "incremental", "last_sync_timestamp": time});
    let (changes, page) = sync(ws, ask).await;
    let seqs = changes.iter().map(|c| c["seq"].as_u64().unwrap()).collect();
    (seqs, page["sync_type"].as_str().unwrap().to_owned())
}

async fn complete(ws: &mut Ws, page: &Value) -> Value {
    let done =
        json!({"device_id": "d", "sync_id": page["sync_id"], "sync_timestamp": page["timestamp"], "changes_count": 0});
    ws.call("sync_complete", done, "sync_complete_ack").await
}

async fn state(server: &Server) -> Value {
    server.rest("GET", "/sync/state/d", None).await.1
}

#[tokio::test]
async fn an_incremental_sync_since_any_time_given_out_misses_nothing() {
    let (server, mut writer, mut ws) = shop().await;
    // Every time that a client was given, and the newest change that it then had.
    let mut given: Vec<(Value, u64, &str)> = Vec::new();
    let mut random = 7u64;
    for step in 0..60 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match random >> 61 {
            0..=4 => {
                // Sold offline yesterday, by a good clock, or by one that is ahead.
                let shift = [-86_400_000i64, 0, 900, 4_000, 3_600_000][(random >> 40) as usize % 5];
                let at = tillsync::model::time::iso(UnixMs((SystemClock.now_ms().get() as i64 + shift) as u64));
                let (table, record) = (["t", "u"][(random >> 50) as usize % 2], (random >> 30) % 5);
                let update = json!({"device_id": "w", "table_name": table, "record_id": record, "new_data": {"step": step},
                                    "timestamp": at, "base_version": null});
                let ack = writer.call("data_update", update, "acknowledged").await;
                if let Some(seq) = ack["seq"].as_u64() {
                    given.push((ack["timestamp"].clone(), seq, "acknowledged"));
                    let (_, feed) = server.rest("GET", &format!("/sync/changes?cursor=1.{}", seq - 1), None).await;
                    given.push((feed["changes"][0]["timestamp"].clone(), seq, "the change's own"));
                }
            }
            kind => {
                let kind = if kind == 5 { "full" } else { "incremental" };
                let (_, page) = sync(&mut ws, json!({"device_id": "d", "sync_type": kind})).await;
                let head = place_of(&page["cursor"]);
                given.push((page["timestamp"].clone(), head, "sync_response"));
                // Something comes between the page and its completion.
                writer.update("w", "t", 100 + step, json!({})).await;
                given.push((complete(&mut ws, &page).await["timestamp"].clone(), head, "sync_complete_ack"));
                given.push((state(&server).await["last_sync_timestamp"].clone(), head, "last_sync_timestamp"));
            }
        }
    }
    assert!(given.len() > 60);
    let head = server.head();
    // The newest change of each record is what must come.
    let (_, feed) = server.rest("GET", "/sync/changes?limit=1000", None).await;
    let changes = feed["changes"].as_array().unwrap();
    assert_eq!(changes.len() as u64, head);
    for (time, had, what) in given {
        let (got, kind) = since(&mut ws, &time).await;
        let missing: Vec<u64> = (had + 1..=head)
            .filter(|seq| {
                let change = &changes[*seq as usize - 1];
                let newer = changes[*seq as usize..]
                    .iter()
                    .any(|c| (&c["table_name"], &c["record_id"]) == (&change["table_name"], &change["record_id"]));
                !newer && !got.contains(seq)
            })
            .collect();
        assert_eq!(missing, [0u64; 0], "{kind} since {time} of {what}, which had {had} of {head}");
    }
}

#[tokio::test]
async fn a_completed_sync_has_the_time_of_its_last_page_and_of_nothing_later() {
    let (server, mut writer, mut ws) = shop().await;
    writer.update("w", "t", 1, json!({})).await;
    let (_, page) = sync(&mut ws, json!({"device_id": "d"})).await;
    let between = writer.update("w", "t", 2, json!({})).await["seq"].as_u64().unwrap();
    let ack = complete(&mut ws, &page).await;
    let state = state(&server).await;
    assert_eq!((&ack["timestamp"], &state["last_sync_timestamp"]), (&page["timestamp"], &page["timestamp"]));
    assert_eq!((place_of(&state["cursor"]), &state["pending_changes_count"]), (1, &json!(1)));
    assert!(since(&mut ws, &state["last_sync_timestamp"]).await.0.contains(&between));
}

#[tokio::test]
async fn a_time_that_has_not_come_is_never_nothing_new() {
    let (_server, mut writer, mut ws) = shop().await;
    writer.update("w", "t", 1, json!({})).await;
    let future = json!("2038-01-19T03:14:08Z");
    let (got, kind) = since(&mut ws, &future).await;
    assert_eq!((got, kind.as_str()), (BTreeSet::from([1]), "full"), "it never completed a sync");
    let (_, page) = sync(&mut ws, json!({"device_id": "d"})).await;
    complete(&mut ws, &page).await;
    writer.update("w", "t", 2, json!({})).await;
    let (got, kind) = since(&mut ws, &future).await;
    assert_eq!((got, kind.as_str()), (BTreeSet::from([2]), "incremental"), "from its recorded cursor");
}

#[tokio::test]
async fn a_sync_is_complete_only_after_its_last_page_and_owed_until_then() {
    let (server, mut writer, mut ws) = shop().await;
    fill(&mut writer).await;
    ws.send("sync_request", json!({"device_id": "d"})).await;
    let first = ws.wait("sync_response").await;
    assert_eq!(first["has_more"], true);
    // Both while nobody reads on: the last page cannot have been sent.
    for sync_id in [first["sync_id"].clone(), json!("")] {
        let time = &first["timestamp"];
        let early = json!({"device_id": "d", "sync_id": sync_id, "sync_timestamp": time, "changes_count": 4});
        ws.send("sync_complete", early).await;
    }
    for _ in 0..2 {
        let error = ws.wait("error").await;
        assert_eq!((&error["error_code"], &error["event"]), (&json!("2001"), &json!("sync_complete")));
    }
    let before = state(&server).await;
    assert_eq!((&before["sync_status"], &before["cursor"]), (&json!("syncing"), &json!("1.0")));
    // The link breaks; it comes back with the time that it had.
    drop(ws);
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "subscribe": []}), "device_online_ack").await;
    for ask in [
        json!({"device_id": "d", "sync_type": "incremental", "last_sync_timestamp": first["timestamp"]}),
        json!({"device_id": "d", "sync_type": "incremental", "cursor": first["cursor"]}),
        json!({"device_id": "d", "sync_type": "incremental"}),
    ] {
        let (changes, page) = sync(&mut ws, ask).await;
        assert_eq!((page["sync_type"].as_str(), changes.len()), (Some("full"), 60));
        assert_eq!(place_of(&page["cursor"]), 60);
    }
    let (_, page) = sync(&mut ws, json!({"device_id": "d"})).await;
    complete(&mut ws, &page).await;
    let (changes, page) = sync(&mut ws, json!({"device_id": "d", "sync_type": "incremental"})).await;
    assert_eq!((page["sync_type"].as_str(), changes.len()), (Some("incremental"), 0));
}

/// A client that knows only the document answers the first page that it reads; the others are on their way by then.
#[tokio::test]
async fn a_sync_that_is_called_complete_with_an_earlier_pages_time_is_owed() {
    let (server, mut writer, mut ws) = shop().await;
    for i in 0..1_200 {
        let update = json!({"device_id": "w", "table_name": "t", "record_id": i, "new_data": {}});
        writer.send("data_update", update).await;
    }
    for _ in 0..1_200 {
        writer.wait("acknowledged").await;
    }
    let (_, last) = sync(&mut ws, json!({"device_id": "d"})).await;
    assert_eq!(last["page"], 3);
    // A device's first sync: what comes before the last page stands for nothing yet.
    let early = json!({"device_id": "d", "sync_id": last["sync_id"], "sync_timestamp": "1970-01-01T00:00:00.000Z",
        "changes_count": 500});
    let error = ws.call("sync_complete", early, "error").await;
    assert_eq!((&error["error_code"], &error["event"]), (&json!("2001"), &json!("sync_complete")));
    let before = state(&server).await;
    assert_eq!((&before["sync_status"], &before["cursor"]), (&json!("syncing"), &json!("1.0")));
    complete(&mut ws, &last).await;
    assert_eq!(place_of(&state(&server).await["cursor"]), 1_200);
}

#[tokio::test]
async fn completing_what_nobody_sent_moves_nothing() {
    let (server, mut writer, mut ws) = shop().await;
    for i in 0..2 {
        writer.update("w", "t", i, json!({})).await;
    }
    let ack = complete(&mut ws, &json!({"sync_id": "of another day", "timestamp": "2026-11-28T12:00:00Z"})).await;
    let state = state(&server).await;
    assert_eq!((&state["sync_status"], &state["cursor"]), (&json!("synced"), &json!("1.0")));
    assert_eq!((&state["pending_changes_count"], &state["last_sync_timestamp"]), (&json!(2), &ack["timestamp"]));
    assert_eq!(since(&mut ws, &ack["timestamp"]).await.0, BTreeSet::from([1, 2]));
}

#[tokio::test]
async fn a_sync_of_some_tables_does_not_speak_of_the_others() {
    let (_server, mut writer, mut ws) = shop().await;
    for (i, table) in ["a", "b"].into_iter().enumerate() {
        writer.update("w", table, i as i64, json!({})).await;
    }
    let (_, page) = sync(&mut ws, json!({"device_id": "d", "requested_tables": ["a"]})).await;
    complete(&mut ws, &page).await;
    let incremental = |tables: Value| json!({"device_id": "d", "sync_type": "incremental", "requested_tables": tables});
    let (changes, page) = sync(&mut ws, incremental(json!(["a"]))).await;
    assert_eq!((changes.len(), page["sync_type"].as_str()), (0, Some("incremental")));
    for tables in [json!(["b"]), json!(null)] {
        let (changes, _) = sync(&mut ws, incremental(tables)).await;
        assert!(changes.iter().any(|c| c["table_name"] == "b"), "{changes:?}");
    }
}

#[tokio::test]
async fn no_page_is_larger_than_clients_take() {
    let (server, mut writer, mut ws) = shop().await;
    // Data as large as it may be, full of escapes; and many rows whose names are longest when they are escaped.
    let (device, table) = ("\"".repeat(200), "\\".repeat(100));
    writer.online(&device).await;
    let escapes = "\n".repeat((256 << 10) / 2 - 20);
    for i in 0..9 {
        writer.update("w", "t", i, json!({"text": escapes})).await;
    }
    let text = "x".repeat(1_400);
    for i in 0..700 {
        let update = json!({"device_id": device, "table_name": table, "record_id": i, "new_data": {"text": text}});
        writer.send("data_update", update).await;
    }
    for _ in 0..700 {
        writer.wait("acknowledged").await;
    }
    let mut largest = 0;
    for kind in ["full", "incremental"] {
        ws.send("sync_request", json!({"device_id": "d", "sync_type": kind, "cursor": "1.0"})).await;
        let mut rows = 0;
        loop {
            let message = tokio::time::timeout(PATIENCE, ws.socket.next()).await.unwrap().unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            let page: Value = serde_json::from_str(&text).unwrap();
            if page["event"] != "sync_response" {
                continue;
            }
            largest = largest.max(text.len());
            rows += page["data"]["changes"].as_array().unwrap().len();
            if page["data"]["has_more"] == false {
                break;
            }
        }
        assert_eq!(rows, 709, "{kind}");
    }
    let (mut cursor, mut rows) = ("1.0".to_owned(), 0);
    loop {
        let (_, page) = server.rest("GET", &format!("/sync/changes?limit=1000&cursor={cursor}"), None).await;
        largest = largest.max(page.to_string().len());
        rows += page["changes"].as_array().unwrap().len();
        if page["has_more"] == false {
            break;
        }
        page["cursor"].as_str().unwrap().clone_into(&mut cursor);
    }
    assert_eq!(rows, 709);
    assert!((700_000..=1_000_000).contains(&largest), "{largest}");
}
