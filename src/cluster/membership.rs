//! Who belongs to the cluster, and changes of that: asked on any node, carried out by the leader, one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use self::addresses::Addresses;
use super::peers::agreed_clock::{AgreedClock, ShownDuration};
use super::peers::compared_clock::Compared;
use super::peers::in_reach;
use super::propose::pending::PendingProposals;
use super::{MembershipChange, MembershipChanged};
use crate::consensus::group::{ChangeError, RaftGroup};
use crate::consensus::identity::NodeIdentity;
use crate::consensus::node::RaftNode;
use crate::consensus::runtime::spawn;
use crate::consensus::transport::{ConnectionClass, LinkError, PeerStats, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::{NodeId, UnixMs};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::model::version;
use crate::proto::change_request::Change as Asked;
use crate::proto::change_response::Result as Answer;
use crate::proto::command::Intent;
use crate::proto::{
    ChangeDone, ChangeRequest, ChangeResponse, Finalize, LeaderTransfer, MembersChanged, NodeAdd, NodeRemove,
    NotLeader, Outcome, Principal, Refused, StatusRequest, StatusResponse,
};

pub(crate) mod addresses;
pub(crate) mod admission;
mod finalize;
pub(crate) mod founding;
mod leader_transfer;

/// A learner that is no further behind than this many entries gets its vote.
pub(super) const CAUGHT_UP: u64 = 1_000;
/// Between two looks at something that takes its time.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long a new node may take to answer at its address.
const GREETING: Duration = Duration::from_secs(3);

/// Why the leader did not do it.
#[derive(Debug, PartialEq)]
pub(crate) enum ChangeRefused {
    NotLeader(Option<NodeId>),
    Refused(Error),
    /// It is so already.
    Already(Error),
}

pub(super) type ChangeResult<T> = Result<T, ChangeRefused>;

pub(super) fn refuse<T>(code: Code, why: impl Into<String>) -> ChangeResult<T> {
    Err(ChangeRefused::Refused(Error::new(code, why)))
}

/// A node's role cannot be changed like that.
pub(super) fn wrong_role<T>(why: impl Into<String>) -> ChangeResult<T> {
    refuse(Code::RoleChange, why)
}

pub(crate) struct MembershipManager {
    pub identity: Arc<NodeIdentity>,
    pub node: Arc<RaftNode>,
    pub transport: Arc<dyn PeerTransport>,
    pub stats: Arc<PeerStats>,
    pub pending_proposals: Arc<PendingProposals>,
    pub clock: Arc<AgreedClock>,
    pub addresses: Arc<Addresses>,
    /// A told address is being looked at.
    pub looking: AtomicBool,
    /// What is being done, in words.
    pub busy: Mutex<Option<String>>,
}

/// Held while a change is made.
pub(super) struct ChangeInProgress<'a>(&'a MembershipManager);

impl Drop for ChangeInProgress<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock() = None;
    }
}

