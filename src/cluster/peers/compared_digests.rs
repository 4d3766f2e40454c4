//! Whether this node holds what the others hold.
//!
//! With their status the nodes tell each other the digest of their state at an index that both have applied
//! ([`crate::consensus::digests`]). A digest hangs on the one before it, so nodes that differ once differ at every later
//! index, and nodes that are equal were equal before. What follows from that:
//!
//! - Most of the voters hold one state, and this node another one: it stops, and its folder is not opened again.
//! - Most of the voters hold what this node holds, and one differs: it goes on, and says which.
//! - Nobody can tell (one of three is away and the two others differ): nothing is written on either side, until the
//!   others are back or an operator has removed the node that is wrong.
//!
//! Nodes of different versions are not compared: the newer one may write more into its rows.

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use crate::ids::{LogIndex, NodeId};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::DigestAt;

/// What came of the comparisons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DigestVerdict {
    /// No voter differs, or most hold what this node holds.
    #[default]
    Agrees,
    /// Some voter differs, and it is not known yet what the rest holds.
    Open,
    /// Nobody can tell which node is right.
    Undecided { index: LogIndex, others: Vec<NodeId> },
    /// Most of the voters hold another state than this node, at `index` at the latest.
    Outvoted { index: LogIndex, others: Vec<NodeId> },
}

impl DigestVerdict {
    /// Whether this node may give commands to the cluster.
    pub fn may_write(&self) -> bool {
        matches!(self, Self::Agrees | Self::Open)
    }
}

/// What is known of another node.
#[derive(Clone, Debug, Default)]
struct PeerDigests {
    /// What it said last.
    said: Vec<(LogIndex, u128)>,
    /// The newest index at which it was equal, and the oldest at which it was not.
    equal_at: Option<LogIndex>,
    differs_from: Option<LogIndex>,
}

#[derive(Default)]
struct Comparisons {
    peers: BTreeMap<NodeId, PeerDigests>,
    /// Rounds in a row after which it was open who is right.
    open: u32,
    verdict: DigestVerdict,
}

#[derive(Default)]
pub(crate) struct ComparedDigests(Mutex<Comparisons>);

/// Rounds that it may take until most of the others have answered.
const OPEN_ROUNDS: u32 = 3;

fn names(nodes: &[NodeId]) -> String {
    let mut out = if nodes.len() == 1 { "node ".to_owned() } else { "nodes ".to_owned() };
    for (nth, node) in nodes.iter().enumerate() {
        let _ = write!(out, "{}{node}", if nth == 0 { "" } else { ", " });
    }
    out
}

impl ComparedDigests {
    /// `peer` said these digests; `own` gives this node's at an index.
    pub(crate) fn hear(&self, peer: NodeId, said: &[DigestAt], own: impl Fn(LogIndex) -> Option<u128>) {
        let said: Vec<_> = said
            .iter()
            .take(limits::DIGESTS_SAID)
            .map(|at| (LogIndex(at.index), u128::from(at.high) << 64 | u128::from(at.low)))
            .collect();
        let mut inner = self.0.lock();
        let known = inner.peers.entry(peer).or_default();
        for (index, digest) in &said {
            match own(*index) {
                None => {}
                Some(own) if own == *digest => {
                    known.equal_at = known.equal_at.max(Some(*index));
                    // The one that differed has been given another state since, by a snapshot.
                    known.differs_from = known.differs_from.filter(|from| from > index);
                }
                Some(_) => {
                    known.differs_from = Some(known.differs_from.map_or(*index, |from| from.min(*index)));
                    known.equal_at = known.equal_at.filter(|at| at < index);
                }
            }
        }
        known.said = said;
    }

    /// This node's state was replaced: what it was compared with was another one.
    pub(crate) fn forget(&self) {
        self.0.lock().peers.clear();
    }

    /// After a round of questions.
    pub(crate) fn judge(&self, me: NodeId, members: &[NodeId], voters: &[NodeId]) -> DigestVerdict {
        let mut inner = self.0.lock();
        inner.peers.retain(|peer, _| members.contains(peer));
        let verdict = look(me, voters, &inner.peers);
        inner.open = if verdict == DigestVerdict::Open { inner.open.saturating_add(1) } else { 0 };
        inner.verdict = match verdict {
            DigestVerdict::Open if inner.open >= OPEN_ROUNDS => undecided(voters, &inner.peers),
            other => other,
        };
        inner.verdict.clone()
    }

    pub(crate) fn verdict(&self) -> DigestVerdict {
        self.0.lock().verdict.clone()
    }

    /// The newest index at which a node was equal, and the oldest at which it is known to differ.
    pub(crate) fn of(&self, peer: NodeId) -> (Option<LogIndex>, Option<LogIndex>) {
        self.0.lock().peers.get(&peer).map_or((None, None), |known| (known.equal_at, known.differs_from))
    }

    /// Why nothing may be written through this node, if so.
    pub(crate) fn may_write(&self) -> Result<(), Error> {
        let inner = self.0.lock();
        if inner.verdict.may_write() { Ok(()) } else { Err(Error::new(Code::Storage, inner.verdict.to_string())) }
    }
}

