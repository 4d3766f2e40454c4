//! Each device's window of answered requests: what makes a client's own retries exact, and their answers the first ones.
//!
//! A request is recognised by its `request_id`, by its place in a queue (queue and `n`), or by both. The names are in
//! memory, so that a new one costs no look at the rows. A change is its request's answer and needs no row of its own;
//! any other answer is a row, and so is that of a change that compaction drops.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::ids::{DeviceNumber, Seq, UnixMs};
use crate::limits::REQUEST_WINDOW;
use crate::proto::{Change, DataUpdate, Requested};

/// Where the answer to a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum KeptAnswer {
    /// In the row of the slot.
    Row { slot: u32 },
    /// It is the change that it became.
    Change { seq: Seq, timestamp_ms: UnixMs },
}

/// What a request is recognised by. Without an id the text is empty, outside of queues `n` is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestNames<'a> {
    pub(super) request_id: &'a str,
    pub(super) queue: &'a str,
    pub(super) n: u64,
}

impl<'a> RequestNames<'a> {
    pub(super) fn of(c: &'a DataUpdate) -> Self {
        Self { request_id: &c.request_id, queue: &c.queue, n: c.n }
    }

    pub(super) fn of_change(change: &'a Change) -> Self {
        Self { request_id: &change.request_id, queue: &change.queue, n: change.n }
    }

    /// Nothing that a repeat could be recognised by.
    pub(super) fn is_none(&self) -> bool {
        self.request_id.is_empty() && self.n == 0
    }
}

#[derive(Debug)]
struct RecentRequest {
    number: u64,
    id: Option<Arc<str>>,
    entry: Option<(Arc<str>, u64)>,
    kept: KeptAnswer,
}

/// One device's ring. Slot `n % REQUEST_WINDOW` holds its request number `n`.
#[derive(Debug, Default)]
struct RequestRing {
    next: u64,
    slots: Vec<Option<RecentRequest>>,
    /// The newest number of each id.
    by_id: HashMap<Arc<str>, u64>,
    /// The number of each queue's entries. What is remembered of a queue are its newest entries, without a gap.
    by_entry: HashMap<Arc<str>, BTreeMap<u64, u64>>,
}

fn slot(number: u64) -> u32 {
    (number % REQUEST_WINDOW) as u32
}

impl RequestRing {
    fn at(&self, number: u64) -> Option<&RecentRequest> {
        self.slots.get(slot(number) as usize)?.as_ref().filter(|s| s.number == number)
    }

    /// Rows and changes are read in any order: of two numbers for a slot, and for a name, the greater counts.
    fn set(&mut self, number: u64, names: &RequestNames<'_>, kept: KeptAnswer) {
        self.next = self.next.max(number + 1);
        let at = slot(number) as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        if self.slots[at].as_ref().is_some_and(|s| s.number > number) {
            return;
        }
        if let Some(old) = self.slots[at].take() {
            self.forget(&old);
        }
        let id = (!names.request_id.is_empty()).then(|| Arc::<str>::from(names.request_id));
        if let Some(id) = &id {
            let newest = self.by_id.entry(id.clone()).or_insert(number);
            *newest = number.max(*newest);
        }
        let entry = (names.n > 0).then(|| {
            let known = self.by_entry.get_key_value(names.queue).map(|(queue, _)| queue.clone());
            (known.unwrap_or_else(|| Arc::from(names.queue)), names.n)
        });
        if let Some((queue, n)) = &entry {
            let newest = self.by_entry.entry(queue.clone()).or_default().entry(*n).or_insert(number);
            *newest = number.max(*newest);
        }
        self.slots[at] = Some(RecentRequest { number, id, entry, kept });
    }

    /// The names of a slot that is given to another request.
    fn forget(&mut self, old: &RecentRequest) {
        if let Some(id) = &old.id
            && self.by_id.get(id) == Some(&old.number)
        {
            self.by_id.remove(id);
        }
        let Some((queue, n)) = &old.entry else { return };
        let Some(numbers) = self.by_entry.get_mut(queue) else { return };
        if numbers.get(n) == Some(&old.number) {
            numbers.remove(n);
        }
        if numbers.is_empty() {
            self.by_entry.remove(queue);
        }
    }
}

/// The windows of all devices, by device number.
#[derive(Debug, Default)]
pub(in crate::model) struct ClientDedup(HashMap<DeviceNumber, RequestRing>);

impl ClientDedup {
    /// From a stored row.
    pub(super) fn load(&mut self, device: DeviceNumber, slot: u32, row: &Requested) {
        let names = RequestNames { request_id: &row.request_id, queue: &row.queue, n: row.n };
        self.0.entry(device).or_default().set(row.number, &names, KeptAnswer::Row { slot });
    }

    /// From a change that is kept.
    pub(super) fn load_change(&mut self, device: DeviceNumber, change: &Change) {
        let Some(number) = change.request_number.checked_sub(1) else { return };
        let names = RequestNames { request_id: &change.request_id, queue: &change.queue, n: change.n };
        let kept = KeptAnswer::Change { seq: Seq(change.seq), timestamp_ms: UnixMs(change.timestamp_ms) };
        self.0.entry(device).or_default().set(number, &names, kept);
    }

