//! One run of a scenario: a cluster, clients, faults, the end, the verdict.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use tillsync::clock::{Clock, SystemClock};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::cluster::{ClusterPlan, ProcessCluster};
use super::kind::FaultKind;
use super::scenario::Scenario;
use super::workload::Workload;
use super::world::ProcessWorld;
use super::{allowed, ending, faults, hostile, monitor, narrow, progress, times};
use crate::checker::{Expectations, Verdict, check};
use crate::clients::client::Counters;
use crate::clients::device::WorkloadDevice;
use crate::clients::queue::{Pace, QueueClient};
use crate::clients::timed::TimedClient;
use crate::clients::twins::Twins;
use crate::clients::{WorkloadPhase, newcomer};
use crate::history::{Anomaly, History, OpOutcome};
use crate::report::{self, RunDescription};
use crate::rng::Rng;

/// Faults must be over by this long after the load.
const FAULTS_END: Duration = Duration::from_secs(120);
/// The load goes on so long over the healed cluster, so that it is seen to come back.
const HEALED: Duration = Duration::from_secs(2);
const CLIENT_ENDS: Duration = Duration::from_secs(20);

pub(super) struct RunOptions<'a> {
    pub scenario: Scenario,
    pub seed: u64,
    pub dir: &'a Path,
    pub binary: &'a Path,
    /// The command that repeats it.
    pub replay: String,
    pub quiet: bool,
}

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outline {
    pub scenario: String,
    pub seed: u64,
    pub holds: bool,
    pub broken: Vec<String>,
    pub violations: Vec<String>,
    /// How often each kind of fault struck.
    pub faults: BTreeMap<String, u64>,
    pub gaps_ms: BTreeMap<String, u64>,
    pub operations: u64,
    pub acknowledged: u64,
    pub checked: u64,
    pub duration_ms: u64,
    pub notes: Vec<String>,
    pub page: PathBuf,
    /// What an attack came to, in lines.
    pub attack: Vec<String>,
}

/// Runs it to the end, checks it and writes its folder.
pub(super) async fn run(options: RunOptions<'_>) -> Result<Outline, String> {
    let RunOptions { scenario, seed, dir, binary, replay, quiet } = options;
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let started = tillsync::model::time::iso(SystemClock.now_ms());
    let mut rng = Rng::new(seed);
    let allowed = allowed::here(&scenario, dir);
    let plan = ClusterPlan {
        binary,
        before: None,
        dir,
        nodes: scenario.nodes,
        spare: scenario.spare(),
        seed: rng.next(),
        // Looked for only where the scenario needs them.
        small_disks: allowed.mounts,
        // What is measured is the cluster, not what carries its bytes.
        proxied: scenario.attack.is_none() || !scenario.faults.is_empty(),
        tls: false,
        faketime: allowed.faketime.clone(),
        settings: &scenario.settings,
    };
    if let Some(attack) = &scenario.attack {
        hostile::allowed(attack)?;
    }
    let cluster = ProcessCluster::start(&plan).await?;
    let mut world = ProcessWorld::new(scenario.load, cluster, scenario.attack.is_some());
    if scenario.faults.iter().any(|fault| fault.kind == FaultKind::DisksFill) {
        // What the fault itself writes is no device's.
        world.tables = Some(&hostile::TABLES);
    }
    let world = Arc::new(world);
    for note in &allowed.notes {
        world.note(note.clone());
    }
    let ran = load(&world, &scenario, &allowed.left_out, &mut rng, quiet).await;
    let version = world.statuses().await.first().map(|status| status.version.clone()).unwrap_or_default();
    let nodes = world.cluster.members();
    world.cluster.end().await;
    ran?;
    let duration_ms = world.recorder.us() / 1_000;
    let began_ms = SystemClock.now_ms().minus_ms(world.recorder.us() / 1_000).get();
    let mut history = world.recorder.take();
    history.trouble.extend(times::wrong(&history, began_ms));
    if let Some(tables) = world.tables
        && let Err(what) = narrow::narrow(&mut history, tables)
    {
        history.trouble.push(Anomaly { us: duration_ms * 1_000, what });
    }
    let gap = Duration::from_millis(scenario.slo.gap_ms);
    let verdict = check(&history, Expectations { gap });
    let mut notes = world.notes.lock().clone();
    notes.extend(limits(&history));
    let about = RunDescription {
        scenario: scenario.name.clone(),
        explained: scenario.explained.clone(),
        seed,
        replay,
        nodes,
        started,
        duration_ms,
        version,
        machine: allowed.machine,
        gap_ms: scenario.slo.gap_ms,
        notes,
    };
    let page = write(dir, &about, &history, &verdict).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(outline(&about, &history, &verdict, page))
}

/// What the evidence does not cover, in words.
fn limits(history: &History) -> Vec<String> {
    let mut notes = vec![
        "The version that a change replaced is taken from the order of the log: nodes do not tell it over REST."
            .to_owned(),
        "Digests, leaders and masters are seen ten times a second, not at every index.".to_owned(),
    ];
    let stalls = history.bands.iter().filter(|band| band.name == "machine_stalled");
    let stalled: u64 = stalls.map(|band| (band.to_us - band.from_us) / 1_000).sum();
    if stalled > 0 {
        notes.push(format!("This machine was overloaded: the run stood still for {stalled} ms in all."));
    }
    if history.finals.iter().all(|node| node.sync_states.is_empty()) {
        notes.push("This version does not tell the cursors of sync states: sync_states is not checked.".into());
    }
    notes
}

