//! One test for each endpoint, named after it. That answers are as described is checked with every one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::gateway::GatewaySettings;
use tillsync::gateway::http::rest::routes::ENDPOINTS;
use tillsync::ids::UnixMs;
use tillsync::token::Class;
use tokio_tungstenite::connect_async;

use crate::harness::Server;

/// A server on which device `d` is registered.
async fn server() -> Server {
    let server = Server::start().await;
    assert_eq!(server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await.0, 200);
    server
}

async fn get(server: &Server, path: &str) -> Value {
    let (status, body) = server.rest("GET", path, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn page(server: &Server, path: &str) -> (String, String) {
    let answer = reqwest::get(format!("http://{}{path}", server.addr)).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, answer.text().await.unwrap())
}

/// An open conflict on record 1 of table `t`.
async fn conflict(server: &Server) -> Value {
    server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {"v": 1}}))).await;
    let stale = json!({"device_id": "d", "new_data": {"v": 2}, "base_version": 0});
    let (status, body) = server.rest("POST", "/data/t/1", Some(stale)).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("2002")));
    body["conflict_id"].clone()
}

#[tokio::test]
async fn post_device_register() {
    let server = Server::start().await;
    let full = json!({"device_id": "d", "role": "master", "priority": 40, "capabilities": ["sync"]});
    let (status, body) = server.rest("POST", "/device/register", Some(full)).await;
    assert_eq!((status, &body["role"], &body["registered"]), (200, &json!("master"), &json!(true)));
    assert_eq!((&body["master_device_id"], &body["sync_status"]), (&json!("d"), &json!("connected")));
}

#[tokio::test]
async fn get_device_roles() {
    let server = server().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "a"}))).await;
    let ids: Vec<Value> = get(&server, "/device/roles").await["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["device_id"].clone())
        .collect();
    assert_eq!(ids, ["a", "d"]);
}

#[tokio::test]
async fn delete_data_table() {
    let server = server().await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {"a": 1}}))).await;
    let (status, body) = server.rest("DELETE", "/data/t", None).await;
    assert_eq!((status, &body["removed"], &body["records_deleted"]), (200, &json!(true), &json!(1)), "{body}");
    assert_eq!(get(&server, "/data/t/1").await["data"], Value::Null);
    let (status, body) = server.rest("DELETE", "/data/t", None).await;
    assert_eq!((status, &body["error_code"], &body["field"]), (404, &json!("2004"), &json!("table_name")));
}

#[tokio::test]
async fn get_device_roles_device_id() {
    let server = server().await;
    assert_eq!(get(&server, "/device/roles/d").await["role"], "client");
    assert_eq!(server.rest("GET", "/device/roles/x", None).await.1["error_code"], "3004");
}

#[tokio::test]
async fn put_device_roles_device_id() {
    let server = server().await;
    let (_, body) = server.rest("PUT", "/device/roles/d", Some(json!({"role": "master", "reason": "r"}))).await;
    assert_eq!((&body["success"], &body["new_role"], &body["reason"]), (&json!(true), &json!("master"), &json!("r")));
    let (status, body) = server.rest("PUT", "/device/roles/d", Some(json!({"role": "client", "reason": "r"}))).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("4002")), "nobody else can be master");
}

#[tokio::test]
async fn get_sync_state_device_id() {
    let server = server().await;
    let state = get(&server, "/sync/state/d").await;
    assert_eq!((&state["sync_status"], &state["last_sync_timestamp"]), (&json!("pending"), &json!(null)));
}

#[tokio::test]
async fn put_sync_state_device_id() {
    let server = server().await;
    let put = json!({"sync_status": "error", "pending_changes_count": 5, "last_error_message": "full"});
    let (_, body) = server.rest("PUT", "/sync/state/d", Some(put)).await;
    assert_eq!((&body["success"], &body["sync_state"]["pending_changes_count"]), (&json!(true), &json!(5)));
    assert_eq!(get(&server, "/sync/state/d").await["last_error_message"], "full");
}

#[tokio::test]
async fn get_sync_master_election_logs() {
    let server = server().await;
    for _ in 0..3 {
        server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
    }
    let logs = get(&server, "/sync/master-election-logs?limit=2&offset=1").await;
    assert_eq!((&logs["logs"][0]["id"], &logs["pagination"]["total"]), (&json!(2), &json!(3)));
}

#[tokio::test]
async fn get_sync_audit_logs() {
    let server = server().await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {}}))).await;
    let logs = get(&server, "/sync/audit-logs?device_id=d&event_type=data_update&start_date=2020-01-01&limit=1").await;
    assert_eq!((&logs["logs"][0]["status"], &logs["pagination"]["total"]), (&json!("success"), &json!(1)));
}

