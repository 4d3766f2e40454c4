//! The thread that brings committed rows into the engine, in order.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

use prost::Message;

use super::GenerationRows;
use super::memtable::RowWrites;
use super::queue::{WriteSet, WriterWork};
use super::scan::StoredPut;
use super::sum::RowsSum;
use super::tables::TablesShared;
use crate::ids::LogIndex;
use crate::model::tables::TablesError;
use crate::proto::Applied;
use crate::storage::durability::disk_error::engine_error;
use crate::storage::durability::poison::guarded;
use crate::storage::durability::stalls::{CallUnderWay, DiskCall};
use crate::storage::engine::chunks;
use crate::storage::engine::keys::{self, Generation};
use crate::storage::engine::{self, SledEngine};
use crate::storage::snapshot::file::SnapshotRows;

/// Where the active generation's number is, in the meta tree.
const GENERATION: &[u8] = b"generation";
/// Entries of a dropped generation removed at a time, and rows of a snapshot loaded between two looks at health.
const CHUNK: usize = 1_000;

/// The writer's own state.
pub(crate) struct RowsWriter {
    engine: SledEngine,
    shared: Arc<TablesShared>,
    active: Generation,
    /// Never used so far.
    next_generation: Generation,
    /// Generations whose rows are still there but mean nothing.
    dropping: VecDeque<Generation>,
    applied: Applied,
    /// Of all rows of the active generation.
    sum: RowsSum,
    /// Buffers for an encoded key and a value, which save an allocation a row.
    scratch: Vec<u8>,
    value: Vec<u8>,
}

/// What the rows tree holds, as found at open.
pub(crate) struct OpenedRows {
    pub rows: GenerationRows,
    pub applied: Applied,
    /// What was written with the rows; none by versions before format 2.
    pub sum: Option<RowsSum>,
    next_generation: Generation,
    dropping: VecDeque<Generation>,
}

/// Finds the active generation, and what an interrupted install left.
pub(crate) fn find(engine: &SledEngine) -> sled::Result<OpenedRows> {
    let stored = engine.meta.get(GENERATION)?;
    let active = stored.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, Generation::from_be_bytes);
    let mut dropping = VecDeque::new();
    let mut next_generation = active + 1;
    let mut from: Option<Generation> = Some(0);
    while let Some(generation) = from {
        let Some(entry) = engine.rows.range(keys::generation_prefix(generation)..).next() else { break };
        let found = keys::generation_of(&entry?.0)
            .ok_or_else(|| sled::Error::Unsupported("a row's key does not decode".into()))?;
        next_generation = next_generation.max(found.saturating_add(1));
        if found != active {
            dropping.push_back(found);
        }
        from = found.checked_add(1);
    }
    let rows = GenerationRows { tree: engine.rows.clone(), generation: active };
    let (applied, sum) = read_applied(&rows)?;
    Ok(OpenedRows { rows, applied, sum, next_generation, dropping })
}

fn read_applied(rows: &GenerationRows) -> sled::Result<(Applied, Option<RowsSum>)> {
    let bad = |what: String| sled::Error::Unsupported(format!("the row that says what was applied: {what}"));
    match rows.get_encoded(&keys::applied(rows.generation)).map_err(|error| bad(error.to_string()))? {
        None => Ok((Applied::default(), None)),
        Some(value) => {
            let value = value.ok_or_else(|| bad("a part is missing".into()))?;
            let sum = RowsSum::beside(&value).map_err(|error| bad(error.to_string()))?;
            Ok((Applied::decode(value).map_err(|error| bad(error.to_string()))?, sum))
        }
    }
}

/// Reads all rows: their sum, and their bytes with their keys.
pub(crate) fn add_up(rows: &GenerationRows) -> Result<(RowsSum, u64), TablesError> {
    let (mut sum, mut bytes, mut key) = (RowsSum::default(), 0, Vec::new());
    for (number, row) in rows.all().enumerate() {
        let (row, value) = row?;
        keys::row(rows.generation, &row, &mut key);
        sum.add(&key, &value);
        bytes += (key.len() + value.len()) as u64;
        if number % CHUNK == 0 {
            engine::free_dropped_pages();
        }
    }
    Ok((sum, bytes))
}

