//! What a node has to propose by itself: pure decisions, carried out by `cluster::coordinator`.

use super::state::State;
use crate::limits;
use crate::proto::command::Intent;
use crate::proto::{Compact, DeviceOnline, Elect, ElectionMethod, ElectionReason, NodeLost, Presence, Role};

/// How many changes and audit rows the cluster keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub changes: u64,
    pub audit_rows: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { changes: limits::CHANGES, audit_rows: limits::AUDIT_ROWS }
    }
}

/// The leader's duties. `silent` are the nodes it has not heard from for the presence time-out.
pub fn of_leader(state: &State, silent: &[u64], retention: Retention) -> Vec<Intent> {
    let mut duties = Vec::new();
    for node in silent {
        if state.devices().any(|d| d.is_active && d.home == *node) {
            duties.push(Intent::NodeLost(NodeLost { node: *node }));
        }
    }
    if duties.is_empty() && state.wants_master() {
        duties.push(Intent::Elect(Elect {
            reason: ElectionReason::Failure.into(),
            method: ElectionMethod::Automatic.into(),
            if_term: Some(state.meta().term),
            ..Elect::default()
        }));
    }
    duties.extend(compaction(state, retention));
    duties
}

/// Due when a whole step is over the limit, so that it is one command a step and not one a change.
fn compaction(state: &State, retention: Retention) -> Option<Intent> {
    let meta = state.meta();
    let changes_to = meta.head_seq.saturating_sub(retention.changes);
    let audit_to = meta.audit_head.saturating_sub(retention.audit_rows);
    let due = |to: u64, done: u64| to.saturating_sub(done) >= limits::COMPACT_STEP;
    // Changes wait for their audit rows; a step that could do nothing is not proposed.
    (due(audit_to, meta.audit_compacted) || (due(changes_to, meta.compacted_seq) && audit_to <= meta.audit_compacted))
        .then_some(Intent::Compact(Compact { changes_to, audit_to }))
}

/// Every node keeps a device of its own online: it can be master where no client is there.
pub fn of_node(state: &State, node: u64, device_id: &str) -> Option<Intent> {
    let here = state.device(device_id).is_some_and(|d| d.is_active && d.home == node);
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
    use super::super::properties::{Bench, online};
    use super::*;

    #[test]
    fn a_lost_node_comes_before_an_election_that_could_choose_its_device() {
        let mut b = Bench::new();
        b.ok(online("a", 0, Role::Client));
        let duties = |b: &Bench, silent: &[u64]| of_leader(&b.state, silent, Retention::default());
        assert!(matches!(&duties(&b, &[1])[..], [Intent::NodeLost(NodeLost { node: 1 })]));
        let elect = duties(&b, &[2]).remove(0);
        assert!(matches!(elect, Intent::Elect(_)));
        b.ok(elect);
        assert_eq!(duties(&b, &[]), []);
        b.ok(Intent::NodeLost(NodeLost { node: 1 }));
        assert_eq!(duties(&b, &[1]), []);
    }

    #[test]
    fn a_node_brings_its_device_back_when_the_cluster_calls_it_offline() {
        let mut b = Bench::new();
        let duty = of_node(&b.state, 1, "node-1").unwrap();
        b.ok(duty);
        assert_eq!(of_node(&b.state, 1, "node-1"), None);
        b.ok(Intent::NodeLost(NodeLost { node: 1 }));
        assert!(of_node(&b.state, 1, "node-1").is_some());
    }

    #[test]
    fn compaction_goes_on_until_the_limits_hold() {
        let mut b = Bench::new();
        b.ok(online("a", 0, Role::Master));
        let retention = Retention { changes: 100, audit_rows: 200 };
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
        while let Some(duty) = of_leader(&b.state, &[], retention).pop() {
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
