//! Every client event, every bad field, and that no bytes make decoding panic.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits;
use crate::proto::{Change, Operation, Role, SyncType};

fn read(event: &str, payload: &Value) -> Result<ClientEvent, DecodeError> {
    let text = payload.to_string();
    decode(event, Some(&text), &Bytes::from(text.clone())).map(|asked| asked.event)
}

/// An event, a full payload of it, its required fields, and wrong values of fields.
type PayloadCase = (&'static str, Value, &'static [&'static str], Vec<(&'static str, Value)>);

fn table() -> Vec<PayloadCase> {
    let t = "2026-11-22T10:00:00Z";
    vec![
        (
            "device_online",
            json!({"device_id": "d", "role": "master", "priority": 20, "capabilities": ["pos"], "timestamp": t,
                   "cursor": "a.1", "subscribe": ["sales"]}),
            &["device_id"],
            vec![
                ("device_id", json!("")),
                ("device_id", json!("x".repeat(256))),
                ("device_id", json!("a\nb")),
                ("role", json!("king")),
                ("priority", json!(101)),
                ("priority", json!(-1)),
                ("priority", json!(1.5)),
                ("priority", json!("20")),
                ("capabilities", json!("pos")),
                ("capabilities", json!([1])),
                ("capabilities", json!(vec!["c"; 33])),
                ("subscribe", json!({})),
                ("cursor", json!(1)),
                ("timestamp", json!("yesterday")),
                ("timestamp", json!(5)),
            ],
        ),
        (
            "device_offline",
            json!({"device_id": "d", "reason": "r", "timestamp": t}),
            &["device_id"],
            vec![("reason", json!(1))],
        ),
        (
            "device_shutdown",
            json!({"device_id": "d", "reason": "r", "timestamp": t}),
            &["device_id"],
            vec![("reason", json!("x".repeat(256)))],
        ),
        (
            "master_election",
            json!({"reason": "manual", "initiated_by": "d", "timestamp": t}),
            &["reason"],
            vec![("reason", json!("boredom")), ("initiated_by", json!(7))],
        ),
        (
            "role_change",
            json!({"device_id": "d", "new_role": "client", "reason": "r", "timestamp": t}),
            &["device_id", "new_role"],
            vec![("new_role", json!("king"))],
        ),
        (
            "sync_request",
            json!({"device_id": "d", "sync_type": "incremental", "last_sync_timestamp": t, "requested_tables": ["t"]}),
            &["device_id"],
            vec![("sync_type", json!("some")), ("last_sync_timestamp", json!("x")), ("requested_tables", json!([[]]))],
        ),
        (
            "sync_complete",
            json!({"device_id": "d", "sync_timestamp": t, "changes_count": 3, "sync_id": "s"}),
            &["device_id"],
            vec![("sync_timestamp", json!(1)), ("changes_count", json!(-1)), ("sync_id", json!({}))],
        ),
        (
            "sync_conflict",
            json!({"device_id": "d", "table_name": "t", "record_id": 1, "conflict_type": "data",
                   "conflict_data": {"local_version": {"a": 1}, "remote_version": {}, "timestamp": t}}),
            &["device_id", "table_name", "record_id", "conflict_type"],
            vec![("conflict_type", json!("taste")), ("conflict_data", json!([]))],
        ),
        (
            "sync_conflict_resolved",
            json!({"table_name": "t", "record_id": 1, "resolution_method": "manual", "resolved_data": {"a": 1}}),
            &["table_name", "record_id", "resolved_data"],
            vec![("resolution_method", json!("dice")), ("resolved_data", json!(1)), ("delete", json!("no"))],
        ),
        (
            "sync_error",
            json!({"device_id": "d", "error_message": "full", "error_code": "2001", "sync_type": "full"}),
            &["device_id", "error_message"],
            vec![("error_message", json!("x".repeat(limits::ERROR_MESSAGE + 1))), ("error_code", json!(2001))],
        ),
        (
            "data_update",
            json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {"a": 1}, "operation": "insert",
                   "timestamp": t, "base_version": 4, "request_id": "r"}),
            &["device_id", "table_name", "record_id", "new_data"],
            vec![
                ("table_name", json!(" ")),
                ("table_name", json!("x".repeat(101))),
                ("record_id", json!("1")),
                ("record_id", json!(1.5)),
                ("record_id", json!(1e19)),
                ("record_id", json!(true)),
                ("new_data", json!([1])),
                ("new_data", json!("{}")),
                ("new_data", json!({"a": "x".repeat(limits::RECORD_DATA)})),
                ("operation", json!("upsert")),
                ("base_version", json!(-1)),
                ("request_id", json!("x".repeat(65))),
                ("timestamp", json!("2026-13-01")),
            ],
        ),
        (
            "data_request",
            json!({"device_id": "d", "table_name": "t", "record_id": 1}),
            &["device_id", "table_name", "record_id"],
            vec![("record_id", json!(null))],
        ),
        (
            "queue_status",
            json!({"device_id": "d", "queue_type": "offline", "timestamp": t}),
            &["device_id"],
            vec![("queue_type", json!("print"))],
        ),
        (
            "critical_event",
            json!({"event_type": "e", "payload": {"a": 1}, "device_id": "d", "timestamp": t}),
            &["event_type", "payload", "device_id"],
            vec![("payload", json!(1)), ("event_type", json!("x".repeat(101)))],
        ),
        ("heartbeat", json!({"device_id": "d", "timestamp": t}), &["device_id"], vec![("device_id", json!(7))]),
    ]
}

