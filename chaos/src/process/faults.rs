//! Doing to the cluster what the scenario says, and taking it back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::kind::FaultKind;
use super::network::{LinkCut, LinkEffect, NodePair};
use super::scenario::{Direction, FaultScope, ScenarioFault, TimedFault};
use super::world::ProcessWorld;
use crate::history::FaultWindow;
use crate::rng::Rng;

mod addresses;
mod clones;
mod disks;
mod folders;
mod members;
mod nodes;

/// How long a started node may take to serve; far more than it does.
const START: Duration = Duration::from_secs(30);
/// How long a node that was restarted under other faults is waited for. It may have no leader until they end.
const COME_BACK: Duration = Duration::from_secs(8);
/// How long a change of the members is tried.
const CHANGE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(100);
/// A node that is cut off so long knows.
const CUT_OFF: Duration = Duration::from_secs(4);
/// How long a fault waits for nodes that another one has.
const CLAIM: Duration = Duration::from_secs(12);

/// One fault, from its time on.
pub(super) async fn inject(world: Arc<ProcessWorld>, number: u64, timed: TimedFault, began: Instant) {
    sleep_until(began + timed.at).await;
    let from_us = world.recorder.us();
    let name = timed.fault.kind.name();
    let mut striking = Strike { world: &world, number, lasts: timed.lasts, rng: Rng::new(timed.seed) };
    let what = striking.act(&timed.fault).await;
    world.going_on.lock().remove(&number);
    match what {
        Ok(what) => {
            let (name, to_us) = (name.to_owned(), world.recorder.us());
            world.recorder.band(FaultWindow { name, what, from_us, to_us, majority: true });
        }
        Err(why) => world.note(format!("{name} did not strike: {why}")),
    }
}

struct Strike<'a> {
    world: &'a Arc<ProcessWorld>,
    number: u64,
    lasts: Duration,
    rng: Rng,
}

type Struck = Result<String, String>;

fn list(nodes: &[u64]) -> String {
    let names: Vec<String> = nodes.iter().map(u64::to_string).collect();
    format!("{} {}", if nodes.len() == 1 { "node" } else { "nodes" }, names.join(", "))
}

fn both(a: u64, b: u64) -> [NodePair; 2] {
    [(a, b), (b, a)]
}

