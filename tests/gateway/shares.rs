//! What one device, or one token, can use up: its own share. The rest of the shop notices nothing.

use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::limits;
use tillsync::proto::command::Intent;
use tillsync::proto::{Asker, DeviceOnline};
use tillsync::token::Class;

use crate::harness::Server;

fn is_share(status: u16, error: &Value, field: &str) {
    assert_eq!((status, &error["error_code"], &error["field"]), (503, &json!("5003"), &json!(field)), "{error}");
    assert_eq!(error["retry_after_ms"], limits::SHARE_RETRY_MS);
}

async fn register(server: &Server, token: &str, id: &str) {
    assert_eq!(server.rest_as(token, "POST", "/device/register", Some(json!({"device_id": id}))).await.0, 200);
}

#[tokio::test]
async fn one_till_makes_its_share_of_tables_and_a_manager_removes_them() {
    let server = Server::start().await;
    let (one, two) = (server.token("till-1", Class::SalesAssistant), server.token("till-2", Class::SalesAssistant));
    let manager = server.token("manager", Class::Manager);
    for (token, id) in [(&one, "till-1"), (&two, "till-2"), (&manager, "manager")] {
        register(&server, token, id).await;
    }
    let body = || Some(json!({"new_data": {}}));
    for n in 0..limits::TABLES_OF_DEVICE {
        assert_eq!(server.rest_as(&one, "POST", &format!("/data/x{n}/1"), body()).await.0, 200);
    }
    let (status, error) = server.rest_as(&one, "POST", "/data/more/1", body()).await;
    is_share(status, &error, "table_name");
    assert_eq!(server.rest_as(&two, "POST", "/data/more/1", body()).await.0, 200);
    // Over a socket it is the same; and the listener of another device hears of the removal as of any delete.
    let mut ws = server.ws(&one).await;
    let update = json!({"device_id": "till-1", "table_name": "y", "record_id": 1, "new_data": {}});
    let error = ws.call("data_update", update.clone(), "error").await;
    assert_eq!((&error["error_code"], &error["field"]), (&json!("5003"), &json!("table_name")));
    let mut listener = server.device("listener").await;
    assert_eq!(server.rest_as(&one, "DELETE", "/data/x3", None).await.1["error_code"], "3003");
    let (status, body) = server.rest_as(&manager, "DELETE", "/data/x3", None).await;
    assert_eq!((status, &body["removed"]), (200, &json!(true)), "{body}");
    let gone = listener.wait("data_update").await;
    assert_eq!((&gone["table_name"], &gone["operation"]), (&json!("x3"), &json!("delete")));
    let (_, policies) = server.rest("GET", "/sync/policies", None).await;
    let names: Vec<&Value> = policies["policies"].as_array().unwrap().iter().map(|p| &p["table_name"]).collect();
    assert_eq!((names.len(), names.contains(&&json!("x3"))), (limits::TABLES_OF_DEVICE, false));
    ws.call("data_update", update, "acknowledged").await;
    let (_, audit) = server.rest("GET", "/sync/audit-logs?event_type=table_remove", None).await;
    assert_eq!((&audit["logs"][0]["device_id"], &audit["pagination"]["total"]), (&json!("manager"), &json!(2)));
}

#[tokio::test]
async fn one_manager_registers_its_share_of_devices_and_they_are_listed_in_pieces() {
    let server = Server::start().await;
    for n in 0..limits::DEVICES_OF_MANAGER {
        let (device_id, asked_by, asker) = (format!("ghost-{n:04}"), "manager".into(), Asker::Manager.into());
        let ghost = DeviceOnline { device_id, asked_by, asker, ..DeviceOnline::default() };
        server.cluster.propose(Intent::DeviceOnline(ghost)).await.unwrap();
    }
    let manager = server.token("manager", Class::Manager);
    let more = Some(json!({"device_id": "one more"}));
    let (status, error) = server.rest_as(&manager, "POST", "/device/register", more).await;
    is_share(status, &error, "device_id");
    register(&server, &server.token("till-1", Class::SalesAssistant), "till-1").await;
    register(&server, &server.token("manager-2", Class::Manager), "one more").await;
    // All of them, as documented; the same in pages.
    let total = limits::DEVICES_OF_MANAGER as usize + 2;
    let (_, all) = server.rest("GET", "/device/roles", None).await;
    assert_eq!((all["devices"].as_array().unwrap().len(), all.get("pagination")), (total, None));
    let (_, stale) = server.rest("GET", "/device/roles?consistency=stale", None).await;
    assert_eq!((&stale["devices"], &stale["consistency"]), (&all["devices"], &json!("stale")));
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = server.rest("GET", &format!("/device/roles?limit=400{after}"), None).await;
        pages.extend(page["devices"].as_array().unwrap().clone());
        assert_eq!(page["pagination"]["total"], total);
        let Some(next) = page.get("next_after") else {
            assert_eq!(page["has_more"], false);
            break;
        };
        after = format!("&after={}", next.as_str().unwrap().replace(' ', "%20"));
    }
    assert_eq!(json!(pages), all["devices"]);
    let (_, page) = server.rest("GET", &format!("/device/roles?limit=5&offset={}", total - 1), None).await;
    assert_eq!((page["devices"].as_array().unwrap().len(), &page["has_more"]), (1, &json!(false)));
    let (status, error) = server.rest("GET", "/device/roles?after=a&offset=1", None).await;
    assert_eq!((status, &error["field"]), (400, &json!("after")));
}

