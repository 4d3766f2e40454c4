//! The applied time is brought back where a wrong clock took it ahead.
//!
//! The applied time never goes back by itself, so one command from next month would stop it for a month: every change
//! until then has the same time, and what was stamped in between wins over all that honest devices write. Nodes no
//! longer let that happen, but a cluster may come from a version that did. An operator orders it back; the order is in
//! the audit log, and it stays in the state what it means for what was written before:
//!
//! - A record or a change counts as written at the moment of the correction at the latest ([`Corrections::of_change`]):
//!   an honest device's next write wins again, and times grow with the log, as those who search it expect.
//! - A time that a client was told in between stands for the correction ([`Corrections::of_client`]): what was
//!   committed after it has smaller times, and must not be missed. Such a client is sent a little too much.

use self::key::KEY;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use super::time::iso;
use crate::ids::{AuditId, Seq, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Empty, Meta, TimeBack, TimeCorrection};

pub(super) mod key;

/// What the corrections of a cluster mean for times from before them.
#[derive(Clone, Copy, Debug)]
pub struct Corrections<'a>(pub &'a [TimeCorrection]);

impl<'a> From<&'a Meta> for Corrections<'a> {
    fn from(meta: &'a Meta) -> Self {
        Self(&meta.time_corrections)
    }
}

impl Corrections<'_> {
    fn cap(self, ms: UnixMs, before: impl Fn(&TimeCorrection) -> bool) -> UnixMs {
        self.0.iter().filter(|one| before(one)).map(|one| UnixMs(one.to_ms)).fold(ms, UnixMs::min)
    }

    /// A time of change `seq`, its own or that at which it was committed.
    pub fn of_change(self, seq: Seq, ms: UnixMs) -> UnixMs {
        self.cap(ms, |one| seq <= Seq(one.head_seq))
    }

    /// The time of a row of the audit log.
    pub fn of_audit(self, id: AuditId, ms: UnixMs) -> UnixMs {
        self.cap(ms, |one| id <= AuditId(one.audit_head))
    }

    /// A time that a client says it has everything up to.
    pub fn of_client(self, ms: UnixMs) -> UnixMs {
        let told = |one: &TimeCorrection| {
            UnixMs(one.to_ms) < ms && ms <= UnixMs(one.from_ms).plus_ms(limits::CLIENT_CLOCK_AHEAD_MS)
        };
        self.cap(ms, told)
    }
}

