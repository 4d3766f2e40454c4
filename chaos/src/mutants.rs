//! The proof that the checkers find bugs: Tillsync is built with one bug at a time, and simulated until an invariant
//! breaks.
//!
//! A mutant is a patch in `chaos/mutants/`. Its first line says what the bug is (`# …`). `# test: NAME` names the cargo
//! test that has to catch it instead, where the bug lies below what is simulated or what only a test can see;
//! `# sim and test: NAME` asks for both; `# power: N [KIND]` says within how many runs of `chaos power` it has to be
//! found; `# sim and process: SCENARIO` asks for a run on real processes as well. Every patch asks `crate::mutant("its name")` whether its bug is on, so all of
//! them are applied to one copy of the tree and built once; a bug is turned on by the environment. The tree itself
//! knows nothing of it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use crate::child::{self, ProgramEnd};
use crate::sim::sweep::Runner;

/// What the copy's `lib.rs` gets.
const SWITCH: &str = r#"
/// Whether this bug on purpose is on.
pub fn mutant(name: &str) -> bool {
    static ON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("TILLSYNC_MUTANT").unwrap_or_default()) == name
}
"#;
pub(crate) const ON: &str = "TILLSYNC_MUTANT";

/// A build or a test that takes longer hangs.
const BUILD: Duration = Duration::from_secs(3_600);
const TEST: Duration = Duration::from_secs(600);
/// Runs on real processes within which a bug has to be found.
const PROCESS_RUNS: u64 = 3;

#[derive(Args)]
pub(crate) struct MutantOptions {
    /// Only mutants whose name contains one of these, with commas in between
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the copy of the tree and its target folder go, and stay
    #[arg(long, default_value_os_t = std::env::temp_dir().join("tillsync-mutants"))]
    folder: PathBuf,
    /// Seeds that a mutant may survive before it counts as a survivor
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Seeds at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// Do not first see the tree without a bug pass
    #[arg(long)]
    no_baseline: bool,
    /// At the end, the table for docs/reliability.md
    #[arg(long)]
    markdown: bool,
}

struct Mutant {
    name: String,
    bug: String,
    /// Simulated runs have to break.
    sim: bool,
    /// The cargo test that has to fail.
    test: Option<String>,
    /// The power runs, and of which kind if not of all, within which it has to be found.
    power: Option<String>,
    /// The scenario on real processes that has to break as well.
    process: Option<String>,
    patch: PathBuf,
}

enum MutantResult {
    /// By what, and how.
    Caught(String, String),
    Survived(String),
    /// It could not be judged.
    Unfit(String),
}

impl fmt::Display for MutantResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(by, _) => write!(f, "{by}"),
            Self::Survived(what) => write!(f, "SURVIVED {what}"),
            Self::Unfit(why) => write!(f, "UNFIT {}", why.lines().next().unwrap_or_default()),
        }
    }
}