#[tokio::test]
async fn get_system_health() {
    let server = server().await;
    assert_eq!(get(&server, "/system/health").await["status"], "degraded", "there is no master");
    server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
    let health = get(&server, "/system/health").await;
    assert_eq!((&health["status"], &health["active_devices"]), (&json!("healthy"), &json!(1)));
}

#[tokio::test]
async fn get_system_network() {
    let server = server().await;
    let _session = server.device("e").await;
    let network = get(&server, "/system/network").await;
    assert_eq!((&network["network_status"], &network["active_connections"]), (&json!("connected"), &json!(1)));
}

#[tokio::test]
async fn get_sync_changes() {
    let server = server().await;
    for (table, record) in [("a", 1), ("b", 2), ("a", 3)] {
        let path = format!("/data/{table}/{record}");
        server.rest("POST", &path, Some(json!({"device_id": "d", "new_data": {"r": record}}))).await;
    }
    let first = get(&server, "/sync/changes?tables=a&limit=1").await;
    assert_eq!((&first["changes"][0]["record_id"], &first["has_more"]), (&json!(1), &json!(true)));
    let path = format!("/sync/changes?tables=a&cursor={}", first["cursor"].as_str().unwrap());
    assert_eq!(get(&server, &path).await["changes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn get_sync_conflicts() {
    let server = server().await;
    let id = conflict(&server).await;
    let inbox = get(&server, "/sync/conflicts?table_name=t&device_id=d").await;
    assert_eq!((&inbox["conflicts"][0]["conflict_id"], &inbox["pagination"]["total"]), (&id, &json!(1)));
    assert_eq!(inbox["conflicts"][0]["status"], "open");
    assert_eq!(get(&server, "/sync/conflicts?table_name=u").await["conflicts"], json!([]));
    assert_eq!(get(&server, "/sync/conflicts?status=resolved").await["conflicts"], json!([]));
    let decision = json!({"resolved_data": {"v": 3}});
    server.rest("POST", &format!("/sync/conflicts/{id}/resolve"), Some(decision)).await;
    assert_eq!(get(&server, "/sync/conflicts").await["conflicts"], json!([]));
    for status in ["resolved", "all"] {
        let lost = get(&server, &format!("/sync/conflicts?status={status}")).await["conflicts"][0].clone();
        assert_eq!((&lost["conflict_id"], &lost["status"]), (&id, &json!("resolved")));
        assert_eq!(lost["conflict_data"]["remote_version"], json!({"v": 2}), "what lost can be read");
        let resolution = &lost["resolution"];
        assert_eq!((&resolution["resolved_data"], &resolution["resolved_by"]), (&json!({"v": 3}), &json!("admin")));
    }
    let (status, error) = server.rest("GET", "/sync/conflicts?status=lost", None).await;
    assert_eq!((status, &error["field"]), (400, &json!("status")));
}

#[tokio::test]
async fn get_sync_policies() {
    let server = server().await;
    assert_eq!(get(&server, "/sync/policies").await["policies"], json!([]));
    server.rest("POST", "/data/sales/1", Some(json!({"device_id": "d", "new_data": {}}))).await;
    server.rest("PUT", "/sync/policies/prices", Some(json!({"policy": "automatic", "insert_policy": "manual"}))).await;
    let policies = get(&server, "/sync/policies").await["policies"].clone();
    let prices = json!({"table_name": "prices", "policy": "automatic", "insert_policy": "manual", "decides": "owner"});
    let sales = json!({
        "table_name": "sales", "policy": "last_writer_wins", "insert_policy": "keep_both", "decides": "owner",
    });
    assert_eq!(policies, json!([prices, sales]));
}

#[tokio::test]
async fn get_sync_policies_table() {
    let server = server().await;
    let unset = json!({
        "table_name": "t", "policy": "last_writer_wins", "insert_policy": "keep_both", "decides": "owner",
    });
    assert_eq!(get(&server, "/sync/policies/t").await, unset);
    let (_, put) = server.rest("PUT", "/sync/policies/t", Some(json!({"insert_policy": "last_writer_wins"}))).await;
    let (_, also) = server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
    let now = get(&server, "/sync/policies/t").await;
    assert_eq!((&put["policy"], &put["insert_policy"]), (&json!("last_writer_wins"), &json!("last_writer_wins")));
    assert_eq!((&now["policy"], &now["insert_policy"]), (&json!("manual"), &json!("last_writer_wins")));
    assert_eq!((&also["policy"], &also["insert_policy"]), (&now["policy"], &now["insert_policy"]));
}

#[tokio::test]
async fn get_data_table_record_id_history() {
    let server = server().await;
    let id = conflict(&server).await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {"v": 3}}))).await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "operation": "delete"}))).await;
    let (mut seen, mut path) = (Vec::new(), "/data/t/1/history?limit=1".to_owned());
    loop {
        let page = get(&server, &path).await;
        let entry = page["history"][0].clone();
        match entry["kind"].as_str() {
            Some("change") => {
                assert_eq!(entry["device_id"], "d");
                seen.push(json!([entry["version"], entry["operation"], entry["data"]]));
            }
            _ => {
                assert_eq!((&entry["conflict"]["conflict_id"], &entry["conflict"]["status"]), (&id, &json!("open")));
                seen.push(json!([entry["version"], "lost", entry["conflict"]["conflict_data"]["remote_version"]]));
            }
        }
        let Some(before) = page["before"].as_str() else { break };
        assert_eq!(page["has_more"], true);
        path = format!("/data/t/1/history?limit=1&before={before}");
    }
    let whole = json!([[3, "delete", {}], [2, "update", {"v": 3}], [1, "lost", {"v": 2}], [1, "update", {"v": 1}]]);
    assert_eq!(json!(seen), whole);
    for bad in ["x", "1-", "-1", "99999999999999999999", "1-2-3"] {
        let (status, error) = server.rest("GET", &format!("/data/t/1/history?before={bad}"), None).await;
        assert_eq!((status, &error["field"]), (400, &json!("before")), "{bad}");
    }
    assert_eq!(get(&server, "/data/unknown/7/history").await["history"], json!([]));
}

