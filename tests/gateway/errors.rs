//! Each documented code, provoked for real. Those that need several nodes or a disk are in `tests/cluster`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::clock::{Clock, SharedClock, SystemClock};
use tillsync::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo};
use tillsync::consensus::replica::Replica;
use tillsync::gateway::GatewaySettings;
use tillsync::ids::NodeId;
use tillsync::model::error::{Code, Error};
use tillsync::proto::command::Intent;
use tillsync::proto::{AuditNote, Outcome, Principal};
use tillsync::storage::BoxFuture;
use tillsync::testkit::local_cluster::LocalCluster;
use tillsync::token::Class;

use crate::harness::{Server, Ws, until};

/// The error is this one, with what every error has.
fn is(error: &Value, code: Code) {
    assert_eq!(error["error_code"], code.to_string(), "{error}");
    assert_eq!(error["retry"], code.row().retry.name(), "{error}");
    let text = error.get("error").or(error.get("error_message"));
    assert!(text.and_then(Value::as_str).is_some_and(|t| !t.is_empty()), "{error}");
    assert!(error["timestamp"].as_str().is_some_and(|t| t.ends_with('Z')), "{error}");
}

/// The request fails with this code, at the status of the table in code.
async fn rest(server: &Server, method: &str, path: &str, body: Option<Value>, code: Code) -> Value {
    let (status, error) = server.rest(method, path, body).await;
    assert_eq!((status, &error["success"]), (code.row().http, &json!(false)), "{method} {path}: {error}");
    is(&error, code);
    error
}

async fn fails(ws: &mut Ws, event: &str, data: Value, code: Code) -> Value {
    let error = ws.call(event, data, if event == "sync_request" { "sync_error" } else { "error" }).await;
    is(&error, code);
    error
}

#[tokio::test]
async fn error_1003_websocket_connection_failed() {
    let server = Server::with(GatewaySettings { sessions: 1, ..GatewaySettings::default() }).await;
    let (status, error) = server.rest("GET", "/ws", None).await;
    assert_eq!(status, 400, "a request that is no handshake");
    is(&error, Code::SocketClosed);
    let _held = server.device("d").await;
    let Err(tokio_tungstenite::tungstenite::Error::Http(refused)) = server.try_ws(&server.admin()).await else {
        panic!("not refused")
    };
    assert_eq!(refused.status(), 503);
    let error: Value = serde_json::from_slice(refused.body().as_ref().unwrap()).unwrap();
    is(&error, Code::SocketClosed);
    assert!((1_000..5_000).contains(&error["retry_after_ms"].as_u64().unwrap()), "{error}");
}

#[tokio::test]
async fn error_1004_heartbeat_timeout() {
    let times = GatewaySettings {
        ping_every: Duration::from_millis(100),
        lost_after: Duration::from_millis(400),
        grace: Duration::from_millis(50),
        ..GatewaySettings::default()
    };
    let server = Server::with(times).await;
    let mut silent = server.device("d").await;
    // Nothing is read, so no ping is answered.
    until("d is offline", || !server.cluster.replica().state().device("d").is_some_and(|d| d.is_active)).await;
    is(&silent.wait("error").await, Code::Silent);
    silent.closed().await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=heartbeat_timeout", None).await;
    assert!(logs["logs"][0]["details"].as_str().unwrap().starts_with("1004"), "{logs}");
}

#[tokio::test]
async fn error_1005_reconnection_failed() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    ws.send("device_online", json!({"device_id": "d", "cursor": "ffff.7"})).await;
    is(&ws.wait("error").await, Code::BadCursor);
    rest(&server, "GET", "/sync/changes?cursor=ffff.7", None, Code::BadCursor).await;
}

#[tokio::test]
async fn error_2001_sync_request_failed() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    let error = fails(&mut ws, "sync_request", json!({"device_id": "d", "sync_type": "some"}), Code::SyncRequest).await;
    assert_eq!((&error["field"], &error["device_id"]), (&json!("sync_type"), &json!("d")));
}

