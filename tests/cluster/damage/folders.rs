//! Folders of nodes that have acknowledged writes, and what these were.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::{Value, json};
use tillsync::client::rest::RestClient;
use tillsync::client::{ClientError, NodeUrl};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::kinds::copy;
use crate::harness::{PATIENCE, succeeds, tillsync};
use crate::processes::Processes;

const RECORDS: u64 = 96;
/// So many write at the same time, each its own records.
const WRITERS: u64 = 12;
/// The log is purged and changes are compacted within few writes; a read is not answered soon where there is no quorum.
const SETTINGS: &str = "log_mb = 1\nkeep_changes = 1000\nkeep_audit_rows = 1000\nrequest_timeout_ms = 1000";

pub(super) const FOUNDERS: [u64; 3] = [1, 2, 3];

/// What became of the writes of a record.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// The newest content that was acknowledged, and its version.
    content: u64,
    version: u64,
    /// The newest that was sent.
    sent: u64,
}

/// Which contents records must have.
#[derive(Clone, Debug, Default)]
pub(super) struct Acknowledged(BTreeMap<u64, Written>);

fn content(record: u64, n: u64) -> Value {
    let text: String = (0..400 + (record * 37 + n * 101) % 1_200)
        .map(|at| char::from(b'a' + ((at * n + record) % 26) as u8))
        .collect();
    json!({ "id": record, "n": n, "text": text })
}

impl Acknowledged {
    /// What a node lacks that serves these records; `None`: nothing.
    fn lacks(&self, rows: &[Value]) -> Option<String> {
        let served: BTreeMap<u64, &Value> =
            rows.iter().filter_map(|row| Some((row["record_id"].as_u64()?, row))).collect();
        let lacks = |(record, written): (&u64, &Written)| {
            let Written { content: least, version, sent } = *written;
            let Some(row) = served.get(record) else { return Some(format!("record {record} is missing")) };
            let n = row["data"]["n"].as_u64().unwrap_or_default();
            let whole = (least..=sent).contains(&n)
                && row["data"] == content(*record, n)
                && row["version"].as_u64() >= Some(version);
            (!whole).then(|| format!("record {record} is content {n} of {least} to {sent}: {row}"))
        };
        self.0.iter().find_map(lacks)
    }

    /// The same where the records were written anew, out of a backup.
    fn lacks_but_for_versions(&self, rows: &[Value]) -> Option<String> {
        let versions = self.0.iter().map(|(record, written)| (*record, Written { version: 0, ..*written }));
        Self(versions.collect()).lacks(rows)
    }
}

/// All records that a node serves, as a read that asks for a quorum.
async fn records(rest: &RestClient, node: &NodeUrl) -> Result<Vec<Value>, ClientError> {
    let page: Value = rest.get(node, "/system/export/records").await?;
    assert_eq!(page["next"], Value::Null, "all records are a page");
    Ok(page["rows"].as_array().unwrap().clone())
}

/// What a node lacks of what was acknowledged (`None`: nothing), if it serves.
pub(super) async fn served(
    rest: &RestClient,
    node: &NodeUrl,
    must: &Acknowledged,
) -> Result<Option<String>, ClientError> {
    Ok(must.lacks(&records(rest, node).await?))
}

/// The same where they come from a backup.
pub(super) async fn restored(
    rest: &RestClient,
    node: &NodeUrl,
    must: &Acknowledged,
) -> Result<Option<String>, ClientError> {
    Ok(must.lacks_but_for_versions(&records(rest, node).await?))
}

/// Writes a record after the other, again and again, until it has done so often or is not answered any more.
async fn writer(rest: RestClient, node: NodeUrl, records: Vec<(u64, Written)>, rounds: u64) -> Vec<(u64, Written)> {
    let mut records = records;
    for _ in 0..rounds {
        for (record, written) in &mut records {
            written.sent += 1;
            let write = json!({ "device_id": "till-1", "new_data": content(*record, written.sent) });
            let answer = rest.post::<Value>(&node, &format!("/data/stock/{record}"), &write).await;
            let Ok(ack) = answer else { return records };
            (written.content, written.version) = (written.sent, ack["seq"].as_u64().unwrap());
        }
    }
    records
}

