//! A table that was removed is gone for everybody, and what is made under its name is another one. Who may not is refused.
//! Each removal is audited once, when it begins and when it ends, and nothing is written to the table in between, but for
//! the deletes of its records, which everybody hears of. Whoever asks after the answer is shown nothing that was
//! acknowledged before the order; what is written afterwards is there, and replaces nothing of the old table. Devices
//! that keep a copy end with the table that the nodes hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::finding::Finding;
use crate::history::{
    FinalState, HeldRecord, History, Op, OpOutcome, OpRequest, Order, Ordered, ShownChange, TableAudit,
};

/// Goes on with a removal that nobody goes on with.
const CLUSTER: &str = "cluster";

/// An order to remove a table.
#[derive(Clone, Copy)]
struct Removal<'a> {
    table: &'a str,
    by: &'a str,
    privileged: bool,
    order: &'a Order,
}

impl<'a> Removal<'a> {
    fn of(order: &'a Order) -> Option<Self> {
        let Ordered::RemoveTable { table, by, privileged } = &order.ordered else { return None };
        Some(Self { table, by, privileged: *privileged, order })
    }
}

/// A removal as the audit log tells of it: between these places of the log.
struct RemovalSpan {
    /// `None`: it began before what is kept of the log.
    from: Option<u64>,
    /// `None`: it ended there, too.
    to: Option<u64>,
    /// `None`: it has not ended.
    deleted: Option<u64>,
}

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let removals: Vec<Removal<'_>> = history.orders.iter().filter_map(Removal::of).collect();
    let tables: BTreeSet<&str> = removals.iter().map(|removal| removal.table).collect();
    for removal in removals.iter().filter(|removal| !removal.privileged) {
        finding.require(removal.order.outcome != OpOutcome::Ok, || {
            format!("{} removed {}, and has no right to", removal.by, removal.table)
        });
    }
    for table in tables {
        let of_table: Vec<_> = removals.iter().copied().filter(|removal| removal.table == table).collect();
        if let Some(node) = history.finals.first() {
            let spans = audited(node, table, &of_table, &mut finding);
            check_log(node, table, &spans, &of_table, &mut finding);
            check_records(node, table, &spans, &mut finding);
            check_copies(history, node, table, &mut finding);
        }
        check_shown(history, table, &of_table, &mut finding);
    }
    finding
}

