//! Tables: made by their first use, each device its share of them; and removed, in bounded steps.
//!
//! A number is never used again. Changes and conflicts name their table, so a table that is made anew under an old
//! name knows from which change and which conflict on they are its own (`TableName::since_seq`, `since_conflict`).

use std::ops::Bound;

use bytes::Bytes;

use self::key::KEY;
use super::change::{PendingWrite, valid_table};
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse, refuse_field, refuse_share};
use super::state::State;
use super::tables::{RowKey, TablesError};
use crate::ids::{DeviceNumber, RecordId, TableId, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Asker, Change, Operation, TableName, TableRemoval, TableRemove, TableRemoveStep};

pub(super) mod key;
pub(super) mod numbers;

impl State {
    /// The number of a table, if it was ever written to.
    pub fn table_number(&self, name: &str) -> Option<TableId> {
        self.table_numbers.number(name)
    }

    /// Tables ever written to, in the order of their numbers (from 1). Those that were removed have no name.
    pub fn tables(&self) -> &[TableName] {
        self.table_numbers.all()
    }

    /// A table by its number; `None` once it was removed.
    pub(super) fn table_of(&self, number: TableId) -> Option<&TableName> {
        self.table_numbers.get(number)
    }

    /// How many tables there are.
    pub fn tables_kept(&self) -> usize {
        self.table_numbers.count()
    }

    /// The table that a change belongs to: not one that was made later under the same name.
    pub(super) fn table_of_change(&self, change: &Change) -> Option<TableId> {
        let number = self.table_number(&change.table_name)?;
        self.table_of(number).is_some_and(|table| change.seq > table.since_seq).then_some(number)
    }

    /// The number of the table, given now if this is its first use.
    pub(super) fn number_of_table(&mut self, name: &str, device_id: &str) -> Result<TableId, ApplyError> {
        if let Some(number) = self.table_number(name) {
            return self.open_table(number);
        }
        let class = self.devices.get(device_id).map_or("", |device| &device.class);
        let privileged = matches!(class, "admin" | "manager");
        let share = if privileged { limits::TABLES_OF_PRIVILEGED } else { limits::TABLES_OF_DEVICE };
        self.number_of_table_for(name, device_id, share)
    }

    /// The same for somebody with this share of tables.
    pub(super) fn number_of_table_for(&mut self, name: &str, by: &str, share: usize) -> Result<TableId, ApplyError> {
        if let Some(number) = self.table_number(name) {
            return self.open_table(number);
        }
        let made = self.tables().iter().filter(|t| !t.name.is_empty() && t.created_by == by).count();
        if made >= share {
            let why = format!("is one too many: {by:?} has made {made} tables");
            return refuse_share("table_name", why, limits::SHARE_RETRY_MS);
        }
        if self.tables_kept() >= limits::TABLES as usize {
            let why = format!("is one too many: the cluster keeps at most {} tables", limits::TABLES);
            return refuse_field(Code::InvalidData, "table_name", why);
        }
        *self.meta.tables(KEY).tables += 1;
        let number = TableId(self.meta.tables);
        let row = TableName {
            name: name.to_owned(),
            created_by: by.to_owned(),
            since_seq: self.meta.head_seq,
            since_conflict: self.meta.conflict_head,
            ..TableName::default()
        };
        self.table_numbers.add(&mut self.txn, number, row);
        Ok(number)
    }

    /// The row of a table that is there: its policies, how far its removal has come.
    pub(super) fn save_table(&mut self, number: TableId, row: TableName) {
        self.table_numbers.save(&mut self.txn, number, row);
    }

    /// Nothing is written to a table that is being removed.
    fn open_table(&self, number: TableId) -> Result<TableId, ApplyError> {
        match self.table_of(number) {
            Some(table) if table.removal.is_some() => {
                refuse_share("table_name", "names a table that is being removed", 1_000)
            }
            _ => Ok(number),
        }
    }

