//! Real `tillsync serve` processes on this machine: started, stopped, killed, held up, and never left behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing, make_key_file};
use tokio::process::{Child, ChildStdin};
use tokio::time::{Instant, sleep};

use super::disks::Disks;
use super::http::HttpClient;
use super::network::ProcessNetwork;
use super::scenario::SettingValue;
use crate::starter::PortFinder;

pub(super) mod folders;
mod processes;
mod secrets;

/// How long a node may take to stop by itself.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the tokens of a run live, in seconds.
const TOKENS: u64 = 100_000;
const AGAIN: Duration = Duration::from_millis(25);
/// In the folder of the data of all nodes.
const KEY_FILE: &str = "token.key";
/// Tries of a start on other ports.
const STARTS: u32 = 5;
/// What the async runtime takes its number of threads from.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// What a node's settings say of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// All founders, at the addresses that the membership is to have: a cluster is founded.
    Found,
    /// The others at the addresses of the proxies.
    Proxied,
    /// It will be added.
    Join,
}

struct NodeSlot {
    gateway: SocketAddr,
    raft: SocketAddr,
    /// Where its own settings say that it is.
    listed: ListedAddress,
    child: Option<Child>,
    /// The node stops when it is closed.
    stdin: Option<ChildStdin>,
    boot: u64,
    /// It was not killed, held up or stopped, and answers.
    serving: bool,
    /// A fault has it.
    claimed: bool,
    /// It belongs to the cluster.
    member: bool,
}

/// Where a node is reached, as settings and the membership have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListedAddress {
    pub raft: SocketAddr,
    pub gateway: SocketAddr,
}

pub(super) struct ProcessCluster {
    binary: PathBuf,
    /// The release that nodes run instead, from their next start on.
    before: Mutex<Option<PathBuf>>,
    /// Of the run: logs.
    dir: PathBuf,
    data: PathBuf,
    /// Of the nodes' certificates among themselves, if they have any.
    certs: Option<PathBuf>,
    pub token: String,
    pub network: ProcessNetwork,
    pub disks: Disks,
    /// Preloaded into every node, to move its clock.
    faketime: Option<PathBuf>,
    workers: usize,
    /// Nodes that found it: 1 to this.
    founders: u64,
    settings: BTreeMap<String, SettingValue>,
    slots: Mutex<BTreeMap<u64, NodeSlot>>,
    /// Ports that nobody has yet.
    ports: Mutex<PortFinder>,
}

/// How a cluster is made.
pub(super) struct ClusterPlan<'a> {
    pub binary: &'a Path,
    /// The release that the nodes begin with, if it is another one.
    pub before: Option<&'a Path>,
    pub dir: &'a Path,
    pub nodes: u64,
    /// Numbers for nodes that come later.
    pub spare: u64,
    pub seed: u64,
    pub small_disks: bool,
    /// Links between nodes can be cut: all that they say to each other goes through this process.
    pub proxied: bool,
    /// Nodes know each other by certificates.
    pub tls: bool,
    pub faketime: Option<PathBuf>,
    /// More settings of every node.
    pub settings: &'a BTreeMap<String, SettingValue>,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

