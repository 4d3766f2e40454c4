//! A cluster of this program's own, for a drill: `tillsync dev` in a temporary folder.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::PATIENCE;
use super::cluster::OperatedCluster;
use super::local::{self, LocalNode};
use crate::starter::{self, PortFinder};

/// How long it may take to drain all its nodes.
const STOP: Duration = Duration::from_secs(40);
/// Other programs may take a port between the look and the start.
const TRIES: u16 = 5;

pub(super) struct Embedded {
    dev: Child,
    pub dir: PathBuf,
    pub nodes: Vec<LocalNode>,
    pub cluster: OperatedCluster,
}

/// The `tillsync` to run: one that was named, the one beside this program, or the one on the PATH.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(path) = named {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(format!("--binary: there is no {}", path.display()))
        };
    }
    let beside = starter::beside().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("tillsync"));
    let found = beside.into_iter().chain(on_path).find(|file| file.is_file());
    found.ok_or_else(|| "no tillsync beside this program or on the PATH: `cargo build` makes one".into())
}

/// Copies the nodes' logs, as a report takes them.
pub(super) fn keep_logs(to: &Path, logs: &[(u64, PathBuf)]) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    logs.iter().try_for_each(|(id, log)| fs::copy(log, to.join(format!("node-{id}.log"))).map(drop))
}

impl Embedded {
    pub(super) async fn start(program: &Path) -> Result<Self, String> {
        let mut why = String::new();
        for attempt in 0..TRIES {
            match Self::try_start(program, attempt).await {
                Ok(started) => return Ok(started),
                Err(error) => why = error,
            }
            if !why.contains("in use") {
                break;
            }
        }
        Err(why)
    }

    async fn try_start(program: &Path, attempt: u16) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("chaos-drill-{}-{attempt}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        fs::create_dir(&dir).map_err(failed)?;
        let said = dir.join("dev.log");
        let out = fs::File::create(&said).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let port = PortFinder::new(attempt.into()).row(3)?;
        let mut command = starter::tillsync(program);
        command.arg("dev").arg("--data").arg(&dir).arg("--port").arg(port.to_string());
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        // Should this program die, the cluster stops, too.
        starter::signal_at_our_end(&mut command, libc::SIGTERM);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        let mut dev = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&said).map_err(failed)?;
            if text.contains("Tillsync runs") {
                break;
            }
            if dev.try_wait().map_err(failed)?.is_some() || Instant::now() >= end {
                let last = text.lines().last().unwrap_or("it said nothing").to_owned();
                let _ = fs::remove_dir_all(&dir);
                return Err(format!("`tillsync dev` does not start: {last}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
        let nodes = local::nodes(&dir)?;
        let cluster = OperatedCluster::new(local::target(&dir, &nodes)?)?;
        Ok(Self { dev, dir, nodes, cluster })
    }

    /// Lets all nodes drain and end; the data goes if it is not to be kept.
    pub(super) async fn stop(mut self, keep: bool) {
        let pid = self.dev.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // SAFETY: a plain system call; the child was not waited for yet.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        if timeout(STOP, self.dev.wait()).await.is_err() {
            let _ = self.dev.kill().await;
        }
        if keep {
            println!("The cluster's data and logs are left in {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} could not be removed: {error}", self.dir.display());
        }
    }
}
