//! `tillsync export` and `tillsync import` against served clusters.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use tillsync::cluster::Cluster;
use tillsync::proto::command::Intent;
use tillsync::proto::{DeviceOnline, Presence};

use crate::harness::{Server, until};

async fn run(server: &Server, command: &str, file: &Path) -> Output {
    let mut run = Command::new(env!("CARGO_BIN_EXE_tillsync"));
    run.arg(command).arg(file).args(["--url", &format!("http://{}", server.addr), "--token", &server.admin()]);
    tokio::task::spawn_blocking(move || run.output().unwrap()).await.unwrap()
}

async fn good(server: &Server, command: &str, file: &Path) -> String {
    let output = run(server, command, file).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

async fn refused(server: &Server, command: &str, file: &Path) -> String {
    let output = run(server, command, file).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.lines().count() == 1, "{said}");
    said
}

/// Every row of a table as text.
fn table(file: &Path, name: &str, which: &str) -> Vec<String> {
    let file = rusqlite::Connection::open(file).unwrap();
    let mut list = file.prepare(&format!("SELECT * FROM {name} WHERE {which}")).unwrap();
    let columns = list.column_count();
    let row = |r: &rusqlite::Row<'_>| {
        Ok(format!("{:?}", (0..columns).map(|i| r.get_unwrap::<_, rusqlite::types::Value>(i)).collect::<Vec<_>>()))
    };
    list.query_map([], row).unwrap().map(Result::unwrap).collect()
}

const ELECTIONS: &str = "master_election_logs";
const AUDITS: &str = "sync_audit_logs";

/// The documented tables of two files, every value of every row.
fn assert_same(one: &Path, two: &Path) {
    for name in ["device_roles", "sync_states", ELECTIONS, AUDITS] {
        let rows = table(one, name, "true");
        assert!(!rows.is_empty(), "{name}");
        assert_eq!(rows, table(two, name, "true"), "{name}");
    }
}

/// A cluster with devices, elections, records and changes; in the end nobody is online.
async fn used() -> Server {
    let server = Server::start().await;
    for (id, priority) in [("till-1", 20), ("office", 80), ("till-2", 20)] {
        let body = json!({"device_id": id, "priority": priority, "role": "master"});
        assert_eq!(server.rest("POST", "/device/register", Some(body)).await.0, 200);
    }
    for (path, body) in [
        ("/data/stock/1", json!({"device_id": "till-1", "new_data": {"price": 1.10}})),
        ("/data/stock/1", json!({"device_id": "till-2", "new_data": {"price": 2}})),
        ("/data/stock/2", json!({"device_id": "till-2", "new_data": {"left": 3}})),
    ] {
        assert_eq!(server.rest("POST", path, Some(body)).await.0, 200);
    }
    let set = json!({"sync_status": "error", "pending_changes_count": 4, "last_error_message": "no paper"});
    assert_eq!(server.rest("PUT", "/sync/state/till-2", Some(set)).await.0, 200);
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_and_imported_is_exported_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (one, two, three) = (used().await, Server::start().await, Server::start().await);
    good(&one, "export", &file("1.db")).await;
    assert!(refused(&one, "export", &file("1.db")).await.contains("exists already"));
    let said = good(&two, "import", &file("1.db")).await;
    assert!(said.contains("3 devices") && said.contains("\"office\" was \"master\" and is a client now"), "{said}");
    good(&two, "export", &file("2.db")).await;
    let said = good(&three, "import", &file("2.db")).await;
    assert!(said.contains("\"office\" was \"master\" and is a client now"), "{said}");
    good(&three, "export", &file("3.db")).await;

    assert_same(&file("1.db"), &file("2.db"));
    assert_same(&file("2.db"), &file("3.db"));
    // Who was master there is none here before an election, and the file says so once it has come.
    let (_, office) = two.rest("GET", "/device/roles/office", None).await;
    assert_eq!((&office["role"], &office["is_active"]), (&json!("client"), &json!(false)));
    assert_eq!(table(&file("1.db"), "records", "true").len(), 2);
    assert_eq!(table(&file("1.db"), "changes", "data = '{\"price\":1.10}' OR data = '{\"price\":1.1}'").len(), 1);
    assert_eq!(table(&file("1.db"), "changes", "true").len(), 3);

    // Only once, and only into an empty cluster.
    let said = refused(&two, "import", &file("1.db")).await;
    assert!(said.contains("already"), "{said}");
    let before = one.head();
    let said = refused(&one, "import", &file("2.db")).await;
    assert!(said.contains("only an empty cluster"), "{said}");
    assert_eq!(one.head(), before);

    // The imported devices serve on: their next election and audit row come after the old ones.
    let body = json!({"device_id": "till-1", "role": "master"});
    let (_, answer) = two.rest("POST", "/device/register", Some(body)).await;
    assert_eq!((&answer["role"], &answer["registered"]), (&json!("master"), &json!(false)));
    let (_, page) = two.rest("GET", "/sync/master-election-logs", None).await;
    let old = table(&file("1.db"), ELECTIONS, "true").len();
    assert_eq!((&page["logs"][0]["id"], &page["pagination"]["total"]), (&json!(old + 1), &json!(old + 1)));
    let said = good(&two, "export", &file("4.db")).await;
    assert!(!said.contains("left out"), "{said}");
    let masters = table(&file("4.db"), "(SELECT device_id, role FROM device_roles)", "role = 'master'");
    assert_eq!(masters, [r#"[Text("till-1"), Text("master")]"#], "not the one that was taken over, too");
    // Now the import is history like all else: behind what was taken over, and taken over in its turn.
    for name in [ELECTIONS, AUDITS] {
        let (before, after) = (table(&file("1.db"), name, "true"), table(&file("4.db"), name, "true"));
        assert_eq!(after[..before.len()], before, "{name}");
    }
    assert_eq!(table(&file("4.db"), AUDITS, "event_type = 'import'").len(), 2);
    let four = Server::start().await;
    good(&four, "import", &file("4.db")).await;
    good(&four, "export", &file("5.db")).await;
    assert_same(&file("4.db"), &file("5.db"));
}

/// Somebody at the tools is no device at work, whatever the token's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_exports_and_imports_is_not_there_as_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (one, two) = (used().await, Server::start().await);
    let body = json!({"device_id": "admin", "priority": 100, "role": "master"});
    assert_eq!(one.rest("POST", "/device/register", Some(body)).await.0, 200);
    good(&one, "export", &file("1.db")).await;
    good(&two, "import", &file("1.db")).await;
    let rows = two.cluster.replica().state().meta().audit_head;
    good(&two, "export", &file("2.db")).await;
    good(&two, "export", &file("3.db")).await;
    assert_same(&file("1.db"), &file("2.db"));
    assert_same(&file("1.db"), &file("3.db"));
    let here = || two.cluster.replica().state().device("admin").is_some_and(|d| d.is_active);
    assert_eq!((here(), two.cluster.replica().state().meta().audit_head), (false, rows));
    // Anything else that is asked with that token is a sign of it.
    two.rest("GET", "/device/roles", None).await;
    until("the device is here", here).await;
}

/// A cluster's nodes have devices of their own, of which another one's file can tell nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_devices_go_neither_out_nor_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let one = used().await;
    // An older file has them.
    assert_eq!(one.rest("POST", "/device/register", Some(json!({"device_id": "node-1"}))).await.0, 200);
    good(&one, "export", &file("1.db")).await;
    let [role, state] = ["device_roles", "sync_states"].map(|t| row_id(&file("1.db"), t, "node-1"));
    let two = Server::start().await;
    let node = DeviceOnline { device_id: "node-1".into(), presence: Presence::Node.into(), ..DeviceOnline::default() };
    two.cluster.propose(Intent::DeviceOnline(node)).await.unwrap();
    let before = two.cluster.replica().state().device("node-1").cloned().unwrap();
    let said = good(&two, "import", &file("1.db")).await;
    for row in [format!("device_roles row {role}"), format!("sync_states row {state}")] {
        assert!(said.contains(&format!("{row}: not taken: \"node-1\" is the own device of a node")), "{said}");
    }
    assert!(said.contains(": 3 devices,"), "{said}");
    assert_eq!(two.cluster.replica().state().device("node-1"), Some(&before));
    good(&two, "export", &file("2.db")).await;
    for name in ["device_roles", "sync_states"] {
        let others = table(&file("1.db"), name, "device_id <> 'node-1'");
        assert_eq!((others.len(), table(&file("2.db"), name, "true")), (3, others), "{name}");
    }
}

