use super::super::background_tasks::{Retention, of_leader};
use super::super::change::RecordNow;
use super::super::election::decide::{Action, LeaderView, Limits, NodeView};
use super::super::properties::{StateUnderTest, online, put};
use super::super::refusal::ApplyError;
use super::super::tables::RowKey;
use super::*;
use crate::ids::{RaftTerm, RecordId, UnixMs};
use crate::limits;
use crate::model::state::into_result;
use crate::proto::{NodeBooted, Operation, Role};
use std::collections::BTreeMap;

fn start(boot: u64, knows: u32) -> Intent {
    Intent::NodeBooted(NodeBooted { boot, instance: boot + 70, knows })
}

fn told(node: u64, boot: u64) -> NodeBoot {
    NodeBoot { node, boot, instance: boot + 70, ..NodeBoot::default() }
}

/// Node 1 before any start of it.
fn told_nothing() -> NodeBoot {
    NodeBoot { node: 1, ..NodeBoot::default() }
}

fn finalize(version: u32, programs: Vec<NodeBoot>) -> Intent {
    Intent::ClusterFinalize(ClusterFinalize { version, programs, by: "admin".into() })
}

fn deletes() -> Compact {
    Compact { changes_to: u64::MAX, audit_to: u64::MAX, deleted: true, ..Compact::default() }
}

fn delete(id: i64) -> Intent {
    Intent::DataUpdate(put("a", id, Operation::Delete, ""))
}

fn insert(id: i64) -> Intent {
    Intent::DataUpdate(put("a", id, Operation::Insert, "{\"v\":1}"))
}

#[test]
fn a_version_is_raised_once_and_told_in_the_audit_log() {
    let mut b = StateUnderTest::new();
    assert_eq!(b.state.cluster_version(), 1);
    b.ok(start(3, 2));
    b.ok(finalize(2, vec![told(1, 3)]));
    let audited = b.state.meta().audit_head;
    for again in [1, 2] {
        b.ok(finalize(again, vec![told(1, 3)]));
    }
    assert_eq!((b.state.cluster_version(), b.state.meta().audit_head), (2, audited));
    assert!(b.state.meta().audit_head > 0);
    b.state.reload().unwrap();
    assert_eq!(b.state.cluster_version(), 2);
}

#[test]
fn a_node_that_was_started_anew_meanwhile_keeps_the_version_as_it_is() {
    let mut b = StateUnderTest::new();
    b.ok(start(3, 2));
    b.ok(start(4, 0));
    for programs in [vec![told(1, 3)], vec![told(1, 4), told(2, 1)], vec![told(2, 0)], vec![]] {
        let error = into_result(b.run(finalize(2, programs)).0).unwrap_err();
        assert_eq!(error.message, UNKNOWN);
    }
    assert_eq!(b.state.cluster_version(), 1);
}

#[test]
fn a_program_of_before_makes_the_same_of_what_a_newer_one_should_not_have_said() {
    let mut both = [StateUnderTest::run_by(Build::BEFORE), StateUnderTest::run_by(Build::THIS)];
    let commands = [
        start(3, 0),
        online("a", 0, Role::Client),
        insert(1),
        delete(1),
        // Its program changed meanwhile.
        finalize(2, vec![told(1, 2)]),
        Intent::Compact(deletes()),
        insert(1),
    ];
    for command in commands {
        let [before, now] = both.each_mut().map(|b| b.run(command.clone()).0);
        assert_eq!(before, now);
    }
    let [before, now] = &both;
    assert_eq!(before.state.digest(), now.state.digest());
    assert_eq!((before.state.ungated(), now.state.ungated()), (0, 1));
}

#[test]
fn a_program_that_does_not_know_the_version_stops_and_does_not_open_the_rows() {
    let mut next = StateUnderTest::run_by(Build::NEXT);
    next.ok(finalize(3, vec![told_nothing()]));
    let tables = next.tables.clone();
    let refused = State::open(Box::new(tables)).err().unwrap().to_string();
    assert!(refused.contains("version is 3, and this program knows up to 2"), "{refused}");
    let mut this = StateUnderTest::new();
    let command = ClusterFinalize { version: 3, programs: vec![told_nothing()], by: String::new() };
    let applied = this.state.cluster_finalize(NodeId(1), &command);
    assert!(
        matches!(applied, Err(ApplyError::Tables(TablesError::NewerVersion { found: 3, known: 2 }))),
        "{applied:?}"
    );
}

