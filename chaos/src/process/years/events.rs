//! How what comes in a year is done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tillsync::token::Class;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::YearsRun;
use super::calendar::{YearEvent, spared};
use super::figures::MonthFigures;
use super::shop::ShopHours;
use crate::process::cluster::folders::said_by;
use crate::process::http::HttpClient;
use crate::starter::{self, NodeSettings, member};

/// How long a node may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);
/// How far a clock is off: too far to serve.
const CLOCK_OFF: &str = "+8";
/// Left on a disk that is as good as full.
const LEAVES: u64 = 16 << 20;
/// How long disks are full.
const FULL: Duration = Duration::from_secs(3);
/// Records that are looked at in a cluster that was restored.
const LOOKED_AT: usize = 300;
/// Backups that are kept.
const BACKUPS: &str = "4";
/// The number of the node that a backup is restored on; a shop's nodes are 1 to 3.
const RESTORED: u64 = 9;
/// A folder that does not change for so long is at rest.
const AT_REST: Duration = Duration::from_secs(1);
/// It is looked at no longer than this, at rest or not.
const RESTLESS: Duration = Duration::from_secs(20);
const MB: f64 = 1e6;

impl YearsRun {
    pub(super) async fn happen(&mut self, day: u64, event: YearEvent) -> Result<(), String> {
        let cluster = self.shop.cluster.clone();
        match event {
            YearEvent::ClockRight(node) => self.set_clock(node, "+0"),
            YearEvent::ClockOff(node) => self.set_clock(node, CLOCK_OFF),
            YearEvent::Away(node) => self.stop(node).await,
            YearEvent::Back(node) => self.bring_back(node).await,
            YearEvent::Kill(node) => {
                cluster.kill(node).await;
                self.bring_back(node).await
            }
            YearEvent::PowerCut => {
                let all = cluster.members();
                futures_util::future::join_all(all.iter().map(|node| cluster.kill(*node))).await;
                for node in &all {
                    cluster.revive(*node)?;
                }
                for node in all {
                    self.bring_back(node).await?;
                }
                Ok(())
            }
            YearEvent::Update => {
                let before = cluster.run_before(None);
                for node in cluster.members() {
                    self.start_again(node).await?;
                    if let Some(before) = before.clone().filter(|_| node == 1) {
                        // Somebody has second thoughts.
                        cluster.run_before(Some(before));
                        self.start_again(node).await?;
                        cluster.run_before(None);
                        self.start_again(node).await?;
                    }
                }
                Ok(())
            }
            YearEvent::Finalize => self.tillsync(&["cluster", "finalize"]).await.map(drop),
            YearEvent::NewKey => {
                cluster.new_key()?;
                self.new_key_is_taken().await
            }
            YearEvent::OldKeyGone => cluster.forget_old_keys(),
            YearEvent::NewCertificates => cluster.new_certificates().await,
            YearEvent::DisksFill => self.disks_fill().await,
            YearEvent::Backup { whole } => self.back_up(whole).await,
            YearEvent::Restore => self.restore().await,
            YearEvent::Figures => self.take_figures(day).await,
        }
    }

    /// Stops a node in good order.
    async fn stop(&self, node: u64) -> Result<(), String> {
        let ended = self.shop.cluster.terminate(node).await?;
        if ended.success() { Ok(()) } else { Err(format!("node {node} was asked to stop and ended with {ended}")) }
    }

    async fn start_again(&self, node: u64) -> Result<(), String> {
        self.stop(node).await?;
        self.bring_back(node).await
    }

    pub(super) async fn bring_back(&self, node: u64) -> Result<(), String> {
        self.shop.cluster.revive(node)?;
        if self.shop.cluster.serves(node, PATIENCE).await {
            return Ok(());
        }
        Err(format!("node {node} does not serve: {}", self.shop.cluster.last_line(node)))
    }

