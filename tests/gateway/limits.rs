//! Limits on what a client sends: each is met at its exact value.

use futures_util::SinkExt;
use serde_json::{Value, json};
use tillsync::limits;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, Ws};
use crate::socketio::Sio;

/// An object of exactly so many bytes.
fn object(bytes: usize) -> Value {
    let object = json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())});
    assert_eq!(object.to_string().len(), bytes);
    object
}

/// An object nested so many deep.
fn nested(depth: usize) -> Value {
    (1..depth).fold(json!({}), |inner, _| json!({"a": inner}))
}

async fn refused(ws: &mut Ws, record: i64, data: Value, field: Option<&str>) -> String {
    let update = json!({"device_id": "d", "table_name": "t", "record_id": record, "new_data": data});
    let error = ws.call("data_update", update, "error").await;
    assert_eq!((&error["error_code"], error.get("field").and_then(Value::as_str)), (&json!("2004"), field));
    error["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn record_data_has_its_limit() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    ws.update("d", "t", 1, object(limits::RECORD_DATA)).await;
    let why = refused(&mut ws, 2, object(limits::RECORD_DATA + 1), Some("new_data")).await;
    assert!(why.contains("262144 bytes"), "{why}");
    let body = |bytes| Some(json!({"device_id": "d", "new_data": object(bytes)}));
    assert_eq!(server.rest("POST", "/data/t/3", body(limits::RECORD_DATA)).await.0, 200);
    let (status, error) = server.rest("POST", "/data/t/4", body(limits::RECORD_DATA + 1)).await;
    assert_eq!((status, &error["field"]), (400, &json!("new_data")));
    assert_eq!(server.head(), 2, "nothing of what was refused is written");
}

#[tokio::test]
async fn nesting_has_its_limit() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    // The payload is one level itself.
    ws.update("d", "t", 1, nested(limits::JSON_DEPTH - 1)).await;
    let why = refused(&mut ws, 2, nested(limits::JSON_DEPTH), None).await;
    // However deep: the answer finds its request, so that a queue can give it up.
    for depth in [limits::JSON_DEPTH, 1_000] {
        let deep = format!("{}{}", "{\"a\":".repeat(depth - 1), "{}") + &"}".repeat(depth - 1);
        let frame = format!(
            "{{\"event\":\"data_update\",\"data\":{{\"device_id\":\"d\",\"table_name\":\"t\",\"record_id\":2,\"new_data\":{deep},\"request_id\":\"r{depth}\"}}}}"
        );
        ws.text(&frame).await;
        let error = ws.wait("error").await;
        assert_eq!((&error["error_code"], &error["request_id"]), (&json!("2004"), &json!(format!("r{depth}"))));
    }
    assert!(why.contains("more than 32 deep"), "{why}");
    let body = |depth| Some(json!({"device_id": "d", "new_data": nested(depth)}));
    assert_eq!(server.rest("POST", "/data/t/3", body(limits::JSON_DEPTH - 1)).await.0, 200);
    assert_eq!(server.rest("POST", "/data/t/4", body(limits::JSON_DEPTH)).await.0, 400);
    assert_eq!(server.head(), 2);
}

#[tokio::test]
async fn tables_have_their_limit() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    for i in 0..limits::TABLES as usize {
        // Each device has its share of them.
        let (maker, share) = (format!("d{}", i / limits::TABLES_OF_DEVICE), i % limits::TABLES_OF_DEVICE);
        if share == 0 {
            ws.online(&maker).await;
        }
        ws.update(&maker, &format!("t{i}"), 1, json!({})).await;
    }
    let update = json!({"device_id": "d", "table_name": "one more", "record_id": 1, "new_data": {}});
    let error = ws.call("data_update", update, "error").await;
    assert_eq!(error["error_code"], "2004");
    assert!(error["error"].as_str().unwrap().contains("256 tables"), "{error}");
    let (status, _) = server.rest("PUT", "/sync/policies/more", Some(json!({"policy": "manual"}))).await;
    assert_eq!(status, 400);
    // Those that are there go on.
    ws.update("d", "t255", 2, json!({})).await;
    assert_eq!(server.head(), u64::from(limits::TABLES) + 1);
}

#[tokio::test]
async fn frames_have_their_limit_on_every_door() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    // A frame of exactly the limit is read, and its payload is what is wrong with it.
    let heartbeat = r#"{"event":"heartbeat","data":{"device_id":"d","x":""}}"#;
    let fill = "x".repeat(limits::FRAME - heartbeat.len());
    ws.text(&heartbeat.replace(r#""x":"""#, &format!(r#""x":"{fill}""#))).await;
    ws.wait("heartbeat_ack").await;
    ws.text(&heartbeat.replace(r#""x":"""#, &format!(r#""x":"{fill}x""#))).await;
    let error = ws.wait("error").await;
    assert_eq!((&error["error_code"], &error["event"]), (&json!("2004"), &json!("heartbeat")));
    // It was read and refused; beyond what is read, the connection ends.
    ws.none("error").await;
    let _ = ws.socket.send(Message::text("x".repeat(limits::PACKET_READ + 1))).await;
    assert_eq!(ws.wait("error").await["error_code"], "2004");
    ws.closed().await;
    let mut sio = Sio::connect_as(&server, &server.admin()).await;
    let packet = |bytes: usize| format!(r#"42["heartbeat",{{"device_id":"d","x":"{}"}}]"#, "x".repeat(bytes - 40));
    let exact = packet(limits::FRAME);
    sio.send(&exact).await;
    assert_eq!((exact.len(), &sio.wait("42").await[0]), (limits::FRAME, &json!("heartbeat_ack")));
    sio.send(&packet(limits::FRAME + 1)).await;
    assert_eq!(sio.wait("42").await[1]["error_code"], "2004");
    let (status, error) = server.rest("POST", "/data/t/1", Some(json!({"x": "x".repeat(limits::FRAME)}))).await;
    assert_eq!((status, &error["error_code"]), (413, &json!("2004")));
    // The server goes on.
    assert_eq!(server.rest("GET", "/device/roles", None).await.0, 200);
}

#[tokio::test]
async fn pages_have_their_limit() {
    let server = Server::start().await;
    server.device("d").await;
    for path in ["/sync/audit-logs", "/sync/master-election-logs", "/sync/conflicts", "/sync/changes"] {
        for (limit, status) in [("0", 400), ("1", 200), ("1000", 200), ("1001", 400), ("99999999999999999999", 400)] {
            let (got, body) = server.rest("GET", &format!("{path}?limit={limit}"), None).await;
            assert_eq!(got, status, "{path} {limit}: {body}");
            if status == 400 {
                assert_eq!(body["field"], "limit");
            }
        }
    }
}

#[tokio::test]
async fn a_session_speaks_for_so_many_devices() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    for i in 0..limits::SESSION_DEVICES {
        ws.online(&format!("d{i}")).await;
    }
    let error = ws.call("device_online", json!({"device_id": "one more"}), "error").await;
    assert_eq!(error["error_code"], "4001");
}
