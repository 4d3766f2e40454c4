//! The cluster as this node sees it: its member of the Raft group, its proposals and its reads.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::lifecycle::Lifecycle;
use super::membership::addresses::{Addresses, reached, to_proto};
use super::membership::founding::Founding;
use super::membership::{ChangeRefused, MembershipManager};
use super::peers::agreed_clock::AgreedClock;
use super::peers::compared_clock::ClockPeers;
use super::peers::compared_digests::{ComparedDigests, DigestVerdict};
use super::peers::in_reach;
use super::peers::shared_room::{NodeRoom, SharedRoom, room_said};
use super::propose::inbound::Inbox;
use super::propose::pending::{PendingProposals, ProposalReceiver};
use super::read_index::ReadRounds;
use super::{Cluster, ClusterStatus, CountSessions, MembershipChange, MembershipChanged, NodeInfo, PeerState};
use crate::clock::SharedClock;
use crate::consensus::identity::{NodeIdentity, NodeStart};
use crate::consensus::members::Members;
use crate::consensus::node::{RaftNode, StartError};
use crate::consensus::replica::Replica;
use crate::consensus::segment::SegmentReader;
use crate::consensus::service::ClusterCalls;
use crate::consensus::transport::{PeerStats, PeerTransport, Streaming};
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId, UnixMs};
use crate::limits;
use crate::metrics;
use crate::model::error::{Code, Error};
use crate::model::version;
use crate::proto::command::Intent;
use crate::proto::{
    BackupStatus, ChangeRequest, ChangeResponse, NodeAdd, NodeBooted, Outcome, PeerHeard, Principal, ProposeRequest,
    ProposeResponse, ReadIndexResponse, StatusRequest, StatusResponse,
};
use crate::storage::room::RoomState;
use crate::storage::{BoxFuture, SnapshotReader, SnapshotStore};
use crate::supervised::TaskFailures;

/// For how long an answer of a peer counts: it is asked every second.
const REACHED: Duration = Duration::from_secs(5);
/// How long one who asks for what is surely the newest may wait; less than it waits ([`super::membership::admission`]).
const NEWEST: Duration = Duration::from_secs(1);

pub struct RaftCluster {
    pub(super) identity: Arc<NodeIdentity>,
    pub(super) clock: Arc<AgreedClock>,
    pub(super) digests: Arc<ComparedDigests>,
    pub(super) node: Arc<RaftNode>,
    pub(super) pending_proposals: Arc<PendingProposals>,
    pub(super) inbound_proposals: Arc<Inbox>,
    pub(super) reader: Arc<ReadRounds>,
    pub(super) stats: Arc<PeerStats>,
    pub(super) members: Arc<Members>,
    /// Nodes that the configuration names: asked while this node's log names none, or none of them leads.
    pub(super) configured: Vec<(NodeId, MemberAddress)>,
    pub(super) membership: Arc<MembershipManager>,
    /// What each peer said of itself when it was asked last.
    pub(super) said: Mutex<BTreeMap<NodeId, StatusResponse>>,
    pub(super) sessions: OnceLock<CountSessions>,
    pub(super) lifecycle: Lifecycle,
    pub(super) founding: Founding,
    pub(super) addresses: Arc<Addresses>,
    /// It was said that this node reaches too few of the voters.
    pub(super) cut_off: AtomicBool,
    pub(super) transport: Arc<dyn PeerTransport>,
    pub(super) room: SharedRoom,
    pub(super) failures: TaskFailures,
    pub(super) snapshots: Arc<dyn SnapshotStore>,
    /// Of the backups that the settings ask for, if they do.
    pub(super) backups: Mutex<Option<BackupStatus>>,
}

impl RaftCluster {
    /// The member of the Raft group.
    pub fn node(&self) -> &Arc<RaftNode> {
        &self.node
    }

    /// Moves leadership to `to`, if this node leads, and waits until it has arrived there.
    pub async fn transfer_leader(&self, to: NodeId, within: Duration) -> Result<(), StartError> {
        self.node.transfer_leader(to, within).await
    }

