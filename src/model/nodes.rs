//! The cluster's name, and which nodes it has ever had. An id stands for one machine's data folder: a folder that was lost may have
//! held votes, so a node that comes back without it must not come under its old id.

use self::key::KEY;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse};
use super::state::State;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{ClusterInit, Empty, MembersChanged, NodeBooted};

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
    pub(super) fn node_booted(&mut self, node: u64, c: &NodeBooted) -> ApplyResult {
        self.may_boot(node, c)?;
        room_for(&self.meta.booted_nodes, node)?;
        insert(self.meta.nodes(KEY).booted_nodes, node);
        self.save_boot(node, c);
        self.sessions_gone(node)
    }

    pub(super) fn members_changed(&mut self, c: MembersChanged) -> ApplyResult {
        let MembersChanged { node, removed, raft, by } = c;
        let device = format!("node-{node}");
        if removed {
            room_for(&self.meta.removed_nodes, node)?;
            insert(self.meta.nodes(KEY).removed_nodes, node);
            self.audit("node_removed", "remove", false, &device, format!("Node {node} removed by {by}"));
            return self.node_lost(node, "node removed");
        }
        self.audit("node_added", "add", false, &device, format!("Node {node} at {raft} added by {by}"));
        Ok(Reply::Done(Empty {}))
    }
}

/// The lists are part of a row, and are never cut: an id is never used again.
fn room_for(nodes: &[u64], node: u64) -> Result<(), ApplyError> {
    if nodes.len() < limits::NODES_EVER || nodes.binary_search(&node).is_ok() {
        return Ok(());
    }
    refuse(Code::Unavailable, format!("a cluster has at most {} nodes in its life", limits::NODES_EVER))
}

/// Keeps the list sorted, each id once.
fn insert(nodes: &mut Vec<u64>, node: u64) {
    if let Err(at) = nodes.binary_search(&node) {
        nodes.insert(at, node);
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::{StateUnderTest, online};
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
        let change = |removed| MembersChanged { node: home, removed, raft: "h:1".into(), by: "admin".into() };
        b.ok(Intent::MembersChanged(change(false)));
        assert!(b.state.device("a").unwrap().is_active);
        assert_eq!((&b.state.meta().booted_nodes, b.state.meta().removed_nodes.len()), (&vec![home], 0));
        b.ok(Intent::MembersChanged(change(true)));
        assert!(!b.state.device("a").unwrap().is_active);
        assert_eq!(b.state.meta().removed_nodes, [home]);
    }
}
