//! `tillsync cluster status`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::StatusArgs;
use crate::cli::{CliResult, CommandError, stop_signal};
use crate::client::rest::{MemberStatus, NodeStatus, RestClient};
use crate::client::{ClientError, NodeUrl};
use crate::ids::RaftTerm;
use crate::limits;
use crate::storage::room::megabytes;

const EVERY: Duration = Duration::from_secs(1);
/// How long one node may take to answer: the others' answers are not held back for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of one node that was asked.
struct AskedNode {
    url: NodeUrl,
    /// The last answer, and when it came.
    answer: Option<(Instant, NodeStatus)>,
    /// Why there was none the last time.
    failed: Option<ClientError>,
}

pub(super) async fn execute(args: StatusArgs) -> CliResult {
    let target = args.target.resolve()?;
    let rest = RestClient::new(&target.token)?;
    let unasked = |url: &NodeUrl| AskedNode { url: url.clone(), answer: None, failed: None };
    let mut nodes: Vec<AskedNode> = target.nodes.iter().map(unasked).collect();
    if args.watch {
        return tokio::select! {
            signal = stop_signal() => signal,
            () = watch(&rest, &mut nodes) => Ok(()),
        };
    }
    ask(&rest, &mut nodes).await;
    if args.json {
        let all: Vec<_> = nodes
            .iter()
            .map(|node| match (&node.answer, &node.failed) {
                (Some((_, status)), None) => serde_json::json!({"url": node.url.to_string(), "status": status}),
                (_, why) => {
                    let why = why.as_ref().map(ToString::to_string);
                    serde_json::json!({"url": node.url.to_string(), "error": why})
                }
            })
            .collect();
        say!("{:#}", serde_json::Value::Array(all));
    } else {
        say!("{}", table(&nodes, Instant::now()).trim_end());
    }
    match best(&nodes) {
        None => Err(CommandError::new("no node answered")),
        Some((_, _, status)) if !status.quorum => Err(CommandError::new("the cluster has no quorum")),
        Some(_) => Ok(()),
    }
}

async fn watch(rest: &RestClient, nodes: &mut [AskedNode]) {
    loop {
        let began = Instant::now();
        ask(rest, nodes).await;
        clear();
        say!("{}", table(nodes, Instant::now()).trim_end());
        tokio::time::sleep_until((began + EVERY).into()).await;
    }
}

/// Clears the terminal and goes to its top left corner. A reader that went away is no reason to panic.
fn clear() {
    let _ = std::io::stdout().write_all(b"\x1b[2J\x1b[H");
}

/// Asks all at once.
async fn ask(rest: &RestClient, nodes: &mut [AskedNode]) {
    let each = nodes.iter_mut().map(|node| async move {
        let answered = tokio::time::timeout(PATIENCE, rest.status(&node.url)).await;
        let silent = |_| {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            Err(ClientError::Lost { node: node.url.clone(), why })
        };
        match answered.unwrap_or_else(silent) {
            Ok(status) => {
                node.answer = Some((Instant::now(), status));
                node.failed = None;
            }
            Err(why) => node.failed = Some(why),
        }
    });
    futures_util::future::join_all(each).await;
}

/// The node that knows best: it answered now, it has a quorum, and it leads if one of those asked does.
fn best(nodes: &[AskedNode]) -> Option<(&NodeUrl, Instant, &NodeStatus)> {
    let answered = nodes.iter().filter_map(|node| {
        let (at, status) = node.answer.as_ref()?;
        Some((node.failed.is_none(), (&node.url, *at, status)))
    });
    let newest = |(now, (_, at, s)): &(bool, (&NodeUrl, Instant, &NodeStatus))| {
        let at = if *now { None } else { Some(*at) };
        (*now, at, s.quorum, s.leader == Some(s.node), s.term, s.applied_index)
    };
    answered.max_by_key(newest).map(|(_, best)| best)
}

