//! openraft's own tests for storage, over each of our stores.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::doubles::Disk;
use super::log_adapter::LogAdapter;
use super::replica::Replica;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::model::state::State;
use crate::storage::Stores;

fn adapters(stores: Stores) -> (LogAdapter, StateMachine) {
    let (replica, effects) = Replica::new(State::open(stores.tables).unwrap());
    // Nobody takes the effects here, and nothing may wait for that.
    drop(effects);
    (LogAdapter::new(stores.log), StateMachine::new(replica, stores.snapshots, stores.pressure))
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogAdapter, StateMachine> for InMemory {
    async fn build(&self) -> Result<((), LogAdapter, StateMachine), StorageError<TypeConfig>> {
        let (log, machine) = adapters(Disk::default().stores());
        Ok(((), log, machine))
    }
}

#[tokio::test]
async fn openrafts_suite_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}
