//! Clients that behave as `docs/clients.md` says: what was not acknowledged is sent again, with its `request_id`, to
//! any node. They count what must not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tillsync::client::NodeUrl;
use tillsync::client::frame::{DeviceOnlineFrame, json, ws_frame};
use tillsync::client::link::event_of;
use tillsync::client::rest::FeedChange;
use tillsync::client::ws::WsSocket;
use tokio::task::JoinHandle;

use crate::harness::PATIENCE;

pub(crate) const TABLE: &str = "orders";
const WINDOW: usize = 4;

/// What all writers share.
pub(crate) struct Shared {
    pub nodes: Mutex<Vec<NodeUrl>>,
    acknowledged: AtomicU64,
    stop: AtomicBool,
    token: String,
}

pub(crate) struct RetryingClients {
    pub shared: Arc<Shared>,
    tasks: Vec<JoinHandle<BTreeMap<i64, u64>>>,
}

impl RetryingClients {
    pub(crate) fn start(count: usize, nodes: Vec<NodeUrl>, token: String) -> Self {
        let shared = Arc::new(Shared {
            nodes: Mutex::new(nodes),
            acknowledged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            token,
        });
        let tasks = (0..count).map(|i| tokio::spawn(write(shared.clone(), i))).collect();
        Self { shared, tasks }
    }

    /// Waits until so many more writes were acknowledged.
    pub(crate) async fn go_on(&self, writes: u64) {
        let until = self.shared.acknowledged.load(Ordering::SeqCst) + writes;
        let end = Instant::now() + PATIENCE;
        while self.shared.acknowledged.load(Ordering::SeqCst) < until {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a writer was told something wrong");
            assert!(Instant::now() < end, "nothing is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the writers when everything is acknowledged; gives what was, with its `seq`.
    pub(crate) async fn finish(self) -> BTreeMap<i64, u64> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut all = BTreeMap::new();
        for task in self.tasks {
            all.extend(tokio::time::timeout(PATIENCE, task).await.expect("a write is never acknowledged").unwrap());
        }
        all
    }
}

/// Nothing that was acknowledged is lost, nothing is there twice, and nothing that nobody wrote.
pub(crate) fn same(acknowledged: &BTreeMap<i64, u64>, feed: &[FeedChange]) {
    let there: BTreeMap<i64, u64> = feed.iter().map(|change| (change.record_id, change.seq)).collect();
    assert_eq!(there.len(), feed.len(), "something is there twice");
    assert!(there == *acknowledged, "{} were acknowledged, {} are there", acknowledged.len(), there.len());
}

/// One device. Any error but the documented goodbye of a node is a failed request.
async fn write(shared: Arc<Shared>, writer: usize) -> BTreeMap<i64, u64> {
    let device = format!("till-{writer}");
    let first = (writer as i64 + 1) * 1_000_000;
    let (mut next, mut waiting, mut done) = (first, BTreeSet::new(), BTreeMap::new());
    let mut tries = writer;
    loop {
        let node = {
            let nodes = shared.nodes.lock();
            nodes[tries % nodes.len()].clone()
        };
        tries += 1;
        let Ok(mut socket) = WsSocket::connect(&node, &shared.token).await else {
            // It is stopping or starting.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut greeting = vec![ws_frame("device_online", &json(&DeviceOnlineFrame::tool(&device)))];
        greeting.extend(waiting.iter().map(|record| frame(&device, *record)));
        let mut alive = true;
        for frame in greeting {
            alive = alive && socket.send(frame).await.is_ok();
        }
        while alive {
            while waiting.len() < WINDOW && !shared.stop.load(Ordering::SeqCst) {
                waiting.insert(next);
                alive = alive && socket.send(frame(&device, next)).await.is_ok();
                next += 1;
            }
            if waiting.is_empty() {
                socket.close().await;
                return done;
            }
            let Ok(text) = socket.next().await else { break };
            let event = event_of(&text).unwrap();
            if let Some((code, why)) = event.error() {
                // What is in the log, and not known as committed when the node ends, may have been applied: it is sent again.
                let told = [5003, 1001].contains(&code.unwrap_or(0)) && why.contains("shutting down");
                assert!(told, "{device}: {code:?} {why}");
                break;
            }
            if event.name == "acknowledged" {
                let record = event.data["record_id"].as_i64().unwrap();
                let seq = event.number("seq").unwrap();
                // After a reconnect the answer to the first sending may still come.
                waiting.remove(&record);
                assert_eq!(*done.entry(record).or_insert(seq), seq, "{device}: {record} has two answers");
                shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn frame(device: &str, record: i64) -> String {
    let data = format!(
        r#"{{"device_id":"{device}","table_name":"{TABLE}","record_id":{record},"request_id":"r{record}","new_data":{{"n":{record}}}}}"#
    );
    ws_frame("data_update", &data)
}
