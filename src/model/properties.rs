//! What must hold after any commands, in any order, and a few walks through the main paths.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::audit::{AuditFilter, read_rows};
use super::change::RecordNow;
use super::effect::Effect;
use super::error::Code;
use super::read::{PageSize, changes_after, elections, records_data, seq_before, seq_of_time};
use super::state::{Position, State, into_result};
use super::tables::{MemoryTables, RowKey};
use super::version::Build;
use crate::ids::{DeviceNumber, ElectionId, LogIndex, RaftTerm, RecordId, Seq, TableId, UnixMs};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::*;

/// A state with its rows at hand and the next log index.
pub(crate) struct StateUnderTest {
    pub state: State,
    pub tables: MemoryTables,
    index: u64,
    number: u64,
    pub now: u64,
}

impl StateUnderTest {
    /// Node 1 leads.
    pub(crate) fn new() -> Self {
        let mut bench = Self::bare();
        bench.send(Command {
            origin: Some(CommandId { node: 1, ..CommandId::default() }),
            at_ms: 1,
            intent: Some(Intent::LeaderAnnounced(LeaderAnnounced { raft_term: 0 })),
            ..Command::default()
        });
        bench
    }

    pub(crate) fn bare() -> Self {
        Self::run_by(Build::THIS)
    }

    /// Of another program.
    pub(crate) fn run_by(build: Build) -> Self {
        let tables = MemoryTables::default();
        let state = State::open_as(Box::new(tables.clone()), build).unwrap();
        Self { state, tables, index: 0, number: 0, now: 1_000_000 }
    }

    /// The same state, on a disk of its own.
    pub(crate) fn copy(&self) -> Self {
        let tables = MemoryTables::default();
        tables.replace(self.tables.rows(), self.state.applied());
        let state = State::open(Box::new(tables.clone())).unwrap();
        Self { state, tables, ..*self }
    }

    pub(crate) fn send(&mut self, command: Command) -> (Outcome, Vec<Effect>) {
        self.index += 1;
        let batch = Bytes::from(Batch { commands: vec![command] }.encode_to_vec());
        let mut done = self
            .state
            .apply(Position { index: LogIndex(self.index), log_id: Bytes::new(), term: RaftTerm(0) }, batch)
            .unwrap();
        (done.outcomes.remove(0), done.effects)
    }

    pub(crate) fn run(&mut self, intent: Intent) -> (Outcome, Vec<Effect>) {
        self.run_at(1, intent)
    }

    pub(crate) fn run_at(&mut self, node: u64, intent: Intent) -> (Outcome, Vec<Effect>) {
        self.now += 10;
        self.number += 1;
        let origin = Some(CommandId { node, boot: 1, number: self.number });
        self.send(Command { origin, at_ms: self.now, intent: Some(intent), ..Command::default() })
    }

    pub(crate) fn ok(&mut self, intent: Intent) -> Reply {
        into_result(self.run(intent).0).unwrap().result.unwrap()
    }

    pub(crate) fn code(&mut self, intent: Intent) -> Code {
        into_result(self.run(intent).0).unwrap_err().code
    }

    fn master(&self) -> &str {
        &self.state.meta().master
    }
}

pub(crate) fn online(id: &str, priority: u32, role: Role) -> Intent {
    Intent::DeviceOnline(DeviceOnline {
        device_id: id.into(),
        role: role.into(),
        priority: Some(priority),
        presence: Presence::Session.into(),
        ..DeviceOnline::default()
    })
}

pub(crate) fn put(device: &str, id: i64, operation: Operation, data: &str) -> DataUpdate {
    DataUpdate {
        device_id: device.into(),
        table_name: "stock".into(),
        record_id: id,
        operation: operation.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..DataUpdate::default()
    }
}

pub(crate) fn update(device: &str, id: i64, data: &str) -> Intent {
    Intent::DataUpdate(put(device, id, Operation::Update, data))
}

/// The print of a change goes with the change; all else of an answer outlives it.
pub(crate) fn without_print(mut outcome: Outcome) -> Outcome {
    if let Some(Reply::Accepted(accepted)) = &mut outcome.result {
        accepted.print = 0;
    }
    outcome
}

pub(crate) fn data(bench: &StateUnderTest, id: i64) -> Option<String> {
    match bench.state.record("stock", RecordId(id)) {
        RecordNow::Absent => None,
        RecordNow::Here { data, .. } => data.map(|d| String::from_utf8(d.to_vec()).unwrap()),
        RecordNow::InRows(_) => panic!("just written"),
    }
}

#[test]
fn the_first_device_that_asks_is_master_and_only_a_higher_priority_displaces_it() {
    let mut b = StateUnderTest::new();
    b.ok(online("till", 20, Role::Client));
    b.ok(online("office", 50, Role::Master));
    assert_eq!(b.master(), "office");
    b.ok(online("same", 50, Role::Master));
    assert_eq!(b.master(), "office");
    b.ok(online("boss", 100, Role::Master));
    assert_eq!((b.master(), b.state.meta().term), ("boss", 2));
    assert_eq!(b.state.device("office").unwrap().role(), Role::Client);
}

