//! This node's clock, as far as the other nodes agree with it.
//!
//! Time is state: a command carries its proposer's clock, and the applied time never goes back. One node whose clock is
//! a month ahead would take the whole cluster there, for good. So:
//!
//! - Nodes tell each other their clocks with their status, every second and as soon as they meet. A node that is
//!   further than [`limits::NODE_CLOCK_APART_MS`] from most of the voters serves nothing, says so, and does not lead.
//! - A clock that jumps is noticed without the others: what the machine counts since its start goes on evenly. Until
//!   the others have confirmed the new time, nothing is stamped with it.
//! - Who leads takes no commands before most of the voters have confirmed its clock, and none that is further from it
//!   than that ([`AgreedClock::check`]).
//!
//! If as many voters agree as disagree (one of three is away, and the clocks of the two others differ), nobody can tell
//! whose clock is right. The leader's is taken then, if the others agreed with it before and it has not jumped since.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::clock_skews::ClockSkews;
use super::compared_clock::{ClockPeers, Compared, ahead};
use crate::clock::SharedClock;
use crate::ids::{NodeId, UnixMs};
use crate::limits;
use crate::model::error::{Code, Error};

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A span of time for a person, to the nearest unit: what was measured over the network as a millisecond less than
/// thirty days is thirty days.
pub(crate) struct ShownDuration(pub u64);

impl fmt::Display for ShownDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nearest = |unit_ms: u64| (self.0 / unit_ms).saturating_add(u64::from(self.0 % unit_ms >= unit_ms / 2));
        match self.0 {
            ms if ms < 120 * SECOND_MS => write!(f, "{} s", nearest(SECOND_MS)),
            ms if ms < 120 * MINUTE_MS => write!(f, "{} minutes", nearest(MINUTE_MS)),
            ms if ms < 48 * HOUR_MS => write!(f, "{} hours", nearest(HOUR_MS)),
            _ => write!(f, "{} days", nearest(DAY_MS)),
        }
    }
}

fn apart(ahead_ms: i64) -> String {
    format!("{} {}", ShownDuration(ahead_ms.unsigned_abs()), if ahead_ms > 0 { "behind" } else { "ahead of" })
}

/// When the clock was last known to be right.
#[derive(Clone, Copy)]
struct Anchor {
    wall_ms: UnixMs,
    even_ms: u64,
}

struct ClockState {
    anchor: Anchor,
    /// Most of the voters have agreed since the start.
    confirmed: bool,
    /// Most of the voters disagree.
    wrong: Option<String>,
    told: bool,
    skews: ClockSkews,
}

pub(crate) struct AgreedClock {
    clock: SharedClock,
    inner: Mutex<ClockState>,
    /// The clock has jumped: compare it now.
    look: Notify,
}

impl AgreedClock {
    pub(crate) fn new(clock: SharedClock) -> Arc<Self> {
        let anchor = Anchor { wall_ms: clock.now_ms(), even_ms: clock.even_ms() };
        let inner = ClockState { anchor, confirmed: false, wrong: None, told: false, skews: ClockSkews::default() };
        Arc::new(Self { clock, inner: Mutex::new(inner), look: Notify::new() })
    }

    pub(crate) fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// How far the clock has jumped since it was known to be right, if it has.
    fn jump(&self, anchor: Anchor, now_ms: UnixMs) -> Option<i64> {
        let even = anchor.wall_ms.plus_ms(self.clock.even_ms().saturating_sub(anchor.even_ms));
        Some(ahead(now_ms, even)).filter(|jump| jump.unsigned_abs() > limits::NODE_CLOCK_APART_MS)
    }

    fn now(&self) -> Result<UnixMs, String> {
        let now_ms = self.clock.now_ms();
        let inner = self.inner.lock();
        if let Some(why) = &inner.wrong {
            return Err(why.clone());
        }
        match self.jump(inner.anchor, now_ms) {
            None => Ok(now_ms),
            Some(jump) => {
                self.look.notify_one();
                let way = if jump > 0 { "forward" } else { "back" };
                Err(format!(
                    "this node's clock has jumped {way} by {}: it serves nothing until the other nodes confirm that",
                    ShownDuration(jump.unsigned_abs())
                ))
            }
        }
    }

    /// The time for a command of this node.
    pub(crate) fn stamp(&self) -> Result<UnixMs, Error> {
        self.now().map_err(|why| Error::new(Code::Unavailable, why))
    }

    /// Why this node serves nothing.
    pub(crate) fn objection(&self) -> Option<String> {
        self.now().err()
    }

    /// Whether this node may take commands as the leader.
    pub(crate) fn may_lead(&self) -> bool {
        self.now().is_ok() && self.inner.lock().confirmed
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.inner.lock().confirmed
    }