    /// Waits until every node takes a token of the key that signs now.
    async fn new_key_is_taken(&self) -> Result<(), String> {
        let token = self.shop.cluster.token_of("office", Class::Admin)?;
        let until = Instant::now() + PATIENCE;
        for (node, gateway) in self.shop.cluster.gateways() {
            let authority = gateway.to_string();
            let client = HttpClient { authority: &authority, token: &token, within: PATIENCE };
            while self.shop.cluster.has_process(node) && client.get("/system/cluster").await.is_err() {
                if Instant::now() >= until {
                    return Err(format!("node {node} does not take tokens of the new key"));
                }
                sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    fn set_clock(&self, node: u64, offset: &str) -> Result<(), String> {
        let clock = self.shop.cluster.clock_of(node);
        fs::write(&clock, offset).map_err(|error| format!("{}: {error}", clock.display()))
    }

    async fn disks_fill(&self) -> Result<(), String> {
        let (cluster, nodes) = (&self.shop.cluster, self.shop.cluster.members());
        for node in &nodes {
            cluster.disks.fill_some(*node, u64::MAX, LEAVES)?;
        }
        sleep(FULL).await;
        nodes.iter().for_each(|node| cluster.disks.free(*node));
        Ok(())
    }

    /// `tillsync …` with an admin's token and the nodes' addresses; what it said.
    async fn tillsync(&self, words: &[&str]) -> Result<String, String> {
        let cluster = &self.shop.cluster;
        let urls: Vec<String> = cluster.gateways().iter().map(|(_, at)| format!("http://{at}")).collect();
        let mut command = starter::tillsync(&self.binary);
        command.args(words).env("TILLSYNC_URL", urls.join(","));
        command.env("TILLSYNC_TOKEN", cluster.token_of("office", Class::Admin)?);
        said_by(command, &words.join(" ")).await
    }

    /// What came after the last one; everything, if the log does not go back so far.
    async fn back_up(&self, whole: bool) -> Result<(), String> {
        let folder = self.backups.to_string_lossy();
        if !whole {
            match self.tillsync(&["backup", &folder, "--incremental"]).await {
                Err(why) if why.contains("take a whole") => {}
                done => return done.map(drop),
            }
        }
        self.tillsync(&["backup", &folder, "--keep", BACKUPS]).await.map(drop)
    }

    /// The whole backup that was written last.
    fn newest_backup(&self) -> Result<PathBuf, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.backups.display());
        let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
        for entry in fs::read_dir(&self.backups).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, at) = (entry.path(), entry.metadata().and_then(|file| file.modified()).map_err(failed)?);
            let is_newer = newest.as_ref().is_none_or(|(newest, _)| *newest < at);
            if path.extension().is_some_and(|end| end == "backup") && is_newer {
                newest = Some((at, path));
            }
        }
        newest.map(|(_, path)| path).ok_or_else(|| format!("{} has no backup", self.backups.display()))
    }

    /// At night: nothing is sold while the backup is compared.
    async fn restore(&mut self) -> Result<(), String> {
        self.rest().await;
        self.back_up(false).await?;
        let newest = self.newest_backup()?;
        let newest = newest.to_string_lossy();
        self.tillsync(&["backup", "verify", &newest]).await?;
        let folder = self.dir.join("restored");
        let done = self.restored(&newest, &folder).await;
        // What cannot be removed does no harm: a restore into a folder that is there is refused.
        let _ = fs::remove_dir_all(&folder);
        done
    }

    async fn restored(&mut self, backup: &str, folder: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(failed)?;
        let (gateway, raft) = (self.ports.address()?, self.ports.address()?);
        let (data, key) = (folder.join("data"), self.shop.cluster.key_file());
        let node = NodeSettings { id: RESTORED, cluster: "chaos", data: &data, key: &key, gateway, raft };
        let config = folder.join("node.toml");
        let text = node.text(&format!("members = [\n{}]", member(RESTORED, raft, gateway)));
        fs::write(&config, text).map_err(failed)?;
        self.tillsync(&["restore", backup, "--config", &config.to_string_lossy()]).await?;
        let log = fs::File::create(self.dir.join("restored.log")).map_err(failed)?;
        let mut command = starter::serve(&self.binary, &config);
        starter::signal_at_our_end(&mut command, libc::SIGKILL);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let mut child = Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
        let (gateway, token) = (gateway.to_string(), self.shop.cluster.token_of("office", Class::Admin)?);
        let until = Instant::now() + PATIENCE;
        while !self.shop.cluster.is_ready_at(&gateway).await {
            if let Ok(Some(ended)) = child.try_wait() {
                return Err(format!("the node that was restored ended with {ended}: see restored.log"));
            }
            if Instant::now() >= until {
                return Err("the node that was restored does not serve: see restored.log".into());
            }
            sleep(AGAIN).await;
        }
        let wrong = self.shop.differing(&gateway, &token, LOOKED_AT, &mut self.rng).await;
        // It fails only if the process has gone already.
        let _ = child.kill().await;
        if wrong.is_empty() { Ok(()) } else { Err(format!("after a restore {}", wrong.join("; "))) }
    }

    /// It is night: nothing is written, and what was written has arrived.
    async fn rest(&self) {
        self.shop.hours.send_replace(ShopHours::Night);
        let until = Instant::now() + RESTLESS;
        let (mut size, mut since) = (0, Instant::now());
        while Instant::now() < until && since.elapsed() < AT_REST {
            let now: u64 =
                self.shop.cluster.members().iter().map(|node| size_of(&self.shop.cluster.folder(*node))).sum();
            if now != size {
                (size, since) = (now, Instant::now());
            }
            sleep(AGAIN).await;
        }
    }

    async fn take_figures(&mut self, day: u64) -> Result<(), String> {
        self.rest().await;
        let cluster = self.shop.cluster.clone();
        let mut figures = MonthFigures {
            day,
            changes: self.shop.acknowledged(),
            records: self.shop.records(),
            ..MonthFigures::default()
        };
        for node in cluster.members() {
            figures.folder_mb = figures.folder_mb.max(size_of(&cluster.folder(node)) as f64 / MB);
            figures.memory_mb = figures.memory_mb.max(cluster.pid(node).map_or(0, resident) as f64 / MB);
        }
        // Not the one whose memory has time to grow.
        let node = spared(day) % 3 + 1;
        self.stop(node).await?;
        let began = Instant::now();
        self.bring_back(node).await?;
        figures.start_ms = began.elapsed().as_secs_f64() * 1e3;
        println!(
            "day {day}: {} changes, {} records; the largest folder {:.1} MB, memory {:.0} MB; a start {:.0} ms",
            figures.changes, figures.records, figures.folder_mb, figures.memory_mb, figures.start_ms
        );
        self.figures.push(figures);
        Ok(())
    }
}

/// What the files of a folder take on the disk, in bytes.
fn size_of(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let mut size = 0;
    for entry in entries.flatten() {
        // Files may go while they are looked at.
        size += match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        };
    }
    size
}

/// The memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kb.unwrap_or(0) * 1024
}
