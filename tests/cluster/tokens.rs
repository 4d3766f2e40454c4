//! Tokens taken back and keys changed, while sessions live on every node.

use std::time::{Duration, Instant};

use tillsync::client::ws::WsSocket;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing};

use crate::harness::{Dev, succeeds, tillsync};

/// Reads until the server ends the session: what the last error said.
async fn ended(mut socket: WsSocket) -> String {
    let mut error = String::new();
    while let Ok(text) = socket.next().await {
        if text.starts_with(r#"{"event":"error""#) {
            error = text.to_string();
        }
    }
    error
}

async fn on_every_node(dev: &Dev, token: &str) -> Vec<tokio::task::JoinHandle<(String, Instant)>> {
    let mut sessions = Vec::new();
    for url in dev.urls() {
        let socket = WsSocket::connect(&url, token).await.unwrap();
        sessions.push(tokio::spawn(async move { (ended(socket).await, Instant::now()) }));
    }
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_ends_live_sessions_on_every_node_within_a_second() {
    let dev = Dev::start(&[]);
    dev.ready().await;
    let keys = KeyRing::read(&dev.data().join("token.key")).unwrap();
    let (token, claims) = keys.issue("till", Class::SalesAssistant, SystemClock.now_ms(), 3_600).unwrap();
    let sessions = on_every_node(&dev, &token).await;
    let said = tokio::task::block_in_place(|| {
        let mut revoke = tillsync();
        revoke.args(["token", "revoke", "--jti", &claims.jti, "--url", &dev.url_flag(), "--token", &dev.token()]);
        succeeds(&mut revoke)
    });
    let done = Instant::now();
    assert!(said.contains(&claims.jti), "{said}");
    for session in sessions {
        let (error, at) = session.await.unwrap();
        assert!(error.contains("\"3001\""), "{error}");
        assert!(at.saturating_duration_since(done) < Duration::from_secs(1));
    }
    for url in dev.urls() {
        assert!(WsSocket::connect(&url, &token).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_without_a_restart() {
    let dev = Dev::start(&[]);
    dev.ready().await;
    let path = dev.data().join("token.key");
    let old = std::fs::read_to_string(&path).unwrap();
    let new = "5a".repeat(32);
    let before = dev.token();
    std::fs::write(&path, format!("{new}\n{old}")).unwrap();
    let (after, _) = KeyRing::read(&path).unwrap().issue("till", Class::Admin, SystemClock.now_ms(), 3_600).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    for url in dev.urls() {
        while let Err(error) = WsSocket::connect(&url, &after).await {
            assert!(Instant::now() < end, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // Both are valid, until the old key is taken out of the file.
    let sessions = on_every_node(&dev, &before).await;
    let rename = dev.path("next.key");
    std::fs::write(&rename, &new).unwrap();
    std::fs::rename(&rename, &path).unwrap();
    for session in sessions {
        let (error, _) = session.await.unwrap();
        assert!(error.contains("\"3001\""), "{error}");
    }
    for url in dev.urls() {
        assert!(WsSocket::connect(&url, &before).await.is_err());
        WsSocket::connect(&url, &after).await.unwrap();
    }
}
