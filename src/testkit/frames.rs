//! What a client sends over its socket: WebSocket, Engine.IO and Socket.IO of both versions, down to the handlers.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;
use tower::ServiceExt;

use super::alloc::{live, measure};
use super::{BETWEEN, Node, run, schema, settled};
use crate::gateway::http::connections::{Deadlines, serve_memory};
use crate::token::Class;

/// In front of a message: its frame is binary, or a ping.
const BINARY: u8 = 0xFE;
const PING: u8 = 0xFD;
/// What a session may hold of what it was sent, the records that it wrote included: so many times its length, and this.
/// Bytes.
const HELD_TIMES: isize = 64;
const HELD: isize = 1 << 20;
/// What may be left of a case: what is made once in a process, such as names of metrics. Bytes.
const LEFT: isize = 1 << 20;
/// On the way between the two ends of a connection. Bytes.
const PIPE: usize = 64 << 10;
/// By the case's own clock: how long it waits for the server to take something, and to answer.
const TURN: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// How the messages of a case are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    /// As frames of `/ws`, or of Socket.IO over Engine.IO 4 or 3. `said`: the client has said who it is.
    WebSocket { path: &'static str, said: bool },
    /// As bytes behind such a handshake: frames are the case's own.
    Bytes { path: &'static str },
    /// As bodies of posts, Engine.IO 4 or 3.
    Polling { eio: u8 },
    /// As bytes of a connection to the port.
    Http,
}

const WS: &str = "/ws?";
const EIO4: &str = "/socket.io/?EIO=4&transport=websocket&";
const EIO3: &str = "/socket.io/?EIO=3&transport=websocket&";

fn carrier(letter: u8) -> Carrier {
    match letter {
        b'4' => Carrier::WebSocket { path: EIO4, said: true },
        b'D' => Carrier::WebSocket { path: EIO4, said: false },
        b'3' => Carrier::WebSocket { path: EIO3, said: true },
        b'b' => Carrier::Bytes { path: WS },
        b'B' => Carrier::Bytes { path: EIO4 },
        b'p' => Carrier::Polling { eio: 4 },
        b'q' => Carrier::Polling { eio: 3 },
        b'h' => Carrier::Http,
        _ => Carrier::WebSocket { path: WS, said: true },
    }
}

/// A case: the letter of its carrier, then messages with [`BETWEEN`] between them.
pub fn frames(input: &[u8]) {
    let Some((letter, messages)) = input.split_first() else { return };
    let carrier = carrier(*letter);
    std::sync::LazyLock::force(&schema::ASYNCAPI);
    let ((), taken) = measure(|| {
        run(async {
            let node = Node::start().await;
            match carrier {
                Carrier::Polling { eio } => polling(&node, eio, messages).await,
                _ => connection(&node, carrier, messages).await,
            }
            node.check();
        });
    });
    assert!(taken.left < LEFT, "{taken:?} of {} bytes", input.len());
}

/// A frame of a client, with a mask that changes nothing.
fn frame(message: &[u8]) -> Vec<u8> {
    let (opcode, payload) = match message {
        [BINARY, payload @ ..] => (2, payload),
        [PING, payload @ ..] => (9, &payload[..payload.len().min(125)]),
        payload => (1, payload),
    };
    let mut out = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

fn handshake(node: &Node, path: &str) -> Vec<u8> {
    let token = node.token(Class::Admin);
    format!(
        "GET {path}token={token} HTTP/1.1\r\nhost: till\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

async fn connection(node: &Node, carrier: Carrier, messages: &[u8]) {
    let (client, server) = duplex(PIPE);
    tokio::spawn(serve_memory(server, node.app.clone(), node.gateway.connections.clone(), Deadlines::default()));
    let (mut from_server, mut to_server) = tokio::io::split(client);
    let heard = tokio::spawn(async move {
        let mut heard = Vec::new();
        // It ends with the connection, however that ends.
        let _ = from_server.read_to_end(&mut heard).await;
        heard
    });
    let begin = match carrier {
        Carrier::WebSocket { path, .. } | Carrier::Bytes { path } => handshake(node, path),
        _ => Vec::new(),
    };
    send(&mut to_server, &begin).await;
    if (Carrier::WebSocket { path: EIO4, said: true }) == carrier {
        send(&mut to_server, &frame(b"40")).await;
    }
    settled().await;
    let before = live();
    match carrier {
        Carrier::WebSocket { .. } => {
            for message in messages.split(|byte| *byte == BETWEEN) {
                send(&mut to_server, &frame(message)).await;
            }
        }
        _ => send(&mut to_server, messages).await,
    }
    settled().await;
    let held = live() - before;
    assert!(held < HELD + HELD_TIMES * messages.len() as isize, "{held} bytes are held of {}", messages.len());
    // Both halves: else the connection stays open.
    let _ = timeout(TURN, to_server.shutdown()).await;
    drop(to_server);
    if let Ok(Ok(heard)) = timeout(PATIENCE, heard).await
        && let Carrier::WebSocket { path, .. } = carrier
    {
        answers_fit(path, &heard);
    }
}

/// The server need not take what is sent: it may have closed, or hold the client back for longer than anyone waits.
async fn send(to_server: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    let _ = timeout(TURN, to_server.write_all(bytes)).await;
}

/// What the server sent are frames, and events as described.
fn answers_fit(path: &str, heard: &[u8]) {
    let head = heard.windows(4).position(|end| end == b"\r\n\r\n").expect("the handshake has an answer") + 4;
    assert!(heard.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(heard));
    let mut rest = &heard[head..];
    while let [first, second, after @ ..] = rest {
        let wide = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        // The connection may end within a frame.
        let Some((length, after)) = after.split_at_checked(wide) else { return };
        let length = match wide {
            0 => usize::from(*second),
            _ => length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        let Some((payload, after)) = after.split_at_checked(length) else { return };
        rest = after;
        match first {
            0x81 => event_fits(path, std::str::from_utf8(payload).expect("a text frame is UTF-8")),
            0x88..=0x8A => {}
            other => panic!("a frame that begins with {other:02x}"),
        }
    }
}

fn event_fits(path: &str, text: &str) {
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    if path == WS {
        let event = json(text);
        schema::event_fits(event["event"].as_str().expect("an event has a name"), &event["data"]);
    } else if let Some(event) = text.strip_prefix("42") {
        let event = json(event);
        schema::event_fits(event[0].as_str().expect("an event has a name"), &event[1]);
    }
}

async fn polling(node: &Node, eio: u8, messages: &[u8]) {
    let authorization = format!("Bearer {}", node.token(Class::Admin));
    let path = format!("/socket.io/?EIO={eio}&transport=polling");
    let ask = async |method: &str, path: &str, body: &[u8]| {
        let request = Request::builder().method(method).uri(path).header("authorization", &authorization);
        let request = request.body(Body::from(body.to_vec())).unwrap();
        let response = timeout(PATIENCE, node.app.clone().oneshot(request)).await.ok()?.unwrap();
        let (status, body) = (response.status().as_u16(), axum::body::to_bytes(response.into_body(), usize::MAX));
        assert_ne!(status, 500);
        Some(body.await.unwrap())
    };
    let hello = ask("GET", &path, b"").await.unwrap();
    let hello = String::from_utf8(hello.to_vec()).unwrap();
    let sid: String = hello.split("\"sid\":\"").nth(1).expect("a session has an id").chars().take(32).collect();
    let path = format!("{path}&sid={sid}");
    if eio == 4 {
        ask("POST", &path, b"40").await;
    }
    settled().await;
    let before = live();
    for message in messages.split(|byte| *byte == BETWEEN) {
        ask("POST", &path, message).await;
    }
    settled().await;
    let held = live() - before;
    assert!(held < HELD + HELD_TIMES * messages.len() as isize, "{held} bytes are held of {}", messages.len());
    if let Some(answers) = ask("GET", &path, b"").await {
        std::str::from_utf8(&answers).expect("what is polled is text");
    }
}
