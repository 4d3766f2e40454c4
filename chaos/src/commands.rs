//! The command line.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use tillsync::cli::target::TargetArgs;

use crate::checker::{Expectations, Verdict, check};
use crate::cost;
use crate::mutants;
use crate::operator::target::DrillTarget;
use crate::report::command::{gap_of, make, simulated};
use crate::report::folder;
use crate::sim::plan::SimPlan;
use crate::sim::run::{GAP, RunSummary, run};
use crate::sim::shrink::shrink;
use crate::sim::sweep::{Runner, Summary, list};

#[derive(Parser)]
#[command(name = "chaos", version, about = "Breaks a Tillsync cluster on purpose and checks what it promised")]
pub(crate) struct ChaosCli {
    #[command(subcommand)]
    command: ChaosCommand,
}

#[derive(Subcommand)]
enum ChaosCommand {
    /// Simulate whole clusters in one process: one seed, one run, one trace
    Sim(SimArgs),
    /// Break a cluster of real processes on this machine, by a scenario, and check what it promised
    Run(RunAnywhere),
    /// List the scenarios
    List(crate::process::commands::ListArgs),
    /// Run all scenarios again and again, each time with another seed
    Soak(crate::process::commands::Soak),
    /// Years of a shop in minutes, with all that years bring: nothing may be lost, and nothing may grow
    Years(crate::process::years::Years),
    /// Check a recorded history again
    Check {
        /// A run's folder, or a file that `sim --replay N --history FILE` wrote
        #[arg(required_unless_present = "cost")]
        history: Option<PathBuf>,
        /// Check a made-up history of so many operations instead, and say how long it took
        #[arg(long, conflicts_with = "history")]
        cost: Option<u64>,
    },
    /// Make the reports of a run's folder again: report.html and report.json
    Report(crate::report::command::Rebuild),
    /// The failover drill for a shop: five minutes, in plain words
    Drill(crate::operator::drill::Drill),
    /// Break a running cluster by commands of your own, while clients write, and check what it promised
    Target(DrillTarget),
    /// Break something in the cluster that `tillsync dev` runs
    Inject(crate::operator::inject::Inject),
    /// Let all nodes of `tillsync dev` go on, and wait until the cluster is well
    Heal(crate::operator::inject::HealArgs),
    /// Say what this machine allows, and what is used instead
    Doctor(crate::operator::doctor::Doctor),
    /// Prove the checkers: build Tillsync with a bug in it, and see the bug found
    Mutants(mutants::MutantOptions),
    /// Cut the power of nodes, and give them bad disks: nothing that was acknowledged may be lost
    Power(crate::power::commands::PowerArgs),
    #[command(hide = true)]
    PowerChild(crate::power::child::ChildOptions),
}

#[derive(Args)]
struct RunAnywhere {
    #[command(flatten)]
    own: crate::process::commands::Run,
    /// A running cluster instead, by its nodes' URLs: SCENARIO is then a file of commands of your own, as for `chaos target`
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "scenario")]
    #[arg(conflicts_with_all = ["seed", "seconds", "binary"])]
    target: Vec<String>,
    /// An admin's or manager's token, for --target. Default: what `tillsync dev` left in ./tillsync-data
    #[arg(long, requires = "target")]
    token: Option<String>,
    /// A file that holds it
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The CA of the nodes' certificates, for --target
    #[arg(long, value_name = "FILE", requires = "target")]
    ca: Option<PathBuf>,
    /// Do not ask before a running cluster is broken
    #[arg(long, requires = "target")]
    yes: bool,
}

#[derive(Args)]
struct SimArgs {
    /// Seeds from A to B, both included: `A..B`
    #[arg(long, value_parser = seeds, conflicts_with = "replay", required_unless_present = "replay")]
    seeds: Option<(u64, u64)>,
    /// One seed
    #[arg(long)]
    replay: Option<u64>,
    /// Only these faults of the seed's plan, by their place: `0,3`; empty for none
    #[arg(long, requires = "replay")]
    only: Option<String>,
    /// Reports as JSON, one line a seed
    #[arg(long)]
    json: bool,
    /// Seeds at once, each in a process of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// Run every seed twice: the traces must be equal
    #[arg(long, conflicts_with = "replay")]
    twice: bool,
    /// Write the history here
    #[arg(long, requires = "replay")]
    history: Option<PathBuf>,
    /// Write the run's folder here: its history, report.html and report.json
    #[arg(long, value_name = "DIR", requires = "replay")]
    report: Option<PathBuf>,
    /// Do not look for the smallest plan that fails
    #[arg(long)]
    no_shrink: bool,
}

