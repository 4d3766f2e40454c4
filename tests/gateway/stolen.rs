//! A stolen till: what is taken back ends at once, what was confirmed is told, and what is kept out stays out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::token::Class;

use crate::harness::{Server, until};
use crate::socketio::Sio;

#[tokio::test]
async fn a_revoked_device_ends_at_once_and_says_what_came_of_it() {
    let server = Server::start().await;
    let token = server.token("till", Class::SalesAssistant);
    let second = server.token("till", Class::SalesAssistant);
    let mut ws = server.ws(&token).await;
    let hello = json!({"device_id": "till", "unsent": 3});
    ws.call("device_online", hello, "device_online_ack").await;
    let sale = json!({"device_id": "till", "table_name": "t", "record_id": 1, "new_data": {}, "queue": "q", "n": 4, "after": 0});
    ws.call("data_update", sale, "acknowledged").await;
    let mut sio = Sio::connect_as(&server, &second).await;
    let url = format!("http://{}/sync/changes?cursor=1.1", server.addr);
    let stream = reqwest::Client::new().get(url).bearer_auth(&token).header("accept", "text/event-stream");
    let mut stream = stream.send().await.unwrap();
    let mut other = server.device("other").await;
    let begun = Instant::now();
    let (status, report) = server.rest("POST", "/device/till/revoke", None).await;
    assert_eq!((status, &report["registered"]), (200, &json!(true)), "{report}");
    assert_eq!((&report["confirmed"]["changes"], &report["confirmed"]["last_seq"]), (&json!(1), &json!(1)));
    assert_eq!((&report["unsent"]["count"], &report["leases"]), (&json!(3), &json!(null)));
    let queue = &report["unsent"]["queues"][0];
    assert_eq!((&queue["queue"], &queue["last"]), (&json!("q"), &json!(4)));
    assert_eq!(ws.wait("error").await["error_code"], "3001");
    ws.closed().await;
    assert_eq!(sio.wait("42").await[1]["error_code"], "3001");
    while stream.chunk().await.unwrap().is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for token in [&token, &second] {
        assert_eq!(server.rest_as(token, "GET", "/device/roles", None).await.1["error_code"], "3001");
        assert!(server.try_ws(token).await.is_err());
    }
    assert!(!server.cluster.replica().state().device("till").unwrap().is_active);
    other.none("error").await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=device_revoke", None).await;
    assert_eq!(logs["logs"][0]["device_id"], "admin");
    // One that is issued later is good.
    let now = server.cluster.replica().state().gate("till").unwrap().not_before;
    let (fresh, _) = server.keys.issue_at("till", Class::SalesAssistant, None, now + 1, now + 3_600).unwrap();
    server.ws(&fresh).await.online("till").await;
}

#[tokio::test]
async fn what_a_heartbeat_says_was_not_sent_is_in_the_report() {
    let settings = tillsync::gateway::GatewaySettings { seen_every: Duration::from_millis(50), ..Default::default() };
    let server = Server::with(settings).await;
    let mut ws = server.device("till").await;
    for count in [5, 2] {
        ws.call("heartbeat", json!({"device_id": "till", "unsent": count}), "heartbeat_ack").await;
        until("it is noted", || server.cluster.replica().state().device("till").unwrap().unsent == count).await;
    }
    let (_, report) = server.rest("POST", "/device/till/revoke", None).await;
    assert_eq!(report["unsent"]["count"], 2);
    assert!(report["unsent"]["said_at"].is_string(), "{report}");
}

#[tokio::test]
async fn a_suspended_device_is_refused_until_it_is_resumed() {
    let server = Server::start().await;
    let token = server.token("till", Class::SalesAssistant);
    let mut ws = server.ws(&token).await;
    ws.online("till").await;
    assert_eq!(server.rest("POST", "/device/till/suspend", None).await.0, 200);
    assert_eq!(ws.wait("error").await["error_code"], "3003");
    ws.closed().await;
    let (status, error) = server.rest_as(&token, "GET", "/device/roles", None).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")));
    // Nor does anyone act for it.
    let (status, error) = server.rest("POST", "/data/t/1", Some(json!({"device_id": "till", "new_data": {}}))).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")));
    let (_, why) = server.rest("GET", "/device/till/admission", None).await;
    assert_eq!((&why["suspended"], &why["set_by"]), (&json!(true), &json!("admin")));
    assert_eq!(server.rest("POST", "/device/till/resume", None).await.0, 200);
    server.ws(&token).await.online("till").await;
}

