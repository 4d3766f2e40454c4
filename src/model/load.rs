//! Reads the whole state from its rows: at the start, and after a snapshot was installed.

use super::access::AccessMatrix;
use super::device::devices::Devices;
use super::gates::DeviceGates;
use super::meta::MetaRow;
use super::pairing::Pairings;
use super::row_pages::RowPages;
use super::state::State;
use super::sync::states::SyncStates;
use super::table::numbers::TableNumbers;
use super::tables::{RowKey, TablesError, TablesRead};
use super::tokens::revoked::RevokedTokens;
use crate::proto::{ClassAccess, DeviceGate, Forgotten, Pairing};

impl State {
    /// Reads everything from the rows again. Blocks on the disk if the rows are there.
    pub fn reload(&mut self) -> Result<(), TablesError> {
        let reader = self.reader();
        let rows = &*reader;
        self.forget_all(MetaRow::load(rows)?);
        self.devices = Devices::load(rows, self.meta.devices)?;
        self.sync_states = SyncStates::load(rows)?;
        self.load_access(rows)?;
        self.table_numbers = TableNumbers::load(rows, self.meta.tables)?;
        self.load_dedup(rows)?;
        self.load_conflicts(rows)?;
        self.tokens = RevokedTokens::load(rows)?;
        self.load_changes(rows)
    }

    fn load_access(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        let mut access = AccessMatrix::default();
        for row in RowPages::<ClassAccess>::new(rows, RowKey::Access(0), |k| matches!(k, RowKey::Access(_))) {
            access.load(row?.1);
        }
        self.access = access;
        let mut gates = DeviceGates::default();
        let from = RowKey::DeviceGate(String::new());
        for row in RowPages::<DeviceGate>::new(rows, from, |k| matches!(k, RowKey::DeviceGate(_))) {
            gates.load(row?.1);
        }
        let mut pairings = Pairings::default();
        for row in RowPages::<Pairing>::new(rows, RowKey::Pairing(String::new()), |k| matches!(k, RowKey::Pairing(_))) {
            pairings.load(row?.1);
        }
        self.pairings = pairings;
        for row in
            RowPages::<Forgotten>::new(rows, RowKey::Forgotten(String::new()), |k| matches!(k, RowKey::Forgotten(_)))
        {
            gates.load_forgotten(row?.1);
        }
        self.gates = gates;
        self.name_forgotten();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
