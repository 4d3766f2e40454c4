//! The nodes of a run: whole ones, from the gateway down, that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::cluster::boot::{NodeConfig, PeerLinks, Stopper, start};
use tillsync::cluster::elections::coordinator;
use tillsync::cluster::raft_cluster::RaftCluster;
use tillsync::cluster::{Cluster, SharedCluster};
use tillsync::consensus::runtime::spawn;
use tillsync::consensus::transport::LocalNetwork;
use tillsync::consensus::types::MemberAddress;
use tillsync::gateway::fanout::hub;
use tillsync::gateway::http::rest;
use tillsync::gateway::{Gateway, GatewaySettings, presence};
use tillsync::ids::NodeId;
use tillsync::limits;
use tillsync::model::version::Build;
use tillsync::storage::{Close, Stores};
use tillsync::testkit::simulated_network::Router;
use tillsync::token::{Class, KeyRing};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clock::{START_MS, SimClock};
use super::disk::SimDisk;
use super::network_model::SimWeather;
use super::plan::SimPlan;
use crate::clients::WorkloadPhase;
use crate::history::Sample;
use crate::recorder::Recorder;
use crate::rng::Rng;

/// A node that runs.
#[derive(Clone)]
pub(crate) struct UpNode {
    pub cluster: Arc<RaftCluster>,
    pub gateway: Arc<Gateway>,
    /// Its REST endpoints.
    pub app: axum::Router,
    /// Cancelled when the node goes.
    pub dead: CancellationToken,
}

struct RunningSimNode {
    up: UpNode,
    stopper: Stopper,
    close: Arc<dyn Close>,
    coordinator: CancellationToken,
    /// All that ends with the node.
    _tasks: Vec<AbortOnDropHandle<()>>,
}

pub(crate) struct SimMachine {
    pub disk: Arc<SimDisk>,
    pub clock: Arc<SimClock>,
    /// The program that it runs from its next start on.
    pub build: Build,
    boot: u64,
    running: Option<RunningSimNode>,
    starting: bool,
    /// It is being removed: that it ends is right.
    leaving: bool,
}

/// What a machine starts with.
struct SimStart {
    stores: Stores,
    clock: Arc<SimClock>,
    build: Build,
    boot: u64,
    disk: Arc<SimDisk>,
}

impl SimMachine {
    fn new(rng: &mut Rng, began: Instant, id: u64, build: Build) -> Self {
        let (disk, clock) = (SimDisk::new(rng.fork()), Arc::new(SimClock::new(began, id)));
        Self { disk, clock, build, boot: 0, running: None, starting: false, leaving: false }
    }
}

pub(crate) struct SimWorld {
    pub plan: SimPlan,
    pub recorder: Recorder,
    pub router: Arc<Router>,
    pub weather: Arc<SimWeather>,
    pub places: Mutex<BTreeMap<u64, SimMachine>>,
    /// Links that faults hold down, in one direction: how many, silently or not.
    pub held: Mutex<BTreeMap<(u64, u64, bool), u32>>,
    pub phase: watch::Sender<WorkloadPhase>,
    /// Raised to end every connection of every device.
    pub churn: watch::Sender<u64>,
    /// Sets of voters: while members change, a majority of each is needed.
    pub voters: Mutex<Vec<BTreeSet<u64>>>,
    /// Held while members are changed.
    pub changing: tokio::sync::Mutex<()>,
    began: Instant,
    /// For machines that come later.
    rng: Mutex<Rng>,
    last_id: AtomicU64,
    keys: KeyRing,
}

impl SimWorld {
    pub(crate) fn new(plan: SimPlan, rng: &mut Rng) -> Result<Arc<Self>, String> {
        let began = Instant::now();
        let recorder = Recorder::traced(began);
        let weather = SimWeather::new(rng.fork(), recorder.clone());
        let build = if plan.upgrade { Build::BEFORE } else { Build::THIS };
        let places = (1..=plan.nodes).map(|id| (id, SimMachine::new(rng, began, id, build))).collect();
        Ok(Arc::new(Self {
            voters: Mutex::new(vec![(1..=plan.nodes).collect()]),
            changing: tokio::sync::Mutex::default(),
            began,
            rng: Mutex::new(rng.fork()),
            last_id: AtomicU64::new(plan.nodes),
            plan,
            router: Router::under(weather.clone()),
            recorder,
            weather,
            places: Mutex::new(places),
            held: Mutex::default(),
            phase: watch::Sender::new(WorkloadPhase::Load),
            churn: watch::Sender::new(0),
            keys: KeyRing::parse(&"5a".repeat(32))?,
        }))
    }

    /// The newest version that a node has seen the cluster at.
    pub(crate) fn version(&self) -> u32 {
        let version = |up: UpNode| up.cluster.replica().state().cluster_version();
        self.up().into_values().map(version).max().unwrap_or(1)
    }

