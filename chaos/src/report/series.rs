//! What happened, by time: operations by outcome, and how long writes took.

use serde::Serialize;

use super::RunDescription;
use super::figures::{is_write, rank};
use crate::history::{History, OpOutcome};

/// Bars of the picture, at most.
pub(super) const BARS: u64 = 240;
/// Seconds in `report.json`, at most; of longer runs a row stands for more than one.
const ROWS: u64 = 20_000;
const SECOND: u64 = 1_000_000;
/// Lengths of a bar, milliseconds: people count in these.
const LENGTHS: [u64; 16] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000,
    3_600_000,
];

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Series {
    pub every_us: u64,
    pub ok: Vec<u64>,
    pub failed: Vec<u64>,
    pub unknown: Vec<u64>,
    /// Of the writes acknowledged then; absent: there were none.
    pub p50_us: Vec<Option<u64>>,
    pub p99_us: Vec<Option<u64>>,
}

/// The end of a run: its stated length, or what happened last.
pub(super) fn end_us(about: &RunDescription, history: &History) -> u64 {
    let ops = history.ops.iter().map(moment);
    let bands = history.bands.iter().map(|band| band.to_us);
    let samples = history.samples.iter().map(|sample| sample.us);
    let last = ops.chain(bands).chain(samples).max().unwrap_or(0);
    last.max(about.duration_ms.saturating_mul(1_000)).max(1)
}

/// When an operation was answered; one that never was counts when it was asked.
fn moment(op: &crate::history::Op) -> u64 {
    if op.returned_us == u64::MAX { op.invoked_us } else { op.returned_us }
}

impl Series {
    /// A row a second.
    pub(super) fn by_second(history: &History, until_us: u64) -> Self {
        Self::every(history, until_us, SECOND.max(until_us / ROWS + 1))
    }

    /// As many rows as the picture has room for.
    pub(super) fn for_picture(history: &History, until_us: u64) -> Self {
        let fits = |ms: &&u64| until_us / (**ms * 1_000) < BARS;
        let every = LENGTHS.iter().find(fits).map_or(until_us / BARS + 1, |ms| ms * 1_000);
        Self::every(history, until_us, every)
    }

    fn every(history: &History, until_us: u64, every_us: u64) -> Self {
        let rows = usize::try_from(until_us / every_us + 1).unwrap_or(1);
        let (mut ok, mut failed, mut unknown) = (vec![0; rows], vec![0; rows], vec![0; rows]);
        let mut took: Vec<Vec<u64>> = vec![Vec::new(); rows];
        for op in &history.ops {
            let at = usize::try_from(moment(op) / every_us).unwrap_or(rows).min(rows - 1);
            match op.outcome {
                OpOutcome::Ok => ok[at] += 1,
                OpOutcome::Failed => failed[at] += 1,
                OpOutcome::Unknown => unknown[at] += 1,
            }
            if op.outcome == OpOutcome::Ok && is_write(&op.asked) {
                took[at].push(op.returned_us.saturating_sub(op.invoked_us));
            }
        }
        took.iter_mut().for_each(|took| took.sort_unstable());
        let of = |percent| took.iter().map(|took| rank(took, percent)).collect();
        Self { every_us, ok, failed, unknown, p50_us: of(50), p99_us: of(99) }
    }

    pub(super) fn len(&self) -> usize {
        self.ok.len()
    }

    /// A row's number of operations as a rate.
    pub(super) fn per_second(&self, count: u64) -> f64 {
        count as f64 * SECOND as f64 / self.every_us as f64
    }
}
