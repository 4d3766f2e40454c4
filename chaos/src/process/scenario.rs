//! What is done to a cluster, and what clients do meanwhile: a TOML file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tillsync::config::setting;
use tillsync::limits;

use super::kind::{FaultKind, Param};
use super::workload::Workload;
use crate::rng::Rng;

/// The longest run, in seconds.
const LONGEST: f64 = 3_600.0;
/// What makes a node this node of this run.
const OURS: &[&str] = &[
    "node_id",
    "cluster_name",
    "data_dir",
    "key_file",
    "gateway_listen",
    "gateway_tls_cert",
    "gateway_tls_key",
    "raft_listen",
    "raft_tls_ca",
    "raft_tls_cert",
    "raft_tls_key",
    "members",
    "join",
];
/// A clock may be off so far: a month and a day.
const LONGEST_SKEW_MS: u64 = 32 * 86_400_000;
/// Faults of one run, repeats counted.
const MOST_FAULTS: usize = 500;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub name: String,
    /// What it shows, for people.
    pub explained: String,
    #[serde(default = "three")]
    pub nodes: u64,
    pub duration_s: f64,
    #[serde(default)]
    pub load: Workload,
    #[serde(default)]
    pub slo: Slo,
    /// Attackers beside the load, for all of `duration_s`.
    pub attack: Option<AttackPlan>,
    /// Settings of every node, over those that a run gives them.
    #[serde(default)]
    pub settings: BTreeMap<String, SettingValue>,
    #[serde(default, rename = "fault")]
    pub faults: Vec<ScenarioFault>,
}

fn three() -> u64 {
    3
}

/// The value of a node's setting.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum SettingValue {
    Number(u64),
    Text(String),
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Who attacks, and what is expected of it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AttackPlan {
    /// Sockets that attackers hold at any time, over all nodes.
    pub sockets: u64,
    /// How long the load lasts before the attack, to compare with.
    pub honest_s: f64,
    /// Changes of two kilobytes that are written before all that, and twice as many small ones: the nodes of a shop that
    /// has been open for a while.
    pub filled: u64,
    /// How large the pictures of what is sold are, in KiB: one is written with every sixty prices, and one every half
    /// second while the shop is open. 0: the shop has none.
    pub picture_kb: u64,
    /// How long an honest operation may take; a sync as long for every 10,000 rows of it.
    pub slow_ms: u64,
    /// A node's memory under attack may be so many hundredths of what it is before.
    pub memory_percent: u64,
}

impl Default for AttackPlan {
    fn default() -> Self {
        Self { sockets: 2_000, honest_s: 60.0, filled: 40_000, picture_kb: 96, slow_ms: 3_000, memory_percent: 150 }
    }
}

impl AttackPlan {
    pub(super) const fn picture_bytes(&self) -> usize {
        self.picture_kb as usize * 1024
    }
}

/// What people wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Slo {
    /// The longest time without a successful write while a majority is there.
    pub gap_ms: u64,
}

impl Default for Slo {
    fn default() -> Self {
        Self { gap_ms: 5_000 }
    }
}

/// One `[[fault]]`. Which parameters a kind takes says [`FaultKind::params`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScenarioFault {
    pub at_s: f64,
    #[serde(default)]
    pub for_s: f64,
    pub kind: FaultKind,
    pub who: Option<FaultScope>,
    /// Strikes so many times, this far apart.
    #[serde(default = "once")]
    pub times: u32,
    #[serde(default)]
    pub every_s: f64,
    /// Nobody is told that the link is cut: what is sent waits.
    pub silent: Option<bool>,
    pub direction: Option<Direction>,
    pub latency_ms: Option<u64>,
    pub jitter_ms: Option<u64>,
    pub kbytes_per_s: Option<u64>,
    pub skew_ms: Option<i64>,
    pub every_ms: Option<u64>,
    /// What is still free on each disk when it is as full as it gets.
    pub leaves_mb: Option<u64>,
}

fn once() -> u32 {
    1
}