fn row_id(file: &Path, table: &str, device: &str) -> u64 {
    let file = rusqlite::Connection::open(file).unwrap();
    file.query_row(&format!("SELECT id FROM {table} WHERE device_id = ?"), [device], |row| row.get(0)).unwrap()
}

/// Words of a statement, however it is laid out.
fn squeezed(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What others read of the file: Python's library, and SQLite's own shell where it is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_programs_read_the_file_and_find_the_documents_statements() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.db");
    good(&used().await, "export", &file).await;
    let documented = include_str!("../../src/cli/sqlite/documented.sql");
    let text: String = documented.lines().filter(|l| !l.starts_with("--")).map(|l| format!("{l}\n")).collect();
    let statements: Vec<String> = text.split(';').map(squeezed).filter(|s| !s.is_empty()).collect();
    assert_eq!(statements.len(), 4 + 7);
    let python = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1])\n\
                  print(*(r[0] + ';' for r in db.execute('SELECT sql FROM sqlite_master WHERE sql IS NOT NULL')))\n\
                  print(db.execute('PRAGMA integrity_check').fetchone()[0])";
    let by_python = Command::new("python3").args(["-c", python]).arg(&file).output().unwrap();
    let mut outputs = vec![by_python];
    let shell = Command::new("sqlite3").arg(&file).args([".schema", "PRAGMA integrity_check"]).output();
    outputs.extend(shell);
    for output in outputs {
        let said = String::from_utf8(output.stdout).unwrap();
        let made: Vec<String> = said.split(';').map(squeezed).collect();
        for statement in &statements {
            assert!(made.contains(statement), "{statement} is not in {said}{:?}", output.stderr);
        }
        assert!(said.trim_end().ends_with("ok"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admins_export_and_import() {
    let server = Server::start().await;
    let manager = server.token("boss", tillsync::token::Class::Manager);
    for path in ["", "/elections", "/audit", "/records", "/changes"] {
        let (status, body) = server.rest_as(&manager, "GET", &format!("/system/export{path}"), None).await;
        assert_eq!((status, &body["error_code"]), (403, &json!("3003")));
    }
    let (status, _) = server.rest_as(&manager, "POST", "/system/import", Some(json!({}))).await;
    assert_eq!(status, 403);
    for body in [json!({}), json!({"import_id": "x", "step": "finish"}), json!({"import_id": "1", "step": "dance"})] {
        let (status, _) = server.rest("POST", "/system/import", Some(body)).await;
        assert_eq!(status, 400);
    }
    let (status, _) = server.rest("GET", "/system/export/records?after=x", None).await;
    assert_eq!(status, 400);
}
