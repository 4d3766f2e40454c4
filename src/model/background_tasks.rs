//! What a node has to propose by itself: pure decisions, carried out by `cluster::elections::coordinator`.

use super::election::decide::{Action, LeaderView, Limits, decide};
use super::state::State;
use crate::ids::{NodeId, Seq};
use crate::limits;
use crate::proto::command::Intent;
use crate::proto::{ClusterFinalize, Compact, DeviceOnline, NodeBoot, NodeLost, Presence, QueuesForget, Role};

/// How many changes, audit rows, resolved conflicts and elections the cluster keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub changes: u64,
    /// Of the changes: older ones go, with their audit rows.
    pub change_bytes: u64,
    pub audit_rows: u64,
    /// Of each kind of evidence, beyond `audit_rows`.
    pub evidence_rows: u64,
    pub conflicts: u64,
    pub elections: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            changes: limits::CHANGES,
            change_bytes: limits::CHANGE_BYTES,
            audit_rows: limits::AUDIT_ROWS,
            evidence_rows: limits::EVIDENCE_ROWS,
            conflicts: limits::CONFLICTS,
            elections: limits::ELECTIONS,
        }
    }
}

impl Retention {
    /// While a node's disk is low: most of what can go are changes.
    #[must_use]
    pub fn when_low(self) -> Self {
        Self { change_bytes: self.change_bytes / 2, ..self }
    }
}

/// The leader's background tasks now, in this order: lost nodes, the election, a new cluster's version, what may be dropped,
/// queues nobody uses.
pub(crate) fn of_leader(view: &LeaderView<'_>, retention: Retention) -> Vec<Action> {
    let lost = |node: &NodeId| view.lost_in(*node) == Some(0);
    let lost = view
        .state
        .nodes_with_devices()
        .filter(lost)
        .map(|node| Action::Propose(Intent::NodeLost(NodeLost { node: node.get() })));
    let mut duties: Vec<Action> = lost.collect();
    if duties.is_empty() {
        duties = decide(view);
    }
    duties.extend(first_version(view).map(Action::Propose));
    duties.extend(compaction(view.state, retention).map(Action::Propose));
    if let Some(step) = view.state.idle_table_removal(view.now_ms) {
        duties.push(Action::Propose(Intent::TableRemove(step)));
    }
    if view.state.has_idle_queues(view.now_ms) {
        duties.push(Action::Propose(Intent::QueuesForget(QueuesForget {})));
    }
    duties
}

/// How long until the devices that are present on a node are offline for its silence, at the earliest. Milliseconds.
pub(crate) fn next_loss(view: &LeaderView<'_>) -> Option<u64> {
    view.state.nodes_with_devices().filter_map(|node| view.lost_in(node)).min()
}

impl LeaderView<'_> {
    /// `None`: never, it is this node.
    fn lost_in(&self, node: NodeId) -> Option<u64> {
        if node == self.me {
            return None;
        }
        let Limits { lost_ms, grace_ms, settle_ms, .. } = self.limits;
        let Some(there) = self.nodes.get(&node) else {
            // No member any more.
            return Some(settle_ms.saturating_sub(self.leading_ms));
        };
        if there.refused {
            // The node is gone, and its sessions with it: they have their grace to come back elsewhere.
            return Some(grace_ms.min(lost_ms).saturating_sub(there.silent_ms));
        }
        // A new leader gives every node the full time: it was not spoken with before.
        Some(lost_ms.saturating_sub(there.silent_ms.min(self.leading_ms)))
    }
}

