//! A disk in memory for the tests of this floor and the next: it outlives the nodes that use it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::model::tables::{Key, Tables, TablesError, TablesRead};
use crate::proto::Applied;
use crate::storage::{
    Ack, BoxFuture, Durable, LogBounds, LogStore, Pressure, Snapshot, SnapshotBody, SnapshotReceiver, SnapshotStore,
    Stores,
};

#[derive(Clone, Default)]
struct Rows {
    rows: BTreeMap<Key, Bytes>,
    applied: Applied,
}

#[derive(Default)]
struct Log {
    entries: BTreeMap<u64, Bytes>,
    purged: Option<(u64, Bytes)>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
}

/// What one node keeps.
#[derive(Clone, Default)]
pub struct Disk {
    rows: Arc<Mutex<Rows>>,
    log: Arc<Mutex<Log>>,
    snapshot: Arc<Mutex<Option<Snapshot>>>,
}

impl Disk {
    pub fn stores(&self) -> Stores {
        Stores {
            log: Arc::new(self.clone()),
            tables: Box::new(self.clone()),
            snapshots: Arc::new(self.clone()),
            pressure: Arc::new(self.clone()),
        }
    }

    pub fn rows(&self) -> BTreeMap<Key, Bytes> {
        self.rows.lock().rows.clone()
    }

    pub fn has_purged(&self) -> bool {
        self.log.lock().purged.is_some()
    }
}

fn done() -> Ack {
    let (tx, rx) = oneshot::channel();
    let _ = tx.send(Ok(()));
    rx
}

impl LogStore for Disk {
    fn bounds(&self) -> LogBounds {
        let log = self.log.lock();
        LogBounds { purged: log.purged.clone(), last: log.entries.keys().next_back().copied() }
    }

    fn append(&self, entries: Vec<(u64, Bytes)>, done: Durable) {
        self.log.lock().entries.extend(entries);
        done(Ok(()));
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> BoxFuture<'_, io::Result<Vec<(u64, Bytes)>>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let log = self.log.lock();
        // openraft's suite has logs that start anywhere.
        let from = from.max(log.entries.keys().next().copied().unwrap_or(from));
        for (index, entry) in log.entries.range(from..to.max(from)) {
            bytes += entry.len();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push((*index, entry.clone()));
        }
        let hole = found.iter().zip(from..).any(|((index, _), at)| *index != at);
        Box::pin(async move { if hole { Err(io::Error::other("a hole")) } else { Ok(found) } })
    }

    fn truncate_after(&self, index: Option<u64>) -> Ack {
        self.log.lock().entries.retain(|at, _| Some(*at) <= index);
        done()
    }

    fn purge(&self, index: u64, mark: Bytes) -> Ack {
        let mut log = self.log.lock();
        log.entries.retain(|at, _| *at > index);
        log.purged = Some((index, mark));
        done()
    }

    fn save_vote(&self, vote: Bytes) -> Ack {
        self.log.lock().vote = Some(vote);
        done()
    }

    fn vote(&self) -> Option<Bytes> {
        self.log.lock().vote.clone()
    }

    fn save_committed(&self, committed: Option<Bytes>) {
        self.log.lock().committed = committed;
    }

    fn committed(&self) -> Option<Bytes> {
        self.log.lock().committed.clone()
    }
}

impl TablesRead for Disk {
    fn get(&self, key: &Key) -> Result<Option<Bytes>, TablesError> {
        Ok(self.rows.lock().rows.get(key).cloned())
    }

    fn range(&self, from: &Key, to: &Key, limit: usize, reverse: bool) -> Result<Vec<(Key, Bytes)>, TablesError> {
        if from > to {
            return Ok(Vec::new());
        }
        let rows = self.rows.lock();
        let found = rows.rows.range(from.clone()..=to.clone()).map(|(k, v)| (k.clone(), v.clone()));
        Ok(if reverse { found.rev().take(limit).collect() } else { found.take(limit).collect() })
    }

    fn in_memory(&self) -> bool {
        true
    }
}

impl Tables for Disk {
    fn put(&mut self, key: Key, value: Bytes) {
        self.rows.lock().rows.insert(key, value);
    }

    fn delete(&mut self, key: Key) {
        self.rows.lock().rows.remove(&key);
    }

    fn commit(&mut self, applied: Applied) {
        self.rows.lock().applied = applied;
    }

    fn applied(&self) -> Applied {
        self.rows.lock().applied.clone()
    }

    fn reader(&self) -> Arc<dyn TablesRead> {
        Arc::new(self.clone())
    }
}

/// Snapshots travel as a number and padding (so that there is more than one chunk); the rows stay here.
static SNAPSHOTS: LazyLock<Mutex<HashMap<u64, Rows>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);
const PADDING: usize = 1_500_000;

impl SnapshotStore for Disk {
    fn build(&self) -> BoxFuture<'_, io::Result<Snapshot>> {
        let rows = self.rows.lock().clone();
        let applied = rows.applied.clone();
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        SNAPSHOTS.lock().insert(number, rows);
        let mut body = vec![7; PADDING];
        body[..8].copy_from_slice(&number.to_be_bytes());
        let snapshot = Snapshot { applied, body: SnapshotBody::Memory(body.into()) };
        *self.snapshot.lock() = Some(snapshot.clone());
        Box::pin(async { Ok(snapshot) })
    }

    fn current(&self) -> Option<Snapshot> {
        self.snapshot.lock().clone()
    }

    fn read_chunk(&self, snapshot: &Snapshot, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let SnapshotBody::Memory(body) = &snapshot.body else { unreachable!() };
        let from = (offset as usize).min(body.len());
        let chunk = body.slice(from..(from + len).min(body.len()));
        Box::pin(async { Ok(chunk) })
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Box<dyn SnapshotReceiver>>> {
        Box::pin(async { Ok(Box::new(Received(Vec::new())) as Box<dyn SnapshotReceiver>) })
    }

    fn install(&self, snapshot: Snapshot) -> BoxFuture<'_, io::Result<()>> {
        let SnapshotBody::Memory(body) = &snapshot.body else { unreachable!() };
        *self.rows.lock() = SNAPSHOTS.lock()[&u64::from_be_bytes(body[..8].try_into().unwrap())].clone();
        *self.snapshot.lock() = Some(snapshot);
        Box::pin(async { Ok(()) })
    }
}

struct Received(Vec<u8>);

impl SnapshotReceiver for Received {
    fn write(&mut self, offset: u64, data: Bytes) -> BoxFuture<'_, io::Result<()>> {
        assert_eq!(offset, self.0.len() as u64);
        self.0.extend_from_slice(&data);
        Box::pin(async { Ok(()) })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<Snapshot>> {
        assert_eq!(self.0.len(), PADDING);
        let number = u64::from_be_bytes(self.0[..8].try_into().unwrap());
        let applied = SNAPSHOTS.lock()[&number].applied.clone();
        Box::pin(async move { Ok(Snapshot { applied, body: SnapshotBody::Memory(self.0.into()) }) })
    }
}

impl Pressure for Disk {
    fn ready(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
