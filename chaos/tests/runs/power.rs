//! `chaos power` on the real storage, where this machine lets it mount a file system.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn power(folder: &Path, args: &[&str]) -> Command {
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_chaos"));
    chaos.arg("power").arg("--dir").arg(folder).args(args);
    chaos
}

/// False, with a message: this machine does not let it.
fn took_place(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    let mounted = !said.contains("no file system of our own can be mounted here");
    if !mounted {
        println!("skipped: {said}");
    }
    mounted
}

/// A run each of: installs, purges, snapshots, a full disk, cuts during opens, a failing sync.
#[test]
fn nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let output = power(folder.path(), &["--seed", "1", "--runs", "6", "--json"]).output().unwrap();
    if !took_place(&output) {
        return;
    }
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let runs: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |what: &str| runs.iter().map(|run| run[what].as_u64().unwrap()).sum::<u64>();
    assert_eq!(runs.len(), 6);
    assert!(sum("cuts") > 6 && sum("faults") > 0 && sum("checked") > 1_000, "{said}");
    // And a few in which the engine is copied at every start.
    let output = power(folder.path(), &["--seed", "1", "--runs", "4", "--kind", "shrink", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "runs that hold leave nothing");
}

#[test]
fn nothing_stays_behind_a_run_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut chaos = power(folder.path(), &["--runs", "100", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(chaos.stdout.take().unwrap()).read_line(&mut first).unwrap();
    // It is at work, unless it could not begin.
    chaos.kill().unwrap();
    let output = chaos.wait_with_output().unwrap();
    if !took_place(&output) {
        return;
    }
    assert!(!first.is_empty());
    let name = folder.path().to_str().unwrap();
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(name));
    let end = Instant::now() + Duration::from_secs(60);
    while programs_of(name) > 0 {
        assert!(Instant::now() < end, "programs of a dead run live on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(power(folder.path(), &["--runs", "1", "--kind", "log"]).output().unwrap().status.success());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the next one tidies up");
}

fn programs_of(name: &str) -> usize {
    let commands = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    commands.filter(|command| String::from_utf8_lossy(command).contains(name)).count()
}
