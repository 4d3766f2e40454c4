use proptest::prelude::*;

use super::*;
use crate::ids::Seq;
use crate::model::properties::{StateUnderTest, online, put, update};
use crate::proto::command::Intent;
use crate::proto::{ConflictReport, ConflictResolve, DataUpdate, Operation, PolicyPut, ResolutionMethod, Role};

const SALES: u32 = 5;

fn set(class: u32, tables: &[(&str, Right)], others: Right, no_new_tables: bool) -> Intent {
    let row = |(name, right): &(&str, Right)| TableAccess { table_name: (*name).into(), right: right.row().into() };
    Intent::AccessPut(AccessPut {
        class,
        tables: tables.iter().map(row).collect(),
        others: others.row().into(),
        no_new_tables,
        by: "boss".into(),
    })
}

fn sale(table: &str, record_id: i64) -> Intent {
    let update = put("till", record_id, Operation::Update, r#"{"v":1}"#);
    Intent::DataUpdate(DataUpdate { table_name: table.into(), class: SALES, ..update })
}

fn class() -> ClassNumber {
    ClassNumber::of(SALES).unwrap()
}

#[test]
fn what_nothing_was_set_for_may_do_everything() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    b.ok(sale("prices", 1));
    for class in (0..=5).map(|n| ClassNumber::of(n).unwrap_or_default()) {
        assert_eq!(b.state.access().right(class, "prices"), Right::Write);
        assert!(b.state.access().readers("prices").includes(class) && b.state.may_write(class, "new").is_ok());
    }
    b.ok(set(SALES, &[("prices", Right::Read)], Right::Write, false));
    // The cluster itself, and nodes of a version that does not say for whom they speak.
    assert!(b.state.may_write(ClassNumber::default(), "prices").is_ok());
}

#[test]
fn a_write_is_decided_by_the_rights_at_its_place_in_the_log() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    b.ok(sale("prices", 1));
    b.ok(set(SALES, &[("prices", Right::Read), ("pay", Right::None)], Right::Write, true));
    let (outcome, effects) = b.run(sale("prices", 2));
    let Some(Reply::Refused(refused)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!((refused.code, refused.field.as_str()), (Code::Forbidden.number(), "table_name"));
    assert!(refused.message.contains("sales_assistant") && effects.is_empty());
    assert_eq!(b.code(sale("pay", 1)), Code::Forbidden);
    assert_eq!(b.code(sale("new", 1)), Code::Forbidden);
    let report = ConflictReport {
        device_id: "till".into(),
        table_name: "prices".into(),
        record_id: 1,
        conflict_type: 1,
        class: SALES,
        ..ConflictReport::default()
    };
    assert_eq!(b.code(Intent::ConflictReport(report)), Code::Forbidden);
    let policy = |class, name: &str| {
        let policy = ResolutionMethod::Manual.into();
        Intent::PolicyPut(PolicyPut { table_name: name.into(), policy, class, ..PolicyPut::default() })
    };
    assert_eq!((b.code(policy(SALES, "prices")), b.code(policy(SALES, "new"))), (Code::Forbidden, Code::Forbidden));
    b.ok(policy(1, "prices"));
    let late = put("till", 1, Operation::Update, "{}");
    b.ok(Intent::DataUpdate(DataUpdate { table_name: "prices".into(), class: 1, base_version: Some(0), ..late }));
    let resolve = |class| {
        let device_id = "till".into();
        Intent::ConflictResolve(ConflictResolve {
            device_id,
            conflict_id: Some(1),
            class,
            ..ConflictResolve::default()
        })
    };
    assert_eq!(b.code(resolve(SALES)), Code::Forbidden);
    b.ok(resolve(1));
    assert_eq!(b.state.table_number("pay"), None, "a refused write makes no table");
    b.ok(set(SALES, &[], Right::Write, false));
    b.ok(sale("pay", 1));
}

/// A till whose answer was lost hears that its change was applied, whatever its class may do by now.
#[test]
fn a_repeat_is_answered_as_the_first_was_also_when_the_right_is_gone() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    let Intent::DataUpdate(sale) = sale("sales", 1) else { unreachable!() };
    let named = |id: &str| Intent::DataUpdate(DataUpdate { request_id: id.into(), ..sale.clone() });
    let queued = |n, after| Intent::DataUpdate(DataUpdate { queue: "q".into(), n, after, ..sale.clone() });
    let first = (b.ok(named("a")), b.ok(queued(1, 0)));
    b.ok(set(SALES, &[], Right::Read, false));
    assert_eq!((b.ok(named("a")), b.ok(queued(1, 0))), first);
    assert_eq!((b.code(named("b")), b.code(queued(2, 1))), (Code::Forbidden, Code::Forbidden));
    assert_eq!(b.state.queue("till", "q").unwrap().last, 1);
}

