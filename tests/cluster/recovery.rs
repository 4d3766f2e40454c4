//! Most of the nodes' disks are lost: `docs/operating-membership.md` is gone through as it is written.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tillsync::client::rest::RestClient;

use crate::harness::{both, tillsync};
use crate::processes::Processes;

const PAGE: &str = include_str!("../../docs/operating-membership.md");
const HEADING: &str = "## Most of the disks are lost";

/// The commands of the section, as they are typed on the machine that is left: there, or over ssh. What the operator waits
/// for, the test does in its own way.
fn commands() -> Vec<String> {
    let section = PAGE.split(HEADING).nth(1).expect("the section is there").split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).map(|line| line.split('#').next().unwrap().trim());
    let over_ssh = |line: &'static str| {
        let after = line.strip_prefix("ssh -t ").or_else(|| line.strip_prefix("ssh "))?;
        Some(after.split_once(' ')?.1.trim_matches('\''))
    };
    let typed = lines.map(|line| over_ssh(line).unwrap_or(line).to_owned());
    typed.filter(|line| !line.is_empty() && !line.starts_with("until ") && !line.starts_with("export ")).collect()
}

/// A word of a command with this machine's files in it.
fn here(nodes: &Processes, word: &str) -> String {
    word.replace("/etc/tillsync/node.toml", nodes.config(3).to_str().unwrap())
}

fn run(nodes: &Processes, words: &[String], answer: &str) -> (bool, String) {
    let mut command = tillsync();
    let urls: Vec<String> = nodes.urls().iter().map(ToString::to_string).collect();
    command.args(words).env("TILLSYNC_TOKEN", nodes.token()).env("TILLSYNC_URL", urls.join(","));
    command.current_dir(nodes.path("."));
    answered(&mut command, answer)
}

fn answered(command: &mut Command, answer: &str) -> (bool, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that asks nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(answer.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.success(), both(&output))
}

