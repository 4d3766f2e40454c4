//! Bounds on what one session and all sessions can make a node hold (docs/design.md, section 11).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tillsync::clock::SharedClock;
use tillsync::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo};
use tillsync::consensus::replica::Replica;
use tillsync::gateway::GatewaySettings;
use tillsync::gateway::fanout::send_queue::{Encoding, SendQueue};
use tillsync::gateway::protocol::ServerEvent;
use tillsync::ids::NodeId;
use tillsync::limits;
use tillsync::model::error::{Code, Error};
use tillsync::proto::command::Intent;
use tillsync::proto::{Outcome, Principal};
use tillsync::storage::BoxFuture;
use tillsync::testkit::local_cluster::LocalCluster;
use tillsync::token::Class;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite;

use crate::harness::{Over, Server, until};
use crate::socketio::Sio;
use crate::transports::Poller;

/// A cluster that answers writes only when it is let.
struct Slow {
    inner: Arc<LocalCluster>,
    unanswered: Arc<AtomicUsize>,
    answers: Arc<Semaphore>,
}

impl Cluster for Slow {
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
        let held = matches!(intent, Intent::DataUpdate(_));
        let answer = self.inner.propose(intent);
        if !held {
            return answer;
        }
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        let (unanswered, answers) = (self.unanswered.clone(), self.answers.clone());
        Box::pin(async move {
            answers.acquire().await.unwrap().forget();
            unanswered.fetch_sub(1, Ordering::SeqCst);
            answer.await
        })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        self.inner.read_barrier()
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
async fn a_session_has_so_many_proposals_under_way_and_the_others_wait_their_turn() {
    let (unanswered, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (unanswered.clone(), answers.clone());
    let wrap = |inner| Arc::new(Slow { inner, unanswered: count, answers: gate }) as Arc<dyn Cluster>;
    let server = Server::over(GatewaySettings::default(), wrap).await;
    let mut ws = server.device("d").await;
    for i in 0..300 {
        ws.send("data_update", json!({"device_id": "d", "table_name": "t", "record_id": i, "new_data": {}})).await;
    }
    until("the session is full", || unanswered.load(Ordering::SeqCst) == limits::SESSION_INFLIGHT).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(unanswered.load(Ordering::SeqCst), limits::SESSION_INFLIGHT, "no more than the limit");
    answers.add_permits(300);
    for i in 0..300 {
        assert_eq!(ws.wait("acknowledged").await["record_id"], i);
    }
    ws.none("error").await;
}

/// However many sessions a token has, it has one share of what is under way: others do not wait behind it.
#[tokio::test]
async fn all_sessions_of_a_token_together_have_so_many_proposals_under_way() {
    let (unanswered, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (unanswered.clone(), answers.clone());
    let wrap = |inner| Arc::new(Slow { inner, unanswered: count, answers: gate }) as Arc<dyn Cluster>;
    let server = Server::over(GatewaySettings::default(), wrap).await;
    let token = server.token("thief", Class::SalesAssistant);
    let mut sessions = Vec::new();
    for _ in 0..limits::SESSIONS_OF_TOKEN {
        let mut session = server.ws(&token).await;
        session.online("thief").await;
        sessions.push(session);
    }
    for session in &mut sessions {
        for i in 0..limits::SESSION_INFLIGHT {
            let update = json!({"device_id": "thief", "table_name": "t", "record_id": i, "new_data": {}});
            session.send("data_update", update).await;
        }
    }
    until("its share is used", || unanswered.load(Ordering::SeqCst) == limits::TOKEN_INFLIGHT).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(unanswered.load(Ordering::SeqCst), limits::TOKEN_INFLIGHT, "no more than its share");
    let mut till = server.ws(&server.token("till", Class::SalesAssistant)).await;
    till.online("till").await;
    let update = json!({"device_id": "till", "table_name": "t", "record_id": 1, "new_data": {}});
    till.send("data_update", update).await;
    until("the other one is under way", || unanswered.load(Ordering::SeqCst) == limits::TOKEN_INFLIGHT + 1).await;
    answers.add_permits(limits::SESSIONS_OF_TOKEN * limits::SESSION_INFLIGHT + 1);
    for session in &mut sessions {
        for _ in 0..limits::SESSION_INFLIGHT {
            session.wait("acknowledged").await;
        }
    }
    till.wait("acknowledged").await;
}

/// Answers come only much later than the silence after which a session is lost: one that is not listened to is not
/// silent, and nothing that it sent is dropped.
#[tokio::test]
async fn a_burst_waits_and_is_not_taken_for_silence() {
    const UPDATES: i64 = 3_000;
    let (ping_every, lost_after) = (Duration::from_millis(100), Duration::from_millis(400));
    for over in [Over::WebSocket, Over::SocketIo] {
        let answers = Arc::new(Semaphore::new(0));
        let (unanswered, gate) = (Arc::new(AtomicUsize::new(0)), answers.clone());
        let wrap = |inner| Arc::new(Slow { inner, unanswered, answers: gate }) as Arc<dyn Cluster>;
        let server = Server::over(GatewaySettings { ping_every, lost_after, ..GatewaySettings::default() }, wrap).await;
        let mut session = server.session(over).await;
        session.online("d").await;
        for i in 0..UPDATES {
            let update = json!({"device_id": "d", "table_name": "t", "record_id": i, "new_data": {}});
            session.send("data_update", update).await;
        }
        // No pong can be read: it is behind the burst.
        tokio::time::sleep(lost_after * 3).await;
        answers.add_permits(UPDATES as usize);
        for i in 0..UPDATES {
            assert_eq!(session.wait("acknowledged").await["record_id"], i, "{over:?}");
        }
        session.none("error").await;
    }
}

#[tokio::test]
async fn an_old_client_misses_no_pong_behind_its_burst() {
    let answers = Arc::new(Semaphore::new(0));
    let (unanswered, gate) = (Arc::new(AtomicUsize::new(0)), answers.clone());
    let wrap = |inner| Arc::new(Slow { inner, unanswered, answers: gate }) as Arc<dyn Cluster>;
    let server = Server::over(GatewaySettings::default(), wrap).await;
    let mut old = Sio::open(&server, &format!("EIO=3&token={}", server.admin())).await;
    assert_eq!(old.next().await, "40");
    old.send(r#"42["device_online",{"device_id":"d","subscribe":[]}]"#).await;
    assert_eq!(old.wait("42").await[0], "device_online_ack");
    for i in 0..=limits::SESSION_INFLIGHT {
        let update = json!({"device_id": "d", "table_name": "t", "record_id": i, "new_data": {}});
        old.send(&format!("42{}", json!(["data_update", update]))).await;
    }
    // Nothing is answered, so this is not heard. The pong comes all the same.
    old.send("2").await;
    let mut packet = old.next().await;
    while packet != "3" {
        assert!(!packet.starts_with("42[\"acknowledged\""), "{packet}");
        packet = old.next().await;
    }
    answers.add_permits(limits::SESSION_INFLIGHT + 1);
    for i in 0..=limits::SESSION_INFLIGHT {
        let mut packet = old.next().await;
        while !packet.starts_with("42[\"acknowledged\"") {
            assert!(!packet.starts_with("42[\"error\""), "{packet}");
            packet = old.next().await;
        }
        assert!(packet.contains(&format!("\"record_id\":{i},")), "{packet}");
    }
}

#[tokio::test]
async fn a_post_waits_for_room_in_the_inbox() {
    let answers = Arc::new(Semaphore::new(0));
    let (unanswered, gate) = (Arc::new(AtomicUsize::new(0)), answers.clone());
    let count = unanswered.clone();
    let wrap = |inner| Arc::new(Slow { inner, unanswered: count, answers: gate }) as Arc<dyn Cluster>;
    // Nobody polls while the post waits, however long that takes: pings would end the session.
    let never = Duration::from_secs(3_600);
    let settings = GatewaySettings {
        ping_every: never,
        lost_after: 2 * never,
        write_timeout: never,
        ..GatewaySettings::default()
    };
    let server = Server::over(settings, wrap).await;
    let mut poller = Poller::connect(&server).await;
    poller.post(r#"42["device_online",{"device_id":"d","subscribe":[]}]"#).await;
    assert_eq!(poller.wait("42").await[0], "device_online_ack");
    let pad = "x".repeat(200_000);
    let update = |i: usize| {
        format!(
            r#"42{i}["data_update",{{"device_id":"d","table_name":"t","record_id":{i},"new_data":{{"p":"{pad}"}}}}]"#
        )
    };
    // The session has 64 under way, the inbox holds 4 MiB: 100 packets of 200 kB find no room.
    let body = (0..100).map(update).collect::<Vec<_>>().join("\x1e");
    {
        let mut other = poller.clone();
        let mut post = tokio::spawn(async move { other.post(&body).await });
        let full = async {
            while unanswered.load(Ordering::SeqCst) < limits::SESSION_INFLIGHT && !post.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Only a test that hangs takes so long.
        tokio::time::timeout(Duration::from_secs(120), full).await.expect("the session is never full");
        let waits = tokio::time::timeout(Duration::from_millis(500), &mut post);
        assert!(waits.await.is_err(), "the rest was taken in at once");
        answers.add_permits(100);
        post.await.unwrap();
    }
    let mut acked = 0;
    while acked < 100 {
        let packet = poller.next().await;
        if let Some(answer) = packet.strip_prefix("43") {
            assert!(answer.starts_with(&format!("{acked}[")) && !answer.contains("error_code"), "{answer}");
            acked += 1;
        }
    }
}

#[test]
fn a_session_queue_holds_so_many_events_and_so_many_bytes() {
    let event = |device_id| ServerEvent::HeartbeatAck { device_id, clock_ahead_ms: None, at_ms: 0 };
    let mut taken = std::collections::VecDeque::new();
    let send_queue = SendQueue::new(1, Encoding::WebSocket);
    (0..limits::SESSION_QUEUE).for_each(|_| send_queue.send(&event("d")));
    assert!(!send_queue.is_closed());
    send_queue.take(&mut taken).unwrap();
    assert_eq!(taken.len(), limits::SESSION_QUEUE);
    (0..=limits::SESSION_QUEUE).for_each(|_| send_queue.send(&event("d")));
    let why = send_queue.take(&mut std::collections::VecDeque::new()).err().unwrap();
    assert_eq!((why.code, send_queue.is_closed()), (Code::SocketClosed, true));
    // By bytes: two events of more than half of it; one alone fits whatever its size.
    let (half, whole) = ("x".repeat(limits::SESSION_QUEUE_BYTES / 2), "x".repeat(limits::SESSION_QUEUE_BYTES + 1));
    let send_queue = SendQueue::new(2, Encoding::SocketIo);
    send_queue.send(&event(&whole));
    taken.clear();
    send_queue.take(&mut taken).unwrap();
    send_queue.send(&event(&half));
    assert!(!send_queue.is_closed());
    send_queue.send(&event(&half));
    assert!(send_queue.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_was_dropped_resumes_with_no_gap_and_no_repeat() {
    let server = Server::start().await;
    let mut reader = server.device("r").await;
    let mut writer = server.device("w").await;
    let big = "x".repeat(100_000);
    for i in 0..200 {
        // The writer takes its own broadcasts; the reader takes none.
        writer.update("w", "t", i, json!({"big": big})).await;
        writer.wait("data_update").await;
    }
    let (mut seen, mut cursor) = (Vec::new(), json!("1.0"));
    while let Some((event, data)) = reader.next().await {
        match event.as_str() {
            "data_update" => {
                seen.push(data["seq"].as_u64().unwrap());
                cursor = data["cursor"].clone();
            }
            "error" => assert_eq!((&data["error_code"], &data["retry"]), (&json!("1003"), &json!("safe"))),
            _ => {}
        }
    }
    assert!(seen.len() < 200, "it was dropped");
    let mut back = server.ws(&server.admin()).await;
    back.call("device_online", json!({"device_id": "r", "cursor": cursor}), "device_online_ack").await;
    while seen.len() < 200 {
        seen.push(back.wait("data_update").await["seq"].as_u64().unwrap());
    }
    assert_eq!(seen, (1..=200).collect::<Vec<_>>());
    writer.update("w", "t", 1, json!({})).await;
    assert_eq!(back.wait("data_update").await["seq"], 201);
}

/// When the node says to come back.
fn retry_after(refused: &tungstenite::Error) -> u64 {
    let tungstenite::Error::Http(response) = refused else { panic!("{refused}") };
    assert_eq!(response.status(), 503);
    let body: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
    assert_eq!(body["error_code"], "1003", "{body}");
    body["retry_after_ms"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_at_once_are_bounded_and_spread_out() {
    let server = Server::with(GatewaySettings { sessions: 100, ..GatewaySettings::default() }).await;
    let token = server.admin();
    let came = join_all((0..1_000).map(|_| server.try_ws(&token))).await;
    let (here, refused): (Vec<_>, Vec<_>) = came.into_iter().partition(Result::is_ok);
    assert_eq!((here.len(), refused.len()), (100, 900));
    let (_, network) = server.rest("GET", "/system/network", None).await;
    assert_eq!(network["active_connections"], 100);
    let waits: Vec<u64> = refused.into_iter().map(|r| retry_after(&r.err().unwrap())).collect();
    assert!(waits.iter().all(|ms| (1_000..5_000).contains(ms)));
    let seconds: HashSet<u64> = waits.iter().map(|ms| ms / 100).collect();
    assert!(seconds.len() > 30, "spread over four seconds, not bunched: {seconds:?}");
    // Socket.IO clients count with them.
    let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", server.addr);
    let refused = tokio_tungstenite::connect_async(url).await.err().unwrap();
    assert!((1_000..5_000).contains(&retry_after(&refused)));
    // Room again as soon as they are gone.
    drop(here);
    until_room(&server, &token).await;
}

async fn until_room(server: &Server, token: &str) {
    for _ in 0..200 {
        if server.try_ws(token).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("there is never room again");
}
