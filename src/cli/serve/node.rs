//! Where the floors come together: storage, the cluster over it, the gateway over that.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backups::BackupSchedule;
use super::descriptors;
use super::slow_disk::DiskPace;
use super::waste::EngineWaste;
use crate::clock::SystemClock;
use crate::cluster::SharedCluster;
use crate::cluster::boot::{self, NodeConfig, PeerLinks, Stopper};
use crate::cluster::elections::coordinator;
use crate::cluster::membership::addresses::OwnAddress;
use crate::cluster::raft_cluster::RaftCluster;
use crate::config::{Config, wrong};
use crate::consensus::node::{StartError, Timing};
use crate::consensus::types::MemberAddress;
use crate::gateway;
use crate::ids::NodeId;
use crate::limits;
use crate::model::election::decide::Limits;
use crate::model::error::{Code, Error};
use crate::model::version::Build;
use crate::storage::room::DiskRoom;
use crate::storage::{self, Close, Stores};
use crate::tls;
use crate::tls::acceptor::CurrentTls;
use crate::tls::admission::ConnectionCaps;
use crate::tls::files::{GatewayTls, NodeTls};
use crate::tls::follow::Followed;
use crate::token::KeyRing;

/// How long handing over may take at a shutdown.
const LEAVE: Duration = Duration::from_secs(3);
/// How soon a failure of the storage is noticed that nobody waits for.
const LOOK_AT_STORAGE: Duration = Duration::from_millis(250);

/// A node that serves.
pub(super) struct ServingNode {
    stop: CancellationToken,
    /// Ends the coordinator, which is the first to go.
    coordinating: CancellationToken,
    /// The node's own device.
    device: String,
    coordinator: JoinHandle<()>,
    gateway: JoinHandle<std::io::Result<()>>,
    cluster: Arc<RaftCluster>,
    stopper: Stopper,
    close: Arc<dyn Close>,
    data_dir: PathBuf,
    pace: DiskPace,
    waste: EngineWaste,
}

impl ServingNode {
    /// Starts everything, from the ground up. What is wrong with the settings is found before anything is opened.
    /// Its elections wait at least as long as a disk needs that takes `flush` for each flush.
    pub(super) async fn start(config: &Config, flush: Duration) -> Result<Self, Error> {
        let connections = descriptors::connections(config)?;
        let keys = KeyRing::read(&config.key_file)?;
        let clock = Arc::new(SystemClock);
        let (raft_tls, gateway_tls) = certificates(config, &clock)?;
        let raft = bind(config.raft_listen, "raft_listen").await?;
        let listener = bind(config.gateway_listen, "gateway_listen").await?;
        let stores = open(config).await?;
        // Held to the end: the folder is let go of when the last of it is dropped.
        let close = stores.close.clone();
        let waste = EngineWaste::of(&stores).await;
        let pace = DiskPace { settings: timing(config), flush_time: stores.flush_time };
        let wire = match raft_tls {
            Some(tls) => PeerLinks::Tls(raft, tls),
            None => PeerLinks::Grpc(raft),
        };
        let running = match boot::start(node_config(config, flush), stores, wire, clock).await {
            Ok(running) => running,
            Err(error) => return Err(not_started(&config.data_dir, &close, error).await),
        };
        let (cluster, effects, stopper) = running.split();
        let stop = CancellationToken::new();
        let coordinating = stop.child_token();
        let settings = coordinator_settings(config);
        let device = settings.node_device.clone();
        let shared: SharedCluster = cluster.clone();
        let failures = cluster.failures().clone();
        let guarded = coordinator::run(shared.clone(), settings, coordinating.clone());
        let coordinator = tokio::spawn(failures.guard("coordinator", guarded));
        let settings = gateway_settings(config, connections);
        let current = gateway_tls.map(|tls| -> CurrentTls {
            tokio::spawn(failures.guard("gateway certificates", tls.clone().follow(stop.clone())));
            Arc::new(move || tls.current().server.clone())
        });
        if current.is_none() && !config.gateway_listen.ip().is_loopback() {
            tracing::warn!("devices and their tokens come in plain text: gateway_tls_cert is not set");
        }
        let scrubbing = super::scrub::run(close.clone(), config.scrub_every, stop.clone());
        tokio::spawn(failures.guard("scrub", scrubbing));
        if let Some(schedule) = BackupSchedule::of(config) {
            let backups = super::backups::run(shared.clone(), schedule, stop.clone());
            tokio::spawn(failures.guard("backups", backups));
        }
        let versions = super::version::run(shared.clone(), config.data_dir.clone(), stop.clone());
        tokio::spawn(failures.guard("cluster version", versions));
        let following = super::keys::follow(keys.clone(), config.key_file.clone(), stop.clone());
        tokio::spawn(failures.guard("keys", following));
        let serving = gateway::serve_tls(listener, current, shared, effects, settings, keys, stop.clone());
        let gateway = tokio::spawn({
            let stop = stop.clone();
            async move {
                let ended = serving.await;
                if !stop.is_cancelled() {
                    let why = ended.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
                    failures.report(format!("the gateway ended by itself{why}"));
                }
                ended
            }
        });
        tracing::info!(node = config.node_id.get(), gateway = %config.gateway_listen, raft = %config.raft_listen, "serving");
        let data_dir = config.data_dir.clone();
        Ok(Self { stop, coordinating, device, coordinator, gateway, cluster, stopper, close, data_dir, pace, waste })
    }

