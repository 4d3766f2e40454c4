//! One Raft leader a term (Ongaro's Election Safety; "one master a term" rests on it).

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut of_term: HashMap<u64, u64> = HashMap::new();
    for led in &history.led {
        let known = *of_term.entry(led.raft_term).or_insert(led.node);
        finding.require(known == led.node, || {
            format!("nodes {known} and {} both led in Raft term {}", led.node, led.raft_term)
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn two_leaders_of_a_term_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut two = good();
        two.led[1].raft_term = 1;
        wrong(&check(&two), "both led");
    }
}
