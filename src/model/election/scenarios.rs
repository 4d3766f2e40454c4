//! Runs `tests/scenarios/*.txt`: each line that begins with `$` is a step, what stands below it is what happened.
//! `UPDATE_SCENARIOS=1 cargo test --lib scenarios` writes what happens now; the diff is for the reader to judge.

use std::fs;
use std::path::Path;

use super::harness::{ElectionWorld, booted, describe, founded, nodes, online};
use crate::model::device::present_on;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    DeviceOffline, DeviceOnline, DeviceShutdown, Elect, ElectionMethod, ElectionReason, Outcome, Role, RoleChange,
};

/// One file's play.
struct ScenarioPlay {
    world: ElectionWorld,
    /// Steps that the coordinator may still take; `None`: as many as it likes.
    held: bool,
    /// That a session was lost, noticed and not reported yet.
    report: Option<(u64, Intent)>,
}

/// What a node says whose session of this device is gone.
fn session_lost(world: &ElectionWorld, id: &str, node: u64) -> Intent {
    let there = present_on(world.state.device(id).unwrap()).find(|there| there.node == node).unwrap();
    Intent::DeviceOffline(DeviceOffline {
        device_id: id.to_owned(),
        reason: "heartbeat timeout (1004)".into(),
        session_lost: true,
        home: node,
        online_count: there.online_count,
    })
}

impl ScenarioPlay {
    fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let node = |word: &str| -> u64 {
            let node = word.parse().unwrap_or_else(|_| panic!("{line}: {word} is no node"));
            assert!(nodes().contains(&node), "{line}: {word} is no node");
            node
        };
        match words[..] {
            ["fresh", "cluster"] => self.world = ElectionWorld::new(),
            ["lead", n] => self.world.lead(node(n)),
            ["crash", n] => self.world.crash(node(n)),
            ["cut", n] => self.world.isolate(node(n)),
            ["heal", n] => drop(self.world.cut.remove(&node(n))),
            ["start", n] => {
                self.world.restart(node(n));
                if self.world.leader().is_some() {
                    self.send(node(n), booted());
                }
            }
            ["boot", n] => self.send(node(n), booted()),
            ["lag", n, entries] => drop(self.world.lag.insert(node(n), entries.parse().unwrap())),
            ["transfers", "fail"] => self.world.transfers_fail = true,
            ["transfers", "work"] => self.world.transfers_fail = false,
            ["wait", ms] => self.world.pass(ms.parse().unwrap()),
            ["hold"] => self.held = true,
            ["go", "on"] => self.held = false,
            ["once"] => drop(self.world.step()),
            ["device", id, "at", n, "priority", priority, ref rest @ ..] => {
                let role = if rest.contains(&"master") { Role::Master } else { Role::Client };
                let never = rest.contains(&"no-master").then(|| vec!["no-master".to_owned()]);
                self.send(node(n), online(id, priority.parse().unwrap(), role, never));
            }
            ["offline", id] => {
                let device_id = id.to_owned();
                self.send(1, Intent::DeviceOffline(DeviceOffline { device_id, ..DeviceOffline::default() }));
            }
            ["silent", id] => {
                let home = self.world.state.device(id).unwrap().home;
                let lost = session_lost(&self.world, id, home);
                self.send(home, lost);
            }
            ["silent", id, "at", n] => {
                let lost = session_lost(&self.world, id, node(n));
                self.send(node(n), lost);
            }
            // The same report once more, or one that comes after the device has come back.
            ["silence", "of", id, "at", n] => self.report = Some((node(n), session_lost(&self.world, id, node(n)))),
            ["it", "is", "reported"] => {
                let (node, lost) = self.report.clone().unwrap();
                self.send(node, lost);
            }
            ["returns", id, "at", n] => {
                let Intent::DeviceOnline(online) = online(id, 0, Role::Client, None) else { unreachable!() };
                self.send(node(n), Intent::DeviceOnline(DeviceOnline { returns: true, priority: None, ..online }));
            }
            ["reload"] => self.world.state.reload().unwrap(),
            ["shutdown", id] => {
                let (device_id, reason) = (id.to_owned(), String::new());
                self.send(1, Intent::DeviceShutdown(DeviceShutdown { device_id, reason }));
            }
            ["role", id, role] => {
                let role = if role == "master" { Role::Master } else { Role::Client };
                let (reason, by) = ("maintenance".to_owned(), "admin".to_owned());
                let (device_id, role) = (id.into(), role.into());
                self.send(1, Intent::RoleChange(RoleChange { device_id, role, reason, by, ..RoleChange::default() }));
            }
            ["elect", reason] => {
                let reason = match reason {
                    "manual" => ElectionReason::Manual,
                    "failure" => ElectionReason::Failure,
                    _ => panic!("{line}: no such reason"),
                };
                let (reason, method) = (reason.into(), ElectionMethod::Priority.into());
                self.send(1, Intent::Elect(Elect { reason, method, initiated_by: "admin".into(), ..Elect::default() }));
            }
            ["devices"] => {
                let all: Vec<String> = self.world.state.devices().map(|d| format!("  {}", describe(d))).collect();
                self.world.story.extend(all);
                return;
            }
            ["audit", event] => {
                let row = self.world.audit(event).unwrap_or_else(|| "none".into());
                self.world.story.push(format!("  audit: {row}"));
                return;
            }
            _ => panic!("no such step: {line}"),
        }
        if !self.held {
            self.world.run();
        }
        let summary = self.world.summary();
        self.world.story.push(summary);
    }

    fn send(&mut self, node: u64, intent: Intent) {
        match self.world.send(node, intent) {
            None => self.world.story.push("  there is no leader: 2005".into()),
            Some(Outcome { pending_election, result, .. }) => {
                if pending_election > 0 {
                    self.world.story.push(format!("  the answer waits for election {pending_election}"));
                } else if let Some(Reply::Online(done)) = result {
                    let device = done.device.unwrap_or_default();
                    self.world.story.push(format!("  answer: {}", describe(&device)));
                }
            }
        }
    }
}

fn perform(text: &str) -> String {
    let mut play = ScenarioPlay { world: founded(), held: false, report: None };
    let mut out = String::new();
    for line in text.lines() {
        if let Some(step) = line.strip_prefix("$ ") {
            play.step(step);
            out += line;
            out.push('\n');
            for happened in play.world.story.drain(..) {
                out += &format!("    {happened}\n");
            }
        } else if line.starts_with('#') || line.is_empty() {
            out += line;
            out.push('\n');
        }
    }
    out
}

#[test]
fn every_scenario_goes_as_it_is_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    files.sort();
    assert!(files.len() >= 15, "the scenarios are not there");
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let now = perform(&text);
        if std::env::var_os("UPDATE_SCENARIOS").is_some() {
            fs::write(&path, &now).unwrap();
        } else if now != text {
            let at = now.lines().zip(text.lines()).position(|(a, b)| a != b);
            let line = at.map_or("its end", |at| now.lines().nth(at).unwrap_or_default());
            wrong.push(format!("{}: now {line:?}", path.file_name().unwrap_or_default().to_string_lossy()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_SCENARIOS=1 writes what happens now:\n{}", wrong.join("\n"));
}
