//! One run of one seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tillsync::consensus::runtime::{seeded, spawn};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::plan::SimPlan;
use super::world::SimWorld;
use super::{ending, faults, fixed, upgrade};
use crate::checker::{Expectations, Verdict, check};
use crate::clients::client::Counters;
use crate::clients::device::WorkloadDevice;
use crate::clients::queue::{Pace, QueueClient};
use crate::clients::timed::TimedClient;
use crate::clients::twins::Twins;
use crate::clients::{WorkloadPhase, admission, newcomer, removals, rights};
use crate::history::{History, OpOutcome};
use crate::rng::Rng;

/// The longest time without a successful write while a majority is there, in simulated time: detection of a silent
/// link (1.5 s), an election, and the slowest answers of a bad network.
pub(crate) const GAP: Duration = Duration::from_secs(5);
/// After everything healed, devices must have been told everything within this.
const LISTEN: Duration = Duration::from_secs(10);
const STACK: usize = 64 << 20;
/// Draws of its own, so that a seed's other draws are as they were.
const UPGRADE: u64 = 0x7570_6772;

/// What came of a run, small enough for one line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunSummary {
    pub seed: u64,
    pub trace: String,
    /// The invariants that did not hold.
    pub broken: Vec<String>,
    pub violations: Vec<String>,
    /// Faults that struck, by name.
    pub faults: Vec<String>,
    pub operations: u64,
    pub acknowledged: u64,
    pub checked: u64,
    /// The same by invariant.
    pub checks: BTreeMap<String, u64>,
    pub simulated_ms: u64,
    pub gaps_ms: BTreeMap<String, u64>,
}

impl RunSummary {
    pub(crate) fn holds(&self) -> bool {
        self.broken.is_empty()
    }
}

/// Runs a seed in this process, which must not have run another one.
pub(crate) fn run(seed: u64, plan: SimPlan) -> Result<(RunSummary, History), String> {
    fixed::fix(seed);
    let thread = std::thread::Builder::new().stack_size(STACK).name("simulation".into());
    let ran = thread.spawn(move || -> Result<_, String> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().map_err(|error| error.to_string())?;
        let done = runtime.block_on(seeded(seed, simulate(seed, plan)));
        // What is left of the cluster need not be taken down: the process ends.
        runtime.shutdown_background();
        done
    });
    let (history, trace, simulated_ms) =
        ran.map_err(|error| error.to_string())?.join().map_err(|_| "the simulation panicked".to_owned())??;
    let verdict = check(&history, Expectations { gap: GAP });
    Ok((report(seed, trace, simulated_ms, &history, &verdict), history))
}

fn report(seed: u64, trace: String, simulated_ms: u64, history: &History, verdict: &Verdict) -> RunSummary {
    let findings = verdict.invariants.iter();
    let violations = findings.flat_map(|(name, f)| f.violations.iter().map(move |what| format!("{name}: {what}")));
    RunSummary {
        seed,
        trace,
        broken: verdict.broken().into_iter().map(str::to_owned).collect(),
        violations: violations.collect(),
        faults: history.bands.iter().filter(|band| band.majority).map(|band| band.name.clone()).collect(),
        operations: history.ops.len() as u64,
        acknowledged: history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok).count() as u64,
        checked: verdict.invariants.values().map(|f| f.checked).sum(),
        checks: verdict.invariants.iter().map(|(name, f)| ((*name).to_owned(), f.checked)).collect(),
        simulated_ms,
        gaps_ms: verdict.gaps_ms.clone(),
    }
}

/// All devices of a run.
fn populate(world: &Arc<SimWorld>, plan: &SimPlan, counters: &Arc<Counters>, rng: &mut Rng) -> Vec<JoinHandle<()>> {
    let mut each = |name: String| (world.clone(), counters.clone(), name, rng.fork());
    let mut devices = Vec::new();
    for n in 1..=plan.devices {
        let (world, counters, name, rng) = each(format!("till-{n}"));
        devices.push(spawn(WorkloadDevice::new(world, counters, name, rng).run()));
    }
    for n in 1..=plan.timed {
        let (world, counters, name, rng) = each(format!("timed-{n}"));
        devices.push(spawn(TimedClient::new(world, counters, name, rng).run()));
    }
    let (world, counters, name, rng) = each("queue-1".into());
    let pace = if plan.long_queue { Pace::MANY } else { Pace::FEW };
    devices.push(spawn(QueueClient::new(world, counters, name, rng, pace).run()));
    let (world, counters, name, rng) = each("twin".into());
    devices.push(spawn(Twins::new(world, counters, name, rng).run()));
    let (world, counters, _, rng) = each("new".into());
    devices.push(spawn(newcomer::run(world, counters, 1, rng)));
    devices
}

async fn simulate(seed: u64, plan: SimPlan) -> Result<(History, String, u64), String> {
    let mut rng = Rng::new(seed);
    let world = SimWorld::new(plan.clone(), &mut rng)?;
    for id in world.ids() {
        let world = world.clone();
        spawn(async move { world.start(id).await });
    }
    if !ending::insist(&world, ending::policy()).await {
        world.recorder.anomaly("the cluster never took its first command");
    }
    let began = Instant::now();
    let counters = Arc::new(Counters::default());
    let mut devices = populate(&world, &plan, &counters, &mut rng);
    devices.extend(rights::all(&world, &counters, &mut rng).into_iter().map(spawn));
    devices.extend(admission::all(&world, &counters, &mut rng).map(spawn));
    devices.extend(removals::all(&world, &counters, &mut rng).map(spawn));
    let upgrading = plan.upgrade.then(|| spawn(upgrade::run(world.clone(), Rng::new(seed ^ UPGRADE))));
    let majority = AbortOnDropHandle::new(spawn(faults::watch_majority(world.clone())));
    let striking: Vec<_> =
        plan.faults.iter().map(|timed| spawn(faults::inject(world.clone(), *timed, began))).collect();
    sleep(Duration::from_millis(plan.load_ms)).await;
    for fault in striking {
        if timeout(Duration::from_secs(40), fault).await.is_err() {
            world.recorder.anomaly("a fault does not end");
        }
    }
    if let Some(upgrading) = upgrading
        && timeout(Duration::from_secs(60), upgrading).await.is_err()
    {
        world.recorder.anomaly("the upgrade does not end");
    }
    ending::heal(&world).await;
    if plan.upgrade {
        upgrade::end(&world).await;
    }
    // The load goes on over the healing, so that it is seen to come back.
    sleep(Duration::from_secs(2)).await;
    drop(majority);
    world.phase.send_replace(WorkloadPhase::Listen);
    ending::serve_again(&world).await;
    ending::time_is_right(&world);
    // Long enough for a device that waits for an answer, and for the last of what nodes propose by themselves.
    sleep(LISTEN).await;
    ending::bring_the_master_home(&world).await;
    world.phase.send_replace(WorkloadPhase::End);
    for device in devices {
        if timeout(LISTEN, device).await.is_err() {
            world.recorder.anomaly("a device does not end");
        }
    }
    ending::converge(&world).await;
    if world.recorder.outcomes().ok.load(Ordering::Relaxed) == 0 {
        world.recorder.anomaly("no device ever got an answer: the run proves nothing");
    }
    let us = world.recorder.us();
    let trace = world.recorder.trace().unwrap_or_default();
    Ok((world.recorder.take(), trace, us / 1_000))
}
