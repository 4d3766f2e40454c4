use super::*;
use crate::ids::UnixMs;
use crate::model::access::ClassNumber;
use crate::model::conflict::ConflictStatus;
use crate::model::effect::Effect;
use crate::model::error::Error;
use crate::model::properties::{StateUnderTest, data, online, put, told, update};
use crate::model::read::{PageSize, history};
use crate::model::state::into_result;
use crate::proto::command::Intent;
use crate::proto::{
    AccessPut, Compact, DataUpdate, DeviceOnline, PolicyPut, ResolutionMethod, Role, TableAccess, TableRight,
};

fn reopened(b: &StateUnderTest) {
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    assert_eq!(told(&again), told(&b.state));
}

fn write(device: &str, table: &str) -> Intent {
    Intent::DataUpdate(DataUpdate { table_name: table.into(), ..put(device, 1, Operation::Update, "{}") })
}

fn error(b: &mut StateUnderTest, intent: Intent) -> Error {
    into_result(b.run(intent).0).unwrap_err()
}

fn remove(table: u32) -> TableRemove {
    TableRemove { table_name: "stock".into(), table, by: "boss".into(), asker: Asker::Admin.into(), class: 0 }
}

fn step(b: &mut StateUnderTest, table: u32) -> (TableRemoveStep, Vec<Effect>) {
    let (outcome, effects) = b.run(Intent::TableRemove(remove(table)));
    let Some(Reply::TableRemove(step)) = into_result(outcome).unwrap().result else { panic!("another outcome") };
    (step, effects)
}

#[test]
fn a_device_makes_its_share_of_tables_and_the_others_make_theirs() {
    let mut b = StateUnderTest::new();
    for device in ["till-1", "till-2"] {
        b.ok(online(device, 0, Role::Client));
    }
    let Intent::DeviceOnline(office) = online("office", 0, Role::Client) else { unreachable!() };
    b.ok(Intent::DeviceOnline(DeviceOnline { class: "manager".into(), ..office }));
    for n in 0..limits::TABLES_OF_DEVICE {
        b.ok(write("till-1", &format!("x{n}")));
    }
    let before = b.state.meta().clone();
    let report = crate::proto::ConflictReport {
        device_id: "till-1".into(),
        table_name: "by report".into(),
        ..Default::default()
    };
    for one_more in [write("till-1", "one more"), Intent::ConflictReport(report)] {
        let refused = error(&mut b, one_more);
        assert_eq!((refused.code, refused.field()), (Code::Unavailable, Some("table_name")));
        assert_eq!(refused.retry_after_ms, Some(limits::SHARE_RETRY_MS));
    }
    let after = b.state.meta();
    assert_eq!((after.head_seq, after.tables, after.audit_head), (before.head_seq, before.tables, before.audit_head));
    // The tables that are there are everybody's; the rest of the shop makes its own.
    b.ok(write("till-1", "x0"));
    b.ok(write("till-2", "x0"));
    b.ok(write("till-2", "y"));
    for n in 0..limits::TABLES_OF_PRIVILEGED {
        b.ok(write("office", &format!("o{n}")));
    }
    assert_eq!(b.code(write("office", "one more")), Code::Unavailable);
    b.ok(write("till-2", "one more"));
    reopened(&b);
    let again = State::open(Box::new(b.tables.clone())).unwrap();
    b.state = again;
    assert_eq!(b.code(write("till-1", "two more")), Code::Unavailable);
}