/// Where `tillsync dev` puts its data.
const DATA: &str = "./tillsync-data";

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    parts.filter(|(from, to)| from <= to).ok_or_else(|| "expected A..B with A <= B, such as 1..100".into())
}

impl ChaosCli {
    /// False: something that must hold does not.
    pub(crate) fn run(self) -> Result<bool, String> {
        match self.command {
            ChaosCommand::Sim(sim) => sim.run(),
            ChaosCommand::Run(run) => run.run(),
            ChaosCommand::List(list) => list.run(),
            ChaosCommand::Years(years) => years.run(),
            ChaosCommand::Soak(soak) => soak.run(),
            ChaosCommand::Check { cost: Some(operations), .. } => Ok(cost(operations)),
            ChaosCommand::Check { history: Some(history), .. } => recheck(&history),
            ChaosCommand::Check { history: None, cost: None } => Err("name a history".into()),
            ChaosCommand::Report(rebuild) => rebuild.run(),
            ChaosCommand::Drill(drill) => drill.run(),
            ChaosCommand::Target(target) => target.run(),
            ChaosCommand::Inject(inject) => inject.run(),
            ChaosCommand::Heal(heal) => heal.run(),
            ChaosCommand::Doctor(doctor) => doctor.run(),
            ChaosCommand::Mutants(options) => mutants::run(&options),
            ChaosCommand::Power(power) => power.run(),
            ChaosCommand::PowerChild(options) => crate::power::child::run(&options),
        }
    }
}

fn recheck(path: &Path) -> Result<bool, String> {
    let (about, history) = folder::load(path)?;
    Ok(print(&check(&history, Expectations { gap: gap_of(about.as_ref()) })))
}

fn cost(operations: u64) -> bool {
    let history = cost::history(operations);
    let began = std::time::Instant::now();
    let holds = print(&check(&history, Expectations { gap: GAP }));
    println!("{operations} operations checked in {:.2} s", began.elapsed().as_secs_f64());
    holds
}

fn print(verdict: &Verdict) -> bool {
    for (name, finding) in &verdict.invariants {
        let word = match (finding.violations.is_empty(), finding.checked) {
            (false, _) => "BROKEN",
            (true, 0) => "CHECKED NOTHING",
            (true, _) => "holds",
        };
        println!("{name:16} {word:6} {} checked", finding.checked);
        for what in &finding.violations {
            println!("    {what}");
        }
    }
    verdict.holds()
}

impl RunAnywhere {
    fn run(self) -> Result<bool, String> {
        let Self { own, target: urls, token, token_file, ca, yes } = self;
        if urls.is_empty() {
            return own.run();
        }
        let target = TargetArgs { urls, token, token_file, ca, data: DATA.into() };
        DrillTarget::of(target, own.scenario.into(), own.dir, yes).run()
    }
}

impl SimArgs {
    fn run(self) -> Result<bool, String> {
        match (self.replay, self.seeds) {
            (Some(seed), _) => self.replay(seed),
            (None, Some((from, to))) => self.sweep(from, to),
            (None, None) => Err("give --seeds A..B or --replay N".into()),
        }
    }

