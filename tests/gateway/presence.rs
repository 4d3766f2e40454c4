//! Devices that come, go, fall silent and come back.

use std::time::Duration;

use serde_json::json;
use tillsync::cluster::Cluster;
use tillsync::gateway::GatewaySettings;
use tillsync::proto::NodeLost;
use tillsync::proto::command::Intent;

use crate::harness::{Server, until};

fn quick() -> GatewaySettings {
    GatewaySettings {
        ping_every: Duration::from_millis(100),
        lost_after: Duration::from_millis(400),
        grace: Duration::from_millis(300),
        rest_active: Duration::from_millis(500),
        ..GatewaySettings::default()
    }
}

fn is_active(server: &Server, id: &str) -> bool {
    server.cluster.replica().state().device(id).is_some_and(|d| d.is_active)
}

#[tokio::test]
async fn a_device_whose_session_ends_is_offline_after_the_grace() {
    let server = Server::with(quick()).await;
    let ws = server.device("d").await;
    drop(ws);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(is_active(&server, "d"), "within its grace");
    until("d is offline", || !is_active(&server, "d")).await;
}

#[tokio::test]
async fn a_device_that_is_back_within_its_grace_was_never_offline() {
    let server = Server::with(quick()).await;
    drop(server.device("d").await);
    let mut back = server.device("d").await;
    for _ in 0..10 {
        back.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(is_active(&server, "d"));
    }
    let (_, logs) = server.rest("GET", "/sync/audit-logs?device_id=d&event_type=device_offline", None).await;
    assert_eq!(logs["pagination"]["total"], 0);
}

#[tokio::test]
async fn a_session_that_falls_silent_is_closed_and_audited_as_1004() {
    let server = Server::with(quick()).await;
    // A client that does not even read answers no ping.
    let _silent = server.device("d").await;
    until("d is offline", || !is_active(&server, "d")).await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?device_id=d&event_type=heartbeat_timeout", None).await;
    assert_eq!((&logs["logs"][0]["status"], &logs["pagination"]["total"]), (&json!("error"), &json!(1)));
}

#[tokio::test]
async fn a_client_that_only_listens_is_not_dropped() {
    let server = Server::with(quick()).await;
    let mut ws = server.device("d").await;
    // Reading answers pings: for three times as long as silence is allowed.
    let listening = tokio::time::timeout(Duration::from_millis(1_200), ws.wait("never")).await;
    assert!(listening.is_err());
    assert!(is_active(&server, "d"));
}

#[tokio::test]
async fn a_device_seen_over_rest_counts_for_a_while() {
    let server = Server::with(quick()).await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "r"}))).await;
    assert!(is_active(&server, "r"));
    until("r is offline", || !is_active(&server, "r")).await;
    // A request of its own brings it back.
    let token = server.token("r", tillsync::token::Class::SalesAssistant);
    server.rest_as(&token, "GET", "/device/roles/r", None).await;
    until("r is back", || is_active(&server, "r")).await;
}

#[tokio::test]
async fn a_device_comes_back_when_its_node_was_taken_for_lost_and_its_session_lived_on() {
    let server = Server::with(quick()).await;
    let mut ws = server.device("d").await;
    let mut left = server.device("left").await;
    left.call("device_offline", json!({"device_id": "left"}), "device_offline_ack").await;
    server.cluster.propose(Intent::NodeLost(NodeLost { node: 1 })).await.unwrap();
    assert!(!is_active(&server, "d"));
    until("d is back", || is_active(&server, "d")).await;
    assert!(!is_active(&server, "left"), "it has said goodbye");
    ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
}

#[tokio::test]
async fn a_session_that_ends_here_does_not_take_a_device_offline_that_has_moved() {
    let server = Server::with(quick()).await;
    let (old, _new) = (server.device("d").await, server.device("d").await);
    let online = server.cluster.replica().state().device("d").unwrap().online_count;
    assert_eq!(online, 2);
    drop(old);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(is_active(&server, "d"));
}

#[tokio::test]
async fn a_goodbye_on_one_of_two_sessions_is_the_devices_and_the_other_one_brings_it_back() {
    let server = Server::with(quick()).await;
    let (mut leaves, _stays) = (server.device("d").await, server.device("d").await);
    let online = || server.cluster.replica().state().device("d").unwrap().online_count;
    assert_eq!(online(), 2);
    leaves.call("device_offline", json!({"device_id": "d"}), "device_offline_ack").await;
    until("the session that stays brings it back", || is_active(&server, "d") && online() == 3).await;
    let (_, device) = server.rest("GET", "/device/roles/d", None).await;
    assert_eq!((&device["nodes"], &device["home"]), (&json!([1]), &json!(1)));
}

#[tokio::test]
async fn a_goodbye_needs_no_grace() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    ws.call("device_offline", json!({"device_id": "d", "reason": "closing"}), "device_offline_ack").await;
    assert!(!is_active(&server, "d"));
}

#[tokio::test]
async fn shutting_down_tells_sessions_and_returns() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    server.shutdown.cancel();
    assert_eq!(ws.wait("error").await["error_code"], "5003");
    ws.closed().await;
    tokio::time::timeout(Duration::from_secs(3), server.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn sessions_over_the_limit_are_refused_with_a_time_to_come_back() {
    let server = Server::with(GatewaySettings { sessions: 2, ..GatewaySettings::default() }).await;
    let _held = (server.device("a").await, server.device("b").await);
    let refused = server.try_ws(&server.admin()).await;
    let Err(tokio_tungstenite::tungstenite::Error::Http(response)) = refused else { panic!("not refused") };
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let body: serde_json::Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
    assert_eq!(body["error_code"], "1003");
}

#[tokio::test]
async fn registered_is_told_once_whichever_way_the_device_registered() {
    let server = Server::start().await;
    let mut ws = server.device("a").await;
    assert_eq!(ws.wait("registered").await["device_id"], "a");
    ws.online("a").await;
    ws.none("registered").await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "b"}))).await;
    ws.online("b").await;
    assert_eq!(ws.wait("registered").await["device_id"], "b");
    ws.online("b").await;
    ws.none("registered").await;
}
