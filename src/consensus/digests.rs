//! The digests of the entries that this node applied last, so that nodes can be compared at the same index.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ids::LogIndex;
use crate::limits;
use crate::proto::DigestAt;

/// A bounded ring: every index of late, and every [`limits::DIGEST_STEP`]th for longer.
///
/// Two nodes that are idle are compared at their last index. Under load no two are at the same index when they are
/// asked, but each still knows the other's index, or the last round one before it.
#[derive(Default)]
pub struct DigestRing {
    rings: Mutex<Rings>,
    /// So many entries were applied that the others should be compared with before their time.
    due: Notify,
}

#[derive(Default)]
struct Rings {
    every: VecDeque<(LogIndex, u128)>,
    round: VecDeque<(LogIndex, u128)>,
}

fn push(ring: &mut VecDeque<(LogIndex, u128)>, most: usize, at: (LogIndex, u128)) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(at);
}

fn newest_up_to(ring: &VecDeque<(LogIndex, u128)>, index: LogIndex) -> Option<(LogIndex, u128)> {
    ring.partition_point(|(at, _)| *at <= index).checked_sub(1).and_then(|place| ring.get(place)).copied()
}

impl DigestRing {
    /// The entry at `index` was applied.
    pub fn push(&self, index: LogIndex, digest: u128) {
        let mut rings = self.rings.lock();
        push(&mut rings.every, limits::DIGESTS_KEPT, (index, digest));
        if index.get().is_multiple_of(limits::DIGEST_STEP) {
            push(&mut rings.round, limits::DIGESTS_KEPT_LONG, (index, digest));
        }
        drop(rings);
        if index.get().is_multiple_of(limits::DIGEST_COMPARE_ENTRIES) {
            self.due.notify_one();
        }
    }

    /// The state was replaced: what was known of the last one says nothing of this one.
    pub fn restart(&self, index: LogIndex, digest: u128) {
        *self.rings.lock() = Rings::default();
        self.push(index, digest);
    }

    /// The newest index.
    pub fn newest(&self) -> Option<LogIndex> {
        self.rings.lock().every.back().map(|(index, _)| *index)
    }

    /// The digest at this very index, if it is kept.
    pub fn at(&self, index: LogIndex) -> Option<u128> {
        let rings = self.rings.lock();
        let found = |ring| newest_up_to(ring, index).filter(|(at, _)| *at == index).map(|(_, digest)| digest);
        found(&rings.every).or_else(|| found(&rings.round))
    }

    /// What a node that has applied up to `index` can compare: the newest digest of both kinds, none beyond `index`.
    pub fn up_to(&self, index: LogIndex) -> Vec<DigestAt> {
        let rings = self.rings.lock();
        let (exact, round) = (newest_up_to(&rings.every, index), newest_up_to(&rings.round, index));
        let both = exact.into_iter().chain(round.filter(|round| exact.is_none_or(|exact| exact.0 != round.0)));
        both.map(|(index, digest)| DigestAt { index: index.get(), high: (digest >> 64) as u64, low: digest as u64 })
            .collect()
    }

    /// Resolves when the others should be compared with.
    pub async fn due(&self) {
        self.due.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes(ring: &DigestRing, up_to: u64) -> Vec<u64> {
        ring.up_to(LogIndex(up_to)).into_iter().map(|at| at.index).collect()
    }

    #[test]
    fn the_last_ones_and_round_ones_are_kept_and_no_more() {
        let ring = DigestRing::default();
        assert_eq!((ring.newest(), ring.up_to(LogIndex::MAX).len()), (None, 0));
        let last = limits::DIGEST_STEP * (limits::DIGESTS_KEPT_LONG as u64 + 5) + 7;
        for index in 1..=last {
            ring.push(LogIndex(index), u128::from(index) << 65 | 1);
        }
        assert_eq!(ring.newest(), Some(LogIndex(last)));
        assert_eq!(indexes(&ring, u64::MAX), [last, last - 7]);
        // A node that is a little behind, one that is at a round index, one that is far behind.
        assert_eq!(indexes(&ring, last - 100), [last - 100, last - 7 - limits::DIGEST_STEP]);
        assert_eq!(indexes(&ring, last - 7), [last - 7]);
        let far = last - limits::DIGESTS_KEPT as u64 - limits::DIGEST_STEP;
        assert_eq!(indexes(&ring, far), [far / limits::DIGEST_STEP * limits::DIGEST_STEP]);
        assert_eq!(indexes(&ring, 3), [0_u64; 0]);
        let back = ring.up_to(LogIndex(last))[0];
        assert_eq!(ring.at(LogIndex(last)), Some(u128::from(back.high) << 64 | u128::from(back.low)));
        assert_eq!((ring.at(LogIndex(far + 1)), ring.at(LogIndex(last + 1))), (None, None));
        let rings = ring.rings.lock();
        assert_eq!((rings.every.len(), rings.round.len()), (limits::DIGESTS_KEPT, limits::DIGESTS_KEPT_LONG));
        drop(rings);
        ring.restart(LogIndex(9), 4);
        assert_eq!((ring.at(LogIndex(9)), ring.at(LogIndex(last)), ring.newest()), (Some(4), None, Some(LogIndex(9))));
    }

    #[tokio::test]
    async fn many_entries_make_a_comparison_due() {
        let ring = DigestRing::default();
        for index in 1..limits::DIGEST_COMPARE_ENTRIES {
            ring.push(LogIndex(index), 1);
        }
        let mut due = std::pin::pin!(ring.due());
        assert!(futures_util::poll!(due.as_mut()).is_pending());
        ring.push(LogIndex(limits::DIGEST_COMPARE_ENTRIES), 1);
        due.await;
    }
}