impl ProcessCluster {
    /// Founds a cluster, and starts it anew behind its proxies. Ports that were free may be taken a moment later: then
    /// others are tried.
    pub(super) async fn start(plan: &ClusterPlan<'_>) -> Result<Self, String> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_start(plan).await {
                Err(why) if why.contains("in use") && tries < STARTS => {}
                started => return started,
            }
        }
    }

    async fn try_start(plan: &ClusterPlan<'_>) -> Result<Self, String> {
        let data = plan.dir.join("data");
        fs::create_dir_all(&data).map_err(failed(&data))?;
        let key = data.join(KEY_FILE);
        make_key_file(&key).map_err(failed(&key))?;
        let certs = plan.tls.then(|| data.join("certs"));
        // Ports are not the seed's alone: other runs may be going on.
        let mut ports = PortFinder::new(plan.seed);
        let disks = if plan.small_disks { Disks::mount(&data, plan.nodes + plan.spare)? } else { Disks::none() };
        let mut targets = BTreeMap::new();
        for id in 1..=plan.nodes + plan.spare {
            targets.insert(id, ports.address()?);
        }
        let proxied = if plan.proxied { targets.clone() } else { BTreeMap::new() };
        let network = ProcessNetwork::start(&proxied, || ports.address(), plan.seed)?;
        let mut slots = BTreeMap::new();
        for (id, raft) in targets {
            let gateway = ports.address()?;
            let listed = ListedAddress { raft: network.recorded_address(id).unwrap_or(raft), gateway };
            let (child, stdin, boot) = (None, None, 0);
            let (serving, claimed, member) = (false, false, id <= plan.nodes);
            slots.insert(id, NodeSlot { gateway, raft, listed, child, stdin, boot, serving, claimed, member });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cluster = Self {
            binary: plan.binary.to_owned(),
            before: Mutex::new(plan.before.map(Path::to_owned)),
            dir: plan.dir.to_owned(),
            data,
            certs,
            token: String::new(),
            network,
            disks,
            faketime: plan.faketime.clone(),
            workers: (cores / plan.nodes as usize).max(1),
            founders: plan.nodes,
            settings: plan.settings.clone(),
            slots: Mutex::new(slots),
            ports: Mutex::new(ports),
        };
        cluster.token = cluster.token_of("chaos", Class::Admin)?;
        cluster.new_certificates().await?;
        // The first entry of the log names the members and their addresses, so it must be the same on all nodes. What
        // each of them says of the others' addresses afterwards is its own: that is where the proxies come in, and nobody
        // answers at the recorded addresses any more.
        for others in [Others::Found, Others::Proxied] {
            let _founding = (others == Others::Found).then(|| cluster.network.open_recorded());
            for id in 1..=plan.nodes {
                cluster.spawn(id, others)?;
            }
            cluster.all_serve(Duration::from_secs(60)).await?;
            if others == Others::Found {
                for id in 1..=plan.nodes {
                    cluster.terminate(id).await?;
                }
            }
        }
        Ok(cluster)
    }

    pub(super) fn key_file(&self) -> PathBuf {
        self.data.join(KEY_FILE)
    }

    /// What signs tokens now.
    fn keys(&self) -> Result<KeyRing, String> {
        KeyRing::read(&self.key_file()).map_err(|error| error.to_string())
    }

    pub(super) fn token_of(&self, device: &str, class: Class) -> Result<String, String> {
        let issued = self.keys()?.issue(device, class, SystemClock.now_ms(), TOKENS);
        issued.map(|(token, _)| token).map_err(|error| error.to_string())
    }

    /// A token that was issued an hour ago: a clock that is a little wrong does not make it newer than what takes it back.
    pub(super) fn earlier_token_of(&self, device: &str, class: Class) -> Result<String, String> {
        let issued = self.keys()?.issue(device, class, SystemClock.now_ms().minus_ms(3_600_000), TOKENS + 3_600);
        issued.map(|(token, _)| token).map_err(|error| error.to_string())
    }

    fn data_of(&self, id: u64) -> PathBuf {
        self.data.join(format!("node-{id}"))
    }

    pub(super) fn log_of(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}.log"))
    }

    /// What libfaketime reads a node's offset from.
    pub(super) fn clock_of(&self, id: u64) -> PathBuf {
        self.data.join(format!("clock-{id}"))
    }

    /// Takes a node for a fault; false if another one has it, or it is no member or does not run.
    pub(super) fn claim(&self, id: u64) -> bool {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&id).filter(|slot| slot.member && !slot.claimed && slot.child.is_some());
        slot.map(|slot| slot.claimed = true).is_some()
    }

    pub(super) fn release(&self, id: u64) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.claimed = false;
        }
    }

    pub(super) fn is_claimed(&self, id: u64) -> bool {
        self.slots.lock().get(&id).is_some_and(|slot| slot.claimed)
    }

    pub(super) fn set_member(&self, id: u64, member: bool) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.member = member;
        }
    }

    /// A number that was never used.
    pub(super) fn unused(&self) -> Option<u64> {
        self.slots.lock().iter().find(|(_, slot)| slot.boot == 0).map(|(id, _)| *id)
    }

    pub(super) fn set_serving(&self, id: u64, serving: bool) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.serving = serving && slot.child.is_some();
        }
    }

    /// Which start of a node this is; `None` if it does not run.
    pub(super) fn boot(&self, id: u64) -> Option<u64> {
        self.slots.lock().get(&id).and_then(|slot| slot.child.as_ref().map(|_| slot.boot))
    }

    pub(super) fn pid(&self, id: u64) -> Option<u32> {
        self.slots.lock().get(&id).and_then(|slot| slot.child.as_ref()?.id())
    }

    /// The members, and where clients reach them, up or not.
    pub(super) fn gateways(&self) -> Vec<(u64, SocketAddr)> {
        self.slots.lock().iter().filter(|(_, slot)| slot.member).map(|(id, slot)| (*id, slot.gateway)).collect()
    }

    pub(super) fn members(&self) -> Vec<u64> {
        self.gateways().into_iter().map(|(id, _)| id).collect()
    }

    pub(super) fn gateway(&self, id: u64) -> Option<String> {
        self.slots.lock().get(&id).map(|slot| slot.gateway.to_string())
    }

    pub(super) fn raft(&self, id: u64) -> Option<String> {
        self.slots.lock().get(&id).map(|slot| slot.raft.to_string())
    }

    /// Where a node is, as the membership has it, or is to have it.
    pub(super) fn listed(&self, id: u64) -> Option<ListedAddress> {
        self.slots.lock().get(&id).map(|slot| slot.listed)
    }

    /// A majority serves, and hears each other.
    pub(super) fn majority(&self) -> bool {
        let (up, members) = {
            let slots = self.slots.lock();
            let up: Vec<u64> = slots.iter().filter(|(_, s)| s.member && s.serving).map(|(id, _)| *id).collect();
            (up, slots.values().filter(|slot| slot.member).count())
        };
        (0..1_u32 << up.len().min(16)).any(|set| {
            let chosen = |at: usize| set >> at & 1 == 1;
            let of_set: Vec<u64> = up.iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, id)| *id).collect();
            of_set.len() > members / 2
                && of_set.iter().all(|a| of_set.iter().all(|b| a == b || !self.network.apart(*a, *b)))
        })
    }

    /// Whether a node says that it can serve.
    pub(super) async fn is_ready(&self, id: u64) -> bool {
        let Some(authority) = self.gateway(id) else { return false };
        self.is_ready_at(&authority).await
    }

    pub(super) async fn is_ready_at(&self, authority: &str) -> bool {
        let door = HttpClient { authority, token: &self.token, within: Duration::from_secs(1) };
        door.get("/readyz").await.is_ok()
    }

    /// Waits until a node serves; false if it does not in time.
    pub(super) async fn serves(&self, id: u64, within: Duration) -> bool {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if self.is_ready(id).await {
                self.set_serving(id, true);
                return true;
            }
            sleep(AGAIN).await;
        }
        false
    }

    async fn all_serve(&self, within: Duration) -> Result<(), String> {
        let until = Instant::now() + within;
        for id in self.members() {
            while !self.serves(id, AGAIN).await {
                if let Some((fallen, status)) = self.fallen().first() {
                    return Err(format!("node {fallen} ended with {status}: {}", self.last_line(*fallen)));
                }
                if Instant::now() >= until {
                    return Err(format!("node {id} does not serve: {}", self.last_line(id)));
                }
            }
        }
        Ok(())
    }

    /// The last line of a node's log that tells of an error, or the last one.
    pub(super) fn last_line(&self, id: u64) -> String {
        let text = fs::read(self.log_of(id)).unwrap_or_default();
        let tail = text.len().saturating_sub(8 << 10);
        let text = String::from_utf8_lossy(text.get(tail..).unwrap_or_default()).into_owned();
        let mut lines = text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
        let last = lines.clone().next().unwrap_or("its log is empty").to_owned();
        lines.find(|line| line.contains("error: ") || line.contains("panicked")).map_or(last, str::to_owned)
    }

    /// Kills everything.
    pub(super) async fn end(&self) {
        let ids: Vec<u64> = self.slots.lock().keys().copied().collect();
        for id in ids {
            self.kill(id).await;
        }
    }
}

impl Drop for ProcessCluster {
    /// Whatever way a run ends: no process, no mount and no data stay behind.
    fn drop(&mut self) {
        self.slots.lock().clear();
        self.disks.unmount();
        // What cannot be removed does no harm.
        let _ = fs::remove_dir_all(&self.data);
    }
}
