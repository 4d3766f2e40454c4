//! `chaos drill`: the failover drill for a shop.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tillsync::cli::target::TargetArgs;

use super::cluster::OperatedCluster;
use super::embedded::{self, Embedded};
use super::hooks::Hooks;
use super::play::Play;
use super::steps::{self, DrillScene, DrillStep};
use super::{ask, block_on};

#[derive(Args)]
pub(crate) struct Drill {
    /// How long it takes, about
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Tills that sell
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=64))]
    tills: u64,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "./chaos-drill")]
    out: PathBuf,
    /// The tillsync to run. Default: the one beside this program, or on the PATH
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// A running cluster, instead of one that is made for the drill (with --url)
    #[command(flatten)]
    target: TargetArgs,
    /// Faults of your own for a running cluster; see docs/chaos.md
    #[arg(long, value_name = "FILE", requires = "urls")]
    hooks: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes| (0.2..=120.0).contains(minutes));
    minutes.ok_or_else(|| "expected minutes, 0.2 to 120".into())
}

impl Drill {
    pub(crate) fn run(&self) -> Result<bool, String> {
        if self.target.urls.is_empty() { block_on(self.here()) } else { self.there() }
    }

    /// Of so many steps.
    fn slot(&self, steps: usize) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0 / steps.max(1) as f64)
    }

    async fn here(&self) -> Result<bool, String> {
        let program = embedded::program(self.binary.as_deref())?;
        println!("A cluster of three nodes is made on this machine for the drill, and removed afterwards.");
        let mut made = Embedded::start(&program).await?;
        let steps = steps::shop(self.slot(steps::shop(Duration::ZERO).len()));
        let scene = DrillScene { cluster: made.cluster.clone(), nodes: std::mem::take(&mut made.nodes) };
        println!("{} tills sell while the cluster is broken in {} ways.", self.tills, steps.len() - 1);
        let logs: Vec<_> = scene.nodes.iter().map(|node| (node.id, node.log())).collect();
        let machine = "three nodes of `tillsync dev` on one machine, over loopback";
        let held = self.play(scene, steps, format!("chaos drill --minutes {}", self.minutes), machine).run().await;
        let kept = embedded::keep_logs(&self.out, &logs);
        made.stop(held != Ok(true)).await;
        kept.map_err(|error| format!("the nodes' logs: {error}"))?;
        // Once more, with the logs.
        if let Ok((Some(about), history)) = crate::report::folder::load(&self.out) {
            crate::report::command::make(&self.out, &about, &history)?;
        }
        held
    }

    fn there(&self) -> Result<bool, String> {
        let target = self.target.resolve().map_err(|failure| failure.to_string())?;
        let hooks = self.hooks.as_deref().map(Hooks::read).transpose()?;
        let plan =
            hooks.as_ref().map_or(String::new(), |hooks| format!(", then runs these commands:\n{}", hooks.plan()));
        let plan = format!(
            "This sells in the table chaos_drill of the running cluster at {}, hands leadership to another node{plan}",
            target.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        );
        if !ask::sure(plan.trim_end(), self.yes)? {
            println!("nothing was done");
            return Ok(true);
        }
        let scene = DrillScene { cluster: OperatedCluster::new(target)?, nodes: Vec::new() };
        let hooks = hooks.map(|hooks| hooks.faults).unwrap_or_default();
        let steps = steps::elsewhere(true, hooks);
        block_on(self.play(scene, steps, "chaos drill --url …".into(), "a running cluster").run())
    }

    fn play(&self, scene: DrillScene, steps: Vec<DrillStep>, replay: String, machine: &str) -> Play {
        Play {
            scene,
            slot: self.slot(steps.len()),
            steps,
            tills: usize::try_from(self.tills).unwrap_or(1),
            name: "A failover drill".into(),
            replay,
            machine: machine.into(),
            out: self.out.clone(),
        }
    }
}
