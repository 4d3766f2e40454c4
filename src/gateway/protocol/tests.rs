//! Every client event, every bad field, and that no bytes make decoding panic.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::events::{EventDescription, FROM_CLIENT, TO_CLIENT};
use super::*;
use crate::gateway::protocol::schema::example;
use crate::ids::{MasterTerm, RecordId, Seq};
use crate::limits;
use crate::proto::{Change, Operation, Role, SyncType};
use crate::token::{Claims, Class};

fn read(event: &str, payload: &Value) -> Result<ClientEvent, DecodeError> {
    let text = payload.to_string();
    decode(event, Some(&text), &Bytes::from(text.clone())).map(|asked| asked.event)
}

/// Every field of an event of clients.
fn full_payload(event: &str) -> Value {
    example(FROM_CLIENT.iter().find(|described| described.name == event).unwrap().fields)
}

/// Wrong values of fields, by event.
fn wrong_values() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("device_online", "device_id", json!("")),
        ("device_online", "device_id", json!("x".repeat(256))),
        ("device_online", "device_id", json!("a\nb")),
        ("device_online", "role", json!("king")),
        ("device_online", "priority", json!(101)),
        ("device_online", "priority", json!(-1)),
        ("device_online", "priority", json!(1.5)),
        ("device_online", "priority", json!("20")),
        ("device_online", "capabilities", json!("pos")),
        ("device_online", "capabilities", json!([1])),
        ("device_online", "capabilities", json!(vec!["c"; 33])),
        ("device_online", "subscribe", json!({})),
        ("device_online", "cursor", json!(1)),
        ("device_online", "timestamp", json!("yesterday")),
        ("device_online", "timestamp", json!(5)),
        ("device_offline", "reason", json!(1)),
        ("device_shutdown", "reason", json!("x".repeat(256))),
        ("master_election", "reason", json!("boredom")),
        ("master_election", "initiated_by", json!(7)),
        ("role_change", "new_role", json!("king")),
        ("sync_request", "sync_type", json!("some")),
        ("sync_request", "last_sync_timestamp", json!("x")),
        ("sync_request", "requested_tables", json!([[]])),
        ("sync_complete", "sync_timestamp", json!(1)),
        ("sync_complete", "changes_count", json!(-1)),
        ("sync_complete", "sync_id", json!({})),
        ("sync_conflict", "conflict_type", json!("taste")),
        ("sync_conflict", "conflict_data", json!([])),
        ("sync_conflict_resolved", "resolution_method", json!("dice")),
        ("sync_conflict_resolved", "resolved_data", json!(1)),
        ("sync_conflict_resolved", "delete", json!("no")),
        ("sync_error", "error_message", json!("x".repeat(limits::ERROR_MESSAGE + 1))),
        ("sync_error", "error_code", json!(2001)),
        ("data_update", "table_name", json!(" ")),
        ("data_update", "table_name", json!("x".repeat(101))),
        ("data_update", "record_id", json!("1")),
        ("data_update", "record_id", json!(1.5)),
        ("data_update", "record_id", json!(1e19)),
        ("data_update", "record_id", json!(true)),
        ("data_update", "new_data", json!([1])),
        ("data_update", "new_data", json!("{}")),
        ("data_update", "new_data", json!({"a": "x".repeat(limits::RECORD_DATA)})),
        ("data_update", "operation", json!("upsert")),
        ("data_update", "base_version", json!(-1)),
        ("data_update", "request_id", json!("x".repeat(65))),
        ("data_update", "timestamp", json!("2026-13-01")),
        ("data_request", "record_id", json!(null)),
        ("queue_status", "queue_type", json!("print")),
        ("critical_event", "payload", json!(1)),
        ("critical_event", "event_type", json!("x".repeat(101))),
        ("heartbeat", "device_id", json!(7)),
        ("token_renew", "timestamp", json!("yesterday")),
    ]
}

