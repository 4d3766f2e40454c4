//! What clients and operators asked for, and what came of it.

use serde::{Deserialize, Serialize};

use super::{NumberedToken, ShownChange};

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
