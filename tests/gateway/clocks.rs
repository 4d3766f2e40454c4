//! Times as clients write them, and clocks that are off.

use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::ids::UnixMs;
use tillsync::model::time::{iso, parse_iso};

use crate::harness::{Server, Ws, over_each};

const HOUR: i64 = 3_600_000;

/// What a clock that is so far ahead shows.
fn shown(ahead_ms: i64) -> String {
    iso(UnixMs(SystemClock.now_ms().get().checked_add_signed(ahead_ms).unwrap()))
}

/// The same as the local time of a device.
fn local(ahead_ms: i64) -> String {
    shown(ahead_ms).trim_end_matches('Z').to_owned()
}

async fn write(ws: &mut Ws, device: &str, record: i64, data: Value, timestamp: &str) -> Value {
    let update =
        json!({"device_id": device, "table_name": "t", "record_id": record, "new_data": data, "timestamp": timestamp});
    ws.call("data_update", update, "acknowledged").await
}

/// The broadcast of a change to this record.
async fn told(ws: &mut Ws, record: i64) -> Value {
    loop {
        let update = ws.wait("data_update").await;
        if update["record_id"] == record {
            return update;
        }
    }
}

fn near(time: &Value, ahead_ms: i64) {
    let ms = parse_iso(time.as_str().unwrap()).unwrap();
    let expected = SystemClock.now_ms().get().checked_add_signed(ahead_ms).unwrap();
    assert!(ms.get().abs_diff(expected) < 5_000, "{time} is not near {}", iso(UnixMs(expected)));
}

