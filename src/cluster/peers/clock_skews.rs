//! How far the nodes' clocks are from what most of them show. Said long before a clock is so wrong that its node serves
//! nothing ([`limits::NODE_CLOCK_APART_MS`]): there is time to set it right.

use std::collections::BTreeMap;

use super::compared_clock::{ClockPeers, Compared};
use crate::ids::NodeId;
use crate::limits;

#[derive(Debug, Default)]
pub(crate) struct ClockSkews {
    /// Of the last round.
    seen: BTreeMap<NodeId, Compared>,
    /// It was said that this node's clock is off.
    told: bool,
}

impl ClockSkews {
    /// After a round of comparisons.
    pub(crate) fn note(&mut self, group: &ClockPeers, round: &[Compared]) {
        self.seen = round.iter().map(|other| (other.node, *other)).collect();
        let Some(ahead_ms) = self.of(group, group.me) else { return };
        let unsure_ms = round.iter().map(|other| other.unsure_ms).max().unwrap_or(0);
        if !self.told && is_off(ahead_ms, unsure_ms) {
            self.told = true;
            tracing::warn!(
                "this node's clock is {} most of the nodes' clocks: set it right; from {} s on the node serves nothing",
                shown(ahead_ms),
                limits::NODE_CLOCK_APART_MS / 1_000
            );
        } else if self.told && ahead_ms.unsigned_abs() < limits::NODE_CLOCK_OFF_MS / 2 {
            self.told = false;
            tracing::info!("this node's clock is right again");
        }
    }

    /// How far a node's clock is ahead of the middle one of the voters'. `None`: fewer than half of them were compared.
    pub(crate) fn of(&self, group: &ClockPeers, node: NodeId) -> Option<i64> {
        let ahead = |node: NodeId| match node == group.me {
            true => Some(0),
            false => self.seen.get(&node).map(|other| other.ahead_ms),
        };
        let mut voters: Vec<i64> = group.voters.iter().filter_map(|voter| ahead(*voter)).collect();
        if voters.len() * 2 <= group.voters.len() {
            return None;
        }
        voters.sort_unstable();
        let (one, other) = (voters.get((voters.len() - 1) / 2)?, voters.get(voters.len() / 2)?);
        Some(ahead(node)?.saturating_sub(one.midpoint(*other)))
    }
}

/// So far that people should know.
fn is_off(ahead_ms: i64, unsure_ms: u64) -> bool {
    ahead_ms.unsigned_abs() > limits::NODE_CLOCK_OFF_MS.saturating_add(unsure_ms)
}

fn shown(ahead_ms: i64) -> String {
    let seconds = ahead_ms.unsigned_abs() as f64 / 1_000.0;
    format!("{seconds:.1} s {}", if ahead_ms > 0 { "ahead of" } else { "behind" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(voters: &[u64]) -> ClockPeers {
        ClockPeers { me: NodeId(1), voters: voters.iter().copied().map(NodeId).collect(), leader: Some(NodeId(1)) }
    }

    fn other(node: u64, ahead_ms: i64) -> Compared {
        Compared { node: NodeId(node), ahead_ms, unsure_ms: 5 }
    }

    #[test]
    fn clocks_are_shown_against_the_middle_one() {
        let (mut skews, group) = (ClockSkews::default(), group(&[1, 2, 3]));
        assert_eq!(skews.of(&group, NodeId(1)), None, "nobody was compared");
        skews.note(&group, &[other(2, -1_400), other(3, -1_390), other(4, 20)]);
        let all = [1, 2, 3, 4, 5].map(|node| skews.of(&group, NodeId(node)));
        assert_eq!(all, [Some(1_390), Some(-10), Some(0), Some(1_410), None]);
        skews.note(&group, &[other(2, -1_400)]);
        assert_eq!(
            (skews.of(&group, NodeId(1)), skews.of(&group, NodeId(2))),
            (Some(700), Some(-700)),
            "nobody knows which is right"
        );
        skews.note(&group, &[]);
        assert_eq!(skews.of(&group, NodeId(1)), None);
        assert_eq!(skews.of(&super::tests::group(&[1]), NodeId(1)), Some(0), "alone");
        // The ends of the numbers.
        skews.note(&group, &[other(2, i64::MAX), other(3, i64::MIN)]);
        assert_eq!(skews.of(&group, NodeId(3)), Some(i64::MIN));
    }

    #[test]
    fn a_clock_that_is_off_is_told_once_until_it_is_right() {
        let (mut skews, group) = (ClockSkews::default(), group(&[1, 2, 3]));
        for (ahead_ms, told) in [(1_000, false), (1_004, false), (1_006, true), (900, true), (501, true), (499, false)]
        {
            for sign in [1, -1] {
                let mut one = ClockSkews { told: skews.told, ..ClockSkews::default() };
                one.note(&group, &[other(2, sign * ahead_ms), other(3, sign * ahead_ms)]);
                assert_eq!(one.told, told, "{}", sign * ahead_ms);
            }
            skews.note(&group, &[other(2, ahead_ms), other(3, ahead_ms)]);
        }
        // The other one's affair.
        skews.note(&group, &[other(2, 0), other(3, 4_000)]);
        assert!(!skews.told);
        assert_eq!(shown(-1_449), "1.4 s behind");
    }
}
