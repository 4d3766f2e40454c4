//! A whole node on the disk: `tillsync serve`, alone in its cluster, written to over REST.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tillsync::client::rest::RestClient;
use tillsync::client::{ClientError, NodeUrl};
use tillsync::ids::UnixMs;
use tillsync::token::{Class, KeyRing, make_key_file};

use super::child::LifeLoad;
use super::ledger::Ledger;
use super::plan::Life;
use super::run::PoweredDisk;
use crate::starter::{self, NodeSettings, PortFinder, member};

const WRITERS: i64 = 6;
/// Records of a writer begin here, times its number.
const EACH: i64 = 1_000_000;
const TABLE: &str = "t";
const DEVICE: &str = "chaos";
/// Looks whether a node that starts is there yet, and the pause in between.
const LOOKS: u32 = 6_000;
const PAUSE: Duration = Duration::from_millis(10);
/// Writes of the last life before the node is asked to end.
const LAST_WRITES: u64 = 50;

/// The node's settings and key, and how to reach it.
pub(super) struct PoweredNode {
    binary: PathBuf,
    config: PathBuf,
    rest: RestClient,
    url: NodeUrl,
    ledger: Arc<Mutex<Ledger>>,
    /// The next record of each writer.
    next: Arc<Mutex<Vec<i64>>>,
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn now_ms() -> io::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_err(other)?.as_millis() as u64)
}

impl PoweredNode {
    pub(super) fn new(binary: &Path, bench: &PoweredDisk, folder: &Path) -> io::Result<Self> {
        tillsync::tls::install_provider();
        let key = folder.join("token.key");
        make_key_file(&key)?;
        let config = folder.join("node.toml");
        let mut ports = PortFinder::new(0);
        let (gateway, raft) = (ports.address().map_err(other)?, ports.address().map_err(other)?);
        let node =
            NodeSettings { id: 1, cluster: "power", data: &bench.mount_point.join("data"), key: &key, gateway, raft };
        let text = node.text(&format!("members = [\n{}]", member(1, raft, gateway)));
        fs::write(&config, text)?;
        let (token, _) = KeyRing::read(&key)
            .map_err(other)?
            .issue(DEVICE, Class::Admin, UnixMs(now_ms()?), 86_400)
            .map_err(other)?;
        Ok(Self {
            binary: binary.to_path_buf(),
            config,
            rest: RestClient::new(&token).map_err(other)?,
            url: NodeUrl::plain(gateway.to_string()),
            ledger: Arc::default(),
            next: Arc::new(Mutex::new((0..WRITERS).map(|writer| writer * EACH + 1).collect())),
        })
    }

    pub(super) fn ledger(&self) -> Arc<Mutex<Ledger>> {
        self.ledger.clone()
    }

    pub(super) fn command(&self) -> Command {
        starter::serve(&self.binary, &self.config)
    }

    /// What devices do while the node lives: look whether everything is there, then write. It ends when it is dropped;
    /// in a short life it asks the node to end.
    pub(super) async fn devices(&self, life: &Life, process: u32) {
        let Some(feed) = self.feed().await else { return };
        self.ledger.lock().check(&feed);
        let me = json!({"device_id": DEVICE});
        while self.rest.post::<Value>(&self.url, "/device/register", &me).await.is_err() && life.load != LifeLoad::Short
        {
            tokio::time::sleep(PAUSE).await;
        }
        if life.load == LifeLoad::Short {
            self.read_records().await;
            for _ in 0..LAST_WRITES {
                if let Err(error) = self.write(0).await {
                    self.ledger.lock().violations.push(format!("a healthy node refuses a write: {error}"));
                    break;
                }
            }
            // SAFETY: no memory is involved; the process is our child, and not waited for yet.
            unsafe { libc::kill(process as libc::pid_t, libc::SIGTERM) };
            return;
        }
        let writing = (0..WRITERS).map(|writer| async move {
            loop {
                if self.write(writer).await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        futures_util::future::join_all(writing).await;
    }

    /// The whole feed, as soon as the node gives it.
    async fn feed(&self) -> Option<Vec<tillsync::client::rest::FeedChange>> {
        for _ in 0..LOOKS {
            let mut feed = Vec::new();
            if self.rest.each_change(&self.url, &[TABLE], |change| feed.push(change)).await.is_ok() {
                return Some(feed);
            }
            // A program that starts tells nobody when it listens.
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn read_records(&self) {
        let records = self.ledger.lock().records();
        for (record, number) in records {
            let found: Result<Value, _> = self.rest.get(&self.url, &format!("/data/{TABLE}/{record}")).await;
            let there = found.as_ref().ok().and_then(|found| found["data"]["number"].as_u64());
            if there != Some(number) {
                let what = format!("record {record} must have number {number}: {found:?}");
                self.ledger.lock().violations.push(what);
            }
        }
    }

    /// Inserts a record and changes it; what fails on the way is left as it is.
    async fn write(&self, writer: i64) -> Result<(), ClientError> {
        let record = {
            let mut next = self.next.lock();
            let next = &mut next[writer as usize];
            *next += 1;
            *next
        };
        for (number, operation) in [(0, "insert"), (1, "update")] {
            self.ledger.lock().send((record, number));
            let body = json!({
                "operation": operation,
                "new_data": {"number": number, "filler": "x".repeat((record % 7 * 300) as usize)},
                "request_id": format!("{record}-{number}"),
            });
            let answer: Value = self.rest.post(&self.url, &format!("/data/{TABLE}/{record}"), &body).await?;
            self.ledger.lock().acknowledge((record, number), answer["seq"].as_u64());
        }
        Ok(())
    }
}
