//! One running openraft: its configuration, its start and end, and what it says about itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::raft::TransferLeaderRequest;
use openraft::{Instant, ReadPolicy, ServerState, SnapshotPolicy};

use super::identity::{NodeIdentity, OwnHistory};
use super::leadership::LeadershipWatch;
use super::log_adapter::{LogAdapter, ReadGate};
use super::network::PeerNetwork;
use super::replica::Replica;
use super::segment::SegmentReader;
use super::state_machine::{Raft, StateMachine};
use super::transport::{PeerStats, PeerTransport};
use super::types::{Callback, CommittedLeaderId, EncodedBatch, LogId, MemberAddress};
use super::write::Written;
use crate::ids::{LogIndex, NodeId, RaftTerm};
use crate::proto::CommittedEntry;
use crate::storage::{Backpressure, BoxFuture, LogStore, SnapshotStore};

/// How fast a lost leader is noticed. `election_max` is the leader's lease as well: the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { heartbeat: ms(50), election_min: ms(150), election_max: ms(300) }
    }
}

/// Flushes that fit into the shortest election timeout: the candidate's own vote, and that of a voter whose disk has one
/// under way and one waiting, each with as much again to spare.
const FLUSHES_OF_ELECTION: u32 = 5;
/// The most that a slow disk makes of `election_min`.
const SLOW_ELECTION_MIN: Duration = Duration::from_secs(3);

impl Timing {
    /// What this comes to on a disk that takes `flush` for each flush. With times that are shorter than a vote takes, every
    /// candidate gives up, and asks in the next term, before it could be elected. Nodes whose times differ agree as well:
    /// no read and no vote counts on another node's.
    #[must_use]
    pub(crate) fn on_disk_of(self, flush: Duration) -> Self {
        let needed = flush.saturating_mul(FLUSHES_OF_ELECTION).min(SLOW_ELECTION_MIN);
        if needed <= self.election_min {
            return self;
        }
        Self { election_min: needed, election_max: self.election_max.max(needed * 2), ..self }
    }
}

/// What a node of the Raft group is made of.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub identity: Arc<NodeIdentity>,
    pub timing: Timing,
    /// A snapshot is built after this many entries.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for followers that were away for a moment.
    pub keep_entries: u64,
}

/// What a node works with.
pub struct NodeParts {
    pub log: Arc<dyn LogStore>,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub pressure: Arc<dyn Backpressure>,
    pub replica: Arc<Replica>,
    pub transport: Arc<dyn PeerTransport>,
    pub stats: Arc<PeerStats>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration: {0}")]
    Config(String),
    #[error("consensus: {0}")]
    Raft(String),
    #[error("storage: {0}")]
    Storage(#[from] std::io::Error),
    #[error("cannot listen on {address}: {error}")]
    Bind { address: String, error: std::io::Error },
}

/// One member of the Raft group.
pub struct RaftNode {
    raft: Raft,
    replica: Arc<Replica>,
    log: LogAdapter,
    gate: Arc<ReadGate>,
    timing: Timing,
    /// Whether this node stands in elections and takes leadership over.
    stands: Arc<AtomicBool>,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn config(options: &NodeOptions) -> Result<openraft::Config, StartError> {
    let timing = options.timing;
    let config = openraft::Config {
        cluster_name: options.identity.cluster.clone(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        // Only a cap: a snapshot takes as long as its bytes; a dead link is noticed by its pings.
        install_snapshot_timeout: 600_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.keep_entries,
        // A follower that is further behind than what is kept gets a snapshot.
        replication_lag_threshold: options.keep_entries.max(options.snapshot_every),
        purge_batch_size: 256,
        max_payload_entries: 1_024,
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        // Entries go to the followers while the leader syncs its own.
        broadcast_submitted_on_append: Some(true),
        enable_pre_vote: Some(true),
        // A restarted leader must be elected again: followers may hold entries of its term that its own disk lost, and it
        // would give their places to others (docs/reliability.md, how a leader restarts).
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(ms(timing.election_max) * 3),
        backoff: "20ms 40ms 80ms ...320ms".into(),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StartError::Config(error.to_string()))
}

/// After a crash the rows may be ahead of the log: a follower applies what a majority has, whether its own disk has it or
/// not. openraft then purges the log up to the rows, and counts on a snapshot that reaches as far.
pub(super) async fn cover_rows(
    log: &dyn LogStore,
    snapshots: &dyn SnapshotStore,
    replica: &Replica,
) -> std::io::Result<()> {
    let bounds = log.bounds();
    let end = bounds.last.or(bounds.purged.map(|(index, _)| index)).unwrap_or_default();
    let applied = replica.applied_index();
    if applied > end && snapshots.current().is_some_and(|snapshot| LogIndex(snapshot.applied.index) < applied) {
        tracing::info!(
            applied = applied.get(),
            end = end.get(),
            "the rows are ahead of the log: building a snapshot of them"
        );
        snapshots.build().await?;
    }
    Ok(())
}

impl RaftNode {
    /// Starts openraft on what the stores hold.
    pub async fn start(options: NodeOptions, parts: NodeParts) -> Result<Self, StartError> {
        let config = Arc::new(config(&options)?);
        let NodeParts { log, snapshots, pressure, replica, transport, stats } = parts;
        cover_rows(&*log, &*snapshots, &replica).await?;
        let log = LogAdapter::new(log);
        let gate = log.gate();
        let machine = StateMachine::new(replica.clone(), snapshots.clone(), pressure);
        let network = PeerNetwork { identity: options.identity.clone(), transport, snapshots, stats };
        let raft = Raft::new(options.identity.node, config, network, log.clone(), machine);
        let raft = raft.await.map_err(|error| StartError::Raft(error.to_string()))?;
        Ok(Self { raft, replica, log, gate, timing: options.timing, stands: Arc::new(AtomicBool::new(true)) })
    }

    /// Its data folder holds nothing: it has never been part of a group, or has lost what it had.
    pub async fn is_pristine(&self) -> Result<bool, StartError> {
        let holds = self.raft.is_initialized().await;
        holds.map(|holds| !holds).map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Makes these members the group, if this node was never part of one. Every founding node calls it with
    /// the same members, which is safe: the entry is the same on all.
    pub async fn found(&self, members: BTreeMap<NodeId, MemberAddress>) -> Result<(), StartError> {
        if members.is_empty() || !self.is_pristine().await? {
            return Ok(());
        }
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another founder was faster.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StartError::Raft(error.to_string())),
        }
    }

    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The newest entries up to `index` that this node has applied, a few, in order: fewer where its log does not go back so
    /// far.
    pub async fn applied_entries(&self, index: LogIndex) -> Vec<CommittedEntry> {
        let index = index.min(self.replica.applied_index());
        self.log.few_up_to(index).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the log could not be read");
            Vec::new()
        })
    }