    /// On the leader: what is wrong with the time of a command that another node stamped. It may have waited for a
    /// leader for as long as requests may.
    pub(crate) fn check(&self, from: NodeId, at_ms: UnixMs, waited: Duration) -> Result<(), Error> {
        let now_ms = self.stamp()?;
        let ahead = ahead(at_ms, now_ms);
        let waited = i64::try_from(waited.as_millis()).unwrap_or(i64::MAX);
        let most = limits::NODE_CLOCK_APART_MS.cast_signed();
        if ahead <= most && ahead >= -most.saturating_add(waited) {
            return Ok(());
        }
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        let why = format!(
            "the clock of node {from} is {} {way} the leader's: nothing was written",
            ShownDuration(ahead.unsigned_abs())
        );
        Err(Error::new(Code::Unavailable, why))
    }

    /// How far a node's clock was ahead of most of the voters' when they were compared last.
    pub(crate) fn ahead_of_most(&self, group: &ClockPeers, node: NodeId) -> Option<i64> {
        self.inner.lock().skews.of(group, node)
    }

    /// Resolves when the clock should be compared at once.
    pub(crate) async fn wants_comparison(&self) {
        self.look.notified().await;
    }

    /// After a round of comparisons. Gives a voter that most agree with, if this node's clock is wrong.
    pub(crate) fn judge(&self, group: &ClockPeers, round: &[Compared]) -> Option<NodeId> {
        let voter = |node: NodeId| group.voters.contains(&node);
        let (far, near): (Vec<Compared>, Vec<Compared>) =
            round.iter().copied().filter(|other| voter(other.node)).partition(|other| other.is_far());
        let agree = near.len() + usize::from(voter(group.me));
        let most = agree * 2 > group.voters.len();
        let beside_leader = group.leader == Some(group.me) || near.iter().any(|other| group.leader == Some(other.node));
        let now_ms = self.clock.now_ms();
        let mut inner = self.inner.lock();
        inner.skews.note(group, round);
        let jumped = self.jump(inner.anchor, now_ms).is_some();
        let tied = !far.is_empty() && far.len() == agree;
        let wrong = far.len() > agree || (tied && (jumped || !beside_leader || !inner.confirmed));
        if wrong {
            let others: Vec<String> = far.iter().map(|other| other.node.to_string()).collect();
            let ahead = far.first().map_or(0, |other| other.ahead_ms);
            let why = format!(
                "this node's clock is {} the clocks of the other nodes ({}): it serves nothing until that is mended",
                apart(ahead),
                others.join(", ")
            );
            if !std::mem::replace(&mut inner.told, true) {
                tracing::error!("{why}");
            }
            inner.wrong = Some(why);
            return far.first().map(|other| other.node);
        }
        // A new time is not taken over while nobody confirms it.
        if !most && (jumped || inner.wrong.is_some()) {
            return None;
        }
        if jumped || std::mem::take(&mut inner.told) {
            tracing::info!("this node's clock agrees with the other nodes'");
        }
        inner.wrong = None;
        inner.confirmed |= most && !group.voters.is_empty();
        inner.anchor = Anchor { wall_ms: now_ms, even_ms: self.clock.even_ms() };
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::Clock;

    /// A clock that can be set, on a machine whose time goes on evenly.
    #[derive(Default)]
    struct Machine {
        wall: AtomicU64,
        even: AtomicU64,
    }

    impl Machine {
        fn pass(&self, ms: u64) {
            self.wall.fetch_add(ms, Ordering::SeqCst);
            self.even.fetch_add(ms, Ordering::SeqCst);
        }

        fn set(&self, ms: u64) {
            self.wall.store(ms, Ordering::SeqCst);
        }
    }

    impl Clock for Machine {
        fn now_ms(&self) -> UnixMs {
            UnixMs(self.wall.load(Ordering::SeqCst))
        }

        fn even_ms(&self) -> u64 {
            self.even.load(Ordering::SeqCst)
        }
    }

    const NOW: u64 = 1_800_000_000_000;
    const MONTH: u64 = 30 * 86_400_000;

    fn machine() -> (Arc<Machine>, Arc<AgreedClock>) {
        let machine = Arc::new(Machine::default());
        machine.set(NOW);
        (machine.clone(), AgreedClock::new(machine))
    }

    fn group(leader: u64) -> ClockPeers {
        ClockPeers { me: NodeId(1), voters: [1, 2, 3].map(NodeId).to_vec(), leader: Some(NodeId(leader)) }
    }

    fn other(node: u64, ahead_ms: i64) -> Compared {
        Compared { node: NodeId(node), ahead_ms, unsure_ms: 1 }
    }

    #[test]
    fn a_span_is_shown_to_the_nearest_unit() {
        let shown = |ms| ShownDuration(ms).to_string();
        assert_eq!([shown(0), shown(499), shown(500), shown(90_400)], ["0 s", "0 s", "1 s", "90 s"]);
        assert_eq!([shown(2 * MINUTE_MS), shown(90 * MINUTE_MS - 1)], ["2 minutes", "90 minutes"]);
        assert_eq!([shown(2 * HOUR_MS), shown(5 * HOUR_MS - 1)], ["2 hours", "5 hours"]);
        for measured in [30 * DAY_MS - 700, 30 * DAY_MS, 30 * DAY_MS + 700] {
            assert_eq!(shown(measured), "30 days");
        }
        assert_eq!(shown(u64::MAX), "213503982335 days");
    }

    #[test]
    fn a_jump_is_noticed_at_once_and_taken_over_when_most_confirm_it() {
        let (machine, clock) = machine();
        assert!(!clock.may_lead(), "nobody has confirmed it");
        assert_eq!(clock.judge(&group(1), &[other(2, 3), other(3, -900)]), None);
        assert!(clock.may_lead());
        machine.pass(4_000);
        assert_eq!(clock.stamp(), Ok(UnixMs(NOW + 4_000)));
        machine.set(NOW + MONTH);
        let why = clock.stamp().unwrap_err();
        assert!(why.code == Code::Unavailable && why.message.contains("jumped forward by 30 days"), "{why}");
        assert!(!clock.may_lead());
        // Nobody answers: the new time is not taken over.
        assert_eq!(clock.judge(&group(1), &[]), None);
        assert!(clock.stamp().is_err());
        // They have jumped, too (the shop's time server was wrong, and is right again).
        assert_eq!(clock.judge(&group(1), &[other(2, 10)]), None);
        assert_eq!(clock.stamp(), Ok(UnixMs(NOW + MONTH)));
    }

    #[test]
    fn whoever_is_apart_from_most_serves_nothing_and_says_how_far() {
        let (_, clock) = machine();
        assert_eq!(clock.judge(&group(1), &[other(2, -6_000), other(3, -6_000)]), Some(NodeId(2)));
        let why = clock.objection().unwrap();
        assert!(why.contains("6 s ahead of the clocks of the other nodes (2, 3)"), "{why}");
        assert!(!clock.may_lead());
        // Not yet mended while nobody says so.
        assert_eq!(clock.judge(&group(2), &[]), None);
        assert!(clock.objection().is_some());
        assert_eq!(clock.judge(&group(2), &[other(2, 0), other(3, 1)]), None);
        assert_eq!((clock.objection(), clock.may_lead()), (None, true));
        // One wrong one among three is the others' affair, a slow answer nobody's.
        assert_eq!(clock.judge(&group(2), &[other(2, 0), other(3, 9_000_000)]), None);
        let slow = Compared::new(NodeId(2), UnixMs(NOW + 7_000), UnixMs(NOW), Duration::from_secs(6));
        assert!(!slow.is_far() && clock.judge(&group(2), &[slow]).is_none());
        assert!(clock.may_lead());
    }

    #[test]
    fn between_two_the_leader_is_right_if_it_was_before() {
        let (machine, clock) = machine();
        // Just started: nobody can tell.
        assert_eq!(clock.judge(&group(1), &[other(2, 10_000)]), Some(NodeId(2)));
        clock.judge(&group(1), &[other(2, 0), other(3, 0)]);
        assert_eq!(clock.judge(&group(1), &[other(2, 10_000)]), None);
        assert!(clock.may_lead());
        assert_eq!(clock.judge(&group(2), &[other(2, 10_000)]), Some(NodeId(2)), "the other one leads");
        clock.judge(&group(1), &[other(2, 0), other(3, 0)]);
        machine.set(NOW - MONTH);
        assert_eq!(clock.judge(&group(1), &[other(2, MONTH as i64)]), Some(NodeId(2)), "its own clock has jumped");
    }

    #[test]
    fn the_leader_takes_no_time_further_than_five_seconds_from_its_own() {
        let (_, clock) = machine();
        let waited = Duration::from_secs(5);
        for (at_ms, taken) in [
            (NOW, true),
            (NOW + 5_000, true),
            (NOW + 5_001, false),
            (NOW + MONTH, false),
            (u64::MAX, false),
            // It may have waited for a leader.
            (NOW - 10_000, true),
            (NOW - 10_001, false),
            (0, false),
        ] {
            let checked = clock.check(NodeId(3), UnixMs(at_ms), waited);
            assert_eq!(checked.is_ok(), taken, "{at_ms}");
            if let Err(error) = checked {
                assert!(error.message.contains("node 3") && error.code.row().retry == crate::model::error::Retry::Safe);
            }
        }
    }
}
