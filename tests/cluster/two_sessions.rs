//! One device id on two nodes: a cloned machine, or two tabs of a browser that were sent to different nodes.

use std::time::Instant;

use serde_json::Value;
use tillsync::client::NodeUrl;
use tillsync::client::frame::ws_frame;
use tillsync::client::link::event_of;
use tillsync::client::ws::WsSocket;

use crate::harness::{Dev, PATIENCE};

async fn online(node: &NodeUrl, token: &str, device: &str, priority: u32) -> WsSocket {
    let mut socket = WsSocket::connect(node, token).await.unwrap();
    let ask = format!(r#"{{"device_id":"{device}","priority":{priority},"role":"master","subscribe":[]}}"#);
    socket.send(ws_frame("device_online", &ask)).await.unwrap();
    loop {
        let text = socket.next().await.unwrap();
        if event_of(&text).unwrap().name == "device_online_ack" {
            return socket;
        }
    }
}

/// Waits until the cluster says that the device is on these nodes, with this role.
async fn is_on(dev: &Dev, device: &str, nodes: &[u64], role: &str) -> Value {
    let (rest, end) = (dev.rest(), Instant::now() + PATIENCE);
    loop {
        let device: Value = rest.get(&dev.urls()[2], &format!("/device/roles/{device}")).await.unwrap();
        let on: Vec<u64> = device["nodes"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        if on == nodes && device["role"] == role {
            assert_eq!(device["is_active"], !nodes.is_empty(), "{device}");
            return device;
        }
        assert!(Instant::now() < end, "never {role} on {nodes:?}: {device}\n{}", dev.logs());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn elections(dev: &Dev) -> u64 {
    let logs: Value = dev.rest().get(&dev.urls()[2], "/sync/master-election-logs").await.unwrap();
    logs["pagination"]["total"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_online_and_master_until_its_last_session_is_gone_whichever_goes_first() {
    let dev = Dev::start(&[]);
    dev.ready().await;
    let (token, urls) = (dev.token(), dev.urls());
    let first = online(&urls[0], &token, "boss", 100).await;
    is_on(&dev, "boss", &[1], "master").await;
    let elected = elections(&dev).await;
    let second = online(&urls[1], &token, "boss", 100).await;
    is_on(&dev, "boss", &[1, 2], "master").await;
    // The one that came last goes.
    drop(second);
    let boss = is_on(&dev, "boss", &[1], "master").await;
    assert_eq!(boss["home"], 1);
    let second = online(&urls[1], &token, "boss", 100).await;
    is_on(&dev, "boss", &[1, 2], "master").await;
    // The one that came first goes.
    drop(first);
    let boss = is_on(&dev, "boss", &[2], "master").await;
    assert_eq!(boss["home"], 2);
    // A node that has one of two sessions dies.
    let third = online(&urls[2], &token, "boss", 100).await;
    is_on(&dev, "boss", &[2, 3], "master").await;
    dev.kill(&[2]);
    is_on(&dev, "boss", &[3], "master").await;
    assert_eq!(elections(&dev).await, elected, "nobody else needed to be elected");
    drop((second, third));
    // Now another device is master.
    is_on(&dev, "boss", &[], "client").await;
}
