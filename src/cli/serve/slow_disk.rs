//! When a node starts again by itself, because its disk became too slow for the times that its elections have.
//!
//! A vote is flushed by the candidate and by each voter, and those times are fixed at a start. On a disk that then takes as
//! long for a flush as an election waits, every candidate gives up before it could be elected, for ever. Nothing is lost by
//! a start: this node serves nobody while it knows no leader.

use std::time::Duration;

use tokio::time::Instant;

use crate::consensus::node::{RaftNode, Timing};

/// So long no leader was found. Elections on a disk that is fast enough take a tenth of it.
const LEADERLESS: Duration = Duration::from_secs(3);
/// How soon a disk that was fast enough is looked at again.
const LOOK: Duration = Duration::from_millis(250);

/// What a node's elections have to keep up with.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskPace {
    /// As the settings say.
    pub settings: Timing,
    /// How long a flush takes now.
    pub flush_time: fn() -> Duration,
}

impl DiskPace {
    /// Resolves with the time of a flush when no leader has been found for a while, and elections have to wait half as long
    /// again as they do for such flushes.
    pub(super) async fn is_lost(self, node: &RaftNode) -> Duration {
        let mut place = node.place();
        let mut leaderless: Option<Instant> = None;
        loop {
            leaderless = match place.current().leader {
                Some(_) => None,
                None => Some(leaderless.unwrap_or_else(Instant::now)),
            };
            let flush = (self.flush_time)();
            let since = leaderless.map_or(Duration::ZERO, |since| since.elapsed());
            if since >= LEADERLESS && self.has_outgrown(node.timing(), flush) {
                return flush;
            }
            place.changed_within(LEADERLESS.saturating_sub(since).max(LOOK)).await;
        }
    }

    fn has_outgrown(self, now: Timing, flush: Duration) -> bool {
        self.settings.on_disk_of(flush).election_min >= now.election_min * 3 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_too_slow_for_the_times_that_were_taken_on_a_faster_one() {
        let ms = Duration::from_millis;
        let pace = DiskPace { settings: Timing::default(), flush_time: || Duration::ZERO };
        let started_on = |flush| pace.settings.on_disk_of(ms(flush));
        for (before, now, outgrown) in [
            (2, 20, false),
            (2, 40, false),
            (2, 45, true),
            (2, 500, true),
            (150, 160, false),
            (150, 250, true),
            (600, 5_000, false),
        ] {
            assert_eq!(pace.has_outgrown(started_on(before), ms(now)), outgrown, "{before} ms, then {now} ms");
        }
        // A start that finds the disk fast again keeps the times for which it was made: it would be made again for ever.
        assert_eq!(started_on(500).on_disk_of(ms(2)), started_on(500));
    }
}