impl State {
    pub(super) fn corrections(&self) -> Corrections<'_> {
        Corrections::from(&*self.meta)
    }

    /// The applied time is that of the command, unless it is later already.
    pub(super) fn advance_time(&mut self, at_ms: UnixMs) {
        let now_ms = self.meta.time(KEY).now_ms;
        *now_ms = at_ms.get().max(*now_ms);
    }

    /// The time is that of the command from now on.
    pub(super) fn time_back(&mut self, c: &TimeBack) -> ApplyResult {
        let (from_ms, to_ms) = (self.meta.now(), self.txn.at_ms);
        if from_ms.ms_since(to_ms) <= limits::NODE_CLOCK_APART_MS {
            return refuse(
                Code::Conflict,
                "the cluster's time is not ahead of the clocks: there is nothing to bring back",
            );
        }
        if self.meta.time_corrections.len() >= limits::TIME_CORRECTIONS {
            let why =
                format!("the time was brought back {} times: no more can be remembered", limits::TIME_CORRECTIONS);
            return refuse(Code::Unavailable, why);
        }
        let (head_seq, audit_head) = (self.meta.head_seq, self.meta.audit_head);
        let fields = self.meta.time(KEY);
        fields.time_corrections.push(TimeCorrection {
            from_ms: from_ms.get(),
            to_ms: to_ms.get(),
            head_seq,
            audit_head,
        });
        *fields.now_ms = to_ms.get();
        self.cap_compacted_time(to_ms);
        self.cap_election_times(to_ms);
        self.end_pairings_after(to_ms);
        self.cap_audit_times(to_ms);
        let details = format!("The cluster's time was brought back from {} to {}", iso(from_ms), iso(to_ms));
        self.audit("time_back", "correct", false, &c.by, details);
        self.notify_coordinator();
        Ok(Reply::Done(Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::AuditFilter;
    use super::super::properties::{StateUnderTest, data, online, put, told};
    use super::super::read::seq_of_time;
    use super::*;
    use crate::model::state::into_result;
    use crate::proto::command::Intent;
    use crate::proto::{Operation, Role};

    const MONTH: u64 = 30 * 86_400_000;

    fn write(b: &mut StateUnderTest, device: &str, id: i64, json: &str) {
        let timestamp_ms = Some(b.now);
        b.ok(Intent::DataUpdate(crate::proto::DataUpdate { timestamp_ms, ..put(device, id, Operation::Update, json) }));
    }

    fn back(b: &mut StateUnderTest) -> Result<(), Code> {
        let order = Intent::TimeBack(TimeBack { by: "admin".into() });
        into_result(b.run(order).0).map(|_| ()).map_err(|error| error.code)
    }

    #[test]
    fn after_it_honest_devices_win_again_and_nobody_misses_a_change() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Client));
        b.ok(online("b", 0, Role::Client));
        write(&mut b, "a", 1, "{\"n\":1}");
        let honest = b.now;
        assert_eq!(back(&mut b), Err(Code::Conflict));
        b.now += MONTH;
        write(&mut b, "a", 1, "{\"n\":2}");
        let (bad, seen) = (b.state.meta().now_ms, b.state.meta().head_seq);
        b.now = honest;
        // The time stands still, and what was stamped next month wins over what comes now.
        write(&mut b, "b", 1, "{\"n\":3}");
        assert_eq!((b.state.meta().now_ms, data(&b, 1).as_deref()), (bad, Some("{\"n\":2}")));
        assert_eq!(back(&mut b), Ok(()));
        assert!(b.state.meta().now_ms < honest + 1_000);
        write(&mut b, "b", 1, "{\"n\":4}");
        assert_eq!(data(&b, 1).as_deref(), Some("{\"n\":4}"));
        assert!(b.state.meta().now_ms < honest + 1_000);
        let head = b.state.meta().head();
        // Whoever was told a time of next month is sent all that came since; an honest time stands for its place.
        let corrections = b.state.corrections();
        for (ms, most) in [(bad, seen), (b.now, head.get() - 1), (honest - 1_000, 0)] {
            let at =
                seq_of_time(&b.tables, Seq(0), head, corrections.of_client(UnixMs(ms)), corrections).unwrap().get();
            assert!(at <= most, "{ms}: {at}");
        }
        assert_eq!(seq_of_time(&b.tables, Seq(0), head, UnixMs(b.now + 10_000), corrections).unwrap(), head);
        // Listings by date go on, and the correction is in them.
        let since = AuditFilter { from_ms: Some(UnixMs(b.state.meta().now_ms - 30)), ..AuditFilter::default() };
        assert!(b.state.audit_index().page(&since, 100, 0).0 >= 2);
        let next_month = AuditFilter { from_ms: Some(UnixMs(honest + MONTH / 2)), ..AuditFilter::default() };
        assert_eq!(b.state.audit_index().page(&next_month, 100, 0).0, 0);
        let again = State::open(Box::new(b.tables.clone())).unwrap();
        assert_eq!(told(&again), told(&b.state));
    }

    #[test]
    fn a_code_of_next_month_does_not_live_until_then() {
        let mut b = StateUnderTest::new();
        let ask = |code: &str| {
            let secret_hash = vec![7; 32].into();
            Intent::PairAsk(crate::proto::PairAsk { code: code.into(), secret_hash, ..Default::default() })
        };
        b.now += MONTH;
        b.ok(ask("AAAAAA22"));
        b.now -= MONTH;
        assert_eq!(back(&mut b), Ok(()));
        b.ok(ask("AAAAAA33"));
        let live = |state: &State, code: &str| state.pairing(code, UnixMs(b.now)).is_some();
        let again = State::open(Box::new(b.tables.clone())).unwrap();
        for state in [&b.state, &again] {
            assert_eq!((live(state, "AAAAAA22"), live(state, "AAAAAA33")), (false, true));
        }
    }

    #[test]
    fn so_many_corrections_are_remembered() {
        let mut b = StateUnderTest::new();
        for _ in 0..limits::TIME_CORRECTIONS {
            b.now += MONTH;
            b.ok(online("a", 0, Role::Client));
            b.now -= MONTH;
            assert_eq!(back(&mut b), Ok(()));
        }
        b.now += MONTH;
        b.ok(online("a", 0, Role::Client));
        b.now -= MONTH;
        assert_eq!(back(&mut b), Err(Code::Unavailable));
    }
}
