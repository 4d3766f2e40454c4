//! Exactly once over the documented doors: queue numbers, and a `request_id` that is used again for something else.

use serde_json::{Value, json};

use crate::harness::{Over, Server, Ws, over_each};

/// An entry of a queue that puts `{"v": n}` into record `n` of table `t`.
fn sale(n: u64, after: u64) -> Value {
    json!({"device_id": "d", "table_name": "t", "record_id": n, "new_data": {"v": n}, "queue": "q", "n": n, "after": after})
}

fn with(mut update: Value, field: &str, value: Value) -> Value {
    update[field] = value;
    update
}

/// Sends it over the session, or over REST; the answer.
async fn send(server: &Server, ws: Option<&mut Ws>, update: Value) -> Value {
    match ws {
        Some(ws) => {
            ws.send("data_update", update).await;
            loop {
                let (name, answer) = ws.next().await.expect("closed before the answer");
                if name == "acknowledged" || name == "error" {
                    return answer;
                }
            }
        }
        None => {
            let path = format!("/data/{}/{}", update["table_name"].as_str().unwrap(), update["record_id"]);
            let (status, answer) = server.rest("POST", &path, Some(update)).await;
            assert_eq!(status == 200, answer["success"] == true, "{answer}");
            assert!(status == 200 || status == 400, "{status} {answer}");
            answer
        }
    }
}

/// A refusal that is final, names the field, and wrote nothing.
fn refused(answer: &Value, field: &str) {
    assert_eq!((&answer["error_code"], &answer["retry"]), (&json!("2004"), &json!("no")), "{answer}");
    assert_eq!(answer["field"], field, "{answer}");
}

/// The doors of a `data_update`: both kinds of sockets, and REST.
async fn at_each_door(mut test: impl AsyncFnMut(&Server, Option<&mut Ws>)) {
    over_each(async |server, ws| test(server, Some(ws)).await).await;
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    test(&server, None).await;
}

#[tokio::test]
async fn an_entry_is_applied_once_and_what_does_not_follow_is_refused_with_the_last_number() {
    at_each_door(async |server, mut ws| {
        let first = send(server, ws.as_deref_mut(), sale(1, 0)).await;
        assert_eq!((&first["queue"], &first["n"], first.get("repeated")), (&json!("q"), &json!(1), None), "{first}");
        send(server, ws.as_deref_mut(), sale(2, 1)).await;
        let again = send(server, ws.as_deref_mut(), sale(1, 0)).await;
        assert_eq!(
            (&again["repeated"], &again["seq"], &again["cursor"]),
            (&json!(true), &first["seq"], &first["cursor"])
        );
        let gap = send(server, ws.as_deref_mut(), sale(4, 3)).await;
        refused(&gap, "after");
        assert_eq!(gap["last"], 2);
        let other = send(server, ws.as_deref_mut(), with(sale(1, 0), "new_data", json!({"v": "other"}))).await;
        refused(&other, "n");
        assert_eq!(other["last"], 2);
        assert_eq!(server.head(), 2, "nothing else was applied");
        // Entry 3 was given up.
        let fourth = send(server, ws, sale(4, 2)).await;
        assert_eq!((&fourth["n"], &fourth["seq"]), (&json!(4), &json!(3)), "{fourth}");
    })
    .await;
}

