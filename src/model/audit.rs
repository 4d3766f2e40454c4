//! The audit log: every operation and election, numbered. A change is its own row (`Change::audit_id`), so a
//! `data_update` costs no second one.
//!
//! Rows that are evidence ([`EvidenceKind`]) stay when compaction drops the rows around them, up to a count of their
//! own.

use std::iter::Peekable;

use self::index::DATA_UPDATE;
use self::key::KEY;
use super::change::operation_name;
use super::evidence::EvidenceKind;
use super::read::ChangeReader;
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead, get_row};
use super::time::iso;
use crate::ids::{AuditId, Seq, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Audit, AuditNote, Change, Empty, Principal};

pub(super) mod index;
pub(super) mod key;

pub(crate) use self::index::{AuditFilter, AuditIndex, AuditRef};

const HIDDEN: &str = "a change of a table that this token may not read";

impl State {
    pub fn audit_index(&self) -> &AuditIndex {
        &self.audit
    }

    pub(super) fn audit(&mut self, event_type: &str, operation: &str, error: bool, device_id: &str, details: String) {
        self.audit_row(event_type, operation, error, device_id, details, false);
    }

    /// A row of evidence, but what it tells of changed nothing if `unchanged`: then it is none. Who asks for the same
    /// again and again pushes out no row that tells of a change.
    pub(super) fn audit_row(
        &mut self,
        event_type: &str,
        operation: &str,
        error: bool,
        device_id: &str,
        details: String,
        unchanged: bool,
    ) {
        *self.meta.audit(KEY).audit_head += 1;
        let (id, at_ms) = (AuditId(self.meta.audit_head), self.meta.now());
        // A device that does something of its own is the row's. What is evidence names the token in any case.
        let names = |p: &&Principal| p.sub != device_id || EvidenceKind::of(event_type).is_some();
        let by = self.txn.principal.as_ref().filter(names).cloned().unwrap_or_default();
        let row = Audit {
            id: id.get(),
            event_type: event_type.to_owned(),
            operation: operation.to_owned(),
            error,
            device_id: device_id.to_owned(),
            details,
            at_ms: at_ms.get(),
            by: by.sub,
            jti: by.jti,
            unchanged,
        };
        self.put(RowKey::Audit(id), &row);
        self.audit.add(&row, at_ms);
    }

    /// The audit number of the change that is about to be written.
    pub(super) fn audit_change(&mut self, device_id: &str, seq: Seq) -> AuditId {
        *self.meta.audit(KEY).audit_head += 1;
        self.audit.add_change(self.meta.now(), device_id, seq);
        AuditId(self.meta.audit_head)
    }

    /// Drops the oldest rows up to `to`, but for evidence, of which the newest `evidence_kept` of each kind stay.
    pub(super) fn compact_audit(&mut self, to: AuditId, evidence_kept: Option<u64>) {
        let done = AuditId(self.meta.audit_compacted);
        let to = to.min(AuditId(self.meta.audit_head)).min(done.plus(limits::COMPACT_STEP));
        for id in done.plus(1).up_to(to) {
            if evidence_kept.is_none() || !self.audit.is_evidence(id) {
                self.delete(RowKey::Audit(id));
            }
            *self.meta.audit(KEY).audit_compacted = id.get();
        }
        self.audit.forget(AuditId(self.meta.audit_compacted), evidence_kept.is_some());
        if let Some(keep) = evidence_kept {
            for id in self.audit.drop_evidence(keep, limits::COMPACT_STEP as usize) {
                self.delete(RowKey::Audit(id));
            }
        }
    }

    /// The rows of the empty cluster give way to `rows` of a database; how many they were.
    pub(super) fn audit_gives_way(&mut self, rows: u64) -> u64 {
        let done = AuditId(self.meta.audit_compacted);
        let audits = done.plus(1).up_to(AuditId(self.meta.audit_head));
        // Evidence of the empty cluster, too.
        let evidence = self.audit.between(AuditId(0), done, usize::MAX);
        let gone = (evidence.len() + audits.clone().count()) as u64;
        for id in evidence.into_iter().map(|row| row.id).chain(audits) {
            self.delete(RowKey::Audit(id));
        }
        let fields = self.meta.audit(KEY);
        (*fields.audit_head, *fields.audit_compacted) = (rows, rows);
        self.audit = AuditIndex::after(AuditId(rows));
        gone
    }

