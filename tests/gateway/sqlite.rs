//! `tillsync export` and `tillsync import` against served clusters.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::harness::Server;

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

    // The logs are what they were, the cluster's own rows after them.
    let old = |table_name: &str| format!("id <= (SELECT max(id) FROM {table_name})");
    for name in ["master_election_logs", "sync_audit_logs"] {
        for (before, after) in [("1.db", "2.db"), ("2.db", "3.db")] {
            let rows = table(&file(before), name, &old(name));
            assert!(!rows.is_empty());
            assert_eq!(rows, table(&file(after), name, "true")[..rows.len()], "{name}");
        }
    }
    assert_eq!(
        table(&file("1.db"), "master_election_logs", "true"),
        table(&file("3.db"), "master_election_logs", "true")
    );
    for name in ["device_roles", "sync_states"] {
        assert_eq!(table(&file("1.db"), name, "true"), table(&file("2.db"), name, "true"), "{name}");
        assert_eq!(table(&file("2.db"), name, "true"), table(&file("3.db"), name, "true"), "{name}");
    }
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
    let old = table(&file("1.db"), "master_election_logs", "true").len();
    assert_eq!((&page["logs"][0]["id"], &page["pagination"]["total"]), (&json!(old + 1), &json!(old + 1)));
    two.rest("POST", "/device/register", Some(json!({"device_id": "office"}))).await;
    good(&two, "export", &file("4.db")).await;
    let now = table(&file("4.db"), "(SELECT device_id, role, is_active FROM device_roles)", "true");
    assert_eq!(now.iter().filter(|row| row.contains("master")).count(), 1, "{now:?}");
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
    for path in ["", "/elections", "/audit", "/records"] {
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