    /// What this node has applied after the entry at `after`; `None`: its log does not go back so far, or not on so far.
    pub async fn segment_after(&self, after: LogIndex) -> std::io::Result<Option<SegmentReader>> {
        let (epoch, last) = (self.replica.state().meta().epoch, self.replica.applied_index());
        let before = if after <= last { self.log.id_of(after).await? } else { None };
        Ok(before.map(|before| SegmentReader::new(self.log.clone(), epoch, before, last)))
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Resolves when this node may take part in linearizable reads: it has applied what its log held at boot.
    pub async fn wait_read_gate(&self) {
        // The gate sinks when a leader cuts off what was never committed, so look again now and then.
        while self.replica.applied_index() < self.gate.index() {
            let applied = self.replica.wait_applied(self.gate.index());
            let _ = tokio::time::timeout(self.timing.heartbeat, applied).await;
        }
    }

    /// This node's place in the group, as it changes.
    pub fn place(&self) -> LeadershipWatch {
        LeadershipWatch::new(self.raft.server_metrics())
    }

    /// The term in which this node leads, if it does.
    pub fn leading(&self) -> Option<RaftTerm> {
        self.place().now().leading
    }

    /// The leader as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.place().now().leader
    }

    /// Everything that this node knows of the group now.
    pub fn view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        GroupView {
            leads: now.state == ServerState::Leader,
            leader: now.current_leader,
            term: RaftTerm(now.current_term),
            last_log_index: LogIndex(now.last_log_index.unwrap_or(0)),
            voters: now.membership_config.voter_ids().collect(),
            quorum_acked: now.last_quorum_acked.map(|at| at.into_inner().elapsed()),
        }
    }

    /// Writes one encoded `proto::Batch`, if this node leads in `term`; `done` is called once, from the task that
    /// applied it: it must not wait. False: consensus has ended.
    pub async fn write(&self, term: RaftTerm, batch: Bytes, done: impl FnOnce(Written) + Send + 'static) -> bool {
        let responder = Callback::new(move |result| done(Written::of(result)));
        let write = self.raft.write(EncodedBatch(batch)).with_leader(CommittedLeaderId::new(term.get()));
        write.responder(responder).await.is_ok()
    }

    /// The index that must be applied before a read that begins now is answered. Only a leader that a quorum
    /// confirms gives it; else who may lead.
    pub async fn read_index(&self) -> Result<LogIndex, Option<NodeId>> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(LogIndex(linearizer.read_log_id().index())),
            Err(error) => {
                tracing::debug!(%error, "no read index");
                Err(error.forward_to_leader().and_then(|forward| forward.leader_id))
            }
        }
    }

    /// On the leader: how many entries every other member's log is known to be behind.
    pub fn lags(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        let last = now.last_log_index.unwrap_or(0);
        let known = |matched: &Option<LogId>| matched.as_ref().map(|id| last.saturating_sub(id.index));
        now.replication.iter().flatten().filter_map(|(node, matched)| Some((*node, known(matched)?))).collect()
    }

    /// On the leader: the newest committed entry that each voter and learner is known to have on its disk.
    pub fn acknowledged(&self) -> Vec<(NodeId, LogIndex)> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        if now.state != ServerState::Leader {
            return Vec::new();
        }
        // What was acknowledged, but not committed, another leader may have cut off.
        let applied = now.last_applied.as_ref().map_or(0, |id| id.index);
        let held =
            |(node, matched): (&NodeId, &Option<LogId>)| Some((*node, LogIndex(matched.as_ref()?.index.min(applied))));
        now.replication.iter().flatten().filter_map(held).collect()
    }

    pub fn members(&self) -> BTreeMap<NodeId, MemberAddress> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        membership.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    pub fn address_of(&self, node: NodeId) -> Option<MemberAddress> {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        membership.membership().get_node(&node).cloned()
    }

    /// Moves leadership to `to`, if this node leads, and waits until it has arrived there.
    pub async fn transfer_leader(&self, to: NodeId, within: Duration) -> Result<(), StartError> {
        let raft = |error: String| StartError::Raft(error);
        self.raft.trigger().transfer_leader(to).await.map_err(|error| raft(error.to_string()))?;
        let arrived = self.raft.wait(Some(within)).current_leader(to, "leadership transfer").await;
        arrived.map(|_| ()).map_err(|error| raft(error.to_string()))
    }

    pub fn voters(&self) -> Vec<NodeId> {
        self.raft.server_metrics().borrow_watched().membership_config.voter_ids().collect()
    }

    /// Drops the lease that this node has given `leader`, if that is still its leader: it may vote at once.
    pub async fn drop_lease(&self, leader: NodeId) {
        let vote = self.raft.server_metrics().borrow_watched().vote;
        if vote.committed && vote.leader_id.voted_for == leader {
            // What a transfer of leadership does to those that are not meant.
            let request = TransferLeaderRequest::new(vote, leader, None);
            if let Err(error) = self.raft.handle_transfer_leader(request).await {
                tracing::debug!(%error, "the lease could not be dropped");
            }
        }
    }

    /// Whether this node stands in elections, and takes leadership over when it is handed to it.
    pub fn stand(&self, stands: bool) {
        if self.stands.swap(stands, Ordering::Relaxed) != stands {
            self.raft.runtime_config().elect(stands);
        }
    }

    pub fn is_standing(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    pub(super) fn stands(&self) -> Arc<AtomicBool> {
        self.stands.clone()
    }

    /// Starts an election if a majority would vote for this node (a pre-vote).
    pub async fn ask_to_lead(&self) {
        if !self.stands.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(%error, "an election could not be started");
        }
    }

    /// Resolves when consensus has ended by itself, with the reason: the node must stop serving.
    pub async fn failed(&self) -> String {
        // What changes seldom is watched: all of the metrics change with every step of every entry. Consensus lets go of
        // both when it ends, and has said why before.
        let mut place = self.place();
        while place.changed().await {}
        match &self.raft.metrics().borrow_watched().running_state {
            Err(error) => error.to_string(),
            Ok(()) => "consensus ended".into(),
        }
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not end cleanly");
        }
    }
}

