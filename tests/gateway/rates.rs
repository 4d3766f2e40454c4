//! What one token's subject may take up of a node: beyond its rate a session is read more slowly and loses nothing, a
//! request over REST is told when to come again, and nobody else feels it.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tillsync::cluster::Cluster;
use tillsync::config::{Rate, RateLimits};
use tillsync::gateway::GatewaySettings;
use tillsync::gateway::http::rest::routes::{ENDPOINTS, Endpoint, Needs};
use tillsync::proto::command::Intent;
use tillsync::proto::{DataUpdate, DeviceOnline, Operation, Presence, Role};
use tillsync::token::Class;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::Server;
use crate::socketio::Sio;
use crate::transports::Poller;

const NONE: RateLimits = RateLimits {
    requests: None,
    bytes: None,
    reads: None,
    elections: None,
    critical: None,
    reports: None,
    presence: None,
    privileged: None,
    sessions: 100,
};

async fn limited(allowed: RateLimits) -> Server {
    Server::with(GatewaySettings { allowed, ..GatewaySettings::default() }).await
}

fn till(server: &Server) -> String {
    server.token("till", Class::SalesAssistant)
}

#[tokio::test]
async fn a_request_too_many_is_told_when_to_come_again() {
    let server = limited(RateLimits { requests: Rate::per_second(1, 20), ..NONE }).await;
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
    let requests = RateLimits { requests: Rate::per_second(100, 30), ..NONE };
    let bytes = RateLimits { bytes: Rate::per_second(10_000, 10_000), ..NONE };
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
    let server = limited(RateLimits { critical: Rate::per_second(10, 5), ..NONE }).await;
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
    let server = limited(RateLimits { reports: Rate::per_second(10, 5), ..NONE }).await;
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
    let server = limited(RateLimits { presence: Rate::per_second(10, 5), ..NONE }).await;
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
    let server = limited(RateLimits { elections: Rate::per_minute(2), ..NONE }).await;
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
    let server = Server::with(GatewaySettings {
        allowed: RateLimits { sessions: 3, ..RateLimits::default() },
        sessions: 40,
        ..GatewaySettings::default()
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

/// An event stream from the beginning; the status, if it is refused.
async fn stream(server: &Server, token: &str) -> Result<reqwest::Response, u16> {
    let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr));
    let answer = request.bearer_auth(token).header("accept", "text/event-stream").send().await.unwrap();
    if answer.status().as_u16() == 200 { Ok(answer) } else { Err(answer.status().as_u16()) }
}

/// So many at once, and hardly any more while a test runs.
fn a_day(count: u32) -> Option<Rate> {
    let count = NonZeroU32::new(count)?;
    Some(Rate { count, per: Duration::from_secs(86_400), burst: count })
}

/// Whoever has several tokens of one device has one share: each was issued or renewed for it, and names itself.
#[tokio::test]
async fn all_tokens_of_a_device_have_one_rate_at_every_door() {
    for class in [Class::SalesAssistant, Class::Manager, Class::Admin] {
        let server = limited(RateLimits { requests: a_day(60), privileged: a_day(60), ..NONE }).await;
        let mut tokens: Vec<String> = (0..3).map(|_| server.token("one", class)).collect();
        let (_, renewed) = server.rest_as(&tokens[0], "POST", "/token/renew", None).await;
        tokens.push(renewed["token"].as_str().unwrap().to_owned());
        let _session = server.ws(&tokens[1]).await;
        let _stream = stream(&server, &tokens[2]).await.unwrap();
        // A request to renew, two opened, and one to open a stream.
        let mut spent = 22;
        for token in tokens.iter().cycle() {
            let (status, answer) = server.rest_as(token, "GET", "/device/roles", None).await;
            if status == 503 {
                assert_eq!(answer["error_code"], "5003");
                break;
            }
            spent += 1;
            assert!(spent <= 60, "{class}");
        }
        assert_eq!(spent, 60, "{class}");
        for token in &tokens {
            let Err(Error::Http(refused)) = server.try_ws(token).await else { panic!("one more session") };
            assert_eq!((refused.status().as_u16(), stream(&server, token).await.err()), (503, Some(503)));
        }
        // Another device of the class does not feel it.
        assert_eq!(server.rest_as(&server.token("two", class), "GET", "/device/roles", None).await.0, 200);
    }
}

#[tokio::test]
async fn every_endpoint_that_needs_a_token_counts() {
    let server = limited(RateLimits { requests: a_day(1), privileged: a_day(1), ..NONE }).await;
    let mut asked = 0;
    for class in [Class::SalesAssistant, Class::Admin] {
        let token = server.token("one", class);
        assert_eq!(server.rest_as(&token, "GET", "/device/roles", None).await.0, 200);
        let counted = |e: &&Endpoint| e.needs != Needs::Nothing && e.path != "/ws";
        for endpoint in ENDPOINTS.iter().filter(counted) {
            let parts = endpoint.path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
            let url = format!("http://{}{}", server.addr, parts.collect::<Vec<_>>().join("/"));
            let request = reqwest::Client::new().request(endpoint.method.parse().unwrap(), url);
            let answer = request.bearer_auth(&token).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 503, "{} {}", endpoint.method, endpoint.path);
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["error_code"], "5003", "{} {}: {answer}", endpoint.method, endpoint.path);
            asked += 1;
        }
    }
    assert!(asked > 60, "{asked}");
}

#[tokio::test]
async fn streams_and_sessions_that_are_opened_over_and_over_cost_more_than_requests() {
    let server = limited(RateLimits { requests: a_day(60), ..NONE }).await;
    let token = till(&server);
    let mut opened = 0;
    while opened < 3 && stream(&server, &token).await.is_ok() {
        opened += 1;
    }
    while opened < 60 && server.try_ws(&token).await.is_ok() {
        opened += 1;
    }
    // Eleven for a stream, ten for a session; the last one may exceed it.
    assert_eq!(opened, 6);
}

