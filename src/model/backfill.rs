//! Fills the in-memory indexes (record versions, audit) from the rows after a start, while the node serves.
//!
//! [`Backfill::step`] reads a page of rows without holding the state; [`State::absorb`] takes it in. What apply
//! wrote in between is newer and stays.

use super::audit::row_of_change;
use super::state::State;
use super::tables::{Key, TablesError, TablesRead, decode};
use crate::proto::{Audit, Change, ChangeBlock, Record};

const PAGE: usize = 2_048;
/// Blocks of changes read at a time.
const BLOCKS: usize = 256;

/// Id, time, change, device, event type.
type AuditLine = (u64, u64, u64, String, String);

/// How far the filling has come. Made from the state as opened or reloaded.
pub struct Backfill {
    load: u64,
    record: Option<(u32, i64)>,
    records_done: bool,
    /// The next audit id to index, going down; the two kinds of row are read side by side.
    audit: u64,
    audit_floor: u64,
    change: u64,
    changes: Vec<Change>,
    audits: Vec<Audit>,
    audits_done: bool,
}

/// A page of rows, ready to be taken in.
pub struct Page {
    load: u64,
    records: Vec<(u32, i64, Record)>,
    records_done: bool,
    audits: Vec<AuditLine>,
    audit_done: bool,
}

impl Backfill {
    pub fn of(state: &State) -> Self {
        Self {
            load: state.loads,
            record: None,
            records_done: false,
            audit: state.meta.audit_head,
            audit_floor: state.meta.audit_compacted,
            change: state.meta.head_seq,
            changes: Vec::new(),
            audits: Vec::new(),
            audits_done: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.records_done && self.audit <= self.audit_floor
    }

    /// Reads the next page.
    pub fn step(&mut self, tables: &dyn TablesRead) -> Result<Page, TablesError> {
        let records = if self.records_done { Vec::new() } else { self.read_records(tables)? };
        let audits = self.read_audits(tables)?;
        Ok(Page {
            load: self.load,
            records,
            records_done: self.records_done,
            audits,
            audit_done: self.audit <= self.audit_floor,
        })
    }

    fn read_records(&mut self, tables: &dyn TablesRead) -> Result<Vec<(u32, i64, Record)>, TablesError> {
        let (table, id) = self.record.unwrap_or((0, i64::MIN));
        let to = Key::Record { table: u32::MAX, id: i64::MAX };
        let rows = tables.range(&Key::Record { table, id }, &to, PAGE, false)?;
        self.records_done = rows.len() < PAGE;
        let mut records = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            let Key::Record { table, id } = key else { continue };
            records.push((table, id, decode(&key, value)?));
        }
        self.record = records.last().map(|(table, id, _)| (*table, *id));
        Ok(records)
    }

    /// Audit ids going down: each is either a change or a row of its own.
    fn read_audits(&mut self, tables: &dyn TablesRead) -> Result<Vec<AuditLine>, TablesError> {
        let mut out = Vec::new();
        while self.audit > self.audit_floor && out.len() < PAGE {
            if self.changes.is_empty() && self.change > 0 {
                let rows = tables.range(&Key::Changes(0), &Key::Changes(self.change), BLOCKS, true)?;
                for (key, value) in rows.into_iter().rev() {
                    let block: ChangeBlock = decode(&key, value)?;
                    self.changes.extend(block.changes);
                }
                // Dense down to the compaction mark: an empty page is the end.
                self.change = self.changes.first().map_or(0, |c| c.seq.saturating_sub(1));
            }
            if self.audits.is_empty() && !self.audits_done {
                let rows = tables.range(&Key::Audit(0), &Key::Audit(self.audit), PAGE, true)?;
                self.audits_done = rows.len() < PAGE;
                for (key, value) in rows.into_iter().rev() {
                    self.audits.push(decode(&key, value)?);
                }
            }
            let row = if self.changes.last().is_some_and(|c| c.audit_id == self.audit) {
                self.changes.pop().map(|c| (row_of_change(&c), c.seq))
            } else if self.audits.last().is_some_and(|a| a.id == self.audit) {
                self.audits.pop().map(|a| (a, 0))
            } else {
                // Compacted since: nothing older is listed either.
                self.audit = self.audit_floor;
                break;
            };
            if let Some((row, change)) = row {
                out.push((row.id, row.at_ms, change, row.device_id, row.event_type));
            }
            self.audit -= 1;
        }
        Ok(out)
    }
}

impl State {
    /// Takes in a page read from the rows. `false`: the rows were replaced since its [`Backfill`] was made.
    pub fn absorb(&mut self, page: Page) -> bool {
        if page.load != self.loads {
            return false;
        }
        for (table, id, record) in &page.records {
            self.records.fill(*table, *id, record);
        }
        if page.records_done {
            self.records.filled();
        }
        for (id, at_ms, change, device, event) in &page.audits {
            self.audit.push_front(*id, *at_ms, *change, device, event);
        }
        if page.audit_done {
            self.audit.filled();
            self.audit.forget(self.meta.audit_compacted);
        }
        true
    }

    /// Apply finds everything in memory; before, it may have to look at rows on disk.
    pub fn is_filled(&self) -> bool {
        self.records.is_complete()
    }

    /// Fills everything at once: for tests and tables in memory.
    pub fn fill(&mut self) -> Result<(), TablesError> {
        let mut backfill = Backfill::of(self);
        let reader = self.reader();
        while !backfill.is_done() {
            let page = backfill.step(&*reader)?;
            self.absorb(page);
        }
        Ok(())
    }
}
