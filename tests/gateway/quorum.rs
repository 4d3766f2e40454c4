//! A node that has lost the others: what it says of the network, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::clock::SharedClock;
use tillsync::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo, PeerState};
use tillsync::consensus::replica::Replica;
use tillsync::gateway::GatewaySettings;
use tillsync::ids::NodeId;
use tillsync::model::error::{Code, Error};
use tillsync::proto::command::Intent;
use tillsync::proto::{Outcome, Principal};
use tillsync::storage::BoxFuture;
use tillsync::testkit::local_cluster::LocalCluster;
use tokio::sync::watch;

use crate::harness::{Over, Server};

/// A cluster of three of which `reached` others can be reached.
struct Cut {
    inner: Arc<LocalCluster>,
    reached: watch::Receiver<u64>,
    /// Why the node serves nothing.
    objection: watch::Receiver<Option<String>>,
    /// Entries that this node lacks.
    lag: watch::Receiver<u64>,
    /// Why the node takes no part yet.
    waiting: Option<String>,
}

impl Cut {
    fn of(
        inner: Arc<LocalCluster>,
        reached: &watch::Sender<u64>,
        objection: &watch::Sender<Option<String>>,
        lag: &watch::Sender<u64>,
    ) -> Self {
        let (reached, objection, lag) = (reached.subscribe(), objection.subscribe(), lag.subscribe());
        Self { inner, reached, objection, lag, waiting: None }
    }

    fn quorum(&self) -> Result<(), Error> {
        match *self.reached.borrow() {
            0 => Err(Error::new(Code::NoMaster, "there is no leader")),
            _ => Ok(()),
        }
    }
}