impl Strike<'_> {
    /// For the progress line.
    fn say(&self, what: String) {
        self.world.going_on.lock().insert(self.number, what);
    }

    /// Returns when the fault is over.
    async fn act(&mut self, fault: &ScenarioFault) -> Struck {
        match fault.kind {
            FaultKind::RollingRestart => return self.rolling_restart().await,
            FaultKind::Bridge => return self.bridge(fault).await,
            FaultKind::Shatter => {
                let members = self.world.cluster.members();
                let pairs = members.iter().flat_map(|a| members.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
                return self.cuts(pairs.collect(), cut(fault), "all nodes were cut off from each other".into()).await;
            }
            FaultKind::Churn => return self.churn(fault).await,
            _ => {}
        }
        let nodes = self.aim(fault.who.unwrap_or(fault.kind.usually())).await?;
        match fault.kind {
            FaultKind::Kill
            | FaultKind::Restart
            | FaultKind::Pause
            | FaultKind::FullDisk
            | FaultKind::DisksFill
            | FaultKind::SlowDisk
            | FaultKind::ClockSkew
            | FaultKind::Members
            | FaultKind::OldCopy
            | FaultKind::Clone
            | FaultKind::Bitrot
            | FaultKind::Truncated
            | FaultKind::Refounded
            | FaultKind::Moved => {
                self.claim(&nodes).await?;
                let struck = self.nodes(fault, &nodes).await;
                nodes.iter().for_each(|id| self.world.cluster.release(*id));
                struck
            }
            FaultKind::Partition => {
                let others: Vec<u64> =
                    self.world.cluster.members().into_iter().filter(|id| !nodes.contains(id)).collect();
                let pairs = nodes.iter().flat_map(|a| others.iter().flat_map(|b| both(*a, *b))).collect();
                let how = if fault.silent == Some(true) { "silently " } else { "" };
                self.cuts(pairs, cut(fault), format!("{} {how}cut off from {}", list(&nodes), list(&others))).await
            }
            FaultKind::OneWay => self.one_way(fault, &nodes).await,
            FaultKind::Latency => {
                let (late, more) = (fault.latency_ms.unwrap_or(30), fault.jitter_ms.unwrap_or(10));
                let effect = LinkEffect {
                    latency: Duration::from_millis(late),
                    jitter: Duration::from_millis(more),
                    ..LinkEffect::default()
                };
                let what = format!("what {} sent took {late} to {} ms longer", list(&nodes), late + more);
                self.links(self.outwards(&nodes), effect, what).await
            }
            FaultKind::Bandwidth => {
                let rate = fault.kbytes_per_s.unwrap_or(200);
                let effect = LinkEffect { rate: rate * 1_000, ..LinkEffect::default() };
                self.links(self.outwards(&nodes), effect, format!("{} could send {rate} kB/s", list(&nodes))).await
            }
            FaultKind::Reset => {
                let what = format!("the connections of {} with other nodes were reset", list(&nodes));
                self.say(what.clone());
                self.world.cluster.network.reset(&self.outwards(&nodes));
                Ok(what)
            }
            FaultKind::Transfer => self.transfer(&nodes).await,
            _ => Err("it is unknown".into()),
        }
    }

    /// Waits a while for faults that have one of the nodes.
    async fn claim(&self, nodes: &[u64]) -> Result<(), String> {
        let cluster = &self.world.cluster;
        let until = Instant::now() + CLAIM;
        loop {
            let claimed: Vec<u64> = nodes.iter().copied().filter(|id| cluster.claim(*id)).collect();
            if claimed.len() == nodes.len() {
                return Ok(());
            }
            claimed.iter().for_each(|id| cluster.release(*id));
            if Instant::now() >= until {
                return Err(format!("another fault has {}", list(nodes)));
            }
            sleep(AGAIN).await;
        }
    }

    /// Every link on which one of the nodes sends.
    fn outwards(&self, nodes: &[u64]) -> Vec<NodePair> {
        let members = self.world.cluster.members();
        let pairs = nodes.iter().flat_map(|a| members.iter().map(|b| (*a, *b)));
        pairs.filter(|(a, b)| a != b).collect()
    }

    /// The nodes that are meant.
    async fn aim(&mut self, who: FaultScope) -> Result<Vec<u64>, String> {
        let mut members = self.world.cluster.members();
        let leader = || async { self.world.leader().await.ok_or_else(|| "nobody leads".to_owned()) };
        let nodes = match who {
            FaultScope::All => return Ok(members),
            FaultScope::Node(id) => vec![id],
            FaultScope::Leader => vec![leader().await?],
            FaultScope::Master => {
                let home = self.world.master_home().await;
                vec![home.ok_or("the master is connected nowhere")?]
            }
            FaultScope::One => {
                let leader = self.world.leader().await;
                members.retain(|id| Some(*id) != leader && !self.world.cluster.is_claimed(*id));
                self.rng.pick(&members).copied().into_iter().collect()
            }
            FaultScope::Minority | FaultScope::Majority => {
                let wanted = match who {
                    FaultScope::Minority => (members.len() - 1) / 2,
                    _ => members.len() / 2 + 1,
                };
                let mut chosen = Vec::new();
                while chosen.len() < wanted
                    && let Some(id) = self.rng.pick(&members).copied()
                {
                    members.retain(|other| *other != id);
                    chosen.push(id);
                }
                chosen
            }
        };
        if nodes.is_empty() { Err("there is nobody to strike".into()) } else { Ok(nodes) }
    }

    async fn links(&mut self, pairs: Vec<NodePair>, effect: LinkEffect, what: String) -> Struck {
        self.say(what.clone());
        let number = self.world.cluster.network.begin(pairs, effect);
        sleep(self.lasts).await;
        self.world.cluster.network.end(number);
        Ok(what)
    }

    /// The same, where some may hear no majority.
    async fn cuts(&mut self, pairs: Vec<NodePair>, effect: LinkEffect, what: String) -> Struck {
        self.say(what.clone());
        let number = self.world.cluster.network.begin(pairs, effect);
        sleep(self.lasts).await;
        if self.lasts >= CUT_OFF {
            self.must_be_cut_off().await;
        }
        self.world.cluster.network.end(number);
        Ok(what)
    }

    /// Nodes that hear no majority, as the proxies have it, must know by now: else the cut strikes nothing, and the run
    /// proves nothing.
    async fn must_be_cut_off(&self) {
        let cluster = &self.world.cluster;
        let members = cluster.members();
        for node in &members {
            let heard =
                members.iter().filter(|other| *other == node || !cluster.network.cut_off(*node, **other)).count();
            if heard * 2 > members.len() || !self.world.status(*node).await.is_some_and(|status| status.quorum) {
                continue;
            }
            self.world.recorder.anomaly(format!("node {node} has a quorum, and hears {heard} of {}", members.len()));
        }
    }

    async fn one_way(&mut self, fault: &ScenarioFault, nodes: &[u64]) -> Struck {
        let out = self.outwards(nodes);
        let (pairs, word) = match fault.direction.unwrap_or(Direction::Out) {
            Direction::Out => (out, "from"),
            Direction::In => (out.into_iter().map(|(a, b)| (b, a)).collect(), "to"),
        };
        let effect = LinkEffect { cut: LinkCut::Silent, ..LinkEffect::default() };
        self.links(pairs, effect, format!("nothing came {word} {}", list(nodes))).await
    }

    /// Two halves that hear each other through one node only.
    async fn bridge(&mut self, fault: &ScenarioFault) -> Struck {
        let mut left = self.world.cluster.members();
        let mut side = |count: usize, left: &mut Vec<u64>| {
            let mut chosen = Vec::new();
            while chosen.len() < count
                && let Some(id) = self.rng.pick(left).copied()
            {
                left.retain(|other| *other != id);
                chosen.push(id);
            }
            chosen
        };
        let half = (left.len() - 1) / 2;
        let (a, b) = (side(half, &mut left), side(half, &mut left));
        let pairs = a.iter().flat_map(|x| b.iter().flat_map(|y| both(*x, *y))).collect();
        self.links(pairs, cut(fault), format!("{} and {} heard each other through {}", list(&a), list(&b), list(&left)))
            .await
    }

    async fn churn(&mut self, fault: &ScenarioFault) -> Struck {
        let until = Instant::now() + self.lasts;
        self.say("all clients lose their connections".into());
        while Instant::now() < until {
            self.world.churn.send_modify(|n| *n += 1);
            sleep(Duration::from_millis(fault.every_ms.unwrap_or(300))).await;
        }
        Ok("all clients lost their connections, again and again".into())
    }
}

fn cut(fault: &ScenarioFault) -> LinkEffect {
    let cut = if fault.silent == Some(true) { LinkCut::Silent } else { LinkCut::Refused };
    LinkEffect { cut, ..LinkEffect::default() }
}
