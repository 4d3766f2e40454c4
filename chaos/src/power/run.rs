//! One run: lives of a program on a disk that fails, one after the other, and what was found of it each time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::child::{self, LifeLoad};
use super::device::BlockDevice;
use super::faults::DiskOp;
use super::known::AcknowledgedLog;
use super::mount::Mount;
use super::plan::{Life, PowerPlan, PowerRunKind};
use super::program::{Program, ProgramDeath, channel};
use super::serve::PoweredNode;
use crate::rng::Rng;

/// A life is cut by then at the latest.
const LIFE: Duration = Duration::from_secs(10);
/// A program that must end by itself may take so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long a program may go on after a fault struck.
const GRACE: Duration = Duration::from_secs(8);
/// What is quoted of the program's own log.
const QUOTE: usize = 1_500;

/// What became of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct PowerOutcome {
    pub seed: u64,
    pub kind: String,
    /// Starts of the program, how many of them got the data open, power cuts, and faults that struck.
    pub lives: u64,
    pub opens: u64,
    pub cuts: u64,
    pub faults: u64,
    pub acknowledged: u64,
    /// Acknowledged entries that were looked at after a start.
    pub checked: u64,
    /// What the program said when it stopped or did not start.
    pub refusals: Vec<String>,
    pub violations: Vec<String>,
}

/// A disk with a program on it.
pub(super) struct PoweredDisk {
    pub device: Arc<BlockDevice>,
    pub mount_point: PathBuf,
    pub log: PathBuf,
}

impl PoweredDisk {
    fn new(folder: &Path, journal: bool) -> io::Result<Self> {
        let mount_point = folder.join("disk");
        fs::create_dir_all(&mount_point)?;
        let log = folder.join("program.log");
        fs::write(&log, "")?;
        Ok(Self { device: Arc::new(BlockDevice::new(journal)), mount_point, log })
    }

    /// What the program wrote to its log from here on.
    fn words(&self, from: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
    }
}

/// The program, and what is known of what it was told.
enum Subject {
    Storage(Box<AcknowledgedLog>),
    Node(Arc<PoweredNode>, tokio::runtime::Runtime),
}

