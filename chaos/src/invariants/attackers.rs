//! An attack that did nothing shows nothing: every kind of it was tried and the sockets were held. When it is over, the
//! nodes hold nothing of it any more.

use crate::finding::Finding;
use crate::history::History;

/// Of a hundred sockets asked for: how many are held in the mean. Nodes end some of them all the time.
const HELD_PERCENT: u64 = 75;
/// Descriptors that a node may have more than before: files that its storage opened meanwhile, and connections of honest
/// devices and of the run.
const MORE_DESCRIPTORS: u64 = 64;

pub(super) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let Some(attacked) = &history.attacked else { return finding };
    finding.require(!attacked.kinds.is_empty(), || "nobody attacked".into());
    for kind in &attacked.kinds {
        finding.require(kind.attempts >= kind.least.max(1), || {
            format!("{}: {} attempts are fewer than {}", kind.name, kind.attempts, kind.least)
        });
    }
    let (most, mean, asked) = (attacked.sockets_most, attacked.sockets_mean, attacked.sockets);
    finding.require(asked > 0 && most >= asked, || format!("attackers held {most} sockets at most, not {asked}"));
    finding.require(mean * 100 >= asked * HELD_PERCENT, || {
        format!("attackers held {mean} sockets in the mean, less than {HELD_PERCENT} % of {asked}")
    });
    for used in &attacked.nodes {
        let (node, before, after) = (used.node, used.descriptors_before, used.descriptors_after);
        finding.require(before > 0 && after <= before + MORE_DESCRIPTORS, || {
            format!("node {node} has {after} descriptors open after the attack, and had {before} before")
        });
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::super::samples::{attacked, good, wrong};
    use super::*;

    #[test]
    fn an_attack_that_did_nothing_and_one_that_stays_are_found() {
        assert_eq!(check(&good()).checked, 0, "there was no attack");
        assert!(check(&attacked()).violations.is_empty());
        let with = |change: fn(&mut crate::history::Attacked)| {
            let mut history = attacked();
            change(history.attacked.as_mut().unwrap());
            check(&history)
        };
        wrong(&with(|a| a.kinds[0].attempts = 9), "idle: 9 attempts");
        wrong(&with(|a| a.kinds.clear()), "nobody attacked");
        wrong(&with(|a| a.sockets_most = 99), "99 sockets at most");
        wrong(&with(|a| a.sockets_mean = 74), "74 sockets in the mean");
        wrong(&with(|a| a.nodes[1].descriptors_after = 200), "node 2 has 200 descriptors");
        wrong(&with(|a| a.nodes[0].descriptors_before = 0), "and had 0 before");
    }
}
