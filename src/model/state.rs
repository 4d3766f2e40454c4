//! The state: what its rooms are, and what the rows of all of them have in common.
//!
//! What lookups need at every request (devices, sync states, record versions, the newest changes) is kept
//! decoded in memory, written only by [`State::apply`], and is nothing but what the rows say: [`State::reload`] makes
//! it anew.

use std::sync::Arc;

use prost::Message;

use super::access::AccessMatrix;
use super::audit::index::AuditIndex;
use super::boots::NewestBoots;
use super::change::prints::ChangePrints;
use super::change::recent::RecentChanges;
use super::change::records::Records;
use super::conflict::index::ConflictIndex;
use super::dedup::client::ClientDedup;
use super::dedup::node::NodeDedup;
use super::dedup::queues::DeviceQueues;
use super::device::devices::Devices;
use super::effect::Effect;
use super::gates::DeviceGates;
use super::meta::MetaRow;
use super::pairing::Pairings;
use super::sync::states::SyncStates;
use super::table::numbers::TableNumbers;
use super::tables::{RowKey, Tables, TablesError, TablesRead};
use super::tokens::revoked::RevokedTokens;
use super::txn::Txn;
use super::version::Build;
use crate::ids::LogIndex;
use crate::proto::{Applied, Meta};
use crate::sizes::Sizes;

mod apply;

pub use apply::{AppliedBatch, Position, decode_batch, into_result};

pub struct State {
    applied: Applied,
    digest: u128,
    pub(super) txn: Txn,
    pub(super) meta: MetaRow,
    pub(super) devices: Devices,
    pub(super) sync_states: SyncStates,
    pub(super) table_numbers: TableNumbers,
    /// Grows when something happens that a coordinator may have to act on. No part of the state.
    coordinator_epoch: u64,
    pub(super) records: Records,
    pub(super) recent: RecentChanges,
    pub(super) prints: ChangePrints,
    /// Of the changes that are kept.
    pub(super) change_sizes: Sizes,
    pub(super) answered: NodeDedup,
    pub(super) requests: ClientDedup,
    pub(super) queues: DeviceQueues,
    pub(super) conflicts: ConflictIndex,
    pub(super) tokens: RevokedTokens,
    pub(super) audit: AuditIndex,
    pub(super) access: AccessMatrix,
    pub(super) gates: DeviceGates,
    pub(super) pairings: Pairings,
    pub(super) boots: NewestBoots,
    /// Which program runs this: no part of the state, but of what it makes of commands.
    pub(super) build: Build,
    pub(super) ungated: u64,
}

impl State {
    /// The state that the rows hold. Blocks on the disk if they are there.
    pub fn open(tables: Box<dyn Tables>) -> Result<Self, TablesError> {
        Self::open_as(tables, Build::THIS)
    }

    /// The same as another program does.
    pub fn open_as(tables: Box<dyn Tables>, build: Build) -> Result<Self, TablesError> {
        let meta = MetaRow::load(&*tables)?;
        let mut state = Self {
            applied: Applied::default(),
            digest: 0,
            txn: Txn::new(tables),
            meta,
            devices: Devices::default(),
            sync_states: SyncStates::default(),
            table_numbers: TableNumbers::default(),
            coordinator_epoch: 0,
            records: Records::default(),
            recent: RecentChanges::default(),
            prints: ChangePrints::default(),
            change_sizes: Sizes::default(),
            answered: NodeDedup::default(),
            requests: ClientDedup::default(),
            queues: DeviceQueues::default(),
            conflicts: ConflictIndex::default(),
            tokens: RevokedTokens::default(),
            audit: AuditIndex::default(),
            access: AccessMatrix::default(),
            gates: DeviceGates::default(),
            pairings: Pairings::default(),
            boots: NewestBoots::default(),
            build,
            ungated: 0,
        };
        state.reload()?;
        Ok(state)
    }

    /// Before everything is read from the rows: what is not a row of its own kind.
    pub(super) fn forget_all(&mut self, meta: MetaRow) {
        self.applied = self.txn.applied();
        self.digest = (u128::from(self.applied.digest_high) << 64) | u128::from(self.applied.digest_low);
        self.txn.finish();
        self.meta = meta;
        self.notify_coordinator();
    }

    /// A reader of rows for other threads.
    pub fn reader(&self) -> Arc<dyn TablesRead> {
        self.txn.reader()
    }

    pub fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// The running digest over every row ever written, as hexadecimal. Equal on all nodes at equal index.
    pub fn digest(&self) -> String {
        format!("{:032x}", self.digest)
    }

    /// The same as a number, with its index.
    pub fn digest_at(&self) -> (LogIndex, u128) {
        (LogIndex(self.applied.index), self.digest)
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Changes when there may be something to do for a coordinator.
    pub fn coordinator_epoch(&self) -> u64 {
        self.coordinator_epoch
    }

    pub(super) fn notify_coordinator(&mut self) {
        self.coordinator_epoch += 1;
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.txn.effect(effect);
    }

    pub(super) fn put<M: Message>(&mut self, key: RowKey, row: &M) {
        self.txn.put(key, row);
    }

    pub(super) fn delete(&mut self, key: RowKey) {
        self.txn.delete(key);
    }

    pub(super) fn rows(&self) -> &dyn TablesRead {
        self.txn.rows()
    }

    pub(super) fn row<M: Message + Default>(&self, key: &RowKey) -> Result<Option<M>, TablesError> {
        self.txn.row(key)
    }
}
