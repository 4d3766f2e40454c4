//! Data folders of nodes, copied and put in each other's place; starts from them, which may come to nothing; and what an
//! operator then does.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use super::processes::ProcessPlace;
use super::{AGAIN, ListedAddress, Others, ProcessCluster, failed};
use crate::process::http::HttpClient;
use crate::starter;

/// How long a command of an operator may take; those that wait have 30 s by themselves.
const COMMAND: Duration = Duration::from_secs(45);
/// How long a node may take to say that it is ready, or not.
const READY: Duration = Duration::from_secs(1);

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartEnd {
    Serves,
    /// By itself, without having served.
    Ended(ExitStatus),
    /// It did neither in time, and was killed.
    Neither,
}

/// A start and what the node said in its log since then.
#[derive(Debug)]
pub(crate) struct SeenStart {
    pub end: StartEnd,
    pub said: String,
}

/// A second process under the number of a node.
pub(crate) struct CloneProcess {
    child: Child,
    _stdin: Option<ChildStdin>,
    gateway: String,
    log: PathBuf,
    from: usize,
}

/// Copies a folder. What is gone or growing while it is copied is so in the copy, too: its node may be running.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(failed(to))?;
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let entry = entry.map_err(failed(from))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to)?;
            continue;
        }
        match fs::copy(&path, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => drop(other.map_err(failed(&path))?),
        }
    }
    Ok(())
}

fn text_from(log: &Path, from: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
}

/// Runs a command of `tillsync` to its end; what it said, in one line.
pub(crate) async fn said_by(command: std::process::Command, words: &str) -> Result<String, String> {
    let mut command = Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = timeout(COMMAND, command.output()).await;
    let ran = ran.map_err(|_| format!("tillsync {words} does not end"))?;
    let output = ran.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let said = said.trim().replace('\n', " ");
    if output.status.success() { Ok(said) } else { Err(format!("tillsync {words}: {said}")) }
}

impl ProcessCluster {
    /// What a node's settings said when its machine was set up, as far as anybody of those times is there.
    pub(crate) fn founding_of(&self, id: u64) -> Others {
        let founders = self.members().into_iter().filter(|other| *other != id && *other <= self.founders);
        if id <= self.founders && founders.count() > 0 { Others::Found } else { Others::Join }
    }

    /// A node's data folder.
    pub(crate) fn folder(&self, id: u64) -> PathBuf {
        self.data_of(id).join("data")
    }

    /// A place for another folder of a node.
    fn aside(&self, id: u64, name: &str) -> PathBuf {
        self.data_of(id).join(name)
    }

    pub(crate) fn copy_folder(&self, id: u64, name: &str) -> Result<(), String> {
        let to = self.aside(id, name);
        self.forget_folder(id, name)?;
        copy(&self.folder(id), &to)
    }

    /// Keeps the folder of a node that does not run under another name; the node has none then.
    pub(crate) fn keep_folder(&self, id: u64, name: &str) -> Result<(), String> {
        self.forget_folder(id, name)?;
        let folder = self.folder(id);
        fs::rename(&folder, self.aside(id, name)).map_err(failed(&folder))
    }

