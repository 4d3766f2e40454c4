//! Real processes under a real fault, from the command line to the verdict.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{both, chaos, tillsync};

const SCENARIO: &str = r#"
name = "short"
explained = "The leader is killed and cut off, once each."
duration_s = 8

[load]
ws = 3
socketio = 2
writes = 450
inserts = 100

# No judgement on how fast the machine is.
[slo]
gap_ms = 60000

[[fault]]
at_s = 1
for_s = 1
kind = "kill"
who = "leader"

[[fault]]
at_s = 4.5
for_s = 2
kind = "partition"
who = "leader"
silent = true
"#;

/// Takes a line of a history; true if it was one that now tells of a fault.
type Doctor = fn(&mut Value) -> bool;

/// Faults that each invariant has to see in the evidence of a run on real processes, where it was none.
const DOCTORED: &[(&str, Doctor)] = &[
    ("queues", |line| {
        let queued = line["outcome"] == "ok" && line["queued"].is_object();
        if queued {
            line["queued"]["after"] = json!(1_000_000);
        }
        queued
    }),
    ("newcomers", |line| {
        let first = line["unregistered"] == true;
        if first {
            line["outcome"] = json!("unknown");
        }
        first
    }),
    ("inserts", |line| {
        let lost = line["kind"] == "write" && line["insert"] == true && line["conflict"].is_u64();
        if lost {
            line["conflict"] = json!(1_000_000);
        }
        lost
    }),
    ("time_syncs", |line| {
        let sent = line["pages"][0][0].is_object();
        let since = line["kind"] == "sync_since" && line["since_ms"].as_u64() < Some(4_000_000_000_000) && sent;
        if since {
            line["pages"] = json!([[]]);
        }
        since
    }),
    ("stores", |line| {
        let store = line["line"] == "store" && line["records"][0].is_object();
        if store {
            line["records"][0]["value"] = json!("as it was before");
        }
        store
    }),
    ("presence", |line| {
        let twin = line["line"] == "twin";
        if twin {
            line["online"] = json!(false);
        }
        twin
    }),
];

#[test]
fn a_cluster_of_processes_survives_and_its_history_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (scenario, dir) = (folder.path().join("short.toml"), folder.path().join("run"));
    std::fs::write(&scenario, SCENARIO).unwrap();
    let binary = tillsync();
    let args = ["run", scenario.to_str().unwrap(), "--seed", "7", "--dir", dir.to_str().unwrap(), "--binary"];
    let ran = chaos(&[&args[..], &[binary.to_str().unwrap()]].concat());
    let said = both(&ran);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("short (seed 7): holds"), "{said}");
    for fault in ["kill", "partition"] {
        assert!(said.contains(&format!("{fault:16}   1 times")), "{said}");
    }
    for file in ["history.jsonl", "run.json", "report.json", "node-1.log", "node-3.log"] {
        assert!(dir.join(file).exists(), "{file} is missing");
    }
    assert!(!dir.join("data").exists(), "the data is left behind");
    let history = dir.join("history.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    let count = |what: &str| text.matches(&format!("{{\"line\":\"{what}\"")).count();
    assert!(count("op") > 50 && count("session") >= 5 && count("sample") > 50, "{said}");
    assert_eq!((count("final"), count("trouble")), (3, 0));
    assert!(chaos(&["check", history.to_str().unwrap()]).status.success());
    // Every kind of client was there, and had something to be checked.
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("report.json")).unwrap()).unwrap();
    for (name, _) in DOCTORED {
        let found = report["invariants"].as_array().unwrap().iter().find(|found| found["name"] == *name).unwrap();
        assert!(found["checked"].as_u64().unwrap() > 0, "{name} had nothing to check");
    }
    for (name, doctor) in DOCTORED {
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter_mut().any(doctor), "nothing to doctor for {name}");
        let doctored: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&history, doctored).unwrap();
        let checked = chaos(&["check", history.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(1), "{name}");
        assert!(both(&checked).contains(&format!("{name:16} BROKEN")), "{name}: {}", both(&checked));
    }
    // The same evidence with one acknowledged change gone from a node.
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.iter_mut().find(|line| line["line"] == "final").unwrap();
    let changes = last["changes"].as_array_mut().unwrap();
    let gone = changes.remove(changes.len() / 2);
    let doctored: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&history, doctored).unwrap();
    let checked = chaos(&["check", history.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1), "without {gone}: {}", both(&checked));
}

