//! Everything that was acknowledged survives SIGKILL of all nodes at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tillsync::client::NodeUrl;
use tillsync::client::frame::{DeviceOnlineFrame, json, ws_frame};
use tillsync::client::link::event_of;
use tillsync::client::ws::WsSocket;

use crate::harness::{Dev, NODES, PATIENCE};

const TABLE: &str = "orders";
/// Acknowledged before the nodes are killed.
const ENOUGH: usize = 600;
/// Under way at the same time, per node.
const WINDOW: i64 = 32;

/// Writes to one node until the connection ends: record and `seq` of what was acknowledged.
async fn write_until_the_end(node: NodeUrl, token: String, first: i64, count: Arc<AtomicUsize>) -> HashMap<i64, u64> {
    let device = format!("till-{first}");
    let mut socket = WsSocket::connect(&node, &token).await.unwrap();
    socket.send(ws_frame("device_online", &json(&DeviceOnlineFrame::tool(&device)))).await.unwrap();
    let (mut acked, mut next) = (HashMap::new(), first);
    let write = |record: i64| {
        let data = format!(
            r#"{{"device_id":"{device}","table_name":"{TABLE}","record_id":{record},"request_id":"r{record}","new_data":{{"n":{record}}}}}"#
        );
        ws_frame("data_update", &data)
    };
    while let Ok(text) = socket.next().await {
        let event = event_of(&text).unwrap();
        assert_eq!(event.error(), None);
        let freed = match event.name.as_str() {
            "device_online_ack" => WINDOW,
            "acknowledged" => {
                acked.insert(event.data["record_id"].as_i64().unwrap(), event.number("seq").unwrap());
                count.fetch_add(1, Ordering::SeqCst);
                1
            }
            _ => 0,
        };
        for _ in 0..freed {
            if socket.send(write(next)).await.is_err() {
                return acked;
            }
            next += 1;
        }
    }
    acked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_lose_nothing_that_was_acknowledged() {
    let dev = Dev::start(&[]);
    let mut acked = HashMap::new();
    // The second time the logs are not empty, and rows are behind them.
    for round in 0..2 {
        let count = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = dev
            .urls()
            .into_iter()
            .enumerate()
            .map(|(i, url)| {
                let first = ((round * NODES + i) as i64 + 1) * 1_000_000;
                tokio::spawn(write_until_the_end(url, dev.token(), first, count.clone()))
            })
            .collect();
        let enough = async {
            while count.load(Ordering::SeqCst) < ENOUGH {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, enough).await.expect("writes are acknowledged");
        dev.kill(&[1, 2, 3]);
        for writer in writers {
            acked.extend(writer.await.unwrap());
        }
        dev.ready().await;
        let feed = dev.same_feed(TABLE).await;
        let mut there: HashMap<i64, Vec<u64>> = HashMap::new();
        for change in &feed {
            assert_eq!(change.data["n"], change.record_id);
            there.entry(change.record_id).or_default().push(change.seq);
        }
        assert!(there.values().all(|seqs| seqs.len() == 1), "nothing is there twice");
        for (record, seq) in &acked {
            assert_eq!(there.get(record), Some(&vec![*seq]), "record {record} was acknowledged as change {seq}");
        }
        dev.same_digest().await;
    }
    assert!(acked.len() >= 2 * ENOUGH);
}
