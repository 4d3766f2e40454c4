//! What devices wrote to a whole node over REST, what of it was acknowledged, and whether the node still has it.

use std::collections::BTreeMap;

use serde_json::Value;
use tillsync::client::rest::FeedChange;

/// A write: to which record, and the number that its data carries.
pub(super) type NumberedWrite = (i64, u64);

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Sent, whatever became of it.
    sent: BTreeMap<NumberedWrite, u64>,
    /// Acknowledged, with their seq.
    acknowledged: BTreeMap<NumberedWrite, u64>,
    /// What the node gave out last, in the order of seq: all of that was committed.
    given: Vec<(u64, NumberedWrite)>,
    pub checked: u64,
    pub opens: u64,
    pub violations: Vec<String>,
}

impl Ledger {
    pub(super) fn send(&mut self, write: NumberedWrite) {
        *self.sent.entry(write).or_default() += 1;
    }

    pub(super) fn acknowledge(&mut self, write: NumberedWrite, seq: Option<u64>) {
        match seq {
            Some(seq) => drop(self.acknowledged.insert(write, seq)),
            None => self.violations.push(format!("the write {write:?} was acknowledged without a seq")),
        }
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// The whole change feed after a start.
    pub(super) fn check(&mut self, feed: &[FeedChange]) {
        self.opens += 1;
        let mut found: BTreeMap<NumberedWrite, u64> = BTreeMap::new();
        let mut given = Vec::with_capacity(feed.len());
        for (expected, change) in (1..).zip(feed) {
            if change.seq != expected {
                self.violations.push(format!("the feed has {} in the place of {expected}", change.seq));
                return;
            }
            let number = change.data.get("number").and_then(Value::as_u64).unwrap_or(u64::MAX);
            let write = (change.record_id, number);
            given.push((change.seq, write));
            if !self.sent.contains_key(&write) {
                self.violations.push(format!("change {expected} is none that was sent: {change:?}"));
            }
            if let Some(first) = found.insert(write, change.seq) {
                self.violations.push(format!("the write {write:?} was applied twice: {first} and {expected}"));
            }
        }
        let lost: Vec<_> = self.acknowledged.iter().filter(|(write, seq)| found.get(*write) != Some(*seq)).collect();
        if !lost.is_empty() {
            let few: Vec<_> = lost.iter().take(3).map(|(write, seq)| (*write, *seq, found.get(*write))).collect();
            self.violations.push(format!(
                "{} acknowledged writes of {} are lost: {few:?}",
                lost.len(),
                self.acknowledged.len()
            ));
        }
        if given.get(..self.given.len()) != Some(&self.given[..]) {
            self.violations.push(format!("of {} changes given out before, some are others now", self.given.len()));
        }
        self.checked += self.acknowledged.len() as u64;
        self.given = given;
    }

    /// What a record must be now: the number that its last change carries.
    pub(super) fn records(&self) -> BTreeMap<i64, u64> {
        self.given.iter().map(|(_, write)| *write).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(seq: u64, record_id: i64, number: u64) -> FeedChange {
        let feed = json!({
            "seq": seq, "table_name": "t", "record_id": record_id, "operation": "insert", "data": {"number": number},
        });
        serde_json::from_value(feed).unwrap()
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        (1..=4).for_each(|n| ledger.send((n, 0)));
        ledger.acknowledge((1, 0), Some(1));
        ledger.acknowledge((3, 0), Some(2));
        ledger
    }

    #[test]
    fn what_is_there_is_no_violation() {
        let mut ledger = ledger();
        ledger.check(&[change(1, 1, 0), change(2, 3, 0)]);
        ledger.check(&[change(1, 1, 0), change(2, 3, 0), change(3, 4, 0)]);
        assert_eq!((ledger.violations.len(), ledger.checked, ledger.records().len()), (0, 4, 3));
    }

    #[test]
    fn each_loss_is_seen() {
        let broken = [
            (vec![change(1, 1, 0)], "lost"),
            (vec![change(1, 1, 0), change(3, 3, 0)], "in the place of 2"),
            (vec![change(1, 3, 0), change(2, 1, 0)], "lost"),
            (vec![change(1, 1, 0), change(2, 3, 0), change(3, 1, 0)], "twice"),
            (vec![change(1, 1, 0), change(2, 3, 0), change(3, 9, 0)], "none that was sent"),
        ];
        for (feed, word) in broken {
            let mut ledger = ledger();
            ledger.check(&feed);
            assert!(ledger.violations.iter().any(|what| what.contains(word)), "{word}: {:?}", ledger.violations);
        }
        let mut ledger = ledger();
        ledger.check(&[change(1, 1, 0), change(2, 3, 0), change(3, 4, 0)]);
        ledger.check(&[change(1, 1, 0), change(2, 3, 0), change(3, 2, 0)]);
        assert!(ledger.violations.iter().any(|what| what.contains("others now")));
    }
}
