//! Rows that were committed but that the engine does not have yet: reads look here first.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::model::tables::RowKey;
use crate::proto::Applied;

/// The puts and deletes (`None`) of one apply.
pub(crate) type RowWrites = BTreeMap<RowKey, Option<Bytes>>;

struct MemtableSlot {
    value: Option<Bytes>,
    /// The newest write set that has the key.
    set: u64,
}

#[derive(Default)]
pub(crate) struct Memtable {
    slots: BTreeMap<RowKey, MemtableSlot>,
    pub applied: Applied,
    /// The newest write set.
    pub newest: u64,
}

impl Memtable {
    pub(crate) fn new(applied: Applied) -> Self {
        Self { applied, ..Self::default() }
    }

    /// Takes a write set; its number.
    pub(crate) fn add(&mut self, rows: &RowWrites, applied: Applied) -> u64 {
        self.newest += 1;
        self.applied = applied;
        for (key, value) in rows {
            self.slots.insert(key.clone(), MemtableSlot { value: value.clone(), set: self.newest });
        }
        self.newest
    }

    /// The row, if it is here: `Some(None)` is a deleted one.
    pub(crate) fn get(&self, key: &RowKey) -> Option<Option<Bytes>> {
        self.slots.get(key).map(|slot| slot.value.clone())
    }

    /// The engine has the rows of every write set up to `set`: drops these of them that no newer one changed.
    pub(crate) fn drop_written<'a>(&mut self, keys: impl Iterator<Item = &'a RowKey>, set: u64) {
        for key in keys {
            if self.slots.get(key).is_some_and(|slot| slot.set <= set) {
                self.slots.remove(key);
            }
        }
    }

    /// All rows were replaced: keeps only what came after write set `set`.
    pub(crate) fn replaced(&mut self, set: u64) {
        self.slots.retain(|_, slot| slot.set > set);
    }

    /// Copies what a reader needs to find the first `limit` rows of a range into `patch`, which wins where both
    /// have a row.
    pub(crate) fn copy_range(&self, from: &RowKey, to: &RowKey, limit: usize, reverse: bool, patch: &mut RowWrites) {
        let slots = self.slots.range((Bound::Included(from), Bound::Included(to)));
        let fresh: Vec<_> = {
            let known = |(key, _): &(&RowKey, &MemtableSlot)| !patch.contains_key(*key);
            if reverse { take_live(slots.rev().filter(known), limit) } else { take_live(slots.filter(known), limit) }
        };
        patch.extend(fresh);
    }
}

/// Rows up to and with the `limit`th that is not deleted: behind that one a reader never looks.
fn take_live<'a>(
    slots: impl Iterator<Item = (&'a RowKey, &'a MemtableSlot)>,
    limit: usize,
) -> Vec<(RowKey, Option<Bytes>)> {
    let mut live = 0;
    let mut out = Vec::new();
    for (key, slot) in slots {
        if live == limit {
            break;
        }
        live += usize::from(slot.value.is_some());
        out.push((key.clone(), slot.value.clone()));
    }
    out
}
