//! Devices: registration, coming and going.

use std::sync::Arc;

use self::key::KEY;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse, refuse_share};
use super::state::State;
use super::visible::is_name;
use crate::ids::{DeviceNumber, NodeId, PendingElectionId};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Asker, Device, DeviceOffline, DeviceOnline, DeviceShutdown, DevicesSeen, ElectionReason, Empty, MoveHome,
    NodePresence, OnlineDone, Presence, Role, SyncState, SyncStatus,
};

pub(super) mod devices;
pub(super) mod key;

/// The capability by which a device says that it never wants to be master.
pub(crate) const NO_MASTER: &str = "no-master";

/// Checks an id as clients give them: not empty, at most 255 bytes, nothing that a reader does not see.
pub(crate) fn valid_id(id: &str) -> bool {
    !id.trim().is_empty() && id.len() <= limits::DEVICE_ID && is_name(id)
}

impl Device {
    pub fn home_node(&self) -> NodeId {
        NodeId(self.home)
    }
}

impl State {
    pub fn device(&self, id: &str) -> Option<&Arc<Device>> {
        self.devices.get(id)
    }

    /// All devices, by id.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter()
    }

    /// The devices after this id, by id; all of them without one.
    pub fn devices_after(&self, id: Option<&str>) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.iter_after(id)
    }

    pub fn active_devices(&self) -> usize {
        self.devices.active()
    }

    /// The nodes that any device is present on.
    pub fn nodes_with_devices(&self) -> impl Iterator<Item = NodeId> {
        self.devices.nodes()
    }

    /// The id of the device with this number.
    pub fn device_name(&self, number: DeviceNumber) -> Option<&str> {
        self.devices.name(number)
    }

    pub(super) fn device_online(&mut self, c: DeviceOnline, node: NodeId) -> ApplyResult {
        if !valid_id(&c.device_id) {
            return refuse(
                Code::Registration,
                "device_id must be 1 to 255 bytes without control or invisible characters",
            );
        }
        if c.priority.is_some_and(|p| p > limits::PRIORITY) {
            return refuse(Code::Registration, format!("priority must be from 0 to {}", limits::PRIORITY));
        }
        let first = !self.devices.contains(&c.device_id);
        self.must_be_let_in(&c.device_id, c.token_iat)?;
        let numbers = self.meta.devices + u32::from(self.gates.number(&c.device_id).is_none());
        if first && (self.device_count() >= limits::DEVICES || numbers > limits::DEVICE_NUMBERS) {
            return refuse(Code::Registration, format!("the cluster keeps at most {} devices", limits::DEVICES));
        }
        self.may_bring_online(&c, first)?;
        let mut device = if first { self.register(&c) } else { self.existing(&c.device_id)? };
        let session = c.presence() == Presence::Session;
        let first_session = session && !device.had_session;
        device.had_session |= session;
        (device.was_master, device.was_active) = (false, false);
        self.come_online(&mut device, &c, node);
        let id = device.device_id.clone();
        self.save_device(device);
        let operation = if first { "register" } else { "online" };
        if c.role() == Role::Master {
            self.ask_for_the_role(&id, c.asker())?;
        }
        self.candidate_came(&id);
        let device = self.existing(&id)?;
        let role = role_name(device.role());
        self.audit("device_online", operation, false, &id, format!("Device online as {role}"));
        let master = self.meta.master.clone();
        Ok(Reply::Online(OnlineDone {
            device: Some(device),
            first: first || first_session,
            master,
            term: self.meta.term,
        }))
    }

    /// A device brings itself online. Admins and managers bring others, too, but may register only so many: one token
    /// must not use up what all devices of the shop need.
    fn may_bring_online(&self, c: &DeviceOnline, first: bool) -> Result<(), ApplyError> {
        let share = match c.asker() {
            Asker::Device if c.asked_by != c.device_id => {
                let why = format!("device {:?} may not act for device {:?}", c.asked_by, c.device_id);
                return refuse(Code::Forbidden, why);
            }
            Asker::Unset | Asker::Device => return Ok(()),
            Asker::Manager => limits::DEVICES_OF_MANAGER,
            Asker::Admin => limits::DEVICES_OF_ADMIN,
        };
        let registered = self.devices.registered_by(&c.asked_by);
        if first && c.asked_by != c.device_id && registered >= share {
            let why = format!("is one too many: {:?} has registered {registered} other devices", c.asked_by);
            return refuse_share("device_id", why, limits::SHARE_RETRY_MS);
        }
        Ok(())
    }

    /// The number of a device that registers: its own, if it was here before.
    pub(super) fn next_device_number(&mut self, device_id: &str) -> DeviceNumber {
        self.comes_back(device_id).unwrap_or_else(|| {
            *self.meta.devices(KEY).devices += 1;
            self.devices.add_name(device_id);
            DeviceNumber(self.meta.devices)
        })
    }

    /// A device that was forgotten is there again.
    pub(super) fn uncount_forgotten(&mut self) {
        let forgotten = self.meta.devices(KEY).devices_forgotten;
        *forgotten = forgotten.saturating_sub(1);
    }

    /// How many devices there are.
    pub fn device_count(&self) -> u32 {
        self.meta.devices.saturating_sub(self.meta.devices_forgotten)
    }

    fn register(&mut self, c: &DeviceOnline) -> Device {
        let now = self.meta.now_ms;
        let number = self.next_device_number(&c.device_id);
        let sync = SyncState {
            device_id: c.device_id.clone(),
            sync_status: SyncStatus::Pending.into(),
            created_ms: now,
            updated_ms: now,
            ..SyncState::default()
        };
        self.save_sync_state(sync);
        let registered_by = if c.asked_by == c.device_id { String::new() } else { c.asked_by.clone() };
        Device {
            device_id: c.device_id.clone(),
            role: Role::Client.into(),
            created_ms: now,
            number: number.get(),
            registered_by,
            ..Device::default()
        }
    }

    fn come_online(&mut self, device: &mut Device, c: &DeviceOnline, node: NodeId) {
        let now = self.meta.now_ms;
        let has_session = device.is_active && device.presence() == Presence::Session;
        // A REST call does not move a device whose socket lives elsewhere.
        let rest_beside_session = c.presence() == Presence::Rest && has_session;
        if !rest_beside_session {
            let here = NodePresence { node: node.get(), online_count: device.online_count + 1 };
            device.present_on = match c.presence() {
                Presence::Session if has_session => with(present_on(device), here),
                Presence::Session => vec![here],
                _ => Vec::new(),
            };
            device.online_count += 1;
            device.presence = c.presence;
            let home_stays = c.returns && device.present_on.iter().any(|there| there.node == device.home);
            if !home_stays {
                device.home = node.get();
            }
        }
        if let Some(priority) = c.priority {
            device.priority = priority;
        }
        if let Some(capabilities) = &c.capabilities {
            device.capabilities.clone_from(&capabilities.names);
        }
        if !c.class.is_empty() {
            device.class.clone_from(&c.class);
        }
        if let Some(unsent) = c.unsent {
            (device.unsent, device.unsent_ms) = (unsent, now);
        }
        device.is_active = true;
        device.last_seen_ms = now;
        device.updated_ms = now;
        self.notify_coordinator();
    }

    pub(super) fn device_offline(&mut self, c: DeviceOffline) -> ApplyResult {
        let device = self.existing(&c.device_id)?;
        if c.session_lost {
            let lost = NodePresence { node: c.home, online_count: c.online_count };
            if !present_on(&device).any(|here| here == lost) {
                // It has come back there meanwhile, or is known to have gone.
                return Ok(Reply::Device(device));
            }
            if let Some(device) = self.present_without(&device, NodeId(c.home)) {
                return Ok(Reply::Device(device));
            }
        }
        let reason = match (c.session_lost, c.reason.as_str()) {
            (false, "") => "said goodbye",
            (_, given) => given,
        };
        self.audit("device_offline", "offline", false, &c.device_id, format!("Device offline: {reason}"));
        let election = if c.session_lost { ElectionReason::Failure } else { ElectionReason::Shutdown };
        self.note_leaving(&c.device_id);
        let pending_election = self.go_offline(&c.device_id, election)?;
        if !c.session_lost {
            // A master that says goodbye hears that it is offline when there is another one.
            self.txn.pending_election = pending_election;
            *self.meta.devices(KEY).nodes_lost += 1;
        }
        Ok(Reply::Device(self.existing(&c.device_id)?))
    }

    pub(super) fn device_shutdown(&mut self, c: DeviceShutdown) -> ApplyResult {
        self.existing(&c.device_id)?;
        let reason = if c.reason.is_empty() { "shutdown" } else { &c.reason };
        self.audit("device_shutdown", "shutdown", false, &c.device_id, format!("Device shuts down: {reason}"));
        self.note_leaving(&c.device_id);
        // Who says that it shuts down waits until there is another master.
        self.txn.pending_election = self.go_offline(&c.device_id, ElectionReason::Shutdown)?;
        *self.meta.devices(KEY).nodes_lost += 1;
        Ok(Reply::Device(self.existing(&c.device_id)?))
    }

    /// A node starts anew: its sessions are gone. The node's own device is not, as the node is here.
    pub(super) fn sessions_gone(&mut self, node: NodeId) -> ApplyResult {
        self.all_offline(node, |d| d.presence() != Presence::Node, "node restarted")
    }

    /// No device is present on `node` any more.
    pub(super) fn node_lost(&mut self, node: NodeId, why: &str) -> ApplyResult {
        self.all_offline(node, |_| true, why)
    }

    fn all_offline(&mut self, node: NodeId, which: fn(&Device) -> bool, why: &str) -> ApplyResult {
        let was_there = |d: &&Arc<Device>| is_present_on(d, node) && which(d);
        let there: Vec<Arc<Device>> = self.devices.iter().filter(was_there).cloned().collect();
        if !there.is_empty() {
            *self.meta.devices(KEY).nodes_lost += 1;
        }
        let gone: Vec<String> = there
            .iter()
            .filter(|device| self.present_without(device, node).is_none())
            .map(|device| device.device_id.clone())
            .collect();
        // The master last: nobody who is gone too may be elected in between.
        let (masters, others): (Vec<_>, Vec<_>) = gone.into_iter().partition(|id| *id == self.meta.master);
        for id in others.iter().chain(&masters) {
            self.audit("device_offline", "offline", false, id, format!("Device offline: {why}"));
            self.go_offline(id, ElectionReason::Failure)?;
        }
        Ok(Reply::Done(Empty {}))
    }

    /// The election that follows, if it is not decided yet or has failed.
    pub(super) fn go_offline(&mut self, id: &str, reason: ElectionReason) -> Result<PendingElectionId, ApplyError> {
        let Some(device) = self.devices.get(id) else { return Ok(PendingElectionId(0)) };
        let mut device = Device::clone(device);
        let was_active = device.is_active;
        device.is_active = false;
        device.present_on.clear();
        device.updated_ms = self.meta.now_ms;
        if was_active {
            device.offline_seq = self.meta.head_seq;
            device.away = true;
        }
        self.save_device(device);
        self.notify_coordinator();
        if self.meta.master == id { self.replace_lost_master(reason) } else { Ok(PendingElectionId(0)) }
    }

    /// The device without its presence on `node`, saved, if it is present on another one. Its home is then the one of
    /// those that stay where it came online last; the master's role stays with it.
    fn present_without(&mut self, device: &Device, node: NodeId) -> Option<Device> {
        let mut device = device.clone();
        device.present_on.retain(|there| NodeId(there.node) != node);
        let newest = device.present_on.iter().max_by_key(|there| there.online_count)?.node;
        if device.home_node() == node {
            self.set_home(&mut device, NodeId(newest));
        }
        device.updated_ms = self.meta.now_ms;
        self.save_device(device.clone());
        self.notify_coordinator();
        Some(device)
    }

    pub(super) fn move_home(&mut self, c: &MoveHome, node: NodeId) -> Reply {
        if let Some(device) = self.devices.get(&c.device_id)
            && self.leads(node)
            && device.home == c.from
            && is_present_on(device, NodeId(c.to))
        {
            let mut device = Device::clone(device);
            self.set_home(&mut device, NodeId(c.to));
            device.updated_ms = self.meta.now_ms;
            self.save_device(device);
            self.notify_coordinator();
        }
        Reply::Done(Empty {})
    }

    fn set_home(&mut self, device: &mut Device, node: NodeId) {
        device.home = node.get();
        self.forget_transfers_to(&device.device_id);
    }

    pub(super) fn devices_seen(&mut self, c: DevicesSeen) -> Reply {
        for id in c.device_ids {
            if let Some(device) = self.devices.get(&id) {
                let device = Device { last_seen_ms: self.meta.now_ms, ..Device::clone(device) };
                self.save_device(device);
            }
        }
        for said in c.unsent {
            if let Some(device) = self.devices.get(&said.device_id) {
                let unsent_ms = self.meta.now_ms;
                let device = Device { unsent: said.count, unsent_ms, ..Device::clone(device) };
                self.save_device(device);
            }
        }
        Reply::Done(Empty {})
    }

    /// The device, or 3004.
    pub(super) fn existing(&self, id: &str) -> Result<Device, super::refusal::ApplyError> {
        match self.devices.get(id) {
            Some(device) => Ok(Device::clone(device)),
            None => refuse(Code::NotRegistered, format!("device {id:?} is not registered")),
        }
    }

    /// The device's number, or 3004.
    pub(super) fn device_number(&self, id: &str) -> Result<DeviceNumber, super::refusal::ApplyError> {
        match self.devices.get(id) {
            Some(device) => Ok(DeviceNumber(device.number)),
            None => refuse(Code::NotRegistered, format!("device {id:?} is not registered")),
        }
    }

    pub(super) fn save_device(&mut self, device: Device) {
        self.devices.save(&mut self.txn, device);
    }

    /// The device is gone; its number stays.
    pub(super) fn forget_device(&mut self, id: &str) {
        self.devices.forget(&mut self.txn, id);
        *self.meta.devices(KEY).devices_forgotten += 1;
    }
}

