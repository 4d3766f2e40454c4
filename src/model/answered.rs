//! Each node's ring of answered commands: what makes a node's own retries exact.

use std::collections::HashMap;

use bytes::Bytes;

use crate::limits::ORIGIN_WINDOW;
use crate::proto::{Answered, Origin};

/// The rows `Answered`, by node and slot.
#[derive(Debug, Default)]
pub(super) struct AnsweredRings(HashMap<u64, HashMap<u32, Answered>>);

impl AnsweredRings {
    pub fn set(&mut self, node: u64, slot: u32, row: Answered) {
        self.0.entry(node).or_default().insert(slot, row);
    }

    /// `None`: never seen. `Some(None)`: its slot has been taken by a later command of the same boot, so it was
    /// answered more than a window ago. `Some(Some(outcome))`: what it was answered with.
    pub fn find(&self, origin: &Origin) -> Option<Option<Bytes>> {
        let row = self.0.get(&origin.node)?.get(&slot(origin))?;
        if row.boot != origin.boot {
            return None;
        }
        match row.number.cmp(&origin.number) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(Some(row.outcome.clone())),
            std::cmp::Ordering::Greater => Some(None),
        }
    }

    /// Takes the command's slot; returns it with the row to store.
    pub fn remember(&mut self, origin: &Origin, outcome: Bytes) -> (u32, Answered) {
        let row = Answered { boot: origin.boot, number: origin.number, outcome };
        let slot = slot(origin);
        self.set(origin.node, slot, row.clone());
        (slot, row)
    }
}

fn slot(origin: &Origin) -> u32 {
    (origin.number % ORIGIN_WINDOW) as u32
}
