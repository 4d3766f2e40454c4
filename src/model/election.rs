//! Master elections: who ranks first, and the entries that change the roles.
//!
//! At most one device has the role `master` because only [`State::make_master`] gives it, and takes it from the
//! last one in the same step.
//!
//! A trigger that meets a winner at home on the leader's node elects in its own entry. Every other election is a
//! [`PendingElection`](crate::proto::PendingElection) in the state: what to do next is decided by [`decide`] on the
//! leader, whoever that is by then, and what was done comes back as commands ([`pending_election`]).

use std::sync::Arc;

use self::key::KEY;
use self::rules::{NOBODY, Trigger, Triggered};
use super::device::role_name;
use super::effect::Effect;
use super::error::Code;
use super::refusal::{ApplyError, ApplyResult, refuse};
use super::state::State;
use super::tables::RowKey;
use crate::ids::{ElectionId, MasterTerm, PendingElectionId};
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Asker, Device, Elect, Election, ElectionMethod, ElectionOutcome, ElectionReason, Empty, Presence, Principal, Role,
    RoleChange,
};

mod asked;
pub(crate) mod decide;
#[cfg(test)]
mod harness;
pub(super) mod key;
mod log;
mod pending_election;
#[cfg(test)]
mod property;
mod rules;
#[cfg(test)]
mod scenarios;

pub(crate) use self::rules::{is_candidate, method_name, reason_name};

impl State {
    /// The device with the role `master`.
    pub fn master(&self) -> Option<&Arc<Device>> {
        self.devices.get(&self.meta.master)
    }

    /// The candidate that ranks first, without `except`.
    pub(super) fn first_candidate(&self, except: &str) -> Option<&Arc<Device>> {
        self.devices.iter().filter(|d| is_candidate(d) && d.device_id != except).min_by(|a, b| self.ranks(a, b))
    }

    pub(super) fn elect_command(&mut self, c: Elect) -> ApplyResult {
        if c.if_term.is_some_and(|term| MasterTerm(term) != self.meta.master_term()) {
            // Somebody else's trigger came first.
            return Ok(Reply::Done(Empty {}));
        }
        let (reason, method) = (c.reason(), c.method());
        let mut c = c;
        if c.asker() == Asker::Device {
            self.may_call_an_election(&c)?;
            if c.asked_by == self.meta.master {
                // It asks to be followed by another one.
                c.except.clone_from(&c.asked_by);
            }
            if self.meta.pending_election.is_none() {
                self.count_asked(&c.asked_by)?;
            }
        }
        let why = reason_name(reason).to_owned();
        let trigger = Trigger { reason, method, except: c.except, why, by: c.initiated_by, ..Trigger::default() };
        match self.trigger(trigger)? {
            Triggered::Elected(election) => Ok(Reply::Election(Election::clone(&election))),
            Triggered::Open(pending_election) => {
                self.txn.pending_election = pending_election;
                Ok(Reply::Done(Empty {}))
            }
            Triggered::Failed(_) => refuse(Code::Election, NOBODY),
        }
    }

    pub(super) fn role_change(&mut self, c: RoleChange) -> ApplyResult {
        let device = self.existing(&c.device_id)?;
        let asks = c.asker() == Asker::Device;
        if asks && c.by != c.device_id {
            let why = format!("device {:?} may not change the role of device {:?}", c.by, c.device_id);
            return refuse(Code::Forbidden, why);
        }
        let order =
            Trigger { reason: ElectionReason::Manual, why: c.reason.clone(), by: c.by.clone(), ..Trigger::default() };
        match (c.role(), device.role()) {
            (Role::Unset, _) => return refuse(Code::RoleChange, "role must be master or client"),
            // Nothing has changed, and who asks for that again and again is not told to all.
            (Role::Master, Role::Master) | (Role::Client, Role::Client | Role::Unset) if asks => {}
            (Role::Master, Role::Master) | (Role::Client, Role::Client | Role::Unset) => {
                let details = role_details(c.role(), &c.reason);
                self.audit_row("role_change", "change_role", false, &c.device_id, details, true);
                self.announce_role(&c.device_id, c.role(), &c.reason);
            }
            (Role::Master, _) => {
                if !device.is_active {
                    return refuse(Code::DeviceOffline, format!("device {:?} is offline", c.device_id));
                }
                if !is_candidate(&device) {
                    return refuse(Code::RoleChange, format!("device {:?} does not want to be master", c.device_id));
                }
                if asks {
                    self.may_become_master(&device)?;
                    self.count_asked(&c.device_id)?;
                }
                let named = c.device_id.clone();
                self.await_election(Trigger { method: ElectionMethod::Manual, named, ..order })?;
            }
            (Role::Client, Role::Master) => {
                if self.first_candidate(&c.device_id).is_none() {
                    return refuse(Code::RoleChange, "no other device can be master");
                }
                if asks {
                    self.count_asked(&c.device_id)?;
                }
                let except = c.device_id.clone();
                self.await_election(Trigger { method: ElectionMethod::Priority, except, ..order })?;
            }
        }
        Ok(Reply::Device(self.existing(&c.device_id)?))
    }

    /// Elects; whoever sent the command waits until that is done.
    fn await_election(&mut self, trigger: Trigger) -> Result<(), ApplyError> {
        if let Triggered::Open(pending_election) | Triggered::Failed(pending_election) = self.trigger(trigger)? {
            self.txn.pending_election = pending_election;
        }
        Ok(())
    }