fn may_remove(by: &str, removals: &[Removal<'_>]) -> bool {
    by == CLUSTER || removals.iter().any(|removal| removal.by == by && removal.privileged)
}

/// The removals of a table, the oldest first.
fn audited(node: &FinalState, table: &str, removals: &[Removal<'_>], finding: &mut Finding) -> Vec<RemovalSpan> {
    let mut spans: Vec<RemovalSpan> = Vec::new();
    let audits: Vec<&TableAudit> = node.table_audits.iter().filter(|audit| audit.table == table).collect();
    for TableAudit { by, deleted, head, .. } in audits.iter().copied() {
        finding.require(may_remove(by, removals) && (by != CLUSTER || deleted.is_some()), || {
            format!("the audit log says that {by} removed {table}, and nobody of that name may")
        });
        let open = spans.last_mut().filter(|span| span.deleted.is_none());
        match (open, deleted) {
            (None, None) => spans.push(RemovalSpan { from: *head, to: None, deleted: None }),
            (Some(span), Some(_)) => (span.to, span.deleted) = (*head, *deleted),
            (open, _) => {
                let what = if open.is_some() { "begins twice" } else { "ends without a beginning" };
                finding.wrong(format!("in the audit log a removal of {table} by {by} {what}"));
            }
        }
    }
    for Removal { by, order, .. } in removals {
        let ended = audits.iter().filter(|audit| audit.by == *by && audit.deleted.is_some()).count();
        let right = match order.outcome {
            OpOutcome::Ok => ended == 1,
            OpOutcome::Failed => ended == 0,
            OpOutcome::Unknown => ended <= 1,
        };
        finding.require(right, || {
            let outcome = order.outcome;
            format!("the order of {by} to remove {table} ended as {outcome:?}, and has {ended} rows in the audit log")
        });
    }
    spans
}

/// Deleted with its table: no device asked for it by a request.
fn is_removed(row: &ShownChange) -> bool {
    row.value.is_empty() && row.request_id.is_empty()
}

fn check_log(node: &FinalState, table: &str, spans: &[RemovalSpan], removals: &[Removal<'_>], finding: &mut Finding) {
    let mut deleted = vec![0; spans.len()];
    for (row, previous) in node.changes.iter().zip(&node.previous).filter(|(row, _)| row.table == table) {
        let seq = row.seq;
        let within = spans.iter().position(|span| {
            let to = if span.deleted.is_some() { span.to.unwrap_or(0) } else { u64::MAX };
            span.from.unwrap_or(0) < seq && seq <= to
        });
        if let Some(count) = within.and_then(|at| deleted.get_mut(at)) {
            *count += 1;
        }
        finding.require(within.is_some() == is_removed(row), || {
            let when = if within.is_some() { "while it was removed" } else { "while it was not removed" };
            format!("change {seq} of {table}/{} by {} is in the log {when}: {row:?}", row.record, row.device)
        });
        if is_removed(row) {
            finding.require(may_remove(&row.device, removals), || {
                format!("change {seq} deletes {table}/{} with its table for {}, who may not", row.record, row.device)
            });
        }
        let last = ended(spans).filter(|to| *to < seq).max();
        finding.require(last.is_none_or(|to| *previous == 0 || *previous > to), || {
            format!("change {seq} of {table}/{} replaced change {previous} of the table before {last:?}", row.record)
        });
    }
    for (span, count) in spans.iter().zip(deleted) {
        let (Some(deleted), Some(from)) = (span.deleted, span.from) else { continue };
        finding.require(deleted == count, || {
            format!("removing {table} after change {from} deleted {deleted} records, and {count} changes say so")
        });
    }
}

/// Where removals ended, as far as it is known.
fn ended(spans: &[RemovalSpan]) -> impl Iterator<Item = u64> {
    spans.iter().filter(|span| span.deleted.is_some()).filter_map(|span| span.to)
}

/// The table holds what was written to it since it was made, and nothing else.
fn check_records(node: &FinalState, table: &str, spans: &[RemovalSpan], finding: &mut Finding) {
    let since = ended(spans).max();
    let mut newest: BTreeMap<i64, &ShownChange> = BTreeMap::new();
    for row in node.changes.iter().filter(|row| row.table == table && since.is_none_or(|since| row.seq > since)) {
        newest.insert(row.record, row);
    }
    let held = of_table(&node.records, table);
    for (record, row) in &newest {
        let there = held.get(record).map(|held| (held.seq, &*held.value));
        let right = if row.value.is_empty() { there.is_none() } else { there == Some((row.seq, &*row.value)) };
        finding.require(right, || {
            format!("change {} made {table}/{record} {:?}, and the nodes hold {there:?}", row.seq, row.value)
        });
    }
    for (record, held) in held {
        let known = newest.contains_key(&record) || (since.is_none() && held.seq <= node.compacted);
        finding.require(known, || {
            format!(
                "the nodes hold {table}/{record} as change {} made it, before it was removed at {since:?}",
                held.seq
            )
        });
    }
}

fn of_table<'a>(held: &'a [HeldRecord], table: &str) -> BTreeMap<i64, &'a HeldRecord> {
    held.iter().filter(|held| held.table == table).map(|held| (held.record, held)).collect()
}

fn check_copies(history: &History, node: &FinalState, table: &str, finding: &mut Finding) {
    let right = of_table(&node.records, table);
    for store in &history.stores {
        let own = of_table(&store.records, table);
        let differs = right.keys().chain(own.keys()).find(|record| right.get(*record) != own.get(*record));
        finding.require(differs.is_none(), || {
            let (own, right) = (differs.and_then(|at| own.get(at)), differs.and_then(|at| right.get(at)));
            format!("{} ended with {own:?} of {table}, and the nodes hold {right:?}", store.device)
        });
    }
}

/// What was acknowledged before an order was given is not shown to anybody who asked after its answer.
fn check_shown(history: &History, table: &str, removals: &[Removal<'_>], finding: &mut Finding) {
    let mut written: HashMap<&str, u64> = HashMap::new();
    for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok) {
        if let Some((_, _, value, ..)) =
            op.asked.as_write().filter(|(of, _, value, ..)| *of == table && !value.is_empty())
        {
            written.insert(value, op.returned);
        }
    }
    let done: Vec<&Order> =
        removals.iter().map(|removal| removal.order).filter(|order| order.outcome == OpOutcome::Ok).collect();
    for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok) {
        for (record, value) in shown(op, table) {
            let Some(returned) = written.get(value) else { continue };
            let between = done.iter().find(|order| *returned < order.invoked && order.returned < op.invoked);
            finding.require(between.is_none(), || {
                format!(
                    "operation {} of {} on node {} was shown {table}/{record} as {value:?}, of the table that was \
                     removed before it asked",
                    op.id, op.device, op.node
                )
            });
        }
    }
}

