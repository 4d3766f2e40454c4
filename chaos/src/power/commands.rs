//! `chaos power`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::mount;
use super::plan::PowerRunKind;
use super::run::{self, PowerOutcome};
use crate::starter;

/// Shown by whoever looks whether a run took place at all.
pub(crate) const NO_MOUNT: &str = "no file system of our own can be mounted here";

#[derive(Args)]
pub(crate) struct PowerArgs {
    /// How many runs, with the seeds from `--seed` on
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    runs: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only runs of this kind; otherwise the seed says which
    #[arg(long)]
    kind: Option<PowerRunKind>,
    /// Where the mount points and the programs' logs go
    #[arg(long, default_value_os_t = std::env::temp_dir().join("tillsync-power"))]
    dir: PathBuf,
    /// The node of the runs with a whole node; by default the one beside this program
    #[arg(long)]
    binary: Option<PathBuf>,
    /// End with the first run that does not hold
    #[arg(long)]
    until_broken: bool,
    /// Outcomes as JSON, one line a run
    #[arg(long)]
    json: bool,
}

impl PowerArgs {
    /// False: something acknowledged was lost, or a node did not start again.
    pub(crate) fn run(self) -> Result<bool, String> {
        mount::own_namespace().map_err(|error| format!("{NO_MOUNT}: a namespace for mounts: {error}"))?;
        if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
            return Err(format!("{NO_MOUNT}: /dev/fuse: {error}"));
        }
        let folder = self.folder().map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let binary = self.binary()?;
        if binary.is_none() {
            eprintln!("no tillsync beside this program, and no --binary: runs with a whole node are left out");
        }
        let began = Instant::now();
        let mut outcomes = Vec::new();
        for seed in self.seed..self.seed + self.runs {
            if binary.is_none() && self.kind.unwrap_or(PowerRunKind::of(seed)).is_whole() {
                continue;
            }
            let place = folder.join(format!("seed-{seed}"));
            let outcome = run::run(seed, self.kind, binary.as_deref().unwrap_or(Path::new("")), &place)
                .map_err(|error| format!("seed {seed}: {error}"))?;
            self.tell(&outcome);
            if outcome.violations.is_empty() {
                fs::remove_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
            }
            let broken = !outcome.violations.is_empty();
            outcomes.push(outcome);
            if broken && self.until_broken {
                break;
            }
        }
        // Not empty where a failed run left its log.
        let _ = fs::remove_dir(&folder);
        if !self.json {
            print(&outcomes, began.elapsed().as_secs());
        }
        Ok(outcomes.iter().all(|outcome| outcome.violations.is_empty()))
    }

    fn binary(&self) -> Result<Option<PathBuf>, String> {
        if let Some(given) = &self.binary {
            let found = given.canonicalize().map_err(|error| format!("--binary {}: {error}", given.display()))?;
            return Ok(Some(found));
        }
        Ok(Some(starter::beside()?).filter(|beside| beside.exists()))
    }

    /// This process's own folder. Those of processes that are gone are removed.
    fn folder(&self) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.dir)?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()?.strip_prefix("run-")?.parse::<u32>().ok());
            if id.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
                fs::remove_dir_all(&path)?;
            }
        }
        let folder = self.dir.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        folder.canonicalize()
    }

    fn tell(&self, outcome: &PowerOutcome) {
        if self.json {
            println!("{}", serde_json::to_string(outcome).unwrap_or_default());
        } else if !outcome.violations.is_empty() {
            let PowerOutcome { seed, kind, .. } = outcome;
            println!("seed {seed} ({kind}): BROKEN");
            outcome.violations.iter().take(5).for_each(|what| println!("    {what}"));
            println!("    cargo run -p chaos -- power --seed {seed} --runs 1 --kind {kind}");
        }
    }
}

const FIGURES: [fn(&PowerOutcome) -> u64; 5] =
    [|o| o.lives, |o| o.cuts, |o| o.faults, |o| o.acknowledged, |o| o.checked];

fn print(outcomes: &[PowerOutcome], seconds: u64) {
    let mut kinds: BTreeMap<&str, Vec<&PowerOutcome>> = BTreeMap::new();
    outcomes.iter().for_each(|outcome| kinds.entry(&outcome.kind).or_default().push(outcome));
    let head = ["runs", "starts", "cuts", "faults", "acknowledged", "checked"];
    print!("{:12}", "kind");
    head.iter().for_each(|head| print!(" {head:>12}"));
    println!("  result");
    let all: Vec<&PowerOutcome> = outcomes.iter().collect();
    for (kind, of) in kinds.iter().map(|(kind, of)| (*kind, of)).chain([("all", &all)]) {
        let sum = |what: fn(&PowerOutcome) -> u64| of.iter().map(|outcome| what(outcome)).sum::<u64>();
        let broken = of.iter().filter(|outcome| !outcome.violations.is_empty()).count();
        print!("{kind:12} {:>12}", of.len());
        for what in FIGURES {
            print!(" {:>12}", sum(what));
        }
        println!("  {}", if broken == 0 { "holds".to_owned() } else { format!("{broken} BROKEN") });
    }
    let mut refusals: BTreeMap<&str, u64> = BTreeMap::new();
    outcomes.iter().flat_map(|o| &o.refusals).for_each(|why| *refusals.entry(why).or_default() += 1);
    if !refusals.is_empty() {
        println!("what nodes said when they stopped, or did not start:");
        refusals.iter().for_each(|(why, times)| println!("{times:>6} × {why}"));
    }
    println!("{} runs in {seconds} s", outcomes.len());
}