#[tokio::test]
async fn post_sync_conflicts_id_resolve() {
    let server = server().await;
    let path = format!("/sync/conflicts/{}/resolve", conflict(&server).await);
    let decision = json!({"resolved_data": {"v": 3}, "resolution_method": "manual"});
    let (status, body) = server.rest("POST", &path, Some(decision.clone())).await;
    assert_eq!((status, &body["resolved_data"]), (200, &json!({"v": 3})));
    assert_eq!(get(&server, "/data/t/1").await["data"], json!({"v": 3}));
    assert_eq!(server.rest("POST", &path, Some(decision)).await.0, 409, "it was decided");
}

#[tokio::test]
async fn put_sync_policies_table() {
    let server = server().await;
    let (status, body) = server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "automatic"}))).await;
    assert_eq!((status, &body["table_name"], &body["policy"]), (200, &json!("t"), &json!("automatic")));
}

#[tokio::test]
async fn get_data_table_record_id() {
    let server = server().await;
    assert_eq!(get(&server, "/data/t/-7").await["data"], json!(null));
    server.rest("POST", "/data/t/-7", Some(json!({"device_id": "d", "new_data": {"v": 1}}))).await;
    let record = get(&server, "/data/t/-7").await;
    assert_eq!((&record["data"], &record["version"]), (&json!({"v": 1}), &json!(1)));
}

#[tokio::test]
async fn post_data_table_record_id() {
    let server = server().await;
    let write = json!({"device_id": "d", "new_data": {"v": 1}, "operation": "insert", "request_id": "r"});
    let (_, first) = server.rest("POST", "/data/t/1", Some(write.clone())).await;
    let (_, again) = server.rest("POST", "/data/t/1", Some(write)).await;
    assert_eq!((&first["seq"], &again["seq"], &again["repeated"]), (&json!(1), &json!(1), &json!(true)));
}

#[tokio::test]
async fn get_system_cluster() {
    let server = server().await;
    let cluster = get(&server, "/system/cluster").await;
    assert_eq!((&cluster["node"], &cluster["quorum"], &cluster["voters"]), (&json!(1), &json!(true), &json!([1])));
    let node = &cluster["nodes"][0];
    assert_eq!((&node["node"], &node["role"], &node["lag"]), (&json!(1), &json!("leader"), &json!(0)));
}

