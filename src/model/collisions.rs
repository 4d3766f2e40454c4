//! Walks through conflicts: what each policy makes of each kind, collisions of inserts, decisions, retention, history.

use bytes::Bytes;

use super::access::ClassNumber;
use super::conflict::ConflictStatus;
use super::effect::Effect;
use super::error::Code;
use super::properties::{StateUnderTest, data, online, put, told, update};
use super::read::{HistoryItem, HistoryPosition, PageSize, conflicts, history};
use super::state::{State, into_result};
use crate::ids::{ConflictId, ElectionId, RecordId, Seq, TableId};
use crate::limits;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::*;

/// Devices a, b and c; a wrote record 1.
fn bench(policy: ResolutionMethod, insert_policy: InsertPolicy) -> StateUnderTest {
    let mut b = StateUnderTest::new();
    for id in ["a", "b", "c"] {
        b.ok(online(id, 0, Role::Client));
    }
    b.ok(update("a", 1, r#"{"sum":1}"#));
    if (policy, insert_policy) != (ResolutionMethod::Unset, InsertPolicy::Unset) {
        b.ok(Intent::PolicyPut(PolicyPut {
            table_name: "stock".into(),
            policy: policy.into(),
            class: 0,
            insert_policy: insert_policy.into(),
            by: "a".into(),
            ..PolicyPut::default()
        }));
    }
    b
}

fn plain() -> StateUnderTest {
    bench(ResolutionMethod::Unset, InsertPolicy::Unset)
}

fn insert(device: &str, id: i64, json: &str) -> DataUpdate {
    put(device, id, Operation::Insert, json)
}

fn open(given: Reply) -> Conflict {
    let Reply::Conflict(conflict) = given else { panic!("{given:?}") };
    assert_eq!(conflict.resolution(), ResolutionMethod::Unset);
    conflict
}

fn resolve(id: u64) -> ConflictResolve {
    ConflictResolve { device_id: "c".into(), conflict_id: Some(id), ..ConflictResolve::default() }
}

#[test]
fn every_policy_makes_of_every_kind_what_it_says() {
    use ResolutionMethod::{Automatic, LastWriterWins, Manual};
    // What comes in, and what record 1 is then: {"sum":1} if it stands, else what came or what was merged.
    let stale = DataUpdate { base_version: Some(0), ..put("b", 1, Operation::Update, r#"{"tip":2}"#) };
    let late = DataUpdate { timestamp_ms: Some(5), ..put("b", 1, Operation::Update, r#"{"tip":2}"#) };
    let collision = insert("b", 1, r#"{"tip":2}"#);
    let late_collision = DataUpdate { timestamp_ms: Some(5), ..collision.clone() };
    let cases = [
        (&stale, LastWriterWins, r#"{"tip":2}"#),
        (&stale, Automatic, r#"{"sum":1,"tip":2}"#),
        (&stale, Manual, r#"{"sum":1}"#),
        (&late, LastWriterWins, r#"{"sum":1}"#),
        (&late, Automatic, r#"{"sum":1,"tip":2}"#),
        (&late, Manual, r#"{"sum":1}"#),
    ];
    for (c, policy, becomes) in cases {
        let mut b = bench(policy, InsertPolicy::Unset);
        b.ok(Intent::DataUpdate(c.clone()));
        assert_eq!(data(&b, 1).unwrap(), becomes, "{policy:?} {c:?}");
        assert_eq!(b.state.open_conflicts().count(), usize::from(policy == Manual));
    }
    let collisions = [
        (&collision, InsertPolicy::Unset, r#"{"sum":1}"#),
        (&collision, InsertPolicy::KeepBoth, r#"{"sum":1}"#),
        (&collision, InsertPolicy::Manual, r#"{"sum":1}"#),
        (&collision, InsertPolicy::LastWriterWins, r#"{"tip":2}"#),
        (&collision, InsertPolicy::Automatic, r#"{"sum":1,"tip":2}"#),
        (&late_collision, InsertPolicy::Unset, r#"{"sum":1}"#),
        (&late_collision, InsertPolicy::LastWriterWins, r#"{"sum":1}"#),
        (&late_collision, InsertPolicy::Automatic, r#"{"sum":1,"tip":2}"#),
    ];
    for (c, insert_policy, becomes) in collisions {
        // The policy for updates has no say.
        for policy in [LastWriterWins, Automatic, Manual] {
            let mut b = bench(policy, insert_policy);
            b.ok(Intent::DataUpdate(c.clone()));
            assert_eq!(data(&b, 1).unwrap(), becomes, "{insert_policy:?} {c:?}");
            let waits = !matches!(insert_policy, InsertPolicy::LastWriterWins | InsertPolicy::Automatic);
            assert_eq!(b.state.open_conflicts().count(), usize::from(waits));
        }
    }
}

#[test]
fn an_insert_that_meets_a_live_record_waits_whole_and_everyone_concerned_is_told_once() {
    for other in [
        insert("b", 1, r#"{"sum":2}"#),
        DataUpdate { base_version: Some(1), ..insert("b", 1, r#"{"sum":2}"#) },
        DataUpdate { timestamp_ms: Some(5), ..insert("b", 1, r#"{"sum":2}"#) },
        insert("a", 1, r#"{"sum":2}"#),
    ] {
        let mut b = plain();
        let (outcome, effects) = b.run(Intent::DataUpdate(other.clone()));
        let conflict = open(outcome.result.unwrap());
        assert!(conflict.collision);
        assert_eq!((&*conflict.local_version, &*conflict.remote_version), (&b"{\"sum\":1}"[..], &b"{\"sum\":2}"[..]));
        assert_eq!((conflict.device_id.as_str(), conflict.writer.as_str()), (other.device_id.as_str(), "a"));
        assert!(matches!(&effects[..], [Effect::ConflictFound(c)] if **c == conflict), "{effects:?}");
        assert_eq!((data(&b, 1).unwrap().as_str(), b.state.meta().head_seq), (r#"{"sum":1}"#, 1));
        // The same insert again, as a client without request ids repeats it, spelled as it likes.
        let again = DataUpdate { data: Bytes::from_static(b"{ \"sum\": 2.0 }"), ..other.clone() };
        let (outcome, effects) = b.run(Intent::DataUpdate(again));
        assert_eq!((open(outcome.result.unwrap()).id, effects.len()), (conflict.id, 0));
        // Another sale with that number waits beside it.
        b.ok(Intent::DataUpdate(insert("c", 1, r#"{"sum":2}"#)));
        assert_eq!(b.state.open_conflicts().count(), 2);
    }
}

#[test]
fn a_repeated_insert_with_a_request_id_opens_one_conflict_even_after_it_was_decided() {
    let mut b = plain();
    let sale = DataUpdate { request_id: "r".into(), ..insert("b", 1, r#"{"sum":2}"#) };
    let conflict = open(b.ok(Intent::DataUpdate(sale.clone())));
    b.ok(Intent::ConflictResolve(ConflictResolve { new_record_id: Some(2), ..resolve(conflict.id) }));
    let (again, effects) = b.run(Intent::DataUpdate(sale));
    assert!(again.repeated && effects.is_empty());
    assert_eq!((open(again.result.unwrap()).id, b.state.open_conflicts().count()), (conflict.id, 0));
}

#[test]
fn the_same_data_inserted_twice_is_no_conflict_and_makes_the_record_no_older() {
    for again in [
        insert("b", 1, r#"{ "sum": 1.0 }"#),
        DataUpdate { timestamp_ms: Some(5), ..insert("b", 1, r#"{"sum":1e0}"#) },
        DataUpdate { base_version: Some(0), ..insert("b", 1, r#"{"sum":1}"#) },
    ] {
        let mut b = plain();
        let before = b.state.version(TableId(1), RecordId(1)).unwrap();
        let Reply::Accepted(accepted) = b.ok(Intent::DataUpdate(again)) else { panic!() };
        assert_eq!((accepted.seq, accepted.conflict), (2, None));
        assert!(accepted.timestamp_ms >= before.timestamp_ms.get());
    }
    // Over a deleted record an insert is what it always was.
    let mut b = plain();
    b.ok(Intent::DataUpdate(put("a", 1, Operation::Delete, "")));
    let Reply::Accepted(accepted) = b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":9}"#))) else { panic!() };
    assert_eq!((accepted.conflict, data(&b, 1).unwrap().as_str()), (None, r#"{"sum":9}"#));
}

#[test]
fn the_merge_compares_values_so_that_no_side_is_lost() {
    let merged = |base: &str, here: &str, there: &str| {
        let mut b = bench(ResolutionMethod::Automatic, InsertPolicy::Unset);
        b.ok(update("a", 2, base));
        let seq = b.state.meta().head_seq;
        b.ok(update("a", 2, here));
        b.ok(Intent::DataUpdate(DataUpdate { base_version: Some(seq), ..put("b", 2, Operation::Update, there) }));
        data(&b, 2).unwrap()
    };
    // What is equal by value was not changed by that side, whatever its bytes.
    for (base, same) in [
        (r#"{"price":20.0,"left":5}"#, r#"{"price":20,"left":4}"#),
        (r#"{"price":19.90,"left":5}"#, r#"{"price":19.9,"left":4}"#),
        (r#"{"price":"\u00e9","left":5}"#, r#"{"price":"é","left":4}"#),
        (r#"{"price":{"a":1,"b":2},"left":5}"#, r#"{"price":{"b":2.0,"a":1},"left":4}"#),
    ] {
        let merged = merged(base, r#"{"price":25,"left":5.0}"#, same);
        assert_eq!(merged, r#"{"left":4,"price":25}"#, "{base}");
    }
    // A great whole number is itself: the nearest double would call these the same.
    let merged = merged(r#"{"n":9007199254740993}"#, r#"{"n":9007199254740992}"#, r#"{"n":9007199254740993.0,"x":1}"#);
    assert_eq!(merged, r#"{"n":9007199254740992,"x":1}"#);
}

#[test]
fn a_merge_that_is_too_large_for_a_record_is_the_winners() {
    let mut b = bench(ResolutionMethod::Automatic, InsertPolicy::Unset);
    let large = |name: &str| format!(r#"{{"{name}":"{}"}}"#, "x".repeat(limits::RECORD_DATA * 2 / 3));
    b.ok(update("a", 2, &large("a")));
    let there = large("b");
    b.ok(Intent::DataUpdate(DataUpdate { base_version: Some(0), ..put("b", 2, Operation::Update, &there) }));
    assert_eq!(data(&b, 2).unwrap(), there);
}

#[test]
fn a_collision_is_resolved_by_a_free_number_and_the_record_stays() {
    let mut b = plain();
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    let taken = ConflictResolve { new_record_id: Some(1), ..resolve(conflict.id) };
    assert_eq!(b.code(Intent::ConflictResolve(taken)), Code::Conflict);
    let both = ConflictResolve { new_record_id: Some(7), delete: true, ..resolve(conflict.id) };
    assert_eq!(b.code(Intent::ConflictResolve(both)), Code::InvalidData);
    assert_eq!((b.state.open_conflicts().count(), b.state.meta().head_seq), (1, 1));
    let free = ConflictResolve { new_record_id: Some(7), ..resolve(conflict.id) };
    let (outcome, effects) = b.run(Intent::ConflictResolve(free));
    let Some(Reply::Conflict(resolved)) = outcome.result else { panic!() };
    let [Effect::Changed(change), Effect::ConflictResolved(told)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((change.record_id, change.operation(), &*change.data), (7, Operation::Insert, &b"{\"sum\":2}"[..]));
    // Who applies the decision to the record of the conflict leaves it what it is.
    assert_eq!(
        (&*told.resolved_data, told.resolved_deleted, told.new_record_id),
        (&b"{\"sum\":1}"[..], false, Some(7))
    );
    assert_eq!((resolved.resolved_seq, data(&b, 1).unwrap().as_str()), (2, r#"{"sum":1}"#));
    assert_eq!(data(&b, 7).unwrap(), r#"{"sum":2}"#);
    // A number inside the data can be changed on the way; a deleted record's number is free.
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"no":1}"#))));
    b.ok(Intent::DataUpdate(put("a", 7, Operation::Delete, "")));
    let resolved_data = Bytes::from_static(b"{\"no\":7}");
    b.ok(Intent::ConflictResolve(ConflictResolve { new_record_id: Some(7), resolved_data, ..resolve(conflict.id) }));
    assert_eq!(data(&b, 7).unwrap(), r#"{"no":7}"#);
}

#[test]
fn a_decision_on_a_version_that_has_moved_on_changes_nothing() {
    let mut b = plain();
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    b.ok(update("a", 1, r#"{"sum":5}"#));
    let decision = |version| {
        let resolved_data = Bytes::from_static(b"{\"sum\":3}");
        Intent::ConflictResolve(ConflictResolve { version, resolved_data, ..resolve(conflict.id) })
    };
    for stale in [Some(1), Some(0), Some(99)] {
        let error = into_result(b.run(decision(stale)).0).unwrap_err();
        assert_eq!(error.code, Code::Conflict);
        assert!(error.message.contains("version 2"), "{}", error.message);
    }
    assert_eq!((data(&b, 1).unwrap().as_str(), b.state.open_conflicts().count()), (r#"{"sum":5}"#, 1));
    b.ok(decision(Some(2)));
    assert_eq!((data(&b, 1).unwrap().as_str(), b.state.open_conflicts().count()), (r#"{"sum":3}"#, 0));
}

#[test]
fn a_decision_that_names_a_conflict_and_another_record_is_refused() {
    let mut b = plain();
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    let other = ConflictResolve { table_name: "stock".into(), record_id: 2, ..resolve(conflict.id) };
    assert_eq!(b.code(Intent::ConflictResolve(other)), Code::InvalidData);
    assert_eq!(b.state.open_conflicts().count(), 1);
}

#[test]
fn what_is_no_object_that_everyone_can_read_is_refused_wherever_the_entry_comes_from() {
    let mut b = bench(ResolutionMethod::Manual, InsertPolicy::Unset);
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    let head = b.state.meta().clone();
    for bad in [
        &b"[1]"[..],
        b"1",
        b"{",
        b"{\"a\":\"\xff\"}",
        br#"{"a":"\ud800"}"#,
        br#"{"\udc00":1}"#,
        br#"{"a":1e999}"#,
        b"{\"a\":1}x",
    ] {
        let bytes = Bytes::copy_from_slice(bad);
        let update = DataUpdate { data: bytes.clone(), ..put("b", 5, Operation::Update, "") };
        let report = ConflictReport {
            device_id: "b".into(),
            table_name: "stock".into(),
            remote_version: bytes.clone(),
            ..ConflictReport::default()
        };
        let critical =
            CriticalEvent { device_id: "b".into(), event_type: "x".into(), payload: bytes.clone(), timestamp_ms: None };
        let decision = ConflictResolve { resolved_data: bytes, ..resolve(conflict.id) };
        for (intent, field) in [
            (Intent::DataUpdate(update), "new_data"),
            (Intent::ConflictReport(report), "remote_version"),
            (Intent::CriticalEvent(critical), "payload"),
            (Intent::ConflictResolve(decision), "resolved_data"),
        ] {
            let error = into_result(b.run(intent).0).unwrap_err();
            assert_eq!(error.code, Code::InvalidData);
            assert!(error.message.starts_with(field), "{}", error.message);
        }
    }
    let after = b.state.meta();
    assert_eq!(
        (after.head_seq, after.audit_head, after.conflict_head),
        (head.head_seq, head.audit_head, head.conflict_head)
    );
}

#[test]
fn so_many_conflicts_wait_in_all_and_of_a_device_and_none_is_dropped_for_another() {
    let mut b = plain();
    let sale = |device: &str, n: usize| Intent::DataUpdate(insert(device, 1, &format!(r#"{{"n":{n}}}"#)));
    let first = open(b.ok(sale("b", 0)));
    for n in 1..limits::OPEN_CONFLICTS_OF_DEVICE {
        b.ok(sale("b", n));
    }
    let before = b.state.meta().clone();
    let error = into_result(b.run(sale("b", usize::MAX)).0).unwrap_err();
    assert_eq!((error.code, error.retry_after_ms.is_some()), (Code::Unavailable, true));
    let after = b.state.meta();
    assert_eq!((after.conflict_head, after.audit_head, after.head_seq), (before.conflict_head, before.audit_head, 1));
    // Another device is not kept from waiting, a repeat not from its answer, and a decision makes room.
    b.ok(sale("c", 0));
    assert_eq!(open(b.ok(sale("b", limits::OPEN_CONFLICTS_OF_DEVICE - 1))).id, limits::OPEN_CONFLICTS_OF_DEVICE as u64);
    b.ok(Intent::ConflictResolve(ConflictResolve { new_record_id: Some(9), ..resolve(first.id) }));
    b.ok(sale("b", usize::MAX));
    // By bytes, too.
    let mut b = plain();
    let large = |n: usize| {
        let json = format!(r#"{{"n":{n},"x":"{}"}}"#, "x".repeat(limits::RECORD_DATA - 64));
        Intent::DataUpdate(insert("b", 1, &json))
    };
    let fit = limits::OPEN_CONFLICT_BYTES_OF_DEVICE / limits::RECORD_DATA;
    let waiting = (0..=fit).take_while(|n| into_result(b.run(large(*n)).0).is_ok()).count();
    assert!((fit - 1..=fit).contains(&waiting), "{waiting}");
    assert_eq!(b.code(large(usize::MAX)), Code::Unavailable);
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
}

/// A page of conflicts as plain numbers.
fn numbers((page, total): (Vec<ConflictId>, u64)) -> (Vec<u64>, u64) {
    (page.into_iter().map(ConflictId::get).collect(), total)
}

#[test]
fn resolved_conflicts_stay_readable_until_compaction_drops_the_oldest_and_open_ones_stay() {
    let mut b = plain();
    let ids: Vec<ConflictId> = (0..6)
        .map(|n| ConflictId(open(b.ok(Intent::DataUpdate(insert("b", 1, &format!(r#"{{"n":{n}}}"#))))).id))
        .collect();
    // Resolved in another order than found; 3 stays open.
    for id in [6, 1, 5, 2, 4] {
        b.ok(Intent::ConflictResolve(ConflictResolve { new_record_id: Some(100 + id), ..resolve(id as u64) }));
    }
    let of_device = |b: &StateUnderTest, device: &str, skip| {
        numbers(b.state.conflict_page(ConflictStatus::All, Some(device), None, ClassNumber::default(), 2, skip))
    };
    let page = |b: &StateUnderTest, status| {
        numbers(b.state.conflict_page(status, None, Some("stock"), ClassNumber::default(), 10, 0))
    };
    assert_eq!(page(&b, ConflictStatus::Open), (vec![3], 1));
    assert_eq!(page(&b, ConflictStatus::Resolved), (vec![4, 2, 5, 1, 6], 5));
    assert_eq!(page(&b, ConflictStatus::All), (vec![6, 5, 4, 3, 2, 1], 6));
    assert_eq!(of_device(&b, "b", 1), (vec![5, 4], 6));
    assert_eq!(of_device(&b, "nobody", 0), (vec![], 0));
    assert_eq!(of_device(&b, "c", 0), (vec![], 0));
    b.ok(Intent::Compact(Compact { conflicts_to: 2, ..Compact::default() }));
    assert_eq!(page(&b, ConflictStatus::Resolved), (vec![4, 2, 5], 3));
    b.ok(Intent::Compact(Compact { conflicts_to: u64::MAX, ..Compact::default() }));
    assert_eq!((page(&b, ConflictStatus::All), b.state.meta().resolved_compacted), ((vec![3], 1), 5));
    let (rows, seen) = conflicts(&b.tables, &ids, 1_000).unwrap();
    assert_eq!((rows.len(), rows[0].id, &*rows[0].remote_version, seen), (1, 3, &b"{\"n\":2}"[..], 6));
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
}

#[test]
fn a_page_of_conflicts_is_bounded_by_bytes_and_gives_one_at_least() {
    let mut b = plain();
    let json = format!(r#"{{"x":"{}"}}"#, "x".repeat(2_000));
    for id in 0..3 {
        b.ok(update("a", 10 + id, "{}"));
        b.ok(Intent::DataUpdate(insert("b", 10 + id, &json)));
    }
    for (bytes, rows) in [(1, 1), (5_000, 2), (100_000, 3)] {
        let (page, seen) = conflicts(&b.tables, &[1, 2, 3].map(ConflictId), bytes).unwrap();
        assert_eq!((page.len(), seen), (rows, rows));
    }
}

#[test]
fn conflicts_that_an_older_version_resolved_are_read_and_go_first() {
    let mut b = plain();
    let old = Conflict {
        id: 40,
        device_id: "b".into(),
        table_name: "stock".into(),
        record_id: 1,
        resolution: ResolutionMethod::Manual.into(),
        ..Conflict::default()
    };
    b.state.meta.for_tests().conflict_head = 40;
    b.state.put(super::tables::RowKey::Conflict(ConflictId(40)), &old);
    b.ok(Intent::DataUpdate(insert("b", 1, r#"{"n":1}"#)));
    b.state = State::open(Box::new(b.tables.clone())).unwrap();
    let conflict = b.state.open_conflicts().next().unwrap().id;
    b.ok(Intent::ConflictResolve(ConflictResolve { new_record_id: Some(2), ..resolve(conflict) }));
    let resolved = |b: &StateUnderTest| {
        numbers(b.state.conflict_page(ConflictStatus::Resolved, None, None, ClassNumber::default(), 9, 0)).0
    };
    assert_eq!(resolved(&b), [conflict, 40]);
    b.ok(Intent::Compact(Compact { conflicts_to: 0, ..Compact::default() }));
    assert_eq!(resolved(&b), [conflict]);
}

#[test]
fn elections_are_dropped_but_never_the_last_one() {
    let mut b = StateUnderTest::new();
    for n in 0..5 {
        b.ok(online(&format!("d{n}"), n, Role::Master));
    }
    let head = b.state.meta().election_head;
    assert!(head >= 3);
    b.ok(Intent::Compact(Compact { elections_to: u64::MAX, ..Compact::default() }));
    let left = super::read::elections(&b.tables, ElectionId(head), 100, 0).unwrap();
    assert_eq!((left.len(), left[0].id, b.state.meta().election_dropped), (1, head, head - 1));
    assert_eq!(b.state.meta().master, left[0].new_master);
}

/// The whole history of a record, by pages of so many rows; what each entry is, in short.
fn past(b: &StateUnderTest, id: i64, rows: usize) -> (Vec<String>, bool) {
    let (mut all, mut before) = (Vec::new(), None::<HistoryPosition>);
    loop {
        let of = b.state.history_of("stock", RecordId(id), before, rows);
        let page = history(&b.tables, &of, PageSize { rows, bytes: 1_000 }).unwrap().unwrap();
        all.extend(page.entries.iter().map(|((version, _), past)| match past {
            HistoryItem::Change(c) => format!("{version} {}", String::from_utf8_lossy(&c.data)),
            HistoryItem::Record(r) => format!("{version} kept {}", String::from_utf8_lossy(&r.data)),
            HistoryItem::Conflict(c) => format!("{version} lost {}", String::from_utf8_lossy(&c.remote_version)),
        }));
        if page.next.is_none() {
            return (all, page.dropped);
        }
        before = page.next;
    }
}

#[test]
fn a_records_history_has_its_changes_and_what_lost_without_a_gap_and_outlives_compaction() {
    let mut b = plain();
    b.ok(update("a", 2, r#"{"other":1}"#));
    b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#)));
    b.ok(Intent::DataUpdate(insert("c", 1, r#"{"sum":3}"#)));
    b.ok(update("a", 1, r#"{"sum":4}"#));
    let late = DataUpdate { timestamp_ms: Some(5), ..put("b", 1, Operation::Update, r#"{"sum":5}"#) };
    b.ok(Intent::DataUpdate(late));
    b.ok(Intent::DataUpdate(put("a", 1, Operation::Delete, "{}")));
    let whole = [
        "4 {}",
        r#"3 lost {"sum":5}"#,
        r#"3 {"sum":4}"#,
        r#"1 lost {"sum":3}"#,
        r#"1 lost {"sum":2}"#,
        r#"1 {"sum":1}"#,
    ];
    for rows in 1..8 {
        assert_eq!(past(&b, 1, rows), (whole.map(str::to_owned).to_vec(), false), "{rows} a page");
    }
    assert_eq!(past(&b, 2, 5), (vec![r#"2 {"other":1}"#.to_owned()], false));
    assert_eq!(past(&b, 3, 5), (vec![], false));
    // A place in another record's history is none in this one's.
    let of = b.state.history_of("stock", RecordId(1), Some((Seq(2), ConflictId(0))), 5);
    assert!(history(&b.tables, &of, PageSize { rows: 5, bytes: 1_000 }).unwrap().is_none());
    b.ok(Intent::Compact(Compact { changes_to: 3, audit_to: u64::MAX, ..Compact::default() }));
    assert_eq!(b.state.meta().compacted_seq, 3);
    let (left, dropped) = past(&b, 1, 2);
    assert_eq!(left, ["4 {}", r#"3 lost {"sum":5}"#, r#"1 lost {"sum":3}"#, r#"1 lost {"sum":2}"#]);
    assert!(dropped);
    assert_eq!(past(&b, 2, 5), (vec![r#"2 kept {"other":1}"#.to_owned()], true));
}

/// A decision of a device, as its gateway sends it.
fn decides(device: &str, conflict_id: Option<u64>) -> ConflictResolve {
    ConflictResolve {
        device_id: device.into(),
        by: device.into(),
        conflict_id,
        table_name: "stock".into(),
        record_id: 1,
        resolved_data: Bytes::from_static(b"{\"sum\":9}"),
        asker: Asker::Device.into(),
        ..ConflictResolve::default()
    }
}

#[test]
fn a_device_decides_its_own_conflict_and_never_the_one_that_comes_after_it() {
    let mut b = plain();
    open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    let other = open(b.ok(Intent::DataUpdate(insert("c", 1, r#"{"sum":3}"#))));
    // The same resolution twice, each checked when its own conflict was the oldest.
    b.ok(Intent::ConflictResolve(decides("b", None)));
    let head = b.state.meta().head_seq;
    assert_eq!(b.code(Intent::ConflictResolve(decides("b", None))), Code::Forbidden);
    assert_eq!(b.code(Intent::ConflictResolve(decides("b", Some(other.id)))), Code::Forbidden);
    // Nor under another device's name.
    let borrowed = ConflictResolve { device_id: "c".into(), ..decides("b", Some(other.id)) };
    assert_eq!(b.code(Intent::ConflictResolve(borrowed)), Code::Forbidden);
    assert_eq!((b.state.open_conflicts().count(), b.state.meta().head_seq), (1, head));
    b.ok(Intent::ConflictResolve(decides("c", Some(other.id))));
    assert_eq!(b.state.open_conflicts().count(), 0);
}

#[test]
fn a_policy_says_who_decides() {
    let mut b = plain();
    let policy = |decides: Decides, asker: Asker| {
        Intent::PolicyPut(PolicyPut {
            table_name: "stock".into(),
            decides: decides.into(),
            by: "boss".into(),
            asker: asker.into(),
            ..PolicyPut::default()
        })
    };
    assert_eq!(b.code(policy(Decides::Privileged, Asker::Device)), Code::Forbidden);
    b.ok(policy(Decides::Privileged, Asker::Manager));
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    assert_eq!(b.code(Intent::ConflictResolve(decides("b", Some(conflict.id)))), Code::Forbidden);
    assert_eq!(b.state.open_conflicts().count(), 1);
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
    b.ok(policy(Decides::Owner, Asker::Admin));
    b.ok(Intent::ConflictResolve(decides("b", Some(conflict.id))));
    b.ok(policy(Decides::Privileged, Asker::Admin));
    let conflict = open(b.ok(Intent::DataUpdate(insert("b", 1, r#"{"sum":2}"#))));
    let order = ConflictResolve { asker: Asker::Manager.into(), by: "boss".into(), ..decides("c", Some(conflict.id)) };
    b.ok(Intent::ConflictResolve(order));
}

#[test]
fn the_last_room_for_conflicts_of_a_table_is_for_devices_that_hold_little() {
    let mut b = plain();
    for table in ["stock", "other"] {
        let (policy, by) = (ResolutionMethod::Manual.into(), "boss".to_owned());
        b.ok(Intent::PolicyPut(PolicyPut { table_name: table.into(), policy, by, ..PolicyPut::default() }));
    }
    let report = |device: &str, table: &str, bytes: usize| {
        let remote = format!(r#"{{"x":"{}"}}"#, "x".repeat(bytes));
        Intent::ConflictReport(ConflictReport {
            device_id: device.into(),
            table_name: table.into(),
            record_id: 1,
            conflict_type: ConflictType::Data.into(),
            remote_version: Bytes::from(remote),
            ..ConflictReport::default()
        })
    };
    for device in 0..4 {
        b.ok(online(&format!("greedy-{device}"), 0, Role::Client));
        for _ in 0..limits::OPEN_CONFLICTS_OF_TABLE / 16 * 3 {
            b.ok(report(&format!("greedy-{device}"), "stock", 1));
        }
    }
    // Those that have their share have no more; the table is not full for the others.
    let error = into_result(b.run(report("greedy-0", "stock", 1)).0).unwrap_err();
    assert_eq!((error.code, error.retry_after_ms.is_some()), (Code::Unavailable, true));
    assert!(error.message.contains("table \"stock\""), "{error}");
    for _ in 0..limits::OPEN_CONFLICTS_OF_TABLE / 80 {
        b.ok(report("b", "stock", 1));
    }
    let codes: Vec<Code> =
        (0..20).filter_map(|_| into_result(b.run(report("b", "stock", 1)).0).err()).map(|e| e.code).collect();
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == Code::Unavailable), "{codes:?}");
    // Nor is another table.
    b.ok(report("greedy-0", "other", 1));
    // One that is large waits as well, for whoever has none.
    b.ok(report("c", "stock", limits::RECORD_DATA - 64));
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
}
