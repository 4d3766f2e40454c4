//! The simulator itself: one seed is one run.

use std::process::Command;

#[test]
fn a_seed_gives_the_same_trace_every_time_and_everything_holds() {
    let run = || {
        let chaos = Command::new(env!("CARGO_BIN_EXE_chaos"))
            .args(["sim", "--seeds", "1..2", "--jobs", "2", "--twice", "--no-shrink"])
            .output()
            .unwrap();
        let said = String::from_utf8(chaos.stdout).unwrap();
        assert!(chaos.status.success(), "{said}{}", String::from_utf8_lossy(&chaos.stderr));
        assert!(said.contains("2 seeds ran twice: 0 with another trace"), "{said}");
    };
    run();
    let trace = |seed: &str| {
        let chaos =
            Command::new(env!("CARGO_BIN_EXE_chaos")).args(["sim", "--replay", seed, "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&chaos.stdout).unwrap();
        report["trace"].as_str().unwrap().to_owned()
    };
    assert_ne!(trace("1"), trace("2"));
}

#[test]
fn a_history_is_written_and_checked_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let chaos = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_chaos")).args(args).output().unwrap();
    let path = path.to_str().unwrap();
    assert!(chaos(&["sim", "--replay", "1", "--only", "", "--history", path]).status.success());
    let checked = chaos(&["check", path]);
    assert!(checked.status.success());
    // An answer that was never given.
    let text = std::fs::read_to_string(path).unwrap();
    let broken = text.replacen("\"version\":", "\"version\":9", 1);
    std::fs::write(path, broken).unwrap();
    let checked = chaos(&["check", path]);
    assert_eq!(checked.status.code(), Some(1), "{}", String::from_utf8_lossy(&checked.stdout));
}
