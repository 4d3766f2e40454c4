//! `tillsync backup`, `backup verify` and `restore`, as an operator uses them.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{both, tillsync};
use crate::processes::Processes;

/// Runs a command; whether it went well, and what it said.
pub(crate) fn run(args: &[&str]) -> (bool, String) {
    let output = tillsync().args(args).output().unwrap();
    (output.status.success(), both(&output))
}

fn take(nodes: &Processes, to: &Path, more: &[&str]) -> (bool, String) {
    let urls: Vec<String> = nodes.urls().iter().map(ToString::to_string).collect();
    let (urls, token) = (urls.join(","), nodes.token());
    let words = ["backup", to.to_str().unwrap(), "--url", &urls, "--token", &token];
    run(&words.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
}

fn backups(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end == "backup"));
    found.sort_unstable();
    found
}

/// What clients see of everything.
pub(crate) async fn picture(nodes: &Processes, id: u64) -> Vec<Value> {
    let (rest, url, mut seen) = (nodes.rest(), nodes.url(id), Vec::new());
    for path in [
        "/sync/changes?limit=1000",
        "/system/export/records?limit=1000",
        "/system/export/elections",
        "/data/shop/50",
        "/data/shop/50/history",
        "/sync/conflicts",
        "/access",
        "/sync/policies",
        "/sync/state/till-1",
    ] {
        let mut answer: Value = rest.get(&url, path).await.unwrap();
        for passing in ["timestamp", "cursor"] {
            answer.as_object_mut().unwrap().remove(passing);
        }
        seen.push(answer);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_on_another_machine_with_all_that_was_in_it() {
    let mut nodes = Processes::found(3).await;
    let (rest, to) = (nodes.rest(), nodes.path("backups"));
    for device in ["admin", "till-1", "till-2"] {
        let _: Value = rest.post(&nodes.url(1), "/device/register", &json!({ "device_id": device })).await.unwrap();
    }
    for n in 1..=50 {
        let write = json!({ "new_data": { "n": n, "name": "crème brûlée", "price": 1.10 } });
        let _: Value = rest.post(&nodes.url(1), &format!("/data/shop/{n}"), &write).await.unwrap();
    }
    for n in 1..=5 {
        let delete = json!({ "operation": "delete" });
        let _: Value = rest.post(&nodes.url(2), &format!("/data/shop/{n}"), &delete).await.unwrap();
    }
    nodes.same(&[1, 2, 3]).await;
    let before = picture(&nodes, 1).await;
    let cursor: Value = rest.get(&nodes.url(1), "/sync/changes?limit=10").await.unwrap();

    let (well, said) = take(&nodes, &to, &["--keep", "1"]);
    assert!(well && said.contains("cluster \"fleet\", up to change 55"), "{said}");
    let file = backups(&to).remove(0);
    let (well, said) = run(&["backup", "verify", file.to_str().unwrap()]);
    assert!(well && said.contains("it can be restored"), "{said}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1, "nothing is left beside it");
    // What comes later is not in it.
    let late = json!({ "new_data": { "n": "late" } });
    let _: Value = rest.post(&nodes.url(1), "/data/shop/99", &late).await.unwrap();
    // One of another time is not what is kept.
    let wrong = to.join(file.file_name().unwrap().to_str().unwrap().replace("2026", "2999"));
    fs::write(&wrong, b"").unwrap();
    let kept_aside = nodes.path("first.backup");
    fs::copy(&file, &kept_aside).unwrap();
    let (well, said) = take(&nodes, &to, &["--keep", "1"]);
    assert!(well && said.contains("up to change 56") && said.contains("removed "), "{said}");
    assert!(backups(&to).len() == 1 && !file.exists() && !wrong.exists());
    // Without a quorum what one node has is better than nothing.
    for id in [1, 2] {
        nodes.kill(id);
    }
    let (well, said) = take(&nodes, &nodes.path("stale"), &["--stale"]);
    assert!(well && said.contains("up to change 56") && said.contains("stale: this is what"), "{said}");

    // All machines are gone; one with a new number gets it, and one whose number was a voter's before.
    nodes.kill(3);
    for id in [7, 2] {
        let file = kept_aside.to_str().unwrap();
        if id == 2 {
            nodes.keep_aside(2);
        }
        nodes.give_ports(id);
        nodes.configure(id, &nodes.members(&[id]));
        let config = nodes.config(id).display().to_string();
        let (well, said) = run(&["restore", file, "--config", &config, "--set", "cluster_name=other"]);
        assert!(!well && said.contains("the backup is of cluster \"fleet\"") && !nodes.data(id).exists(), "{said}");
        // The others would found a cluster of their own.
        nodes.configure(id, &nodes.members(&[1, id]));
        let (well, said) = run(&["restore", file, "--config", &config]);
        assert!(!well && said.contains("`members` names node 1 as well") && !nodes.data(id).exists(), "{said}");
        nodes.configure(id, &nodes.members(&[id]));
        // A restore that was cut off: the node does not found a cluster in what it left.
        fs::create_dir_all(nodes.data(id).join("engine")).unwrap();
        fs::write(nodes.data(id).join("restoring"), b"").unwrap();
        nodes.start(id);
        assert_eq!(nodes.ended(id).await.code(), Some(2));
        assert!(nodes.said(id).contains("is being restored, or a restore was cut off"), "{}", nodes.said(id));
        let held = fs::File::open(nodes.data(id).join("restoring")).unwrap();
        held.lock().unwrap();
        let (well, said) = run(&["restore", file, "--config", &config]);
        assert!(!well && said.contains("let that one end"), "{said}");
        drop(held);
        let (well, said) = run(&["restore", file, "--config", &config]);
        assert!(well && said.contains("a cluster of one with all of it"), "{said}");
        let (well, said) = run(&["restore", file, "--config", &config]);
        assert!(!well && said.contains("is there already") && said.contains("nothing was changed"), "{said}");
        nodes.start(id);
        nodes.ready().await;
        nodes.serves(id).await;
        assert_eq!(picture(&nodes, id).await, before, "node {id}");
        let path = format!("/sync/changes?cursor={}", cursor["cursor"].as_str().unwrap());
        let refused = rest.get::<Value>(&nodes.url(id), &path).await.unwrap_err().to_string();
        assert!(refused.contains("1005"), "a cursor of before: {refused}");
        let write = json!({ "new_data": { "n": "after" } });
        let _: Value = rest.post(&nodes.url(id), "/data/shop/100", &write).await.unwrap();
        let audit: Value = rest.get(&nodes.url(id), "/sync/audit-logs?event_type=cluster_recovered").await.unwrap();
        assert_eq!(audit["pagination"]["total"], 1, "{audit}");
        if id == 7 {
            nodes.start_new(8);
            let (well, said) = nodes.add(8).await;
            assert!(well, "{said}\n{}", nodes.said(8));
            nodes.same(&[7, 8]).await;
            assert_eq!(picture(&nodes, 8).await, picture(&nodes, 7).await);
            nodes.kill(8);
            nodes.kill(7);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_is_recognised_and_nothing_is_restored_from_it() {
    let mut nodes = Processes::found(1).await;
    let rest = nodes.rest();
    let _: Value = rest.post(&nodes.url(1), "/device/register", &json!({ "device_id": "admin" })).await.unwrap();
    for n in 1..=20 {
        let write = json!({ "new_data": { "n": n, "text": "x".repeat(200) } });
        let _: Value = rest.post(&nodes.url(1), &format!("/data/shop/{n}"), &write).await.unwrap();
    }
    let to = nodes.path("backups");
    let (well, said) = take(&nodes, &to, &[]);
    assert!(well, "{said}");
    let whole = fs::read(backups(&to).remove(0)).unwrap();
    nodes.give_ports(2);
    nodes.configure(2, &nodes.members(&[2]));
    let (config, file) = (nodes.config(2).display().to_string(), nodes.path("damaged.backup"));
    let mut random = StdRng::seed_from_u64(16);
    for damage in 0..24 {
        let mut bytes = whole.clone();
        let at = random.random_range(0..bytes.len());
        match damage {
            0..12 => bytes[at] ^= 1 << random.random_range(0..8),
            12..16 => bytes.truncate(at),
            16..18 => bytes[at..].fill(0),
            18..20 => bytes.extend_from_slice(&whole[..100]),
            20 => bytes.clear(),
            21 => bytes.drain(at.saturating_sub(50)..at).for_each(drop),
            22 => bytes.truncate(whole.len() - 1),
            _ => bytes.rotate_left(100),
        }
        assert!(bytes != whole, "{damage}");
        fs::write(&file, &bytes).unwrap();
        let (well, said) = run(&["backup", "verify", file.to_str().unwrap()]);
        assert!(!well && said.contains("is no whole backup"), "{damage}: {said}");
        let (well, said) = run(&["restore", file.to_str().unwrap(), "--config", &config]);
        assert!(!well && said.contains("is no whole backup") && !nodes.data(2).exists(), "{damage}: {said}");
    }
}

/// What the cluster had at some entries of its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_moment_after_a_backup_is_restored_as_it_was() {
    let mut nodes = Processes::found(3).await;
    let (rest, to) = (nodes.rest(), nodes.path("backups"));
    let _: Value = rest.post(&nodes.url(1), "/device/register", &json!({ "device_id": "admin" })).await.unwrap();
    let (well, said) = take(&nodes, &to, &["--incremental"]);
    assert!(!well && said.contains("has no backup to go on from"), "{said}");
    let (well, said) = take(&nodes, &to, &[]);
    assert!(well, "{said}");
    let mut seen = Vec::new();
    let mut record = 0;
    for part in 0..3 {
        for n in 0..20 {
            record += 1;
            let write = json!({ "new_data": { "n": n, "part": part } });
            let _: Value = rest.post(&nodes.url(1 + n % 3), &format!("/data/shop/{record}"), &write).await.unwrap();
            let status = rest.status(&nodes.url(1 + n % 3)).await.unwrap();
            seen.push((status.digest_index, status.digest, status.head_seq));
        }
        if part == 1 {
            // The log goes on under another leader.
            let leader = nodes.ready().await[0].leader.unwrap();
            let (well, said) = nodes.cluster(&["transfer".to_owned(), (1 + leader % 3).to_string()]).await;
            assert!(well, "{said}");
        }
        let (well, said) = take(&nodes, &to, &["--incremental", "--keep", "3"]);
        assert!(well && said.contains("entries up to"), "{said}");
    }
    let file = backups(&to).remove(0);
    let file = file.to_str().unwrap();
    let (well, said) = run(&["backup", "verify", file]);
    assert!(well && said.contains(&format!("up to change {record} ")), "{said}");
    nodes.give_ports(7);
    nodes.configure(7, &nodes.members(&[7]));
    let config = nodes.config(7).display().to_string();
    let data = nodes.data(7);
    let restore = |at: &str| {
        let _ = fs::remove_dir_all(&data);
        let (well, said) = run(&["restore", file, "--config", &config, "--at", at]);
        assert!(well, "{at}: {said}");
        said
    };
    let mut random = StdRng::seed_from_u64(19);
    for _ in 0..moments() {
        let (entry, digest, head) = &seen[random.random_range(0..seen.len())];
        let said = restore(&format!("entry:{entry}"));
        assert!(said.contains(&format!("log entry {entry}, digest {digest}")), "entry {entry}, {digest}: {said}");
        let said = restore(&head.to_string());
        assert!(said.contains(&format!("up to change {head} ")), "{said}");
    }
    // A moment between two writes; one before the backup, and one that no backup has.
    let at: Value = rest.get(&nodes.url(1), "/sync/changes?limit=1000").await.unwrap();
    let at = at["changes"][29]["timestamp"].as_str().unwrap();
    let said = restore(at);
    assert!(said.contains("up to change 30 ") || said.contains("up to change 29 "), "{at}: {said}");
    let _ = fs::remove_dir_all(nodes.data(7));
    for (at, why) in
        [("2020-01-01T00:00:00Z", "take an older backup"), ("9999", "end with change"), ("soon", "neither a moment")]
    {
        let (well, said) = run(&["restore", file, "--config", &config, "--at", at]);
        assert!(!well && said.contains(why) && !nodes.data(7).exists(), "{at}: {said}");
    }
    let said = restore("2999-01-01T00:00:00Z");
    assert!(said.contains("what came after that is in none"), "{said}");
    nodes.start(7);
    nodes.serves(7).await;
    let _: Value = rest.get(&nodes.url(7), &format!("/data/shop/{record}")).await.unwrap();
    // What follows is damaged, or a part of it is missing.
    let mut segments: Vec<PathBuf> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|end| end == "entries"));
    let first = |path: &PathBuf| path.to_str().unwrap().rsplit('-').nth(1).unwrap().parse::<u64>().unwrap();
    segments.sort_unstable_by_key(first);
    assert_eq!(segments.len(), 3, "{segments:?}");
    let mut bytes = fs::read(&segments[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segments[1], &bytes).unwrap();
    let (well, said) = run(&["backup", "verify", file]);
    assert!(!well && said.contains("cannot be restored") && said.contains(".entries"), "{said}");
    fs::remove_file(&segments[1]).unwrap();
    let (well, said) = run(&["backup", "verify", file]);
    assert!(!well && said.contains("are missing"), "{said}");
    let said = restore("20");
    assert!(said.contains("up to change 20 "), "what came before the hole: {said}");
}

/// How many moments are restored; `TILLSYNC_MOMENTS` says otherwise.
fn moments() -> usize {
    std::env::var("TILLSYNC_MOMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}
