//! Damages of many kinds to the folder of a node: alone, and beside one that was away. It is refused, or all that was
//! acknowledged is there; and what the node says is to be done helps.
//!
//! `TILLSYNC_DAMAGES=400 cargo test --release --workspace --test cluster -- --nocapture damage::many` does so many of each
//! and lists what came; `TILLSYNC_DAMAGES_ONLY=17` does that one. `TILLSYNC_DAMAGES_KEEP` names a folder for those that are
//! served and should not be.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;

use serde_json::{Value, json};
use tillsync::client::ClientError;
use tokio::time::{Duration, Instant, sleep};

use super::folders::{Acknowledged, FOUNDERS, Folders, restored, served, serves};
use super::kinds::{KINDS, Random, copy, damage};
use crate::harness::{both, tillsync};

/// Within this time a node has said what it is.
const BOUND: Duration = Duration::from_secs(30);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(15);
/// Whoever is alone cannot know it.
const OLDER_FOLDER: &str = "an older folder";
/// Where the new machine goes.
const NEW: u64 = 4;

#[derive(Debug)]
enum Came {
    Refused(String),
    Whole,
    /// Served without what was acknowledged, or neither served nor refused, or refused without a word.
    Wrong(String),
}

struct Asked {
    count: u64,
    /// More than what every run of all tests does.
    many: bool,
    seed: u64,
    only: Option<u64>,
    keep: Option<PathBuf>,
}

impl Asked {
    fn read() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|n| n.parse().unwrap());
        let asked: Option<u64> = number("TILLSYNC_DAMAGES");
        Self {
            count: asked.unwrap_or(8),
            many: asked.is_some(),
            seed: number("TILLSYNC_DAMAGES_SEED").unwrap_or(1),
            only: number("TILLSYNC_DAMAGES_ONLY"),
            keep: std::env::var_os("TILLSYNC_DAMAGES_KEEP").map(PathBuf::from),
        }
    }
}

/// One setting: the cluster of one, or the node that meets one that was away.
struct Setting {
    folders: Folders,
    /// Whose folder is damaged.
    damaged: u64,
    kinds: Vec<&'static str>,
}

impl Setting {
    async fn alone() -> Self {
        Self { folders: Folders::of_one().await, damaged: 1, kinds: KINDS.to_vec() }
    }

    async fn beside_one_that_was_away() -> Self {
        let kinds = KINDS.into_iter().chain([OLDER_FOLDER]).collect();
        Self { folders: Folders::of_three().await, damaged: 2, kinds }
    }

    fn is_alone(&self) -> bool {
        self.folders.founders == 1
    }

    /// Puts the folders where a case begins; the damage is done.
    fn prepare(&self, moment: &str, kind: &str, random: &mut Random) -> String {
        let folders = &self.folders;
        for id in FOUNDERS.into_iter().chain([NEW]) {
            let _ = fs::remove_dir_all(folders.nodes.data(id));
            folders.nodes.hush(id);
        }
        let dir = folders.nodes.data(self.damaged);
        copy(&folders.at(moment, self.damaged), &dir);
        if !self.is_alone() {
            copy(&folders.at("away", 1), &folders.nodes.data(1));
        }
        if kind == OLDER_FOLDER {
            fs::remove_dir_all(&dir).unwrap();
            copy(&folders.oldest(), &dir);
            return String::new();
        }
        damage(&dir, &folders.older(), kind, random)
    }

    /// Starts the nodes, and waits until they serve or the damaged one gives up.
    async fn judge(&mut self, must: &Acknowledged) -> Came {
        let alone = self.is_alone();
        let (damaged, nodes) = (self.damaged, &mut self.folders.nodes);
        nodes.start(damaged);
        if !alone {
            nodes.start(1);
        }
        let (rest, end) = (nodes.rest(), Instant::now() + BOUND);
        let refused = loop {
            if let Some(status) = nodes.exited(damaged) {
                break sentence(status, &nodes.said(damaged), &nodes.data(damaged).display().to_string());
            }
            // What the one that was away answers first is what the two of them agree on.
            match served(&rest, &nodes.url(1), must).await {
                Ok(Some(lost)) => return Came::Wrong(format!("served: {lost}")),
                Ok(None) if alone => return Came::Whole,
                Ok(None) => match served(&rest, &nodes.url(damaged), must).await {
                    Ok(Some(lost)) => return Came::Wrong(format!("served by the damaged one: {lost}")),
                    Ok(None) => return Came::Whole,
                    Err(_) => {}
                },
                Err(_) => {}
            }
            if Instant::now() > end {
                return Came::Wrong(format!("neither serves nor ends:\n{}", nodes.said(damaged)));
            }
            sleep(LOOK).await;
        };
        if alone || refused.is_err() {
            return refused.map_or_else(Came::Wrong, Came::Refused);
        }
        // The one that was away serves nothing by itself.
        loop {
            match served(&rest, &nodes.url(1), must).await {
                Ok(lost) => return Came::Wrong(format!("served by the one that was away: {lost:?}")),
                Err(ClientError::Refused { code: Some(1001 | 2005), .. }) => break,
                Err(error) if Instant::now() > end => return Came::Wrong(format!("the one that was away: {error}")),
                Err(_) => sleep(LOOK).await,
            }
        }
        refused.map_or_else(Came::Wrong, Came::Refused)
    }

    fn kill_all(&mut self) {
        for id in FOUNDERS.into_iter().chain([NEW]) {
            if self.folders.nodes.runs(id) {
                self.folders.nodes.kill(id);
            }
        }
    }

