//! The simulated cluster as its clients meet it.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::Value;
use tillsync::cluster::Cluster;
use tillsync::token::Class;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::ServiceExt;

use super::link::SimLink;
use super::world::{SimWorld, UpNode};
use crate::clients::client::PATIENCE;
use crate::clients::device::habits::{DeviceHabits, SyncHabits, Turns, WriteHabits};
use crate::clients::{DeviceSeen, Request, Testbed, WorkloadPhase};
use crate::recorder::Recorder;

const HABITS: DeviceHabits = DeviceHabits {
    records: 5,
    pause_ms: 25,
    turns: Turns {
        writes: 550,
        inserts: 0,
        reads: 350,
        syncs: 25,
        reconnects: 10,
        claims: 15,
        elections: 5,
        shutdowns: 8,
        deaf: 5,
    },
    // The state of the nodes is looked at: it names the request of every change.
    writes: WriteHabits { inserts: 4, conditional: 30, removed_table: 10, deletes: 12, name_the_request: false },
    syncs: SyncHabits { full: 2, from_the_beginning: 4, before_the_cursor: 0 },
    refused: Duration::from_secs(4),
};

/// The greatest answer.
const MOST: usize = 1 << 20;

impl Testbed for SimWorld {
    type Connection = SimLink;
    type Node = UpNode;

    const PAGES_WAIT: bool = true;
    const SETTLED: Duration = Duration::from_millis(1_500);

    fn large_percent(&self) -> u64 {
        15
    }

    fn habits(&self) -> DeviceHabits {
        HABITS
    }

    fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn phase(&self) -> watch::Receiver<WorkloadPhase> {
        self.phase.subscribe()
    }

    fn churn(&self) -> watch::Receiver<u64> {
        self.churn.subscribe()
    }

    fn nodes(&self) -> Vec<(u64, UpNode)> {
        self.serving().into_iter().collect()
    }

    async fn connect(&self, node: &UpNode, device: &str) -> Option<SimLink> {
        SimLink::open(&node.gateway, device, node.dead.clone())
    }

    async fn connect_with(&self, node: &UpNode, _device: &str, token: &str) -> Option<SimLink> {
        SimLink::open_with(&node.gateway, token, node.dead.clone())
    }

    fn token(&self, device: &str, class: Class) -> Option<String> {
        self.issue(device, class)
    }

    async fn call(&self, node: UpNode, token: &str, request: Request) -> Option<(u16, Value)> {
        let asked = axum::http::Request::builder().method(request.method).uri(&request.path);
        let asked = asked.header(AUTHORIZATION, format!("Bearer {token}")).header(CONTENT_TYPE, "application/json");
        let asked = asked.body(Body::from(request.body.map(|body| body.to_string()).unwrap_or_default())).ok()?;
        let answers = async {
            let Ok(answer) = node.app.oneshot(asked).await;
            let status = answer.status().as_u16();
            let body = to_bytes(answer.into_body(), MOST).await.ok()?;
            Some((status, serde_json::from_slice(&body).unwrap_or_default()))
        };
        tokio::select! {
            biased;
            () = node.dead.cancelled() => None,
            done = timeout(PATIENCE * 2, answers) => done.ok().flatten(),
        }
    }

    // The closing phase of the simulation is long enough for everything, in simulated time.
    fn set_busy(&self, _: &str, _: bool) {}

    fn set_reached(&self, _: u64, _: Option<u64>) {}

    async fn device(&self, node: UpNode, device: String) -> Option<DeviceSeen> {
        timeout(PATIENCE, node.cluster.read_barrier()).await.ok()?.ok()?;
        let state = node.cluster.replica().state();
        let online = state.device(&device).is_some_and(|device| device.is_active);
        let (master, time_ahead) = (state.meta().master.clone(), state.meta().now_ms > node.gateway.now_ms());
        Some(DeviceSeen { online, master, time_ahead })
    }

    async fn last_sync_ms(&self, node: UpNode, device: String) -> Option<u64> {
        timeout(PATIENCE, node.cluster.read_barrier()).await.ok()?.ok()?;
        let state = node.cluster.replica().state();
        state.sync_state(&device).map(|sync| sync.last_sync_ms)
    }
}