#[tokio::test]
async fn managers_keep_out_whom_they_may_and_devices_nobody() {
    let server = Server::start().await;
    for (id, class) in [("till", Class::SalesAssistant), ("chief", Class::Admin), ("m", Class::Manager)] {
        server.ws(&server.token(id, class)).await.online(id).await;
    }
    let (till, manager) = (server.token("till", Class::SalesAssistant), server.token("m", Class::Manager));
    for (token, method, path) in [
        (&till, "POST", "/device/till/revoke"),
        (&till, "POST", "/device/m/suspend"),
        (&till, "DELETE", "/device/m"),
        (&till, "GET", "/device/m/admission"),
        (&till, "GET", "/device/pairings"),
        (&manager, "POST", "/device/chief/revoke"),
        (&manager, "POST", "/device/chief/suspend"),
        // A token of an admin that never came as a device.
        (&manager, "POST", "/device/admin/revoke"),
    ] {
        let (status, error) = server.rest_as(token, method, path, None).await;
        assert_eq!((status, &error["error_code"]), (403, &json!("3003")), "{method} {path}");
    }
    assert_eq!(server.rest_as(&till, "GET", "/device/till/admission", None).await.0, 200);
    let (status, error) = server.rest("GET", "/device/till%E2%80%AE1/admission", None).await;
    assert_eq!((status, &error["error_code"], &error["field"]), (400, &json!("2004"), &json!("device_id")));
    assert_eq!(server.rest_as(&manager, "POST", "/device/till/revoke", None).await.0, 200);
}

#[tokio::test]
async fn a_forgotten_device_makes_room_and_its_old_queue_is_told() {
    let server = Server::start().await;
    let mut ws = server.device("till").await;
    let sale = |n: u64| json!({"device_id": "till", "table_name": "t", "record_id": n, "new_data": {}, "queue": "q", "n": n, "after": n - 1});
    ws.call("data_update", sale(1), "acknowledged").await;
    let (status, error) = server.rest("DELETE", "/device/till", None).await;
    assert_eq!((status, &error["error_code"]), (409, &json!("4002")), "it is online");
    ws.call("device_offline", json!({"device_id": "till"}), "device_offline_ack").await;
    assert_eq!(server.rest("DELETE", "/device/till", None).await.0, 200);
    assert_eq!(server.rest("GET", "/device/roles/till", None).await.0, 404);
    assert_eq!(server.rest("GET", "/data/t/1", None).await.1["data"], json!({}));
    let (_, history) = server.rest("GET", "/data/t/1/history", None).await;
    assert_eq!(history["history"][0]["device_id"], "till");
    assert_eq!(ws.online("till").await["device_id"], "till");
    for n in [1, 2] {
        let error = ws.call("data_update", sale(n), "error").await;
        assert_eq!((&error["error_code"], &error["field"]), (&json!("2004"), &json!("queue")));
    }
}

#[tokio::test]
async fn a_session_goes_on_with_a_renewed_token_until_the_first_one_is_taken_back() {
    let server = Server::with(tillsync::gateway::GatewaySettings {
        ping_every: Duration::from_millis(100),
        ..tillsync::gateway::GatewaySettings::default()
    })
    .await;
    let now = server.cluster.clock().now_ms();
    let (token, claims) = server.keys.issue("till", Class::SalesAssistant, now, 3).unwrap();
    let mut ws = server.ws(&token).await;
    ws.online("till").await;
    let begun = Instant::now();
    let mut renewed = Value::Null;
    // Longer than any of the tokens lives.
    while begun.elapsed() < Duration::from_secs(5) {
        renewed = ws.call("token_renew", json!({}), "token_renewed").await;
        assert_eq!((&renewed["device_id"], &renewed["class"]), (&json!("till"), &json!("sales_assistant")));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(server.rest_as(&token, "GET", "/access", None).await.1["error_code"], "3002");
    let newest = renewed["token"].as_str().unwrap().to_owned();
    let (status, over_rest) = server.rest_as(&newest, "POST", "/token/renew", None).await;
    assert_eq!((status, &over_rest["device_id"]), (200, &json!("till")));
    // A thief that renewed it has gained nothing: they all bear one name.
    let (status, _) = server.rest("POST", "/system/tokens/revoke", Some(json!({"jti": claims.jti}))).await;
    assert_eq!(status, 200);
    assert_eq!(ws.wait("error").await["error_code"], "3001");
    ws.closed().await;
    for token in [&newest, over_rest["token"].as_str().unwrap()] {
        assert_eq!(server.rest_as(token, "POST", "/token/renew", None).await.1["error_code"], "3001");
    }
    until("nobody is left", || server.cluster.replica().state().active_devices() == 0).await;
}