/// Starts writers at these nodes.
fn write(nodes: &Processes, at: &[u64], known: &Acknowledged, rounds: u64) -> JoinSet<Vec<(u64, Written)>> {
    let rest = nodes.rest();
    let mut writers = JoinSet::new();
    for writer_id in 0..WRITERS {
        let node = nodes.url(at[writer_id as usize % at.len()]);
        let own = (1..=RECORDS).filter(|record| record % WRITERS == writer_id);
        let own = own.map(|record| (record, known.0.get(&record).copied().unwrap_or_default())).collect();
        writers.spawn(writer(rest.clone(), node, own, rounds));
    }
    writers
}

async fn end(writers: JoinSet<Vec<(u64, Written)>>) -> Acknowledged {
    Acknowledged(writers.join_all().await.into_iter().flatten().collect())
}

/// Writes so many rounds; all are acknowledged.
async fn write_all(nodes: &Processes, at: &[u64], known: &mut Acknowledged, rounds: u64) {
    *known = end(write(nodes, at, known, rounds)).await;
    assert!(known.0.values().all(|written| written.content == written.sent), "a write was not acknowledged");
}

/// Waits until a node serves.
pub(super) async fn serves(nodes: &Processes, id: u64) {
    let (rest, end) = (nodes.rest(), Instant::now() + PATIENCE);
    while let Err(error) = records(&rest, &nodes.url(id)).await {
        assert!(Instant::now() < end, "node {id}: {error}\n{}", nodes.said(id));
        sleep(Duration::from_millis(30)).await;
    }
}

/// What a node's folder was when it was stopped, or killed in the midst of writes.
pub(super) struct Moment {
    pub name: &'static str,
    pub must: Acknowledged,
}

/// The folders that each case begins with.
pub(super) struct Folders {
    pub nodes: Processes,
    pub founders: u64,
    pub moments: Vec<Moment>,
}

impl Folders {
    /// A node's folder at that moment.
    pub(super) fn at(&self, moment: &str, id: u64) -> PathBuf {
        self.nodes.path(&format!("{moment}-{id}"))
    }

    /// An older one of the node that will be damaged.
    pub(super) fn older(&self) -> PathBuf {
        self.nodes.path("older")
    }

    /// One from before a start that the node knows that will have been away.
    pub(super) fn oldest(&self) -> PathBuf {
        self.nodes.path("oldest")
    }

    pub(super) fn backup(&self) -> PathBuf {
        self.nodes.path("backup.db")
    }

