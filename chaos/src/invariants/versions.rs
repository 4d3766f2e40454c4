//! The cluster's version: a node never goes back behind it, a node whose program does not know it applies nothing from there
//! on, and no command came before its version was agreed on.

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    // Where each version was seen first in the log.
    let mut since: BTreeMap<u32, u64> = BTreeMap::new();
    let mut last: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for sample in &history.samples {
        let at = since.entry(sample.version).or_insert(sample.applied);
        *at = sample.applied.min(*at);
    }
    for sample in &history.samples {
        let (applied, before) = last.get(&sample.node).copied().unwrap_or_default();
        finding.require(applied > sample.applied || sample.version >= before, || {
            format!("node {} went back from cluster version {before} to {}", sample.node, sample.version)
        });
        last.insert(sample.node, (sample.applied, sample.version));
        let unknown = since.range(sample.knows + 1..).map(|(version, at)| (*version, *at));
        let unknown = unknown.into_iter().find(|(_, at)| sample.applied >= *at);
        finding.require(unknown.is_none(), || {
            let (version, at) = unknown.unwrap_or_default();
            format!(
                "node {} applied entry {} with a program that knows cluster version {}; it is {version} since entry {at}",
                sample.node, sample.applied, sample.knows
            )
        });
        finding.require(sample.ungated == 0, || {
            format!("node {}: {} commands came before their version was agreed on", sample.node, sample.ungated)
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;

    #[test]
    fn a_version_that_is_not_kept_to_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut raised = good();
        for sample in raised.samples.iter_mut().skip(1) {
            (sample.version, sample.knows) = (2, 2);
        }
        raised.samples[0].knows = 2;
        let first = raised.samples[0].clone();
        let mut back = raised.clone();
        let after = back.samples.iter().rfind(|sample| sample.node == first.node).cloned().unwrap();
        back.samples.push(crate::history::Sample { version: 1, applied: after.applied + 1, ..after.clone() });
        wrong(&check(&back), "went back");
        let mut old = raised.clone();
        old.samples.push(crate::history::Sample { knows: 1, applied: after.applied + 1, ..after });
        wrong(&check(&old), "knows cluster version 1");
        let mut early = good();
        early.samples[0].ungated = 3;
        wrong(&check(&early), "3 commands");
    }
}
