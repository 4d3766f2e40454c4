//! The smallest fault plan that still fails: halves are left out first, then single faults.

use super::run::RunSummary;
use super::sweep::Runner;

/// Runs that shrinking may take.
const RUNS: u32 = 60;

/// The faults (by their place in the seed's plan) without any of which the run holds, and what it says then.
pub(crate) fn shrink(runner: &Runner, seed: u64, faults: usize, failed: &RunSummary) -> (Vec<usize>, RunSummary) {
    let mut runs = 0;
    let fails = |keep: &[usize]| {
        let report = runner.one(seed, Some(keep));
        report.broken.iter().any(|name| failed.broken.contains(name)).then_some(report)
    };
    smallest((0..faults).collect(), failed.clone(), |keep| {
        runs += 1;
        if runs > RUNS { None } else { fails(keep) }
    })
}

fn smallest<R>(all: Vec<usize>, first: R, mut fails: impl FnMut(&[usize]) -> Option<R>) -> (Vec<usize>, R) {
    let (mut kept, mut result) = (all, first);
    let mut step = kept.len().div_ceil(2);
    while step > 0 && !kept.is_empty() {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + step).min(kept.len());
            let without: Vec<usize> = [&kept[..at], &kept[end..]].concat();
            match fails(&without) {
                Some(report) => (kept, result) = (without, report),
                None => at = end,
            }
        }
        step /= 2;
    }
    (kept, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_left() {
        let needs = |needed: &'static [usize]| {
            move |keep: &[usize]| needed.iter().all(|one| keep.contains(one)).then_some(keep.len())
        };
        assert_eq!(smallest((0..9).collect(), 9, needs(&[2, 7])), (vec![2, 7], 2));
        assert_eq!(smallest((0..5).collect(), 5, needs(&[])), (vec![], 0));
        assert_eq!(smallest((0..3).collect(), 3, needs(&[0, 1, 2])), (vec![0, 1, 2], 3));
    }
}
