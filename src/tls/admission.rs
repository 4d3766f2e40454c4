//! Who has room on a port, and who gives way when there is none left.
//!
//! A connection is anonymous until somebody vouches for it, because a good token or a certificate of the cluster was
//! seen on it. Anonymous ones have a share an address and a bound all together. Beyond either the oldest one is closed,
//! of the address that has most of them. One that was vouched for is never closed for a stranger, and some room is
//! always left for newcomers, who can then show what they have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::AddressRange;
use crate::limits;

/// Between two log lines about connections that gave way.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionCaps {
    /// All of them, those included that somebody vouched for.
    pub total: usize,
    pub anonymous: usize,
    /// Anonymous ones of one address.
    pub per_address: usize,
}

impl ConnectionCaps {
    /// The room that stays free of those that were vouched for; the privileged may use half of it.
    fn spare(self) -> usize {
        (self.total / 8).clamp(1, 64)
    }
}

/// What counts as one address: with IPv6 whoever has one has 2^64 of them.
pub fn group_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// The anonymous connections of an address, oldest first.
struct AddressGroup {
    /// No proxy of ours, and nobody was ever vouched for there: the first to give way.
    stranger: bool,
    slots: BTreeMap<u64, Weak<AdmissionSlot>>,
}

#[derive(Default)]
struct AdmissionTable {
    groups: HashMap<IpAddr, AddressGroup>,
    /// The last one is the group that gives way next.
    order: BTreeSet<(bool, usize, IpAddr)>,
    /// Addresses that were vouched for, and when, as a serial number.
    known: HashMap<IpAddr, u64>,
    last_id: u64,
    anonymous: usize,
    vouched: usize,
    /// Told to close, and not gone yet.
    closing: usize,
    /// Closed to make room since the last log line, and when that was.
    untold: u64,
    told: Option<Instant>,
}

impl AdmissionTable {
    fn insert(&mut self, group: IpAddr, stranger: bool, slot: &Arc<AdmissionSlot>) {
        let entry = self.groups.entry(group).or_insert_with(|| AddressGroup { stranger, slots: BTreeMap::new() });
        self.order.remove(&(entry.stranger, entry.slots.len(), group));
        entry.slots.insert(slot.id, Arc::downgrade(slot));
        self.order.insert((entry.stranger, entry.slots.len(), group));
        self.anonymous += 1;
    }

    /// Takes out an anonymous connection; `None`: it is none any more.
    fn remove(&mut self, group: IpAddr, id: u64) -> Option<Weak<AdmissionSlot>> {
        let entry = self.groups.get_mut(&group)?;
        let slot = entry.slots.remove(&id)?;
        self.order.remove(&(entry.stranger, entry.slots.len() + 1, group));
        if entry.slots.is_empty() {
            self.groups.remove(&group);
        } else {
            self.order.insert((entry.stranger, entry.slots.len(), group));
        }
        self.anonymous -= 1;
        Some(slot)
    }

    /// Tells the oldest anonymous connection of an address to close. It is given back, to be dropped outside the lock.
    fn close_oldest(&mut self, group: IpAddr) -> Option<Arc<AdmissionSlot>> {
        let id = *self.groups.get(&group)?.slots.first_key_value()?.0;
        // One that cannot be had any more is on its way out.
        let slot = self.remove(group, id)?.upgrade()?;
        slot.closed.store(true, Ordering::Release);
        self.closing += 1;
        self.untold += 1;
        Some(slot)
    }

    fn remember(&mut self, group: IpAddr) {
        self.last_id += 1;
        if self.known.insert(group, self.last_id).is_some() {
            return;
        }
        if self.known.len() > limits::KNOWN_ADDRESSES
            && let Some(oldest) = self.known.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address)
        {
            self.known.remove(&oldest);
        }
        if let Some(entry) = self.groups.get_mut(&group)
            && std::mem::take(&mut entry.stranger)
        {
            let count = entry.slots.len();
            self.order.remove(&(true, count, group));
            self.order.insert((false, count, group));
        }
    }
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionCount {
    pub anonymous: usize,
    pub vouched: usize,
    /// Ever closed to make room, and ever refused for want of it.
    pub closed: u64,
    pub refused: u64,
}

pub struct Admission {
    /// What there is too much of, for the log.
    what: &'static str,
    caps: ConnectionCaps,
    trusted: Vec<AddressRange>,
    table: Mutex<AdmissionTable>,
    closed: AtomicU64,
    refused: AtomicU64,
}

impl Admission {
    /// Addresses in `trusted` have no share of their own: many clients come through them.
    pub fn new(what: &'static str, caps: ConnectionCaps, trusted: Vec<AddressRange>) -> Arc<Self> {
        let (closed, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { what, caps, trusted, table: Mutex::default(), closed, refused })
    }

