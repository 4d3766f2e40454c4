//! Who may speak to this node: the members of the cluster, and nobody else.
//!
//! A certificate of the cluster's CA says which node calls, not that the node is a member: one that was removed keeps
//! its certificate, and one may have been made for a machine that was never added. So every call but the question for
//! the status (which a node that asks to join needs) is held against the membership.
//!
//! Membership here is the effective one: the newest in this node's log, committed or not, as Raft itself counts votes.
//! It can be older than the cluster's. A node that was away while others were added must still take entries from a
//! leader that it has never heard of, or it could never learn who that is. So there is a second way in: a member that
//! this node does know, or a node that its configuration names while its log names nobody, says in its status who has
//! a vote. Each node asks for that every second anyway ([`Members::vouch`]). A stranger is named by nobody.
//!
//! A node whose removal was applied here stays out whatever anybody says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::node::RaftNode;
use super::state_machine::Raft;
use super::transport::LinkError;
use super::types::Vote;
use crate::consensus::replica::Replica;
use crate::ids::NodeId;
use crate::{limits, metrics};

/// How long the word of a member holds for a node that this one does not know.
const VOUCHED_FOR: Duration = Duration::from_secs(60);
/// Between two log lines about calls that were turned away.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a caller wants, as far as it takes different rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerCall {
    /// To propose, to read, to lead: any member. A learner never leads, but this node may not know yet that it got
    /// its vote.
    Member,
    /// To be elected: a voter.
    Vote,
}

#[derive(Default)]
struct NamedVoters {
    /// Nodes that a member has named as voters lately.
    vouched: BTreeMap<NodeId, Instant>,
    /// When a refusal was logged last, and how many were not since.
    told: Option<Instant>,
    untold: u64,
}

/// Decides who may speak.
pub(crate) struct Members {
    raft: Raft,
    replica: Arc<Replica>,
    stands: Arc<AtomicBool>,
    /// Who the configuration names; counts while the log names nobody.
    configured: BTreeSet<NodeId>,
    known: Mutex<NamedVoters>,
}

impl Members {
    pub(crate) fn new(node: &RaftNode, configured: BTreeSet<NodeId>) -> Arc<Self> {
        Arc::new(Self {
            raft: node.raft().clone(),
            replica: node.replica().clone(),
            stands: node.stands(),
            configured,
            known: Mutex::default(),
        })
    }

    /// A member, or the operator's configuration, says that these nodes have a vote.
    pub(crate) fn vouch(&self, voters: impl IntoIterator<Item = NodeId>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        known.vouched.retain(|_, at| now - *at < VOUCHED_FOR);
        for voter in voters.into_iter().take(limits::NODES) {
            if known.vouched.len() < limits::NODES_VOUCHED || known.vouched.contains_key(&voter) {
                known.vouched.insert(voter, now);
            }
        }
    }

    /// Whether `node` may do what it wants.
    pub(crate) fn admits(&self, node: NodeId, wants: PeerCall) -> bool {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let known = match wants {
            PeerCall::Member => membership.membership().get_node(&node).is_some(),
            PeerCall::Vote => membership.voter_ids().any(|voter| voter == node),
        };
        if known {
            return true;
        }
        let nobody = membership.membership().nodes().next().is_none();
        let named = (nobody && self.configured.contains(&node))
            || self.known.lock().vouched.get(&node).is_some_and(|at| at.elapsed() < VOUCHED_FOR);
        named && !self.replica.state().meta().removed_nodes.contains(&node.get())
    }

    /// The same as an error for the caller, and a line for the operator.
    pub(crate) fn check(&self, node: NodeId, wants: PeerCall) -> Result<(), LinkError> {
        if self.admits(node, wants) {
            return Ok(());
        }
        Err(self.refuse(node, format!("node {node} is not a member of this cluster")))
    }

    /// A vote names its candidate or leader: nobody speaks for another one, and no term is far beyond this node's own.
    /// Terms grow by one an election, so that an honest one never is; a term near the end of its range would end the
    /// cluster.
    pub(crate) fn check_vote(&self, node: NodeId, vote: &Vote) -> Result<(), LinkError> {
        if vote.leader_id.voted_for != node {
            let why = format!("node {node} speaks for node {}", vote.leader_id.voted_for);
            return Err(self.refuse(node, why));
        }
        let own = self.raft.server_metrics().borrow_watched().vote.leader_id.term;
        if vote.leader_id.term > own.saturating_add(limits::TERM_AHEAD) {
            let why = format!("term {} is too far ahead of this node's term {own}", vote.leader_id.term);
            return Err(self.refuse(node, why));
        }
        Ok(())
    }

    /// Leadership is handed to this node. It may not lead while its clock is wrong, nor while it reaches too few.
    pub(crate) fn check_transfer(&self, to: NodeId, me: NodeId) -> Result<(), LinkError> {
        if to == me && !self.stands.load(Ordering::Relaxed) {
            return Err(LinkError::Refused(
                "this node does not lead now: its clock is wrong, or it reaches too few voters".into(),
            ));
        }
        Ok(())
    }

    fn refuse(&self, node: NodeId, why: String) -> LinkError {
        metrics::PEERS_REFUSED.add(1);
        let mut known = self.known.lock();
        if known.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            let untold = std::mem::take(&mut known.untold);
            known.told = Some(Instant::now());
            tracing::warn!(peer = node.get(), why, untold, "a call of another node was turned away");
        } else {
            known.untold += 1;
        }
        LinkError::Refused(why)
    }
}
