//! What happened, as clients and an monitor saw it: the only thing that the checkers know.
//!
//! A history is a list of lines; on disk it is JSON, one line each, so that a run can be checked again later
//! (`chaos check`). Order is told by `tick`, a number that grows with every event of the run; microseconds are for people.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpOutcome {
    Ok,
    /// Surely not applied, and never will be.
    Failed,
    /// It may have been applied, or may be later.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum OpRequest {
    /// A `data_update` with a value that no other one has.
    Write {
        table: String,
        record: i64,
        value: String,
        request_id: String,
        /// It must not be applied on another version than this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<u64>,
    },
    /// A `data_update` that deletes: in the log its value is empty.
    Delete {
        table: String,
        record: i64,
        request_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<u64>,
    },
    /// A `data_request`.
    Read { table: String, record: i64 },
    /// A sync, from this change on (absent: a full one).
    Sync { after: Option<u64> },
    /// A sync from this time on, in Unix milliseconds, by a client that keeps no cursor.
    SyncSince {
        since_ms: u64,
        /// The time is that of a sync's last page: up to this cursor the client has everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// `sync_complete` with this cursor.
    SyncComplete { cursor: u64 },
    /// `sync_complete` before the sync's last page, which must be refused.
    CompleteEarly,
    /// An entry of a durable queue that was acknowledged before, sent again.
    Repeat { queue: String, n: u64, value: String },
    /// The number of an entry that was acknowledged, with other data, which must be refused.
    Reused { queue: String, n: u64, value: String },
    /// An entry of a durable queue whose predecessor was never sent, which must be refused.
    Gap { queue: String, n: u64, after: u64, value: String },
}

impl OpRequest {
    /// What a write asks for: table, record, value (empty: none any more), request id, base.
    pub(crate) fn as_write(&self) -> Option<(&str, i64, &str, &str, Option<u64>)> {
        match self {
            Self::Write { table, record, value, request_id, base } => Some((table, *record, value, request_id, *base)),
            Self::Delete { table, record, request_id, base } => Some((table, *record, "", request_id, *base)),
            _ => None,
        }
    }
}

/// The place of a write in a durable queue of its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueuePlace {
    pub queue: String,
    pub n: u64,
    /// The entry before it that was not given up. 0: none.
    pub after: u64,
}

/// One operation of a client, with all its tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Op {
    pub id: u64,
    pub device: String,
    /// The session of its first try.
    pub session: u64,
    /// The node of its last try.
    pub node: u64,
    #[serde(flatten)]
    pub asked: OpRequest,
    pub invoked: u64,
    pub invoked_us: u64,
    /// `u64::MAX`: never answered.
    pub returned: u64,
    pub returned_us: u64,
    pub outcome: OpOutcome,
    /// A write's seq; the version that a read saw (absent: no such record).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// What a read saw.
    #[serde(default, rename = "seen", skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What a sync sent: seq, table, record, value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<Vec<ShownChange>>,
    /// The cursor at the end of a sync.
    #[serde(default, rename = "up_to", skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
    pub tries: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// A write out of a durable queue: its place there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<QueuePlace>,
    /// The answer said that it was applied before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// The conflict that the answer named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<u64>,
    /// It was first sent before its device had ever come online.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unregistered: bool,
    /// It was an insert.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insert: bool,
    /// The token that it was asked with, where that one may be taken back or its class may not do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<NumberedToken>,
}

impl Op {
    /// An operation that is asked now (tick and microseconds) and has no answer yet.
    pub(crate) fn new(
        id: u64,
        device: &str,
        (session, node): (u64, u64),
        asked: OpRequest,
        (tick, us): (u64, u64),
    ) -> Self {
        Self {
            id,
            device: device.to_owned(),
            session,
            node,
            asked,
            invoked: tick,
            invoked_us: us,
            returned: u64::MAX,
            returned_us: u64::MAX,
            outcome: OpOutcome::Unknown,
            version: None,
            value: None,
            pages: Vec::new(),
            cursor: None,
            tries: 0,
            error: String::new(),
            queued: None,
            repeated: false,
            conflict: None,
            unregistered: false,
            insert: false,
            token: None,
        }
    }
}

