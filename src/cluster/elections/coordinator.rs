//! Carries out what [`crate::model::background_tasks`] decides: the node's own device, lost nodes, elections,
//! compaction.
//!
//! It sleeps until the state, the group or the reach of a peer has news, or something is due.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterStatus, SharedCluster};
use crate::ids::{NodeId, RaftTerm, UnixMs};
use crate::model::background_tasks::{self, Retention};
use crate::model::election::decide::{Action, LeaderView, Limits, NodeView, TransferAttempt};
use crate::proto::command::Intent;
use crate::storage::room::RoomState;

/// How often it is looked whether changes may be dropped: writing alone is no news.
const COMPACT_EVERY: Duration = Duration::from_secs(1);
/// Before the same is proposed again when nothing came of it.
const AGAIN: Duration = Duration::from_millis(50);
/// Between two looks for a quorum, whose return is no news.
const QUORUM: Duration = Duration::from_millis(50);

/// How the coordinator behaves.
#[derive(Clone, Debug)]
pub struct CoordinatorSettings {
    /// The id of this node's own device.
    pub node_device: String,
    pub limits: Limits,
    /// How long a transfer of leadership may take before that try has failed.
    pub transfer: Duration,
    pub retention: Retention,
}

impl CoordinatorSettings {
    pub fn of(node: NodeId) -> Self {
        Self {
            node_device: format!("node-{node}"),
            limits: Limits::default(),
            transfer: Duration::from_millis(600),
            retention: Retention::default(),
        }
    }
}

/// Runs until `stop`. Every node runs one; only the leader's has the leader's background tasks.
pub async fn run(cluster: SharedCluster, settings: CoordinatorSettings, stop: CancellationToken) {
    let coordinator = Coordinator { cluster, settings };
    tokio::select! {
        () = stop.cancelled() => {}
        () = coordinator.run() => {}
    }
}

struct Coordinator {
    cluster: SharedCluster,
    settings: CoordinatorSettings,
}

/// One time of leading.
struct CoordinatorTerm {
    term: RaftTerm,
    since: Instant,
    clock: StateClock,
    tried: Option<TransferAttempt>,
    /// What was proposed last, and on which state: the same again is not news.
    last: (u64, Vec<Action>),
}

/// The clock of the state goes on by itself: a wall clock that is behind it must not stop time-outs.
struct StateClock {
    at: Instant,
    ms: UnixMs,
    /// How often the state's time was brought back: this clock then starts anew.
    corrections: usize,
}

impl StateClock {
    fn now(&mut self, least_ms: UnixMs, corrections: usize) -> UnixMs {
        let now = Instant::now();
        if std::mem::replace(&mut self.corrections, corrections) != corrections {
            self.ms = least_ms;
        }
        self.ms = self.ms.plus_ms((now - self.at).as_millis() as u64).max(least_ms);
        self.at = now;
        self.ms
    }
}

impl Coordinator {
    async fn run(&self) {
        self.boot().await;
        loop {
            let (news, mut coordinator_epoch) =
                (self.cluster.changed(), self.cluster.replica().watch_coordinator_epoch());
            coordinator_epoch.borrow_and_update();
            if let Some(term) = self.cluster.status().leading {
                self.lead(term).await;
                continue;
            }
            let online = self.own_device();
            let waits = online.is_some();
            if let Some(intent) = online {
                self.propose([intent]).await;
            }
            tokio::select! {
                () = news => {}
                _ = coordinator_epoch.changed() => {}
                () = tokio::time::sleep(AGAIN), if waits => {}
            }
        }
    }

