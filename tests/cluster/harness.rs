//! A `tillsync dev` in a folder of its own, and what the tests ask it.

use std::io::{BufRead, BufReader, Lines};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tillsync::client::NodeUrl;
use tillsync::client::rest::{FeedChange, NodeStatus, RestClient};

pub(crate) const NODES: usize = 3;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: the one that was built with the tests, or another build that `TILLSYNC_BINARY` names.
pub(crate) fn tillsync() -> Command {
    // For the tests' own HTTP clients.
    tillsync::tls::install_provider();
    let built = || env!("CARGO_BIN_EXE_tillsync").into();
    let mut command = Command::new(std::env::var_os("TILLSYNC_BINARY").unwrap_or_else(built));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("TILLSYNC_")) {
            command.env_remove(name);
        }
    }
    command
}

/// A running cluster. Dropping it ends the processes and removes the folder.
pub(crate) struct Dev {
    pub port: u16,
    dir: TempDir,
    child: Child,
}

impl Dev {
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, |_| {})
    }

    /// Its processes may have so many files open.
    pub(crate) fn start_limited(files: u64) -> Self {
        Self::start_with(&[], |command| {
            let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
            // SAFETY: the call reads the struct that it is given, and may be made between fork and exec.
            let set = move || match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            };
            // SAFETY: it allocates nothing and takes no lock.
            unsafe { command.pre_exec(set) };
        })
    }

    fn start_with(flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let (dev, mut lines) = Self::launch(flags, prepare);
        // What it says later is not looked at, but must not fill the pipe.
        std::thread::spawn(move || lines.by_ref().for_each(drop));
        dev
    }

    /// Nobody reads what it says after it is ready: its output is closed.
    pub(crate) fn start_unread() -> Self {
        Self::launch(&[], |_| {}).0
    }

    fn launch(flags: &[&str], prepare: impl FnOnce(&mut Command)) -> (Self, Lines<BufReader<ChildStdout>>) {
        let dir = TempDir::new().unwrap();
        let port = three_ports();
        let mut command = tillsync();
        command.args(["dev", "--port", &port.to_string(), "--data"]).arg(dir.path().join("data")).args(flags);
        prepare(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().any(|line| line.unwrap().starts_with("Tillsync runs"));
        let dev = Self { port, dir, child };
        assert!(ready, "dev ended before it was ready: {}", dev.logs());
        (dev, lines)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn urls(&self) -> Vec<NodeUrl> {
        (0..NODES as u16).map(|i| NodeUrl::plain(format!("127.0.0.1:{}", self.port + i))).collect()
    }

    /// The nodes as `--url` has them.
    pub(crate) fn url_flag(&self) -> String {
        self.urls().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.data().join("admin.token")).unwrap().trim().to_owned()
    }

    pub(crate) fn rest(&self) -> RestClient {
        RestClient::new(&self.token()).unwrap()
    }

    /// SIGKILL to these nodes (from 1), as close together as can be.
    pub(crate) fn kill(&self, nodes: &[usize]) {
        let pid = |node: &usize| -> i32 {
            let path = self.data().join(format!("node-{node}")).join("pid");
            std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
        };
        for pid in nodes.iter().map(pid).collect::<Vec<_>>() {
            // SAFETY: a signal to a child of our child, which its supervisor has not waited for.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill {pid}");
        }
    }

    /// Waits until all nodes answer, with the same leader.
    pub(crate) async fn ready(&self) -> Vec<NodeStatus> {
        let (rest, end) = (self.rest(), Instant::now() + PATIENCE);
        loop {
            let mut statuses = Vec::new();
            for url in self.urls() {
                statuses.extend(rest.status(&url).await.ok());
            }
            let agreed = statuses.first().is_some_and(|f| f.leader.is_some());
            if agreed && statuses.len() == NODES && statuses.iter().all(|s| s.leader == statuses[0].leader) {
                return statuses;
            }
            assert!(Instant::now() < end, "the cluster did not come back: {statuses:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The change feed of a table on every node: the same on all, or the test fails.
    pub(crate) async fn same_feed(&self, table: &str) -> Vec<FeedChange> {
        let rest = self.rest();
        let mut feeds: Vec<Vec<FeedChange>> = Vec::new();
        for url in self.urls() {
            let mut feed = Vec::new();
            rest.each_change(&url, &[table], |change| feed.push(change)).await.unwrap();
            feeds.push(feed);
        }
        for (i, feed) in feeds.iter().enumerate() {
            assert!(feed.windows(2).all(|w| w[0].seq < w[1].seq), "node {} is out of order", i + 1);
            assert_eq!(feed.len(), feeds[0].len(), "node {} has another number of changes than node 1", i + 1);
            assert!(*feed == feeds[0], "node {} has other changes than node 1", i + 1);
        }
        feeds.swap_remove(0)
    }

    /// Waits until all nodes were seen at one index; their digests there must be equal.
    pub(crate) async fn same_digest(&self) {
        let (rest, end) = (self.rest(), Instant::now() + PATIENCE);
        let mut seen: std::collections::BTreeMap<u64, Vec<(u64, String)>> = Default::default();
        while Instant::now() < end {
            for url in self.urls() {
                let status = rest.status(&url).await.unwrap();
                assert!(!status.digest.is_empty());
                let at = seen.entry(status.digest_index).or_default();
                if !at.iter().any(|(node, _)| *node == status.node) {
                    at.push((status.node, status.digest));
                }
            }
            if let Some((index, all)) = seen.iter().find(|(_, all)| all.len() == NODES) {
                assert!(all.iter().all(|(_, digest)| *digest == all[0].1), "at index {index}: {all:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the nodes were never seen at the same index");
    }

    /// The ends of the nodes' logs.
    pub(crate) fn logs(&self) -> String {
        let mut out = String::new();
        for node in 1..=NODES {
            let text = std::fs::read_to_string(self.data().join(format!("node-{node}/log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(15).collect();
            out += &format!("-- node {node}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        out
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // SAFETY: our own child, which was not waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
    }
}

/// The first of three free ports in a row, below those that systems use for outgoing connections.
pub(crate) fn three_ports() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..1_000)
        .map(|_| rand::random_range(10_240..31_990))
        .find(|base| (*base..*base + 3).all(free))
        .expect("three free ports in a row")
}

/// What a command printed, and that it ended well.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, both(&output));
    both(&output)
}

pub(crate) fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A CSV file of that many lines.
pub(crate) fn csv(path: &Path, lines: usize) {
    let mut text = String::from("id,name,price,zip\n");
    for i in 1..=lines {
        text += &format!("{i},\"Article {i}, large\",{}.5,0{}\n", i % 100, i % 1_000);
    }
    std::fs::write(path, text).unwrap();
}