#[test]
fn every_event_decodes_and_every_bad_field_is_named() {
    for (event, full, required, wrong) in table() {
        read(event, &full).unwrap_or_else(|e| panic!("{event}: {e:?}"));
        for field in required {
            let mut payload = full.clone();
            payload.as_object_mut().unwrap().remove(*field);
            for lacking in [payload.clone(), {
                payload[*field] = Value::Null;
                payload
            }] {
                let bad = read(event, &lacking).unwrap_err();
                assert_eq!(bad.field.as_deref(), Some(*field), "{event}");
                assert_eq!(bad.error.message, format!("{field} is required"), "{event}");
            }
        }
        for (field, value) in wrong {
            let mut payload = full.clone();
            payload[field] = value;
            let bad = read(event, &payload).unwrap_err();
            assert_eq!(bad.field.as_deref(), Some(field), "{event} {payload}");
            assert!(bad.error.message.starts_with(field), "{event}: {}", bad.error.message);
        }
        for (payload, says) in [
            (None, "the payload must be a JSON object"),
            (Some("[]"), "the payload must be a JSON object"),
            (Some("7"), "the payload must be a JSON object"),
            (Some("{\"device_id\": "), "the payload is not valid JSON"),
            (Some("nonsense"), "the payload is not valid JSON"),
        ] {
            assert_eq!(decode(event, payload, &Bytes::new()).unwrap_err().error.message, says, "{event}");
        }
    }
    assert_eq!(read("make_tea", &json!({})).unwrap_err().error.message, "unknown event \"make_tea\"");
}

#[test]
fn the_code_tells_what_kind_of_request_was_wrong() {
    for (event, code) in [
        ("device_online", 4001),
        ("role_change", 4002),
        ("master_election", 4003),
        ("sync_request", 2001),
        ("data_update", 2004),
    ] {
        assert_eq!(read(event, &json!({})).unwrap_err().error.code.number(), code, "{event}");
    }
    let bad = read("sync_request", &json!({"device_id": "d", "sync_type": "no-such"})).unwrap_err();
    assert_eq!(bad.device_id.as_deref(), Some("d"));
}

