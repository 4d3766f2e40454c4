//! Who may do what, on every door.

use serde_json::json;
use tillsync::clock::{Clock, SystemClock};
use tillsync::cluster::Cluster;
use tillsync::gateway::GatewaySettings;
use tillsync::limits;
use tillsync::model::tables::{RowKey, get_row};
use tillsync::proto::command::Intent;
use tillsync::proto::{Revoked, TokenRevoke};
use tillsync::token::{Class, KeyRing};

use crate::harness::Server;
use crate::socketio::Sio;

#[tokio::test]
async fn tokens_are_asked_for_everywhere_but_at_the_probes() {
    let server = Server::start().await;
    let old = server.keys.issue("d", Class::Admin, SystemClock.now_ms().minus_ms(100_000), 1).unwrap().0;
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

#[tokio::test]
async fn an_admin_revokes_a_token_and_what_lives_on_it_ends() {
    let server = Server::start().await;
    let (token, claims) = server.keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap();
    let mut ws = server.ws(&token).await;
    let mut sio = Sio::connect_as(&server, &token).await;
    let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr)).bearer_auth(&token);
    let mut stream = request.header("accept", "text/event-stream").send().await.unwrap();
    let manager = server.token("m", Class::Manager);
    let body = || Some(json!({"token": token}));
    let (status, error) = server.rest_as(&manager, "POST", "/system/tokens/revoke", body()).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")));
    for bad in [json!({}), json!({"token": "nonsense"}), json!({"jti": ""}), json!({"jti": "j", "expires": 7})] {
        assert_eq!(server.rest("POST", "/system/tokens/revoke", Some(bad)).await.0, 400);
    }
    let begun = std::time::Instant::now();
    let (status, done) = server.rest("POST", "/system/tokens/revoke", body()).await;
    assert_eq!((status, &done["jti"]), (200, &json!(claims.jti)));
    assert_eq!(ws.wait("error").await["error_code"], "3001");
    ws.closed().await;
    assert_eq!(sio.wait("42").await[1]["error_code"], "3001");
    while stream.chunk().await.unwrap().is_some() {}
    assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
    let (status, error) = server.rest_as(&token, "GET", "/device/roles", None).await;
    assert_eq!((status, &error["error_code"]), (401, &json!("3001")));
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=token_revoke", None).await;
    assert_eq!((&logs["pagination"]["total"], &logs["logs"][0]["device_id"]), (&json!(1), &json!("admin")));
    // By its id, for a token that nobody has at hand.
    let (token, claims) = server.keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap();
    assert_eq!(server.rest("POST", "/system/tokens/revoke", Some(json!({"jti": claims.jti}))).await.0, 200);
    // Nobody said when it ends: it is remembered for the longest life of a token, not for ever.
    let key = RowKey::Revoked(claims.jti.clone());
    let row = server.cluster.replica().read_rows(move |t| get_row::<Revoked>(t, &key)).await.unwrap().unwrap();
    let last = SystemClock.now_ms().get() + limits::TOKEN_SECONDS * 1_000;
    assert!((last - 60_000..=last).contains(&row.exp_ms), "{row:?}");
    assert_eq!(server.rest_as(&token, "GET", "/device/roles", None).await.0, 401);
}

#[tokio::test]
async fn two_keys_are_valid_at_once_and_a_key_that_goes_takes_its_sessions_along() {
    let times = GatewaySettings { ping_every: std::time::Duration::from_millis(100), ..GatewaySettings::default() };
    let server = Server::with(times).await;
    let (old, new) = ("5a".repeat(32), "a5".repeat(32));
    let before = server.admin();
    let mut ws = server.ws(&before).await;
    server.keys.replace(&KeyRing::parse(&format!("{new}\n{old}")).unwrap());
    let after = server.admin();
    for token in [&before, &after] {
        assert_eq!(server.rest_as(token, "GET", "/device/roles", None).await.0, 200);
    }
    ws.online("d").await;
    let mut later = server.ws(&after).await;
    server.keys.replace(&KeyRing::parse(&new).unwrap());
    assert_eq!(ws.wait("error").await["error_code"], "3001");
    ws.closed().await;
    assert_eq!(server.rest_as(&before, "GET", "/device/roles", None).await.0, 401);
    assert!(server.try_ws(&before).await.is_err());
    later.online("d").await;
}

#[tokio::test]
async fn a_device_acts_for_itself_only_over_socketio_too() {
    let server = Server::start().await;
    let mut sio = Sio::connect_as(&server, &server.token("till", Class::SalesAssistant)).await;
    for (event, data) in [
        ("device_online", json!({"device_id": "other"})),
        ("device_online", json!({"device_id": "till", "priority": 21})),
        ("heartbeat", json!({"device_id": "other"})),
        ("data_update", json!({"device_id": "other", "table_name": "t", "record_id": 1, "new_data": {}})),
        ("queue_status", json!({"device_id": "other"})),
        ("critical_event", json!({"device_id": "other", "event_type": "e", "payload": {}})),
        ("sync_error", json!({"device_id": "other", "error_message": "m"})),
        ("sync_conflict", json!({"device_id": "other", "table_name": "t", "record_id": 1, "conflict_type": "data"})),
        ("device_offline", json!({"device_id": "other"})),
        ("master_election", json!({"reason": "manual"})),
    ] {
        sio.send(&format!("42{}", json!([event, data]))).await;
        let error = sio.wait("42").await;
        assert_eq!((&error[1]["error_code"], &error[1]["event"]), (&json!("3003"), &json!(event)), "{error}");
    }
    assert_eq!(server.head(), 0);
}

#[tokio::test]
async fn only_its_own_device_or_a_superior_decides_a_conflict_and_the_audit_names_who_did() {
    let server = Server::start().await;
    let till = server.token("till", Class::SalesAssistant);
    let manager = server.token("chief", Class::Manager);
    assert_eq!(server.rest_as(&manager, "PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await.0, 200);
    let mut ws = server.ws(&till).await;
    ws.online("till").await;
    for record in [1, 2] {
        ws.update("till", "t", record, json!({"v": 1})).await;
        let stale = json!({"device_id": "till", "table_name": "t", "record_id": record, "new_data": {"v": 2}, "base_version": 0});
        assert_eq!(ws.call("data_update", stale, "error").await["error_code"], "2002");
    }
    let other = server.token("other", Class::AssistantManager);
    let decision = Some(json!({"resolved_data": {"v": 3}}));
    let (status, error) = server.rest_as(&other, "POST", "/sync/conflicts/1/resolve", decision.clone()).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")));
    // The chief never registered as a device: the change is the device's, the decision is the chief's.
    let (status, _) = server.rest_as(&manager, "POST", "/sync/conflicts/1/resolve", decision).await;
    assert_eq!(status, 200);
    let own = json!({"table_name": "t", "record_id": 2, "resolved_data": {"v": 3}});
    ws.call("sync_conflict_resolved", own, "acknowledged").await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=sync_conflict_resolved", None).await;
    let who: Vec<_> = logs["logs"].as_array().unwrap().iter().map(|l| l["device_id"].as_str().unwrap()).collect();
    assert_eq!(who, ["till", "chief"], "newest first");
}
