//! Puts a node together and starts it; takes it down again.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Cluster;
use super::elections::fast_failover;
use super::lifecycle::Lifecycle;
use super::membership::MembershipManager;
use super::membership::addresses::{Addresses, OwnAddress};
use super::membership::admission::{Beginning, admit};
use super::membership::founding::Founding;
use super::peers::agreed_clock::AgreedClock;
use super::peers::compared_digests::ComparedDigests;
use super::peers::shared_room::SharedRoom;
use super::peers::{PROBE_EVERY, probe};
use super::propose::batcher::Batcher;
use super::propose::forwarder::ProposalForwarder;
use super::propose::inbound::{CommandGuard, Inbox};
use super::propose::pending::PendingProposals;
use super::raft_cluster::RaftCluster;
use super::read_index::ReadRounds;
use crate::clock::SharedClock;
use crate::consensus::grpc::{self, GrpcTransport};
use crate::consensus::identity::NodeIdentity;
use crate::consensus::identity::NodeStart;
use crate::consensus::log_bound::LogBound;
use crate::consensus::members::Members;
use crate::consensus::node::{NodeOptions, NodeParts, RaftNode, StartError, Timing};
use crate::consensus::replica::Replica;
use crate::consensus::runtime::{random, spawn};
use crate::consensus::service::Service;
use crate::consensus::transport::{LocalNetwork, PeerStats, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId};
use crate::model::effect::Effects;
use crate::model::error::{Code, Error};
use crate::model::state::State;
use crate::model::tables::{Tables, TablesError};
use crate::model::version::Build;
use crate::proto::command::Intent;
use crate::proto::{ClusterInit, ClusterRecovered};
use crate::storage::{LogStore, SnapshotStore, StartMark, StartMarks, Stores};
use crate::supervised::TaskFailures;
use crate::tls::files::NodeTls;
use crate::tls::follow::Followed;

/// How often waiting requests are looked through for those past their deadline.
const EXPIRE_EVERY: Duration = Duration::from_millis(25);
/// How long connections of peers may take to end at shutdown.
const LINGER: Duration = Duration::from_secs(1);

/// A node and how it behaves.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub id: NodeId,
    /// The cluster's name: nodes of another one are turned away.
    pub cluster: String,
    /// The founding members, the same on every founding node; empty for a node that will be added.
    pub members: BTreeMap<NodeId, MemberAddress>,
    /// Nodes of the cluster that this one waits to be added to, as far as they are known; id 0: not known.
    pub join: Vec<(NodeId, MemberAddress)>,
    /// Where the others reach this node, as far as its settings say.
    pub address: Option<OwnAddress>,
    pub timing: Timing,
    /// A proposal or read that took longer fails.
    pub request_timeout: Duration,
    pub snapshot_every: u64,
    pub keep_entries: u64,
    /// What the log may have; half as many as a snapshot has if that is more.
    pub log_bytes: u64,
    /// The program that runs the node: this one, but for tests of upgrades.
    pub build: Build,
}

impl NodeConfig {
    pub fn new(id: NodeId, cluster: impl Into<String>, members: BTreeMap<NodeId, MemberAddress>) -> Self {
        Self {
            id,
            cluster: cluster.into(),
            members,
            join: Vec::new(),
            address: None,
            timing: Timing::default(),
            request_timeout: Duration::from_secs(5),
            snapshot_every: 100_000,
            keep_entries: 20_000,
            log_bytes: 48 << 20,
            build: Build::THIS,
        }
    }
}

/// What carries the calls between nodes.
pub enum PeerLinks {
    /// gRPC in plain text, served on this listener: on loopback only.
    Grpc(TcpListener),
    /// gRPC over mutual TLS, served on this listener.
    Tls(TcpListener, Arc<Followed<NodeTls>>),
    /// Other nodes of this process.
    Memory(Arc<dyn LocalNetwork>),
}

/// Listens for peers; the error names the address.
pub async fn listen(address: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { address: address.into(), error })
}

/// A node that runs until [`RunningNode::shutdown`].
pub struct RunningNode {
    pub cluster: Arc<RaftCluster>,
    /// The effects of everything applied from now on, in order.
    pub effects: mpsc::Receiver<Effects>,
    lifetime: Lifetime,
}

/// What has to end when the node does.
struct Lifetime {
    stop: CancellationToken,
    tasks: TaskTracker,
    network: Option<Arc<dyn LocalNetwork>>,
}