impl Cluster for Cut {
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
        let (quorum, inner) = (self.quorum(), self.inner.clone());
        Box::pin(async move {
            quorum?;
            inner.propose(intent).await
        })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        let quorum = self.quorum();
        Box::pin(async move { quorum })
    }

    fn status(&self) -> ClusterStatus {
        let reached = *self.reached.borrow();
        let (silent, latency) = (Duration::from_secs(1), Duration::from_millis(3));
        let peer = |node: NodeId| match node.get() - 2 < reached {
            true => PeerState {
                node,
                reachable: true,
                silent_for: Some(silent),
                latency: Some(latency),
                ..PeerState::default()
            },
            false => PeerState { node, ..PeerState::default() },
        };
        ClusterStatus {
            quorum: reached > 0,
            peers: vec![peer(NodeId(2)), peer(NodeId(3))],
            voters: [1, 2, 3].map(NodeId).to_vec(),
            ..self.inner.status()
        }
    }

    fn waiting(&self) -> Option<String> {
        self.waiting.clone()
    }

    fn objection(&self) -> Option<String> {
        self.objection.borrow().clone()
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let lag = Some(*self.lag.borrow());
        self.inner.nodes().into_iter().map(|node| NodeInfo { lag, ..node }).collect()
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

async fn server() -> (Server, watch::Sender<u64>) {
    let (server, reached, _) = server_that_may_object().await;
    (server, reached)
}

async fn server_that_may_object() -> (Server, watch::Sender<u64>, watch::Sender<Option<String>>) {
    let (reached, objection) = (watch::Sender::new(2), watch::Sender::new(None));
    let lag = watch::Sender::new(0);
    let cut = |inner| Cut::of(inner, &reached, &objection, &lag);
    let server = Server::over(GatewaySettings::default(), |inner| Arc::new(cut(inner))).await;
    server.rest("POST", "/device/register", Some(json!({"device_id": "d"}))).await;
    server.rest("POST", "/data/t/1", Some(json!({"device_id": "d", "new_data": {"a": 1}}))).await;
    (server, reached, objection)
}

async fn network(server: &Server) -> Value {
    let (status, network) = server.rest("GET", "/system/network", None).await;
    assert_eq!(status, 200);
    network
}

#[tokio::test]
async fn the_network_is_connected_partitioned_or_disconnected() {
    let (server, reached) = server().await;
    for (others, status, unreachable) in
        [(2, "connected", json!([])), (1, "partitioned", json!([3])), (0, "disconnected", json!([2, 3]))]
    {
        reached.send_replace(others);
        let network = network(&server).await;
        assert_eq!((&network["network_status"], &network["unreachable"]), (&json!(status), &unreachable));
        assert_eq!(network["quorum"], others > 0);
        if others > 0 {
            assert_eq!((&network["network_latency"], &network["peers"][0]["latency_ms"]), (&json!(3.0), &json!(3.0)));
            assert_eq!(network["peers"][0]["last_heard"], network["last_heartbeat"]);
        }
    }
}

#[tokio::test]
async fn without_a_quorum_it_writes_nothing_and_says_that_what_it_reads_is_old() {
    let (server, reached) = server().await;
    let paths = [
        "/data/t/1",
        "/device/roles",
        "/device/roles/d",
        "/sync/state/d",
        "/sync/changes",
        "/sync/conflicts",
        "/sync/audit-logs",
        "/sync/master-election-logs",
    ];
    for path in paths {
        let (status, body) = server.rest("GET", path, None).await;
        assert_eq!((status, body.get("consistency")), (200, None), "{path}");
    }
    reached.send_replace(0);
    let write = json!({"device_id": "d", "new_data": {"a": 2}});
    let (status, body) = server.rest("POST", "/data/t/1", Some(write)).await;
    assert_eq!((status, &body["error_code"]), (503, &json!("2005")));
    for path in paths {
        assert_eq!(server.rest("GET", path, None).await.1["error_code"], "2005", "{path}");
        let (status, body) = server.rest("GET", &format!("{path}?consistency=stale"), None).await;
        assert_eq!((status, &body["consistency"]), (200, &json!("stale")), "{path}: {body}");
        let (status, body) = server.rest("GET", &format!("{path}?consistency=x"), None).await;
        assert_eq!((status, &body["field"]), (400, &json!("consistency")), "{path}: {body}");
    }
    let (_, record) = server.rest("GET", "/data/t/1?consistency=stale", None).await;
    assert_eq!(record["data"], json!({"a": 1}));
}

/// Nothing else would tell a device that its node is cut off: its connection is as good as before.
#[tokio::test]
async fn after_lost_ms_without_a_quorum_sessions_are_told_to_go_elsewhere_and_closed() {
    let lost_after = Duration::from_secs(2);
    let (reached, objection) = (watch::Sender::new(2), watch::Sender::new(None));
    let lag = watch::Sender::new(0);
    let cut = |inner| Cut::of(inner, &reached, &objection, &lag);
    let settings = GatewaySettings { lost_after, ping_every: lost_after / 4, ..GatewaySettings::default() };
    let server = Server::over(settings, |inner| Arc::new(cut(inner))).await;
    for over in [Over::WebSocket, Over::SocketIo] {
        let mut session = server.session(over).await;
        session.online("till-1").await;
        let since = tokio::time::Instant::now();
        reached.send_replace(0);
        let why = session.wait("error").await;
        assert!(
            since.elapsed() >= lost_after / 2,
            "a quorum that is gone for a moment is none of the device's business"
        );
        assert_eq!((&why["error_code"], &why["retry_after_ms"]), (&json!("1001"), &json!(1_000)), "{why}");
        assert!(why.to_string().contains("without a quorum") && why.to_string().contains("another node"), "{why}");
        session.closed().await;
        reached.send_replace(2);
        // It is let in again, and stays.
        let mut session = server.session(over).await;
        session.online("till-1").await;
        session.update("till-1", "t", 1, json!({"n": 1})).await;
    }
}

#[tokio::test]
async fn a_node_is_ready_with_a_quorum_and_when_it_has_caught_up() {
    let (reached, objection, lag) = (watch::Sender::new(2), watch::Sender::new(None), watch::Sender::new(0));
    let server =
        Server::over(GatewaySettings::default(), |inner| Arc::new(Cut::of(inner, &reached, &objection, &lag))).await;
    for (others, behind, why) in
        [(2, 0, None), (0, 0, Some("no quorum")), (1, 0, None), (2, 1_000_000, Some("catching up")), (2, 2, None)]
    {
        reached.send_replace(others);
        lag.send_replace(behind);
        let (status, body) = server.rest("GET", "/readyz", None).await;
        let reason = body["reason"].as_str();
        match why {
            None => assert_eq!((status, reason), (200, None)),
            Some(why) => assert!(status == 503 && reason.is_some_and(|reason| reason.contains(why)), "{body}"),
        }
        assert_eq!(server.rest("GET", "/healthz", None).await.0, 200, "it is there all the same");
    }
    // It may know a leader from before.
    let waiting = Some("1 of 3 voters have told".to_owned());
    let settings = GatewaySettings::default();
    let waits = |inner| Cut { waiting: waiting.clone(), ..Cut::of(inner, &reached, &objection, &lag) };
    let server = Server::over(settings, |inner| Arc::new(waits(inner))).await;
    let (status, body) = server.rest("GET", "/readyz", None).await;
    assert!(status == 503 && body["reason"].as_str().unwrap().contains("1 of 3 voters have told"), "{body}");
}

#[tokio::test]
async fn sessions_of_a_node_whose_clock_is_wrong_are_told_to_go_elsewhere_and_closed() {
    let lost_after = Duration::from_millis(500);
    let (reached, objection) = (watch::Sender::new(2), watch::Sender::new(None));
    let lag = watch::Sender::new(0);
    let cut = |inner| Cut::of(inner, &reached, &objection, &lag);
    let settings = GatewaySettings { lost_after, ping_every: lost_after / 4, ..GatewaySettings::default() };
    let server = Server::over(settings, |inner| Arc::new(cut(inner))).await;
    for over in [Over::WebSocket, Over::SocketIo] {
        let mut session = server.session(over).await;
        session.online("till-1").await;
        objection.send_replace(Some("this node's clock is 6 s behind the clocks of the other nodes (2, 3)".into()));
        let why = session.wait("error").await;
        // The session may find it first, when it looks at its token.
        assert!(["1001", "5003"].contains(&why["error_code"].as_str().unwrap()), "{why}");
        assert_eq!(why["retry_after_ms"], 1_000, "{why}");
        assert!(why.to_string().contains("clock is 6 s behind"), "{why}");
        session.closed().await;
        objection.send_replace(None);
        let mut session = server.session(over).await;
        session.online("till-1").await;
        session.update("till-1", "t", 1, json!({"n": 1})).await;
    }
}

/// By a wrong clock every good token has ended. A client that was told so would throw its token away.
#[tokio::test]
async fn a_node_whose_clock_is_wrong_serves_nothing_and_says_why() {
    let (server, _reached, objection) = server_that_may_object().await;
    let mut session = server.ws(&server.admin()).await;
    objection.send_replace(Some("this node's clock is 31 days ahead of the clocks of the other nodes (2, 3)".into()));
    let (status, body) = server.rest("GET", "/readyz", None).await;
    assert_eq!((status, &body["status"]), (503, &json!("not ready")));
    assert!(body["reason"].as_str().unwrap().contains("31 days ahead"), "{body}");
    for token in [server.admin(), "nonsense".into()] {
        let (status, body) = server.rest_as(&token, "GET", "/device/roles", None).await;
        assert_eq!((status, &body["error_code"]), (503, &json!("5003")), "{body}");
        assert!(body.to_string().contains("31 days ahead"), "{body}");
    }
    assert!(server.try_ws(&server.admin()).await.is_err());
    objection.send_replace(None);
    assert_eq!(server.rest("GET", "/readyz", None).await.0, 200);
    assert_eq!(server.rest("GET", "/device/roles", None).await.0, 200);
    session.send("heartbeat", json!({"device_id": "d"})).await;
}
