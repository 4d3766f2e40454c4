//! What serves the descriptions: the JSON documents, and pages to read them that need nothing else.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| super::openapi::document().to_string().into());
static ASYNCAPI: LazyLock<Bytes> = LazyLock::new(|| super::asyncapi::document().to_string().into());

const INDEX: &str = include_str!("index.html");
const READER: &str = include_str!("reader.html");
const CONSOLE: &str = include_str!("console.html");

/// `GET /openapi.json`
pub async fn openapi() -> Response {
    send("application/json", OPENAPI.clone())
}

/// `GET /asyncapi.json`
pub async fn asyncapi() -> Response {
    send("application/json", ASYNCAPI.clone())
}

/// `GET /docs`
pub async fn index() -> Response {
    html(INDEX)
}

/// `GET /console`: it asks with a token that its reader gives it.
pub async fn console() -> Response {
    html(CONSOLE)
}

/// `GET /docs/rest`, and `GET /docs/events`: one page, which reads what its own address asks for.
pub async fn rest() -> Response {
    html(READER)
}

pub async fn events() -> Response {
    html(READER)
}

fn html(page: &'static str) -> Response {
    send("text/html; charset=utf-8", Bytes::from_static(page.as_bytes()))
}

/// Asked for anew each time: another version of the node may answer next.
fn send(kind: &'static str, body: Bytes) -> Response {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], body).into_response()
}