    /// This node must not serve any more.
    pub(super) fn end(&self, why: Error) {
        self.lifecycle.end(why);
    }

    /// Where the tasks of this node report their failures.
    pub fn failures(&self) -> &TaskFailures {
        &self.failures
    }

    /// Resolves with the reason when this node must not serve any more: it was removed, has lost
    /// its data (5004), holds other data than most (5001), or one of its tasks failed (5002).
    pub async fn told_to_end(&self) -> Error {
        self.lifecycle.ended().await
    }

    /// The time for a command, if this node may give any to the cluster.
    fn stamp(&self) -> Result<UnixMs, Error> {
        self.digests.may_write()?;
        self.must_have_its_epoch()?;
        self.clock.stamp()
    }

    fn push(&self, principal: Option<Principal>, intent: Intent) -> Result<ProposalReceiver, Error> {
        metrics::PROPOSED.add(1);
        let now_ms = self.stamp()?;
        if version::needs_agreement(&intent) {
            self.replica().state().must_be_agreed(&intent)?;
        }
        self.pending_proposals.push(principal, intent, now_ms)
    }

    /// Cursors are of an epoch: nothing is served from a state that is of an earlier one.
    fn must_have_its_epoch(&self) -> Result<(), Error> {
        if self.identity.has_its_epoch() {
            return Ok(());
        }
        Err(Error::new(Code::Unavailable, "this node has not come to the epoch of its cluster yet"))
    }

    /// What gives the state its epoch, before anything else is written.
    pub(super) async fn propose_first(&self, intent: Intent) -> Result<Outcome, Error> {
        answered(self.clock.stamp().and_then(|now_ms| self.pending_proposals.push(None, intent, now_ms))).await
    }

    /// After a round of comparisons with the others.
    pub(super) fn judge_digests(&self) -> DigestVerdict {
        let members: Vec<NodeId> = self.node.members().into_keys().collect();
        let voters: Vec<NodeId> = self.node.voters();
        let (me, before) = (self.identity.node, self.digests.verdict());
        let verdict = self.digests.judge(me, &members, &voters);
        if verdict != before {
            match &verdict {
                DigestVerdict::Undecided { .. } | DigestVerdict::Outvoted { .. } => tracing::error!("{verdict}"),
                DigestVerdict::Agrees => tracing::info!("this node holds what most of the nodes hold"),
                DigestVerdict::Open => tracing::warn!("another node holds other data; the rest is asked"),
            }
        }
        verdict
    }

    /// After a round of questions: what the nodes' rooms allow now.
    pub(super) fn judge_room(&self) {
        let (group, me) = (self.node.group(), self.identity.node);
        let said = self.said.lock();
        let room = |node: &NodeId| NodeRoom {
            node: *node,
            voter: group.voters.contains(node),
            reachable: *node == me || in_reach(&self.stats, self.node.timing(), *node),
            free: match *node == me {
                true => self.room.own(),
                false => said.get(node).and_then(|said| said.disk.as_ref()).map(room_said),
            },
        };
        let rooms: Vec<NodeRoom> = group.members.keys().map(room).collect();
        drop(said);
        self.room.judge(&rooms);
    }

    /// Most of the voters have answered this node lately: else it could not lead, and stands in no election.
    pub(super) fn reaches_most(&self) -> bool {
        let voters = self.node.voters();
        let lately = |voter: &NodeId| {
            let answered = self.stats.of(*voter).and_then(|contact| contact.answered);
            *voter == self.identity.node || answered.is_some_and(|at| at.elapsed() < REACHED)
        };
        voters.iter().filter(|voter| lately(voter)).count() * 2 > voters.len()
    }

    pub(super) fn said(&self, peer: NodeId, status: StatusResponse) {
        self.said.lock().insert(peer, status);
    }

    /// Connections of devices that live here.
    fn sessions(&self) -> u64 {
        self.sessions.get().map_or(0, |count| count())
    }

