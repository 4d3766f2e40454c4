//! What compaction drops, and what outlives it.

use bytes::Bytes;

use super::key::KEY;
use crate::ids::{AuditId, ElectionId, RecordId, Seq, UnixMs};
use crate::limits;
use crate::model::refusal::ApplyResult;
use crate::model::state::State;
use crate::model::tables::{RowKey, TablesError};
use crate::proto::outcome::Result as Reply;
use crate::proto::{ChangeBlock, Compact, Empty, Record};

/// Changes go when they have this part more than they may: not with every write.
const BYTES_SLACK: u64 = 16;

impl State {
    /// Drops the oldest changes (by whole blocks), audit rows, resolved conflicts and elections, at most
    /// [`limits::COMPACT_STEP`] of each. Audit rows that are evidence stay, as far as the command says. A change outlives its
    /// audit row: every number that the audit log lists can be shown. The last election is always kept. Deleted records go
    /// when their last change has gone, if the command says so: a device that could still need to hear of the deletion is
    /// one whose cursor is older, and does a full sync.
    pub(in crate::model) fn compact(&mut self, c: &Compact) -> ApplyResult {
        self.compact_audit(AuditId(c.audit_to), c.evidence_kept);
        let to = c.changes_to.min(self.meta.head_seq).min(self.meta.compacted_seq + limits::COMPACT_STEP);
        while self.meta.compacted_seq < to && self.drop_block(Seq(to))? {}
        if c.deleted {
            self.drop_deleted();
        }
        self.drop_resolved(c.conflicts_to);
        self.drop_removed_tables()?;
        self.drop_elections(ElectionId(c.elections_to));
        Ok(Reply::Done(Empty {}))
    }

    /// The newest change that has to go so that those that are kept have no more than so many bytes, and its audit row;
    /// `None`: they have hardly more than that.
    pub(in crate::model) fn changes_over(&self, bytes: u64) -> Option<(Seq, u64)> {
        if self.change_sizes.bytes() <= bytes + bytes / BYTES_SLACK {
            return None;
        }
        let seq = Seq(self.change_sizes.leaves(bytes)?);
        Some((seq, self.change(seq).ok().flatten()?.audit_id))
    }

    /// Whether [`State::compact`] would drop changes. Reads them.
    pub(in crate::model) fn oldest_changes_go(&self, changes_to: Seq, audit_to: u64) -> bool {
        let compacted = self.meta.audit_compacted;
        let audit_compacted = audit_to.min(compacted + limits::COMPACT_STEP).max(compacted);
        let oldest = self.row::<ChangeBlock>(&RowKey::Changes(self.meta.compacted_seq + 1));
        let last = oldest.ok().flatten().and_then(|mut block| block.changes.pop());
        let to = changes_to.get().min(self.meta.compacted_seq + limits::COMPACT_STEP);
        last.is_some_and(|last| last.seq <= to && last.audit_id <= audit_compacted)
    }

    /// Drops the oldest block, if it ends at `to` or before and its audit rows are gone. What is still a
    /// record's last change moves to the record's own row, what still answers a request to the request's.
    fn drop_block(&mut self, to: Seq) -> Result<bool, TablesError> {
        let key = RowKey::Changes(self.meta.compacted_seq + 1);
        let Some(block) = self.row::<ChangeBlock>(&key)? else { return Ok(false) };
        let Some(last) = block.changes.last() else { return Ok(false) };
        if Seq(last.seq) > to || last.audit_id > self.meta.audit_compacted {
            return Ok(false);
        }
        let fields = self.meta.changes(KEY);
        *fields.compacted_ms = last.committed_ms.max(*fields.compacted_ms);
        *fields.compacted_seq = last.seq;
        self.prints.forget_to(Seq(last.seq));
        self.change_sizes.purge(last.seq);
        self.delete(key);
        for change in block.changes {
            self.outlive_change(&change);
            let Some(table) = self.table_of_change(&change) else { continue };
            self.table_numbers.outlive_head(&mut self.txn, table, Seq(change.seq));
            let id = RecordId(change.record_id);
            let Some(version) = self.version(table, id) else { continue };
            if version.seq == change.seq {
                let data = if version.deleted { Bytes::new() } else { change.data.clone() };
                let record = Record { data, ..change.record(version.device) };
                if version.deleted {
                    self.records.outlive((table, id));
                }
                self.put(RowKey::Record { table, id }, &record);
            }
        }
        Ok(true)
    }

    /// Drops some of the deleted records whose last change is no longer kept.
    fn drop_deleted(&mut self) {
        for (table, id) in self.records.forget_outlived(limits::COMPACT_STEP as usize) {
            self.delete(RowKey::Record { table, id });
        }
    }

    /// The applied time goes back: no change that was dropped is later than that.
    pub(in crate::model) fn cap_compacted_time(&mut self, ms: UnixMs) {
        let compacted_ms = self.meta.changes(KEY).compacted_ms;
        *compacted_ms = ms.get().min(*compacted_ms);
    }
}