impl RowsWriter {
    pub(crate) fn new(engine: SledEngine, shared: Arc<TablesShared>, found: OpenedRows) -> Self {
        Self {
            engine,
            shared,
            active: found.rows.generation,
            next_generation: found.next_generation,
            dropping: found.dropping,
            applied: found.applied,
            sum: found.sum.unwrap_or_default(),
            scratch: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Works until the queue is closed or anything fails.
    pub(crate) fn run(mut self) {
        let outcome = guarded(|| self.work());
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => drop(self.shared.poison.failed("writing rows", &error)),
            Err(panic) => drop(self.shared.poison.fail("writing rows", &panic)),
        }
        self.shared.queue.ended();
    }

    fn work(&mut self) -> io::Result<()> {
        loop {
            match self.shared.queue.next(!self.dropping.is_empty()) {
                WriterWork::Write(sets) => {
                    self.write(sets)?;
                    engine::free_dropped_pages();
                }
                WriterWork::Scan(reply) => {
                    let rows = GenerationRows { tree: self.engine.rows.clone(), generation: self.active };
                    // An asker that has gone away drops the reader, and with it the scan.
                    drop(reply.send(self.shared.scan.start(rows, self.applied.clone())));
                }
                WriterWork::Install { path, done } => {
                    let outcome = self.install(&path);
                    let failed = outcome.as_ref().err().map(|error| io::Error::new(error.kind(), error.to_string()));
                    let _ = done.send(outcome);
                    match failed {
                        // A bad file is refused and changes nothing; a bad engine is the end.
                        Some(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
                        _ => {}
                    }
                }
                WriterWork::Idle => self.drop_some()?,
                WriterWork::Closed => return Ok(()),
            }
        }
    }

    fn write(&mut self, sets: Vec<WriteSet>) -> io::Result<()> {
        let (mut rows, mut bytes) = (0, 0);
        let mut merged = RowWrites::new();
        let mut newest = 0;
        for sealed in sets {
            rows += sealed.rows.len() + 1;
            bytes += sealed.bytes;
            newest = sealed.set;
            self.applied = sealed.applied;
            if merged.is_empty() {
                merged = sealed.rows;
            } else {
                merged.extend(sealed.rows);
            }
        }
        let mut changes = Vec::with_capacity(merged.len() + 8);
        for (key, value) in &merged {
            let mut encoded = std::mem::take(&mut self.scratch);
            keys::row(self.active, key, &mut encoded);
            let outcome = self.change(&encoded, value.as_deref(), &mut changes);
            self.scratch = encoded;
            outcome.map_err(engine_error)?;
        }
        self.put_applied(&mut changes);
        self.apply(changes).map_err(engine_error)?;
        self.shared.queue.wrote_to(LogIndex(self.applied.index));
        self.shared.memtable.write().drop_written(merged.keys(), newest);
        self.shared.queue.done(newest, rows, bytes);
        Ok(())
    }

    /// The entries that a put (or delete) of a row changes.
    fn change(&mut self, key: &[u8], value: Option<&[u8]>, changes: &mut Vec<StoredPut>) -> sled::Result<()> {
        let count = value.map_or(0, |value| chunks::count(value.len()));
        let rows = GenerationRows { tree: self.engine.rows.clone(), generation: self.active };
        let read = rows.get_encoded(key).map_err(|error| match error {
            TablesError::Storage(why) => sled::Error::Io(io::Error::other(why)),
            damage => sled::Error::Unsupported(damage.to_string()),
        })?;
        let old = match read {
            Some(None) => return Err(sled::Error::Unsupported("a row that is replaced is damaged".into())),
            other => other.flatten(),
        };
        // Only rows that had several parts can leave some behind.
        let before = old.as_ref().map_or(0, |old| chunks::count(old.len()));
        if let Some(old) = &old {
            self.sum.take(key, old);
        }
        if let Some(value) = value {
            self.sum.add(key, value);
        }
        match value {
            Some(value) => put_parts(key, value, &mut self.value, changes),
            None => changes.push((key.into(), None)),
        }
        if before > count.max(1) {
            let mut part_key = key.to_vec();
            for part in count.max(1)..before {
                keys::set_part(&mut part_key, key.len(), part);
                changes.push((part_key.as_slice().into(), None));
            }
        }
        if before > 1 && count <= 1 {
            // Versions before format 2 kept one.
            changes.push((keys::chunk_mark(key).into(), None));
        }
        Ok(())
    }

    fn put_applied(&mut self, changes: &mut Vec<StoredPut>) {
        put_parts(&keys::applied(self.active), &self.sum.behind(&self.applied), &mut self.value, changes);
    }

    /// One atomic batch, seen by readers and a running scan as one.
    fn apply(&self, changes: Vec<StoredPut>) -> sled::Result<()> {
        // The lock of the scan is held for `changes` as they are, and until they are in.
        self.shared.scan.write(changes, |changes| {
            let mut batch = sled::Batch::default();
            for (key, value) in changes {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            let _readers_wait = self.shared.rows.write();
            let _under_way = CallUnderWay::begin(DiskCall::WriteRows);
            self.engine.rows.apply_batch(batch)
        })
    }

    /// Loads a snapshot under a new generation, then makes that one the active.
    fn install(&mut self, path: &Path) -> io::Result<()> {
        // A scan that runs must still find its rows.
        self.shared.scan.wait_idle();
        let generation = self.next_generation;
        self.next_generation += 1;
        let loaded = self.load(path, generation);
        let (applied, sum) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.dropping.push_back(generation);
                return Err(error);
            }
        };
        self.engine.flush().map_err(broken_engine)?;
        self.engine.meta.insert(GENERATION, &generation.to_be_bytes()).map_err(broken_engine)?;
        self.engine.flush().map_err(broken_engine)?;
        let mut rows = self.shared.rows.write();
        if let Some(rows) = rows.as_mut() {
            rows.generation = generation;
        }
        let mut memtable = self.shared.memtable.write();
        // Everything committed before was written before: the queue keeps the order.
        let written = self.shared.queue.written();
        memtable.replaced(written);
        if memtable.newest <= written {
            memtable.applied = applied.clone();
        }
        (self.applied, self.sum) = (applied, sum);
        self.shared.queue.wrote_to(LogIndex(self.applied.index));
        self.dropping.push_back(std::mem::replace(&mut self.active, generation));
        Ok(())
    }

    fn load(&mut self, path: &Path, generation: Generation) -> io::Result<(Applied, RowsSum)> {
        let mut rows = SnapshotRows::new(BufReader::with_capacity(1 << 20, File::open(path)?))?;
        let (mut changes, mut key, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut sum = RowsSum::default();
        let put = |changes: &mut Vec<StoredPut>| -> io::Result<()> {
            for (key, value) in changes.drain(..) {
                let Some(value) = value else { continue };
                self.engine.rows.insert(key, value).map_err(broken_engine)?;
            }
            engine::free_dropped_pages();
            Ok(())
        };
        while let Some((row, value)) = rows.next_row()? {
            keys::row(generation, &row, &mut key);
            put_parts(&key, &value, &mut scratch, &mut changes);
            sum.add(&key, &value);
            if changes.len() >= CHUNK {
                put(&mut changes)?;
            }
        }
        put_parts(&keys::applied(generation), &sum.behind(&rows.applied), &mut scratch, &mut changes);
        put(&mut changes)?;
        Ok((rows.applied, sum))
    }

    /// Removes some rows of a generation that is not used any more.
    fn drop_some(&mut self) -> io::Result<()> {
        let Some(generation) = self.dropping.front().copied() else { return Ok(()) };
        let mut removed = 0;
        for entry in self.engine.rows.scan_prefix(keys::generation_prefix(generation)).keys().take(CHUNK) {
            self.engine.rows.remove(entry.map_err(engine_error)?).map_err(engine_error)?;
            removed += 1;
        }
        engine::free_dropped_pages();
        if removed < CHUNK {
            self.dropping.pop_front();
        }
        Ok(())
    }
}

fn put_parts(key: &[u8], value: &[u8], scratch: &mut Vec<u8>, changes: &mut Vec<StoredPut>) {
    let mut part_key = Vec::new();
    let outcome = chunks::split(value, scratch, |part, bytes| {
        if part == 0 {
            changes.push((key.into(), Some(bytes)));
        } else {
            part_key.clear();
            part_key.extend_from_slice(key);
            keys::set_part(&mut part_key, key.len(), part);
            changes.push((part_key.as_slice().into(), Some(bytes)));
        }
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = outcome;
}

/// An error of the engine, where only a file that is installed is of that kind: it is refused, and the node goes on.
fn broken_engine(error: sled::Error) -> io::Error {
    io::Error::other(engine_error(error))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::folder::format::{OpenError, WAY};

    #[test]
    fn what_the_engine_cannot_read_is_damage_and_a_failed_disk_is_none() {
        let ends = sled::Error::Io(io::ErrorKind::UnexpectedEof.into());
        for damage in [sled::Error::Corruption { at: None, bt: () }, ends] {
            let error = engine_error(damage.clone());
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let refused = OpenError::io(Path::new("folder"))(error).to_string();
            assert!(refused.contains("data folder folder is damaged") && refused.contains(WAY), "{refused}");
            assert_ne!(broken_engine(damage).kind(), io::ErrorKind::InvalidData);
        }
        for code in [libc::ENOSPC, libc::EIO] {
            let error = engine_error(sled::Error::Io(io::Error::from_raw_os_error(code)));
            assert_eq!(error.raw_os_error(), Some(code));
            assert!(matches!(OpenError::io(Path::new("folder"))(error), OpenError::Io { .. }));
        }
    }
}