    /// What this node says of itself.
    fn own_status(&self, fresh: bool) -> StatusResponse {
        let status = Cluster::status(self);
        let sessions = self.sessions();
        let waiting = self.lifecycle.why_it_waits().or_else(|| self.clock.objection()).unwrap_or_default();
        let (boots, epoch) = (self.identity.boots(), self.identity.epoch());
        let pristine = status.last_log_index == LogIndex(0);
        let state = self.replica().state();
        StatusResponse {
            node: self.identity.node.get(),
            leader: status.leader.map(NodeId::get),
            term: status.term.get(),
            last_log_index: status.last_log_index.get(),
            applied_index: state.applied().index,
            digest: state.digest(),
            master: state.meta().master.clone(),
            master_term: state.meta().master_term().get(),
            head_seq: state.meta().head_seq,
            sessions,
            version: env!("CARGO_PKG_VERSION").into(),
            voters: status.voters.iter().map(|voter| voter.get()).collect(),
            members: if fresh { self.members_told() } else { Vec::new() },
            epoch,
            booted: state.meta().booted_nodes.clone(),
            removed: state.meta().removed_nodes.clone(),
            pristine,
            fresh,
            waiting,
            clock_ms: self.clock.clock().now_ms().get(),
            boots,
            founders: if pristine { self.founding.own.clone() } else { Vec::new() },
            digests: Vec::new(),
            reached: Vec::new(),
            reach_tried: false,
            cannot_lead: !self.node.is_standing(),
            heard: self.heard(),
            disk: self.room.own_status(),
            backup: self.backups.lock().clone(),
            shared_entries: Vec::new(),
            knows: self.identity.build().told(),
            cluster_version: state.cluster_version(),
        }
    }

    /// Where the members are.
    fn members_told(&self) -> Vec<NodeAdd> {
        self.node.group().members.iter().map(|(node, address)| to_proto(*node, address)).collect()
    }

    /// When each other member was heard last.
    fn heard(&self) -> Vec<PeerHeard> {
        let others = self.node.members().into_keys().filter(|node| *node != self.identity.node);
        let ago_ms = |at: Instant| u64::try_from((Instant::now() - at).as_millis()).unwrap_or(u64::MAX);
        others
            .filter_map(|node| Some(PeerHeard { node: node.get(), ago_ms: ago_ms(self.stats.of(node)?.at) }))
            .collect()
    }

    /// Whether what this node says is surely the newest. Who asks must not wait long for it, also where there is no quorum:
    /// one that lost its disk would take this node for one that is away.
    async fn is_newest(&self) -> bool {
        // Who has nothing cannot have anything newer.
        if self.node.view().last_log_index == LogIndex(0) || !Cluster::status(self).quorum {
            return false;
        }
        let newest = tokio::time::timeout(NEWEST, self.reader.barrier()).await;
        matches!(newest, Ok(Ok(()))) && self.identity.has_its_epoch()
    }

    pub(super) fn peers(&self, leads: bool) -> Vec<PeerState> {
        let lags = if leads { self.node.lags() } else { BTreeMap::new() };
        let others = self.node.members().into_keys().filter(|node| *node != self.identity.node);
        others
            .map(|node| match (self.stats.of(node), lags.get(&node).copied()) {
                (None, lag) => PeerState { node, lag, ..PeerState::default() },
                (Some(heard), lag) => {
                    let silent_for = Instant::now() - heard.at;
                    let reachable = in_reach(&self.stats, self.node.timing(), node);
                    PeerState {
                        node,
                        reachable,
                        silent_for: Some(silent_for),
                        latency: heard.round_trip,
                        gone: heard.gone,
                        lag,
                    }
                }
            })
            .collect()
    }
}

impl Cluster for RaftCluster {
    fn node_id(&self) -> NodeId {
        self.identity.node
    }

    fn booted(&self) -> NodeBooted {
        let NodeStart { boot, instance, .. } = self.identity.start();
        NodeBooted { boot, instance, knows: self.identity.build().told() }
    }

