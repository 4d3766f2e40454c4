//! The audit log says whose token it was.

use serde_json::{Value, json};
use tillsync::ids::UnixMs;
use tillsync::token::Class;

use crate::harness::{Over, Server, Ws};

/// The newest row of an event, and of a device if one is named.
async fn row(server: &Server, event: &str, device: &str) -> Value {
    let path = format!("/sync/audit-logs?event_type={event}&limit=1{device}");
    let (status, body) = server.rest("GET", &path, None).await;
    assert_eq!(status, 200, "{body}");
    body["logs"][0].clone()
}

#[tokio::test]
async fn every_row_of_what_was_done_for_another_device_names_the_token() {
    let server = Server::start().await;
    let mut till = server.ws(&server.token("till", Class::SalesAssistant)).await;
    till.online("till").await;
    server.device("other").await;
    let (token, claims) = server.keys.issue("chief", Class::Manager, UnixMs(now()), 3_600).unwrap();
    let rest = |method: &'static str, path: String, body: Value| {
        let (server, token) = (&server, &token);
        async move {
            let (status, answer) = server.rest_as(token, method, &path, Some(body)).await;
            assert_eq!(status, 200, "{method} {path}: {answer}");
            answer
        }
    };
    let named = async |event: &str, device: &str| {
        let row = row(&server, event, device).await;
        assert_eq!((&row["by"], &row["jti"]), (&json!("chief"), &json!(claims.jti)), "{event}: {row}");
        row
    };
    let of_till = "&device_id=till";

    // A device that does something of its own needs no name.
    till.update("till", "t", 1, json!({"n": 1})).await;
    for event in ["data_update", "device_online"] {
        let own = row(&server, event, of_till).await;
        assert_eq!((&own["by"], &own["jti"]), (&Value::Null, &Value::Null), "{own}");
    }

    rest("POST", "/data/t/2".into(), json!({"device_id": "till", "new_data": {"n": 2}})).await;
    named("data_update", of_till).await;
    rest("PUT", "/sync/state/till".into(), json!({"sync_status": "pending"})).await;
    named("sync_state_update", of_till).await;
    rest("PUT", "/device/roles/till".into(), json!({"role": "master", "reason": "the till by the door"})).await;
    named("role_change", of_till).await;
    named("master_elected", of_till).await;
    rest("PUT", "/sync/policies/t".into(), json!({"policy": "manual"})).await;
    named("policy_change", "").await;
    rest("POST", "/system/election".into(), json!({"reason": "manual", "initiated_by": "the back office"})).await;
    named("master_elected", "").await;
    let (_, elections) = server.rest("GET", "/sync/master-election-logs?limit=1", None).await;
    let election = &elections["logs"][0];
    assert_eq!((&election["initiated_by"], &election["by"]), (&json!("the back office"), &json!("chief")));

    let mut chief = server.ws(&token).await;
    chief.online("spare").await;
    named("device_online", "&device_id=spare").await;
    chief.update("spare", "t", 3, json!({"n": 3})).await;
    named("data_update", "&device_id=spare").await;
    let critical = json!({"device_id": "spare", "event_type": "alarm", "payload": {}});
    chief.call("critical_event", critical, "acknowledged").await;
    named("critical_event", "&device_id=spare").await;
    let error = json!({"device_id": "spare", "error_message": "e", "error_code": "2001", "sync_type": "full"});
    chief.call("sync_error", error, "sync_error_ack").await;
    named("sync_error", "&device_id=spare").await;
    let sync = json!({"device_id": "spare", "sync_type": "full"});
    chief.call("sync_request", sync, "sync_response").await;
    named("sync_request", "&device_id=spare").await;
    let done = json!({"device_id": "spare", "changes_count": 0});
    chief.call("sync_complete", done, "sync_complete_ack").await;
    named("sync_complete", "&device_id=spare").await;
    let conflict = json!({"device_id": "till", "table_name": "t", "record_id": 1, "conflict_type": "data",
        "conflict_data": {"local_version": {"n": 1}, "remote_version": {"n": 9}}});
    let noted = chief.call("sync_conflict", conflict, "acknowledged").await;
    named("sync_conflict", of_till).await;
    let path = format!("/sync/conflicts/{}/resolve", noted["conflict_id"]);
    rest("POST", path, json!({"resolved_data": {"n": 9}})).await;
    named("sync_conflict_resolved", "").await;
    chief.call("role_change", json!({"device_id": "spare", "new_role": "master"}), "role_change_ack").await;
    named("role_change", "&device_id=spare").await;
    chief.call("device_offline", json!({"device_id": "spare"}), "device_offline_ack").await;
    named("device_offline", "&device_id=spare").await;
    chief.online("spare").await;
    chief.call("device_shutdown", json!({"device_id": "spare"}), "acknowledged").await;
    named("device_shutdown", "&device_id=spare").await;
}

fn now() -> u64 {
    use tillsync::clock::Clock;
    tillsync::clock::SystemClock.now_ms().get()
}

#[tokio::test]
async fn what_an_admin_does_to_the_cluster_names_the_token() {
    let server = Server::start().await;
    let (token, claims) = server.keys.issue("admin", Class::Admin, UnixMs(now()), 3_600).unwrap();
    let begin = json!({"import_id": "7f", "step": "begin", "device_rows": 3, "sync_rows": 3, "election_rows": 0,
        "audit_rows": 1});
    let revoke = json!({"jti": "stolen"});
    for (path, body, event) in [("/system/import", begin, "import"), ("/system/tokens/revoke", revoke, "token_revoke")]
    {
        let (status, answer) = server.rest_as(&token, "POST", path, Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        let row = row(&server, event, "").await;
        assert_eq!((&row["by"], &row["jti"]), (&json!("admin"), &json!(claims.jti)), "{row}");
    }
}

#[tokio::test]
async fn an_election_says_who_asked_for_it_on_both_transports() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let server = Server::start().await;
        let mut session: Ws = server.session(over).await;
        session.online("d").await;
        let asked = json!({"reason": "manual", "initiated_by": "d"});
        let elected = session.call("master_election", asked, "master_elected").await;
        assert_eq!((&elected["initiated_by"], &elected["by"]), (&json!("d"), &json!("admin")), "{elected}");
    }
}
