//! Coming back with a cursor: no gap, no repeat, also while others write.

use serde_json::json;

use crate::harness::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_comes_then_what_is_new_once_each() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    for i in 0..700 {
        writer.send("data_update", json!({"device_id": "w", "table_name": "t", "record_id": i, "new_data": {}})).await;
    }
    for _ in 0..700 {
        writer.wait("acknowledged").await;
    }
    let cursor = loop {
        let change = writer.wait("data_update").await;
        if change["seq"] == 100 {
            break change["cursor"].clone();
        }
    };
    let writing = tokio::spawn(async move {
        for i in 700..1_500 {
            writer
                .send("data_update", json!({"device_id": "w", "table_name": "t", "record_id": i, "new_data": {}}))
                .await;
            if i % 50 == 0 {
                writer.wait("acknowledged").await;
            }
        }
        writer
    });
    let mut readers = Vec::new();
    for r in 0..4 {
        let mut ws = server.ws(&server.admin()).await;
        let cursor = cursor.clone();
        readers.push(tokio::spawn(async move {
            let online = json!({"device_id": format!("r{r}"), "cursor": cursor});
            let ack = ws.call("device_online", online, "device_online_ack").await;
            assert_eq!(ack["cursor"], cursor);
            // Live events may come before the device is online; together with what was missed it is each once.
            let mut seen = std::collections::BTreeSet::new();
            while seen.len() < 1_400 {
                let seq = ws.wait("data_update").await["seq"].as_u64().unwrap();
                assert!(seen.insert(seq), "{seq} came twice");
            }
            assert_eq!((*seen.first().unwrap(), *seen.last().unwrap()), (101, 1_500));
            ws.none("data_update").await;
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_cursor_of_another_history_is_refused_and_the_device_is_online() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    let mut ws = server.ws(&server.admin()).await;
    for cursor in ["ffff.0", "1.99", "nonsense"] {
        ws.call("device_online", json!({"device_id": "d", "cursor": cursor}), "device_online_ack").await;
        let error = ws.wait("error").await;
        assert_eq!((&error["error_code"], &error["field"]), (&json!("1005"), &json!("cursor")), "{cursor}");
    }
    writer.update("w", "t", 1, json!({})).await;
    assert_eq!(ws.wait("data_update").await["seq"], 1);
}

#[tokio::test]
async fn a_resume_keeps_to_the_subscription() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    for (i, table) in ["a", "b", "a", "b"].into_iter().enumerate() {
        writer.update("w", table, i as i64, json!({})).await;
    }
    let mut ws = server.ws(&server.admin()).await;
    let online = json!({"device_id": "d", "cursor": "1.0", "subscribe": ["b"]});
    ws.call("device_online", online, "device_online_ack").await;
    for seq in [2, 4] {
        assert_eq!(ws.wait("data_update").await["seq"], seq);
    }
    writer.update("w", "a", 9, json!({})).await;
    writer.update("w", "b", 9, json!({})).await;
    assert_eq!(ws.wait("data_update").await["seq"], 6);
    ws.none("data_update").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_comes_after_the_answer() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    for i in 0..20 {
        writer.update("w", "t", i, json!({})).await;
    }
    for i in 0..100 {
        let mut ws = server.ws(&server.admin()).await;
        ws.send("device_online", json!({"device_id": format!("d{i}"), "cursor": "1.0"})).await;
        let mut here = false;
        loop {
            let (event, data) = ws.next().await.unwrap();
            here |= event == "device_online_ack";
            assert!(here || event != "data_update", "{data} came before the answer");
            if data["seq"] == 20 {
                break;
            }
        }
    }
}
