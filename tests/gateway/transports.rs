//! How a Socket.IO session ends, what becomes of frames that are refused, and HTTP polling as it is on the wire.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::cluster::Cluster;
use tillsync::gateway::GatewaySettings;
use tillsync::limits;
use tillsync::proto::TokenRevoke;
use tillsync::proto::command::Intent;
use tillsync::token::Class;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::harness::{Over, PATIENCE, Server};
use crate::socketio::Sio;

/// A client that polls.
#[derive(Clone)]
pub(crate) struct Poller {
    http: reqwest::Client,
    url: String,
    /// Packets that came in a payload and were not asked for yet.
    came: Vec<String>,
}

impl Poller {
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::connect_as(server, &server.admin()).await
    }

    pub(crate) async fn connect_as(server: &Server, token: &str) -> Self {
        let mut poller = Self::open(server, "EIO=4").await;
        poller.post(&format!("40{}", json!({"token": token}))).await;
        assert!(poller.next().await.starts_with("40{\"sid\":"));
        poller
    }

    async fn open(server: &Server, query: &str) -> Self {
        let http = reqwest::Client::new();
        let url = format!("http://{}/socket.io/?transport=polling&{query}", server.addr);
        let hello = http.get(&url).send().await.unwrap().text().await.unwrap();
        let hello: Value = serde_json::from_str(&hello[hello.find('{').unwrap()..]).unwrap();
        assert_eq!((&hello["upgrades"], &hello["maxPayload"]), (&json!(["websocket"]), &json!(limits::FRAME)));
        Self { http, url: format!("{url}&sid={}", hello["sid"].as_str().unwrap()), came: Vec::new() }
    }

    pub(crate) async fn post(&mut self, body: &str) {
        let answer = self.http.post(&self.url).body(body.to_owned()).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "ok"));
    }

    /// The status of the next poll, and its payload.
    async fn poll(&mut self) -> (u16, String) {
        let answer = timeout(PATIENCE, self.http.get(&self.url).send()).await.expect("nothing came").unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// The next packet that is no ping.
    pub(crate) async fn next(&mut self) -> String {
        loop {
            while !self.came.is_empty() {
                match self.came.remove(0).as_str() {
                    "2" => self.post("3").await,
                    packet => return packet.to_owned(),
                }
            }
            let (status, payload) = self.poll().await;
            assert_eq!(status, 200, "{payload}");
            self.came = payload.split('\x1e').map(str::to_owned).collect();
        }
    }

    pub(crate) async fn wait(&mut self, start: &str) -> Value {
        loop {
            let packet = self.next().await;
            if let Some(rest) = packet.strip_prefix(start) {
                return serde_json::from_str(rest).unwrap_or_else(|_| panic!("{packet}"));
            }
        }
    }
}

/// All that comes until the connection ends, and whether it ended with a close frame.
async fn rest_of(sio: &mut Sio) -> (Vec<String>, bool) {
    let mut packets = Vec::new();
    while let Some(Ok(message)) = timeout(PATIENCE, sio.0.next()).await.expect("it does not end") {
        match message {
            Message::Text(text) if text.as_str() != "2" => packets.push(text.as_str().to_owned()),
            Message::Close(_) => return (packets, true),
            _ => {}
        }
    }
    (packets, false)
}

fn code_of(packet: &str) -> Value {
    let event: Value = serde_json::from_str(packet.strip_prefix("42").unwrap_or_else(|| panic!("{packet}"))).unwrap();
    assert_eq!(event[0], "error");
    event[1]["error_code"].clone()
}

