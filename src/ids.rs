//! Numbers that must not be taken for one another: each has a type of its own.
//!
//! Messages, rows and JSON carry them as plain integers: who reads one wraps it, who writes one takes it out by `get`.
//! None is a quantity: what there is of arithmetic goes to a number that follows, and counts what lies between two.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The id of a node: from 1, given once and never again.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

/// The number of a reign of a leader. Raft's: not the [`MasterTerm`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct RaftTerm(pub u64);

/// The number of the election that made the master. Not the [`RaftTerm`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct MasterTerm(pub u64);

/// The position of an entry in the Raft log. Raft's first entry has 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct LogIndex(pub u64);

/// The number of a change: dense, from 1. 0 stands before the first one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// The number of a table: from 1, and never used again. 0 stands for no table.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

impl TableId {
    /// Its place in a list that begins with table 1; beyond every list for no table.
    pub const fn place(self) -> usize {
        (self.0 as usize).wrapping_sub(1)
    }
}

/// The number of a device: from 1, and kept when the device is forgotten. 0 stands for no device.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct DeviceNumber(pub u32);

impl DeviceNumber {
    /// Its place in a list that begins with device 1; beyond every list for no device.
    pub const fn place(self) -> usize {
        (self.0 as usize).wrapping_sub(1)
    }
}

/// The id of a record within its table, as whoever made it drew it: any number, also a negative one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct RecordId(pub i64);

/// The number of a row of the audit log: dense, from 1. A change is a row, too.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct AuditId(pub u64);

/// The number of an election in the log of elections: dense, from 1. 0 stands for none. Not the [`PendingElectionId`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct ElectionId(pub u64);

/// The number of an election that was begun, whether it came to a master or to nothing. 0 stands for none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct PendingElectionId(pub u64);

/// The number of a conflict: dense, from 1. 0 stands for none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct ConflictId(pub u64);

impl RecordId {
    /// No record stands before it in a table, or behind the other one.
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);
}

/// A moment: Unix milliseconds, of a clock or of the state. Spans of time are plain milliseconds, or a `Duration`.
///
/// The gateway keeps plain numbers in what it reads and writes for clients: most of them go straight from a row into
/// JSON, or from JSON into a command, and are compared with nothing on the way.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// After every moment that is ever told.
    pub const MAX: Self = Self(u64::MAX);

    /// A moment so many milliseconds later.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// A moment so many milliseconds earlier; not before 1970.
    pub const fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// The milliseconds from another moment to this one; 0 if this one is not later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Unix seconds, as tokens have them.
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000
    }
}

impl LogIndex {
    /// Behind every entry that a log will ever have.
    pub const MAX: Self = Self(u64::MAX);

    /// The entry after this one.
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// So many entries further.
    pub const fn plus(self, entries: u64) -> Self {
        Self(self.0.saturating_add(entries))
    }

    /// How many entries it is ahead of `other`; 0 if it is not.
    pub const fn ahead_of(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }

    /// From this one on, as long as they are before `end`.
    pub fn until(self, end: Self) -> impl Iterator<Item = Self> {
        (self.0..end.0).map(Self)
    }
}

impl Seq {
    /// No change has it.
    pub const MAX: Self = Self(u64::MAX);

    /// The change after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl AuditId {
    /// No row has it.
    pub const MAX: Self = Self(u64::MAX);

    /// So many rows further.
    pub const fn plus(self, rows: u64) -> Self {
        Self(self.0.saturating_add(rows))
    }

    /// From this one up to `last`; both ends belong to it.
    pub fn up_to(self, last: Self) -> impl Iterator<Item = Self> + Clone {
        (self.0..=last.0).map(Self)
    }
}

impl ConflictId {
    /// No conflict has it.
    pub const MAX: Self = Self(u64::MAX);
}

macro_rules! plain_outside {
    ($($name:ident: $plain:ty),*) => {
        $(
            impl $name {
                pub const fn get(self) -> $plain {
                    self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }

            /// The number alone: lists of them stand in what people read.
            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    fmt::Debug::fmt(&self.0, f)
                }
            }

            impl From<$name> for i128 {
                fn from(number: $name) -> Self {
                    number.0.into()
                }
            }
        )*
    };
}

plain_outside!(
    NodeId: u64, RaftTerm: u64, MasterTerm: u64, LogIndex: u64, Seq: u64, TableId: u32, DeviceNumber: u32,
    RecordId: i64, AuditId: u64, ElectionId: u64, PendingElectionId: u64, ConflictId: u64, UnixMs: u64
);