    /// A folder of this name becomes the node's, in place of what it has.
    pub(crate) fn put_folder(&self, id: u64, name: &str) -> Result<(), String> {
        let (from, to) = (self.aside(id, name), self.folder(id));
        match fs::remove_dir_all(&to) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&to)(error)),
            _ => {}
        }
        fs::rename(&from, &to).map_err(failed(&from))
    }

    pub(crate) fn forget_folder(&self, id: u64, name: &str) -> Result<(), String> {
        let aside = self.aside(id, name);
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&aside)(error)),
            _ => Ok(()),
        }
    }

    /// How much a node has said so far.
    pub(crate) fn said_len(&self, id: u64) -> usize {
        fs::metadata(self.log_of(id)).ok().and_then(|file| usize::try_from(file.len()).ok()).unwrap_or(0)
    }

    /// What a node has said behind that.
    pub(crate) fn said_from(&self, id: u64, from: usize) -> String {
        text_from(&self.log_of(id), from)
    }

    /// Starts a node that may end by itself. Only if it serves it is the node's process from then on, and anybody else's
    /// business.
    pub(crate) async fn see_start(&self, id: u64, whom: Others, within: Duration) -> Result<SeenStart, String> {
        let from = self.said_len(id);
        let place = self.place(id)?;
        let (mut child, stdin) = self.child(id, &self.configure(id, whom, &place)?, &place.log)?;
        self.network.set_up(id, true);
        let gateway = place.gateway.to_string();
        let until = Instant::now() + within;
        let end = loop {
            tokio::select! {
                biased;
                status = child.wait() => break StartEnd::Ended(status.map_err(|error| error.to_string())?),
                ready = self.ready_soon(&gateway) => if ready { break StartEnd::Serves },
            }
            if Instant::now() >= until {
                break StartEnd::Neither;
            }
        };
        match end {
            StartEnd::Serves => {
                self.adopt(id, child, stdin);
                self.set_serving(id, true);
            }
            StartEnd::Ended(_) => self.network.set_up(id, false),
            StartEnd::Neither => {
                self.network.set_up(id, false);
                // It fails only if the process has gone already.
                let _ = child.kill().await;
            }
        }
        Ok(SeenStart { end, said: self.said_from(id, from) })
    }

    /// Whether a node is ready at this address; a moment later if it is not.
    async fn ready_soon(&self, gateway: &str) -> bool {
        let ready = HttpClient { authority: gateway, token: &self.token, within: READY }.get("/readyz").await.is_ok();
        if !ready {
            sleep(AGAIN).await;
        }
        ready
    }

    /// Starts a second process of a node from this folder of it, at other addresses. `elsewhere`: its settings know them,
    /// too.
    pub(crate) fn start_clone(&self, id: u64, name: &str, elsewhere: bool) -> Result<CloneProcess, String> {
        let mut place = self.place(id)?;
        let (gateway, raft) = {
            let mut ports = self.ports.lock();
            (ports.address()?, ports.address()?)
        };
        if elsewhere {
            place.listed = ListedAddress { raft, gateway };
        }
        let place = ProcessPlace {
            name: format!("node-{id}-{name}"),
            data: self.aside(id, name),
            log: self.dir.join(format!("node-{id}-{name}.log")),
            gateway,
            raft,
            ..place
        };
        let from = text_from(&place.log, 0).len();
        let (child, stdin) = self.child(id, &self.configure(id, Others::Proxied, &place)?, &place.log)?;
        Ok(CloneProcess { child, _stdin: stdin, gateway: gateway.to_string(), log: place.log, from })
    }

    /// Whether a clone is ready; a moment later if it is not.
    pub(crate) async fn is_clone_ready(&self, clone: &CloneProcess) -> bool {
        self.ready_soon(&clone.gateway).await
    }

    /// Gives a node that does not run other ports. `told`: its own settings say so, too.
    pub(crate) fn move_node(&self, id: u64, told: bool) -> Result<ListedAddress, String> {
        let now = {
            let mut ports = self.ports.lock();
            ListedAddress { raft: ports.address()?, gateway: ports.address()? }
        };
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            (slot.raft, slot.gateway) = (now.raft, now.gateway);
        }
        if told {
            self.list(id, now);
        }
        Ok(now)
    }

    /// A node's settings say from its next start on that it is there.
    pub(crate) fn list(&self, id: u64, at: ListedAddress) {
        if let Some(slot) = self.slots.lock().get_mut(&id) {
            slot.listed = at;
        }
    }

    /// `tillsync cluster …`, asked at the members that run, but not at the one that it is about; what it said.
    pub(crate) async fn operate(&self, words: &[String], about: u64) -> Result<String, String> {
        let urls: Vec<String> = {
            let slots = self.slots.lock();
            let running = slots.iter().filter(|(id, slot)| slot.member && slot.child.is_some() && **id != about);
            running.map(|(_, slot)| format!("http://{}", slot.gateway)).collect()
        };
        let mut command = starter::tillsync(&self.binary);
        command.arg("cluster").args(words).args(["--token", &self.token, "--url", &urls.join(",")]);
        said_by(command, &format!("cluster {}", words.join(" "))).await
    }
}

impl CloneProcess {
    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn said(&self) -> String {
        text_from(&self.log, self.from)
    }

    pub(crate) async fn kill(mut self) {
        // It fails only if the process has gone already.
        let _ = self.child.kill().await;
    }
}
