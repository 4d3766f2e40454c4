//! What the parts of a run share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tillsync::client::link::ClientTransport;
use tillsync::client::rest::NodeStatus;
use tillsync::token::Class;
use tokio::sync::watch;

use super::cluster::ProcessCluster;
use super::hostile;
use super::http::{HttpClient, Refusal};
use super::workload::Workload;
use crate::clients::WorkloadPhase;
use crate::recorder::Recorder;

pub(super) struct ProcessWorld {
    pub load: Workload,
    pub recorder: Recorder,
    pub cluster: ProcessCluster,
    pub phase: watch::Sender<WorkloadPhase>,
    /// Raised to end every connection of every client.
    pub churn: watch::Sender<u64>,
    /// Devices that have something to do yet.
    pub busy: Mutex<BTreeSet<String>>,
    /// How far each of their sessions that is online was told.
    pub reached: Mutex<BTreeMap<u64, u64>>,
    /// The transport of each device that keeps to one.
    pub transports: BTreeMap<String, ClientTransport>,
    /// Connections that the other devices made.
    pub connections: AtomicU64,
    /// The newest answer of each node, for the progress line.
    pub seen: Mutex<BTreeMap<u64, NodeStatus>>,
    /// The faults that are going on.
    pub going_on: Mutex<BTreeMap<u64, String>>,
    /// All tables that honest devices want to hear of; `None`: whatever there is.
    pub tables: Option<&'static [&'static str]>,
    /// What the devices' tokens are.
    pub class: Class,
    /// Held by a fault that takes a node out of the cluster for a while and changes the members: one at a time.
    pub machine_room: tokio::sync::Mutex<()>,
    /// What could not be done as the scenario has it.
    pub notes: Mutex<Vec<String>>,
}

/// How long a node may take to answer about itself.
const STATUS: Duration = Duration::from_millis(600);

impl ProcessWorld {
    pub(super) fn new(load: Workload, cluster: ProcessCluster, attacked: bool) -> Self {
        Self {
            load,
            recorder: Recorder::new(),
            cluster,
            phase: watch::Sender::new(WorkloadPhase::Load),
            churn: watch::Sender::new(0),
            busy: Mutex::default(),
            reached: Mutex::default(),
            transports: load.devices().collect(),
            connections: AtomicU64::new(0),
            seen: Mutex::default(),
            going_on: Mutex::default(),
            tables: attacked.then_some(&hostile::TABLES),
            // Beside attackers devices have the rights of devices, and their shares.
            class: if attacked { Class::AssistantManager } else { Class::Manager },
            machine_room: tokio::sync::Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// What the progress line says is going on.
    pub(super) fn say_phase(&self, what: &str) {
        self.going_on.lock().insert(u64::MAX, what.to_owned());
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        let what = what.into();
        let mut notes = self.notes.lock();
        if !notes.contains(&what) {
            eprintln!("  note: {what}");
            notes.push(what);
        }
    }

    /// Asks a node as an admin.
    pub(super) async fn ask(
        &self,
        node: u64,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
        within: Duration,
    ) -> Result<Vec<u8>, Refusal> {
        let Some(authority) = self.cluster.gateway(node) else { return Err(Refusal::Lost("no such node".into())) };
        HttpClient { authority: &authority, token: &self.cluster.token, within }.call(method, path, body).await
    }

    pub(super) async fn status(&self, node: u64) -> Option<NodeStatus> {
        let answer = self.ask(node, "GET", "/system/cluster", None, STATUS).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    pub(super) async fn statuses(&self) -> Vec<NodeStatus> {
        join_all(self.cluster.members().into_iter().map(|id| self.status(id))).await.into_iter().flatten().collect()
    }

    /// The node that leads in the newest term.
    pub(super) async fn leader(&self) -> Option<u64> {
        let statuses = self.statuses().await;
        let leads = statuses.iter().filter(|status| status.leader == Some(status.node));
        leads.max_by_key(|status| status.term).map(|status| status.node)
    }

    /// The node at which the master is connected.
    pub(super) async fn master_home(&self) -> Option<u64> {
        let statuses = self.statuses().await;
        let newest = statuses.iter().max_by_key(|status| status.digest_index)?;
        let master = newest.master.as_deref()?;
        let path = format!("/device/roles/{master}?consistency=stale");
        if let Ok(answer) = self.ask(newest.node, "GET", &path, None, STATUS).await
            && let Ok(device) = serde_json::from_slice::<serde_json::Value>(&answer)
            && let Some(home) = device["home"].as_u64().filter(|home| *home > 0)
        {
            return Some(home);
        }
        // A node's own device.
        master.strip_prefix("node-")?.parse().ok()
    }
}
