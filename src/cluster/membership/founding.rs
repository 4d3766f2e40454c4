//! Founders agree on who they are: each tells the members that its settings name, and none founds while one differs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::limits;
use crate::proto::{NodeAdd, StatusResponse};

/// What a node that asked names as the founders counts for so long: it asks again sooner.
const CLAIMED: Duration = Duration::from_secs(2);

/// What nodes that asked this one name as the founders.
pub(crate) type FounderClaims = BTreeMap<NodeId, Vec<NodeAdd>>;

#[derive(Clone, Default)]
pub(crate) struct Founding {
    /// The members that this node's settings name; empty: it waits to be added.
    pub own: Vec<NodeAdd>,
    claims: Arc<Mutex<BTreeMap<NodeId, Claim>>>,
}

struct Claim {
    at: Instant,
    founders: Vec<NodeAdd>,
}

impl Founding {
    pub(crate) fn of(members: &BTreeMap<NodeId, MemberAddress>) -> Self {
        let founder = |(node, member): (&NodeId, &MemberAddress)| NodeAdd {
            node: node.get(),
            raft: member.raft.clone(),
            gateway: member.gateway.clone(),
        };
        Self { own: members.iter().map(founder).collect(), claims: Arc::default() }
    }

    /// A node that wants to found a cluster tells of whom.
    pub(crate) fn hear(&self, from: NodeId, founders: Vec<NodeAdd>) {
        let now = Instant::now();
        let mut claims = self.claims.lock();
        claims.retain(|_, claim| now - claim.at < CLAIMED);
        if founders.len() <= limits::NODES && claims.len() < limits::NODES_VOUCHED {
            claims.insert(from, Claim { at: now, founders });
        }
    }

    /// What was told lately.
    pub(crate) fn claims(&self) -> FounderClaims {
        let claims = self.claims.lock();
        let lately = claims.iter().filter(|(_, claim)| claim.at.elapsed() < CLAIMED);
        lately.map(|(from, claim)| (*from, claim.founders.clone())).collect()
    }
}

/// Who names other founders than this node does, and how they differ.
pub(crate) fn disagreement(own: &[NodeAdd], answers: &[StatusResponse], claims: &FounderClaims) -> Option<String> {
    if own.is_empty() {
        return None;
    }
    let answered = answers.iter().map(|answer| (NodeId(answer.node), &answer.founders));
    let others = answered.chain(claims.iter().map(|(from, founders)| (*from, founders)));
    let differs: BTreeMap<NodeId, &Vec<NodeAdd>> = others.filter(|(_, theirs)| theirs[..] != *own).collect();
    if differs.is_empty() {
        return None;
    }
    let theirs = differs.iter().map(|(node, theirs)| format!("node {node} names {}", list(theirs)));
    let theirs = theirs.collect::<Vec<_>>().join("; ");
    let own = list(own);
    Some(format!(
        "the founders' settings differ in `members`: {theirs}; this node names {own}: make them equal, then start again"
    ))
}

fn list(members: &[NodeAdd]) -> String {
    if members.is_empty() {
        return "none (it waits to be added)".into();
    }
    let one = |member: &NodeAdd| format!("{} at {} (gateway {})", member.node, member.raft, member.gateway);
    members.iter().map(one).collect::<Vec<_>>().join(", ")
}
