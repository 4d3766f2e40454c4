//! Real `tillsync serve` processes on this machine: started, stopped, killed, held up, and never left behind.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing, make_key_file};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use super::disks::Disks;
use super::http::Door;
use super::network::Network;
use crate::rng::Rng;

/// How long a node may take to stop by itself.
const DRAIN: Duration = Duration::from_secs(20);
/// Below the range that systems take for outgoing connections: a restarted node must find its port free.
const PORTS: (u64, u64) = (20_000, 31_900);
/// How long the tokens of a run live, in seconds.
const TOKENS: u64 = 100_000;
const AGAIN: Duration = Duration::from_millis(25);
/// What the async runtime takes its number of threads from.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// What a node's settings say of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settings {
    /// All members, at their own addresses: a cluster is founded.
    Found,
    /// The others at the addresses of the proxies.
    Proxied,
    /// It will be added.
    Join,
}

struct Slot {
    gateway: SocketAddr,
    raft: SocketAddr,
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

pub struct Cluster {
    binary: PathBuf,
    /// Of the run: logs.
    dir: PathBuf,
    data: PathBuf,
    keys: KeyRing,
    pub token: String,
    pub network: Network,
    pub disks: Disks,
    /// Preloaded into every node, to move its clock.
    faketime: Option<PathBuf>,
    workers: usize,
    /// Nodes that found it: 1 to this.
    founders: u64,
    slots: Mutex<BTreeMap<u64, Slot>>,
}

/// How a cluster is made.
pub struct Plan<'a> {
    pub binary: &'a Path,
    pub dir: &'a Path,
    pub nodes: u64,
    /// Numbers for nodes that come later.
    pub spare: u64,
    pub seed: u64,
    pub small_disks: bool,
    pub faketime: Option<PathBuf>,
}

/// A free address on loopback.
fn free(rng: &mut Rng, taken: &mut Vec<u16>) -> Result<SocketAddr, String> {
    for _ in 0..2_000 {
        let port = rng.between(PORTS.0, PORTS.1) as u16;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.push(port);
            return Ok((Ipv4Addr::LOCALHOST, port).into());
        }
    }
    Err(format!("no free port was found between {} and {}", PORTS.0, PORTS.1))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

impl Cluster {
    /// Founds a cluster, and starts it anew behind its proxies.
    pub async fn start(plan: Plan<'_>) -> Result<Self, String> {
        let data = plan.dir.join("data");
        fs::create_dir_all(&data).map_err(failed(&data))?;
        let key = data.join("token.key");
        make_key_file(&key).map_err(failed(&key))?;
        let keys = KeyRing::read(&key).map_err(|error| error.to_string())?;
        // Ports are not the seed's: other runs may be going on.
        let mut rng = Rng::new(plan.seed ^ u64::from(std::process::id()) << 32 ^ SystemClock.now_ms());
        let mut taken = Vec::new();
        let mut slots = BTreeMap::new();
        for id in 1..=plan.nodes + plan.spare {
            let (gateway, raft) = (free(&mut rng, &mut taken)?, free(&mut rng, &mut taken)?);
            let (child, stdin, boot) = (None, None, 0);
            let member = id <= plan.nodes;
            slots.insert(id, Slot { gateway, raft, child, stdin, boot, serving: false, claimed: false, member });
        }
        let disks = if plan.small_disks { Disks::mount(&data, plan.nodes + plan.spare)? } else { Disks::none() };
        let targets = slots.iter().map(|(id, slot)| (*id, slot.raft)).collect();
        let network = Network::start(&targets, || free(&mut rng, &mut taken), plan.seed)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cluster = Self {
            binary: plan.binary.to_owned(),
            dir: plan.dir.to_owned(),
            data,
            keys,
            token: String::new(),
            network,
            disks,
            faketime: plan.faketime,
            workers: (cores / plan.nodes as usize).max(1),
            founders: plan.nodes,
            slots: Mutex::new(slots),
        };
        cluster.token = cluster.token_of("chaos", Class::Admin)?;
        // The first entry of the log names the members and their addresses, so it must be the same on all nodes. What
        // each of them says of the others' addresses afterwards is its own: that is where the proxies come in.
        for settings in [Settings::Found, Settings::Proxied] {
            for id in 1..=plan.nodes {
                cluster.spawn(id, settings)?;
            }
            cluster.all_serve(Duration::from_secs(60)).await?;
            if settings == Settings::Found {
                for id in 1..=plan.nodes {
                    cluster.terminate(id).await?;
                }
            }
        }
        Ok(cluster)
    }

