//! Which devices are here: bound to sessions of this node, or seen over REST (docs/design.md, section 4).
//!
//! Only transitions become commands. A device whose last session on this node ended is given the reconnect grace; a
//! device seen over REST counts as active for a while after its last request; `last_seen` is written in batches.
//!
//! A device is online while any node has a session of it. One that is called offline while it has a session here (its
//! node was taken for lost, or it said goodbye on another session) comes back at once, as a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::gateway::Gateway;
use crate::ids::NodeId;
use crate::limits;
use crate::model::device::{has_session_on, present_on};
use crate::proto::command::Intent;
use crate::proto::{Device, DeviceOffline, DeviceOnline, DevicesSeen, Presence as Kind, Unsent};
use crate::token::Claims;

/// Devices in one `DevicesSeen`.
const SEEN_BATCH: usize = 1_024;
/// Looks at a device that left before its coming online is given up: its command may still be on its way.
const LOOKS: u32 = 5;
/// Before a device that was brought back is looked at again.
const BRING_BACK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct LocalPresence {
    /// The sessions that each device speaks over.
    bound: HashMap<String, Vec<u64>>,
    /// Devices without a session: within their grace, or reported and not known to be gone from here yet.
    leaving: HashMap<String, Leaving>,
    /// Devices seen over REST only, and when last.
    rest: HashMap<String, Instant>,
    /// Of devices that speak over a session here: how far their clocks are ahead, if they are off.
    clocks: HashMap<String, i64>,
    /// What they said since the last report that they have not sent yet.
    unsent: HashMap<String, u64>,
}

struct Leaving {
    due: Instant,
    looks: u32,
    why: &'static str,
}

#[derive(Default)]
pub struct PresenceTracker {
    here: Mutex<LocalPresence>,
}

impl PresenceTracker {
    /// The device speaks over this session from now on.
    pub fn bind(&self, device_id: &str, session: u64) {
        let mut here = self.here.lock();
        here.leaving.remove(device_id);
        here.rest.remove(device_id);
        match here.bound.get_mut(device_id) {
            Some(sessions) if sessions.contains(&session) => {}
            Some(sessions) => sessions.push(session),
            None => {
                here.bound.insert(device_id.to_owned(), vec![session]);
            }
        }
    }

    /// These devices do not speak over this session any more. Those that have no other one here are reported after the
    /// grace, unless they are back by then or the cluster knows already.
    pub fn session_ended(&self, devices: &[String], session: u64, grace: Duration, why: &'static str) {
        let mut here = self.here.lock();
        for device in devices {
            if here.unbind(device, session) {
                here.leaving.insert(device.clone(), Leaving { due: Instant::now() + grace, looks: LOOKS, why });
            }
        }
    }

    /// What a session's clock was measured to be. Only of a device that speaks over it.
    pub fn clock_measured(&self, device_id: &str, session: u64, ahead_ms: Option<i64>) {
        let mut here = self.here.lock();
        match ahead_ms.filter(|_| here.bound.get(device_id).is_some_and(|s| s.contains(&session))) {
            Some(ahead_ms) => drop(here.clocks.insert(device_id.to_owned(), ahead_ms)),
            None => drop(here.clocks.remove(device_id)),
        }
    }

    /// A device says how many changes it has not sent yet, over a session that it speaks over.
    pub fn said_unsent(&self, device_id: &str, session: u64, unsent: u64) {
        let mut here = self.here.lock();
        if here.bound.get(device_id).is_some_and(|s| s.contains(&session)) {
            here.unsent.insert(device_id.to_owned(), unsent);
        }
    }

    /// What devices said of that since it was reported last, where it is news.
    fn unsent(&self, gateway: &Gateway) -> Vec<Unsent> {
        let said = std::mem::take(&mut self.here.lock().unsent);
        let hot = gateway.cluster.replica().state();
        let is_news =
            |said: &Unsent| hot.device(&said.device_id).is_some_and(|d| d.unsent != said.count || d.unsent_ms == 0);
        let said = said.into_iter().map(|(device_id, count)| Unsent { device_id, count });
        said.filter(is_news).take(SEEN_BATCH).collect()
    }

