//! An incremental sync since a time that the server gave lacks nothing: of every record that changed after that time its
//! state at the sync's place in the log is sent. A time that is still to come is never answered with nothing new. A sync
//! cannot be completed before its last page.

use std::collections::{BTreeMap, HashSet};

use crate::finding::Finding;
use crate::history::{FinalState, History, Op, OpOutcome, OpRequest, ShownChange};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(node) = history.finals.first() else { return finding };
    let now_ms = node.committed_ms.last().copied().unwrap_or(0);
    for op in &history.ops {
        match (&op.asked, op.cursor) {
            (OpRequest::CompleteEarly, _) => finding.require(op.outcome != OpOutcome::Ok, || {
                format!("operation {} completed a sync before its last page", op.id)
            }),
            (OpRequest::SyncSince { since_ms, after }, Some(cursor)) if op.outcome == OpOutcome::Ok => {
                let from = if *since_ms > now_ms { completed(history, op) } else { seq_at(node, *since_ms) };
                // Whatever that time is, the client has nothing that came after its sync.
                let from = after.map_or(from, |after| from.min(after));
                check_sync(node, op, from, cursor, &mut finding);
            }
            _ => {}
        }
    }
    finding
}

/// The last change that was applied at this time or before.
fn seq_at(node: &FinalState, ms: u64) -> u64 {
    node.compacted + node.committed_ms.partition_point(|at| *at <= ms) as u64
}

/// How far the device had come at most with syncs that it completed before this one.
fn completed(history: &History, op: &Op) -> u64 {
    let before = history.ops.iter().filter(|other| other.device == op.device && other.invoked < op.invoked);
    let cursors = before.filter_map(|other| match other.asked {
        OpRequest::SyncComplete { cursor } if other.outcome != OpOutcome::Failed => Some(cursor),
        _ => None,
    });
    cursors.max().unwrap_or(0)
}

fn check_sync(node: &FinalState, op: &Op, from: u64, cursor: u64, finding: &mut Finding) {
    let sent: HashSet<u64> = op.pages.iter().flatten().map(|row| row.seq).collect();
    let mut newest: BTreeMap<(&str, i64), u64> = BTreeMap::new();
    for ShownChange { seq, table, record, .. } in node.changes.iter().take_while(|change| change.seq <= cursor) {
        newest.insert((table, *record), *seq);
    }
    for ((table, record), seq) in newest.into_iter().filter(|(_, seq)| *seq > from) {
        finding.require(sent.contains(&seq), || {
            format!("sync {} to {cursor} lacks change {seq} of {table}/{record}: it had to begin at {from}", op.id)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, row, wrong};
    use super::*;

    #[test]
    fn a_change_after_the_time_that_is_not_sent_is_found() {
        let since = |since_ms, pages: Vec<Vec<ShownChange>>| {
            let mut history = good();
            history.ops.push(Op { pages, cursor: Some(2), ..op(9, OpRequest::SyncSince { since_ms, after: None }) });
            history
        };
        assert!(check(&since(100, vec![vec![row(2)]])).violations.is_empty());
        assert_eq!(check(&since(100, vec![vec![row(2)]])).checked, 1);
        wrong(&check(&since(100, vec![vec![row(1)]])), "lacks change 2");
        assert!(check(&since(200, Vec::new())).violations.is_empty(), "nothing was applied after it");
        let mut later = since(200, Vec::new());
        let OpRequest::SyncSince { after, .. } = &mut later.ops[5].asked else { panic!() };
        *after = Some(1);
        wrong(&check(&later), "lacks change 2");
        // A time that is still to come: from where the device has come.
        assert!(check(&since(900, Vec::new())).violations.is_empty());
        let mut never = since(900, Vec::new());
        never.ops.retain(|op| !matches!(op.asked, OpRequest::SyncComplete { .. }));
        wrong(&check(&never), "lacks change 2");
        let mut early = good();
        early.ops.push(op(9, OpRequest::CompleteEarly));
        wrong(&check(&early), "before its last page");
        early.ops[5].outcome = OpOutcome::Failed;
        assert!(check(&early).violations.is_empty());
    }
}