    pub fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    pub fn load(&self) -> ConnectionCount {
        let table = self.table.lock();
        ConnectionCount {
            anonymous: table.anonymous,
            vouched: table.vouched,
            closed: self.closed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// A place for a newcomer, which an older one may have to give up. `None`: those told to close have not yet.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Arc<AdmissionSlot>> {
        let (group, trusted) = (group_of(peer), self.is_trusted(peer));
        // Dropped after the lock is let go of: the last of a slot takes it.
        let mut victims: Vec<Arc<AdmissionSlot>> = Vec::new();
        let (slot, tell) = {
            let mut table = self.table.lock();
            let share = table.groups.get(&group).map_or(0, |entry| entry.slots.len());
            if !trusted && share >= self.caps.per_address {
                victims.extend(table.close_oldest(group));
            }
            let full = |table: &AdmissionTable| {
                table.anonymous >= self.caps.anonymous || table.anonymous + table.vouched >= self.caps.total
            };
            while full(&table) {
                let Some((_, _, next)) = table.order.last().copied() else { break };
                victims.extend(table.close_oldest(next));
            }
            let slot = (!full(&table) && table.closing <= limits::CLOSING_CONNECTIONS).then(|| {
                table.last_id += 1;
                let slot = Arc::new(AdmissionSlot {
                    id: table.last_id,
                    address: peer.to_canonical(),
                    group,
                    admission: self.clone(),
                    vouched: AtomicBool::new(false),
                    closed: AtomicBool::new(false),
                    waker: AtomicWaker::new(),
                });
                let stranger = !trusted && !table.known.contains_key(&group);
                table.insert(group, stranger, &slot);
                slot
            });
            let tell = table.untold > 0 && table.told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
            let tell = tell.then(|| {
                table.told = Some(Instant::now());
                std::mem::take(&mut table.untold)
            });
            (slot, tell)
        };
        for victim in &victims {
            victim.waker.wake();
        }
        self.closed.fetch_add(victims.len() as u64, Ordering::Relaxed);
        if slot.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(closed) = tell {
            tracing::warn!(what = self.what, %peer, closed, "closed without a good token seen, to make room for newcomers");
        }
        slot
    }
}

/// A connection's place; it is given back when this is dropped.
pub struct AdmissionSlot {
    id: u64,
    address: IpAddr,
    group: IpAddr,
    admission: Arc<Admission>,
    vouched: AtomicBool,
    closed: AtomicBool,
    waker: AtomicWaker,
}

impl AdmissionSlot {
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The other side is a proxy of ours.
    pub fn is_trusted(&self) -> bool {
        self.trusts(self.address)
    }

    /// The address is that of a proxy of ours.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.admission.is_trusted(address)
    }

    /// A good token or certificate was seen: the connection does not give way to strangers any more. With nearly as many
    /// of those as there may be at all it stays as it is; the last places are for the `privileged`.
    pub fn vouch(&self, privileged: bool) {
        if self.is_vouched() {
            return;
        }
        let caps = self.admission.caps;
        let spare = if privileged { caps.spare() / 2 } else { caps.spare() };
        let mut table = self.admission.table.lock();
        table.remember(self.group);
        if table.vouched >= caps.total.saturating_sub(spare) || table.remove(self.group, self.id).is_none() {
            return;
        }
        table.vouched += 1;
        self.vouched.store(true, Ordering::Release);
    }

    pub fn is_vouched(&self) -> bool {
        self.vouched.load(Ordering::Relaxed)
    }

    /// Resolves when the connection must make room. One task waits at a time.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_vouched() {
            return Poll::Pending;
        }
        self.waker.register(cx.waker());
        if self.closed.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    pub async fn closed(&self) {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }
}

