//! One test for each event that clients are sent, named after it, over both transports: when it comes, and to whom.
//! That its fields are as described is checked wherever a test receives it.

use std::time::Duration;

use serde_json::{Value, json};
use tillsync::gateway::GatewaySettings;

use crate::harness::{Over, Server, Ws, over_each, place_of};

async fn become_master(ws: &mut Ws) {
    ws.call("role_change", json!({"device_id": "d", "new_role": "master", "reason": "r"}), "role_change_ack").await;
}

fn update(record: u64, more: Value) -> Value {
    let mut update = json!({"device_id": "d", "table_name": "t", "record_id": record, "new_data": {"v": 1}});
    update.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    update
}

#[tokio::test]
async fn device_online_ack() {
    over_each(async |_, ws| {
        let ack = ws.online("e").await;
        assert_eq!((&ack["current_master"], &ack["role"], &ack["term"]), (&json!(null), &json!("client"), &json!(0)));
    })
    .await;
}

#[tokio::test]
async fn device_offline_ack() {
    over_each(async |_, ws| {
        let ack = ws.call("device_offline", json!({"device_id": "d"}), "device_offline_ack").await;
        assert_eq!(ack["device_id"], "d");
    })
    .await;
}

#[tokio::test]
async fn master_elected() {
    over_each(async |server, ws| {
        let (status, body) = server.rest("POST", "/system/election", Some(json!({"reason": "failure"}))).await;
        let elected = ws.wait("master_elected").await;
        assert_eq!((status, &elected["term"], &elected["election_reason"]), (200, &body["term"], &json!("failure")));
        assert_eq!((&elected["previous_master_id"], &elected["devices_participating"]), (&json!(null), &json!(1)));
    })
    .await;
}

#[tokio::test]
async fn role_change() {
    over_each(async |server, ws| {
        server.rest("PUT", "/device/roles/d", Some(json!({"role": "master", "reason": "the boss said so"}))).await;
        let change = ws.wait("role_change").await;
        assert_eq!((&change["device_id"], &change["new_role"]), (&json!("d"), &json!("master")));
        assert_eq!(change["reason"], "the boss said so");
    })
    .await;
}

#[tokio::test]
async fn role_change_ack() {
    over_each(async |_, ws| {
        let asked = json!({"device_id": "d", "new_role": "client", "reason": "r"});
        let ack = ws.call("role_change", asked, "role_change_ack").await;
        assert_eq!((&ack["new_role"], &ack["reason"]), (&json!("client"), &json!("r")));
    })
    .await;
}

#[tokio::test]
async fn sync_response() {
    over_each(async |_, ws| {
        become_master(ws).await;
        for record in 0..501 {
            ws.send("data_update", update(record, json!({}))).await;
            ws.wait("acknowledged").await;
        }
        ws.send("sync_request", json!({"device_id": "d"})).await;
        let (first, second) = (ws.wait("sync_response").await, ws.wait("sync_response").await);
        assert_eq!(
            (&first["page"], &first["has_more"], first["changes"].as_array().unwrap().len()),
            (&json!(1), &json!(true), 500)
        );
        assert_eq!((&second["page"], &second["has_more"], &second["total"]), (&json!(2), &json!(false), &json!(501)));
        assert_eq!((&first["sync_id"], &first["master_device_id"]), (&second["sync_id"], &json!("d")));
    })
    .await;
}

#[tokio::test]
async fn sync_complete_ack() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        let done = json!({"device_id": "d", "sync_timestamp": "2026-11-22T10:00:00Z", "changes_count": 3});
        ws.send("sync_complete", done).await;
        for session in [ws, &mut other] {
            let ack = session.wait("sync_complete_ack").await;
            assert_eq!((&ack["device_id"], &ack["changes_count"]), (&json!("d"), &json!(3)));
            assert_eq!(ack["sync_timestamp"], "2026-11-22T10:00:00.000Z");
        }
    })
    .await;
}

#[tokio::test]
async fn sync_conflict() {
    over_each(async |_, ws| {
        ws.call("data_update", update(1, json!({})), "acknowledged").await;
        let stale = update(1, json!({"base_version": 0, "new_data": {"v": 2}}));
        ws.send("data_update", stale).await;
        let conflict = ws.wait("sync_conflict").await;
        assert_eq!((&conflict["conflict_type"], &conflict["version"]), (&json!("version"), &json!(1)));
        assert_eq!(conflict["conflict_data"]["remote_version"], json!({"v": 2}));
    })
    .await;
}

#[tokio::test]
async fn sync_conflict_resolved() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        ws.call("data_update", update(1, json!({})), "acknowledged").await;
        ws.send("data_update", update(1, json!({"base_version": 0, "new_data": {"v": 2}}))).await;
        for session in [ws, &mut other] {
            let resolved = session.wait("sync_conflict_resolved").await;
            assert_eq!(resolved["resolution_method"], "last_writer_wins");
            assert_eq!((&resolved["device_id"], &resolved["deleted"]), (&json!("d"), &json!(false)));
        }
    })
    .await;
}

#[tokio::test]
async fn sync_error() {
    over_each(async |_, ws| {
        let error = ws.call("sync_request", json!({"device_id": "d"}), "sync_error").await;
        assert_eq!((&error["error_code"], &error["sync_type"]), (&json!("2005"), &json!("full")));
    })
    .await;
    // Also when a device does not say in time that it is done.
    for over in [Over::WebSocket, Over::SocketIo] {
        let settings = GatewaySettings { sync_timeout: Duration::from_millis(50), ..GatewaySettings::default() };
        let server = Server::with(settings).await;
        let mut ws = server.session(over).await;
        ws.online("d").await;
        become_master(&mut ws).await;
        ws.call("sync_request", json!({"device_id": "d"}), "sync_response").await;
        assert_eq!(ws.wait("sync_error").await["error_code"], "2003");
    }
}