impl MembershipManager {
    /// Has the leader make a change, wherever it is.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        change: MembershipChange,
        by: Principal,
        within: Duration,
    ) -> Result<MembershipChanged, Error> {
        let end = Instant::now() + within;
        // A try whose answer was lost may have been done: then "it is so already" is what was asked for.
        let mut unknown = false;
        let mut hint = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (code, why) = match unknown {
                    true => (Code::Timeout, "the leader did not answer in time: the change may have been made"),
                    false => (Code::NoMaster, "there is no leader to make the change"),
                };
                return Err(Error::new(code, why));
            }
            let request = self.request(&change, &by, left);
            let me = self.identity.node;
            let leader = hint.take().or_else(|| self.node.leader());
            let answer = match leader {
                _ if self.node.leading().is_some() => self.carry_out(request).await,
                Some(leader) if leader != me => match self.send(leader, request, left).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        tracing::debug!(leader = leader.get(), %error, "the leader could not be asked for a change");
                        unknown |= !matches!(error, LinkError::Unreachable(_));
                        ChangeResponse::default()
                    }
                },
                _ => ChangeResponse::default(),
            };
            match answer.result {
                Some(Answer::Done(done)) => {
                    return Ok(MembershipChanged {
                        node: NodeId(done.node),
                        voters: done.voters.into_iter().map(NodeId).collect(),
                        version: version::of_told(done.cluster_version),
                    });
                }
                Some(Answer::Refused(refused))
                    if change == MembershipChange::Finalize && refused.code == Code::InvalidData.number() =>
                {
                    let why = "the leader runs a program of before there were cluster versions: install the new one there \
                               first";
                    return Err(Error::new(Code::RoleChange, why));
                }
                Some(Answer::Refused(refused)) => return Err(error_of(refused)),
                Some(Answer::Already(_)) if unknown => {
                    return Ok(MembershipChanged {
                        node: change.node().unwrap_or(me),
                        voters: self.node.group().voters.into_iter().collect(),
                        version: self.node.replica().state().cluster_version(),
                    });
                }
                Some(Answer::Already(refused)) => return Err(error_of(refused)),
                Some(Answer::NotLeader(not)) => {
                    // What had been begun there may be done.
                    unknown = true;
                    hint = not.leader.map(NodeId).filter(|leader| *leader != me);
                }
                None => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn request(&self, change: &MembershipChange, by: &Principal, within: Duration) -> ChangeRequest {
        let change = match change.clone() {
            MembershipChange::Add { node, raft, gateway } => Asked::Add(NodeAdd { node: node.get(), raft, gateway }),
            MembershipChange::Move { node, raft, gateway } => Asked::Move(NodeAdd { node: node.get(), raft, gateway }),
            MembershipChange::Remove { node } => Asked::Remove(NodeRemove { node: node.get() }),
            MembershipChange::Transfer { to } => Asked::Transfer(LeaderTransfer { to: to.get() }),
            MembershipChange::Finalize => Asked::Finalize(Finalize {}),
        };
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let (by, jti) = (by.sub.clone(), by.jti.clone());
        ChangeRequest { handshake: None, by, jti, within_ms, change: Some(change) }
    }

    async fn send(&self, to: NodeId, request: ChangeRequest, within: Duration) -> Result<ChangeResponse, LinkError> {
        let Some(member) = self.node.members().remove(&to) else {
            return Err(LinkError::Unreachable("it is no member".into()));
        };
        let link = self.transport.link(to, &member, ConnectionClass::Control);
        let request = ChangeRequest { handshake: Some(self.identity.handshake(to)), ..request };
        tokio::time::timeout(within, link.change(request)).await.unwrap_or(Err(LinkError::Timeout))
    }

    /// On the leader: makes the change, to its end even if nobody waits for the answer any more.
    pub(crate) async fn carry_out(self: &Arc<Self>, request: ChangeRequest) -> ChangeResponse {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let this = self.clone();
        spawn(async move {
            let made = this.make(request).await;
            let _ = answer.send(made);
        });
        let result = match answered.await {
            Ok(Ok(node)) => {
                let voters = self.node.group().voters.into_iter().map(NodeId::get).collect();
                let cluster_version = self.node.replica().state().cluster_version();
                Answer::Done(ChangeDone { node: node.get(), voters, cluster_version })
            }
            Ok(Err(ChangeRefused::NotLeader(leader))) => {
                Answer::NotLeader(NotLeader { leader: leader.map(NodeId::get) })
            }
            Ok(Err(ChangeRefused::Refused(error))) => Answer::Refused(refused(error)),
            Ok(Err(ChangeRefused::Already(error))) => Answer::Already(refused(error)),
            Err(_) => Answer::NotLeader(NotLeader { leader: None }),
        };
        ChangeResponse { result: Some(result) }
    }

    async fn make(&self, request: ChangeRequest) -> ChangeResult<NodeId> {
        self.must_lead()?;
        let end = Instant::now() + Duration::from_millis(request.within_ms).min(limits::MEMBERS_CHANGE);
        let by = Principal { sub: request.by, jti: request.jti };
        match request.change {
            Some(Asked::Add(add)) => {
                let _turn = self.turn_soon(format!("node {} is being added", add.node), end).await?;
                self.add(add, &by, end).await
            }
            Some(Asked::Remove(remove)) => {
                let _turn = self.turn_soon(format!("node {} is being removed", remove.node), end).await?;
                self.remove(NodeId(remove.node), &by, end).await
            }
            Some(Asked::Move(to)) => {
                let _turn = self.turn_soon(format!("node {} is being moved", to.node), end).await?;
                self.change_address(to, &by, end).await
            }
            Some(Asked::Transfer(transfer)) => {
                let _turn = self.turn_soon("leadership is being handed over".into(), end).await?;
                let to = self.transfer_target(Some(transfer.to).filter(|to| *to != 0).map(NodeId))?;
                self.must_be_fit_soon(to, end).await?;
                self.give_role(to, "leadership is handed over", &by).await;
                self.transfer_leadership(to, end).await
            }
            Some(Asked::Finalize(Finalize {})) => {
                let _turn = self.turn_soon("the cluster's version is being raised".into(), end).await?;
                self.finalize(&by, end).await
            }
            None => refuse(Code::InvalidData, "a change that this version does not know"),
        }
    }

    pub(super) fn turn(&self, what: String) -> ChangeResult<ChangeInProgress<'_>> {
        let mut busy = self.busy.lock();
        if let Some(other) = &*busy {
            return refuse(Code::Unavailable, format!("one change at a time: {other}"));
        }
        *busy = Some(what);
        Ok(ChangeInProgress(self))
    }

    /// The same for an operator's change: what this node does by itself is over soon.
    async fn turn_soon(&self, what: String, end: Instant) -> ChangeResult<ChangeInProgress<'_>> {
        loop {
            match self.turn(what.clone()) {
                Err(_) if self.looking.load(Ordering::SeqCst) && Instant::now() < end => {
                    tokio::time::sleep(PAUSE).await;
                }
                turn => return turn,
            }
        }
    }

    pub(super) fn must_lead(&self) -> ChangeResult<()> {
        match self.node.leading() {
            Some(_) => Ok(()),
            None => Err(ChangeRefused::NotLeader(self.node.leader().filter(|leader| *leader != self.identity.node))),
        }
    }

    async fn add(&self, add: NodeAdd, by: &Principal, end: Instant) -> ChangeResult<NodeId> {
        let id = NodeId(add.node);
        let member = MemberAddress { raft: add.raft, gateway: add.gateway };
        let (epoch, removed) = {
            let state = self.node.replica().state();
            (state.meta().epoch, state.meta().removed_nodes.contains(&id.get()))
        };
        if removed {
            return wrong_role(format!(
                "node {id} was removed from this cluster: an id is never used again, take a new one"
            ));
        }
        self.record_own(end).await?;
        let group = self.node.group();
        may_add(&group, id, &member)?;
        let mut voters: Vec<NodeId> = group.voters.iter().copied().collect();
        voters.push(id);
        self.must_have_quorum(&voters, Some(id))?;
        let theirs = self.greet(id, &member, end.min(Instant::now() + GREETING)).await?;
        if theirs.epoch != 0 && theirs.epoch != epoch {
            return wrong_role(format!(
                "node {id} holds the data of another cluster: start it with an empty data folder"
            ));
        }
        let agreed = self.node.replica().state().cluster_version();
        let knows = version::of_told(theirs.knows);
        if knows < agreed {
            return wrong_role(format!(
                "the program of node {id} knows cluster version {knows}, and the cluster's is {agreed}: install the program \
                 that the other nodes have"
            ));
        }
        let known = group.members.contains_key(&id);
        if !known {
            self.step(end, || self.node.add_learner(id, member.clone())).await?;
        }
        let ready = match self.catch_up(id, &member, end).await {
            Ok(()) => self.must_reach_voters(id, &member, end).await,
            Err(why) => Err(why),
        };
        if let Err(why) = ready {
            if !known && matches!(why, ChangeRefused::Refused(_)) {
                let undone = self.step(Instant::now() + GREETING, || self.node.take_out(id)).await;
                tracing::info!(node = id.get(), ?undone, "the node that could not be added was taken out again");
            }
            return Err(why);
        }
        self.step(end, || self.node.promote(id)).await?;
        self.record(
            by,
            MembersChanged { node: id.get(), raft: member.raft, by: by.sub.clone(), ..MembersChanged::default() },
        )
        .await;
        Ok(id)
    }

    /// Whether a node answers at its address, and is the one that is meant.
    async fn greet(&self, id: NodeId, member: &MemberAddress, end: Instant) -> ChangeResult<StatusResponse> {
        let link = self.transport.link_exactly(id, member, ConnectionClass::Control);
        loop {
            let request = StatusRequest { handshake: Some(self.identity.handshake(id)), ..StatusRequest::default() };
            let (asked_ms, since) = (self.clock.clock().now_ms(), Instant::now());
            let answered = tokio::time::timeout_at(end, link.status(request)).await;
            let why = match answered.unwrap_or(Err(LinkError::Timeout)) {
                Ok(status) => {
                    self.identity.learn(&status);
                    let theirs = Compared::new(id, UnixMs(status.clock_ms), asked_ms, since.elapsed());
                    if status.clock_ms != 0 && theirs.is_far() {
                        let way = if theirs.ahead_ms > 0 { "ahead of" } else { "behind" };
                        let apart = ShownDuration(theirs.ahead_ms.unsigned_abs());
                        return wrong_role(format!(
                            "the clock of node {id} is {apart} {way} the leader's: set it right first"
                        ));
                    }
                    return Ok(status);
                }
                Err(LinkError::Refused(why)) => return wrong_role(format!("node {id} at {}: {why}", member.raft)),
                Err(why) => why,
            };
            if Instant::now() + PAUSE * 5 >= end {
                let why = format!("node {id} cannot be reached at {}: {why}", member.raft);
                return refuse(Code::PeerUnreachable, why);
            }
            tokio::time::sleep(PAUSE * 5).await;
        }
    }

    /// Waits until a learner has what the leader has, but for a bounded rest.
    async fn catch_up(&self, id: NodeId, member: &MemberAddress, end: Instant) -> ChangeResult<()> {
        loop {
            self.must_lead()?;
            let behind = self.node.behind(id);
            if behind.is_some_and(|entries| entries <= CAUGHT_UP) {
                return Ok(());
            }
            if Instant::now() < end {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let state = match behind {
                Some(entries) => format!("it is {entries} entries behind"),
                // Perhaps it can say why it takes nothing.
                None => match self.greet(id, member, end + GREETING).await {
                    Ok(status) if !status.waiting.is_empty() => status.waiting,
                    Ok(_) => "it has taken nothing yet".into(),
                    Err(why) => return Err(why),
                },
            };
            return refuse(Code::Timeout, format!("node {id} did not catch up in time: {state}; it was not added"));
        }
    }

    async fn remove(&self, id: NodeId, by: &Principal, end: Instant) -> ChangeResult<NodeId> {
        let group = self.node.group();
        if !group.members.contains_key(&id) {
            if self.node.replica().state().meta().removed_nodes.contains(&id.get()) {
                return Err(ChangeRefused::Already(Error::new(
                    Code::RoleChange,
                    format!("node {id} was removed before"),
                )));
            }
            return refuse(Code::InvalidData, format!("node {id} is not a node of this cluster"));
        }
        if group.voters.contains(&id) {
            let left: Vec<NodeId> = group.voters.iter().copied().filter(|voter| *voter != id).collect();
            if left.is_empty() {
                return wrong_role(format!("node {id} is the last voter: without it there is no cluster"));
            }
            self.must_have_quorum(&left, None)?;
        }
        if id == self.identity.node {
            // Whoever leads then takes this one out.
            let to = self.transfer_target_soon(end).await?;
            self.give_role(to, "its node is removed", by).await;
            self.transfer_leadership(to, end).await?;
            return Err(ChangeRefused::NotLeader(Some(to)));
        }
        self.step(end, || self.node.take_out(id)).await?;
        self.record(
            by,
            MembersChanged { node: id.get(), removed: true, by: by.sub.clone(), ..MembersChanged::default() },
        )
        .await;
        Ok(id)
    }

    /// Most of `voters` must be within reach, or what follows would wait for nobody knows how long.
    fn must_have_quorum(&self, voters: &[NodeId], joining: Option<NodeId>) -> ChangeResult<()> {
        let there = |voter: &&NodeId| Some(**voter) == joining || self.reaches(**voter);
        let away: Vec<String> = voters.iter().filter(|v| !there(v)).map(NodeId::to_string).collect();
        let (all, reached) = (voters.len(), voters.len() - away.len());
        if reached * 2 > all {
            return Ok(());
        }
        let away = away.join(", ");
        wrong_role(format!(
            "the quorum would be lost: of the {all} voters that there would be only {reached} can be reached \
             (not node {away}): bring back or remove what is lost first"
        ))
    }

    pub(super) fn reaches(&self, node: NodeId) -> bool {
        node == self.identity.node || in_reach(&self.stats, self.node.timing(), node)
    }

    /// One step of a change, tried again while the one before is being committed.
    pub(super) async fn step<F>(&self, end: Instant, step: impl Fn() -> F) -> ChangeResult<()>
    where
        F: Future<Output = Result<(), ChangeError>>,
    {
        loop {
            match tokio::time::timeout_at(end, step()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(ChangeError::NotLeader(leader))) => {
                    return Err(ChangeRefused::NotLeader(leader.filter(|leader| *leader != self.identity.node)));
                }
                Ok(Err(ChangeError::Refused(why))) => return wrong_role(why),
                Ok(Err(ChangeError::InProgress)) if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                Ok(Err(ChangeError::InProgress)) | Err(_) => {
                    let why = "not confirmed by a quorum in time: the change may have been made";
                    return refuse(Code::Timeout, why);
                }
            }
        }
    }

    /// For the audit log, and so that the id is never used again.
    pub(super) async fn record(&self, by: &Principal, changed: MembersChanged) {
        if let Err(error) = self.propose(by, Intent::MembersChanged(changed)).await {
            tracing::error!(%error, "a change of the members could not be recorded");
        }
    }

    pub(super) async fn propose(&self, by: &Principal, intent: Intent) -> Result<Outcome, Error> {
        let answered = self.pending_proposals.push(Some(by.clone()), intent, self.clock.stamp()?)?;
        answered.await.unwrap_or_else(|_| Err(Error::new(Code::Unavailable, "the node is shutting down")))
    }
}

