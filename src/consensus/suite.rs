//! openraft's own tests for storage, over each of our stores.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_adapter::LogAdapter;
use super::replica::Replica;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::model::state::State;
use crate::storage::memory::MemoryDisk;
use crate::storage::{Close, Identity, Stores, open};

type Built<G> = Result<(G, LogAdapter, StateMachine), StorageError<TypeConfig>>;

fn adapters(stores: Stores) -> (Arc<dyn Close>, LogAdapter, StateMachine) {
    let (replica, effects) = Replica::new(State::open(stores.tables).unwrap());
    // Nobody takes the effects here, and nothing may wait for that.
    drop(effects);
    (stores.close, LogAdapter::new(stores.log), StateMachine::new(replica, stores.snapshots, stores.pressure))
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
        let identity = Identity { node_id: 1, cluster_id: "suite".into() };
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
