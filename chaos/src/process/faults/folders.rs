//! Faults of what a node is: its data folder is an older copy, damaged, or gone. It has to say so and end before it votes
//! or answers, and the way that it names has to work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::super::cluster::Others;
use super::super::cluster::folders::{SeenStart, StartEnd};
use super::super::kind::FaultKind;
use super::super::monitor::start;
use super::{AGAIN, CHANGE, START, Strike, Struck, list};

/// A node that must not serve ends within this time, also while others take their time to answer it.
const ENDS: Duration = Duration::from_secs(15);
/// Damages of one strike, until one of them is not harmless.
const DAMAGES: u32 = 3;
/// The longest piece of the engine's file that is lost.
const MOST_LOST: u64 = 512 << 10;
/// How long the nodes that are left do not answer those that lost their folders. A node waits longer for an answer.
const HELD: Duration = Duration::from_secs(1);

/// What the cluster says of a change that has been made.
const ALREADY: [&str; 3] = ["was removed before", "is a voter already", ", its gateway at "];
/// Folders that are kept aside.
const OLDER: &str = "older";
const NEWEST: &str = "newest";
const KEPT: &str = "kept";

/// The line of a log that says all of this.
pub(super) fn sentence<'a>(said: &'a str, words: &[&str]) -> Option<&'a str> {
    said.lines().rfind(|line| words.iter().all(|word| line.contains(word)))
}

/// The end of a log, for an anomaly.
pub(super) fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Whether a start ended by itself and said why; else what it did.
fn refused(node: u64, seen: &SeenStart, words: &[&str]) -> Result<(), String> {
    let said = || tail(&seen.said);
    match seen.end {
        StartEnd::Serves => Err(format!("node {node} serves from a folder that is not its newest: {}", said())),
        StartEnd::Neither => Err(format!("node {node} neither serves nor ends within {ENDS:?}: {}", said())),
        StartEnd::Ended(status) if status.success() => Err(format!("node {node} ended with {status}: {}", said())),
        StartEnd::Ended(_) if sentence(&seen.said, words).is_some() => Ok(()),
        StartEnd::Ended(status) => Err(format!("node {node} ended with {status} without saying {words:?}: {}", said())),
    }
}

