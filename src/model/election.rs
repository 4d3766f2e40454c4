//! Master elections: who ranks first, and the one entry that changes the roles.
//!
//! At most one device has the role `master` because only [`State::crown`] gives it, and takes it from the
//! last one in the same step.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use super::device::{NO_MASTER, role_name};
use super::effect::Effect;
use super::error::Code;
use super::state::{Given1, State, refuse};
use super::tables::Key;
use crate::proto::outcome::Result as Given;
use crate::proto::{
    Device, Done as Nothing, Elect, Election, ElectionMethod, ElectionReason, Presence, Role, RoleChange,
};

/// May this device become master at all?
pub fn is_candidate(device: &Device) -> bool {
    device.is_active && !device.capabilities.iter().any(|c| c == NO_MASTER)
}

/// The better candidate first: higher priority, a client's device before a node's, then the id's byte order.
pub fn rank(a: &Device, b: &Device) -> Ordering {
    let key = |d: &Device| (Reverse(d.priority), d.presence() == Presence::Node);
    key(a).cmp(&key(b)).then_with(|| a.device_id.as_bytes().cmp(b.device_id.as_bytes()))
}

impl State {
    /// The candidate that ranks first, without `except`.
    pub fn first_candidate(&self, except: &str) -> Option<&Arc<Device>> {
        self.devices.values().filter(|d| is_candidate(d) && d.device_id != except).min_by(|a, b| rank(a, b))
    }

    /// There is no live master, but a device that could be it.
    pub fn wants_master(&self) -> bool {
        self.meta.master.is_empty() && self.first_candidate("").is_some()
    }

    pub(super) fn elect_command(&mut self, c: Elect) -> Given1 {
        if c.if_term.is_some_and(|term| term != self.meta.term) {
            // Somebody else's trigger came first.
            return Ok(Given::Done(Nothing {}));
        }
        let Some(winner) = self.first_candidate(&c.except).map(|d| d.device_id.clone()) else {
            self.audit(
                "master_election",
                "elect",
                true,
                &c.initiated_by,
                "No candidate: manual election needed".into(),
            );
            return refuse(Code::Election, "no device can be master: a manual election is needed");
        };
        let (reason, method) = (c.reason(), c.method());
        let election = self.crown(&winner, reason, method, reason_name(reason));
        Ok(Given::Election(Election::clone(&election)))
    }

    pub(super) fn role_change(&mut self, c: RoleChange) -> Given1 {
        let device = self.existing(&c.device_id)?;
        match (c.role(), device.role()) {
            (Role::Unset, _) => return refuse(Code::RoleChange, "role must be master or client"),
            (Role::Master, Role::Master) | (Role::Client, Role::Client | Role::Unset) => {
                self.audit_role(&c.device_id, c.role(), &c.reason);
                self.announce_role(&c.device_id, c.role(), &c.reason);
            }
            (Role::Master, _) => {
                if !device.is_active {
                    return refuse(Code::DeviceOffline, format!("device {:?} is offline", c.device_id));
                }
                if !is_candidate(&device) {
                    return refuse(Code::RoleChange, format!("device {:?} does not want to be master", c.device_id));
                }
                self.crown(&c.device_id, ElectionReason::Manual, ElectionMethod::Manual, &c.reason);
            }
            (Role::Client, Role::Master) => {
                let Some(next) = self.first_candidate(&c.device_id).map(|d| d.device_id.clone()) else {
                    return refuse(Code::RoleChange, "no other device can be master");
                };
                self.crown(&next, ElectionReason::Manual, ElectionMethod::Priority, &c.reason);
            }
        }
        Ok(Given::Device(self.existing(&c.device_id)?))
    }

    /// May a device that asks for the role when it comes online have it?
    pub(super) fn may_take_over(&self, id: &str) -> bool {
        let Some(asker) = self.devices.get(id).filter(|d| is_candidate(d)) else { return false };
        match self.master() {
            None => true,
            Some(master) if master.device_id == id => false,
            Some(master) => {
                !master.is_active || master.presence() == Presence::Node || asker.priority > master.priority
            }
        }
    }

