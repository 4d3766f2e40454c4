//! Each device's window of answered `request_id`s: what makes a client's own retries exact.
//!
//! The ids are in memory, so that a new one costs no look at the rows; the answers are rows.

use std::collections::HashMap;
use std::sync::Arc;

use crate::limits::REQUEST_WINDOW;
use crate::proto::Requested;

/// One device's ring. Slot `n % REQUEST_WINDOW` holds its request number `n`.
#[derive(Debug, Default)]
struct Ring {
    next: u64,
    ids: Vec<Option<Arc<str>>>,
    slots: HashMap<Arc<str>, u32>,
}

impl Ring {
    fn set(&mut self, slot: u32, id: &str) {
        let at = slot as usize;
        if self.ids.len() <= at {
            self.ids.resize(at + 1, None);
        }
        let id: Arc<str> = Arc::from(id);
        if let Some(old) = self.ids[at].replace(id.clone()) {
            self.slots.remove(&old);
        }
        self.slots.insert(id, slot);
    }
}

/// The windows of all devices, by device number.
#[derive(Debug, Default)]
pub(super) struct Requests(HashMap<u32, Ring>);

impl Requests {
    /// From a stored row.
    pub fn load(&mut self, device: u32, slot: u32, row: &Requested) {
        let ring = self.0.entry(device).or_default();
        ring.next = ring.next.max(row.number + 1);
        ring.set(slot, &row.request_id);
    }

    /// The slot of an id that is still in the window.
    pub fn find(&self, device: u32, id: &str) -> Option<u32> {
        self.0.get(&device)?.slots.get(id).copied()
    }

    /// Gives a new id its number and slot; the id that held the slot is forgotten.
    pub fn remember(&mut self, device: u32, id: &str) -> (u64, u32) {
        let ring = self.0.entry(device).or_default();
        let number = ring.next;
        let slot = (number % REQUEST_WINDOW) as u32;
        ring.next += 1;
        ring.set(slot, id);
        (number, slot)
    }
}
