//! Broadcasts: in order, exactly once, to those who want them; a slow reader harms nobody.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{PATIENCE, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_gets_every_change_once_and_in_order() {
    let server = Server::start().await;
    let (senders, each) = (4u64, 250u64);
    let mut listeners = Vec::new();
    for _ in 0..5 {
        let mut ws = server.ws(&server.admin()).await;
        listeners.push(tokio::spawn(async move {
            for seq in 1..=senders * each {
                assert_eq!(ws.wait("data_update").await["seq"], seq);
            }
        }));
    }
    let mut sending = Vec::new();
    for s in 0..senders {
        let mut ws = server.device(&format!("d{s}")).await;
        sending.push(tokio::spawn(async move {
            let id = format!("d{s}");
            for i in 0..each {
                let update =
                    json!({"device_id": id, "table_name": "t", "record_id": s * 1_000 + i, "new_data": {"i": i}});
                ws.send("data_update", update).await;
            }
            let mut last = 0;
            let mut seen = HashSet::new();
            for i in 0..each {
                let ack = ws.wait("acknowledged").await;
                // One sender's writes are applied in the order it sent them.
                assert_eq!(ack["record_id"], s * 1_000 + i);
                let seq = ack["seq"].as_u64().unwrap();
                assert!(seq > last && seen.insert(seq));
                last = seq;
            }
        }));
    }
    for task in sending.into_iter().chain(listeners) {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_session_gets_the_tables_that_it_subscribed_to() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    let (mut some, mut none) = (server.ws(&server.admin()).await, server.ws(&server.admin()).await);
    let subscribe = |id: &str, tables: &[&str]| json!({"device_id": id, "subscribe": tables});
    some.call("device_online", subscribe("s", &["b"]), "device_online_ack").await;
    none.call("device_online", subscribe("n", &[]), "device_online_ack").await;
    for (i, table) in ["a", "b", "c", "b"].into_iter().enumerate() {
        writer.update("w", table, i as i64, json!({})).await;
    }
    for seq in [2, 4] {
        assert_eq!(some.wait("data_update").await["seq"], seq);
    }
    some.none("data_update").await;
    none.none("data_update").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_reading_is_closed_and_the_others_go_on() {
    let server = Server::start().await;
    let mut stalled = server.device("s").await;
    let mut writer = server.device("w").await;
    let mut reader = server.ws(&server.admin()).await;
    let big = "x".repeat(100_000);
    for i in 0..200 {
        writer.update("w", "t", i, json!({"big": big})).await;
        writer.wait("data_update").await;
        assert_eq!(reader.wait("data_update").await["record_id"], i);
    }
    // 20 MB did not fit into the queue and the kernel's buffers: it ends before the last one.
    let mut got = 0;
    while let Some((event, data)) = stalled.next().await {
        if event == "error" {
            assert_eq!(data["error_code"], "1003");
        } else if event == "data_update" {
            assert_eq!(data["record_id"], got);
            got += 1;
        }
    }
    assert!(got < 200, "{got}");
    writer.none("error").await;
}

#[tokio::test]
async fn a_full_sync_comes_in_pages_that_wait_for_the_socket() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    let took = json!({"device_id": "m", "role": "master"});
    ws.call("device_online", took, "device_online_ack").await;
    let total = 1_203;
    for i in 0..total {
        let update = json!({"device_id": "d", "table_name": if i % 3 == 0 { "a" } else { "b" }, "record_id": i, "new_data": {"i": i}});
        ws.send("data_update", update).await;
        if i % 50 == 49 {
            // The test reads as it writes: its own broadcasts come back to it.
            for _ in 0..50 {
                ws.wait("acknowledged").await;
            }
        }
    }
    let gone = json!({"device_id": "d", "table_name": "b", "record_id": 1, "operation": "delete", "new_data": {}});
    ws.send("data_update", gone).await;
    let mut fresh = server.ws(&server.admin()).await;
    fresh.online("f").await;
    fresh.send("sync_request", json!({"device_id": "f"})).await;
    let (mut records, mut page) = (HashSet::new(), 0);
    let last = loop {
        let response = fresh.wait("sync_response").await;
        page += 1;
        assert_eq!((&response["page"], &response["sync_type"]), (&json!(page), &json!("full")));
        assert_eq!(response["master_device_id"], "m");
        for change in response["changes"].as_array().unwrap() {
            assert_eq!(change["operation"], "insert");
            assert!(records.insert(change["record_id"].as_i64().unwrap()));
        }
        if response["has_more"] == false {
            break response;
        }
    };
    assert_eq!((records.len(), page), (total - 1, 3));
    assert_eq!(last["total"], total - 1);
    // From there on, only what is new; a delete carries no data.
    fresh.send("sync_complete", json!({"device_id": "f", "sync_id": last["sync_id"], "changes_count": 3})).await;
    assert_eq!(fresh.wait("sync_complete_ack").await["device_id"], "f");
    let gone =
        json!({"device_id": "d", "table_name": "b", "record_id": 2, "operation": "delete", "new_data": {"x": 1}});
    ws.call("data_update", gone, "acknowledged").await;
    let since = json!({"device_id": "f", "sync_type": "incremental", "cursor": last["cursor"]});
    let response = fresh.call("sync_request", since, "sync_response").await;
    assert_eq!(response["changes"].as_array().unwrap().len(), 1);
    assert_eq!((&response["changes"][0]["operation"], &response["changes"][0]["data"]), (&json!("delete"), &json!({})));
    assert_eq!((&response["total"], &response["has_more"]), (&json!(1), &json!(false)));
}

#[tokio::test]
async fn a_second_sync_of_a_device_is_refused_while_one_is_sent() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    writer.call("device_online", json!({"device_id": "m", "role": "master"}), "device_online_ack").await;
    let big = "x".repeat(200_000);
    for i in 0..60 {
        writer.update("w", "t", i, json!({"big": big})).await;
    }
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "s", "subscribe": []}), "device_online_ack").await;
    // 12 MB: the first one cannot have ended while nobody reads.
    ws.send("sync_request", json!({"device_id": "s"})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ws.send("sync_request", json!({"device_id": "s"})).await;
    assert_eq!(ws.wait("sync_error").await["error_code"], "2001");
    loop {
        if ws.wait("sync_response").await["has_more"] == false {
            break;
        }
    }
}

#[tokio::test]
async fn without_a_master_a_sync_says_so() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    let error = ws.call("sync_request", json!({"device_id": "d"}), "sync_error").await;
    assert_eq!((&error["error_code"], &error["retry"]), (&json!("2005"), &json!("safe")));
}

#[tokio::test]
async fn a_thousand_requests_at_once_are_all_answered() {
    let server = Server::start().await;
    let ws = server.device("d").await;
    let (mut write, mut read) = ws.socket.split();
    let sending = tokio::spawn(async move {
        for i in 0..1_000 {
            let update = json!({"device_id": "d", "table_name": "t", "record_id": i, "new_data": {}});
            let frame = json!({"event": "data_update", "data": update}).to_string();
            write.feed(Message::text(frame)).await.unwrap();
        }
        write.flush().await.unwrap();
        write
    });
    let mut acks = 0;
    while acks < 1_000 {
        let message = tokio::time::timeout(PATIENCE, read.next()).await.unwrap().unwrap().unwrap();
        acks += usize::from(message.to_text().unwrap().contains("\"acknowledged\""));
    }
    drop(sending.await.unwrap());
}
