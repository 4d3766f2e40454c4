//! What a device may ask for on its own behalf, and how often. Admins and managers order; a device obeys the rank.
//!
//! Every change of master may move leadership, and what others write waits for that. So what devices ask for is
//! counted in the state, one by one and together: whoever asks too often leaves the master where it is.

use std::cmp::Ordering;

use super::key::KEY;
use super::rules::rank;
use crate::limits;
use crate::model::error::Code;
use crate::model::refusal::{ApplyError, refuse, refuse_share};
use crate::model::state::State;
use crate::proto::{AskedElection, Device, Elect, ElectionReason, Presence};

impl State {
    /// A device asks to be master: the present one must be gone, or rank below it.
    pub(super) fn may_become_master(&self, asker: &Device) -> Result<(), ApplyError> {
        if self.meta.pending_election.is_some() {
            return refuse(Code::RoleChange, "an election is under way: it decides by rank");
        }
        let priority = asker.priority;
        if let Some(master) = self.master().filter(|master| master.is_active) {
            if master.presence() == Presence::Node || priority > master.priority {
                return Ok(());
            }
            let why = format!(
                "device {:?} is master and online with priority {}, and {priority} is not higher: an admin or a manager \
                 may order it",
                master.device_id, master.priority
            );
            return refuse(Code::RoleChange, why);
        }
        match self.first_candidate("") {
            Some(first) if first.device_id != asker.device_id => {
                let why = format!("device {:?} ranks first, with priority {}", first.device_id, first.priority);
                refuse(Code::RoleChange, why)
            }
            _ => Ok(()),
        }
    }

    /// A device calls an election: only when the master is gone, or as the master that is about to go.
    pub(super) fn may_call_an_election(&self, c: &Elect) -> Result<(), ApplyError> {
        if !matches!(c.reason(), ElectionReason::Failure | ElectionReason::Shutdown) {
            return refuse(Code::Forbidden, "only admins and managers may start a manual election");
        }
        let Some(master) = self.master().filter(|master| master.is_active) else { return Ok(()) };
        if c.reason() == ElectionReason::Shutdown && c.asked_by == master.device_id {
            return Ok(());
        }
        let why = format!("device {:?} is master and online (priority {})", master.device_id, master.priority);
        refuse(Code::RoleChange, why)
    }

    /// A device leaves by itself. If it is the master, an election follows: that one device must not bring one after
    /// the other by coming and going.
    pub(in crate::model) fn note_leaving(&mut self, device_id: &str) {
        let (now, active) = (self.meta.now_ms, self.devices.get(device_id).is_some_and(|d| d.is_active));
        if self.meta.master != device_id || !active {
            return;
        }
        let left = self.meta.elections(KEY).masters_left;
        left.retain(|one| one.at_ms.saturating_add(limits::ELECTIONS_ASKED_MS) > now);
        if left.len() >= limits::MASTERS_LEFT {
            left.remove(0);
        }
        left.push(AskedElection { device_id: device_id.to_owned(), at_ms: now });
    }

    /// The better candidate first: by rank, but whoever keeps leaving as the master comes after all that stay.
    pub fn ranks(&self, a: &Device, b: &Device) -> Ordering {
        let (now, left) = (self.meta.now_ms, &self.meta.masters_left);
        let unsteady = |device: &Device| {
            let own = left.iter().filter(|one| one.device_id == device.device_id);
            let recent = own.filter(|one| one.at_ms.saturating_add(limits::ELECTIONS_ASKED_MS) > now);
            recent.count() >= limits::MASTER_LEFT_OFTEN
        };
        if left.len() < limits::MASTER_LEFT_OFTEN {
            return rank(a, b);
        }
        unsteady(a).cmp(&unsteady(b)).then_with(|| rank(a, b))
    }

