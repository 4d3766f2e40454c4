//! `chaos report DIR`, and what a simulated run says of itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tillsync::clock::{Clock, SystemClock};
use tillsync::model::time::iso;

use super::{RunDescription, folder, words, write};
use crate::checker::{Expectations, check};
use crate::history::History;
use crate::sim::plan::SimPlan;
use crate::sim::run::{GAP, RunSummary};

#[derive(Args)]
pub(crate) struct Rebuild {
    /// A run's folder, with its history.jsonl and run.json
    dir: PathBuf,
}

impl Rebuild {
    /// False: something that must hold does not.
    pub(crate) fn run(&self) -> Result<bool, String> {
        let (about, history) = folder::load(&self.dir)?;
        let about = about.unwrap_or_else(|| nameless(&self.dir, &history));
        let (holds, page) = make(&self.dir, &about, &history)?;
        println!("{}; the report is {}", if holds { "holds" } else { "BROKEN" }, page.display());
        Ok(holds)
    }
}

/// The bound on the time without a write, as far as the run says one.
pub(crate) fn gap_of(about: Option<&RunDescription>) -> Duration {
    about.map(|about| about.gap_ms).filter(|ms| *ms > 0).map_or(GAP, Duration::from_millis)
}

/// Checks the run and writes both reports: whether all holds, and the page.
pub(crate) fn make(dir: &Path, about: &RunDescription, history: &History) -> Result<(bool, PathBuf), String> {
    let verdict = check(history, Expectations { gap: gap_of(Some(about)) });
    let page = write(dir, about, history, &verdict).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok((verdict.holds(), page))
}

/// Of a folder that has only a history.
fn nameless(dir: &Path, history: &History) -> RunDescription {
    let name = dir.file_name().map_or_else(|| "a run".into(), |name| name.to_string_lossy().into_owned());
    let mut nodes: Vec<u64> = history.finals.iter().map(|node| node.node).collect();
    nodes.extend(history.led.iter().map(|led| led.node));
    nodes.sort_unstable();
    nodes.dedup();
    RunDescription { scenario: name, nodes, gap_ms: GAP.as_millis() as u64, ..RunDescription::default() }
}

/// Of a simulated run.
pub(crate) fn simulated(plan: &SimPlan, report: &RunSummary, only: Option<&str>) -> RunDescription {
    let seed = report.seed;
    let only = only.map_or(String::new(), |only| format!(" --only {only:?}"));
    RunDescription {
        scenario: format!("Simulation, seed {seed}"),
        explained: format!(
            "A cluster of {} nodes and {} devices that write, read, sync and reconnect, in one process, while {} struck.",
            plan.nodes,
            plan.devices,
            words::count(report.faults.len() as u64, "fault")
        ),
        seed,
        replay: format!("cargo run -p chaos -- sim --replay {seed}{only} --report DIR"),
        nodes: (1..=plan.nodes).collect(),
        started: iso(SystemClock.now_ms()),
        duration_ms: report.simulated_ms,
        version: env!("CARGO_PKG_VERSION").into(),
        machine: "simulated network, clock and disk; all times are simulated".into(),
        gap_ms: GAP.as_millis() as u64,
        notes: Vec::new(),
    }
}