#[test]
fn a_master_that_shuts_down_is_followed_by_the_highest_ranked_in_the_same_entry() {
    let mut b = StateUnderTest::new();
    for (id, priority) in [("m", 90), ("b", 80), ("a", 80), ("c", 20)] {
        b.ok(online(id, priority, Role::Client));
    }
    b.ok(Intent::RoleChange(RoleChange { device_id: "m".into(), role: Role::Master.into(), ..RoleChange::default() }));
    let shutdown = Intent::DeviceShutdown(DeviceShutdown { device_id: "m".into(), reason: "power".into() });
    let (_, effects) = b.run(shutdown);
    let Effect::MasterElected(election) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((election.previous_master.as_str(), election.new_master.as_str()), ("m", "a"));
    assert_eq!((election.reason(), election.participating), (ElectionReason::Shutdown, 3));
    let rows = elections(&b.tables, ElectionId(b.state.meta().election_head), 10, 0).unwrap();
    assert_eq!(rows.iter().map(|e| e.id).collect::<Vec<_>>(), [2, 1]);
    // A client that goes elects nobody.
    let (_, effects) = b.run(Intent::DeviceOffline(DeviceOffline { device_id: "c".into(), ..Default::default() }));
    assert_eq!(effects, []);
}

#[test]
fn the_last_candidate_that_goes_leaves_no_master_and_elections_are_refused() {
    let mut b = StateUnderTest::new();
    b.ok(online("only", 0, Role::Master));
    b.ok(Intent::NodeLost(NodeLost { node: 1 }));
    assert_eq!((b.master(), b.state.device("only").unwrap().role()), ("", Role::Client));
    assert_eq!(b.code(Intent::Elect(Elect { reason: 3, method: 1, ..Elect::default() })), Code::Election);
    let order = RoleChange { device_id: "only".into(), role: Role::Master.into(), ..RoleChange::default() };
    assert_eq!(b.code(Intent::RoleChange(order)), Code::DeviceOffline);
}

#[test]
fn two_triggers_at_once_elect_once() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    let elect = Intent::Elect(Elect { reason: 2, method: 3, if_term: Some(0), ..Elect::default() });
    b.ok(elect.clone());
    b.ok(elect);
    assert_eq!(b.state.meta().election_head, 1);
}

#[test]
fn a_device_registered_over_rest_is_told_so_on_its_first_session() {
    let mut b = StateUnderTest::new();
    let told: Vec<bool> = [Presence::Rest, Presence::Session, Presence::Session]
        .map(|presence| {
            let device = DeviceOnline { device_id: "d".into(), presence: presence.into(), ..DeviceOnline::default() };
            let Reply::Online(done) = b.ok(Intent::DeviceOnline(device)) else { panic!() };
            done.first
        })
        .into();
    assert_eq!(told, [true, true, false]);
}

#[test]
fn a_stale_session_loss_does_not_take_a_returned_device_offline() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    b.ok(online("d", 0, Role::Client));
    let lost = |online_count| {
        let device_id = "d".to_owned();
        Intent::DeviceOffline(DeviceOffline {
            device_id,
            session_lost: true,
            home: 1,
            online_count,
            ..Default::default()
        })
    };
    b.ok(lost(1));
    assert!(b.state.device("d").unwrap().is_active);
    b.ok(lost(2));
    assert!(!b.state.device("d").unwrap().is_active);
}

#[test]
fn a_repeated_request_is_answered_as_the_first_was_and_not_applied() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let write = Intent::DataUpdate(DataUpdate { request_id: "r1".into(), ..put("d", 1, Operation::Update, "{}") });
    let (first, effects) = b.run(write.clone());
    assert_eq!(effects.len(), 1);
    let (again, effects) = b.run(write);
    assert!(again.repeated && effects.is_empty());
    assert_eq!(again.result, first.result);
    assert_eq!(b.state.meta().head_seq, 1);
}

#[test]
fn the_request_window_is_bounded_and_forgets_the_oldest() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let write =
        |n: u64| Intent::DataUpdate(DataUpdate { request_id: format!("r{n}"), ..put("d", 1, Operation::Update, "{}") });
    let window = crate::limits::REQUEST_WINDOW;
    for n in 0..=window {
        b.ok(write(n));
    }
    assert!(b.run(write(1)).0.repeated);
    assert!(!b.run(write(0)).0.repeated);
}

#[test]
fn the_request_window_needs_no_rows_until_compaction_drops_the_changes_and_outlives_them_and_a_reload() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    b.ok(online("e", 0, Role::Client));
    let write = |device: &str, n: u64| {
        Intent::DataUpdate(DataUpdate { request_id: format!("r{n}"), ..put(device, 1, Operation::Update, "{}") })
    };
    let rows =
        |b: &StateUnderTest| b.tables.rows().keys().filter(|k| matches!(k, RowKey::Requested { .. })).count() as u64;
    let (first, _) = b.run(write("e", 0));
    let window = crate::limits::REQUEST_WINDOW;
    for n in 0..window + 10 {
        b.ok(write("d", n));
    }
    assert_eq!(rows(&b), 0);
    let head = b.state.meta().head_seq;
    while b.state.meta().compacted_seq < head {
        b.ok(Intent::Compact(Compact { changes_to: head, audit_to: u64::MAX, ..Compact::default() }));
    }
    assert_eq!(rows(&b), window + 1);
    // A conflict is answered by a row at once.
    let stale = DataUpdate { base_version: Some(1), request_id: "s".into(), ..put("e", 1, Operation::Update, "{}") };
    let (told, _) = b.run(Intent::DataUpdate(stale.clone()));
    assert_eq!(rows(&b), window + 2);
    b.state = State::open(Box::new(b.tables.clone())).unwrap();
    for (again, before) in [(b.run(write("e", 0)).0, first), (b.run(Intent::DataUpdate(stale)).0, told)] {
        assert!(again.repeated);
        assert_eq!(without_print(again).result, without_print(before).result);
    }
    assert!(b.run(write("d", 10)).0.repeated && b.run(write("d", window + 9)).0.repeated);
    assert!(!b.run(write("d", 9)).0.repeated);
}

