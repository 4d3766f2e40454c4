//! `chaos target`: an operator's own running cluster, broken by the operator's own commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tillsync::cli::target::TargetArgs;

use super::cluster::OperatedCluster;
use super::hooks::Hooks;
use super::play::Play;
use super::steps::{self, DrillScene};
use super::{ask, block_on};

const CLIENTS: u64 = 6;
const SLOT: u64 = 15;
const OUT: &str = "./chaos-target";

#[derive(Args)]
pub(crate) struct DrillTarget {
    #[command(flatten)]
    target: TargetArgs,
    /// The commands that break and heal; see docs/chaos.md
    #[arg(long, value_name = "FILE")]
    hooks: PathBuf,
    /// Clients that write and read
    #[arg(long, default_value_t = CLIENTS, value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// Seconds for each fault, at least
    #[arg(long, default_value_t = SLOT, value_parser = clap::value_parser!(u64).range(1..=3600))]
    slot: u64,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = OUT)]
    out: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl DrillTarget {
    /// With all that is not given as it is by default.
    pub(crate) fn of(target: TargetArgs, hooks: PathBuf, out: Option<PathBuf>, yes: bool) -> Self {
        Self { target, hooks, clients: CLIENTS, slot: SLOT, out: out.unwrap_or_else(|| OUT.into()), yes }
    }

    pub(crate) fn run(&self) -> Result<bool, String> {
        if self.target.urls.is_empty() {
            return Err("--url is missing: say which cluster".into());
        }
        let target = self.target.resolve().map_err(|failure| failure.to_string())?;
        let hooks = Hooks::read(&self.hooks)?;
        let urls = target.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let plan = format!(
            "{}\nThe running cluster at {urls} is broken by these commands, while {} clients write to its table chaos_drill:\n{}",
            hooks.explained,
            self.clients,
            hooks.plan()
        );
        if !ask::sure(plan.trim(), self.yes)? {
            println!("nothing was done");
            return Ok(true);
        }
        let play = Play {
            scene: DrillScene { cluster: OperatedCluster::new(target)?, nodes: Vec::new() },
            steps: steps::elsewhere(false, hooks.faults),
            tills: usize::try_from(self.clients).unwrap_or(1),
            slot: Duration::from_secs(self.slot),
            name: "Faults of the operator's own".into(),
            replay: format!("chaos target --url {} --hooks {}", urls.replace(' ', ","), self.hooks.display()),
            machine: "a running cluster".into(),
            out: self.out.clone(),
        };
        block_on(play.run())
    }
}
