//! The sync states, as their rows say.

use std::collections::HashMap;

use crate::model::row_pages::RowPages;
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::model::txn::Txn;
use crate::proto::SyncState;

/// By the device's id.
#[derive(Debug, Default)]
pub(in crate::model) struct SyncStates(HashMap<String, SyncState>);

impl SyncStates {
    pub(in crate::model) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut states = HashMap::new();
        let from = RowKey::SyncState(String::new());
        for row in RowPages::<SyncState>::new(rows, from, |k| matches!(k, RowKey::SyncState(_))) {
            let (_, sync) = row?;
            states.insert(sync.device_id.clone(), sync);
        }
        Ok(Self(states))
    }

    pub(super) fn get(&self, device_id: &str) -> Option<&SyncState> {
        self.0.get(device_id)
    }

    pub(super) fn save(&mut self, txn: &mut Txn, sync: SyncState) {
        txn.put(RowKey::SyncState(sync.device_id.clone()), &sync);
        self.0.insert(sync.device_id.clone(), sync);
    }

    pub(super) fn forget(&mut self, txn: &mut Txn, device_id: &str) {
        self.0.remove(device_id);
        txn.delete(RowKey::SyncState(device_id.to_owned()));
    }
}