#[test]
fn a_nodes_retry_is_applied_once_even_when_the_outcome_was_a_refusal() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    for intent in [update("d", 1, "{}"), update("nobody", 1, "{}")] {
        let origin = Some(CommandId { node: 2, boot: 9, number: b.state.meta().head_seq + 1 });
        let command = Command { origin, at_ms: 5, intent: Some(intent), ..Command::default() };
        let (first, _) = b.send(command.clone());
        let head = b.state.meta().head_seq;
        let (again, effects) = b.send(command);
        assert!(again.repeated && effects.is_empty());
        assert_eq!((again.result, b.state.meta().head_seq), (first.result, head));
    }
}

#[test]
fn the_window_of_answers_is_bounded_and_the_same_after_a_reload() {
    let window = crate::limits::ORIGIN_WINDOW;
    let mut b = StateUnderTest::new();
    let command = |node, number| {
        let intent = Some(Intent::DevicesSeen(DevicesSeen::default()));
        Command { origin: Some(CommandId { node, boot: 1, number }), at_ms: 5, intent, ..Command::default() }
    };
    b.send(command(2, 1));
    let (mut number, mut index) = (0, b.index);
    while number < 3 * window {
        let commands = (0..256)
            .map(|_| {
                number += 1;
                command(1, number)
            })
            .collect();
        index += 1;
        let batch = Bytes::from(Batch { commands }.encode_to_vec());
        b.state.apply(Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(0) }, batch).unwrap();
    }
    b.index = index;
    let rows = b.tables.rows().keys().filter(|k| matches!(k, RowKey::Answered(_))).count() as u64;
    assert!(rows < 2 * window / 32, "{rows}");
    let mut again = StateUnderTest {
        state: State::open(Box::new(b.tables.clone())).unwrap(),
        tables: b.tables.clone(),
        ..StateUnderTest::new()
    };
    again.index = b.index;
    for bench in [&mut b, &mut again] {
        for (node, at, repeated, ok) in [
            (2, 1, true, true),
            (1, number, true, true),
            (1, number - 2 * window + 1, true, true),
            (1, 1, false, false),
        ] {
            let (outcome, _) = bench.send(command(node, at));
            assert_eq!((outcome.repeated, into_result(outcome).is_ok()), (repeated, ok), "{node} {at}");
        }
    }
    assert_eq!(b.state.digest(), again.state.digest());
}

