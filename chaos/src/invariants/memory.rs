//! Under attack no node takes more than so many hundredths of the memory that it takes beside honest devices only.

use crate::finding::Finding;
use crate::history::History;

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(attacked) = &history.attacked else { return finding };
    finding.require(!attacked.nodes.is_empty(), || "no node's memory was measured".into());
    for used in &attacked.nodes {
        let (node, honest, hostile) = (used.node, used.honest_kb, used.hostile_kb);
        finding.require(honest > 0 && hostile > 0, || format!("node {node}'s memory was not measured"));
        finding.require(hostile.saturating_mul(100) < honest.saturating_mul(attacked.memory_percent), || {
            format!(
                "node {node} took {hostile} kB under attack and {honest} kB beside honest devices: {} %, not below {} %",
                hostile.saturating_mul(100) / honest.max(1),
                attacked.memory_percent
            )
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{attacked, good, wrong};
    use super::*;

    #[test]
    fn a_node_that_grows_is_found() {
        assert_eq!(check(&good()).checked, 0, "there was no attack");
        assert!(check(&attacked()).violations.is_empty());
        let grown = |kb| {
            let mut history = attacked();
            history.attacked.as_mut().unwrap().nodes[0].hostile_kb = kb;
            check(&history)
        };
        wrong(&grown(150), "node 1 took 150 kB under attack and 100 kB");
        wrong(&grown(0), "was not measured");
        let mut nothing = attacked();
        nothing.attacked.as_mut().unwrap().nodes.clear();
        wrong(&check(&nothing), "no node");
    }
}