#[test]
fn data_stays_the_clients_bytes() {
    let text = r#"{"device_id":"d","table_name":"t","record_id":5.0,"new_data": {"price": 1.50, "a":[1,  2]} }"#;
    let frame = Bytes::from_static(text.as_bytes());
    let Ok(ClientEvent::DataUpdate(update)) = decode("data_update", Some(text), &frame).map(|a| a.event) else {
        panic!()
    };
    assert_eq!(&update.data[..], br#"{"price": 1.50, "a":[1,  2]}"#);
    assert!(frame.as_ptr_range().contains(&update.data.as_ptr()), "shared with the frame");
    assert_eq!((update.record_id, update.operation()), (5, Operation::Update));
    let change = Change {
        seq: 7,
        device_id: update.device_id,
        table_name: update.table_name,
        record_id: 5,
        operation: update.operation,
        data: update.data,
        ..Change::default()
    };
    let mut out = Vec::new();
    ServerEvent::DataUpdate { change: &change, epoch: 10 }.body(&mut out);
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains(r#""new_data":{"price": 1.50, "a":[1,  2]},"#), "{out}");
    assert!(out.contains(r#""seq":7,"cursor":"a.7","after":0}"#), "{out}");
}

#[test]
fn record_ids_are_integers_of_64_bits() {
    for (raw, id) in [("-5", -5), ("9223372036854775807", i64::MAX), ("1e3", 1_000), ("-0.0", 0), ("2.0E1", 20)] {
        let text = format!(r#"{{"device_id":"d","table_name":"t","record_id":{raw}}}"#);
        let asked = decode("data_request", Some(&text), &Bytes::new()).map(|a| a.event);
        let Ok(ClientEvent::DataRequest { record_id, .. }) = asked else { panic!("{raw}") };
        assert_eq!(record_id, id);
    }
    for raw in ["9223372036854775808", "1e19", "0.5", "\"1\"", "[]", "1e400"] {
        let text = format!(r#"{{"device_id":"d","table_name":"t","record_id":{raw}}}"#);
        assert!(decode("data_request", Some(&text), &Bytes::new()).is_err(), "{raw}");
    }
}

#[test]
fn depth_is_bounded_and_brackets_in_text_do_not_count() {
    let nested = |n: usize| {
        format!(
            r#"{{"device_id":"d","table_name":"t","record_id":1,"new_data":{{"a":{}1{}}}}}"#,
            "[".repeat(n),
            "]".repeat(n)
        )
    };
    let read = |text: &str| decode("data_update", Some(text), &Bytes::new());
    assert!(read(&nested(limits::JSON_DEPTH - 2)).is_ok());
    assert!(read(&nested(limits::JSON_DEPTH - 1)).unwrap_err().error.message.contains("nested"));
    assert!(read(&nested(100_000)).unwrap_err().error.message.contains("nested"));
    let brackets =
        format!(r#"{{"device_id":"d","table_name":"t","record_id":1,"new_data":{{"a":"\"{}"}}}}"#, "[{".repeat(99));
    assert!(read(&brackets).is_ok());
}

#[test]
fn defaults_are_the_documented_ones() {
    let Ok(ClientEvent::SyncRequest(ask)) =
        read("sync_request", &json!({"device_id": "d", "last_sync_timestamp": null}))
    else {
        panic!()
    };
    assert_eq!((ask.sync_type, ask.last_sync_ms, ask.tables), (SyncType::Full, None, None));
    let Ok(ClientEvent::DeviceOnline(ask)) = read("device_online", &json!({"device_id": "d", "role": "client"})) else {
        panic!()
    };
    assert_eq!((ask.role, ask.priority), (Some(Role::Client), None));
    let gone = json!({"device_id": "d", "table_name": "t", "record_id": 1, "operation": "delete"});
    let Ok(ClientEvent::DataUpdate(update)) = read("data_update", &gone) else { panic!() };
    assert!(update.data.is_empty());
}

#[test]
fn envelopes_are_read() {
    assert_eq!(envelope(r#" {"data": {"a": 1}, "event": "e"} "#).unwrap(), ("e".into(), Some(r#"{"a": 1}"#)));
    assert_eq!(envelope(r#"{"event": "\u0065", "data": null}"#).unwrap(), ("e".into(), None));
    for bad in ["", "[]", "{", "7", "{}", r#"{"event": 7}"#, r#"{"event": "e"} x"#] {
        assert!(envelope(bad).is_err(), "{bad}");
    }
    assert_eq!(event_array(r#"["e", {"a": 1}, 2]"#).unwrap(), ("e".into(), Some(r#"{"a": 1}"#)));
    assert_eq!(event_array(r#"["e"]"#).unwrap(), ("e".into(), None));
    for bad in ["", "[]", "{}", "[7]", r#"["e""#, r#"["e",]"#] {
        assert!(event_array(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_server_event_is_json_with_its_documented_fields() {
    let error = crate::model::error::Error::new(crate::model::error::Code::Conflict, "a \"quote\"");
    let (election, conflict, change) = (Default::default(), Default::default(), Change::default());
    let page = SyncPage {
        sync_type: "full",
        at_ms: 0,
        changes: vec![SyncChange::from(&change)],
        master: "m",
        sync_id: "s",
        page: 1,
        total: 1,
        has_more: false,
        cursor: crate::model::cursor::Cursor { epoch: 1, seq: 2 },
    };
    let (device_id, at_ms, role, reason) = ("d", 0, Role::Master, "r");
    let cursor = page.cursor;
    let events: Vec<(ServerEvent<'_>, &[&str])> = vec![
        (
            ServerEvent::DeviceOnlineAck { device_id, master: "", role, term: 1, cursor, clock_ahead_ms: None, at_ms },
            &["device_id", "current_master", "role", "timestamp"],
        ),
        (ServerEvent::DeviceOfflineAck { device_id, at_ms }, &["device_id", "timestamp"]),
        (
            ServerEvent::MasterElected(&election),
            &[
                "previous_master_id",
                "new_master_id",
                "election_reason",
                "election_timestamp",
                "devices_participating",
                "election_method",
            ],
        ),
        (
            ServerEvent::RoleChange { device_id, role, reason, term: 1, at_ms },
            &["device_id", "new_role", "reason", "timestamp"],
        ),
        (
            ServerEvent::RoleChangeAck { device_id, role, reason, at_ms },
            &["device_id", "new_role", "reason", "timestamp"],
        ),
        (ServerEvent::SyncResponse(&page), &["sync_type", "timestamp", "changes", "master_device_id", "sync_id"]),
        (
            ServerEvent::SyncCompleteAck { device_id, sync_timestamp_ms: 0, changes_count: 1, at_ms },
            &["device_id", "sync_timestamp", "changes_count", "timestamp"],
        ),
        (
            ServerEvent::SyncConflict(&conflict),
            &["device_id", "table_name", "record_id", "conflict_type", "conflict_data", "timestamp"],
        ),
        (
            ServerEvent::SyncConflictResolved(&conflict),
            &["table_name", "record_id", "resolution_method", "resolved_data", "timestamp"],
        ),
        (
            ServerEvent::SyncError {
                device_id,
                error: &error,
                sync_type: Some("full"),
                field: None,
                request_id: Some("r"),
                at_ms,
            },
            &["device_id", "error_message", "error_code", "sync_type", "timestamp"],
        ),
        (
            ServerEvent::SyncErrorAck { device_id, message: "m", code: "c", at_ms },
            &["device_id", "error_message", "error_code", "timestamp"],
        ),
        (
            ServerEvent::DataUpdate { change: &change, epoch: 1 },
            &["device_id", "table_name", "record_id", "new_data", "operation", "timestamp", "seq", "cursor"],
        ),
        (
            ServerEvent::DataResponse { table_name: "t", record_id: 1, data: None, version: None, at_ms },
            &["table_name", "record_id", "data", "timestamp"],
        ),
        (
            ServerEvent::QueueStatusResponse {
                device_id,
                offline: false,
                pending: 1,
                processed_ms: 0,
                status: "idle",
                at_ms,
            },
            &["device_id", "queue_type", "pending_count", "last_processed", "status", "timestamp"],
        ),
        (
            ServerEvent::CriticalEvent { event_type: "e", payload: b"{}", device_id, at_ms },
            &["event_type", "payload", "device_id", "timestamp"],
        ),
        (ServerEvent::Registered { device_id, role, at_ms }, &["device_id", "role", "timestamp"]),
        (ServerEvent::Acknowledged(Acknowledged::default()), &["message", "timestamp"]),
        (ServerEvent::HeartbeatAck { device_id, clock_ahead_ms: None, at_ms }, &["device_id", "timestamp"]),
        (
            ServerEvent::Error {
                error: &error,
                event: Some("e"),
                field: Some("f"),
                conflict_id: None,
                request_id: Some("r"),
                at_ms,
            },
            &["error", "error_code", "timestamp", "event", "field"],
        ),
    ];
    for (event, fields) in events {
        let mut out = Vec::new();
        event.body(&mut out);
        let value: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{}: {e}", event.name()));
        for field in fields {
            assert!(value.get(field).is_some(), "{}: {field} lacks in {value}", event.name());
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(event in "[a-z_]{0,12}", payload in ".{0,200}", at in 0usize..15) {
        let frame = Bytes::from(payload.clone());
        let _ = decode(&event, Some(&payload), &frame);
        let _ = decode(table()[at].0, Some(&payload), &frame);
        let _ = envelope(&payload);
        let _ = event_array(&payload);
    }

    /// The bodies of REST requests go through these readers.
    #[test]
    fn no_body_makes_a_reader_panic(at in 0usize..6, cut in 0usize..200, len in 0usize..20, junk in ".{0,20}") {
        let bodies = [
            json!({"device_id": "d", "role": "master", "priority": 5, "capabilities": ["a"], "cursor": "1.2"}),
            json!({"role": "client", "reason": "r", "timestamp": "2026-01-02T03:04:05Z"}),
            json!({"reason": "manual", "initiated_by": "d"}),
            json!({"new_data": {"a": [1, {"b": 1.50}]}, "operation": "insert", "base_version": 4, "request_id": "r"}),
            json!({"resolution_method": "manual", "resolved_data": {"a": 1}, "delete": false, "device_id": "d"}),
            json!({"policy": "automatic"}),
        ];
        let mut bytes = bodies[at].to_string().into_bytes();
        let from = cut.min(bytes.len());
        let to = (from + len).min(bytes.len());
        bytes.splice(from..to, junk.into_bytes());
        let frame = Bytes::from(bytes);
        let text = String::from_utf8_lossy(&frame);
        if let Ok(fields) = Fields::parse(&text) {
            let _ = online(&fields);
            let _ = role_and_reason(&fields, "role");
            let _ = election(&fields);
            // What is accepted as a change is an object of JSON, within its limit.
            if let Ok(update) = update(&fields, &frame, "d".into(), "t".into(), 1) {
                prop_assert!(update.data.is_empty() || serde_json::from_slice::<Value>(&update.data).is_ok());
            }
            let _ = resolution(&fields, &frame);
            let _ = policy(&fields);
        }
    }

    /// Nesting and numbers at every depth and length: an answer, never a panic or a stack that ends.
    #[test]
    fn depth_and_digits_are_bounded(depth in 0usize..3_000, digits in 1usize..400, array in any::<bool>()) {
        let (open, close) = if array { ("[", "]") } else { ("{\"a\":", "}") };
        let inner = "9".repeat(digits);
        let data = format!("{{\"a\":{}{inner}{}}}", open.repeat(depth), close.repeat(depth));
        let payload = format!(
            "{{\"device_id\":\"d\",\"table_name\":\"t\",\"record_id\":{inner},\"new_data\":{data}}}"
        );
        let read = decode("data_update", Some(&payload), &Bytes::from(payload.clone()));
        prop_assert_eq!(read.is_ok(), depth + 2 <= limits::JSON_DEPTH && inner.parse::<i64>().is_ok());
    }

    /// A valid payload with one stretch replaced: nearly valid JSON finds more paths than noise does.
    #[test]
    fn no_damage_makes_decoding_panic(at in 0usize..15, cut in 0usize..120, len in 0usize..20, junk in ".{0,20}") {
        let (event, full, ..) = table().swap_remove(at);
        let mut text: Vec<char> = full.to_string().chars().collect();
        let from = cut.min(text.len());
        let to = (from + len).min(text.len());
        text.splice(from..to, junk.chars());
        let text: String = text.into_iter().collect();
        let _ = decode(event, Some(&text), &Bytes::from(text.clone()));
    }
}
