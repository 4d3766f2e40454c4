//! Coming back with a cursor: no gap, no repeat, also while others write.

use serde_json::json;

use tokio_util::sync::CancellationToken;

use crate::harness::{Over, Server, place_of, until};

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
            // It is live already when its device comes back.
            ws.call("heartbeat", json!({"device_id": "x"}), "heartbeat_ack").await;
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

/// A session is told of every table until it says which it wants.
#[tokio::test]
async fn naming_fewer_tables_repeats_nothing() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    for i in 0..6 {
        writer.update("w", ["a", "b"][i % 2], i as i64, json!({})).await;
    }
    let mut ws = server.device("x").await;
    writer.update("w", "b", 7, json!({})).await;
    writer.update("w", "a", 8, json!({})).await;
    writer.update("w", "b", 9, json!({})).await;
    for seq in [7, 8, 9] {
        assert_eq!(ws.wait("data_update").await["seq"], seq);
    }
    let online = json!({"device_id": "d", "cursor": "1.2", "subscribe": ["b"]});
    ws.call("device_online", online, "device_online_ack").await;
    for seq in [4, 6] {
        assert_eq!(ws.wait("data_update").await["seq"], seq);
    }
    writer.update("w", "a", 8, json!({})).await;
    writer.update("w", "b", 9, json!({})).await;
    assert_eq!(ws.wait("data_update").await["seq"], 11);
    ws.none("data_update").await;
}

/// The answer, what was missed, what is new: in this order, while others write without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_event_that_resumes_is_answered_before_any_change() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    for i in 0..20 {
        writer.update("w", "t", i, json!({})).await;
    }
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            writer.update("w", "t", 1, json!({})).await;
        }
    });
    for i in 0..60 {
        let over = if i % 2 == 0 { Over::WebSocket } else { Over::SocketIo };
        let mut ws = server.session(over).await;
        // With the newest cursor of others or an old one, after some changes went by, or without one.
        let head = server.head();
        let after = [0, 15, head][i % 3];
        let cursor = if i % 4 == 3 { json!(null) } else { json!(format!("1.{after}")) };
        until("others write on", || server.head() > head + 3).await;
        ws.send("device_online", json!({"device_id": format!("d{i}"), "cursor": cursor})).await;
        let mut last = None;
        let (mut here, mut told) = (None, 0);
        while told < 40 {
            let (event, data) = ws.next().await.unwrap();
            match event.as_str() {
                "device_online_ack" => {
                    here = Some(place_of(&data["cursor"]));
                    assert!(cursor.is_null() || here == Some(after), "{data}");
                    last = here;
                }
                "data_update" => {
                    let seq = data["seq"].as_u64().unwrap();
                    assert!(here.is_some(), "{seq} came before the answer");
                    assert_eq!(Some(seq), last.map(|l: u64| l + 1), "after the cursor {cursor} of {head}");
                    last = Some(seq);
                    told += 1;
                }
                _ => {}
            }
        }
    }
    stop.cancel();
    writing.await.unwrap();
}

/// Whoever says nothing, or something else first, hears of everything since it came.
#[tokio::test]
async fn a_session_that_does_not_resume_misses_nothing_since_it_came() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    writer.update("w", "t", 1, json!({})).await;
    let (mut quiet, mut talks) = (server.ws(&server.admin()).await, server.socketio().await);
    // Socket.IO's session begins with its first packet.
    talks.call("heartbeat", json!({"device_id": "x"}), "heartbeat_ack").await;
    for i in 2..5 {
        writer.update("w", "t", i, json!({})).await;
    }
    for i in 2..5 {
        assert_eq!(talks.wait("data_update").await["seq"], i);
        assert_eq!(quiet.wait("data_update").await["seq"], i);
    }
    // A device that comes online later on the same session changes nothing, and its cursor is where the session is.
    let ack = talks.online("late").await;
    assert_eq!(place_of(&ack["cursor"]), 4);
    writer.update("w", "t", 5, json!({})).await;
    assert_eq!(talks.wait("data_update").await["seq"], 5);
    assert_eq!(quiet.wait("data_update").await["seq"], 5);
}
