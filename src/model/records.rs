//! Record versions in memory, and the data of those written last.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::limits;
use crate::proto::Record;

/// A record without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The seq of its last change.
    pub seq: u64,
    pub timestamp_ms: u64,
    /// The number of the device that wrote it.
    pub device: u32,
    pub deleted: bool,
    /// `None`: only in the rows.
    pub(super) data: Option<Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct Records {
    versions: HashMap<(u32, i64), Version>,
    /// Every record is in `versions`: what is not there does not exist.
    complete: bool,
    /// Data held, oldest write first, with the version that it belongs to.
    held: VecDeque<((u32, i64), u64)>,
    bytes: usize,
}

/// What is known of a record without reading rows.
pub(super) enum Known<'a> {
    Absent,
    Here(&'a Version),
    /// Not loaded yet: the row decides.
    Unknown,
}

impl Records {
    pub fn unfilled(empty: bool) -> Self {
        Self { complete: empty, ..Self::default() }
    }

    pub fn get(&self, table: u32, id: i64) -> Known<'_> {
        match self.versions.get(&(table, id)) {
            Some(version) => Known::Here(version),
            None if self.complete => Known::Absent,
            None => Known::Unknown,
        }
    }

    /// After a write of `data`.
    pub fn set(&mut self, table: u32, id: i64, record: &Record, data: Bytes) {
        let key = (table, id);
        let weight = |data: &Bytes| data.len() + 64;
        self.bytes += weight(&data);
        self.held.push_back((key, record.seq));
        let version = Version { data: Some(data), ..version_of(record) };
        if let Some(old) = self.versions.insert(key, version)
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

    /// From a row read at the start; whatever apply wrote since is newer.
    pub fn fill(&mut self, table: u32, id: i64, record: &Record) {
        self.versions.entry((table, id)).or_insert_with(|| version_of(record));
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn filled(&mut self) {
        self.complete = true;
    }
}

pub(super) fn version_of(record: &Record) -> Version {
    Version {
        seq: record.seq,
        timestamp_ms: record.timestamp_ms,
        device: record.device,
        deleted: record.deleted,
        data: None,
    }
}