/// What the leader has to do, with node 2 beside it.
fn duties(b: &StateUnderTest, retention: Retention) -> Vec<Intent> {
    let nodes = BTreeMap::from([(NodeId(2), NodeView { voter: true, ..NodeView::default() })]);
    let view = LeaderView {
        state: &b.state,
        me: NodeId(1),
        term: RaftTerm(0),
        now_ms: UnixMs(b.now),
        leading_ms: 0,
        nodes: &nodes,
        tried: None,
        limits: Limits::default(),
    };
    let proposed = |action| match action {
        Action::Propose(intent) => Some(intent),
        _ => None,
    };
    of_leader(&view, retention).into_iter().filter_map(proposed).collect()
}

fn compactions(b: &StateUnderTest) -> Vec<Intent> {
    let duties = duties(b, Retention::default()).into_iter();
    duties.filter(|duty| matches!(duty, Intent::Compact(_))).collect()
}

fn raises(b: &StateUnderTest) -> Option<Intent> {
    duties(b, Retention::default()).into_iter().find(|duty| matches!(duty, Intent::ClusterFinalize(_)))
}

#[test]
fn a_new_cluster_begins_with_the_newest_version_and_one_that_ran_an_older_program_waits() {
    let mut b = StateUnderTest::new();
    b.ok(start(1, 2));
    assert_eq!(raises(&b), None, "node 2 has not booted");
    let mut upgraded = b.copy();
    upgraded.run_at(2, start(1, 0));
    upgraded.run_at(2, start(2, 2));
    assert_eq!(raises(&upgraded), None, "node 2 has a program to go back to");
    // Programs of before told no start when they founded a cluster.
    let mut founded = b.copy();
    founded.run_at(2, Intent::NodeBooted(NodeBooted::default()));
    founded.run_at(2, start(1, 2));
    assert_eq!(raises(&founded), None, "the same");
    b.run_at(2, start(1, 2));
    b.run_at(2, start(2, 2));
    let duty = raises(&b).unwrap();
    b.ok(duty);
    assert_eq!((b.state.cluster_version(), raises(&b)), (2, None));
    let mut rows = b.copy();
    rows.state.reload().unwrap();
    assert_eq!(rows.state.cluster_version(), 2);
}

fn kept(b: &StateUnderTest, id: i64) -> (bool, bool) {
    let known = !matches!(b.state.record("stock", RecordId(id)), RecordNow::Absent);
    let table = b.state.table_number("stock").unwrap();
    (known, b.tables.rows().contains_key(&RowKey::Record { table, id: RecordId(id) }))
}

#[test]
fn a_deleted_record_goes_with_its_last_change_and_no_other_one() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    // Of its life there is a row when it is deleted.
    b.ok(insert(1));
    b.ok(Intent::Compact(deletes()));
    b.ok(delete(1));
    b.ok(insert(2));
    b.ok(delete(2));
    b.ok(insert(3));
    b.ok(Intent::Compact(deletes()));
    assert_eq!((kept(&b, 1), kept(&b, 2), kept(&b, 3)), ((true, true), (true, true), (true, true)), "at version 1");
    b.ok(finalize(2, vec![told_nothing()]));
    // What version 1 left goes as well, but not what has come back meanwhile.
    b.ok(insert(2));
    b.ok(insert(4));
    b.ok(delete(4));
    let to = b.state.meta().head_seq - 2;
    b.ok(Intent::Compact(Compact { changes_to: to, ..deletes() }));
    assert_eq!((kept(&b, 1), kept(&b, 2), kept(&b, 3)), ((false, false), (true, true), (true, true)));
    assert_eq!(kept(&b, 4), (true, false), "its last change is kept");
    b.state.reload().unwrap();
    assert_eq!((kept(&b, 1), kept(&b, 2), kept(&b, 4)), ((false, false), (true, true), (true, false)));
    b.ok(Intent::Compact(deletes()));
    assert_eq!((kept(&b, 4), b.state.records_known(), b.state.records.outlived()), ((false, false), 2, 0));
    let again = b.copy();
    assert_eq!((again.state.records_known(), again.state.digest()), (2, b.state.digest()));
    // It can come again.
    b.ok(insert(1));
    assert_eq!(kept(&b, 1), (true, false));
}

#[test]
fn what_version_1_left_goes_in_steps() {
    let most = limits::COMPACT_STEP as i64;
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    for id in 0..most + 500 {
        b.ok(insert(id));
        b.ok(delete(id));
    }
    while b.state.meta().compacted_seq < b.state.meta().head_seq {
        b.ok(Intent::Compact(Compact { deleted: false, ..deletes() }));
    }
    let left = |b: &StateUnderTest| b.state.records_known();
    assert_eq!((left(&b), compactions(&b)), (most as usize + 500, vec![]));
    b.ok(finalize(2, vec![told_nothing()]));
    let [duty] = &compactions(&b)[..] else { panic!("one step is due") };
    b.ok(duty.clone());
    assert_eq!((left(&b), compactions(&b)), (500, vec![]), "less than a step is not due");
}