/// The members as the node sees them that knows best.
fn table(nodes: &[AskedNode], now: Instant) -> String {
    let mut out = String::new();
    if let Some((url, at, best)) = best(nodes) {
        let leader = best.leader.map_or_else(|| "none".into(), |leader| format!("node {leader}"));
        let quorum = if best.quorum { "" } else { "; NO QUORUM: nothing can be written" };
        let master = best.master.as_deref().unwrap_or("none");
        let _ = writeln!(
            out,
            "{url}{}: leader {leader}, term {}, master {master} (term {}), {} changes{quorum}\n",
            age(now - at),
            best.term,
            best.master_term,
            best.head_seq
        );
        let _ = writeln!(
            out,
            "{:<6}{:<9}{:>6}{:>10}{:>7}{:>10}{:>9} {:>8}  {:<18}{:<14}gateway",
            "node", "role", "term", "applied", "lag", "sessions", "ms", "clock", "digest", "master"
        );
        for node in &best.nodes {
            line(&mut out, node);
        }
        if let Some(line) = upgrade(best) {
            let _ = writeln!(out, "{line}");
        }
        for node in &best.nodes {
            if let Some(ms) = node.clock_ahead_ms.filter(|ms| ms.unsigned_abs() > limits::NODE_CLOCK_OFF_MS) {
                let (id, way) = (node.node, if ms > 0 { "ahead of" } else { "behind" });
                let seconds = ms.unsigned_abs() as f64 / 1_000.0;
                let _ = writeln!(out, "node {id}: its CLOCK is {seconds:.1} s {way} most nodes': set it right");
            }
            if let (Some(free), Some(room @ ("low" | "full"))) = (node.disk_free, node.disk.as_deref()) {
                let (id, free) = (node.node, megabytes(free));
                let _ = writeln!(out, "node {id}: its DISK is {room}: {free} MiB are left: make room");
            }
            if let Some(index) = node.differs_from {
                let (id, best) = (node.node, best.node);
                let _ =
                    writeln!(out, "node {id} DIFFERS: it holds other data than node {best} since log index {index}");
            }
        }
        backups(&mut out, &best.nodes);
    }
    for AskedNode { url, answer, failed } in nodes {
        match (answer, failed) {
            (Some((at, _)), Some(why)) => {
                let _ = writeln!(out, "{why}; its last answer came {} s ago", (now - *at).as_secs());
            }
            (Some((_, status)), None) => {
                if let Some(why) = &status.digest_verdict {
                    let _ = writeln!(out, "{url}: NOTHING CAN BE WRITTEN: {why}");
                }
                if let Some(why) = &status.disk_verdict {
                    let _ = writeln!(out, "{url}: NOT ALL CAN BE WRITTEN: {why}");
                }
            }
            (None, Some(why)) => {
                let _ = writeln!(out, "{why}");
            }
            (None, None) => {}
        }
    }
    out
}

/// What is left of an upgrade, if there is something.
fn upgrade(status: &NodeStatus) -> Option<String> {
    let agreed = status.cluster_version?;
    let knows = |node: &MemberStatus| node.knows_version.unwrap_or(agreed);
    let newest = status.nodes.iter().map(knows).max().filter(|newest| *newest > agreed)?;
    let behind: Vec<String> =
        status.nodes.iter().filter(|node| knows(node) < newest).map(|node| node.node.to_string()).collect();
    Some(match behind.is_empty() {
        true => format!("cluster version {agreed}; every node knows {newest}: tillsync cluster finalize"),
        false => format!("cluster version {agreed}; being upgraded to {newest}: node {} not yet", behind.join(", ")),
    })
}

/// How old an answer is, if it is not of now.
fn age(age: Duration) -> String {
    if age < EVERY * 2 { String::new() } else { format!(" ({} s ago)", age.as_secs()) }
}

/// How the backups go that the cluster takes by itself, if it does.
fn backups(out: &mut String, nodes: &[MemberStatus]) {
    let known = || nodes.iter().filter_map(|node| Some((node.node, node.backup.as_ref()?)));
    let newest =
        |times: &mut dyn Iterator<Item = &String>| times.max().map_or("nothing is known", String::as_str).to_owned();
    let Some((id, on_duty)) = known().find(|(_, backup)| backup.on_duty).or_else(|| known().next()) else { return };
    let covered = newest(&mut known().filter_map(|(_, backup)| backup.covered_until.as_ref()));
    let proved = newest(&mut known().filter_map(|(_, backup)| backup.proved_at.as_ref()));
    let by = if on_duty.on_duty { format!("by node {id}") } else { "by no node at the moment".to_owned() };
    let _ = writeln!(out, "backups, {by}: all is there until {covered}; proved last: {proved}");
    for (id, backup) in known() {
        if let Some(why) = &backup.failed {
            let _ = writeln!(out, "node {id}: BACKUPS FAIL: {why}");
        }
    }
}

