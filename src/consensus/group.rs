//! Who is a member of the Raft group, and changes of that: learners first, then voters, by joint consensus.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};

use super::node::RaftNode;
use super::types::{MemberAddress, TypeConfig};
use crate::ids::NodeId;

/// The members as this node knows them.
#[derive(Clone, Debug, Default)]
pub struct RaftGroup {
    pub members: BTreeMap<NodeId, MemberAddress>,
    pub voters: BTreeSet<NodeId>,
    /// A change was begun and not ended: the old and the new voters decide together.
    pub joint: bool,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// This node does not lead, or leads no more: what was begun may have been done.
    NotLeader(Option<NodeId>),
    /// The one before is not committed yet, or another one came in between.
    InProgress,
    Refused(String),
}

type MembershipWrite<T> = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

fn done<T>(changed: MembershipWrite<T>) -> Result<(), ChangeError> {
    match changed {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(error)) => Err(match error {
            ClientWriteError::ForwardToLeader(forward) | ClientWriteError::LogEntryDiscarded(forward) => {
                ChangeError::NotLeader(forward.leader_id)
            }
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
            )
            // A change has two steps; a leader that finds another's change half done takes the second, too.
            | ClientWriteError::PreconditionFailed(_) => ChangeError::InProgress,
            error => ChangeError::Refused(error.to_string()),
        }),
        Err(RaftError::Fatal(_)) => Err(ChangeError::NotLeader(None)),
    }
}

impl RaftNode {
    pub fn group(&self) -> RaftGroup {
        let membership = self.raft().server_metrics().borrow_watched().membership_config.clone();
        RaftGroup {
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: membership.voter_ids().collect(),
            joint: membership.membership().get_joint_config().len() > 1,
        }
    }

    /// Where a member is, as of the newest change of the members if that is settled.
    pub fn settled_address(&self, node: NodeId) -> Option<MemberAddress> {
        let metrics = self.raft().metrics();
        let now = metrics.borrow_watched();
        let (membership, applied) = (&now.membership_config, &now.last_applied);
        let settled = *membership.log_id() <= *applied;
        membership.nodes().find(|(id, _)| settled && **id == node).map(|(_, member)| member.clone())
    }

    /// On the leader: how many entries a member is behind, if it has ever answered.
    pub fn behind(&self, member: NodeId) -> Option<u64> {
        let metrics = self.raft().metrics();
        let now = metrics.borrow_watched();
        let matched = now.replication.as_ref()?.get(&member)?.as_ref()?.index;
        Some(now.last_log_index.unwrap_or(0).saturating_sub(matched))
    }

    /// Sends the log to a node from now on; it has no vote.
    pub async fn add_learner(&self, node: NodeId, member: MemberAddress) -> Result<(), ChangeError> {
        done(self.raft().add_learner(node, member, false).await)
    }

    /// Gives a learner its vote.
    pub async fn promote(&self, node: NodeId) -> Result<(), ChangeError> {
        done(self.raft().change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([node])), true).await)
    }

    /// Gives a member other addresses.
    pub async fn set_address(&self, node: NodeId, member: MemberAddress) -> Result<(), ChangeError> {
        done(self.raft().change_membership(ChangeMembers::SetNodes(BTreeMap::from([(node, member)])), true).await)
    }

    /// Takes a member out, voter or learner.
    pub async fn take_out(&self, node: NodeId) -> Result<(), ChangeError> {
        let (nodes, group) = (BTreeSet::from([node]), self.group());
        let change = match (group.voters.contains(&node), group.members.contains_key(&node)) {
            (true, _) => ChangeMembers::RemoveVoters(nodes),
            (false, true) => ChangeMembers::RemoveNodes(nodes),
            (false, false) => return Ok(()),
        };
        done(self.raft().change_membership(change, false).await)
    }

    /// Ends a change that another leader left in the middle.
    pub async fn settle(&self) -> Result<(), ChangeError> {
        if !self.group().joint {
            return Ok(());
        }
        done(self.raft().change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await)
    }
}
