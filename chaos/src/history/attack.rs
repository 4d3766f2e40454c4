//! An attack beside honest devices.

use serde::{Deserialize, Serialize};

use super::Span;

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
