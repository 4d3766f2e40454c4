//! What a run does: drawn from its seed, so that a seed repeats it.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use super::child::LifeLoad;
use super::faults::{CutMoment, DiskOp, FailedOp, Faults};
use super::loss::Loss;
use crate::rng::Rng;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum PowerRunKind {
    /// Power cuts while the log is appended to and cut back.
    Log,
    /// … while the log is purged.
    Purge,
    /// … while snapshots are built.
    Snapshot,
    /// … while snapshots are installed.
    Install,
    /// … while the data is opened.
    Open,
    /// … under all of that.
    Mixed,
    /// … with syncs that take long.
    SlowSync,
    /// The disk becomes full.
    Full,
    /// A write fails.
    WriteError,
    /// A read fails.
    ReadError,
    /// One sync fails.
    SyncError,
    /// Every sync fails.
    SyncsFail,
    /// Power cuts, and syncs that fail, while the engine is copied at a start.
    Shrink,
    /// Power cuts under a whole node, `tillsync serve`.
    Serve,
    /// … whose disk becomes full.
    ServeFull,
    /// … whose disk fails a sync.
    ServeSync,
}

/// Which kinds of runs come how often: the seed goes round in here.
const ROUND: [PowerRunKind; 25] = [
    PowerRunKind::Mixed,
    PowerRunKind::Install,
    PowerRunKind::Purge,
    PowerRunKind::Snapshot,
    PowerRunKind::Full,
    PowerRunKind::Open,
    PowerRunKind::SyncError,
    PowerRunKind::Log,
    PowerRunKind::Install,
    PowerRunKind::ReadError,
    PowerRunKind::Purge,
    PowerRunKind::Open,
    PowerRunKind::SlowSync,
    PowerRunKind::WriteError,
    PowerRunKind::Snapshot,
    PowerRunKind::Mixed,
    PowerRunKind::SyncsFail,
    PowerRunKind::Open,
    PowerRunKind::Serve,
    PowerRunKind::Purge,
    PowerRunKind::ServeFull,
    PowerRunKind::Full,
    PowerRunKind::ServeSync,
    PowerRunKind::Serve,
    PowerRunKind::Shrink,
];

impl PowerRunKind {
    pub(super) fn of(seed: u64) -> Self {
        ROUND[(seed % ROUND.len() as u64) as usize]
    }

    fn is_fault(self) -> bool {
        use PowerRunKind::{Full, ReadError, ServeFull, ServeSync, Shrink, SyncError, SyncsFail, WriteError};
        matches!(self, Full | WriteError | ReadError | SyncError | SyncsFail | Shrink | ServeFull | ServeSync)
    }

    /// With a whole node instead of storage alone.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Serve | Self::ServeFull | Self::ServeSync)
    }

    fn load(self) -> LifeLoad {
        match self {
            Self::Log => LifeLoad::Log,
            Self::Purge => LifeLoad::Purge,
            Self::Snapshot => LifeLoad::Snapshot,
            Self::Install => LifeLoad::Install,
            Self::Shrink => LifeLoad::Copied,
            _ => LifeLoad::Mixed,
        }
    }
}

impl fmt::Display for PowerRunKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => out.pad(value.get_name()),
            None => Err(fmt::Error),
        }
    }
}

/// One life of the program: from the start to the power cut, or to what else ends it.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub load: LifeLoad,
    pub seed: u64,
    pub cut: CutMoment,
    pub faults: Faults,
    /// What the cut at its end leaves.
    pub loss: Loss,
}

#[derive(Clone, Debug)]
pub(super) struct PowerPlan {
    pub kind: PowerRunKind,
    pub journal: bool,
    pub lives: Vec<Life>,
}

/// Small numbers as often as great ones: half of all come below the root of `most`.
fn any_size(rng: &mut Rng, most: u64) -> u64 {
    let base = 1 << rng.below(u64::from(most.ilog2()));
    base + rng.below(base)
}

