//! The version of every record in memory, and the data of those written last.
//!
//! While a record's last change is kept, nothing else is stored of it: its version follows from the change log.
//! Compaction writes it down as a row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use crate::ids::{DeviceNumber, RecordId, TableId, UnixMs};
use crate::limits;
use crate::proto::{Change, Operation, Record};

/// A record without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The seq of its last change.
    pub seq: u64,
    pub timestamp_ms: UnixMs,
    /// The number of the device that wrote it.
    pub device: DeviceNumber,
    pub deleted: bool,
    /// `None`: only in the rows.
    pub(in crate::model) data: Option<Bytes>,
}

impl Change {
    /// What it makes of its record, without the data, which stays in the change. `device` is its sender's number.
    pub(in crate::model) fn record(&self, device: DeviceNumber) -> Record {
        let deleted = self.operation() == Operation::Delete;
        Record { seq: self.seq, timestamp_ms: self.timestamp_ms, device: device.get(), deleted, data: Bytes::new() }
    }
}

#[derive(Debug, Default)]
pub(in crate::model) struct Records {
    /// By table and id.
    versions: BTreeMap<(TableId, RecordId), Version>,
    /// Versions of each table.
    counts: BTreeMap<TableId, u64>,
    /// Data held, oldest write first, with the version that it belongs to.
    held: VecDeque<((TableId, RecordId), u64)>,
    bytes: usize,
    /// Deleted records whose last change is no longer kept.
    outlived: BTreeSet<(TableId, RecordId)>,
}

/// What a version's data weighs.
fn weight(data: &Bytes) -> usize {
    data.len() + 64
}

impl Records {
    pub(crate) fn get(&self, table: TableId, id: RecordId) -> Option<&Version> {
        self.versions.get(&(table, id))
    }

    pub(crate) fn len(&self) -> usize {
        self.versions.len()
    }

    pub(crate) fn len_of(&self, table: TableId) -> u64 {
        self.counts.get(&table).copied().unwrap_or(0)
    }

    fn insert(&mut self, key: (TableId, RecordId), version: Version) -> Option<Version> {
        let old = self.versions.insert(key, version);
        if old.is_none() {
            *self.counts.entry(key.0).or_default() += 1;
        }
        old
    }

    /// The versions after `after`, in order.
    pub(crate) fn iter_after(
        &self,
        after: Option<(TableId, RecordId)>,
    ) -> impl Iterator<Item = (&(TableId, RecordId), &Version)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.versions.range((from, std::ops::Bound::Unbounded))
    }

    /// After a write of `data`.
    pub(super) fn set(&mut self, table: TableId, id: RecordId, record: &Record, data: Bytes) {
        let key = (table, id);
        self.outlived.remove(&key);
        self.bytes += weight(&data);
        self.held.push_back((key, record.seq));
        let version = Version { data: Some(data), ..version_of(record) };
        if let Some(old) = self.insert(key, version)
            && let Some(data) = old.data
        {
            self.bytes -= weight(&data);
        }
        // The queue keeps stale markers of overwritten records: bounded with the bytes.
        while self.bytes > limits::RECORD_CACHE_BYTES || self.held.len() > limits::RECORD_CACHE_BYTES / 64 {
            let Some((key, seq)) = self.held.pop_front() else { break };
            if let Some(version) = self.versions.get_mut(&key)
                && version.seq == seq
                && let Some(data) = version.data.take()
            {
                self.bytes -= weight(&data);
            }
        }
    }

    /// The records of a table from `from` on, deleted ones included, in order.
    pub(crate) fn of_table(&self, table: TableId, from: Bound<RecordId>) -> impl Iterator<Item = (RecordId, &Version)> {
        let from = from.map(|id| (table, id));
        let from = if from == Bound::Unbounded { Bound::Included((table, RecordId::MIN)) } else { from };
        self.versions.range((from, Bound::Included((table, RecordId::MAX)))).map(|((_, id), version)| (*id, version))
    }

    /// Forgets all records of a table.
    pub(super) fn forget_table(&mut self, table: TableId) {
        self.counts.remove(&table);
        let mut from = self.versions.split_off(&(table, RecordId::MIN));
        let mut after =
            table.get().checked_add(1).map(|next| from.split_off(&(TableId(next), RecordId::MIN))).unwrap_or_default();
        self.versions.append(&mut after);
        self.bytes -= from.values().filter_map(|v| v.data.as_ref()).map(weight).sum::<usize>();
        self.outlived.retain(|(of, _)| *of != table);
    }

    /// From a record's own row.
    pub(super) fn load(&mut self, table: TableId, id: RecordId, record: &Record) {
        self.insert((table, id), version_of(record));
        if record.deleted {
            self.outlive((table, id));
        }
    }

    /// From a change, which comes after the record's row.
    pub(super) fn load_change(&mut self, table: TableId, id: RecordId, record: &Record) {
        self.insert((table, id), version_of(record));
        self.outlived.remove(&(table, id));
    }

    /// The last change of a deleted record is no longer kept.
    pub(super) fn outlive(&mut self, key: (TableId, RecordId)) {
        self.outlived.insert(key);
    }

    /// How many deleted records there are whose last change is no longer kept.
    pub(in crate::model) fn outlived(&self) -> usize {
        self.outlived.len()
    }

    /// Forgets some of them, in order.
    pub(super) fn forget_outlived(&mut self, at_most: usize) -> Vec<(TableId, RecordId)> {
        let mut gone = Vec::new();
        while gone.len() < at_most
            && let Some(key) = self.outlived.pop_first()
        {
            if let Some(version) = self.versions.remove(&key) {
                self.bytes -= version.data.as_ref().map_or(0, weight);
                if let Some(count) = self.counts.get_mut(&key.0) {
                    *count -= 1;
                }
            }
            gone.push(key);
        }
        gone
    }
}

fn version_of(record: &Record) -> Version {
    Version {
        seq: record.seq,
        timestamp_ms: UnixMs(record.timestamp_ms),
        device: DeviceNumber(record.device),
        deleted: record.deleted,
        data: None,
    }
}