#[test]
fn every_event_decodes_and_every_bad_field_is_named() {
    for EventDescription { name: event, fields, .. } in FROM_CLIENT {
        let full = example(fields);
        let decoded = read(event, &full).unwrap_or_else(|e| panic!("{event}: {e:?}"));
        assert_eq!(decoded.name(), *event, "its row decodes to another event");
        for field in fields.iter().filter(|f| f.required).map(|f| f.name) {
            let mut payload = full.clone();
            payload.as_object_mut().unwrap().remove(field);
            for lacking in [payload.clone(), {
                payload[field] = Value::Null;
                payload
            }] {
                let bad = read(event, &lacking).unwrap_err();
                assert_eq!(bad.field.as_deref(), Some(field), "{event}");
                assert_eq!(bad.error.message, format!("{field} is required"), "{event}");
            }
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
    for (event, field, value) in wrong_values() {
        let mut payload = full_payload(event);
        payload[field] = value;
        let bad = read(event, &payload).unwrap_err();
        assert_eq!(bad.field.as_deref(), Some(field), "{event} {payload}");
        assert!(bad.error.message.starts_with(field), "{event}: {}", bad.error.message);
    }
    let undecided = json!({"table_name": "t", "record_id": 1});
    assert_eq!(read("sync_conflict_resolved", &undecided).unwrap_err().error.message, "resolved_data is required");
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
    let print = crate::model::change::print_of(&change);
    assert!(out.contains(&format!(r#""seq":7,"cursor":"a-{print:x}.7","after":0}}"#)), "{out}");
}

#[test]
fn record_ids_are_integers_of_64_bits() {
    for (raw, id) in [("-5", -5), ("9223372036854775807", i64::MAX), ("1e3", 1_000), ("-0.0", 0), ("2.0E1", 20)] {
        let text = format!(r#"{{"device_id":"d","table_name":"t","record_id":{raw}}}"#);
        let asked = decode("data_request", Some(&text), &Bytes::new()).map(|a| a.event);
        let Ok(ClientEvent::DataRequest { record_id, .. }) = asked else { panic!("{raw}") };
        assert_eq!(record_id, RecordId(id));
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
        cursor: crate::model::cursor::Cursor { epoch: 1, seq: Seq(2), print: 0 },
    };
    let (device_id, at_ms, role, reason) = ("d", 0, Role::Master, "r");
    let cursor = page.cursor;
    let (exp, iat, jti) = (2, 1, String::from("j"));
    let claims = Claims { sub: "d".into(), class: Class::Admin, exp, iat, jti, key: 0 };
    let events = [
        ServerEvent::DeviceOnlineAck {
            device_id,
            master: "",
            role,
            term: MasterTerm(1),
            cursor,
            clock_ahead_ms: None,
            at_ms,
        },
        ServerEvent::DeviceOfflineAck { device_id, at_ms },
        ServerEvent::MasterElected(&election),
        ServerEvent::RoleChange { device_id, role, reason, term: MasterTerm(1), at_ms },
        ServerEvent::RoleChangeAck { device_id, role, reason, at_ms },
        ServerEvent::SyncResponse(&page),
        ServerEvent::SyncCompleteAck { device_id, sync_timestamp_ms: 0, changes_count: 1, at_ms },
        ServerEvent::SyncConflict(&conflict),
        ServerEvent::SyncConflictResolved(&conflict),
        ServerEvent::SyncError {
            device_id,
            error: &error,
            sync_type: Some("full"),
            field: None,
            request_id: Some("r"),
            at_ms,
        },
        ServerEvent::SyncErrorAck { device_id, message: "m", code: "c", at_ms },
        ServerEvent::DataUpdate { change: &change, epoch: 1 },
        ServerEvent::DataResponse { table_name: "t", record_id: RecordId(1), data: None, version: None, at_ms },
        ServerEvent::QueueStatusResponse {
            device_id,
            offline: false,
            pending: 1,
            processed_ms: 0,
            status: "idle",
            at_ms,
        },
        ServerEvent::CriticalEvent { event_type: "e", payload: b"{}", device_id, at_ms },
        ServerEvent::Registered { device_id, role, at_ms },
        ServerEvent::Acknowledged(Acknowledged::default()),
        ServerEvent::HeartbeatAck { device_id, clock_ahead_ms: None, at_ms },
        ServerEvent::Error {
            error: &error,
            event: Some("e"),
            field: Some("f"),
            conflict_id: None,
            request_id: Some("r"),
            at_ms,
        },
        ServerEvent::TokenRenewed { token: "t", claims: &claims, at_ms },
    ];
    for event in &events {
        let mut out = Vec::new();
        event.body(&mut out);
        let value: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{}: {e}", event.name()));
        let described = TO_CLIENT.iter().find(|described| described.name == event.name()).unwrap().fields;
        for field in described.iter().filter(|f| f.required) {
            assert!(value.get(field.name).is_some(), "{}: {} lacks in {value}", event.name(), field.name);
        }
        for field in value.as_object().unwrap().keys() {
            assert!(described.iter().any(|f| f.name == field), "{}: {field} is not described", event.name());
        }
    }
    let tried: BTreeSet<&str> = events.iter().map(ServerEvent::name).collect();
    // Only the state makes rights: `tests/gateway` holds that event against its row.
    let others = TO_CLIENT.iter().map(|described| described.name).filter(|name| *name != "access_changed");
    assert_eq!(tried, others.collect());
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(event in "[a-z_]{0,12}", payload in ".{0,200}", at in 0..FROM_CLIENT.len()) {
        let frame = Bytes::from(payload.clone());
        let _ = decode(&event, Some(&payload), &frame);
        let _ = decode(FROM_CLIENT[at].name, Some(&payload), &frame);
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
            if let Ok(update) = update(&fields, &frame, "d".into(), "t".into(), RecordId(1)) {
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
    fn no_damage_makes_decoding_panic(at in 0..FROM_CLIENT.len(), cut in 0usize..120, len in 0usize..20, junk in ".{0,20}") {
        let EventDescription { name: event, fields, .. } = &FROM_CLIENT[at];
        let mut text: Vec<char> = example(fields).to_string().chars().collect();
        let from = cut.min(text.len());
        let to = (from + len).min(text.len());
        text.splice(from..to, junk.chars());
        let text: String = text.into_iter().collect();
        let _ = decode(event, Some(&text), &Bytes::from(text.clone()));
    }
}
