//! What one token's subject may take up of a node: beyond its rate a session is read more slowly and loses nothing, a
//! request over REST is told when to come again, and nobody else feels it.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tillsync::config::{Allowed, Rate};
use tillsync::gateway::Settings;
use tillsync::token::Class;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::Server;
use crate::socketio::Sio;
use crate::transports::Poller;

const NONE: Allowed = Allowed {
    requests: None,
    bytes: None,
    elections: None,
    critical: None,
    reports: None,
    presence: None,
    privileged: None,
    sessions: 100,
};

async fn limited(allowed: Allowed) -> Server {
    Server::with(Settings { allowed, ..Settings::default() }).await
}

fn till(server: &Server) -> String {
    server.token("till", Class::SalesAssistant)
}

#[tokio::test]
async fn a_request_too_many_is_told_when_to_come_again() {
    let server = limited(Allowed { requests: Rate::per_second(1, 20), ..NONE }).await;
    let token = till(&server);
    let mut ws = server.ws(&token).await;
    for _ in 0..12 {
        ws.send("heartbeat", json!({"device_id": "till"})).await;
    }
    // Opening the session costs ten, and so the last ones of them wait.
    for _ in 0..10 {
        ws.wait("heartbeat_ack").await;
    }
    // Its other doors are the same door.
    let (status, body) = server.rest_as(&token, "GET", "/device/roles", None).await;
    assert_eq!((status, &body["error_code"]), (503, &json!("5003")));
    assert!((1..=12_000).contains(&body["retry_after_ms"].as_u64().unwrap()), "{body}");
    let Err(Error::Http(refused)) = server.try_ws(&token).await else { panic!("one more session") };
    assert_eq!(refused.status().as_u16(), 503);
    // Others do not feel it.
    let other = server.token("other", Class::SalesAssistant);
    assert_eq!(server.rest_as(&other, "GET", "/device/roles", None).await.0, 200);
    // What was sent is not lost.
    for _ in 0..2 {
        ws.wait("heartbeat_ack").await;
    }
}

/// At least the time that the rate says, and everything is answered: on both transports, by requests and by bytes.
#[tokio::test]
async fn a_session_beyond_its_rate_is_read_more_slowly_and_loses_nothing() {
    let requests = Allowed { requests: Rate::per_second(100, 30), ..NONE };
    let bytes = Allowed { bytes: Rate::per_second(10_000, 10_000), ..NONE };
    for allowed in [requests, bytes] {
        let server = limited(allowed).await;
        let mut sio = Sio::connect_as(&server, &till(&server)).await;
        let began = Instant::now();
        let filler = "x".repeat(400);
        for n in 0..60 {
            sio.send(&format!("42{n}{}", json!(["heartbeat", {"device_id": "till", "filler": filler}]))).await;
        }
        for n in 0..60 {
            let answer = sio.wait(&format!("43{n}")).await;
            assert_eq!(answer[0]["device_id"], "till", "{answer}");
        }
        assert!(began.elapsed() >= Duration::from_millis(350), "{allowed:?}: {:?}", began.elapsed());
    }
    let server = limited(requests).await;
    let mut ws = server.ws(&till(&server)).await;
    let began = Instant::now();
    // What cannot be read counts as well.
    for _ in 0..60 {
        ws.text("{").await;
    }
    for _ in 0..60 {
        assert_eq!(ws.wait("error").await["error_code"], "2004");
    }
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
}