/// Due when a whole step is over the limit, so that it is one command a step and not one a change.
fn compaction(state: &State, retention: Retention) -> Option<Intent> {
    let meta = state.meta();
    let changes_to = meta.head_seq.saturating_sub(retention.changes);
    let audit_to = meta.audit_head.saturating_sub(retention.audit_rows);
    let large = state.changes_over(retention.change_bytes);
    let (changes_to, audit_to) =
        large.map_or((changes_to, audit_to), |(seq, audit)| (seq.get().max(changes_to), audit.max(audit_to)));
    let conflicts_to = state.resolved_to(retention.conflicts);
    // Rows of a database come newest first and without a gap: none goes before all are there.
    let importing = meta.import.as_ref().is_some_and(|import| import.finished_ms == 0);
    let elections_to = if importing { 0 } else { meta.election_head.saturating_sub(retention.elections) };
    let deleted = state.deleted_records_go();
    let due = |to: u64, done: u64| to.saturating_sub(done) >= limits::COMPACT_STEP;
    // Changes wait for their audit rows; a step that could do nothing is not proposed.
    let due = due(audit_to, meta.audit_compacted)
        || ((large.is_some() || due(changes_to, meta.compacted_seq))
            && state.oldest_changes_go(Seq(changes_to), audit_to))
        || state.audit_index().surplus_evidence(retention.evidence_rows) >= limits::COMPACT_STEP
        || due(conflicts_to, meta.resolved_compacted)
        || state.too_many_conflict_bytes()
        || state.has_leftover_tables()
        || (deleted && state.records.outlived() as u64 >= limits::COMPACT_STEP)
        || due(elections_to, meta.election_dropped);
    due.then_some(Intent::Compact(Compact {
        changes_to,
        audit_to,
        conflicts_to,
        elections_to,
        evidence_kept: Some(retention.evidence_rows),
        deleted,
    }))
}

/// A new cluster has the newest version from the beginning: no node has ever run a program that does not know it, so none
/// has one to go back to.
fn first_version(view: &LeaderView<'_>) -> Option<Intent> {
    let state = view.state;
    let newest = state.build().newest();
    if state.cluster_version() >= newest {
        return None;
    }
    let members = view.nodes.keys().copied().chain([view.me]);
    let programs: Option<Vec<NodeBoot>> = members.map(|node| state.boot_of(node).copied()).collect();
    let programs = programs.filter(|all| all.iter().all(|boot| boot.least_known >= newest))?;
    Some(Intent::ClusterFinalize(ClusterFinalize { version: newest, programs, by: String::new() }))
}