/// Which way of a node's links is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    In,
    Out,
}

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "FaultTarget")]
pub(super) enum FaultScope {
    Leader,
    /// A follower.
    One,
    /// As many nodes as the others can do without.
    Minority,
    Majority,
    All,
    /// The node at which the master is connected.
    Master,
    Node(u64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FaultTarget {
    Word(String),
    Number(u64),
}

impl TryFrom<FaultTarget> for FaultScope {
    type Error = String;

    fn try_from(named: FaultTarget) -> Result<Self, String> {
        let expected = "leader, one, minority, majority, all, master or a node's number";
        match named {
            FaultTarget::Number(id) if id > 0 => Ok(Self::Node(id)),
            FaultTarget::Number(_) => Err(format!("who: 0 is no node; expected {expected}")),
            FaultTarget::Word(word) => match word.as_str() {
                "leader" => Ok(Self::Leader),
                "one" => Ok(Self::One),
                "minority" => Ok(Self::Minority),
                "majority" => Ok(Self::Majority),
                "all" => Ok(Self::All),
                "master" => Ok(Self::Master),
                _ => Err(format!("who: {word:?} is unknown; expected {expected}")),
            },
        }
    }
}

impl fmt::Display for FaultScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::One => f.write_str("one"),
            Self::Minority => f.write_str("minority"),
            Self::Majority => f.write_str("majority"),
            Self::All => f.write_str("all"),
            Self::Master => f.write_str("master"),
            Self::Node(id) => write!(f, "{id}"),
        }
    }
}

/// A fault at its time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TimedFault {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: ScenarioFault,
    /// For what it draws.
    pub seed: u64,
}

impl Scenario {
    /// Reads a file's text; what is wrong is one sentence that names the field.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |at| text.get(..at.start).map_or(0, |head| head.matches('\n').count()));
            format!("line {}: {}", line + 1, error.message().trim().replace('\n', " "))
        })?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 60 || !self.name.chars().all(word) {
            return Err("name: 1 to 60 small letters, digits and underscores".into());
        }
        if self.explained.trim().is_empty() {
            return Err("explained: is empty".into());
        }
        if self.nodes != 3 && self.nodes != 5 {
            return Err(format!("nodes: must be 3 or 5, not {}", self.nodes));
        }
        if !(1.0..=LONGEST).contains(&self.duration_s) {
            return Err(format!("duration_s: must be 1 to {LONGEST}, not {}", self.duration_s));
        }
        self.load.check()?;
        if let Some(attack) = &self.attack {
            attack.check()?;
        }
        if !(100..=600_000).contains(&self.slo.gap_ms) {
            return Err(format!("slo.gap_ms: must be 100 to 600000, not {}", self.slo.gap_ms));
        }
        if let Some(key) = self.settings.keys().find(|key| setting(key).is_none() || OURS.contains(&key.as_str())) {
            return Err(format!("settings.{key}: is no setting of a node, or one that a run gives itself"));
        }
        for (at, fault) in self.faults.iter().enumerate() {
            fault.check(self).map_err(|why| format!("fault {} ({}): {why}", at + 1, fault.kind.name()))?;
        }
        let strikes: usize = self.faults.iter().map(|fault| fault.times as usize).sum();
        if strikes > MOST_FAULTS {
            return Err(format!("fault: {strikes} strikes are more than {MOST_FAULTS}"));
        }
        if self.nodes + self.spare() > limits::NODES as u64 {
            return Err(format!(
                "fault: with those that come under new numbers there are more than {} nodes",
                limits::NODES
            ));
        }
        if self.has(FaultKind::Moved) && self.faults.iter().any(|fault| fault.kind.is_of_links()) {
            return Err("fault: a node that moved is called past the proxies: no faults of links beside moved".into());
        }
        Ok(())
    }

    /// The same in another time: everything is stretched.
    pub(super) fn lasting(mut self, seconds: f64) -> Result<Self, String> {
        if !(1.0..=LONGEST).contains(&seconds) {
            return Err(format!("--seconds: must be 1 to {LONGEST}, not {seconds}"));
        }
        let by = seconds / self.duration_s;
        self.duration_s = seconds;
        for fault in &mut self.faults {
            fault.at_s *= by;
            fault.for_s *= by;
            fault.every_s *= by;
        }
        Ok(self)
    }

    /// When each fault strikes, in this order; the seed moves them a little.
    pub(super) fn timed(&self, rng: &mut Rng) -> Vec<TimedFault> {
        let mut all = Vec::new();
        for fault in &self.faults {
            for turn in 0..fault.times {
                let at = (fault.at_s + fault.every_s * f64::from(turn)) * 1_000.0;
                let at = Duration::from_millis(at as u64) + rng.millis(0, 300);
                let lasts = fault.for_s * (rng.between(85, 115) as f64) * 10.0;
                let lasts = Duration::from_millis(lasts as u64);
                all.push(TimedFault { at, lasts, fault: fault.clone(), seed: rng.next() });
            }
        }
        all.sort_by_key(|timed| timed.at);
        all
    }

    pub(super) fn has(&self, kind: FaultKind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind)
    }

    /// Nodes that come later, by changes of the members.
    pub(super) fn spare(&self) -> u64 {
        self.faults.iter().filter(|fault| fault.kind.takes_a_number()).map(|fault| u64::from(fault.times)).sum()
    }

    /// The faults in a line.
    pub(super) fn outline(&self) -> String {
        let one = |fault: &ScenarioFault| match fault.who {
            Some(who) => format!("{} {who}", fault.kind.name()),
            None => fault.kind.name().to_owned(),
        };
        let mut all: Vec<String> = self.faults.iter().map(one).collect();
        all.dedup();
        if self.attack.is_some() {
            all.push("attackers".into());
        }
        if all.is_empty() { "none".into() } else { all.join(", ") }
    }
}

