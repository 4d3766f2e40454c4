//! Many devices on three nodes: each gets every broadcast exactly once and in order, also those that come and go.
//!
//! 200 devices and 200 broadcasts by default; `TILLSYNC_CROWD=2000,1000` is the full size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tillsync::client::NodeUrl;
use tillsync::client::frame::ws_frame;
use tillsync::client::ws::WsSocket;
use tokio::sync::Barrier;

use crate::harness::Dev;

/// Updates under way at the same time.
const WINDOW: u64 = 8;
/// How long a device waits for the next broadcast before something is wrong.
const STALL: Duration = Duration::from_secs(60);

struct Listener {
    id: String,
    nodes: Vec<NodeUrl>,
    token: String,
    /// The newest change that it got, and where that is.
    seq: u64,
    cursor: String,
    /// Where a slow machine let the node's patience for the first word end: changes that came before the answer.
    early: BTreeMap<u64, String>,
    reconnects: Arc<AtomicU64>,
}

/// `seq` and `cursor` of a `data_update`, without reading all of it.
fn place(text: &str) -> Option<(u64, String)> {
    if !text.starts_with(r#"{"event":"data_update""#) {
        return None;
    }
    let frame: Value = serde_json::from_str(text).unwrap();
    Some((frame["data"]["seq"].as_u64().unwrap(), frame["data"]["cursor"].as_str().unwrap().to_owned()))
}

impl Listener {
    /// Connects to any node and resumes.
    async fn connect(&mut self) -> WsSocket {
        let end = Instant::now() + STALL;
        loop {
            let node = self.nodes[rand::random_range(0..self.nodes.len())].clone();
            match self.online(&node).await {
                Some(socket) => return socket,
                None => assert!(Instant::now() < end, "{} does not get in", self.id),
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(50..500))).await;
        }
    }

    async fn online(&mut self, node: &NodeUrl) -> Option<WsSocket> {
        self.early.clear();
        let mut socket = WsSocket::connect(node, &self.token).await.ok()?;
        socket.set_silence(STALL);
        let cursor = if self.cursor.is_empty() { String::new() } else { format!(r#","cursor":"{}""#, self.cursor) };
        let ask = format!(r#"{{"device_id":"{}"{cursor}}}"#, self.id);
        socket.send(ws_frame("device_online", &ask)).await.ok()?;
        loop {
            let text = socket.next().await.ok()?;
            if text.starts_with(r#"{"event":"device_online_ack""#) {
                self.take_early();
                return Some(socket);
            }
            if let Some((seq, cursor)) = place(&text) {
                assert!(seq > self.early.last_key_value().map_or(self.seq, |(last, _)| *last), "{}: {text}", self.id);
                self.early.insert(seq, cursor);
            }
            assert!(!text.starts_with(r#"{"event":"error""#), "{text}");
        }
    }

    /// The next change, once and in order.
    fn take(&mut self, place: (u64, String)) {
        assert_eq!(place.0, self.seq + 1, "{}", self.id);
        (self.seq, self.cursor) = place;
        self.take_early();
    }

    fn take_early(&mut self) {
        while let Some(cursor) = self.early.remove(&(self.seq + 1)) {
            (self.seq, self.cursor) = (self.seq + 1, cursor);
        }
    }

    async fn listen(mut self, to: u64, leave_at: Option<u64>, ready: Arc<Barrier>) {
        let mut socket = self.connect().await;
        ready.wait().await;
        let mut leave_at = leave_at;
        loop {
            if self.seq == to {
                break;
            }
            if leave_at.is_some_and(|at| self.seq >= at) {
                leave_at = None;
                drop(socket);
                self.reconnects.fetch_add(1, Ordering::Relaxed);
                socket = self.connect().await;
                continue;
            }
            // A node that closes a slow session is resumed like any other.
            let Ok(text) = socket.next().await else {
                self.reconnects.fetch_add(1, Ordering::Relaxed);
                socket = self.connect().await;
                continue;
            };
            assert!(!text.starts_with(r#"{"event":"error""#), "{} at {}: {text}", self.id, self.seq);
            if let Some(place) = place(&text) {
                self.take(place);
            }
        }
    }
}

async fn broadcast(node: &NodeUrl, token: &str, count: u64) {
    let mut socket = WsSocket::connect(node, token).await.unwrap();
    socket.send(ws_frame("device_online", r#"{"device_id":"office","subscribe":[]}"#)).await.unwrap();
    let (mut sent, mut acked) = (0, 0);
    while acked < count {
        while sent < count && sent < acked + WINDOW {
            sent += 1;
            let data = format!(
                r#"{{"device_id":"office","table_name":"news","record_id":{sent},"request_id":"n{sent}","new_data":{{"n":{sent}}}}}"#
            );
            socket.send(ws_frame("data_update", &data)).await.unwrap();
        }
        let text = socket.next().await.unwrap();
        assert!(!text.starts_with(r#"{"event":"error""#), "{text}");
        acked += u64::from(text.starts_with(r#"{"event":"acknowledged""#));
    }
}

fn size() -> (usize, u64) {
    let Ok(text) = std::env::var("TILLSYNC_CROWD") else { return (200, 200) };
    let (devices, broadcasts) = text.split_once(',').expect("TILLSYNC_CROWD=DEVICES,BROADCASTS");
    (devices.parse().unwrap(), broadcasts.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_gets_every_broadcast_once_and_in_order_while_a_tenth_come_and_go() {
    let (devices, broadcasts) = size();
    let dev = Dev::start(&[]);
    dev.ready().await;
    let (ready, reconnects) = (Arc::new(Barrier::new(devices + 1)), Arc::new(AtomicU64::new(0)));
    let mut listening = tokio::task::JoinSet::new();
    for i in 0..devices {
        let listener = Listener {
            id: format!("till-{i}"),
            nodes: dev.urls(),
            token: dev.token(),
            seq: 0,
            cursor: String::new(),
            early: BTreeMap::new(),
            reconnects: reconnects.clone(),
        };
        let leave_at = (i % 10 == 0).then(|| rand::random_range(1..broadcasts));
        listening.spawn(listener.listen(broadcasts, leave_at, ready.clone()));
        if i % 100 == 99 {
            // Connecting is not what is tested here.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    tokio::select! {
        _ = ready.wait() => {}
        Some(early) = listening.join_next() => panic!("a device ended early: {early:?}"),
    }
    let begun = Instant::now();
    broadcast(&dev.urls()[0], &dev.token(), broadcasts).await;
    while let Some(done) = listening.join_next().await {
        done.unwrap();
    }
    let (took, again) = (begun.elapsed(), reconnects.load(Ordering::Relaxed));
    println!("{devices} devices, {broadcasts} broadcasts, {again} reconnects: {took:.1?}");
    assert!(again >= devices as u64 / 10);
}