/// A token of a device, by its number in the run, and the class that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedToken {
    pub number: u64,
    pub class: String,
}

/// What is asked of the cluster about others, or by a device about its own tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Ordered {
    /// From now on a class has this right to this table, and may write all others.
    Rights {
        class: String,
        table: String,
        right: String,
    },
    /// All tokens of the device are taken back.
    Revoke {
        device: String,
    },
    Suspend {
        device: String,
    },
    Resume {
        device: String,
    },
    Forget {
        device: String,
    },
    /// Is the device known? The answer is in the error, if it is not.
    Look {
        device: String,
    },
    /// A device is let in by its code.
    Approve {
        code: String,
        device: String,
    },
    Refuse {
        code: String,
        device: String,
    },
    /// A device got a token of this number: the one that it began with, for an older one, or for a code.
    Token {
        device: String,
        number: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        renews: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// A table is removed with all its records. Every such order is asked for by a name of its own, which its rows of
    /// the log and of the audit log carry; privileged: by a token that may.
    RemoveTable {
        table: String,
        by: String,
        privileged: bool,
    },
}

/// One of these orders, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub node: u64,
    #[serde(flatten)]
    pub ordered: Ordered,
    pub invoked: u64,
    pub invoked_us: u64,
    /// `u64::MAX`: never answered.
    pub returned: u64,
    pub returned_us: u64,
    pub outcome: OpOutcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A record that somebody was shown whose token may be taken back, or whose class may not read everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownRecord {
    pub tick: u64,
    pub us: u64,
    /// When it was asked for; absent: it came as a live change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<u64>,
    pub device: String,
    pub node: u64,
    pub session: u64,
    pub token: NumberedToken,
    pub table: String,
    pub record: i64,
    pub seq: u64,
    pub value: String,
}

/// A change as somebody was shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownChange {
    pub seq: u64,
    pub table: String,
    pub record: i64,
    /// Empty: deleted.
    pub value: String,
    pub device: String,
    pub request_id: String,
}

/// A page of a sync, as a session got it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageTold {
    /// Live changes that the session had been told before.
    pub at: u64,
    pub full: bool,
    pub number: u64,
    pub rows: Vec<ShownChange>,
    /// On the last page: the place in the log that the whole sync stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
}

/// A record as a client or a node holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct HeldRecord {
    pub table: String,
    pub record: i64,
    pub seq: u64,
    pub value: String,
}

/// One live connection: from where it was told changes, and all that it was told, in the order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionTold {
    pub session: u64,
    pub device: String,
    pub node: u64,
    pub began_us: u64,
    pub ended_us: u64,
    /// The cursor that it resumed from; absent: it came new, or was refused.
    pub resumed: Option<u64>,
    /// The server's answer to coming online: everything up to this cursor was told before or is not for it.
    pub position: Option<u64>,
    /// Changes that arrived before that answer.
    pub early: Vec<ShownChange>,
    pub told: Vec<ShownChange>,
    /// It was alive at the end of the run, after everything had healed.
    pub live_at_end: bool,
    /// It wrote before it resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Its resume was refused, though its cursor was good, when it had been told this many changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    /// Pages of syncs, in the order of arrival.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<PageTold>,
}

impl SessionTold {
    /// All changes that it was told live, in the order of arrival.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &ShownChange> {
        self.early.iter().chain(&self.told)
    }
}

/// What a client that keeps no cursor holds at the end of the run, after everything has healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Store {
    pub device: String,
    pub session: u64,
    pub records: Vec<HeldRecord>,
}

