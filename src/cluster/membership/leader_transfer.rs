//! Leadership, and with it the master's role, goes to another node: because an operator says so, or because this one
//! leaves.

use std::time::Duration;

use tokio::time::Instant;

use super::{CAUGHT_UP, ChangeRefused, ChangeResult, MembershipManager, PAUSE, refuse, wrong_role};
use crate::cluster::Cluster;
use crate::cluster::raft_cluster::RaftCluster;
use crate::ids::NodeId;
use crate::model::election::is_candidate;
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::{DeviceShutdown, Principal, Role, RoleChange};

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
    pub(super) async fn transfer_target_soon(&self, end: Instant) -> ChangeResult<NodeId> {
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

impl RaftCluster {
    /// Before this node stops: its own device is offline, and somebody else leads, if anybody can. Clients' requests
    /// wait meanwhile, they do not fail.
    pub async fn leave(&self, node_device: &str, within: Duration) {
        if self.lifecycle.has_ended() {
            // It is no part of the cluster: there is nothing to hand over, and nobody to take it.
            return;
        }
        let left = tokio::time::timeout(within, async {
            let me = self.node_id();
            let here = self.replica().state().device(node_device).is_some_and(|d| d.is_active && d.home == me.get());
            if here {
                let reason = "the node is shutting down".into();
                let shutdown = DeviceShutdown { device_id: node_device.into(), reason };
                let said = Cluster::propose(self, Intent::DeviceShutdown(shutdown)).await;
                tracing::debug!(?said, "the node's device said goodbye");
            }
            if self.node.leading().is_none() || self.node.view().voters.len() == 1 {
                return;
            }
            match self.membership.transfer_target_soon(Instant::now() + within).await {
                Ok(to) => {
                    let node = Principal { sub: node_device.to_owned(), ..Principal::default() };
                    self.membership.give_role(to, "its node is shutting down", &node).await;
                    let handed = self.membership.transfer_leadership(to, Instant::now() + within).await;
                    tracing::info!(to = to.get(), ?handed, "leadership was handed over");
                }
                Err(why) => tracing::info!(?why, "leadership stays until this node is gone"),
            }
        });
        if left.await.is_err() {
            tracing::info!("handing over took too long");
        }
    }
}
