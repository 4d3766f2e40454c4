//! One test for each event that clients send, named after it, over both transports: what it does.

use serde_json::json;
use tillsync::cluster::Cluster;
use tillsync::proto::Role;

use crate::harness::{Server, over_each, place_of, until};

fn role_of(server: &Server, id: &str) -> Role {
    server.cluster.replica().state().device(id).map_or(Role::Unset, |d| d.role())
}

#[tokio::test]
async fn device_online() {
    over_each(async |server, ws| {
        let full = json!({"device_id": "e", "role": "master", "priority": 40, "capabilities": ["pos"], "cursor": "1.0",
                          "subscribe": ["t"], "timestamp": "2026-11-22T10:00:00+02:00"});
        let ack = ws.call("device_online", full, "device_online_ack").await;
        assert_eq!(
            (&ack["device_id"], &ack["role"], &ack["current_master"]),
            (&json!("e"), &json!("master"), &json!("e"))
        );
        let device = server.cluster.replica().state().device("e").cloned().unwrap();
        assert_eq!((device.priority, &device.capabilities[..], device.is_active), (40, &["pos".to_owned()][..], true));
    })
    .await;
}

#[tokio::test]
async fn device_offline() {
    over_each(async |server, ws| {
        ws.call("device_offline", json!({"device_id": "d", "reason": "closing"}), "device_offline_ack").await;
        assert!(!server.cluster.replica().state().device("d").unwrap().is_active);
    })
    .await;
}

#[tokio::test]
async fn device_shutdown() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        ws.call("master_election", json!({"reason": "manual"}), "master_elected").await;
        other.wait("master_elected").await;
        ws.send("device_shutdown", json!({"device_id": "d", "reason": "power"})).await;
        let elected = other.wait("master_elected").await;
        assert_eq!((&elected["previous_master_id"], &elected["new_master_id"]), (&json!("d"), &json!("e")));
        assert_eq!(elected["election_reason"], "shutdown");
        assert_eq!(ws.wait("acknowledged").await["event"], "device_shutdown");
    })
    .await;
}

#[tokio::test]
async fn master_election() {
    over_each(async |server, ws| {
        let asked = json!({"reason": "manual", "initiated_by": "d"});
        let elected = ws.call("master_election", asked, "master_elected").await;
        assert_eq!((&elected["new_master_id"], &elected["election_reason"]), (&json!("d"), &json!("manual")));
        assert_eq!(role_of(server, "d"), Role::Master);
    })
    .await;
}

#[tokio::test]
async fn role_change() {
    over_each(async |server, ws| {
        let asked = json!({"device_id": "d", "new_role": "master", "reason": "r"});
        ws.call("role_change", asked, "role_change_ack").await;
        assert_eq!(role_of(server, "d"), Role::Master);
    })
    .await;
}

#[tokio::test]
async fn sync_request() {
    over_each(async |_, ws| {
        ws.call("role_change", json!({"device_id": "d", "new_role": "master"}), "role_change_ack").await;
        for (table, record) in [("a", 1), ("b", 2), ("a", 3)] {
            ws.update("d", table, record, json!({})).await;
        }
        let full = json!({"device_id": "d", "requested_tables": ["a"]});
        let page = ws.call("sync_request", full, "sync_response").await;
        assert_eq!((&page["sync_type"], page["changes"].as_array().unwrap().len()), (&json!("full"), 2));
        ws.call("sync_complete", json!({"device_id": "d", "sync_id": page["sync_id"]}), "sync_complete_ack").await;
        for since in [json!({"cursor": "1.2"}), json!({"last_sync_timestamp": page["changes"][0]["timestamp"]})] {
            let mut ask = json!({"device_id": "d", "sync_type": "incremental"});
            ask.as_object_mut().unwrap().extend(since.as_object().unwrap().clone());
            let page = ws.call("sync_request", ask, "sync_response").await;
            assert_eq!((&page["sync_type"], &page["has_more"]), (&json!("incremental"), &json!(false)));
            assert_eq!(page["changes"].as_array().unwrap().last().unwrap()["record_id"], 3);
            ws.call("sync_complete", json!({"device_id": "d"}), "sync_complete_ack").await;
        }
    })
    .await;
}

#[tokio::test]
async fn sync_complete() {
    over_each(async |server, ws| {
        ws.update("d", "t", 1, json!({})).await;
        let done =
            json!({"device_id": "d", "sync_timestamp": "2026-11-22T10:00:00Z", "changes_count": 1, "cursor": "1.1"});
        ws.call("sync_complete", done, "sync_complete_ack").await;
        let (_, state) = server.rest("GET", "/sync/state/d", None).await;
        assert_eq!((&state["sync_status"], &state["pending_changes_count"]), (&json!("synced"), &json!(0)));
        assert_eq!(place_of(&state["cursor"]), 1);
    })
    .await;
}