#[tokio::test]
async fn a_shutdown_says_why_and_ends_the_transport_only() {
    let server = Server::start().await;
    let mut sio = Sio::connect_as(&server, &server.admin()).await;
    let mut old = Sio::open(&server, &format!("EIO=3&token={}", server.admin())).await;
    assert_eq!(old.next().await, "40");
    let mut poller = Poller::connect(&server).await;
    // What was queued before comes before it.
    sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    sio.wait("42").await;
    let ended = tokio::spawn(async move { (poller.next().await, poller) });
    // Nothing tells that a poll waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.shutdown.cancel();
    let (last, poller) = timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert_eq!(code_of(&last), "5003");
    for sio in [&mut sio, &mut old] {
        let (packets, close_frame) = rest_of(sio).await;
        assert_eq!(packets.iter().map(|p| code_of(p)).collect::<Vec<_>>(), ["5003"], "nothing else: {packets:?}");
        assert!(!close_frame, "old Python clients do not come back after a close frame");
    }
    assert!(poller.came.is_empty(), "neither DISCONNECT nor CLOSE");
    // Either the node does not listen any more, or it does not know the connection.
    if let Ok(answer) = poller.http.get(&poller.url).send().await {
        assert_eq!(answer.status(), 400);
    }
    timeout(PATIENCE, server.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_revoked_token_ends_the_session_for_good() {
    let server = Server::start().await;
    let (token, claims) = server.keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap();
    let mut sio = Sio::connect_as(&server, &token).await;
    let revoke = TokenRevoke { jti: claims.jti, exp_ms: claims.exp * 1_000, by: "admin".into() };
    server.cluster.propose(Intent::TokenRevoke(revoke)).await.unwrap();
    let (packets, _) = rest_of(&mut sio).await;
    assert_eq!((code_of(&packets[0]), packets[1].as_str()), (json!("3001"), "41"), "{packets:?}");
}

#[tokio::test]
async fn an_expired_token_ends_the_transport_and_a_fresh_one_comes_back() {
    let settings = GatewaySettings { ping_every: Duration::from_millis(100), ..GatewaySettings::default() };
    let server = Server::with(settings).await;
    let token = server.keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 1).unwrap().0;
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.addr);
    let mut sio = Sio(tokio_tungstenite::connect_async(&url).await.unwrap().0);
    sio.send(&format!("40{}", json!({"token": token}))).await;
    let (packets, _) = rest_of(&mut sio).await;
    assert_eq!(code_of(packets.last().unwrap()), "3002", "and no DISCONNECT after it: {packets:?}");
    let mut fresh = Sio(tokio_tungstenite::connect_async(url).await.unwrap().0);
    fresh.send(&format!("40{}", json!({"token": server.token("till", Class::SalesAssistant)}))).await;
    fresh.wait("40").await;
}

#[tokio::test]
async fn a_full_node_refuses_before_there_is_a_connection() {
    let server = Server::with(GatewaySettings { sessions: 1, ..GatewaySettings::default() }).await;
    let mut first = Sio::connect_as(&server, &server.admin()).await;
    for transport in ["polling", "websocket"] {
        let url = format!("http://{}/socket.io/?EIO=4&transport={transport}", server.addr);
        let answer = reqwest::get(url).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
        assert_eq!(answer.json::<Value>().await.unwrap()["error_code"], "1003");
    }
    first.send("41").await;
    rest_of(&mut first).await;
    Sio::connect_as(&server, &server.admin()).await;
}

#[tokio::test]
async fn a_node_that_is_full_by_then_ends_the_transport_of_whoever_says_its_name() {
    let server = Server::with(GatewaySettings { sessions: 1, ..GatewaySettings::default() }).await;
    let mut late = Sio::open(&server, "EIO=4").await;
    let _first = Sio::connect_as(&server, &server.admin()).await;
    late.send(&format!("40{}", json!({"token": server.admin()}))).await;
    assert_eq!(rest_of(&mut late).await, (Vec::new(), false), "no CONNECT_ERROR, which clients take for final");
}

#[tokio::test]
async fn a_silent_client_is_told_and_may_come_back() {
    let (ping_every, lost_after) = (Duration::from_millis(50), Duration::from_millis(300));
    let server = Server::with(GatewaySettings { ping_every, lost_after, ..GatewaySettings::default() }).await;
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.addr);
    let mut sio = Sio(tokio_tungstenite::connect_async(url).await.unwrap().0);
    sio.send(&format!("40{}", json!({"token": server.admin()}))).await;
    // `rest_of` answers no ping.
    let (packets, close_frame) = rest_of(&mut sio).await;
    assert_eq!((code_of(packets.last().unwrap()), close_frame), (json!("1004"), false));
    // A client that polls no more is silent, too, though it was heard.
    let mut poller = Poller::connect(&server).await;
    let (sessions, end) = (|| server.rest("GET", "/system/network", None), tokio::time::Instant::now() + PATIENCE);
    while sessions().await.1["active_connections"] != 0 {
        assert!(tokio::time::Instant::now() < end, "it stays");
        let _ = poller.http.post(&poller.url).body("3").send().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is told with its next poll, if that comes soon; then it is not known any more.
    let (status, payload) = poller.poll().await;
    assert!(status == 400 || payload.contains("\"error_code\":\"1004\""), "{status} {payload}");
    assert_eq!(poller.poll().await.0, 400);
}

