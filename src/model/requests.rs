//! Each device's window of answered `request_id`s: what makes a client's own retries exact.
//!
//! The ids are in memory, so that a new one costs no look at the rows. A change is its request's answer and needs no
//! row of its own; any other answer is a row, and so is that of a change that compaction drops.

use std::collections::HashMap;
use std::sync::Arc;

use crate::limits::REQUEST_WINDOW;
use crate::proto::{Change, Requested};

/// Where the answer to a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// In the row of the slot.
    Row { slot: u32 },
    /// It is the change that it became.
    Change { seq: u64, timestamp_ms: u64 },
}

/// One device's ring. Slot `n % REQUEST_WINDOW` holds its request number `n`.
#[derive(Debug, Default)]
struct Ring {
    next: u64,
    ids: Vec<Option<(u64, Arc<str>)>>,
    kept: HashMap<Arc<str>, (u64, Kept)>,
}

fn slot(number: u64) -> u32 {
    (number % REQUEST_WINDOW) as u32
}

impl Ring {
    /// Rows and changes are read in any order: of two numbers for a slot, and for an id, the greater counts.
    fn set(&mut self, number: u64, id: &str, kept: Kept) {
        self.next = self.next.max(number + 1);
        let at = slot(number) as usize;
        if self.ids.len() <= at {
            self.ids.resize(at + 1, None);
        }
        if self.ids[at].as_ref().is_some_and(|(newer, _)| *newer > number) {
            return;
        }
        let id: Arc<str> = Arc::from(id);
        if let Some((old, old_id)) = self.ids[at].replace((number, id.clone()))
            && self.kept.get(&old_id).is_some_and(|(known, _)| *known == old)
        {
            self.kept.remove(&old_id);
        }
        let entry = self.kept.entry(id).or_insert((number, kept));
        if entry.0 <= number {
            *entry = (number, kept);
        }
    }
}

/// The windows of all devices, by device number.
#[derive(Debug, Default)]
pub(super) struct Requests(HashMap<u32, Ring>);

impl Requests {
    /// From a stored row.
    pub fn load(&mut self, device: u32, slot: u32, row: &Requested) {
        self.0.entry(device).or_default().set(row.number, &row.request_id, Kept::Row { slot });
    }

    /// From a change that is kept.
    pub fn load_change(&mut self, device: u32, change: &Change) {
        let Some(number) = change.request_number.checked_sub(1) else { return };
        let kept = Kept::Change { seq: change.seq, timestamp_ms: change.timestamp_ms };
        self.0.entry(device).or_default().set(number, &change.request_id, kept);
    }

    /// Where the answer to an id stands that is still in the window.
    pub fn find(&self, device: u32, id: &str) -> Option<Kept> {
        self.0.get(&device)?.kept.get(id).map(|(_, kept)| *kept)
    }

    /// The number that the next new id of a device gets.
    pub fn next_number(&self, device: u32) -> u64 {
        self.0.get(&device).map_or(0, |ring| ring.next)
    }

    /// Gives a new id, answered by a row, its number and slot; the id that held the slot is forgotten.
    pub fn remember(&mut self, device: u32, id: &str) -> (u64, u32) {
        let ring = self.0.entry(device).or_default();
        let number = ring.next;
        ring.set(number, id, Kept::Row { slot: slot(number) });
        (number, slot(number))
    }

    /// A change goes: its request's number and slot, if the id is still in the window. Its answer is a row from now on.
    pub fn outlive(&mut self, device: u32, change: &Change) -> Option<(u64, u32)> {
        let number = change.request_number.checked_sub(1)?;
        let (known, kept) = self.0.get_mut(&device)?.kept.get_mut(change.request_id.as_str())?;
        if *known != number {
            return None;
        }
        *kept = Kept::Row { slot: slot(number) };
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
        let stale = |requests: &mut Requests| requests.load(1, 3, &row(3, "a"));
        let newer = |requests: &mut Requests| requests.load_change(1, &change(9, 3 + REQUEST_WINDOW, "b"));
        // The id came again when it had left the window.
        let again = |requests: &mut Requests| requests.load(1, 4, &row(4 + REQUEST_WINDOW, "a"));
        let loads: [&dyn Fn(&mut Requests); 3] = [&stale, &newer, &again];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut requests = Requests::default();
            order.iter().for_each(|n| loads[*n](&mut requests));
            assert_eq!(requests.find(1, "a"), Some(Kept::Row { slot: 4 }), "{order:?}");
            assert_eq!(requests.find(1, "b"), Some(Kept::Change { seq: 9, timestamp_ms: 0 }), "{order:?}");
            assert_eq!(requests.next_number(1), 5 + REQUEST_WINDOW);
        }
    }

    #[test]
    fn a_change_that_goes_leaves_a_row_only_while_its_id_is_in_the_window() {
        let mut requests = Requests::default();
        let old = change(1, 0, "a");
        requests.load_change(1, &old);
        assert_eq!(requests.outlive(1, &old), Some((0, 0)));
        assert_eq!(requests.find(1, "a"), Some(Kept::Row { slot: 0 }));
        requests.load_change(1, &change(2, REQUEST_WINDOW, "b"));
        assert_eq!(requests.outlive(1, &old), None);
    }
}
