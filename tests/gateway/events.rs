//! Events over `/ws`: answers, bad input, conflicts.

use futures_util::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::harness::Server;

#[tokio::test]
async fn a_write_is_acknowledged_with_what_it_became() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    let ack = ws
        .call(
            "data_update",
            json!({"device_id": "d", "table_name": "t", "record_id": 5.0, "new_data": {"a": 1}, "request_id": "r"}),
            "acknowledged",
        )
        .await;
    assert_eq!(
        (&ack["event"], &ack["device_id"], &ack["table_name"]),
        (&json!("data_update"), &json!("d"), &json!("t"))
    );
    assert_eq!((&ack["record_id"], &ack["seq"], &ack["request_id"]), (&json!(5), &json!(1), &json!("r")));
    let broadcast = ws.wait("data_update").await;
    assert_eq!((&broadcast["seq"], &broadcast["cursor"]), (&json!(1), &ack["cursor"]));
    // A retry is answered as the first was, and nothing is written.
    let again = ws
        .call(
            "data_update",
            json!({"device_id": "d", "table_name": "t", "record_id": 5, "new_data": {"a": 1}, "request_id": "r"}),
            "acknowledged",
        )
        .await;
    assert_eq!((&again["seq"], &again["repeated"]), (&json!(1), &json!(true)));
    assert_eq!(server.head(), 1);
}

#[tokio::test]
async fn a_session_reads_its_own_writes_without_waiting_for_acks() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    for i in 0..200 {
        ws.send("data_update", json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {"i": i}}))
            .await;
        ws.send("data_request", json!({"device_id": "d", "table_name": "t", "record_id": 1})).await;
    }
    for i in 0..200 {
        assert!(ws.wait("data_response").await["data"]["i"].as_i64().unwrap() >= i);
    }
    let absent = json!({"device_id": "d", "table_name": "t", "record_id": 2});
    assert_eq!(ws.call("data_request", absent, "data_response").await["data"], json!(null));
}

#[tokio::test]
async fn what_is_wrong_is_answered_and_the_connection_stays() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    for (text, says) in [
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        ("{\"data\": {}}", "event is required"),
        ("{\"event\": \"make_tea\", \"data\": {}}", "unknown event"),
        ("{\"event\": \"heartbeat\"}", "must be a JSON object"),
        ("{\"event\": \"heartbeat\", \"data\": {\"device_id\": 5}}", "device_id must be a string"),
    ] {
        ws.text(text).await;
        let error = ws.wait("error").await;
        assert!(error["error"].as_str().unwrap().contains(says), "{text}: {error}");
        assert_eq!(error["error_code"], "2004");
    }
    ws.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    ws.wait("error").await;
    let unknown = json!({"device_id": "nobody", "table_name": "t", "record_id": 1, "new_data": {}});
    assert_eq!(ws.call("data_update", unknown, "error").await["error_code"], "3004");
    ws.send("sync_request", json!({"device_id": "d", "sync_type": "some"})).await;
    let error = ws.wait("sync_error").await;
    assert_eq!((&error["error_code"], &error["field"]), (&json!("2001"), &json!("sync_type")));
    assert_eq!(server.head(), 0);
    ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
}

#[tokio::test]
async fn a_frame_over_the_limit_is_named_and_one_beyond_what_is_read_ends_the_connection() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    let huge = "x".repeat(tillsync::limits::FRAME + 1);
    ws.text(&huge).await;
    let error = ws.wait("error").await;
    assert!(error["error"].as_str().unwrap().contains("1048576 bytes"), "{error}");
    ws.none("error").await;
    // It may be cut off before it has sent all of it.
    let _ = ws.socket.send(Message::text("x".repeat(tillsync::limits::PACKET_READ + 1))).await;
    let error = ws.wait("error").await;
    assert!(error["error"].as_str().unwrap().contains("1048576 bytes"), "{error}");
    ws.closed().await;
}

#[tokio::test]
async fn a_text_frame_that_is_not_utf8_is_named_and_ends_the_connection() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    let frame = Frame::message(&b"{\"event\":\"\xff\"}"[..], OpCode::Data(Data::Text), true);
    ws.socket.send(Message::Frame(frame)).await.unwrap();
    let error = ws.wait("error").await;
    assert_eq!((&error["error"], &error["error_code"]), (&json!("the frame is not UTF-8"), &json!("2004")));
    ws.closed().await;
}

#[tokio::test]
async fn conflicts_wait_for_a_decision_under_the_manual_policy() {
    let server = Server::start().await;
    let (mut ws, mut other) = (server.device("d").await, server.device("e").await);
    assert_eq!(server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await.0, 200);
    ws.update("d", "t", 1, json!({"v": 1})).await;
    let stale = json!({"device_id": "e", "table_name": "t", "record_id": 1, "new_data": {"v": 2}, "base_version": 0});
    let error = other.call("data_update", stale, "error").await;
    assert_eq!(error["error_code"], "2002");
    let conflict = other.wait("sync_conflict").await;
    assert_eq!(conflict["conflict_id"], error["conflict_id"]);
    assert_eq!(conflict["conflict_data"]["local_version"], json!({"v": 1}));
    ws.none("sync_conflict").await;
    let (_, inbox) = server.rest("GET", "/sync/conflicts", None).await;
    assert_eq!(inbox["pagination"]["total"], 1);
    let decision = json!({"table_name": "t", "record_id": 1, "resolution_method": "manual", "resolved_data": {"v": 3}});
    let ack = other.call("sync_conflict_resolved", decision, "acknowledged").await;
    assert_eq!(ack["event"], "sync_conflict_resolved");
    let resolved = ws.wait("sync_conflict_resolved").await;
    assert_eq!((&resolved["resolved_data"], &resolved["resolution_method"]), (&json!({"v": 3}), &json!("manual")));
    let (_, inbox) = server.rest("GET", "/sync/conflicts", None).await;
    assert_eq!(inbox["conflicts"], json!([]));
}

#[tokio::test]
async fn a_conflict_that_lost_is_acknowledged_as_one_and_everyone_is_told() {
    let server = Server::start().await;
    let (mut ws, mut other) = (server.device("d").await, server.device("e").await);
    ws.update("d", "t", 1, json!({"v": "new"})).await;
    let stale = json!({"device_id": "e", "table_name": "t", "record_id": 1, "new_data": {"v": "old"},
                       "timestamp": "2020-01-01T00:00:00Z"});
    let ack = other.call("data_update", stale, "acknowledged").await;
    assert_eq!((&ack["conflict"], ack.get("seq")), (&json!(true), None));
    assert_eq!(other.wait("sync_conflict").await["conflict_type"], "timestamp");
    for session in [&mut ws, &mut other] {
        assert_eq!(session.wait("sync_conflict_resolved").await["resolved_data"], json!({"v": "new"}));
    }
}