fn large(bytes: usize) -> String {
    let rest =
        json!({"device_id": "d", "event_type": "photo", "request_id": "big", "payload": {"jpeg": "x".repeat(bytes)}});
    json!(["critical_event", rest]).to_string()
}

fn refusal_names(error: &Value) {
    let named = (&error["error_code"], &error["event"], &error["request_id"]);
    assert_eq!(named, (&json!("2004"), &json!("critical_event"), &json!("big")), "{error}");
}

#[tokio::test]
async fn a_large_packet_is_refused_by_name_and_the_connection_stays() {
    let server = Server::start().await;
    let mut sio = Sio::connect_as(&server, &server.admin()).await;
    for bytes in [limits::FRAME, 3 << 20] {
        sio.send(&format!("427{}", large(bytes))).await;
        refusal_names(&sio.wait("42").await[1]);
        refusal_names(&sio.wait("437").await[0]);
    }
    sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    assert_eq!(sio.wait("42").await[0], "heartbeat_ack");
    let mut poller = Poller::connect(&server).await;
    poller.post(&format!("428{}\x1e42[\"heartbeat\",{{\"device_id\":\"d\"}}]", large(3 << 20))).await;
    let error = poller.wait("42").await;
    refusal_names(&error[1]);
    refusal_names(&poller.wait("438").await[0]);
    assert_eq!(poller.wait("42").await[0], "heartbeat_ack");
    let mut ws = server.device("d").await;
    let [event, data]: [Value; 2] = serde_json::from_str(&large(2 << 20)).unwrap();
    refusal_names(&ws.call(event.as_str().unwrap(), data, "error").await);
    ws.none("error").await;
}

#[tokio::test]
async fn beyond_what_is_read_the_error_comes_before_the_end() {
    let server = Server::start().await;
    let mut sio = Sio::connect_as(&server, &server.admin()).await;
    // It may be cut off before it has sent all of it.
    let _ = sio.0.send(Message::text(format!("427{}", large(limits::PACKET_READ)))).await;
    let (packets, _) = rest_of(&mut sio).await;
    assert_eq!(packets.iter().map(|p| code_of(p)).collect::<Vec<_>>(), ["2004"]);
    let mut poller = Poller::connect(&server).await;
    poller.post(&format!("427{}", large(limits::PACKET_READ))).await;
    assert_eq!(code_of(&poller.next().await), "2004");
    assert_eq!(poller.poll().await.0, 400);
}

#[tokio::test]
async fn a_packet_with_attachments_is_answered_once_and_they_are_passed_over() {
    let server = Server::start().await;
    let packet =
        r#"452-7["data_update",{"device_id":"d","request_id":"r","new_data":{"a":{"_placeholder":true,"num":0}}}]"#;
    let expected = (json!("2004"), json!("data_update"), json!("r"));
    let fields = |e: &Value| (e["error_code"].clone(), e["event"].clone(), e["request_id"].clone());
    let mut sio = Sio::connect_as(&server, &server.admin()).await;
    sio.send(packet).await;
    for _ in 0..2 {
        sio.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    }
    sio.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    assert_eq!(fields(&sio.wait("42").await[1]), expected);
    assert_eq!(fields(&sio.wait("437").await[0]), expected);
    assert_eq!(sio.wait("42").await[0], "heartbeat_ack", "nothing is said of the attachments");
    sio.0.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(sio.wait("42").await[1]["error_code"], "2004", "this one belongs to nothing");
    let mut poller = Poller::connect(&server).await;
    poller.post(&format!("{packet}\x1ebAQID\x1ebAQID\x1e42[\"heartbeat\",{{\"device_id\":\"d\"}}]")).await;
    assert_eq!(fields(&poller.wait("42").await[1]), expected);
    assert_eq!(fields(&poller.wait("437").await[0]), expected);
    assert_eq!(poller.wait("42").await[0], "heartbeat_ack");
}