#[tokio::test]
async fn post_system_cluster_nodes() {
    let server = server().await;
    let node = json!({"node": 2, "raft": "h:5100", "gateway": "h:5000"});
    let (status, body) = server.rest("POST", "/system/cluster/nodes", Some(node)).await;
    assert_eq!((status, &body["error_code"]), (502, &json!("1002")), "nobody is there: {body}");
    for (field, wrong) in [
        ("node", json!(0)),
        ("raft", json!("h")),
        ("gateway", json!("h:x")),
        ("timeout_ms", json!(-1)),
        ("timeout_ms", json!(0)),
    ] {
        let mut node = json!({"node": 2, "raft": "h:5100", "gateway": "h:5000"});
        node[field] = wrong;
        let (status, body) = server.rest("POST", "/system/cluster/nodes", Some(node)).await;
        assert_eq!((status, &body["error_code"], &body["field"]), (400, &json!("2004"), &json!(field)), "{body}");
    }
}

#[tokio::test]
async fn put_system_cluster_nodes_id() {
    let server = server().await;
    let to = || json!({"raft": "h:5100", "gateway": "h:5000", "timeout_ms": 1000});
    let (status, body) = server.rest("PUT", "/system/cluster/nodes/1", Some(to())).await;
    assert_eq!((status, &body["node"], &body["voters"]), (200, &json!(1), &json!([1])), "{body}");
    for wrong in ["0", "x", "7"] {
        let (status, body) = server.rest("PUT", &format!("/system/cluster/nodes/{wrong}"), Some(to())).await;
        assert_eq!((status, &body["error_code"]), (400, &json!("2004")), "{body}");
    }
    for (field, wrong) in [("raft", json!("h")), ("gateway", json!("h:x")), ("timeout_ms", json!(0))] {
        let mut sent = to();
        sent[field] = wrong;
        let (status, body) = server.rest("PUT", "/system/cluster/nodes/1", Some(sent)).await;
        assert_eq!((status, &body["error_code"], &body["field"]), (400, &json!("2004"), &json!(field)), "{body}");
    }
    let manager = server.token("m", tillsync::token::Class::Manager);
    let request = reqwest::Client::new().put(format!("http://{}/system/cluster/nodes/1", server.addr));
    let answer = request.bearer_auth(manager).json(&to()).send().await.unwrap();
    assert_eq!(answer.status(), 403, "an admin's business");
}

#[tokio::test]
async fn delete_system_cluster_nodes_id() {
    let server = server().await;
    let (status, body) = server.rest("DELETE", "/system/cluster/nodes/1?timeout_ms=1000", None).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("4002")), "it is the last one: {body}");
    for wrong in ["0", "x", "7"] {
        let (status, body) = server.rest("DELETE", &format!("/system/cluster/nodes/{wrong}"), None).await;
        assert_eq!((status, &body["error_code"]), (400, &json!("2004")), "{body}");
    }
}

#[tokio::test]
async fn post_system_cluster_transfer() {
    let server = server().await;
    let (status, body) = server.rest("POST", "/system/cluster/transfer", Some(json!({"to": 1}))).await;
    assert_eq!((status, &body["node"], &body["voters"]), (200, &json!(1), &json!([1])));
    assert_eq!(server.rest("POST", "/system/cluster/transfer", Some(json!({}))).await.1["field"], "to");
    let manager = server.token("m", tillsync::token::Class::Manager);
    let request = reqwest::Client::new().post(format!("http://{}/system/cluster/transfer", server.addr));
    let answer = request.bearer_auth(manager).json(&json!({"to": 1})).send().await.unwrap();
    assert_eq!(answer.status(), 403, "an admin's business");
}

#[tokio::test]
async fn post_system_cluster_finalize() {
    let server = server().await;
    assert_eq!(get(&server, "/system/cluster").await["cluster_version"], json!(1));
    let manager = server.token("m", tillsync::token::Class::Manager);
    let request = reqwest::Client::new().post(format!("http://{}/system/cluster/finalize", server.addr));
    let answer = request.bearer_auth(manager).json(&json!({})).send().await.unwrap();
    assert_eq!(answer.status(), 403, "an admin's business");
    let (status, body) = server.rest("POST", "/system/cluster/finalize", Some(json!({"timeout_ms": 0}))).await;
    assert_eq!((status, &body["field"]), (400, &json!("timeout_ms")), "{body}");
    let (status, body) = server.rest("POST", "/system/cluster/finalize", Some(json!({}))).await;
    assert_eq!((status, &body["cluster_version"]), (200, &json!(2)), "{body}");
    let (status, body) = server.rest("POST", "/system/cluster/finalize", Some(json!({}))).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("4002")), "{body}");
    assert_eq!(get(&server, "/system/cluster").await["cluster_version"], json!(2));
    let audit = get(&server, "/sync/audit-logs?event_type=cluster_finalized").await;
    assert_eq!(audit["logs"].as_array().map(Vec::len), Some(1), "{audit}");
}