/// The records of a table as an operation ends with them.
fn shown<'a>(op: &'a Op, table: &str) -> BTreeMap<i64, &'a str> {
    let mut shown = BTreeMap::new();
    if let OpRequest::Read { table: of, record } = &op.asked
        && of == table
    {
        shown.insert(*record, op.value.as_deref().unwrap_or_default());
    }
    for row in op.pages.iter().flatten().filter(|row| row.table == table) {
        shown.insert(row.record, &*row.value);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, row, wrong};
    use super::*;
    use crate::history::Store;

    fn order(by: &str, at: u64, outcome: OpOutcome) -> Order {
        let ordered = Ordered::RemoveTable { table: "stock".into(), by: by.into(), privileged: by == "boss" };
        let (returned, error) = (at + 2, String::new());
        Order { node: 1, ordered, invoked: at, invoked_us: at, returned, returned_us: returned, outcome, error }
    }

    fn audit(by: &str, deleted: Option<u64>, head: u64) -> TableAudit {
        TableAudit { by: by.into(), table: "stock".into(), deleted, head: Some(head) }
    }

    fn read(id: u64, seen: Option<&str>) -> Op {
        Op { value: seen.map(str::to_owned), ..op(id, OpRequest::Read { table: "stock".into(), record: 1 }) }
    }

    /// After the two changes of the sample the table is removed, and made anew by another one.
    fn removed() -> History {
        let mut history = good();
        let gone = ShownChange { value: String::new(), device: "boss".into(), request_id: String::new(), ..row(3) };
        for node in &mut history.finals {
            node.head = 4;
            node.changes = vec![row(1), row(2), gone.clone(), row(4)];
            node.previous = vec![0, 1, 2, 0];
            node.table_audits = vec![audit("boss", None, 2), audit("boss", Some(1), 3)];
            node.records = vec![HeldRecord { table: "stock".into(), record: 1, seq: 4, value: "v4".into() }];
        }
        let (device, records) = ("timed-1".into(), history.finals[0].records.clone());
        history.stores = vec![Store { device, session: 9, records }];
        history.orders = vec![order("boss", 100, OpOutcome::Ok)];
        history.ops.extend([read(20, None), read(21, Some("v4"))]);
        history
    }

    fn broken(how: impl FnOnce(&mut History)) -> Finding {
        let mut history = removed();
        how(&mut history);
        check(&history)
    }

    #[test]
    fn a_removal_that_holds_is_let_pass() {
        let finding = check(&removed());
        assert!(finding.violations.is_empty() && finding.checked >= 12, "{finding:?}");
        assert!(check(&good()).violations.is_empty());
    }

    #[test]
    fn who_removes_and_how_it_is_audited_is_looked_at() {
        wrong(&broken(|h| h.orders.push(order("till", 200, OpOutcome::Ok))), "has no right");
        wrong(&broken(|h| h.finals[0].table_audits[0].by = "till".into()), "nobody of that name");
        wrong(&broken(|h| h.finals[0].table_audits[0].by = CLUSTER.into()), "nobody of that name");
        wrong(&broken(|h| h.finals[0].table_audits.insert(1, audit("boss", None, 2))), "begins twice");
        wrong(&broken(|h| h.finals[0].table_audits.push(audit("boss", Some(0), 4))), "without a beginning");
        wrong(&broken(|h| h.finals[0].table_audits.clear()), "0 rows");
        wrong(&broken(|h| h.orders[0].outcome = OpOutcome::Failed), "ended as Failed");
        // The cluster went on with what it is not known to have ended.
        let gone_on = broken(|h| {
            h.orders[0].outcome = OpOutcome::Unknown;
            h.finals[0].table_audits[1].by = CLUSTER.into();
        });
        assert!(gone_on.violations.is_empty(), "{gone_on:?}");
    }

    #[test]
    fn what_is_written_meanwhile_or_lost_without_a_word_is_found() {
        let meanwhile = |h: &mut History| h.finals[0].table_audits[0].head = Some(1);
        wrong(&broken(meanwhile), "while it was removed");
        wrong(&broken(|h| h.finals[0].table_audits[1].head = Some(2)), "while it was not removed");
        wrong(&broken(|h| h.finals[0].changes[2].device = "till".into()), "who may not");
        wrong(&broken(|h| h.finals[0].table_audits[1].deleted = Some(2)), "deleted 2 records, and 1 changes");
        wrong(&broken(|h| h.finals[0].previous[3] = 2), "replaced change 2");
    }

    #[test]
    fn records_of_the_old_table_and_records_that_are_missing_are_found() {
        wrong(&broken(|h| h.finals[0].records[0].seq = 2), "change 4 made");
        wrong(&broken(|h| h.finals[0].records.clear()), "hold None");
        let old = HeldRecord { table: "stock".into(), record: 2, seq: 2, value: "v2".into() };
        wrong(&broken(|h| h.finals[0].records.push(old)), "before it was removed");
        wrong(&broken(|h| h.stores[0].records.clear()), "timed-1 ended with None");
    }

    #[test]
    fn whoever_asks_afterwards_is_shown_nothing_of_the_old_table() {
        wrong(&broken(|h| h.ops.push(read(30, Some("v2")))), "removed before it asked");
        let meanwhile = broken(|h| {
            h.orders[0].returned = 301;
            h.ops.push(read(30, Some("v2")));
        });
        assert!(meanwhile.violations.is_empty(), "it asked before the answer");
        let sync = |rows| Op { pages: vec![rows], ..op(30, OpRequest::Sync { after: None }) };
        wrong(&broken(|h| h.ops.push(sync(vec![row(2)]))), "removed before it asked");
        let all = broken(|h| {
            let deleted = h.finals[0].changes[2].clone();
            h.ops.push(sync(vec![row(1), row(2), deleted]));
        });
        assert!(all.violations.is_empty(), "it ends with the delete");
    }
}
