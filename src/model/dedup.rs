//! Exactly once: what was applied before is recognised, and answered as it was the first time.
//!
//! A node's own retries are found among its newest commands ([`node`]), a client's among its device's newest requests
//! ([`client`]); a client with a durable queue is remembered for ever ([`queues`]). This room alone writes their rows,
//! and what is kept of them in memory.

use bytes::Bytes;
use prost::Message;

use self::client::{ClientDedup, RequestNames};
use self::node::NodeDedup;
use self::queues::DeviceQueues;
use super::fingerprint;
use super::meta::checked_count;
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead};
use crate::ids::{DeviceNumber, Seq, UnixMs};
use crate::proto::{Change, CommandId, Outcome, Requested};

pub(super) mod client;
pub(super) mod node;
pub(super) mod queues;
mod requests;

pub(super) use self::requests::accepted;

/// What is known of a node's command.
pub(super) enum Repeated {
    /// It was answered with this.
    Answered(Box<Outcome>),
    /// It was answered so long ago that nobody waits for it.
    LongAgo,
}

impl State {
    /// The command was applied before; `None`: it is new.
    pub(super) fn repeated_command(&self, origin: &CommandId) -> Result<Option<Repeated>, TablesError> {
        let Some(given) = self.answered.find(origin) else { return Ok(None) };
        let Some(outcome) = given else { return Ok(Some(Repeated::LongAgo)) };
        let corrupt = |_| TablesError::Corrupt(RowKey::Answered(0));
        let outcome = Outcome { repeated: true, ..Outcome::decode(outcome).map_err(corrupt)? };
        Ok(Some(Repeated::Answered(Box::new(outcome))))
    }

    pub(super) fn remember_answer(&mut self, origin: &CommandId, outcome: &Outcome) {
        self.answered.remember(origin, Bytes::from(outcome.encode_to_vec()));
    }

    /// The entry ends: its answers become rows, and those go that no node asks for any more.
    pub(super) fn seal_answers(&mut self) {
        for stored in self.answered.seal() {
            self.put(RowKey::Answered(stored.group), &stored.row);
            for group in stored.dropped {
                self.delete(RowKey::Answered(group));
            }
        }
    }

    /// A change was written: it is the answer to its request, and its queue has come this far.
    pub(super) fn remember_change(&mut self, device: DeviceNumber, change: &Change) {
        self.requests.load_change(device, change);
        self.queues.load_change(device, change);
    }

    /// The same of a change that is read from its row, if its device was not forgotten since.
    pub(super) fn load_names(&mut self, device: DeviceNumber, change: &Change) {
        if !self.gates.is_before(change) {
            self.requests.load_change(device, change);
            self.queues.load_change(device, change);
        }
    }

    /// A change goes: what it still says about its request and its queue moves to rows.
    pub(super) fn outlive_change(&mut self, change: &Change) {
        let names = RequestNames::of_change(change);
        if names.is_none() || self.gates.is_before(change) {
            return;
        }
        let Ok(device) = self.device_number(&change.device_id) else { return };
        if let Some((number, slot)) = self.requests.outlive(device, change) {
            let given = accepted(Seq(change.seq), UnixMs(change.timestamp_ms));
            self.put_request(device, slot, number, &names, fingerprint::of_change(change), given);
        }
        if change.n > 0 && self.queues.get(device, &change.queue).is_some_and(|queue| queue.last == change.n) {
            self.save_queue(device, &change.queue);
        }
    }

    /// A device is forgotten: of its requests nothing stays, of its queues their ids.
    pub(super) fn forget_requests_of(&mut self, device: DeviceNumber) {
        for slot in self.requests.forget_device(device) {
            self.delete(RowKey::Requested { device, slot });
        }
        for queue in self.queues.forget_device(device) {
            self.save_queue(device, &queue);
        }
    }

    /// From the rows; what the kept changes answer comes after them.
    pub(super) fn load_dedup(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        self.answered = NodeDedup::default();
        for row in RowPages::new(rows, RowKey::Answered(0), |k| matches!(k, RowKey::Answered(_))) {
            if let (RowKey::Answered(group), row) = row? {
                checked_count(group, &RowKey::Answered(group))?;
                self.answered.load(group, row);
            }
        }
        self.requests = ClientDedup::default();
        let from = RowKey::Requested { device: DeviceNumber(0), slot: 0 };
        for row in RowPages::<Requested>::new(rows, from, |k| matches!(k, RowKey::Requested { .. })) {
            if let (RowKey::Requested { device, slot }, row) = row? {
                checked_count(row.number, &RowKey::Requested { device, slot })?;
                self.requests.load(device, slot, &row);
            }
        }
        self.queues = DeviceQueues::load(rows)?;
        Ok(())
    }
}