    /// One more election that a device asks for; 5003 with the time to wait if it is one too many. However many of them
    /// others asked for, each device has a share of its own.
    pub(super) fn count_asked(&mut self, device_id: &str) -> Result<(), ApplyError> {
        let now = self.meta.now_ms;
        let recent = |asked: &&AskedElection| asked.at_ms.saturating_add(limits::ELECTIONS_ASKED_MS) > now;
        let all: Vec<AskedElection> = self.meta.asked_elections.iter().filter(recent).cloned().collect();
        let own: Vec<&AskedElection> = all.iter().filter(|asked| asked.device_id == device_id).collect();
        // The first one that must leave the window before this device is heard again.
        let (mut until, mut whose) = (None, String::new());
        if all.len() >= limits::ELECTIONS_ASKED && own.len() >= limits::ELECTIONS_ASKED_SHARE {
            let share_left = own.get(own.len() - limits::ELECTIONS_ASKED_SHARE).copied();
            let room_left = all.get(all.len() - limits::ELECTIONS_ASKED);
            until = share_left.into_iter().chain(room_left).min_by_key(|asked| asked.at_ms);
            whose = format!("devices, {device_id:?} among them, have");
        }
        if all.len() >= limits::ELECTIONS_ASKED_MOST {
            (until, whose) = (all.first(), "devices have".to_owned());
        }
        if own.len() >= limits::ELECTIONS_ASKED_OF_DEVICE {
            (until, whose) = (own.first().copied(), format!("device {device_id:?} has"));
        }
        if let Some(asked) = until {
            let why = format!("{whose} asked for so many elections in a minute that no more are begun for them");
            return refuse_share("", why, (asked.at_ms + limits::ELECTIONS_ASKED_MS).saturating_sub(now).max(1));
        }
        let asked = self.meta.elections(KEY).asked_elections;
        *asked = all;
        asked.push(AskedElection { device_id: device_id.to_owned(), at_ms: now });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::properties::{StateUnderTest, online, told};
    use crate::model::state::into_result;
    use crate::proto::command::Intent;
    use crate::proto::{Asker, DeviceOffline, DeviceOnline, Role, RoleChange};

    fn order(device: &str, role: Role, asker: Asker) -> Intent {
        Intent::RoleChange(RoleChange {
            device_id: device.into(),
            role: role.into(),
            reason: "wants it".into(),
            by: device.into(),
            asker: asker.into(),
        })
    }

    fn call(device: &str, reason: ElectionReason, asker: Asker) -> Intent {
        let (reason, asker) = (reason.into(), asker.into());
        Intent::Elect(Elect { reason, method: 1, asked_by: device.into(), asker, ..Elect::default() })
    }

    /// Comes online as its gateway says it, and asks to be master.
    fn asks(device: &str, priority: u32) -> Intent {
        let Intent::DeviceOnline(online) = online(device, priority, Role::Master) else { unreachable!() };
        Intent::DeviceOnline(DeviceOnline { asker: Asker::Device.into(), asked_by: device.into(), ..online })
    }

    fn master(b: &StateUnderTest) -> &str {
        &b.state.meta().master
    }

    #[test]
    fn a_device_that_asks_for_itself_obeys_the_rank_and_an_order_does_not() {
        let mut b = StateUnderTest::new();
        b.ok(online("office", 50, Role::Master));
        for (till, priority) in [("low", 20), ("equal", 50), ("high", 60)] {
            b.ok(online(till, priority, Role::Client));
        }
        let term = b.state.meta().term;
        for till in ["low", "equal"] {
            let error = into_result(b.run(order(till, Role::Master, Asker::Device)).0).unwrap_err();
            assert_eq!(error.code, Code::RoleChange);
            assert!(error.message.contains("\"office\"") && error.message.contains("50"), "{error}");
        }
        assert_eq!((master(&b), b.state.meta().term), ("office", term));
        // Nor in another device's name.
        let Intent::RoleChange(own) = order("high", Role::Master, Asker::Device) else { unreachable!() };
        assert_eq!(b.code(Intent::RoleChange(RoleChange { by: "low".into(), ..own })), Code::Forbidden);
        b.ok(order("high", Role::Master, Asker::Device));
        assert_eq!(master(&b), "high");
        // What it is already is no news to anyone.
        let audited = b.state.meta().audit_head;
        for (till, role) in [("high", Role::Master), ("low", Role::Client)] {
            let (outcome, effects) = b.run(order(till, role, Asker::Device));
            assert!(into_result(outcome).is_ok() && effects.is_empty(), "{effects:?}");
        }
        assert_eq!(b.state.meta().audit_head, audited);
        for asker in [Asker::Manager, Asker::Admin, Asker::Unset] {
            b.ok(order("low", Role::Master, asker));
            assert_eq!(master(&b), "low");
            b.ok(order("office", Role::Master, asker));
        }
        assert_eq!(b.state.meta().asked_elections.len(), 1, "what was refused or ordered is not counted");
    }

    #[test]
    fn a_device_calls_an_election_when_the_master_is_gone_or_as_the_master_that_goes() {
        let mut b = StateUnderTest::new();
        b.ok(online("office", 50, Role::Master));
        b.ok(online("till", 20, Role::Client));
        for reason in [ElectionReason::Failure, ElectionReason::Shutdown] {
            let error = into_result(b.run(call("till", reason, Asker::Device)).0).unwrap_err();
            assert_eq!(error.code, Code::RoleChange);
            assert!(error.message.contains("\"office\""), "{error}");
        }
        assert_eq!(b.code(call("office", ElectionReason::Failure, Asker::Device)), Code::RoleChange);
        assert_eq!(b.code(call("till", ElectionReason::Manual, Asker::Device)), Code::Forbidden);
        assert_eq!(master(&b), "office");
        b.ok(call("office", ElectionReason::Shutdown, Asker::Device));
        assert_eq!(master(&b), "till", "the master that asks is followed by another one");
        b.ok(call("till", ElectionReason::Failure, Asker::Manager));
        assert_eq!(master(&b), "office");
        // The master is gone and nobody could follow: whoever is there may ask, but not without end.
        for device in ["till", "office"] {
            b.ok(Intent::DeviceOffline(DeviceOffline { device_id: device.into(), ..DeviceOffline::default() }));
        }
        assert_eq!(master(&b), "");
        let codes: Vec<Code> = (0..5).map(|_| b.code(call("till", ElectionReason::Failure, Asker::Device))).collect();
        let (asked, refused) = codes.split_at(limits::ELECTIONS_ASKED_OF_DEVICE);
        assert!(asked.iter().all(|c| *c == Code::Election) && refused.iter().all(|c| *c == Code::Unavailable));
    }

    /// Tills that take the role from each other, in every way that is open to them, as fast as they can.
    #[test]
    fn tills_that_play_together_cannot_keep_the_lead_moving() {
        let mut b = StateUnderTest::new();
        b.ok(online("office", 10, Role::Master));
        let (start, began) = (b.state.meta().term, b.now);
        let mut last_error = None;
        for round in 0..400 {
            let (rises, falls) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
            // Who is to rise claims more than the present master, which lowers itself.
            let Intent::DeviceOnline(low) = asks(falls, 11) else { unreachable!() };
            b.ok(Intent::DeviceOnline(DeviceOnline { role: Role::Client.into(), ..low }));
            b.ok(asks(rises, 20));
            last_error = into_result(b.run(order(rises, Role::Master, Asker::Device)).0).err().or(last_error);
            b.run(order(rises, Role::Client, Asker::Device));
        }
        let moved = b.state.meta().term - start;
        assert!(b.now - began < limits::ELECTIONS_ASKED_MS, "all of it in one window");
        assert!((2..=limits::ELECTIONS_ASKED as u64).contains(&moved), "{moved} masters in {} ms", b.now - began);
        let error = last_error.unwrap();
        let wait = error.retry_after_ms.unwrap_or_default();
        assert_eq!(error.code, Code::Unavailable);
        assert!((1..=limits::ELECTIONS_ASKED_MS).contains(&wait), "{wait}");
        // An order is carried out all the same, and after the window a device is heard again.
        b.ok(order("office", Role::Master, Asker::Admin));
        b.now += limits::ELECTIONS_ASKED_MS;
        b.ok(asks("a", 20));
        assert_eq!(master(&b), "a");
        assert_eq!(b.state.meta().asked_elections.len(), 1, "what is over is forgotten");
        let again = crate::model::state::State::open(Box::new(b.tables.clone())).unwrap();
        assert_eq!(told(&again), told(&b.state));
    }

    /// Thieves of several tokens ask for all the elections that there are; a till that asked for none is heard.
    #[test]
    fn no_device_uses_up_another_ones_elections() {
        let mut b = StateUnderTest::new();
        b.ok(online("office", 10, Role::Master));
        let thieves = ["thief-1", "thief-2", "thief-3", "thief-4", "thief-5"];
        for device in thieves.into_iter().chain(["till"]) {
            b.ok(online(device, 10, Role::Client));
        }
        b.ok(Intent::DeviceOffline(DeviceOffline { device_id: "office".into(), ..DeviceOffline::default() }));
        // Everybody is offline, so that nobody can follow: each call is counted and comes to nothing.
        for device in thieves.into_iter().chain(["till"]) {
            b.ok(Intent::DeviceOffline(DeviceOffline { device_id: device.into(), ..DeviceOffline::default() }));
        }
        assert_eq!(master(&b), "");
        let began = b.now;
        let calls = |b: &mut StateUnderTest, device: &str| b.code(call(device, ElectionReason::Failure, Asker::Device));
        for _ in 0..limits::ELECTIONS_ASKED_SHARE {
            let heard: Vec<Code> = thieves.iter().map(|thief| calls(&mut b, thief)).collect();
            assert_eq!(heard, [Code::Election; 5], "each has its share");
        }
        for _ in 0..50 {
            for thief in thieves {
                calls(&mut b, thief);
            }
        }
        assert_eq!(b.state.meta().asked_elections.len(), thieves.len() * limits::ELECTIONS_ASKED_SHARE);
        for _ in 0..limits::ELECTIONS_ASKED_SHARE {
            assert_eq!(calls(&mut b, "till"), Code::Election, "it has its share");
        }
        let error = into_result(b.run(call("till", ElectionReason::Failure, Asker::Device)).0).unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "there is room for no more");
        let wait = error.retry_after_ms.unwrap_or_default();
        assert!(b.now - began < limits::ELECTIONS_ASKED_MS, "all of it in one window");
        // It is heard again when the time is over that it was told.
        b.now += wait;
        assert_eq!(calls(&mut b, "till"), Code::Election);
    }

