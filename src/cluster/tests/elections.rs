//! Nodes with their coordinators: the leader is where the master is, whatever happens. In simulated time.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::harness::{Cell, PATIENCE, seq, update};
use crate::cluster::SharedCluster;
use crate::cluster::elections::coordinator::{self, CoordinatorSettings};
use crate::cluster::elections::settled;
use crate::consensus::runtime::seeded;
use crate::ids::{ElectionId, NodeId};
use crate::model::error::{Code, Error};
use crate::model::read::elections;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{
    DeviceOffline, DeviceOnline, DeviceShutdown, Elect, Election, ElectionMethod, ElectionReason, Outcome, Presence,
    Role, RoleChange,
};

struct CoordinatedCells {
    cell: Cell,
    coordinators: BTreeMap<u64, CancellationToken>,
}

impl CoordinatedCells {
    async fn new() -> Self {
        let mut group = Self {
            cell: Cell::new(3, |config| config.request_timeout = Duration::from_secs(10)).await,
            coordinators: BTreeMap::new(),
        };
        for id in [1, 2, 3] {
            group.coordinate(id);
        }
        group.home(&[1, 2, 3], |_| true).await;
        group
    }

    fn coordinate(&mut self, id: u64) {
        let stop = CancellationToken::new();
        tokio::spawn(coordinator::run(self.cell.at(id), CoordinatorSettings::of(NodeId(id)), stop.clone()));
        self.coordinators.insert(id, stop);
    }

    async fn stop(&mut self, id: u64) {
        self.coordinators.remove(&id).unwrap().cancel();
        self.cell.stop(id).await;
    }

    async fn start(&mut self, id: u64) {
        self.cell.start(id).await;
        self.coordinate(id);
    }

