//! What is done without a token.

use std::net::SocketAddr;
use std::time::Duration;

use super::socket::{AttackOrigin, AttackSocket, frame, upgrade};
use super::{AttackGround, AttemptResult};
use crate::rng::Rng;

/// Nodes end most of these before.
const HOLD: Duration = Duration::from_secs(15);
const SEND: Duration = Duration::from_secs(2);
/// Of a body that never ends.
const PIECE: usize = 60 << 10;
/// Posts on one sid at once.
const POSTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StrangerAttack {
    Idle,
    HalfRequest,
    SlowHeaders,
    BigHeaders,
    SlowBody,
    PostsOnOneSid,
    Http2,
    TlsGarbage,
    EngineIoOpens,
    WrongTokens,
    Pairing,
    RaftIdle,
    RaftGarbage,
    RaftTlsHello,
}

impl StrangerAttack {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle sockets",
            Self::HalfRequest => "half requests",
            Self::SlowHeaders => "slow headers",
            Self::BigHeaders => "big headers",
            Self::SlowBody => "bodies that never end",
            Self::PostsOnOneSid => "posts on one sid",
            Self::Http2 => "HTTP/2",
            Self::TlsGarbage => "TLS garbage",
            Self::EngineIoOpens => "Engine.IO opens",
            Self::WrongTokens => "wrong tokens",
            Self::Pairing => "pairing asks",
            Self::RaftIdle => "Raft port: idle",
            Self::RaftGarbage => "Raft port: garbage",
            Self::RaftTlsHello => "Raft port: half a TLS hello",
        }
    }

    pub(super) async fn attempt(self, ground: &AttackGround, number: u64, rng: &mut Rng) -> AttemptResult {
        let victim = ground.victim(number)?;
        let to = match self {
            Self::RaftIdle | Self::RaftGarbage | Self::RaftTlsHello => victim.raft,
            _ => victim.gateway,
        };
        let mut socket = ground.connect(self.name(), AttackOrigin::Stranger, to).await?;
        let opening: Vec<u8> = match self {
            Self::Idle | Self::RaftIdle => Vec::new(),
            Self::HalfRequest => b"GET /device/roles HTTP/1.1\r\nHost: shop\r\nX-a: ".to_vec(),
            Self::SlowHeaders => b"GET / HTTP/1.1\r\nHost: shop\r\n".to_vec(),
            Self::BigHeaders => format!("GET / HTTP/1.1\r\nHost: shop\r\nX-a: {}", "a".repeat(200 << 10)).into_bytes(),
            // One is refused before its body, the other one is not.
            Self::SlowBody if rng.percent(50) => {
                b"POST /device/register HTTP/1.1\r\nHost: shop\r\nContent-Length: 1040000\r\n\r\n{".to_vec()
            }
            Self::SlowBody => b"POST /device/pair HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n\
                                Content-Length: 1000\r\n\r\n{"
                .to_vec(),
            Self::PostsOnOneSid => return posts_on_one_sid(ground, self.name(), socket, to).await,
            Self::Http2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec(),
            Self::TlsGarbage | Self::RaftTlsHello => tls_hello(rng),
            Self::EngineIoOpens => upgrade("/socket.io/?EIO=4&transport=websocket", None).into_bytes(),
            Self::WrongTokens => wrong_token(rng).into_bytes(),
            Self::Pairing => pairing(rng).into_bytes(),
            Self::RaftGarbage => (0..4_096).map(|_| rng.below(256) as u8).collect(),
        };
        // Half of it may have been sent before the node ended it: that is an attempt as well.
        socket.send(&opening, SEND).await;
        match self {
            Self::SlowHeaders => drip(socket, rng, b"X-a: b\r\n").await,
            Self::SlowBody => drip(socket, rng, b" ").await,
            Self::EngineIoOpens => {
                // An answer to a ping that was never sent, and nothing of a connect.
                socket.head().await;
                socket.send(&frame("3"), SEND).await;
                Some(socket.hold(HOLD).await)
            }
            Self::WrongTokens => {
                // Further tries on the same connection, as long as it lasts.
                for _ in 0..20 {
                    let pause = rng.millis(200, 600);
                    if !socket.listen(pause).await || !socket.send(wrong_token(rng).as_bytes(), SEND).await {
                        break;
                    }
                }
                Some(socket.seen())
            }
            _ => Some(socket.hold(HOLD).await),
        }
    }
}

/// A little, again and again, until the node has had enough.
async fn drip(mut socket: AttackSocket, rng: &mut Rng, drop: &[u8]) -> AttemptResult {
    for _ in 0..60 {
        let pause = rng.millis(300, 700);
        if !socket.listen(pause).await || !socket.send(drop, SEND).await {
            break;
        }
    }
    Some(socket.seen())
}

/// A sid that was opened without a token, and several posts to it that never end.
async fn posts_on_one_sid(
    ground: &AttackGround,
    name: &'static str,
    mut first: AttackSocket,
    to: SocketAddr,
) -> AttemptResult {
    let open = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: shop\r\n\r\n";
    first.send(open, SEND).await;
    let answer = first.head().await.unwrap_or_default();
    let sid = answer.split_once("\"sid\":\"").and_then(|(_, rest)| rest.split_once('"')).map_or("none", |(sid, _)| sid);
    let head = format!(
        "POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: shop\r\nContent-Length: 1040000\r\n\r\n4"
    );
    let mut posts = Vec::new();
    for _ in 0..POSTS {
        let Some(mut post) = ground.connect(name, AttackOrigin::Stranger, to).await else { break };
        post.send(head.as_bytes(), SEND).await;
        post.send(&[b' '; PIECE], SEND).await;
        posts.push(post);
    }
    let mut seen = first.seen();
    for mut post in posts {
        post.listen(HOLD / 3).await;
        seen.ended |= post.seen().ended;
        seen.bytes += post.seen().bytes;
    }
    Some(seen)
}

/// The beginning of a record that says it is longer.
fn tls_hello(rng: &mut Rng) -> Vec<u8> {
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend((0..200).map(|_| rng.below(256) as u8));
    hello
}

/// Signed with a key that nobody has.
fn wrong_token(rng: &mut Rng) -> String {
    let (a, b) = (rng.next(), rng.next());
    format!(
        "GET /device/roles HTTP/1.1\r\nHost: shop\r\n\
         Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0aWxsLTEifQ.{a:016x}{b:016x}\r\n\r\n"
    )
}

fn pairing(rng: &mut Rng) -> String {
    let body = format!(r#"{{"device_id":"stranger-{}"}}"#, rng.below(1_000));
    let length = body.len();
    format!(
        "POST /device/pair HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
