//! The cluster's name, and which nodes it has ever had. An id stands for one machine's data folder: a folder that was lost may have
//! held votes, so a node that comes back without it must not come under its old id.

use self::key::KEY;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse};
use super::state::State;
use crate::ids::NodeId;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{ClusterInit, ClusterRecovered, Empty, MembersChanged, NodeBooted};

pub(super) mod key;

impl State {
    /// The first one names the cluster; later ones (every node may try) change nothing.
    pub(super) fn cluster_init(&mut self, c: ClusterInit) -> Reply {
        if self.meta.cluster_id.is_empty() {
            *self.meta.nodes(KEY).cluster_id = c.cluster_id;
            *self.meta.nodes(KEY).epoch = c.epoch;
        }
        Reply::Done(Empty {})
    }

    /// A node has begun a boot: from now on its data folder is expected to be there.
    pub(super) fn node_booted(&mut self, node: NodeId, c: &NodeBooted) -> ApplyResult {
        self.may_boot(node, c)?;
        room_for(&self.meta.booted_nodes, node)?;
        let first = !self.meta.booted_nodes.contains(&node.get());
        insert(self.meta.nodes(KEY).booted_nodes, node);
        self.save_boot(node, c, first);
        self.sessions_gone(node)
    }

    /// Of the history before, only `node` is left: what it holds goes on under another epoch. Told again, it changes
    /// nothing.
    pub(super) fn cluster_recovered(&mut self, node: NodeId, c: &ClusterRecovered) -> ApplyResult {
        let before = self.meta.epoch;
        if before == 0 {
            return refuse(Code::RoleChange, "there is no cluster yet that could be recovered");
        }
        if before == c.epoch {
            return Ok(Reply::Done(Empty {}));
        }
        *self.meta.nodes(KEY).epoch = c.epoch;
        let others = self.meta.booted_nodes.iter().filter(|other| !self.meta.removed_nodes.contains(other));
        let left: Vec<NodeId> = others.copied().map(NodeId).filter(|other| *other != node).collect();
        for other in &left {
            // Where there is no room, its number is known as one that booted.
            if room_for(&self.meta.removed_nodes, *other).is_ok() {
                insert(self.meta.nodes(KEY).removed_nodes, *other);
            }
        }
        let others = left.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
        let details = format!(
            "Node {node} was made a cluster of one by an operator: epoch {before:016x} became {:016x}; out for good: \
             {others}",
            c.epoch
        );
        self.audit("cluster_recovered", "recover", false, &format!("node-{node}"), details);
        for other in left {
            self.node_lost(other, "the cluster was recovered without its node")?;
        }
        Ok(Reply::Done(Empty {}))
    }

    pub(super) fn members_changed(&mut self, c: MembersChanged) -> ApplyResult {
        let MembersChanged { node, removed, raft, by, moved, gateway } = c;
        let node = NodeId(node);
        let device = format!("node-{node}");
        if removed {
            room_for(&self.meta.removed_nodes, node)?;
            insert(self.meta.nodes(KEY).removed_nodes, node);
            self.audit("node_removed", "remove", false, &device, format!("Node {node} removed by {by}"));
            return self.node_lost(node, "node removed");
        }
        if moved {
            let details = format!("Node {node} moved to {raft}, gateway {gateway}, by {by}");
            self.audit("node_moved", "move", false, &device, details);
            return Ok(Reply::Done(Empty {}));
        }
        self.audit("node_added", "add", false, &device, format!("Node {node} at {raft} added by {by}"));
        Ok(Reply::Done(Empty {}))
    }
}

/// The lists are part of a row, and are never cut: an id is never used again.
fn room_for(nodes: &[u64], node: NodeId) -> Result<(), ApplyError> {
    if nodes.len() < limits::NODES_EVER || nodes.binary_search(&node.get()).is_ok() {
        return Ok(());
    }
    refuse(Code::Unavailable, format!("a cluster has at most {} nodes in its life", limits::NODES_EVER))
}

/// Keeps the list sorted, each id once.
fn insert(nodes: &mut Vec<u64>, node: NodeId) {
    if let Err(at) = nodes.binary_search(&node.get()) {
        nodes.insert(at, node.get());
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::{StateUnderTest, online};
    use super::super::state::into_result;
    use super::*;
    use crate::proto::command::Intent;
    use crate::proto::{NodeBooted, Role};

    #[test]
    fn a_removed_node_takes_its_devices_offline_and_its_id_is_remembered() {
        let mut b = StateUnderTest::new();
        b.ok(Intent::NodeBooted(NodeBooted::default()));
        b.ok(Intent::NodeBooted(NodeBooted::default()));
        b.ok(online("a", 0, Role::Client));
        let home = b.state.device("a").unwrap().home;
        let change = |removed| MembersChanged {
            node: home,
            removed,
            raft: "h:1".into(),
            by: "admin".into(),
            ..MembersChanged::default()
        };
        b.ok(Intent::MembersChanged(change(false)));
        assert!(b.state.device("a").unwrap().is_active);
        assert_eq!((&b.state.meta().booted_nodes, b.state.meta().removed_nodes.len()), (&vec![home], 0));
        b.ok(Intent::MembersChanged(change(true)));
        assert!(!b.state.device("a").unwrap().is_active);
        assert_eq!(b.state.meta().removed_nodes, [home]);
    }

    #[test]
    fn a_recovered_cluster_has_another_epoch_and_the_others_are_out() {
        let mut b = StateUnderTest::new();
        b.ok(Intent::ClusterInit(ClusterInit { cluster_id: "shop".into(), epoch: 7 }));
        b.ok(Intent::NodeBooted(NodeBooted::default()));
        b.ok(online("a", 0, Role::Client));
        let before = b.state.device("a").unwrap().home;
        let told = |b: &mut StateUnderTest, intent| into_result(b.run_at(before + 1, intent).0).unwrap();
        told(&mut b, Intent::NodeBooted(NodeBooted::default()));
        told(&mut b, Intent::ClusterRecovered(ClusterRecovered { epoch: 8 }));
        let audited = b.state.meta().audit_head;
        told(&mut b, Intent::ClusterRecovered(ClusterRecovered { epoch: 8 }));
        let meta = b.state.meta();
        assert_eq!((meta.epoch, &meta.removed_nodes[..], meta.audit_head), (8, &[before][..], audited));
        assert!(!b.state.device("a").unwrap().is_active);
        let mut empty = StateUnderTest::new();
        assert_eq!(empty.code(Intent::ClusterRecovered(ClusterRecovered { epoch: 8 })), Code::RoleChange);
    }
}
