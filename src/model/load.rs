//! Reads the whole state from its rows: at the start, and after a snapshot was installed.

use super::access::AccessMatrix;
use super::boots::NewestBoots;
use super::device::devices::Devices;
use super::gates::DeviceGates;
use super::meta::MetaRow;
use super::pairing::Pairings;
use super::state::State;
use super::sync::states::SyncStates;
use super::table::numbers::TableNumbers;
use super::tables::TablesError;
use super::tokens::revoked::RevokedTokens;

impl State {
    /// Reads everything from the rows again. Blocks on the disk if the rows are there.
    pub fn reload(&mut self) -> Result<(), TablesError> {
        let reader = self.reader();
        let rows = &*reader;
        let meta = MetaRow::load(rows)?;
        let (found, known) = (meta.cluster_version, self.build.newest());
        // A program of before there were versions does not look.
        if found > known && self.build.told() != 0 {
            return Err(TablesError::NewerVersion { found, known });
        }
        self.forget_all(meta);
        self.devices = Devices::load(rows, self.meta.devices)?;
        self.sync_states = SyncStates::load(rows)?;
        self.access = AccessMatrix::load(rows)?;
        self.gates = DeviceGates::load(rows)?;
        self.name_forgotten();
        self.pairings = Pairings::load(rows)?;
        self.boots = NewestBoots::load(rows)?;
        self.table_numbers = TableNumbers::load(rows, self.meta.tables)?;
        self.load_dedup(rows)?;
        self.load_conflicts(rows)?;
        self.tokens = RevokedTokens::load(rows)?;
        self.load_changes(rows)
    }
}

#[cfg(test)]
mod tests;