/// Every node keeps a device of its own online: it can be master where no client is there.
pub(crate) fn of_node(state: &State, node: NodeId, device_id: &str) -> Option<Intent> {
    let here = state.device(device_id).is_some_and(|d| d.is_active && d.home_node() == node);
    (!here).then(|| {
        Intent::DeviceOnline(DeviceOnline {
            device_id: device_id.to_owned(),
            role: Role::Client.into(),
            priority: Some(0),
            presence: Presence::Node.into(),
            class: "node".into(),
            ..DeviceOnline::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::election::decide::NodeView;
    use super::super::properties::{StateUnderTest, online};
    use super::*;
    use crate::ids::{RaftTerm, UnixMs};
    use crate::proto::NodeBooted;

    /// The background tasks of node 1 and when the next node is lost, as it sees node 2.
    fn duties(b: &StateUnderTest, two: NodeView, leading_ms: u64, retention: Retention) -> (Vec<Action>, Option<u64>) {
        let nodes = BTreeMap::from([(NodeId(2), two)]);
        let view = LeaderView {
            state: &b.state,
            me: NodeId(1),
            term: RaftTerm(0),
            now_ms: UnixMs(b.now),
            leading_ms,
            nodes: &nodes,
            tried: None,
            limits: Limits::default(),
        };
        (of_leader(&view, retention), next_loss(&view))
    }

    #[test]
    fn a_silent_node_is_lost_after_the_full_time_and_one_where_nobody_listens_after_the_grace() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Master));
        b.run_at(2, online("b", 0, Role::Client));
        let due = |silent_ms, refused, leading_ms| {
            let two = NodeView { voter: true, lag: Some(0), silent_ms, refused };
            duties(&b, two, leading_ms, Retention::default()).1
        };
        assert_eq!(due(1_000, false, 60_000), Some(5_000));
        // A new leader has not spoken with it before.
        assert_eq!(due(60_000, false, 10), Some(5_990));
        assert_eq!(due(500, true, 10), Some(1_500));
        let gone = NodeView { voter: true, lag: Some(0), silent_ms: 2_000, refused: true };
        let (actions, due) = duties(&b, gone, 10, Retention::default());
        assert_eq!((actions, due), (vec![Action::Propose(Intent::NodeLost(NodeLost { node: 2 }))], Some(0)));
        b.ok(Intent::NodeLost(NodeLost { node: 2 }));
        assert_eq!(duties(&b, gone, 10, Retention::default()), (vec![], None));
    }

    #[test]
    fn a_node_brings_its_device_back_when_the_cluster_calls_it_offline() {
        let mut b = StateUnderTest::new();
        let duty = of_node(&b.state, NodeId(1), "node-1").unwrap();
        b.ok(duty);
        assert_eq!(of_node(&b.state, NodeId(1), "node-1"), None);
        b.ok(Intent::NodeLost(NodeLost { node: 1 }));
        assert!(of_node(&b.state, NodeId(1), "node-1").is_some());
    }

    #[test]
    fn a_restart_ends_a_nodes_sessions_but_not_its_own_device() {
        let mut b = StateUnderTest::new();
        let duty = of_node(&b.state, NodeId(1), "node-1").unwrap();
        b.ok(duty);
        b.ok(online("till", 20, Role::Master));
        b.ok(Intent::NodeBooted(NodeBooted::default()));
        assert_eq!(of_node(&b.state, NodeId(1), "node-1"), None);
        assert_eq!((b.state.device("till").unwrap().is_active, b.state.meta().master.as_str()), (false, "node-1"));
    }

    #[test]
    fn resolved_conflicts_and_elections_go_when_there_are_more_than_are_kept() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Master));
        b.ok(online("b", 0, Role::Client));
        let retention = Retention { conflicts: 100, elections: 50, ..Retention::default() };
        let late = crate::proto::DataUpdate {
            device_id: "b".into(),
            table_name: "t".into(),
            operation: 2,
            timestamp_ms: Some(5),
            ..Default::default()
        };
        b.ok(Intent::DataUpdate(crate::proto::DataUpdate {
            device_id: "a".into(),
            timestamp_ms: None,
            ..late.clone()
        }));
        for _ in 0..limits::COMPACT_STEP + 99 {
            b.ok(Intent::DataUpdate(late.clone()));
        }
        let elect = crate::proto::Elect { reason: 3, method: 1, ..Default::default() };
        while b.state.meta().election_head < limits::COMPACT_STEP + 49 {
            b.ok(Intent::Elect(elect.clone()));
        }
        // A whole step is due, not a part of one.
        assert_eq!(duties(&b, NodeView::default(), 0, retention).0, vec![]);
        b.ok(Intent::DataUpdate(late));
        b.ok(Intent::Elect(elect));
        let (mut duty, _) = duties(&b, NodeView::default(), 0, retention);
        let Some(Action::Propose(duty)) = duty.pop() else { panic!("nothing is due") };
        b.ok(duty);
        let meta = b.state.meta();
        assert_eq!(
            (meta.resolved_head - meta.resolved_compacted, meta.election_head - meta.election_dropped),
            (100, 50)
        );
        let kept = |kind: fn(&super::super::tables::RowKey) -> bool| b.tables.rows().keys().filter(|k| kind(k)).count();
        assert_eq!(kept(|k| matches!(k, super::super::tables::RowKey::Conflict(_))), 100);
        assert_eq!(kept(|k| matches!(k, super::super::tables::RowKey::Election(_))), 50);
        assert_eq!(duties(&b, NodeView::default(), 0, retention).0, vec![]);
    }

    #[test]
    fn changes_go_whatever_is_left_of_audit_rows_and_nothing_is_proposed_that_drops_none() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Master));
        for n in 0..3_000 {
            b.ok(Intent::DataUpdate(crate::proto::DataUpdate {
                device_id: "a".into(),
                table_name: "t".into(),
                record_id: n,
                operation: 2,
                ..Default::default()
            }));
        }
        // Their audit rows are kept, and they with them.
        let retention = Retention { changes: 100, ..Retention::default() };
        assert_eq!(duties(&b, NodeView::default(), 0, retention).0, vec![]);
        // Most audit rows are gone already; of what is left less than a step is due.
        let retention = Retention { changes: 100, audit_rows: 100, ..retention };
        for _ in 0..3 {
            let audit_to = b.state.meta().audit_head - 200;
            b.ok(Intent::Compact(Compact { audit_to, ..Compact::default() }));
        }
        let mut steps = 0;
        while let Some(Action::Propose(duty)) = duties(&b, NodeView::default(), 0, retention).0.pop() {
            let before = b.state.meta().compacted_seq;
            b.ok(duty);
            assert!(b.state.meta().compacted_seq > before, "a step that drops nothing");
            steps += 1;
        }
        assert!(steps > 1);
        assert!(b.state.meta().head_seq - b.state.meta().compacted_seq < 100 + limits::COMPACT_STEP);
    }

    #[test]
    fn large_changes_go_by_their_bytes_and_their_audit_rows_with_them() {
        const MOST: u64 = 1 << 20;
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Master));
        let retention = Retention { change_bytes: MOST, ..Retention::default() };
        let write = |n: i64, bytes: usize| {
            Intent::DataUpdate(crate::proto::DataUpdate {
                device_id: "a".into(),
                table_name: "t".into(),
                record_id: n % 3,
                operation: 2,
                data: format!("{{\"n\":{n},\"about\":\"{}\"}}", "x".repeat(bytes)).into(),
                ..Default::default()
            })
        };
        let mut most = 0;
        for n in 0..200 {
            b.ok(write(n, if n % 2 == 0 { 40_000 } else { 10 }));
            while let Some(Action::Propose(duty)) = duties(&b, NodeView::default(), 0, retention).0.pop() {
                let before = b.state.meta().compacted_seq;
                b.ok(duty);
                assert!(b.state.meta().compacted_seq > before, "a step that drops nothing");
            }
            most = b.state.change_sizes.bytes().max(most);
        }
        assert!(most > MOST / 2 && most <= MOST + MOST / 16 + 40_200, "{most}");
        let (kept, compacted) = (b.state.change_sizes.bytes(), b.state.meta().compacted_seq);
        assert!(compacted > 100 && b.state.meta().audit_compacted > 0);
        // The same is counted after a restart.
        b.state.reload().unwrap();
        assert_eq!((b.state.change_sizes.bytes(), b.state.meta().compacted_seq), (kept, compacted));
    }

    #[test]
    fn compaction_goes_on_until_the_limits_hold() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Master));
        let retention = Retention { changes: 100, audit_rows: 200, ..Retention::default() };
        for n in 0..3_000 {
            let write = crate::proto::DataUpdate {
                device_id: "a".into(),
                table_name: "t".into(),
                record_id: n,
                operation: 2,
                ..Default::default()
            };
            b.ok(Intent::DataUpdate(write));
        }
        let mut steps = 0;
        while let Some(Action::Propose(duty)) = duties(&b, NodeView::default(), 0, retention).0.pop() {
            b.ok(duty);
            steps += 1;
            assert!(steps < 20);
        }
        let meta = b.state.meta();
        assert!(meta.audit_head - meta.audit_compacted < 200 + 2 * limits::COMPACT_STEP);
        assert!(meta.head_seq - meta.compacted_seq < 200 + 2 * limits::COMPACT_STEP);
        assert!(meta.compacted_seq > 0);
    }
}
