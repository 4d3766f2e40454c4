//! Where members are reached. It is part of the membership: an operator changes it (`cluster move`), and a member tells
//! what its own settings say. Whatever is recorded has been tried before: the member has answered there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::leader_transfer::unfit;
use super::{ChangeRefused, ChangeResult, MembershipManager, PAUSE, refuse, wrong_role};
use crate::cluster::peers::PROBE_EVERY;
use crate::consensus::group::RaftGroup;
use crate::consensus::identity::NodeIdentity;
use crate::consensus::runtime::spawn;
use crate::consensus::transport::{ConnectionClass, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::{MembersChanged, NodeAdd, Principal, StatusRequest, StatusResponse};

/// How long a node may take to answer at an address.
const TRY: Duration = Duration::from_secs(1);
/// How long a new node has to reach every voter.
const REACH: Duration = Duration::from_secs(5);
/// Before an address that a member tells is looked at again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long what a member's settings say counts as news after its start.
const JUST_STARTED: Duration = Duration::from_secs(60);

/// Where this node is reached, as its settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub address: MemberAddress,
    /// They name it as a member; else it is where the node listens.
    pub named: bool,
}

/// What members have told of their addresses.
pub(crate) struct Addresses {
    own: Option<OwnAddress>,
    since: Instant,
    told: Mutex<BTreeMap<NodeId, ToldAddress>>,
    /// What was looked at, and when: it is not looked at again at once.
    looked: Mutex<BTreeMap<NodeId, (MemberAddress, Instant)>>,
}

#[derive(Clone, Debug)]
struct ToldAddress {
    address: MemberAddress,
    just_started: bool,
    /// The member has said so itself: only that is passed on.
    itself: bool,
    at: Instant,
}

impl ToldAddress {
    fn is_new(&self) -> bool {
        self.at.elapsed() < PROBE_EVERY * 3
    }
}

impl Addresses {
    pub(crate) fn of(own: Option<OwnAddress>) -> Self {
        Self { own, since: Instant::now(), told: Mutex::default(), looked: Mutex::default() }
    }

    /// What this node says to the others with each question.
    pub(crate) fn tell(&self, me: NodeId, request: StatusRequest) -> StatusRequest {
        let Some(own) = &self.own else { return request };
        let just_started = own.named && self.since.elapsed() < JUST_STARTED;
        let told = self.told.lock();
        let others = told.iter().filter(|(node, told)| **node != me && told.itself && told.is_new());
        StatusRequest {
            address: Some(to_proto(me, &own.address)),
            just_started,
            told: others.map(|(node, told)| to_proto(*node, &told.address)).collect(),
            ..request
        }
    }

    /// A member says where it is reached, and what it was told by others.
    pub(crate) fn hear(&self, from: NodeId, request: &StatusRequest) {
        if let Some(own) = request.address.as_ref().filter(|own| own.node == from.get()) {
            self.keep(own, request.just_started, true);
        }
        for other in request.told.iter().take(limits::NODES).filter(|other| other.node != from.get()) {
            self.keep(other, false, false);
        }
    }

    /// What a member says itself counts more than what others say of it.
    fn keep(&self, one: &NodeAdd, just_started: bool, itself: bool) {
        let bounded = |text: &str| !text.is_empty() && text.len() <= limits::ADDRESS;
        let mut told = self.told.lock();
        told.retain(|_, told| told.is_new());
        let room = told.len() < limits::NODES || told.contains_key(&NodeId(one.node));
        if !bounded(&one.raft) || !bounded(&one.gateway) || !room || (!itself && told.contains_key(&NodeId(one.node))) {
            return;
        }
        told.insert(
            NodeId(one.node),
            ToldAddress { address: to_member(one), just_started, itself, at: Instant::now() },
        );
    }

    /// Where this node has just started, if another address is recorded.
    fn own_news(&self, recorded: Option<&MemberAddress>) -> Option<MemberAddress> {
        let own = self.own.as_ref().filter(|own| own.named && self.since.elapsed() < JUST_STARTED)?;
        (recorded != Some(&own.address)).then(|| own.address.clone())
    }

    /// A member that tells another address than the one that is recorded.
    fn next(&self, group: &RaftGroup, me: NodeId) -> Option<(NodeId, ToldAddress)> {
        let mut told = self.told.lock();
        if let Some(own) = &self.own {
            let just_started = own.named && self.since.elapsed() < JUST_STARTED;
            let (address, at) = (own.address.clone(), Instant::now());
            told.insert(me, ToldAddress { address, just_started, itself: true, at });
        }
        told.retain(|node, told| group.members.contains_key(node) && told.is_new());
        let mut looked = self.looked.lock();
        looked.retain(|node, (_, at)| group.members.contains_key(node) && at.elapsed() < AGAIN);
        let differs = |(node, told): &(&NodeId, &ToldAddress)| {
            group.members.get(node) != Some(&told.address)
                && looked.get(node).is_none_or(|(address, _)| *address != told.address)
        };
        let (node, told) = told.iter().find(differs).map(|(node, told)| (*node, told.clone()))?;
        looked.insert(node, (told.address.clone(), Instant::now()));
        Some((NodeId(node.get()), told))
    }
}

