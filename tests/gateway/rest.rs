//! The endpoints: what they answer, and what they say to bad input.

use serde_json::{Value, json};

use crate::harness::{Server, place_of};

#[tokio::test]
async fn devices_register_and_change_roles() {
    let server = Server::start().await;
    let register = |id: &str, more: Value| {
        let mut body = json!({"device_id": id});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (status, body) =
        server.rest("POST", "/device/register", Some(register("a b/ü", json!({"priority": 40})))).await;
    assert_eq!((status, &body["role"], &body["master_device_id"]), (200, &json!("client"), &json!(null)));
    assert_eq!(body["sync_status"], "connected");
    // Ids are percent-decoded.
    let (status, device) = server.rest("GET", "/device/roles/a%20b%2F%C3%BC", None).await;
    assert_eq!((status, &device["priority"], &device["is_active"]), (200, &json!(40), &json!(true)));
    let (status, body) =
        server.rest("PUT", "/device/roles/a%20b%2F%C3%BC", Some(json!({"role": "master", "reason": "r"}))).await;
    assert_eq!((status, &body["new_role"]), (200, &json!("master")));
    let (_, body) = server.rest("POST", "/device/register", Some(register("m", json!({"role": "master"})))).await;
    assert_eq!((&body["role"], &body["master_device_id"]), (&json!("client"), &json!("a b/ü")));
    let (_, all) = server.rest("GET", "/device/roles", None).await;
    assert_eq!(all["devices"].as_array().unwrap().len(), 2);
    let (_, logs) = server.rest("GET", "/sync/master-election-logs", None).await;
    assert_eq!((&logs["logs"][0]["new_master_id"], &logs["pagination"]["total"]), (&json!("a b/ü"), &json!(1)));
    let (_, health) = server.rest("GET", "/system/health", None).await;
    assert_eq!((&health["status"], &health["master_device"]), (&json!("healthy"), &json!("a b/ü")));
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong() {
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    for (method, path, body, status, code, field) in [
        ("POST", "/device/register", Some(json!({})), 400, "4001", "device_id"),
        ("POST", "/device/register", Some(json!({"device_id": "d", "priority": 101})), 400, "4001", "priority"),
        ("PUT", "/device/roles/d", Some(json!({"role": "king", "reason": "r"})), 400, "4002", "role"),
        ("PUT", "/device/roles/d", Some(json!({"role": "client"})), 400, "4002", "reason"),
        ("PUT", "/sync/state/d", Some(json!({"sync_status": "x"})), 400, "2004", "sync_status"),
        ("PUT", "/sync/state/d", Some(json!({"pending_changes_count": -1})), 400, "2004", "pending_changes_count"),
        ("GET", "/sync/audit-logs?limit=0", None, 400, "2004", "limit"),
        ("GET", "/sync/audit-logs?limit=1001", None, 400, "2004", "limit"),
        ("GET", "/sync/audit-logs?offset=-1", None, 400, "2004", "offset"),
        ("GET", "/sync/audit-logs?offset=9223372036854775808", None, 400, "2004", "offset"),
        ("GET", "/sync/audit-logs?start_date=soon", None, 400, "2004", "start_date"),
        ("GET", "/sync/master-election-logs?limit=x", None, 400, "2004", "limit"),
        ("GET", "/data/t/x", None, 400, "2004", "record_id"),
        ("GET", "/data/%20/1", None, 400, "2004", "table_name"),
        ("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": []})), 400, "2004", "new_data"),
        ("POST", "/system/election", Some(json!({"reason": "x"})), 400, "4003", "reason"),
        ("PUT", "/sync/policies/t", Some(json!({"policy": "dice"})), 400, "2004", "policy"),
        ("POST", "/sync/conflicts/x/resolve", Some(json!({})), 400, "2004", "id"),
        ("GET", "/device/roles/nobody", None, 404, "3004", ""),
        ("GET", "/sync/state/nobody", None, 404, "3004", ""),
        ("PUT", "/sync/state/nobody", Some(json!({})), 404, "3004", ""),
        ("PUT", "/device/roles/nobody", Some(json!({"role": "client", "reason": "r"})), 404, "3004", ""),
        ("POST", "/sync/conflicts/7/resolve", Some(json!({"resolved_data": {}})), 409, "2002", ""),
        ("GET", "/sync/changes?cursor=x", None, 409, "1005", ""),
        ("GET", "/no/such", None, 404, "2004", ""),
        ("DELETE", "/device/roles", None, 405, "2004", ""),
        ("GET", "/ws", None, 400, "1003", ""),
    ] {
        let (got, answer) = server.rest(method, path, body).await;
        assert_eq!((got, &answer["error_code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert_eq!(answer["success"], false);
        assert_eq!(answer.get("field").and_then(Value::as_str).unwrap_or(""), field, "{method} {path}: {answer}");
    }
    let client = reqwest::Client::new();
    let post = |body: Vec<u8>| {
        client.post(format!("http://{}/data/t/1", server.addr)).bearer_auth(server.admin()).body(body).send()
    };
    assert_eq!(post(b"{not json".to_vec()).await.unwrap().status(), 400);
    assert_eq!(post(vec![0xff, 0xfe]).await.unwrap().status(), 400);
    let deep = format!("{{\"new_data\": {{\"a\": {}{}}}}}", "[".repeat(500), "]".repeat(500));
    assert_eq!(post(deep.into_bytes()).await.unwrap().status(), 400);
    let large = post(vec![b' '; tillsync::limits::FRAME + 1]).await.unwrap();
    assert_eq!(large.status(), 413);
    assert_eq!(large.json::<Value>().await.unwrap()["error_code"], "2004");
    assert_eq!(server.head(), 0);
}

#[tokio::test]
async fn records_and_the_change_feed_work_without_a_socket() {
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    let write = |id: u64, table: &str, body: Value| {
        let (server, path) = (&server, format!("/data/{table}/{id}"));
        async move { server.rest("POST", &path, Some(body)).await }
    };
    for i in 1..=25u64 {
        let (status, ack) =
            write(i, if i % 2 == 0 { "even" } else { "odd" }, json!({"device_id": "d", "new_data": {"i": i}})).await;
        assert_eq!((status, &ack["seq"], &ack["success"]), (200, &json!(i), &json!(true)));
    }
    let (_, record) = server.rest("GET", "/data/odd/3", None).await;
    assert_eq!((&record["data"], &record["version"]), (&json!({"i": 3}), &json!(3)));
    write(3, "odd", json!({"device_id": "d", "operation": "delete"})).await;
    assert_eq!(server.rest("GET", "/data/odd/3", None).await.1["data"], json!(null));
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let path = format!("/sync/changes?tables=odd&limit=4&cursor={cursor}");
        let (status, page) = server.rest("GET", &path, None).await;
        assert_eq!(status, 200);
        seen.extend(page["changes"].as_array().unwrap().iter().map(|c| c["seq"].as_u64().unwrap()));
        cursor = page["cursor"].as_str().unwrap().to_owned();
        if page["has_more"] == false {
            break;
        }
    }
    let odd: Vec<u64> = (1..=25).filter(|i| i % 2 == 1).chain([26]).collect();
    assert_eq!(seen, odd);
    // As a stream: what there is, then what comes.
    let url = format!("http://{}/sync/changes?cursor={cursor}", server.addr);
    let request = reqwest::Client::new().get(url).bearer_auth(server.admin()).header("accept", "text/event-stream");
    let mut stream = request.send().await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), ": here\n\n");
    write(99, "odd", json!({"device_id": "d", "new_data": {"new": true}})).await;
    let chunk = stream.chunk().await.unwrap().unwrap();
    let text = std::str::from_utf8(&chunk).unwrap();
    let (id, rest) = text.strip_prefix("id: ").and_then(|rest| rest.split_once('\n')).unwrap();
    assert_eq!(place_of(&json!(id)), 27);
    assert!(rest.starts_with("event: data_update\ndata: {"), "{text}");
    assert!(text.contains(r#""data":{"new":true}"#) && text.ends_with("\n\n"), "{text}");
}

#[tokio::test]
async fn logs_are_listed_newest_first_with_their_filters() {
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    for _ in 0..5 {
        let (status, election) = server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
        assert_eq!((status, &election["new_master_id"]), (200, &json!("d")));
    }
    let (_, page) = server.rest("GET", "/sync/master-election-logs?limit=2&offset=1", None).await;
    let ids: Vec<_> = page["logs"].as_array().unwrap().iter().map(|l| l["id"].as_u64().unwrap()).collect();
    assert_eq!((ids, &page["pagination"]), (vec![4, 3], &json!({"limit": 2, "offset": 1, "total": 5})));
    assert_eq!(server.rest("GET", "/sync/master-election-logs?offset=99", None).await.1["logs"], json!([]));
    let (_, audit) = server.rest("GET", "/sync/audit-logs?event_type=master_elected&limit=1000", None).await;
    assert_eq!(audit["pagination"]["total"], 5);
    let today = tillsync::model::time::iso(tillsync::clock::Clock::now_ms(&tillsync::clock::SystemClock));
    let today = &today[..10];
    let path = format!("/sync/audit-logs?event_type=master_elected&start_date={today}&end_date={today}");
    assert_eq!(server.rest("GET", &path, None).await.1["pagination"]["total"], 5);
    let path = "/sync/audit-logs?end_date=2020-01-01";
    assert_eq!(server.rest("GET", path, None).await.1["pagination"]["total"], 0);
}

#[tokio::test]
async fn the_cluster_endpoint_tells_digest_and_index_together() {
    let server = Server::start().await;
    let (status, body) = server.rest("GET", "/system/cluster", None).await;
    assert_eq!((status, &body["node"], &body["leader"]), (200, &json!(1), &json!(1)));
    // Its name, and who leads.
    assert_eq!((&body["digest_index"], body["digest"].as_str().unwrap().len()), (&json!(2), 32));
    let (_, network) = server.rest("GET", "/system/network", None).await;
    assert_eq!((&network["network_status"], &network["network_latency"]), (&json!("connected"), &json!(0.0)));
    let (_, health) = server.rest("GET", "/system/health", None).await;
    assert_eq!(health["status"], "degraded", "there is no master");
}

#[tokio::test]
async fn paging_by_id_gives_each_row_of_a_log_once_while_others_are_written() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    for n in 0..12 {
        ws.update("d", "t", n, json!({"n": n})).await;
        server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
    }
    for path in [
        "/sync/audit-logs?device_id=d&event_type=data_update&start_date=2020-01-01&limit=5",
        "/sync/audit-logs?limit=5",
        "/sync/master-election-logs?limit=5",
    ] {
        let (_, all) = server.rest("GET", &format!("{path}00"), None).await;
        let ids_of = |page: &Value| -> Vec<u64> {
            page["logs"].as_array().unwrap().iter().map(|row| row["id"].as_u64().unwrap()).collect()
        };
        let all = ids_of(&all);
        assert!(all.len() >= 12, "{path}: {all:?}");
        // Between two pages, rows of every kind are written.
        let (mut paged, mut before, mut repeated) = (Vec::new(), all[0] + 1, false);
        while before > 0 {
            let (_, page) = server.rest("GET", &format!("{path}&before_id={before}"), None).await;
            let ids = ids_of(&page);
            assert_eq!(page["pagination"]["total"], all.len() - paged.len(), "{path}: those that are left");
            paged.extend(&ids);
            before = ids.last().copied().unwrap_or(0);
            let (_, by_offset) = server.rest("GET", &format!("{path}&offset={}", paged.len()), None).await;
            repeated |= ids_of(&by_offset).iter().any(|id| paged.contains(id));
            ws.update("d", "t", 1, json!({"before": before})).await;
            server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
        }
        assert_eq!(paged, all, "{path}");
        assert!(repeated, "{path}: nothing was written between the pages");
        for bad in ["0", "-1", "x", "1.5"] {
            let (status, error) = server.rest("GET", &format!("{path}&before_id={bad}"), None).await;
            assert_eq!((status, &error["field"]), (400, &json!("before_id")), "{path} {bad}");
        }
    }
}
