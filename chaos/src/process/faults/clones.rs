//! A cloned machine: two processes under one number.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::cluster::folders::CloneProcess;
use super::folders::{sentence, tail};
use super::{AGAIN, Strike, Struck};

/// The older of two processes under one number ends within this time.
const ENDS: Duration = Duration::from_secs(15);
const CLONE: &str = "clone";

/// Which of the two is left.
enum OneLeft {
    Node,
    Clone,
    Both,
}

impl Strike<'_> {
    /// A copy of the node's folder is started beside it. Of the two the older one ends, and no other node is disturbed.
    pub(super) async fn cloned(&mut self, node: u64) -> Struck {
        let world = self.world;
        let cluster = &world.cluster;
        let _room = world.machine_room.lock().await;
        let running = self.rng.percent(50);
        let how = if running { "while it ran" } else { "while it was stopped" };
        self.say(format!("node {node} is cloned {how}"));
        if !running {
            self.stop(node).await;
        }
        cluster.copy_folder(node, CLONE)?;
        if !running {
            self.must_serve(node, "after it was cloned").await;
        }
        sleep(self.lasts).await;
        let elsewhere = self.rng.percent(50);
        let mut ends = "the clone ended";
        for _ in 0..2 {
            let from = cluster.said_len(node);
            let mut clone = cluster.start_clone(node, CLONE, elsewhere)?;
            match self.one_is_left(node, &mut clone).await {
                OneLeft::Node => clone.kill().await,
                OneLeft::Clone => {
                    let said = cluster.said_from(node, from);
                    if sentence(&said, &["copy from before", "new number"]).is_none() {
                        let why = tail(&said);
                        world.recorder.anomaly(format!("node {node} gave way to its clone without a word: {why}"));
                    }
                    clone.kill().await;
                    ends = "the node itself ended";
                    break;
                }
                OneLeft::Both => {
                    let why = tail(&clone.said());
                    world.recorder.anomaly(format!("a clone of node {node} runs beside it for {ENDS:?}: {why}"));
                    clone.kill().await;
                }
            }
        }
        let what = format!("node {node} was cloned {how}, and {ends}");
        if cluster.has_process(node) {
            return Ok(what);
        }
        Ok(format!("{what}; it came back as node {}", self.new_number(node).await?))
    }

    /// Waits until one of the two has ended. A clone that ended must have said why, and never have been ready.
    async fn one_is_left(&self, node: u64, clone: &mut CloneProcess) -> OneLeft {
        let (world, until) = (self.world, Instant::now() + ENDS);
        let mut served = false;
        while Instant::now() < until {
            if let Some(status) = clone.ended() {
                let said = clone.said();
                // What was copied while it was written may be damaged, too.
                let says = sentence(&said, &["copy from before", "new number"]);
                let damaged = sentence(&said, &["5001", "new number"]);
                if status.success() || (says.is_none() && damaged.is_none()) {
                    let why = tail(&said);
                    world.recorder.anomaly(format!("a clone of node {node} ended with {status} without a word: {why}"));
                }
                if served {
                    world.recorder.anomaly(format!("a clone of node {node} was ready to serve before it ended"));
                }
                return OneLeft::Node;
            }
            if !world.cluster.has_process(node) {
                return OneLeft::Clone;
            }
            served |= world.cluster.is_clone_ready(clone).await;
            sleep(AGAIN).await;
        }
        OneLeft::Both
    }
}
