//! Leadership, and with it the master's role, goes to another node: because an operator says so, or because this one
//! leaves.

use std::time::Duration;

use tokio::time::Instant;

use super::{CAUGHT_UP, ChangeRefused, ChangeResult, MembershipManager, PAUSE, refuse, wrong_role};
use crate::ids::NodeId;
use crate::model::election::is_candidate;
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::{Principal, Role, RoleChange};

/// One try to move leadership.
const TRY: Duration = Duration::from_secs(1);
/// How long it is looked for somebody who could lead.
const LOOK: Duration = Duration::from_secs(2);

impl MembershipManager {
    /// Who leads next: the node that is asked for, if it can; else where the master is, or who has most of the log.
    pub(super) fn transfer_target(&self, asked: Option<NodeId>) -> ChangeResult<NodeId> {
        let group = self.node.group();
        match asked {
            Some(to) if to == self.identity.node => {
                Err(ChangeRefused::Already(Error::new(Code::RoleChange, format!("node {to} leads already"))))
            }
            Some(to) if !group.members.contains_key(&to) => {
                refuse(Code::InvalidData, format!("node {to} is not a node of this cluster"))
            }
            Some(to) if !group.voters.contains(&to) => wrong_role(format!("node {to} is a learner: it has no vote")),
            Some(to) if !self.reaches(to) => {
                refuse(Code::PeerUnreachable, format!("node {to} cannot be reached by the leader"))
            }
            Some(to) => Ok(to),
            None => {
                let home = self.node.replica().state().master().map(|master| NodeId(master.home));
                let can = |voter: &NodeId| {
                    *voter != self.identity.node && self.reaches(*voter) && !self.stats.is_unfit(*voter)
                };
                let others = group.voters.iter().copied().filter(can);
                let best = others
                    // A new leader does not know yet how far the others are.
                    .map(|voter| (voter, self.node.behind(voter).unwrap_or(u64::MAX)))
                    .min_by_key(|(voter, behind)| (*behind > CAUGHT_UP, home != Some(*voter), *behind, *voter));
                match best {
                    Some((voter, _)) => Ok(voter),
                    None => wrong_role("no other voter can be reached to take over"),
                }
            }
        }
    }

    /// The same, but somebody has a moment to show up: a new leader has not heard the others yet.
    pub(in crate::cluster) async fn transfer_target_soon(&self, end: Instant) -> ChangeResult<NodeId> {
        let end = end.min(Instant::now() + LOOK);
        loop {
            match self.transfer_target(None) {
                Err(ChangeRefused::Refused(_)) if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                target => return target,
            }
        }
    }

    /// The master is where the leader is: the best device at home on `to` takes the role, if there is one.
    pub(in crate::cluster) async fn give_role(&self, to: NodeId, reason: &str, by: &Principal) {
        let device = {
            let state = self.node.replica().state();
            if state.master().is_none_or(|master| master.home == to.get()) {
                return;
            }
            let there = state.devices().filter(|device| device.home == to.get() && is_candidate(device));
            there.min_by(|a, b| state.ranks(a, b)).map(|device| device.device_id.clone())
        };
        let Some(device_id) = device else { return };
        let (reason, sub) = (reason.into(), by.sub.clone());
        let order = RoleChange { device_id, role: Role::Master.into(), reason, by: sub, ..RoleChange::default() };
        if let Err(error) = self.propose(by, Intent::RoleChange(order)).await {
            tracing::info!(to = to.get(), %error, "the master's role could not be handed over");
        }
    }

    /// Moves leadership, and waits until it has arrived.
    pub(in crate::cluster) async fn transfer_leadership(&self, to: NodeId, end: Instant) -> ChangeResult<NodeId> {
        loop {
            self.must_lead()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return refuse(Code::Timeout, format!("node {to} did not take over in time"));
            }
            match self.node.transfer_leader(to, left.min(TRY)).await {
                Ok(()) => return Ok(to),
                Err(error) => tracing::info!(to = to.get(), %error, "leadership could not be handed over yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A leader that gives leadership away leads no more, whether the other one takes it or not.
pub(super) fn unfit(node: NodeId) -> String {
    format!("node {node} cannot lead now: it reaches too few of the voters, or its clock is wrong; see its log")
}