pub(crate) fn run(options: &MutantOptions) -> Result<bool, String> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let workshop = Workshop { copy: options.folder.join("tree"), target: options.folder.join("target") };
    let all = mutants(&tree.join("chaos/mutants"))?;
    // Made elsewhere first, so that what stays as the last run left it need not be built again.
    let stage = options.folder.join("stage");
    fill(&tree, &tree, &stage)?;
    infect(&stage, &all)?;
    fill(&tree, &stage, &workshop.copy)?;
    let wanted = |mutant: &Mutant| options.only.is_empty() || options.only.iter().any(|o| mutant.name.contains(o));
    let mutants: Vec<Mutant> = all.into_iter().filter(wanted).collect();
    if mutants.is_empty() {
        return Err("no mutant has that name".into());
    }
    let shop =
        MutantWorkshop { seeds: workshop.build()?, tests: workshop.build_tests()?, folder: workshop.copy.clone() };
    if !options.no_baseline {
        // A tenth of the seeds: what is proved here is that a broken run means a bug.
        let last = options.from + options.seeds.div_ceil(10);
        let broken = shop.runner("", options.jobs).until_broken(options.from, last);
        if let Some((seed, report)) = broken {
            return Err(format!("without any bug seed {seed} does not hold: {:?}", report.violations.first()));
        }
        for test in mutants.iter().filter_map(|mutant| mutant.test.as_deref()).collect::<BTreeSet<_>>() {
            if let Some(how) = shop.fails("", test)? {
                return Err(format!("without any bug the test {test} fails: {how}"));
            }
        }
    }
    let mut fates = Vec::new();
    for mutant in &mutants {
        let began = Instant::now();
        let fate = shop.judge(mutant, options).unwrap_or_else(MutantResult::Unfit);
        println!("{:26} {fate} ({} s)", mutant.name, began.elapsed().as_secs());
        match &fate {
            MutantResult::Caught(_, how) => println!("    {how}"),
            MutantResult::Unfit(why) => println!("    {why}"),
            MutantResult::Survived(_) => println!("    {}", mutant.bug),
        }
        fates.push(fate);
    }
    let caught = fates.iter().filter(|fate| matches!(fate, MutantResult::Caught(..))).count();
    if options.markdown {
        println!("\n| mutant | bug | caught by |\n|---|---|---|");
        for (Mutant { name, bug, .. }, fate) in mutants.iter().zip(&fates) {
            println!("| `{name}` | {bug} | {fate} |");
        }
        println!();
    }
    println!("{caught} of {} mutants caught", mutants.len());
    Ok(caught == mutants.len())
}

/// In the order of their names.
fn mutants(folder: &Path) -> Result<Vec<Mutant>, String> {
    let read = || -> io::Result<Vec<Mutant>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let patch = entry?.path();
            let name = patch.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if patch.extension().is_none_or(|end| end != "patch") {
                continue;
            }
            found.push(Mutant::of(name, &fs::read_to_string(&patch)?, patch));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    };
    read().map_err(|error| format!("{}: {error}", folder.display()))
}

impl Mutant {
    fn of(name: String, text: &str, patch: PathBuf) -> Self {
        let mut head = text.lines().map_while(|line| line.strip_prefix("# "));
        let bug = head.next().unwrap_or_default().to_owned();
        let how = head.next().unwrap_or_default();
        let also = how.strip_prefix("sim and test: ");
        let test = also.or_else(|| how.strip_prefix("test: ")).map(str::to_owned);
        let power = how.strip_prefix("power: ").map(str::to_owned);
        let process = how.strip_prefix("sim and process: ").map(str::to_owned);
        let sim = also.is_some() || (test.is_none() && power.is_none());
        Self { name, bug, sim, test, power, process, patch }
    }
}

/// Where mutants are made.
struct Workshop {
    copy: PathBuf,
    target: PathBuf,
}

impl Workshop {
    fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args).current_dir(&self.copy).env("CARGO_TARGET_DIR", &self.target);
        // With assertions, and ten times as many seeds a minute as a build that is not optimised at all.
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        cargo
    }

    /// The program that simulates, and beside it the one that it starts as nodes.
    fn build(&self) -> Result<PathBuf, String> {
        succeeded("cargo build", child::run(&mut self.cargo(&["build", "-q", "--workspace", "--bins"]), BUILD))?;
        Ok(self.target.join("debug/chaos"))
    }

    /// The program that tests.
    fn build_tests(&self) -> Result<PathBuf, String> {
        let build = ["test", "--lib", "--no-run", "-q", "--message-format", "json"];
        let built = succeeded("cargo test --no-run", child::run(&mut self.cargo(&build), BUILD))?;
        let artifacts = built.out.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let program = artifacts.filter_map(|line| line["executable"].as_str().map(PathBuf::from)).next_back();
        program.ok_or_else(|| "cargo test made no program".into())
    }
}

/// Makes a copy of what git knows of the tree, as it is in `from`. Files that are equal are not touched.
fn fill(tree: &Path, from: &Path, copy: &Path) -> Result<(), String> {
    let list = child::run(Command::new("git").args(["ls-files", "-z"]).current_dir(tree), TEST);
    let list = succeeded("git ls-files", list)?;
    for name in list.out.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (from.join(name), copy.join(name));
        // Deleted here and not committed yet.
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        let write = || {
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&to, &bytes)
        };
        write().map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(())
}

