//! The processes of a cluster: their settings, their start, and every way to end them.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::{DRAIN, ListedAddress, Others, ProcessCluster, WORKERS, failed};
use crate::starter::{self, NodeSettings, member};

/// Shorter than a store would have them, so that a run of a minute sees devices come and go.
const SETTINGS: &[(&str, u64)] = &[
    ("request_timeout_ms", 2_000),
    ("ping_ms", 500),
    ("lost_ms", 2_000),
    ("grace_ms", 1_000),
    // A run's small disks have less room than a store must leave.
    ("disk_low_mb", 0),
    ("disk_min_mb", 0),
];

/// Where a process of a node runs: its files begin with `name`.
pub(super) struct ProcessPlace {
    pub name: String,
    pub data: PathBuf,
    pub log: PathBuf,
    pub gateway: SocketAddr,
    pub raft: SocketAddr,
    pub listed: ListedAddress,
}

impl ProcessCluster {
    /// Where a node runs.
    pub(super) fn place(&self, id: u64) -> Result<ProcessPlace, String> {
        let slots = self.slots.lock();
        let me = slots.get(&id).ok_or_else(|| format!("there is no node {id}"))?;
        Ok(ProcessPlace {
            name: format!("node-{id}"),
            data: self.folder(id),
            log: self.log_of(id),
            gateway: me.gateway,
            raft: me.raft,
            listed: me.listed,
        })
    }

    pub(super) fn configure(&self, id: u64, whom: Others, place: &ProcessPlace) -> Result<PathBuf, String> {
        let text = {
            let slots = self.slots.lock();
            let others = slots.iter().filter(|(other, _)| whom != Others::Found || **other <= self.founders);
            let mut members = String::new();
            let mut join = Vec::new();
            for (other, slot) in others {
                let listed = if *other == id { place.listed } else { slot.listed };
                let proxy = self.network.address(id, *other).filter(|_| whom != Others::Found);
                let raft = proxy.unwrap_or(listed.raft);
                members += &member(*other, raft, listed.gateway);
                if slot.member && slot.child.is_some() {
                    join.push(raft.to_string());
                }
            }
            let others =
                if whom == Others::Join { format!("join = {join:?}") } else { format!("members = [\n{members}]") };
            // The scenario's own settings come instead of these.
            let mut more = self.tls_settings(id);
            for (key, value) in SETTINGS.iter().filter(|(key, _)| !self.settings.contains_key(*key)) {
                more += &format!("{key} = {value}\n");
            }
            for (key, value) in &self.settings {
                more += &format!("{key} = {value}\n");
            }
            let node = NodeSettings {
                id,
                cluster: "chaos",
                data: &place.data,
                key: &self.key_file(),
                gateway: place.gateway,
                raft: place.raft,
            };
            node.text(&format!("{more}{others}"))
        };
        let folder = self.data_of(id);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = self.data.join(format!("{}.toml", place.name));
        fs::write(&path, text).map_err(failed(&path))?;
        Ok(path)
    }

    pub(super) fn spawn(&self, id: u64, whom: Others) -> Result<(), String> {
        let place = self.place(id)?;
        let (child, stdin) = self.child(id, &self.configure(id, whom, &place)?, &place.log)?;
        self.adopt(id, child, stdin);
        Ok(())
    }

    /// Nodes run this release from their next start on; `None`: the one under test. Which one it was.
    pub(crate) fn run_before(&self, release: Option<PathBuf>) -> Option<PathBuf> {
        std::mem::replace(&mut *self.before.lock(), release)
    }

    /// Starts a process of a node, which nobody looks after yet.
    pub(super) fn child(&self, id: u64, config: &Path, log_path: &Path) -> Result<(Child, Option<ChildStdin>), String> {
        let log = OpenOptions::new().create(true).append(true).open(log_path).map_err(failed(log_path))?;
        let again = log.try_clone().map_err(failed(log_path))?;
        let before = self.before.lock().clone();
        let mut command = starter::serve(before.as_ref().unwrap_or(&self.binary), config);
        command.arg("--stop-with-stdin").env(WORKERS, self.workers.to_string());
        if let Some(library) = &self.faketime {
            let clock = self.clock_of(id);
            fs::write(&clock, "+0").map_err(failed(&clock))?;
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
        }
        command.stdin(Stdio::piped()).stdout(log).stderr(again);
        // A group of its own: Ctrl-C reaches this process only, which then ends the nodes.
        command.process_group(0);
        // A node that is held up cannot stop by itself when this process is gone.
        starter::signal_at_our_end(&mut command, libc::SIGKILL);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let mut child = command.spawn().map_err(failed(&self.binary))?;
        let stdin = child.stdin.take();
        Ok((child, stdin))
    }

    /// From now on this is the node's process.
    pub(super) fn adopt(&self, id: u64, child: Child, stdin: Option<ChildStdin>) {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get_mut(&id) {
            slot.boot += 1;
            slot.child = Some(child);
            slot.stdin = stdin;
        }
        drop(slots);
        self.network.set_up(id, true);
    }

    /// Starts a node that was stopped or killed.
    pub(crate) fn revive(&self, id: u64) -> Result<(), String> {
        if self.has_process(id) { Ok(()) } else { self.spawn(id, Others::Proxied) }
    }

    /// Starts a node that is to be added.
    pub(crate) fn start_new(&self, id: u64) -> Result<(), String> {
        self.spawn(id, Others::Join)
    }

    pub(crate) fn has_process(&self, id: u64) -> bool {
        self.slots.lock().get(&id).is_some_and(|slot| slot.child.is_some())
    }

    fn taken(&self, id: u64) -> Option<(Child, Option<ChildStdin>)> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&id)?;
        slot.serving = false;
        Some((slot.child.take()?, slot.stdin.take()))
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self, id: u64) {
        self.network.set_up(id, false);
        if let Some((mut child, _)) = self.taken(id) {
            // It fails only if the process has gone already.
            let _ = child.kill().await;
        }
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(&self, id: u64) -> Result<ExitStatus, String> {
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
    pub(crate) fn hold(&self, id: u64, held: bool) {
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
    pub(crate) async fn ended(&self, id: u64, within: Duration) -> Option<ExitStatus> {
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
    pub(crate) fn fallen(&self) -> Vec<(u64, ExitStatus)> {
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
}

fn signal(child: &Child, signal: i32) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: our own child, which was not waited for.
        unsafe { libc::kill(pid, signal) };
    }
}