impl Strike<'_> {
    /// The folder as it was before the node's last start is put back.
    pub(super) async fn old_copy(&mut self, node: u64) -> Struck {
        let world = self.world;
        let cluster = &world.cluster;
        let _room = world.machine_room.lock().await;
        self.say(format!("the folder of node {node} is copied, and the node goes on"));
        self.stop(node).await;
        cluster.copy_folder(node, OLDER)?;
        self.must_serve(node, "after its folder was copied").await;
        sleep(self.lasts).await;
        self.say(format!("the folder of node {node} is put back to the older copy"));
        cluster.kill(node).await;
        cluster.keep_folder(node, NEWEST)?;
        cluster.put_folder(node, OLDER)?;
        // However often it is started.
        for _ in 0..2 {
            let seen = cluster.see_start(node, Others::Proxied, ENDS).await?;
            if let Err(why) = refused(node, &seen, &["copy from before its start", "new number"]) {
                world.recorder.anomaly(format!("an older copy: {why}"));
                cluster.kill(node).await;
            }
        }
        let way = if self.rng.percent(50) {
            cluster.put_folder(node, NEWEST)?;
            self.must_serve(node, "with its newest folder").await;
            "the newest folder was put back".to_owned()
        } else {
            cluster.forget_folder(node, NEWEST)?;
            format!("it came back as node {}", self.new_number(node).await?)
        };
        Ok(format!("node {node} was started from an older copy of its folder, and {way}"))
    }

    /// The engine's file is damaged while the node is down.
    pub(super) async fn damaged(&mut self, kind: FaultKind, node: u64) -> Struck {
        let world = self.world;
        let cluster = &world.cluster;
        let _room = world.machine_room.lock().await;
        let folder = cluster.folder(node);
        let path = folder.display().to_string();
        let words = ["5001", path.as_str(), "new number"];
        let (mut done, mut way) = (Vec::new(), "it was whole all the same".to_owned());
        for _ in 0..DAMAGES {
            self.say(format!("node {node} is killed and its folder damaged"));
            cluster.kill(node).await;
            let what = damage(kind, &folder, &mut self.rng)?;
            self.say(format!("node {node} starts: {what}"));
            done.push(what);
            let from = cluster.said_len(node);
            let seen = cluster.see_start(node, Others::Proxied, START).await?;
            let ended = if seen.end == StartEnd::Serves {
                sleep(self.lasts).await;
                if cluster.has_process(node) {
                    continue;
                }
                // It came across the damage while it ran.
                let said = cluster.said_from(node, from);
                let says = sentence(&said, &words).map(drop);
                says.ok_or_else(|| format!("node {node} ended without saying {words:?}: {}", tail(&said)))
            } else {
                refused(node, &seen, &words)
            };
            if let Err(why) = ended {
                world.recorder.anomaly(format!("a damaged folder ({}): {why}", done.join(", ")));
            }
            way = format!("it came back as node {}", self.new_number(node).await?);
            break;
        }
        Ok(format!("the folder of node {node} was damaged ({}): {way}", done.join(", ")))
    }

    /// Nodes lose their folders and start as they were founded.
    pub(super) async fn refounded(&mut self, nodes: &[u64]) -> Struck {
        let world = self.world;
        let cluster = &world.cluster;
        let _room = world.machine_room.lock().await;
        let names = list(nodes);
        self.say(format!("{names} lost, without folders"));
        join_all(nodes.iter().copied().map(|id| cluster.kill(id))).await;
        for id in nodes {
            cluster.keep_folder(*id, NEWEST)?;
        }
        sleep(self.lasts).await;
        let members = cluster.members();
        let most = nodes.len() * 2 > members.len();
        let left: Vec<u64> = members.iter().copied().filter(|id| most && !nodes.contains(id)).collect();
        let recorded = cluster.network.open_recorded();
        left.iter().for_each(|id| cluster.hold(*id, true));
        let starts = join_all(nodes.iter().copied().map(|id| cluster.see_start(id, cluster.founding_of(id), ENDS)));
        let back = async {
            if !left.is_empty() {
                sleep(HELD).await;
                left.iter().for_each(|id| cluster.hold(*id, false));
            }
        };
        let (seen, ()) = tokio::join!(starts, back);
        drop(recorded);
        for (id, seen) in nodes.iter().zip(seen) {
            if let Err(why) = refused(*id, &seen?, &["this data folder is empty", "under a new id"]) {
                world.recorder.anomaly(format!("an empty folder: {why}"));
                cluster.kill(*id).await;
            }
        }
        let way = match nodes {
            [node] if !most && self.rng.percent(50) => {
                cluster.forget_folder(*node, NEWEST)?;
                format!("it came back as node {}", self.new_number(*node).await?)
            }
            _ => {
                for id in nodes {
                    cluster.put_folder(*id, NEWEST)?;
                    cluster.revive(*id)?;
                }
                join_all(nodes.iter().copied().map(|id| self.must_serve(id, "with the folder that it had"))).await;
                "the folders were put back".to_owned()
            }
        };
        Ok(format!("{names} started with empty folders, and {way}"))
    }

    /// A node that does not serve is trouble.
    pub(super) async fn must_serve(&self, node: u64, when: &str) {
        if !start(self.world, node, START).await {
            let why = self.world.cluster.last_line(node);
            self.world.recorder.anomaly(format!("node {node} does not serve {when}: {why}"));
        }
    }

    /// What the sentences say: the number of a node that is down is removed, and the machine added under a new one, with
    /// an empty folder.
    pub(super) async fn new_number(&mut self, old: u64) -> Result<u64, String> {
        let world = self.world;
        let cluster = &world.cluster;
        let new = cluster.unused().ok_or("there is no number left for a new node")?;
        self.say(format!("node {old} comes back as node {new}"));
        cluster.keep_folder(old, KEPT)?;
        self.order(old, &format!("remove {old} --timeout 10")).await?;
        cluster.set_member(old, false);
        world.seen.lock().remove(&old);
        cluster.start_new(new)?;
        let at = cluster.listed(new).ok_or("the new node has no address")?;
        let recorded = cluster.network.open_recorded();
        let words = format!("add --id {new} --raft {} --gateway {} --timeout 10", at.raft, at.gateway);
        let added = self.order(new, &words).await;
        if let Err(why) = added {
            cluster.kill(new).await;
            return Err(why);
        }
        cluster.set_member(new, true);
        // From now on it goes through the proxies as well; until then it finds the others only as they are recorded.
        self.stop(new).await;
        drop(recorded);
        self.must_serve(new, "under its new number").await;
        Ok(new)
    }

    /// A command of an operator about a node, given again for a while: leadership may be on its way. That it never works
    /// is trouble.
    pub(super) async fn order(&self, about: u64, words: &str) -> Result<String, String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let until = Instant::now() + CHANGE;
        loop {
            match self.world.cluster.operate(&words, about).await {
                Ok(said) => return Ok(said),
                // The answer to a try before was lost.
                Err(why) if ALREADY.iter().any(|done| why.contains(done)) => return Ok(why),
                Err(why) if Instant::now() >= until => {
                    self.world.recorder.anomaly(format!("an operator's way out does not work: {why}"));
                    return Err(why);
                }
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
}

/// Damages the engine's file where it holds something; what was done.
fn damage(kind: FaultKind, folder: &Path, rng: &mut crate::rng::Rng) -> Result<String, String> {
    let path = folder.join("engine/db");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let bytes = fs::read(&path).map_err(failed)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).ok_or("the engine's file is empty")? as u64;
    let file = File::options().write(true).open(&path).map_err(failed)?;
    if kind == FaultKind::Bitrot {
        let flips = rng.between(1, 8);
        for _ in 0..flips {
            let at = rng.between(0, end);
            let byte = bytes.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or(0);
            file.write_all_at(&[byte ^ 1 << rng.below(8)], at).map_err(failed)?;
        }
        return Ok(format!("{flips} bits flipped"));
    }
    let lost = rng.between(1, MOST_LOST.min(end));
    if rng.percent(50) {
        file.set_len(end + 1 - lost).map_err(failed)?;
        return Ok(format!("the last {lost} bytes cut off"));
    }
    let zeros = vec![0; usize::try_from(lost).unwrap_or(0)];
    file.write_all_at(&zeros, end + 1 - lost).map_err(failed)?;
    Ok(format!("the last {lost} bytes zeros"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn only_an_end_with_its_sentence_is_a_refusal() {
        let seen = |end, said: &str| SeenStart { end, said: said.to_owned() };
        let words = ["copy from before", "new number"];
        let failed = StartEnd::Ended(ExitStatus::from_raw(2 << 8));
        let good = "x\nerror: a copy from before its start 2: a new number\n";
        assert_eq!(refused(3, &seen(failed, good), &words), Ok(()));
        for (end, said, why) in [
            (failed, "error: a copy from before\nanother line with a new number", "without saying"),
            (failed, "", "without saying"),
            (StartEnd::Ended(ExitStatus::from_raw(0)), good, "ended with"),
            (StartEnd::Serves, good, "serves"),
            (StartEnd::Neither, good, "neither"),
        ] {
            let error = refused(3, &seen(end, said), &words).unwrap_err();
            assert!(error.contains("node 3") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_damage_is_where_the_file_holds_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine/db");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let whole = [vec![7_u8; 3_000], vec![0; 5_000]].concat();
        for seed in 0..40 {
            for kind in [FaultKind::Bitrot, FaultKind::Truncated] {
                fs::write(&path, &whole).unwrap();
                let what = damage(kind, folder.path(), &mut Rng::new(seed)).unwrap();
                let now = fs::read(&path).unwrap();
                let kept = now.iter().take(3_000).filter(|byte| **byte == 7).count();
                assert!(kept < 3_000 && now.iter().skip(3_000).all(|byte| *byte == 0), "{seed}: {what}");
                assert!(kind == FaultKind::Truncated || kept >= 2_992, "{seed}: {what}");
            }
        }
    }
}