/// Applies all patches, one after the other.
fn infect(copy: &Path, all: &[Mutant]) -> Result<(), String> {
    for mutant in all {
        let patch = mutant.patch.canonicalize().map_err(|error| error.to_string())?;
        let mut git = Command::new("git");
        git.args(["apply", "--whitespace=nowarn"]).arg(patch).current_dir(copy);
        // The copy may lie within a repository, whose rules must not apply.
        git.env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy));
        succeeded(&format!("the patch of {}", mutant.name), child::run(&mut git, TEST))?;
    }
    let lib = copy.join("src/lib.rs");
    let text = fs::read_to_string(&lib).map_err(|error| error.to_string())?;
    fs::write(&lib, text + SWITCH).map_err(|error| error.to_string())
}

/// Where mutants are judged.
struct MutantWorkshop {
    seeds: PathBuf,
    tests: PathBuf,
    folder: PathBuf,
}

impl MutantWorkshop {
    fn runner(&self, mutant: &str, jobs: u64) -> Runner {
        Runner::of(&self.seeds, jobs).with((ON.into(), mutant.into()))
    }

    fn judge(&self, mutant: &Mutant, options: &MutantOptions) -> Result<MutantResult, String> {
        let mut caught = Vec::new();
        let mut seen = String::new();
        if mutant.sim {
            let last = options.from + options.seeds - 1;
            let Some((seed, report)) = self.runner(&mutant.name, options.jobs).until_broken(options.from, last) else {
                return Ok(MutantResult::Survived(format!("seeds {}..{last}", options.from)));
            };
            caught.push(format!("{} (seed {seed})", report.broken.join(" ")));
            seen = report.violations.first().cloned().unwrap_or_default();
        }
        if let Some(test) = &mutant.test {
            let Some(how) = self.fails(&mutant.name, test)? else {
                return Ok(MutantResult::Survived(format!("cargo test --lib {test}")));
            };
            caught.push(format!("`cargo test --lib {test}`"));
            seen = if seen.is_empty() { how } else { seen };
        }
        if let Some(scenario) = &mutant.process {
            let Some((by, how)) = self.process(&mutant.name, scenario)? else {
                return Ok(MutantResult::Survived(format!("{PROCESS_RUNS} runs of {scenario}")));
            };
            caught.push(by);
            seen = if seen.is_empty() { how } else { seen };
        }
        if let Some(runs) = &mutant.power {
            return self.power(&mutant.name, runs);
        }
        Ok(MutantResult::Caught(caught.join(", "), seen.chars().take(300).collect()))
    }

    /// A bug below what is simulated, which power cuts and bad disks have to find.
    fn power(&self, mutant: &str, runs: &str) -> Result<MutantResult, String> {
        let (count, kind) = runs.split_once(' ').map_or((runs, None), |(count, kind)| (count, Some(kind)));
        let mut chaos = Command::new(&self.seeds);
        chaos.args(["power", "--json", "--until-broken", "--runs", count]).env(ON, mutant);
        let ProgramEnd { success, out, err } =
            child::run(chaos.args(kind.iter().flat_map(|kind| ["--kind", kind])), BUILD)?;
        if success {
            return Ok(MutantResult::Survived(format!("power --runs {runs}")));
        }
        let last: Option<serde_json::Value> = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let Some(how) = last.as_ref().and_then(|last| last["violations"][0].as_str()) else {
            return Err(format!("chaos power: {err}"));
        };
        let by = last
            .as_ref()
            .map(|last| format!("power {} (seed {})", last["kind"].as_str().unwrap_or_default(), last["seed"]));
        Ok(MutantResult::Caught(by.unwrap_or_default(), how.chars().take(300).collect()))
    }

