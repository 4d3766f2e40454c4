//! The clock behind one session: how far it is from the node's, and what that makes of the times its client sends.
//!
//! It is measured from the times of what is sent as it happens (`heartbeat`, `device_online`), never from changes, which
//! may have waited in a queue. A correction is made here, before a command is proposed: what is applied is the same on
//! every node.

use crate::limits;
use crate::model::time::IsoTime;
use crate::proto::{CriticalEvent, DataUpdate};

/// Measurements that count: the middle one is taken, so that a late packet does not.
const SAMPLES: usize = 5;
/// A clock that is further away may be no clock (a constant, a time of a record): it must be seen to go on.
const PLAUSIBLE_MS: i64 = 24 * 60 * 60 * 1_000;
/// Offsets from UTC are multiples of this, and no further than 14 hours away.
const OFFSET_STEP_MS: i64 = 15 * 60 * 1_000;
const OFFSET_MAX_MS: i64 = 14 * 60 * 60 * 1_000;
/// How far a local time may be from such a multiple to tell which one it is.
const OFFSET_NEAR_MS: u64 = 30_000;

/// How a client's time was taken, if not as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockCorrection {
    /// It has no offset, and the device's is not known: the change counts as made now.
    Now,
    /// By what the clock was measured to be ahead or behind, or by the device's offset from UTC.
    Corrected,
}

impl ClockCorrection {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Corrected => "corrected",
        }
    }
}

/// The last measurements of one kind, newest last.
#[derive(Clone, Debug, Default)]
struct Samples {
    /// Sent time minus the node's, in milliseconds.
    ahead: Vec<i64>,
    last_sent: Option<i64>,
    /// Two different times were as far ahead: it is a clock.
    goes_on: bool,
}

impl Samples {
    fn add(&mut self, sent: i64, now: i64) {
        let ahead = sent.saturating_sub(now);
        if self.last_sent.replace(sent) == Some(sent) {
            return;
        }
        let agrees = |last: &i64| ahead.abs_diff(*last) <= limits::CLOCK_SKEW_MS;
        self.goes_on |= self.ahead.last().is_some_and(agrees);
        if self.ahead.len() == SAMPLES {
            self.ahead.remove(0);
        }
        self.ahead.push(ahead);
    }

