//! Backups that a cluster takes by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backup::{picture, run};
use crate::harness::PATIENCE;
use crate::processes::Processes;

/// The files with one of the endings, by name.
fn files(dir: &Path, end: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("tillsync-") && name.ends_with(end)).collect()
}

/// Waits until there is something; what it is.
async fn until<T>(nodes: &Processes, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        let logs: Vec<String> = (1..=3).map(|id| nodes.said(id)).collect();
        assert!(Instant::now() < end, "{what} did not come\n{}", logs.join("\n--\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A founded cluster whose nodes have these settings as well.
async fn found(size: u64, settings: &dyn Fn(&Processes) -> String) -> Processes {
    let mut nodes = Processes::new();
    (1..=size).for_each(|id| nodes.give_ports(id));
    let more = format!("{}\n{}", nodes.members(&(1..=size).collect::<Vec<_>>()), settings(&nodes));
    for id in 1..=size {
        nodes.configure(id, &more);
        nodes.start(id);
    }
    nodes.ready().await;
    for device in ["admin", "till-1"] {
        let register = json!({ "device_id": device });
        let _: Value = nodes.rest().post(&nodes.url(1), "/device/register", &register).await.unwrap();
    }
    nodes
}

/// One that is between leaders is asked again: the same record is written.
async fn write(nodes: &Processes, id: u64, record: u64) {
    let (rest, body) = (nodes.rest(), json!({ "new_data": { "n": record } }));
    until(nodes, "a write", async || {
        rest.post::<Value>(&nodes.url(id), &format!("/data/shop/{record}"), &body).await.ok()
    })
    .await;
}

/// What a node says of its backups.
async fn said(nodes: &Processes, id: u64) -> Option<Value> {
    let status: Value = nodes.rest().get(&nodes.url(id), "/system/cluster").await.ok()?;
    status["nodes"].as_array()?.iter().find(|node| node["node"] == id).map(|node| node["backup"].clone())
}

async fn on_duty(nodes: &Processes) -> Option<u64> {
    for id in 1..=3 {
        if nodes.runs(id) && said(nodes, id).await.is_some_and(|backup| backup["on_duty"] == true) {
            return Some(id);
        }
    }
    None
}

/// Waits until all that was written before is in a backup.
async fn covered(nodes: &Processes) {
    let status: Value =
        nodes.rest().get(&nodes.url(on_duty(nodes).await.unwrap_or(1)), "/system/cluster").await.unwrap();
    let now = status["timestamp"].as_str().unwrap().to_owned();
    until(nodes, "a backup of all", async || {
        let id = on_duty(nodes).await?;
        let until = said(nodes, id).await?["covered_until"].as_str()?.to_owned();
        (until > now).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_are_taken_by_schedule_also_when_the_node_that_took_them_is_gone() {
    let mut nodes = found(3, &|nodes| {
        let to = nodes.path("backups");
        format!(
            "backup_to = {to:?}\nbackup_every = \"4s\"\nbackup_incremental_every = \"1s\"\nbackup_keep = 2\n\
             backup_verify_every = \"3s\""
        )
    })
    .await;
    let to = nodes.path("backups");
    let mut record = 0;
    // Something comes all the time, or nothing would be due.
    let first = until(&nodes, "a backup, what followed it, and its proof", async || {
        record += 1;
        write(&nodes, 1 + record % 3, record).await;
        let there = |end| files(&to, end);
        let all = !there(".entries").is_empty() && !there(".proved").is_empty();
        there(".backup").first().cloned().filter(|_| all)
    })
    .await;
    let (leader, by) = (nodes.ready().await[0].leader.unwrap(), on_duty(&nodes).await.unwrap());
    assert!(by != leader && by == (1..=3).find(|id| *id != leader).unwrap(), "{by} takes them, {leader} leads");
    let metrics = metrics(&nodes, by).await;
    let line = |name: &str| metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
    assert_eq!(line("tillsync_backup_on_duty"), "tillsync_backup_on_duty 1");
    assert_eq!(line("tillsync_backup_failed"), "tillsync_backup_failed 0");
    for name in ["tillsync_backup_covered_timestamp_seconds", "tillsync_backup_proved_timestamp_seconds"] {
        assert!(line(name).rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1.7e9, "{}", line(name));
    }
    let (well, shown) = nodes.cluster(&["status".to_owned()]).await;
    assert!(well && shown.contains(&format!("backups, by node {by}: all is there until 2")), "{shown}");

    // It goes on without that node, where that one was; and what is old goes.
    nodes.kill(by);
    let next = until(&nodes, "another node", async || on_duty(&nodes).await).await;
    assert_ne!(next, by);
    until(&nodes, "new backups, without the first one", async || {
        record += 1;
        write(&nodes, next, record).await;
        let backups = files(&to, ".backup");
        (backups.len() == 2 && !backups.contains(&first)).then_some(())
    })
    .await;
    for n in record..=50 {
        write(&nodes, next, n).await;
    }
    covered(&nodes).await;
    let before = picture(&nodes, next).await;
    (1..=3).filter(|id| *id != by).for_each(|id| nodes.kill(id));
    let entry = |name: &String, at: usize| name.rsplit(['-', '.']).nth(at).unwrap().parse::<u64>().unwrap();
    let oldest = files(&to, ".backup").iter().map(|name| entry(name, 1)).min().unwrap();
    let useless = files(&to, ".entries").into_iter().find(|name| entry(name, 1) <= oldest);
    assert_eq!(useless, None, "before {oldest}");

    // By the folder's name: the newest one is meant.
    let (well, shown) = run(&["backup", "verify", to.to_str().unwrap()]);
    assert!(well && shown.contains("it can be restored"), "{shown}");
    nodes.give_ports(7);
    nodes.configure(7, &nodes.members(&[7]));
    let config = nodes.config(7).display().to_string();
    let (well, shown) = run(&["restore", to.to_str().unwrap(), "--config", &config]);
    assert!(well && shown.contains("a cluster of one with all of it"), "{shown}");
    nodes.start(7);
    nodes.serves(7).await;
    assert_eq!(picture(&nodes, 7).await, before);
}

async fn metrics(nodes: &Processes, id: u64) -> String {
    let (mut text, rest, url) = (Vec::new(), nodes.rest(), nodes.url(id));
    let taken = rest.download(&url, "/metrics", |piece| {
        text.extend_from_slice(piece);
        Ok(())
    });
    taken.await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_takes_nothing_that_is_not_due() {
    let mut nodes =
        found(1, &|nodes| format!("backup_to = {:?}\nbackup_verify_every = \"0\"", nodes.path("backups"))).await;
    let to = nodes.path("backups");
    until(&nodes, "a backup", async || files(&to, ".backup").pop_first()).await;
    write(&nodes, 1, 1).await;
    let before = files(&to, "");
    for _ in 0..2 {
        nodes.stop(1).await;
        nodes.hush(1);
        nodes.start(1);
        nodes.ready().await;
        // It has looked at what is there.
        until(&nodes, "a look", async || said(&nodes, 1).await?["covered_until"].as_str().map(drop)).await;
        write(&nodes, 1, 2).await;
    }
    assert_eq!(files(&to, ""), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_cannot_be_written_is_told_once_and_hurts_nothing() {
    let nodes = found(1, &|nodes| {
        fs::write(nodes.path("disk"), b"no folder").unwrap();
        let to = nodes.path("disk/backups");
        format!(
            "backup_to = {to:?}\nbackup_every = \"2s\"\nbackup_incremental_every = \"1s\"\nbackup_verify_every = \"0\""
        )
    })
    .await;
    let failed =
        until(&nodes, "a failure", async || said(&nodes, 1).await?["failed"].as_str().map(str::to_owned)).await;
    assert!(failed.contains("disk/backups"), "{failed}");
    assert!(metrics(&nodes, 1).await.contains("tillsync_backup_failed 1\n"));
    let (_, shown) = nodes.cluster(&["status".to_owned()]).await;
    assert!(shown.contains("node 1: BACKUPS FAIL: backups cannot be taken"), "{shown}");
    for record in 1..=20 {
        write(&nodes, 1, record).await;
    }
    fs::remove_file(nodes.path("disk")).unwrap();
    let to = nodes.path("disk/backups");
    until(&nodes, "a backup", async || files(&to, ".backup").pop_first()).await;
    until(&nodes, "its end", async || said(&nodes, 1).await?["failed"].is_null().then_some(())).await;
    let log = nodes.said(1);
    let told = |words: &str| log.matches(words).count();
    assert!((told("backups cannot be taken"), told("backups can be taken again")) == (1, 1), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_was_damaged_is_told_and_followed_by_a_whole_one() {
    let nodes = found(1, &|nodes| {
        let to = nodes.path("backups");
        format!("backup_to = {to:?}\nbackup_incremental_every = \"0\"\nbackup_verify_every = \"1s\"")
    })
    .await;
    let to = nodes.path("backups");
    until(&nodes, "a proof", async || files(&to, ".proved").pop_first()).await;
    let first = files(&to, ".backup").pop_first().unwrap();
    write(&nodes, 1, 1).await;
    let mut bytes = fs::read(to.join(&first)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(nodes.path("damaged"), &bytes).unwrap();
    fs::rename(nodes.path("damaged"), to.join(&first)).unwrap();
    until(&nodes, "another backup", async || files(&to, ".backup").into_iter().find(|name| *name != first)).await;
    nodes.says(1, "the newest backup could not be proved").await;
    nodes.says(1, "the newest backup is proved again").await;
    assert!(nodes.said(1).contains("is no whole backup"), "{}", nodes.said(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_leaves_it_to_another_one() {
    let mut nodes = Processes::new();
    (1..=3).for_each(|id| nodes.give_ports(id));
    fs::write(nodes.path("disk"), b"no folder").unwrap();
    for id in 1..=3 {
        // What two of them have mounted there is no folder.
        let to = nodes.path(if id == 3 { "backups" } else { "disk/backups" });
        let times = "backup_every = \"2s\"\nbackup_incremental_every = \"1s\"\nbackup_verify_every = \"0\"";
        nodes.configure(id, &format!("{}\nbackup_to = {to:?}\n{times}", nodes.members(&[1, 2, 3])));
        nodes.start(id);
    }
    nodes.ready().await;
    let to = nodes.path("backups");
    until(&nodes, "a backup of node 3", async || files(&to, ".backup").pop_first()).await;
    until(&nodes, "what the nodes say of it", async || {
        let (_, shown) = nodes.cluster(&["status".to_owned()]).await;
        let says = |words: &str| shown.contains(words);
        (says("backups, by node 3") && says(": BACKUPS FAIL: backups cannot be taken")).then_some(())
    })
    .await;
    // It is theirs again when it is mended.
    fs::remove_file(nodes.path("disk")).unwrap();
    let to = nodes.path("disk/backups");
    until(&nodes, "a backup of another node", async || files(&to, ".backup").pop_first()).await;
}
