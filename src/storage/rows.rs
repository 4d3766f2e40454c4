//! Rows in the engine's tree: whole values out of parts, one by one or in order.

use std::io;
use std::ops::Bound;

use bytes::Bytes;
use sled::IVec;

use super::durability::disk_error::engine_error;
use super::engine::chunks::{self, Joiner};
use super::engine::keys::{self, Generation};
use crate::model::tables::{RowKey, TablesError};

pub(crate) mod memtable;
pub(crate) mod queue;
pub(crate) mod scan;
mod sum;
pub(crate) mod tables;
pub(crate) mod writer;

/// The rows of one generation.
#[derive(Clone)]
pub(super) struct GenerationRows {
    pub tree: sled::Tree,
    pub generation: Generation,
}

/// A failure of the engine as a reader of rows sees it.
pub(super) fn storage_error(error: impl std::fmt::Display) -> TablesError {
    TablesError::Storage(error.to_string())
}

/// The same of what the engine itself gives.
fn row_error(error: sled::Error) -> TablesError {
    let error = engine_error(error);
    match error.kind() {
        io::ErrorKind::InvalidData => TablesError::Damaged(error.to_string()),
        _ => storage_error(error),
    }
}

impl GenerationRows {
    pub(super) fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError> {
        let mut encoded = Vec::with_capacity(64);
        keys::row(self.generation, key, &mut encoded);
        self.get_encoded(&encoded)?.map_or(Ok(None), |found| found.ok_or(TablesError::Corrupt(key.clone())).map(Some))
    }

    /// `Some(None)` is a row of which a part is missing.
    pub(super) fn get_encoded(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TablesError> {
        let Some(first) = self.tree.get(key).map_err(row_error)? else { return Ok(None) };
        let mut joiner = Joiner::default();
        match joiner.push(0, &first) {
            Ok(Some(value)) => return Ok(Some(Some(value))),
            Ok(None) => {}
            Err(_) => return Ok(Some(None)),
        }
        let mut part_key = key.to_vec();
        for part in 1..chunks::announced(&first).unwrap_or(1) {
            keys::set_part(&mut part_key, key.len(), part);
            let Some(bytes) = self.tree.get(&part_key).map_err(row_error)? else { return Ok(Some(None)) };
            match joiner.push(part, &bytes) {
                Ok(None) => {}
                Ok(Some(value)) => return Ok(Some(Some(value))),
                Err(_) => return Ok(Some(None)),
            }
        }
        Ok(Some(None))
    }

    /// All rows, ascending.
    pub(super) fn all(&self) -> RowIter {
        let (low, high) = (keys::rows_start(self.generation), keys::rows_end(self.generation));
        RowIter { entries: self.tree.range::<IVec, _>(IVec::from(low)..IVec::from(high)), reverse: false }
    }

    /// The rows with `from <= key <= to`, ascending, or descending if `reverse`.
    pub(super) fn range(&self, from: &RowKey, to: &RowKey, reverse: bool) -> RowIter {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::row(self.generation, from, &mut low);
        keys::row(self.generation, to, &mut high);
        let bounds = (Bound::Included(IVec::from(low)), Bound::Excluded(IVec::from(keys::parts_end(&high))));
        RowIter { entries: self.tree.range::<IVec, _>(bounds), reverse }
    }
}

/// Rows in order.
pub(super) struct RowIter {
    entries: sled::Iter,
    reverse: bool,
}

impl RowIter {
    fn forward(&mut self) -> Option<Result<(RowKey, Bytes), TablesError>> {
        let mut joiner = Joiner::default();
        let mut open: Option<RowKey> = None;
        loop {
            let (key, part, value) = match self.entries.next() {
                None => return open.map(|key| Err(TablesError::Corrupt(key))),
                Some(entry) => match parse(entry) {
                    Ok(entry) => entry,
                    Err(error) => return Some(Err(error)),
                },
            };
            if open.as_ref().is_some_and(|open| *open != key) {
                return Some(Err(TablesError::Corrupt(key)));
            }
            match joiner.push(part, &value) {
                Ok(Some(whole)) => return Some(Ok((key, whole))),
                Ok(None) => open = Some(key),
                Err(_) => return Some(Err(TablesError::Corrupt(key))),
            }
        }
    }

    fn backward(&mut self) -> Option<Result<(RowKey, Bytes), TablesError>> {
        let mut later: Vec<IVec> = Vec::new();
        loop {
            let (key, part, value) = match self.entries.next_back()? {
                Ok(entry) => match parse(Ok(entry)) {
                    Ok(entry) => entry,
                    Err(error) => return Some(Err(error)),
                },
                Err(error) => return Some(Err(row_error(error))),
            };
            later.push(value);
            if part > 0 {
                continue;
            }
            let mut joiner = Joiner::default();
            let count = later.len();
            for (part, bytes) in (0u16..).zip(later.iter().rev()) {
                match joiner.push(part, bytes) {
                    Ok(Some(whole)) if usize::from(part) + 1 == count => return Some(Ok((key, whole))),
                    Ok(None) => {}
                    _ => break,
                }
            }
            return Some(Err(TablesError::Corrupt(key)));
        }
    }
}

impl Iterator for RowIter {
    type Item = Result<(RowKey, Bytes), TablesError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reverse { self.backward() } else { self.forward() }
    }
}

fn parse(entry: sled::Result<(IVec, IVec)>) -> Result<(RowKey, u16, IVec), TablesError> {
    let (key, value) = entry.map_err(row_error)?;
    match keys::parse_row(&key) {
        Some((key, part)) => Ok((key, part, value)),
        None => Err(TablesError::Damaged(format!("a row's key does not decode: {key:?}"))),
    }
}