#[tokio::test]
async fn critical_events_of_all_sessions_of_a_device_have_one_rate() {
    let server = limited(RateLimits { critical: Rate::per_second(10, 5), ..NONE }).await;
    let began = Instant::now();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let mut session = server.ws(&till(&server)).await;
        session.online("till").await;
        for _ in 0..4 {
            session.send("critical_event", json!({"device_id": "till", "event_type": "alarm", "payload": {}})).await;
        }
        sessions.push(session);
    }
    for session in &mut sessions {
        for _ in 0..4 {
            session.wait("acknowledged").await;
        }
    }
    // Five come at once, and one of each session beyond that.
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
}

/// Changes of about a hundred kilobytes, by nobody who has a rate.
async fn fill(server: &Server) {
    let master = DeviceOnline {
        device_id: "boss".into(),
        role: Role::Master.into(),
        presence: Presence::Session.into(),
        ..DeviceOnline::default()
    };
    server.cluster.propose(Intent::DeviceOnline(master)).await.unwrap();
    for record_id in 0..100 {
        let update = DataUpdate {
            device_id: "boss".into(),
            table_name: "stock".into(),
            record_id,
            operation: Operation::Insert.into(),
            data: json!({"text": "x".repeat(1_000)}).to_string().into(),
            ..DataUpdate::default()
        };
        server.cluster.propose(Intent::DataUpdate(update)).await.unwrap();
    }
}

#[tokio::test]
async fn bytes_that_are_read_have_a_rate_and_writes_go_on() {
    let reads = Rate::per_second(1_000, 50_000);
    let server = limited(RateLimits { reads, ..NONE }).await;
    fill(&server).await;
    let (token, other) = (till(&server), server.token("other", Class::SalesAssistant));
    let (mut ws, mut hears) = (server.ws(&token).await, server.ws(&other).await);
    ws.online("till").await;
    hears.online("other").await;
    // One answer is whole, whatever it weighs.
    let (status, page) = server.rest_as(&token, "GET", "/sync/changes?limit=1000", None).await;
    assert_eq!((status, page["changes"].as_array().unwrap().len()), (200, 100));
    for token in [token, till(&server)] {
        for path in ["/sync/changes?limit=1000", "/device/roles", "/data/stock/1"] {
            let (status, refused) = server.rest_as(&token, "GET", path, None).await;
            assert_eq!((status, &refused["error_code"]), (503, &json!("5003")), "{path}");
            assert!((1..=70_000).contains(&refused["retry_after_ms"].as_u64().unwrap()), "{refused}");
        }
        assert_eq!(stream(&server, &token).await.err(), Some(503));
    }
    let refused = ws.call("sync_request", json!({"device_id": "till"}), "sync_error").await;
    assert_eq!(refused["error_code"], "5003", "{refused}");
    let ask = json!({"device_id": "till", "table_name": "stock", "record_id": 1});
    let refused = ws.call("data_request", ask.clone(), "error").await;
    assert_eq!((&refused["error_code"], &refused["event"]), (&json!("5003"), &json!("data_request")), "{refused}");
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0);
    // What it sells is taken in, what others sell it hears, and others read.
    ws.update("till", "sales", 1, json!({"sum": 1})).await;
    assert_eq!(hears.wait("data_update").await["table_name"], "sales");
    hears.update("other", "sales", 2, json!({"sum": 2})).await;
    while ws.wait("data_update").await["record_id"] != 2 {}
    let ask = json!({"device_id": "other", "table_name": "stock", "record_id": 1});
    hears.call("data_request", ask, "data_response").await;
    let sync = hears.call("sync_request", json!({"device_id": "other"}), "sync_response").await;
    assert_eq!(sync["changes"].as_array().unwrap().len(), 102);
    // The sync weighed as much.
    let complete = json!({"device_id": "other", "sync_id": sync["sync_id"], "cursor": sync["cursor"]});
    hears.call("sync_complete", complete, "sync_complete_ack").await;
    let refused = hears.call("sync_request", json!({"device_id": "other"}), "sync_error").await;
    assert_eq!(refused["error_code"], "5003", "{refused}");
    // And so does a stream, as it is sent.
    let third = server.token("third", Class::SalesAssistant);
    let mut open = stream(&server, &third).await.unwrap();
    let mut came = 0;
    while came < 100_000 {
        came += open.chunk().await.unwrap().unwrap().len();
    }
    assert_eq!(server.rest_as(&third, "GET", "/device/roles", None).await.0, 503);
    // A back office has twenty times as much.
    for _ in 0..5 {
        assert_eq!(server.rest("GET", "/sync/changes?limit=1000", None).await.0, 200);
    }
}

#[tokio::test]
async fn what_a_device_missed_comes_later_when_it_has_read_too_much() {
    let server = limited(RateLimits { reads: Rate::per_second(200_000, 1_000), ..NONE }).await;
    fill(&server).await;
    let (token, began) = (till(&server), Instant::now());
    let (_, page) = server.rest_as(&token, "GET", "/sync/changes?limit=1000", None).await;
    let mut ws = server.ws(&token).await;
    let epoch = page["cursor"].as_str().unwrap().split(['.', '-']).next().unwrap().to_owned();
    let online = json!({"device_id": "till", "cursor": format!("{epoch}.0")});
    ws.call("device_online", online, "device_online_ack").await;
    for record_id in 0..100 {
        assert_eq!(ws.wait("data_update").await["record_id"], record_id);
    }
    assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
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
