//! One order a session: live changes, pages of syncs and what a resume brings, never an older state after a newer one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::clock::SharedClock;
use tillsync::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo};
use tillsync::consensus::replica::Replica;
use tillsync::gateway::GatewaySettings;
use tillsync::ids::NodeId;
use tillsync::model::error::{Code, Error};
use tillsync::proto::command::Intent;
use tillsync::proto::{Outcome, Principal};
use tillsync::storage::BoxFuture;
use tillsync::testkit::local_cluster::LocalCluster;
use tokio::sync::watch;

use crate::harness::{Over, Server, Ws, place_of, until};

/// A server with a master, and a writer whose device `w` is online and hears nothing.
async fn shop() -> (Server, Ws) {
    let server = Server::start().await;
    let writer = staff(&server).await;
    (server, writer)
}

async fn staff(server: &Server) -> Ws {
    for (id, role) in [("m", "master"), ("d", "client"), ("e", "client")] {
        server.rest("POST", "/device/register", Some(json!({"device_id": id, "role": role}))).await;
    }
    let mut writer = server.ws(&server.admin()).await;
    writer.call("device_online", json!({"device_id": "w", "subscribe": []}), "device_online_ack").await;
    writer
}

/// 12 MB in table `big`: its sync cannot have ended while nobody reads.
pub(crate) async fn fill(writer: &mut Ws) {
    let text = "x".repeat(200_000);
    for i in 0..60 {
        writer.update("w", "big", i, json!({"text": text})).await;
    }
}

async fn put(writer: &mut Ws, table: &str, record: i64, value: &str) -> u64 {
    writer.update("w", table, record, json!({"v": value})).await["seq"].as_u64().unwrap()
}

async fn delete(writer: &mut Ws, table: &str, record: i64) -> u64 {
    let gone = json!({"device_id": "w", "table_name": table, "record_id": record, "operation": "delete"});
    writer.call("data_update", gone, "acknowledged").await["seq"].as_u64().unwrap()
}

/// What came of a table, in order, until change `last` came live: how, the record, the seq and the value.
async fn told(ws: &mut Ws, table: &str, last: u64) -> Vec<(String, i64, u64, Value)> {
    let mut out = Vec::new();
    loop {
        let (event, data) = ws.next().await.expect("closed");
        match event.as_str() {
            "sync_response" => {
                for change in data["changes"].as_array().unwrap() {
                    if change["table_name"] == table {
                        let (record, seq) = (change["record_id"].as_i64().unwrap(), change["seq"].as_u64().unwrap());
                        out.push(("page".into(), record, seq, change["data"]["v"].clone()));
                    }
                }
            }
            "data_update" => {
                let seq = data["seq"].as_u64().unwrap();
                if data["table_name"] == table {
                    out.push(("live".into(), data["record_id"].as_i64().unwrap(), seq, data["new_data"]["v"].clone()));
                }
                if seq == last {
                    return out;
                }
            }
            "error" | "sync_error" => panic!("{event} {data}"),
            _ => {}
        }
    }
}

fn seqs(told: &[(String, i64, u64, Value)], how: &str) -> Vec<u64> {
    told.iter().filter(|t| t.0 == how).map(|t| t.2).collect()
}

