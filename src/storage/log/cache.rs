//! The newest log entries in memory: all that are not in the engine yet, and some that are.

use crate::ids::LogIndex;
use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes of entries kept for readers beyond those that must be.
const KEEP: usize = 16 << 20;
/// What an entry costs besides its bytes.
const OVERHEAD: usize = 64;

/// Dense entries up to the log's end.
#[derive(Default)]
pub(crate) struct LogCache {
    first: LogIndex,
    entries: VecDeque<Bytes>,
    bytes: usize,
    /// The engine has the entries up to this one.
    written: LogIndex,
}

impl LogCache {
    /// Appends the next entry; the first one of an empty tail may have any index.
    pub(crate) fn push(&mut self, index: LogIndex, entry: Bytes) {
        if self.entries.is_empty() {
            self.first = index;
        }
        self.bytes += entry.len() + OVERHEAD;
        self.entries.push_back(entry);
    }

    /// The engine has the entries up to `index`: the oldest of them may go.
    pub(crate) fn written(&mut self, index: LogIndex) {
        self.written = index;
        while self.bytes > KEEP && self.first <= self.written && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    /// The newest entry that the engine has, as far as it is known here.
    pub(crate) fn in_engine(&self) -> LogIndex {
        self.written
    }

    pub(crate) fn truncate_after(&mut self, index: Option<LogIndex>) {
        while self.entries.back().is_some() && index.is_none_or(|index| self.next() > index.next()) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.len() + OVERHEAD;
            }
        }
        self.written = self.written.min(index.unwrap_or_default());
    }

    pub(crate) fn purge(&mut self, index: LogIndex) {
        while !self.entries.is_empty() && self.first <= index {
            self.pop_front();
        }
    }

    /// Where the tail begins; everything from here to the log's end is in it. `None`: it is empty.
    pub(crate) fn first(&self) -> Option<LogIndex> {
        (!self.entries.is_empty()).then_some(self.first)
    }

    /// The index behind the last entry.
    pub(crate) fn next(&self) -> LogIndex {
        self.first.plus(self.entries.len() as u64)
    }

    /// Copies entries with `from <= index < to` while `budget` lasts; at least one if `out` is empty.
    pub(crate) fn read(&self, from: LogIndex, to: LogIndex, budget: &mut usize, out: &mut Vec<(LogIndex, Bytes)>) {
        let skip = usize::try_from(from.ahead_of(self.first)).unwrap_or(usize::MAX);
        for (index, entry) in from.until(to).zip(self.entries.iter().skip(skip)) {
            if !take(budget, entry.len(), out.is_empty()) {
                break;
            }
            out.push((index, entry.clone()));
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.len() + OVERHEAD;
            self.first = self.first.next();
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