#[tokio::test]
async fn ten_thousand_updates_in_one_post_are_answered_in_order() {
    const UPDATES: usize = 10_000;
    let server = Server::start().await;
    let mut poller = Poller::connect(&server).await;
    poller.post(r#"42["device_online",{"device_id":"d","subscribe":[]}]"#).await;
    assert_eq!(poller.wait("42").await[0], "device_online_ack");
    let update = |i: usize| {
        format!(r#"42{i}["data_update",{{"device_id":"d","table_name":"t","record_id":{i},"new_data":{{}}}}]"#)
    };
    let body = (0..UPDATES).map(update).collect::<Vec<_>>().join("\x1e");
    poller.post(&body).await;
    let mut acked = 0;
    while acked < UPDATES {
        let packet = poller.next().await;
        if let Some(answer) = packet.strip_prefix("43") {
            assert!(answer.starts_with(&format!("{acked}[")) && !answer.contains("error_code"), "{acked}: {answer}");
            acked += 1;
        }
        assert!(!packet.starts_with("42[\"error\""), "{packet}");
    }
    assert_eq!(server.head(), UPDATES as u64);
}

#[tokio::test]
async fn old_clients_that_poll_get_what_both_their_languages_count_alike() {
    let server = Server::start().await;
    let mut ws = server.device("w").await;
    let mut old = Poller::open(&server, &format!("EIO=3&token={}", server.admin())).await;
    assert_eq!(old.poll().await.1, "2:40");
    // JavaScript counts UTF-16 units: the emoji are two each.
    let packet = r#"42["data_update",{"device_id":"w","table_name":"t","record_id":1,"new_data":{"n":"☕😀😀"}}]"#;
    old.post(&format!("{}:{packet}", packet.encode_utf16().count())).await;
    assert_eq!(ws.wait("data_update").await["new_data"]["n"], "☕😀😀");
    let (_, payload) = old.poll().await;
    let (length, rest) = payload.split_once(':').unwrap();
    let first: String = rest.chars().take(length.parse().unwrap()).collect();
    assert_eq!(first.encode_utf16().count(), first.chars().count());
    assert!(serde_json::from_str::<Value>(&first[2..]).is_ok(), "{first}");
}

#[tokio::test]
async fn a_poll_that_is_sent_again_gets_the_same_answer() {
    let server = Server::start().await;
    let mut poller = Poller::connect(&server).await;
    let url = poller.url.clone();
    let (asks, changes) = (json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {}}), "42[\"ack");
    poller.post(&format!("42[\"device_online\",{}]", json!({"device_id": "d"}))).await;
    while !poller.next().await.starts_with("42[\"device_online_ack\",") {}

    // The library under the client lost the answer with its connection, and asks again.
    poller.post(&format!("42[\"data_update\",{asks}]")).await;
    poller.url = format!("{url}&t=Pa1");
    let first = loop {
        let (_, payload) = poller.poll().await;
        if payload.contains(changes) {
            break payload;
        }
        let stamp = poller.url.len();
        poller.url = format!("{url}&t=Pa{stamp}");
    };
    assert_eq!(poller.poll().await, (200, first.clone()));
    assert_eq!(poller.poll().await, (200, first.clone()), "as often as it is lost");

    // The next one brings what is next.
    poller.post(&format!("42[\"data_update\",{asks}]")).await;
    poller.url = format!("{url}&t=Pb");
    let (_, next) = poller.poll().await;
    assert_ne!(next, first);
    // Without a time-stamp no two polls are the same.
    poller.url = url;
    poller.post(&format!("42[\"data_update\",{asks}]")).await;
    let (_, next) = poller.poll().await;
    assert!(!next.is_empty());
}