#[tokio::test]
async fn sync_conflict() {
    over_each(async |server, ws| {
        ws.update("d", "t", 1, json!({"v": 1})).await;
        let report = json!({"device_id": "d", "table_name": "t", "record_id": 1, "conflict_type": "data",
                            "conflict_data": {"local_version": {"v": 1}, "remote_version": {"v": 2}}});
        let ack = ws.call("sync_conflict", report, "acknowledged").await;
        let (_, logs) = server.rest("GET", "/sync/audit-logs?event_type=sync_conflict", None).await;
        assert_eq!((&ack["event"], &logs["pagination"]["total"]), (&json!("sync_conflict"), &json!(1)));
    })
    .await;
}

#[tokio::test]
async fn sync_conflict_resolved() {
    over_each(async |server, ws| {
        server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
        ws.update("d", "t", 1, json!({"v": 1})).await;
        let stale =
            json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {"v": 2}, "base_version": 0});
        let id = ws.call("data_update", stale, "error").await["conflict_id"].clone();
        let decision = json!({"table_name": "t", "record_id": 1, "resolved_data": {}, "delete": true, "conflict_id": id,
                              "device_id": "d", "resolution_method": "manual"});
        assert_eq!(ws.call("sync_conflict_resolved", decision, "acknowledged").await["conflict_id"], id);
        assert_eq!(server.rest("GET", "/data/t/1", None).await.1["data"], json!(null));
    })
    .await;
}

#[tokio::test]
async fn sync_error() {
    over_each(async |server, ws| {
        let report = json!({"device_id": "d", "error_message": "disk full", "error_code": "5001", "sync_type": "full"});
        ws.call("sync_error", report, "sync_error_ack").await;
        let (_, state) = server.rest("GET", "/sync/state/d", None).await;
        assert_eq!((&state["sync_status"], &state["last_error_message"]), (&json!("error"), &json!("disk full")));
    })
    .await;
}

#[tokio::test]
async fn data_update() {
    over_each(async |server, ws| {
        for (operation, becomes) in [("insert", json!({"v": 1})), ("update", json!({"v": 2})), ("delete", json!(null))]
        {
            let data = if becomes.is_null() { json!({}) } else { becomes.clone() };
            let update = json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": data,
                                "operation": operation, "request_id": operation});
            assert_eq!(ws.call("data_update", update, "acknowledged").await["request_id"], operation);
            assert_eq!(server.rest("GET", "/data/t/1", None).await.1["data"], becomes);
        }
    })
    .await;
}

#[tokio::test]
async fn data_request() {
    over_each(async |_, ws| {
        ws.update("d", "t", 1, json!({"v": 1})).await;
        let asked = json!({"device_id": "d", "table_name": "t", "record_id": 1});
        assert_eq!(ws.call("data_request", asked, "data_response").await["data"], json!({"v": 1}));
    })
    .await;
}

#[tokio::test]
async fn queue_status() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        other.update("e", "t", 1, json!({})).await;
        for (queue, pending) in [("sync", 1), ("offline", 0)] {
            let asked = json!({"device_id": "d", "queue_type": queue});
            let status = ws.call("queue_status", asked, "queue_status_response").await;
            assert_eq!((&status["queue_type"], &status["pending_count"]), (&json!(queue), &json!(pending)));
        }
    })
    .await;
}

#[tokio::test]
async fn critical_event() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        let event = json!({"event_type": "price_alarm", "payload": {"a": [1, 2.50]}, "device_id": "d"});
        assert_eq!(ws.call("critical_event", event, "acknowledged").await["event"], "critical_event");
        assert_eq!(other.wait("critical_event").await["event_type"], "price_alarm");
    })
    .await;
}

#[tokio::test]
async fn heartbeat() {
    over_each(async |server, ws| {
        assert_eq!(ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await["device_id"], "d");
        until("d is here", || server.cluster.replica().state().device("d").unwrap().is_active).await;
    })
    .await;
}

#[tokio::test]
async fn token_renew() {
    over_each(async |server, ws| {
        let renewed = ws.call("token_renew", json!({}), "token_renewed").await;
        let token = renewed["token"].as_str().unwrap();
        assert_eq!(server.rest_as(token, "GET", "/device/roles", None).await.0, 200);
    })
    .await;
}