/// Ends a node; apart from [`RunningNode`], whose effects may have been given away.
pub struct Stopper {
    cluster: Arc<RaftCluster>,
    lifetime: Lifetime,
}

impl RunningNode {
    /// The parts: the cluster, the effects, and what ends the node.
    pub fn split(self) -> (Arc<RaftCluster>, mpsc::Receiver<Effects>, Stopper) {
        let stopper = Stopper { cluster: self.cluster.clone(), lifetime: self.lifetime };
        (self.cluster, self.effects, stopper)
    }

    pub async fn shutdown(self) {
        self.split().2.shutdown().await;
    }
}

impl Stopper {
    /// Peers reach this node no more. What it had to ask them for, it has not got from here on.
    pub fn close_ports(&self) {
        if let Some(network) = &self.lifetime.network {
            network.remove(self.cluster.node_id());
        }
        self.lifetime.stop.cancel();
    }

    /// Takes no more requests, ends consensus and the connections. What was acknowledged is on disk; closing
    /// the stores is left to whoever opened them.
    pub async fn shutdown(self) {
        self.close_ports();
        let Lifetime { tasks, .. } = self.lifetime;
        self.cluster.node().shutdown().await;
        tasks.close();
        if tokio::time::timeout(LINGER, tasks.wait()).await.is_err() {
            tracing::debug!("some connections did not end in time");
        }
    }
}

/// What the settings come to on this node's disk.
fn timing_here(settings: Timing, flush: Duration) -> Timing {
    let timing = settings.on_disk_of(flush);
    if timing != settings {
        tracing::warn!(
            flush_ms = flush.as_millis(),
            election_min_ms = timing.election_min.as_millis(),
            election_max_ms = timing.election_max.as_millis(),
            "the disk takes long to flush: elections wait longer than the settings say"
        );
    }
    timing
}

/// Starts a node on its stores.
pub async fn start(
    config: NodeConfig,
    stores: Stores,
    wire: PeerLinks,
    clock: SharedClock,
) -> Result<RunningNode, StartError> {
    let stats = Arc::new(PeerStats::default());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let state = open_state(stores.tables, config.build).await?;
    let (replica, effects) = Replica::new(state);
    let log_end = log_end(&*stores.log).max(replica.applied_index()).get();
    let mark = next_start(&*stores.starts).await?;
    let this_start = NodeStart { boot: mark.boot, instance: mark.instance, log_end };
    let identity = Arc::new(NodeIdentity::of_start(config.cluster.clone(), config.id, this_start).run_by(config.build));
    identity.belong_to(stores.starts.epoch()?);
    let service = Service::new(identity.clone(), stats.clone(), stores.snapshots.clone());
    let (transport, network): (Arc<dyn PeerTransport>, _) = match &wire {
        PeerLinks::Grpc(_) => (GrpcTransport::new(config.members.clone()), None),
        PeerLinks::Tls(_, tls) => (GrpcTransport::with_tls(config.members.clone(), tls.clone()), None),
        PeerLinks::Memory(network) => (network.clone().seen_from(config.id), Some(network.clone())),
    };
    let options = NodeOptions {
        identity: identity.clone(),
        timing: timing_here(config.timing, (stores.flush_time)()),
        snapshot_every: config.snapshot_every,
        keep_entries: config.keep_entries,
    };
    let parts = NodeParts {
        log: stores.log.clone(),
        snapshots: stores.snapshots.clone(),
        pressure: stores.pressure,
        replica,
        transport: transport.clone(),
        stats: stats.clone(),
    };
    let node = Arc::new(RaftNode::start(options, parts).await?);
    // Not before it is sure that this is the newest start of the node.
    node.stand(false);
    let history: Weak<RaftNode> = Arc::downgrade(&node);
    identity.attach(history);
    let members = Members::new(&node, config.members.keys().copied().collect());
    let configured: Vec<_> = config.members.clone().into_iter().chain(config.join.clone()).collect();
    let founding = Founding::of(&config.members);
    let desk = NodeContext {
        node,
        identity,
        transport,
        stats,
        members,
        configured,
        founding,
        failures: TaskFailures::default(),
        addresses: Arc::new(Addresses::of(config.address)),
        snapshots: stores.snapshots.clone(),
        stop: stop.clone(),
        tasks: tasks.clone(),
    };
    let log_bound = LogBound {
        node: desk.node.clone(),
        log: stores.log,
        snapshots: stores.snapshots,
        bytes: config.log_bytes,
        room: stores.room.clone(),
    };
    desk.spawn("disk room", stores.room.clone().run(stop.clone()));
    desk.spawn("log bound", log_bound.run(stop.clone()));
    let cluster = desk.open(config.request_timeout, clock, SharedRoom::new(stores.room));
    service.tell_status(cluster.clone(), desk.members.clone());
    match wire {
        PeerLinks::Memory(network) => network.register(config.id, service.clone()),
        PeerLinks::Grpc(listener) => desk.serve(listener, None, service.clone()),
        PeerLinks::Tls(listener, tls) => {
            desk.spawn("certificates", tls.clone().follow(stop.clone()));
            desk.serve(listener, Some(tls), service.clone());
        }
    }
    cluster.lifecycle.waits("it has just been started");
    let beginning = if desk.node.is_pristine().await? {
        Some(Beginning { members: config.members, join: config.join })
    } else {
        None
    };
    let took_part = (stores.starts, StartMark { took_part: true, ..mark });
    let admitted = admit(cluster.clone(), service, desk.transport.clone(), beginning, took_part, stop.clone());
    desk.spawn("admission", {
        let cluster = cluster.clone();
        async move {
            if let Err(error) = admitted.await {
                cluster.end(Error::new(Code::Configuration, error.to_string()));
            }
        }
    });
    desk.spawn("identity", {
        let (cluster, stop) = (cluster.clone(), stop.clone());
        async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                why = cluster.identity.outdated() => cluster.end(Error::new(Code::Configuration, why)),
            }
        }
    });
    // Not guarded: it is what tells of the others.
    spawn(tasks.track_future({
        let (cluster, failures, stop) = (cluster.clone(), desk.failures.clone(), stop.clone());
        async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                why = failures.first() => cluster.end(Error::new(Code::Internal, why)),
            }
        }
    }));
    Ok(RunningNode { cluster, effects, lifetime: Lifetime { stop, tasks, network } })
}