#[tokio::test]
async fn post_system_election() {
    let server = server().await;
    let (status, body) = server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
    assert_eq!((status, &body["new_master_id"], &body["term"]), (200, &json!("d"), &json!(1)));
}

#[tokio::test]
async fn post_system_tokens_revoke() {
    let server = server().await;
    let (status, body) = server.rest("POST", "/system/tokens/revoke", Some(json!({"jti": "x"}))).await;
    assert_eq!((status, &body["jti"]), (200, &json!("x")));
}

/// The machine's clock, so many milliseconds ahead.
#[derive(Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now_ms(&self) -> UnixMs {
        SystemClock.now_ms().plus_ms(self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn post_system_time_back() {
    let clock = Arc::new(Ahead::default());
    let server = Server::by(clock.clone(), GatewaySettings::default(), |local| local).await;
    let back = || server.rest("POST", "/system/time/back", None);
    let (status, body) = back().await;
    assert_eq!((status, &body["error_code"]), (409, &json!("2002")), "{body}");
    clock.0.store(1_800_000, Ordering::SeqCst);
    assert_eq!(server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await.0, 200);
    clock.0.store(0, Ordering::SeqCst);
    let till = server.token("d", Class::SalesAssistant);
    assert_eq!(server.rest_as(&till, "POST", "/system/time/back", None).await.0, 403);
    let (status, body) = back().await;
    assert_eq!((status, &body["success"]), (200, &json!(true)), "{body}");
    let rows = get(&server, "/sync/audit-logs?event_type=time_back").await;
    assert_eq!(rows["logs"].as_array().map(Vec::len), Some(1), "{rows}");
    assert_eq!(back().await.0, 409);
}

/// With a log it is asked in `cluster::backup`.
#[tokio::test]
async fn get_system_backup_entries() {
    let server = server().await;
    let till = server.token("d", Class::SalesAssistant);
    assert_eq!(server.rest_as(&till, "GET", "/system/backup/entries", None).await.0, 403);
    let (status, body) = server.rest("GET", "/system/backup/entries?after=-1", None).await;
    assert_eq!((status, &body["error_code"], &body["field"]), (400, &json!("2004"), &json!("after")), "{body}");
    assert_eq!(server.rest("GET", "/system/backup/entries?after=7", None).await.1["error_code"], "2004");
    let ask = reqwest::Client::new().get(format!("http://{}/system/backup/entries", server.addr));
    let answer = ask.bearer_auth(server.admin()).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].as_bytes()), (200, OCTETS));
    assert!(answer.bytes().await.unwrap().starts_with(b"TILLSEGM"));
}

const OCTETS: &[u8] = b"application/octet-stream";

#[tokio::test]
async fn get_system_backup() {
    let server = server().await;
    let till = server.token("d", Class::SalesAssistant);
    assert_eq!(server.rest_as(&till, "GET", "/system/backup", None).await.0, 403);
    let ask = reqwest::Client::new().get(format!("http://{}/system/backup", server.addr));
    let answer = ask.bearer_auth(server.admin()).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].as_bytes()), (200, OCTETS));
    assert!(answer.bytes().await.unwrap().starts_with(b"TILLSNAP"));
}

#[tokio::test]
async fn get_ws() {
    let server = server().await;
    let (_, response) = connect_async(format!("ws://{}/ws?token={}", server.addr, server.admin())).await.unwrap();
    assert_eq!(response.status(), 101);
    assert!(server.try_ws("wrong").await.is_err());
    assert_eq!(server.rest("GET", "/ws", None).await.1["error_code"], "1003");
}

#[tokio::test]
async fn get_healthz() {
    assert_eq!(get(&Server::start().await, "/healthz").await["status"], "ok");
}

#[tokio::test]
async fn get_readyz() {
    let server = Server::with(GatewaySettings::default()).await;
    assert_eq!(get(&server, "/readyz").await["status"], "ready");
}

#[tokio::test]
async fn get_openapi_json() {
    let (kind, body) = page(&Server::start().await, "/openapi.json").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((kind.as_str(), &document["openapi"]), ("application/json", &json!("3.1.0")));
    assert_eq!(document, *crate::schema::OPENAPI);
}

#[tokio::test]
async fn get_asyncapi_json() {
    let (kind, body) = page(&Server::start().await, "/asyncapi.json").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((kind.as_str(), &document["asyncapi"]), ("application/json", &json!("3.0.0")));
    assert_eq!(document, *crate::schema::ASYNCAPI);
}

#[tokio::test]
async fn get_docs() {
    let (kind, body) = page(&Server::start().await, "/docs").await;
    assert!(kind.starts_with("text/html") && body.contains("docs/rest") && body.contains("docs/events"));
}

