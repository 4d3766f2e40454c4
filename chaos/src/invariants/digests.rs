//! Nodes that have applied the same index have the same digest and head, at any time of the run, before and after
//! restarts; and no node of one boot goes back.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, Sample};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut first: HashMap<u64, &Sample> = HashMap::new();
    let mut last: HashMap<(u64, u64), u64> = HashMap::new();
    for sample in &history.samples {
        let known = first.entry(sample.applied).or_insert(sample);
        let same = known.digest == sample.digest && known.head == sample.head;
        finding.require(same, || {
            let (a, b, at) = (known.node, sample.node, sample.applied);
            format!("at index {at} node {a} had digest {} and node {b} {}", known.digest, sample.digest)
        });
        let before = last.insert((sample.node, sample.boot), sample.applied).unwrap_or(0);
        finding.require(before <= sample.applied, || {
            format!("node {} went back from index {before} to {}", sample.node, sample.applied)
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn another_digest_at_the_same_index_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut other = good();
        other.samples[1].digest = "other".into();
        wrong(&check(&other), "digest");
        let mut back = good();
        back.samples[2].applied = 0;
        wrong(&check(&back), "went back");
    }
}
