//! While a majority is up and connected, writes go on: the longest time without a successful one, by fault.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::finding::Finding;
use crate::history::{FaultWindow, History, OpOutcome};

/// Time after a fault in which its gap may still run, microseconds.
const AFTER: u64 = 10_000_000;

/// With the longest gaps in milliseconds.
pub(crate) fn check(history: &History, bound: Duration) -> (Finding, BTreeMap<String, u64>) {
    let mut finding = Finding::default();
    let mut gaps = BTreeMap::new();
    let ok = history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok && op.asked.as_write().is_some());
    let mut done: Vec<u64> = ok.map(|op| op.returned_us).collect();
    done.sort_unstable();
    let (Some(first), Some(last)) = (done.first().copied(), done.last().copied()) else { return (finding, gaps) };
    for pair in done.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        // A gap is put down to the fault that it began in or just before; without a majority only to that.
        let within = |band: &&FaultWindow| from <= band.to_us.min(last) && to >= band.from_us.max(first);
        let excused = |band: &FaultWindow| !band.majority && from <= band.to_us + AFTER && to >= band.from_us;
        let is_excused = history.bands.iter().any(excused);
        for band in history.bands.iter().filter(within).filter(|band| !(is_excused && band.majority)) {
            let gap = gaps.entry(band.name.clone()).or_default();
            *gap = (*gap).max((to - from) / 1_000);
        }
        finding.checked += 1;
        let gap = Duration::from_micros(to - from);
        if gap > bound && !is_excused {
            let during: Vec<_> = history.bands.iter().filter(within).map(|band| band.what.as_str()).collect();
            finding
                .wrong(format!("no write succeeded for {gap:?} from {:.3} s on, during {during:?}", from as f64 / 1e6));
        }
    }
    (finding, gaps)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn a_long_gap_counts_unless_the_majority_was_gone() {
        let mut history = good();
        history.ops[1].returned_us = 9_000_000;
        let (finding, gaps) = check(&history, Duration::from_secs(5));
        wrong(&finding, "no write succeeded");
        assert_eq!(gaps["crash"], 8_999);
        history.bands[0].majority = false;
        assert!(check(&history, Duration::from_secs(5)).0.violations.is_empty());
        let gone = FaultWindow { name: "gone".into(), majority: false, ..history.bands[0].clone() };
        history.bands[0].majority = true;
        history.bands.push(gone);
        let (finding, gaps) = check(&history, Duration::from_secs(5));
        assert!(finding.violations.is_empty());
        assert_eq!((gaps.get("crash"), gaps["gone"]), (None, 8_999));
        assert!(check(&good(), Duration::from_secs(5)).0.violations.is_empty());
    }
}