#[tokio::test]
async fn get_docs_rest() {
    let (kind, body) = page(&Server::start().await, "/docs/rest").await;
    assert!(kind.starts_with("text/html") && body.contains("/openapi.json"));
}

#[tokio::test]
async fn get_docs_events() {
    let (kind, body) = page(&Server::start().await, "/docs/events").await;
    assert!(kind.starts_with("text/html") && body.contains("/asyncapi.json"));
}

#[tokio::test]
async fn get_system_export() {
    let server = server().await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {}}))).await;
    let all = get(&server, "/system/export").await;
    assert_eq!((&all["head_seq"], &all["compacted_seq"]), (&json!(1), &json!(0)));
    assert_eq!(all["devices"][0]["device_id"], "d");
    assert_eq!(all["sync_states"][0]["pending_changes_count"], 0);
    assert_eq!((&all["node_devices"], &all["own_elections"], &all["own_audits"]), (&json!([]), &json!(0), &json!(0)));
}

#[tokio::test]
async fn get_system_export_changes() {
    let server = server().await;
    for id in [1, 2] {
        server.rest("POST", &format!("/data/t/{id}"), Some(json!({"device_id": "d", "new_data": {}}))).await;
    }
    let page = get(&server, "/system/export/changes?limit=1").await;
    assert_eq!((&page["changes"][0]["seq"], &page["has_more"]), (&json!(1), &json!(true)));
    let next = format!("/system/export/changes?cursor={}", page["cursor"].as_str().unwrap());
    let page = get(&server, &next).await;
    assert_eq!((&page["changes"][0]["seq"], &page["has_more"]), (&json!(2), &json!(false)));
    let (status, body) = server.rest("GET", "/system/export/changes?cursor=1.99", None).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("1005")));
}

#[tokio::test]
async fn get_system_export_elections() {
    let server = server().await;
    server.rest("PUT", "/device/roles/d", Some(json!({"role": "master", "reason": "r"}))).await;
    server.rest("POST", "/system/election", Some(json!({"reason": "manual", "initiated_by": "d"}))).await;
    let page = get(&server, "/system/export/elections?limit=1").await;
    assert_eq!((&page["rows"][0]["id"], &page["next"]), (&json!(1), &json!("1")));
    let page = get(&server, "/system/export/elections?after=1&to=2").await;
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["next"]), (1, &json!(null)));
    assert_eq!(get(&server, "/system/export/elections?after=2&to=1").await["rows"], json!([]));
}

#[tokio::test]
async fn get_system_export_audit() {
    let server = server().await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {}}))).await;
    let page = get(&server, "/system/export/audit").await;
    let rows = page["rows"].as_array().unwrap();
    assert_eq!((&rows[0]["id"], &rows.last().unwrap()["event_type"]), (&json!(1), &json!("data_update")));
    let page = get(&server, "/system/export/audit?limit=1").await;
    assert_eq!((page["rows"].as_array().unwrap().len(), &page["next"]), (1, &json!("1")));
    assert_eq!(get(&server, "/system/export/audit?after=9&to=3").await["rows"], json!([]));
}

#[tokio::test]
async fn get_system_export_records() {
    let server = server().await;
    for (id, price) in [(1, "1.10"), (2, "2"), (1, "1.20")] {
        let body = format!(r#"{{"device_id": "d", "new_data": {{"price": {price}}}}}"#);
        let body = serde_json::from_str(&body).unwrap();
        server.rest("POST", &format!("/data/t/{id}"), Some(body)).await;
    }
    let page = get(&server, "/system/export/records?limit=1").await;
    assert_eq!((&page["rows"][0]["version"], &page["rows"][0]["device_id"]), (&json!(3), &json!("d")));
    let next = page["next"].as_str().unwrap();
    let page = get(&server, &format!("/system/export/records?after={next}")).await;
    assert_eq!((&page["rows"][0]["record_id"], &page["rows"][0]["data"]["price"]), (&json!(2), &json!(2)));
    assert_eq!(page["next"], json!(null));
}

#[tokio::test]
async fn post_system_import() {
    let server = Server::start().await;
    let step = async |body: Value| server.rest("POST", "/system/import", Some(body)).await;
    let begin = json!({"import_id": "7f", "step": "begin", "device_rows": 3, "sync_rows": 3, "election_rows": 0, "audit_rows": 1});
    assert_eq!(step(begin.clone()).await, (200, json!({"left": []})));
    let device = json!({"id": 3, "device_id": "till", "role": "client", "priority": 40, "last_seen_ms": 5,
        "is_active": false, "created_ms": 1, "updated_ms": 2});
    let audit = json!({"id": 1, "event_type": "old", "operation": "o", "error": false, "device_id": null,
        "details": null, "at_ms": 9});
    let devices = json!([{"device": device, "sync_state": null}]);
    let rows = json!({"import_id": "7f", "step": "rows", "devices": devices, "audits": [audit]});
    assert_eq!(step(rows).await, (200, json!({"left": []})));
    assert_eq!(step(json!({"import_id": "7f", "step": "finish"})).await.0, 200);
    let (status, body) = step(begin).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("2002")));
    assert_eq!(get(&server, "/device/roles/till").await["priority"], 40);
    assert_eq!(get(&server, "/sync/audit-logs?event_type=old").await["logs"][0]["id"], 1);
}

