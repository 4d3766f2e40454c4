//! What happened, as clients and a monitor saw it: the only thing that the checkers know.
//!
//! A history is a list of lines; on disk it is JSON, one line each, so that a run can be checked again later
//! (`chaos check`). Order is told by `tick`, a number that grows with every event of the run; microseconds are for people.

mod attack;
mod operations;
mod shown;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

pub(crate) use attack::{AttackKind, Attacked, HonestFailure, NodeUse};
pub(crate) use operations::{Op, OpOutcome, OpRequest, Order, Ordered, QueuePlace};
pub(crate) use shown::{
    ConflictHeld, FinalState, HeldRecord, LeaderClaim, NumberedToken, PageTold, Sample, SessionTold, ShownChange,
    ShownElection, ShownRecord, Store, TableAudit, TwinSeen,
};

/// A fault, from when to when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultWindow {
    pub name: String,
    pub what: String,
    pub from_us: u64,
    pub to_us: u64,
    /// A majority of nodes was up and connected all the time: writes must go on.
    pub majority: bool,
}

/// Something that must not happen and that no checker has to look for: a node that does not start, no convergence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Anomaly {
    pub us: u64,
    pub what: String,
}

/// A stretch of a run, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub from_us: u64,
    pub to_us: u64,
}

impl Span {
    pub(crate) fn has(self, us: u64) -> bool {
        (self.from_us..=self.to_us).contains(&us)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "line")]
enum HistoryLine {
    Op(Op),
    Session(SessionTold),
    Sample(Sample),
    Led(LeaderClaim),
    Final(FinalState),
    Band(FaultWindow),
    Trouble(Anomaly),
    Store(Store),
    Twin(TwinSeen),
    Order(Order),
    Shown(ShownRecord),
    Attacked(Attacked),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub ops: Vec<Op>,
    pub sessions: Vec<SessionTold>,
    pub samples: Vec<Sample>,
    pub led: Vec<LeaderClaim>,
    pub finals: Vec<FinalState>,
    pub bands: Vec<FaultWindow>,
    pub trouble: Vec<Anomaly>,
    pub stores: Vec<Store>,
    pub twins: Vec<TwinSeen>,
    pub orders: Vec<Order>,
    pub shown: Vec<ShownRecord>,
    /// Of a run with attackers.
    pub attacked: Option<Attacked>,
}

impl History {
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let ops = self.ops.iter().cloned().map(HistoryLine::Op);
        let sessions = self.sessions.iter().cloned().map(HistoryLine::Session);
        let samples = self.samples.iter().cloned().map(HistoryLine::Sample);
        let led = self.led.iter().cloned().map(HistoryLine::Led);
        let finals = self.finals.iter().cloned().map(HistoryLine::Final);
        let bands = self.bands.iter().cloned().map(HistoryLine::Band);
        let trouble = self.trouble.iter().cloned().map(HistoryLine::Trouble);
        let stores = self.stores.iter().cloned().map(HistoryLine::Store);
        let twins = self.twins.iter().cloned().map(HistoryLine::Twin);
        let orders = self.orders.iter().cloned().map(HistoryLine::Order);
        let shown = self.shown.iter().cloned().map(HistoryLine::Shown);
        let first = ops.chain(sessions).chain(samples).chain(led).chain(finals).chain(bands);
        let attacked = self.attacked.iter().cloned().map(HistoryLine::Attacked);
        let last = trouble.chain(stores).chain(twins).chain(orders).chain(shown).chain(attacked);
        for line in first.chain(last) {
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    pub(crate) fn read(from: impl BufRead) -> io::Result<Self> {
        let mut history = Self::default();
        for (number, line) in from.lines().enumerate() {
            let line: HistoryLine = serde_json::from_str(&line?).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("line {} is none of a history: {error}", number + 1))
            })?;
            match line {
                HistoryLine::Op(op) => history.ops.push(op),
                HistoryLine::Session(session) => history.sessions.push(session),
                HistoryLine::Sample(sample) => history.samples.push(sample),
                HistoryLine::Led(led) => history.led.push(led),
                HistoryLine::Final(node) => history.finals.push(node),
                HistoryLine::Band(band) => history.bands.push(band),
                HistoryLine::Trouble(trouble) => history.trouble.push(trouble),
                HistoryLine::Store(store) => history.stores.push(store),
                HistoryLine::Twin(seen) => history.twins.push(seen),
                HistoryLine::Order(order) => history.orders.push(order),
                HistoryLine::Shown(shown) => history.shown.push(shown),
                HistoryLine::Attacked(attacked) => history.attacked = Some(attacked),
            }
        }
        Ok(history)
    }

    /// The change log that all nodes should agree on.
    pub(crate) fn log(&self) -> &[ShownChange] {
        self.finals.first().map_or(&[], |node| &node.changes)
    }

    /// Every change that is known, by seq: those of the log, and those that were compacted but told to somebody.
    pub(crate) fn every_change(&self) -> BTreeMap<u64, &ShownChange> {
        // Beside the log only what is not in it any more: sessions of a long run were told far more than all changes.
        let compacted = self.finals.first().map_or(u64::MAX, |node| node.compacted);
        let told = self.sessions.iter().flat_map(SessionTold::rows).filter(|row| row.seq <= compacted);
        told.chain(self.log()).map(|row| (row.seq, row)).collect()
    }

    /// The final change of this seq.
    pub(crate) fn change(&self, seq: u64) -> Option<&ShownChange> {
        let node = self.finals.first()?;
        let at = seq.checked_sub(node.compacted + 1)?;
        node.changes.get(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let history = crate::invariants::samples::attacked();
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        assert_eq!(History::read(&bytes[..]).unwrap(), history);
        bytes.extend_from_slice(b"{}\n");
        assert!(History::read(&bytes[..]).unwrap_err().to_string().contains("line"));
    }
}