#[tokio::test]
async fn critical_events_have_a_rate_of_their_own() {
    let server = limited(Allowed { critical: Rate::per_second(10, 5), ..NONE }).await;
    let mut ws = server.ws(&till(&server)).await;
    ws.online("till").await;
    let began = Instant::now();
    for _ in 0..10 {
        let event = json!({"device_id": "till", "event_type": "alarm", "payload": {}});
        ws.send("critical_event", event).await;
    }
    for _ in 0..10 {
        ws.wait("acknowledged").await;
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn reports_have_a_rate_of_their_own() {
    let server = limited(Allowed { reports: Rate::per_second(10, 5), ..NONE }).await;
    let mut ws = server.ws(&till(&server)).await;
    ws.online("till").await;
    let began = Instant::now();
    for n in 0..10 {
        let versions = json!({"local_version": {"price": n}, "remote_version": {"price": 0}});
        let report = json!({
            "device_id": "till", "table_name": "prices", "record_id": 1,
            "conflict_type": "data", "conflict_data": versions,
        });
        ws.send("sync_conflict", report).await;
    }
    for _ in 0..10 {
        ws.wait("acknowledged").await;
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn comings_and_goings_have_a_rate_of_their_own() {
    let server = limited(Allowed { presence: Rate::per_second(10, 5), ..NONE }).await;
    let mut ws = server.ws(&till(&server)).await;
    let began = Instant::now();
    for _ in 0..5 {
        ws.online("till").await;
        ws.call("device_offline", json!({"device_id": "till", "reason": "break"}), "device_offline_ack").await;
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn elections_and_role_changes_have_a_rate_of_their_own() {
    let server = limited(Allowed { elections: Rate::per_minute(2), ..NONE }).await;
    let token = till(&server);
    let mut ws = server.ws(&token).await;
    ws.online("till").await;
    let change = json!({"device_id": "till", "new_role": "client"});
    for _ in 0..2 {
        ws.call("role_change", change.clone(), "role_change_ack").await;
    }
    let error = ws.call("role_change", change, "error").await;
    assert_eq!((&error["error_code"], &error["event"]), (&json!("5003"), &json!("role_change")), "{error}");
    assert!((1..=60_000).contains(&error["retry_after_ms"].as_u64().unwrap()), "{error}");
    let elect = json!({"reason": "failure"});
    let error = ws.call("master_election", elect.clone(), "error").await;
    assert_eq!(error["error_code"], "5003", "{error}");
    let role = json!({"role": "client", "reason": "tired"});
    for (method, path, body) in [("PUT", "/device/roles/till", role), ("POST", "/system/election", elect)] {
        let (status, body) = server.rest_as(&token, method, path, Some(body)).await;
        assert_eq!((status, &body["error_code"]), (503, &json!("5003")), "{body}");
    }
    // All else goes on, and so does everybody else.
    ws.call("heartbeat", json!({"device_id": "till"}), "heartbeat_ack").await;
    let (status, _) = server.rest("POST", "/system/election", Some(json!({"reason": "manual"}))).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_token_has_so_many_sessions_and_streams_on_a_node() {
    let server = Server::with(Settings {
        allowed: Allowed { sessions: 3, ..Allowed::default() },
        sessions: 40,
        ..Settings::default()
    })
    .await;
    let token = till(&server);
    let stream = async || {
        let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr));
        request.bearer_auth(&token).header("accept", "text/event-stream").send().await.unwrap()
    };
    let first = server.ws(&token).await;
    let _second = Sio::connect_as(&server, &token).await;
    let open = stream().await;
    assert_eq!(open.status().as_u16(), 200);
    let refused = stream().await;
    assert_eq!(refused.status().as_u16(), 503);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error_code"], "5003");
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0, "{refused}");
    let Err(Error::Http(refused)) = server.try_ws(&token).await else { panic!("one more session") };
    assert_eq!(refused.status().as_u16(), 503);
    // Other devices have theirs, and what ends makes room.
    let _other = server.ws(&server.token("other", Class::SalesAssistant)).await;
    drop(first);
    while server.try_ws(&token).await.is_err() {
        tokio::task::yield_now().await;
    }
    // A manager's tool has more, and leaves room; an admin's may speak for the whole shop.
    let (manager, mut tools) = (server.token("chief", Class::Manager), Vec::new());
    while let Ok(tool) = server.try_ws(&manager).await {
        tools.push(tool);
    }
    assert_eq!(tools.len(), 5);
    for _ in 0..10 {
        tools.push(server.ws(&server.admin()).await);
    }
}

const SALES: i64 = 10_000;
/// Only a test that hangs takes so long.
const LONG: Duration = Duration::from_secs(300);

fn sale(n: i64) -> Value {
    json!({"device_id": "till", "table_name": "sales", "record_id": n, "operation": "insert",
        "new_data": {"total": "12.50", "lines": [{"sku": n, "n": 1}, {"sku": n + 1, "n": 2}]}})
}

fn accepted(server: &Server) {
    assert_eq!(server.head(), SALES as u64);
}

/// A till that was offline sends all that it kept as fast as it can, with the rates that a node has by itself.
#[tokio::test]
async fn a_tills_whole_backlog_is_accepted_over_ws() {
    let server = Server::start().await;
    let url = format!("ws://{}/ws?token={}", server.addr, till(&server));
    let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let (mut out, mut back) = socket.split();
    let sending = async {
        let online = json!({"event": "device_online", "data": {"device_id": "till", "subscribe": []}});
        out.send(Message::text(online.to_string())).await.unwrap();
        for n in 0..SALES {
            let frame = json!({"event": "data_update", "data": sale(n)});
            out.feed(Message::text(frame.to_string())).await.unwrap();
        }
        out.flush().await.unwrap();
    };
    let hearing = async {
        let mut acknowledged = 0;
        while acknowledged < SALES {
            let Message::Text(text) = back.next().await.unwrap().unwrap() else { continue };
            assert!(!text.starts_with("{\"event\":\"error\""), "{text}");
            acknowledged += i64::from(text.starts_with("{\"event\":\"acknowledged\""));
        }
    };
    timeout(LONG, async { tokio::join!(sending, hearing) }).await.expect("an answer is missing");
    accepted(&server);
}

#[tokio::test]
async fn a_tills_whole_backlog_is_accepted_over_socketio() {
    let server = Server::start().await;
    let (mut out, mut back) = Sio::connect_as(&server, &till(&server)).await.0.split();
    let sending = async {
        let online = json!(["device_online", {"device_id": "till", "subscribe": []}]);
        out.send(Message::text(format!("42{online}"))).await.unwrap();
        for n in 0..SALES {
            out.feed(Message::text(format!("42{n}{}", json!(["data_update", sale(n)])))).await.unwrap();
        }
        out.flush().await.unwrap();
    };
    let hearing = async {
        let mut acknowledged = 0;
        while acknowledged < SALES {
            let Message::Text(text) = back.next().await.unwrap().unwrap() else { continue };
            assert!(!text.contains("\"error_code\""), "{text}");
            acknowledged += i64::from(text.starts_with("43"));
        }
    };
    timeout(LONG, async { tokio::join!(sending, hearing) }).await.expect("an answer is missing");
    accepted(&server);
}

#[tokio::test]
async fn a_tills_whole_backlog_is_accepted_over_polling() {
    let server = Server::start().await;
    let mut poller = Poller::connect_as(&server, &till(&server)).await;
    poller.post(&format!("42{}", json!(["device_online", {"device_id": "till", "subscribe": []}]))).await;
    poller.wait("42").await;
    let all: Vec<i64> = (0..SALES).collect();
    for some in all.chunks(500) {
        let packets: Vec<String> = some.iter().map(|n| format!("42{n}{}", json!(["data_update", sale(*n)]))).collect();
        poller.post(&packets.join("\x1e")).await;
    }
    let mut acknowledged = 0;
    while acknowledged < SALES {
        let packet = poller.next().await;
        assert!(!packet.contains("\"error_code\""), "{packet}");
        acknowledged += i64::from(packet.starts_with("43"));
    }
    accepted(&server);
}

#[tokio::test]
async fn a_tills_whole_backlog_is_accepted_over_rest() {
    let server = Server::start().await;
    let (http, token) = (reqwest::Client::new(), till(&server));
    let register = http.post(format!("http://{}/device/register", server.addr)).bearer_auth(&token);
    assert_eq!(register.json(&json!({"device_id": "till"})).send().await.unwrap().status().as_u16(), 200);
    let send = |n| {
        let post = http.post(format!("http://{}/data/sales/{n}", server.addr)).bearer_auth(&token);
        let post = post.json(&sale(n));
        async move { post.send().await.unwrap().status().as_u16() }
    };
    // More at once than are answered at once.
    let mut answers = stream::iter(0..SALES).map(send).buffer_unordered(24);
    while let Some(status) = answers.next().await {
        assert_eq!(status, 200);
    }
    accepted(&server);
}
