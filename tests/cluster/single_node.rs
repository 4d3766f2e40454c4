//! One node as a process of its own, and what it says when it cannot start.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{both, three_ports, tillsync};

/// A node alone, in a folder of its own.
pub(crate) struct Alone {
    dir: TempDir,
    /// Gateway and Raft.
    pub ports: [u16; 2],
}

impl Alone {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let port = three_ports();
        let ports = [port, port + 1];
        let status = tillsync().args(["token", "key"]).arg(dir.path().join("token.key")).status().unwrap();
        assert!(status.success());
        Self { dir, ports }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes the settings of node `id`; `more` goes at the end.
    pub(crate) fn config(&self, id: u64, more: &str) -> PathBuf {
        let ([gateway, raft], path) = (self.ports, self.dir.path().join("node.toml"));
        let text = format!(
            "node_id = {id}\ncluster_name = \"one\"\ndata_dir = {:?}\nkey_file = {:?}\n\
             gateway_listen = \"127.0.0.1:{gateway}\"\nraft_listen = \"127.0.0.1:{raft}\"\n\
             members = [{{ id = {id}, raft = \"127.0.0.1:{raft}\", gateway = \"127.0.0.1:{gateway}\" }}]\n{more}\n",
            self.data(),
            self.dir.path().join("token.key"),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts the node, which must give up: its exit code, and the sentence on its standard error.
    pub(crate) fn fails(&self, config: &Path) -> (i32, String) {
        let output = tillsync().args(["serve", "--log-level", "off", "--config"]).arg(config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
        (output.status.code().unwrap_or_else(|| panic!("killed by a signal: {}", both(&output))), said)
    }

    /// Runs the node for long enough to make its folder, then stops it in order.
    pub(crate) fn run_once(&self) {
        let mut child = tillsync()
            .args(["serve", "--stop-with-stdin", "--config"])
            .arg(self.config(1, ""))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        let serving = || std::net::TcpStream::connect(("127.0.0.1", self.ports[0])).is_ok();
        let made = || std::fs::read_to_string(self.data().join("identity")).is_ok_and(|t| t.contains("state ready"));
        while !(serving() && made()) {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "the node does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        drop(child.stdin.take());
        assert!(wait(child).success());
    }
}

pub(crate) fn wait(mut child: Child) -> std::process::ExitStatus {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the node does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}