const FOLDERS: &str = r#"
name = "folders"
explained = "A folder is put back to an older copy, and another one is cut off."
duration_s = 10

[load]
ws = 2
socketio = 1

[slo]
gap_ms = 60000

[[fault]]
at_s = 0.5
for_s = 1
kind = "old_copy"
who = "one"

[[fault]]
at_s = 1
for_s = 0.5
kind = "truncated"
who = "one"
"#;

/// What a node has to say of its folder, and the way that it names.
#[test]
fn folders_that_are_not_what_they_were_are_refused_and_the_way_out_works() {
    let folder = tempfile::tempdir().unwrap();
    let (scenario, dir) = (folder.path().join("folders.toml"), folder.path().join("run"));
    std::fs::write(&scenario, FOLDERS).unwrap();
    let binary = tillsync();
    let args = ["run", scenario.to_str().unwrap(), "--seed", "7", "--dir", dir.to_str().unwrap(), "--binary"];
    let ran = chaos(&[&args[..], &[binary.to_str().unwrap()]].concat());
    let said = both(&ran);
    assert!(ran.status.success() && said.contains("folders (seed 7): holds"), "{said}");
    for fault in ["old_copy", "truncated"] {
        assert!(said.contains(&format!("{fault:16}   1 times")), "{said}");
    }
}

/// Processes that name this folder on their command lines.
#[cfg(target_os = "linux")]
fn running(folder: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(folder.to_str().unwrap())).count()
}

/// Not even a node that is held up and cannot see its end coming.
#[cfg(target_os = "linux")]
#[test]
fn no_node_outlives_the_tool() {
    let folder = tempfile::tempdir().unwrap();
    let (scenario, dir) = (folder.path().join("held.toml"), folder.path().join("run"));
    let text = SCENARIO.replace("kind = \"kill\"", "kind = \"pause\"").replace("for_s = 1\n", "for_s = 60\n");
    std::fs::write(&scenario, text).unwrap();
    let binary = tillsync();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.arg("run").arg(&scenario).args(["--seed", "7", "--binary"]).arg(&binary).arg("--dir").arg(&dir);
    let mut chaos = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(chaos.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("held up")), "no node was held up");
    assert_eq!(running(&dir.join("data")), 3);
    chaos.kill().unwrap();
    chaos.wait().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while running(&dir.join("data")) > 0 {
        assert!(std::time::Instant::now() < end, "nodes are left behind");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (mut args, says) in [
        (vec!["run", "nothing", "--binary", env!("CARGO_BIN_EXE_chaos")], "there is no scenario nothing"),
        (vec!["run", "calm", "--binary", "/nowhere/tillsync"], "/nowhere/tillsync"),
        (vec!["run", "calm", "--dir", "DIR", "--binary", env!("CARGO_BIN_EXE_chaos")], "node 1 ended with"),
        (vec!["run", "calm", "--seconds", "0", "--binary", env!("CARGO_BIN_EXE_chaos")], "--seconds"),
    ] {
        let dir = args.iter_mut().find(|arg| **arg == "DIR");
        dir.into_iter().for_each(|arg| *arg = folder.path().to_str().unwrap());
        let output = chaos(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", both(&output));
        assert!(both(&output).contains(says), "{}", both(&output));
    }
    let listed = both(&chaos(&["list"]));
    assert!(listed.contains("leader_killed") && listed.contains("kill leader"), "{listed}");
}
