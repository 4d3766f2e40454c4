//! A sync's pages hold every change after its cursor once, in order, as the log has them, but for older states of records
//! that the session was told in a newer state before; a full sync holds every record as it was at the sync's place in
//! the log.

use std::collections::{BTreeMap, BTreeSet};

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest, PageTold, SessionTold, ShownChange};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut changes = None;
    for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok) {
        let (OpRequest::Sync { after }, Some(cursor)) = (&op.asked, op.cursor) else { continue };
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
                let rising = rows().map(|row| row.seq).is_sorted_by(|a, b| a < b);
                let within = sent.iter().all(|seq| (after + 1..=cursor).contains(seq));
                let changes = changes.get_or_insert_with(|| ChangeIndex::new(history));
                let missing = missing(history, changes, op, *after, cursor, &sent);
                finding.require(rising && within && missing.is_empty(), || {
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

/// All changes, made once: a long run has many syncs.
struct ChangeIndex<'a> {
    by_seq: BTreeMap<u64, &'a ShownChange>,
    /// Rising.
    of_record: BTreeMap<(&'a str, i64), Vec<u64>>,
}

impl<'a> ChangeIndex<'a> {
    fn new(history: &'a History) -> Self {
        let by_seq = history.every_change();
        let mut of_record = BTreeMap::<_, Vec<u64>>::new();
        for (seq, row) in &by_seq {
            of_record.entry((&*row.table, row.record)).or_default().push(*seq);
        }
        Self { by_seq, of_record }
    }

    /// The last change of the record up to this one.
    fn newest(&self, table: &str, record: i64, up_to: u64) -> Option<u64> {
        let seqs = self.of_record.get(&(table, record))?;
        let at = seqs.partition_point(|seq| *seq <= up_to).checked_sub(1)?;
        seqs.get(at).copied()
    }
}

/// Changes that had to be sent. Those of records that the session was told in a newer state before need not be, but for
/// the newest of each record.
fn missing(
    history: &History,
    changes: &ChangeIndex<'_>,
    op: &Op,
    after: u64,
    cursor: u64,
    sent: &BTreeSet<u64>,
) -> Vec<u64> {
    let missing: Vec<u64> = (after + 1..=cursor).filter(|seq| !sent.contains(seq)).collect();
    if missing.is_empty() {
        return missing;
    }
    let session = history.sessions.iter().find(|session| session.session == op.session);
    let (told, may_have) = session.map_or_else(Default::default, |session| told_before(session, op, cursor));
    let needed = missing.into_iter().filter(|seq| {
        // What nobody was told, and is compacted, may have been of any record.
        let Some(row) = changes.by_seq.get(seq) else { return false };
        let last = changes.newest(&row.table, row.record, cursor).unwrap_or(*seq);
        last == *seq || !(told.contains(&last) || *seq <= may_have)
    });
    needed.take(10).collect()
}

/// What the session was told before the end of this sync, live or by earlier syncs, and how far those came: the server
/// does not remember what they sent.
fn told_before(session: &SessionTold, op: &Op, cursor: u64) -> (BTreeSet<u64>, u64) {
    let is_last = |page: &PageTold| page.cursor == Some(cursor) && Some(&page.rows) == op.pages.last();
    let (last, page) = session.pages.iter().enumerate().rev().find(|(_, page)| is_last(page)).unzip();
    let earlier = &session.pages[..last.unwrap_or(0)];
    let live = session.rows().take(page.map_or(usize::MAX, |page| page.at as usize));
    let told = live.chain(earlier.iter().flat_map(|page| &page.rows)).map(|row| row.seq).collect();
    (told, earlier.iter().filter_map(|page| page.cursor).max().unwrap_or(0))
}

fn full(history: &History, op: &Op, cursor: u64, finding: &mut Finding) {
    let mut sent = BTreeMap::<(&str, i64), &ShownChange>::new();
    for row in op.pages.iter().flatten() {
        let twice = sent.insert((&row.table, row.record), row).is_some();
        finding.require(!twice, || format!("the full sync {} sent {}/{} twice", op.id, row.table, row.record));
    }
    let mut at_cursor = BTreeMap::<(&str, i64), &ShownChange>::new();
    for change in history.log().iter().take_while(|change| change.seq <= cursor) {
        at_cursor.insert((&change.table, change.record), change);
    }
    for ((table, record), change) in at_cursor {
        let seq = change.seq;
        // What is deleted is not sent, nor what is gone with its table when its page is read: that is heard of next.
        let goes = || {
            let later = history.log().iter().filter(|row| row.seq > cursor && row.seq < later_than(history, op));
            let mut deleted = false;
            later.filter(|row| &*row.table == table).any(|row| {
                if row.record == record {
                    deleted = row.value.is_empty();
                }
                deleted && row.value.is_empty() && row.request_id.is_empty()
            })
        };
        let sent_row = sent.get(&(table, record));
        let right = sent_row.map_or_else(|| change.value.is_empty() || goes(), |row| row.seq == seq);
        finding.require(right, || {
            let row = sent.get(&(table, record));
            format!("the full sync {} to {cursor} lacks change {seq} of {table}/{record}: it sent {row:?}", op.id)
        });
    }
    let newer = sent.values().find(|row| row.seq > cursor);
    finding.require(newer.is_none(), || format!("the full sync {} is as of {cursor}, but it sent {newer:?}", op.id));
}

/// A change that was surely not in the log before this operation was answered: that of a write that was asked later.
fn later_than(history: &History, op: &Op) -> u64 {
    let later = history.ops.iter().filter(|other| other.invoked > op.returned && !other.repeated && other.tries == 1);
    let writes = later.filter(|other| other.outcome == OpOutcome::Ok && matches!(other.asked, OpRequest::Write { .. }));
    writes.filter_map(|write| write.version).min().unwrap_or(u64::MAX)
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
        full.ops[3].asked = OpRequest::Sync { after: None };
        full.ops[3].pages = vec![vec![row(2)]];
        assert!(check(&full).violations.is_empty());
        full.ops[3].pages = vec![vec![row(1)]];
        wrong(&check(&full), "lacks change 2");
        full.finals[0].changes[1].value.clear();
        wrong(&check(&full), "lacks change 2");
        let mut newer = good();
        newer.ops[3].asked = OpRequest::Sync { after: None };
        (newer.ops[3].pages, newer.ops[3].cursor) = (vec![vec![row(2)]], Some(1));
        wrong(&check(&newer), "is as of 1, but it sent");
        let mut told = good();
        told.ops[3].pages = vec![vec![row(2)]];
        assert!(check(&told).violations.is_empty(), "change 1 is older than what the session was told");
        told.sessions.clear();
        wrong(&check(&told), "and not [1]");
        full.ops[3].pages.clear();
        assert!(check(&full).violations.is_empty(), "a deleted record need not be sent");
    }

    /// Its page was read when the table had gone, whatever was written in between; not one that went only afterwards.
    #[test]
    fn a_record_that_goes_with_its_table_before_its_page_is_read_need_not_be_sent() {
        let mut full = good();
        full.ops[3] = Op { pages: Vec::new(), ..full.ops[3].clone() };
        full.ops[3].asked = OpRequest::Sync { after: None };
        let removal = ShownChange { value: String::new(), request_id: String::new(), ..row(4) };
        full.finals[0].changes.extend([row(3), removal]);
        assert!(check(&full).violations.is_empty());
        let ShownChange { table, record, value, request_id, .. } = row(4);
        let write = OpRequest::Write { table, record, value, request_id, base: None };
        full.ops.push(Op { version: Some(4), ..super::super::samples::op(6, write) });
        wrong(&check(&full), "lacks change 2");
        full.ops[5].version = Some(5);
        assert!(check(&full).violations.is_empty());

        // Somebody deleted it, and then its table went: the removal no longer names it.
        let [.., deleted, removed] = &mut full.finals[0].changes[..] else { panic!("two changes came after the sync") };
        deleted.value.clear();
        removed.record += 1;
        assert!(check(&full).violations.is_empty());
        full.finals[0].changes.pop();
        wrong(&check(&full), "lacks change 2");
    }
}
