//! A sync's pages hold every change after its cursor once, in order, as the log has them, but for older states of records
//! that the session was sent newer ones of; a full sync holds every record as it was at the sync's cursor.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Finding;
use crate::history::{Asked, History, Op, Outcome, Row};

pub fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for op in history.ops.iter().filter(|op| op.outcome == Outcome::Ok) {
        let (Asked::Sync { after }, Some(cursor)) = (&op.asked, op.cursor) else { continue };
        let rows = || op.pages.iter().flatten();
        for row in rows() {
            let wrong = history.change(row.seq).is_some_and(|change| {
                (&change.table, change.record, &change.value) != (&row.table, row.record, &row.value)
            });
            finding.require(!wrong, || format!("sync {} sent {row:?}, which the log has otherwise", op.id));
        }
        match after {
            Some(after) => {
                let sent: BTreeSet<u64> = rows().map(|row| row.seq).collect();
                let rising = rows().zip(rows().skip(1)).all(|(a, b)| a.seq < b.seq);
                let inside = sent.iter().all(|seq| (after + 1..=cursor).contains(seq));
                // A change may be left out for a newer one of its record.
                let newer = |seq: u64| {
                    let Some(left) = history.change(seq) else { return false };
                    rows().any(|row| row.seq > seq && (&row.table, row.record) == (&left.table, left.record))
                };
                let missing: Vec<u64> =
                    (after + 1..=cursor).filter(|seq| !sent.contains(seq) && !newer(*seq)).take(10).collect();
                finding.require(rising && inside && missing.is_empty(), || {
                    format!(
                        "sync {} from {after} to {cursor} sent {} changes, {} of them different, in {} pages, and not {missing:?}",
                        op.id,
                        rows().count(),
                        sent.len(),
                        op.pages.len()
                    )
                });
            }
            None => full(history, op, cursor, &mut finding),
        }
    }
    finding
}

fn full(history: &History, op: &Op, cursor: u64, finding: &mut Finding) {
    let mut sent = BTreeMap::<(&str, i64), &Row>::new();
    for row in op.pages.iter().flatten() {
        let twice = sent.insert((&row.table, row.record), row).is_some();
        finding.require(!twice, || format!("the full sync {} sent {}/{} twice", op.id, row.table, row.record));
    }
    let mut at_cursor = BTreeMap::<(&str, i64), &Row>::new();
    for change in history.log().iter().take_while(|change| change.seq <= cursor) {
        at_cursor.insert((&change.table, change.record), change);
    }
    for ((table, record), change) in at_cursor {
        let seq = change.seq;
        // What is deleted need not be sent, but it must not come back.
        let enough = sent.get(&(table, record)).map_or(change.value.is_empty(), |row| row.seq == seq);
        finding.require(enough, || {
            let row = sent.get(&(table, record));
            format!("the full sync {} to {cursor} lacks change {seq} of {table}/{record}: it sent {row:?}", op.id)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, row, wrong};
    use super::*;

    #[test]
    fn a_change_lost_at_a_page_border_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut lost = good();
        lost.ops[3].pages[1].clear();
        wrong(&check(&lost), "from 0 to 2");
        let mut other = good();
        other.ops[3].pages[0][0].value = "other".into();
        wrong(&check(&other), "otherwise");
        let mut full = good();
        full.ops[3].asked = Asked::Sync { after: None };
        full.ops[3].pages = vec![vec![row(2)]];
        assert!(check(&full).violations.is_empty());
        full.ops[3].pages = vec![vec![row(1)]];
        wrong(&check(&full), "lacks change 2");
        full.finals[0].changes[1].value.clear();
        wrong(&check(&full), "lacks change 2");
        full.ops[3].pages.clear();
        assert!(check(&full).violations.is_empty(), "a deleted record need not be sent");
    }
}