#[tokio::test]
async fn error_2002_data_conflict_detected() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
    ws.update("d", "t", 1, json!({"v": 1})).await;
    let stale = json!({"device_id": "d", "new_data": {"v": 2}, "base_version": 0});
    let error = rest(&server, "POST", "/data/t/1", Some(stale.clone()), Code::Conflict).await;
    assert_eq!(error["conflict_id"], 1);
    let mut update = stale;
    update["table_name"] = json!("t");
    update["record_id"] = json!(1);
    fails(&mut ws, "data_update", update, Code::Conflict).await;
}

#[tokio::test]
async fn error_2003_sync_timeout() {
    let server =
        Server::with(GatewaySettings { sync_timeout: Duration::from_millis(200), ..GatewaySettings::default() }).await;
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "role": "master"}), "device_online_ack").await;
    ws.call("sync_request", json!({"device_id": "d"}), "sync_response").await;
    // `sync_complete` does not come.
    is(&ws.wait("sync_error").await, Code::SyncTimeout);
    let failed = |body: &Value| body["sync_status"] == "error";
    let mut state = server.rest("GET", "/sync/state/d", None).await.1;
    for _ in 0..100 {
        if failed(&state) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        state = server.rest("GET", "/sync/state/d", None).await.1;
    }
    assert!(failed(&state), "{state}");
}

#[tokio::test]
async fn error_2004_invalid_sync_data() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    let bad = json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": []});
    assert_eq!(fails(&mut ws, "data_update", bad.clone(), Code::InvalidData).await["field"], "new_data");
    assert_eq!(rest(&server, "POST", "/data/t/1", Some(bad), Code::InvalidData).await["field"], "new_data");
}

#[tokio::test]
async fn error_3001_invalid_credentials() {
    let server = Server::start().await;
    let (status, error) = server.rest_as("nonsense", "GET", "/device/roles", None).await;
    assert_eq!(status, 401);
    is(&error, Code::Credentials);
}

#[tokio::test]
async fn error_3002_token_expired() {
    let times = GatewaySettings { ping_every: Duration::from_millis(100), ..GatewaySettings::default() };
    let server = Server::with(times).await;
    // A live session ends with its token.
    let token = server.keys.issue("d", Class::Admin, SystemClock.now_ms(), 2).unwrap().0;
    let mut ws = server.ws(&token).await;
    let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr)).bearer_auth(&token);
    let mut stream = request.header("accept", "text/event-stream").send().await.unwrap();
    is(&ws.wait("error").await, Code::TokenExpired);
    ws.closed().await;
    while stream.chunk().await.unwrap().is_some() {}
    let (status, error) = server.rest_as(&token, "GET", "/device/roles", None).await;
    assert_eq!(status, 401);
    is(&error, Code::TokenExpired);
}

#[tokio::test]
async fn error_3003_insufficient_permissions() {
    let server = Server::start().await;
    let token = server.token("till", Class::SalesAssistant);
    let (status, error) = server.rest_as(&token, "PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
    assert_eq!(status, 403);
    is(&error, Code::Forbidden);
    let mut ws = server.ws(&token).await;
    fails(&mut ws, "heartbeat", json!({"device_id": "other"}), Code::Forbidden).await;
}

#[tokio::test]
async fn error_3004_device_not_registered() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    rest(&server, "GET", "/device/roles/nobody", None, Code::NotRegistered).await;
    rest(&server, "POST", "/data/t/1", Some(json!({"device_id": "nobody", "new_data": {}})), Code::NotRegistered).await;
    let error = ws.call("queue_status", json!({"device_id": "nobody"}), "error").await;
    // Its `device_online` may be on the way.
    assert_eq!((&error["error_code"], &error["retry"]), (&json!("3004"), &json!("safe")), "{error}");
}