    /// Waits until a master that `is` the one is at home on the leader's node, in the eyes of all of these.
    async fn home(&self, among: &[u64], is: impl Fn(&str) -> bool) -> (String, u64) {
        let agreed = async {
            loop {
                let seen: Vec<_> = among.iter().map(|id| self.sees(*id)).collect();
                if let Some((master, home, leader)) = &seen[0]
                    && is(master)
                    && Some(*home) == *leader
                    && seen.iter().all(|other| *other == seen[0])
                {
                    return (master.clone(), *home);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let agreed = tokio::time::timeout(PATIENCE, agreed).await;
        agreed.unwrap_or_else(|_| panic!("{:?}", among.iter().map(|id| self.sees(*id)).collect::<Vec<_>>()))
    }

    fn sees(&self, id: u64) -> Option<(String, u64, Option<u64>)> {
        let cluster = self.cell.at(id);
        let state = cluster.replica().state();
        let master = state.master().filter(|master| master.is_active)?;
        Some((master.device_id.clone(), master.home, cluster.status().leader.map(NodeId::get)))
    }

    /// Asks at a node, and waits for the election if there is one.
    async fn ask(&self, node: u64, intent: Intent) -> Result<Outcome, Error> {
        ask(self.cell.at(node), intent).await
    }

    async fn online(&self, node: u64, id: &str, priority: u32, role: Role) -> Outcome {
        let intent = DeviceOnline {
            device_id: id.into(),
            role: role.into(),
            priority: Some(priority),
            presence: Presence::Session.into(),
            ..DeviceOnline::default()
        };
        self.ask(node, Intent::DeviceOnline(intent)).await.unwrap()
    }

    async fn log(&self, node: u64) -> Vec<Election> {
        let cluster = self.cell.at(node);
        cluster.read_barrier().await.unwrap();
        let head = cluster.replica().state().meta().election_head;
        let mut log =
            cluster.replica().read_rows(move |rows| elections(rows, ElectionId(head), 1_000, 0)).await.unwrap();
        log.reverse();
        log
    }

    async fn end(self) {
        for stop in self.coordinators.values() {
            stop.cancel();
        }
        self.cell.converge().await;
        self.cell.shutdown().await;
    }
}

async fn ask(cluster: SharedCluster, intent: Intent) -> Result<Outcome, Error> {
    let outcome = cluster.propose(intent).await?;
    settled(cluster, outcome, PATIENCE).await
}

fn simulated(seed: u64, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(seeded(seed, test));
}

fn others(node: u64) -> Vec<u64> {
    [1, 2, 3].into_iter().filter(|id| *id != node).collect()
}

#[test]
fn whoever_becomes_master_takes_the_leader_with_it_and_is_answered_when_it_has() {
    simulated(1, async {
        let group = CoordinatedCells::new().await;
        for node in [1, 2, 3, 1] {
            let id = format!("till-{node}");
            let outcome = group.online(node, &id, 10 * node as u32, Role::Client).await;
            assert!(matches!(outcome.result, Some(Given::Online(_))));
            let order = RoleChange { device_id: id.clone(), role: Role::Master.into(), ..RoleChange::default() };
            // Asked anywhere.
            let outcome = group.ask(node % 3 + 1, Intent::RoleChange(order)).await.unwrap();
            let Some(Given::Device(device)) = outcome.result else { panic!("{outcome:?}") };
            assert_eq!((device.device_id.as_str(), device.role()), (id.as_str(), Role::Master));
            assert_eq!(group.home(&[1, 2, 3], |master| master == id).await.1, node);
        }
        // By asking when it comes online: the answer has the role.
        let outcome = group.online(2, "office", 100, Role::Master).await;
        let Some(Given::Online(online)) = outcome.result else { panic!("{outcome:?}") };
        assert_eq!((online.master.as_str(), online.device.unwrap().role()), ("office", Role::Master));
        assert_eq!(group.home(&[1, 2, 3], |master| master == "office").await.1, 2);
        // And by an election: who asked for it is told who won.
        group.online(3, "zentrale", 100, Role::Client).await;
        group
            .ask(1, Intent::DeviceShutdown(DeviceShutdown { device_id: "office".into(), ..Default::default() }))
            .await
            .unwrap();
        assert_eq!(group.home(&[1, 2, 3], |master| master == "zentrale").await.1, 3);
        // Also a master that only says goodbye: its clients never hear of an election that is over for it.
        let goodbye = DeviceOffline { device_id: "zentrale".into(), ..DeviceOffline::default() };
        group.ask(3, Intent::DeviceOffline(goodbye)).await.unwrap();
        let follower = group.cell.at(3).replica().state().meta().master.clone();
        assert!(!follower.is_empty() && follower != "zentrale", "{follower:?}");
        group.online(3, "zentrale", 100, Role::Master).await;
        assert_eq!(group.home(&[1, 2, 3], |master| master == "zentrale").await.1, 3);
        let elect = Elect {
            reason: ElectionReason::Manual.into(),
            method: ElectionMethod::Priority.into(),
            ..Elect::default()
        };
        let outcome = group.ask(1, Intent::Elect(elect)).await.unwrap();
        assert!(matches!(outcome.result, Some(Given::Election(e)) if e.new_master == "zentrale"));
        group.end().await;
    });
}

#[test]
fn an_election_by_shutdown_loses_fails_and_doubles_no_write() {
    simulated(2, async {
        let group = CoordinatedCells::new().await;
        group.online(1, "a", 80, Role::Master).await;
        group.online(2, "b", 60, Role::Client).await;
        group.online(3, "writer", 0, Role::Client).await;
        let writers: Vec<_> = [1, 2, 3]
            .into_iter()
            .map(|node| {
                let cluster = group.cell.at(node);
                tokio::spawn(async move {
                    let mut seqs = Vec::new();
                    for n in 0..300 {
                        seqs.push(seq(&cluster.propose(update("writer", n, "{}".into())).await.unwrap()));
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    seqs
                })
            })
            .collect();
        for turn in 0..4 {
            let (gone, node, next) = if turn % 2 == 0 { ("a", 1, "b") } else { ("b", 2, "a") };
            let shutdown = DeviceShutdown { device_id: gone.into(), reason: "evening".into() };
            group.ask(3, Intent::DeviceShutdown(shutdown)).await.unwrap();
            assert_eq!(group.cell.at(3).replica().state().meta().master, next, "the answer came before the end");
            group.home(&[1, 2, 3], |master| master == next).await;
            group.online(node, gone, 70, Role::Client).await;
        }
        let mut all = Vec::new();
        for writer in writers {
            all.extend(writer.await.unwrap());
        }
        all.sort_unstable();
        assert_eq!(all, (1..=900).collect::<Vec<u64>>());
        group.end().await;
    });
}

#[test]
fn leadership_that_was_moved_comes_back_to_the_masters_home() {
    simulated(3, async {
        let group = CoordinatedCells::new().await;
        group.online(2, "office", 80, Role::Master).await;
        group.home(&[1, 2, 3], |master| master == "office").await;
        let term = group.cell.at(1).replica().state().meta().term;
        for to in [1, 3, 1] {
            group.cell.nodes[&2].cluster.transfer_leader(NodeId(to), Duration::from_secs(2)).await.unwrap();
            assert_eq!(group.home(&[1, 2, 3], |master| master == "office").await.1, 2);
        }
        assert_eq!(group.cell.at(1).replica().state().meta().term, term, "nobody was elected for that");
        group.end().await;
    });
}

#[test]
fn the_masters_node_dies_again_and_again() {
    simulated(4, async {
        let mut group = CoordinatedCells::new().await;
        for node in [1, 2, 3] {
            group.online(node, &format!("till-{node}"), 20, Role::Client).await;
        }
        for turn in 0..6 {
            let (master, node) = group.home(&[1, 2, 3], |_| true).await;
            let rest = others(node);
            if turn % 2 == 0 {
                // Nobody listens there any more.
                group.stop(node).await;
            } else {
                // Nothing is heard from there any more.
                group.cell.router.isolate(node);
            }
            let since = tokio::time::Instant::now();
            let (next, home) = group.home(&rest, |now| now != master).await;
            assert!(since.elapsed() < Duration::from_secs(2), "{master} to {next} took {:?}", since.elapsed());
            assert_ne!(home, node);
            group.cell.router.heal();
            if turn % 2 == 0 {
                group.start(node).await;
            }
            group.online(node, &format!("till-{node}"), 20, Role::Client).await;
        }
        let log = group.log(1).await;
        assert!(log.len() >= 7, "{log:#?}");
        for pair in log.windows(2) {
            assert_eq!(pair[1].previous_master, pair[0].new_master, "{log:?}");
            assert!(pair[1].term > pair[0].term);
        }
        group.end().await;
    });
}

#[test]
fn devices_of_a_dead_node_are_offline_after_their_grace_unless_they_moved() {
    simulated(5, async {
        let mut group = CoordinatedCells::new().await;
        let (_, leader) = group.home(&[1, 2, 3], |_| true).await;
        let dead = leader % 3 + 1;
        group.online(dead, "stays", 20, Role::Client).await;
        group.online(dead, "moves", 20, Role::Client).await;
        group.stop(dead).await;
        group.online(leader, "moves", 20, Role::Client).await;
        let cluster = group.cell.at(leader);
        let active = |id: &str| cluster.replica().state().device(id).unwrap().is_active;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // The leader changes within the grace.
        let next = others(dead).into_iter().find(|id| *id != leader).unwrap();
        group.online(next, "office", 100, Role::Master).await;
        group.home(&others(dead), |master| master == "office").await;
        assert!(active("stays"), "within its grace");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((active("stays"), active("moves")), (false, true));
        group.start(dead).await;
        group.home(&[1, 2, 3], |master| master == "office").await;
        group.end().await;
    });
}

#[test]
fn a_minority_elects_nobody() {
    simulated(6, async {
        let group = CoordinatedCells::new().await;
        let (master, node) = group.home(&[1, 2, 3], |_| true).await;
        for id in others(node) {
            group.cell.router.isolate(id);
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(group.cell.at(node).replica().state().meta().master, master);
        let elect = Elect { reason: ElectionReason::Manual.into(), ..Elect::default() };
        let error = group.ask(node, Intent::Elect(elect)).await.unwrap_err();
        assert!([Code::Timeout, Code::NoMaster].contains(&error.code), "{error:?}");
        group.cell.router.heal();
        group.home(&[1, 2, 3], |_| true).await;
        group.end().await;
    });
}

/// The leader and a follower do not reach each other; a third node reaches both, and would grant the follower no vote.
#[test]
fn a_leader_that_a_follower_does_not_reach_gives_way_to_the_node_that_reaches_both() {
    for seed in 1..=5 {
        simulated(seed, async {
            let group = CoordinatedCells::new().await;
            let (_, leader) = group.home(&[1, 2, 3], |_| true).await;
            let (cut_off, third) = (others(leader)[0], others(leader)[1]);
            group.online(cut_off, "till-1", 0, Role::Client).await;
            // At any moment of the rounds in which nodes ask each other.
            tokio::time::sleep(Duration::from_millis(seed * 190)).await;
            group.cell.router.cut(leader, cut_off);
            let since = tokio::time::Instant::now();
            let within = tokio::time::timeout(Duration::from_secs(20), async {
                while group.cell.at(cut_off).status().leader != Some(NodeId(third)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            within.await.unwrap();
            assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
            let written = group.ask(cut_off, update("till-1", 1, "{}".into())).await;
            assert!(written.is_ok() && since.elapsed() < Duration::from_secs(3), "{written:?} {:?}", since.elapsed());
            // It stays there: the master's role has gone, too.
            let term = group.cell.at(third).status().term;
            tokio::time::sleep(Duration::from_secs(20)).await;
            let home = group.home(&[1, 2, 3], |_| true).await;
            assert_eq!((home.1, group.cell.at(third).status().term), (third, term));
            group.cell.router.heal();
            group.end().await;
        });
    }
}

/// Nobody else reaches a node that is down: that is no reason to move anything.
#[test]
fn a_leader_does_not_give_way_for_a_follower_that_is_down() {
    simulated(3, async {
        let mut group = CoordinatedCells::new().await;
        let (master, leader) = group.home(&[1, 2, 3], |_| true).await;
        let gone = others(leader)[0];
        let term = group.cell.at(leader).status().term;
        group.coordinators.remove(&gone).unwrap().cancel();
        group.cell.router.isolate(gone);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let left = [leader, others(leader)[1]];
        assert_eq!(group.home(&left, |id| id == master).await, (master.clone(), leader));
        assert_eq!(group.cell.at(leader).status().term, term);
        group.cell.router.heal();
        group.end().await;
    });
}
