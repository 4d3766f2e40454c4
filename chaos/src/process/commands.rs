//! `chaos run`, `chaos list`, `chaos soak`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tillsync::clock::{Clock, SystemClock};

use super::run::{Outline, RunOptions, run};
use super::scenario::Scenario;
use super::{library, soak};
use crate::starter;

#[derive(Args)]
pub(crate) struct Run {
    /// A scenario of `chaos list`, a .toml file, or `all`
    #[arg(default_value = "leader_killed")]
    pub scenario: String,
    /// What is drawn: whom faults strike, when exactly, what clients do. Default: another one every time
    #[arg(long)]
    seed: Option<u64>,
    /// Where the history, the logs and the report go. Default: chaos-runs/SCENARIO-SEED
    #[arg(long)]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    nodes: NodeArgs,
    /// How long the load lasts; faults move along
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Names only
    #[arg(long)]
    names: bool,
}

#[derive(Args)]
pub(crate) struct Soak {
    /// For how long new runs begin
    #[arg(long)]
    pub hours: f64,
    /// Runs at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    pub jobs: u64,
    /// Only these scenarios, with commas between them
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// The first seed. Default: another one every time
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where folders of failures and the table go
    #[arg(long, default_value = "chaos-soak")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub nodes: NodeArgs,
}

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// The `tillsync` to run. Default: the one beside this program
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl NodeArgs {
    pub(crate) fn find(&self) -> Result<PathBuf, String> {
        let path = match &self.binary {
            Some(path) => path.clone(),
            None => starter::beside()?,
        };
        let path = path.canonicalize().map_err(|error| format!("{}: {error}: see --binary", path.display()))?;
        if path.is_file() { Ok(path) } else { Err(format!("{} is no program: see --binary", path.display())) }
    }
}

/// A seed that was hardly used before.
pub(crate) fn fresh_seed() -> u64 {
    SystemClock.now_ms().get() % 1_000_000_000
}

/// Runs a future to its end, or until somebody stops this process: then everything is taken down with it.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("the async runtime cannot start: {error}"))?;
    let done = runtime.block_on(async {
        tokio::select! {
            done = work => done,
            stopped = stop() => Err(stopped),
        }
    });
    // Nodes are killed when their handles are dropped, which is with the tasks that hold them.
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}

async fn stop() -> String {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    "stopped before the end".into()
}

impl Run {
    /// False: something that must hold does not.
    pub(crate) fn run(self) -> Result<bool, String> {
        let binary = self.nodes.find()?;
        let seed = self.seed.unwrap_or_else(fresh_seed);
        let chosen = if self.scenario == "all" { library::all()? } else { vec![library::find(&self.scenario)?] };
        let mut holds = true;
        for scenario in chosen {
            let scenario = match self.seconds {
                Some(seconds) => scenario.lasting(seconds)?,
                None => scenario,
            };
            let name = format!("{}-{seed}", scenario.name);
            let dir = match &self.dir {
                Some(dir) if self.scenario == "all" => dir.join(name),
                Some(dir) => dir.clone(),
                None => Path::new("chaos-runs").join(name),
            };
            let outline = self.one(scenario, seed, &dir, &binary)?;
            tell(&outline);
            holds &= outline.holds;
        }
        Ok(holds)
    }

    fn one(&self, scenario: Scenario, seed: u64, dir: &Path, binary: &Path) -> Result<Outline, String> {
        let Scenario { name, explained, nodes, duration_s, .. } = &scenario;
        println!("{name}: {explained}");
        println!("{nodes} nodes, {duration_s} s, faults: {}; seed {seed}", scenario.outline());
        let what = if self.scenario == "all" { name } else { &self.scenario };
        let seconds = self.seconds.map(|seconds| format!(" --seconds {seconds}")).unwrap_or_default();
        let replay = format!("chaos run {what} --seed {seed}{seconds}");
        block_on(run(RunOptions { scenario, seed, dir, binary, replay, quiet: false }))
    }
}

/// Violations that are printed.
const SHOWN: usize = 20;

/// The verdict, in a few lines.
fn tell(outline: &Outline) {
    let Outline { scenario, seed, operations, acknowledged, checked, duration_ms, page, .. } = outline;
    let word = if outline.holds { "holds".to_owned() } else { format!("BROKEN {:?}", outline.broken) };
    println!("{scenario} (seed {seed}): {word}");
    println!("{operations} operations, {acknowledged} ok, {checked} checks, {:.1} s", *duration_ms as f64 / 1e3);
    for (fault, times) in &outline.faults {
        let gap = outline.gaps_ms.get(fault).copied().unwrap_or(0);
        println!("  {fault:16} {times:>3} times, longest time without a write {gap:>6} ms");
    }
    outline.attack.iter().for_each(|line| println!("  {line}"));
    for what in outline.violations.iter().take(SHOWN) {
        println!("    {what}");
    }
    if let Some(more) = outline.violations.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        println!("    and {more} more, in the report");
    }
    println!("{}", page.display());
}

impl ListArgs {
    pub(crate) fn run(self) -> Result<bool, String> {
        for scenario in library::all()? {
            if self.names {
                println!("{}", scenario.name);
                continue;
            }
            println!(
                "{:22} {} nodes, {} s; faults: {}",
                scenario.name,
                scenario.nodes,
                scenario.duration_s,
                scenario.outline()
            );
            println!("{:22} {}", "", scenario.explained);
        }
        Ok(true)
    }
}

impl Soak {
    /// False: something that must hold did not.
    pub(crate) fn run(self) -> Result<bool, String> {
        soak::soak(&self)
    }
}
