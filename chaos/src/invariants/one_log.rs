//! One log: dense, and the same on every node that has healed.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::history::{History, ShownChange, TableAudit};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for node in &history.finals {
        let dense = (node.compacted + 1..=node.head).eq(node.changes.iter().map(|row| row.seq));
        finding.require(dense, || {
            format!(
                "node {}: the changes {}..={} are not all there once, in order",
                node.node,
                node.compacted + 1,
                node.head
            )
        });
        // Each change names the version that it replaced: the record's last change before it.
        let mut newest = BTreeMap::<(&str, i64), u64>::new();
        let gone = |audit: &&TableAudit| audit.deleted.is_some();
        let mut removed = node.table_audits.iter().filter(gone).peekable();
        for (row, previous) in node.changes.iter().zip(&node.previous) {
            // The records of a table that was removed are no past of those of the next one.
            while let Some(audit) = removed.next_if(|audit| audit.head.is_none_or(|head| head < row.seq)) {
                newest.retain(|(table, _), _| *table != audit.table);
            }
            let before = newest.insert((&row.table, row.record), row.seq);
            let right = before == Some(*previous) || (before.is_none() && *previous <= node.compacted);
            finding.require(right, || {
                let ShownChange { seq, table, record, .. } = row;
                format!("node {}: change {seq} of {table}/{record} replaced {previous}, not {before:?}", node.node)
            });
        }
    }
    let Some((first, others)) = history.finals.split_first() else { return finding };
    for other in others {
        let (a, b) = (first.node, other.node);
        for (what, same) in [
            ("have applied as far", first.applied == other.applied),
            ("hold the same digest", first.digest == other.digest),
            ("hold the same rows", first.rows == other.rows),
            ("hold the same changes", first.changes == other.changes),
            ("hold the same election log", first.elections == other.elections),
            ("hold the same sync states", first.sync_states == other.sync_states),
        ] {
            finding.require(same, || format!("after everything healed, nodes {a} and {b} do not {what}"));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn gaps_and_differences_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut gap = good();
        gap.finals[1].changes.remove(0);
        wrong(&check(&gap), "not all there");
        let mut differs = good();
        differs.finals[1].changes[1].value = "other".into();
        wrong(&check(&differs), "the same changes");
        let mut rows = good();
        rows.finals[1].rows = "x".into();
        wrong(&check(&rows), "the same rows");
        let mut previous = good();
        previous.finals[0].previous[1] = 0;
        wrong(&check(&previous), "replaced 0");
    }
}
