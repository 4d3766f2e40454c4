//! What an invariant finds in a history.

use serde::Serialize;

/// What one invariant looked at, and what it found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Finding {
    pub checked: u64,
    /// In words, with the operations that prove it; at most [`MOST`].
    pub violations: Vec<String>,
    pub more: u64,
}

/// Violations written out for one invariant.
const MOST: usize = 20;

impl Finding {
    pub(crate) fn wrong(&mut self, what: impl Into<String>) {
        if self.violations.len() < MOST {
            self.violations.push(what.into());
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.wrong(what());
        }
    }
}