    /// The middle one. A delay on the way makes a clock seem behind: of an even number, the one further ahead.
    fn ahead(&self) -> Option<i64> {
        let mut sorted = self.ahead.clone();
        sorted.sort_unstable();
        let middle = sorted.get(sorted.len() / 2).copied()?;
        (self.goes_on || middle.abs() <= PLAUSIBLE_MS).then_some(middle)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ClientClock {
    /// Of times with an offset.
    absolute: Samples,
    /// Of times without one, read as UTC.
    local: Samples,
}

impl ClientClock {
    /// A time that was sent as it was.
    pub(crate) fn measure(&mut self, sent: IsoTime, now_ms: u64) {
        let samples = if sent.is_local { &mut self.local } else { &mut self.absolute };
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        samples.add(ms(sent.unix_ms().get()), ms(now_ms));
    }

    /// How far its clock is ahead (or, negative, behind), in milliseconds, if that is known and worth telling.
    pub(crate) fn ahead_ms(&self) -> Option<i64> {
        let ahead = self.absolute.ahead().or_else(|| Some(self.local.ahead()?.saturating_sub(self.offset_ms()?)))?;
        (ahead.unsigned_abs() > limits::CLOCK_SKEW_MS).then_some(ahead)
    }

    /// The device's offset from UTC, if its local times tell.
    fn offset_ms(&self) -> Option<i64> {
        // A clock that is known to be wrong is wrong in its local times, too.
        let ahead = self.local.ahead()?.saturating_sub(self.absolute.ahead().unwrap_or(0));
        let offset = ahead.saturating_add(OFFSET_STEP_MS / 2).div_euclid(OFFSET_STEP_MS).checked_mul(OFFSET_STEP_MS)?;
        (offset.abs() <= OFFSET_MAX_MS && ahead.abs_diff(offset) <= OFFSET_NEAR_MS).then_some(offset)
    }

    /// What a time counts as, and how it was taken if not as it was sent. `None`: as now.
    pub(crate) fn take(&self, sent: IsoTime) -> (Option<u64>, Option<ClockCorrection>) {
        let ahead = self.ahead_ms();
        let wrong_by = match (sent.is_local, self.offset_ms()) {
            (false, _) => match ahead {
                None => return (Some(sent.unix_ms().get()), None),
                Some(ahead) => ahead,
            },
            (true, Some(offset)) => offset.saturating_add(ahead.unwrap_or(0)),
            (true, None) => return (None, Some(ClockCorrection::Now)),
        };
        let ms = sent.ms.saturating_sub(wrong_by);
        (Some(IsoTime { ms, is_local: false }.unix_ms().get()), Some(ClockCorrection::Corrected))
    }

    /// Takes the time of a change, and keeps what was sent beside it if it is another one.
    pub(crate) fn stamp(&self, update: &mut DataUpdate) -> Option<ClockCorrection> {
        let (ms, taken) = self.take(IsoTime::parse(&update.timestamp_as_sent)?);
        update.timestamp_ms = ms;
        if taken.is_none() {
            update.timestamp_as_sent.clear();
        }
        taken
    }

    pub(crate) fn stamp_event(&self, event: &mut CriticalEvent) {
        let sent = event.timestamp_ms.and_then(|ms| i64::try_from(ms).ok());
        event.timestamp_ms = sent.and_then(|ms| self.take(IsoTime { ms, is_local: false }).0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_341_600_000;
    const HOUR: i64 = 3_600_000;

    fn time(ahead: i64, is_local: bool) -> IsoTime {
        IsoTime { ms: NOW as i64 + ahead, is_local }
    }

    fn measured(samples: &[(i64, bool)]) -> ClientClock {
        let mut clock = ClientClock::default();
        for (at, (ahead, is_local)) in samples.iter().enumerate() {
            // A heartbeat every second.
            let now = NOW + 1_000 * at as u64;
            clock.measure(IsoTime { ms: now as i64 + ahead, is_local: *is_local }, now);
        }
        clock
    }

    #[test]
    fn a_time_is_taken_as_sent_unless_the_clock_is_known_to_be_wrong() {
        let ahead = 180_000;
        for clock in [measured(&[]), measured(&[(1_900, false)]), measured(&[(-2_000, false)])] {
            assert_eq!(clock.ahead_ms(), None);
            assert_eq!(clock.take(time(ahead, false)), (Some(NOW + 180_000), None));
        }
        let clock = measured(&[(ahead, false)]);
        assert_eq!(clock.ahead_ms(), Some(ahead));
        assert_eq!(clock.take(time(ahead, false)), (Some(NOW), Some(ClockCorrection::Corrected)));
        // Also a change that waited in its queue for an hour.
        assert_eq!(clock.take(time(ahead - HOUR, false)), (Some(NOW - HOUR as u64), Some(ClockCorrection::Corrected)));
    }

    #[test]
    fn one_late_packet_changes_nothing_and_a_clock_that_is_set_is_followed() {
        let mut samples = vec![(180_000, false), (180_020, false), (120_000, false)];
        assert_eq!(measured(&samples).ahead_ms(), Some(180_000));
        samples.extend([(0, false); 3]);
        assert_eq!(measured(&samples).ahead_ms(), None);
    }

    #[test]
    fn a_time_that_never_goes_on_is_no_clock() {
        let mut clock = ClientClock::default();
        let year_1970 = IsoTime { ms: 7_000, is_local: false };
        clock.measure(year_1970, NOW);
        clock.measure(year_1970, NOW + 1_000);
        assert_eq!(clock.ahead_ms(), None);
        clock.measure(IsoTime { ms: 9_000, ..year_1970 }, NOW + 2_000);
        assert_eq!(clock.ahead_ms(), Some(7_000 - NOW as i64));
        assert_eq!(clock.take(year_1970), (Some(NOW), Some(ClockCorrection::Corrected)));
    }

    #[test]
    fn a_local_time_is_now_until_the_offset_is_known() {
        let india = 5 * HOUR + HOUR / 2;
        assert_eq!(measured(&[]).take(time(india, true)), (None, Some(ClockCorrection::Now)));
        let clock = measured(&[(india - 40, true)]);
        assert_eq!((clock.offset_ms(), clock.ahead_ms()), (Some(india), None));
        let an_hour_ago = time(india - HOUR, true);
        assert_eq!(clock.take(an_hour_ago), (Some(NOW - HOUR as u64), Some(ClockCorrection::Corrected)));
        // Ten minutes ahead, or a quarter of an hour east and five behind? Nobody knows.
        assert_eq!(measured(&[(600_000, true)]).take(time(0, true)).1, Some(ClockCorrection::Now));
        // Twenty seconds ahead in local times, too.
        let clock = measured(&[(-5 * HOUR + 20_000, true)]);
        assert_eq!(clock.ahead_ms(), Some(20_000));
        assert_eq!(clock.take(time(-5 * HOUR + 20_000, true)), (Some(NOW), Some(ClockCorrection::Corrected)));
        // A clock that is known to be three minutes ahead is so in local times.
        let clock = measured(&[(180_000, false), (india + 180_000, true)]);
        assert_eq!(clock.take(time(india + 180_000, true)), (Some(NOW), Some(ClockCorrection::Corrected)));
    }

    #[test]
    fn what_was_sent_is_kept_when_it_was_not_taken() {
        let sent = |text: &str| DataUpdate { timestamp_as_sent: text.into(), ..DataUpdate::default() };
        let mut update = sent("2026-11-22T09:00:00Z");
        assert_eq!(ClientClock::default().stamp(&mut update), None);
        assert_eq!((update.timestamp_ms, update.timestamp_as_sent.as_str()), (Some(NOW - HOUR as u64), ""));
        let mut update = sent("2026-11-22T09:00:00");
        assert_eq!(ClientClock::default().stamp(&mut update), Some(ClockCorrection::Now));
        assert_eq!((update.timestamp_ms, update.timestamp_as_sent.as_str()), (None, "2026-11-22T09:00:00"));
        let mut update = sent("");
        assert_eq!((ClientClock::default().stamp(&mut update), update.timestamp_ms), (None, None));
    }

    #[test]
    fn no_time_overflows() {
        for ms in [i64::MIN, -1, 0, i64::MAX] {
            for is_local in [false, true] {
                let mut clock = ClientClock::default();
                let sent = IsoTime { ms, is_local };
                for now in [0, NOW, u64::MAX] {
                    clock.measure(sent, now);
                    clock.measure(IsoTime { ms: ms / 2, is_local: !is_local }, now);
                    let _ = (clock.take(sent), clock.ahead_ms());
                }
            }
        }
    }
}
