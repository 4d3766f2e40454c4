//! Three machines, as far as a network goes: the nodes of `deploy/node.toml`, each in a network namespace of its own,
//! with mutual TLS between them and TLS towards the devices. Where namespaces cannot be made, it says so and passes,
//! unless TILLSYNC_TEST_NETNS is set.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tillsync::client::rest::{FeedChange, NodeStatus, RestClient};
use tillsync::client::{ClientError, NodeUrl, Trust};

use crate::harness::{PATIENCE, both, succeeds, tillsync};

const NODES: u64 = 3;
const PREFIX: &str = "tillsync-";

/// The addresses of the example: a namespace has all of them to itself.
fn address(node: u64) -> String {
    format!("10.0.17.{node}")
}

fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip").args(args.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("ip {args}: {}", both(&output).trim())) }
}

/// A hub, where the devices are, and a namespace for every node. Dropping it takes all of it away.
struct Net {
    name: String,
}

impl Net {
    fn make() -> Result<Self, String> {
        sweep();
        let name = format!("{PREFIX}{}-{:04x}", std::process::id(), rand::random::<u16>());
        let net = Self { name };
        let hub = net.space(0);
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add name hub type bridge"))?;
        ip(&format!("-n {hub} addr add 10.0.17.254/24 dev hub"))?;
        ip(&format!("-n {hub} link set hub up"))?;
        for node in 1..=NODES {
            let space = net.space(node);
            ip(&format!("netns add {space}"))?;
            ip(&format!("-n {hub} link add port{node} type veth peer name eth0 netns {space}"))?;
            ip(&format!("-n {hub} link set port{node} master hub up"))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", address(node)))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(net)
    }

    /// The namespace of a node; 0 is the hub's.
    fn space(&self, node: u64) -> String {
        format!("{}-{node}", self.name)
    }

    /// Moves this thread, and the sockets that it makes, into the hub.
    fn enter(&self) {
        let file = File::open(Path::new("/run/netns").join(self.space(0))).unwrap();
        // SAFETY: the descriptor is open, and of a network namespace.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in 0..=NODES {
            let _ = ip(&format!("netns del {}", self.space(node)));
        }
    }
}

/// Takes away what a run that was killed left behind.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// The nodes, as an operator sets them up with `deploy/` and `tillsync certs`.
struct Store {
    // Ended before the network that they are in.
    nodes: Vec<Option<Child>>,
    net: Net,
    dir: TempDir,
}

impl Store {
    fn start(net: Net) -> Self {
        let dir = TempDir::new().unwrap();
        let certs = |args: &[&str]| succeeds(tillsync().arg("certs").args(args).arg("--dir").arg(dir.path()));
        certs(&["init", "--cluster", "store-17"]);
        for node in 1..=NODES {
            certs(&["issue", &node.to_string(), "--host", &address(node)]);
        }
        succeeds(tillsync().args(["token", "key"]).arg(dir.path().join("token.key")));
        let mut store = Self { nodes: (0..NODES).map(|_| None).collect(), net, dir };
        (1..=NODES).for_each(|node| store.run(node));
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a node with the example, and what differs from node to node.
    fn run(&mut self, node: u64) {
        let file = |name: String| self.path(&name).display().to_string();
        let (cert, key) = (file(format!("node-{node}.crt")), file(format!("node-{node}.key")));
        let settings = [
            ("node_id", node.to_string()),
            ("data_dir", file(format!("data-{node}"))),
            ("key_file", file("token.key".into())),
            ("raft_listen", format!("{}:5100", address(node))),
            ("raft_tls_ca", file("ca.crt".into())),
            ("raft_tls_cert", cert.clone()),
            ("raft_tls_key", key.clone()),
            ("gateway_tls_cert", cert),
            ("gateway_tls_key", key),
        ];
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.space(node), env!("CARGO_BIN_EXE_tillsync"), "serve"]);
        command.args(["--stop-with-stdin", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/node.toml")]);
        for (key, value) in settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let log = File::options().create(true).append(true).open(self.path(&format!("log-{node}"))).unwrap();
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        self.nodes[node as usize - 1] = Some(command.spawn().unwrap());
    }

    /// SIGKILL.
    fn kill(&mut self, node: u64) {
        if let Some(mut child) = self.nodes[node as usize - 1].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn logs(&self) -> String {
        let log = |node| std::fs::read_to_string(self.path(&format!("log-{node}"))).unwrap_or_default();
        (1..=NODES).map(|node| format!("-- node {node}\n{}\n", log(node))).collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        (1..=NODES).for_each(|node| self.kill(node));
    }
}

/// A device in the hub that may use every node.
struct Device<'a> {
    store: &'a Store,
    rest: RestClient,
    trust: Trust,
}

impl Device<'_> {
    fn url(&self, node: u64) -> NodeUrl {
        NodeUrl::trusting(&format!("https://{}:5000", address(node)), Some(&self.trust)).unwrap()
    }