#[tokio::test]
async fn error_4001_device_registration_failed() {
    let server = Server::start().await;
    let bad = json!({"device_id": "d", "priority": 101});
    let error = rest(&server, "POST", "/device/register", Some(bad.clone()), Code::Registration).await;
    assert_eq!(error["field"], "priority");
    let mut ws = server.ws(&server.admin()).await;
    fails(&mut ws, "device_online", bad, Code::Registration).await;
}

#[tokio::test]
async fn error_4002_role_change_failed() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "m", "role": "master"}), "device_online_ack").await;
    let body = |role: &str| Some(json!({"role": role, "reason": "r"}));
    rest(&server, "PUT", "/device/roles/m", body("client"), Code::RoleChange).await;
    let shy = json!({"device_id": "shy", "capabilities": ["no-master"]});
    ws.call("device_online", shy, "device_online_ack").await;
    rest(&server, "PUT", "/device/roles/shy", body("master"), Code::RoleChange).await;
    fails(&mut ws, "role_change", json!({"device_id": "m", "new_role": "client"}), Code::RoleChange).await;
}

#[tokio::test]
async fn error_4003_master_election_failed() {
    let server = Server::start().await;
    let mut ws = server.ws(&server.admin()).await;
    rest(&server, "POST", "/system/election", Some(json!({"reason": "manual"})), Code::Election).await;
    fails(&mut ws, "master_election", json!({"reason": "manual"}), Code::Election).await;
    let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=master_election", None).await;
    assert_eq!((&logs["pagination"]["total"], &logs["logs"][0]["status"]), (&json!(2), &json!("error")));
}

#[tokio::test]
async fn error_4004_device_offline() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    ws.call("device_offline", json!({"device_id": "d"}), "device_offline_ack").await;
    let body = json!({"role": "master", "reason": "r"});
    rest(&server, "PUT", "/device/roles/d", Some(body), Code::DeviceOffline).await;
}

/// A cluster with a bug: asked for a role change it panics, asked for a policy it answers something else.
struct Buggy(Arc<LocalCluster>);

impl Cluster for Buggy {
    fn node_id(&self) -> NodeId {
        self.0.node_id()
    }

    fn clock(&self) -> &SharedClock {
        self.0.clock()
    }

    fn replica(&self) -> &Arc<Replica> {
        self.0.replica()
    }

    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        match intent {
            Intent::RoleChange(_) => panic!("the secret cause"),
            Intent::SyncStatePut(_) => {
                self.0.propose(Intent::AuditNote(AuditNote { event_type: "bug".into(), ..AuditNote::default() }))
            }
            other => self.0.propose(other),
        }
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        self.0.read_barrier()
    }

    fn status(&self) -> ClusterStatus {
        self.0.status()
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        self.0.nodes()
    }

    fn change(
        &self,
        change: MembershipChange,
        by: Principal,
        within: Duration,
    ) -> BoxFuture<'_, Result<MembershipChanged, Error>> {
        self.0.change(change, by, within)
    }
}

#[tokio::test]
async fn error_5002_internal_server_error() {
    let server = Server::over(GatewaySettings::default(), |local| Arc::new(Buggy(local))).await;
    let bodies = [("/device/roles/d", json!({"role": "client", "reason": "r"})), ("/sync/state/d", json!({}))];
    for (path, body) in bodies {
        let error = rest(&server, "PUT", path, Some(body), Code::Internal).await;
        let message = error["error"].as_str().unwrap();
        let id = message.rsplit(' ').next().unwrap();
        assert!(id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{message}");
        assert!(!message.contains("secret") && !message.contains("outcome"), "{message}");
    }
    assert_eq!(server.rest("GET", "/device/roles", None).await.0, 200);
}

#[tokio::test]
async fn error_5003_service_unavailable() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    server.shutdown.cancel();
    let error = ws.wait("error").await;
    is(&error, Code::Unavailable);
    assert_eq!(error["retry_after_ms"], 1_000);
}
