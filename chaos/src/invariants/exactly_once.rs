//! Acknowledged changes are in the log exactly once, as they were sent; refused ones never; unknown ones at most once.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, OpOutcome, ShownChange};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut found: HashMap<(&str, &str), Vec<&ShownChange>> = HashMap::new();
    for row in history.log() {
        if !row.request_id.is_empty() {
            found.entry((&row.device, &row.request_id)).or_default().push(row);
        }
    }
    let compacted = history.finals.first().map_or(0, |node| node.compacted);
    let none = Vec::new();
    for op in &history.ops {
        let Some((table, record, value, request_id, base)) = op.asked.as_write() else { continue };
        let rows = found.get(&(op.device.as_str(), request_id)).unwrap_or(&none);
        finding.require(rows.len() <= 1, || {
            let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
            format!("operation {} ({} of {}) was applied more than once: as {seqs:?}", op.id, request_id, op.device)
        });
        match op.outcome {
            OpOutcome::Failed => finding.require(rows.is_empty(), || {
                format!("operation {} was refused ({}), but it is in the log: {:?}", op.id, op.error, rows)
            }),
            OpOutcome::Unknown => {}
            OpOutcome::Ok if op.version.is_some_and(|seq| seq <= compacted) => {}
            OpOutcome::Ok => {
                // A repeat of long ago is answered without the change that it is.
                let same = |seq: u64| Some(seq) == op.version || (op.version.is_none() && op.repeated);
                let gone = rows.is_empty() && op.version.is_none() && op.repeated && compacted > 0;
                let there = gone
                    || rows.first().is_some_and(|row| {
                        same(row.seq) && (&*row.table, row.record, &*row.value) == (table, record, value)
                    });
                finding.require(there, || {
                    format!("operation {} was acknowledged as change {:?}; the log has {:?}", op.id, op.version, rows)
                });
                if let (Some(base), Some(seq)) = (base, op.version) {
                    let previous = previous_of(history, seq);
                    // What was deleted counts as not being there.
                    let gone = |seq: u64| history.change(seq).is_none_or(|row| row.value.is_empty());
                    let replaced = previous == Some(base) || (base == 0 && previous.is_some_and(gone));
                    finding.require(replaced, || {
                        format!(
                            "operation {} may replace version {base} only; change {seq} replaced {previous:?}",
                            op.id
                        )
                    });
                }
            }
        }
    }
    finding
}

fn previous_of(history: &History, seq: u64) -> Option<u64> {
    let node = history.finals.first()?;
    let at = usize::try_from(seq.checked_sub(node.compacted + 1)?).ok()?;
    node.previous.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::history::OpRequest;

    #[test]
    fn lost_doubled_and_refused_writes_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut lost = good();
        lost.finals[0].changes.remove(1);
        wrong(&check(&lost), "acknowledged");
        let mut doubled = good();
        let mut again = doubled.finals[0].changes[0].clone();
        again.seq = 3;
        doubled.finals[0].changes.push(again);
        wrong(&check(&doubled), "more than once");
        let mut refused = good();
        refused.ops[0].outcome = OpOutcome::Failed;
        wrong(&check(&refused), "refused");
        let mut base = good();
        base.finals[0].previous[1] = 0;
        wrong(&check(&base), "may replace version 1 only");
        // As if the record must not exist.
        let mut new = good();
        let OpRequest::Write { base, .. } = &mut new.ops[1].asked else { panic!() };
        *base = Some(0);
        wrong(&check(&new), "may replace version 0 only");
        new.finals[0].changes[0].value.clear();
        assert!(!check(&new).violations.iter().any(|what| what.contains("may replace")), "it was deleted");
    }
}
