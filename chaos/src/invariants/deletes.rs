//! Which delete a read has seen that found nothing: the answer does not say.
//!
//! It is taken for the earliest one that is not older than anything known before the read began. If any choice makes
//! the history legal, this one does: a later delete could only make what is read afterwards look older.

use std::collections::{BTreeMap, HashMap};

use crate::history::{History, Op, OpOutcome, OpRequest, Order, Ordered, ShownChange};

type RecordKey<'a> = (&'a str, i64);

#[derive(Default)]
pub(super) struct Deletes<'a> {
    /// For the id of a read that found nothing: the delete's version, and its name.
    seen: HashMap<u64, (u64, String)>,
    versions: HashMap<RecordKey<'a>, BTreeMap<u64, String>>,
    /// What was deleted with its table, by seq.
    removed: BTreeMap<u64, Removed<'a>>,
}

/// A record that was deleted with its table.
pub(super) struct Removed<'a> {
    pub table: &'a str,
    pub record: i64,
    pub name: String,
    /// Between which moments, as far as it is known; `u64::MAX`: without an end.
    pub from: u64,
    pub to: u64,
}

/// The value of a delete in the log: removing a table deletes records without a request.
pub(super) fn name_of(row: &ShownChange) -> String {
    match row.request_id.as_str() {
        "" => format!("removed as change {}", row.seq),
        request_id => name(&row.device, request_id),
    }
}

/// A value that only this delete writes.
pub(super) fn name(device: &str, request_id: &str) -> String {
    format!("deleted by {request_id} of {device}")
}

/// Whose order it is to remove a table, and from when to when it was done. One that was refused may have done a part.
fn removal(order: &Order) -> Option<(&str, (u64, u64))> {
    let Ordered::RemoveTable { by, .. } = &order.ordered else { return None };
    Some((by, (order.invoked, order.returned)))
}

impl<'a> Deletes<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let mut deletes = Self::default();
        let ordered: HashMap<&str, (u64, u64)> = history.orders.iter().filter_map(removal).collect();
        // What is compacted is known from who was told of it.
        let told = history.sessions.iter().flat_map(|session| session.early.iter().chain(&session.told));
        for row in history.log().iter().chain(told).filter(|row| row.value.is_empty()) {
            let ShownChange { seq, table, record, .. } = row;
            deletes.versions.entry((table, *record)).or_default().insert(*seq, name_of(row));
            if row.request_id.is_empty() {
                let (from, to) = ordered.get(&*row.device).copied().unwrap_or((0, u64::MAX));
                let removed = Removed { table, record: *record, name: name_of(row), from, to };
                deletes.removed.insert(*seq, removed);
            }
        }
        let mut records: BTreeMap<RecordKey<'a>, Vec<&Op>> = BTreeMap::new();
        for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok) {
            match (&op.asked, op.version) {
                (OpRequest::Delete { table, record, request_id, .. }, Some(version)) => {
                    let name = name(&op.device, request_id);
                    deletes.versions.entry((table, *record)).or_default().insert(version, name);
                    records.entry((table, *record)).or_default().push(op);
                }
                (OpRequest::Write { table, record, .. } | OpRequest::Read { table, record }, _) => {
                    records.entry((table, *record)).or_default().push(op);
                }
                _ => {}
            }
        }
        for (record, ops) in records {
            deletes.resolve(record, ops);
        }
        deletes
    }

    fn resolve(&mut self, record: RecordKey<'a>, mut ops: Vec<&Op>) {
        let Some(versions) = self.versions.get(&record) else { return };
        ops.sort_unstable_by_key(|op| op.invoked);
        // Answers that were given, as far as they are before the next question; who removed the table was answered, too.
        let removed =
            self.removed.iter().filter(|(_, gone)| (gone.table, gone.record) == record && gone.to != u64::MAX);
        let mut given: BTreeMap<u64, u64> = BTreeMap::new();
        for (seq, gone) in removed {
            let newest = given.entry(gone.to).or_default();
            *newest = (*newest).max(*seq);
        }
        let mut newest = 0;
        for op in ops {
            let later = given.split_off(&op.invoked);
            newest = given.into_values().fold(newest, u64::max);
            given = later;
            let mut version = op.version;
            if version.is_none() && op.value.is_none() && newest > 0 {
                let found = versions.range(newest..).next();
                self.seen.extend(found.map(|(version, name)| (op.id, (*version, name.clone()))));
                version = found.map(|(version, _)| *version);
            }
            given.insert(op.returned, version.unwrap_or(0));
        }
    }

    pub(super) fn removed(&self) -> impl Iterator<Item = &Removed<'a>> {
        self.removed.values()
    }

    /// The version that an operation gave, or has seen.
    pub(super) fn version(&self, op: &Op) -> Option<u64> {
        op.version.or_else(|| self.seen.get(&op.id).map(|(version, _)| *version))
    }

    /// What a read has seen; empty: nothing was there yet.
    pub(super) fn value<'b>(&'b self, op: &'b Op) -> &'b str {
        let deleted = || self.seen.get(&op.id).map_or("", |(_, name)| name);
        op.value.as_deref().unwrap_or_else(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, row};
    use super::*;

    #[test]
    fn the_earliest_delete_that_is_new_enough_was_seen() {
        let mut history = good();
        let read = &mut history.ops[2];
        (read.version, read.value) = (None, None);
        let nothing = |history: &History| Deletes::of(history).version(&history.ops[2]);
        assert_eq!(nothing(&history), None);
        history.finals[0].changes[0].value.clear();
        assert_eq!(nothing(&history), None, "a write after it was acknowledged");
        history.finals[0].changes[1].value.clear();
        assert_eq!(nothing(&history), Some(2));
        history.ops[2].invoked = history.ops[1].returned;
        assert_eq!(nothing(&history), Some(1), "the second may not have been seen yet");
        assert_eq!(Deletes::of(&history).value(&history.ops[2]), name("till-1", "r1"));
    }

    /// Nobody knows whether the write between two removals was done.
    #[test]
    fn a_removal_that_was_answered_before_the_read_is_the_oldest_that_it_can_have_seen() {
        let mut history = good();
        let gone = |seq: u64, by: &str| ShownChange {
            value: String::new(),
            device: by.into(),
            request_id: String::new(),
            ..row(seq)
        };
        history.ops.truncate(1);
        let nothing = OpRequest::Read { table: "stock".into(), record: 1 };
        history.ops.extend([op(5, nothing.clone()), op(9, nothing)]);
        history.finals.truncate(1);
        history.finals[0].changes = vec![row(1), gone(2, "buyer-1"), row(3), gone(4, "buyer-2")];
        let order = |by: &str, at: u64, outcome| Order {
            node: 1,
            ordered: Ordered::RemoveTable { table: "stock".into(), by: by.into(), privileged: true },
            invoked: at,
            invoked_us: at,
            returned: if outcome == OpOutcome::Ok { at + 5 } else { u64::MAX },
            returned_us: at + 5,
            outcome,
            error: String::new(),
        };
        history.orders = vec![order("buyer-1", 30, OpOutcome::Ok), order("buyer-2", 70, OpOutcome::Ok)];
        let seen = |history: &History| [1, 2].map(|op: usize| Deletes::of(history).version(&history.ops[op]));
        assert_eq!(seen(&history), [Some(2), Some(4)]);
        history.orders[1] = order("buyer-2", 70, OpOutcome::Unknown);
        assert_eq!(seen(&history), [Some(2), Some(2)], "the second one may not have been done yet");
    }
}