    pub fn clock_ahead_ms(&self, device_id: &str) -> Option<i64> {
        self.here.lock().clocks.get(device_id).copied()
    }

    pub fn sessions_of(&self, device_id: &str) -> Vec<u64> {
        self.here.lock().bound.get(device_id).cloned().unwrap_or_default()
    }

    /// The sessions of several devices, each once.
    pub fn sessions_of_any(&self, device_ids: [&str; 2]) -> Vec<u64> {
        let here = self.here.lock();
        let mut sessions: Vec<u64> =
            device_ids.into_iter().filter_map(|id| here.bound.get(id)).flatten().copied().collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    pub fn is_bound(&self, device_id: &str, session: u64) -> bool {
        self.here.lock().bound.get(device_id).is_some_and(|s| s.contains(&session))
    }

    /// A registered device made a REST request: it is active, and stays so for a while.
    pub fn seen_over_rest(&self, gateway: &Arc<Gateway>, device_id: &str, claims: &Claims) {
        let me = gateway.cluster.node_id();
        let found = {
            let state = gateway.cluster.replica().state();
            let suspended = state.gate(device_id).is_some_and(|gate| gate.suspended);
            state.device(device_id).filter(|_| !suspended).cloned()
        };
        let Some(device) = found else { return };
        if device.is_active && device.presence() == Kind::Session {
            return;
        }
        let here_already = device.is_active && device.home_node() == me;
        // A device that asks several nodes in turn moves now and then, not with each request.
        let elsewhere_lately = device.is_active
            && !here_already
            // A time that has not come is from before the cluster's time was brought back.
            && gateway.cluster.clock().now_ms().get().abs_diff(device.last_seen_ms) < move_after(gateway);
        if elsewhere_lately {
            return;
        }
        let known = self.here.lock().rest.insert(device_id.to_owned(), Instant::now());
        let just_asked = known.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        if !here_already && !just_asked {
            let online = DeviceOnline {
                device_id: device_id.to_owned(),
                presence: Kind::Rest.into(),
                ..DeviceOnline::default()
            };
            Gateway::aside(gateway.propose_for(claims, Intent::DeviceOnline(online)));
        }
    }

    /// A device registered over REST on this node.
    pub fn registered_over_rest(&self, device_id: &str) {
        let mut here = self.here.lock();
        if !here.bound.contains_key(device_id) {
            here.rest.insert(device_id.to_owned(), Instant::now());
        }
    }

    /// What is to be reported of devices whose grace is over.
    fn overdue(&self, gateway: &Gateway) -> Vec<DeviceOffline> {
        let (now, me) = (Instant::now(), gateway.cluster.node_id());
        let mut here = self.here.lock();
        let mut lost = Vec::new();
        let hot = gateway.cluster.replica().state();
        here.leaving.retain(|id, leaving| {
            if now < leaving.due {
                return true;
            }
            leaving.due = now + gateway.settings.grace.max(Duration::from_millis(100));
            if let Some(device) = hot.device(id).filter(|d| has_session_on(d, me)) {
                // Until it is applied: a report may be lost.
                lost.extend(report(device, me, leaving.why));
                return true;
            }
            leaving.looks = leaving.looks.saturating_sub(1);
            leaving.looks > 0
        });
        here.rest.retain(|id, last| {
            if now.duration_since(*last) < gateway.settings.rest_active {
                return true;
            }
            let device = hot.device(id).filter(|d| d.presence() == Kind::Rest);
            lost.extend(device.and_then(|d| report(d, me, "no request for a while")));
            false
        });
        lost
    }

    /// Devices that have a session here and are not known to: they come back, as clients. True if there were any.
    fn bring_back(&self, gateway: &Arc<Gateway>) -> bool {
        let me = gateway.cluster.node_id();
        // Proposed under the lock: a goodbye that is said now comes after it.
        let here = self.here.lock();
        let strayed: Vec<&String> = {
            let hot = gateway.cluster.replica().state();
            // A node's own device is online without sessions.
            let is_known = |d: &Device| has_session_on(d, me) || (d.is_active && d.presence() == Kind::Node);
            let is_suspended = |id: &String| hot.gate(id).is_some_and(|gate| gate.suspended);
            let is_strayed = |id: &&String| hot.device(id).is_some_and(|d| !is_known(d)) && !is_suspended(id);
            here.bound.keys().filter(is_strayed).collect()
        };
        for device_id in &strayed {
            gateway.propose_aside(Intent::DeviceOnline(DeviceOnline {
                device_id: (*device_id).clone(),
                presence: Kind::Session.into(),
                returns: true,
                ..DeviceOnline::default()
            }));
        }
        !strayed.is_empty()
    }

    /// Devices that are here and whose `last_seen` is old.
    fn seen(&self, gateway: &Gateway) -> Vec<String> {
        let now_ms = gateway.cluster.clock().now_ms().get();
        let before = now_ms.saturating_sub(gateway.settings.seen_age.as_millis() as u64);
        let not_come = now_ms.saturating_add(limits::NODE_CLOCK_APART_MS * 2);
        let fresh = Instant::now().checked_sub(gateway.settings.seen_age);
        let here = self.here.lock();
        let lately = here.rest.iter().filter(|(_, at)| fresh.is_none_or(|f| **at > f)).map(|(id, _)| id);
        let hot = gateway.cluster.replica().state();
        let old = |id: &&String| {
            hot.device(id).is_some_and(|d| d.is_active && (d.last_seen_ms < before || d.last_seen_ms > not_come))
        };
        here.bound.keys().chain(lately).filter(old).take(SEEN_BATCH).cloned().collect()
    }
}

impl LocalPresence {
    /// True if that was the device's last session.
    fn unbind(&mut self, device_id: &str, session: u64) -> bool {
        let Some(sessions) = self.bound.get_mut(device_id) else { return false };
        sessions.retain(|s| *s != session);
        let last = sessions.is_empty();
        if last {
            self.bound.remove(device_id);
            self.clocks.remove(device_id);
        }
        last
    }
}

/// That the device is gone from this node, if it is present here.
fn report(device: &Device, node: NodeId, why: &str) -> Option<DeviceOffline> {
    let here = present_on(device).find(|there| NodeId(there.node) == node)?;
    Some(DeviceOffline {
        device_id: device.device_id.clone(),
        reason: why.to_owned(),
        session_lost: true,
        home: node.get(),
        online_count: here.online_count,
    })
}

fn move_after(gateway: &Gateway) -> u64 {
    (gateway.settings.rest_active / 3).as_millis() as u64
}

/// Reports devices that went and those that are still here, until the gateway ends.
pub async fn run(gateway: Arc<Gateway>) {
    let step = (gateway.settings.grace / 4).clamp(Duration::from_millis(20), Duration::from_millis(500));
    let mut looks = interval(step);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen_due = Instant::now() + gateway.settings.seen_every;
    let mut nodes_lost = gateway.cluster.replica().state().meta().nodes_lost;
    let mut look_again: Option<Instant> = None;
    loop {
        looks.tick().await;
        for offline in gateway.presence.overdue(&gateway) {
            gateway.propose_aside(Intent::DeviceOffline(offline));
        }
        let lost_by_now = gateway.cluster.replica().state().meta().nodes_lost;
        let news = std::mem::replace(&mut nodes_lost, lost_by_now) != lost_by_now;
        if news || look_again.is_some_and(|at| Instant::now() >= at) {
            // Again if the command gets lost.
            let any = gateway.presence.bring_back(&gateway);
            look_again = any.then(|| Instant::now() + BRING_BACK_AGAIN);
        }
        if Instant::now() >= seen_due {
            seen_due = Instant::now() + gateway.settings.seen_every;
            let device_ids = gateway.presence.seen(&gateway);
            let unsent = gateway.presence.unsent(&gateway);
            if !device_ids.is_empty() || !unsent.is_empty() {
                // Nobody waits for it, and the next one makes up for a lost one.
                let _ = gateway.cluster.propose(Intent::DevicesSeen(DevicesSeen { device_ids, unsent })).await;
            }
        }
    }
}