/// What the tasks of a node share.
struct NodeContext {
    node: Arc<RaftNode>,
    identity: Arc<NodeIdentity>,
    transport: Arc<dyn PeerTransport>,
    stats: Arc<PeerStats>,
    members: Arc<Members>,
    configured: Vec<(NodeId, MemberAddress)>,
    founding: Founding,
    failures: TaskFailures,
    addresses: Arc<Addresses>,
    snapshots: Arc<dyn SnapshotStore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl NodeContext {
    /// Runs a task that may not fail while the node runs.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        spawn(self.tasks.track_future(self.failures.guard(name, task)));
    }

    /// Serves peers on a listener.
    fn serve(&self, listener: TcpListener, tls: Option<Arc<Followed<NodeTls>>>, service: Arc<Service>) {
        let stop = self.stop.clone();
        let failures = self.failures.clone();
        self.spawn("peers", async move {
            if let Err(error) = grpc::serve(listener, tls, service, stop).await {
                failures.report(format!("serving peers failed: {error}"));
            }
        });
    }

    /// Starts the tasks that bring proposals and reads to the leader.
    fn open(&self, request_timeout: Duration, clock: SharedClock, room: SharedRoom) -> Arc<RaftCluster> {
        let Self { node, identity, transport, stats, stop, .. } = self;
        let wake = Arc::new(Notify::new());
        let pending_proposals = Arc::new(PendingProposals::new(identity.node, random(), request_timeout, wake.clone()));
        let clock = AgreedClock::new(clock);
        let digests = Arc::new(ComparedDigests::default());
        let door = CommandGuard {
            node: node.clone(),
            clock: clock.clone(),
            digests: digests.clone(),
            waited: request_timeout,
        };
        let inbound_proposals = Inbox::new(door, wake.clone(), stop.clone());
        let reader = ReadRounds::new(node.clone(), identity.clone(), transport.clone(), request_timeout, stop.clone());
        let membership = Arc::new(MembershipManager {
            identity: identity.clone(),
            node: node.clone(),
            transport: transport.clone(),
            stats: stats.clone(),
            pending_proposals: pending_proposals.clone(),
            clock: clock.clone(),
            addresses: self.addresses.clone(),
            looking: AtomicBool::new(false),
            busy: Mutex::default(),
        });
        let cluster = Arc::new(RaftCluster {
            identity: identity.clone(),
            clock: clock.clone(),
            digests,
            node: node.clone(),
            pending_proposals: pending_proposals.clone(),
            inbound_proposals: inbound_proposals.clone(),
            reader: reader.clone(),
            stats: stats.clone(),
            members: self.members.clone(),
            configured: self.configured.iter().filter(|(id, _)| *id != identity.node).cloned().collect(),
            membership,
            said: Mutex::default(),
            sessions: OnceLock::new(),
            lifecycle: Lifecycle::default(),
            founding: self.founding.clone(),
            room,
            failures: self.failures.clone(),
            addresses: self.addresses.clone(),
            cut_off: AtomicBool::new(false),
            transport: transport.clone(),
            snapshots: self.snapshots.clone(),
            backups: Mutex::default(),
        });
        let batcher = Batcher {
            node: node.clone(),
            clock: clock.clone(),
            pending_proposals: pending_proposals.clone(),
            inbound_proposals,
            wake: wake.clone(),
            stop: stop.clone(),
        };
        let proposer = ProposalForwarder {
            node: node.clone(),
            identity: identity.clone(),
            transport: transport.clone(),
            stats: stats.clone(),
            pending_proposals: pending_proposals.clone(),
            batcher,
            wake,
            stop: stop.clone(),
        };
        self.spawn("proposals", proposer.run());
        self.spawn("reads", reader.run());
        self.spawn("failover", fast_failover::run(node.clone(), identity.clone(), stats.clone(), stop.clone()));
        self.spawn("expiry", expire(pending_proposals, stop.clone()));
        self.spawn("probe", probe::run(cluster.clone(), clock, transport.clone(), stop.clone()));
        self.spawn("founding", initialise(cluster.clone(), stop.clone()));
        cluster
    }
}

