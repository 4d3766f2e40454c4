//! For the fuzz target and tests of what a disk gives back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::durability::poison::Poison;
use super::engine::SledEngine;
use super::engine::keys;
use super::folder::format;
use super::open;
use super::rows::tables::{SledTables, TablesShared};
use super::snapshot::file::{SnapshotRows, SnapshotWriter};
use crate::ids::LogIndex;
use crate::model::tables::{RowKey, Tables};
use crate::proto::Applied;

/// Rows as they come out of a snapshot that they went into.
pub(crate) fn through_a_snapshot(
    rows: BTreeMap<RowKey, Bytes>,
    applied: &Applied,
) -> (BTreeMap<RowKey, Bytes>, Applied) {
    let bytes = write_snapshot(&rows, applied);
    let mut input = SnapshotRows::new(&bytes[..]).expect("a snapshot can be read");
    let mut again = BTreeMap::new();
    while let Some((key, value)) = input.next_row().expect("a snapshot can be read") {
        again.insert(key, value);
    }
    assert_eq!(again, rows);
    (again, input.applied)
}

/// A snapshot's bytes.
pub(crate) fn write_snapshot(rows: &BTreeMap<RowKey, Bytes>, applied: &Applied) -> Vec<u8> {
    let write = || {
        let mut out = SnapshotWriter::new(Vec::new(), applied)?;
        rows.iter().try_for_each(|(key, value)| out.row(key, value))?;
        out.finish()
    };
    write().expect("every row fits into a snapshot").0
}

/// Reads a snapshot's bytes; also as they would be with the right checksum, which nobody guesses.
pub(crate) fn read_snapshot(bytes: &[u8]) -> Vec<io::Result<Applied>> {
    let mut right = bytes.to_vec();
    if let Some((all, sum)) = right.split_last_chunk_mut::<8>() {
        *sum = xxhash_rust::xxh3::xxh3_64(all).to_le_bytes();
    }
    [bytes, &right].map(|bytes| SnapshotRows::new(bytes)?.verify()).into()
}

/// A row's key as it stands in snapshots.
pub(crate) fn key(mut bytes: &[u8]) -> Option<RowKey> {
    keys::decode(&mut bytes).filter(|_| bytes.is_empty())
}

/// The same as bytes.
#[cfg(test)]
pub(crate) fn key_bytes(key: &RowKey) -> Vec<u8> {
    let mut out = Vec::new();
    keys::encode(key, &mut out);
    out
}

/// A row as the engine holds it, if it needs one part only.
#[cfg(test)]
pub(crate) fn stored_row(key: &RowKey, value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut out = Vec::new();
    keys::row(0, key, &mut out);
    (out, part(value))
}

/// The same of what says what was applied.
#[cfg(test)]
pub(crate) fn stored_applied(value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (keys::applied(0).to_vec(), part(value))
}

/// The same of a log entry.
#[cfg(test)]
pub(crate) fn stored_entry(index: LogIndex, entry: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (keys::entry(index).to_vec(), part(entry))
}

#[cfg(test)]
fn part(value: &[u8]) -> Vec<u8> {
    [&[1, 0], value].concat()
}

/// What the file says that tells whose folder it is.
pub(crate) fn read_identity(text: &str) -> bool {
    format::parse(text).is_some()
}

/// The engine of a data folder, without what writes into it. It is gone when this is dropped.
pub(crate) struct FuzzedFolder {
    engine: SledEngine,
}

/// What a folder holds, as found at open.
pub(crate) struct FoundInFolder {
    pub tables: Box<dyn Tables>,
    pub entries: Vec<(LogIndex, Bytes)>,
    pub purged: Option<Bytes>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
}

impl FuzzedFolder {
    pub(crate) fn new() -> sled::Result<Self> {
        let config = sled::Config::new().temporary(true).flush_every_ms(None).cache_capacity(8 << 20);
        Ok(Self { engine: SledEngine::open(config)? })
    }

    /// A number for each of its trees: rows, log, meta.
    pub(crate) fn put(&self, tree: u8, key: &[u8], value: &[u8]) -> sled::Result<()> {
        let tree = [&self.engine.rows, &self.engine.log, &self.engine.meta][usize::from(tree % 3)];
        tree.insert(key, value).map(drop)
    }

    pub(crate) fn clear(&self) -> sled::Result<()> {
        [&self.engine.rows, &self.engine.log, &self.engine.meta].into_iter().try_for_each(sled::Tree::clear)
    }

    /// As at the start of a node.
    pub(crate) fn open(&self) -> Result<FoundInFolder, format::OpenError> {
        let found = open::find(Path::new("folder"), &self.engine, LogIndex(0))?;
        let (found, log) = (found.rows, found.log.state);
        let (purged, vote, committed) = (log.bounds.purged.map(|(_, mark)| mark), log.vote, log.committed);
        let mut entries = Vec::new();
        let last = log.bounds.last.map_or(LogIndex(0), LogIndex::next);
        let mut budget = usize::MAX;
        log.tail.read(log.tail.first().unwrap_or(last), last, &mut budget, &mut entries);
        let shared = TablesShared::new(found.rows, found.applied, Poison::default());
        Ok(FoundInFolder { tables: Box::new(SledTables::new(shared)), entries, purged, vote, committed })
    }
}
