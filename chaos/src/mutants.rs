//! The proof that the checkers find bugs: Tillsync is built with one bug at a time, and simulated until an invariant
//! breaks.
//!
//! A mutant is a patch in `chaos/mutants/`. Its first lines say what the bug is (`# …`); `# test: NAME` names the cargo
//! test that has to catch it, where the bug lies below what is simulated. The patches are applied to a copy of the tree
//! in a folder of its own, with a target folder of its own, so that the second mutant builds fast.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use clap::Args;

use crate::sim::sweep::Runner;

#[derive(Args)]
pub struct Options {
    /// Only mutants whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Where the copy of the tree and its target folder go, and stay
    #[arg(long, default_value_os_t = std::env::temp_dir().join("tillsync-mutants"))]
    folder: PathBuf,
    /// Seeds that a mutant may survive before it counts as a survivor
    #[arg(long, default_value_t = 60)]
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
}

struct Mutant {
    name: String,
    bug: String,
    /// The cargo test that has to fail.
    test: Option<String>,
    patch: PathBuf,
}

enum Fate {
    /// By what, and how.
    Caught(String, String),
    Survived(String),
}

pub fn run(options: &Options) -> Result<bool, String> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mutants = mutants(&tree.join("chaos/mutants"), options.only.as_deref())?;
    if mutants.is_empty() {
        return Err("no mutant has that name".into());
    }
    let workshop = Workshop { tree, copy: options.folder.join("tree"), target: options.folder.join("target") };
    workshop.restore()?;
    if !options.no_baseline {
        workshop.build()?;
        // A tenth of the seeds: what is proved here is that a broken run means a bug.
        let last = options.from + options.seeds.div_ceil(10);
        let broken = workshop.runner(options.jobs).until_broken(options.from, last);
        if let Some((seed, report)) = broken {
            return Err(format!("without any bug seed {seed} does not hold: {:?}", report.violations.first()));
        }
    }
    println!("{:26} {:8} {:52} bug", "mutant", "", "caught by");
    let mut all = true;
    for mutant in &mutants {
        let began = Instant::now();
        let fate = workshop.judge(mutant, options)?;
        let took = began.elapsed().as_secs();
        match fate {
            Fate::Caught(by, how) => {
                println!("{:26} caught   {by:52} {} ({took} s)", mutant.name, mutant.bug);
                eprintln!("    {how}");
            }
            Fate::Survived(what) => {
                all = false;
                println!("{:26} SURVIVED {what:52} {} ({took} s)", mutant.name, mutant.bug);
            }
        }
    }
    workshop.restore()?;
    Ok(all)
}

fn mutants(folder: &Path, only: Option<&str>) -> Result<Vec<Mutant>, String> {
    let read = || -> io::Result<Vec<Mutant>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let patch = entry?.path();
            let name = patch.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if patch.extension().is_none_or(|end| end != "patch") || only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let text = fs::read_to_string(&patch)?;
            let mut head = text.lines().map_while(|line| line.strip_prefix("# "));
            let bug = head.next().unwrap_or_default().to_owned();
            let test = head.find_map(|line| line.strip_prefix("test: ").map(str::to_owned));
            found.push(Mutant { name, bug, test, patch });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    };
    read().map_err(|error| format!("{}: {error}", folder.display()))
}

/// Where mutants are made.
struct Workshop {
    tree: PathBuf,
    copy: PathBuf,
    target: PathBuf,
}

impl Workshop {
    /// Makes the copy equal to the tree. Files that are equal are not touched, or cargo would build them again.
    fn restore(&self) -> Result<(), String> {
        let list = Command::new("git").args(["ls-files", "-z"]).current_dir(&self.tree).output();
        let list = succeeded("git ls-files", list)?;
        for name in String::from_utf8_lossy(&list.stdout).split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (self.tree.join(name), self.copy.join(name));
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

    fn cargo(&self, args: &[&str]) -> io::Result<Output> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args).current_dir(&self.copy).env("CARGO_TARGET_DIR", &self.target);
        cargo.env("CARGO_INCREMENTAL", "1").output()
    }

    fn build(&self) -> Result<(), String> {
        succeeded("cargo build", self.cargo(&["build", "-q", "-p", "chaos"])).map(drop)
    }

    fn runner(&self, jobs: u64) -> Runner {
        Runner::of(&self.target.join("debug/chaos"), jobs)
    }

    fn judge(&self, mutant: &Mutant, options: &Options) -> Result<Fate, String> {
        self.restore()?;
        let patch = mutant.patch.canonicalize().map_err(|error| error.to_string())?;
        // The copy may lie within a repository, whose rules must not apply.
        let applied = Command::new("git")
            .args(["apply", "--whitespace=nowarn"])
            .arg(&patch)
            .current_dir(&self.copy)
            .env("GIT_CEILING_DIRECTORIES", self.copy.parent().unwrap_or(&self.copy))
            .output();
        succeeded(&format!("git apply {}", patch.display()), applied)?;
        if let Some(test) = &mutant.test {
            return self.test(test);
        }
        self.build()?;
        let last = options.from + options.seeds - 1;
        Ok(match self.runner(options.jobs).until_broken(options.from, last) {
            None => Fate::Survived(format!("seeds {}..{last}", options.from)),
            Some((seed, report)) => {
                let by = format!("{} (seed {seed})", report.broken.join(" "));
                Fate::Caught(by, report.violations.first().map(|what| shorten(what)).unwrap_or_default())
            }
        })
    }

    fn test(&self, name: &str) -> Result<Fate, String> {
        succeeded("cargo test --no-run", self.cargo(&["test", "-q", "--lib", "--no-run"]))?;
        let ran = self.cargo(&["test", "-q", "--lib", name]).map_err(|error| error.to_string())?;
        if ran.status.success() {
            return Ok(Fate::Survived(format!("cargo test --lib {name}")));
        }
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let how = said.lines().find(|line| line.contains("panicked")).unwrap_or_default().to_owned();
        Ok(Fate::Caught(format!("cargo test --lib {name}"), shorten(&how)))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

fn succeeded(what: &str, done: io::Result<Output>) -> Result<Output, String> {
    let done = done.map_err(|error| format!("{what}: {error}"))?;
    if done.status.success() {
        return Ok(done);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let tail: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).take(20).collect();
    Err(format!("{what} failed:\n{}", tail.join("\n")))
}