#[test]
fn a_late_write_of_another_device_is_a_conflict_and_loses() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    b.ok(update("a", 1, r#"{"v":"new"}"#));
    let late = DataUpdate { timestamp_ms: Some(5), ..put("b", 1, Operation::Update, r#"{"v":"late"}"#) };
    let (outcome, effects) = b.run(Intent::DataUpdate(late));
    assert!(matches!(outcome.result, Some(Reply::Conflict(_))));
    assert!(
        matches!(&effects[..], [Effect::ConflictFound(_), Effect::ConflictResolved(c)] if c.resolved_data == r#"{"v":"new"}"#)
    );
    assert_eq!(data(&b, 1).unwrap(), r#"{"v":"new"}"#);
    // A deleted record does not come back by a late update.
    b.ok(Intent::DataUpdate(put("a", 1, Operation::Delete, "{}")));
    let late = DataUpdate { timestamp_ms: Some(5), ..put("b", 1, Operation::Update, r#"{"v":"late"}"#) };
    b.run(Intent::DataUpdate(late));
    assert_eq!(data(&b, 1), None);
}

#[test]
fn a_clock_far_ahead_does_not_win_for_ever() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    let ahead = DataUpdate { timestamp_ms: Some(u64::MAX / 2), ..put("a", 1, Operation::Update, r#"{"v":1}"#) };
    b.ok(Intent::DataUpdate(ahead));
    b.now += 10_000;
    let now = b.now;
    b.ok(Intent::DataUpdate(DataUpdate { timestamp_ms: Some(now), ..put("b", 1, Operation::Update, r#"{"v":2}"#) }));
    assert_eq!(data(&b, 1).unwrap(), r#"{"v":2}"#);
}

#[test]
fn a_manual_conflict_stays_open_until_it_is_decided() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(update("a", 1, r#"{"v":1}"#));
    let policy =
        PolicyPut { table_name: "stock".into(), policy: ResolutionMethod::Manual.into(), ..PolicyPut::default() };
    b.ok(Intent::PolicyPut(policy));
    let write = DataUpdate { base_version: Some(0), ..put("a", 1, Operation::Update, r#"{"v":2}"#) };
    let Reply::Conflict(open) = b.ok(Intent::DataUpdate(write)) else { panic!() };
    assert_eq!((open.conflict_type(), open.local_seq, b.state.open_conflicts().count()), (ConflictType::Version, 1, 1));
    assert_eq!(data(&b, 1).unwrap(), r#"{"v":1}"#);
    let resolve = ConflictResolve {
        device_id: "a".into(),
        table_name: "stock".into(),
        record_id: 1,
        resolved_data: Bytes::from_static(br#"{"v":3}"#),
        ..ConflictResolve::default()
    };
    let (_, effects) = b.run(Intent::ConflictResolve(resolve.clone()));
    assert!(matches!(&effects[..], [Effect::Changed(_), Effect::ConflictResolved(_)]));
    assert_eq!((data(&b, 1).unwrap().as_str(), b.state.open_conflicts().count()), (r#"{"v":3}"#, 0));
    assert_eq!(b.code(Intent::ConflictResolve(resolve)), Code::Conflict);
}

#[test]
fn an_automatic_policy_merges_fields() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    let policy =
        PolicyPut { table_name: "stock".into(), policy: ResolutionMethod::Automatic.into(), ..PolicyPut::default() };
    b.ok(Intent::PolicyPut(policy));
    b.ok(update("a", 1, r#"{"price":1,"left":5}"#));
    b.ok(update("a", 1, r#"{"price":2,"left":5}"#));
    let write = DataUpdate { base_version: Some(1), ..put("b", 1, Operation::Update, r#"{"price":1,"left":4}"#) };
    let Reply::Accepted(accepted) = b.ok(Intent::DataUpdate(write)) else { panic!() };
    assert_eq!(accepted.conflict.unwrap().resolution(), ResolutionMethod::Automatic);
    assert_eq!(data(&b, 1).unwrap(), r#"{"left":4,"price":2}"#);
}

#[test]
fn pending_changes_count_what_others_wrote() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    let pending = |b: &StateUnderTest, id: &str| b.state.pending_changes(b.state.sync_state(id).unwrap());
    b.ok(Intent::SyncComplete(SyncComplete { device_id: "a".into(), ..SyncComplete::default() }));
    b.ok(update("a", 1, "{}"));
    b.ok(update("b", 2, "{}"));
    assert_eq!(pending(&b, "a"), 1);
    let set = SyncStatePut { device_id: "a".into(), pending_changes_count: Some(4), ..SyncStatePut::default() };
    b.ok(Intent::SyncStatePut(set));
    b.ok(update("b", 2, "{}"));
    assert_eq!(pending(&b, "a"), 5);
}

#[test]
fn a_page_that_takes_nothing_looks_at_so_many_bytes_and_leads_on() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let large = format!(r#"{{"pad":"{}"}}"#, "x".repeat(200_000));
    for record in 0..60 {
        b.ok(update("d", record, &large));
    }
    let size = PageSize { rows: 10, bytes: 1_000_000 };
    let (mut at, mut pages) = (Seq(0), 0);
    loop {
        let page = changes_after(&b.tables, at, Seq(60), size, |c| c.record_id == 59).unwrap().unwrap();
        (at, pages) = (page.seq, pages + 1);
        assert!(pages == 2 || (page.changes.is_empty() && page.more && (30..60).contains(&at.get())), "{at}");
        if !page.more {
            assert_eq!(page.changes.len(), 1);
            break;
        }
    }
    assert_eq!((at, pages), (Seq(60), 2));
}

#[test]
fn pages_of_changes_and_records_have_no_gap_and_no_repeat() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    for n in 0..25 {
        b.ok(update("d", n % 7, &format!(r#"{{"n":{n}}}"#)));
    }
    b.ok(Intent::DataUpdate(put("d", 3, Operation::Delete, "{}")));
    let size = PageSize { rows: 4, bytes: 1_000 };
    let (mut seqs, mut at) = (Vec::new(), Seq(0));
    loop {
        let page = changes_after(&b.tables, at, b.state.meta().head(), size, |_| true).unwrap().unwrap();
        seqs.extend(page.changes.iter().map(|c| c.seq));
        at = page.seq;
        if !page.more {
            break;
        }
    }
    assert_eq!(seqs, (1..=26).collect::<Vec<_>>());
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = b.state.records_after(after, 4, |_| true);
        let (page, cut) = records_data(&b.tables, page, 20).unwrap();
        ids.extend(page.iter().map(|(at, _)| at.id));
        after = cut.map(|at| (at.table, at.id)).or(next);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(ids, [0, 1, 2, 4, 5, 6].map(RecordId));
    let change = super::read::change(&b.tables, Seq(10)).unwrap().unwrap();
    let before = |ms| seq_before(&b.tables, Seq(0), Seq(26), ms, b.state.corrections()).unwrap();
    assert_eq!(before(UnixMs(change.committed_ms)), Seq(9));
    assert_eq!((before(UnixMs(0)), before(UnixMs::MAX)), (Seq(0), Seq(26)));
}

#[test]
fn compaction_drops_changes_after_their_audit_rows_and_is_seen_by_readers() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    for n in 0..10 {
        b.ok(update("d", n, "{}"));
    }
    b.ok(Intent::Compact(Compact { changes_to: 5, audit_to: 4, ..Compact::default() }));
    // Audit rows 1 to 4 are the registration and changes 1 to 3.
    assert_eq!((b.state.meta().audit_compacted, b.state.meta().compacted_seq), (4, 3));
    let size = PageSize { rows: 100, bytes: 100_000 };
    assert!(changes_after(&b.tables, Seq(0), Seq(10), size, |_| true).unwrap().is_none());
    assert_eq!(changes_after(&b.tables, Seq(3), Seq(10), size, |_| true).unwrap().unwrap().changes.len(), 7);
    let (total, page) = b.state.audit_index().page(&AuditFilter::default(), 100, 0);
    assert_eq!((total, read_rows(&b.tables, &page).unwrap().len()), (7, 7));
    assert_eq!(data(&b, 0).unwrap(), "{}");
}

#[test]
fn a_change_knows_the_tables_change_before_it_also_when_that_is_compacted() {
    let mut b = StateUnderTest::new();
    b.ok(online("d", 0, Role::Client));
    let write = |b: &mut StateUnderTest, table: &str| {
        let write = DataUpdate { table_name: table.into(), ..put("d", 1, Operation::Update, "{}") };
        let (_, effects) = b.run(Intent::DataUpdate(write));
        let Effect::Changed(change) = &effects[0] else { panic!("{effects:?}") };
        (change.seq, change.after)
    };
    assert_eq!(["a", "b", "a", "b"].map(|table| write(&mut b, table)), [(1, 0), (2, 0), (3, 1), (4, 2)]);
    b.ok(Intent::Compact(Compact { changes_to: 4, audit_to: 100, ..Compact::default() }));
    assert_eq!(b.state.meta().compacted_seq, 4);
    b.state.reload().unwrap();
    assert_eq!(["b", "b", "a"].map(|table| write(&mut b, table)), [(5, 4), (6, 5), (7, 3)]);
}

#[test]
fn a_sync_moves_a_device_to_what_it_was_sent() {
    let mut b = StateUnderTest::new();
    b.ok(online("a", 0, Role::Client));
    b.ok(online("b", 0, Role::Client));
    for id in 0..3 {
        b.ok(update("b", id, "{}"));
    }
    let complete = |c: SyncComplete| Intent::SyncComplete(SyncComplete { device_id: "a".into(), ..c });
    let begin = SyncBegin { device_id: "a".into(), sync_type: SyncType::Full.into(), sync_id: String::new() };
    b.ok(Intent::SyncBegin(begin));
    b.ok(complete(SyncComplete { nothing_sent: true, ..SyncComplete::default() }));
    let sync = |b: &StateUnderTest| b.state.sync_state("a").unwrap().clone();
    assert_eq!((sync(&b).cursor_seq, sync(&b).last_sync_ms, sync(&b).full_owed), (0, 1, true));
    assert_eq!(b.state.pending_changes(&sync(&b)), 3);
    let ms = b.now;
    b.ok(complete(SyncComplete { cursor_seq: Some(2), completed_ms: ms, scope: 7, ..SyncComplete::default() }));
    let after = sync(&b);
    assert_eq!((after.cursor_seq, after.last_sync_ms, after.full_owed, after.cursor_scope), (2, ms, false, 7));
    assert_eq!(b.state.pending_changes(&after), 1);
    // A cursor alone stands for the time of its change.
    b.ok(complete(SyncComplete { cursor_seq: Some(1), ..SyncComplete::default() }));
    let change = super::read::change(&b.tables, Seq(1)).unwrap().unwrap();
    assert_eq!(sync(&b).last_sync_ms, change.committed_ms);
    b.ok(Intent::Delivered(Delivered { device_id: "a".into(), seq: 99 }));
    assert_eq!((b.state.pending_changes(&sync(&b)), sync(&b).cursor_seq), (0, 1));
}

fn any_intent() -> impl Strategy<Value = Intent> {
    let device = (0..5u8).prop_map(|n| format!("d{n}"));
    let role = prop_oneof![Just(Role::Client), Just(Role::Master)];
    let write = (
        device.clone(),
        0..4i64,
        1..4i32,
        0..4u8,
        prop::option::of(0..6u64),
        prop::option::of(999_000..1_002_000u64),
        0..6u8,
        (0..3u8, 1..6u64, 0..4u64, 0..6u32, 0..4u64),
    )
        .prop_map(|(device, id, operation, value, base_version, timestamp_ms, request, more)| {
            let (queue, n, after, class, token) = more;
            let queued = queue < 2;
            Intent::DataUpdate(DataUpdate {
                class,
                token_iat: if token == 0 { 0 } else { 999 + token },
                base_version,
                timestamp_ms,
                queue: if queued { format!("q{queue}") } else { String::new() },
                n: if queued { n } else { 0 },
                after: if queued { after } else { 0 },
                request_id: if request < 3 { format!("r{request}") } else { String::new() },
                ..put(&device, id, Operation::try_from(operation).unwrap(), &format!(r#"{{"f{value}":{value}}}"#))
            })
        });
    prop_oneof![
        8 => write,
        4 => (device.clone(), 0..3u32, role.clone()).prop_map(|(id, priority, role)| online(&id, priority * 20, role)),
        1 => (device.clone(), any::<bool>(), 0..3u64).prop_map(|(device_id, session_lost, online_count)| {
            Intent::DeviceOffline(DeviceOffline { device_id, session_lost, home: 1, online_count, ..Default::default() })
        }),
        1 => device.clone().prop_map(|device_id| Intent::DeviceShutdown(DeviceShutdown { device_id, reason: String::new() })),
        1 => (1..3u64).prop_map(|node| Intent::NodeLost(NodeLost { node })),
        1 => (0..2u64).prop_map(|raft_term| Intent::LeaderAnnounced(LeaderAnnounced { raft_term })),
        1 => (0..4u64, device.clone(), 1..4u32).prop_map(|(pending_election, winner, tries)| {
            let reason = ElectionReason::Failure.into();
            Intent::ElectionStarted(ElectionStarted { pending_election, winner, tries, reason, ..Default::default() })
        }),
        2 => (0..4u64, 0..3u64, device.clone()).prop_map(|(pending_election, if_term, winner)| {
            let reason = ElectionReason::Failure.into();
            Intent::MasterElected(MasterElected { pending_election, if_term, winner, reason, ..Default::default() })
        }),
        1 => (0..4u64).prop_map(|pending_election| Intent::ElectionFailed(ElectionFailed { pending_election, why: "test".into() })),
        1 => (1..4u32).prop_map(|tries| Intent::LeaderTransferBack(LeaderTransferBack { tries })),
        1 => (device.clone(), role, 0..4i32).prop_map(|(device_id, role, asker)| {
            Intent::RoleChange(RoleChange {
                by: device_id.clone(),
                device_id,
                role: role.into(),
                reason: "test".into(),
                asker,
            })
        }),
        1 => (1..4i32, prop::option::of(0..4u64)).prop_map(|(reason, if_term)| {
            Intent::Elect(Elect { reason, method: 1, if_term, ..Elect::default() })
        }),
        1 => (device.clone(), prop::option::of(0..40u64), any::<bool>()).prop_map(|(device_id, cursor_seq, nothing_sent)| {
            Intent::SyncComplete(SyncComplete { device_id, cursor_seq, nothing_sent, ..Default::default() })
        }),
        1 => (device.clone(), 0..3i32).prop_map(|(device_id, sync_type)| {
            Intent::SyncBegin(SyncBegin { device_id, sync_type, ..Default::default() })
        }),
        1 => (device.clone(), 0..40u64).prop_map(|(device_id, seq)| Intent::Delivered(Delivered { device_id, seq })),
        2 => (device.clone(), 0..4i64, any::<bool>(), prop::option::of(0..6i64), prop::option::of(0..12u64)).prop_map(
            |(device_id, record_id, delete, new_record_id, version)| {
                Intent::ConflictResolve(ConflictResolve {
                    device_id,
                    table_name: "stock".into(),
                    record_id,
                    resolved_data: if delete { Bytes::new() } else { Bytes::from_static(b"{}") },
                    delete,
                    new_record_id,
                    version,
                    ..Default::default()
                })
            }
        ),
        1 => (device.clone(), 0..4i64, 1..4i32, 0..6u32).prop_map(|(device_id, record_id, conflict_type, class)| {
            let (local_version, remote_version) = (Bytes::from_static(b"{\"l\":1}"), Bytes::from_static(b"{}"));
            Intent::ConflictReport(ConflictReport {
                device_id,
                table_name: "stock".into(),
                record_id,
                conflict_type,
                local_version,
                remote_version,
                timestamp_ms: None,
                class,
            })
        }),
        2 => (0..4i32, 0..5i32, 0..6u32).prop_map(|(policy, insert_policy, class)| {
            Intent::PolicyPut(PolicyPut {
                table_name: "stock".into(),
                policy,
                by: "x".into(),
                insert_policy,
                decides: policy % 3,
                class,
                ..Default::default()
            })
        }),
        1 => (0..7u32, prop::collection::vec((0..3u8, 0..4i32), 0..3), 0..4i32, any::<bool>()).prop_map(
            |(class, tables, others, no_new_tables)| {
                let name = |table: u8| ["stock", "sales", "*"][usize::from(table)].to_owned();
                let tables = tables.into_iter().map(|(t, right)| TableAccess { table_name: name(t), right });
                Intent::AccessPut(AccessPut { class, tables: tables.collect(), others, no_new_tables, by: "x".into() })
            }
        ),
        1 => device.clone().prop_map(|device_id| Intent::DeviceRevoke(DeviceRevoke { device_id, by: "x".into() })),
        1 => (device.clone(), 0..4u8).prop_map(|(device_id, suspended)| {
            Intent::DeviceSuspend(DeviceSuspend { device_id, suspended: suspended == 0, by: "x".into() })
        }),
        3 => device.clone().prop_map(|device_id| Intent::DeviceForget(DeviceForget { device_id, by: "x".into() })),
        1 => (0..3u8, 0..3u8, device.clone()).prop_map(|(code, address, device_id)| {
            let (code, secret_hash) = (pair_code(code), Bytes::from(vec![code; 32]));
            let address = format!("10.0.0.{address}");
            Intent::PairAsk(PairAsk { code, secret_hash, device_id, name: String::new(), address })
        }),
        1 => (0..3u8, any::<bool>(), 0..7u32, device.clone()).prop_map(|(code, approved, class, device_id)| {
            let asker = (class % 4) as i32;
            Intent::PairDecide(PairDecide { code: pair_code(code), approved, class, device_id, by: "x".into(), asker })
        }),
        1 => (0..3u8, 0..3u8).prop_map(|(code, secret)| {
            Intent::PairClaim(PairClaim { code: pair_code(code), secret_hash: Bytes::from(vec![secret; 32]) })
        }),
        1 => (0..30u64, 0..60u64, 0..8u64, 0..4u64, prop::option::weighted(0.8, 0..4u64), any::<bool>()).prop_map(
            |(changes_to, audit_to, conflicts_to, elections_to, evidence_kept, deleted)| {
                Intent::Compact(Compact { changes_to, audit_to, conflicts_to, elections_to, evidence_kept, deleted })
            }
        ),
        1 => (1..4u32).prop_map(|version| {
            let version = version.min(Build::THIS.newest());
            let programs = vec![NodeBoot { node: 1, ..NodeBoot::default() }];
            Intent::ClusterFinalize(ClusterFinalize { version, programs, by: String::new() })
        }),
        1 => (1..4u32, device.clone()).prop_map(|(table, by)| {
            Intent::TableRemove(TableRemove { table_name: "stock".into(), table, by, ..TableRemove::default() })
        }),
        1 => Just(Intent::QueuesForget(QueuesForget {})),
        1 => device.prop_map(|jti| Intent::TokenRevoke(TokenRevoke { jti, exp_ms: 1_000_050, by: "x".into() })),
    ]
}

fn pair_code(number: u8) -> String {
    format!("AAAAAA2{}", ["A", "B", "C"][usize::from(number)])
}

/// Steps of taking over a database, in and out of order.
fn any_import() -> impl Strategy<Value = Intent> {
    let id = 1..3u64;
    let begin = (id.clone(), 0..5u64, 0..12u64).prop_map(|(import_id, election_rows, audit_rows)| {
        Intent::ImportBegin(ImportBegin {
            import_id,
            device_rows: 5,
            sync_rows: 5,
            election_rows,
            audit_rows,
            by: "x".into(),
        })
    });
    let rows = (id.clone(), 0..7u8, 1..12u64, 0..3u64).prop_map(|(import_id, device, newest, count)| {
        let device_id = format!("d{device}");
        let row = Device { device_id: device_id.clone(), row_id: u64::from(device), priority: 40, ..Device::default() };
        let ids = || (1..=newest).rev().take(count as usize);
        Intent::ImportRows(ImportRows {
            import_id,
            devices: vec![ImportDevice { device: Some(row), sync: None }],
            elections: ids().map(|id| Election { id, new_master: device_id.clone(), ..Election::default() }).collect(),
            audits: ids()
                .map(|id| Audit { id, at_ms: id * 100_000, device_id: device_id.clone(), ..Audit::default() })
                .collect(),
        })
    });
    let finish = id.prop_map(|import_id| Intent::ImportFinish(ImportFinish { import_id, by: "x".into() }));
    prop_oneof![2 => begin, 12 => rows, 1 => finish]
}

/// Commands as several nodes would send them: sometimes the same one twice. A database is taken over at the start,
/// if at all.
pub(crate) fn any_commands() -> impl Strategy<Value = Vec<Command>> {
    let intents = prop_oneof![30 => any_intent(), 1 => any_import()];
    let command = |intent| (intent, 1..3u64, 0..8u8, 0..500u64);
    let import = prop::collection::vec(command(any_import().boxed()), 0..20);
    (import, prop::collection::vec(command(intents.boxed()), 1..80))
        .prop_map(|(mut all, intents)| {
            all.extend(intents);
            all
        })
        .prop_map(|intents| {
            let mut commands: Vec<Command> = Vec::new();
            for (n, (intent, node, again, late)) in intents.into_iter().enumerate() {
                let origin = Some(CommandId { node, boot: 1, number: n as u64 + 1 });
                commands.push(Command {
                    origin,
                    at_ms: 1_000_000 + 10 * n as u64 - late.min(10 * n as u64),
                    intent: Some(intent),
                    ..Command::default()
                });
                if again == 0 {
                    let repeated = commands[n / 2].clone();
                    commands.push(repeated);
                }
            }
            commands
        })
}

#[test]
fn so_many_revoked_tokens_are_remembered_and_those_that_ended_make_room() {
    let mut b = StateUnderTest::new();
    let revoke = |jti: usize, exp_ms| Intent::TokenRevoke(TokenRevoke { jti: jti.to_string(), exp_ms, by: "x".into() });
    for jti in 0..crate::limits::REVOKED {
        b.ok(revoke(jti, if jti < 5 { b.now + 1_000_000 } else { u64::MAX }));
    }
    assert_eq!(b.code(revoke(usize::MAX, u64::MAX)), Code::Unavailable);
    b.ok(revoke(7, u64::MAX));
    // Not as soon as they seem to have ended: a clock may have been wrong by a month.
    b.now += 31 * 86_400_000;
    assert_eq!(b.code(revoke(usize::MAX, u64::MAX)), Code::Unavailable);
    assert!(b.state.is_revoked("4"));
    b.now += crate::limits::REVOKED_DAYS * 86_400_000;
    b.ok(revoke(usize::MAX, u64::MAX));
    assert!(!b.state.is_revoked("4") && b.state.is_revoked("5"));
}

/// What the memory of a state says, to compare it with one read from the rows anew.
pub(crate) fn told(state: &State) -> impl PartialEq + std::fmt::Debug {
    let devices: Vec<Device> = state.devices().map(|d| Device::clone(d)).collect();
    let sync: BTreeMap<String, SyncState> =
        devices.iter().filter_map(|d| Some((d.device_id.clone(), state.sync_state(&d.device_id)?.clone()))).collect();
    let versions: Vec<_> = (0..4)
        .map(|id| {
            state
                .version(state.table_number("stock").unwrap_or(TableId(1)), RecordId(id))
                .map(|v| (v.seq, v.timestamp_ms, v.device, v.deleted))
        })
        .collect();
    let (page, _) = state.records_after(None, 100, |_| true);
    let data = records_data(&*state.reader(), page, usize::MAX).unwrap().0;
    let open: Vec<Conflict> = state.open_conflicts().map(|c| Conflict::clone(c)).collect();
    let conflicts = (open, format!("{:?}", state.conflicts));
    let filters = [
        AuditFilter::default(),
        AuditFilter { device_id: Some("d1".into()), ..AuditFilter::default() },
        AuditFilter {
            event_type: Some("data_update".into()),
            from_ms: Some(UnixMs(1_000_100)),
            ..AuditFilter::default()
        },
        AuditFilter {
            device_id: Some("d0".into()),
            event_type: Some("role_change".into()),
            to_ms: Some(UnixMs(1_000_300)),
            ..AuditFilter::default()
        },
    ];
    let audit: Vec<_> = filters.iter().map(|f| state.audit_index().page(f, 1_000, 0)).collect();
    let requests: Vec<_> = devices
        .iter()
        .map(|d| {
            let queues = [0, 1].map(|q| format!("q{q}")).map(|queue| {
                let entries: Vec<_> =
                    (1..6).map(|n| state.requests.find_entry(DeviceNumber(d.number), &queue, n)).collect();
                (state.queue(&d.device_id, &queue).copied(), entries)
            });
            let ids = [0, 1, 2].map(|n| state.requests.find(DeviceNumber(d.number), &format!("r{n}")));
            (state.requests.next_number(DeviceNumber(d.number)), ids, queues)
        })
        .collect();
    let rights = (state.access().clone(), state.pairings(UnixMs(0)).into_iter().cloned().collect::<Vec<_>>());
    let gates: Vec<_> = (0..5).map(|n| state.gate(&format!("d{n}")).cloned()).collect();
    let names: Vec<_> = (1..=5).map(|n| state.device_name(DeviceNumber(n)).map(str::to_owned)).collect();
    let answers = (requests, conflicts, audit, (rights, gates, names, state.boots().to_vec()));
    let tables = (state.tables().to_vec(), state.table_numbers.heads().to_vec());
    (state.meta().clone(), devices, sync, (versions, data), answers, tables, state.digest())
}

fn invariants(state: &State, tables: &MemoryTables, last: &Meta) {
    let meta = state.meta();
    let masters: Vec<&str> =
        state.devices().filter(|d| d.role() == Role::Master).map(|d| d.device_id.as_str()).collect();
    assert!(masters.len() <= 1, "{masters:?}");
    assert_eq!(masters.first().copied().unwrap_or(""), meta.master);
    assert!(meta.term >= last.term && meta.now_ms >= last.now_ms && meta.head_seq >= last.head_seq);
    assert!(meta.master == last.master || meta.term > last.term || meta.master.is_empty());
    let mut previous: Option<Election> = None;
    let mut log = elections(tables, ElectionId(meta.election_head), 1_000, 0).unwrap();
    log.reverse();
    for election in log {
        if let Some(previous) = &previous {
            // Another system's elections are kept as it told them.
            let follows = election.previous_master.is_empty() || election.previous_master == previous.new_master;
            assert!(follows || election.imported);
            assert_eq!(election.id, previous.id + 1);
            assert!(election.term > previous.term);
        }
        previous = Some(election);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever time a client takes from a change, the changes after it come.
    #[test]
    fn a_time_stands_for_a_place_that_misses_nothing(writes in prop::collection::vec((0..3_000u64, 0..9_000u64), 1..40)) {
        let mut b = StateUnderTest::new();
        b.ok(online("d", 0, Role::Client));
        for (id, (pause, ahead)) in writes.iter().enumerate() {
            b.now += pause;
            let timestamp_ms = Some((b.now + ahead).saturating_sub(3_000));
            b.ok(Intent::DataUpdate(DataUpdate { timestamp_ms, ..put("d", id as i64, Operation::Update, "{}") }));
        }
        let head = b.state.meta().head();
        for seq in 1..=head.get() {
            let change = super::read::change(&b.tables, Seq(seq)).unwrap().unwrap();
            let of = |ms| seq_of_time(&b.tables, Seq(0), head, ms, b.state.corrections()).unwrap().get();
            prop_assert!(of(UnixMs(change.committed_ms)) < seq && of(UnixMs(change.timestamp_ms)) < seq);
            // And not everything comes again.
            let before = seq_before(&b.tables, Seq(0), head, UnixMs(change.committed_ms.saturating_sub(5_000)), b.state.corrections()).unwrap();
            prop_assert!(of(UnixMs(change.committed_ms)) >= before.get());
        }
    }

    #[test]
    fn any_commands_keep_the_invariants(commands in any_commands()) {
        let (mut one, mut two) = (StateUnderTest::new(), StateUnderTest::new());
        let mut seq = 0;
        let mut open = BTreeMap::new();
        for command in commands {
            let before = one.state.meta().clone();
            let (outcome, effects) = one.send(command.clone());
            let (outcome2, effects2) = two.send(command);
            prop_assert_eq!(&outcome, &outcome2);
            prop_assert_eq!(&effects, &effects2);
            prop_assert_eq!(one.state.digest(), two.state.digest());
            for effect in &effects {
                if let Effect::Changed(change) = effect {
                    seq += 1;
                    prop_assert_eq!(change.seq, seq, "dense");
                }
            }
            prop_assert!(!outcome.repeated || effects.is_empty());
            let open_now: BTreeMap<u64, Bytes> =
                one.state.open_conflicts().map(|c| (c.id, c.remote_version.clone())).collect();
            let resolved: Vec<u64> = effects
                .iter()
                .filter_map(|e| if let Effect::ConflictResolved(c) = e { Some(c.id) } else { None })
                .collect();
            for (id, data) in &open {
                // A sale that waits stays whole until somebody decides.
                prop_assert!(open_now.get(id) == Some(data) || resolved.contains(id), "{}", id);
            }
            open = open_now;
            invariants(&one.state, &one.tables, &before);
        }
        prop_assert_eq!(one.state.meta().head_seq, seq);
        prop_assert_eq!(one.tables.rows(), two.tables.rows());
        // The memory is nothing but what the rows say.
        let again = State::open(Box::new(one.tables.clone())).unwrap();
        prop_assert_eq!(told(&again), told(&one.state));
    }
}