async fn record(rest: &RestClient, nodes: &Processes, id: u64, record: u64) -> Value {
    let found: Value = rest.get(&nodes.url(id), &format!("/data/shop/{record}")).await.unwrap();
    found["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_from_the_one_folder_that_is_left_as_the_page_says() {
    let mut nodes = Processes::found(3).await;
    let rest = nodes.rest();
    let _: Value = rest.post(&nodes.url(1), "/device/register", &json!({ "device_id": "admin" })).await.unwrap();
    for n in 0..20 {
        let write = json!({ "new_data": { "n": n } });
        let _: Value = rest.post(&nodes.url(1), &format!("/data/shop/{n}"), &write).await.unwrap();
    }
    // A write is acknowledged by most: the survivor has it a moment later.
    nodes.same(&[1, 2, 3]).await;
    let cursor: Value = rest.get(&nodes.url(3), "/sync/changes?limit=1").await.unwrap();
    for id in [1, 2] {
        nodes.kill(id);
        nodes.keep_aside(id);
    }
    // They come back empty, under their numbers: they are told, at once, by a node that has no quorum.
    for id in [1, 2] {
        nodes.start(id);
    }
    for id in [1, 2] {
        assert_eq!(nodes.ended(id).await.code(), Some(2), "{}", nodes.said(id));
        assert!(nodes.said(id).contains("must come back under a new id"), "{}", nodes.said(id));
    }
    // It serves: nobody touches its folder meanwhile.
    let recover = ["recover", "--alone", "--yes", "--config"].map(str::to_owned);
    let recover: Vec<String> = recover.into_iter().chain([nodes.config(3).display().to_string()]).collect();
    let (well, said) = run(&nodes, &recover, "");
    assert!(!well && said.contains("in use by another process"), "{said}");
    for id in [4, 5] {
        nodes.give_ports(id);
    }
    let commands = commands();
    assert!(commands.iter().any(|line| line.starts_with("tillsync recover --alone")), "{commands:?}");
    for line in commands {
        let words: Vec<String> = line.split_whitespace().map(|word| here(&nodes, word)).collect();
        if line == "systemctl stop tillsync" {
            assert!(nodes.stop(3).await.success());
            let asks: Vec<String> = recover.iter().filter(|word| *word != "--yes").cloned().collect();
            for answer in ["", "y\n", "no\n"] {
                let (well, said) = run(&nodes, &asks, answer);
                assert!(!well && said.contains("nothing was changed: the answer was not"), "{said}");
            }
            continue;
        }
        if line.ends_with("systemctl start tillsync") {
            nodes.start(3);
            nodes.ready().await;
            continue;
        }
        assert_eq!(words[0], "tillsync", "{line}");
        if line.contains("recover") {
            let (_, said) = run(&nodes, &words[1..], "no\n");
            assert!(said.contains("voters: 1, 2, 3") && said.contains("nothing was changed"), "{said}");
        }
        let (well, said) = run(&nodes, &words[1..], "yes\n");
        assert!(well, "{line}: {said}");
        let expected = match line.split(' ').nth(1).unwrap() {
            "export" => "20 records, 20 changes",
            "recover" => "node 3 is a cluster of one",
            _ => "",
        };
        assert!(said.contains(expected), "{line}: {said}");
        assert_eq!(line.contains("--stale"), said.contains("stale: this is what"), "{said}");
    }
    // As a cluster grows: the page says so there.
    for id in [4, 5] {
        nodes.start_joining(id, &[3]);
        let (well, said) = nodes.add(id).await;
        assert!(well, "{said}");
    }
    let statuses = nodes.ready().await;
    assert_eq!(statuses[0].voters, [3, 4, 5]);
    for id in [3, 4, 5] {
        assert_eq!(record(&rest, &nodes, id, 7).await, json!({ "n": 7 }));
    }
    let audit: Value = rest.get(&nodes.url(4), "/sync/audit-logs?event_type=cluster_recovered").await.unwrap();
    assert!(audit["logs"][0]["details"].as_str().unwrap().contains("out for good: 1, 2"), "{audit}");
    let write = json!({ "new_data": { "n": "after" } });
    let _: Value = rest.post(&nodes.url(5), "/data/shop/7", &write).await.unwrap();
    // A cursor of the history before is none of this one.
    let old = format!("/sync/changes?cursor={}", cursor["cursor"].as_str().unwrap());
    let error = rest.get::<Value>(&nodes.url(3), &old).await.unwrap_err();
    assert!(error.to_string().contains("1005"), "{error}");
    // One of the old disks turns up after all: nobody takes anything from it, and it serves nothing.
    nodes.put_back(1);
    nodes.start(1);
    nodes.says(1, "two clusters are named").await;
    let error = rest.get::<Value>(&nodes.url(1), "/data/shop/7").await.unwrap_err();
    assert!(error.to_string().contains("2005"), "{error}");
    nodes.kill(1);
    assert_eq!(record(&rest, &nodes, 4, 7).await, json!({ "n": "after" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_must_not_be_recovered_is_left_as_it_is() {
    let mut nodes = Processes::found(1).await;
    let config = nodes.config(1).display().to_string();
    let recover = |more: &[&str]| {
        let words: Vec<String> =
            ["recover", "--alone", "--yes", "--config", &config].iter().chain(more).map(|w| (*w).to_owned()).collect();
        run(&nodes, &words, "")
    };
    let elsewhere = format!("data_dir={}", nodes.path("nowhere").display());
    let (well, said) = recover(&["--set", &elsewhere]);
    assert!(!well && said.contains("is no node's data folder") && !nodes.path("nowhere").exists(), "{said}");
    let (well, said) = recover(&[]);
    assert!(!well && said.contains("in use by another process"), "{said}");
    nodes.stop(1).await;
    let recover = |more: &[&str]| {
        let words: Vec<String> =
            ["recover", "--alone", "--yes", "--config", &config].iter().chain(more).map(|w| (*w).to_owned()).collect();
        run(&nodes, &words, "")
    };
    let (well, said) = recover(&[]);
    assert!(!well && said.contains("a cluster of one already"), "{said}");
    let (well, said) = recover(&["--set", "cluster_name=other"]);
    assert!(!well && said.contains("belongs to cluster fleet"), "{said}");
    std::fs::write(nodes.data(1).join("refused"), "its data differs\n").unwrap();
    let (well, said) = recover(&[]);
    assert!(!well && said.contains("is not opened again: its data differs"), "{said}");
}
