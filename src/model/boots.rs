//! The newest start of every node. A data folder that is put back to an older copy has forgotten votes and entries that
//! it had acknowledged; that its start is not newer than the one before is how it is recognised.

use super::error::Code;
use super::refusal::{ApplyError, refuse};
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead, get_row};
use crate::ids::NodeId;
use crate::limits;
use crate::proto::{NodeBoot, NodeBooted, NodeBoots};

/// In the order of the nodes: a row of its own, written when a node starts.
#[derive(Clone, Debug, Default)]
pub(super) struct NewestBoots(NodeBoots);

impl NewestBoots {
    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let all: NodeBoots = get_row(rows, &RowKey::NodeBoots)?.unwrap_or_default();
        let sorted = all.boots.is_sorted_by(|one, other| one.node < other.node);
        if !sorted || all.boots.len() > limits::NODES_EVER {
            return Err(TablesError::Corrupt(RowKey::NodeBoots));
        }
        Ok(Self(all))
    }
}

impl State {
    /// The newest start of each node.
    pub fn boots(&self) -> &[NodeBoot] {
        &self.boots.0.boots
    }

    pub fn boot_of(&self, node: NodeId) -> Option<&NodeBoot> {
        let at = self.boots().binary_search_by_key(&node, |boot| NodeId(boot.node)).ok()?;
        self.boots().get(at)
    }

    /// A start is newer than the one before, or the same that is told once more.
    pub(super) fn may_boot(&self, node: NodeId, c: &NodeBooted) -> Result<(), ApplyError> {
        match self.boot_of(node) {
            Some(known)
                if c.boot != 0 && (c.boot, c.instance) != (known.boot, known.instance) && c.boot <= known.boot =>
            {
                let why = format!(
                    "start {} of node {node} is not newer than its start {}: its data folder is an older copy",
                    c.boot, known.boot
                );
                refuse(Code::RoleChange, why)
            }
            _ => Ok(()),
        }
    }

    /// `first`: no start of the node is known, also none of a program that did not tell which it was.
    pub(super) fn save_boot(&mut self, node: NodeId, c: &NodeBooted, first: bool) {
        let before = if first { c.knows } else { 0 };
        let least_known = self.boot_of(node).map_or(before, |before| before.least_known).min(c.knows);
        let (boot, instance, knows) = (c.boot, c.instance, c.knows);
        let boot = NodeBoot { node: node.get(), boot, instance, held: 0, knows, least_known };
        // An older version tells none.
        if c.boot == 0 || self.boot_of(node) == Some(&boot) {
            return;
        }
        self.notify_coordinator();
        let all = &mut self.boots.0.boots;
        match all.binary_search_by_key(&node, |boot| NodeId(boot.node)) {
            Ok(at) => all[at] = boot,
            Err(at) => all.insert(at, boot),
        }
        let row = self.boots.0.clone();
        // A cluster whose nodes are upgraded one by one would hold two digests of one state for ever.
        self.txn.put_uncounted(RowKey::NodeBoots, &row);
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::StateUnderTest;
    use super::*;
    use crate::proto::command::Intent;

    #[test]
    fn a_start_that_is_not_newer_is_refused_and_the_newest_is_read_again_from_the_rows() {
        let mut b = StateUnderTest::new();
        let start = |boot, instance| Intent::NodeBooted(NodeBooted { boot, instance, knows: 2 });
        b.ok(start(2, 70));
        b.ok(start(2, 70));
        for older in [start(2, 71), start(1, 70)] {
            assert_eq!(b.code(older), Code::RoleChange);
        }
        b.ok(start(3, 5));
        // An older version does not say which start it is.
        b.ok(Intent::NodeBooted(NodeBooted::default()));
        let known = b.state.boots().to_vec();
        assert_eq!(known.iter().map(|one| (one.boot, one.instance)).collect::<Vec<_>>(), [(3, 5)]);
        b.state.reload().unwrap();
        assert_eq!(b.state.boots(), known);
    }

    #[test]
    fn a_node_of_a_version_before_that_keeps_no_starts_has_the_same_digest() {
        let after = |start: NodeBooted| {
            let mut b = StateUnderTest::new();
            b.ok(Intent::NodeBooted(start));
            b.state.digest()
        };
        assert_eq!(after(NodeBooted { boot: 2, instance: 70, knows: 2 }), after(NodeBooted::default()));
    }
}