    fn replay(&self, seed: u64) -> Result<bool, String> {
        let mut plan = SimPlan::of(seed);
        if let Some(only) = &self.only {
            let places: Result<Vec<usize>, _> =
                only.split(',').filter(|place| !place.is_empty()).map(str::parse).collect();
            plan = plan.only(&places.map_err(|_| "--only takes numbers, such as 0,3".to_owned())?);
        }
        let (report, history) = run(seed, plan.clone())?;
        if let Some(path) = &self.history {
            let write = || {
                let mut out = BufWriter::new(File::create(path)?);
                history.write(&mut out)?;
                out.flush()
            };
            write().map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if let Some(dir) = &self.report {
            let about = simulated(&plan, &report, self.only.as_deref());
            folder::save(dir, &about, &history).map_err(|error| format!("{}: {error}", dir.display()))?;
            let (_, page) = make(dir, &about, &history)?;
            eprintln!("the report is {}", page.display());
        }
        if self.json {
            println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
        } else {
            println!("{plan:#?}");
            println!("seed {seed}: {}", verdict_line(&report));
            tell(&report);
        }
        Ok(report.holds())
    }

    fn sweep(&self, from: u64, to: u64) -> Result<bool, String> {
        let runner = Runner::this(self.jobs).map_err(|error| error.to_string())?;
        let began = std::time::Instant::now();
        let reports = runner.sweep(from, to, |report| {
            if self.json {
                println!("{}", serde_json::to_string(report).unwrap_or_default());
            } else if !report.holds() {
                println!("seed {}: {}", report.seed, verdict_line(report));
            }
        });
        let mut holds = reports.iter().all(RunSummary::holds);
        if self.twice {
            holds &= self.again(&runner, &reports);
        }
        if !self.no_shrink {
            for report in reports.iter().filter(|report| !report.holds()).take(3) {
                let faults = SimPlan::of(report.seed).faults.len();
                let (kept, smallest) = shrink(&runner, report.seed, faults, report);
                eprintln!("seed {} still fails with {} of {faults} faults:", report.seed, kept.len());
                smallest.violations.iter().take(5).for_each(|what| eprintln!("    {what}"));
                eprintln!("    cargo run -p chaos -- sim --replay {} --only {}", report.seed, list(&kept));
            }
        }
        if !self.json {
            summarise(&Summary::of(&reports), began.elapsed());
        }
        Ok(holds)
    }

    fn again(&self, runner: &Runner, reports: &[RunSummary]) -> bool {
        let (Some(first), Some(last)) = (reports.first(), reports.last()) else { return true };
        let again = runner.sweep(first.seed, last.seed, |_| {});
        let differ: Vec<u64> =
            reports.iter().zip(&again).filter(|(a, b)| a.trace != b.trace).map(|(a, _)| a.seed).collect();
        println!("{} seeds ran twice: {} with another trace {differ:?}", reports.len(), differ.len());
        differ.is_empty()
    }
}

fn verdict_line(report: &RunSummary) -> String {
    let word = if report.holds() { "holds".to_owned() } else { format!("BROKEN {:?}", report.broken) };
    let RunSummary { trace, operations, acknowledged, checked, simulated_ms, .. } = report;
    format!("{word}; {operations} operations, {acknowledged} ok, {checked} checks, {simulated_ms} ms, trace {trace}")
}

fn tell(report: &RunSummary) {
    for what in &report.violations {
        println!("    {what}");
    }
}

fn summarise(summary: &Summary, took: std::time::Duration) {
    let Summary { seeds, failed, operations, acknowledged, checked, checks, simulated_s, faults } = summary;
    println!("{seeds} seeds, {simulated_s} simulated seconds in {:.0} s", took.as_secs_f64());
    println!("{operations} operations, {acknowledged} acknowledged, {checked} checks");
    println!("{:16} {:>12} {:>8}", "invariant", "checks", "in seeds");
    for (name, (checks, in_seeds)) in checks {
        println!("{name:16} {checks:>12} {in_seeds:>8}{}", if *checks == 0 { "  CHECKED NOTHING" } else { "" });
    }
    println!("{:16} {:>8} {:>26}", "fault", "times", "longest without a write");
    for (name, (times, gap)) in faults {
        println!("{name:16} {times:>8} {gap:>23} ms");
    }
    for seed in failed.iter().take(20) {
        println!("cargo run -p chaos -- sim --replay {seed}");
    }
    println!("{}", if failed.is_empty() { "all hold".to_owned() } else { format!("{} seeds BROKEN", failed.len()) });
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        ChaosCli::command().debug_assert();
    }
}
