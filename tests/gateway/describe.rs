//! The descriptions say what the code does: every event both ways, every endpoint, and they need no token.

use bytes::Bytes;
use serde_json::{Value, json};
use tillsync::gateway::http::rest::routes::{Content, ENDPOINTS, Needs};
use tillsync::gateway::protocol::events::{FROM_CLIENT, TO_CLIENT};
use tillsync::gateway::protocol::schema::{FieldKind, example};
use tillsync::gateway::protocol::{ClientEvent, DecodeError, decode};

use crate::harness::Server;
use crate::schema::{ASYNCAPI, OPENAPI, event_schema, misfits, resolve};

/// The fields of a queue's entry.
const ENTRY: [&str; 3] = ["queue", "n", "after"];

fn read(event: &str, payload: &Value) -> Result<ClientEvent, DecodeError> {
    let text = payload.to_string();
    decode(event, Some(&text), &Bytes::from(text.clone())).map(|asked| asked.event)
}

#[test]
fn every_described_client_event_decodes_with_each_of_its_fields() {
    for event in FROM_CLIENT {
        let (name, full) = (event.name, example(event.fields));
        read(name, &full).unwrap_or_else(|e| panic!("{name} {full}: {}", e.error));
        assert_eq!(misfits(&ASYNCAPI, event_schema("from_client", name), &full, name), Vec::<String>::new());
        for field in event.fields {
            let mut payload = full.clone();
            // An entry of a queue is sent whole or not at all.
            let whole = if ENTRY.contains(&field.name) { &ENTRY[..] } else { std::slice::from_ref(&field.name) };
            whole.iter().for_each(|name| drop(payload.as_object_mut().unwrap().remove(*name)));
            let without = read(name, &payload).map_err(|e| e.field);
            payload[field.name] = Value::Null;
            let null = read(name, &payload).map_err(|e| e.field);
            if field.required {
                let named = Some(Some(field.name.to_owned()));
                assert_eq!((without.err(), null.err()), (named.clone(), named), "{name}.{}", field.name);
            } else {
                assert!(without.is_ok() && null.is_ok(), "{name}.{}", field.name);
            }
            // A field that nobody reads would take anything.
            payload = full.clone();
            payload[field.name] = if matches!(field.kind, FieldKind::Flag) { json!("no") } else { json!(true) };
            let wrong = read(name, &payload).unwrap_err();
            assert_eq!(wrong.field.as_deref(), Some(field.name), "{name}.{}: {}", field.name, wrong.error);
        }
    }
}

#[test]
fn the_bounds_in_the_schemas_are_the_decoders() {
    for event in FROM_CLIENT {
        for field in event.fields {
            let (fits, breaks) = match field.kind {
                FieldKind::Name(max) | FieldKind::Text(max) => (json!("x".repeat(max)), json!("x".repeat(max + 1))),
                FieldKind::Count(u64::MAX) => (json!(i64::MAX), json!(-1)),
                FieldKind::Count(max) => (json!(max), json!(max + 1)),
                FieldKind::RecordId => (json!(i64::MIN), json!(u64::MAX)),
                FieldKind::Texts(count, max) => (json!(vec!["x".repeat(max); count]), json!(vec!["x"; count + 1])),
                FieldKind::Word(words) => (json!(words.last()), json!("no such word")),
                _ => continue,
            };
            let mut payload = example(event.fields);
            // An entry comes after a lesser one.
            let fits = if field.name == "after" { json!(41) } else { fits };
            payload[field.name] = fits;
            assert!(read(event.name, &payload).is_ok(), "{}.{}", event.name, field.name);
            payload[field.name] = breaks;
            let wrong = read(event.name, &payload).unwrap_err();
            assert_eq!(wrong.field.as_deref(), Some(field.name), "{}", event.name);
            let schema = event_schema("from_client", event.name);
            assert!(!misfits(&ASYNCAPI, schema, &payload, event.name).is_empty(), "{}.{}", event.name, field.name);
        }
    }
}

