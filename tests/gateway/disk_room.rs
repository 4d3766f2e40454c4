//! A disk that runs full: what is still written, and that writes go on when there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tillsync::clock::SystemClock;
use tillsync::gateway::GatewaySettings;
use tillsync::limits;
use tillsync::storage::room::{DiskRoom, RoomThresholds};
use tillsync::token::Class;

use crate::harness::{Over, Server};

const MIB: u64 = 1 << 20;
const THRESHOLDS: RoomThresholds = RoomThresholds { low: 1_024 * MIB, min: 256 * MIB };

/// A server, and how many MiB are free on its disk.
struct OnDisk {
    server: Server,
    free: Arc<AtomicU64>,
    room: Arc<DiskRoom>,
}

impl OnDisk {
    async fn start() -> Self {
        let free = Arc::new(AtomicU64::new(9_000 * MIB));
        let source = free.clone();
        let room = DiskRoom::measured("d".into(), THRESHOLDS, Box::new(move || Ok(source.load(Ordering::Relaxed))));
        room.measure();
        let settings = GatewaySettings::default();
        let server = Server::in_room(Arc::new(SystemClock), room.clone(), settings, |local| local).await;
        Self { server, free, room }
    }

    fn has(&self, mib: u64) {
        self.free.store(mib * MIB, Ordering::Relaxed);
        self.room.measure();
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.server.addr);
        let answer = reqwest::Client::new().get(url).bearer_auth(self.server.admin()).send().await.unwrap();
        answer.text().await.unwrap()
    }
}