    /// A database's row is here; they come newest first. The time up to which the next one is; `None`: it is not the
    /// next row.
    pub(super) fn import_audit(&mut self, row: Audit, before_ms: UnixMs) -> Option<UnixMs> {
        if row.id == 0 || row.id != self.meta.audit_compacted {
            return None;
        }
        *self.meta.audit(KEY).audit_compacted -= 1;
        // Listings by date need times that never go back.
        let at_ms = before_ms.min(UnixMs(row.at_ms));
        let row = Audit { at_ms: at_ms.get(), ..row };
        self.put(RowKey::Audit(AuditId(row.id)), &row);
        self.audit.older(&row);
        Some(at_ms)
    }

    /// The applied time goes back: no row is later than that.
    pub(super) fn cap_audit_times(&mut self, ms: UnixMs) {
        self.audit.cap_times(ms);
    }

    /// What is left of the rows that were dropped is evidence. The rows after them are still to be read.
    pub(super) fn load_evidence(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        self.audit = AuditIndex::after(AuditId(self.meta.audit_compacted));
        for row in RowPages::<Audit>::new(rows, RowKey::Audit(AuditId(0)), |k| matches!(k, RowKey::Audit(_))) {
            let (_, mut row) = row?;
            if row.id > self.meta.audit_compacted {
                break;
            }
            row.at_ms = self.corrections().of_audit(AuditId(row.id), UnixMs(row.at_ms)).get();
            self.audit.load_evidence(&row);
        }
        Ok(())
    }

    /// The next row is this change.
    pub(super) fn load_audit_of(&mut self, change: &Change) {
        let at_ms = self.corrections().of_audit(AuditId(change.audit_id), UnixMs(change.committed_ms));
        self.audit.add_change(at_ms, &change.device_id, Seq(change.seq));
    }

    /// The rows up to `before`, none of which is a change.
    pub(super) fn load_audits(
        &mut self,
        audits: &mut Peekable<RowPages<'_, Audit>>,
        before: AuditId,
    ) -> Result<(), TablesError> {
        while let Some(row) = audits.next_if(|row| !matches!(row, Ok((_, audit)) if AuditId(audit.id) >= before)) {
            let (_, audit) = row?;
            let at_ms = self.corrections().of_audit(AuditId(audit.id), UnixMs(audit.at_ms));
            self.audit.add(&audit, at_ms);
        }
        Ok(())
    }

    pub(super) fn audit_note(&mut self, c: AuditNote) -> Reply {
        self.audit(&c.event_type, &c.operation, c.error, &c.device_id, c.details);
        Reply::Done(Empty {})
    }
}

/// The audit row that a change is.
pub(crate) fn row_of_change(change: &Change) -> Audit {
    let operation = operation_name(change.operation());
    let details = format!(
        "{operation} of {}/{} as change {} at {}",
        change.table_name,
        change.record_id,
        change.seq,
        iso(UnixMs(change.committed_ms))
    );
    let by = change.principal.clone().unwrap_or_default();
    Audit {
        id: change.audit_id,
        event_type: DATA_UPDATE.into(),
        operation: operation.into(),
        error: false,
        device_id: change.device_id.clone(),
        details,
        at_ms: change.committed_ms,
        by: by.sub,
        jti: by.jti,
        unchanged: false,
    }
}

/// Reads the rows of a page. Rows compacted since the page was made are left out.
pub(crate) fn read_rows(tables: &dyn TablesRead, page: &[AuditRef]) -> Result<Vec<Audit>, TablesError> {
    read_rows_shown(tables, page, |_| true)
}

/// The same for a reader who may not read every table: of a change of another one it is told that there was one.
pub(crate) fn read_rows_shown(
    tables: &dyn TablesRead,
    page: &[AuditRef],
    shown: impl Fn(&str) -> bool,
) -> Result<Vec<Audit>, TablesError> {
    let row_of = |change: &Change| {
        let row = row_of_change(change);
        let details = if shown(&change.table_name) { row.details } else { HIDDEN.to_owned() };
        Audit { details, ..row }
    };
    let mut rows = Vec::with_capacity(page.len());
    let mut changes = ChangeReader::new(tables);
    for at in page {
        let row = match at.change {
            Some(change) => changes.get(change)?.map(row_of),
            None => get_row::<Audit>(tables, &RowKey::Audit(at.id))?,
        };
        rows.extend(row);
    }
    Ok(rows)
}