    /// One step of removing a table. The first one ends writing to it; each deletes so many records, as changes that
    /// everyone hears of; the last one takes the table.
    pub(super) fn table_remove(&mut self, c: TableRemove) -> ApplyResult {
        if c.asker() == Asker::Device {
            return refuse(Code::Forbidden, "only admins and managers may remove a table");
        }
        if !valid_table(&c.table_name) {
            return refuse_field(Code::InvalidData, "table_name", "is not a usable name");
        }
        let Some(number) = self.table_number(&c.table_name) else {
            return refuse_field(Code::InvalidData, "table_name", "names no table");
        };
        self.must_write(c.class, &c.table_name)?;
        if number != TableId(c.table) {
            return refuse_field(Code::Conflict, "table_name", "names another table than when this was asked for");
        }
        let Some(mut table) = self.table_of(number).cloned() else {
            return refuse(Code::Internal, "the table has no row");
        };
        if table.removal.is_none() {
            if self.meta.tables >= limits::TABLE_NUMBERS {
                return refuse(Code::Unavailable, "so many tables were removed that no other one can be");
            }
            self.audit("table_remove", "begin", false, &c.by, format!("Table {} is being removed", c.table_name));
        }
        let mut removal = table.removal.unwrap_or_default();
        let conflicts = self.close_conflicts_of(number, &c.by, limits::TABLE_REMOVE_RECORDS);
        let left = limits::TABLE_REMOVE_RECORDS - conflicts;
        let (records, done) = self.delete_records(number, &c, &mut removal, left);
        removal.at_ms = self.meta.now_ms;
        removal.records += records as u64;
        let removed = done && left > 0;
        if removed {
            self.take_table(number, &c, removal.records);
        } else {
            // What the records' changes have made of the row meanwhile stays.
            table.removal = Some(removal);
            self.save_table(number, table);
        }
        self.notify_coordinator();
        let (records, conflicts) = (records as u32, conflicts as u32);
        Ok(Reply::TableRemove(TableRemoveStep { records, conflicts, removed }))
    }

    /// Deletes the next records; how many, and whether none is left.
    fn delete_records(
        &mut self,
        table: TableId,
        c: &TableRemove,
        removal: &mut TableRemoval,
        at_most: usize,
    ) -> (usize, bool) {
        let from = removal.deleted_to.map_or(Bound::Unbounded, |id| Bound::Excluded(RecordId(id)));
        let (mut live, mut last, mut done) = (Vec::new(), removal.deleted_to, true);
        for (looked_at, (id, version)) in self.records.of_table(table, from).enumerate() {
            if live.len() >= at_most || looked_at >= limits::TABLE_REMOVE_SCAN {
                done = false;
                break;
            }
            last = Some(id.get());
            if !version.deleted {
                live.push((id, version.seq, version.timestamp_ms));
            }
        }
        removal.deleted_to = last;
        let device = self.devices.get(&c.by).map_or(DeviceNumber(0), |device| DeviceNumber(device.number));
        for (record_id, previous_seq, timestamp_ms) in &live {
            self.write(PendingWrite {
                device,
                device_id: c.by.clone(),
                table,
                table_name: c.table_name.clone(),
                record_id: *record_id,
                operation: Operation::Delete,
                data: Bytes::from_static(b"{}"),
                timestamp_ms: self.meta.now().max(*timestamp_ms),
                previous_seq: *previous_seq,
                request_id: String::new(),
                request_number: 0,
            });
        }
        (live.len(), done)
    }

    /// The table is gone: its name is free, its number is not. Rows that compaction wrote of its records are left to
    /// compaction, with a row of the table without a name that says so.
    fn take_table(&mut self, number: TableId, c: &TableRemove, records: u64) {
        self.table_numbers.take(&mut self.txn, number, &c.table_name);
        self.forget_records_of(number);
        self.forget_conflicts_in(number);
        let details = format!("Table {} is removed; {records} records were deleted", c.table_name);
        self.audit("table_remove", "remove", false, &c.by, details);
    }

    /// A table that was removed and still has rows of records.
    fn leftover_table(&self) -> Option<TableId> {
        let left = |table: &TableName| table.name.is_empty() && table.removal.is_some();
        self.tables().iter().position(left).map(|at| TableId(at as u32 + 1))
    }

    pub fn has_leftover_tables(&self) -> bool {
        self.leftover_table().is_some()
    }

    /// Drops some of the rows that a removed table left.
    pub(super) fn drop_removed_tables(&mut self) -> Result<(), TablesError> {
        let Some(number) = self.leftover_table() else { return Ok(()) };
        let (from, to) =
            (RowKey::Record { table: number, id: RecordId::MIN }, RowKey::Record { table: number, id: RecordId::MAX });
        let rows = self.rows().range(&from, &to, limits::COMPACT_STEP as usize, false)?;
        let all = rows.len() < limits::COMPACT_STEP as usize;
        for (key, _) in rows {
            self.delete(key);
        }
        if all {
            self.table_numbers.drop_row(&mut self.txn, number);
        }
        self.notify_coordinator();
        Ok(())
    }

    /// The next step of a removal that nobody goes on with.
    pub fn idle_table_removal(&self, now_ms: UnixMs) -> Option<TableRemove> {
        let idle = |table: &TableName| {
            let last = table.removal.as_ref().filter(|_| !table.name.is_empty()).map(|removal| removal.at_ms);
            last.is_some_and(|at_ms| UnixMs(at_ms).plus_ms(limits::TABLE_REMOVE_IDLE_MS) <= now_ms)
        };
        let at = self.tables().iter().position(idle)?;
        let table_name = self.tables().get(at)?.name.clone();
        let by = "cluster".to_owned();
        Some(TableRemove { table_name, table: at as u32 + 1, by, asker: Asker::Unset.into(), class: 0 })
    }
}

#[cfg(test)]
mod tests;