#[tokio::test]
async fn a_request_id_for_something_else_is_refused() {
    at_each_door(async |server, mut ws| {
        let sold = json!({"device_id": "d", "table_name": "t", "record_id": 1, "operation": "insert",
                          "new_data": {"total": 19.90}, "request_id": "till-7-42"});
        let first = send(server, ws.as_deref_mut(), sold.clone()).await;
        for (field, value) in [
            ("table_name", json!("u")),
            ("record_id", json!(2)),
            ("operation", json!("update")),
            ("new_data", json!({"total": 19.91})),
        ] {
            let answer = send(server, ws.as_deref_mut(), with(sold.clone(), field, value)).await;
            refused(&answer, "request_id");
        }
        let again = send(server, ws, with(sold, "new_data", json!({"total": 19.9}))).await;
        assert_eq!((&again["repeated"], &again["seq"]), (&json!(true), &first["seq"]), "{again}");
        assert_eq!(server.head(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_entry_that_is_not_whole_is_refused_and_the_field_named() {
    at_each_door(async |server, mut ws| {
        let without = |field: &str| with(sale(1, 0), field, Value::Null);
        for (update, field) in [
            (without("queue"), "queue"),
            (without("n"), "n"),
            (without("after"), "after"),
            (with(sale(1, 0), "queue", json!("")), "queue"),
            (with(sale(1, 0), "queue", json!("q".repeat(65))), "queue"),
            (with(sale(1, 0), "queue", json!(7)), "queue"),
            (with(sale(1, 0), "n", json!(0)), "n"),
            (with(sale(1, 0), "n", json!(1.5)), "n"),
            (with(sale(1, 0), "n", json!(-1)), "n"),
            (with(sale(1, 0), "after", json!(1)), "after"),
            (with(sale(1, 0), "after", json!("0")), "after"),
        ] {
            refused(&send(server, ws.as_deref_mut(), update).await, field);
        }
        assert_eq!(server.head(), 0);
        send(server, ws, sale(1, 0)).await;
        assert_eq!(server.head(), 1);
    })
    .await;
}

/// A till's day, and what it gets when it sends all of it again because no acknowledgement reached it: also what a
/// colleague corrected meanwhile stays.
#[tokio::test]
async fn fifteen_hundred_entries_sent_twice_are_applied_once() {
    const COUNT: u64 = 1_500;
    for over in [Over::WebSocket, Over::SocketIo] {
        let server = Server::start().await;
        for turn in 0..2 {
            let mut ws = server.session(over).await;
            // Only answers: the changes of others are not what this is about.
            let online = json!({"device_id": "d", "subscribe": []});
            ws.call("device_online", online, "device_online_ack").await;
            for chunk in (1..=COUNT).collect::<Vec<_>>().chunks(50) {
                for n in chunk {
                    ws.send("data_update", sale(*n, n - 1)).await;
                }
                for n in chunk {
                    let ack = ws.wait("acknowledged").await;
                    assert_eq!((&ack["n"], ack.get("repeated").is_some()), (&json!(n), turn == 1), "{ack}");
                    // The answers of the newest ones are the first ones.
                    let known = turn == 0 || *n > COUNT - 1_024;
                    assert_eq!(ack["seq"], if known { json!(n) } else { Value::Null }, "{ack}");
                }
            }
            if turn == 0 {
                let corrected = json!({"device_id": "d", "new_data": {"v": "corrected"}});
                assert_eq!(server.rest("POST", "/data/t/1", Some(corrected)).await.0, 200);
            }
        }
        assert_eq!(server.head(), COUNT + 1);
        assert_eq!(server.rest("GET", "/data/t/1", None).await.1["data"], json!({"v": "corrected"}));
    }
}

#[tokio::test]
async fn an_event_of_a_device_that_did_not_register_yet_may_be_sent_again_and_a_rest_call_may_not() {
    over_each(async |server, ws| {
        for (event, payload, answer) in [
            ("data_update", with(sale(1, 0), "device_id", json!("new")), "error"),
            ("queue_status", json!({"device_id": "new"}), "error"),
            ("critical_event", json!({"device_id": "new", "event_type": "e", "payload": {}}), "error"),
            ("sync_request", json!({"device_id": "new"}), "sync_error"),
        ] {
            let error = ws.call(event, payload, answer).await;
            assert_eq!((&error["error_code"], &error["retry"]), (&json!("3004"), &json!("safe")), "{event}: {error}");
        }
        // As the hint says: after it came online, the same entry is taken.
        ws.online("new").await;
        let ack = ws.call("data_update", with(sale(1, 0), "device_id", json!("new")), "acknowledged").await;
        assert_eq!(ack["n"], 1);
        for (method, path, body) in [
            ("GET", "/sync/state/nobody", None),
            ("POST", "/data/t/1", Some(json!({"device_id": "nobody", "new_data": {}}))),
        ] {
            let (status, error) = server.rest(method, path, body).await;
            assert_eq!((status, &error["error_code"], &error["retry"]), (404, &json!("3004"), &json!("no")), "{path}");
        }
    })
    .await;
}