fn differing(voters: &[NodeId], peers: &BTreeMap<NodeId, PeerDigests>) -> Vec<(NodeId, LogIndex)> {
    let voter =
        |(peer, known): (&NodeId, &PeerDigests)| Some((*peer, known.differs_from?)).filter(|_| voters.contains(peer));
    peers.iter().filter_map(voter).collect()
}

fn look(me: NodeId, voters: &[NodeId], peers: &BTreeMap<NodeId, PeerDigests>) -> DigestVerdict {
    let differ = differing(voters, peers);
    let Some(newest) = differ.iter().map(|(_, from)| *from).max() else { return DigestVerdict::Agrees };
    let most = voters.len() / 2 + 1;
    // Who was equal at a later index was equal where the others differ.
    let equal = peers.iter().filter(|(peer, known)| voters.contains(peer) && known.equal_at >= Some(newest)).count();
    if equal + usize::from(voters.contains(&me)) >= most {
        return DigestVerdict::Agrees;
    }
    // Those that differ are a majority only if they are equal among each other.
    let mut together = BTreeMap::<(LogIndex, u128), Vec<(NodeId, LogIndex)>>::new();
    for (peer, from) in &differ {
        let said = peers.get(peer).into_iter().flat_map(|known| &known.said).filter(|(index, _)| index >= from);
        for at in said {
            together.entry(*at).or_default().push((*peer, *from));
        }
    }
    match together.into_values().find(|group| group.len() >= most) {
        Some(group) => DigestVerdict::Outvoted {
            index: group.iter().map(|(_, from)| *from).min().unwrap_or(newest),
            others: group.into_iter().map(|(peer, _)| peer).collect(),
        },
        None => DigestVerdict::Open,
    }
}

fn undecided(voters: &[NodeId], peers: &BTreeMap<NodeId, PeerDigests>) -> DigestVerdict {
    let differ = differing(voters, peers);
    DigestVerdict::Undecided {
        index: differ.iter().map(|(_, from)| *from).min().unwrap_or_default(),
        others: differ.into_iter().map(|(peer, _)| peer).collect(),
    }
}