impl OwnHistory for RaftNode {
    fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    fn address_of(&self, node: NodeId) -> Option<MemberAddress> {
        Self::address_of(self, node)
    }

    fn acknowledged(&self) -> Vec<(NodeId, LogIndex)> {
        Self::acknowledged(self)
    }

    fn applied_entries(&self, index: LogIndex) -> BoxFuture<'_, Vec<CommittedEntry>> {
        Box::pin(Self::applied_entries(self, index))
    }
}

/// What a node knows of the group.
#[derive(Clone, Debug, Default)]
pub struct GroupView {
    pub leads: bool,
    pub leader: Option<NodeId>,
    pub term: RaftTerm,
    pub last_log_index: LogIndex,
    pub voters: Vec<NodeId>,
    /// On the leader: how long ago a quorum is known to have followed it.
    pub quorum_acked: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_wait_as_long_as_a_slow_disk_needs_for_a_vote() {
        let ms = Duration::from_millis;
        let settings = Timing::default();
        for fast in [0, 2, 10, 30] {
            assert_eq!(settings.on_disk_of(ms(fast)), settings, "{fast} ms");
        }
        let slow = settings.on_disk_of(ms(150));
        assert_eq!((slow.election_min, slow.election_max, slow.heartbeat), (ms(750), ms(1_500), settings.heartbeat));
        let patient = Timing { election_min: ms(400), election_max: ms(5_000), ..settings };
        assert_eq!(patient.on_disk_of(ms(100)), Timing { election_min: ms(500), ..patient });
        for stuck in [ms(600), ms(60_000)] {
            let timing = settings.on_disk_of(stuck);
            assert_eq!((timing.election_min, timing.election_max), (ms(3_000), ms(6_000)));
        }
    }
}
