//! Faults of the nodes themselves: their processes, disks and clocks.

use std::time::Duration;

use tillsync::clock::{Clock, SystemClock};
use tillsync::ids::UnixMs;
use tillsync::limits;
use tillsync::model::time::parse_iso;
use tokio::time::{Instant, sleep};

use super::super::kind::FaultKind;
use super::super::monitor::start;
use super::super::scenario::ScenarioFault;
use super::super::stall::stall;
use super::{AGAIN, COME_BACK, START, Strike, Struck, list};

/// A clock that is so much further off than it may be is surely too far off.
const UNSURE: u64 = 1_000;
/// A write of the log that takes so long hangs.
const HANGS: Duration = Duration::from_millis(500);

impl Strike<'_> {
    pub(super) async fn nodes(&mut self, fault: &ScenarioFault, nodes: &[u64]) -> Struck {
        let world = self.world;
        let names = list(nodes);
        match fault.kind {
            FaultKind::Kill => {
                self.say(format!("{names} killed"));
                futures_util::future::join_all(nodes.iter().map(|id| world.cluster.kill(*id))).await;
                sleep(self.lasts).await;
                self.bring_back(nodes).await;
                Ok(format!("{names} killed"))
            }
            FaultKind::Restart => {
                self.say(format!("{names} restarted"));
                for id in nodes {
                    self.stop(*id).await;
                }
                sleep(self.lasts).await;
                self.bring_back(nodes).await;
                Ok(format!("{names} restarted"))
            }
            FaultKind::Pause => {
                self.say(format!("{names} held up"));
                nodes.iter().for_each(|id| world.cluster.hold(*id, true));
                sleep(self.lasts).await;
                nodes.iter().for_each(|id| world.cluster.hold(*id, false));
                self.bring_back(nodes).await;
                Ok(format!("{names} held up (SIGSTOP)"))
            }
            FaultKind::FullDisk => self.full_disk(nodes).await,
            FaultKind::DisksFill => self.disks_fill(fault, nodes).await,
            FaultKind::SlowDisk => self.slow_disk(fault, nodes).await,
            FaultKind::ClockSkew => self.clock_skew(fault, nodes).await,
            FaultKind::Refounded => self.refounded(nodes).await,
            _ => match nodes {
                [node] => self.one_node(fault.kind, *node).await,
                _ => Err("one node at a time".into()),
            },
        }
    }

    async fn one_node(&mut self, kind: FaultKind, node: u64) -> Struck {
        match kind {
            FaultKind::Members => self.members(node).await,
            FaultKind::OldCopy => self.old_copy(node).await,
            FaultKind::Clone => self.cloned(node).await,
            FaultKind::Bitrot | FaultKind::Truncated => self.damaged(kind, node).await,
            FaultKind::Moved => self.moved(node).await,
            _ => Err("it is unknown".into()),
        }
    }

    /// SIGTERM; a node that does not stop in order is trouble.
    pub(super) async fn stop(&self, node: u64) {
        match self.world.cluster.terminate(node).await {
            Ok(status) if status.success() => {}
            Ok(status) => self.world.recorder.anomaly(format!("node {node} was asked to stop and ended with {status}")),
            Err(why) => self.world.recorder.anomaly(why),
        }
    }

    pub(super) async fn bring_back(&self, nodes: &[u64]) {
        futures_util::future::join_all(nodes.iter().map(|id| start(self.world, *id, COME_BACK))).await;
    }

    pub(super) async fn rolling_restart(&mut self) -> Struck {
        for id in self.world.cluster.members() {
            if !self.world.cluster.claim(id) {
                return Err(format!("another fault has node {id}"));
            }
            self.say(format!("node {id} restarted, then the next"));
            self.stop(id).await;
            let serves = start(self.world, id, START).await;
            self.world.cluster.release(id);
            if !serves {
                self.world.recorder.anomaly(format!("node {id} does not serve {START:?} after its restart"));
            }
        }
        Ok("all nodes restarted, one after the other".into())
    }

    async fn slow_disk(&mut self, fault: &ScenarioFault, nodes: &[u64]) -> Struck {
        let held = Duration::from_millis(fault.latency_ms.unwrap_or(40));
        let what = format!("{} could not write the log for {} ms at a time", list(nodes), held.as_millis());
        self.say(what.clone());
        let end = std::time::Instant::now() + self.lasts;
        let mut stalls = Vec::new();
        for id in nodes {
            // A disk that hangs is no part of a majority.
            self.world.cluster.set_serving(*id, held < HANGS);
            let pid = self.world.cluster.pid(*id).ok_or_else(|| format!("node {id} does not run"))?;
            stalls.push(tokio::task::spawn_blocking(move || stall(pid, held, end)));
        }
        let mut times = 0;
        for stalled in stalls {
            times += stalled.await.map_err(|error| error.to_string())??;
        }
        self.bring_back(nodes).await;
        Ok(format!("{what}, {times} times"))
    }

    async fn clock_skew(&mut self, fault: &ScenarioFault, nodes: &[u64]) -> Struck {
        let skew = fault.skew_ms.unwrap_or(30_000);
        self.say(format!("the clock of {} is {skew} ms off", list(nodes)));
        let set = |seconds: f64| {
            for id in nodes {
                let path = self.world.cluster.clock_of(*id);
                std::fs::write(&path, format!("{seconds:+.3}"))
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
            Ok::<_, String>(())
        };
        set(skew as f64 / 1_000.0)?;
        let members = self.world.cluster.members().len();
        // Most of the nodes together are right, whatever they say.
        let refuses = skew.unsigned_abs() > limits::NODE_CLOCK_APART_MS + UNSURE && nodes.len() * 2 < members;
        let moved = if refuses { self.serve_nothing(nodes).await } else { self.clocks_moved(nodes, skew).await };
        if moved && refuses {
            let until = Instant::now() + self.lasts;
            while Instant::now() < until {
                for id in nodes {
                    if self.world.cluster.is_ready(*id).await {
                        let why = format!("node {id} is ready to serve while its clock is {skew} ms off");
                        self.world.recorder.anomaly(why);
                    }
                }
                sleep(AGAIN).await;
            }
        } else if moved {
            sleep(self.lasts).await;
        }
        set(0.0)?;
        if !moved {
            return Err(format!("the clock of {} did not move", list(nodes)));
        }
        if refuses {
            for id in nodes {
                if !self.world.cluster.serves(*id, COME_BACK).await && self.world.cluster.majority() {
                    let why = format!("node {id} does not serve {COME_BACK:?} after its clock was right again");
                    self.world.recorder.anomaly(why);
                }
            }
        }
        Ok(format!("the clock of {} was {skew} ms off", list(nodes)))
    }

    /// Whether the nodes say that they serve nothing because of their clocks.
    async fn serve_nothing(&self, nodes: &[u64]) -> bool {
        let until = Instant::now() + COME_BACK;
        while Instant::now() < until {
            let mut all = true;
            for id in nodes {
                self.world.cluster.set_serving(*id, false);
                let answer = self.world.ask(*id, "GET", "/readyz", None, Duration::from_secs(1)).await;
                all &= answer.is_err_and(|why| why.to_string().contains("this node's clock"));
            }
            if all {
                return true;
            }
            sleep(AGAIN).await;
        }
        false
    }

    /// Whether the nodes' own time is as far off as it should be.
    async fn clocks_moved(&self, nodes: &[u64], skew: i64) -> bool {
        let until = Instant::now() + COME_BACK;
        while Instant::now() < until {
            let mut moved = true;
            for id in nodes {
                let answer = self.world.ask(*id, "GET", "/system/cluster", None, Duration::from_secs(1)).await;
                let answer: serde_json::Value = serde_json::from_slice(&answer.unwrap_or_default()).unwrap_or_default();
                let theirs = answer["timestamp"].as_str().and_then(parse_iso).map_or(0, UnixMs::get);
                let off = i64::try_from(theirs).unwrap_or(0) - i64::try_from(SystemClock.now_ms().get()).unwrap_or(0);
                moved &= (off - skew).abs() < 3_000;
            }
            if moved {
                return true;
            }
            sleep(AGAIN).await;
        }
        false
    }
}