#[tokio::test]
async fn a_till_cannot_make_itself_master_over_a_healthy_one_that_it_does_not_outrank() {
    let server = Server::start().await;
    let office = server.token("office", Class::Manager);
    let mut office = server.ws(&office).await;
    let ack = office
        .call("device_online", json!({"device_id": "office", "role": "master", "priority": 80}), "device_online_ack")
        .await;
    assert_eq!(ack["role"], "master");
    let token = server.token("till-1", Class::SalesAssistant);
    let mut till = server.ws(&token).await;
    till.call("device_online", json!({"device_id": "till-1", "priority": 20}), "device_online_ack").await;
    let order = Some(json!({"role": "master", "reason": "mine"}));
    let (status, error) = server.rest_as(&token, "PUT", "/device/roles/till-1", order).await;
    assert_eq!((status, &error["error_code"]), (409, &json!("4002")));
    assert!(error["error"].as_str().unwrap().contains("\"office\""), "{error}");
    let asked = json!({"device_id": "till-1", "new_role": "master", "reason": "mine"});
    assert_eq!(till.call("role_change", asked, "error").await["error_code"], "4002");
    for reason in ["failure", "shutdown"] {
        let error = till.call("master_election", json!({"reason": reason}), "error").await;
        assert_eq!(error["error_code"], "4002", "{error}");
        let body = Some(json!({"reason": reason, "initiated_by": "office"}));
        assert_eq!(server.rest_as(&token, "POST", "/system/election", body).await.0, 409);
    }
    assert_eq!(server.cluster.replica().state().meta().term, 1);
    // A manager may.
    let manager = server.token("manager", Class::Manager);
    let order = Some(json!({"role": "master", "reason": "the boss said so"}));
    assert_eq!(server.rest_as(&manager, "PUT", "/device/roles/till-1", order).await.0, 200);
    // As documented, the master's own shutdown is followed by an election.
    assert_eq!(till.wait("master_elected").await["new_master_id"], "till-1");
    let shutdown = json!({"device_id": "till-1", "reason": "power"});
    let elected = till.call("device_shutdown", shutdown, "master_elected").await;
    assert_eq!((&elected["new_master_id"], &elected["election_reason"]), (&json!("office"), &json!("shutdown")));
}

#[tokio::test]
async fn a_till_decides_its_own_conflicts_unless_the_policy_says_otherwise() {
    let server = Server::start().await;
    let tokens = ["till-1", "till-2"].map(|id| server.token(id, Class::SalesAssistant));
    for (token, id) in tokens.iter().zip(["till-1", "till-2"]) {
        register(&server, token, id).await;
    }
    let [one, two] = &tokens;
    let insert = |n: u64| Some(json!({"operation": "insert", "new_data": {"sum": n}}));
    let conflict = async |token: &str, n: u64| {
        let (status, error) = server.rest_as(token, "POST", "/data/sales/1", insert(n)).await;
        assert_eq!(status, 409, "{error}");
        error["conflict_id"].as_u64().unwrap()
    };
    assert_eq!(server.rest_as(one, "POST", "/data/sales/1", insert(0)).await.0, 200);
    let (first, second) = (conflict(one, 1).await, conflict(two, 2).await);
    // The same resolution twice, without waiting: the second one must not decide the conflict of another device.
    let mut ws = server.ws(one).await;
    let decision =
        json!({"table_name": "sales", "record_id": 1, "resolution_method": "manual", "resolved_data": {"sum": 9}});
    for _ in 0..2 {
        ws.send("sync_conflict_resolved", decision.clone()).await;
    }
    ws.wait("acknowledged").await;
    let refused = ws.wait("error").await["error_code"].clone();
    assert!(refused == "2002" || refused == "3003", "{refused}");
    let (_, open) = server.rest("GET", "/sync/conflicts", None).await;
    assert_eq!((&open["pagination"]["total"], &open["conflicts"][0]["conflict_id"]), (&json!(1), &json!(second)));
    assert!(first < second);
    let policy = Some(json!({"decides": "privileged"}));
    let (_, set) = server.rest("PUT", "/sync/policies/sales", policy).await;
    assert_eq!((&set["decides"], &set["insert_policy"]), (&json!("privileged"), &json!("keep_both")));
    let path = format!("/sync/conflicts/{second}/resolve");
    let (status, error) = server.rest_as(two, "POST", &path, Some(decision.clone())).await;
    assert_eq!((status, &error["error_code"]), (403, &json!("3003")), "{error}");
    let manager = server.token("manager", Class::Manager);
    assert_eq!(server.rest_as(&manager, "POST", &path, Some(decision)).await.0, 200);
    assert_eq!(server.rest("GET", "/sync/policies/other", None).await.1["decides"], "owner");
}
