//! The nodes that `tillsync dev` runs on this machine, by its data folder.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tillsync::client::{ClusterTarget, NodeUrl};
use tillsync::config::{Config, Layers};

/// Nodes looked for in a folder, and bytes of a file that are read.
const NODES: u64 = 16;
const FILE: u64 = 1 << 20;

pub(crate) struct LocalNode {
    pub id: u64,
    dir: PathBuf,
    pub gateway: NodeUrl,
}

/// The nodes of a folder.
pub(super) fn nodes(data: &Path) -> Result<Vec<LocalNode>, String> {
    let mut found = Vec::new();
    for id in 1..=NODES {
        let dir = data.join(format!("node-{id}"));
        let file = dir.join("node.toml");
        if !file.exists() {
            continue;
        }
        let mut layers = Layers::default();
        layers.file(&file.display().to_string(), &read(&file)?).map_err(|error| error.to_string())?;
        let config = Config::from_layers(&layers).map_err(|error| error.to_string())?;
        found.push(LocalNode { id, dir, gateway: NodeUrl::plain(config.gateway_listen.to_string()) });
    }
    if found.is_empty() {
        return Err(format!("{} is no data folder of `tillsync dev`: there is no node-1/node.toml", data.display()));
    }
    Ok(found)
}

/// Where they are, and their admin's token.
pub(super) fn target(data: &Path, nodes: &[LocalNode]) -> Result<ClusterTarget, String> {
    let token = read(&data.join("admin.token"))?.trim().to_owned();
    Ok(ClusterTarget { nodes: nodes.iter().map(|node| node.gateway.clone()).collect(), token })
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE).read_to_string(&mut text));
    read.map(|_| text).map_err(|error| format!("{}: {error}", path.display()))
}

impl LocalNode {
    /// Its process. A file may outlive the process that it names, so it is made sure that this one is the node.
    pub(crate) fn pid(&self) -> Result<i32, String> {
        let file = self.dir.join("pid");
        let text = read(&file).map_err(|_| format!("node {} does not run: there is no {}", self.id, file.display()))?;
        let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1);
        let pid = pid.ok_or_else(|| format!("{} holds no process id", file.display()))?;
        self.is_mine(pid)
            .map_err(|why| format!("process {pid} of {} is not node {}: {why}", file.display(), self.id))?;
        Ok(pid)
    }

    fn is_mine(&self, pid: i32) -> Result<(), String> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline")).map_err(|_| "it has ended".to_owned())?;
        let words: Vec<String> =
            line.split(|byte| *byte == 0).take(100).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let program = words.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        if !program.contains("tillsync") {
            return Err(format!("it runs {program:?}"));
        }
        let after = |flag: &str| words.iter().position(|word| word == flag).and_then(|at| words.get(at + 1));
        let config = after("--config").filter(|_| words.iter().any(|word| word == "serve"));
        // As the process sees it: the path may be one from where it was started.
        let config = config.map(|config| proc.join("cwd").join(config));
        let config = config.and_then(|path| fs::canonicalize(path).ok());
        let mine = fs::canonicalize(self.dir.join("node.toml")).ok();
        if mine.is_none() || config != mine { Err("it serves another folder".into()) } else { Ok(()) }
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<(), String> {
        let pid = self.pid()?;
        // SAFETY: a plain system call.
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ => Err(format!("node {}: {}", self.id, std::io::Error::last_os_error())),
        }
    }

    /// It is stopped by SIGSTOP.
    pub(crate) fn stopped(&self) -> bool {
        let stat = self.pid().ok().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        // The state stands behind the name, which may hold anything.
        stat.and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('T'))).unwrap_or(false)
    }

    /// Where it logs.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_the_node_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(nodes(folder.path()).err().unwrap().contains("no data folder"));
        let dir = folder.path().join("node-2");
        fs::create_dir(&dir).unwrap();
        fs::write(
            dir.join("node.toml"),
            "node_id = 2\ncluster_name = \"dev\"\ndata_dir = \"d\"\nkey_file = \"k\"\ngateway_listen = \"127.0.0.1:7\"\n\
             raft_listen = \"127.0.0.1:8\"\nmembers = [{ id = 2, raft = \"127.0.0.1:8\", gateway = \"127.0.0.1:7\" }]\n",
        )
        .unwrap();
        let nodes = nodes(folder.path()).unwrap();
        assert_eq!((nodes[0].id, nodes[0].gateway.to_string().as_str()), (2, "http://127.0.0.1:7"));
        assert!(nodes[0].pid().unwrap_err().contains("does not run"));

        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(dir.join("pid"), format!("{}\n", other.id())).unwrap();
        // On a busy machine a new process has no words yet.
        let line = format!("/proc/{}/cmdline", other.id());
        while fs::read(&line).unwrap().is_empty() {
            std::thread::yield_now();
        }
        for signal in [libc::SIGKILL, libc::SIGSTOP] {
            let why = nodes[0].signal(signal).unwrap_err();
            assert!(why.contains("is not node 2: it runs \"sleep\""), "{why}");
        }
        assert!(other.try_wait().unwrap().is_none(), "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(nodes[0].pid().unwrap_err().contains("it has ended"));
        for wrong in ["", "1", "-5", "x"] {
            fs::write(dir.join("pid"), wrong).unwrap();
            assert!(nodes[0].pid().unwrap_err().contains("no process id"), "{wrong}");
        }
    }
}
