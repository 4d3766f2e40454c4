//! Two devices that insert under the same number lose nothing: an insert replaces no record, and what lost is kept by a
//! conflict, whole.

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(node) = history.finals.first() else { return finding };
    for op in history.ops.iter().filter(|op| op.insert) {
        let Some((table, record, value, ..)) = op.asked.as_write() else { continue };
        match op.outcome {
            OpOutcome::Ok => {
                let Some(replaced) = op.version.and_then(|seq| replaced(history, seq)) else { continue };
                finding.require(replaced.value.is_empty(), || {
                    format!("operation {} inserted {table}/{record} over change {}", op.id, replaced.seq)
                });
            }
            OpOutcome::Failed if lost(op) => {
                let kept = node.conflicts.iter().find(|held| Some(held.id) == op.conflict);
                let same = kept.is_some_and(|held| (&*held.table, held.record, &*held.value) == (table, record, value));
                finding.require(same, || {
                    format!(
                        "operation {} lost the number {table}/{record}, and conflict {:?} holds {kept:?}",
                        op.id, op.conflict
                    )
                });
            }
            _ => {}
        }
    }
    finding
}

/// It was decided, and it is not the record.
fn lost(op: &Op) -> bool {
    op.error.is_empty() || op.error.contains("2002")
}

/// The change that this one replaced, as far as it is known.
fn replaced(history: &History, seq: u64) -> Option<&crate::history::ShownChange> {
    let node = history.finals.first()?;
    let at = usize::try_from(seq.checked_sub(node.compacted + 1)?).ok()?;
    history.change(*node.previous.get(at)?)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::history::ConflictHeld;

    #[test]
    fn an_insert_over_another_one_and_a_loser_that_is_gone_are_found() {
        let mut over = good();
        over.ops[1].insert = true;
        wrong(&check(&over), "inserted stock/1 over change 1");
        over.finals[0].changes[0].value.clear();
        assert!(check(&over).violations.is_empty(), "it was deleted before");
        let mut lost = good();
        lost.ops[1].insert = true;
        (lost.ops[1].outcome, lost.ops[1].error) = (OpOutcome::Failed, "\"2002\" \"taken\"".into());
        wrong(&check(&lost), "lost the number");
        lost.ops[1].conflict = Some(1);
        lost.finals[0].conflicts = vec![ConflictHeld { id: 1, table: "stock".into(), record: 1, value: "v2".into() }];
        assert!(check(&lost).violations.is_empty());
        lost.finals[0].conflicts[0].value = "half".into();
        wrong(&check(&lost), "holds Some");
    }
}
