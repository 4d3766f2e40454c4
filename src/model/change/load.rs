//! Reads changes and records from their rows, and the audit log, which they are a part of.

use std::sync::Arc;

use prost::Message;

use super::prints::ChangePrints;
use super::recent::RecentChanges;
use super::records::Records;
use crate::ids::{AuditId, RecordId, Seq, TableId};
use crate::model::row_pages::RowPages;
use crate::model::state::State;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::proto::{Audit, ChangeBlock, Record};
use crate::sizes::Sizes;

impl State {
    /// Record versions: those that compaction wrote down, then what the kept changes made of them. The audit
    /// index: the kept changes and the rows between them, by number.
    pub(in crate::model) fn load_changes(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        self.recent = RecentChanges::after(self.meta.compacted());
        self.prints = ChangePrints::after(self.meta.compacted());
        self.change_sizes = Sizes::default();
        self.records = Records::default();
        let from = RowKey::Record { table: TableId(0), id: RecordId::MIN };
        for row in RowPages::<Record>::new(rows, from, |k| matches!(k, RowKey::Record { .. })) {
            if let (RowKey::Record { table, id }, record) = row? {
                // What is left of a table that was removed waits for compaction.
                if self.table_of(table).is_some() {
                    self.records.load(table, id, &record);
                }
            }
        }
        self.load_evidence(rows)?;
        let from = RowKey::Audit(AuditId(self.meta.audit_compacted).plus(1));
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
                    self.load_audits(&mut audits, AuditId(change.audit_id))?;
                    self.load_audit_of(&change);
                }
                let device = self.writer_number(&change.device_id);
                self.load_names(device, &change);
                if let Some(table) = self.table_of_change(&change) {
                    self.table_numbers.advance_head(table, Seq(change.seq));
                    self.records.load_change(table, RecordId(change.record_id), &change.record(device));
                }
                self.prints.push(&change);
                self.change_sizes.push(change.seq, change.encoded_len());
                self.recent.push(Arc::new(change));
            }
        }
        if next != self.meta.head_seq + 1 {
            return Err(TablesError::Corrupt(RowKey::Changes(next)));
        }
        self.load_audits(&mut audits, AuditId::MAX)
    }
}
