//! Devices that are kept out: whose tokens were taken back, which are suspended, and which are forgotten
//! (docs/design.md, section 17.2).
//!
//! What keeps a device out is a row of its own and not part of the device's: it holds for a token whose device never
//! registered, and it outlives the device that is forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use super::device::valid_id;
use super::effect::Effect;
use super::error::{Code, Error};
use super::refusal::{ApplyError, ApplyResult, refuse, refuse_field};
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead};
use crate::ids::DeviceNumber;
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Change, Device, DeviceForget, DeviceGate, DeviceReport, DeviceRevoke, DeviceSuspend, ElectionReason, Empty,
    Forgotten, Presence, QueueLast,
};

/// How long after a revocation no token can live that was issued before it, with a margin for wrong clocks.
const KEPT_SECONDS: u64 = 2 * limits::TOKEN_SECONDS;

/// Why a token's device is refused, if it is.
pub(crate) fn refusal(gate: &DeviceGate, issued_s: u64) -> Option<Error> {
    if issued_s <= gate.not_before {
        return Some(Error::new(Code::Credentials, "the tokens of this device were taken back"));
    }
    gate.suspended.then(|| Error::new(Code::Forbidden, format!("device {:?} is suspended", gate.device_id)))
}

#[derive(Debug, Default)]
pub(super) struct DeviceGates {
    gates: HashMap<String, DeviceGate>,
    forgotten: HashMap<String, Forgotten>,
}

impl DeviceGates {
    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let mut gates = Self::default();
        let from = RowKey::DeviceGate(String::new());
        for row in RowPages::<DeviceGate>::new(rows, from, |k| matches!(k, RowKey::DeviceGate(_))) {
            gates.set(row?.1);
        }
        let from = RowKey::Forgotten(String::new());
        for row in RowPages::<Forgotten>::new(rows, from, |k| matches!(k, RowKey::Forgotten(_))) {
            gates.set_forgotten(row?.1);
        }
        Ok(gates)
    }

    fn set(&mut self, row: DeviceGate) {
        self.gates.insert(row.device_id.clone(), row);
    }

    fn set_forgotten(&mut self, row: Forgotten) {
        self.forgotten.insert(row.device_id.clone(), row);
    }

    /// The number that the device had before it was forgotten.
    pub(super) fn number(&self, device_id: &str) -> Option<DeviceNumber> {
        self.forgotten.get(device_id).map(|row| DeviceNumber(row.number))
    }

    /// The change's request is not remembered: it came before its device was forgotten.
    pub(super) fn is_before(&self, change: &Change) -> bool {
        self.forgotten.get(&change.device_id).is_some_and(|row| change.seq <= row.seq)
    }
}

impl State {
    /// What keeps the device out, if anything ever did.
    pub fn gate(&self, device_id: &str) -> Option<&DeviceGate> {
        self.gates.gates.get(device_id)
    }

    /// Why a token that was issued then is refused, if it is.
    pub fn refusal_of(&self, device_id: &str, issued_s: u64) -> Option<Error> {
        refusal(self.gate(device_id)?, issued_s)
    }

    /// A command of the device: refused if its token was taken back, or the device suspended, before this was applied.
    /// `issued_s`: when the device's own token was issued; 0: somebody else speaks for it.
    pub(super) fn must_be_let_in(&self, device_id: &str, issued_s: u64) -> Result<(), ApplyError> {
        let Some(gate) = self.gate(device_id) else { return Ok(()) };
        let issued_s = if issued_s == 0 { u64::MAX } else { issued_s };
        refusal(gate, issued_s).map_or(Ok(()), |error| Err(error.into()))
    }

    fn save_gate(&mut self, gate: DeviceGate) -> Result<(), ApplyError> {
        let kept_from = self.meta.now_ms / 1_000;
        if !self.gates.gates.contains_key(&gate.device_id) && self.gates.gates.len() >= limits::DEVICE_GATES {
            let done = |g: &&DeviceGate| !g.suspended && g.not_before.saturating_add(KEPT_SECONDS) < kept_from;
            let mut over: Vec<String> = self.gates.gates.values().filter(done).map(|g| g.device_id.clone()).collect();
            over.sort_unstable();
            over.truncate(limits::COMPACT_STEP as usize);
            if over.is_empty() {
                let why = "so many devices are kept out that no more can be remembered: change the key instead";
                return refuse(Code::Unavailable, why);
            }
            for id in over {
                self.gates.gates.remove(&id);
                self.delete(RowKey::DeviceGate(id));
            }
        }
        self.put(RowKey::DeviceGate(gate.device_id.clone()), &gate);
        self.gates.set(gate);
        Ok(())
    }

    fn gate_of(&self, device_id: &str, by: &str) -> Result<DeviceGate, ApplyError> {
        // One that registered before names were looked at so closely can be kept out, too.
        if !valid_id(device_id) && !self.devices.contains(device_id) {
            let why = "must be 1 to 255 bytes without control or invisible characters";
            return refuse_field(Code::InvalidData, "device_id", why);
        }
        let known = self.gate(device_id).cloned().unwrap_or_default();
        Ok(DeviceGate { device_id: device_id.to_owned(), at_ms: self.meta.now_ms, by: by.to_owned(), ..known })
    }

    pub(super) fn device_revoke(&mut self, c: DeviceRevoke) -> ApplyResult {
        let gate = self.gate_of(&c.device_id, &c.by)?;
        // Greater each time: a token of the same second that was issued after the last revocation is caught by this one.
        let not_before = (self.meta.now_ms / 1_000).max(gate.not_before + 1);
        self.save_gate(DeviceGate { not_before, ..gate })?;
        self.audit("device_revoke", "revoke", false, &c.by, format!("All tokens of device {} revoked", c.device_id));
        let report = self.report(&c.device_id, not_before);
        self.put_out(&c.device_id)?;
        Ok(Reply::DeviceReport(report))
    }