    /// A run on real processes that breaks, and what it says.
    fn process(&self, mutant: &str, scenario: &str) -> Result<Option<(String, String)>, String> {
        let dir = self.folder.join("target-run");
        for seed in 1..=PROCESS_RUNS {
            let mut chaos = Command::new(&self.seeds);
            chaos.args(["run", scenario, "--seed", &seed.to_string(), "--dir"]).arg(&dir).env(ON, mutant);
            let done = child::run(chaos.arg("--binary").arg(self.seeds.with_file_name("tillsync")), TEST)?;
            if done.success {
                continue;
            }
            let report = fs::read(dir.join("report.json")).map_err(|_| format!("chaos run: {}", done.err))?;
            let report: serde_json::Value = serde_json::from_slice(&report).map_err(|error| error.to_string())?;
            let invariants = report["invariants"].as_array().map_or(&[][..], |all| all);
            let broken: Vec<_> = invariants.iter().filter(|found| found["holds"] == false).collect();
            let names: Vec<_> = broken.iter().filter_map(|found| found["name"].as_str()).collect();
            let how = broken.first().map(|found| found["violations"].to_string()).unwrap_or_default();
            return Ok(Some((format!("{} ({scenario}, seed {seed})", names.join(" ")), how)));
        }
        Ok(None)
    }

    /// What a test says when it fails.
    fn fails(&self, mutant: &str, name: &str) -> Result<Option<String>, String> {
        let mut test = Command::new(&self.tests);
        test.arg(name).current_dir(&self.folder).env(ON, mutant);
        // That it fails is enough: the smallest case is not looked for, nor kept for the next mutant.
        test.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        let ProgramEnd { success, out, err } = match child::run(&mut test, TEST) {
            Ok(done) => done,
            Err(hangs) => return Ok(Some(hangs)),
        };
        if success {
            let none = out.contains("running 0 tests");
            return if none { Err(format!("no test is named {name}")) } else { Ok(None) };
        }
        let mut said = out.lines().chain(err.lines()).skip_while(|line| !line.contains("panicked"));
        Ok(Some(said.by_ref().take(2).collect::<Vec<_>>().join(" ")))
    }
}

fn succeeded(what: &str, done: Result<ProgramEnd, String>) -> Result<ProgramEnd, String> {
    let done = done.map_err(|error| format!("{what}: {error}"))?;
    if done.success {
        return Ok(done);
    }
    let tail: Vec<_> = done.err.lines().filter(|line| !line.trim().is_empty()).take(20).collect();
    Err(format!("{what} failed:\n{}", tail.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_has_to_catch_it() {
        let mutant = |head: &str| {
            let Mutant { bug, sim, test, process, .. } =
                Mutant::of("m".into(), &format!("{head}--- a/x\n# no\n"), PathBuf::new());
            (bug, sim, test.or(process))
        };
        assert_eq!(mutant("# a bug\n"), ("a bug".into(), true, None));
        assert_eq!(mutant("# a bug\n# test: t\n"), ("a bug".into(), false, Some("t".into())));
        assert_eq!(mutant("# a bug\n# sim and test: t\n"), ("a bug".into(), true, Some("t".into())));
        assert_eq!(mutant("# a bug\n# sim and process: p\n"), ("a bug".into(), true, Some("p".into())));
    }

    /// Patches that do not apply prove nothing any more.
    #[test]
    fn all_patches_apply_to_the_tree() {
        if child::run(Command::new("git").arg("--version"), TEST).is_err() {
            println!("skipped: there is no git here");
            return;
        }
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let copy = tempfile::tempdir().unwrap();
        fill(&tree, &tree, copy.path()).unwrap();
        let all = mutants(&tree.join("chaos/mutants")).unwrap();
        assert!(all.len() >= 12, "{}", all.len());
        infect(copy.path(), &all).unwrap();
        for mutant in all {
            let text = fs::read_to_string(&mutant.patch).unwrap();
            let switch = format!("crate::mutant(\"{}\")", mutant.name);
            assert!(mutant.bug.ends_with('.') && text.contains(&switch), "{}", mutant.name);
        }
    }
}