impl Drop for AdmissionSlot {
    fn drop(&mut self) {
        let mut table = self.admission.table.lock();
        if *self.vouched.get_mut() {
            table.vouched -= 1;
        } else if *self.closed.get_mut() {
            table.closing -= 1;
        } else {
            table.remove(self.group, self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: ConnectionCaps = ConnectionCaps { total: 16, anonymous: 12, per_address: 4 };

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn admission() -> Arc<Admission> {
        Admission::new("test", CAPS, vec![AddressRange::parse("10.9.0.0/16").unwrap()])
    }

    fn open(admission: &Arc<Admission>, address: &str) -> Arc<AdmissionSlot> {
        admission.admit(at(address)).unwrap()
    }

    fn is_closed(slot: &AdmissionSlot) -> bool {
        slot.closed.load(Ordering::Acquire)
    }

    #[test]
    fn the_oldest_of_an_address_gives_way_to_its_own() {
        let admission = admission();
        let device = open(&admission, "10.0.0.1");
        let slots: Vec<_> = (0..10).map(|_| open(&admission, "10.0.0.2")).collect();
        assert!(slots[..6].iter().all(|s| is_closed(s)) && !slots[6..].iter().any(|s| is_closed(s)));
        assert!(!is_closed(&device));
        assert_eq!(admission.load(), ConnectionCount { anonymous: 5, vouched: 0, closed: 6, refused: 0 });
        drop((slots, device));
        assert_eq!(admission.load().anonymous, 0);
        let table = admission.table.lock();
        assert!(table.groups.is_empty() && table.order.is_empty() && table.closing == 0);
    }

    #[test]
    fn many_strangers_close_each_other_and_nobody_known() {
        let admission = admission();
        let known = open(&admission, "10.0.0.1");
        known.vouch(false);
        let (proxy, later) = (open(&admission, "10.9.1.1"), open(&admission, "10.0.0.1"));
        let strangers: Vec<_> = (0..100).map(|i| open(&admission, &format!("10.1.0.{i}"))).collect();
        assert!(![&known, &proxy, &later].into_iter().any(|s| is_closed(s)));
        assert_eq!(strangers.iter().filter(|s| !is_closed(s)).count(), CAPS.anonymous - 2);
        assert!(!is_closed(&strangers[99]), "the newcomer is heard");
    }

    #[test]
    fn one_address_with_many_goes_before_many_with_one() {
        let admission = admission();
        let lonely: Vec<_> = (0..8).map(|i| open(&admission, &format!("10.2.0.{i}"))).collect();
        let greedy: Vec<_> = (0..50).map(|_| open(&admission, "10.1.0.1")).collect();
        let _more: Vec<_> = (0..3).map(|i| open(&admission, &format!("10.3.0.{i}"))).collect();
        assert!(!lonely.iter().any(|s| is_closed(s)));
        assert_eq!(greedy.iter().filter(|s| !is_closed(s)).count(), 1);
    }

    #[test]
    fn those_vouched_for_leave_room_for_newcomers() {
        let admission = admission();
        let slots: Vec<_> = (0..40).map(|i| open(&admission, &format!("10.0.1.{i}"))).collect();
        for slot in &slots {
            slot.vouch(false);
        }
        let slots: Vec<_> = slots.into_iter().filter(|s| !is_closed(s)).collect();
        let mut vouched = slots.len();
        let mut held = slots;
        for i in 0..20 {
            let slot = open(&admission, &format!("10.0.2.{i}"));
            slot.vouch(false);
            vouched += usize::from(slot.is_vouched());
            held.push(slot);
        }
        assert_eq!((admission.load().vouched, vouched), (CAPS.total - CAPS.spare(), CAPS.total - CAPS.spare()));
        assert!(held.iter().filter(|s| s.is_vouched()).all(|s| !is_closed(s)));
        // An administrator still gets in, and stays.
        let admin = open(&admission, "10.0.3.1");
        admin.vouch(true);
        assert!(admin.is_vouched());
        assert!(admission.load().anonymous + admission.load().vouched <= CAPS.total);
    }

    #[test]
    fn a_proxy_has_no_share_of_its_own() {
        let admission = admission();
        let proxied: Vec<_> = (0..10).map(|_| open(&admission, "10.9.1.1")).collect();
        assert!(!proxied.iter().any(|s| is_closed(s)));
        // A stranger goes first, whatever it has.
        let strangers: Vec<_> = (0..5).map(|i| open(&admission, &format!("10.1.0.{i}"))).collect();
        assert!(!proxied.iter().any(|s| is_closed(s)));
        assert_eq!(strangers.iter().filter(|s| is_closed(s)).count(), 3);
    }

    #[test]
    fn those_that_do_not_close_keep_newcomers_out() {
        let admission = Admission::new("test", CAPS, Vec::new());
        let mut held = Vec::new();
        let mut refused = 0;
        for _ in 0..limits::CLOSING_CONNECTIONS + 100 {
            match admission.admit(at("10.0.0.1")) {
                Some(slot) => held.push(slot),
                None => refused += 1,
            }
        }
        assert!(refused > 0 && held.len() <= limits::CLOSING_CONNECTIONS + CAPS.total, "{refused}");
        drop(held);
        assert!(admission.admit(at("10.0.0.1")).is_some());
    }

    #[tokio::test]
    async fn who_must_make_room_is_woken() {
        let admission = admission();
        let first = open(&admission, "10.0.0.1");
        let waits = tokio::spawn(async move { first.closed().await });
        tokio::task::yield_now().await;
        let _more: Vec<_> = (0..4).map(|_| open(&admission, "10.0.0.1")).collect();
        tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap().unwrap();
    }

    #[test]
    fn an_ipv6_address_counts_by_its_first_half() {
        assert_eq!(group_of(at("2001:db8::1")), group_of(at("2001:db8::ffff:2")));
        assert_ne!(group_of(at("2001:db8:0:1::1")), group_of(at("2001:db8::1")));
    }
}
