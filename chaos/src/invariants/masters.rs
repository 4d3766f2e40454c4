//! At most one master: one device with the role at every index, one master a term, terms that only grow, an election
//! log that is a chain, and in it every master that ever was. An election that has its winner is over.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::History;

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let mut of_term: HashMap<u64, &str> = HashMap::new();
    let mut last: HashMap<(u64, u64), u64> = HashMap::new();
    let log = history.finals.first().map_or(&[][..], |node| &node.elections);
    let elected: HashMap<u64, &str> = log.iter().map(|election| (election.term, election.new.as_str())).collect();
    let first = log.first().map_or(u64::MAX, |election| election.term);
    for sample in &history.samples {
        finding.require(sample.masters.len() <= 1, || {
            format!("at index {} node {} has the masters {:?}", sample.applied, sample.node, sample.masters)
        });
        let stated = sample.masters.first().map_or("", |master| master);
        finding.require(sample.masters.len() > 1 || stated == sample.master, || {
            format!("at index {} the master is {:?}, but {stated:?} has the role", sample.applied, sample.master)
        });
        finding.require(sample.electing == 0 || sample.electing != sample.settled, || {
            let (node, applied, election) = (sample.node, sample.applied, sample.electing);
            format!("at index {applied} node {node} has election {election} under way, which has ended")
        });
        let before = last.insert((sample.node, sample.boot), sample.master_term).unwrap_or(0);
        finding.require(before <= sample.master_term, || {
            format!("node {} went back from master term {before} to {}", sample.node, sample.master_term)
        });
        if !sample.master.is_empty() {
            let known = *of_term.entry(sample.master_term).or_insert(&sample.master);
            finding.require(known == sample.master, || {
                format!("term {} has two masters: {known} and {}", sample.master_term, sample.master)
            });
            let election = elected.get(&sample.master_term).copied();
            finding.require(sample.master_term < first || election == Some(&sample.master), || {
                let (master, term) = (&sample.master, sample.master_term);
                format!("{master} was master in term {term}, for which the election log has {election:?}")
            });
        }
    }
    for node in &history.finals {
        for pair in node.elections.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            finding.require(new.term > old.term && new.id == old.id + 1, || {
                format!(
                    "node {}: election {} of term {} follows {} of {}",
                    node.node, new.id, new.term, old.id, old.term
                )
            });
            finding.require(new.previous.is_empty() || new.previous == old.new, || {
                let (was, says) = (&old.new, &new.previous);
                format!("node {}: election {} replaced {says:?}, but the master was {was:?}", node.node, new.id)
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
    fn two_masters_and_a_broken_chain_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut two = good();
        two.samples[0].masters.push("till-9".into());
        wrong(&check(&two), "has the masters");
        let mut term = good();
        term.samples[1].master = "till-9".into();
        term.samples[1].masters = vec!["till-9".into()];
        wrong(&check(&term), "two masters");
        let mut back = good();
        back.samples[2].master_term = 0;
        wrong(&check(&back), "went back");
        let mut open = good();
        open.samples[1].electing = 1;
        wrong(&check(&open), "which has ended");
        open.samples[1].electing = 2;
        assert!(check(&open).violations.is_empty());
        let mut unelected = good();
        unelected.finals[0].elections[0].new = "till-9".into();
        wrong(&check(&unelected), "for which the election log has");
        let mut chain = good();
        chain.finals[0].elections[1].previous = "till-9".into();
        wrong(&check(&chain), "replaced");
        let mut again = good();
        again.finals[0].elections[1].term = 1;
        wrong(&check(&again), "follows");
    }
}