impl PowerPlan {
    pub(super) fn of(seed: u64, kind: Option<PowerRunKind>) -> Self {
        let kind = kind.unwrap_or(PowerRunKind::of(seed));
        let mut rng = Rng::new(seed);
        let journal = rng.percent(50);
        let mut lives = Vec::new();
        let count = rng.between(2, 5);
        for number in 0..count {
            lives.push(Life::work(kind, number, &mut rng));
            if kind.is_fault() {
                // A bad disk under work, one that is bad already at the start, and in between a good one.
                lives.push(Life::faulty(kind, number % 2 == 1 || kind == PowerRunKind::Shrink, &mut rng));
            }
        }
        let (seed, loss) = (rng.next(), Loss::draw(&mut rng));
        lives.push(Life { load: LifeLoad::Short, seed, cut: CutMoment::Never, faults: Faults::default(), loss });
        Self { kind, journal, lives }
    }
}

impl Life {
    fn work(kind: PowerRunKind, number: u64, rng: &mut Rng) -> Self {
        let opening = match kind {
            PowerRunKind::Open => number > 0 && rng.percent(80),
            // What is copied must have been written before.
            PowerRunKind::Shrink => number > 0 && rng.percent(30),
            _ => false,
        };
        let (changes, syncs) = match kind {
            _ if opening => (64, 16),
            // What takes longer is cut earlier.
            PowerRunKind::SlowSync | PowerRunKind::Serve | PowerRunKind::ServeFull | PowerRunKind::ServeSync => {
                (1_024, 128)
            }
            _ => (8_192, 256),
        };
        let cut = match rng.percent(50) {
            true => CutMoment::Change(any_size(rng, changes)),
            false => CutMoment::Sync { nth: any_size(rng, syncs), done: rng.percent(50) },
        };
        let slow_sync = if kind == PowerRunKind::SlowSync { rng.millis(1, 25) } else { Duration::ZERO };
        let faults = Faults { slow_sync, ..Faults::default() };
        Self { load: kind.load(), seed: rng.next(), cut, faults, loss: Loss::draw(rng) }
    }

    fn faulty(kind: PowerRunKind, opening: bool, rng: &mut Rng) -> Self {
        let (mut faults, mut cut) = (Faults::default(), CutMoment::Never);
        let most = if opening { 32 } else { 1_024 };
        // The engine syncs fully twice a second, and by itself.
        let background = rng.percent(40);
        let mut fail = |op, times| {
            let most = if op == DiskOp::FullSync { 8 } else { most };
            faults.fail = Some(FailedOp { op, nth: any_size(rng, most), times });
        };
        match kind {
            PowerRunKind::WriteError => fail(DiskOp::Write, 1),
            PowerRunKind::ReadError => {
                // The kernel reads again what it could not read ahead.
                let times = [2, 8, u64::MAX][rng.below(3) as usize];
                let nth = any_size(rng, 32);
                faults.fail = Some(FailedOp { op: DiskOp::Read, nth, times });
                cut = CutMoment::Change(any_size(rng, 2_048));
            }
            PowerRunKind::SyncError | PowerRunKind::Shrink | PowerRunKind::ServeSync if background => {
                fail(DiskOp::FullSync, 1);
            }
            PowerRunKind::SyncError | PowerRunKind::Shrink | PowerRunKind::ServeSync => fail(DiskOp::Sync, 1),
            PowerRunKind::SyncsFail if background => fail(DiskOp::FullSync, u64::MAX),
            PowerRunKind::SyncsFail => fail(DiskOp::Sync, u64::MAX),
            _ => faults.room = Some(any_size(rng, if opening { 1 << 16 } else { 1 << 23 })),
        }
        Self { load: kind.load(), seed: rng.next(), cut, faults, loss: Loss::draw(rng) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        for seed in 0..100 {
            let plan = PowerPlan::of(seed, None);
            assert_eq!(format!("{plan:?}"), format!("{:?}", PowerPlan::of(seed, None)));
            assert!(plan.lives.len() >= 3);
            let faulty = |life: &Life| life.faults.fail.is_some() || life.faults.room.is_some();
            assert_eq!(plan.kind.is_fault(), plan.lives.iter().any(faulty));
        }
        let sizes: Vec<u64> = (0..1_000).map(|seed| any_size(&mut Rng::new(seed), 8_192)).collect();
        assert!(sizes.iter().all(|size| (1..=8_192).contains(size)));
        assert!(sizes.iter().filter(|size| **size < 100).count() > 300);
        assert!(sizes.iter().filter(|size| **size > 2_000).count() > 100);
    }
}
