//! `/asyncapi.json`: AsyncAPI 3, from the tables of events.
//!
//! Operations are named as the server sees them: it receives what clients send. Each transport is a channel, because
//! the envelopes differ: `/ws` carries the event's name in the frame, Socket.IO has names of its own.

use serde_json::{Map, Value, json};

use super::ABOUT;
use crate::gateway::protocol::events::{EventDescription, FROM_CLIENT, TO_CLIENT};
use crate::gateway::protocol::schema::{PayloadWriter, example, object_schema};

/// Both channels: name, address, and what a client has to know.
const CHANNELS: [(&str, &str, &str); 2] = [
    ("ws", "/ws", "Text frames: {\"event\": name, \"data\": payload}."),
    (
        "socketio",
        "/socket.io/",
        "Socket.IO 4 (and 2): the message's name is the event's name. An ack callback gets the first answer's payload.",
    ),
];

pub fn document() -> Value {
    let mut schemas = Map::new();
    for (events, writer) in both() {
        for event in events {
            schemas.insert(key(event, writer), object_schema(event.fields, writer));
        }
    }
    let channels: Map<String, Value> =
        CHANNELS.iter().map(|channel| (channel.0.to_owned(), self::channel(*channel))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tillsync",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "node": {
                "host": "localhost:5000", "protocol": "ws", "description": "Any node of the cluster; each serves everything.",
                "security": [{"$ref": "#/components/securitySchemes/token"}],
            },
        },
        "channels": channels,
        "operations": operations(),
        "components": {
            "schemas": schemas,
            "messages": messages(),
            "securitySchemes": {
                "token": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "In the Authorization header, as Socket.IO's auth.token, as the query parameter token, or as the WebSocket \
                         subprotocol tillsync.token.TOKEN beside the subprotocol tillsync.",
                },
            },
        },
    })
}

fn both() -> [(&'static [EventDescription], PayloadWriter); 2] {
    [(FROM_CLIENT, PayloadWriter::Client), (TO_CLIENT, PayloadWriter::Server)]
}

/// Some events go both ways, with different payloads.
fn key(event: &EventDescription, writer: PayloadWriter) -> String {
    format!("{}.{}", if writer == PayloadWriter::Client { "from_client" } else { "to_client" }, event.name)
}

fn messages() -> Map<String, Value> {
    let mut messages = Map::new();
    for (channel, ..) in CHANNELS {
        for (events, writer) in both() {
            for event in events {
                let key = key(event, writer);
                let schema = json!({"$ref": format!("#/components/schemas/{key}")});
                let (payload, example) = match channel {
                    "ws" => (
                        json!({
                            "type": "object", "required": ["event", "data"],
                            "properties": {"event": {"const": event.name}, "data": schema},
                        }),
                        json!({"event": event.name, "data": example(event.fields)}),
                    ),
                    _ => (schema, example(event.fields)),
                };
                let message = json!({
                    "name": event.name, "summary": event.about, "payload": payload, "examples": [{"payload": example}],
                });
                messages.insert(format!("{channel}.{key}"), message);
            }
        }
    }
    messages
}

fn channel((name, address, about): (&str, &str, &str)) -> Value {
    let mut messages = Map::new();
    for (events, writer) in both() {
        for event in events {
            let key = key(event, writer);
            let message = json!({"$ref": format!("#/components/messages/{name}.{key}")});
            messages.insert(key, message);
        }
    }
    json!({
        "address": address, "description": about, "messages": messages,
        "servers": [{"$ref": "#/servers/node"}],
    })
}

fn operations() -> Map<String, Value> {
    let mut operations = Map::new();
    for (channel, ..) in CHANNELS {
        let at = json!({"$ref": format!("#/channels/{channel}")});
        let message = |key: &str| json!({"$ref": format!("#/channels/{channel}/messages/{key}")});
        for (events, writer) in both() {
            for event in events {
                let action = if writer == PayloadWriter::Client { "receive" } else { "send" };
                let mut operation = json!({
                    "action": action, "channel": at, "summary": event.about,
                    "messages": [message(&key(event, writer))],
                });
                let answers: Vec<Value> =
                    event.answers.iter().map(|name| message(&format!("to_client.{name}"))).collect();
                if !answers.is_empty() {
                    operation["reply"] = json!({"channel": at, "messages": answers});
                }
                operations.insert(format!("{channel}.{action}.{}", event.name), operation);
            }
        }
    }
    operations
}
