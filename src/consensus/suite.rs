//! openraft's own tests for storage, over each of our stores.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_adapter::LogAdapter;
use super::replica::Replica;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::ids::{LogIndex, NodeId};
use crate::model::state::State;
use crate::storage::memory::MemoryDisk;
use crate::storage::{BoxFuture, Close, Durable, FolderIdentity, LogBounds, LogStore, Stores, WriteAck, open};

/// The suite names its nodes by numbers.
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// The suite has logs that start at 1 or 2 and reads them from 0. Ours start at 0, as Raft's do, and anything
/// missing is an error; so this reads from where the log starts.
struct StartsAnywhere {
    log: Arc<dyn LogStore>,
    first: AtomicU64,
}

impl LogStore for StartsAnywhere {
    fn bounds(&self) -> LogBounds {
        self.log.bounds()
    }

    fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Durable) {
        if let Some((first, _)) = entries.first() {
            self.first.fetch_min(first.get(), Ordering::SeqCst);
        }
        self.log.append(entries, done);
    }

    fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> BoxFuture<'_, io::Result<Vec<(LogIndex, Bytes)>>> {
        let from = from.max(LogIndex(self.first.load(Ordering::SeqCst)));
        self.log.read(from, to.max(from), max_bytes)
    }

    fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    fn bytes_behind(&self, index: LogIndex) -> u64 {
        self.log.bytes_behind(index)
    }

    fn leaves(&self, bytes: u64) -> Option<LogIndex> {
        self.log.leaves(bytes)
    }

    fn truncate_after(&self, index: Option<LogIndex>) -> WriteAck {
        self.log.truncate_after(index)
    }

    fn purge(&self, index: LogIndex, mark: Bytes) -> WriteAck {
        self.log.purge(index, mark)
    }

    fn save_vote(&self, vote: Bytes) -> WriteAck {
        self.log.save_vote(vote)
    }

    fn vote(&self) -> Option<Bytes> {
        self.log.vote()
    }

    fn save_committed(&self, committed: Option<Bytes>) {
        self.log.save_committed(committed);
    }

    fn committed(&self) -> Option<Bytes> {
        self.log.committed()
    }
}

type Built<G> = Result<(G, LogAdapter, StateMachine), StorageError<TypeConfig>>;

fn adapters(stores: Stores) -> (Arc<dyn Close>, LogAdapter, StateMachine) {
    let (replica, effects) = Replica::new(State::open(stores.tables).unwrap());
    // Nobody takes the effects here, and nothing may wait for that.
    drop(effects);
    let log = Arc::new(StartsAnywhere { log: stores.log, first: AtomicU64::new(u64::MAX) });
    (stores.close, LogAdapter::new(log), StateMachine::new(replica, stores.snapshots, stores.pressure))
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogAdapter, StateMachine, (MemoryDisk, Arc<dyn Close>)> for InMemory {
    async fn build(&self) -> Built<(MemoryDisk, Arc<dyn Close>)> {
        let disk = MemoryDisk::default();
        let (close, log, machine) = adapters(disk.open());
        Ok(((disk, close), log, machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogAdapter, StateMachine, (TempDir, Arc<dyn Close>)> for OnDisk {
    async fn build(&self) -> Built<(TempDir, Arc<dyn Close>)> {
        let dir = TempDir::new().unwrap();
        let identity = FolderIdentity { node_id: 1, cluster_id: "suite".into() };
        let (close, log, machine) = adapters(open(dir.path(), &identity).unwrap());
        Ok(((dir, close), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}
