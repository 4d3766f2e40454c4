//! What will go wrong in a run, and its shape: drawn from the seed before anything starts, so that leaving one fault out
//! leaves the others as they are.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// Whom a fault meets. The leader is found when the fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SimScope {
    Leader,
    Node(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum SimFault {
    /// The process is gone for a while; what it wrote is there.
    Kill {
        who: SimScope,
    },
    /// The power is gone: so are writes that were not synced.
    PowerCut {
        who: SimScope,
    },
    /// All nodes at once.
    PowerCutAll,
    /// The leader loses its power, and is back before anybody misses it, on a slow network: whoever asks it for a read
    /// then asks somebody who does not know how far the cluster has come.
    Blink {
        ms: u64,
        delay_ms: u64,
    },
    /// A clean stop and start.
    Restart {
        who: SimScope,
    },
    /// One node hears nobody. Silently: nobody is told, messages wait or vanish.
    Isolate {
        who: SimScope,
        silent: bool,
    },
    /// Every node hears only itself.
    Shatter {
        silent: bool,
    },
    /// One direction of one link.
    OneWay {
        from: u64,
        to: u64,
    },
    /// Two nodes do not hear each other; all others hear both.
    Bridge {
        a: u64,
        b: u64,
        silent: bool,
    },
    /// Messages take up to so much longer, and overtake each other.
    Delay {
        ms: u64,
    },
    /// Of a million messages.
    Lose {
        of_million: u64,
    },
    Duplicate {
        of_million: u64,
    },
    SlowDisk {
        who: SimScope,
        ms: u64,
    },
    StuckDisk {
        who: SimScope,
    },
    Skew {
        who: SimScope,
        ms: i64,
    },
    /// All devices lose their connections, and again.
    Churn,
    Transfer {
        to: u64,
    },
    /// A new machine joins as a learner and gets its vote.
    AddNode,
    /// A node goes for good. In a cluster of three a new one under another id takes its place.
    RemoveNode {
        who: SimScope,
        /// Its machine has died before.
        dead: bool,
    },
}

impl SimFault {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::PowerCut { .. } => "power_cut",
            Self::PowerCutAll => "power_cut_all",
            Self::Blink { .. } => "blink",
            Self::Restart { .. } => "restart",
            Self::Isolate { silent: false, .. } => "isolate",
            Self::Isolate { silent: true, .. } => "isolate_silent",
            Self::Shatter { .. } => "shatter",
            Self::OneWay { .. } => "one_way",
            Self::Bridge { .. } => "bridge",
            Self::Delay { .. } => "delay",
            Self::Lose { .. } => "lose",
            Self::Duplicate { .. } => "duplicate",
            Self::SlowDisk { .. } => "slow_disk",
            Self::StuckDisk { .. } => "stuck_disk",
            Self::Skew { .. } => "clock_skew",
            Self::Churn => "churn",
            Self::Transfer { .. } => "transfer",
            Self::AddNode => "add_node",
            Self::RemoveNode { .. } => "remove_node",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SimTimedFault {
    pub at_ms: u64,
    pub for_ms: u64,
    pub fault: SimFault,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SimPlan {
    pub nodes: u64,
    /// Devices that keep a cursor.
    pub devices: u64,
    /// Devices that know times only.
    pub timed: u64,
    /// A queue longer than what is remembered of a device's `request_id`s.
    pub long_queue: bool,
    pub load_ms: u64,
    /// Entries between snapshots, and kept behind one.
    pub snapshot_every: u64,
    pub keep_entries: u64,
    /// What the log may have in bytes.
    pub log_bytes: u64,
    /// Changes kept; older ones are compacted.
    pub keep_changes: u64,
    /// The nodes begin with the program of before, and get the new one under load.
    #[serde(default)]
    pub upgrade: bool,
    pub faults: Vec<SimTimedFault>,
}

impl SimPlan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x706c_616e);
        let nodes = if rng.percent(80) { 3 } else { 5 };
        let snapshots = rng.percent(60);
        let mut plan = Self {
            nodes,
            devices: rng.between(2, 4),
            timed: 1 + seed % 2,
            long_queue: seed % 8 == 3,
            load_ms: rng.between(8_000, 14_000),
            snapshot_every: if snapshots { rng.between(40, 400) } else { 1_000_000 },
            keep_entries: rng.between(5, 60),
            log_bytes: if seed % 3 == 1 { 20_000 } else { 1 << 30 },
            keep_changes: if rng.percent(40) { rng.between(20, 400) } else { 1_000_000 },
            upgrade: seed % 4 == 2,
            faults: Vec::new(),
        };
        for _ in 0..rng.between(2, 8) {
            let at_ms = rng.between(1_000, plan.load_ms - 1_500);
            let for_ms = rng.between(50, 2_500);
            let fault = draw(&mut rng, nodes);
            plan.faults.push(SimTimedFault { at_ms, for_ms, fault });
        }
        plan.faults.sort_by_key(|timed| timed.at_ms);
        plan
    }

    /// Only these of the faults.
    pub(crate) fn only(mut self, keep: &[usize]) -> Self {
        let faults = self.faults.iter().enumerate().filter(|(at, _)| keep.contains(at)).map(|(_, timed)| *timed);
        self.faults = faults.collect();
        self
    }
}