    fn admitted(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.identity.confirmation())
    }

    fn clock(&self) -> &SharedClock {
        self.clock.clock()
    }

    fn replica(&self) -> &Arc<Replica> {
        self.node.replica()
    }

    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        answered(self.push(None, intent))
    }

    fn propose_for(&self, principal: Principal, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        answered(self.push(Some(principal), intent))
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        let reader = self.reader.clone();
        // Whether a token has ended is a question of time, too.
        let clock = self.must_have_its_epoch().and_then(|()| self.clock.stamp());
        Box::pin(async move {
            clock?;
            reader.barrier().await
        })
    }

    fn status(&self) -> ClusterStatus {
        let lease = self.node.timing().election_max;
        let view = self.node.view();
        let quorum = match view.leader {
            _ if view.leads => view.voters.len() == 1 || view.quorum_acked.is_some_and(|ago| ago < lease),
            Some(leader) => self.stats.of(leader).is_some_and(|heard| Instant::now() - heard.at < lease * 2),
            None => false,
        };
        let leading = self.node.leading();
        ClusterStatus {
            leader: view.leader,
            leading,
            term: view.term,
            last_log_index: view.last_log_index,
            quorum,
            peers: self.peers(leading.is_some()),
            voters: view.voters,
            digests: self.digests.verdict(),
        }
    }

    fn objection(&self) -> Option<String> {
        self.clock.objection()
    }

    fn waiting(&self) -> Option<String> {
        // One that takes part may still have something to say that its settings are wrong.
        self.lifecycle.why_it_waits().filter(|_| !self.identity.is_confirmed())
    }

    fn room(&self) -> RoomState {
        self.room.allowed()
    }

    fn room_reason(&self) -> Option<String> {
        self.room.why()
    }

    fn changed(&self) -> BoxFuture<'static, ()> {
        let (mut place, mut turns) = (self.node.place(), self.stats.watch_turns());
        place.current();
        Box::pin(async move {
            tokio::select! {
                biased;
                () = place.changed_within(Duration::MAX) => {}
                _ = turns.changed() => {}
            }
        })
    }

    fn transfer(&self, to: NodeId, within: Duration) -> BoxFuture<'static, Result<(), Error>> {
        let (node, membership) = (self.node.clone(), self.membership.clone());
        Box::pin(async move {
            if let Ok(Err(ChangeRefused::Refused(why))) = tokio::time::timeout(within, membership.must_be_fit(to)).await
            {
                return Err(why);
            }
            let moved = node.transfer_leader(to, within).await;
            moved.map_err(|error| Error::new(Code::PeerUnreachable, error.to_string()))
        })
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let (group, leader, me) = (self.node.group(), self.node.leader(), self.identity.node);
        let own = self.own_status(false);
        let peers = self.peers(false);
        let mut said = self.said.lock();
        said.retain(|node, _| group.members.contains_key(node));
        let newest = said.values().map(|s| s.last_log_index).fold(own.last_log_index, u64::max);
        let voters = group.voters.iter().copied().collect();
        let clocks = ClockPeers { me, voters, leader };
        let info = |(node, member): (&NodeId, &crate::consensus::types::MemberAddress)| {
            let peer = peers.iter().find(|peer| peer.node == *node);
            let said = if *node == me { Some(own.clone()) } else { said.get(node).cloned() };
            NodeInfo {
                node: *node,
                voter: group.voters.contains(node),
                leads: leader == Some(*node),
                raft: member.raft.clone(),
                gateway: member.gateway.clone(),
                reachable: *node == me || peer.is_some_and(|peer| peer.reachable),
                silent_for: if *node == me { Some(Duration::ZERO) } else { peer.and_then(|peer| peer.silent_for) },
                latency: if *node == me { Some(Duration::ZERO) } else { peer.and_then(|peer| peer.latency) },
                differs_from: self.digests.of(*node).1,
                clock_ahead_ms: self.clock.ahead_of_most(&clocks, *node),
                lag: said.as_ref().map(|said| newest.saturating_sub(said.applied_index)),
                said,
            }
        };
        group.members.iter().map(info).collect()
    }

    fn change(
        &self,
        change: MembershipChange,
        by: Principal,
        within: Duration,
    ) -> BoxFuture<'_, Result<MembershipChanged, Error>> {
        Box::pin(self.membership.ask(change, by, within))
    }

    fn backup(&self) -> BoxFuture<'_, Result<SnapshotReader, Error>> {
        Box::pin(async move {
            let snapshot = async { SnapshotReader::open(&self.snapshots.build().await?).await };
            // Where the disk has no room for one, it waits.
            match tokio::time::timeout(limits::BACKUP_BUILT, snapshot).await {
                Ok(Ok(reader)) => Ok(reader),
                Ok(Err(error)) => {
                    tracing::error!(%error, "no backup could be built");
                    Err(Error::new(Code::Storage, format!("no backup could be built: {error}")))
                }
                Err(_) => {
                    Err(Error::new(Code::Unavailable, "no backup could be built in time: look at the room on the disk"))
                }
            }
        })
    }

    fn backup_after(&self, after: LogIndex) -> BoxFuture<'_, Result<SegmentReader, Error>> {
        Box::pin(async move {
            match self.node.segment_after(after).await {
                Ok(Some(reader)) => Ok(reader),
                Ok(None) => {
                    let why = format!("this node's log does not have entry {after}: take a whole backup");
                    Err(Error::new(Code::InvalidData, why))
                }
                Err(error) => {
                    tracing::error!(%error, "the log could not be read for a backup");
                    Err(Error::new(Code::Storage, format!("the log could not be read: {error}")))
                }
            }
        })
    }

    fn tell_backups(&self, status: BackupStatus) {
        *self.backups.lock() = Some(status);
    }

    fn count_sessions(&self, count: CountSessions) {
        let _ = self.sessions.set(count);
    }
}