#[tokio::test]
async fn get_metrics() {
    let server = server().await;
    let (_ws, _sio) = (server.device("e").await, server.socketio().await);
    assert_eq!(server.rest("GET", "/device/roles/nobody", None).await.0, 404);
    let url = format!("http://{}/metrics", server.addr);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 401, "it tells of the cluster");
    let answer = reqwest::Client::new().get(&url).bearer_auth(server.admin()).send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    let value = |series: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in {text}")).parse::<f64>().unwrap()
    };
    assert_eq!((value("tillsync_is_leader"), value("tillsync_devices_active")), (1.0, 2.0));
    assert_eq!(value("tillsync_sessions{transport=\"websocket\"}"), 1.0);
    // Counters are the process's, and other tests run beside this one.
    assert!(value("tillsync_commands_applied_total") >= 2.0);
    assert!(value("tillsync_errors_total{door=\"http\",code=\"3004\"}") >= 1.0);
    assert!(value("tillsync_flush_seconds_bucket{le=\"+Inf\"}") == value("tillsync_flush_seconds_count"));
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
    }
}

#[tokio::test]
async fn get_console() {
    let server = Server::start().await;
    let (kind, text) = page(&server, "/console").await;
    assert!(kind.starts_with("text/html") && text.contains("Tillsync: console"));
    // What it asks for is there.
    for asked in ["/system/health", "/system/cluster", "/device/roles", "/access"] {
        assert!(text.contains(&format!("ask(\"{}\")", &asked[1..])), "{asked}");
        get(&server, asked).await;
    }
    assert!(text.contains("\"device/pairings\""));
    get(&server, "/device/pairings").await;
    // And so is what its buttons do; what comes of it: `tests/clients/console.mjs`.
    for (in_page, method, path) in [
        ("[\"GET\", \"/admission\"]", "GET", "/device/{device_id}/admission"),
        ("[\"POST\", \"/suspend\",", "POST", "/device/{device_id}/suspend"),
        ("[\"POST\", \"/resume\"]", "POST", "/device/{device_id}/resume"),
        ("[\"POST\", \"/revoke\",", "POST", "/device/{device_id}/revoke"),
        ("[\"DELETE\", \"\",", "DELETE", "/device/{device_id}"),
        ("device/pairings/${encodeURIComponent(code)}/${what}", "POST", "/device/pairings/{code}/approve"),
        ("decide(row.code, \"refuse\")", "POST", "/device/pairings/{code}/refuse"),
        ("\"PUT\", `access/${name}`", "PUT", "/access/{class}"),
    ] {
        assert!(text.contains(in_page), "{in_page}");
        assert!(ENDPOINTS.iter().any(|e| (e.method, e.path) == (method, path)), "{method} {path}");
    }
}

#[tokio::test]
async fn get_access() {
    let server = server().await;
    let access = get(&server, "/access").await;
    assert_eq!(
        access["classes"][4],
        json!({"class": "sales_assistant", "tables": {"*": "write"}, "create_tables": true})
    );
}

#[tokio::test]
async fn put_access_class() {
    let server = server().await;
    let rights = json!({"tables": {"prices": "read", "*": "none"}, "create_tables": false});
    let (status, set) = server.rest("PUT", "/access/sales_assistant", Some(rights)).await;
    assert_eq!((status, &set["tables"]), (200, &json!({"prices": "read", "*": "none"})));
    let listed = get(&server, "/access").await["classes"][4].clone();
    assert_eq!((&listed["tables"], &listed["create_tables"]), (&set["tables"], &json!(false)));
    assert_eq!((&listed["set_by"], &listed["set_at"]), (&json!("admin"), &set["set_at"]));
}

