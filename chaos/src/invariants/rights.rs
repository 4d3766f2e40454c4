//! A class may do what an administrator said last, on every node. A right that was taken away holds for no change after
//! that, no read and no page that was asked for after it; nothing is refused that was allowed all the time. Between an
//! order and its answer both are right; an order without an answer may be done at any time.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest, Ordered};

const RIGHTS: [&str; 3] = ["none", "read", "write"];
const READ: usize = 1;
const WRITE: usize = 2;

/// A right that was set, and between which moments that was done.
struct Put {
    right: usize,
    from: u64,
    to: u64,
    done: bool,
}

/// Of each class and table: what was ever set, the oldest first.
type Puts<'a> = HashMap<(&'a str, &'a str), Vec<Put>>;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let puts = puts(history);
    // Deletes have no value of their own.
    let named = |(value, _): &(&str, u64)| !value.is_empty();
    let written: HashMap<&str, u64> =
        history.ops.iter().filter_map(|op| Some((op.asked.as_write()?.2, op.invoked))).filter(named).collect();
    for shown in &history.shown {
        let Some(puts) = puts.get(&(&*shown.token.class, &*shown.table)) else { continue };
        // A live change is judged by the rights at its place in the log, which is after it was asked for.
        let Some(from) = shown.asked.or_else(|| written.get(&*shown.value).copied()) else { continue };
        finding.require(possible(puts, from, shown.tick).any(|right| right >= READ), || {
            let how = if shown.asked.is_some() { "what it asked for" } else { "a live change" };
            format!(
                "session {} of {} was shown change {} of {} on node {} ({how}), which {} might not read",
                shown.session, shown.device, shown.seq, shown.table, shown.node, shown.token.class
            )
        });
    }
    for op in &history.ops {
        let Some(token) = &op.token else { continue };
        let (table, needed, refused) = match &op.asked {
            OpRequest::Write { table, .. } => (table, WRITE, "may not write"),
            OpRequest::Read { table, .. } => (table, READ, "may not read"),
            _ => continue,
        };
        let Some(puts) = puts.get(&(&*token.class, &**table)) else { continue };
        if op.outcome == OpOutcome::Ok {
            finding.require(possible(puts, op.invoked, op.returned).any(|right| right >= needed), || {
                format!("{} was let, though {} {refused} {table}", tell(op), token.class)
            });
        }
        if op.error.contains(refused) {
            finding.require(possible(puts, op.invoked, op.returned).any(|right| right < needed), || {
                format!("{} was refused ({}), though its class had the right all the time", tell(op), op.error)
            });
        }
    }
    finding
}

fn tell(op: &Op) -> String {
    format!("operation {} of {} on node {}", op.id, op.device, op.node)
}

fn puts(history: &History) -> Puts<'_> {
    let mut puts = Puts::new();
    for order in history.orders.iter().filter(|order| order.outcome != OpOutcome::Failed) {
        let Ordered::Rights { class, table, right } = &order.ordered else { continue };
        let Some(right) = RIGHTS.iter().position(|name| name == right) else { continue };
        let of_table = puts.entry((&**class, &**table)).or_insert_with(|| {
            // Until something is set, the class may do everything.
            vec![Put { right: WRITE, from: 0, to: 0, done: true }]
        });
        of_table.push(Put { right, from: order.invoked, to: order.returned, done: order.outcome == OpOutcome::Ok });
    }
    puts
}

/// The rights that may have held at some moment from `from` to `to`.
fn possible(puts: &[Put], from: u64, to: u64) -> impl Iterator<Item = usize> {
    let replaced = move |put: &Put| puts.iter().any(|p| p.done && p.from > put.to && p.to < from);
    puts.iter().filter(move |put| put.from <= to && !replaced(put)).map(|put| put.right)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, op, wrong};
    use super::*;
    use crate::history::{NumberedToken, Order, ShownRecord};

    fn put(at: u64, right: &str) -> Order {
        let ordered = Ordered::Rights { class: "c".into(), table: "stock".into(), right: right.into() };
        let (invoked, returned) = (at, at + 2);
        let (invoked_us, returned_us, error) = (invoked, returned, String::new());
        Order { node: 1, ordered, invoked, invoked_us, returned, returned_us, outcome: OpOutcome::Ok, error }
    }

    fn token() -> NumberedToken {
        NumberedToken { number: 1, class: "c".into() }
    }

    fn shown(tick: u64, asked: Option<u64>) -> ShownRecord {
        let (device, table, value) = ("d".into(), "stock".into(), "v1".into());
        ShownRecord {
            tick,
            us: tick,
            asked,
            device,
            node: 1,
            session: 1,
            token: token(),
            table,
            record: 1,
            seq: 1,
            value,
        }
    }

    fn asked(id: u64, write: bool, outcome: OpOutcome, error: &str) -> Op {
        let (table, record, value, request_id) = ("stock".into(), 1, format!("w{id}"), format!("w{id}"));
        let what = match write {
            true => OpRequest::Write { table, record, value, request_id, base: None },
            false => OpRequest::Read { table, record },
        };
        Op { token: Some(token()), outcome, error: error.into(), ..op(id, what) }
    }

    fn of(orders: Vec<Order>, ops: Vec<Op>, shown: Vec<ShownRecord>) -> Finding {
        let mut history = good();
        history.ops.extend(ops);
        check(&History { orders, shown, ..history })
    }

    #[test]
    fn rights_that_do_not_hold_are_found() {
        let none = || vec![put(200, "none")];
        wrong(&of(none(), vec![asked(30, true, OpOutcome::Ok, "")], vec![]), "was let");
        wrong(&of(none(), vec![asked(30, false, OpOutcome::Ok, "")], vec![]), "was let");
        wrong(&of(none(), vec![], vec![shown(300, Some(250))]), "what it asked for");
        assert!(of(none(), vec![], vec![shown(300, Some(201))]).violations.is_empty(), "asked before the answer");
        assert!(of(none(), vec![], vec![shown(300, None)]).violations.is_empty(), "the change is older");
        wrong(&of(vec![put(2, "none")], vec![], vec![shown(300, None)]), "a live change");
        let refused = |id| asked(id, true, OpOutcome::Failed, "3003 tokens of class c may not write");
        assert!(of(none(), vec![refused(30)], vec![]).violations.is_empty());
        wrong(&of(none(), vec![refused(10)], vec![]), "had the right all the time");
        wrong(&of(vec![put(200, "none"), put(205, "write")], vec![refused(30)], vec![]), "had the right");
    }

    #[test]
    fn an_order_without_an_answer_may_be_done_at_any_time() {
        let lost = Order { outcome: OpOutcome::Unknown, returned: u64::MAX, ..put(200, "none") };
        let both = || vec![lost.clone(), put(210, "write")];
        let refused = asked(30, true, OpOutcome::Failed, "3003 tokens of class c may not write");
        assert!(of(both(), vec![refused], vec![]).violations.is_empty());
        assert!(of(both(), vec![asked(30, true, OpOutcome::Ok, "")], vec![]).violations.is_empty());
    }
}