/// Whatever becomes of the command, the queue of pending proposals answers it, at its deadline at the latest.
fn answered(queued: Result<ProposalReceiver, Error>) -> BoxFuture<'static, Result<Outcome, Error>> {
    Box::pin(async move {
        queued?.await.unwrap_or_else(|_| Err(Error::new(Code::Unavailable, "the node is shutting down")))
    })
}

impl ClusterCalls for RaftCluster {
    fn propose(&self, from: NodeId, requests: Streaming<ProposeRequest>) -> Streaming<ProposeResponse> {
        self.inbound_proposals.accept(from, requests)
    }

    fn read_index(&self) -> BoxFuture<'_, ReadIndexResponse> {
        Box::pin(self.reader.answer())
    }

    fn status(&self, request: StatusRequest, member: bool) -> BoxFuture<'_, StatusResponse> {
        Box::pin(async move {
            let surely = request.fresh && self.is_newest().await;
            let own = self.own_status(surely);
            if !member {
                return for_strangers(own);
            }
            if let Some(asker) = &request.handshake {
                self.addresses.hear(NodeId(asker.from), &request);
            }
            let calls = !request.reach.is_empty();
            let reached = reached(&self.identity, &self.transport, &request.reach).await;
            if let Some(asker) =
                request.handshake.filter(|asker| !request.digests.is_empty() && self.identity.is_witness(asker))
            {
                let ring = self.replica().digests();
                self.digests.hear(NodeId(asker.from), &request.digests, |index| ring.at(index));
            }
            let shared_entries = match request.applied_index {
                Some(index) => self.node.applied_entries(LogIndex(index)).await,
                None => Vec::new(),
            };
            let digests = request.digests_up_to.map(|index| self.replica().digests().up_to(LogIndex(index)));
            StatusResponse {
                digests: digests.unwrap_or_default(),
                reached: reached.into_iter().map(NodeId::get).collect(),
                reach_tried: calls,
                shared_entries,
                ..own
            }
        })
    }

    fn change(&self, request: ChangeRequest) -> BoxFuture<'_, ChangeResponse> {
        Box::pin(self.membership.carry_out(request))
    }

    fn founders(&self, from: NodeId, founders: Vec<NodeAdd>) {
        self.founding.hear(from, founders);
    }
}

/// What a node that asks to join has to know, and one that was removed: nothing of what the shop does.
fn for_strangers(own: StatusResponse) -> StatusResponse {
    StatusResponse {
        digest: String::new(),
        master: String::new(),
        head_seq: 0,
        sessions: 0,
        heard: Vec::new(),
        disk: None,
        backup: None,
        ..own
    }
}