pub(crate) fn to_proto(node: NodeId, address: &MemberAddress) -> NodeAdd {
    NodeAdd { node: node.get(), raft: address.raft.clone(), gateway: address.gateway.clone() }
}

pub(super) fn to_member(one: &NodeAdd) -> MemberAddress {
    MemberAddress { raft: one.raft.clone(), gateway: one.gateway.clone() }
}

/// Whether a node answers at an address, and is the one that is meant.
async fn answers(
    identity: &NodeIdentity,
    transport: &Arc<dyn PeerTransport>,
    node: NodeId,
    address: &MemberAddress,
) -> Option<NodeId> {
    let link = transport.link_exactly(node, address, ConnectionClass::Control);
    let request = StatusRequest { handshake: Some(identity.handshake(node)), ..StatusRequest::default() };
    let status = tokio::time::timeout(TRY, link.status(request)).await.ok()?.ok()?;
    (status.node == node.get()).then_some(NodeId(node.get()))
}

/// Those of `asked` that answer at their addresses.
pub(crate) async fn reached(
    identity: &NodeIdentity,
    transport: &Arc<dyn PeerTransport>,
    asked: &[NodeAdd],
) -> Vec<NodeId> {
    let tried = asked.iter().take(limits::NODES).filter(|one| one.node != identity.node.get()).map(|one| {
        let address = to_member(one);
        async move { answers(identity, transport, NodeId(one.node), &address).await }
    });
    join_all(tried).await.into_iter().flatten().collect()
}

impl MembershipManager {
    /// Gives a member other addresses.
    pub(super) async fn change_address(&self, to: NodeAdd, by: &Principal, end: Instant) -> ChangeResult<NodeId> {
        let (id, address, group) = (NodeId(to.node), to_member(&to), self.node.group());
        let Some(before) = group.members.get(&id) else {
            return refuse(Code::InvalidData, format!("node {id} is not a node of this cluster"));
        };
        if *before == address {
            let (raft, gateway) = (&address.raft, &address.gateway);
            let why = format!("node {id} is at {raft}, its gateway at {gateway} already");
            return Err(ChangeRefused::Already(Error::new(Code::RoleChange, why)));
        }
        let same = |(other, there): (&NodeId, &MemberAddress)| *other != id && there.gateway == address.gateway;
        if let Some((other, _)) = group.members.iter().find(|one| same(*one)) {
            return wrong_role(format!("the gateway of node {other} is there"));
        }
        let tried_until = end.min(Instant::now() + REACH);
        while !self.is_at(id, &address, &group).await {
            if Instant::now() >= tried_until {
                let why = format!(
                    "node {id} cannot be reached at {}: start it there first, and look at its log: it may be another node",
                    address.raft
                );
                return refuse(Code::PeerUnreachable, why);
            }
            tokio::time::sleep(PAUSE * 5).await;
        }
        self.record_address(id, address, by, end).await
    }

    async fn record_address(
        &self,
        id: NodeId,
        address: MemberAddress,
        by: &Principal,
        end: Instant,
    ) -> ChangeResult<NodeId> {
        if let Err(why) = self.step(end, || self.node.set_address(id, address.clone())).await
            && !self.comes_about(id, &address).await
        {
            return Err(why);
        }
        tracing::info!(
            node = id.get(),
            raft = address.raft,
            gateway = address.gateway,
            "a node's addresses were recorded"
        );
        let MemberAddress { raft, gateway } = address;
        let by_whom = by.sub.clone();
        self.record(
            by,
            MembersChanged { node: id.get(), moved: true, raft, gateway, by: by_whom, ..MembersChanged::default() },
        )
        .await;
        Ok(id)
    }