/// Clocks that are nearer than this let their nodes serve.
const SERVING_SKEW_MS: i64 = tillsync::limits::NODE_CLOCK_APART_MS as i64 - 1_000;
const MONTH_MS: i64 = 30 * 86_400_000;

fn draw(rng: &mut Rng, nodes: u64) -> SimFault {
    let node = |rng: &mut Rng| rng.between(1, nodes);
    let who = |rng: &mut Rng| if rng.percent(50) { SimScope::Leader } else { SimScope::Node(node(rng)) };
    let pair = |rng: &mut Rng| {
        let a = node(rng);
        (a, (a - 1 + rng.between(1, nodes - 1)) % nodes + 1)
    };
    match rng.below(25) {
        0 | 1 => SimFault::Kill { who: who(rng) },
        2..=4 => SimFault::PowerCut { who: who(rng) },
        5 => SimFault::PowerCutAll,
        6 => SimFault::Restart { who: who(rng) },
        7..=9 => SimFault::Isolate { who: who(rng), silent: rng.percent(50) },
        10 => SimFault::Shatter { silent: rng.percent(50) },
        11 | 12 => {
            let (from, to) = pair(rng);
            SimFault::OneWay { from, to }
        }
        13 => {
            let (a, b) = pair(rng);
            SimFault::Bridge { a, b, silent: rng.percent(50) }
        }
        14 => SimFault::Delay { ms: rng.between(2, 60) },
        15 => SimFault::Lose { of_million: rng.between(1_000, 60_000) },
        16 => SimFault::Duplicate { of_million: rng.between(10_000, 300_000) },
        17 => match rng.percent(50) {
            true => SimFault::SlowDisk { who: who(rng), ms: rng.between(5, 200) },
            false => SimFault::StuckDisk { who: who(rng) },
        },
        18 => {
            let (who, ms) = (who(rng), rng.between(0, 120_000) as i64 - 60_000);
            let ms = match ms.abs() {
                // Such a node goes on serving, beside others whose clocks are right.
                0..=20_000 => ms % SERVING_SKEW_MS,
                20_001..=40_000 => ms,
                // The battery was empty, or the time server lied.
                _ => ms.signum() * MONTH_MS,
            };
            SimFault::Skew { who, ms }
        }
        19 => SimFault::Churn,
        20 => SimFault::AddNode,
        21 | 22 => SimFault::RemoveNode { who: who(rng), dead: rng.percent(40) },
        23 => SimFault::Blink { ms: rng.between(1, 60), delay_ms: rng.between(10, 60) },
        _ => SimFault::Transfer { to: node(rng) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_one_plan_and_all_faults_are_drawn() {
        assert_eq!(SimPlan::of(7), SimPlan::of(7));
        let drawn: BTreeSet<&str> =
            (0..200).flat_map(|seed| SimPlan::of(seed).faults).map(|timed| timed.fault.name()).collect();
        assert_eq!(drawn.len(), 20, "{drawn:?}");
        let plan = SimPlan::of(3);
        let kept = plan.clone().only(&[1]);
        assert_eq!(kept.faults, [plan.faults[1]]);
    }
}