#[tokio::test]
async fn sync_error_ack() {
    over_each(async |_, ws| {
        let report = json!({"device_id": "d", "error_message": "m", "error_code": "2001"});
        let ack = ws.call("sync_error", report, "sync_error_ack").await;
        assert_eq!((&ack["error_message"], &ack["error_code"]), (&json!("m"), &json!("2001")));
    })
    .await;
}

#[tokio::test]
async fn data_update() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        ws.send("data_update", update(7, json!({"request_id": "r", "operation": "insert"}))).await;
        for session in [ws, &mut other] {
            let change = session.wait("data_update").await;
            assert_eq!((&change["device_id"], &change["record_id"]), (&json!("d"), &json!(7)));
            assert_eq!((&change["operation"], &change["request_id"]), (&json!("insert"), &json!("r")));
            assert_eq!((&change["new_data"], place_of(&change["cursor"])), (&json!({"v": 1}), 1));
        }
    })
    .await;
}

#[tokio::test]
async fn data_response() {
    over_each(async |_, ws| {
        ws.call("data_update", update(1, json!({})), "acknowledged").await;
        for (record, data) in [(1, json!({"v": 1})), (2, json!(null))] {
            let asked = json!({"device_id": "d", "table_name": "t", "record_id": record});
            let response = ws.call("data_request", asked, "data_response").await;
            assert_eq!((&response["record_id"], &response["data"]), (&json!(record), &data));
        }
    })
    .await;
}

#[tokio::test]
async fn queue_status_response() {
    over_each(async |_, ws| {
        let status = ws.call("queue_status", json!({"device_id": "d"}), "queue_status_response").await;
        assert_eq!((&status["queue_type"], &status["status"]), (&json!("sync"), &json!("idle")));
        ws.call("sync_error", json!({"device_id": "d", "error_message": "m"}), "sync_error_ack").await;
        let status = ws.call("queue_status", json!({"device_id": "d"}), "queue_status_response").await;
        assert_eq!(status["status"], "error");
    })
    .await;
}

#[tokio::test]
async fn critical_event() {
    over_each(async |server, ws| {
        let mut other = server.device("e").await;
        other.send("critical_event", json!({"event_type": "fire", "payload": {"a": {}}, "device_id": "e"})).await;
        for session in [ws, &mut other] {
            let event = session.wait("critical_event").await;
            assert_eq!((&event["payload"], &event["device_id"]), (&json!({"a": {}}), &json!("e")));
        }
    })
    .await;
}

#[tokio::test]
async fn registered() {
    over_each(async |_, ws| {
        let registered = ws.wait("registered").await;
        assert_eq!((&registered["device_id"], &registered["role"]), (&json!("d"), &json!("client")));
        ws.online("d").await;
        ws.none("registered").await;
    })
    .await;
}

#[tokio::test]
async fn acknowledged() {
    over_each(async |_, ws| {
        let ack = ws.call("data_update", update(1, json!({"request_id": "r"})), "acknowledged").await;
        assert_eq!((&ack["message"], &ack["seq"]), (&json!("data_update committed"), &json!(1)));
        let again = ws.call("data_update", update(1, json!({"request_id": "r"})), "acknowledged").await;
        assert_eq!((&again["seq"], &again["repeated"]), (&json!(1), &json!(true)));
    })
    .await;
}

#[tokio::test]
async fn heartbeat_ack() {
    over_each(async |_, ws| {
        assert_eq!(ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await["device_id"], "d");
    })
    .await;
}

#[tokio::test]
async fn error() {
    over_each(async |_, ws| {
        let error = ws.call("data_update", json!({"device_id": "d", "table_name": "t"}), "error").await;
        assert_eq!(
            (&error["error_code"], &error["field"], &error["retry"]),
            (&json!("2004"), &json!("record_id"), &json!("no"))
        );
        // The connection stays.
        ws.call("data_update", update(1, json!({})), "acknowledged").await;
    })
    .await;
}

#[tokio::test]
async fn access_changed() {
    over_each(async |server, ws| {
        server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {}}))).await;
        server.rest("PUT", "/access/manager", Some(json!({"tables": {"*": "none"}}))).await;
        let rights = json!({"tables": {"t": "none"}, "create_tables": false});
        server.rest("PUT", "/access/admin", Some(rights)).await;
        let told = ws.wait("access_changed").await;
        assert_eq!((&told["class"], &told["forget"]), (&json!("admin"), &json!(["t"])), "not of other classes");
        assert_eq!((&told["tables"], &told["create_tables"]), (&json!({"t": "none", "*": "write"}), &json!(false)));
        server.rest("PUT", "/access/admin", Some(json!({"tables": {}}))).await;
        assert_eq!(ws.wait("access_changed").await["resync"], json!(["t"]));
    })
    .await;
}

#[tokio::test]
async fn token_renewed() {
    over_each(async |_, ws| {
        let renewed = ws.call("token_renew", json!({"timestamp": "2026-11-22T10:00:00Z"}), "token_renewed").await;
        assert_eq!((&renewed["device_id"], &renewed["class"]), (&json!("admin"), &json!("admin")));
    })
    .await;
}