fn may_add(group: &RaftGroup, id: NodeId, member: &MemberAddress) -> ChangeResult<()> {
    if let Some(there) = group.members.get(&id)
        && there != member
    {
        let why = format!("node {id} is a member already, at {} and {}", there.raft, there.gateway);
        return wrong_role(why);
    }
    if group.voters.contains(&id) {
        return Err(ChangeRefused::Already(Error::new(Code::RoleChange, format!("node {id} is a voter already"))));
    }
    let same = |there: &MemberAddress| there.raft == member.raft || there.gateway == member.gateway;
    if let Some((other, _)) = group.members.iter().find(|(other, there)| **other != id && same(there)) {
        return wrong_role(format!("node {other} has one of these addresses"));
    }
    if group.members.len() >= limits::NODES {
        return wrong_role(format!("a cluster has at most {} nodes", limits::NODES));
    }
    Ok(())
}

fn refused(error: Error) -> Refused {
    Refused { code: error.code.number(), message: error.message, ..Refused::default() }
}

fn error_of(refused: Refused) -> Error {
    Error::new(Code::of(refused.code).unwrap_or(Code::Internal), refused.message)
}

/// Ends what a leader that is gone has left in the middle. Called now and then on every node.
pub(crate) async fn settle(node: &RaftNode) {
    if node.leading().is_some() && node.group().joint {
        let settled = tokio::time::timeout(node.timing().election_max * 4, node.settle()).await;
        tracing::info!(?settled, "a change of the members had been left in the middle");
    }
}
