//! Two devices drew the same number: both sales stay, everyone concerned is told, and a decision is about one conflict.

use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::token::Class;

use crate::harness::{Over, Server, Ws};

fn sale(device: &str, sum: u64) -> Value {
    json!({"device_id": device, "table_name": "sales", "record_id": 1, "operation": "insert", "new_data": {"sum": sum}})
}

/// Sessions of tills a and b over a transport, with a's sale 1.
async fn tills(over: Over) -> (Server, Ws, Ws) {
    let server = Server::start().await;
    let (mut a, mut b) = (server.session(over).await, server.session(over).await);
    a.online("a").await;
    b.online("b").await;
    let ack = a.call("data_update", sale("a", 1), "acknowledged").await;
    assert_eq!(ack["seq"], 1);
    (server, a, b)
}

#[tokio::test]
async fn no_sale_is_overwritten_and_both_tills_are_told_once() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let (server, mut a, mut b) = tills(over).await;
        let error = b.call("data_update", sale("b", 2), "error").await;
        assert_eq!((&error["error_code"], &error["retry"]), (&json!("2002"), &json!("no")));
        for till in [&mut a, &mut b] {
            let told = till.wait("sync_conflict").await;
            assert_eq!((&told["conflict_id"], &told["collision"]), (&error["conflict_id"], &json!(true)));
            assert_eq!((&told["device_id"], &told["conflict_type"]), (&json!("b"), &json!("data")));
            assert_eq!(told["conflict_data"]["local_version"], json!({"sum": 1}));
            assert_eq!(told["conflict_data"]["remote_version"], json!({"sum": 2}));
        }
        // Again, as a client without request ids does: the same answer, and nobody is told twice.
        let again = b.call("data_update", sale("b", 2), "error").await;
        assert_eq!(again["conflict_id"], error["conflict_id"]);
        for till in [&mut a, &mut b] {
            till.none("sync_conflict").await;
        }
        let (_, record) = server.rest("GET", "/data/sales/1", None).await;
        assert_eq!((&record["data"], server.head()), (&json!({"sum": 1}), 1));
        let (_, inbox) = server.rest("GET", "/sync/conflicts", None).await;
        assert_eq!(inbox["pagination"]["total"], 1);
    }
}

#[tokio::test]
async fn one_session_that_speaks_for_both_tills_is_told_once() {
    let server = Server::start().await;
    let mut both = server.session(Over::WebSocket).await;
    both.online("a").await;
    both.online("b").await;
    both.call("data_update", sale("a", 1), "acknowledged").await;
    both.call("data_update", sale("b", 2), "error").await;
    both.wait("sync_conflict").await;
    both.none("sync_conflict").await;
    // A session on which only the record's writer came online, and the sender sends.
    let mut relay = server.session(Over::WebSocket).await;
    relay.online("a").await;
    relay.call("data_update", sale("b", 3), "error").await;
    relay.wait("sync_conflict").await;
    relay.none("sync_conflict").await;
}

#[tokio::test]
async fn a_free_number_keeps_both_sales_and_everyone_learns_it() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let (server, mut a, mut b) = tills(over).await;
        let id = b.call("data_update", sale("b", 2), "error").await["conflict_id"].clone();
        let taken = json!({"table_name": "sales", "record_id": 1, "conflict_id": id, "new_record_id": 1, "version": 1});
        let error = b.call("sync_conflict_resolved", taken, "error").await;
        assert_eq!(error["error_code"], "2002");
        let free = json!({"table_name": "sales", "record_id": 1, "conflict_id": id, "new_record_id": 2, "version": 1});
        let ack = b.call("sync_conflict_resolved", free, "acknowledged").await;
        assert_eq!(ack["conflict_id"], id);
        for till in [&mut a, &mut b] {
            let resolved = till.wait("sync_conflict_resolved").await;
            assert_eq!((&resolved["record_id"], &resolved["new_record_id"]), (&json!(1), &json!(2)));
            // A client that knows only the document applies this to record 1, which it leaves as it is.
            assert_eq!((&resolved["resolved_data"], &resolved["deleted"]), (&json!({"sum": 1}), &json!(false)));
            assert_eq!((&resolved["new_record_version"], resolved.get("seq")), (&json!(2), None));
            assert_eq!(till.wait("data_update").await["seq"], 1);
            let insert = till.wait("data_update").await;
            assert_eq!((&insert["record_id"], &insert["operation"]), (&json!(2), &json!("insert")));
            assert_eq!(insert["new_data"], json!({"sum": 2}));
        }
        // The same insert once more: it is decided, and waits no longer.
        let again = b
            .call(
                "data_update",
                json!({"request_id": "b1", "device_id": "b", "table_name": "sales",
            "record_id": 1, "operation": "insert", "new_data": {"sum": 3}}),
                "error",
            )
            .await;
        assert!(again["error"].as_str().unwrap().contains("waits"), "{again}");
        let path = format!("/sync/conflicts/{}/resolve", again["conflict_id"]);
        assert_eq!(server.rest("POST", &path, Some(json!({"resolved_data": {"sum": 1}}))).await.0, 200);
        let repeat = json!({"request_id": "b1", "device_id": "b", "operation": "insert", "new_data": {"sum": 3}});
        let (status, repeated) = server.rest("POST", "/data/sales/1", Some(repeat)).await;
        assert_eq!((status, &repeated["conflict_id"]), (409, &again["conflict_id"]));
        assert!(repeated["error"].as_str().unwrap().contains("was decided"), "{repeated}");
        for (number, sum) in [(1, 1), (2, 2)] {
            let (_, record) = server.rest("GET", &format!("/data/sales/{number}"), None).await;
            assert_eq!(record["data"], json!({"sum": sum}));
        }
    }
}

