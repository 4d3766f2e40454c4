//! The demo's summary: one screen.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::Outage;
use super::check::PromiseCheck;
use super::device::DeviceJournal;
use crate::client::rest::NodeStatus;

pub(super) struct DemoReport {
    pub journals: Vec<DeviceJournal>,
    pub checks: Vec<PromiseCheck>,
    pub statuses: Vec<NodeStatus>,
    pub outage: Outage,
    pub took: Duration,
}

impl DemoReport {
    pub(super) fn holds(&self) -> bool {
        self.checks.iter().all(|c| c.found.is_ok())
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::from("\n  device       transport   pushed  received  reconnects\n");
        for j in &self.journals {
            let (pushed, received) = (j.acked.len(), j.received.len());
            let transport = j.transport.name();
            let _ = writeln!(out, "  {:<12} {transport:<10} {pushed:>7} {received:>9} {:>11}", j.device, j.reconnects);
        }
        let _ = writeln!(out, "\n  node  role      changes  digest");
        for s in &self.statuses {
            let role = if s.leader == Some(s.node) { "leader" } else { "follower" };
            let back = if s.node == self.outage.killed as u64 { "  (killed and brought back)" } else { "" };
            let digest: String = s.digest.chars().take(16).collect();
            let _ = writeln!(out, "  {:<5} {role:<9} {:>7}  {digest}{back}", s.node, s.head_seq);
        }
        let _ = writeln!(out);
        for check in &self.checks {
            let _ = match &check.found {
                Ok(found) => writeln!(out, "  holds   {}: {found}", check.what),
                Err(found) => writeln!(out, "  FAILED  {}: {found}", check.what),
            };
        }
        let times: Vec<Instant> = self.journals.iter().flat_map(|j| j.acked.iter().map(|a| a.at)).collect();
        let gap = match longest_gap(times, self.outage.at) {
            Some(gap) => format!("{:.0} ms", gap.as_secs_f64() * 1_000.0),
            None => "unknown".into(),
        };
        let (killed, leader) = (self.outage.killed, self.outage.new_leader);
        let _ = writeln!(out, "\n  node {killed} was killed while it led; node {leader} took over");
        let _ = writeln!(out, "  writes were unavailable for {gap} (the longest time without an acknowledgement)");
        let end = if self.holds() { "everything held" } else { "NOT everything held" };
        let _ = writeln!(out, "  {end}; {:.1} s in all", self.took.as_secs_f64());
        out
    }
}

/// The longest time between two acknowledgements, of those that ended after `kill`.
fn longest_gap(mut times: Vec<Instant>, kill: Instant) -> Option<Duration> {
    times.sort_unstable();
    times.windows(2).filter(|w| w[1] >= kill).map(|w| w[1] - w[0]).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_that_of_the_kill() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let times = vec![at(0), at(900), at(1_000), at(1_400), at(1_410)];
        assert_eq!(longest_gap(times.clone(), at(1_005)), Some(Duration::from_millis(400)));
        assert_eq!(longest_gap(times, at(2_000)), None);
    }
}