    /// Waits until these nodes answer, with one leader among them, at the same state.
    async fn agreed(&self, nodes: &[u64]) -> NodeStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut all: Vec<NodeStatus> = Vec::new();
            for node in nodes {
                all.extend(self.rest.status(&self.url(*node)).await.ok());
            }
            let same = |s: &NodeStatus| (s.leader, s.digest_index, s.digest.clone());
            let led = all.first().and_then(|s| s.leader).is_some_and(|leader| nodes.contains(&leader));
            if led && all.len() == nodes.len() && all.iter().all(|s| same(s) == same(&all[0])) {
                return all.swap_remove(0);
            }
            assert!(Instant::now() < end, "no agreement: {all:?}\n{}", self.store.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks one node after the other, again while the cluster is between leaders.
    async fn post(&self, nodes: &[u64], path: &str, body: serde_json::Value) {
        let end = Instant::now() + PATIENCE;
        let mut node = nodes.iter().cycle();
        loop {
            let url = self.url(*node.next().unwrap());
            match self.rest.post::<serde_json::Value>(&url, path, &body).await {
                Ok(_) => return,
                Err(error) if error.is_passing() && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{path}: {error}\n{}", self.store.logs()),
            }
        }
    }

    async fn write(&self, nodes: &[u64], record: u64) {
        let body = json!({"operation": "insert", "new_data": {"n": record}, "request_id": record.to_string()});
        self.post(nodes, &format!("/data/t/{record}"), body).await;
    }

    async fn feed(&self, node: u64) -> Result<Vec<FeedChange>, ClientError> {
        let mut feed = Vec::new();
        self.rest.each_change(&self.url(node), &["t"], |change| feed.push(change)).await?;
        Ok(feed)
    }
}

/// In a thread of its own, whose network is the hub's.
fn in_hub(store: &Store, play: impl AsyncFnOnce(Device<'_>) + Send) {
    std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            store.net.enter();
            let mut issue = tillsync();
            issue.args(["token", "issue", "--class", "admin", "--sub", "boss", "--key"]).arg(store.path("token.key"));
            let token = String::from_utf8(issue.output().unwrap().stdout).unwrap();
            let device = Device {
                store,
                rest: RestClient::new(token.trim()).unwrap(),
                trust: Trust::read(&store.path("ca.crt")).unwrap(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(play(device));
        });
        if let Err(panic) = playing.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn three_machines_with_mutual_tls_survive_the_loss_of_one() {
    let net = match Net::make() {
        Ok(net) => net,
        Err(why) => {
            assert!(std::env::var_os("TILLSYNC_TEST_NETNS").is_none(), "network namespaces cannot be made: {why}");
            // Not by a macro: those lines are shown for failed tests only.
            let says =
                "SKIPPED three machines: network namespaces cannot be made here, which takes Linux, `ip` and root";
            let _ = writeln!(std::io::stderr(), "{says}: {why}");
            return;
        }
    };
    let mut store = Store::start(net);
    let mut leader = 0;
    in_hub(&store, async |device| {
        leader = device.agreed(&[1, 2, 3]).await.leader.unwrap();
        device.post(&[1, 2, 3], "/device/register", json!({"device_id": "boss"})).await;
        for record in 1..=20 {
            device.write(&[1, 2, 3], record).await;
        }
    });
    store.kill(leader);
    let left: Vec<u64> = (1..=NODES).filter(|node| *node != leader).collect();
    in_hub(&store, async |device| {
        for record in 21..=40 {
            device.write(&left, record).await;
        }
        device.agreed(&left).await;
    });
    store.run(leader);
    in_hub(&store, async |device| {
        device.agreed(&[1, 2, 3]).await;
        for node in 1..=NODES {
            let records: Vec<i64> = device.feed(node).await.unwrap().iter().map(|change| change.record_id).collect();
            assert_eq!(records, (1..=40).collect::<Vec<_>>(), "node {node}");
        }
        // The port between the nodes gives nothing to who has no certificate.
        let plain = NodeUrl::plain(format!("{}:5100", address(1)));
        assert!(device.rest.status(&plain).await.is_err());
    });
}