#[tokio::test]
async fn post_device_device_id_revoke() {
    let server = server().await;
    let (status, report) = server.rest("POST", "/device/d/revoke", None).await;
    assert_eq!((status, &report["confirmed"]["changes"]), (200, &json!(0)));
    let (status, report) = server.rest("POST", "/device/never/revoke", None).await;
    assert_eq!((status, &report["registered"]), (200, &json!(false)));
    assert_eq!(server.rest("POST", "/device/%0a/revoke", None).await.1["field"], "device_id");
}

#[tokio::test]
async fn post_device_device_id_suspend() {
    let server = server().await;
    assert_eq!(server.rest("POST", "/device/d/suspend", None).await.1["suspended"], true);
    assert_eq!(server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await.1["error_code"], "3003");
}

#[tokio::test]
async fn post_device_device_id_resume() {
    let server = server().await;
    server.rest("POST", "/device/d/suspend", None).await;
    assert_eq!(server.rest("POST", "/device/d/resume", None).await.1["suspended"], false);
    assert_eq!(server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await.0, 200);
}

#[tokio::test]
async fn delete_device_device_id() {
    let server = server().await;
    assert_eq!(server.rest("DELETE", "/device/d", None).await.1["error_code"], "4002");
    assert_eq!(server.rest("DELETE", "/device/nobody", None).await.0, 404);
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_offline", json!({"device_id": "d"}), "device_offline_ack").await;
    assert_eq!(server.rest("DELETE", "/device/d", None).await.0, 200);
    assert_eq!(get(&server, "/device/roles").await["devices"], json!([]));
}

#[tokio::test]
async fn get_device_device_id_admission() {
    let server = server().await;
    let found = get(&server, "/device/d/admission").await;
    assert_eq!(
        (&found["registered"], &found["suspended"], &found["not_before"]),
        (&json!(true), &json!(false), &json!(null))
    );
    server.rest("POST", "/device/d/revoke", None).await;
    assert!(get(&server, "/device/d/admission").await["not_before"].is_string());
}

async fn pairing(server: &Server) -> (String, String) {
    let (_, asked) = server.rest_as("", "POST", "/device/pair", Some(json!({"device_id": "new"}))).await;
    (asked["code"].as_str().unwrap().to_owned(), asked["secret"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn post_device_pair() {
    let (code, secret) = pairing(&server().await).await;
    assert_eq!((code.len(), secret.len()), (8, 64));
}

#[tokio::test]
async fn get_device_pair_code() {
    let server = server().await;
    let (code, secret) = pairing(&server).await;
    let path = format!("/device/pair/{code}");
    assert_eq!(server.rest_as(&secret, "GET", &path, None).await.1["status"], "waiting");
    assert_eq!(server.rest_as("", "GET", &path, None).await.0, 404);
}

#[tokio::test]
async fn get_device_pairings() {
    let server = server().await;
    let (code, _) = pairing(&server).await;
    let listed = get(&server, "/device/pairings").await;
    assert_eq!((&listed["pairings"][0]["code"], &listed["pairings"][0]["known"]), (&json!(code), &json!(false)));
}

#[tokio::test]
async fn post_device_pairings_code_approve() {
    let server = server().await;
    let (code, secret) = pairing(&server).await;
    let class = Some(json!({"class": "sales_assistant"}));
    let (status, done) = server.rest("POST", &format!("/device/pairings/{code}/approve"), class.clone()).await;
    assert_eq!((status, &done["device_id"]), (200, &json!("new")));
    let (_, given) = server.rest_as(&secret, "GET", &format!("/device/pair/{code}"), None).await;
    assert!(given["token"].is_string());
    assert_eq!(server.rest("POST", "/device/pairings/ABCDEFGH/approve", class).await.0, 404);
}

#[tokio::test]
async fn post_device_pairings_code_refuse() {
    let server = server().await;
    let (code, secret) = pairing(&server).await;
    assert_eq!(server.rest("POST", &format!("/device/pairings/{code}/refuse"), None).await.1["status"], "refused");
    assert_eq!(server.rest_as(&secret, "GET", &format!("/device/pair/{code}"), None).await.1["status"], "refused");
}

#[tokio::test]
async fn post_token_renew() {
    let server = server().await;
    let (status, renewed) = server.rest("POST", "/token/renew", None).await;
    assert_eq!((status, &renewed["device_id"], &renewed["class"]), (200, &json!("admin"), &json!("admin")));
    assert_eq!(server.rest_as(renewed["token"].as_str().unwrap(), "GET", "/device/roles", None).await.0, 200);
}