/// What the encoder writes is held against the schema wherever a test receives an event; here, that the table has no
/// event too many, by name: `to_client.rs` receives each of them.
#[test]
fn events_are_described_once_and_their_answers_exist() {
    for events in [FROM_CLIENT, TO_CLIENT] {
        let mut names: Vec<_> = events.iter().map(|e| e.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), events.len());
    }
    for answer in FROM_CLIENT.iter().flat_map(|e| e.answers) {
        assert!(TO_CLIENT.iter().any(|e| e.name == *answer), "{answer}");
    }
    for event in TO_CLIENT {
        let (name, full) = (event.name, example(event.fields));
        assert_eq!(misfits(&ASYNCAPI, event_schema("to_client", name), &full, name), Vec::<String>::new());
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(document: &Value, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    resolve(document, &target.replace("~1", "/"));
                }
                fields.values().for_each(|v| walk(document, v));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(document, v)),
            _ => {}
        }
    }
    walk(&OPENAPI, &OPENAPI);
    walk(&ASYNCAPI, &ASYNCAPI);
}

#[tokio::test]
async fn every_described_route_answers_as_described() {
    let server = Server::start().await;
    let client = reqwest::Client::new();
    for endpoint in ENDPOINTS {
        let (id, method) = (endpoint.id(), endpoint.method);
        let described = &OPENAPI["paths"][endpoint.path][method.to_lowercase()];
        assert_eq!(described["operationId"], id, "{} is not described", endpoint.path);
        let path = endpoint.path.replace("{device_id}", "till-1").replace("{table}", "products").replace("{id}", "1");
        let path = path.replace("{class}", "sales_assistant").replace("{code}", "ABCDEFGH");
        let path = path.replace("{record_id}", "42");
        let ask = |token: Option<String>| {
            let request = client.request(method.parse().unwrap(), format!("http://{}{path}", server.addr));
            let request = token.into_iter().fold(request, |r, t| r.bearer_auth(t));
            endpoint.body.iter().fold(request, |r, fields| r.json(&example(fields))).send()
        };
        let answer = ask(Some(server.admin())).await.unwrap();
        let (status, kind) = (answer.status(), answer.headers().get("content-type").cloned());
        let answer = described["responses"].get(status.as_str()).unwrap_or_else(|| panic!("{id}: {status}"));
        // A plain request to `/ws` is refused; all others do with the example what they are for, or find nothing.
        assert!(status.is_success() || ["409", "426", "400", "404"].contains(&status.as_str()), "{id}: {status}");
        let kind = kind.unwrap().to_str().unwrap().split(';').next().unwrap().to_owned();
        assert!(answer["content"].get(&kind).is_some(), "{id}: {kind}");
        if endpoint.needs == Needs::Nothing {
            assert_eq!(ask(None).await.unwrap().status(), status, "{id}");
            assert_eq!(described["security"], json!([]), "{id}");
        } else {
            assert_eq!(ask(None).await.unwrap().status(), 401, "{id}");
        }
    }
    let documents = ENDPOINTS.iter().filter(|e| matches!(e.answers[0].1, Content::Document | Content::Page));
    for endpoint in documents {
        assert_eq!(endpoint.needs, Needs::Nothing, "{}", endpoint.path);
    }
}

#[tokio::test]
async fn the_pages_need_nothing_from_elsewhere() {
    let server = Server::start().await;
    for path in ["/console", "/docs", "/docs/rest", "/docs/events"] {
        let page = reqwest::get(format!("http://{}{path}", server.addr)).await.unwrap().text().await.unwrap();
        assert!(page.starts_with("<!doctype html>"), "{path}");
        for outside in ["http://", "https://", "src=", "//cdn", "@import"] {
            assert!(!page.contains(outside), "{path}: {outside}");
        }
    }
}
