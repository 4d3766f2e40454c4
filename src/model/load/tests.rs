//! Rows that no command made: they are refused with their key, and take no memory.

use bytes::Bytes;
use prost::Message;

use crate::ids::{DeviceNumber, LogIndex, RaftTerm, TableId};
use crate::limits;
use crate::model::properties::{StateUnderTest, online, update};
use crate::model::state::{Position, State};
use crate::model::tables::{MemoryTables, RowKey, Tables, TablesError};
use crate::proto::{
    AnsweredGroup, Batch, ChangeBlock, Command, CommandId, Meta, Requested, Role, SyncState, TableName, TimeCorrection,
};
use crate::testkit::alloc::measure;

fn written() -> StateUnderTest {
    let mut bench = StateUnderTest::new();
    bench.ok(online("till-1", 1, Role::Client));
    for id in 1..4 {
        bench.ok(update("till-1", id, "{}"));
    }
    bench
}

/// The key of the row that a start refuses.
fn refused(tables: &MemoryTables) -> Option<RowKey> {
    let (opened, taken) = measure(|| State::open(Box::new(tables.clone())).map(drop));
    assert!(taken.peak < 64 << 20, "{taken:?}");
    match opened {
        Ok(()) => None,
        Err(TablesError::Corrupt(key)) => Some(key),
        Err(other) => panic!("{other}"),
    }
}

fn with(key: RowKey, row: impl Message) -> Option<RowKey> {
    let mut tables = written().tables;
    assert_eq!(refused(&tables), None);
    tables.put(key, Bytes::from(row.encode_to_vec()));
    refused(&tables)
}

#[test]
fn counters_beyond_all_bounds_are_refused() {
    let good = written().state.meta().clone();
    let changed = |change: fn(&mut Meta)| {
        let mut meta = good.clone();
        change(&mut meta);
        meta
    };
    for (what, meta) in [
        ("devices", changed(|m| m.devices = u32::MAX)),
        ("tables", changed(|m| m.tables = u32::MAX)),
        ("audit rows", changed(|m| m.audit_head = u64::MAX)),
        ("dropped audit rows", changed(|m| m.audit_compacted = m.audit_head + 1)),
        ("dropped changes", changed(|m| m.compacted_seq = m.head_seq + 1)),
        ("the time", changed(|m| m.now_ms = u64::MAX)),
        (
            "a correction",
            changed(|m| m.time_corrections.push(TimeCorrection { from_ms: u64::MAX, ..TimeCorrection::default() })),
        ),
    ] {
        assert_eq!(with(RowKey::Meta, meta), Some(RowKey::Meta), "{what}");
    }
    let most = Meta { devices: limits::DEVICE_NUMBERS, tables: limits::TABLE_NUMBERS, ..good.clone() };
    assert_eq!(with(RowKey::Meta, most), None);
}

#[test]
fn a_table_whose_number_was_never_given_is_refused() {
    for number in [0, 2, 1_000_000, u32::MAX].map(TableId) {
        assert_eq!(with(RowKey::Table(number), TableName::default()), Some(RowKey::Table(number)));
    }
}

#[test]
fn changes_with_a_hole_or_behind_the_newest_are_refused() {
    let meta = written().state.meta().clone();
    let fewer = Meta { head_seq: 2, ..meta.clone() };
    assert_eq!(with(RowKey::Meta, fewer), Some(RowKey::Changes(3)));
    let more = Meta { head_seq: 9, ..meta };
    assert_eq!(with(RowKey::Meta, more), Some(RowKey::Changes(4)));
    assert_eq!(with(RowKey::Changes(2), ChangeBlock::default()), Some(RowKey::Changes(3)));
}

#[test]
fn numbers_that_have_no_next_one_are_refused() {
    let group = RowKey::Answered(u64::MAX);
    assert_eq!(with(group.clone(), AnsweredGroup::default()), Some(group));
    let slot = RowKey::Requested { device: DeviceNumber(1), slot: 0 };
    assert_eq!(with(slot.clone(), Requested { number: u64::MAX, ..Requested::default() }), Some(slot));
}

#[test]
fn a_device_that_has_not_seen_more_than_can_be_counted_is_told_the_most() {
    let mut bench = written();
    let row = SyncState { device_id: "office".into(), base: u64::MAX, ..SyncState::default() };
    bench.tables.put(RowKey::SyncState("office".into()), Bytes::from(row.encode_to_vec()));
    let state = State::open(Box::new(bench.tables.clone())).unwrap();
    assert_eq!(state.pending_changes(state.sync_state("office").unwrap()), u64::MAX);
}

/// A command of another node may have any number.
#[test]
fn the_greatest_number_of_a_command_is_one_as_any() {
    let mut state = State::open(Box::new(MemoryTables::default())).unwrap();
    let batch = |number| {
        let origin = Some(CommandId { node: 2, boot: 1, number });
        let command = Command { origin, at_ms: 1, intent: Some(online("till-1", 1, Role::Client)), principal: None };
        Bytes::from(Batch { commands: vec![command] }.encode_to_vec())
    };
    for (index, number) in [(1, 1), (2, u64::MAX), (3, u64::MAX), (4, u64::MAX - 1)] {
        let done = state
            .apply(Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(0) }, batch(number))
            .unwrap();
        assert_eq!(done.outcomes[0].repeated, index == 3, "{number}");
    }
}
