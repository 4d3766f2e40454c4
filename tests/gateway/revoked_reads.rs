//! A node may hear that a token was taken back only with what a read waits for.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tillsync::clock::{Clock, SharedClock, SystemClock};
use tillsync::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo};
use tillsync::consensus::replica::Replica;
use tillsync::gateway::GatewaySettings;
use tillsync::ids::NodeId;
use tillsync::model::error::Error;
use tillsync::proto::command::Intent;
use tillsync::proto::{DeviceRevoke, Outcome, Principal};
use tillsync::storage::BoxFuture;
use tillsync::testkit::local_cluster::LocalCluster;
use tillsync::token::Class;

use crate::harness::Server;

/// With the next read comes what was committed elsewhere.
struct Behind {
    inner: Arc<LocalCluster>,
    committed: Arc<Mutex<Option<Intent>>>,
}

impl Cluster for Behind {
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
        self.inner.propose(intent)
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        let (comes, inner) = (self.committed.lock().take(), self.inner.clone());
        Box::pin(async move {
            if let Some(intent) = comes {
                inner.propose(intent).await?;
            }
            inner.read_barrier().await
        })
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
async fn a_read_that_brings_the_revocation_of_its_own_token_is_not_answered() {
    let committed: Arc<Mutex<Option<Intent>>> = Arc::default();
    let comes = committed.clone();
    let server = Server::over(GatewaySettings::default(), |inner| Arc::new(Behind { inner, committed: comes })).await;
    server.ws(&server.admin()).await.online("till").await;
    let write = json!({"device_id": "till", "operation": "insert", "new_data": {"v": "secret"}});
    assert_eq!(server.rest("POST", "/data/stock/1", Some(write)).await.0, 200);
    let revoke = || Intent::DeviceRevoke(DeviceRevoke { device_id: "till".into(), by: "admin".into() });
    let token = || {
        let gate = server.cluster.replica().state().gate("till").map_or(0, |gate| gate.not_before);
        let issued = SystemClock.now_ms().get() / 1_000;
        let issued = issued.max(gate + 1);
        server.keys.issue_at("till", Class::SalesAssistant, None, issued, issued + 3_600).unwrap().0
    };
    for path in ["/data/stock/1", "/device/roles", "/sync/changes", "/sync/conflicts", "/access"] {
        let token = token();
        *committed.lock() = Some(revoke());
        let (status, body) = server.rest_as(&token, "GET", path, None).await;
        assert_eq!((status, &body["error_code"]), (401, &json!("3001")), "{path}: {body}");
    }
    for (asks, answer) in [
        (("data_request", json!({"device_id": "till", "table_name": "stock", "record_id": 1})), "data_response"),
        (("queue_status", json!({"device_id": "till"})), "queue_status_response"),
        (("sync_request", json!({"device_id": "till", "sync_type": "full"})), "sync_response"),
    ] {
        let mut ws = server.ws(&token()).await;
        ws.online("till").await;
        *committed.lock() = Some(revoke());
        ws.send(asks.0, asks.1).await;
        while let Some((event, data)) = ws.next().await {
            assert_ne!(event, answer, "{data}");
        }
        assert!(committed.lock().is_none(), "{}: nothing was read", asks.0);
    }
}