    /// Whether a change that was not confirmed was made all the same: by a leader that has lost its lead meanwhile, or late.
    async fn comes_about(&self, id: NodeId, address: &MemberAddress) -> bool {
        let end = Instant::now() + TRY * 2;
        loop {
            match self.node.settled_address(id) {
                Some(settled) if settled == *address => return true,
                _ if Instant::now() >= end => return false,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Whether a member answers at an address. Of itself, the leader asks the others.
    async fn is_at(&self, id: NodeId, address: &MemberAddress, group: &RaftGroup) -> bool {
        if id != self.identity.node {
            return answers(&self.identity, &self.transport, id, address).await.is_some();
        }
        let asked = vec![to_proto(id, address)];
        for (other, there) in group.members.iter().filter(|(other, _)| **other != id && self.reaches(**other)) {
            match self.ask_to_reach(*other, there, asked.clone()).await {
                Some(status) if status.reach_tried => return status.reached.contains(&id.get()),
                _ => {}
            }
        }
        group.members.len() == 1
    }

    async fn ask_to_reach(&self, node: NodeId, at: &MemberAddress, reach: Vec<NodeAdd>) -> Option<StatusResponse> {
        let link = self.transport.link(node, at, ConnectionClass::Control);
        let request =
            StatusRequest { handshake: Some(self.identity.handshake(node)), reach, ..StatusRequest::default() };
        tokio::time::timeout(TRY * 2, link.status(request)).await.ok()?.ok()
    }

    /// Leadership is not handed to who would not take it: a leader that gives it away leads no more in any case.
    pub(in crate::cluster) async fn must_be_fit(&self, id: NodeId) -> ChangeResult<()> {
        let Some(there) = self.node.group().members.remove(&id) else { return Ok(()) };
        match self.ask_to_reach(id, &there, Vec::new()).await {
            Some(status) if status.cannot_lead => refuse(Code::PeerUnreachable, unfit(id)),
            _ => Ok(()),
        }
    }

    /// The same for an operator's order: a node that was cut off a moment ago has a moment.
    pub(super) async fn must_be_fit_soon(&self, id: NodeId, end: Instant) -> ChangeResult<()> {
        let end = end.min(Instant::now() + TRY * 2);
        loop {
            match self.must_be_fit(id).await {
                Err(ChangeRefused::Refused(_)) if Instant::now() < end => tokio::time::sleep(PAUSE * 5).await,
                fit => return fit,
            }
        }
    }

    /// Nobody gets a vote who does not reach the voters: it would stand in elections that it cannot win, and could not lead.
    pub(super) async fn must_reach_voters(&self, id: NodeId, member: &MemberAddress, end: Instant) -> ChangeResult<()> {
        let end = end.min(Instant::now() + REACH);
        loop {
            let group = self.node.group();
            let voters = group.voters.iter().filter(|voter| **voter != id && self.reaches(**voter));
            let voters: Vec<NodeAdd> =
                voters.filter_map(|voter| Some(to_proto(*voter, group.members.get(voter)?))).collect();
            let why = match self.ask_to_reach(id, member, voters.clone()).await {
                // An older version does not try.
                Some(status) if !status.reach_tried => return Ok(()),
                Some(status) => {
                    let missing: Vec<String> = voters
                        .iter()
                        .filter(|voter| !status.reached.contains(&voter.node))
                        .map(|voter| format!("node {} at {}", voter.node, voter.raft))
                        .collect();
                    match missing.is_empty() {
                        // It sees so itself with its next round of questions.
                        true if status.cannot_lead => unfit(id),
                        true => return Ok(()),
                        false => format!(
                            "node {id} does not reach {}: open the way between them, or correct the address with \
                             `cluster move`",
                            missing.join(", ")
                        ),
                    }
                }
                None => format!("node {id} cannot be reached at {}", member.raft),
            };
            self.must_lead()?;
            if Instant::now() >= end {
                return refuse(Code::PeerUnreachable, format!("{why}; it was not added"));
            }
            tokio::time::sleep(PAUSE * 5).await;
        }
    }

    /// Records where this leader has just started, if that is not known yet: a new node would look for it where it was.
    pub(super) async fn record_own(&self, end: Instant) -> ChangeResult<()> {
        let (me, group) = (self.identity.node, self.node.group());
        let Some(address) = self.addresses.own_news(group.members.get(&me)) else { return Ok(()) };
        if self.is_at(me, &address, &group).await {
            let by = Principal { sub: format!("node-{me}"), ..Principal::default() };
            self.record_address(me, address, &by, end).await?;
        }
        Ok(())
    }

    /// On the leader: records what a member tells of its addresses, if it is reached there; and, but for one that has just
    /// started with other settings, no longer where it was. Called now and then.
    pub(crate) fn record_told(self: &Arc<Self>) {
        if self.node.leading().is_none() || self.busy.lock().is_some() || self.looking.swap(true, Ordering::SeqCst) {
            return;
        }
        let group = self.node.group();
        let Some((id, told)) = self.addresses.next(&group, self.identity.node) else {
            self.looking.store(false, Ordering::SeqCst);
            return;
        };
        let this = self.clone();
        spawn(async move {
            if this.has_moved(id, &told, &group).await
                && let Ok(_turn) = this.turn(format!("the addresses of node {id} are recorded"))
            {
                let by = Principal { sub: format!("node-{id}"), ..Principal::default() };
                let recorded = this.record_address(id, told.address, &by, Instant::now() + REACH).await;
                tracing::debug!(node = id.get(), ?recorded, "a node told other addresses");
            }
            this.looking.store(false, Ordering::SeqCst);
        });
    }

    async fn has_moved(&self, id: NodeId, told: &ToldAddress, group: &RaftGroup) -> bool {
        let Some(before) = group.members.get(&id) else { return false };
        self.is_at(id, &told.address, group).await && (told.just_started || !self.is_at(id, before, group).await)
    }
}
