//! What goes wrong with the disk, and when: counted in operations, so that it can be the n-th of anything.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskOp {
    Read,
    Write,
    Sync,
    /// A sync that asks for more than the data, as `fsync` does and `fdatasync` does not; it counts as a sync, too.
    FullSync,
    /// Making, removing or renaming.
    Name,
    /// Looking up, listing.
    Look,
}

impl DiskOp {
    fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::FullSync)
    }
}

/// Operations since the disk was told what to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub full_syncs: u64,
    pub names: u64,
    pub looks: u64,
}

impl Counts {
    pub(super) fn add(&mut self, op: DiskOp) {
        match op {
            DiskOp::Read => self.reads += 1,
            DiskOp::Write => self.writes += 1,
            DiskOp::Sync => self.syncs += 1,
            DiskOp::FullSync => {
                self.syncs += 1;
                self.full_syncs += 1;
            }
            DiskOp::Name => self.names += 1,
            DiskOp::Look => self.looks += 1,
        }
    }

    pub(super) fn of(&self, op: DiskOp) -> u64 {
        match op {
            DiskOp::Read => self.reads,
            DiskOp::Write => self.writes,
            DiskOp::Sync => self.syncs,
            DiskOp::FullSync => self.full_syncs,
            DiskOp::Name => self.names,
            DiskOp::Look => self.looks,
        }
    }

    /// Operations that change the disk, or say that it was changed.
    pub(super) fn changes(&self) -> u64 {
        self.writes + self.syncs + self.names
    }
}

/// When the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutMoment {
    Never,
    /// At the n-th write, sync or change of a name.
    Change(u64),
    /// At the n-th sync: when it is asked for, or when it is done and nobody was told.
    Sync {
        nth: u64,
        done: bool,
    },
}

impl CutMoment {
    /// Whether the operation that was just counted is the one.
    pub(super) fn is_due(self, op: DiskOp, counts: &Counts) -> bool {
        match self {
            Self::Never => false,
            Self::Change(nth) => !matches!(op, DiskOp::Read | DiskOp::Look) && counts.changes() >= nth,
            Self::Sync { nth, .. } => op.is_sync() && counts.syncs >= nth,
        }
    }

    /// The operation still takes place. A write does, so that it can be torn.
    pub(super) fn comes_after(self, op: DiskOp) -> bool {
        match self {
            Self::Sync { done, .. } => done,
            _ => op == DiskOp::Write,
        }
    }
}

/// What a bad disk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The disk is full after so many bytes more.
    pub room: Option<u64>,
    /// From the n-th of these operations on, so many fail with EIO.
    pub fail: Option<FailedOp>,
    /// Every sync takes this much longer.
    pub slow_sync: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailedOp {
    pub op: DiskOp,
    pub nth: u64,
    pub times: u64,
}

impl FailedOp {
    pub(super) fn is_due(&self, op: DiskOp, counts: &Counts) -> bool {
        let same = op == self.op || (op.is_sync() && self.op == DiskOp::Sync);
        same && (self.nth..self.nth.saturating_add(self.times)).contains(&counts.of(self.op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_the_nth() {
        let fail = FailedOp { op: DiskOp::Write, nth: 2, times: 2 };
        let mut counts = Counts::default();
        let struck: Vec<bool> = (0..5)
            .map(|_| {
                counts.add(DiskOp::Write);
                assert!(!fail.is_due(DiskOp::Sync, &counts));
                fail.is_due(DiskOp::Write, &counts)
            })
            .collect();
        assert_eq!(struck, [false, true, true, false, false]);
        assert!(
            CutMoment::Change(5).is_due(DiskOp::Write, &counts) && !CutMoment::Change(5).is_due(DiskOp::Read, &counts)
        );
        assert!(!CutMoment::Change(6).is_due(DiskOp::Write, &counts));
        counts.add(DiskOp::Sync);
        assert!(CutMoment::Sync { nth: 1, done: false }.is_due(DiskOp::Sync, &counts));
    }
}