/// The next text, pings included.
async fn text(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> String {
    match timeout(PATIENCE, socket.next()).await.expect("nothing came") {
        Some(Ok(Message::Text(text))) => text.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_is_busy_as_it_is_connected_resumes_before_it_hears_of_changes() {
    let settings = GatewaySettings { ping_every: Duration::from_millis(500), ..GatewaySettings::default() };
    let server = Server::with(settings).await;
    let mut writer = server.session(Over::WebSocket).await;
    let cursor = writer.online("writer").await["cursor"].clone();
    let put = json!({"device_id": "writer", "table_name": "t", "record_id": 1, "new_data": {}});
    let missed = writer.call("data_update", put.clone(), "acknowledged").await["seq"].clone();

    let url = format!("ws://{}/socket.io/?transport=websocket&EIO=4", server.addr);
    let (mut socket, _) = connect_async(url).await.unwrap();
    socket.send(Message::text(format!("40{}", json!({"token": server.admin()})))).await.unwrap();
    while !text(&mut socket).await.starts_with("40") {}
    // It answers none of the pings yet: what comes meanwhile is not for it.
    let live = writer.call("data_update", put, "acknowledged").await["seq"].clone();
    for _ in 0..6 {
        assert_eq!(text(&mut socket).await, "2");
    }
    let online = json!({"device_id": "d", "cursor": cursor});
    socket.send(Message::text(format!("42[\"device_online\",{online}]"))).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        if let Some(change) = text(&mut socket).await.strip_prefix("42[\"data_update\",") {
            let change: Value = serde_json::from_str(&change[..change.len() - 1]).unwrap();
            told.push(change["seq"].clone());
        }
    }
    assert_eq!(told, [missed, live]);
}

#[tokio::test]
async fn a_client_moves_from_polling_to_a_web_socket_and_misses_nothing() {
    let server = Server::start().await;
    let mut writer = server.device("w").await;
    let mut poller = Poller::connect(&server).await;
    let url = poller.url.replace("http://", "ws://").replace("transport=polling", "transport=websocket");
    let mut heard = Vec::new();
    let seq_of = |packet: &str| {
        let event = serde_json::from_str::<Value>(packet.strip_prefix("42")?).ok()?;
        (event[0] == "data_update").then(|| event[1]["record_id"].as_i64())?
    };
    for i in 0..10 {
        writer.update("w", "t", i, json!({})).await;
    }
    let mut sio = Sio(tokio_tungstenite::connect_async(url).await.unwrap().0);
    sio.send("2probe").await;
    assert_eq!(sio.next().await, "3probe");
    for i in 10..20 {
        writer.update("w", "t", i, json!({})).await;
    }
    // Polls are answered at once now: with what there is, then with a noop.
    loop {
        let (status, payload) = poller.poll().await;
        assert_eq!(status, 200);
        if payload == "6" {
            break;
        }
        heard.extend(payload.split('\x1e').filter_map(seq_of));
    }
    sio.send("5").await;
    for i in 20..30 {
        writer.update("w", "t", i, json!({})).await;
    }
    while heard.len() < 30 {
        heard.extend(seq_of(&sio.next().await));
    }
    assert_eq!(heard, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn requests_that_are_no_engine_io_are_refused_as_its_clients_know_it() {
    let server = Server::start().await;
    let http = reqwest::Client::new();
    for (method, query, code) in [
        ("GET", "EIO=4&transport=polling&sid=x", 1),
        ("POST", "EIO=4&transport=polling&sid=x", 1),
        ("POST", "EIO=4&transport=polling", 2),
        ("GET", "EIO=4&transport=websocket", 3),
        ("GET", "EIO=4&transport=pigeon", 0),
        ("GET", "EIO=2&transport=polling", 5),
    ] {
        let url = format!("http://{}/socket.io/?{query}", server.addr);
        let answer = http.request(method.parse().unwrap(), url).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{query}");
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], code, "{query}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_ask_and_socket_io_2_with_credentials() {
    let header = |answer: &reqwest::Response, name: &str| {
        answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let ask = async |server: &Server, path: &str, origin: &str| {
        let request = reqwest::Client::new().get(format!("http://{}{path}", server.addr)).header("origin", origin);
        let answer = request.send().await.unwrap();
        assert!(header(&answer, "vary").contains("origin"), "{path}");
        (header(&answer, "access-control-allow-origin"), header(&answer, "access-control-allow-credentials"))
    };
    let both = |origin: &str, credentials: &str| (origin.to_owned(), credentials.to_owned());
    let (sio, rest) = ("/socket.io/?EIO=3&transport=polling", "/system/health");
    let server = Server::start().await;
    assert_eq!(ask(&server, sio, "https://a.example").await, both("https://a.example", "true"));
    assert_eq!(ask(&server, rest, "https://a.example").await, both("*", ""));
    let server =
        Server::with(GatewaySettings { origins: vec!["https://a.example".into()], ..GatewaySettings::default() }).await;
    for path in [sio, rest] {
        assert_eq!(ask(&server, path, "https://a.example").await, both("https://a.example", "true"));
        assert_eq!(ask(&server, path, "https://b.example").await.0, "", "{path}");
    }
}

#[tokio::test]
async fn a_stream_says_something_at_once_and_passes_through_proxies() {
    let server = Server::start().await;
    let request = reqwest::Client::new().get(format!("http://{}/sync/changes", server.addr));
    let request = request.bearer_auth(server.admin()).header("accept", "text/event-stream");
    let mut answer = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    let first = timeout(PATIENCE, answer.chunk()).await.unwrap().unwrap().unwrap();
    assert!(first.starts_with(b":"), "{first:?}");
}

#[tokio::test]
async fn the_pages_work_under_a_path_of_a_proxy() {
    let server = Server::start().await;
    for path in ["/docs", "/docs/rest", "/console"] {
        let page = reqwest::get(format!("http://{}{path}", server.addr)).await.unwrap().text().await.unwrap();
        for absolute in ["href=\"/", "src=\"/", "fetch(\"/", "ask(\"/", "URL(\"/", "? \"/"] {
            assert!(!page.contains(absolute), "{path} has {absolute}");
        }
    }
}

#[tokio::test]
async fn a_flood_that_its_sender_does_not_read_waits() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let server = Server::start().await;
        let mut session = server.session(over).await;
        session.online("d").await;
        // More answers than the session's queue holds, and none is read meanwhile.
        let (count, pad) = (limits::SESSION_QUEUE as i64 * 3, "x".repeat(200));
        for i in 0..count {
            session.send("heartbeat", json!({"device_id": format!("{i}-{pad}")})).await;
        }
        for i in 0..count {
            let ack = session.wait("heartbeat_ack").await;
            assert!(ack["device_id"].as_str().unwrap().starts_with(&format!("{i}-")), "{over:?}");
        }
        session.none("error").await;
    }
}

/// The client of the commands, on each transport that it speaks: in order, nothing twice, over polling as well.
#[tokio::test]
async fn the_client_of_the_commands_speaks_every_transport() {
    use tillsync::client::{NodeUrl, link::ClientLink, link::ClientTransport};
    for transport in [ClientTransport::Ws, ClientTransport::Socketio, ClientTransport::SocketioPolling] {
        let server = Server::start().await;
        let node = NodeUrl::plain(server.addr.to_string());
        let mut writer = server.device("w").await;
        let mut link = ClientLink::connect(transport, &node, &server.admin()).await.unwrap();
        link.send("device_online", r#"{"device_id":"d"}"#).await.unwrap();
        link.wait_for(&["device_online_ack"]).await.unwrap();
        for i in 0..300 {
            writer.update("w", "t", i, json!({"pad": "é".repeat(300)})).await;
        }
        for seq in 1..=300 {
            let change = link.wait_for(&["data_update"]).await.unwrap();
            assert_eq!(change.data["seq"], seq, "{}", transport.name());
        }
        let own =
            json!({"device_id": "d", "table_name": "t", "record_id": 1, "new_data": {"text": "quoted \u{1e} \" é"}});
        link.send("data_update", &own.to_string()).await.unwrap();
        let answer = link.wait_for(&["acknowledged"]).await.unwrap();
        assert_eq!(answer.data["seq"], 301, "{}", transport.name());
        link.close().await;
        let refused = ClientLink::connect(transport, &node, "no token").await;
        assert!(refused.is_err_and(|error| error.to_string().contains("3001")), "{}", transport.name());
    }
}
