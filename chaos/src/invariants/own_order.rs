//! What a session sends without waiting for answers is applied in the order in which it was sent. A write that was sent
//! again has no place in that order any more.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut sent: Vec<(&Op, u64)> = Vec::new();
    for op in history.ops.iter().filter(|op| op.tries == 1 && op.outcome == OpOutcome::Ok) {
        if let (Some(_), Some(seq)) = (op.asked.as_write(), op.version) {
            sent.push((op, seq));
        }
    }
    sent.sort_unstable_by_key(|(op, _)| op.invoked);
    let mut last: HashMap<u64, (&Op, u64)> = HashMap::new();
    for (op, seq) in sent {
        if let Some((before, earlier)) = last.insert(op.session, (op, seq)) {
            finding.require(earlier < seq, || {
                let (session, a, b) = (op.session, before.id, op.id);
                format!("session {session} sent operation {a} before {b}, but they are changes {earlier} and {seq}")
            });
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn writes_that_overtake_each_other_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut turned = good();
        (turned.ops[0].version, turned.ops[1].version) = (Some(2), Some(1));
        wrong(&check(&turned), "before 2");
        turned.ops[0].tries = 2;
        assert!(check(&turned).violations.is_empty(), "it was sent again");
    }
}