    /// Devices that were at home here before this boot are offline until they return.
    async fn boot(&self) {
        self.cluster.admitted().await;
        while let Err(error) = self.cluster.propose(Intent::NodeBooted(self.cluster.booted())).await {
            tracing::debug!(%error, "the cluster does not take this node's boot yet");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn own_device(&self) -> Option<Intent> {
        let me = self.cluster.node_id();
        background_tasks::of_node(&self.cluster.replica().state(), me, &self.settings.node_device)
    }

    /// Queued in this order, then waited for.
    async fn propose(&self, intents: impl IntoIterator<Item = Intent>) {
        let answers: Vec<_> = intents.into_iter().map(|intent| self.cluster.propose(intent)).collect();
        for answer in join_all(answers).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "a duty could not be done yet");
            }
        }
    }

    /// The leader's background tasks, until leadership ends.
    async fn lead(&self, term: RaftTerm) {
        let now = Instant::now();
        let clock = StateClock { at: now, ms: self.cluster.clock().now_ms(), corrections: 0 };
        let mut lead = CoordinatorTerm { term, since: now, clock, tried: None, last: (0, Vec::new()) };
        loop {
            let (news, mut coordinator_epoch) =
                (self.cluster.changed(), self.cluster.replica().watch_coordinator_epoch());
            coordinator_epoch.borrow_and_update();
            let status = self.cluster.status();
            if status.leading != Some(term) {
                return;
            }
            // A new leader has just been voted for by one.
            let new = (lead.since.elapsed().as_millis() as u64) < self.settings.limits.silent_ms;
            let pause = if status.quorum || new { self.act(&mut lead, &status).await } else { Some(QUORUM) };
            let Some(pause) = pause else { continue };
            tokio::select! {
                () = news => {}
                _ = coordinator_epoch.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what is to be done now. How long there is nothing more to do; `None`: look again.
    async fn act(&self, lead: &mut CoordinatorTerm, status: &ClusterStatus) -> Option<Duration> {
        let (coordinator_epoch, actions, mut pause) = self.decide(lead, status);
        let mut intents: Vec<Intent> = self.own_device().into_iter().collect();
        let mut transfer = None;
        for action in &actions {
            match action {
                Action::Propose(intent) => intents.push(intent.clone()),
                Action::Transfer { to, transfer_attempt } => transfer = Some((*to, *transfer_attempt)),
                Action::Wait { until_ms } => {
                    pause = pause.min(Duration::from_millis(until_ms.ms_since(lead.clock.ms).max(1)));
                }
            }
        }
        if !intents.is_empty() {
            let last = std::mem::replace(&mut lead.last, (coordinator_epoch, actions));
            if last == lead.last {
                // Nothing came of it the last time.
                tokio::time::sleep(AGAIN).await;
            }
            // Leadership may end meanwhile: then the next leader decides.
            tokio::select! {
                () = self.propose(intents) => {}
                () = self.lost(lead.term) => {}
            }
            return None;
        }
        let Some((to, transfer_attempt)) = transfer else { return Some(pause) };
        lead.tried = Some(transfer_attempt);
        tracing::info!(to = to.get(), ?transfer_attempt, "leadership is handed over");
        if let Err(error) = self.cluster.transfer(to, self.settings.transfer).await {
            tracing::warn!(to = to.get(), %error, "leadership could not be handed over");
        }
        None
    }

    fn decide(&self, lead: &mut CoordinatorTerm, status: &ClusterStatus) -> (u64, Vec<Action>, Duration) {
        let state = self.cluster.replica().state();
        let leading_ms = lead.since.elapsed().as_millis() as u64;
        let nodes: BTreeMap<NodeId, NodeView> = status
            .peers
            .iter()
            .map(|peer| {
                // Never heard: as silent as can be.
                let silent_ms = peer.silent_for.map_or(u64::MAX, |d| d.as_millis() as u64);
                let voter = status.voters.contains(&peer.node);
                (peer.node, NodeView { voter, lag: peer.lag, silent_ms, refused: peer.gone })
            })
            .collect();
        let view = LeaderView {
            state: &state,
            me: self.cluster.node_id(),
            term: lead.term,
            now_ms: lead
                .clock
                .now(self.cluster.clock().now_ms().max(state.meta().now()), state.meta().time_corrections.len()),
            leading_ms,
            nodes: &nodes,
            tried: lead.tried,
            limits: self.settings.limits,
        };
        let retention = match self.cluster.room() {
            RoomState::Plenty => self.settings.retention,
            RoomState::Low | RoomState::Full => self.settings.retention.when_low(),
        };
        let actions = background_tasks::of_leader(&view, retention);
        let lost = background_tasks::next_loss(&view).map(|ms| Duration::from_millis(ms.max(1)));
        (state.coordinator_epoch(), actions, lost.unwrap_or(COMPACT_EVERY).min(COMPACT_EVERY))
    }

    async fn lost(&self, term: RaftTerm) {
        loop {
            let news = self.cluster.changed();
            if self.cluster.status().leading != Some(term) {
                return;
            }
            news.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::local_cluster::LocalCluster;
    use crate::testkit::manual_clock::ManualClock;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_first_node_registers_its_device_and_finds_a_master() {
        let (cluster, _effects) = LocalCluster::start(ManualClock::at(1)).await.unwrap();
        let cluster: SharedCluster = Arc::<LocalCluster>::clone(&cluster);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(cluster.clone(), CoordinatorSettings::of(NodeId(1)), stop.clone()));
        let mut applied = cluster.replica().watch_applied();
        while cluster.replica().state().meta().master != "node-1" {
            applied.changed().await.unwrap();
        }
        stop.cancel();
        running.await.unwrap();
    }
}
