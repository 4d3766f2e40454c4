//! Runs every invariant over a history.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::finding::Finding;
use crate::history::History;
use crate::invariants;

/// What is expected of a run beside what always holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expectations {
    /// The longest time without a successful write while a majority is there.
    pub gap: Duration,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verdict {
    pub invariants: BTreeMap<&'static str, Finding>,
    /// The longest time without a successful write, milliseconds, by fault.
    pub gaps_ms: BTreeMap<String, u64>,
}

impl Verdict {
    pub(crate) fn holds(&self) -> bool {
        self.invariants.values().all(|finding| finding.violations.is_empty())
    }

    /// The names of what does not hold.
    pub(crate) fn broken(&self) -> Vec<&'static str> {
        self.invariants.iter().filter(|(_, f)| !f.violations.is_empty()).map(|(name, _)| *name).collect()
    }
}

pub(crate) fn check(history: &History, expected: Expectations) -> Verdict {
    let mut verdict = Verdict::default();
    for (name, invariant) in invariants::ALL {
        verdict.invariants.insert(name, invariant(history));
    }
    let (finding, gaps) = invariants::availability::check(history, expected.gap);
    verdict.invariants.insert("availability", finding);
    verdict.gaps_ms = gaps;
    verdict
}