#[tokio::test]
async fn an_update_of_the_record_makes_decisions_on_the_old_version_2002() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let (server, mut a, mut b) = tills(over).await;
        let id = b.call("data_update", sale("b", 2), "error").await["conflict_id"].clone();
        a.update("a", "sales", 1, json!({"sum": 5})).await;
        let decision = json!({"table_name": "sales", "record_id": 1, "version": 1, "resolved_data": {"sum": 2}});
        let error = b.call("sync_conflict_resolved", decision, "error").await;
        assert_eq!(error["error_code"], "2002");
        assert!(error["error"].as_str().unwrap().contains("version 2"), "{error}");
        let path = format!("/sync/conflicts/{id}/resolve");
        let over_rest = json!({"version": 1, "resolved_data": {"sum": 2}});
        assert_eq!(server.rest("POST", &path, Some(over_rest)).await.0, 409);
        assert_eq!(server.rest("GET", "/data/sales/1", None).await.1["data"], json!({"sum": 5}));
        // The list says what a decision is made on now, beside what it was when the conflict was found.
        let (_, listed) = server.rest("GET", "/sync/conflicts?table_name=sales", None).await;
        let listed = &listed["conflicts"][0];
        assert_eq!((&listed["version"], &listed["record_version"]), (&json!(1), &json!(2)));
        let now = json!({"version": 2, "resolved_data": {"sum": 7}});
        assert_eq!(server.rest("POST", &path, Some(now)).await.0, 200);
        assert_eq!(server.rest("GET", "/data/sales/1", None).await.1["data"], json!({"sum": 7}));
    }
}

#[tokio::test]
async fn a_decision_is_about_the_conflict_that_its_rights_were_checked_on() {
    let server = Server::start().await;
    for id in ["a", "b", "c"] {
        server.rest("POST", "/device/register", Some(json!({"device_id": id}))).await;
    }
    let insert = async |device: &str, record: u64, sum: u64| {
        let body = json!({"device_id": device, "operation": "insert", "new_data": {"sum": sum}});
        server.rest("POST", &format!("/data/sales/{record}"), Some(body)).await.1["conflict_id"].clone()
    };
    insert("a", 1, 1).await;
    let (of_b, of_c) = (insert("b", 1, 2).await, insert("c", 1, 3).await);
    insert("a", 2, 1).await;
    let elsewhere = insert("b", 2, 2).await;
    let mut till = server.ws(&server.token("b", Class::SalesAssistant)).await;
    till.online("b").await;
    let decide = |id: &Value| json!({"device_id": "b", "table_name": "sales", "record_id": 1, "conflict_id": id, "resolved_data": {"sum": 9}});
    // Another till's conflict; its own, but of another record than it says.
    assert_eq!(till.call("sync_conflict_resolved", decide(&of_c), "error").await["error_code"], "3003");
    assert_eq!(till.call("sync_conflict_resolved", decide(&elsewhere), "error").await["error_code"], "2004");
    assert_eq!(till.call("sync_conflict_resolved", decide(&of_b), "acknowledged").await["conflict_id"], of_b);
    // The oldest that is open now is the other till's.
    let oldest = json!({"device_id": "b", "table_name": "sales", "record_id": 1, "resolved_data": {"sum": 9}});
    assert_eq!(till.call("sync_conflict_resolved", oldest, "error").await["error_code"], "3003");
    let open: Vec<u64> = server.cluster.replica().state().open_conflicts().map(|c| c.id).collect();
    assert_eq!(json!(open), json!([of_c, elsewhere]));
}

#[tokio::test]
async fn a_page_of_conflicts_is_bounded_in_bytes_and_the_next_one_goes_on() {
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    let large = |n: u64| json!({"n": n, "x": "x".repeat(200_000)});
    for record in 0..8 {
        for n in [1, 2] {
            let body = json!({"device_id": "d", "operation": "insert", "new_data": large(n)});
            server.rest("POST", &format!("/data/t/{record}"), Some(body)).await;
        }
    }
    let (mut seen, mut offset, mut pages) = (Vec::new(), 0, 0);
    loop {
        let (_, page) = server.rest("GET", &format!("/sync/conflicts?limit=1000&offset={offset}"), None).await;
        assert!(page.to_string().len() < 1_500_000, "{}", page.to_string().len());
        assert_eq!(page["pagination"]["total"], 8);
        seen.extend(page["conflicts"].as_array().unwrap().iter().map(|c| c["record_id"].as_u64().unwrap()));
        pages += 1;
        let Some(next) = page["next_offset"].as_u64() else { break };
        assert_eq!(page["has_more"], true);
        offset = next;
    }
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
    assert!(pages >= 3, "{pages}");
    let (_, first) = server.rest("GET", "/data/t/0/history?limit=1000", None).await;
    assert_eq!(first["history"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_a_decision_or_a_policy_is_named() {
    let server = Server::start().await;
    for (body, field) in [
        (json!({"new_record_id": "x"}), "new_record_id"),
        (json!({"new_record_id": 1.5}), "new_record_id"),
        (json!({"new_record_id": 1, "delete": true}), "new_record_id"),
        (json!({"resolved_data": {}, "version": -1}), "version"),
        (json!({"version": 1}), "resolved_data"),
    ] {
        let (status, error) = server.rest("POST", "/sync/conflicts/1/resolve", Some(body)).await;
        assert_eq!((status, &error["field"]), (400, &json!(field)));
    }
    for (body, field) in [
        (json!({}), "policy"),
        (json!({"policy": "keep_both"}), "policy"),
        (json!({"insert_policy": "never"}), "insert_policy"),
    ] {
        let (status, error) = server.rest("PUT", "/sync/policies/t", Some(body)).await;
        assert_eq!((status, &error["field"]), (400, &json!(field)));
    }
}
