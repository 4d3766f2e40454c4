//! `/openapi.json`: OpenAPI 3.1, from the table of endpoints.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::ABOUT;
use crate::gateway::http::rest::bodies::REFUSED;
use crate::gateway::http::rest::routes::{Content, ENDPOINTS, Endpoint, Needs};
use crate::gateway::protocol::schema::{DEVICE_ID, FieldKind, PayloadWriter, TABLE_NAME, example, object_schema};
use crate::model::access::CLASSES;
use crate::model::error::{Code, TABLE};
use crate::model::pairing::CODE_LENGTH;

pub fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for endpoint in ENDPOINTS {
        paths.entry(endpoint.path).or_default().insert(endpoint.method.to_lowercase(), operation(endpoint));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tillsync",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "Issued by `tillsync token issue`. A device acts for itself only; admins and managers act for others.",
                },
            },
            "schemas": {"Refused": refused()},
        },
    })
}

fn refused() -> Value {
    let mut schema = object_schema(REFUSED, PayloadWriter::Server);
    let codes: Vec<String> = TABLE.iter().map(|row| row.code.to_string()).collect();
    schema["properties"]["error_code"] = json!({"type": "string", "enum": codes});
    schema["properties"]["success"]["const"] = json!(false);
    schema
}

fn operation(endpoint: &Endpoint) -> Value {
    let mut operation = json!({
        "operationId": endpoint.id(),
        "summary": endpoint.about,
        "tags": [endpoint.group],
        "responses": responses(endpoint),
    });
    if !endpoint.documented {
        operation["x-extension"] = json!(true);
    }
    if endpoint.needs == Needs::Nothing {
        operation["security"] = json!([]);
    }
    let parameters = parameters(endpoint);
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    if let Some(fields) = endpoint.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": object_schema(fields, PayloadWriter::Client), "example": example(fields)}},
        });
    }
    operation
}

fn parameters(endpoint: &Endpoint) -> Vec<Value> {
    let in_path = endpoint.in_path().map(|name| {
        let kind = match name {
            "device_id" => DEVICE_ID,
            "table" => TABLE_NAME,
            "class" => FieldKind::Word(&CLASSES),
            "code" => FieldKind::Text(CODE_LENGTH),
            "id" => FieldKind::Count(u64::MAX),
            _ => FieldKind::RecordId,
        };
        json!({"name": name, "in": "path", "required": true, "schema": kind.schema(PayloadWriter::Server)})
    });
    let in_query = endpoint.query.iter().map(|field| {
        json!({
            "name": field.name, "in": "query", "required": field.required, "description": field.about,
            "schema": field.kind.schema(PayloadWriter::Server),
        })
    });
    in_path.chain(in_query).collect()
}

fn responses(endpoint: &Endpoint) -> Value {
    let mut codes: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for (status, code) in endpoint.refusals() {
        codes.entry(status).or_default().push(code);
    }
    let mut responses: BTreeMap<String, Value> =
        codes.iter().map(|(status, codes)| (status.to_string(), refusal(codes))).collect();
    // By the HTTP server, before any of our code: without a body.
    if endpoint.in_path().next().is_some() || !endpoint.query.is_empty() {
        responses.insert("414".into(), json!({"description": "The path and the query are longer than 64 KiB."}));
        responses.insert("431".into(), json!({"description": "They and the headers are larger than 16 KiB together."}));
    }
    for (status, content) in endpoint.answers {
        responses.insert(status.to_string(), answer(*content));
    }
    json!(responses)
}

fn refusal(codes: &[Code]) -> Value {
    let names: Vec<String> = codes.iter().map(|code| format!("{code}: {}", code.row().title)).collect();
    json!({
        "description": names.join("; "),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}},
    })
}

fn answer(content: Content) -> Value {
    let body = |kind: &str, schema: Value| json!({"description": "Done.", "content": {kind: {"schema": schema}}});
    match content {
        Content::Json(fields) => body("application/json", object_schema(fields, PayloadWriter::Server)),
        Content::Feed(fields) => {
            let mut both = body("application/json", object_schema(fields, PayloadWriter::Server));
            both["content"]["text/event-stream"] = json!({"schema": {"type": "string"}});
            both
        }
        Content::Document => body("application/json", json!({"type": "object"})),
        Content::Page => body("text/html", json!({"type": "string"})),
        Content::Bytes => body("application/octet-stream", json!({"type": "string", "format": "binary"})),
        Content::Text => body("text/plain", json!({"type": "string"})),
        Content::Upgrade => json!({"description": "The connection speaks WebSocket from here on."}),
    }
}
