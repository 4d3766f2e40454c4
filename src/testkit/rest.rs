//! Requests of REST, through the router and down to the handlers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, Uri};
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use super::alloc::{live, measure};
use super::{BETWEEN, Node, run, schema, settled};
use crate::model::error::Code;
use crate::token::Class;

/// Of a case.
const REQUESTS: usize = 32;
/// By the case's own clock. A stream of events does not end.
const PATIENCE: Duration = Duration::from_secs(120);
const STREAM: Duration = Duration::from_millis(10);
/// What the node may hold after a case: so many times its length, and this. Bytes.
const HELD_TIMES: isize = 64;
const HELD: isize = 1 << 20;
const LEFT: isize = 1 << 20;

/// A case: requests with [`BETWEEN`] between them, each as in HTTP after one letter that says whose token it carries,
/// and without a version: `aGET /api/health`, lines of headers, an empty line, the body.
pub fn rest(input: &[u8]) {
    std::sync::LazyLock::force(&schema::OPENAPI);
    let ((), taken) = measure(|| {
        run(async {
            let node = Node::start().await;
            settled().await;
            let before = live();
            for request in input.split(|byte| *byte == BETWEEN).take(REQUESTS) {
                ask(&node, request).await;
            }
            settled().await;
            let held = live() - before;
            assert!(held < HELD + HELD_TIMES * input.len() as isize, "{held} bytes are held of {}", input.len());
            node.check();
        });
    });
    assert!(taken.left < LEFT, "{taken:?} of {} bytes", input.len());
}

fn class(letter: u8) -> Option<Class> {
    match letter {
        b'm' => Some(Class::Manager),
        b's' => Some(Class::SalesAssistant),
        b'n' => None,
        _ => Some(Class::Admin),
    }
}

/// `None`: HTTP has no such request.
fn request(node: &Node, bytes: &[u8]) -> Option<Request<Body>> {
    let (letter, bytes) = bytes.split_first()?;
    let (head, body) = match bytes.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (bytes, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.next()?;
    let space = line.iter().position(|byte| *byte == b' ')?;
    let uri = Uri::try_from(&line[space + 1..]).ok()?;
    let mut request = Request::builder().method(&line[..space]).uri(uri).body(Body::from(body.to_vec())).ok()?;
    let headers = request.headers_mut();
    for line in lines.take(16) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    if let Some(class) = class(*letter) {
        let token = format!("Bearer {}", node.token(class));
        headers.entry("authorization").or_insert(HeaderValue::from_str(&token).ok()?);
    }
    Some(request)
}

async fn ask(node: &Node, bytes: &[u8]) {
    let Some(request) = request(node, bytes) else { return };
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let answer = timeout(PATIENCE, node.app.clone().oneshot(request)).await;
    let Ok(answer) = answer.unwrap_or_else(|_| panic!("{method} {path} is not answered"));
    let status = answer.status().as_u16();
    assert_ne!(status, 500, "{method} {path}");
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let body = match timeout(STREAM, axum::body::to_bytes(answer.into_body(), usize::MAX)).await {
        Ok(body) => body.unwrap(),
        Err(_) => {
            assert_eq!(kind.as_deref(), Some("text/event-stream"), "{method} {path} does not end");
            return;
        }
    };
    if kind.as_deref() != Some("application/json") || method == "HEAD" || method == "OPTIONS" {
        return;
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    if let Some(code) = body.get("error_code") {
        let code = code.as_str().and_then(|code| Code::of(code.parse().ok()?));
        assert!(code.is_some(), "{method} {path}: {body}");
    }
    if path.starts_with("/api/") && ["GET", "POST", "PUT", "DELETE"].contains(&method.as_str()) {
        schema::answer_fits(&method, &path, status, &body);
    }
}
