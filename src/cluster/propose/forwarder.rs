//! Brings this node's commands to the leader, wherever it is, in the order of their numbers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batcher::{Batcher, LeadEnd};
use super::pending::{PendingProposals, RouteAttempt};
use crate::consensus::identity::NodeIdentity;
use crate::consensus::leadership::LeadershipWatch;
use crate::consensus::node::RaftNode;
use crate::consensus::transport::{ConnectionClass, LinkError, PeerStats, PeerTransport, Streaming};
use crate::ids::{NodeId, RaftTerm};
use crate::proto::proposal_answer::Result as Answer;
use crate::proto::{Handshake, Outcome, Proposal, ProposalAnswer, ProposeRequest, ProposeResponse};

/// Commands and bytes in one message to the leader.
const MESSAGE_COMMANDS: usize = 256;
const MESSAGE_BYTES: usize = 256 << 10;
/// How soon a node that is about to lead is tried again.
const SOON: Duration = Duration::from_millis(2);
const OPEN_STREAM: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// This node leads, in this term.
    Here(RaftTerm),
    There(NodeId),
    Nowhere,
}

/// What a turned-away try says about where to go next.
#[derive(Clone, Copy)]
struct Hint {
    leader: NodeId,
    until: Instant,
}

pub(crate) struct ProposalForwarder {
    pub node: Arc<RaftNode>,
    pub identity: Arc<NodeIdentity>,
    pub transport: Arc<dyn PeerTransport>,
    pub stats: Arc<PeerStats>,
    pub pending_proposals: Arc<PendingProposals>,
    pub batcher: Batcher,
    pub wake: Arc<Notify>,
    pub stop: CancellationToken,
}

impl ProposalForwarder {
    /// Runs until the node stops.
    pub(crate) async fn run(self) {
        let mut hint: Option<Hint> = None;
        // A term in which this node has given leadership away: it takes no more proposals in it.
        let mut given_away = None;
        let mut backoff = BACKOFF_MIN;
        let mut place = self.node.place();
        while !self.stop.is_cancelled() {
            hint = hint.filter(|hint| Instant::now() < hint.until);
            let pause = match self.route(&mut place, hint, given_away) {
                Route::Here(term) => {
                    hint = None;
                    match self.batcher.lead(term).await {
                        LeadEnd::Transfer { to } => {
                            given_away = Some(term);
                            hint = Some(self.hint(to));
                            SOON
                        }
                        LeadEnd::Lost { leader } => {
                            hint = leader.filter(|leader| *leader != self.identity.node).map(|to| self.hint(to));
                            SOON
                        }
                        LeadEnd::Lease => BACKOFF_MIN,
                    }
                }
                Route::There(leader) => match self.forward(leader).await {
                    Forwarded::Elsewhere(to) => {
                        hint = to.filter(|to| *to != self.identity.node).map(|to| self.hint(to)).or(hint);
                        backoff = BACKOFF_MIN;
                        SOON
                    }
                    Forwarded::RouteChanged => Duration::ZERO,
                    Forwarded::Broken => {
                        hint = None;
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                        backoff
                    }
                },
                Route::Nowhere => BACKOFF_MAX,
            };
            self.pause(&mut place, pause).await;
        }
        self.pending_proposals.close();
    }

    fn hint(&self, leader: NodeId) -> Hint {
        Hint { leader, until: Instant::now() + self.node.timing().election_max }
    }

    fn route(&self, place: &mut LeadershipWatch, hint: Option<Hint>, given_away: Option<RaftTerm>) -> Route {
        let now = place.current();
        if let Some(term) = now.leading
            && now.leading != given_away
            && self.batcher.clock.may_lead()
        {
            return Route::Here(term);
        }
        match hint.map(|hint| hint.leader).or(now.leader) {
            Some(leader) if leader != self.identity.node => Route::There(leader),
            _ => Route::Nowhere,
        }
    }

    /// Waits, but not past news about who leads.
    async fn pause(&self, place: &mut LeadershipWatch, duration: Duration) {
        if duration.is_zero() {
            return;
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = place.changed_within(duration) => {}
        }
    }