fn must_be_full(error: &Value) {
    let says = error["error"].as_str().unwrap();
    assert_eq!((&error["error_code"], &error["retry"]), (&json!("5003"), &json!("safe")), "{error}");
    assert_eq!(error["retry_after_ms"], limits::ROOM_RETRY_MS, "{error}");
    assert!(says.contains("node 1 has 200 MiB left") && says.contains("only deletes"), "{says}");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_takes_deletes_and_writes_again_when_there_is_room() {
    for over in [Over::WebSocket, Over::SocketIo] {
        let disk = OnDisk::start().await;
        let server = &disk.server;
        let mut session = server.session(over).await;
        // Syncs are the master's.
        let online = json!({"device_id": "till", "role": "master"});
        session.call("device_online", online, "device_online_ack").await;
        session.update("till", "sales", 1, json!({"n": 1})).await;
        session.update("till", "sales", 2, json!({"n": 2})).await;
        disk.has(200);
        let sale = json!({"device_id": "till", "table_name": "sales", "record_id": 3, "new_data": {"n": 3}});
        let alarm = json!({"device_id": "till", "event_type": "alarm", "payload": {}});
        let head = server.head();
        must_be_full(&session.call("data_update", sale.clone(), "error").await);
        must_be_full(&session.call("critical_event", alarm, "error").await);
        assert_eq!(server.head(), head);
        // What is there can be read and followed.
        let asked = json!({"device_id": "till", "table_name": "sales", "record_id": 1});
        assert_eq!(session.call("data_request", asked, "data_response").await["data"], json!({"n": 1}));
        session.call("heartbeat", json!({"device_id": "till"}), "heartbeat_ack").await;
        let sync = json!({"device_id": "till", "sync_type": "full"});
        assert_eq!(session.call("sync_request", sync, "sync_response").await["changes"][0]["record_id"], 1);
        // A deletion makes room.
        let delete = json!({"device_id": "till", "table_name": "sales", "record_id": 2, "operation": "delete"});
        session.call("data_update", delete, "acknowledged").await;
        assert_eq!(server.head(), head + 1);
        // Another session comes, and its device with it.
        let mut other = server.session(over).await;
        other.online("till-2").await;
        disk.has(9_000);
        session.call("data_update", sale, "acknowledged").await;
    }
}

#[tokio::test]
async fn operators_get_through_on_a_full_disk() {
    let disk = OnDisk::start().await;
    let server = &disk.server;
    let mut till = server.device("till").await;
    till.update("till", "sales", 1, json!({"n": 1})).await;
    till.update("till", "old", 1, json!({"n": 1})).await;
    server.device("thief").await;
    disk.has(200);
    let (status, error) =
        server.rest("POST", "/data/sales/2", Some(json!({"device_id": "till", "new_data": {"n": 2}}))).await;
    assert_eq!(status, 503, "{error}");
    must_be_full(&error);
    for (method, path, body) in [
        ("POST", "/data/sales/1", Some(json!({"device_id": "till", "operation": "delete"}))),
        ("DELETE", "/data/old", None),
        ("POST", "/system/election", Some(json!({"reason": "manual"}))),
        ("POST", "/device/thief/suspend", None),
        ("POST", "/device/thief/revoke", None),
        ("DELETE", "/device/thief", None),
        ("PUT", "/sync/policies/sales", Some(json!({"policy": "manual"}))),
        ("GET", "/data/sales/1", None),
        ("GET", "/device/roles", None),
    ] {
        let (status, answer) = server.rest(method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
    }
    let token = server.token("till", Class::SalesAssistant);
    let (status, error) = server.rest_as(&token, "POST", "/data/sales/9", Some(json!({"new_data": {}}))).await;
    assert_eq!(status, 503, "{error}");
    disk.has(9_000);
    let (status, answer) = server.rest_as(&token, "POST", "/data/sales/9", Some(json!({"new_data": {}}))).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_low_disk_refuses_what_comes_in_bulk_only() {
    let disk = OnDisk::start().await;
    let server = &disk.server;
    let mut till = server.device("till").await;
    disk.has(900);
    till.update("till", "sales", 1, json!({"n": 1})).await;
    let mut line = json!({
        "device_id": "till", "table_name": "sales", "record_id": 2, "new_data": {}, "request_id": "2", "bulk": true,
    });
    let error = till.call("data_update", line.clone(), "error").await;
    assert_eq!((&error["error_code"], &error["retry_after_ms"]), (&json!("5003"), &json!(limits::ROOM_RETRY_MS)));
    assert!(error["error"].as_str().unwrap().contains("bulk loads wait"), "{error}");
    let begin = json!({"import_id": "1", "step": "begin", "device_rows": 0, "sync_rows": 0, "election_rows": 0,
        "audit_rows": 0});
    let (status, error) = server.rest("POST", "/system/import", Some(begin.clone())).await;
    assert_eq!((status, &error["error_code"]), (503, &json!("5003")), "{error}");
    // A little more than the threshold: it does not begin and end again and again.
    disk.has(1_100);
    till.call("data_update", line.clone(), "error").await;
    disk.has(1_200);
    till.call("data_update", line.clone(), "acknowledged").await;
    line["request_id"] = json!("3");
    till.call("data_update", line, "acknowledged").await;
    // What it is refused for then is another matter: somebody is there.
    let (status, answer) = server.rest("POST", "/system/import", Some(begin)).await;
    assert_eq!((status, &answer["error_code"]), (409, &json!("2002")), "{answer}");
}

#[tokio::test]
async fn what_is_left_is_shown() {
    let disk = OnDisk::start().await;
    for (mib, room, state) in [(9_000, "plenty", 0), (900, "low", 1), (200, "full", 2), (9_000, "plenty", 0)] {
        disk.has(mib);
        let (_, shown) = disk.server.rest("GET", "/system/cluster", None).await;
        let node = &shown["nodes"][0];
        assert_eq!((&node["disk"], &node["disk_free"]), (&json!(room), &json!(mib * MIB)), "{shown}");
        assert_eq!(shown["disk_verdict"].is_null(), state == 0, "{shown}");
        let metrics = disk.metrics().await;
        for line in [
            format!("tillsync_disk_free_bytes {}", mib * MIB),
            format!("tillsync_disk_state {state}"),
            format!("tillsync_writes_held_back {state}"),
        ] {
            assert!(metrics.lines().any(|l| l == line), "{line} is not in {metrics}");
        }
        let ready = disk.server.rest("GET", "/readyz", None).await.0;
        assert_eq!(ready, 200, "reads go on");
    }
}