impl AttackPlan {
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(format!("attack.{name}: must be {from} to {to}, not {value}"))
            }
        };
        within("sockets", self.sockets, 50, 20_000)?;
        within("filled", self.filled, 0, 1_000_000)?;
        within("picture_kb", self.picture_kb, 0, 200)?;
        within("slow_ms", self.slow_ms, 1, 60_000)?;
        within("memory_percent", self.memory_percent, 100, 1_000)?;
        if (1.0..=LONGEST).contains(&self.honest_s) {
            Ok(())
        } else {
            Err(format!("attack.honest_s: must be 1 to {LONGEST}, not {}", self.honest_s))
        }
    }
}

impl ScenarioFault {
    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        if !(0.0..=scenario.duration_s).contains(&self.at_s) {
            return Err(format!("at_s: must be within the run's {} s", scenario.duration_s));
        }
        if !(0.0..=600.0).contains(&self.for_s) {
            return Err("for_s: must be 0 to 600".into());
        }
        if !(1..=MOST_FAULTS as u32).contains(&self.times) {
            return Err(format!("times: must be 1 to {MOST_FAULTS}"));
        }
        if !(0.0..=LONGEST).contains(&self.every_s) || (self.times > 1 && self.every_s < 0.1) {
            return Err("every_s: is needed with times, and at least 0.1".into());
        }
        if let Some(who) = self.who
            && !self.kind.strikes(who)
        {
            return Err(format!("who: {who} cannot be struck by it"));
        }
        if let Some(FaultScope::Node(id)) = self.who
            && id > scenario.nodes
        {
            return Err(format!("who: there is no node {id} of {}", scenario.nodes));
        }
        let given = [
            (Param::Silent, self.silent.is_some()),
            (Param::Direction, self.direction.is_some()),
            (Param::LatencyMs, self.latency_ms.is_some()),
            (Param::JitterMs, self.jitter_ms.is_some()),
            (Param::KbytesPerS, self.kbytes_per_s.is_some()),
            (Param::SkewMs, self.skew_ms.is_some()),
            (Param::EveryMs, self.every_ms.is_some()),
            (Param::LeavesMb, self.leaves_mb.is_some()),
        ];
        if let Some((param, _)) = given.iter().find(|(param, given)| *given && !self.kind.params().contains(param)) {
            return Err(format!("{}: is no parameter of it", param.name()));
        }
        let most = |name: &str, value: Option<u64>, most: u64| match value {
            Some(value) if !(1..=most).contains(&value) => Err(format!("{name}: must be 1 to {most}, not {value}")),
            _ => Ok(()),
        };
        most("latency_ms", self.latency_ms, 10_000)?;
        most("jitter_ms", self.jitter_ms, 10_000)?;
        most("kbytes_per_s", self.kbytes_per_s, 10_000_000)?;
        most("every_ms", self.every_ms, 600_000)?;
        most("leaves_mb", self.leaves_mb, 1_000)?;
        most("skew_ms", self.skew_ms.map(i64::unsigned_abs), LONGEST_SKEW_MS)
    }
}

#[cfg(test)]
mod tests;
