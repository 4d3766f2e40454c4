//! Whether what was written carries the time at which it was written, whatever clocks said meanwhile.

use tillsync::limits;

use crate::history::{Anomaly, History, OpOutcome};

/// Beyond the five seconds that two clocks may be apart: applied time does not go back, and the load does not tell to the
/// millisecond when it asked.
const TOLERANCE_MS: u64 = 1_000;
/// More of them say no more.
const MOST: usize = 5;

/// Acknowledged writes whose times are further from when they were asked for and answered than clocks may be apart. The
/// recorder's time began at `began_ms`, by the clock of this process, which no fault moves.
pub(super) fn wrong(history: &History, began_ms: u64) -> Vec<Anomaly> {
    let Some(node) = history.finals.first() else { return Vec::new() };
    let apart = limits::NODE_CLOCK_APART_MS + TOLERANCE_MS;
    let real = |us: u64| began_ms + us / 1_000;
    let mut wrong = Vec::new();
    for op in history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok && op.asked.as_write().is_some()) {
        let at = op.version.and_then(|seq| usize::try_from(seq.checked_sub(node.compacted + 1)?).ok());
        // 0: its audit row is gone.
        let Some(at_ms) = at.and_then(|at| node.committed_ms.get(at).copied()).filter(|ms| *ms > 0) else { continue };
        let (asked, answered) = (real(op.invoked_us), real(op.returned_us));
        if at_ms.saturating_add(apart) >= asked && at_ms <= answered.saturating_add(apart) {
            continue;
        }
        let off = i128::from(at_ms) - i128::from(answered);
        let seq = op.version.unwrap_or(0);
        wrong.push(Anomaly {
            us: op.returned_us,
            what: format!("change {seq} carries a time that is {off} ms from when {} was told of it", op.device),
        });
        if wrong.len() == MOST {
            break;
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples;

    #[test]
    fn a_time_that_ran_away_is_found() {
        let mut good = samples::good();
        good.ops.truncate(1);
        good.finals[0].committed_ms = vec![1_000_000];
        let op = &mut good.ops[0];
        (op.invoked_us, op.returned_us) = (3_000_000, 4_000_000);
        // The clock of the run began at these milliseconds.
        for (began, found) in
            [(996_500, 0), (990_001, 0), (989_999, 1), (1_002_999, 0), (1_003_001, 1), (0, 1), (9_000_000, 1)]
        {
            let wrong = wrong(&good, began);
            assert_eq!(wrong.len(), found, "{began}: {wrong:?}");
        }
        good.finals[0].committed_ms = vec![0];
        assert_eq!(wrong(&good, 0), Vec::new(), "when it was committed is not known any more");
    }
}