#[test]
fn a_session_is_told_what_to_forget_and_what_it_lacks() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 0, Role::Client));
    let mut change = |intent| {
        let (_, effects) = b.run(intent);
        let whole = [0, 1, 2, 3].map(|seq| b.state.access().is_whole_after(class(), Seq(seq)));
        match effects.into_iter().next() {
            Some(Effect::AccessChanged { forget, resync, .. }) => (forget, resync, whole),
            _ => (Vec::new(), Vec::new(), whole),
        }
    };
    let none = Vec::<String>::new;
    let [a, z] = ["a", "z"].map(|t| vec![t.to_owned()]);
    change(sale("a", 1));
    change(sale("z", 1));
    assert_eq!(change(set(SALES, &[("a", Right::None)], Right::Write, false)), (a.clone(), none(), [true; 4]));
    assert_eq!(change(set(SALES, &[], Right::None, false)), (z, none(), [true; 4]));
    // Whoever has read up to change 2 lacks what `a` was before; a full sync from now on does not.
    let granted = change(set(SALES, &[("a", Right::Read)], Right::None, false));
    assert_eq!(granted, (none(), a, [true, false, false, true]));
    let same = change(set(SALES, &[("a", Right::Write)], Right::None, false));
    assert_eq!(same, (none(), none(), [true, false, false, true]));
}

#[test]
fn rights_are_checked_and_bounded() {
    let mut b = StateUnderTest::new();
    let many: Vec<String> = (0..=limits::TABLES).map(|n| format!("t{n}")).collect();
    let many: Vec<(&str, Right)> = many.iter().map(|name| (name.as_str(), Right::Read)).collect();
    let unset = AccessPut {
        class: SALES,
        tables: vec![TableAccess { table_name: "a".into(), right: 0 }],
        ..AccessPut::default()
    };
    for (bad, field) in [
        (set(0, &[], Right::Read, false), "class"),
        (set(6, &[], Right::Read, false), "class"),
        (set(SALES, &many, Right::Read, false), "tables"),
        (set(SALES, &[("a", Right::Read), ("a", Right::Write)], Right::Read, false), "tables"),
        (set(SALES, &[(" ", Right::Read)], Right::Read, false), "tables"),
        (set(SALES, &[("*", Right::Read)], Right::Read, false), "tables"),
        (Intent::AccessPut(unset), "tables"),
    ] {
        let (outcome, _) = b.run(bad);
        let Some(Reply::Refused(refused)) = outcome.result else { panic!("{outcome:?}") };
        assert_eq!((refused.code, refused.field.as_str()), (Code::InvalidData.number(), field));
    }
    assert_eq!(*b.state.access(), AccessMatrix::default());
    b.ok(set(SALES, &many[1..], Right::Read, false));
}

proptest! {
    /// One question has one answer, however it is asked, and the rows tell it again.
    #[test]
    fn readers_rights_and_rows_agree(
        puts in prop::collection::vec((1..6u32, prop::collection::btree_map(0..4u8, 0..3usize, 0..4), 0..3usize), 0..12),
    ) {
        let mut b = StateUnderTest::new();
        b.ok(online("d", 0, Role::Client));
        b.ok(update("d", 1, "{}"));
        let tables = ["stock", "b", "c", "e"];
        let mut oracle = [[Right::Write; 5]; 6];
        for (class, named, others) in puts {
            let rights: Vec<_> =
                named.iter().map(|(t, right)| (tables[usize::from(*t)], Right::ALL[*right])).collect();
            b.ok(set(class, &rights, Right::ALL[others], false));
            for (at, table) in tables.iter().chain(&["other"]).enumerate() {
                let set = rights.iter().find(|(name, _)| name == table);
                oracle[class as usize][at] = set.map_or(Right::ALL[others], |(_, right)| *right);
            }
        }
        let again = State::open(Box::new(b.tables.clone())).unwrap();
        prop_assert_eq!(again.access(), b.state.access());
        for (number, rights) in (0..).zip(oracle) {
            let class = ClassNumber::of(number).unwrap_or_default();
            let access = b.state.access();
            for (table, right) in tables.iter().chain(&["other"]).zip(rights) {
                prop_assert_eq!(access.right(class, table), right);
                prop_assert_eq!(access.may_read(class, table), right >= Right::Read);
                prop_assert_eq!(access.readers(table).includes(class), right >= Right::Read);
                prop_assert_eq!(b.state.may_write(class, table).is_ok(), right == Right::Write);
            }
        }
    }
}