    /// The records of the backup as `tillsync load` takes them.
    pub(super) fn records_of_backup(&self) -> PathBuf {
        let path = self.nodes.path("records.csv");
        let mut lines = csv::Writer::from_path(&path).unwrap();
        lines.write_record(["id", "n", "text"]).unwrap();
        let backup = Connection::open(self.backup()).unwrap();
        let mut rows = backup.prepare("SELECT data FROM records WHERE table_name = 'stock'").unwrap();
        for data in rows.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            let data: Value = serde_json::from_str(&data.unwrap()).unwrap();
            let text = data["text"].as_str().unwrap().to_owned();
            lines.write_record([data["id"].to_string(), data["n"].to_string(), text]).unwrap();
        }
        lines.flush().unwrap();
        path
    }

    fn keep(&self, moment: &str, ids: &[u64]) {
        for id in ids {
            copy(&self.nodes.data(*id), &self.at(moment, *id));
        }
    }

    async fn found(founders: u64) -> Self {
        let mut nodes = Processes::new();
        let ids = &FOUNDERS[..founders as usize];
        ids.iter().for_each(|id| nodes.give_ports(*id));
        let settings = format!("{}\n{SETTINGS}", nodes.members(ids));
        for id in ids {
            nodes.configure(*id, &settings);
            nodes.start(*id);
        }
        nodes.ready().await;
        let device = json!({ "device_id": "till-1" });
        let _: Value = nodes.rest().post(&nodes.url(1), "/device/register", &device).await.unwrap();
        Self { nodes, founders, moments: Vec::new() }
    }

    /// A cluster of one. It has a backup of all that was ever acknowledged.
    pub(super) async fn of_one() -> Self {
        let mut folders = Self::found(1).await;
        let mut known = Acknowledged::default();
        write_all(&folders.nodes, &[1], &mut known, 4).await;
        assert!(folders.nodes.stop(1).await.success());
        copy(&folders.nodes.data(1), &folders.older());
        folders.start_again(&[1]).await;
        write_all(&folders.nodes, &[1], &mut known, 12).await;
        known = folders.kill_while_writing(&[1], known).await;
        folders.start_again(&[1]).await;
        write_all(&folders.nodes, &[1], &mut known, 2).await;
        let backup = folders.backup();
        let (token, url) = (folders.nodes.token(), folders.nodes.url(1).to_string());
        let export = move || succeeds(tillsync().arg("export").arg(backup).args(["--token", &token, "--url", &url]));
        tokio::task::spawn_blocking(export).await.unwrap();
        assert!(folders.nodes.stop(1).await.success());
        folders.keep("stopped", &[1]);
        folders.moments.push(Moment { name: "stopped", must: known });
        folders
    }

    /// Three nodes. Node 1 is away while the others acknowledge writes; what it will meet is node 2, damaged.
    pub(super) async fn of_three() -> Self {
        let mut folders = Self::found(3).await;
        let mut known = Acknowledged::default();
        write_all(&folders.nodes, &[1, 2, 3], &mut known, 3).await;
        assert!(folders.nodes.stop(2).await.success());
        copy(&folders.nodes.data(2), &folders.oldest());
        folders.nodes.start(2);
        // Node 1 has seen that start.
        folders.nodes.ready().await;
        write_all(&folders.nodes, &[1, 2, 3], &mut known, 1).await;
        folders.nodes.same(&FOUNDERS).await;
        assert!(folders.nodes.stop(1).await.success());
        folders.keep("away", &[1]);
        folders.start_again(&[]).await;
        write_all(&folders.nodes, &[2, 3], &mut known, 8).await;
        assert!(folders.nodes.stop(2).await.success());
        copy(&folders.nodes.data(2), &folders.older());
        folders.start_again(&[2]).await;
        write_all(&folders.nodes, &[2, 3], &mut known, 4).await;
        known = folders.kill_while_writing(&[2, 3], known).await;
        folders.start_again(&[2, 3]).await;
        write_all(&folders.nodes, &[2, 3], &mut known, 2).await;
        for id in [2, 3] {
            assert!(folders.nodes.stop(id).await.success());
        }
        folders.keep("stopped", &[2, 3]);
        folders.moments.push(Moment { name: "stopped", must: known });
        folders
    }

    /// Starts these nodes, and waits until all that run serve.
    async fn start_again(&mut self, ids: &[u64]) {
        ids.iter().for_each(|id| self.nodes.start(*id));
        for id in FOUNDERS.into_iter().filter(|id| self.nodes.runs(*id)) {
            serves(&self.nodes, id).await;
        }
    }

    /// Kills the nodes while they acknowledge writes, and keeps their folders. What was acknowledged until then and after:
    /// a write without an answer may be there, too.
    async fn kill_while_writing(&mut self, ids: &[u64], known: Acknowledged) -> Acknowledged {
        let (rest, head) = (self.nodes.rest(), |status: tillsync::client::rest::NodeStatus| status.head_seq);
        let before = rest.status(&self.nodes.url(ids[0])).await.map(head).unwrap();
        let writers = write(&self.nodes, ids, &known, 1_000);
        let under_way = async {
            while rest.status(&self.nodes.url(ids[0])).await.map(head).unwrap() < before + 100 {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, under_way).await.unwrap();
        ids.iter().for_each(|id| self.nodes.kill(*id));
        let known = end(writers).await;
        self.keep("killed", ids);
        self.moments.push(Moment { name: "killed", must: known.clone() });
        known
    }
}
