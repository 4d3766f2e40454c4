//! The newest log entries in memory: all that are not in the engine yet, and some that are.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes of entries kept for readers beyond those that must be.
const KEEP: usize = 16 << 20;
/// What an entry costs besides its bytes.
const OVERHEAD: usize = 64;

/// Dense entries up to the log's end.
#[derive(Default)]
pub(crate) struct LogCache {
    first: u64,
    entries: VecDeque<Bytes>,
    bytes: usize,
    /// The engine has the entries up to this one.
    written: u64,
}

impl LogCache {
    /// Appends the next entry; the first one of an empty tail may have any index.
    pub(crate) fn push(&mut self, index: u64, entry: Bytes) {
        if self.entries.is_empty() {
            self.first = index;
        }
        self.bytes += entry.len() + OVERHEAD;
        self.entries.push_back(entry);
    }

    /// The engine has the entries up to `index`: the oldest of them may go.
    pub(crate) fn written(&mut self, index: u64) {
        self.written = index;
        while self.bytes > KEEP && self.first <= self.written && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    /// The newest entry that the engine has, as far as it is known here.
    pub(crate) fn in_engine(&self) -> u64 {
        self.written
    }

    pub(crate) fn truncate_after(&mut self, index: Option<u64>) {
        while self.entries.back().is_some() && index.is_none_or(|index| self.next() - 1 > index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.len() + OVERHEAD;
            }
        }
        self.written = self.written.min(index.unwrap_or(0));
    }

    pub(crate) fn purge(&mut self, index: u64) {
        while !self.entries.is_empty() && self.first <= index {
            self.pop_front();
        }
    }

    /// Where the tail begins; everything from here to the log's end is in it. `None`: it is empty.
    pub(crate) fn first(&self) -> Option<u64> {
        (!self.entries.is_empty()).then_some(self.first)
    }

    /// The index behind the last entry.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Copies entries with `from <= index < to` while `budget` lasts; at least one if `out` is empty.
    pub(crate) fn read(&self, from: u64, to: u64, budget: &mut usize, out: &mut Vec<(u64, Bytes)>) {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for (index, entry) in (from..to).zip(self.entries.iter().skip(skip)) {
            if !take(budget, entry.len(), out.is_empty()) {
                break;
            }
            out.push((index, entry.clone()));
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.len() + OVERHEAD;
            self.first += 1;
        }
    }
}

/// Whether an entry still fits; the first one always does. An exhausted budget stays so.
pub(crate) fn take(budget: &mut usize, len: usize, first: bool) -> bool {
    if len > *budget && !first {
        *budget = 0;
        return false;
    }
    *budget = budget.saturating_sub(len);
    true
}
