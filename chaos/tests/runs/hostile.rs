//! Attackers beside honest devices, from the command line to the verdict, on a small scale.

use serde_json::{Value, json};

use crate::common::{both, chaos, tillsync};

const SCENARIO: &str = r#"
name = "small"
explained = "A few attackers of every kind."
duration_s = 8

# No judgement on how fast the machine is, nor on the memory of a build for debugging: nothing is filled before.
[attack]
sockets = 80
honest_s = 3
filled = 200
picture_kb = 0
slow_ms = 60000
memory_percent = 1000

[load]
ws = 2
socketio = 2
pause_ms = 200

[slo]
gap_ms = 60000
"#;

/// Takes the line that tells of the attack and makes it tell of a fault.
type Doctor = fn(&mut Value);

/// Faults that each invariant has to see in the evidence of a run, where it was none.
const DOCTORED: &[(&str, Doctor)] = &[
    ("honest", |line| {
        let us = line["hostile"]["to_us"].clone();
        line["failures"] = json!([{ "us": us, "device": "till-1", "node": 1, "what": "it was not answered in time" }]);
    }),
    ("honest", |line| line["slow_ms"] = json!(0)),
    ("honest", |line| line["hostile"] = json!({ "from_us": 1, "to_us": 2 })),
    ("memory", |line| line["nodes"][2]["hostile_kb"] = json!(u32::MAX)),
    ("memory", |line| line["nodes"][0]["honest_kb"] = json!(0)),
    ("attackers", |line| line["kinds"][0]["attempts"] = json!(0)),
    ("attackers", |line| line["sockets_most"] = json!(79)),
    ("attackers", |line| line["nodes"][1]["descriptors_after"] = json!(10_000)),
];

#[cfg(target_os = "linux")]
#[test]
fn an_attack_is_survived_and_its_evidence_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (scenario, dir) = (folder.path().join("small.toml"), folder.path().join("run"));
    std::fs::write(&scenario, SCENARIO).unwrap();
    let binary = tillsync();
    let args = ["run", scenario.to_str().unwrap(), "--seed", "7", "--dir", dir.to_str().unwrap(), "--binary"];
    let ran = chaos(&[&args[..], &[binary.to_str().unwrap()]].concat());
    let said = both(&ran);
    assert!(said.contains("beside the attack: writes"), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("report.json")).unwrap()).unwrap();
    for name in ["honest", "memory", "attackers", "exactly_once", "sessions", "one_log", "stores"] {
        let found = report["invariants"].as_array().unwrap().iter().find(|found| found["name"] == *name).unwrap();
        assert!(found["checked"].as_u64().unwrap() > 0, "{name} had nothing to check");
    }
    // On a machine that has no time for three nodes, devices are refused without any attack: that is seen, not judged.
    let broken = report["broken"].as_array().unwrap();
    assert!(broken.iter().all(|name| name == "honest"), "{said}");
    assert_eq!(ran.status.code(), Some(i32::from(!broken.is_empty())), "{said}");
    let attack = &report["figures"]["attack"];
    assert_eq!(attack["nodes"].as_array().unwrap().len(), 3);
    assert!(attack["beside"]["write"]["p99_us"].as_u64().unwrap() > 0);
    let history = dir.join("history.jsonl");
    let text = std::fs::read_to_string(&history).unwrap();
    let write = |doctor: Doctor| {
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let attacked = lines.iter_mut().find(|line| line["line"] == "attacked").unwrap();
        attacked["failures"] = json!([]);
        doctor(attacked);
        let doctored: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&history, doctored).unwrap();
        chaos(&["check", history.to_str().unwrap()])
    };
    let undoctored = write(|_| {});
    assert!(undoctored.status.success(), "{}", both(&undoctored));
    // What attackers wrote is no part of it.
    assert!(!text.contains("\"table\":\"loot") && !text.contains("\"table\":\"catalogue\""));
    for (name, doctor) in DOCTORED {
        let checked = write(*doctor);
        assert_eq!(checked.status.code(), Some(1), "{name}");
        assert!(both(&checked).contains(&format!("{name:16} BROKEN")), "{name}: {}", both(&checked));
    }
}