    /// The role was asked for when coming online: all hear of it by `role_change`. `master_elected` is not sent, as
    /// clients written for the document take it for an election that was triggered.
    pub(super) fn promote(&mut self, id: &str, reason: ElectionReason, why: &str) {
        self.crown_quietly(id, reason, ElectionMethod::Manual, why);
    }

    /// The master is gone: the next one follows in the same entry; without a candidate nobody is master.
    pub(super) fn replace_lost_master(&mut self, reason: ElectionReason, why: &str) {
        let lost = self.meta.master.clone();
        if let Some(next) = self.first_candidate(&lost).map(|d| d.device_id.clone()) {
            self.crown(&next, reason, ElectionMethod::Priority, reason_name(reason));
            return;
        }
        self.meta.master.clear();
        self.set_role(&lost, Role::Client);
        self.audit_role(&lost, Role::Client, &format!("{why}; no candidate is left"));
        self.announce_role(&lost, Role::Client, why);
    }

    /// Makes a device the master: both roles, the election log and the audit log, in this one step.
    fn crown(&mut self, winner: &str, reason: ElectionReason, method: ElectionMethod, why: &str) -> Arc<Election> {
        let effects = self.effects_so_far();
        let election = self.crown_quietly(winner, reason, method, why);
        self.effect_at(effects, Effect::MasterElected(election.clone()));
        election
    }

    fn crown_quietly(
        &mut self,
        winner: &str,
        reason: ElectionReason,
        method: ElectionMethod,
        why: &str,
    ) -> Arc<Election> {
        let previous = std::mem::replace(&mut self.meta.master, winner.to_owned());
        self.meta.term += 1;
        self.meta.election_head += 1;
        let election = Arc::new(Election {
            id: self.meta.election_head,
            previous_master: previous.clone(),
            new_master: winner.to_owned(),
            reason: reason.into(),
            method: method.into(),
            at_ms: self.meta.now_ms,
            participating: self.active_devices() as u32,
            term: self.meta.term,
            ..Election::default()
        });
        self.put(Key::Election(election.id), &*election);
        let details = format!(
            "{winner} is master in term {} (before: {}; {}, {})",
            election.term,
            if previous.is_empty() { "none" } else { &previous },
            reason_name(reason),
            method_name(method),
        );
        self.audit("master_elected", "elect", false, winner, details);
        if previous != winner {
            if !previous.is_empty() {
                self.set_role(&previous, Role::Client);
                self.audit_role(&previous, Role::Client, why);
                self.announce_role(&previous, Role::Client, why);
            }
            self.set_role(winner, Role::Master);
            self.audit_role(winner, Role::Master, why);
            self.announce_role(winner, Role::Master, why);
        }
        election
    }

    fn set_role(&mut self, id: &str, role: Role) {
        if let Some(device) = self.devices.get(id) {
            let device = Device { role: role.into(), updated_ms: self.meta.now_ms, ..Device::clone(device) };
            self.save_device(device);
        }
    }

    fn audit_role(&mut self, id: &str, role: Role, why: &str) {
        self.audit(
            "role_change",
            "change_role",
            false,
            id,
            format!("Role changed to {} (reason: {why})", role_name(role)),
        );
    }

    fn announce_role(&mut self, id: &str, role: Role, why: &str) {
        let (term, at_ms) = (self.meta.term, self.meta.now_ms);
        self.effect(Effect::RoleChanged { device_id: id.to_owned(), role, reason: why.to_owned(), term, at_ms });
    }
}

/// A reason as the document writes it.
pub fn reason_name(reason: ElectionReason) -> &'static str {
    match reason {
        ElectionReason::Shutdown => "shutdown",
        ElectionReason::Failure => "failure",
        ElectionReason::Manual | ElectionReason::Unset => "manual",
    }
}

/// A method as the document writes it.
pub fn method_name(method: ElectionMethod) -> &'static str {
    match method {
        ElectionMethod::Priority => "priority",
        ElectionMethod::Manual => "manual",
        ElectionMethod::Automatic | ElectionMethod::Unset => "automatic",
    }
}