    fn config(&self, id: u64, build: Build) -> NodeConfig {
        let member =
            |id: u64| (NodeId(id), MemberAddress { raft: format!("node-{id}"), gateway: format!("gateway-{id}") });
        let founders = (1..=self.plan.nodes).map(member).collect();
        let mut config = NodeConfig::new(NodeId(id), "simulated", founders);
        if id > self.plan.nodes {
            // It waits to be added.
            config.members.clear();
            config.join = self.ids().into_iter().filter(|other| *other != id).map(member).collect();
        }
        config.request_timeout = Duration::from_secs(2);
        config.snapshot_every = self.plan.snapshot_every;
        config.keep_entries = self.plan.keep_entries;
        config.log_bytes = self.plan.log_bytes;
        config.build = build;
        config
    }

    /// A token that was issued an hour before the run. Its name follows from its device: rows may hold it.
    pub(crate) fn issue(&self, device: &str, class: Class) -> Option<String> {
        let issued_s = START_MS / 1_000 - 3_600;
        let issued = self.keys.issue_at(device, class, Some(device.into()), issued_s, issued_s + limits::TOKEN_SECONDS);
        issued.ok().map(|(token, _)| token)
    }

    /// All machines that there are now, whether they run or not.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.places.lock().keys().copied().collect()
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.places.lock().contains_key(&id)
    }

    /// A new machine with an empty disk.
    pub(crate) fn build(&self) -> u64 {
        let id = self.last_id.fetch_add(1, Ordering::SeqCst) + 1;
        let place = SimMachine::new(&mut self.rng.lock(), self.began, id, Build::THIS);
        self.places.lock().insert(id, place);
        id
    }

    /// A machine is turned off for good.
    pub(crate) async fn retire(&self, id: u64) {
        self.stop(id).await;
        let place = self.places.lock().remove(&id);
        if place.is_some() {
            self.recorder.say(|| format!("node {id} is retired"));
        }
    }

    pub(crate) fn leaves(&self, id: u64) {
        self.with(id, |place| place.leaving = true);
    }

    /// The nodes that run and take part.
    pub(crate) fn serving(&self) -> BTreeMap<u64, UpNode> {
        let takes_part = |id: u64, up: &UpNode| up.cluster.node().group().members.contains_key(&NodeId(id));
        self.up().into_iter().filter(|(id, up)| takes_part(*id, up)).collect()
    }

    /// The nodes that run.
    pub(crate) fn up(&self) -> BTreeMap<u64, UpNode> {
        let places = self.places.lock();
        places.iter().filter_map(|(id, place)| Some((*id, place.running.as_ref()?.up.clone()))).collect()
    }

    /// The node that leads in the newest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |(id, up): (u64, UpNode)| Some((up.cluster.node().leading()?, id));
        self.up().into_iter().filter_map(leads).max().map(|(_, id)| id)
    }

    /// Starts a node on its disk. What keeps it from starting is trouble, unless it fell over meanwhile.
    pub(crate) async fn start(self: &Arc<Self>, id: u64) {
        let Some(SimStart { stores, clock, build, boot, disk }) = self.begin_start(id) else { return };
        let syncing = AbortOnDropHandle::new(spawn(disk.clone().run()));
        let close = stores.close.clone();
        let started = timeout(
            Duration::from_secs(20),
            start(self.config(id, build), stores, PeerLinks::Memory(self.router.clone()), clock),
        );
        let node = match started.await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => {
                self.recorder.anomaly(format!("node {id} does not start: {error}"));
                return self.with(id, |place| place.starting = false);
            }
            Err(_) => {
                self.recorder.anomaly(format!("node {id} hangs at its start"));
                return self.with(id, |place| place.starting = false);
            }
        };
        let (cluster, effects, stopper) = node.split();
        let shared: SharedCluster = cluster.clone();
        let settings = GatewaySettings { grace: Duration::from_millis(500), ..GatewaySettings::default() };
        let gateway = Gateway::new(shared.clone(), settings, self.keys.clone());
        let stop = CancellationToken::new();
        let mut duties = coordinator::CoordinatorSettings::of(NodeId(id));
        duties.retention.changes = self.plan.keep_changes;
        duties.retention.audit_rows = self.plan.keep_changes;
        let dead = CancellationToken::new();
        let app = rest::router(gateway.clone());
        let up = UpNode { cluster: cluster.clone(), gateway: gateway.clone(), app, dead };
        let tasks = [
            syncing,
            AbortOnDropHandle::new(spawn(hub::run(gateway.clone(), effects))),
            AbortOnDropHandle::new(spawn(presence::run(gateway))),
            AbortOnDropHandle::new(spawn(coordinator::run(shared, duties, stop.clone()))),
            AbortOnDropHandle::new(spawn(watch_state(self.recorder.clone(), cluster.clone(), boot))),
            AbortOnDropHandle::new(spawn(watch_leading(self.recorder.clone(), cluster.clone()))),
            AbortOnDropHandle::new(spawn(watch_end(self.clone(), id, cluster))),
        ];
        self.recorder.say(|| format!("node {id} is up"));
        self.with(id, |place| {
            place.starting = false;
            place.running = Some(RunningSimNode { up, stopper, close, coordinator: stop, _tasks: tasks.into() });
        });
    }

    fn begin_start(&self, id: u64) -> Option<SimStart> {
        let mut places = self.places.lock();
        let place = places.get_mut(&id).filter(|place| place.running.is_none() && !place.starting)?;
        place.starting = true;
        place.boot += 1;
        let stores = place.disk.disk.open();
        place.disk.disk.hold();
        let (clock, disk) = (place.clock.clone(), place.disk.clone());
        Some(SimStart { stores, clock, build: place.build, boot: place.boot, disk })
    }

    pub(crate) fn with(&self, id: u64, change: impl FnOnce(&mut SimMachine)) {
        if let Some(place) = self.places.lock().get_mut(&id) {
            change(place);
        }
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.places.lock().values().any(|place| place.starting)
    }

    /// The node is gone at once. False if it was not there.
    pub(crate) fn crash(&self, id: u64, power: bool) -> bool {
        let mut places = self.places.lock();
        let Some(place) = places.get_mut(&id) else { return false };
        let Some(running) = place.running.take() else { return false };
        let disk = place.disk.clone();
        drop(places);
        running.up.dead.cancel();
        running.coordinator.cancel();
        self.router.remove(NodeId(id));
        if power {
            disk.power_cut()
        } else {
            disk.kill()
        }
        let RunningSimNode { stopper, _tasks: tasks, .. } = running;
        drop(tasks);
        // What is left of it can neither write nor send: it only has to end.
        spawn(stopper.shutdown());
        self.recorder.say(|| format!("node {id} is gone"));
        true
    }

    /// A clean end. False if it was not there.
    pub(crate) async fn stop(&self, id: u64) -> bool {
        let running = self.places.lock().get_mut(&id).and_then(|place| place.running.take());
        let Some(RunningSimNode { up, stopper, close, coordinator, _tasks: tasks }) = running else { return false };
        coordinator.cancel();
        up.dead.cancel();
        stopper.shutdown().await;
        if let Err(error) = close.close().await {
            self.recorder.anomaly(format!("node {id} does not close: {error}"));
        }
        drop(tasks);
        self.recorder.say(|| format!("node {id} has stopped"));
        true
    }

    /// A majority is up, hears each other, and has disks that work and clocks that agree.
    pub(crate) fn majority(&self) -> bool {
        let up: Vec<u64> = {
            let places = self.places.lock();
            let serves = |p: &SimMachine| p.running.is_some() && !p.disk.is_stuck() && p.clock.is_right();
            places.iter().filter(|(_, place)| serves(place)).map(|(id, _)| *id).collect()
        };
        let held = self.held.lock();
        let apart = |a: u64, b: u64| held.keys().any(|(x, y, _)| (*x, *y) == (a, b) || (*x, *y) == (b, a));
        let voters = self.voters.lock();
        let quorate = |set: &[u64]| {
            voters.iter().all(|voters| set.iter().filter(|id| voters.contains(id)).count() * 2 > voters.len())
        };
        (0..1_u32 << up.len()).any(|set| {
            let of_set: Vec<u64> =
                up.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, id)| *id).collect();
            quorate(&of_set) && of_set.iter().all(|a| of_set.iter().all(|b| a == b || !apart(*a, *b)))
        })
    }
}

