//! A disk whose syncs fail in the background, or never come back.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tillsync::client::NodeUrl;
use tillsync::client::rest::RestClient;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::{Class, KeyRing};

use crate::harness::{PATIENCE, tillsync};
use crate::single_node::{Alone, wait};

/// What makes a disk faulty, compiled into this folder: to be preloaded, with the folder as `FAULTY_DISK`.
pub(crate) fn library(folder: &Path) -> PathBuf {
    let library = folder.join("faulty_disk.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/faulty_disk.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
    assert!(compiled.unwrap().success(), "the linker of every build compiles C, too");
    library
}

/// A node alone on such a disk, which is good at first.
struct FaultyNode {
    alone: Alone,
    child: Child,
}

impl FaultyNode {
    async fn start(settings: &str) -> Self {
        let alone = Alone::new();
        let mut command = tillsync();
        command.args(["serve", "--config"]).arg(alone.config(1, settings));
        command.env("LD_PRELOAD", library(&alone.path(""))).env("FAULTY_DISK", alone.path(""));
        command.stdout(File::create(alone.path("log")).unwrap()).stderr(File::create(alone.path("said")).unwrap());
        let node = Self { child: command.spawn().unwrap(), alone };
        let device = json!({ "device_id": "till-1" });
        let end = Instant::now() + PATIENCE;
        while node.rest().post::<Value>(&node.url(), "/device/register", &device).await.is_err() {
            assert!(Instant::now() < end, "the node does not serve: {}", node.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What a new cluster writes by itself: its version, its master and the end of the election.
        let mut before = 0;
        loop {
            let status = node.rest().status(&node.url()).await.unwrap();
            let settled = status.cluster_version == Some(2) && status.master.is_some();
            if settled && before == status.applied_index {
                return node;
            }
            before = status.applied_index;
            assert!(Instant::now() < end, "the cluster does not come to rest: {}", node.log());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn url(&self) -> NodeUrl {
        NodeUrl::plain(format!("127.0.0.1:{}", self.alone.ports[0]))
    }

    fn token(&self) -> String {
        let keys = KeyRing::read(&self.alone.path("token.key")).unwrap();
        keys.issue("admin", Class::Admin, SystemClock.now_ms(), 3_600).unwrap().0
    }

    fn rest(&self) -> RestClient {
        RestClient::new(&self.token()).unwrap()
    }

    /// From now on syncs `fail`, or `stall`.
    fn breaks(&self, how: &str) {
        File::create(self.alone.path(how)).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.alone.path("log")).unwrap()
    }

    /// Ends by itself as with a failed disk: what it said, and its log.
    fn ended(self) -> (String, String) {
        let Self { alone, child } = self;
        let status = wait(child);
        let read = |name: &str| fs::read_to_string(alone.path(name)).unwrap();
        let (said, log) = (read("said"), read("log"));
        assert_eq!(status.code(), Some(1), "{said}{log}");
        let folder: PathBuf = alone.data();
        let sentence = format!("error: 5001: data folder {}: the node stopped by itself: ", folder.display());
        // The engine may panic beside it: it syncs when it is let go of, and does not take a failure.
        assert!(said.lines().any(|line| line.starts_with(&sentence)), "{said}");
        (said, log)
    }
}

#[tokio::test]
async fn a_sync_that_fails_in_the_background_ends_the_node_though_nobody_writes() {
    let node = FaultyNode::start("").await;
    node.breaks("fail");
    let (said, log) = tokio::task::spawn_blocking(|| node.ended()).await.unwrap();
    assert!(said.contains("stopped by itself: Input/output error"), "{said}");
    // It was no write that found it: the last one comes with the stop. And there is nothing to hand over from such a disk.
    let (before, after) = log.split_once("ERROR stopping").unwrap();
    assert!(!before.contains("ERROR") && !after.contains("handing over"), "{log}");
}

#[tokio::test]
async fn a_folder_that_is_taken_away_ends_the_node_though_nobody_writes() {
    let node = FaultyNode::start("").await;
    let folder = node.alone.data();
    fs::rename(&folder, folder.with_extension("away")).unwrap();
    let (said, _) = tokio::task::spawn_blocking(|| node.ended()).await.unwrap();
    assert!(said.contains("was removed, moved or replaced while the node ran"), "{said}");
}

/// A client that has not sent all of its request holds up a stop in order for seconds: nobody else may come meanwhile.
#[tokio::test]
async fn the_ports_of_a_node_whose_storage_failed_close_at_once() {
    let mut node = FaultyNode::start("").await;
    let mut half = TcpStream::connect(("127.0.0.1", node.alone.ports[0])).unwrap();
    let request = format!(
        "POST /data/stock/1 HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\nExpect: 100-continue\r\n\r\n",
        node.token()
    );
    half.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    half.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    node.breaks("fail");
    let end = Instant::now() + PATIENCE;
    while node.alone.ports.iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
        assert!(Instant::now() < end, "the ports stay open: {}", node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.child.try_wait().unwrap(), None, "the process is there still, for the sake of that client");
    drop(half);
    tokio::task::spawn_blocking(|| node.ended()).await.unwrap();
}

#[tokio::test]
async fn a_sync_that_never_comes_back_ends_the_node_and_its_log_says_where_it_stood() {
    let node = FaultyNode::start("flush_watchdog_ms = 1000").await;
    node.breaks("stall");
    let (rest, url) = (node.rest(), node.url());
    let record = json!({ "device_id": "till-1", "new_data": { "price": 1 } });
    let write = tokio::spawn(async move { rest.post::<Value>(&url, "/data/stock/1", &record).await });
    let (said, log) = tokio::task::spawn_blocking(|| node.ended()).await.unwrap();
    assert!(said.contains("has not come back for 1 s") && said.contains("look at this disk"), "{said}");
    for part in ["thread tillsync-log", "in the kernel at", "tillsync::storage::log::thread::"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(write.await.unwrap().is_err(), "what is not on the disk was not acknowledged");
}
