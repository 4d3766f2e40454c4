//! The kinds of faults, and what each of them takes.

use serde::Deserialize;

use super::scenario::FaultScope;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FaultKind {
    /// SIGKILL, and a start afterwards.
    Kill,
    /// SIGTERM, and a start afterwards.
    Restart,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// Every node in turn is restarted, the next when the last one serves.
    RollingRestart,
    /// The nodes are cut off from the others, not from their clients.
    Partition,
    /// One way of the links of the nodes is cut.
    OneWay,
    /// Two halves of the cluster hear each other through one node only.
    Bridge,
    /// Every node hears only itself.
    Shatter,
    /// What the nodes send takes longer.
    Latency,
    /// What the nodes send has to pass a narrow line.
    Bandwidth,
    /// All connections of the nodes with each other are reset.
    Reset,
    /// The disk is full.
    FullDisk,
    /// The disks run full slowly, below the thresholds of the nodes, and are freed again.
    DisksFill,
    /// Writing the log takes longer.
    SlowDisk,
    /// The wall clock is wrong.
    ClockSkew,
    /// A node leaves the cluster for good, and a new one comes.
    Members,
    /// Leadership is ordered to another node.
    Transfer,
    /// All clients lose their connections, again and again.
    Churn,
    /// A data folder is put back to an older copy of it.
    OldCopy,
    /// A copy of a node's folder is started beside it.
    Clone,
    /// Bits of the engine's file flip.
    Bitrot,
    /// The end of the engine's file is cut off, or zeros.
    Truncated,
    /// A node that lost its folder starts with the settings that it was founded with.
    Refounded,
    /// A node comes back at other addresses.
    Moved,
}

/// A parameter of a fault beside its time and whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Param {
    Silent,
    Direction,
    LatencyMs,
    JitterMs,
    KbytesPerS,
    SkewMs,
    EveryMs,
    LeavesMb,
}

impl Param {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Direction => "direction",
            Self::LatencyMs => "latency_ms",
            Self::JitterMs => "jitter_ms",
            Self::KbytesPerS => "kbytes_per_s",
            Self::SkewMs => "skew_ms",
            Self::EveryMs => "every_ms",
            Self::LeavesMb => "leaves_mb",
        }
    }
}

impl FaultKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::RollingRestart => "rolling_restart",
            Self::Partition => "partition",
            Self::OneWay => "one_way",
            Self::Bridge => "bridge",
            Self::Shatter => "shatter",
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
            Self::Reset => "reset",
            Self::FullDisk => "full_disk",
            Self::DisksFill => "disks_fill",
            Self::SlowDisk => "slow_disk",
            Self::ClockSkew => "clock_skew",
            Self::Members => "members",
            Self::Transfer => "transfer",
            Self::Churn => "churn",
            Self::OldCopy => "old_copy",
            Self::Clone => "clone",
            Self::Bitrot => "bitrot",
            Self::Truncated => "truncated",
            Self::Refounded => "refounded",
            Self::Moved => "moved",
        }
    }

    pub(super) fn params(self) -> &'static [Param] {
        match self {
            Self::Partition | Self::Bridge | Self::Shatter => &[Param::Silent],
            Self::OneWay => &[Param::Direction],
            Self::Latency => &[Param::LatencyMs, Param::JitterMs],
            Self::SlowDisk => &[Param::LatencyMs],
            Self::Bandwidth => &[Param::KbytesPerS],
            Self::ClockSkew => &[Param::SkewMs],
            Self::Churn => &[Param::EveryMs],
            Self::DisksFill => &[Param::LeavesMb],
            _ => &[],
        }
    }

    /// Whether it can be aimed at these.
    pub(super) fn strikes(self, who: FaultScope) -> bool {
        match self {
            Self::RollingRestart | Self::Bridge | Self::Shatter | Self::Churn => false,
            Self::Transfer => matches!(who, FaultScope::One | FaultScope::Node(_)),
            Self::Members | Self::OldCopy | Self::Clone | Self::Bitrot | Self::Truncated | Self::Moved => {
                matches!(who, FaultScope::One | FaultScope::Leader | FaultScope::Master | FaultScope::Node(_))
            }
            // Of the last one nobody is left to know the others.
            Self::Refounded => who != FaultScope::All,
            _ => true,
        }
    }

    /// After each of its strikes a machine may have to come back under a number that was never used.
    pub(super) fn takes_a_number(self) -> bool {
        matches!(self, Self::Members | Self::OldCopy | Self::Clone | Self::Bitrot | Self::Truncated | Self::Refounded)
    }

    /// It strikes the links between nodes.
    pub(super) fn is_of_links(self) -> bool {
        matches!(
            self,
            Self::Partition
                | Self::OneWay
                | Self::Bridge
                | Self::Shatter
                | Self::Latency
                | Self::Bandwidth
                | Self::Reset
        )
    }

    /// Whom it strikes if the scenario does not say.
    pub(super) fn usually(self) -> FaultScope {
        match self {
            Self::Latency | Self::Bandwidth | Self::Reset | Self::DisksFill => FaultScope::All,
            Self::Partition => FaultScope::Minority,
            _ => FaultScope::One,
        }
    }
}