impl std::fmt::Display for DigestVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agrees | Self::Open => Ok(()),
            Self::Undecided { index, others } => write!(
                f,
                "this node and {} hold different data since log index {index} at the latest, and no majority tells which \
                 is right: nothing is written until that is decided. Bring the other nodes back, or remove the one that \
                 is wrong with `tillsync cluster remove`",
                names(others)
            ),
            Self::Outvoted { index, others } => write!(
                f,
                "this node holds other data than {} since log index {index} at the latest, so its data cannot be \
                 trusted: it serves no more, and its data folder is kept as it is. Remove the node with `tillsync \
                 cluster remove`, and let the machine join under a new number with an empty folder",
                names(others)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests by who holds which state: a state differs from `base` from its index on.
    fn digest(state: u128, index: u64) -> u128 {
        let from = state >> 64;
        if u128::from(index) >= from { state << 8 | u128::from(index) } else { u128::from(index) }
    }

    const GOOD: u128 = u128::MAX >> 8;
    const BAD: u128 = (100 << 64) | 1;
    const WORSE: u128 = (100 << 64) | 2;
    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn hears(compared: &ComparedDigests, own: u128, peer: u64, state: u128, indexes: &[u64]) {
        let at = |index: &u64| {
            let digest = digest(state, *index);
            DigestAt { index: *index, high: (digest >> 64) as u64, low: digest as u64 }
        };
        let said: Vec<_> = indexes.iter().map(at).collect();
        compared.hear(NodeId(peer), &said, |index| Some(digest(own, index.get())));
    }

    #[test]
    fn the_one_that_differs_from_most_is_outvoted_and_the_others_go_on() {
        let (right, wrong) = (ComparedDigests::default(), ComparedDigests::default());
        for index in [99, 120] {
            hears(&right, GOOD, 2, GOOD, &[index]);
            hears(&right, GOOD, 3, BAD, &[index]);
            hears(&wrong, BAD, 1, GOOD, &[index]);
            hears(&wrong, BAD, 2, GOOD, &[index]);
            let expected = match index {
                99 => DigestVerdict::Agrees,
                _ => DigestVerdict::Outvoted { index: LogIndex(120), others: vec![NodeId(1), NodeId(2)] },
            };
            assert_eq!(right.judge(NodeId(1), &VOTERS, &VOTERS), DigestVerdict::Agrees);
            assert_eq!(wrong.judge(NodeId(3), &VOTERS, &VOTERS), expected);
        }
        assert_eq!(
            (right.of(NodeId(2)), right.of(NodeId(3))),
            ((Some(LogIndex(120)), None), (Some(LogIndex(99)), Some(LogIndex(120))))
        );
        assert!(right.may_write().is_ok());
        let why = wrong.may_write().unwrap_err();
        assert!(why.code == Code::Storage && why.message.contains("nodes 1, 2 since log index 120"), "{why}");
    }

    #[test]
    fn under_load_rounds_at_different_indexes_are_put_together() {
        // The leader is ahead of both, and is the one that is wrong: they are equal at a round index only.
        let wrong = ComparedDigests::default();
        hears(&wrong, BAD, 1, GOOD, &[5_017, 5_000]);
        hears(&wrong, BAD, 2, GOOD, &[5_013, 5_000]);
        assert_eq!(
            wrong.judge(NodeId(3), &VOTERS, &VOTERS),
            DigestVerdict::Outvoted { index: LogIndex(5_000), others: vec![NodeId(1), NodeId(2)] }
        );
        // Node 2 is known to be equal from before node 3 differed: one more round tells.
        let right = ComparedDigests::default();
        hears(&right, GOOD, 2, GOOD, &[98]);
        hears(&right, GOOD, 3, BAD, &[105]);
        assert_eq!(right.judge(NodeId(1), &VOTERS, &VOTERS), DigestVerdict::Open);
        hears(&right, GOOD, 2, GOOD, &[106]);
        assert_eq!(right.judge(NodeId(1), &VOTERS, &VOTERS), DigestVerdict::Agrees);
    }

    #[test]
    fn without_a_majority_nothing_is_written_until_one_is_back() {
        for (mine, theirs, expected) in [
            (GOOD, BAD, DigestVerdict::Agrees),
            (BAD, GOOD, DigestVerdict::Outvoted { index: LogIndex(120), others: vec![NodeId(2), NodeId(3)] }),
        ] {
            let compared = ComparedDigests::default();
            // Node 3 was equal before it went away: that says nothing of now.
            hears(&compared, mine, 3, GOOD, &[90]);
            for _ in 1..OPEN_ROUNDS {
                hears(&compared, mine, 2, theirs, &[120]);
                assert_eq!(compared.judge(NodeId(1), &VOTERS, &VOTERS), DigestVerdict::Open);
                assert!(compared.may_write().is_ok());
            }
            let undecided = DigestVerdict::Undecided { index: LogIndex(120), others: vec![NodeId(2)] };
            assert_eq!(compared.judge(NodeId(1), &VOTERS, &VOTERS), undecided);
            let why = compared.may_write().unwrap_err();
            assert!(why.code == Code::Storage && why.message.contains("node 2 hold different data"), "{why}");
            assert!(why.message.contains("log index 120") && why.message.contains("cluster remove"), "{why}");
            hears(&compared, mine, 2, theirs, &[125, 120]);
            hears(&compared, mine, 3, GOOD, &[125, 120]);
            assert_eq!(compared.judge(NodeId(1), &VOTERS, &VOTERS), expected);
        }
        // Or the operator decides.
        let compared = ComparedDigests::default();
        hears(&compared, GOOD, 2, BAD, &[120]);
        for _ in 0..OPEN_ROUNDS {
            compared.judge(NodeId(1), &VOTERS, &VOTERS);
        }
        assert!(compared.may_write().is_err());
        assert_eq!(compared.judge(NodeId(1), &[NodeId(1), NodeId(3)], &[NodeId(1), NodeId(3)]), DigestVerdict::Agrees);
        assert!(compared.may_write().is_ok());
    }

    #[test]
    fn three_that_all_differ_and_two_of_two_are_undecided_and_learners_have_no_say() {
        let compared = ComparedDigests::default();
        hears(&compared, GOOD, 2, BAD, &[120]);
        hears(&compared, GOOD, 3, WORSE, &[120]);
        let last =
            |voters: &[NodeId]| (0..OPEN_ROUNDS).map(|_| compared.judge(NodeId(1), &VOTERS, voters)).last().unwrap();
        assert_eq!(
            last(&VOTERS),
            DigestVerdict::Undecided { index: LogIndex(120), others: vec![NodeId(2), NodeId(3)] }
        );
        assert_eq!(
            last(&[NodeId(1), NodeId(2)]),
            DigestVerdict::Undecided { index: LogIndex(120), others: vec![NodeId(2)] }
        );
        assert_eq!(last(&[NodeId(1)]), DigestVerdict::Agrees);
        // This node is a learner, and differs from the only voter.
        assert_eq!(last(&[NodeId(2)]), DigestVerdict::Outvoted { index: LogIndex(120), others: vec![NodeId(2)] });
    }

    #[test]
    fn a_snapshot_ends_a_difference_and_nobody_says_too_much() {
        let compared = ComparedDigests::default();
        hears(&compared, GOOD, 2, BAD, &[120]);
        hears(&compared, GOOD, 2, GOOD, &[130]);
        assert_eq!(compared.of(NodeId(2)), (Some(LogIndex(130)), None));
        let many: Vec<u64> = (0..1_000).collect();
        hears(&compared, GOOD, 2, GOOD, &many);
        assert!(compared.0.lock().peers[&NodeId(2)].said.len() == limits::DIGESTS_SAID);
        compared.forget();
        assert_eq!(compared.of(NodeId(2)), (None, None));
    }
}
