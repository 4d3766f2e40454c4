//! Many seeds, a process each: a run must not depend on the runs before it, and one that hangs or dies must not end the
//! others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::run::RunSummary;
use crate::child;

/// A run that takes longer than this in real time hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which program runs the seeds: this one, or one with a bug in it.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    pub program: PathBuf,
    pub jobs: u64,
    /// A variable for its environment.
    env: Option<(String, String)>,
}

impl Runner {
    pub(crate) fn this(jobs: u64) -> std::io::Result<Self> {
        Ok(Self::of(&std::env::current_exe()?, jobs))
    }

    pub(crate) fn of(program: &Path, jobs: u64) -> Self {
        Self { program: program.to_owned(), jobs, env: None }
    }

    pub(crate) fn with(self, env: (String, String)) -> Self {
        Self { env: Some(env), ..self }
    }

    /// One seed, with only these faults if some are named. A process that dies or hangs is a broken run.
    pub(crate) fn one(&self, seed: u64, only: Option<&[usize]>) -> RunSummary {
        self.try_one(seed, only).unwrap_or_else(|why| RunSummary {
            seed,
            broken: vec!["process".into()],
            violations: vec![format!("process: {why}")],
            ..RunSummary::default()
        })
    }

    fn try_one(&self, seed: u64, only: Option<&[usize]>) -> Result<RunSummary, String> {
        let mut command = Command::new(&self.program);
        command.args(["sim", "--replay", &seed.to_string(), "--json"]);
        if let Some(only) = only {
            command.args(["--only", &list(only)]);
        }
        command.envs(self.env.clone());
        let done = child::run(&mut command, PATIENCE)?;
        let tail = || done.err.lines().rev().take(5).collect::<Vec<_>>().join(" | ");
        serde_json::from_str(done.out.trim()).map_err(|_| format!("it died: {}", tail()))
    }

    /// The first broken run of these seeds, as far as `jobs` at once can tell.
    pub(crate) fn until_broken(&self, from: u64, to: u64) -> Option<(u64, RunSummary)> {
        let step = self.jobs.max(1);
        let mut at = from;
        while at <= to {
            let reports = self.sweep(at, to.min(at + step - 1), |_| {});
            if let Some(broken) = reports.into_iter().find(|report| !report.holds()) {
                return Some((broken.seed, broken));
            }
            at += step;
        }
        None
    }

    /// Seeds from `from` to `to` (inclusive), `jobs` at once; `each` hears of every one as it ends.
    pub(crate) fn sweep(&self, from: u64, to: u64, each: impl Fn(&RunSummary) + Sync) -> Vec<RunSummary> {
        let next = AtomicU64::new(from);
        let done = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed > to {
                            return;
                        }
                        let report = self.one(seed, None);
                        let mut done = done.lock();
                        each(&report);
                        done.insert(seed, report);
                    }
                });
            }
        });
        done.into_inner().into_values().collect()
    }
}

pub(crate) fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// What a sweep came to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub seeds: u64,
    pub failed: Vec<u64>,
    pub operations: u64,
    pub acknowledged: u64,
    pub checked: u64,
    /// By invariant: checks, and the seeds in which it checked anything.
    pub checks: BTreeMap<String, (u64, u64)>,
    pub simulated_s: u64,
    /// How often each fault struck, and the longest time without a successful write around it, milliseconds.
    pub faults: BTreeMap<String, (u64, u64)>,
}

impl Summary {
    pub(crate) fn of(reports: &[RunSummary]) -> Self {
        let mut summary = Self { seeds: reports.len() as u64, ..Self::default() };
        let mut simulated_ms = 0;
        for report in reports {
            if !report.holds() {
                summary.failed.push(report.seed);
            }
            summary.operations += report.operations;
            summary.acknowledged += report.acknowledged;
            summary.checked += report.checked;
            simulated_ms += report.simulated_ms;
            for (name, checked) in &report.checks {
                let (all, seeds) = summary.checks.entry(name.clone()).or_default();
                *all += checked;
                *seeds += u64::from(*checked > 0);
            }
            for name in &report.faults {
                summary.faults.entry(name.clone()).or_default().0 += 1;
            }
            for (name, gap) in &report.gaps_ms {
                let longest = &mut summary.faults.entry(name.clone()).or_default().1;
                *longest = (*longest).max(*gap);
            }
        }
        summary.simulated_s = simulated_ms / 1_000;
        summary
    }
}