/// Where a device is present: on every node that has a session of it, or on its home if it is online without one (and
/// if its row was written before rows told more than the home).
pub(crate) fn present_on(device: &Device) -> impl Iterator<Item = NodePresence> {
    let at_home = NodePresence { node: device.home, online_count: device.online_count };
    let only = (device.is_active && device.present_on.is_empty()).then_some(at_home);
    let sessions = if device.is_active { &device.present_on[..] } else { &[] };
    sessions.iter().copied().chain(only)
}

fn is_present_on(device: &Device, node: NodeId) -> bool {
    present_on(device).any(|there| NodeId(there.node) == node)
}

/// Whether this node has a session of the device.
pub(crate) fn has_session_on(device: &Device, node: NodeId) -> bool {
    device.presence() == Presence::Session && is_present_on(device, node)
}

/// The nodes of `others` and `here`, by number.
fn with(others: impl Iterator<Item = NodePresence>, here: NodePresence) -> Vec<NodePresence> {
    let mut all: Vec<NodePresence> = others.filter(|there| there.node != here.node).collect();
    if all.len() >= limits::NODES {
        // Only nodes that were taken out of the cluster can be more.
        let oldest = all.iter().map(|there| there.online_count).min();
        all.retain(|there| Some(there.online_count) != oldest);
    }
    all.push(here);
    all.sort_unstable_by_key(|there| there.node);
    all
}