/// A node that is told to end does so, as a process would.
async fn watch_end(world: Arc<SimWorld>, id: u64, cluster: Arc<RaftCluster>) {
    let why = cluster.told_to_end().await.to_string();
    world.recorder.say(|| why.clone());
    if world.places.lock().get(&id).is_some_and(|place| !place.leaving) {
        world.recorder.anomaly(format!("node {id} was told to end: {why}"));
    }
    // This task ends with the node.
    spawn(async move { world.stop(id).await });
}

/// A sample whenever something was applied.
async fn watch_state(recorder: Recorder, cluster: Arc<RaftCluster>, boot: u64) {
    let mut applied = cluster.replica().watch_applied();
    loop {
        let (tick, us) = recorder.now();
        let sample = {
            let state = cluster.replica().state();
            let is_master = |device: &tillsync::proto::Device| device.role() == tillsync::proto::Role::Master;
            Sample {
                tick,
                us,
                node: cluster.node_id().get(),
                boot,
                applied: state.applied().index,
                digest: state.digest(),
                head: state.meta().head_seq,
                master: state.meta().master.clone(),
                master_term: state.meta().master_term().get(),
                masters: state.devices().filter(|d| is_master(d)).map(|d| d.device_id.clone()).collect(),
                electing: state.meta().pending_election.as_ref().map_or(0, |pending_election| pending_election.id),
                settled: state.meta().settled.as_ref().map_or(0, |settled| settled.pending_election),
                version: state.cluster_version(),
                knows: state.build().newest(),
                ungated: state.ungated(),
            }
        };
        recorder.sample(sample);
        if applied.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_leading(recorder: Recorder, cluster: Arc<RaftCluster>) {
    let mut place = cluster.node().place();
    let mut before = None;
    loop {
        let term = place.current().leading;
        if let Some(term) = term.filter(|_| term != before) {
            recorder.led(cluster.node_id().get(), term.get());
        }
        before = term;
        place.changed_within(Duration::from_secs(1)).await;
    }
}
