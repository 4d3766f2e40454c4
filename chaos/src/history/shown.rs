//! What nodes showed: records, changes, pages, and what they hold at the end.

use serde::{Deserialize, Serialize};
use tillsync::client::rest::NodeStatus;

/// A token of a device, by its number in the run, and the class that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedToken {
    pub number: u64,
    pub class: String,
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
    /// The cluster's version, the newest that the node's program knows, and how many commands came before theirs was agreed.
    #[serde(default)]
    pub version: u32,
    #[serde(default = "any_version")]
    pub knows: u32,
    #[serde(default)]
    pub ungated: u64,
}

impl Sample {
    /// The newest version that the program of the node knows that told this; a program that does not say knows any.
    pub(crate) fn knows(status: &NodeStatus) -> u32 {
        let own = status.nodes.iter().find(|node| node.node == status.node);
        own.and_then(|node| node.knows_version).unwrap_or_else(any_version)
    }
}

fn any_version() -> u32 {
    u32::MAX - 1
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