/// A role as the document writes it.
pub(crate) fn role_name(role: Role) -> &'static str {
    if role == Role::Master { "master" } else { "client" }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::ids::{LogIndex, RaftTerm};
    use crate::model::state::{Position, into_result};
    use crate::model::tables::{MemoryTables, RowKey, Tables};
    use crate::proto::command::Intent;
    use crate::proto::{Batch, Command, Meta};

    #[test]
    fn devices_have_their_limit_and_those_that_are_there_go_on() {
        // A cluster that has registered all but one; the rows of the others do not matter here.
        let mut tables = MemoryTables::default();
        let meta = Meta { devices: limits::DEVICES - 1, ..Meta::default() };
        tables.put(RowKey::Meta, Bytes::from(meta.encode_to_vec()));
        tables.commit(Default::default());
        let mut state = State::open(Box::new(tables)).unwrap();
        let mut index = 0;
        let mut online = |id: &str| {
            index += 1;
            let intent = Intent::DeviceOnline(DeviceOnline { device_id: id.to_owned(), ..DeviceOnline::default() });
            let batch = Batch {
                commands: vec![Command { origin: None, at_ms: 1, intent: Some(intent), ..Command::default() }],
            };
            let at = Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(0) };
            into_result(state.apply(at, Bytes::from(batch.encode_to_vec())).unwrap().outcomes.remove(0))
        };
        assert!(online("the last one").is_ok());
        let error = online("one more").unwrap_err();
        assert_eq!(error.code, Code::Registration);
        assert!(error.message.contains("100000 devices"), "{error}");
        assert!(online("the last one").is_ok());
    }

    #[test]
    fn a_token_registers_its_share_of_devices_and_everyone_else_goes_on() {
        use crate::model::properties::{StateUnderTest, told};
        let mut b = StateUnderTest::new();
        let by = |asked_by: &str, asker: Asker, device_id: &str| {
            let (asked_by, device_id) = (asked_by.to_owned(), device_id.to_owned());
            Intent::DeviceOnline(DeviceOnline { device_id, asked_by, asker: asker.into(), ..DeviceOnline::default() })
        };
        for n in 0..limits::DEVICES_OF_MANAGER {
            b.ok(by("manager", Asker::Manager, &format!("ghost-{n}")));
        }
        let before = b.state.meta().clone();
        let error = into_result(b.run(by("manager", Asker::Manager, "one more")).0).unwrap_err();
        assert_eq!((error.code, error.field()), (Code::Unavailable, Some("device_id")));
        assert_eq!(error.retry_after_ms, Some(limits::SHARE_RETRY_MS));
        assert_eq!((b.state.meta().devices, b.state.meta().audit_head), (before.devices, before.audit_head));
        // Those that are there come and go; it brings itself, others bring theirs.
        b.ok(by("manager", Asker::Manager, "ghost-7"));
        b.ok(by("manager", Asker::Manager, "manager"));
        b.ok(by("till", Asker::Device, "till"));
        b.ok(by("other", Asker::Manager, "one more"));
        b.ok(by("admin", Asker::Admin, "two more"));
        assert_eq!(b.code(by("till", Asker::Device, "not its own")), Code::Forbidden);
        assert!(b.state.device("not its own").is_none());
        let again = State::open(Box::new(b.tables.clone())).unwrap();
        assert_eq!((told(&again), again.devices.shares()), (told(&b.state), b.state.devices.shares()));
        assert_eq!(b.code(by("manager", Asker::Manager, "yet another")), Code::Unavailable);
    }
}
