//! Child processes of this same binary, one a node: started, watched, started again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::NODES;
use super::layout::{Layout, NodeFiles};
use crate::cli::{CliResult, CommandError};

/// How long a node may take to stop by itself.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause before a restart.
const PAUSE: Duration = Duration::from_millis(300);
/// A node that ends this soon after its start this many times in a row is left alone.
const TOO_SOON: Duration = Duration::from_secs(5);
const TOO_OFTEN: u32 = 5;
/// The exit code of a wrong configuration: starting again cannot help.
const EXIT_CONFIGURATION: i32 = 2;
/// What the async runtime takes its number of threads from.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WantedState {
    Up,
    /// Killed with SIGKILL, and not started again until it is wanted up.
    Down,
    /// Drained; the end.
    Stopped,
}

/// What happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeEvent {
    Started {
        node: usize,
        pid: u32,
    },
    /// It ended though nobody asked; it is started again if `again`.
    Died {
        node: usize,
        how: String,
        again: bool,
    },
    /// It is not started any more; `why` is the last line of its log.
    GivenUp {
        node: usize,
        why: String,
    },
}

/// The nodes of a local cluster, alive as wanted. Dropping it kills what still runs.
pub(crate) struct Supervisor {
    wants: Vec<watch::Sender<WantedState>>,
    tasks: Vec<JoinHandle<()>>,
    pub events: mpsc::Receiver<NodeEvent>,
}

impl Supervisor {
    /// Starts every node of the layout.
    pub(crate) fn start(layout: &Layout, restart: bool) -> CliResult<Self> {
        let exe = std::env::current_exe()
            .map_err(|e| CommandError::new(format!("the path of this program cannot be found: {e}")))?;
        let (sender, events) = mpsc::channel(64);
        let (mut wants, mut tasks) = (Vec::new(), Vec::new());
        for files in &layout.nodes {
            let (want, wanted) = watch::channel(WantedState::Up);
            let node = ChildNode { exe: exe.clone(), files: files.clone(), wanted, restart, events: sender.clone() };
            wants.push(want);
            tasks.push(tokio::spawn(node.tend()));
        }
        Ok(Self { wants, tasks, events })
    }

    /// SIGKILL to a node (from 1); it stays down until [`Supervisor::revive`].
    pub(crate) fn kill(&self, node: usize) {
        self.want(node, WantedState::Down);
    }

    pub(crate) fn revive(&self, node: usize) {
        self.want(node, WantedState::Up);
    }

    fn want(&self, node: usize, want: WantedState) {
        if let Some(sender) = node.checked_sub(1).and_then(|i| self.wants.get(i)) {
            sender.send_replace(want);
        }
    }

    /// Lets every node drain, and waits until all are gone.
    pub(crate) async fn stop(mut self) {
        for want in &self.wants {
            want.send_replace(WantedState::Stopped);
        }
        // Nobody reads events any more; closing keeps the tasks from waiting for a reader.
        self.events.close();
        for task in &mut self.tasks {
            let _ = task.await;
        }
    }
}

struct ChildNode {
    exe: std::path::PathBuf,
    files: NodeFiles,
    wanted: watch::Receiver<WantedState>,
    restart: bool,
    events: mpsc::Sender<NodeEvent>,
}

impl ChildNode {
    async fn tend(mut self) {
        let mut soon = 0;
        loop {
            let want = *self.wanted.borrow_and_update();
            match want {
                WantedState::Up => {}
                WantedState::Down => {
                    if self.wanted.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                WantedState::Stopped => return,
            }
            let begun = Instant::now();
            let (mut child, stdin) = match self.spawn() {
                Ok(started) => started,
                Err(why) => return self.tell(NodeEvent::GivenUp { node: self.files.id, why }).await,
            };
            let pid = child.id().unwrap_or_default();
            self.tell(NodeEvent::Started { node: self.files.id, pid }).await;
            let ended = tokio::select! {
                ended = child.wait() => ended,
                changed = self.wanted.changed() => {
                    let at_once = changed.is_ok() && *self.wanted.borrow() == WantedState::Down;
                    end(&mut child, stdin, at_once).await;
                    let _ = std::fs::remove_file(self.files.pid());
                    continue;
                }
            };
            let _ = std::fs::remove_file(self.files.pid());
            soon = if begun.elapsed() < TOO_SOON { soon + 1 } else { 0 };
            if !self.goes_on(ended.ok(), soon).await {
                return;
            }
        }
    }

    /// After an end that nobody asked for: whether to start again.
    async fn goes_on(&mut self, status: Option<ExitStatus>, soon: u32) -> bool {
        let node = self.files.id;
        let hopeless = status.and_then(|s| s.code()) == Some(EXIT_CONFIGURATION) || soon >= TOO_OFTEN;
        if self.restart && hopeless {
            let why = last_line(&self.files.log()).unwrap_or_else(|| "its log is empty".into());
            self.tell(NodeEvent::GivenUp { node, why }).await;
            return false;
        }
        let how = status.map_or_else(|| "ended".into(), |s| s.to_string());
        self.tell(NodeEvent::Died { node, how, again: self.restart }).await;
        if self.restart {
            let _ = tokio::time::timeout(PAUSE, self.wanted.changed()).await;
            return true;
        }
        // Down until someone wants it up again.
        self.wanted.changed().await.is_ok()
    }

    /// The process, and our end of the pipe that it lives by.
    fn spawn(&self) -> Result<(Child, Option<ChildStdin>), String> {
        let log_path = self.files.log();
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(|e| format!("{}: {e}", log_path.display()))?;
        let again = log.try_clone().map_err(|e| format!("{}: {e}", log_path.display()))?;
        let mut command = Command::new(&self.exe);
        command.arg("serve").arg("--config").arg(self.files.config());
        command.args(self.files.set.iter().flat_map(|set| ["--set", set]));
        // Its end of our pipe closes when this process ends, however that happens: no node is left behind.
        command.arg("--stop-with-stdin").stdin(Stdio::piped()).stdout(log).stderr(again).kill_on_drop(true);
        // A group of its own: Ctrl-C reaches this process only, which then stops the nodes in order.
        #[cfg(unix)]
        command.process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("TILLSYNC_")) {
                command.env_remove(name);
            }
        }
        if std::env::var_os(WORKERS).is_none() {
            // The nodes share this machine: each gets its part of the cores, and wakes no threads beyond it.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env(WORKERS, (cores / NODES).max(1).to_string());
        }
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.exe.display()))?;
        let pid = child.id().unwrap_or_default();
        std::fs::write(self.files.pid(), format!("{pid}\n"))
            .map_err(|e| format!("{}: {e}", self.files.pid().display()))?;
        // Taken out: waiting for a child closes the pipe that is still in it.
        let stdin = child.stdin.take();
        Ok((child, stdin))
    }

    async fn tell(&self, event: NodeEvent) {
        let _ = self.events.send(event).await;
    }
}

async fn end(child: &mut Child, stdin: Option<ChildStdin>, at_once: bool) {
    if !at_once {
        drop(stdin);
        if tokio::time::timeout(DRAIN, child.wait()).await.is_ok() {
            return;
        }
    }
    let _ = child.kill().await;
}

/// The last line of a log that says why, or else the last that says anything.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(8 << 10))).ok()?;
    let mut bytes = Vec::new();
    // A log may grow while it is read.
    file.take(8 << 10).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().rev().map(str::trim).filter(|l| !l.is_empty());
    let last = lines.clone().next()?;
    Some(lines.find_map(|l| l.strip_prefix("error: ")).unwrap_or(last).to_owned())
}
