//! Reads the whole state from its rows: at the start, and after a snapshot was installed.

use std::iter::Peekable;
use std::sync::Arc;

use super::access::AccessMatrix;
use super::audit::AuditIndex;
use super::boots::NewestBoots;
use super::client_dedup::ClientDedup;
use super::conflict_index::ConflictIndex;
use super::device::devices::Devices;
use super::gates::DeviceGates;
use super::meta::{MetaRow, checked_count};
use super::node_dedup::NodeDedup;
use super::pairing::Pairings;
use super::queues::DeviceQueues;
use super::recent::RecentChanges;
use super::records::Records;
use super::row_pages::RowPages;
use super::state::State;
use super::sync::states::SyncStates;
use super::table::numbers::TableNumbers;
use super::tables::{RowKey, TablesError, TablesRead};
use super::tokens::revoked::RevokedTokens;
use crate::proto::{Audit, ChangeBlock, ClassAccess, Conflict, DeviceGate, Forgotten, Pairing, Record, Requested};

impl State {
    /// Reads everything from the rows again. Blocks on the disk if the rows are there.
    pub fn reload(&mut self) -> Result<(), TablesError> {
        let reader = self.reader();
        let rows = &*reader;
        self.forget_all(MetaRow::load(rows)?);
        self.devices = Devices::load(rows, self.meta.devices)?;
        self.sync_states = SyncStates::load(rows)?;
        self.load_access(rows)?;
        self.boots = NewestBoots::load(rows)?;
        self.table_numbers = TableNumbers::load(rows, self.meta.tables)?;
        self.load_windows(rows)?;
        self.conflicts = ConflictIndex::default();
        for row in RowPages::<Conflict>::new(rows, RowKey::Conflict(0), |k| matches!(k, RowKey::Conflict(_))) {
            let (_, row) = row?;
            self.index_conflict(&Arc::new(row));
        }
        self.tokens = RevokedTokens::load(rows)?;
        self.load_changes(rows)
    }

    fn load_access(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        let mut access = AccessMatrix::default();
        for row in RowPages::<ClassAccess>::new(rows, RowKey::Access(0), |k| matches!(k, RowKey::Access(_))) {
            access.load(row?.1);
        }
        self.access = access;
        let mut gates = DeviceGates::default();
        let from = RowKey::DeviceGate(String::new());
        for row in RowPages::<DeviceGate>::new(rows, from, |k| matches!(k, RowKey::DeviceGate(_))) {
            gates.load(row?.1);
        }
        let mut pairings = Pairings::default();
        for row in RowPages::<Pairing>::new(rows, RowKey::Pairing(String::new()), |k| matches!(k, RowKey::Pairing(_))) {
            pairings.load(row?.1);
        }
        self.pairings = pairings;
        for row in
            RowPages::<Forgotten>::new(rows, RowKey::Forgotten(String::new()), |k| matches!(k, RowKey::Forgotten(_)))
        {
            gates.load_forgotten(row?.1);
        }
        self.gates = gates;
        self.name_forgotten();
        Ok(())
    }

    fn load_windows(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        let mut answered = NodeDedup::default();
        for row in RowPages::new(rows, RowKey::Answered(0), |k| matches!(k, RowKey::Answered(_))) {
            if let (RowKey::Answered(group), row) = row? {
                checked_count(group, &RowKey::Answered(group))?;
                answered.load(group, row);
            }
        }
        self.answered = answered;
        let mut requests = ClientDedup::default();
        let from = RowKey::Requested { device: 0, slot: 0 };
        for row in RowPages::<Requested>::new(rows, from, |k| matches!(k, RowKey::Requested { .. })) {
            if let (RowKey::Requested { device, slot }, row) = row? {
                checked_count(row.number, &RowKey::Requested { device, slot })?;
                requests.load(device, slot, &row);
            }
        }
        self.requests = requests;
        let mut queues = DeviceQueues::default();
        let from = RowKey::Queue { device: 0, queue: String::new() };
        for row in RowPages::new(rows, from, |k| matches!(k, RowKey::Queue { .. })) {
            if let (RowKey::Queue { device, queue }, row) = row? {
                queues.load(device, &queue, row);
            }
        }
        self.queues = queues;
        Ok(())
    }

    /// Record versions: those that compaction wrote down, then what the kept changes made of them. The audit
    /// index: the kept changes and the rows between them, by number.
    fn load_changes(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        self.recent = RecentChanges::after(self.meta.compacted_seq);
        self.audit = AuditIndex::after(self.meta.audit_compacted);
        self.records = Records::default();
        let from = RowKey::Record { table: 0, id: i64::MIN };
        for row in RowPages::<Record>::new(rows, from, |k| matches!(k, RowKey::Record { .. })) {
            if let (RowKey::Record { table, id }, record) = row? {
                // What is left of a table that was removed waits for compaction.
                if self.table_of(table).is_some() {
                    self.records.load(table, id, &record);
                }
            }
        }
        // What is left of the rows that were dropped is evidence.
        for row in RowPages::<Audit>::new(rows, RowKey::Audit(0), |k| matches!(k, RowKey::Audit(_))) {
            let (_, mut row) = row?;
            if row.id > self.meta.audit_compacted {
                break;
            }
            row.at_ms = self.corrections().of_audit(row.id, row.at_ms);
            self.audit.load_evidence(&row);
        }
        let from = RowKey::Audit(self.meta.audit_compacted + 1);
        let mut audits = RowPages::<Audit>::new(rows, from, |k| matches!(k, RowKey::Audit(_))).peekable();
        let mut next = self.meta.compacted_seq + 1;
        for block in RowPages::<ChangeBlock>::new(rows, RowKey::Changes(0), |k| matches!(k, RowKey::Changes(_))) {
            let (key, block) = block?;
            for change in block.changes {
                // Readers find a change by counting.
                if change.seq != next || change.seq > self.meta.head_seq {
                    return Err(TablesError::Corrupt(key));
                }
                next += 1;
                if change.audit_id > self.meta.audit_compacted {
                    self.load_audits(&mut audits, change.audit_id)?;
                    let at_ms = self.corrections().of_audit(change.audit_id, change.committed_ms);
                    self.audit.add_change(at_ms, &change.device_id, change.seq);
                }
                let device = self.writer_number(&change.device_id);
                self.load_names(device, &change);
                if let Some(table) = self.table_of_change(&change) {
                    self.table_numbers.advance_head(table, change.seq);
                    self.records.load(table, change.record_id, &change.record(device));
                }
                self.recent.push(Arc::new(change));
            }
        }
        if next != self.meta.head_seq + 1 {
            return Err(TablesError::Corrupt(RowKey::Changes(next)));
        }
        self.load_audits(&mut audits, u64::MAX)
    }

    fn load_audits(&mut self, audits: &mut Peekable<RowPages<'_, Audit>>, before: u64) -> Result<(), TablesError> {
        while let Some(row) = audits.next_if(|row| !matches!(row, Ok((_, audit)) if audit.id >= before)) {
            let (_, audit) = row?;
            let at_ms = self.corrections().of_audit(audit.id, audit.at_ms);
            self.audit.add(&audit, at_ms);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
