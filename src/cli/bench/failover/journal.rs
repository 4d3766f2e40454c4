//! What the clients saw, and when.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::ms;

/// The outage begins within this time: what was on its way when the fault came is still answered.
const BEGINS: Duration = Duration::from_millis(250);

/// An acknowledged write.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckedWrite {
    pub at: Instant,
    pub client: u32,
    pub record: i64,
    pub seq: u64,
}

#[derive(Debug, Default)]
pub(super) struct WriteJournal {
    /// In the order in which they came.
    pub acked: Vec<AckedWrite>,
    /// Requests that were answered with an error, and when.
    pub refused: Vec<(Instant, String)>,
    /// Who heard of which master, and when: the node of the client.
    pub elected: Vec<(Instant, usize)>,
}

impl WriteJournal {
    /// The longest pause between two acknowledgements of these clients around `at` or right after it, and how long
    /// after `at` it ended.
    pub(super) fn pause_after(&self, at: Instant, of: impl Fn(u32) -> bool) -> (Duration, Duration) {
        let mut last: Option<Instant> = None;
        let (mut longest, mut end) = (Duration::ZERO, at);
        for ack in self.acked.iter().filter(|ack| of(ack.client)) {
            if let Some(last) = last
                && ack.at > at
                && last <= at + BEGINS
                && ack.at - last > longest
            {
                (longest, end) = (ack.at - last, ack.at);
            }
            last = Some(ack.at);
        }
        (longest, end - at)
    }
}

/// Some durations, as figures.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<f64>);

impl Times {
    pub(super) fn add(&mut self, duration: Duration) {
        self.0.push(ms(duration));
        self.0.sort_by(f64::total_cmp);
    }

    pub(super) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => 0.0,
            n if n % 2 == 0 => f64::midpoint(self.0[middle - 1], self.0[middle]),
            _ => self.0[middle],
        }
    }

    pub(super) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    pub(super) fn most(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }

    pub(super) fn json(&self) -> Value {
        json!({"median_ms": self.median(), "min_ms": self.least(), "max_ms": self.most()})
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "median {:.1}, min {:.1}, max {:.1}", self.median(), self.least(), self.most())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_the_longest_that_ends_after_the_fault() {
        let start = Instant::now();
        let mut journal = WriteJournal::default();
        // An acknowledgement that was on its way when the fault came is not the end of the outage.
        for (at, client) in [(0, 0), (40, 1), (101, 0), (480, 1), (490, 0), (500, 0), (2_000, 0), (2_001, 1)] {
            let at = start + Duration::from_millis(at);
            journal.acked.push(AckedWrite { at, client, record: 0, seq: 0 });
        }
        let fault = start + Duration::from_millis(100);
        let all = journal.pause_after(fault, |_| true);
        assert_eq!(all, (Duration::from_millis(379), Duration::from_millis(380)));
        assert_eq!(journal.pause_after(fault, |client| client == 1).1, Duration::from_millis(380));
        assert_eq!(journal.pause_after(fault, |client| client == 0).1, Duration::from_millis(390));
    }

    #[test]
    fn figures_are_of_all_that_was_added() {
        let mut times = Times::default();
        for ms in [30, 10, 20, 40] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!((times.least(), times.median(), times.most()), (10.0, 25.0, 40.0));
    }
}