    /// Where the answer to an id stands that is still in the window.
    pub(in crate::model) fn find(&self, device: DeviceNumber, id: &str) -> Option<KeptAnswer> {
        let ring = self.0.get(&device)?;
        Some(ring.at(*ring.by_id.get(id)?)?.kept)
    }

    /// Where the answer to a queue's entry stands that is still in the window.
    pub(in crate::model) fn find_entry(&self, device: DeviceNumber, queue: &str, n: u64) -> Option<KeptAnswer> {
        let ring = self.0.get(&device)?;
        Some(ring.at(*ring.by_entry.get(queue)?.get(&n)?)?.kept)
    }

    /// Every entry of the queue from `n` on that was ever applied is still in the window: one before it is, or nothing
    /// of this device has left the window yet.
    pub(super) fn remembers_from(&self, device: DeviceNumber, queue: &str, n: u64) -> bool {
        let Some(ring) = self.0.get(&device) else { return true };
        let entries = ring.by_entry.get(queue);
        ring.next <= REQUEST_WINDOW || entries.is_some_and(|entries| entries.range(..n).next().is_some())
    }

    /// The number that the next new request of a device gets.
    pub(in crate::model) fn next_number(&self, device: DeviceNumber) -> u64 {
        self.0.get(&device).map_or(0, |ring| ring.next)
    }

    /// Gives a new request, answered by a row, its number and slot; the one that held the slot is forgotten.
    pub(super) fn remember(&mut self, device: DeviceNumber, names: &RequestNames<'_>) -> (u64, u32) {
        let ring = self.0.entry(device).or_default();
        let number = ring.next;
        ring.set(number, names, KeptAnswer::Row { slot: slot(number) });
        (number, slot(number))
    }

    /// The device is forgotten: the slots that may be rows.
    pub(super) fn forget_device(&mut self, device: DeviceNumber) -> Vec<u32> {
        let Some(ring) = self.0.remove(&device) else { return Vec::new() };
        let rows = |s: &Option<RecentRequest>| s.as_ref().is_some_and(|s| matches!(s.kept, KeptAnswer::Row { .. }));
        ring.slots.iter().zip(0..).filter(|(s, _)| rows(s)).map(|(_, slot)| slot).collect()
    }

    /// A change goes: its request's number and slot, if it is still in the window. Its answer is a row from now on.
    pub(super) fn outlive(&mut self, device: DeviceNumber, change: &Change) -> Option<(u64, u32)> {
        let number = change.request_number.checked_sub(1)?;
        let slots = &mut self.0.get_mut(&device)?.slots;
        let at = slots.get_mut(slot(number) as usize)?.as_mut().filter(|s| s.number == number)?;
        at.kept = KeptAnswer::Row { slot: slot(number) };
        Some((number, slot(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, id: &str) -> Requested {
        Requested { number, request_id: id.into(), ..Requested::default() }
    }

    fn change(seq: u64, number: u64, id: &str) -> Change {
        Change { seq, request_id: id.into(), request_number: number + 1, ..Change::default() }
    }

    #[test]
    fn what_an_overwritten_row_says_is_forgotten_in_whatever_order_rows_and_changes_are_read() {
        let stale = |requests: &mut ClientDedup| requests.load(DeviceNumber(1), 3, &row(3, "a"));
        let newer =
            |requests: &mut ClientDedup| requests.load_change(DeviceNumber(1), &change(9, 3 + REQUEST_WINDOW, "b"));
        // The id came again when it had left the window.
        let again = |requests: &mut ClientDedup| requests.load(DeviceNumber(1), 4, &row(4 + REQUEST_WINDOW, "a"));
        let loads: [&dyn Fn(&mut ClientDedup); 3] = [&stale, &newer, &again];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut requests = ClientDedup::default();
            order.iter().for_each(|n| loads[*n](&mut requests));
            assert_eq!(requests.find(DeviceNumber(1), "a"), Some(KeptAnswer::Row { slot: 4 }), "{order:?}");
            assert_eq!(
                requests.find(DeviceNumber(1), "b"),
                Some(KeptAnswer::Change { seq: Seq(9), timestamp_ms: UnixMs(0) }),
                "{order:?}"
            );
            assert_eq!(requests.next_number(DeviceNumber(1)), 5 + REQUEST_WINDOW);
        }
    }

    #[test]
    fn a_change_that_goes_leaves_a_row_only_while_its_id_is_in_the_window() {
        let mut requests = ClientDedup::default();
        let old = change(1, 0, "a");
        requests.load_change(DeviceNumber(1), &old);
        assert_eq!(requests.outlive(DeviceNumber(1), &old), Some((0, 0)));
        assert_eq!(requests.find(DeviceNumber(1), "a"), Some(KeptAnswer::Row { slot: 0 }));
        requests.load_change(DeviceNumber(1), &change(2, REQUEST_WINDOW, "b"));
        assert_eq!(requests.outlive(DeviceNumber(1), &old), None);
    }
}
