//! Who may do what, on every door.

use serde_json::json;
use tillsync::clock::{Clock, SystemClock};
use tillsync::cluster::Cluster;
use tillsync::proto::TokenRevoke;
use tillsync::proto::command::Intent;
use tillsync::token::Class;

use crate::harness::Server;

#[tokio::test]
async fn tokens_are_asked_for_everywhere_but_at_the_probes() {
    let server = Server::start().await;
    let old = server.keys.issue("d", Class::Admin, SystemClock.now_ms() - 100_000, 1).unwrap().0;
    for (token, code) in [("", "3001"), ("nonsense", "3001"), (old.as_str(), "3002")] {
        for path in ["/device/roles", "/system/health", "/sync/changes", "/data/t/1"] {
            let (status, body) = server.rest_as(token, "GET", path, None).await;
            assert_eq!((status, &body["error_code"], &body["success"]), (401, &json!(code), &json!(false)), "{path}");
        }
        assert!(server.try_ws(token).await.is_err());
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.rest_as("nonsense", "GET", path, None).await.0, 200);
    }
}

#[tokio::test]
async fn a_device_acts_for_itself_only() {
    let server = Server::start().await;
    let token = server.token("till", Class::SalesAssistant);
    let mut ws = server.ws(&token).await;
    ws.online("till").await;
    for (event, data) in [
        ("device_online", json!({"device_id": "other"})),
        ("device_online", json!({"device_id": "till", "priority": 21})),
        ("heartbeat", json!({"device_id": "other"})),
        ("data_update", json!({"device_id": "other", "table_name": "t", "record_id": 1, "new_data": {}})),
        ("data_request", json!({"device_id": "other", "table_name": "t", "record_id": 1})),
        ("role_change", json!({"device_id": "other", "new_role": "client", "reason": "r"})),
        ("master_election", json!({"reason": "manual"})),
        ("sync_complete", json!({"device_id": "other"})),
        ("sync_request", json!({"device_id": "other"})),
        ("device_shutdown", json!({"device_id": "other"})),
    ] {
        let error = ws.call(event, data, "error").await;
        assert_eq!((&error["error_code"], &error["event"]), (&json!("3003"), &json!(event)));
    }
    for (method, path, body) in [
        ("POST", "/device/register", json!({"device_id": "other"})),
        ("POST", "/device/register", json!({"device_id": "till", "priority": 50})),
        ("PUT", "/device/roles/other", json!({"role": "client", "reason": "r"})),
        ("PUT", "/sync/state/other", json!({})),
        ("PUT", "/sync/policies/t", json!({"policy": "manual"})),
        ("POST", "/system/election", json!({"reason": "manual"})),
        ("POST", "/data/t/1", json!({"device_id": "other", "new_data": {}})),
    ] {
        let (status, answer) = server.rest_as(&token, method, path, Some(body)).await;
        assert_eq!((status, &answer["error_code"]), (403, &json!("3003")), "{method} {path}");
    }
    assert_eq!(server.rest_as(&token, "POST", "/data/t/1", Some(json!({"new_data": {"a": 1}}))).await.0, 200);
}

#[tokio::test]
async fn a_revoked_token_ends_its_sessions_and_opens_no_new_ones() {
    let server = Server::start().await;
    let (token, claims) = server.keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap();
    let mut ws = server.ws(&token).await;
    ws.online("till").await;
    let mut other = server.device("other").await;
    let revoke = TokenRevoke { jti: claims.jti, exp_ms: claims.exp * 1_000, by: "admin".into() };
    server.cluster.propose(Intent::TokenRevoke(revoke)).await.unwrap();
    assert_eq!(ws.wait("error").await["error_code"], "3001");
    ws.closed().await;
    assert!(server.try_ws(&token).await.is_err());
    assert_eq!(server.rest_as(&token, "GET", "/device/roles", None).await.0, 401);
    other.none("error").await;
}