    /// Does what the sentence says, where the node was refused; all must be there afterwards.
    async fn walk(&mut self, moment: &str, must: &Acknowledged) -> Result<(), String> {
        let nodes = &self.folders.nodes;
        let _ = fs::remove_dir_all(nodes.path(&format!("aside-{}", self.damaged)));
        nodes.keep_aside(self.damaged);
        let rest = nodes.rest();
        let write = json!({ "device_id": "till-1", "new_data": { "n": "after" } });
        if self.is_alone() {
            // Begins anew, with its backup, which is of the last moment.
            self.folders.nodes.start(1);
            serves(&self.folders.nodes, 1).await;
            let nodes = &self.folders.nodes;
            let (backup, records) = (self.folders.backup(), self.folders.records_of_backup());
            for (command, file, more) in
                [("import", backup, vec![]), ("load", records, vec!["--table", "stock", "--key", "id"])]
            {
                let mut restore = tillsync();
                restore.arg(command).arg(file).args(more);
                restore.args(["--token", &nodes.token(), "--url", &nodes.url(1).to_string()]);
                let output = tokio::task::spawn_blocking(move || restore.output()).await.unwrap().unwrap();
                if !output.status.success() {
                    return Err(format!("{command}: {}", both(&output)));
                }
            }
            let all = &self.folders.moments.last().unwrap().must;
            let lost = restored(&rest, &nodes.url(1), all).await.map_err(|error| error.to_string())?;
            let written = rest.post::<Value>(&nodes.url(1), "/data/stock/1", &write).await;
            return lost.map_or_else(|| written.map(drop).map_err(|error| error.to_string()), Err);
        }
        copy(&self.folders.at(moment, 3), &self.folders.nodes.data(3));
        let nodes = &mut self.folders.nodes;
        nodes.start(3);
        serves(nodes, 1).await;
        let (well, said) = nodes.remove(self.damaged).await;
        if !well {
            return Err(format!("remove: {said}"));
        }
        nodes.start_joining(NEW, &[1, 3]);
        let (well, said) = nodes.add(NEW).await;
        if !well {
            return Err(format!("add: {said}"));
        }
        let statuses = nodes.ready().await;
        if statuses[0].voters != [1, 3, NEW] {
            return Err(format!("voters {:?}", statuses[0].voters));
        }
        for id in [1, 3, NEW] {
            let lost = served(&rest, &nodes.url(id), must).await.map_err(|error| error.to_string())?;
            lost.map_or(Ok(()), |lost| Err(format!("node {id}: {lost}")))?;
        }
        let written = rest.post::<Value>(&nodes.url(NEW), "/data/stock/1", &write).await;
        written.map(drop).map_err(|error| error.to_string())
    }

    async fn run(mut self, name: &str) {
        let asked = Asked::read();
        if !self.is_alone() {
            self.folders.nodes.give_ports(NEW);
        }
        let mut table: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
        let (mut wrong, mut walked) = (Vec::new(), Vec::new());
        for number in asked.only.map_or(0..asked.count, |only| only..only + 1) {
            let mut random = Random::new(asked.seed * 1_000_000 + number);
            let kind = self.kinds[(number as usize * if asked.many { 1 } else { 7 }) % self.kinds.len()];
            let moments = &self.folders.moments;
            let moment = &moments[(number as usize / if asked.many { self.kinds.len() } else { 1 }) % moments.len()];
            let (moment, must) = (moment.name, moment.must.clone());
            let what = self.prepare(moment, kind, &mut random);
            let begun = Instant::now();
            let (damaged, kept) = (self.folders.nodes.data(self.damaged), self.folders.nodes.path("case"));
            if asked.keep.is_some() {
                let _ = fs::remove_dir_all(&kept);
                copy(&damaged, &kept);
            }
            let came = self.judge(&must).await;
            let counts = table.entry(kind).or_default();
            let case = format!("{number} {moment}, {kind}: {what}");
            if asked.many {
                println!("{name} {case}: {came:?} ({} ms)", begun.elapsed().as_millis());
            }
            match came {
                Came::Whole => counts[1] += 1,
                Came::Refused(why) => {
                    counts[0] += 1;
                    // Of many each kind, else one of all.
                    if !walked.contains(&kind) && (asked.many || walked.is_empty()) {
                        walked.push(kind);
                        match self.walk(moment, &must).await {
                            Ok(()) => counts[3] += 1,
                            Err(failed) => wrong.push(format!("{case}: it said {why}, which does not help: {failed}")),
                        }
                    }
                }
                Came::Wrong(why) => {
                    counts[2] += 1;
                    if let Some(keep) = &asked.keep {
                        copy(&kept, &keep.join(format!("{name}-{number}")));
                    }
                    wrong.push(format!("{case}: {why}"));
                }
            }
            self.kill_all();
        }
        if asked.many {
            for (kind, [refused, whole, wrong, walked]) in &table {
                println!("| {name} | {kind} | {refused} | {whole} | {wrong} | {walked} |");
            }
        }
        let seed = asked.seed;
        assert!(wrong.is_empty(), "{} damages (seed {seed}) {name}:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// What a node that gave up said; it must name the folder, and what to do.
fn sentence(status: ExitStatus, said: &str, folder: &str) -> Result<String, String> {
    let last = said.lines().rfind(|line| !line.starts_with('{')).unwrap_or_default();
    let names = last.contains(folder) || last.contains("this folder of node 2");
    let way = last.contains("new number") && last.contains("cluster remove") && last.contains("cluster add");
    match status.code() {
        Some(1 | 2) if names && way => Ok(last.replace(folder, "…")),
        _ => Err(format!("ended with {status}, and said:\n{said}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_whose_folder_is_damaged_is_refused_or_whole() {
    Setting::alone().await.run("alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_and_one_that_was_away_serve_everything_or_nothing() {
    Setting::beside_one_that_was_away().await.run("away").await;
}