    pub fn token_of(&self, device: &str, class: Class) -> Result<String, String> {
        let issued = self.keys.issue(device, class, SystemClock.now_ms(), TOKENS);
        issued.map(|(token, _)| token).map_err(|error| error.to_string())
    }

    fn data_of(&self, id: u64) -> PathBuf {
        self.data.join(format!("node-{id}"))
    }

    pub fn log_of(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}.log"))
    }

    /// What libfaketime reads a node's offset from.
    pub fn clock_of(&self, id: u64) -> PathBuf {
        self.data.join(format!("clock-{id}"))
    }

    fn configure(&self, id: u64, settings: Settings) -> Result<PathBuf, String> {
        let text = {
            let slots = self.slots.lock();
            let me = slots.get(&id).ok_or_else(|| format!("there is no node {id}"))?;
            let others = slots.iter().filter(|(other, _)| settings != Settings::Found || **other <= self.founders);
            let mut members = String::new();
            let mut join = Vec::new();
            for (other, slot) in others {
                let proxy = self.network.address(id, *other).filter(|_| settings == Settings::Proxied);
                let raft = proxy.unwrap_or(slot.raft);
                members += &format!("    {{ id = {other}, raft = \"{raft}\", gateway = \"{}\" }},\n", slot.gateway);
                if slot.member && slot.child.is_some() {
                    join.push(slot.raft.to_string());
                }
            }
            let others = if settings == Settings::Join {
                format!("join = {join:?}")
            } else {
                format!("members = [\n{members}]")
            };
            format!(
                "node_id = {id}\ncluster_name = \"chaos\"\ndata_dir = {:?}\nkey_file = {:?}\ngateway_listen = \"{}\"\n\
                 raft_listen = \"{}\"\nrequest_timeout_ms = 2000\nping_ms = 500\nlost_ms = 2000\ngrace_ms = 1000\n{others}\n",
                self.data_of(id).join("data"),
                self.data.join("token.key"),
                me.gateway,
                me.raft,
            )
        };
        let folder = self.data_of(id);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = self.data.join(format!("node-{id}.toml"));
        fs::write(&path, text).map_err(failed(&path))?;
        Ok(path)
    }

    fn spawn(&self, id: u64, settings: Settings) -> Result<(), String> {
        let config = self.configure(id, settings)?;
        let log_path = self.log_of(id);
        let log = OpenOptions::new().create(true).append(true).open(&log_path).map_err(failed(&log_path))?;
        let again = log.try_clone().map_err(failed(&log_path))?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("TILLSYNC_")) {
                command.env_remove(name);
            }
        }
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--stop-with-stdin")
            .env(WORKERS, self.workers.to_string());
        if let Some(library) = &self.faketime {
            let clock = self.clock_of(id);
            fs::write(&clock, "+0").map_err(failed(&clock))?;
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
        }
        command.stdin(Stdio::piped()).stdout(log).stderr(again).kill_on_drop(true);
        // A group of its own: Ctrl-C reaches this process only, which then ends the nodes.
        #[cfg(unix)]
        command.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: prctl is safe to call between fork and exec.
        unsafe {
            // A node that is held up cannot stop by itself when this process is gone.
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(failed(&self.binary))?;
        let stdin = child.stdin.take();
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get_mut(&id) {
            slot.boot += 1;
            slot.child = Some(child);
            slot.stdin = stdin;
        }
        drop(slots);
        self.network.set_up(id, true);
        Ok(())
    }

    /// Starts a node that was stopped or killed.
    pub fn revive(&self, id: u64) -> Result<(), String> {
        if self.has_process(id) { Ok(()) } else { self.spawn(id, Settings::Proxied) }
    }

    /// Starts a node that is to be added.
    pub fn start_new(&self, id: u64) -> Result<(), String> {
        self.spawn(id, Settings::Join)
    }

    pub fn has_process(&self, id: u64) -> bool {
        self.slots.lock().get(&id).is_some_and(|slot| slot.child.is_some())
    }

    fn taken(&self, id: u64) -> Option<(Child, Option<ChildStdin>)> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&id)?;
        slot.serving = false;
        Some((slot.child.take()?, slot.stdin.take()))
    }

    /// SIGKILL.
    pub async fn kill(&self, id: u64) {
        self.network.set_up(id, false);
        if let Some((mut child, _)) = self.taken(id) {
            // It fails only if the process has gone already.
            let _ = child.kill().await;
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&self, id: u64) -> Result<ExitStatus, String> {
        let Some((mut child, stdin)) = self.taken(id) else { return Err(format!("node {id} does not run")) };
        signal(&child, libc::SIGTERM);
        let ended = timeout(DRAIN, child.wait()).await;
        self.network.set_up(id, false);
        drop(stdin);
        match ended {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => {
                let _ = child.kill().await;
                Err(format!("node {id} did not stop within {} s", DRAIN.as_secs()))
            }
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn hold(&self, id: u64, held: bool) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(&id) else { return };
        if held {
            slot.serving = false;
        }
        if let Some(child) = &slot.child {
            signal(child, if held { libc::SIGSTOP } else { libc::SIGCONT });
        }
    }

    /// Waits until a node ends by itself.
    pub async fn ended(&self, id: u64, within: Duration) -> Option<ExitStatus> {
        let (mut child, _stdin) = self.taken(id)?;
        let ended = timeout(within, child.wait()).await;
        self.network.set_up(id, false);
        match ended {
            Ok(status) => status.ok(),
            Err(_) => {
                let _ = child.kill().await;
                None
            }
        }
    }

    /// Nodes that ended though nobody asked them to, and how.
    pub fn fallen(&self) -> Vec<(u64, ExitStatus)> {
        let mut fallen = Vec::new();
        for (id, slot) in self.slots.lock().iter_mut() {
            if let Some(child) = &mut slot.child
                && let Ok(Some(status)) = child.try_wait()
            {
                (slot.child, slot.stdin, slot.serving) = (None, None, false);
                fallen.push((*id, status));
            }
        }
        for (id, _) in &fallen {
            self.network.set_up(*id, false);
        }
        fallen
    }

    /// Takes a node for a fault; false if another one has it, or it is no member or does not run.
    pub fn claim(&self, id: u64) -> bool {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&id).filter(|slot| slot.member && !slot.claimed && slot.child.is_some());
        slot.map(|slot| slot.claimed = true).is_some()
    }

    pub fn release(&self, id: u64) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.claimed = false;
        }
    }

    pub fn is_claimed(&self, id: u64) -> bool {
        self.slots.lock().get(&id).is_some_and(|slot| slot.claimed)
    }

    pub fn set_member(&self, id: u64, member: bool) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.member = member;
        }
    }

    /// A number that was never used.
    pub fn unused(&self) -> Option<u64> {
        self.slots.lock().iter().find(|(_, slot)| slot.boot == 0).map(|(id, _)| *id)
    }

    pub fn set_serving(&self, id: u64, serving: bool) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.serving = serving && slot.child.is_some();
        }
    }

    /// Which start of a node this is; `None` if it does not run.
    pub fn boot(&self, id: u64) -> Option<u64> {
        self.slots.lock().get(&id).and_then(|slot| slot.child.as_ref().map(|_| slot.boot))
    }

    /// The members, and where clients reach them, up or not.
    pub fn gateways(&self) -> Vec<(u64, SocketAddr)> {
        self.slots.lock().iter().filter(|(_, slot)| slot.member).map(|(id, slot)| (*id, slot.gateway)).collect()
    }

    pub fn members(&self) -> Vec<u64> {
        self.gateways().into_iter().map(|(id, _)| id).collect()
    }

    pub fn gateway(&self, id: u64) -> Option<String> {
        self.slots.lock().get(&id).map(|slot| slot.gateway.to_string())
    }

    pub fn raft(&self, id: u64) -> Option<String> {
        self.slots.lock().get(&id).map(|slot| slot.raft.to_string())
    }

    /// A majority serves, and hears each other.
    pub fn majority(&self) -> bool {
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
    pub async fn is_ready(&self, id: u64) -> bool {
        let Some(authority) = self.gateway(id) else { return false };
        let door = Door { authority: &authority, token: &self.token, within: Duration::from_secs(1) };
        door.get("/readyz").await.is_ok()
    }

    /// Waits until a node serves; false if it does not in time.
    pub async fn serves(&self, id: u64, within: Duration) -> bool {
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
            if !self.serves(id, until.saturating_duration_since(Instant::now())).await {
                return Err(format!("node {id} does not serve: see {}", self.log_of(id).display()));
            }
        }
        Ok(())
    }

    /// Kills everything, and removes the data.
    pub async fn end(&self, keep_data: bool) {
        let ids: Vec<u64> = self.slots.lock().keys().copied().collect();
        for id in ids {
            self.kill(id).await;
        }
        self.disks.unmount();
        if !keep_data {
            // What cannot be removed does no harm.
            let _ = fs::remove_dir_all(&self.data);
        }
    }
}

fn signal(child: &Child, signal: i32) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: our own child, which was not waited for.
        unsafe { libc::kill(pid, signal) };
    }
}
