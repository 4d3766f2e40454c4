//! A comparison of another node's clock with this one's.

use std::time::Duration;

use crate::ids::{NodeId, UnixMs};
use crate::limits;

/// Another node's clock, as its status told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    pub node: NodeId,
    /// How far it is ahead of this node's, and how far that may be wrong. Milliseconds.
    pub ahead_ms: i64,
    pub unsure_ms: u64,
}

impl Compared {
    /// From an answer that says `their_ms`: asked at `asked_ms` of this node's clock, answered after `round_trip`.
    pub(crate) fn new(node: NodeId, their_ms: UnixMs, asked_ms: UnixMs, round_trip: Duration) -> Self {
        let half = u64::try_from(round_trip.as_millis() / 2).unwrap_or(u64::MAX);
        Self { node, ahead_ms: ahead(their_ms, asked_ms.plus_ms(half)), unsure_ms: half }
    }

    pub(crate) fn is_far(self) -> bool {
        self.ahead_ms.unsigned_abs() > limits::NODE_CLOCK_APART_MS.saturating_add(self.unsure_ms)
    }
}

/// How far one moment is ahead of another, milliseconds.
pub(super) fn ahead(one: UnixMs, other: UnixMs) -> i64 {
    let apart = i64::try_from(one.get().abs_diff(other.get())).unwrap_or(i64::MAX);
    if one >= other { apart } else { -apart }
}

/// What a node sees of the group when it compares.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClockPeers {
    pub me: NodeId,
    pub voters: Vec<NodeId>,
    pub leader: Option<NodeId>,
}
