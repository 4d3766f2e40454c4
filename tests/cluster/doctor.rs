//! `tillsync doctor` on a machine that is to become a node.

use std::net::TcpListener;

use crate::harness::{both, tillsync};
use crate::single_node::Alone;

/// Its exit code, and what it said.
fn doctor(alone: &Alone, config: &str, set: &[&str]) -> (Option<i32>, String) {
    let config = if config.is_empty() { alone.config(1, "") } else { alone.path(config) };
    let mut command = tillsync();
    command.arg("doctor").arg("--config").arg(config);
    for pair in set {
        command.args(["--set", pair]);
    }
    let output = command.output().unwrap();
    (output.status.code(), both(&output))
}

#[test]
fn a_machine_is_looked_at_and_nothing_is_written() {
    let alone = Alone::new();
    let held = TcpListener::bind(("127.0.0.1", alone.ports[1])).unwrap();
    let (_, said) = doctor(&alone, "", &[]);
    for line in ["a small write after", "MB a second at a stretch", "MB are free", "memory", "processors", "clock"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains(&format!("warn  port          127.0.0.1:{} is in use", alone.ports[1])), "{said}");
    assert!(said.contains("no other user of the machine can read them"), "{said}");
    assert!(!alone.data().exists());
    drop(held);
}

#[test]
fn what_is_wrong_is_named_and_is_the_exit_code() {
    let alone = Alone::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = std::fs::read_to_string(alone.config(1, "")).unwrap();
    let other = format!("members = [{{ id = 2, raft = \"{nobody}\", gateway = \"{nobody}\" }}, {{");
    std::fs::write(alone.path("three.toml"), text.replace("members = [{", &other)).unwrap();
    let key = alone.path("other.key");
    let (code, said) = doctor(&alone, "three.toml", &[&format!("key_file={:?}", key)]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("bad   keys") && said.contains("other.key"), "{said}");
    assert!(said.contains(&format!("node 2 at {nobody} is not reached")), "{said}");
    assert!(said.contains("should not be node 1 of one as it is"), "{said}");
    let (code, said) = doctor(&alone, "", &["lost_ms=soon"]);
    assert!(code == Some(2) && said.contains("lost_ms"), "{said}");
}
