//! Holds what the server sends against what it says of itself in `/openapi.json` and `/asyncapi.json`.

use std::sync::LazyLock;

use serde_json::{Value, json};
use tillsync::gateway::spec::{asyncapi, openapi};

pub(crate) static OPENAPI: LazyLock<Value> = LazyLock::new(openapi::document);
pub(crate) static ASYNCAPI: LazyLock<Value> = LazyLock::new(asyncapi::document);

/// What of a value does not fit the schema; also fields that the schema does not know.
pub(crate) fn misfits(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(target) = schema["$ref"].as_str() {
        return misfits(document, resolve(document, target), value, at);
    }
    let mut found = Vec::new();
    let mut check = |fits: bool, what: String| {
        if !fits {
            found.push(format!("{at}: {what} in {value}"));
        }
    };
    if let Some(words) = schema["enum"].as_array() {
        check(words.contains(value), format!("not one of {words:?}"));
    }
    if let Some(only) = schema.get("const") {
        check(value == only, format!("not {only}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    check(kinds.is_empty() || kinds.iter().any(|kind| is_a(kind, value)), format!("not a {kinds:?}"));
    if let Some(text) = value.as_str() {
        check(text.len() as u64 <= schema["maxLength"].as_u64().unwrap_or(u64::MAX), "too long".into());
        check(text.len() as u64 >= schema["minLength"].as_u64().unwrap_or(0), "too short".into());
        let is_time = schema["format"] == "date-time";
        check(!is_time || tillsync::model::time::parse_iso(text).is_some(), "not a time".into());
    }
    if let Some(number) = value.as_f64() {
        check(number >= schema["minimum"].as_f64().unwrap_or(f64::MIN), "too small".into());
        check(number <= schema["maximum"].as_f64().unwrap_or(f64::MAX), "too great".into());
    }
    if let Some(items) = value.as_array() {
        check(items.len() as u64 <= schema["maxItems"].as_u64().unwrap_or(u64::MAX), "too many".into());
    }
    for item in value.as_array().into_iter().flatten() {
        found.extend(misfits(document, &schema["items"], item, &format!("{at}[]")));
    }
    let Some(fields) = value.as_object() else { return found };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push(format!("{at}: {name} is missing in {value}"));
        }
    }
    if let Some(known) = schema["properties"].as_object() {
        for (name, value) in fields {
            match known.get(name) {
                Some(schema) => found.extend(misfits(document, schema, value, &format!("{at}.{name}"))),
                None => found.push(format!("{at}: {name} is not described")),
            }
        }
    }
    found
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        _ => false,
    }
}

pub(crate) fn resolve<'a>(document: &'a Value, target: &str) -> &'a Value {
    document.pointer(target.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("nothing at {target}"))
}

/// The schema of an event's payload.
pub(crate) fn event_schema(side: &str, event: &str) -> &'static Value {
    let schema = &ASYNCAPI["components"]["schemas"][format!("{side}.{event}")];
    assert!(schema.is_object(), "{side} {event} is not described");
    schema
}

/// What the server sent over a socket is a described event.
pub(crate) fn event_fits(event: &str, payload: &Value) {
    let found = misfits(&ASYNCAPI, event_schema("to_client", event), payload, event);
    assert!(found.is_empty(), "{found:#?}");
}

/// The answer to a described request has a described status and a fitting body.
pub(crate) fn answer_fits(method: &str, path: &str, status: u16, body: &Value) {
    let path = path.split('?').next().unwrap();
    let is_it = |template: &str| {
        let (a, b): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        a.len() == b.len() && a.iter().zip(&b).all(|(t, p)| t.starts_with('{') || t == p)
    };
    let paths = OPENAPI["paths"].as_object().unwrap();
    let Some((_, methods)) = paths.iter().find(|(template, _)| is_it(template)) else {
        return assert_eq!(status, 404, "{path} is not described");
    };
    let Some(operation) = methods.get(method.to_lowercase()) else {
        return assert_eq!(status, 405, "{method} {path} is not described");
    };
    let answer = &operation["responses"][status.to_string()];
    assert!(answer.is_object(), "{method} {path}: {status} is not described: {body}");
    let schema = &answer["content"]["application/json"]["schema"];
    let found = misfits(&OPENAPI, schema, body, &format!("{method} {path}"));
    assert!(found.is_empty(), "{found:#?}");
    if *body.get("success").unwrap_or(&Value::Null) == json!(false) {
        let code = body["error_code"].as_str().unwrap();
        let described = answer["description"].as_str().unwrap();
        assert!(described.contains(code), "{method} {path}: {code} is not one of {described}");
    }
}