async fn load(
    world: &Arc<ProcessWorld>,
    scenario: &Scenario,
    left_out: &[FaultKind],
    rng: &mut Rng,
    quiet: bool,
) -> Result<(), String> {
    ending::policy(world).await?;
    let clients = clients(world, &scenario.load, rng);
    let majority = spawn_task(monitor::watch_majority(world.clone()));
    let processes = spawn_task(monitor::watch_processes(world.clone()));
    let progress = (!quiet).then(|| spawn_task(progress::tell(world.clone())));
    let onlookers: Vec<_> =
        (1..=scenario.nodes + scenario.spare()).map(|id| spawn_task(monitor::watch_node(world.clone(), id))).collect();
    let began = Instant::now();
    let timed = scenario.timed(rng).into_iter().filter(|timed| !left_out.contains(&timed.fault.kind));
    let striking: Vec<_> = timed
        .enumerate()
        .map(|(number, timed)| spawn_task(faults::inject(world.clone(), number as u64, timed, began)))
        .collect();
    let lasts = Duration::from_secs_f64(scenario.duration_s);
    match &scenario.attack {
        Some(attack) => hostile::run(world, attack, lasts, rng.next()).await?,
        None => sleep(lasts).await,
    }
    for fault in striking {
        if timeout(FAULTS_END, fault).await.is_err() {
            world.recorder.anomaly("a fault does not end");
        }
    }
    ending::heal(world).await;
    sleep(HEALED).await;
    drop(majority);
    world.phase.send_replace(WorkloadPhase::Listen);
    ending::serve_again(world).await;
    ending::all_told(world).await;
    world.phase.send_replace(WorkloadPhase::End);
    for client in clients {
        if timeout(CLIENT_ENDS, client).await.is_err() {
            world.recorder.anomaly("a client does not end");
        }
    }
    ending::converge(world).await;
    if world.recorder.outcomes().ok.load(Ordering::Relaxed) == 0 {
        world.recorder.anomaly("no client ever got an answer: the run proves nothing");
    }
    drop((processes, onlookers, progress));
    Ok(())
}

/// All clients of a run, at work.
fn clients(world: &Arc<ProcessWorld>, load: &Workload, rng: &mut Rng) -> Vec<AbortOnDropHandle<()>> {
    let counters = Arc::new(Counters::default());
    let mut clients = Vec::new();
    let mut shared = || (world.clone(), counters.clone(), rng.fork());
    for (name, _) in load.devices() {
        let (world, counters, rng) = shared();
        clients.push(spawn_task(WorkloadDevice::new(world, counters, name, rng).run()));
    }
    for number in 1..=load.timed {
        let (world, counters, rng) = shared();
        clients.push(spawn_task(TimedClient::new(world, counters, format!("timed-{number}"), rng).run()));
    }
    for number in 1..=load.queues {
        let (world, counters, rng) = shared();
        let queue = QueueClient::new(world, counters, format!("queue-{number}"), rng, Pace::LASTING);
        clients.push(spawn_task(queue.run()));
    }
    for number in 1..=load.twins {
        let (world, counters, rng) = shared();
        clients.push(spawn_task(Twins::new(world, counters, format!("twin-{number}"), rng).run()));
    }
    for line in 1..=load.newcomers {
        let (world, counters, rng) = shared();
        clients.push(spawn_task(newcomer::run(world, counters, line, rng)));
    }
    clients
}

fn spawn_task(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

fn write(dir: &Path, about: &RunDescription, history: &History, verdict: &Verdict) -> std::io::Result<PathBuf> {
    let mut out = BufWriter::new(File::create(dir.join("history.jsonl"))?);
    history.write(&mut out)?;
    out.flush()?;
    let mut out = BufWriter::new(File::create(dir.join("run.json"))?);
    serde_json::to_writer_pretty(&mut out, about)?;
    out.flush()?;
    report::write(dir, about, history, verdict)
}

fn outline(about: &RunDescription, history: &History, verdict: &Verdict, page: PathBuf) -> Outline {
    let mut faults = BTreeMap::<String, u64>::new();
    for band in history.bands.iter().filter(|band| band.majority) {
        *faults.entry(band.name.clone()).or_default() += 1;
    }
    let findings = verdict.invariants.iter();
    let violations = findings.flat_map(|(name, f)| f.violations.iter().map(move |what| format!("{name}: {what}")));
    Outline {
        scenario: about.scenario.clone(),
        seed: about.seed,
        holds: verdict.holds(),
        broken: verdict.broken().into_iter().map(str::to_owned).collect(),
        violations: violations.collect(),
        faults,
        gaps_ms: verdict.gaps_ms.clone(),
        operations: history.ops.len() as u64,
        acknowledged: history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok).count() as u64,
        checked: verdict.invariants.values().map(|finding| finding.checked).sum(),
        duration_ms: about.duration_ms,
        notes: about.notes.clone(),
        page,
        attack: hostile::lines(about, history, verdict),
    }
}