impl Subject {
    fn new(kind: PowerRunKind, binary: &Path, bench: &PoweredDisk, folder: &Path) -> io::Result<Self> {
        if !kind.is_whole() {
            return Ok(Self::Storage(Box::default()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self::Node(Arc::new(PoweredNode::new(binary, bench, folder)?), runtime))
    }

    fn opens(&self) -> u64 {
        match self {
            Self::Storage(known) => known.opens,
            Self::Node(node, _) => node.ledger().lock().opens,
        }
    }

    fn take_violations(&mut self) -> Vec<String> {
        match self {
            Self::Storage(known) => std::mem::take(&mut known.violations),
            Self::Node(node, _) => std::mem::take(&mut node.ledger().lock().violations),
        }
    }

    fn figures(&self) -> (u64, u64) {
        match self {
            Self::Storage(known) => (known.acknowledged, known.checked),
            Self::Node(node, _) => {
                let ledger = node.ledger();
                let ledger = ledger.lock();
                (ledger.acknowledged(), ledger.checked)
            }
        }
    }

    /// How the program ended, and what it said of why.
    fn live(&mut self, bench: &PoweredDisk, life: &Life) -> io::Result<(ProgramDeath, String)> {
        let events = channel();
        bench.device.arm(life.cut, life.faults, events.0.clone());
        let limit = if life.load == LifeLoad::Short { PATIENCE } else { LIFE };
        let begin = bench.words(0).len();
        match self {
            Self::Storage(known) => {
                known.refusal = None;
                let command = child::command(&bench.mount_point.join("data"), life.seed, life.load)?;
                let program = Program::start(command, &bench.log, events)?;
                let end = program.follow(&bench.device, limit, GRACE, |line| known.hear(line))?;
                Ok((end, known.refusal.take().unwrap_or_else(|| bench.words(begin))))
            }
            Self::Node(node, runtime) => {
                let program = Program::start(node.command(), &bench.log, events)?;
                let (devices, life, process) = (node.clone(), life.clone(), program.id());
                let working = runtime.spawn(async move { devices.devices(&life, process).await });
                let end = program.follow(&bench.device, limit, GRACE * 2, |_| {});
                working.abort();
                // Aborted, or ended before: what it knows does not change any more.
                let _ = runtime.block_on(working);
                Ok((end?, bench.words(begin)))
            }
        }
    }
}

pub(super) fn run(seed: u64, kind: Option<PowerRunKind>, binary: &Path, folder: &Path) -> io::Result<PowerOutcome> {
    let plan = PowerPlan::of(seed, kind);
    let bench = PoweredDisk::new(folder, plan.journal)?;
    // What a cut leaves hangs on nothing that happened before.
    let mut losses = Rng::new(seed).fork();
    let mut subject = Subject::new(plan.kind, binary, &bench, folder)?;
    let mut outcome = PowerOutcome { seed, kind: plan.kind.to_string(), ..PowerOutcome::default() };
    let mut before: Option<&Life> = None;
    for (number, life) in plan.lives.iter().enumerate() {
        let opens = subject.opens();
        let mount = Mount::new(bench.device.clone(), &bench.mount_point)?;
        let (end, why) = subject.live(&bench, life)?;
        mount.end()?;
        bench.device.cut(life.loss, &mut losses);
        let struck = bench.device.struck();
        outcome.lives += 1;
        outcome.faults += u64::from(struck > 0);
        outcome.cuts += u64::from(matches!(end, ProgramDeath::PowerLost | ProgramDeath::TimeOver));
        let mut broken = subject.take_violations();
        match judge(life, &end, struck, subject.opens() > opens, &why) {
            Ok(refusal) => outcome.refusals.extend(refusal.map(|what| what.replace(&*folder.to_string_lossy(), "…"))),
            Err(what) => broken.push(what),
        }
        let was = before.map_or("nothing".into(), describe);
        outcome.violations.extend(broken.into_iter().map(|what| format!("life {number}: {what} [before it: {was}]")));
        if !outcome.violations.is_empty() {
            break;
        }
        before = Some(life);
    }
    outcome.opens = subject.opens();
    (outcome.acknowledged, outcome.checked) = subject.figures();
    Ok(outcome)
}

fn describe(life: &Life) -> String {
    format!("{:?} {:?} {:?}, {}", life.load, life.cut, life.faults, life.loss)
}

fn quote(why: &str) -> String {
    let from = why.char_indices().rev().nth(QUOTE).map_or(0, |(at, _)| at);
    why[from..].trim().replace('\n', " | ")
}

/// What is to be thought of how a life ended: why the program stopped, if it may, or what is wrong with that.
fn judge(life: &Life, end: &ProgramDeath, struck: u64, opened: bool, why: &str) -> Result<Option<String>, String> {
    let sync_failed =
        struck > 0 && life.faults.fail.is_some_and(|fail| matches!(fail.op, DiskOp::Sync | DiskOp::FullSync));
    let status = match end {
        ProgramDeath::PowerLost => return Ok(None),
        ProgramDeath::TimeOver if sync_failed => {
            return Err(format!("it goes on though a sync failed: {}", quote(why)));
        }
        ProgramDeath::TimeOver if life.load == LifeLoad::Short || !opened => {
            return Err(format!("it hangs, having opened its data: {opened}; {}", quote(why)));
        }
        ProgramDeath::TimeOver => return Ok(None),
        ProgramDeath::Exited(status) => status,
    };
    match status.code() {
        Some(0) if life.load == LifeLoad::Short => Ok(None),
        // Not by a signal, and not by a panic.
        Some(code) if code > 0 && code < 100 => {
            let verb = if opened { "stops" } else { "does not start" };
            let last = why.lines().last().unwrap_or_default();
            if struck == 0 {
                Err(format!("it {verb} on a disk without a fault: {}", quote(why)))
            } else if !names_the_fault(life, why) {
                Err(format!("it {verb} and does not say what is wrong with the disk: {}", quote(why)))
            } else {
                Ok(Some(format!("{verb}: {}", quote(last))))
            }
        }
        _ => Err(format!("it ended with {status}: {}", quote(why))),
    }
}

fn names_the_fault(life: &Life, why: &str) -> bool {
    let words: &[&str] = match life.faults.room {
        Some(_) => &["No space left"],
        None => &["Input/output error"],
    };
    words.iter().any(|word| why.contains(word))
}