/// The mark of this start, durable before anybody is told. A start that did not take part is gone on with: however often a
/// copy of a folder is started, it is no newer.
async fn next_start(starts: &dyn StartMarks) -> Result<StartMark, StartError> {
    let last = starts.last()?;
    if last.boot != 0 && !last.took_part {
        return Ok(last);
    }
    let mark = StartMark { boot: last.boot.saturating_add(1), instance: random() | 1, took_part: false };
    starts.save(mark).await?;
    Ok(mark)
}

/// Where the log ends.
fn log_end(log: &dyn LogStore) -> LogIndex {
    let bounds = log.bounds();
    bounds.last.or(bounds.purged.map(|(index, _)| index)).unwrap_or_default()
}

/// Reads the state from its rows, off the runtime if they are on a disk.
async fn open_state(tables: Box<dyn Tables>, build: Build) -> Result<State, StartError> {
    let opened = if tables.in_memory() {
        State::open_as(tables, build)
    } else {
        tokio::task::spawn_blocking(move || State::open_as(tables, build)).await.map_err(std::io::Error::other)?
    };
    opened.map_err(|error| match error {
        TablesError::NewerVersion { .. } => StartError::Config(error.to_string()),
        error => std::io::Error::other(error).into(),
    })
}

async fn expire(pending_proposals: Arc<PendingProposals>, stop: CancellationToken) {
    while tokio::time::timeout(EXPIRE_EVERY, stop.cancelled()).await.is_err() {
        pending_proposals.expire(Instant::now());
    }
}

/// The first leader of a new cluster gives it its name and the epoch of its history; that of a recovered one, the epoch that
/// its folder was given.
async fn initialise(cluster: Arc<RaftCluster>, stop: CancellationToken) {
    let mut place = cluster.node().place();
    let named = || !cluster.replica().state().meta().cluster_id.is_empty();
    let done = || named() && cluster.identity.has_its_epoch();
    while !stop.is_cancelled() && !done() {
        if place.current().leading.is_some() && cluster.reader.barrier().await.is_ok() && !done() {
            // Never 0, which stands for "none".
            let epoch = Some(cluster.identity.epoch()).filter(|epoch| *epoch != 0).unwrap_or_else(|| random() | 1);
            let intent = if named() {
                Intent::ClusterRecovered(ClusterRecovered { epoch })
            } else {
                Intent::ClusterInit(ClusterInit { cluster_id: cluster.identity.cluster.clone(), epoch })
            };
            if let Err(error) = cluster.propose_first(intent).await {
                tracing::debug!(%error, "the cluster could not be named yet");
            }
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = place.changed_within(PROBE_EVERY) => {}
        }
    }
}
