//! Nodes as processes of their own, each with its own settings: started, stopped in order, added and removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tillsync::client::NodeUrl;
use tillsync::client::rest::{NodeStatus, RestClient};
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing};

use crate::faulty_disk;
use crate::harness::{PATIENCE, both, three_ports, tillsync};
use crate::single_node::wait;

#[derive(Clone, Copy)]
struct Ports {
    gateway: u16,
    raft: u16,
}

/// Dropping it kills what still runs.
pub(crate) struct Processes {
    dir: TempDir,
    ports: BTreeMap<u64, Ports>,
    running: BTreeMap<u64, Child>,
    /// Preloaded into those that are started from now on.
    library: Option<PathBuf>,
    /// They run as the program of before, from their next start on.
    of_before: Vec<u64>,
    /// What all of them are set to beside.
    settings: String,
}

impl Processes {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        assert!(tillsync().args(["token", "key"]).arg(dir.path().join("token.key")).status().unwrap().success());
        Self {
            dir,
            ports: BTreeMap::new(),
            running: BTreeMap::new(),
            library: None,
            of_before: Vec::new(),
            settings: String::new(),
        }
    }

    /// Nodes that have these settings beside.
    pub(crate) fn with_settings(settings: &str) -> Self {
        let mut processes = Self::new();
        processes.settings = settings.to_owned();
        processes
    }

    /// Starts these nodes as the founders of a cluster, and waits until they agree.
    pub(crate) async fn found(size: u64) -> Self {
        Self::new().founded(size).await
    }

    /// The same on disks that can become slow.
    pub(crate) async fn found_on_faulty_disks(size: u64) -> Self {
        let mut processes = Self::new();
        processes.library = Some(faulty_disk::library(processes.dir.path()));
        processes.founded(size).await
    }

    pub(crate) async fn founded(self, size: u64) -> Self {
        let mut processes = self;
        (1..=size).for_each(|id| processes.give_ports(id));
        let members = processes.members(&(1..=size).collect::<Vec<_>>());
        for id in 1..=size {
            processes.configure(id, &members);
            processes.start(id);
        }
        processes.ready().await;
        processes
    }

    /// The setting that names these nodes where they are now.
    pub(crate) fn members(&self, ids: &[u64]) -> String {
        let members: Vec<String> = self.members_by_id(ids).into_values().collect();
        format!("members = [{}]", members.join(", "))
    }

    pub(crate) fn members_by_id(&self, ids: &[u64]) -> BTreeMap<u64, String> {
        let member = |id: &u64| {
            let (raft, gateway) = (self.raft(*id), self.gateway(*id));
            (*id, format!("{{ id = {id}, raft = \"{raft}\", gateway = \"{gateway}\" }}"))
        };
        ids.iter().map(member).collect()
    }

    pub(crate) fn give_ports(&mut self, id: u64) {
        let base = three_ports();
        self.ports.insert(id, Ports { gateway: base, raft: base + 1 });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self, id: u64) -> PathBuf {
        self.path(&format!("node-{id}.toml"))
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.path(&format!("data-{id}"))
    }

    pub(crate) fn configure(&self, id: u64, more: &str) {
        let Ports { gateway, raft } = self.ports[&id];
        let text = format!(
            "node_id = {id}\ncluster_name = \"fleet\"\ndata_dir = {:?}\nkey_file = {:?}\n\
             gateway_listen = \"127.0.0.1:{gateway}\"\nraft_listen = \"127.0.0.1:{raft}\"\nlog_format = \"json\"\n{}\n{more}\n",
            self.data(id),
            self.path("token.key"),
            self.settings,
        );
        std::fs::write(self.config(id), text).unwrap();
    }

    pub(crate) fn start(&mut self, id: u64) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(id)).unwrap();
        let mut command = tillsync();
        command.args(["serve", "--config"]).arg(self.config(id));
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        if self.of_before.contains(&id) {
            command.env("TILLSYNC_TEST_BUILD", "before");
        }
        if let Some(library) = &self.library {
            command.env("LD_PRELOAD", library).env("FAULTY_DISK", self.dir.path());
        }
        self.running.insert(id, command.spawn().unwrap());
    }

    /// These nodes, and no others, have the program that knew no cluster versions, from their next start on.
    pub(crate) fn have_program_of_before(&mut self, ids: &[u64]) {
        self.of_before = ids.to_vec();
    }

    /// Each flush takes so long, on faulty disks.
    pub(crate) fn slow_disks(&self, flush_ms: u32) {
        // Whole or not at all: nodes read it at each flush.
        std::fs::write(self.path("slow.new"), flush_ms.to_string()).unwrap();
        std::fs::rename(self.path("slow.new"), self.path("slow")).unwrap();
    }

    /// Starts a node that waits to be added.
    pub(crate) fn start_new(&mut self, id: u64) {
        self.give_ports(id);
        let join: Vec<u64> = self.running.keys().copied().collect();
        self.start_joining(id, &join);
    }

    /// The same, with ports that it has.
    pub(crate) fn start_joining(&mut self, id: u64, join: &[u64]) {
        let join: Vec<String> = join.iter().map(|id| self.raft(*id)).collect();
        self.configure(id, &format!("join = {join:?}"));
        self.start(id);
    }

    pub(crate) fn raft(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.ports[&id].raft)
    }

    pub(crate) fn gateway(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.ports[&id].gateway)
    }

    /// A node's disk is lost; it may be found again.
    pub(crate) fn keep_aside(&self, id: u64) {
        std::fs::rename(self.data(id), self.path(&format!("aside-{id}"))).unwrap();
    }

    pub(crate) fn put_back(&self, id: u64) {
        let _ = std::fs::remove_dir_all(self.data(id));
        std::fs::rename(self.path(&format!("aside-{id}")), self.data(id)).unwrap();
    }

    /// Waits until a node has said this in its log.
    pub(crate) async fn says(&self, id: u64, words: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.said(id).contains(words) {
            assert!(Instant::now() < end, "{}", self.said(id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a node answers linearizable reads: one that was restored writes its epoch first.
    pub(crate) async fn serves(&self, id: u64) {
        let (rest, end) = (self.rest(), Instant::now() + PATIENCE);
        while rest.get::<serde_json::Value>(&self.url(id), "/device/roles").await.is_err() {
            assert!(Instant::now() < end, "{}", self.said(id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until these nodes have the same newest change.
    pub(crate) async fn same(&self, ids: &[u64]) {
        let (rest, end) = (self.rest(), Instant::now() + PATIENCE);
        loop {
            let mut heads = Vec::new();
            for id in ids {
                heads.extend(rest.status(&self.url(*id)).await.ok().map(|status| status.head_seq));
            }
            if heads.len() == ids.len() && heads.iter().all(|head| *head == heads[0]) {
                return;
            }
            assert!(Instant::now() < end, "{heads:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM; the node ends in order.
    pub(crate) async fn stop(&mut self, id: u64) -> ExitStatus {
        let child = &self.running[&id];
        // SAFETY: a signal to our own child, which was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
        self.ended(id).await
    }

    /// How the node ended, by itself or because it was asked.
    pub(crate) async fn ended(&mut self, id: u64) -> ExitStatus {
        let child = self.running.remove(&id).unwrap();
        tokio::task::spawn_blocking(|| wait(child)).await.unwrap()
    }

    /// How the node has ended, if it has.
    pub(crate) fn exited(&mut self, id: u64) -> Option<ExitStatus> {
        let status = self.running.get_mut(&id).unwrap().try_wait().unwrap()?;
        self.running.remove(&id);
        Some(status)
    }

    pub(crate) fn runs(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    pub(crate) fn kill(&mut self, id: u64) {
        let mut child = self.running.remove(&id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self, id: u64) -> PathBuf {
        self.path(&format!("log-{id}"))
    }

    /// What it said is forgotten.
    pub(crate) fn hush(&self, id: u64) {
        let _ = std::fs::remove_file(self.log(id));
    }

    pub(crate) fn said(&self, id: u64) -> String {
        std::fs::read_to_string(self.log(id)).unwrap_or_default()
    }

    pub(crate) fn urls(&self) -> Vec<NodeUrl> {
        self.running.keys().map(|id| self.url(*id)).collect()
    }

    pub(crate) fn url(&self, id: u64) -> NodeUrl {
        NodeUrl::plain(format!("127.0.0.1:{}", self.ports[&id].gateway))
    }

    pub(crate) fn token(&self) -> String {
        let keys = KeyRing::read(Path::new(&self.path("token.key"))).unwrap();
        keys.issue("admin", Class::Admin, SystemClock.now_ms(), 3_600).unwrap().0
    }

    pub(crate) fn rest(&self) -> RestClient {
        RestClient::new(&self.token()).unwrap()
    }

    /// Waits until all that run are voters, have caught up and agree on the leader.
    pub(crate) async fn ready(&self) -> Vec<NodeStatus> {
        self.agree(true).await
    }

    /// The same where some do not reach the others.
    pub(crate) async fn ready_but_for_reach(&self) -> Vec<NodeStatus> {
        self.agree(false).await
    }

    async fn agree(&self, all_reach: bool) -> Vec<NodeStatus> {
        let (rest, end) = (self.rest(), Instant::now() + PATIENCE);
        loop {
            let mut statuses = Vec::new();
            for url in self.urls() {
                statuses.extend(rest.status(&url).await.ok());
            }
            let voters: Vec<u64> = self.running.keys().copied().collect();
            let agreed = |s: &NodeStatus| {
                s.leader.is_some()
                    && s.leader == statuses[0].leader
                    && s.quorum
                    && s.voters == voters
                    && (!all_reach || s.peers.iter().all(|p| p.reachable))
            };
            if statuses.len() == voters.len() && statuses.iter().all(agreed) {
                return statuses;
            }
            let logs: Vec<_> = self.running.keys().map(|id| self.said(*id)).collect();
            assert!(Instant::now() < end, "the nodes do not agree: {statuses:?}\n{}", logs.join("\n--\n"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `tillsync cluster …`, asked at every node that runs: whether it went well, and what it said.
    pub(crate) async fn cluster(&self, args: &[String]) -> (bool, String) {
        let mut command = tillsync();
        let urls: Vec<String> = self.urls().iter().map(ToString::to_string).collect();
        command.arg("cluster").args(args).args(["--token", &self.token(), "--url", &urls.join(",")]);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        (output.status.success(), both(&output))
    }

    pub(crate) async fn add(&self, id: u64) -> (bool, String) {
        let Ports { gateway, raft } = self.ports[&id];
        let words = format!("add --id {id} --raft 127.0.0.1:{raft} --gateway 127.0.0.1:{gateway}");
        self.cluster(&words.split(' ').map(str::to_owned).collect::<Vec<_>>()).await
    }

    pub(crate) async fn remove(&self, id: u64) -> (bool, String) {
        self.cluster(&["remove".to_owned(), id.to_string()]).await
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
