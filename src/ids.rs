//! Numbers that must not be taken for one another: each has a type of its own.
//!
//! Messages, rows and JSON carry them as plain integers: who reads one wraps it, who writes one takes it out by `get`.
//! None is a quantity, so there is no arithmetic on them but the next one.

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

impl RecordId {
    /// No record stands before it in a table, or behind the other one.
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);
}

impl Seq {
    /// The change after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
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
    NodeId: u64, RaftTerm: u64, MasterTerm: u64, LogIndex: u64, Seq: u64, TableId: u32, DeviceNumber: u32, RecordId: i64
);
