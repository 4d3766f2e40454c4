//! Log entries in the engine's tree: whole entries out of parts.

use std::io;

use bytes::Bytes;
use sled::IVec;

use super::cache;
use crate::ids::LogIndex;
use crate::storage::durability::disk_error::engine_error;
use crate::storage::engine::chunks::{self, Joiner};
use crate::storage::engine::keys;

/// Keys removed at a time.
const CHUNK: usize = 1_000;

fn bad(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged: {what}"))
}

/// Puts one entry, its parts ascending: a crash leaves a prefix.
pub(crate) fn put(tree: &sled::Tree, index: LogIndex, entry: &[u8], scratch: &mut Vec<u8>) -> sled::Result<()> {
    let mut key = keys::entry(index).to_vec();
    let base = key.len();
    chunks::split(entry, scratch, |part, bytes| {
        keys::set_part(&mut key, base, part);
        tree.insert(&key, bytes).map(|_| ())
    })
}

/// The entries with `from <= index < to` while `budget` lasts, at least one if `first`. A hole is an error.
pub(crate) fn read(
    tree: &sled::Tree,
    from: LogIndex,
    to: LogIndex,
    mut budget: usize,
    first: bool,
) -> io::Result<Vec<(LogIndex, Bytes)>> {
    let mut out = Vec::new();
    let mut joiner = Joiner::default();
    for entry in tree.range(keys::entry(from)..keys::entry(to)) {
        let (key, value) = entry.map_err(engine_error)?;
        let (index, part) = keys::parse_entry(&key).ok_or_else(|| bad("a key does not decode"))?;
        if index != from.plus(out.len() as u64) {
            break;
        }
        if let Some(entry) = joiner.push(part, &value).map_err(|_| bad(format_args!("entry {index} is torn")))? {
            if !cache::take(&mut budget, entry.len(), first && out.is_empty()) {
                return Ok(out);
            }
            out.push((index, entry));
        }
    }
    match out.len() as u64 == to.ahead_of(from) {
        true => Ok(out),
        false => Err(bad(format_args!("entry {} is missing", from.plus(out.len() as u64)))),
    }
}

/// What a scan of the whole log finds.
pub(crate) struct ScannedLog {
    pub first: Option<LogIndex>,
    pub last: Option<LogIndex>,
    /// Parts of an entry that a crash cut off; they were never acknowledged.
    pub torn: Option<LogIndex>,
}

/// Goes through the entries behind `purged`, and gives each to `keep`. A hole is an error; a last entry without
/// its last parts is not.
pub(crate) fn scan(
    tree: &sled::Tree,
    purged: Option<LogIndex>,
    mut keep: impl FnMut(LogIndex, Bytes),
) -> io::Result<ScannedLog> {
    let from = purged.map_or(LogIndex(0), LogIndex::next);
    let mut expected = purged.map(LogIndex::next);
    let mut joiner = Joiner::default();
    let mut open = None;
    let (mut first, mut last) = (None, None);
    for entry in tree.range(keys::entry(from)..) {
        let (key, value) = entry.map_err(engine_error)?;
        let (index, part) = keys::parse_entry(&key).ok_or_else(|| bad("a key does not decode"))?;
        let expected_now = *expected.get_or_insert(index);
        if index != expected_now {
            return Err(bad(format_args!("entry {expected_now} is missing before {index}")));
        }
        open = Some(index);
        if let Some(entry) = joiner.push(part, &value).map_err(|_| bad(format_args!("entry {index} is torn")))? {
            keep(index, entry);
            first = first.or(Some(index));
            last = Some(index);
            expected = Some(index.next());
            open = None;
        }
    }
    Ok(ScannedLog { first, last, torn: open })
}

/// Removes all entries from `from` on, the last part of the last one first: a crash leaves a prefix.
pub(crate) fn remove_from(tree: &sled::Tree, from: LogIndex) -> sled::Result<()> {
    loop {
        let keys = tree.range(keys::entry(from)..).keys().rev().take(CHUNK).collect::<sled::Result<Vec<IVec>>>()?;
        for key in &keys {
            tree.remove(key)?;
        }
        if keys.len() < CHUNK {
            return Ok(());
        }
    }
}

/// Removes some of the oldest keys up to entry `index`; whether that was all.
pub(crate) fn remove_some_up_to(tree: &sled::Tree, index: LogIndex) -> sled::Result<bool> {
    let end = keys::parts_end(&keys::entry(index));
    let keys = tree.range(..end.as_slice()).keys().take(CHUNK).collect::<sled::Result<Vec<IVec>>>()?;
    for key in &keys {
        tree.remove(key)?;
    }
    Ok(keys.len() < CHUNK)
}