    /// Sends commands to `leader` over one stream until it is no longer the one.
    async fn forward(&self, leader: NodeId) -> Forwarded {
        let Some(member) = self.node.members().remove(&leader) else { return Forwarded::Broken };
        let attempt = self.pending_proposals.restart_from_oldest();
        let mut place = self.node.place();
        let before = place.current().leader;
        let link = self.transport.link(leader, &member, ConnectionClass::Data);
        let requests = self.requests(attempt, self.identity.handshake(leader));
        let opened = tokio::time::timeout(OPEN_STREAM, link.propose(requests)).await;
        let mut answers = match opened.unwrap_or(Err(LinkError::Timeout)) {
            Ok(answers) => answers,
            Err(error) => {
                if matches!(error, LinkError::Unreachable(_)) {
                    self.stats.gone(leader);
                }
                tracing::debug!(leader = leader.get(), %error, "the leader cannot be reached");
                return Forwarded::Broken;
            }
        };
        loop {
            let response = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Forwarded::RouteChanged,
                changed = place.changed() => {
                    let now = place.now();
                    let other = now.leader != before && now.leader.is_some_and(|l| l != leader);
                    if !changed || now.leading.is_some() || other {
                        return Forwarded::RouteChanged;
                    }
                    continue;
                }
                response = answers.next() => response,
            };
            match response {
                Some(Ok(response)) => {
                    self.stats.heard(leader);
                    if let Some(elsewhere) = self.take(attempt, response) {
                        return elsewhere;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(leader = leader.get(), %error, "the stream to the leader broke");
                    return Forwarded::Broken;
                }
                None => return Forwarded::Broken,
            }
        }
    }

    /// The messages to the leader: the handshake at once, then what is ready as it comes.
    fn requests(&self, attempt: RouteAttempt, handshake: Handshake) -> Streaming<ProposeRequest> {
        let start = (self.pending_proposals.clone(), self.wake.clone(), Some(handshake));
        stream::unfold(start, move |(pending_proposals, wake, mut handshake)| async move {
            if let Some(handshake) = handshake.take() {
                let greeting = ProposeRequest { handshake: Some(handshake), proposals: Vec::new() };
                return Some((greeting, (pending_proposals, wake, None)));
            }
            loop {
                let Some(taken) = pending_proposals.next_to_send(attempt, MESSAGE_COMMANDS, MESSAGE_BYTES) else {
                    // The wake-up was for whoever came after this stream.
                    wake.notify_one();
                    return None;
                };
                if !taken.is_empty() {
                    let proposals = taken.into_iter().map(|(id, command)| Proposal { id, command }).collect();
                    return Some((ProposeRequest { handshake: None, proposals }, (pending_proposals, wake, None)));
                }
                wake.notified().await;
            }
        })
        .boxed()
    }

    /// Hands out a message's answers. Tells where to go if it says so.
    fn take(&self, attempt: RouteAttempt, response: ProposeResponse) -> Option<Forwarded> {
        let mut elsewhere = None;
        let mut applied = Vec::with_capacity(response.answers.len());
        let mut turned_away = Vec::new();
        for ProposalAnswer { id, result } in response.answers {
            match result {
                Some(Answer::Outcome(bytes)) => match Outcome::decode(bytes) {
                    Ok(outcome) => applied.push((id, outcome)),
                    Err(error) => {
                        tracing::error!(%error, "the leader sent an outcome that is none");
                        elsewhere = elsewhere.or(Some(Forwarded::Broken));
                    }
                },
                Some(Answer::NotLeader(not)) => {
                    turned_away.push(id);
                    elsewhere = Some(Forwarded::Elsewhere(not.leader.map(NodeId)));
                }
                Some(Answer::Unknown(_)) | None => elsewhere = elsewhere.or(Some(Forwarded::Elsewhere(None))),
            }
        }
        self.pending_proposals.applied(applied);
        self.pending_proposals.turned_away(attempt, turned_away);
        elsewhere
    }
}

enum Forwarded {
    /// The node does not lead; it may know who does.
    Elsewhere(Option<NodeId>),
    RouteChanged,
    Broken,
}