/// A device of two sessions on two nodes, a while after one of them had left, with no fault going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TwinSeen {
    pub us: u64,
    pub device: String,
    /// Of the session that is still there.
    pub session: u64,
    pub online: bool,
    /// The one that left said `device_offline` before.
    pub goodbye: bool,
    pub master_before: String,
    pub master_after: String,
    /// The applied time is ahead of every clock, so it stands still, and with it the pauses between an election's tries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub time_ahead: bool,
}

/// A node's state at one applied index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub tick: u64,
    pub us: u64,
    pub node: u64,
    /// Which start of the node this is.
    pub boot: u64,
    pub applied: u64,
    pub digest: String,
    pub head: u64,
    pub master: String,
    pub master_term: u64,
    pub masters: Vec<String>,
    /// The election under way, and the last one that ended, where they can be seen. 0: none.
    #[serde(default)]
    pub electing: u64,
    #[serde(default)]
    pub settled: u64,
}

/// A node took itself for the Raft leader of a term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaderClaim {
    pub us: u64,
    pub node: u64,
    pub raft_term: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownElection {
    pub id: u64,
    pub term: u64,
    pub previous: String,
    pub new: String,
}

/// What lost against a record, in the conflict that keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConflictHeld {
    pub id: u64,
    pub table: String,
    pub record: i64,
    pub value: String,
}

/// A row of the audit log about a table that is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableAudit {
    /// Whose order it was; `cluster`: it went on with one.
    pub by: String,
    pub table: String,
    /// The table is gone, and so many of its records were deleted. Absent: the removal begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
    /// The newest change when it was written. Absent: that one is compacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
}

/// A node after everything has healed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FinalState {
    pub node: u64,
    pub applied: u64,
    pub digest: String,
    /// A hash over all rows.
    pub rows: String,
    pub head: u64,
    /// Changes up to this one are compacted.
    pub compacted: u64,
    pub changes: Vec<ShownChange>,
    /// The version that each change replaced, by position in `changes`.
    pub previous: Vec<u64>,
    pub elections: Vec<ShownElection>,
    /// Device, cursor of its sync state, and whether it is `synced`.
    pub sync_states: Vec<(String, u64, bool)>,
    /// When each change was applied, in Unix milliseconds, by position in `changes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub committed_ms: Vec<u64>,
    /// Records that exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<HeldRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<ConflictHeld>,
    /// In their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub table_audits: Vec<TableAudit>,
}

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

/// What attackers of one kind did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttackKind {
    pub name: String,
    /// Connections that were opened for it.
    pub attempts: u64,
    /// Of those that are over: to how many the node answered anything at all, and how many it ended.
    pub answered: u64,
    pub ended: u64,
    /// With fewer attempts the run shows nothing of this kind.
    pub least: u64,
}

/// What one node took, in kilobytes and descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeUse {
    pub node: u64,
    /// The greatest resident memory beside honest devices only, and under attack.
    pub honest_kb: u64,
    pub hostile_kb: u64,
    /// Open descriptors before the attack, the most under it, and after it.
    pub descriptors_before: u64,
    pub descriptors_most: u64,
    pub descriptors_after: u64,
}

/// An honest device was refused, not answered, or cut off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HonestFailure {
    pub us: u64,
    pub device: String,
    pub node: u64,
    pub what: String,
}

/// An attack beside honest devices, and what is expected of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attacked {
    /// Honest devices only; and with the attackers.
    pub honest: Span,
    pub hostile: Span,
    /// Sockets that attackers were to hold, the most that they held, and the mean.
    pub sockets: u64,
    pub sockets_most: u64,
    pub sockets_mean: u64,
    pub kinds: Vec<AttackKind>,
    pub nodes: Vec<NodeUse>,
    pub failures: Vec<HonestFailure>,
    /// An honest operation may take so long.
    pub slow_ms: u64,
    /// A node's memory under attack may be so many hundredths of what it is beside honest devices.
    pub memory_percent: u64,
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