    /// The sessions of the device's tokens end, and it is offline.
    fn put_out(&mut self, device_id: &str) -> Result<(), ApplyError> {
        let device_id = device_id.to_owned();
        if self.devices.get(&device_id).is_some_and(|d| d.is_active && d.presence() != Presence::Node) {
            self.audit("device_offline", "offline", false, &device_id, "Device offline: it is kept out".to_owned());
            self.go_offline(&device_id, ElectionReason::Failure)?;
        }
        self.effect(Effect::DeviceKeptOut { device_id });
        Ok(())
    }

    fn report(&self, device_id: &str, not_before: u64) -> DeviceReport {
        let mut report = DeviceReport { device_id: device_id.to_owned(), not_before, ..DeviceReport::default() };
        let Some(device) = self.devices.get(device_id) else { return report };
        report.registered = true;
        let (changes, last) = self.audit.changes_of(device_id);
        (report.changes, report.last_seq, report.last_ms) = (changes, last.0.get(), last.1.get());
        report.cursor_seq = self.sync_state(device_id).map_or(0, |sync| sync.cursor_seq);
        (report.unsent, report.unsent_ms) = (device.unsent, device.unsent_ms);
        report.last_seen_ms = device.last_seen_ms;
        let last = |(queue, row): (&Arc<str>, &crate::proto::Queue)| QueueLast {
            queue: queue.to_string(),
            last: row.last,
            used_ms: row.used_ms,
        };
        report.queues = self.queues.of_device(DeviceNumber(device.number)).map(last).collect();
        report.queues.sort_unstable_by(|a, b| a.queue.cmp(&b.queue));
        report
    }

    pub(super) fn device_suspend(&mut self, c: DeviceSuspend) -> ApplyResult {
        let gate = self.gate_of(&c.device_id, &c.by)?;
        if self.devices.get(&c.device_id).is_some_and(|d| d.presence() == Presence::Node) {
            return refuse_field(Code::InvalidData, "device_id", "is a node's own device");
        }
        if gate.suspended == c.suspended {
            return Ok(Reply::Done(Empty {}));
        }
        self.save_gate(DeviceGate { suspended: c.suspended, ..gate })?;
        let (what, done) = if c.suspended { ("suspend", "suspended") } else { ("resume", "resumed") };
        self.audit("device_suspend", what, false, &c.by, format!("Device {} {done}", c.device_id));
        if c.suspended {
            self.put_out(&c.device_id)?;
        }
        Ok(Reply::Done(Empty {}))
    }

    /// A device that is gone makes room for another one. Its number, its changes and the ids of its queues stay.
    pub(super) fn device_forget(&mut self, c: DeviceForget) -> ApplyResult {
        let device = self.existing(&c.device_id)?;
        if device.is_active {
            return refuse(Code::RoleChange, format!("device {:?} is online", c.device_id));
        }
        if self.meta.master == c.device_id
            || self.meta.pending_election.as_ref().is_some_and(|b| b.winner == c.device_id)
        {
            return refuse(Code::RoleChange, format!("device {:?} is the master, or about to be", c.device_id));
        }
        if device.presence() == Presence::Node {
            return refuse(Code::RoleChange, format!("device {:?} is a node's own", c.device_id));
        }
        let waits = |o: &&Arc<crate::proto::Conflict>| o.device_id == c.device_id || o.writer == c.device_id;
        let open = self.open_conflicts().filter(waits).count();
        if open > 0 {
            let why =
                format!("{open} open conflicts of device {:?} wait for a decision: decide them first", c.device_id);
            return refuse(Code::Conflict, why);
        }
        let number = DeviceNumber(device.number);
        self.forget_requests_of(number);
        self.forget_device(&c.device_id);
        self.forget_sync_state(&c.device_id);
        self.save_forgotten(Forgotten {
            device_id: c.device_id.clone(),
            number: number.get(),
            seq: self.meta.head_seq,
            at_ms: self.meta.now_ms,
            returned: false,
        });
        self.audit("device_forget", "delete", false, &c.by, format!("Device {} forgotten", c.device_id));
        self.notify_coordinator();
        Ok(Reply::Done(Empty {}))
    }

    fn save_forgotten(&mut self, row: Forgotten) {
        self.put(RowKey::Forgotten(row.device_id.clone()), &row);
        self.gates.set_forgotten(row);
    }

    /// A forgotten device registers again: it is the one that it was. Its number; `None`: it is new.
    pub(super) fn comes_back(&mut self, device_id: &str) -> Option<DeviceNumber> {
        let row = self.gates.forgotten.get(device_id)?.clone();
        let number = DeviceNumber(row.number);
        self.uncount_forgotten();
        self.save_forgotten(Forgotten { returned: true, ..row });
        Some(number)
    }

    /// Devices that were forgotten and are not there again, by number: their names.
    pub(super) fn name_forgotten(&mut self) {
        for row in self.gates.forgotten.values() {
            self.devices.load_name(DeviceNumber(row.number), &row.device_id);
        }
    }

    /// The number of the device that made a change, also if it was forgotten since.
    pub(super) fn writer_number(&self, device_id: &str) -> DeviceNumber {
        let number = self.devices.get(device_id).map(|device: &Arc<Device>| DeviceNumber(device.number));
        number.or_else(|| self.gates.number(device_id)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
