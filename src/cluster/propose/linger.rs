//! When the next batch leaves. Whoever was just answered is likely to ask again in a moment, and one entry for all of
//! them costs three disks one sync where two entries cost two.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::BATCH_COMMANDS;

/// What a batch waits at most for those who were just answered: twice as long as the last one was on its way, within
/// these.
const PATIENCE_MIN: Duration = Duration::from_millis(1);
const PATIENCE_MAX: Duration = Duration::from_millis(10);
/// This part of them may be late: a few that take their time must not hold up the rest.
const LATE: usize = 4;
/// After waiting in vain, this many batches leave at once; twice as many the next time.
const PAUSE_MIN: u32 = 8;
const PAUSE_MAX: u32 = 1024;

/// Learns from one batch to the next whether waiting pays: it does when clients ask again as soon as they are
/// answered, and not when requests come at their own times.
#[derive(Default)]
pub(super) struct AdaptiveLinger {
    /// How many commands will be here when all who were answered have asked again.
    expected: usize,
    /// The next batch waits until then.
    until: Option<Instant>,
    /// When the last batch left.
    left: Option<Instant>,
    /// Batches that leave at once before waiting is tried again.
    paused: u32,
    pause: u32,
}

impl AdaptiveLinger {
    /// A batch leaves.
    pub(super) fn leaves(&mut self, now: Instant) {
        self.left = Some(now);
        self.until = None;
    }

    /// A batch of `answered` commands is done, and `ready` others came meanwhile.
    pub(super) fn finished(&mut self, answered: usize, ready: usize, now: Instant) {
        self.expected = (answered + ready).min(BATCH_COMMANDS);
        if self.paused > 0 {
            self.paused -= 1;
            return;
        }
        let took = self.left.map_or(Duration::ZERO, |left| now.saturating_duration_since(left));
        self.until = Some(now + (took * 2).clamp(PATIENCE_MIN, PATIENCE_MAX));
    }

    /// Until when a batch of `ready` commands should still wait; `None`: it may leave now.
    pub(super) fn waits(&mut self, ready: usize, now: Instant) -> Option<Instant> {
        let until = self.until?;
        if ready >= self.expected - self.expected / LATE {
            self.pause = 0;
        } else if now < until {
            return Some(until);
        } else {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.paused = self.pause;
        }
        self.until = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_client_alone_never_waits() {
        let (mut gather, mut now) = (AdaptiveLinger::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(gather.waits(1, now), None);
            gather.leaves(now);
            now += MS;
            gather.finished(1, 0, now);
        }
    }

    #[test]
    fn two_halves_of_the_clients_become_one_batch() {
        let (mut gather, now) = (AdaptiveLinger::default(), Instant::now());
        gather.leaves(now);
        gather.finished(8, 8, now + MS);
        assert_eq!(gather.waits(8, now + MS), Some(now + 3 * MS));
        assert_eq!(gather.waits(11, now + MS), Some(now + 3 * MS));
        assert_eq!(gather.waits(12, now + MS), None, "a quarter may be late");
    }

    #[test]
    fn waiting_lasts_no_longer_than_twice_the_last_batch_and_ten_milliseconds() {
        for (took, patience) in [(0, 1), (3, 6), (400, 10)] {
            let (mut gather, begun) = (AdaptiveLinger::default(), Instant::now());
            gather.leaves(begun);
            let now = begun + took * MS;
            gather.finished(8, 8, now);
            assert_eq!(gather.waits(8, now), Some(now + patience * MS));
            assert_eq!(gather.waits(8, now + patience * MS), None);
        }
    }

    #[test]
    fn who_does_not_ask_again_costs_ever_fewer_waits() {
        let (mut gather, mut now, mut waits) = (AdaptiveLinger::default(), Instant::now(), 0);
        for _ in 0..10_000 {
            gather.leaves(now);
            gather.finished(8, 4, now);
            if let Some(until) = gather.waits(4, now) {
                waits += 1;
                now = until;
                assert_eq!(gather.waits(4, now), None);
            }
        }
        assert!(waits < 20, "{waits}");
    }
}