    /// A device comes online and wants to be master.
    pub(super) fn ask_for_the_role(&mut self, id: &str, asker: Asker) -> Result<(), ApplyError> {
        if let Some(open) = &self.meta.pending_election {
            // It stands in the election that is under way, and is told its role when that is over.
            self.txn.pending_election = PendingElectionId(open.id);
            return Ok(());
        }
        if !self.may_take_over(id) {
            return Ok(());
        }
        let in_place = self.master().is_some_and(|master| master.is_active);
        if asker == Asker::Device && in_place && self.count_asked(id).is_err() {
            // It has asked too often: it is a client, as its answer says, and the master stays.
            return Ok(());
        }
        self.await_election(Trigger {
            reason: ElectionReason::Manual,
            method: ElectionMethod::Manual,
            named: id.to_owned(),
            why: "asked for when coming online".into(),
            by: id.to_owned(),
            quiet: true,
            ..Trigger::default()
        })
    }

    fn may_take_over(&self, id: &str) -> bool {
        let Some(asker) = self.devices.get(id).filter(|d| is_candidate(d)) else { return false };
        match self.master() {
            None => true,
            Some(master) if master.device_id == id => false,
            Some(master) => {
                !master.is_active || master.presence() == Presence::Node || asker.priority > master.priority
            }
        }
    }

    /// The master is gone. It keeps the role until the next one has it, so that there is never a gap in the chain of
    /// masters. The election that is not decided yet, or has failed.
    pub(super) fn replace_lost_master(&mut self, reason: ElectionReason) -> Result<PendingElectionId, ApplyError> {
        let trigger = Trigger {
            reason,
            method: ElectionMethod::Priority,
            except: self.meta.master.clone(),
            why: reason_name(reason).to_owned(),
            ..Trigger::default()
        };
        Ok(match self.trigger(trigger)? {
            Triggered::Elected(_) => PendingElectionId(0),
            Triggered::Open(pending_election) | Triggered::Failed(pending_election) => pending_election,
        })
    }

    /// Makes a device the master: both roles, the election log and the audit log, in this one step.
    fn make_master(&mut self, winner: &str, trigger: &Trigger, pending_election: PendingElectionId) -> Arc<Election> {
        let effects = self.txn.effects_so_far();
        let asking = self.asked_by(&trigger.principal);
        let previous = std::mem::replace(self.meta.elections(KEY).master, winner.to_owned());
        *self.meta.elections(KEY).term += 1;
        *self.meta.elections(KEY).election_head += 1;
        let election = Arc::new(Election {
            id: self.meta.election_head,
            previous_master: previous.clone(),
            new_master: winner.to_owned(),
            reason: trigger.reason.into(),
            method: trigger.method.into(),
            at_ms: self.meta.now_ms,
            participating: self.active_devices() as u32,
            term: self.meta.term,
            head_seq: self.meta.head_seq,
            initiated_by: trigger.by.clone(),
            principal: self.txn.principal.clone(),
            ..Election::default()
        });
        self.put(RowKey::Election(ElectionId(election.id)), &*election);
        let details = format!(
            "{winner} is master in term {} (before: {}; {}, {}); sync state handed over at change {}",
            election.term,
            if previous.is_empty() { "none" } else { &previous },
            reason_name(trigger.reason),
            method_name(trigger.method),
            election.head_seq,
        );
        self.audit_row("master_elected", "elect", false, winner, details, previous == winner);
        if previous != winner {
            if !previous.is_empty() {
                self.set_role(&previous, Role::Client);
                self.audit_role(&previous, Role::Client, &trigger.why);
                self.announce_role(&previous, Role::Client, &trigger.why);
            }
            self.set_role(winner, Role::Master);
            self.audit_role(winner, Role::Master, &trigger.why);
            self.announce_role(winner, Role::Master, &trigger.why);
        }
        if !trigger.quiet {
            self.txn.effect_at(effects, Effect::MasterElected(election.clone()));
        }
        let fields = self.meta.elections(KEY);
        *fields.pending_election = None;
        *fields.transfer_back = None;
        *fields.needs_manual_election = false;
        *fields.settled = Some(ElectionOutcome {
            pending_election: pending_election.get(),
            election: election.id,
            why: String::new(),
        });
        self.notify_coordinator();
        self.txn.principal = asking;
        election
    }

    /// A device has come: it may be the candidate that was missing.
    pub(super) fn candidate_came(&mut self, id: &str) {
        *self.meta.elections(KEY).needs_manual_election = false;
        self.forget_transfers_to(id);
    }

    /// Tries to bring leadership to the home of this device, if it is the master, are counted anew.
    pub(super) fn forget_transfers_to(&mut self, id: &str) {
        if self.meta.master == id {
            *self.meta.elections(KEY).transfer_back = None;
        }
    }

    /// The rows that follow are of whoever began the election, if that is known, and not of whoever ends it. Returns
    /// whose command this is.
    fn asked_by(&mut self, principal: &Option<Principal>) -> Option<Principal> {
        let asking = self.txn.principal.clone();
        if principal.is_some() {
            self.txn.principal.clone_from(principal);
        }
        asking
    }

    fn set_role(&mut self, id: &str, role: Role) {
        if let Some(device) = self.devices.get(id) {
            let device = Device { role: role.into(), updated_ms: self.meta.now_ms, ..Device::clone(device) };
            self.save_device(device);
        }
    }

    fn audit_role(&mut self, id: &str, role: Role, why: &str) {
        self.audit("role_change", "change_role", false, id, role_details(role, why));
    }

    fn announce_role(&mut self, id: &str, role: Role, why: &str) {
        let (term, at_ms) = (self.meta.master_term(), self.meta.now());
        self.effect(Effect::RoleChanged { device_id: id.to_owned(), role, reason: why.to_owned(), term, at_ms });
    }
}

fn role_details(role: Role, why: &str) -> String {
    format!("Role changed to {} (reason: {why})", role_name(role))
}
