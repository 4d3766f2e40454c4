//! Rate limits: per device, over all its doors, and each answer says when to come again.

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::json;
use tillsync::gateway::Settings;
use tillsync::gateway::rates::Rate;
use tillsync::token::Class;

use crate::harness::Server;
use crate::socketio::Sio;

async fn limited(per_second: u32, burst: u32) -> Server {
    let number = |n| NonZeroU32::new(n).unwrap();
    let rate = Some(Rate { per_second: number(per_second), burst: number(burst) });
    Server::with(Settings { rate, ..Settings::default() }).await
}

#[tokio::test]
async fn one_request_too_many_is_told_when_to_come_again() {
    let server = limited(2, 5).await;
    let mut ws = server.ws(&server.token("a", Class::SalesAssistant)).await;
    for _ in 0..5 {
        ws.call("heartbeat", json!({"device_id": "a"}), "heartbeat_ack").await;
    }
    let error = ws.call("heartbeat", json!({"device_id": "a", "request_id": "r"}), "error").await;
    assert_eq!((&error["error_code"], &error["event"]), (&json!("5003"), &json!("heartbeat")));
    assert_eq!(error["request_id"], "r");
    let wait = error["retry_after_ms"].as_u64().unwrap();
    assert!((1..=500).contains(&wait), "{error}");
    // What cannot be read counts as well.
    ws.text("{").await;
    assert_eq!(ws.wait("error").await["error_code"], "5003");
    // Its other doors are the same door.
    let token = server.token("a", Class::SalesAssistant);
    let (status, body) = server.rest_as(&token, "GET", "/device/roles", None).await;
    assert_eq!((status, &body["error_code"]), (503, &json!("5003")));
    let mut sio = Sio::connect_as(&server, &token).await;
    sio.send(r#"421["heartbeat",{"device_id":"a"}]"#).await;
    assert_eq!(sio.wait("431").await[0]["error_code"], "5003");
    // Others do not feel it.
    let other = server.token("b", Class::SalesAssistant);
    assert_eq!(server.rest_as(&other, "GET", "/device/roles", None).await.0, 200);
    // The server keeps its word.
    tokio::time::sleep(Duration::from_millis(wait + 20)).await;
    ws.call("heartbeat", json!({"device_id": "a"}), "heartbeat_ack").await;
}

#[tokio::test]
async fn without_a_rate_nothing_is_refused() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    for _ in 0..3_000 {
        ws.send("heartbeat", json!({"device_id": "d"})).await;
        ws.wait("heartbeat_ack").await;
    }
    ws.none("error").await;
}
