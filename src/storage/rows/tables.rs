//! The rows over the engine: [`SledTables`] for apply, [`SledReader`] for everybody else.
//!
//! A put goes to a map of its own until commit, then to the shared memtable and, as a write set, to the
//! writer thread ([`super::writer`]), which brings it into the engine some milliseconds later. Nothing is flushed
//! on the way: the Raft log replays what a crash takes. Reads look in that order, and the newest wins.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::memtable::{Memtable, RowWrites};
use super::queue::{WriteQueue, WriteSet};
use super::scan::ScanSlot;
use super::{GenerationRows, storage_error};
use crate::model::tables::{RowKey, Tables, TablesError, TablesRead};
use crate::proto::Applied;
use crate::storage::durability::poison::{Poison, closed, guarded};
use crate::storage::engine;
use crate::storage::{Backpressure, BoxFuture};

/// What apply, readers and the writer share.
///
/// Lock order: `rows`, then `memtable`. The writer holds `rows` while a batch goes in, so a reader that holds it
/// sees whole batches, and one generation.
pub(crate) struct TablesShared {
    /// `None` after close.
    pub rows: RwLock<Option<GenerationRows>>,
    pub memtable: RwLock<Memtable>,
    pub queue: WriteQueue,
    pub scan: Arc<ScanSlot>,
    pub poison: Poison,
}

impl TablesShared {
    pub(crate) fn new(rows: GenerationRows, applied: Applied, poison: Poison) -> Arc<Self> {
        Arc::new(Self {
            rows: RwLock::new(Some(rows)),
            memtable: RwLock::new(Memtable::new(applied)),
            queue: WriteQueue::new(poison.clone()),
            scan: Arc::default(),
            poison,
        })
    }

    /// What is known of a row without the engine.
    fn in_overlay(&self, key: &RowKey) -> Result<Option<Option<Bytes>>, TablesError> {
        self.poison.check().map_err(storage_error)?;
        Ok(self.memtable.read().get(key))
    }

    fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError> {
        if let Some(found) = self.in_overlay(key)? {
            return Ok(found);
        }
        let rows = self.rows.read();
        let rows = rows.as_ref().ok_or_else(|| storage_error(closed()))?;
        self.checked(|| rows.get(key))
    }

    /// A read that fails, or in which the engine panics, is as final as a failed write.
    fn checked<T>(&self, read: impl FnOnce() -> Result<T, TablesError>) -> Result<T, TablesError> {
        let outcome = guarded(read).unwrap_or_else(|panic| Err(storage_error(panic)));
        outcome.inspect_err(|error| match error {
            TablesError::Corrupt(_) | TablesError::Damaged(_) => drop(self.poison.damaged("reading rows", error)),
            TablesError::Storage(_) | TablesError::NewerVersion { .. } => drop(self.poison.fail("reading rows", error)),
        })
    }

    /// `patch` holds rows that win over all others, and how many of them are not deleted does not matter.
    fn range(
        &self,
        mut patch: RowWrites,
        (from, to): (&RowKey, &RowKey),
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(RowKey, Bytes)>, TablesError> {
        if from > to || limit == 0 {
            return Ok(Vec::new());
        }
        self.poison.check().map_err(storage_error)?;
        let rows = self.rows.read();
        let rows = rows.as_ref().ok_or_else(|| storage_error(closed()))?;
        self.memtable.read().copy_range(from, to, limit, reverse, &mut patch);
        let patch: Vec<_> = if reverse { patch.into_iter().rev().collect() } else { patch.into_iter().collect() };
        self.checked(|| merge(patch, rows.range(from, to, reverse), limit, reverse))
    }
}

/// The rows in order, where a patched one takes the place of the engine's.
fn merge(
    patch: Vec<(RowKey, Option<Bytes>)>,
    stored: impl Iterator<Item = Result<(RowKey, Bytes), TablesError>>,
    limit: usize,
    reverse: bool,
) -> Result<Vec<(RowKey, Bytes)>, TablesError> {
    let mut out = Vec::new();
    let mut patch = patch.into_iter().peekable();
    for row in stored {
        let (key, value) = row?;
        let before = |patched: &RowKey| if reverse { *patched > key } else { *patched < key };
        while out.len() < limit {
            let Some((key, value)) = patch.next_if(|(patched, _)| before(patched)) else { break };
            out.extend(value.map(|value| (key, value)));
        }
        if out.len() >= limit {
            return Ok(out);
        }
        match patch.next_if(|(patched, _)| *patched == key) {
            Some((_, patched)) => out.extend(patched.map(|patched| (key, patched))),
            None => out.push((key, value)),
        }
    }
    let missing = limit.saturating_sub(out.len());
    out.extend(patch.filter_map(|(key, value)| Some((key, value?))).take(missing));
    Ok(out)
}

/// The rows as apply sees them.
pub(crate) struct SledTables {
    shared: Arc<TablesShared>,
    /// Puts and deletes since the last commit.
    current: RowWrites,
}

impl SledTables {
    pub(crate) fn new(shared: Arc<TablesShared>) -> Self {
        Self { shared, current: RowWrites::new() }
    }
}

impl TablesRead for SledTables {
    fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError> {
        if let Some(value) = self.current.get(key) {
            return Ok(value.clone());
        }
        match self.shared.in_overlay(key)? {
            Some(value) => Ok(value),
            None => leaving_the_runtime(|| self.shared.get(key)),
        }
    }

