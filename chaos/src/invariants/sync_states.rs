//! Sync states agree with the cursor: what a device completed last is what its sync state says.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut completed: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in &history.ops {
        if matches!(op.asked, OpRequest::SyncComplete { .. }) && op.outcome != OpOutcome::Failed {
            completed.entry(&op.device).or_default().push(op);
        }
    }
    for node in &history.finals {
        for (device, cursor, _) in &node.sync_states {
            let ops = completed.get(device.as_str()).map_or(&[][..], |ops| ops);
            // One device completes one sync after the other, so what comes after the last answer is all that may differ.
            let last_sure = ops.iter().rposition(|op| op.outcome == OpOutcome::Ok);
            let allowed = ops.iter().enumerate().filter(|(at, _)| last_sure.is_none_or(|sure| *at >= sure));
            let mut allowed: Vec<u64> = allowed.filter_map(|(_, op)| cursor_of(op)).collect();
            if last_sure.is_none() {
                allowed.push(0);
            }
            finding.require(allowed.contains(cursor), || {
                format!("node {}: the sync state of {device} stands at {cursor}, not at one of {allowed:?}", node.node)
            });
        }
    }
    finding
}

fn cursor_of(op: &Op) -> Option<u64> {
    match op.asked {
        OpRequest::SyncComplete { cursor } => Some(cursor),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn a_cursor_that_nobody_completed_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut other = good();
        other.finals[1].sync_states[0].1 = 1;
        wrong(&check(&other), "stands at 1");
    }
}
