//! The state machine over the rows on disk is the state machine over the rows in memory.

use prost::Message;

use super::*;
use crate::ids::RaftTerm;
use crate::model::properties::{StateUnderTest, any_commands, told};
use crate::model::state::{Position, State};
use crate::proto::{Batch, Command};

use proptest::prelude::*;

/// Applies a command to a state that stands on its own.
fn send(state: &mut State, index: u64, command: Command) -> (crate::proto::Outcome, Vec<crate::model::effect::Effect>) {
    let batch = Bytes::from(Batch { commands: vec![command] }.encode_to_vec());
    let mut done = state
        .apply(Position { index: LogIndex(index), log_id: Bytes::from_static(b"id"), term: RaftTerm(0) }, batch)
        .unwrap();
    (done.outcomes.remove(0), done.effects)
}

proptest! {
    // Each case opens and closes a database.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_same_commands_give_the_same_state_on_disk_and_in_memory(commands in any_commands()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let stores = open(dir.path());
        let close = stores.close.clone();
        let mut disk = State::open(stores.tables).unwrap();
        let mut memory = StateUnderTest::bare();
        for (index, command) in (1..).zip(commands) {
            let (outcome, effects) = memory.send(command.clone());
            prop_assert_eq!((outcome, effects), send(&mut disk, index, command));
            prop_assert_eq!(memory.state.digest(), disk.digest());
        }
        runtime.block_on(close.close()).unwrap();
        drop((disk, stores.log, stores.snapshots, stores.pressure, close));
        let again = open(dir.path());
        let disk = State::open(again.tables).unwrap();
        prop_assert_eq!(told(&disk), told(&memory.state));
        runtime.block_on(again.close.close()).unwrap();
    }
}
