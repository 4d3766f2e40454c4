//! Records and changes, as they are looked up in memory.

use std::sync::Arc;

use super::records::Version;
use super::stored::{RecordNow, StoredData};
use crate::ids::{RecordId, Seq, TableId};
use crate::model::access::ClassNumber;
use crate::model::state::State;
use crate::proto::Change;

/// Records looked at for one page, under the lock of the state.
const RECORDS_SCAN: usize = 10_000;

impl State {
    /// Records whose versions are in memory, deleted ones included: after the start, all of them.
    pub fn records_known(&self) -> usize {
        self.records.len()
    }

    /// The same of the tables that a token of the class may read. Counted only if there are others.
    pub fn records_known_to(&self, class: ClassNumber) -> u64 {
        if self.access.of(class).is_none() {
            return self.records.len() as u64;
        }
        let tables = (1..).map(TableId).zip(self.tables()).filter(|(_, t)| self.access.may_read(class, &t.name));
        tables.map(|(number, _)| self.records.len_of(number)).sum()
    }

    pub fn record(&self, table_name: &str, id: RecordId) -> RecordNow {
        let Some(table) = self.table_number(table_name) else { return RecordNow::Absent };
        let Some(v) = self.records.get(table, id) else { return RecordNow::Absent };
        let (version, timestamp_ms) = (Seq(v.seq), v.timestamp_ms);
        match &v.data {
            _ if v.deleted => RecordNow::Here { version, timestamp_ms, data: None },
            None => RecordNow::InRows(StoredData { table, id, seq: version, timestamp_ms, device: v.device }),
            Some(data) => RecordNow::Here { version, timestamp_ms, data: Some(data.clone()) },
        }
    }

    /// Up to `limit` records that exist, after `after` in the order of table and id, in the tables that `wanted`
    /// takes; and where the next page begins, if there is more.
    pub fn records_after(
        &self,
        after: Option<(TableId, RecordId)>,
        limit: usize,
        wanted: impl Fn(TableId) -> bool,
    ) -> (Vec<StoredData>, Option<(TableId, RecordId)>) {
        self.records_where(after, limit, |table, version| !version.deleted && wanted(table))
    }

    fn records_where(
        &self,
        after: Option<(TableId, RecordId)>,
        limit: usize,
        wanted: impl Fn(TableId, &Version) -> bool,
    ) -> (Vec<StoredData>, Option<(TableId, RecordId)>) {
        let mut page = Vec::new();
        let mut last = after;
        for (scanned, ((table, id), version)) in self.records.iter_after(after).enumerate() {
            if page.len() >= limit || scanned >= RECORDS_SCAN {
                return (page, last);
            }
            last = Some((*table, *id));
            if wanted(*table, version) {
                let (seq, timestamp_ms, device) = (Seq(version.seq), version.timestamp_ms, version.device);
                page.push(StoredData { table: *table, id: *id, seq, timestamp_ms, device });
            }
        }
        (page, None)
    }

    /// The version of a record, a deleted one included; `None`: it never was.
    pub fn version_of(&self, table_name: &str, id: RecordId) -> Option<Seq> {
        let version = self.table_number(table_name).and_then(|table| self.records.get(table, id));
        version.map(|v| Seq(v.seq))
    }

    /// Up to `limit` records after `after`, in the order of table and id, in the tables that `wanted` takes: those
    /// that exist, and those that were changed (or deleted) after change `head`; and where the next page begins, if
    /// there is more.
    pub fn records_at(
        &self,
        head: Seq,
        after: Option<(TableId, RecordId)>,
        limit: usize,
        wanted: impl Fn(TableId) -> bool,
    ) -> (Vec<StoredData>, Option<(TableId, RecordId)>) {
        self.records_where(after, limit, |table, version| {
            wanted(table) && (!version.deleted || Seq(version.seq) > head)
        })
    }

    /// The changes after `seq`, oldest first; `None` if some of them are no longer in memory.
    pub fn recent_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Change>>> {
        self.recent.iter_after(seq)
    }
}
