//! Beside attackers no honest device fails: none of its requests is refused or left without an answer because of somebody
//! else, its connection stays, and nothing that it asks takes longer than the bound.

use crate::finding::Finding;
use crate::history::{History, Op};

/// Rows that a sync may bring in the time of any other operation; with more it may take as many times longer.
const ROWS: u64 = 10_000;

/// How long an operation may take. Milliseconds.
fn bound_ms(op: &Op, slow_ms: u64) -> u64 {
    let rows: usize = op.pages.iter().map(Vec::len).sum();
    slow_ms * (1 + rows as u64 / ROWS)
}

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(attacked) = &history.attacked else { return finding };
    for failed in attacked.failures.iter().filter(|failed| failed.us >= attacked.hostile.from_us) {
        finding.wrong(format!(
            "at {:.3} s {} failed on node {}: {}",
            failed.us as f64 / 1e6,
            failed.device,
            failed.node,
            failed.what
        ));
    }
    for (phase, span) in [("the attack", attacked.hostile), ("it", attacked.honest)] {
        let mut seen = 0_u64;
        for op in history.ops.iter().filter(|op| span.has(op.invoked_us) && op.returned_us != u64::MAX) {
            seen += 1;
            let took_ms = op.returned_us.saturating_sub(op.invoked_us) / 1_000;
            let bound_ms = bound_ms(op, attacked.slow_ms);
            finding.require(span == attacked.honest || took_ms <= bound_ms, || {
                format!("operation {} of {} took {took_ms} ms, more than {bound_ms}", op.id, op.device)
            });
        }
        let before = if span == attacked.honest { "before" } else { "beside" };
        finding
            .require(seen > 0, || format!("no honest device did anything {before} {phase}: nothing can be compared"));
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{attacked, good, wrong};
    use super::*;
    use crate::history::{HonestFailure, ShownChange};

    #[test]
    fn a_device_that_is_refused_or_kept_waiting_is_found() {
        assert_eq!(check(&good()).checked, 0, "there was no attack");
        assert!(check(&attacked()).violations.is_empty());
        let failed = |us| {
            let mut history = attacked();
            let failed = HonestFailure { us, device: "till-1".into(), node: 2, what: "5003 too many".into() };
            history.attacked.as_mut().unwrap().failures.push(failed);
            history
        };
        wrong(&check(&failed(45)), "till-1 failed on node 2: 5003");
        assert!(check(&failed(5)).violations.is_empty(), "nobody attacked yet");
        let mut slow = attacked();
        slow.ops[4].returned_us += 2_000_000;
        wrong(&check(&slow), "operation 5 of till-1 took 2000 ms");
        // A sync of many rows may take longer.
        let row = ShownChange { seq: 1, table: "t".into(), record: 1, ..ShownChange::default() };
        slow.ops[4].pages = vec![vec![row.clone(); 500]; 19];
        wrong(&check(&slow), "operation 5 of till-1 took 2000 ms, more than 1000");
        slow.ops[4].pages.push(vec![row; 500]);
        assert!(check(&slow).violations.is_empty());
        let mut nobody = attacked();
        nobody.ops.retain(|op| op.invoked_us < 30);
        wrong(&check(&nobody), "beside the attack");
        let mut nobody = attacked();
        nobody.ops.retain(|op| op.invoked_us > 30);
        wrong(&check(&nobody), "before it");
    }
}
