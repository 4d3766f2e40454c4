//! A refusal carries the `request_id` of what it refuses, so that a client with many requests under way knows which.

use serde_json::{Value, json};
use tillsync::token::Class;

use crate::harness::{Server, over_each};
use crate::socketio::Sio;

/// Refused at every stage: not understood, not allowed, by the cluster, by a read, by a conflict, by a sync.
#[tokio::test]
async fn a_refusal_carries_the_request_id() {
    over_each(async |server, ws| {
        let update = |device: &str, record: Value| {
            json!({"device_id": device, "table_name": "t", "record_id": record, "new_data": {}, "base_version": 0})
        };
        server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
        server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {"v": 1}}))).await;
        let shy = json!({"device_id": "d", "new_role": "client"});
        for (n, (event, payload, answer, code)) in [
            ("data_update", update("d", json!("one")), "error", "2004"),
            ("nonsense", json!({}), "error", "2004"),
            ("data_update", update("nobody", json!(1)), "error", "3004"),
            ("data_update", update("d", json!(1)), "error", "2002"),
            ("role_change", shy, "role_change_ack", ""),
            ("role_change", json!({"device_id": "nobody", "new_role": "client"}), "error", "3004"),
            ("queue_status", json!({"device_id": "nobody"}), "error", "3004"),
            ("device_online", json!({"device_id": "d", "cursor": "ffff.1"}), "error", "1005"),
            ("sync_request", json!({"device_id": "d", "sync_type": "some"}), "sync_error", "2001"),
            ("sync_request", json!({"device_id": "nobody"}), "sync_error", "3004"),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("r-{n}");
            let mut asked = payload;
            asked["request_id"] = json!(id);
            let told = ws.call(event, asked, answer).await;
            if !code.is_empty() {
                assert_eq!((&told["error_code"], &told["request_id"]), (&json!(code), &json!(id)), "{event}: {told}");
            }
        }
        // Without one, or with one that cannot be used, there is none.
        for id in [json!(null), json!(7), json!(""), json!("x".repeat(65))] {
            let asked = json!({"device_id": "nobody", "request_id": id});
            let told = ws.call("queue_status", asked, "error").await;
            assert_eq!((&told["error_code"], told.get("request_id")), (&json!("3004"), None), "{told}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_forbidden_or_answered_by_callback_carries_it_too() {
    let server = Server::start().await;
    let token = server.token("till", Class::SalesAssistant);
    let mut ws = server.ws(&token).await;
    let told = ws.call("heartbeat", json!({"device_id": "other", "request_id": "r"}), "error").await;
    assert_eq!((&told["error_code"], &told["request_id"]), (&json!("3003"), &json!("r")));
    let mut sio = Sio::connect_as(&server, &token).await;
    sio.send(r#"421["heartbeat",{"device_id":"other","request_id":"r"}]"#).await;
    let told = sio.wait("431").await;
    assert_eq!((&told[0]["error_code"], &told[0]["request_id"]), (&json!("3003"), &json!("r")));
}
