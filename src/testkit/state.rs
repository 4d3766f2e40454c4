//! What must hold of a state whoever wrote its commands.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::ids::ElectionId;
use crate::model::audit::{AuditFilter, read_rows};
use crate::model::conflict::ConflictStatus;
use crate::model::read::{PageSize, changes_after, conflicts, elections, records_data};
use crate::model::state::State;
use crate::model::tables::{MemoryTables, RowKey, Tables, TablesError};
use crate::storage::fuzz::through_a_snapshot;
use crate::token::Class;

/// Rows of a listing.
const PAGE: usize = 1_000;
const BYTES: usize = 1 << 20;

/// What the readers of a state give.
pub(super) fn read(state: &State) -> Result<impl PartialEq + std::fmt::Debug + use<>, TablesError> {
    let (rows, meta) = (state.reader(), state.meta().clone());
    let devices: Vec<_> = state
        .devices()
        .map(|device| {
            let sync = state.sync_state(&device.device_id).cloned();
            let pending = sync.as_ref().map(|sync| state.pending_changes(sync));
            let gate = state.gate(&device.device_id).cloned();
            ((**device).clone(), sync, pending, state.offline_changes(device), gate)
        })
        .collect();
    let (page, next) = state.records_after(None, PAGE, |_| true);
    let records = (records_data(&*rows, page, BYTES)?, next);
    let size = PageSize { rows: PAGE, bytes: BYTES };
    let changes = changes_after(&*rows, meta.compacted(), meta.head(), size, |_| true)?;
    let changes = changes.map(|page| page.changes);
    let (total, audit) = state.audit_index().page(&AuditFilter::default(), PAGE, 0);
    let audit = (total, read_rows(&*rows, &audit)?);
    let elections = elections(&*rows, ElectionId(meta.election_head), PAGE, 0)?;
    let (ids, total) = state.conflict_page(ConflictStatus::All, None, None, Class::Admin.number(), PAGE, 0);
    let conflicts = (conflicts(&*rows, &ids, BYTES)?, total);
    let tables = (state.tables().to_vec(), state.records_known());
    let rights = (format!("{:?}", state.access()), format!("{:?}", state.pairings(meta.now())));
    let counts = (state.active_devices(), state.nodes_with_devices().collect::<Vec<_>>(), state.device_count());
    let logs = (changes, audit, elections, conflicts);
    Ok((meta, devices, records, logs, tables, rights, counts, state.digest()))
}

/// The state's memory is what its rows say, also of rows that went through a snapshot, and its readers can read them.
pub(super) fn check(state: &State) {
    let told = read(state).expect("a reader failed");
    let rows: BTreeMap<RowKey, Bytes> =
        state.reader().range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).unwrap().into_iter().collect();
    let (rows, applied) = through_a_snapshot(rows, &state.applied());
    let tables = MemoryTables::default();
    tables.replace(rows, applied);
    assert_eq!(tables.applied(), state.applied());
    let again = State::open(Box::new(tables)).expect("the rows cannot be read again");
    assert_eq!(read(&again).expect("a reader failed"), told, "the state read from its rows is another one");
}