#[test]
fn a_table_is_removed_in_steps_and_what_is_made_under_its_name_is_another_one() {
    let mut b = StateUnderTest::new();
    for device in ["a", "b"] {
        b.ok(online(device, 0, Role::Client));
    }
    let records = 3 * limits::TABLE_REMOVE_RECORDS as i64 / 2;
    for id in 1..=records {
        b.ok(update("a", id, r#"{"n":1}"#));
    }
    b.ok(Intent::DataUpdate(put("a", 5, Operation::Delete, "{}")));
    // Some have rows of their own; a conflict waits, another one is decided.
    b.ok(Intent::Compact(Compact { changes_to: 40, audit_to: u64::MAX, ..Compact::default() }));
    for id in [6, 7] {
        b.ok(Intent::DataUpdate(put("b", id, Operation::Insert, r#"{"n":2}"#)));
    }
    let decided = crate::proto::ConflictResolve {
        device_id: "a".into(),
        conflict_id: Some(2),
        resolved_data: Bytes::from_static(b"{\"n\":3}"),
        ..Default::default()
    };
    b.ok(Intent::ConflictResolve(decided));
    let kept = b.state.tables_kept();
    let (mut deleted, mut closed, mut steps) = (0, 0, 0);
    loop {
        let (done, effects) = step(&mut b, 1);
        let gone = effects.iter().filter(|e| matches!(e, Effect::Changed(c) if c.operation() == Operation::Delete));
        assert_eq!(gone.count(), done.records as usize, "everyone hears of each");
        assert!(done.records + done.conflicts <= limits::TABLE_REMOVE_RECORDS as u32);
        (deleted, closed, steps) = (deleted + done.records, closed + done.conflicts, steps + 1);
        reopened(&b);
        if done.removed {
            break;
        }
        let busy = error(&mut b, update("a", 1, "{}"));
        assert_eq!((busy.code, busy.field()), (Code::Unavailable, Some("table_name")));
        // A node that starts now goes on from the same place.
        b.state = State::open(Box::new(b.tables.clone())).unwrap();
    }
    assert_eq!((i64::from(deleted), closed, steps), (records - 1, 1, 2));
    assert_eq!((b.state.tables_kept(), b.state.table_number("stock")), (kept - 1, None));
    assert_eq!((data(&b, 1), b.state.open_conflicts().count()), (None, 0));
    assert_eq!(
        b.state.conflict_page(ConflictStatus::All, None, None, ClassNumber::default(), 9, 0).1,
        2,
        "what lost in it stays readable"
    );
    // The same name is another table, without a past, also after a restart.
    b.ok(update("b", 6, r#"{"new":1}"#));
    reopened(&b);
    assert_eq!((b.state.table_number("stock"), b.state.tables_kept()), (Some(TableId(2)), kept));
    assert_eq!((b.state.version_of("stock", RecordId(1)), data(&b, 1)), (None, None));
    let past = b.state.history_of("stock", RecordId(6), None, 10);
    let page = history(&b.tables, &past, PageSize { rows: 10, bytes: 10_000 }).unwrap().unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!(
        b.state.conflict_page(ConflictStatus::All, None, Some("stock"), ClassNumber::default(), 9, 0),
        (vec![], 0)
    );
    // An order to remove the old one leaves it alone.
    assert_eq!(b.code(Intent::TableRemove(remove(1))), Code::Conflict);
    // Compaction drops what the old one left.
    let rows = |b: &StateUnderTest| {
        b.tables.rows().keys().filter(|k| matches!(k, RowKey::Record { table: TableId(1), .. })).count()
    };
    assert!(rows(&b) > 0 && b.state.has_leftover_tables());
    b.ok(Intent::Compact(Compact::default()));
    assert_eq!((rows(&b), b.state.has_leftover_tables()), (0, false));
    assert!(!b.tables.rows().contains_key(&RowKey::Table(TableId(1))));
    reopened(&b);
    b.ok(Intent::Compact(Compact { changes_to: u64::MAX, audit_to: u64::MAX, ..Compact::default() }));
    reopened(&b);
    assert_eq!(data(&b, 6).unwrap(), r#"{"new":1}"#);
}

#[test]
fn a_table_is_removed_by_who_may_and_only_one_that_there_is() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(update("a", 1, "{}"));
    let by_a_till = TableRemove { asker: Asker::Device.into(), ..remove(1) };
    assert_eq!(b.code(Intent::TableRemove(by_a_till)), Code::Forbidden);
    let unknown = error(&mut b, Intent::TableRemove(TableRemove { table_name: "other".into(), ..remove(1) }));
    assert_eq!((unknown.code, unknown.field()), (Code::InvalidData, Some("table_name")));
    assert_eq!(b.code(Intent::TableRemove(remove(2))), Code::Conflict);
    assert_eq!(data(&b, 1).unwrap(), "{}");
    assert!(step(&mut b, 1).0.removed);
    assert_eq!(b.code(Intent::TableRemove(remove(1))), Code::InvalidData);
}

#[test]
fn a_removal_that_nobody_goes_on_with_is_the_leaders_after_a_while() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    for id in 0..=limits::TABLE_REMOVE_RECORDS as i64 {
        b.ok(update("a", id, "{}"));
    }
    assert_eq!(b.state.idle_table_removal(UnixMs(u64::MAX)), None);
    assert!(!step(&mut b, 1).0.removed);
    assert_eq!(b.state.idle_table_removal(UnixMs(b.now + limits::TABLE_REMOVE_IDLE_MS - 1)), None);
    let next = b.state.idle_table_removal(UnixMs(b.now + limits::TABLE_REMOVE_IDLE_MS)).unwrap();
    b.ok(Intent::TableRemove(next));
    assert_eq!((b.state.table_number("stock"), b.state.idle_table_removal(UnixMs(u64::MAX))), (None, None));
}

#[test]
fn the_place_of_a_removed_table_can_be_taken() {
    let mut b = StateUnderTest::new();
    for n in 0..limits::TABLES {
        let device = format!("d{}", n / limits::TABLES_OF_DEVICE as u32);
        b.ok(online(&device, 0, Role::Client));
        let table = if n == 0 { "stock".to_owned() } else { format!("t{n}") };
        b.ok(write(&device, &table));
    }
    b.ok(online("late", 0, Role::Client));
    assert_eq!(b.code(write("late", "one more")), Code::InvalidData);
    let policy = PolicyPut { policy: ResolutionMethod::Manual.into(), by: "boss".into(), ..PolicyPut::default() };
    assert_eq!(b.code(Intent::PolicyPut(PolicyPut { table_name: "one more".into(), ..policy })), Code::InvalidData);
    assert!(step(&mut b, 1).0.removed);
    b.ok(write("late", "one more"));
    assert_eq!(b.code(write("d1", "two more")), Code::Unavailable);
    // Who made the one that is gone has its share again.
    assert_eq!(b.code(write("d0", "two more")), Code::InvalidData);
    reopened(&b);
}

#[test]
fn a_class_removes_what_it_may_write_and_what_is_left_of_a_hidden_table_stays_hidden() {
    let mut b = StateUnderTest::new();
    for device in ["a", "b"] {
        b.ok(online(device, 0, Role::Client));
    }
    b.ok(update("a", 1, r#"{"n":1}"#));
    b.ok(Intent::DataUpdate(put("b", 1, Operation::Insert, r#"{"n":2}"#)));
    let (manager, sales) = (ClassNumber::of(2).unwrap(), ClassNumber::of(5).unwrap());
    for (class, right) in [(manager, TableRight::Read), (sales, TableRight::None)] {
        let tables = vec![TableAccess { table_name: "stock".into(), right: right.into() }];
        b.ok(Intent::AccessPut(AccessPut { class: class.number(), tables, ..AccessPut::default() }));
    }
    assert_eq!(b.state.records_known_to(manager), b.state.records_known() as u64);
    let head = b.state.meta().head_seq;
    assert_eq!(b.code(Intent::TableRemove(TableRemove { class: 2, ..remove(1) })), Code::Forbidden);
    assert_eq!(b.state.meta().head_seq, head);
    b.ok(update("a", 2, "{}"));
    while !step(&mut b, 1).0.removed {}
    let seen = |b: &StateUnderTest, class| b.state.conflict_page(ConflictStatus::All, None, None, class, 9, 0).1;
    for _ in 0..2 {
        assert_eq!((seen(&b, ClassNumber::of(1).unwrap()), seen(&b, manager), seen(&b, sales)), (1, 1, 0));
        assert_eq!((b.state.records_known_to(manager), b.state.records_known_to(sales)), (0, 0));
        reopened(&b);
        b.state = State::open(Box::new(b.tables.clone())).unwrap();
    }
    // Rights are not told of tables that are gone.
    for others in [TableRight::None, TableRight::Write] {
        let put = AccessPut { class: 5, others: others.into(), ..AccessPut::default() };
        let (_, effects) = b.run(Intent::AccessPut(put));
        let Some(Effect::AccessChanged { forget, resync, .. }) = effects.first() else { panic!("{effects:?}") };
        assert!(forget.is_empty() && resync.is_empty(), "{forget:?} {resync:?}");
    }
}
