//! What a device sends before it has ever come online is not lost: it is refused in a way that says to send it again,
//! and in the end all of it is taken.

use crate::finding::Finding;
use crate::history::{History, OpOutcome};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for op in history.ops.iter().filter(|op| op.unregistered) {
        finding.require(op.outcome == OpOutcome::Ok, || {
            let (id, device, error) = (op.id, &op.device, &op.error);
            format!("operation {id}, sent before {device} had ever come online, was never taken: {error}")
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn a_first_write_that_is_lost_is_found() {
        let mut history = good();
        history.ops[0].unregistered = true;
        assert!(check(&history).violations.is_empty());
        assert_eq!(check(&history).checked, 1);
        history.ops[0].outcome = OpOutcome::Failed;
        wrong(&check(&history), "was never taken");
    }
}