#[tokio::test]
async fn any_iso_time_is_taken_and_what_is_none_is_refused() {
    over_each(async |_, ws| {
        for (n, good) in [
            "2026-11-28T12:00:00+00",
            "2026-11-28T12:00:00+0530",
            "2026-11-28T24:00:00Z",
            "20261128T120000Z",
            "2026-11-28T12:00:00,5Z",
            "2026-11-28T12:00:00.123456789123456789+05:30",
            "2026-12-31T23:59:60Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:30:00+01:00",
            "9999-12-31T23:59:59Z",
            "+033658-09-27T01:46:40Z",
            "2026-W48-6T12:00Z",
            "2026-11-28",
        ]
        .into_iter()
        .enumerate()
        {
            let ack = write(ws, "d", n as i64, json!({"n": n}), good).await;
            assert!(ack["seq"].is_u64(), "{good}: {ack}");
            let ms = parse_iso(told(ws, n as i64).await["timestamp"].as_str().unwrap()).unwrap();
            assert!(ms <= SystemClock.now_ms().plus_ms(5_000), "{good}: {}", iso(ms));
        }
        for bad in [
            json!("yesterday"),
            json!("1795000000000"),
            json!(1_795_000_000_000_u64),
            json!(""),
            json!("2026-13-01T00:00:00Z"),
        ] {
            let update =
                json!({"device_id": "d", "table_name": "t", "record_id": 99, "new_data": {}, "timestamp": bad});
            let error = ws.call("data_update", update, "error").await;
            assert_eq!((&error["error_code"], &error["field"]), (&json!("2004"), &json!("timestamp")), "{bad}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_local_time_neither_loses_nor_wins_against_one_that_is_right() {
    let server = Server::start().await;
    let (mut till, mut office) = (server.device("till").await, server.device("office").await);
    for (record, offset) in [(1, -5 * HOUR), (2, 5 * HOUR + HOUR / 2)] {
        let first = write(&mut office, "office", record, json!({"price": 1}), &shown(0)).await;
        assert_eq!(first.get("timestamp_taken"), None);
        let sent = local(offset);
        let ack = write(&mut till, "till", record, json!({"price": 2}), &sent).await;
        assert_eq!((&ack["timestamp_taken"], ack.get("conflict")), (&json!("now"), None), "{ack}");
        told(&mut office, record).await;
        let heard = told(&mut office, record).await;
        assert_eq!((&heard["new_data"]["price"], &heard["timestamp_as_sent"]), (&json!(2), &json!(sent)));
        near(&heard["timestamp"], 0);
        let last = write(&mut office, "office", record, json!({"price": 3}), &shown(1)).await;
        assert!(last["seq"].is_u64() && last.get("conflict").is_none(), "{last}");
        let (_, now) = server.rest("GET", &format!("/data/t/{record}"), None).await;
        assert_eq!(now["data"]["price"], 3);
    }
    // Over REST nothing is known of the device's clock.
    let body = json!({"device_id": "till", "new_data": {"price": 4}, "timestamp": local(-5 * HOUR)});
    let (status, ack) = server.rest("POST", "/data/t/1", Some(body)).await;
    assert_eq!((status, &ack["timestamp_taken"]), (200, &json!("now")));
    let (_, now) = server.rest("GET", "/data/t/1", None).await;
    assert_eq!(now["data"]["price"], 4);
}

#[tokio::test]
async fn a_clock_that_is_off_is_measured_told_and_corrected() {
    over_each(async |server, ws| {
        let heartbeat = |ahead| json!({"device_id": "d", "timestamp": shown(ahead)});
        let ack = ws.call("heartbeat", heartbeat(0), "heartbeat_ack").await;
        assert_eq!(ack.get("clock_ahead_ms"), None);
        // It is set to three minutes ahead.
        let mut ahead = None;
        for _ in 0..5 {
            let ack = ws.call("heartbeat", heartbeat(180_000), "heartbeat_ack").await;
            ahead = ack.get("clock_ahead_ms").and_then(Value::as_i64);
        }
        assert!((175_000..=180_000).contains(&ahead.unwrap()), "{ahead:?}");
        let (_, device) = server.rest("GET", "/device/roles/d", None).await;
        assert_eq!(device["clock_ahead_ms"], json!(ahead));
        let ack = write(ws, "d", 1, json!({"n": 1}), &shown(180_000)).await;
        assert_eq!(ack["timestamp_taken"], "corrected");
        let heard = told(ws, 1).await;
        near(&heard["timestamp"], 0);
        near(&heard["timestamp_as_sent"], 180_000);
        // A sale of an hour ago, by the same clock.
        write(ws, "d", 2, json!({"n": 2}), &shown(180_000 - HOUR)).await;
        near(&told(ws, 2).await["timestamp"], -HOUR);
        let critical = json!({"device_id": "d", "event_type": "e", "payload": {}, "timestamp": shown(180_000)});
        ws.send("critical_event", critical).await;
        near(&ws.wait("critical_event").await["timestamp"], 0);
        // A new session is measured by its own device_online.
        let mut other = server.session(ws.over).await;
        let online = json!({"device_id": "e", "timestamp": shown(-60_000)});
        let ack = other.call("device_online", online, "device_online_ack").await;
        assert!((-65_000..=-60_000).contains(&ack["clock_ahead_ms"].as_i64().unwrap()), "{ack}");
        write(&mut other, "e", 3, json!({"n": 3}), &shown(-60_000)).await;
        near(&told(&mut other, 3).await["timestamp"], 0);
    })
    .await;
}

#[tokio::test]
async fn local_times_are_corrected_once_heartbeats_tell_the_offset() {
    let server = Server::start().await;
    let mut till = server.device("till").await;
    let india = 5 * HOUR + HOUR / 2;
    till.call("heartbeat", json!({"device_id": "till", "timestamp": local(india)}), "heartbeat_ack").await;
    let ack = write(&mut till, "till", 1, json!({"n": 1}), &local(india - 2 * HOUR)).await;
    assert_eq!(ack["timestamp_taken"], "corrected");
    near(&told(&mut till, 1).await["timestamp"], -2 * HOUR);
}

#[tokio::test]
async fn no_time_of_a_client_is_far_ahead_of_the_nodes_clock() {
    let server = Server::start().await;
    let mut ws = server.device("d").await;
    write(&mut ws, "d", 1, json!({"n": 1}), "9999-12-31T23:59:59Z").await;
    near(&told(&mut ws, 1).await["timestamp"], 5_000);
    let critical = json!({"device_id": "d", "event_type": "e", "payload": {}, "timestamp": "9999-12-31T23:59:59Z"});
    ws.send("critical_event", critical).await;
    near(&ws.wait("critical_event").await["timestamp"], 5_000);
}
