//! What serves the descriptions: the JSON documents, and pages to read them that need nothing else.

use std::sync::LazyLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| super::openapi::document().to_string().into());
static ASYNCAPI: LazyLock<Bytes> = LazyLock::new(|| super::asyncapi::document().to_string().into());

const INDEX: &str = include_str!("index.html");
const READER: &str = include_str!("reader.html");
const CONSOLE: &str = include_str!("console.html");

/// `GET /openapi.json`
pub(crate) async fn openapi() -> Response {
    send("application/json", OPENAPI.clone())
}

/// `GET /asyncapi.json`
pub(crate) async fn asyncapi() -> Response {
    send("application/json", ASYNCAPI.clone())
}

/// `GET /docs`
pub(crate) async fn index() -> Response {
    html(INDEX)
}

/// `GET /console`: it asks with a token that its reader gives it.
pub(crate) async fn console() -> Response {
    html(CONSOLE)
}

/// `GET /docs/rest`, and `GET /docs/events`: one page, which reads what its own address asks for.
pub(crate) async fn rest() -> Response {
    html(READER)
}

pub(crate) async fn events() -> Response {
    html(READER)
}

/// A page runs its own script and asks its own node, nothing else; and no other page shows it in a frame.
fn html(page: &str) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let mut page = page.replacen("<script>", &format!("<script nonce=\"{nonce}\">"), 1);
    page = page.replacen("<style>", &format!("<style nonce=\"{nonce}\">"), 1);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [(CONTENT_SECURITY_POLICY, policy.as_str()), (X_FRAME_OPTIONS, "DENY")];
    (headers, send("text/html; charset=utf-8", page.into())).into_response()
}

/// Asked for anew each time: another version of the node may answer next.
fn send(kind: &'static str, body: Bytes) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, body).into_response()
}
