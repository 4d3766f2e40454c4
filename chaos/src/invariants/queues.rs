//! A durable queue is applied once and in its order, however often it is sent: no entry twice, none before the one that
//! it follows, what is sent again is answered as a repeat, and a number that is used again for something else is refused.

use std::collections::{BTreeMap, HashMap};

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest, QueuePlace};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let is_queue = |op: &&Op| {
        op.queued.is_some()
            || matches!(op.asked, OpRequest::Repeat { .. } | OpRequest::Reused { .. } | OpRequest::Gap { .. })
    };
    let ops: Vec<&Op> = history.ops.iter().filter(is_queue).collect();
    if ops.is_empty() {
        return finding;
    }
    let mut seqs: HashMap<&str, Vec<u64>> = HashMap::new();
    for (seq, row) in history.every_change() {
        seqs.entry(&row.value).or_default().push(seq);
    }
    let applied = |value: &str| seqs.get(value).map_or(&[][..], |seqs| seqs);
    let mut queues: BTreeMap<&str, Vec<(u64, &QueuePlace, u64)>> = BTreeMap::new();
    for op in ops {
        match &op.asked {
            OpRequest::Gap { value, queue, after, .. } => {
                finding.require(op.outcome != OpOutcome::Ok && applied(value).is_empty(), || {
                    format!(
                        "operation {} follows entry {after} of {queue}, which was never sent, and was applied",
                        op.id
                    )
                });
            }
            // Of long ago it is only known that the number was used.
            OpRequest::Reused { value, n, .. } => {
                finding.require(op.version.is_none() && applied(value).is_empty(), || {
                    format!("operation {} says something else than entry {n} before, and was taken", op.id)
                });
            }
            OpRequest::Repeat { value, .. } => check_repeat(op, applied(value), &mut finding),
            _ => {
                let (Some(place), Some((_, _, value, ..))) = (&op.queued, op.asked.as_write()) else { continue };
                let found = applied(value);
                finding.require(found.len() <= 1, || {
                    format!("operation {}, entry {} of {}, is changes {found:?}", op.id, place.n, place.queue)
                });
                let of_queue = queues.entry(&place.queue).or_default();
                of_queue.extend(found.iter().map(|seq| (*seq, place, op.id)));
            }
        }
    }
    let compacted = history.finals.first().map_or(0, |node| node.compacted);
    for entries in queues.into_values() {
        check_order(entries, compacted, &mut finding);
    }
    finding
}

fn check_repeat(op: &Op, found: &[u64], finding: &mut Finding) {
    finding.require(op.outcome != OpOutcome::Failed, || {
        format!("operation {} was acknowledged before, and now it is refused: {}", op.id, op.error)
    });
    if op.outcome == OpOutcome::Ok {
        let first = op.version.is_none() || found.is_empty() || found.first() == op.version.as_ref();
        finding.require(op.repeated && first, || {
            format!("operation {} was change {found:?} before, but it is answered as new, as {:?}", op.id, op.version)
        });
    }
}

fn check_order(mut entries: Vec<(u64, &QueuePlace, u64)>, compacted: u64, finding: &mut Finding) {
    entries.sort_unstable_by_key(|(seq, ..)| *seq);
    let mut last = None;
    for (seq, place, id) in entries {
        // What was compacted before anybody was told of it is not known.
        let follows = last.map_or(place.after == 0 || compacted > 0, |last| place.after == last);
        finding.require(follows, || {
            let QueuePlace { queue, n, after } = place;
            format!("operation {id}, entry {n} of {queue}, follows entry {after}, but change {seq} came after {last:?}")
        });
        last = Some(place.n);
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, wrong};
    use super::*;

    /// The two writes as entries 1 and 3 of a queue.
    fn queued() -> History {
        let mut history = good();
        let place = |n, after| Some(QueuePlace { queue: "q".into(), n, after });
        (history.ops[0].queued, history.ops[1].queued) = (place(1, 0), place(3, 1));
        history
    }

    #[test]
    fn doubled_lost_and_overtaking_entries_are_found() {
        assert!(check(&queued()).violations.is_empty());
        assert_eq!(check(&queued()).checked, 4);
        let mut twice = queued();
        let mut again = twice.finals[0].changes[0].clone();
        again.seq = 3;
        twice.finals[0].changes.push(again);
        wrong(&check(&twice), "is changes [1, 3]");
        let mut gap = queued();
        gap.ops[1].queued.as_mut().unwrap().after = 2;
        wrong(&check(&gap), "follows entry 2, but change 2");
        let mut turned = queued();
        let (a, b) = turned.ops.split_at_mut(1);
        std::mem::swap(&mut a[0].queued, &mut b[0].queued);
        wrong(&check(&turned), "came after Some(3)");
    }

    #[test]
    fn repeats_that_are_taken_for_new_and_gaps_that_are_taken_are_found() {
        let with = |op: Op| {
            let mut history = queued();
            history.ops.push(op);
            history
        };
        let repeat = op(9, OpRequest::Repeat { queue: "q".into(), n: 1, value: "v1".into() });
        let good = Op { repeated: true, version: Some(1), ..repeat.clone() };
        assert!(check(&with(good.clone())).violations.is_empty());
        wrong(&check(&with(Op { version: Some(3), ..good.clone() })), "answered as new");
        wrong(&check(&with(Op { repeated: false, ..good.clone() })), "answered as new");
        wrong(&check(&with(Op { outcome: OpOutcome::Failed, ..good })), "now it is refused");
        let reused = op(9, OpRequest::Reused { queue: "q".into(), n: 1, value: "other".into() });
        assert!(check(&with(reused.clone())).violations.is_empty());
        wrong(&check(&with(Op { version: Some(1), ..reused })), "says something else");
        let gap = op(9, OpRequest::Gap { queue: "q".into(), n: 9, after: 8, value: "g".into() });
        wrong(&check(&with(gap.clone())), "never sent");
        assert!(check(&with(Op { outcome: OpOutcome::Failed, ..gap })).violations.is_empty());
    }
}
