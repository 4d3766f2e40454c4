//! `tillsync export` and `tillsync import` between two clusters of real processes: what comes out of the second one
//! is, row by row, what came out of the first.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::types::Value as Sql;
use serde_json::{Value, json};
use tillsync::client::NodeUrl;
use tillsync::client::link::{ClientLink, ClientTransport};
use tokio::task::JoinHandle;

use crate::harness::{Dev, NODES, PATIENCE, csv, succeeds, tillsync};

const DEVICES: &str = "device_roles";
const STATES: &str = "sync_states";
const ELECTIONS: &str = "master_election_logs";
const AUDITS: &str = "sync_audit_logs";
const DOCUMENTED: [&str; 4] = [DEVICES, STATES, ELECTIONS, AUDITS];

fn command(dev: &Dev, name: &str, file: &Path) -> Command {
    let mut command = tillsync();
    command.arg(name).arg(file).args(["--url", &dev.url_flag(), "--data"]).arg(dev.data());
    command
}

/// What a query gives, every value of every row.
fn rows(file: &Path, query: &str) -> Vec<Vec<Sql>> {
    let file = Connection::open(file).unwrap();
    let mut list = file.prepare(query).unwrap();
    let columns = list.column_count();
    let row = |r: &rusqlite::Row<'_>| (0..columns).map(|i| r.get(i)).collect();
    list.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn table(file: &Path, name: &str) -> Vec<Vec<Sql>> {
    rows(file, &format!("SELECT * FROM {name} ORDER BY id"))
}

fn count(file: &Path, query: &str) -> usize {
    rows(file, query).len()
}

/// The statements that made the documented tables and their indexes, however they are laid out.
fn statements(file: &Path) -> Vec<String> {
    let query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name NOT IN ('records', 'changes') \
                 AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let text = |row: &Vec<Sql>| match &row[0] {
        Sql::Text(sql) => squeezed(sql),
        other => panic!("{other:?}"),
    };
    rows(file, query).iter().map(text).collect()
}

fn squeezed(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every node's own device is there and one of them is master, at home on the leader: no more comes of the start.
async fn calm(dev: &Dev) {
    let (rest, end) = (dev.rest(), Instant::now() + PATIENCE);
    loop {
        let leader = dev.ready().await[0].leader;
        let listed: Value = rest.get(&dev.urls()[0], "/device/roles").await.unwrap();
        let active: Vec<&Value> =
            listed["devices"].as_array().unwrap().iter().filter(|d| d["is_active"] == true).collect();
        let at_home = |d: &&&Value| d["role"] == "master" && d["home"].as_u64() == leader;
        if active.len() == NODES && active.iter().any(|d| at_home(&d)) {
            return;
        }
        assert!(Instant::now() < end, "{listed:#}\n{}", dev.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A device's session.
async fn device(dev: &Dev, over: ClientTransport, node: &NodeUrl, id: &str, role: &str, priority: u32) -> ClientLink {
    let mut link = ClientLink::connect(over, node, &dev.token()).await.unwrap();
    let ask = json!({"device_id": id, "role": role, "priority": priority});
    link.send("device_online", &ask.to_string()).await.unwrap();
    let ack = link.wait_for(&["device_online_ack"]).await.unwrap();
    assert_eq!(ack.text("role"), Some(role), "{ack:?}");
    link
}

async fn write(link: &mut ClientLink, device: &str, record: i64) {
    let data = json!({"device_id": device, "table_name": "stock", "record_id": record, "new_data": {"left": record}});
    link.send("data_update", &data.to_string()).await.unwrap();
    link.wait_for(&["acknowledged"]).await.unwrap();
}

/// It stays until the task ends: pings are answered.
fn stay(mut link: ClientLink) -> JoinHandle<()> {
    tokio::spawn(async move { while link.next().await.is_ok() {} })
}

async fn put(dev: &Dev, path: &str, body: Value) {
    let url = format!("{}{path}", dev.urls()[0]);
    let answer = reqwest::Client::new().put(url).bearer_auth(dev.token()).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
}

/// A day at a store. Returns the devices that are still there.
async fn fill(dev: &Dev) -> Vec<JoinHandle<()>> {
    let (rest, urls) = (dev.rest(), dev.urls());
    let mut till = device(dev, ClientTransport::Ws, &urls[1], "till-1", "master", 20).await;
    let mut hand = device(dev, ClientTransport::Socketio, &urls[2], "hand-1", "client", 40).await;
    for record in 1..=20 {
        write(&mut till, "till-1", record).await;
        write(&mut hand, "hand-1", record + 10).await;
    }
    let sync = json!({"device_id": "hand-1", "sync_type": "full"});
    hand.send("sync_request", &sync.to_string()).await.unwrap();
    let answer = hand.wait_for(&["sync_response"]).await.unwrap();
    let done = json!({"device_id": "hand-1", "sync_id": answer.text("sync_id"), "changes_count": 30});
    hand.send("sync_complete", &done.to_string()).await.unwrap();
    hand.wait_for(&["sync_complete_ack"]).await.unwrap();
    for (id, priority) in [("office", 80), ("printer", 0)] {
        let body = json!({"device_id": id, "priority": priority});
        let _: Value = rest.post(&urls[0], "/device/register", &body).await.unwrap();
    }
    let _: Value = rest
        .post(&urls[0], "/data/stock/3", &json!({"device_id": "office", "new_data": {"left": 1.50}}))
        .await
        .unwrap();
    let trouble = json!({"sync_status": "error", "pending_changes_count": 4, "last_error_message": "no paper"});
    put(dev, "/sync/state/printer", trouble).await;
    // The role goes from one to the other and back; then one of them goes home.
    put(dev, "/device/roles/office", json!({"role": "master", "reason": "the office wants it"})).await;
    put(dev, "/device/roles/till-1", json!({"role": "master", "reason": "and gives it back"})).await;
    hand.send("device_offline", &json!({"device_id": "hand-1"}).to_string()).await.unwrap();
    hand.wait_for(&["device_offline_ack"]).await.unwrap();
    // The token's own name becomes a device by this.
    csv(&dev.path("articles.csv"), 40);
    let load = ["--table", "articles", "--key", "id", "--url", &dev.url_flag()];
    let mut run = tillsync();
    succeeds(run.arg("load").arg(dev.path("articles.csv")).args(load).arg("--data").arg(dev.data()));
    vec![stay(till), stay(hand)]
}

/// What the file of the first cluster must hold for the comparison to mean something.
fn is_full(file: &Path) {
    let ids = rows(file, "SELECT device_id FROM device_roles ORDER BY device_id");
    let ids: Vec<_> = ids.into_iter().flatten().collect();
    assert_eq!(ids, ["admin", "hand-1", "office", "printer", "till-1"].map(|id| Sql::Text(id.into())));
    let master = rows(file, "SELECT device_id, is_active FROM device_roles WHERE role = 'master'");
    assert_eq!(master, [[Sql::Text("till-1".into()), Sql::Integer(1)]]);
    assert!(count(file, "SELECT 1 FROM device_roles WHERE NOT is_active") > 0);
    assert_eq!(count(file, "SELECT DISTINCT sync_status FROM sync_states WHERE sync_status IN ('error', 'synced')"), 2);
    assert!(count(file, "SELECT 1 FROM master_election_logs") >= 4);
    assert!(count(file, "SELECT 1 FROM sync_audit_logs WHERE event_type = 'data_update'") >= 81);
    assert_eq!(count(file, "SELECT 1 FROM records"), 30 + 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_is_imported_and_exported_again_is_equal() {
    let one = Dev::start(&[]);
    calm(&one).await;
    let here = fill(&one).await;
    let first = one.path("1.db");
    succeeds(&mut command(&one, "export", &first));
    is_full(&first);
    let again = one.path("again.db");
    succeeds(&mut command(&one, "export", &again));

    let two = Dev::start(&[]);
    calm(&two).await;
    let said = succeeds(&mut command(&two, "import", &first));
    assert!(said.contains(": 5 devices,"), "{said}");
    let second: PathBuf = two.path("2.db");
    let said = succeeds(&mut command(&two, "export", &second));
    let logs = || table(&second, AUDITS).split_off(count(&first, "SELECT 1 FROM sync_audit_logs"));
    assert!(said.contains("1 elections and 2 audit rows are left out"), "{said}not only the import: {:#?}", logs());
    for name in DOCUMENTED {
        assert_eq!(table(&first, name), table(&second, name), "{name}");
    }
    let documented = include_str!("../../src/cli/sqlite/documented.sql");
    let text: String = documented.lines().filter(|l| !l.starts_with("--")).map(|l| format!("{l}\n")).collect();
    let mut documented: Vec<String> = text.split(';').map(squeezed).filter(|s| !s.is_empty()).collect();
    documented.sort();
    for file in [&first, &second] {
        let mut made = statements(file);
        made.sort();
        assert_eq!(made, documented);
    }
    here.iter().for_each(JoinHandle::abort);
    drop(one);
    the_second_lives_on(&two, &second).await;
}

/// The next thing that happens makes the import's own rows history: the log of elections is one chain.
async fn the_second_lives_on(two: &Dev, before: &Path) {
    let till = stay(device(two, ClientTransport::Ws, &two.urls()[0], "till-1", "master", 20).await);
    let after = two.path("3.db");
    let said = succeeds(&mut command(two, "export", &after));
    assert!(!said.contains("left out"), "{said}");
    for name in [ELECTIONS, AUDITS] {
        let (before, after) = (table(before, name), table(&after, name));
        assert!(after.len() > before.len() && after[..before.len()] == before, "{name}");
    }
    let came = count(before, "SELECT 1 FROM master_election_logs");
    let query = "SELECT previous_master_id, new_master_id FROM master_election_logs ORDER BY id";
    let chain = rows(&after, query).split_off(came);
    assert_eq!(chain[0][0], Sql::Null, "{chain:?}");
    assert!(chain.windows(2).all(|w| w[1][0] == w[0][1]), "{chain:?}");
    assert_eq!(chain.last().unwrap()[1], Sql::Text("till-1".into()));
    assert_eq!(count(&after, "SELECT 1 FROM device_roles WHERE role = 'master'"), 1);
    assert_eq!(count(&after, "SELECT 1 FROM device_roles"), 5);
    assert_eq!(count(&after, "SELECT 1 FROM sync_audit_logs WHERE event_type = 'import'"), 2);
    two.same_digest().await;
    till.abort();
}