    /// Resolves with the reason when the node cannot go on: it never serves on from a state that it does not trust,
    /// nor when the cluster has done with it.
    pub(super) async fn failed(&self) -> Error {
        tokio::select! {
            why = self.cluster.node().failed() => self.storage_failed(&why).await,
            why = self.storage() => self.storage_failed(&why).await,
            // To start it again like this cannot help.
            why = self.cluster.told_to_end() => keep_folder(&self.data_dir, why).await,
        }
    }

    /// Resolves with the time of a flush when the node should start again, with times that its disk can keep up with.
    pub(super) async fn has_outgrown_its_times(&self) -> Duration {
        self.pace.is_lost(self.cluster.node()).await
    }

    /// Resolves with the bytes of the engine's files when the node should start again, so that they are copied; `last`: when
    /// it did so before.
    pub(super) async fn should_shrink(&self, last: Option<Instant>) -> u64 {
        self.waste.calls_for_a_start(&self.cluster, last).await
    }

    async fn storage_failed(&self, why: &str) -> Error {
        if is_damaged(&self.close) {
            return keep_folder(&self.data_dir, damaged(why)).await;
        }
        let folder = self.data_dir.display();
        Error::new(Code::Storage, format!("data folder {folder}: the node stopped by itself: {why}"))
    }

    /// Resolves with what failed in the storage: a sync in the background is waited for by nobody.
    async fn storage(&self) -> String {
        loop {
            tokio::time::sleep(LOOK_AT_STORAGE).await;
            let close = self.close.clone();
            // One that cannot be asked is found by its next write.
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || close.check()).await {
                return error.to_string();
            }
        }
    }

    /// Hands over what it leads, unless it cannot write any more (`hand_over`), then takes it down from the top; what was
    /// acknowledged is on disk.
    pub(super) async fn stop(self, hand_over: bool) -> Result<(), Error> {
        self.coordinating.cancel();
        if !hand_over {
            // Nobody connects from here on, no device and no node.
            self.stop.cancel();
            self.stopper.close_ports();
        }
        // A coordinator that panicked has said so in the log.
        let _ = self.coordinator.await;
        if hand_over {
            self.cluster.leave(&self.device, LEAVE).await;
        }
        self.stop.cancel();
        if let Ok(Err(error)) = self.gateway.await {
            tracing::warn!(%error, "the gateway did not end cleanly");
        }
        self.stopper.shutdown().await;
        self.close.close().await.map_err(|e| Error::new(Code::Storage, format!("the data folder did not close: {e}")))
    }
}

/// What is kept is not what was written: to start again cannot help.
fn is_damaged(close: &Arc<dyn Close>) -> bool {
    close.check().is_err_and(|error| error.kind() == ErrorKind::InvalidData)
}

fn damaged(why: &str) -> Error {
    Error::new(Code::Storage, format!("its data is damaged: {why}; {}", storage::format::WAY))
}

/// A folder whose data cannot be trusted is not opened again.
async fn keep_folder(folder: &Path, why: Error) -> Error {
    if why.code != Code::Storage {
        return why;
    }
    let (dir, text) = (folder.to_path_buf(), why.message.clone());
    let kept = tokio::task::spawn_blocking(move || storage::format::refuse(&dir, &text)).await;
    if let Err(error) = kept.map_err(std::io::Error::other).flatten() {
        tracing::error!(%error, folder = %folder.display(), "the folder could not be marked as refused");
    }
    Error::new(why.code, format!("data folder {}: {}", folder.display(), why.message))
}

/// Why a node did not start. Its folder is open: what is damaged may show only now.
async fn not_started(folder: &Path, close: &Arc<dyn Close>, error: StartError) -> Error {
    match is_damaged(close) {
        true => keep_folder(folder, damaged(&error.to_string())).await,
        false => start_error(error),
    }
}

type Certificates = (Option<Arc<Followed<NodeTls>>>, Option<Arc<Followed<GatewayTls>>>);

/// Reads the certificates: small files, read once before anything is served.
fn certificates(config: &Config, clock: &Arc<SystemClock>) -> Result<Certificates, Error> {
    let raft = config.raft_tls.as_ref().map(|files| tls::files::node(config.node_id.get(), files, clock.clone()));
    let gateway = config.gateway_tls.as_ref().map(|files| tls::files::gateway(files, clock.clone()));
    Ok((raft.transpose()?, gateway.transpose()?))
}

