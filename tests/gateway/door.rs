//! What somebody without a token can make a node hold, and for how long; and that a device notices none of it.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tillsync::clock::{Clock, SystemClock};
use tillsync::gateway::GatewaySettings;
use tillsync::gateway::http::connections::Deadlines;
use tillsync::limits;
use tillsync::tls::admission::ConnectionCaps;
use tillsync::token::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::{PATIENCE, Server, Ws};
use crate::socketio::Sio;

const SHORT: Duration = Duration::from_millis(300);

/// Deadlines that a test can wait for; those that it does not mean stay long.
fn with(change: impl FnOnce(&mut Deadlines)) -> GatewaySettings {
    let mut settings = GatewaySettings::default();
    let long = Duration::from_secs(600);
    settings.http = Deadlines { head: long, idle: long, body: long, ..settings.http };
    change(&mut settings.http);
    settings
}

/// A connection that sends what a test likes.
struct Raw(TcpStream);

impl Raw {
    async fn open(server: &Server) -> Self {
        Self(TcpStream::connect(server.addr).await.unwrap())
    }

    async fn sent(server: &Server, text: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::open(server).await;
        raw.send(text).await;
        raw
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
    }

    /// One answer: its status, its headers in lower case, its body.
    async fn answer(&mut self) -> (u16, String, String) {
        timeout(PATIENCE, async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.unwrap_or_else(|e| panic!("{e} after {}", shown(&head))));
            }
            let head = shown(&head).to_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.unwrap();
            (head[9..12].parse().unwrap(), head, shown(&body))
        })
        .await
        .expect("no answer came")
    }

    /// Everything until the other side closes.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("it stays open");
        shown(&rest)
    }

    /// Nothing comes, and it stays open, for so long.
    async fn stays(&mut self, time: Duration) {
        let mut byte = [0];
        assert!(timeout(time, self.0.read(&mut byte)).await.is_err(), "it was closed, or something came");
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn closes(head: &str) -> bool {
    head.contains("connection: close\r\n")
}

fn register(token: &str, length: usize) -> String {
    format!(
        "POST /device/register HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn headers_have_a_deadline_from_their_first_byte() {
    let server = Server::with(with(|d| d.head = SHORT)).await;
    let (mut silent, mut half) = (Raw::open(&server).await, Raw::sent(&server, "GET /healthz HTTP/1.1\r\nx: ").await);
    assert_eq!(silent.rest().await, "");
    let told = half.rest().await;
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("connection: close"), "{told}");
    // A drop now and then does not help.
    let mut trickle = Raw::sent(&server, "GET /healthz HTTP/1.1\r\nx: ").await;
    let end = Instant::now() + PATIENCE;
    while trickle.0.write_all(b"a").await.is_ok() {
        assert!(Instant::now() < end, "it is never closed");
        tokio::time::sleep(SHORT / 10).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_a_while_and_its_next_request_has_its_own_time() {
    let server = Server::with(with(|d| (d.head, d.idle) = (SHORT, SHORT * 5))).await;
    let mut raw = Raw::open(&server).await;
    for _ in 0..2 {
        raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let (status, head, _) = raw.answer().await;
        assert_eq!((status, closes(&head)), (200, false));
        raw.stays(SHORT * 2).await;
    }
    raw.send("GET /healthz HTTP/1.1\r\nx: ").await;
    assert!(raw.rest().await.starts_with("HTTP/1.1 408 "));
    let mut idle = Raw::sent(&server, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(idle.answer().await.0, 200);
    assert_eq!(idle.rest().await, "");
}

#[tokio::test]
async fn headers_have_a_greatest_size() {
    let server = Server::start().await;
    let of = |size: usize| format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(size));
    let mut raw = Raw::sent(&server, of(limits::HTTP_HEAD - 100)).await;
    assert_eq!(raw.answer().await.0, 200);
    // All of it at once, and one that never ends.
    for text in [of(limits::HTTP_HEAD), format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(limits::HTTP_HEAD))] {
        let mut raw = Raw::sent(&server, text).await;
        let (status, head, _) = raw.answer().await;
        assert!(status == 431 && closes(&head), "{head}");
        assert_eq!(raw.rest().await, "");
    }
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let server = Server::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let told = Raw::sent(&server, preface).await.rest().await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 400 "), "{told}");
    let upgrade = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
                   http2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert_eq!(Raw::sent(&server, upgrade).await.answer().await.0, 200);
}

#[tokio::test]
async fn a_body_has_a_deadline_that_moves_as_long_as_it_comes() {
    let server = Server::with(with(|d| (d.body, d.body_rate) = (SHORT, 1_000))).await;
    let token = server.token("d", Class::SalesAssistant);
    let mut late = Raw::sent(&server, register(&token, 100_000) + "{").await;
    let (status, head, body) = late.answer().await;
    assert!(status == 408 && closes(&head), "{head}");
    assert!(body.contains("\"error_code\":\"2004\""), "{body}");
    assert_eq!(late.rest().await, "");
    // Three times as long as the deadline, and as fast as it must be.
    let body = format!("{:2000}", json!({"device_id": "d", "priority": 10}).to_string());
    let mut slow = Raw::sent(&server, register(&token, body.len())).await;
    for piece in body.as_bytes().chunks(200) {
        tokio::time::sleep(SHORT / 3).await;
        slow.send(piece).await;
    }
    let (status, head, body) = slow.answer().await;
    assert_eq!((status, closes(&head)), (200, false), "{body}");
    // The same over polling.
    let mut late = Raw::sent(&server, post(&sid_of(&server).await, 1_000) + "4").await;
    let (status, head, _) = late.answer().await;
    assert!(status == 408 && closes(&head), "{head}");
}

/// A polling connection that has not said who it is.
async fn sid_of(server: &Server) -> String {
    open_polling(server, "").await.unwrap()
}

async fn open_polling(server: &Server, query: &str) -> Option<String> {
    let url = format!("http://{}/socket.io/?EIO=4&transport=polling{query}", server.addr);
    let hello = reqwest::get(url).await.unwrap().text().await.unwrap();
    let hello: Value = serde_json::from_str(hello.strip_prefix('0')?).unwrap();
    Some(hello["sid"].as_str().unwrap().to_owned())
}

fn post(sid: &str, length: usize) -> String {
    format!(
        "POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn an_answer_before_the_body_was_read_closes_the_connection_and_arrives() {
    let server = Server::start().await;
    let token = server.token("d", Class::SalesAssistant);
    let posts = |path: &str, more: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n")
    };
    let bearer = format!("authorization: Bearer {token}\r\n");
    for (request, status, sends) in [
        (posts("/device/register", "", 1 << 20), 401, 0),
        (posts("/device/register", "", 1 << 20), 401, 1 << 20),
        (posts("/device/register", "authorization: Bearer x\r\n", 1 << 20), 401, 1 << 20),
        (posts("/device/register", &bearer, limits::FRAME + 1), 413, limits::FRAME + 1),
        (posts("/nowhere", &bearer, 1 << 20), 404, 1 << 20),
        (posts("/healthz", "", 1 << 20), 405, 1 << 20),
        (posts("/socket.io/?EIO=4&transport=polling&sid=x", "", 1 << 20), 400, 1 << 20),
    ] {
        let mut raw = Raw::sent(&server, &request).await;
        // All of it, as simple clients do that look for the answer only then. It may be turned away before that.
        let _ = raw.0.write_all(&vec![b' '; sends]).await;
        let (got, head, _) = raw.answer().await;
        assert!(got == status && closes(&head), "{request}{head}");
        assert_eq!(raw.rest().await, "", "{request}");
    }
    // A request without a body, or with one that was read, closes nothing.
    for request in ["GET /device/roles HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), register(&token, 2) + "{}"] {
        let mut raw = Raw::sent(&server, &request).await;
        let (_, head, _) = raw.answer().await;
        assert!(!closes(&head), "{request}{head}");
        raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(raw.answer().await.0, 200);
    }
}

#[tokio::test]
async fn a_sid_has_one_post_at_a_time_and_a_small_one_before_its_token() {
    let server = Server::start().await;
    let sid = sid_of(&server).await;
    let mut first = Raw::sent(&server, post(&sid, 1_000) + "3").await;
    let mut second = loop {
        // Until the first one has begun.
        let mut second = Raw::sent(&server, post(&sid, 1)).await;
        second.send("3").await;
        let answer = second.answer().await;
        if answer.0 != 200 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((second.0, second.2.contains("another POST")), (400, true), "{second:?}");
    first.send("x".repeat(999)).await;
    assert_eq!(first.answer().await.2, "ok");
    // 64 KiB and not more, whether the length is said or not.
    let most = limits::ANONYMOUS_BODY;
    let mut fits = Raw::sent(&server, post(&sid, most) + &"6".repeat(most)).await;
    assert_eq!(fits.answer().await.0, 200);
    let mut said = Raw::sent(&server, post(&sid, most + 1)).await;
    second = said.answer().await;
    assert!(second.0 == 413 && closes(&second.1), "{second:?}");
    let head = post(&sid, 0).replace("content-length: 0", "transfer-encoding: chunked");
    let mut unsaid = Raw::sent(&server, head).await;
    let _ = unsaid.0.write_all(format!("{:x}\r\n{}\r\n", most + 1, "6".repeat(most + 1)).as_bytes()).await;
    second = unsaid.answer().await;
    assert!(second.0 == 413 && closes(&second.1), "{second:?}");
    // With a session as much as ever.
    let connect = format!("40{}", json!({"token": server.admin()}));
    let mut connects = Raw::sent(&server, post(&sid, connect.len()) + &connect).await;
    assert_eq!(connects.answer().await.0, 200);
    let mut polls = Raw::sent(&server, post(&sid, 0).replace("POST", "GET")).await;
    assert!(polls.answer().await.2.starts_with("40{"));
    let large = r#"42["heartbeat",{"device_id":"d"}]"#.to_owned() + &" ".repeat(900_000);
    let mut posts = Raw::sent(&server, post(&sid, large.len()) + &large).await;
    assert_eq!(posts.answer().await.0, 200);
}

#[tokio::test]
async fn a_web_socket_takes_little_before_its_token() {
    let server = Server::start().await;
    let mut stranger = Sio::open(&server, "EIO=4").await;
    // It may not even be taken in as a whole.
    let _ = stranger.0.send(Message::text("4".repeat(limits::PACKET_READ / 2))).await;
    let ended = timeout(PATIENCE, async { while let Some(Ok(_)) = stranger.0.next().await {} });
    ended.await.expect("it stays open");
    let mut device = Sio::connect_as(&server, &server.admin()).await;
    device.send(&(r#"42["heartbeat",{"device_id":"d"}]"#.to_owned() + &" ".repeat(900_000))).await;
    assert_eq!(device.wait("42").await[0], "heartbeat_ack");
}

/// Python's clients move to a WebSocket first, and say who they are there.
#[tokio::test]
async fn a_client_may_move_to_a_web_socket_before_its_token_or_after() {
    for token_first in [true, false] {
        let server = Server::with(caps(40, 20, 8)).await;
        let sid = sid_of(&server).await;
        let connect = format!("40{}", json!({"token": server.admin()}));
        if token_first {
            assert_eq!(asks(&server, "POST", &sid, None, &connect).await.1, "ok");
            assert!(asks(&server, "GET", &sid, None, "").await.1.starts_with("40{"));
        }
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket&sid={sid}", server.addr);
        let mut sio = Sio(tokio_tungstenite::connect_async(url).await.unwrap().0);
        sio.send("2probe").await;
        assert_eq!(sio.next().await, "3probe");
        sio.send("5").await;
        if !token_first {
            sio.send(&connect).await;
            assert!(sio.next().await.starts_with("40{"));
        }
        let large = r#"42["heartbeat",{"device_id":"d"}]"#.to_owned() + &" ".repeat(900_000);
        sio.send(&large).await;
        assert_eq!(sio.wait("42").await[0], "heartbeat_ack");
        // Strangers do not push it out.
        let mut strangers = Vec::new();
        for _ in 0..30 {
            strangers.push(Raw::sent(&server, "GET / HTTP/1.1\r\nx: ").await);
        }
        sio.send(&large).await;
        assert_eq!(sio.wait("42").await[0], "heartbeat_ack");
    }
}

#[tokio::test]
async fn what_takes_long_by_its_nature_has_no_deadline() {
    let settings = with(|d| (d.head, d.idle, d.body) = (SHORT, SHORT, SHORT));
    let server = Server::with(settings).await;
    let token = server.admin();
    let mut writer = server.device("w").await;
    // A stream, a poll, and both sockets.
    let request = format!(
        "GET /sync/changes HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    let mut stream = Raw::sent(&server, request).await;
    assert_eq!(stream.answer().await.0, 200);
    let sid = sid_of(&server).await;
    let connect = format!("40{}", json!({"token": token}));
    let mut connects = Raw::sent(&server, post(&sid, connect.len()) + &connect).await;
    assert_eq!(connects.answer().await.0, 200);
    let get = post(&sid, 0).replace("POST", "GET");
    assert!(Raw::sent(&server, &get).await.answer().await.2.starts_with("40{"));
    let mut poll = Raw::sent(&server, &get).await;
    let (mut ws, mut sio) = (server.ws(&token).await, server.socketio().await);
    tokio::time::sleep(SHORT * 4).await;
    writer.update("w", "t", 1, json!({})).await;
    for session in [&mut ws, &mut sio] {
        session.online("d").await;
    }
    let came = async {
        let mut text = String::new();
        while !text.contains("data_update") {
            let mut piece = [0; 512];
            let count = stream.0.read(&mut piece).await.unwrap();
            assert!(count > 0, "the stream ended: {text}");
            text += &shown(&piece[..count]);
        }
    };
    timeout(PATIENCE, came).await.expect("the stream says nothing");
    assert_eq!(poll.answer().await.0, 200);
}

fn caps(total: usize, anonymous: usize, per_address: usize) -> GatewaySettings {
    GatewaySettings { connections: ConnectionCaps { total, anonymous, per_address }, ..with(|_| {}) }
}

/// The value of a line of `/metrics`.
pub(crate) async fn metric(server: &Server, name: &str) -> u64 {
    let request = reqwest::Client::new().get(format!("http://{}/metrics", server.addr)).bearer_auth(server.admin());
    let text = request.send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn connections_without_a_token_give_way_and_no_device_does() {
    let server = Server::with(caps(200, 100, 50)).await;
    let mut ws = server.device("ws").await;
    let mut sio = server.socketio().await;
    sio.online("sio").await;
    let token = server.admin();
    let mut rest =
        Raw::sent(&server, format!("GET /device/roles HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"))
            .await;
    assert_eq!(rest.answer().await.0, 200);
    // Half requests, whole ones, and silence; more than there is room for.
    let mut strangers = Vec::new();
    for text in ["", "GET / HTTP/1.1\r\nx: ", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"].iter().cycle().take(300) {
        strangers.push(Raw::sent(&server, text).await);
        // A device gets in all the while.
        if strangers.len() % 50 == 0 {
            let mut late = server.ws(&token).await;
            late.online("late").await;
        }
    }
    assert!(metric(&server, "tillsync_connections{token=\"none\"}").await <= 50);
    assert!(metric(&server, "tillsync_connections_closed_total").await >= 200);
    let mut closed = 0;
    for stranger in &mut strangers[..200] {
        stranger.rest().await;
        closed += 1;
    }
    assert_eq!(closed, 200, "the oldest went");
    ws.update("ws", "t", 1, json!({})).await;
    sio.update("sio", "t", 2, json!({})).await;
    rest.send(format!("GET /device/roles HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n")).await;
    assert_eq!(rest.answer().await.0, 200);
}

#[tokio::test]
async fn devices_that_hold_all_they_may_leave_the_operator_a_way_in() {
    let server = Server::with(caps(40, 20, 20)).await;
    let mut held: Vec<Ws> = Vec::new();
    for i in 0..60 {
        if let Ok(ws) = server.try_ws(&server.token(&format!("d{i}"), Class::SalesAssistant)).await {
            held.push(ws);
        }
    }
    for _ in 0..30 {
        let (status, _) = server.rest("GET", "/system/network", None).await;
        assert_eq!(status, 200);
    }
    assert!(metric(&server, "tillsync_connections{token=\"good\"}").await < 40);
    // The first ones are not closed for it.
    held[0].online("d0").await;
}

#[tokio::test]
async fn sockets_without_a_token_use_up_no_room_of_devices() {
    let settings = GatewaySettings { sessions: 4, anonymous_sockets: (40, 20), ..with(|_| {}) };
    let server = Server::with(settings).await;
    let mut device = Sio::connect_as(&server, &server.admin()).await;
    let first = sid_of(&server).await;
    for i in 0..200 {
        assert!(open_polling(&server, "").await.is_some(), "{i}");
    }
    // The oldest is gone, and its requests say so.
    let told = Raw::sent(&server, post(&first, 0)).await.answer().await;
    assert_eq!((told.0, told.2.contains("Session ID unknown")), (400, true), "{told:?}");
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.addr);
    let mut strangers = Vec::new();
    for _ in 0..60 {
        strangers.push(tokio_tungstenite::connect_async(&url).await.unwrap());
    }
    device.send(r#"42["heartbeat",{"device_id":"d"}]"#).await;
    assert_eq!(device.wait("42").await[0], "heartbeat_ack");
    let mut late = server.socketio().await;
    late.online("late").await;
    crate::transports::Poller::connect(&server).await;
}

/// What a request to a polling connection is answered, with a token or none.
async fn asks(server: &Server, method: &str, sid: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let url = format!("http://{}/socket.io/?EIO=4&transport=polling&sid={sid}", server.addr);
    let mut request = reqwest::Client::new().request(method.parse().unwrap(), url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.body(body.to_owned()).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_sid_is_no_public_name_and_no_credential_of_another_token() {
    let server = Server::start().await;
    let (own, other) = (server.token("till-2", Class::SalesAssistant), server.token("till-1", Class::SalesAssistant));
    let sid = sid_of(&server).await;
    let connect = |token: &str| format!("40{}", json!({"token": token}));
    assert_eq!(asks(&server, "POST", &sid, None, &connect(&own)).await.1, "ok");
    let (_, connected) = asks(&server, "GET", &sid, None, "").await;
    let public: Value =
        serde_json::from_str(connected.strip_prefix("40").unwrap().split('\x1e').next().unwrap()).unwrap();
    let public = public["sid"].as_str().unwrap();
    assert!(public != sid && public.len() >= 22 && sid.len() >= 22, "{public} {sid}");
    assert_eq!(asks(&server, "POST", public, None, "3").await.0, 400, "it opens nothing");
    // Another token is refused, whatever it wants; its own is not, nor none: clients say who they are in a packet.
    for method in ["POST", "GET"] {
        let (status, body) = asks(&server, method, &sid, Some(&other), "3").await;
        assert_eq!((status, body.contains("3001")), (401, true), "{method} {body}");
    }
    assert_eq!(asks(&server, "POST", &sid, Some(&own), "3").await.0, 200);
    assert_eq!(asks(&server, "POST", &sid, None, "3").await.0, 200);
    let upgrade = |token: &str| {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket&sid={sid}&token={token}", server.addr);
        tokio_tungstenite::connect_async(url)
    };
    match upgrade(&other).await {
        Err(tungstenite::Error::Http(refused)) => assert_eq!(refused.status(), 401),
        other => panic!("{other:?}"),
    }
    assert!(upgrade(&own).await.is_ok());
    // A live session does not become another device's.
    assert_eq!(asks(&server, "POST", &sid, None, &connect(&other)).await.1, "ok");
    let (_, refused) = asks(&server, "GET", &sid, None, "").await;
    let refused = refused.split('\x1e').find(|packet| packet.starts_with("44")).unwrap_or_else(|| panic!("{refused}"));
    assert!(refused.contains("3001"), "{refused}");
}

#[tokio::test]
async fn a_polling_client_goes_on_with_the_token_that_it_renewed() {
    let server = Server::start().await;
    // Issued a while ago: within one second the new token would be the old one.
    let earlier = SystemClock.now_ms().minus_ms(10_000);
    let (own, _) = server.keys.issue("till-2", Class::SalesAssistant, earlier, 3_600).unwrap();
    // Of the same device, but not renewed from its own.
    let other = server.token("till-2", Class::SalesAssistant);
    let sid = sid_of(&server).await;
    let connect = format!("40{}", json!({"token": own}));
    assert_eq!(asks(&server, "POST", &sid, Some(&own), &connect).await.1, "ok");
    assert_eq!(asks(&server, "POST", &sid, Some(&own), "42[\"token_renew\",{}]").await.1, "ok");
    let renewed: Value = loop {
        let (status, payload) = asks(&server, "GET", &sid, Some(&own), "").await;
        assert_eq!(status, 200, "{payload}");
        let renewed = payload.split('\x1e').find_map(|packet| packet.strip_prefix("42[\"token_renewed\","));
        if let Some(renewed) = renewed {
            break serde_json::from_str(renewed.strip_suffix(']').unwrap()).unwrap();
        }
    };
    let renewed = renewed["token"].as_str().unwrap();
    assert_ne!(renewed, own);
    for token in [renewed, &own] {
        assert_eq!(asks(&server, "POST", &sid, Some(token), "3").await.0, 200);
    }
    assert_eq!(asks(&server, "POST", &sid, Some(&other), "3").await.0, 401);
    // Spoiled, it is no token at all.
    assert_eq!(asks(&server, "POST", &sid, Some(&renewed[..renewed.len() - 4]), "3").await.0, 401);
}

#[tokio::test]
async fn who_opened_with_a_token_goes_on_with_no_other() {
    let server = Server::start().await;
    let (own, other) = (server.token("till-2", Class::SalesAssistant), server.token("till-1", Class::SalesAssistant));
    // Old clients of Python send it with the first request only.
    for goes_on in [Some(own.as_str()), None] {
        let sid = open_polling(&server, &format!("&token={own}")).await.unwrap();
        for token in ["x", &other] {
            assert_eq!(asks(&server, "POST", &sid, Some(token), "40").await.0, 401);
            assert_eq!(asks(&server, "GET", &sid, Some(token), "").await.0, 401);
        }
        assert_eq!(asks(&server, "POST", &sid, goes_on, "40").await.0, 200);
        assert!(asks(&server, "GET", &sid, goes_on, "").await.1.starts_with("40{"));
    }
}

#[tokio::test]
async fn a_refused_token_is_counted_at_every_door() {
    let server = Server::start().await;
    let count = async || metric(&server, "tillsync_refused_tokens_total").await;
    let before = count().await;
    let (status, _) = server.rest_as("x", "GET", "/device/roles", None).await;
    assert_eq!(status, 401);
    assert!(server.try_ws("x").await.is_err());
    let mut sio = Sio::open(&server, "EIO=4").await;
    sio.send("40{\"token\":\"x\"}").await;
    sio.wait("44").await;
    assert!(count().await >= before + 3, "other tests of this process count as well");
}

#[tokio::test]
async fn a_web_socket_may_bring_its_token_as_a_subprotocol() {
    let server = Server::start().await;
    let connect = |protocols: String| {
        let handshake = format!(
            "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: {protocols}\r\n\r\n"
        );
        let server = &server;
        async move { Raw::sent(server, handshake).await.answer().await }
    };
    let (status, head, _) = connect(format!("tillsync, tillsync.token.{}", server.admin())).await;
    assert!(status == 101 && head.contains("sec-websocket-protocol: tillsync\r\n"), "{head}");
    let (status, head, _) = connect("tillsync, tillsync.token.x".to_owned()).await;
    assert!(status == 401 && !head.contains("tillsync.token"), "{head}");
}

#[tokio::test]
async fn pages_run_nothing_but_their_own_and_stand_in_no_frame() {
    let server = Server::start().await;
    for path in ["/docs", "/docs/rest", "/docs/events", "/console"] {
        let answer = reqwest::get(format!("http://{}{path}", server.addr)).await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((header("x-frame-options"), header("x-content-type-options")), ("DENY".into(), "nosniff".into()));
        let policy = header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let page = answer.text().await.unwrap();
        for tag in ["<script", "<style"] {
            let (tags, with_nonce) =
                (page.matches(tag).count(), page.matches(&format!("{tag} nonce=\"{nonce}\">")).count());
            assert_eq!(tags, with_nonce, "{path} {tag}");
        }
        // What the policy forbids: the page would be broken.
        for inline in [" style=\"", " onclick=", " onload=", "javascript:", "eval("] {
            assert!(!page.contains(inline), "{path} has {inline}");
        }
    }
    for path in ["/openapi.json", "/asyncapi.json"] {
        let answer = reqwest::get(format!("http://{}{path}", server.addr)).await.unwrap();
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    }
}