fn line(out: &mut String, node: &MemberStatus) {
    let number = |value: Option<u64>| value.map_or_else(|| "?".into(), |v| v.to_string());
    let latency = match node.latency_ms {
        _ if !node.reachable => "LOST".into(),
        Some(ms) => format!("{ms:.1}"),
        None => "?".into(),
    };
    let clock = node.clock_ahead_ms.map_or_else(|| "?".into(), |ms| format!("{:+.1} s", ms as f64 / 1_000.0));
    let digest: String = node.digest.as_deref().unwrap_or("?").chars().take(16).collect();
    let master = node.master.as_deref().unwrap_or("none");
    let _ = writeln!(
        out,
        "{:<6}{:<9}{:>6}{:>10}{:>7}{:>10}{latency:>9} {clock:>8}  {digest:<18}{master:<14}{}",
        node.node,
        node.role,
        number(node.term.map(RaftTerm::get)),
        number(node.applied_index),
        number(node.lag),
        number(node.sessions),
        node.gateway
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::rest::ScheduledBackups;

    #[test]
    fn the_node_that_knows_best_is_shown_and_the_silent_are_named() {
        let member = |node: u64, role: &str, reachable| {
            serde_json::json!({"node": node, "role": role, "raft": "h:1", "gateway": format!("h:{node}"),
                "reachable": reachable, "latency_ms": 1.0, "lag": 3, "term": 2})
        };
        let status = |node: u64, quorum: bool| -> NodeStatus {
            serde_json::from_value(serde_json::json!({"node": node, "leader": 1, "term": 2, "applied_index": 9,
                "digest": "d", "digest_index": 9, "master": null, "master_term": 0, "head_seq": 4, "sessions": 0,
                "peers": [], "quorum": quorum, "voters": [1, 2, 3], "version": "v",
                "nodes": [member(node, "leader", true), member(3, "learner", false)]}))
            .unwrap()
        };
        let url = |port: u16| NodeUrl::plain(format!("h:{port}"));
        let now = Instant::now();
        let told =
            |port: u16, status: NodeStatus| AskedNode { url: url(port), answer: Some((now, status)), failed: None };
        let lost = |port: u16| ClientError::Lost { node: url(port), why: "refused".into() };
        let mut nodes = vec![
            told(2, status(2, false)),
            told(1, status(1, true)),
            AskedNode { url: url(7), answer: None, failed: Some(lost(7)) },
        ];
        let shown = table(&nodes, now);
        assert!(shown.starts_with("http://h:1: leader node 1, term 2, master none"), "{shown}");
        assert!(shown.contains("LOST") && shown.contains("learner") && shown.contains("http://h:7 cannot"), "{shown}");
        assert!(!shown.contains("NO QUORUM"), "{shown}");
        assert!(table(&[told(2, status(2, false))], now).contains("NO QUORUM"));
        assert!(!shown.contains("backups") && !shown.contains("DISK") && !shown.contains("NOT ALL"), "{shown}");
        assert!(!shown.contains("DIFFERS") && !shown.contains("NOTHING") && !shown.contains("CLOCK"), "{shown}");
        let mut two = status(2, true);
        two.nodes[1].differs_from = Some(17);
        two.digest_verdict = Some("no majority tells".into());
        (two.nodes[0].clock_ahead_ms, two.nodes[1].clock_ahead_ms) = (Some(-40), Some(-1_440));
        (two.nodes[0].disk_free, two.nodes[0].disk) = (Some(190 << 20), Some("full".into()));
        (two.nodes[1].disk_free, two.nodes[1].disk) = (Some(9_000 << 20), Some("plenty".into()));
        two.disk_verdict = Some("disks are low".into());
        let scheduled = |covered: &str, on_duty, failed: Option<&str>| ScheduledBackups {
            covered_until: Some(covered.into()),
            proved_at: None,
            on_duty,
            failed: failed.map(Into::into),
        };
        two.nodes[0].backup = Some(scheduled("2026-11-30T13:00:00.000Z", false, None));
        two.nodes[1].backup = Some(scheduled("2026-11-30T14:00:00.000Z", true, Some("the disk is full")));
        let shown = table(&[told(2, two)], now);
        assert!(
            shown.contains("node 2: its DISK is full: 190 MiB are left") && !shown.contains("3: its DISK"),
            "{shown}"
        );
        let line = "backups, by node 3: all is there until 2026-11-30T14:00:00.000Z; proved last: nothing is known\n\
                    node 3: BACKUPS FAIL: the disk is full\n";
        assert!(shown.contains(line), "{shown}");
        assert!(shown.contains("http://h:2: NOT ALL CAN BE WRITTEN: disks are low"), "{shown}");
        assert!(shown.contains("node 3 DIFFERS: it holds other data than node 2 since log index 17"), "{shown}");
        assert!(shown.contains("node 3: its CLOCK is 1.4 s behind most nodes'"), "{shown}");
        assert!(shown.contains(" -0.0 s ") && shown.contains(" -1.4 s ") && !shown.contains("node 1: its"), "{shown}");
        assert!(shown.contains("http://h:2: NOTHING CAN BE WRITTEN: no majority tells"), "{shown}");

        let mut upgraded = status(2, true);
        upgraded.cluster_version = Some(1);
        for node in &mut upgraded.nodes {
            node.knows_version = Some(2);
        }
        let line = "cluster version 1; every node knows 2: tillsync cluster finalize";
        assert_eq!(upgrade(&upgraded).as_deref(), Some(line));
        upgraded.nodes[1].knows_version = Some(1);
        assert_eq!(upgrade(&upgraded).as_deref(), Some("cluster version 1; being upgraded to 2: node 3 not yet"));
        upgraded.cluster_version = Some(2);
        assert_eq!(upgrade(&upgraded), None);

        // What is old is not shown as if it were of now, and an answer of now goes before it.
        let later = now + Duration::from_secs(9);
        nodes[1].failed = Some(lost(1));
        nodes[0].answer = Some((later, status(2, false)));
        let shown = table(&nodes, later);
        assert!(shown.starts_with("http://h:2: leader") && shown.contains("NO QUORUM"), "{shown}");
        assert!(shown.contains("http://h:1 cannot be reached: refused; its last answer came 9 s ago"), "{shown}");
        nodes[0].failed = Some(lost(2));
        let shown = table(&nodes, later + Duration::from_secs(3));
        assert!(shown.starts_with("http://h:2 (3 s ago): leader"), "{shown}");
    }
}