    fn range(
        &self,
        from: &RowKey,
        to: &RowKey,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(RowKey, Bytes)>, TablesError> {
        if from > to {
            return Ok(Vec::new());
        }
        let patch = self.current.range(from.clone()..=to.clone()).map(|(k, v)| (k.clone(), v.clone())).collect();
        leaving_the_runtime(|| self.shared.range(patch, (from, to), limit, reverse))
    }
}

/// Apply runs on the async runtime and reads the engine in rare cases only (compaction, a repeated `request_id`, a
/// conflict over a record that is no longer in memory): the thread's other tasks move elsewhere meanwhile.
fn leaving_the_runtime<T>(read: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(read),
        _ => read(),
    }
}

impl Tables for SledTables {
    fn put(&mut self, key: RowKey, value: Bytes) {
        self.current.insert(key, Some(value));
    }

    fn delete(&mut self, key: RowKey) {
        self.current.insert(key, None);
    }

    fn commit(&mut self, applied: Applied) {
        let rows = std::mem::take(&mut self.current);
        let bytes = rows.values().map(|value| 64 + value.as_ref().map_or(0, Bytes::len)).sum();
        let set = self.shared.memtable.write().add(&rows, applied.clone());
        self.shared.queue.write(WriteSet { set, rows, applied, bytes });
    }

    fn applied(&self) -> Applied {
        self.shared.memtable.read().applied.clone()
    }

    fn reader(&self) -> Arc<dyn TablesRead> {
        Arc::new(SledReader(self.shared.clone()))
    }
}

/// The committed rows; an apply is seen whole or not at all by each read.
pub(crate) struct SledReader(Arc<TablesShared>);

impl TablesRead for SledReader {
    fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError> {
        self.0.get(key)
    }

    fn range(
        &self,
        from: &RowKey,
        to: &RowKey,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(RowKey, Bytes)>, TablesError> {
        let rows = self.0.range(RowWrites::new(), (from, to), limit, reverse);
        // A long read drops pages all the while: one scan of the change log held 40 MB of them.
        engine::free_dropped_pages();
        rows
    }

    fn end_read(&self) {
        engine::free_dropped_pages();
    }
}

/// Holds apply back while the writer is behind.
pub(crate) struct RowsPressure(pub Arc<TablesShared>);

impl Backpressure for RowsPressure {
    fn ready(&self) -> BoxFuture<'_, std::io::Result<()>> {
        self.0.queue.ready()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// One worker thread: what blocks it keeps the task away that would let it go on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_read_of_apply_that_waits_for_the_engine_leaves_the_runtime_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let tree = sled::open(dir.path()).unwrap().open_tree("rows").unwrap();
        let shared = TablesShared::new(GenerationRows { tree, generation: 0 }, Applied::default(), Poison::default());
        let tables = SledTables::new(shared.clone());
        let (held, holds) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            let _batch = shared.rows.write();
            held.send(()).unwrap();
            released.recv_timeout(Duration::from_secs(60)).is_ok()
        });
        holds.recv().unwrap();
        let reading = tokio::spawn(async move { tables.get(&RowKey::Meta).unwrap() });
        let other = tokio::spawn(async move { release.send(()).unwrap() });
        assert_eq!(reading.await.unwrap(), None);
        other.await.unwrap();
        assert!(writer.join().unwrap(), "the other task ran while the read waited");
    }
}
