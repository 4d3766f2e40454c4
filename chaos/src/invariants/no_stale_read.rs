//! No read is older than a write that was acknowledged, or a read that was answered, before it began.

use std::collections::HashMap;

use super::deletes::Deletes;
use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let deletes = Deletes::of(history);
    let version = |op: &Op| deletes.version(op);
    let mut records: HashMap<(&str, i64), Vec<&Op>> = HashMap::new();
    for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok) {
        if let OpRequest::Write { table, record, .. }
        | OpRequest::Delete { table, record, .. }
        | OpRequest::Read { table, record } = &op.asked
        {
            records.entry((table, *record)).or_default().push(op);
        }
    }
    let mut keys: Vec<_> = records.keys().copied().collect();
    keys.sort_unstable();
    for key in keys {
        let ops = &records[&key];
        let mut by_return = ops.clone();
        by_return.sort_unstable_by_key(|op| op.returned);
        let mut by_invoke = ops.clone();
        by_invoke.sort_unstable_by_key(|op| op.invoked);
        let mut done = by_return.into_iter().peekable();
        let mut newest: Option<&Op> = None;
        for op in by_invoke {
            while let Some(before) = done.next_if(|before| before.returned < op.invoked) {
                if newest.is_none_or(|newest| version(newest) < version(before)) {
                    newest = Some(before);
                }
            }
            let Some(before) = newest else { continue };
            finding.require(version(op) >= version(before), || {
                format!(
                    "{}/{}: operation {} on node {} gave version {:?}, but operation {} had given {:?} before it began",
                    key.0, key.1, op.id, op.node, op.version, before.id, before.version
                )
            });
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn an_old_version_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut stale = good();
        stale.ops[2].version = Some(1);
        wrong(&check(&stale), "had given Some(2)");
        let mut gone = good();
        gone.ops[2].version = None;
        wrong(&check(&gone), "None");
    }
}
