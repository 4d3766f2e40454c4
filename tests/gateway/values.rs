//! JSON that is valid, but not for every client: refused at each door, with the field named and nothing written.

use serde_json::{Value, json};
use tillsync::cluster::Cluster;

use crate::harness::{Over, Server, over_each};

const BAD: [&str; 7] = [
    r#"{"n":"cut \ud83d"}"#,
    r#"{"n":"\ude00\ud83d"}"#,
    r#"{"\ud83d":1}"#,
    r#"{"n":{"deep":["\udfff"]}}"#,
    r#"{"n":1e400}"#,
    r#"{"n":-1E999}"#,
    r#"{"n":1e99999999999999999999}"#,
];

/// A raw event: `serde_json` itself would not make it.
fn frame(over: Over, event: &str, data: &str) -> String {
    match over {
        Over::WebSocket => format!(r#"{{"event":"{event}","data":{data}}}"#),
        Over::SocketIo => format!(r#"42["{event}",{data}]"#),
    }
}

fn audited(server: &Server) -> (u64, u64, u64) {
    let state = server.cluster.replica().state();
    (state.meta().head_seq, state.meta().audit_head, state.meta().conflict_head)
}

#[tokio::test]
async fn what_not_every_client_can_read_is_2004_with_its_field_and_nothing_is_written() {
    over_each(async |server, ws| {
        server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "manual"}))).await;
        ws.update("d", "t", 1, json!({"v": 1})).await;
        let stale = json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {}, "base_version": 0});
        ws.call("data_update", stale, "error").await;
        let before = audited(server);
        for bad in BAD {
            let at = r#""device_id":"d","table_name":"t","record_id":1"#;
            for (event, data, field) in [
                ("data_update", format!(r#"{{{at},"new_data":{bad}}}"#), "new_data"),
                ("sync_conflict_resolved", format!(r#"{{{at},"resolved_data":{bad}}}"#), "resolved_data"),
                (
                    "sync_conflict",
                    format!(r#"{{{at},"conflict_type":"data","conflict_data":{{"remote_version":{bad}}}}}"#),
                    "remote_version",
                ),
                ("critical_event", format!(r#"{{"device_id":"d","event_type":"x","payload":{bad}}}"#), "payload"),
            ] {
                ws.text(&frame(ws.over, event, &data)).await;
                let error = ws.wait("error").await;
                assert_eq!((&error["error_code"], &error["field"]), (&json!("2004"), &json!(field)), "{event} {bad}");
                assert_eq!(error["retry"], "no");
            }
        }
        assert_eq!(audited(server), before);
    })
    .await;
}

#[tokio::test]
async fn what_not_every_client_can_read_is_refused_over_rest() {
    let server = Server::start().await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    let post = async |body: String| {
        let url = format!("http://{}/data/t/1", server.addr);
        let answer = reqwest::Client::new().post(url).bearer_auth(server.admin()).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for bad in BAD {
        let (status, error) = post(format!(r#"{{"device_id":"d","new_data":{bad}}}"#)).await;
        assert_eq!((status, &error["field"], &error["error_code"]), (400, &json!("new_data"), &json!("2004")), "{bad}");
    }
    assert_eq!(server.head(), 0);
    // What only looks like it is taken, and comes back byte for byte.
    for good in [r#"{"n":"\ud83d\ude00 \\ud83d 1e999"}"#, r#"{"n":[1E+2,1e-999,0e999,-0]}"#, r#"{"n":"a\u0000b"}"#] {
        assert_eq!(post(format!(r#"{{"device_id":"d","new_data":{good}}}"#)).await.0, 200, "{good}");
        let url = format!("http://{}/data/t/1", server.addr);
        let back = reqwest::Client::new().get(url).bearer_auth(server.admin()).send().await.unwrap();
        assert!(back.text().await.unwrap().contains(good), "{good}");
    }
}

#[tokio::test]
async fn an_automatic_merge_compares_values_and_keeps_both_sides() {
    over_each(async |server, ws| {
        server.rest("PUT", "/sync/policies/t", Some(json!({"policy": "automatic"}))).await;
        let send = |data: &str, base: u64| {
            let at = r#""device_id":"d","table_name":"t","record_id":1"#;
            format!(r#"{{{at},"new_data":{data},"base_version":{base}}}"#)
        };
        for data in [
            send(r#"{"price":20.0,"left":5}"#, 0),
            send(r#"{"price":25,"left":5.0}"#, 1),
            // Made from the first version: only `left` was changed.
            send(r#"{"price":2e1,"left":4}"#, 1),
        ] {
            ws.text(&frame(ws.over, "data_update", &data)).await;
            ws.wait("acknowledged").await;
        }
        let (_, record) = server.rest("GET", "/data/t/1", None).await;
        assert_eq!(record["data"], json!({"price": 25, "left": 4}));
    })
    .await;
}