#[tokio::test]
async fn a_library_that_sends_first_what_was_emitted_offline_resumes_in_order() {
    let (server, mut writer) = shop().await;
    put(&mut writer, "t", 1, "old").await;
    for over in [Over::WebSocket, Over::SocketIo] {
        let mut ws = server.session(over).await;
        ws.update("d", "t", 9, json!({"sale": 1})).await;
        let last = put(&mut writer, "t", 1, "new").await;
        ws.send("device_online", json!({"device_id": "d", "cursor": "1.0"})).await;
        let mut answered = false;
        let mut next = 1;
        while next <= last {
            let (event, data) = ws.next().await.unwrap();
            answered |= event == "device_online_ack";
            assert!(event != "error", "{data}");
            if event == "data_update" {
                assert!(answered, "a change came before the answer: {data}");
                assert_eq!(data["seq"], next);
                next += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_resume_on_a_live_session_brings_what_is_not_older_than_what_came() {
    let (server, mut writer) = shop().await;
    put(&mut writer, "t", 1, "old").await;
    let only = put(&mut writer, "t", 2, "only").await;
    for over in [Over::WebSocket, Over::SocketIo] {
        let mut ws = server.session(over).await;
        // Nobody came online on it: it is live after two seconds.
        ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
        let new = put(&mut writer, "t", 1, "new").await;
        assert_eq!(ws.wait("data_update").await["seq"], new);
        let ack = ws.call("device_online", json!({"device_id": "d", "cursor": "1.0"}), "device_online_ack").await;
        assert_eq!(ack["cursor"], "1.0");
        let last = put(&mut writer, "t", 3, "later").await;
        let told = told(&mut ws, "t", last).await;
        assert_eq!(told.iter().find(|t| t.1 == 1 && t.2 < new), None, "an older state of record 1: {told:?}");
        assert!(seqs(&told, "live").contains(&only), "{told:?}");
        // A second device of the session, from elsewhere.
        ws.call("device_online", json!({"device_id": "e", "cursor": format!("1.{only}")}), "device_online_ack").await;
        let last = put(&mut writer, "t", 3, "last").await;
        assert_eq!(seqs(&self::told(&mut ws, "t", last).await, "live"), [last]);
    }
}

#[tokio::test]
async fn nothing_of_a_removed_table_comes_after_the_session_was_told_that_it_is_gone() {
    let (server, mut writer) = shop().await;
    for resumes in [true, false] {
        put(&mut writer, "t", 1, "gone").await;
        put(&mut writer, "t", 2, "old").await;
        let missed = delete(&mut writer, "t", 2).await;
        let mut ws = server.ws(&server.admin()).await;
        if resumes {
            // Nobody came online on it: it is live after two seconds.
            ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
        } else {
            ws.call("device_online", json!({"device_id": "d"}), "device_online_ack").await;
        }
        let live = put(&mut writer, "t", 3, "live").await;
        assert_eq!(ws.wait("data_update").await["seq"], live);
        let (status, body) = server.rest("DELETE", "/data/t", None).await;
        assert_eq!((status, &body["removed"], &body["records_deleted"]), (200, &json!(true), &json!(2)), "{body}");
        let gone = [ws.wait("data_update").await, ws.wait("data_update").await];
        let gone = gone.map(|told| told["seq"].as_u64().unwrap());
        let came: Vec<(u64, Value)> = if resumes {
            ws.call("device_online", json!({"device_id": "d", "cursor": "1.0"}), "device_online_ack").await;
            let last = put(&mut writer, "t", 4, "made anew").await;
            told(&mut ws, "t", last).await.into_iter().map(|t| (t.2, t.3)).filter(|t| t.0 < last).collect()
        } else {
            ws.send("sync_request", json!({"device_id": "d", "sync_type": "incremental", "cursor": "1.0"})).await;
            let page = ws.wait("sync_response").await;
            let changes = page["changes"].as_array().unwrap().iter();
            let came = changes.map(|c| (c["seq"].as_u64().unwrap(), c["data"]["v"].clone())).collect();
            put(&mut writer, "t", 4, "made anew").await;
            came
        };
        // Record 2 was deleted before the session began, the others while it heard of it.
        let heard: &[u64] = if resumes { &[] } else { &gone };
        let expected: Vec<u64> = [missed].iter().chain(heard).copied().collect();
        let since: Vec<u64> = came.iter().map(|c| c.0).filter(|seq| *seq >= missed).collect();
        assert_eq!(since, expected, "{came:?}");
        let old = came.iter().find(|c| c.1 == "gone" || c.1 == "live");
        assert_eq!(old, None, "of the table that was removed: {came:?}");
        let (status, _) = server.rest("DELETE", "/data/t", None).await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn a_sync_after_naming_fewer_tables_leaves_out_only_what_was_told_in_a_newer_state() {
    let (server, mut writer) = shop().await;
    let older = put(&mut writer, "b", 1, "older").await;
    let newest = put(&mut writer, "b", 1, "newest").await;
    put(&mut writer, "a", 8, "a newer one is told").await;
    let mut ws = server.device("x").await;
    let live = put(&mut writer, "a", 8, "live").await;
    assert_eq!(ws.wait("data_update").await["seq"], live);
    ws.call("device_online", json!({"device_id": "d", "subscribe": ["b"]}), "device_online_ack").await;
    ws.send("sync_request", json!({"device_id": "d", "sync_type": "incremental", "cursor": "1.0"})).await;
    let page = ws.wait("sync_response").await;
    let few = page["changes"].as_array().unwrap().iter().filter(|c| c["table_name"] == "a" || c["table_name"] == "b");
    let seqs: Vec<_> = few.map(|c| c["seq"].as_u64().unwrap()).collect();
    assert_eq!((seqs, &page["has_more"]), (vec![older, newest, live], &json!(false)));
}

#[tokio::test]
async fn pages_of_an_incremental_sync_and_live_changes_keep_each_records_order() {
    let (server, mut writer) = shop().await;
    let hidden = put(&mut writer, "t", 2, "before").await;
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "subscribe": ["t"]}), "device_online_ack").await;
    let heard = put(&mut writer, "t", 2, "heard").await;
    assert_eq!(ws.wait("data_update").await["seq"], heard);
    fill(&mut writer).await;
    let old = put(&mut writer, "t", 1, "old").await;
    ws.send("sync_request", json!({"device_id": "d", "sync_type": "incremental", "cursor": "1.0"})).await;
    let first = ws.wait("sync_response").await;
    assert_eq!((&first["has_more"], &first["page"]), (&json!(true), &json!(1)));
    let first: Vec<_> = first["changes"].as_array().unwrap().iter().filter(|c| c["table_name"] == "t").collect();
    let seqs_first: Vec<_> = first.iter().map(|c| c["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs_first, [heard], "{hidden} is older than what was heard live");
    let new = put(&mut writer, "t", 1, "new").await;
    let told = told(&mut ws, "t", new).await;
    let of_one: Vec<_> = told.iter().filter(|t| t.1 == 1).map(|t| (t.0.as_str(), t.2)).collect();
    // The session was sent its own stream up to the sync's head first.
    assert_eq!(of_one, [("live", old), ("page", old), ("live", new)]);
}

#[tokio::test]
async fn a_full_sync_shows_the_records_as_they_were_at_its_cursor() {
    let (server, mut writer) = shop().await;
    fill(&mut writer).await;
    let (goes, changes) = (put(&mut writer, "big", 200, "a").await, put(&mut writer, "big", 201, "a").await);
    put(&mut writer, "big", 203, "a").await;
    let head = delete(&mut writer, "big", 203).await;
    for subscribe in [json!(["big"]), json!([])] {
        let mut ws = server.ws(&server.admin()).await;
        let live = subscribe != json!([]);
        ws.call("device_online", json!({"device_id": "d", "subscribe": subscribe}), "device_online_ack").await;
        let at = server.head();
        ws.send("sync_request", json!({"device_id": "d", "requested_tables": ["big"]})).await;
        assert_eq!(ws.wait("sync_response").await["has_more"], true);
        // Pages come in the order of the ids: these are not read yet.
        let mut after = vec![delete(&mut writer, "big", 200).await, put(&mut writer, "big", 201, "b").await];
        after.push(put(&mut writer, "big", 202, "b").await);
        after.push(put(&mut writer, "big", 203, "b").await);
        let (mut shown, mut last) = (Vec::new(), Value::Null);
        while last["has_more"] != false {
            last = ws.wait("sync_response").await;
            let few = last["changes"].as_array().unwrap().iter().filter(|c| c["record_id"].as_i64() >= Some(200));
            shown.extend(few.map(|c| (c["record_id"].as_i64().unwrap(), c["seq"].as_u64().unwrap())));
        }
        if live {
            assert_eq!((at, shown), (head, vec![(200, goes), (201, changes)]));
            for seq in after {
                assert_eq!(ws.wait("data_update").await["seq"], seq);
            }
        } else {
            // The second time 200 is gone (again), the others are as the first round left them.
            assert_eq!(shown.iter().map(|s| s.0).collect::<Vec<_>>(), [201, 202, 203]);
            assert!(shown.iter().all(|s| s.1 <= at), "{shown:?} of {at}");
        }
        assert_eq!(place_of(&last["cursor"]), at);
        ws.none("data_update").await;
    }
}

#[tokio::test]
async fn a_resume_beside_a_sync_waits_for_it_and_is_never_refused() {
    let (server, mut writer) = shop().await;
    put(&mut writer, "t", 1, "older").await;
    let missed = put(&mut writer, "t", 1, "newest").await;
    fill(&mut writer).await;
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "subscribe": ["t"]}), "device_online_ack").await;
    ws.send("sync_request", json!({"device_id": "d", "requested_tables": ["big"]})).await;
    assert_eq!(ws.wait("sync_response").await["has_more"], true);
    let ack = ws.call("device_online", json!({"device_id": "e", "cursor": "1.0"}), "device_online_ack").await;
    assert_eq!(ack["cursor"], "1.0");
    // And a sync of its own beside both.
    ws.send("sync_request", json!({"device_id": "e", "requested_tables": ["t"]})).await;
    let last = put(&mut writer, "t", 2, "live").await;
    let told = told(&mut ws, "t", last).await;
    let order: Vec<_> = told.iter().map(|t| (t.0.as_str(), t.2)).collect();
    assert_eq!(order, [("live", missed), ("live", last)], "{told:?}");
    let own = loop {
        let page = ws.wait("sync_response").await;
        if page["has_more"] == false && page["changes"][0]["table_name"] == "t" {
            break page;
        }
    };
    let seqs: Vec<_> = own["changes"].as_array().unwrap().iter().map(|c| c["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [missed, last]);
}

/// A cluster whose proposals or reads fail while it is told so.
struct Failing {
    inner: Arc<LocalCluster>,
    fails: watch::Receiver<&'static str>,
}

impl Failing {
    fn result(&self, what: &str) -> Result<(), Error> {
        match *self.fails.borrow() == what {
            true => Err(Error::new(Code::NoMaster, "there is no leader")),
            false => Ok(()),
        }
    }
}

impl Cluster for Failing {
    fn node_id(&self) -> NodeId {
        self.inner.node_id()
    }

    fn clock(&self) -> &SharedClock {
        self.inner.clock()
    }

    fn replica(&self) -> &Arc<Replica> {
        self.inner.replica()
    }

    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        let (result, inner) = (self.result("propose"), self.inner.clone());
        Box::pin(async move {
            result?;
            inner.propose(intent).await
        })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        let result = self.result("read");
        Box::pin(async move { result })
    }

    fn status(&self) -> ClusterStatus {
        self.inner.status()
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        self.inner.nodes()
    }

    fn change(
        &self,
        change: MembershipChange,
        by: Principal,
        within: Duration,
    ) -> BoxFuture<'_, Result<MembershipChanged, Error>> {
        self.inner.change(change, by, within)
    }
}

#[tokio::test]
async fn a_resume_without_a_quorum_ends_the_session_and_never_goes_live() {
    let fails = watch::Sender::new("");
    let seen = fails.subscribe();
    let server = Server::over(GatewaySettings::default(), |inner| Arc::new(Failing { inner, fails: seen })).await;
    let mut writer = staff(&server).await;
    for over in [Over::WebSocket, Over::SocketIo] {
        for what in ["propose", "read"] {
            let cursor = format!("1.{}", server.head());
            let missed = put(&mut writer, "t", 1, "missed").await;
            let mut ws = server.session(over).await;
            // The session is open when this is answered.
            ws.call("heartbeat", json!({"device_id": "d"}), "heartbeat_ack").await;
            fails.send_replace(what);
            let online = json!({"device_id": "d", "cursor": cursor, "request_id": "r"});
            let error = ws.call("device_online", online.clone(), "error").await;
            let said = (&error["error_code"], &error["event"], &error["request_id"]);
            assert_eq!(said, (&json!("2005"), &json!("device_online"), &json!("r")), "{error}");
            fails.send_replace("");
            let later = put(&mut writer, "t", 2, "later").await;
            let mut why = Value::Null;
            while let Some((event, data)) = ws.next().await {
                assert_ne!(event, "data_update", "it went live past {missed}: {data}");
                why = data;
            }
            assert_eq!((&why["error_code"], &why["retry"]), (&json!("1003"), &json!("safe")), "{why}");
            assert!(why["retry_after_ms"].as_u64() > Some(0), "{why}");
            // It comes again, and has missed nothing.
            let mut ws = server.session(over).await;
            ws.call("device_online", online, "device_online_ack").await;
            for seq in [missed, later] {
                assert_eq!(ws.wait("data_update").await["seq"], seq);
            }
        }
    }
}

#[tokio::test]
async fn a_resume_that_is_refused_for_good_waits_for_one_that_is_granted() {
    let (server, mut writer) = shop().await;
    let missed = put(&mut writer, "t", 1, "missed").await;
    let mut ws = server.ws(&server.admin()).await;
    let wrong = json!({"device_id": "d", "cursor": "1.0", "priority": "high"});
    assert_eq!(ws.call("device_online", wrong, "error").await["field"], "priority");
    let later = put(&mut writer, "t", 2, "later").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    ws.none("data_update").await;
    ws.call("device_online", json!({"device_id": "d", "cursor": "1.0"}), "device_online_ack").await;
    for seq in [missed, later] {
        assert_eq!(ws.wait("data_update").await["seq"], seq);
    }
}

#[tokio::test]
async fn a_change_tells_the_tables_change_before_it() {
    let (server, mut writer) = shop().await;
    let mut ws = server.device("d").await;
    let tables = ["a", "b", "a", "a", "b"];
    for (i, table) in tables.iter().enumerate() {
        put(&mut writer, table, i as i64, "x").await;
    }
    let expected = [0, 0, 1, 3, 2];
    for after in expected {
        assert_eq!(ws.wait("data_update").await["after"], after);
    }
    let ask = json!({"device_id": "d", "sync_type": "incremental", "cursor": "1.0"});
    let page = ws.call("sync_request", ask, "sync_response").await;
    let (_, feed) = server.rest("GET", "/sync/changes?limit=100", None).await;
    for changes in [&page["changes"], &feed["changes"]] {
        let after: Vec<_> = changes.as_array().unwrap().iter().map(|c| c["after"].as_u64().unwrap()).collect();
        assert_eq!(after, expected);
    }
    let record = ws.call("sync_request", json!({"device_id": "d"}), "sync_response").await;
    assert_eq!(record["changes"][0].get("after"), None, "a record is no change");
}

#[tokio::test]
async fn counts_follow_what_a_resume_delivered() {
    let (server, mut writer) = shop().await;
    let mut ws = server.device("d").await;
    ws.call("device_offline", json!({"device_id": "d"}), "device_offline_ack").await;
    for i in 0..3 {
        put(&mut writer, "t", i, "missed").await;
    }
    let mut counts = Vec::new();
    for kind in ["sync", "offline"] {
        let ask = json!({"device_id": "d", "queue_type": kind});
        counts.push(writer.call("queue_status", ask, "queue_status_response").await["pending_count"].clone());
    }
    assert_eq!(counts, [json!(3), json!(3)], "it left before the first change");
    drop(ws);
    let mut ws = server.ws(&server.admin()).await;
    ws.call("device_online", json!({"device_id": "d", "cursor": "1.0"}), "device_online_ack").await;
    for seq in 1..=3 {
        assert_eq!(ws.wait("data_update").await["seq"], seq);
    }
    until("both counts are 0", || {
        let state = server.cluster.replica().state();
        let (device, sync) = (state.device("d").unwrap(), state.sync_state("d").unwrap());
        (state.pending_changes(sync), state.offline_changes(device)) == (0, 0)
    })
    .await;
    // What it was sent, it may not have stored: an incremental sync still begins where the last one ended.
    assert_eq!(server.rest("GET", "/sync/state/d", None).await.1["cursor"], "1.0");
}