    #[test]
    fn a_master_that_keeps_coming_and_going_ranks_last_for_a_while() {
        for session_lost in [false, true] {
            let mut b = StateUnderTest::new();
            let bring = |b: &mut StateUnderTest, till: &str| drop(b.ok(online(till, 20, Role::Client)));
            for till in ["a", "b", "honest"] {
                bring(&mut b, till);
            }
            b.ok(order("a", Role::Master, Asker::Admin));
            let (start, began) = (b.state.meta().term, b.now);
            for round in 0..100 {
                let till = if round % 2 == 0 { "a" } else { "b" };
                let online_count = b.state.device(till).unwrap().online_count;
                let device_id = till.to_owned();
                let gone = DeviceOffline { device_id, session_lost, home: 1, online_count, ..DeviceOffline::default() };
                b.ok(Intent::DeviceOffline(gone));
                bring(&mut b, till);
            }
            assert!(b.now - began < limits::ELECTIONS_ASKED_MS, "all of it in one window");
            assert_eq!(master(&b), "honest");
            assert_eq!(b.state.meta().term - start, 2 * limits::MASTER_LEFT_OFTEN as u64);
            let again = crate::model::state::State::open(Box::new(b.tables.clone())).unwrap();
            assert_eq!(told(&again), told(&b.state));
            // They are candidates all the same, and rank as before when the window is over.
            assert_eq!(b.state.first_candidate("honest").unwrap().device_id, "a");
            b.now += limits::ELECTIONS_ASKED_MS;
            bring(&mut b, "a");
            assert_eq!(b.state.first_candidate("").unwrap().device_id, "a");
        }
    }
}
