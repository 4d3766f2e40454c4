//! Ten thousand malformed messages over every door of a real node: it goes on serving, says clearly what is wrong
//! where the connection allows it, never panics, and keeps its memory.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Dev, PATIENCE};

/// Messages in all, after a first tenth that warms the node up.
const MESSAGES: usize = 10_000;
/// What the node's memory may grow by over them.
const GROWTH_KIB: u64 = 12 << 10;

type Socket = WebSocketStream<TcpStream>;

/// xorshift: the same messages in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = 1 + self.below(most);
        (0..len).map(|_| self.below(256) as u8).collect()
    }

    /// Text that is no JSON.
    fn text(&mut self) -> String {
        let len = 1 + self.below(200);
        let text: String = (0..len).filter_map(|_| char::from_u32(self.below(0x1_0000) as u32)).collect();
        format!("\u{fffd}{text}")
    }

    fn word(&mut self) -> String {
        (0..1 + self.below(30)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

fn frame(event: &str, data: &str) -> String {
    format!(r#"{{"event":"{event}","data":{data}}}"#)
}

fn nested(noise: &mut Noise) -> String {
    let depth = 33 + noise.below(5_000);
    format!(r#"{{"device_id":"d","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
}

fn huge(noise: &mut Noise) -> String {
    let digits = "9".repeat(20 + noise.below(400));
    format!(r#"{{"device_id":"d","table_name":"t","record_id":{digits},"new_data":{{}}}}"#)
}

/// A value of each type, where none of them is what the field wants.
fn wrong(noise: &mut Noise) -> String {
    let values = ["[]", "{}", "true", "1e999", "-1", "\"\"", "\"\\u0000\"", "null", "1.5", "[[]]"];
    let value = values[noise.below(values.len())];
    format!(r#"{{"device_id":"d","table_name":{value},"record_id":{value},"new_data":[]}}"#)
}

type Make<T> = fn(&mut Noise) -> T;

/// Text frames of `/ws` that are each answered by one error; the connection stays.
const ANSWERED: [(&str, Make<String>); 14] = [
    ("noise", |n| n.text()),
    ("an empty frame", |_| String::new()),
    ("half of a frame", |n| {
        let whole = frame("data_update", r#"{"device_id":"d","table_name":"t","record_id":1,"new_data":{"a":1}}"#);
        whole[..1 + n.below(whole.len() - 2)].to_owned()
    }),
    ("no object", |n| ["[]", "7", "null", "\"x\"", "true", "[[1],{}]"][n.below(6)].to_owned()),
    ("no event", |_| r#"{"data":{"device_id":"d"}}"#.to_owned()),
    ("an event that is no name", |n| format!(r#"{{"event":{},"data":{{}}}}"#, ["7", "[]", "{}", "true"][n.below(4)])),
    ("an unknown event", |n| frame(&format!("x{}", n.word()), r#"{"device_id":"d"}"#)),
    ("no data", |_| r#"{"event":"heartbeat"}"#.to_owned()),
    ("data that is no object", |n| frame("heartbeat", ["[]", "7", "\"x\"", "true"][n.below(4)])),
    ("wrong types", |n| frame("data_update", &wrong(n))),
    ("deep nesting", |n| frame("heartbeat", &nested(n))),
    ("huge numbers", |n| frame("data_update", &huge(n))),
    ("a half escape", |_| frame("heartbeat", r#"{"device_id":"\ud800"}"#)),
    ("a malformed sync", |n| frame("sync_request", &format!(r#"{{"device_id":"d","sync_type":"{}"}}"#, n.word()))),
];

/// Bytes after the WebSocket handshake that end the connection, or leave it hanging.
const RAW: [(&str, Make<Vec<u8>>); 8] = [
    ("noise under the frames", |n| n.bytes(300)),
    ("invalid UTF-8", |_| vec![0x81, 0x84, 0, 0, 0, 0, 0xff, 0xfe, 0xc0, 0x80]),
    ("half of a masked frame", |_| vec![0x81, 0xfe, 0x10, 0x00, 1, 2, 3, 4, b'{']),
    ("an unmasked frame", |_| vec![0x81, 0x02, b'{', b'}']),
    ("a reserved opcode", |n| vec![0x83 + n.below(5) as u8, 0x80, 0, 0, 0, 0]),
    ("a control frame that is too long", |_| [&[0x89, 0xfe, 0x01, 0x00, 0, 0, 0, 0][..], &[0; 256]].concat()),
    ("a length of 2^63", |_| vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("fragments without an end", |_| vec![0x01, 0x81, 0, 0, 0, 0, b'{', 0x00, 0x81, 0, 0, 0, 0, b'"']),
];

/// Socket.IO packets that are each answered by one error; the connection stays.
const PACKETS: [(&str, Make<String>); 7] = [
    ("a packet of noise", |n| format!("4x{}", n.text())),
    ("half of an event packet", |n| r#"42["heartbeat",{"device_id":"d"}"#[..3 + n.below(28)].to_owned()),
    ("an event packet without a name", |n| ["42[7]", "42[]", "42[{}]", "42{}", "42null"][n.below(5)].to_owned()),
    ("an event packet of an unknown event", |n| format!(r#"42["x{}",{{}}]"#, n.word())),
    ("an ack id that is too large", |n| format!(r#"42{}["heartbeat",{{}}]"#, "9".repeat(20 + n.below(50)))),
    ("a binary packet", |_| r#"451-["heartbeat",{"_placeholder":true,"num":0}]"#.to_owned()),
    ("an event packet that is too deep", |n| format!(r#"42["heartbeat",{}]"#, nested(n))),
];

/// Engine.IO packets that have no business where they come.
const ENGINE: [(&str, Make<Message>); 4] = [
    ("an unknown Engine.IO packet", |n| Message::text(format!("{}{}", 7 + n.below(3), n.word()))),
    ("an Engine.IO open or upgrade", |n| Message::text(["0{}", "5", "2probe", "3probe", ""][n.below(5)])),
    ("binary data", |n| Message::binary(n.bytes(500))),
    ("a namespace that is not there", |n| Message::text(format!("40/{},{{}}", n.word()))),
];

/// Whole requests that are no good.
const REQUESTS: [(&str, Make<Vec<u8>>); 5] = [
    ("no HTTP", |n| n.bytes(400)),
    ("half of a request", |_| b"POST /data/t/1 HTTP/1.1\r\nHost: x\r\nContent-Le".to_vec()),
    ("a session that is not there", |n| {
        let sid = n.word();
        post(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"), b"4garbage")
    }),
    ("a wrong Engine.IO", |n| post(&format!("/socket.io/?EIO={}&transport={}", n.below(99), n.word()), b"")),
    ("a body of noise", |n| post("/device/register", &n.bytes(900))),
];

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

struct Node {
    authority: String,
    token: String,
    pid: u32,
}

impl Node {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(&self.authority).await.unwrap()
    }

    async fn ws(&self) -> Socket {
        let url = format!("ws://{}/ws?token={}", self.authority, self.token);
        let request = url.into_client_request().unwrap();
        tokio_tungstenite::client_async(request, self.tcp().await).await.unwrap().0
    }

    async fn sio(&self) -> Socket {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.authority);
        let request = url.into_client_request().unwrap();
        let mut socket = tokio_tungstenite::client_async(request, self.tcp().await).await.unwrap().0;
        socket.send(Message::text(format!("40{}", json!({"token": self.token})))).await.unwrap();
        while !text(&mut socket).await.expect("no answer to the connect").starts_with("40{\"sid\"") {}
        socket
    }

    fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn sessions(&self) -> u64 {
        let url = format!("http://{}/system/network", self.authority);
        let response = reqwest::Client::new().get(url).bearer_auth(&self.token).send().await.unwrap();
        response.json::<serde_json::Value>().await.unwrap()["active_connections"].as_u64().unwrap()
    }
}

/// The next text; Engine.IO's pings are answered.
async fn text(socket: &mut Socket) -> Option<String> {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("nothing came") {
            Some(Ok(Message::Text(text))) if text == "2" => socket.send(Message::text("3")).await.unwrap(),
            Some(Ok(Message::Text(text))) => return Some(text.to_string()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

/// Sends them all, then asks for a sign of life: before it, one error for each.
async fn answered(socket: &mut Socket, messages: &[(&str, String)], alive: &str) {
    for (_, message) in messages {
        socket.send(Message::text(message.clone())).await.unwrap();
    }
    socket.send(Message::text(alive)).await.unwrap();
    let mut errors = 0;
    loop {
        let got = text(socket).await.unwrap_or_else(|| panic!("closed after {messages:?}"));
        if got.contains("heartbeat_ack") {
            break;
        }
        if ["master_elected", "role_change"].iter().any(|event| got.contains(event)) {
            continue;
        }
        assert!(got.contains(r#""error_code":"2001""#) || got.contains(r#""error_code":"2004""#), "{got}");
        // What is wrong is in the client's words, not in those of a parser or of the source.
        assert!(!got.contains(".rs") && !got.contains("at line"), "{got}");
        errors += 1;
    }
    let kinds: Vec<_> = messages.iter().map(|(kind, _)| kind).collect();
    assert_eq!(errors, messages.len(), "{kinds:?}");
}

/// Bytes on a connection of their own. The server may answer or hang up; it never says that it failed.
async fn thrown(mut tcp: TcpStream, kind: &str, bytes: &[u8]) {
    let _ = tcp.write_all(bytes).await;
    let _ = tcp.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(3), tcp.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1.1 5"), "{kind}: {}", String::from_utf8_lossy(&answer));
}

/// So many messages, all kinds in turn.
async fn pour(node: &Node, noise: &mut Noise, count: usize) {
    let kinds = ANSWERED.len() + RAW.len() + PACKETS.len() + ENGINE.len() + REQUESTS.len();
    assert!(kinds >= 30, "{kinds}");
    let (mut ws, mut sio) = (node.ws().await, node.sio().await);
    for _ in 0..count.div_ceil(kinds) {
        let frames = ANSWERED.map(|(kind, make)| (kind, make(noise)));
        answered(&mut ws, &frames, &frame("heartbeat", r#"{"device_id":"d"}"#)).await;
        let packets = PACKETS.map(|(kind, make)| (kind, make(noise)));
        answered(&mut sio, &packets, r#"42["heartbeat",{"device_id":"d"}]"#).await;
        for (kind, make) in RAW {
            let socket = node.ws().await;
            thrown(socket.into_inner(), kind, &make(noise)).await;
        }
        for (_, make) in ENGINE {
            let mut socket = node.sio().await;
            let _ = socket.send(make(noise)).await;
            let _ = socket.close(None).await;
        }
        for (kind, make) in REQUESTS {
            thrown(node.tcp().await, kind, &make(noise)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_messages_of_thirty_kinds_change_nothing() {
    let dev = Dev::start(&["--no-restart"]);
    dev.ready().await;
    let pid = std::fs::read_to_string(dev.data().join("node-1/pid")).unwrap().trim().parse().unwrap();
    let node = Node { authority: dev.urls()[0].authority.clone(), token: dev.token(), pid };
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    pour(&node, &mut noise, MESSAGES / 10).await;
    let before = node.rss_kib();
    pour(&node, &mut noise, MESSAGES).await;
    // Sessions that were left hanging are gone after the silence that is allowed.
    let end = Instant::now() + PATIENCE;
    while node.sessions().await > 0 {
        assert!(Instant::now() < end, "{} sessions are left", node.sessions().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = node.rss_kib();
    println!("memory before {before} KiB, after {after} KiB");
    assert!(after < before + GROWTH_KIB, "memory grew from {before} to {after} KiB");
    let log = std::fs::read_to_string(dev.data().join("node-1/log")).unwrap();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{}", dev.logs());
    // Nothing was written, and the node serves.
    let status = dev.rest().status(&dev.urls()[0]).await.unwrap();
    assert_eq!((status.head_seq, status.node), (0, 1));
}
