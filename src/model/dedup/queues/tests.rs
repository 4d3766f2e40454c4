use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{NodeId, RaftTerm, UnixMs};
use crate::limits::REQUEST_WINDOW;
use crate::model::election::decide::{Action, LeaderView, Limits};
use crate::model::error::Error;
use crate::model::properties::{StateUnderTest, online, put, without_print};
use crate::model::state::into_result;
use crate::proto::command::Intent;
use crate::proto::{Compact, Operation, Outcome, PolicyPut, QueuesForget, ResolutionMethod, Role};

/// A bench with a device `d`.
fn bench() -> StateUnderTest {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    b
}

fn entry(queue: &str, n: u64, after: u64, update: DataUpdate) -> DataUpdate {
    DataUpdate { queue: queue.into(), n, after, ..update }
}

/// An entry that puts `{"v": n}` into record `n`.
fn sale(n: u64, after: u64) -> DataUpdate {
    entry("q", n, after, put("d", n as i64, Operation::Update, &format!(r#"{{"v":{n}}}"#)))
}

fn send(b: &mut StateUnderTest, update: DataUpdate) -> Result<Outcome, Error> {
    into_result(without_print(b.run(Intent::DataUpdate(update)).0))
}

/// The field that the refusal names, and the queue's last `n` that it tells.
fn refused(b: &mut StateUnderTest, update: DataUpdate) -> (String, Option<u64>) {
    let head = b.state.meta().head_seq;
    let error = send(b, update).unwrap_err();
    assert_eq!((error.code, error.retry), (Code::InvalidData, crate::model::error::Retry::No), "{error}");
    assert_eq!(b.state.meta().head_seq, head, "a refusal writes nothing");
    (error.field().unwrap().to_owned(), error.last())
}

fn reopen(b: &mut StateUnderTest) {
    b.state = State::open(Box::new(b.tables.clone())).unwrap();
}

fn compact_all(b: &mut StateUnderTest) {
    let head = b.state.meta().head_seq;
    while b.state.meta().compacted_seq < head {
        b.ok(Intent::Compact(Compact { changes_to: head, audit_to: u64::MAX, ..Compact::default() }));
    }
}

fn rows(b: &StateUnderTest, of: impl Fn(&RowKey) -> bool) -> usize {
    b.tables.rows().keys().filter(|key| of(key)).count()
}

#[test]
fn an_entry_is_applied_once_in_order_and_a_gap_or_a_doubt_is_refused_with_the_last_one() {
    let mut b = bench();
    assert_eq!(refused(&mut b, sale(2, 1)), ("after".into(), Some(0)));
    let first = send(&mut b, sale(1, 0)).unwrap();
    send(&mut b, sale(3, 1)).unwrap();
    for (update, field) in [(sale(5, 4), "after"), (sale(5, 1), "after"), (sale(5, 0), "after"), (sale(2, 1), "n")] {
        assert_eq!(refused(&mut b, update), (field.into(), Some(3)));
    }
    let again = send(&mut b, sale(1, 0)).unwrap();
    assert!(again.repeated);
    assert_eq!(again.result, first.result);
    // What came before a repeat says nothing: its sender may know only the newest answer.
    assert!(send(&mut b, sale(1, 3)).unwrap().repeated);
    send(&mut b, sale(5, 3)).unwrap();
    // Another queue, and another device's queue of the same id, count for themselves.
    send(&mut b, entry("r", 1, 0, sale(1, 0))).unwrap();
    b.ok(online("e", 0, Role::Client));
    send(&mut b, DataUpdate { device_id: "e".into(), ..sale(1, 0) }).unwrap();
    assert_eq!((b.state.queue("d", "q").unwrap().last, b.state.meta().head_seq), (5, 5));
}

#[test]
fn what_is_wrong_with_an_entry_is_refused_and_named() {
    let mut b = bench();
    for (field, wrong) in [
        ("queue", entry("", 1, 0, sale(1, 0))),
        ("queue", entry(&"q".repeat(65), 1, 0, sale(1, 0))),
        ("queue", entry("q\n", 1, 0, sale(1, 0))),
        ("n", entry("q", 0, 0, sale(1, 0))),
        ("n", entry("q", u64::MAX, 0, sale(1, 0))),
        ("after", entry("q", 1, 1, sale(1, 0))),
        ("after", entry("", 0, 1, sale(1, 0))),
    ] {
        assert_eq!(refused(&mut b, wrong).0, field);
    }
    assert_eq!(b.state.queue("d", "q"), None);
}

#[test]
fn a_queue_longer_than_the_window_sent_again_is_applied_once_also_when_its_changes_are_gone() {
    let mut b = bench();
    let count = REQUEST_WINDOW + 476;
    let first: Vec<_> = (1..=count).map(|n| send(&mut b, sale(n, n - 1)).unwrap().result).collect();
    let queue_rows = |b: &StateUnderTest| rows(b, |key| matches!(key, RowKey::Queue { .. } | RowKey::Requested { .. }));
    assert_eq!(queue_rows(&b), 0, "a plain entry needs no row but its change");
    for compacted in [false, true] {
        if compacted {
            compact_all(&mut b);
            assert_eq!(queue_rows(&b) as u64, 1 + REQUEST_WINDOW);
        }
        reopen(&mut b);
        for n in 1..=count {
            let again = send(&mut b, sale(n, n - 1)).unwrap();
            assert!(again.repeated, "{n}");
            let known = n > count - REQUEST_WINDOW;
            let expected = if known { first[n as usize - 1].clone() } else { Some(Reply::Done(Empty {})) };
            assert_eq!(again.result, expected, "{n}");
        }
        assert_eq!(b.state.meta().head_seq, count);
        assert_eq!(refused(&mut b, sale(count + 2, count + 1)), ("after".into(), Some(count)));
    }
    send(&mut b, sale(count + 1, count)).unwrap();
}

#[test]
fn the_same_name_for_something_else_is_refused_whatever_keeps_the_answer() {
    let mut b = bench();
    b.ok(online("e", 0, Role::Client));
    let named = |request_id: &str, update: DataUpdate| DataUpdate { request_id: request_id.into(), ..update };
    // One that became a change, and one that met a conflict and was merged into another.
    let plain = named("plain", put("d", 1, Operation::Update, r#"{"a":20,"b":"A"}"#));
    send(&mut b, plain.clone()).unwrap();
    let merge = PolicyPut {
        table_name: "stock".into(),
        policy: ResolutionMethod::Automatic.into(),
        by: "x".into(),
        ..PolicyPut::default()
    };
    b.ok(Intent::PolicyPut(merge));
    send(&mut b, put("e", 1, Operation::Update, r#"{"a":20,"b":"B"}"#)).unwrap();
    let merged = DataUpdate { base_version: Some(1), ..put("d", 1, Operation::Update, r#"{"a":21,"b":"A"}"#) };
    let merged = named("merged", entry("q", 7, 0, merged));
    assert!(!send(&mut b, merged.clone()).unwrap().repeated);
    for turn in ["kept", "read again", "compacted", "read again"] {
        match turn {
            "compacted" => compact_all(&mut b),
            "read again" => reopen(&mut b),
            _ => {}
        }
        for (first, field) in [(&plain, "request_id"), (&merged, "n")] {
            for other in [
                DataUpdate { table_name: "other".into(), ..first.clone() },
                DataUpdate { record_id: 2, ..first.clone() },
                DataUpdate { operation: Operation::Insert.into(), ..first.clone() },
                DataUpdate { data: r#"{"a":20,"b":"C"}"#.into(), ..first.clone() },
            ] {
                assert_eq!(refused(&mut b, other).0, field, "{turn}");
            }
            assert!(send(&mut b, first.clone()).unwrap().repeated, "{turn}");
        }
        // The same values, written in another way.
        let same = DataUpdate { data: r#"{ "b": "\u0041", "a": 2e1 }"#.into(), ..plain.clone() };
        assert!(send(&mut b, same).unwrap().repeated, "{turn}");
    }
    // What was sent under an id and in a queue is recognised by either.
    assert_eq!(refused(&mut b, named("merged", put("d", 9, Operation::Update, "{}"))).0, "request_id");
}

#[test]
fn what_was_applied_by_its_id_alone_is_not_applied_again_from_a_queue() {
    let mut b = bench();
    let sold = DataUpdate { request_id: "r1".into(), ..put("d", 1, Operation::Update, "{}") };
    let first = send(&mut b, sold.clone()).unwrap();
    let queued = entry("q", 1, 0, sold.clone());
    for _ in 0..2 {
        let again = send(&mut b, queued.clone()).unwrap();
        assert!(again.repeated);
        assert_eq!(again.result, first.result);
        reopen(&mut b);
    }
    send(&mut b, sale(2, 1)).unwrap();
    // An id that was used for something else does not move the queue.
    assert_eq!(refused(&mut b, entry("q", 3, 2, DataUpdate { record_id: 5, ..sold })).0, "request_id");
    assert_eq!(b.state.queue("d", "q").unwrap().last, 2);
}

#[test]
fn a_refused_entry_stops_those_behind_it_and_one_that_waits_for_a_decision_does_not() {
    let mut b = bench();
    let manual = PolicyPut {
        table_name: "stock".into(),
        policy: ResolutionMethod::Manual.into(),
        by: "x".into(),
        ..PolicyPut::default()
    };
    b.ok(Intent::PolicyPut(manual));
    send(&mut b, sale(1, 0)).unwrap();
    assert_eq!(refused(&mut b, DataUpdate { table_name: "".into(), ..sale(2, 1) }).0, "table_name");
    assert_eq!(refused(&mut b, sale(3, 2)), ("after".into(), Some(1)));
    let open = DataUpdate { base_version: Some(0), record_id: 1, ..sale(3, 1) };
    let given = send(&mut b, open.clone()).unwrap();
    assert!(matches!(given.result, Some(Reply::Conflict(_))));
    reopen(&mut b);
    let again = send(&mut b, open).unwrap();
    assert!(again.repeated && again.result == given.result);
    send(&mut b, sale(4, 3)).unwrap();
}

#[test]
fn a_queue_that_nobody_uses_is_forgotten_and_its_id_is_refused() {
    let mut b = bench();
    let day = 86_400_000;
    for queue in ["old", "used"] {
        send(&mut b, entry(queue, 1, 0, sale(1, 0))).unwrap();
    }
    let due = |b: &StateUnderTest| {
        let nodes = BTreeMap::new();
        let limits = Limits::default();
        let view = LeaderView {
            state: &b.state,
            me: NodeId(1),
            term: RaftTerm(0),
            now_ms: UnixMs(b.now),
            leading_ms: 0,
            nodes: &nodes,
            tried: None,
            limits,
        };
        let forget = Action::Propose(Intent::QueuesForget(QueuesForget {}));
        crate::model::background_tasks::of_leader(&view, Default::default()).contains(&forget)
    };
    b.now += 300 * day;
    send(&mut b, entry("used", 2, 1, sale(2, 1))).unwrap();
    b.now += 100 * day;
    assert!(!due(&b));
    b.ok(Intent::QueuesForget(QueuesForget {}));
    send(&mut b, entry("old", 1, 0, sale(1, 0))).unwrap();
    b.now += day;
    assert!(due(&b));
    b.ok(Intent::QueuesForget(QueuesForget {}));
    for _ in 0..2 {
        assert!(!due(&b), "done once");
        for n in [1, 2] {
            assert_eq!(refused(&mut b, entry("old", n, n - 1, sale(1, 0))), ("queue".into(), None));
        }
        assert!(send(&mut b, entry("used", 1, 0, sale(1, 0))).unwrap().repeated);
        assert_eq!(b.state.queue("d", "used").unwrap().last, 2);
        // Its changes are still kept, and do not bring it back.
        reopen(&mut b);
    }
    compact_all(&mut b);
    assert_eq!(refused(&mut b, entry("old", 2, 1, sale(1, 0))), ("queue".into(), None));
}

#[test]
fn a_device_has_so_many_queues_and_no_more() {
    let mut b = bench();
    for queue in 0..limits::QUEUES_OF_A_DEVICE {
        send(&mut b, entry(&queue.to_string(), 1, 0, sale(1, 0))).unwrap();
    }
    assert_eq!(refused(&mut b, entry("more", 1, 0, sale(1, 0))), ("queue".into(), None));
    send(&mut b, entry("7", 2, 1, sale(2, 1))).unwrap();
    b.ok(online("e", 0, Role::Client));
    send(&mut b, DataUpdate { device_id: "e".into(), ..entry("more", 1, 0, sale(1, 0)) }).unwrap();
}

#[derive(Clone, Debug)]
enum QueueStep {
    Send {
        device: u8,
        queue: u8,
        n: u64,
        after: u64,
        content: i64,
        conflicts: bool,
        named: bool,
        bad: bool,
    },
    /// The client goes on where it is, after giving up so many.
    Next {
        device: u8,
        queue: u8,
        skipped: u64,
        content: i64,
        conflicts: bool,
    },
    Compact,
    Reload,
}

fn step() -> impl Strategy<Value = QueueStep> {
    let from = (0..2u8, 0..2u8);
    prop_oneof![
        6 => (from.clone(), 1..8u64, 0..8u64, 0..3i64, any::<bool>(), any::<bool>(), prop::bool::weighted(0.1)).prop_map(
            |((device, queue), n, after, content, conflicts, named, bad)| {
                QueueStep::Send { device, queue, n, after, content, conflicts, named, bad }
            }
        ),
        6 => (from, 0..2u64, 0..3i64, any::<bool>()).prop_map(|((device, queue), skipped, content, conflicts)| {
            QueueStep::Next { device, queue, skipped, content, conflicts }
        }),
        1 => Just(QueueStep::Compact),
        1 => Just(QueueStep::Reload),
    ]
}

/// What a queue must be by the rules alone.
#[derive(Default)]
struct ExpectedQueue {
    last: u64,
    applied: BTreeMap<u64, (i64, Option<Reply>)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_each_entry_is_applied_at_most_once_and_no_gap_is_passed(steps in prop::collection::vec(step(), 1..60)) {
        let mut b = StateUnderTest::new();
        let mut queues: BTreeMap<(u8, u8), ExpectedQueue> = BTreeMap::new();
        for device in ["d0", "d1"] {
            b.ok(online(device, 0, Role::Client));
        }
        for step in steps {
            let (device, queue, n, after, content, conflicts, named, bad) = match step {
                QueueStep::Compact => { compact_all(&mut b); continue }
                QueueStep::Reload => { reopen(&mut b); continue }
                QueueStep::Send { device, queue, n, after, content, conflicts, named, bad } => {
                    (device, queue, n, after, content, conflicts, named, bad)
                }
                QueueStep::Next { device, queue, skipped, content, conflicts } => {
                    let last = queues.entry((device, queue)).or_default().last;
                    (device, queue, last + skipped + 1, last, content, conflicts, true, false)
                }
            };
            let expected = queues.entry((device, queue)).or_default();
            let update = DataUpdate {
                base_version: conflicts.then_some(0),
                // An id of the device's own for each entry and content, so that only the queue's rules decide.
                request_id: if named { format!("{queue}-{n}-{content}") } else { String::new() },
                table_name: if bad { String::new() } else { "stock".into() },
                ..put(&format!("d{device}"), content, Operation::Update, &format!(r#"{{"c":{content}}}"#))
            };
            let head = b.state.meta().head_seq;
            let told = send(&mut b, entry(&format!("q{queue}"), n, after, update));
            let wrong = told.as_ref().err().map(|e| (e.field().unwrap_or_default().to_owned(), e.last()));
            if bad {
                prop_assert_eq!(wrong, Some(("table_name".to_owned(), None)));
            } else if n <= expected.last {
                match expected.applied.get(&n) {
                    Some((first, given)) if *first == content => {
                        let told = told.unwrap();
                        prop_assert!(told.repeated);
                        prop_assert_eq!(&told.result, given);
                    }
                    _ => prop_assert_eq!(wrong, Some(("n".to_owned(), Some(expected.last)))),
                }
            } else if after == expected.last {
                let told = told.unwrap();
                prop_assert!(!told.repeated);
                expected.last = n;
                expected.applied.insert(n, (content, told.result));
                continue;
            } else {
                prop_assert_eq!(wrong, Some(("after".to_owned(), Some(expected.last))));
            }
            prop_assert_eq!(b.state.meta().head_seq, head, "applied once");
        }
        let digest = b.state.digest();
        let last = |b: &StateUnderTest| [0, 1].map(|d| [0, 1].map(|q| b.state.queue(&format!("d{d}"), &format!("q{q}")).copied()));
        let before = last(&b);
        reopen(&mut b);
        prop_assert_eq!((last(&b), b.state.digest()), (before, digest));
        for ((device, queue), expected) in queues {
            prop_assert_eq!(before[device as usize][queue as usize].map_or(0, |q| q.last), expected.last);
        }
    }
}
