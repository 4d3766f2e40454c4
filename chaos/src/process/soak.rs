//! Many runs: all scenarios, again and again, each time with another seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::commands::{Soak, block_on, fresh_seed};
use super::library;
use super::run::{Outline, RunOptions, run};
use super::scenario::Scenario;

/// What became of one kind of fault.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SoakLine {
    pub times: u64,
    /// Runs in which it struck, and operations checked in them.
    pub runs: u64,
    pub operations: u64,
    pub longest_gap_ms: u64,
    /// Runs with it in which something did not hold.
    pub broken: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SoakTable {
    pub runs: u64,
    pub operations: u64,
    pub acknowledged: u64,
    pub checks: u64,
    pub seconds: f64,
    pub faults: BTreeMap<String, SoakLine>,
    /// Scenario, seed and what did not hold.
    pub broken: Vec<(String, u64, Vec<String>)>,
    /// What could not be injected here.
    pub notes: Vec<String>,
}

impl SoakTable {
    pub(super) fn add(&mut self, outline: &Outline) {
        self.runs += 1;
        self.operations += outline.operations;
        self.acknowledged += outline.acknowledged;
        self.checks += outline.checked;
        for (fault, times) in &outline.faults {
            let line = self.faults.entry(fault.clone()).or_default();
            line.times += times;
            line.runs += 1;
            line.operations += outline.operations;
            line.longest_gap_ms = line.longest_gap_ms.max(outline.gaps_ms.get(fault).copied().unwrap_or(0));
            line.broken += u64::from(!outline.holds);
        }
        if !outline.holds {
            self.broken.push((outline.scenario.clone(), outline.seed, outline.violations.clone()));
        }
        for note in &outline.notes {
            if !self.notes.contains(note) {
                self.notes.push(note.clone());
            }
        }
    }

    fn print(&self) {
        let Self { runs, operations, acknowledged, checks, seconds, .. } = self;
        println!("{runs} runs, {operations} operations, {acknowledged} acknowledged, {checks} checks, {seconds:.0} s");
        println!(
            "{:16} {:>6} {:>6} {:>11} {:>24}  result",
            "fault", "times", "runs", "operations", "longest without a write"
        );
        for (fault, line) in &self.faults {
            let SoakLine { times, runs, operations, longest_gap_ms, broken } = line;
            let result = if *broken == 0 { "holds".to_owned() } else { format!("{broken} BROKEN") };
            println!("{fault:16} {times:>6} {runs:>6} {operations:>11} {longest_gap_ms:>21} ms  {result}");
        }
        for (scenario, seed, _) in &self.broken {
            println!("chaos run {scenario} --seed {seed}");
        }
    }
}

fn write(table: &SoakTable, dir: &Path) -> Result<(), String> {
    let path = dir.join("soak.json");
    let text = serde_json::to_string_pretty(table).map_err(|error| error.to_string())?;
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

pub(super) fn soak(options: &Soak) -> Result<bool, String> {
    if !(0.0..=10_000.0).contains(&options.hours) {
        return Err("--hours: must be 0 to 10000".into());
    }
    let binary = options.nodes.find()?;
    let mut scenarios = library::all()?;
    if !options.only.is_empty() {
        scenarios = options.only.iter().map(|name| library::find(name)).collect::<Result<_, _>>()?;
    }
    fs::create_dir_all(&options.dir).map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let began = Instant::now();
    let lasts = Duration::from_secs_f64(options.hours * 3_600.0);
    let mut seed = options.seed.unwrap_or_else(fresh_seed);
    let mut table = SoakTable::default();
    // At least one round of what was asked for would be no soak: time alone ends it.
    'rounds: loop {
        for chunk in scenarios.chunks(options.jobs as usize) {
            if began.elapsed() >= lasts {
                break 'rounds;
            }
            let first = seed;
            seed += chunk.len() as u64;
            let ran = block_on(async {
                let runs = chunk.iter().zip(first..).map(|(scenario, seed)| one(scenario, seed, options, &binary));
                Ok(futures_util::future::join_all(runs).await)
            })?;
            for outline in ran {
                let outline = outline?;
                tell(&outline);
                table.add(&outline);
            }
            table.seconds = began.elapsed().as_secs_f64();
            write(&table, &options.dir)?;
        }
        table.print();
    }
    table.print();
    Ok(table.broken.is_empty())
}

/// One run; the folder of one that holds is removed.
async fn one(scenario: &Scenario, seed: u64, options: &Soak, binary: &Path) -> Result<Outline, String> {
    let dir = options.dir.join(format!("{}-{seed}", scenario.name));
    let replay = format!("chaos run {} --seed {seed}", scenario.name);
    let outline = run(RunOptions { scenario: scenario.clone(), seed, dir: &dir, binary, replay, quiet: true }).await?;
    if outline.holds {
        // What cannot be removed does no harm.
        let _ = fs::remove_dir_all(&dir);
    }
    Ok(outline)
}

fn tell(outline: &Outline) {
    let Outline { scenario, seed, operations, checked, gaps_ms, .. } = outline;
    let word = if outline.holds { "holds".to_owned() } else { format!("BROKEN {:?}", outline.broken) };
    let gap = gaps_ms.iter().filter(|(name, _)| *name != "no_majority").map(|(_, gap)| *gap).max().unwrap_or(0);
    println!("{scenario:22} seed {seed}: {word}; {operations} operations, {checked} checks, longest gap {gap} ms");
    for what in outline.violations.iter().take(5) {
        println!("    {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts_by_fault() {
        let run = |holds, gap| Outline {
            scenario: "storm".into(),
            seed: 7,
            holds,
            violations: if holds { Vec::new() } else { vec!["one_log: two".into()] },
            faults: [("kill".to_owned(), 2)].into(),
            gaps_ms: [("kill".to_owned(), gap)].into(),
            operations: 10,
            ..Outline::default()
        };
        let mut table = SoakTable::default();
        table.add(&run(true, 900));
        table.add(&run(false, 400));
        let line = &table.faults["kill"];
        assert_eq!((line.times, line.runs, line.operations, line.longest_gap_ms, line.broken), (4, 2, 20, 900, 1));
        assert_eq!(table.broken.len(), 1);
    }
}