fn coordinator_settings(config: &Config) -> coordinator::CoordinatorSettings {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    coordinator::CoordinatorSettings {
        limits: Limits {
            timeout_ms: ms(config.election.timeout),
            tries: config.election.tries,
            backoff_ms: ms(config.election.backoff),
            lag: config.election.lag,
            silent_ms: ms(config.raft.election_max),
            settle_ms: ms(config.raft.heartbeat * 2),
            lost_ms: ms(config.presence.lost),
            grace_ms: ms(config.presence.grace),
        },
        transfer: config.raft.election_max * 2,
        retention: config.retention,
        ..coordinator::CoordinatorSettings::of(config.node_id)
    }
}

fn gateway_settings(config: &Config, connections: usize) -> gateway::GatewaySettings {
    gateway::GatewaySettings {
        ping_every: config.presence.ping,
        lost_after: config.presence.lost,
        grace: config.presence.grace,
        rest_active: config.presence.rest,
        election_wait: config.election.timeout + config.request_timeout,
        sessions: config.sessions,
        connections: ConnectionCaps {
            total: connections,
            anonymous: limits::ANONYMOUS_CONNECTIONS.min(connections / 2).max(1),
            per_address: config.connections_per_address,
        },
        trusted_proxies: config.trusted_proxies.clone(),
        origins: config.cors_origins.clone(),
        allowed: config.allowed,
        paired_token: config.paired_token,
        ..gateway::GatewaySettings::default()
    }
}

/// Tests of upgrades have no program of another release at hand: this one acts as if it was.
#[cfg(feature = "testkit")]
fn build() -> Build {
    match std::env::var("TILLSYNC_TEST_BUILD").as_deref() {
        Ok("before") => Build::BEFORE,
        _ => Build::THIS,
    }
}

#[cfg(not(feature = "testkit"))]
fn build() -> Build {
    Build::THIS
}

fn node_config(config: &Config, flush: Duration) -> NodeConfig {
    let members: BTreeMap<NodeId, MemberAddress> = config
        .members
        .iter()
        .map(|m| (m.id, MemberAddress { raft: m.raft.clone(), gateway: m.gateway.clone() }))
        .collect();
    NodeConfig {
        address: own_address(config),
        timing: timing(config).on_disk_of(flush),
        request_timeout: config.request_timeout,
        log_bytes: config.log_bytes,
        build: build(),
        join: config
            .join
            .iter()
            .map(|raft| (NodeId::default(), MemberAddress { raft: raft.clone(), ..MemberAddress::default() }))
            .collect(),
        ..NodeConfig::new(config.node_id, &config.cluster_name, members)
    }
}

fn timing(config: &Config) -> Timing {
    let times = &config.raft;
    Timing { heartbeat: times.heartbeat, election_min: times.election_min, election_max: times.election_max }
}

/// Where the others reach this node: as its own entry in `members` says, else where it listens, unless that is every address
/// of the machine.
fn own_address(config: &Config) -> Option<OwnAddress> {
    if let Some(me) = config.me() {
        let address = MemberAddress { raft: me.raft.clone(), gateway: me.gateway.clone() };
        return Some(OwnAddress { address, named: true });
    }
    let (raft, gateway) = (config.raft_listen, config.gateway_listen);
    let everywhere = raft.ip().is_unspecified() || gateway.ip().is_unspecified();
    let address = MemberAddress { raft: raft.to_string(), gateway: gateway.to_string() };
    (!everywhere).then_some(OwnAddress { address, named: false })
}

/// Opens the data folder, which blocks on the disk.
async fn open(config: &Config) -> Result<Stores, Error> {
    let dir = config.data_dir.clone();
    let room = DiskRoom::of(&dir, config.disk);
    let identity = storage::FolderIdentity { node_id: config.node_id.get(), cluster_id: config.cluster_name.clone() };
    let opened = tokio::task::spawn_blocking(move || storage::open_in(&dir, &identity, room)).await;
    let opened = opened.map_err(|e| Error::new(Code::Internal, format!("opening the data folder: {e}")))?;
    opened.map_err(|e| {
        let code = if e.is_configuration() { Code::Configuration } else { Code::Storage };
        Error::new(code, e.to_string())
    })
}

/// Listens, or says which port is taken.
async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| {
        let why = match e.kind() {
            ErrorKind::AddrInUse => format!("port {} is in use by another program", address.port()),
            _ => format!("{address} cannot be listened on: {e}"),
        };
        wrong(key, &why)
    })
}

fn start_error(error: StartError) -> Error {
    let code = match &error {
        StartError::Config(_) | StartError::Bind { .. } => Code::Configuration,
        StartError::Storage(_) => Code::Storage,
        StartError::Raft(_) => Code::Internal,
    };
    Error::new(code, error.to_string())
}
