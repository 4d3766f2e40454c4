//! `tillsync cluster status`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use super::StatusArgs;
use crate::cli::{CliResult, CommandError, stop_signal};
use crate::client::rest::{MemberStatus, NodeStatus, RestClient};
use crate::client::{ClientError, ClusterTarget, NodeUrl};
use crate::limits;

const EVERY: Duration = Duration::from_secs(1);

type NodeStatuses = Vec<(NodeUrl, Result<NodeStatus, ClientError>)>;

pub async fn execute(args: StatusArgs) -> CliResult {
    let target = args.target.resolve()?;
    let rest = RestClient::new(&target.token)?;
    if args.watch {
        return tokio::select! {
            signal = stop_signal() => signal,
            () = watch(&rest, &target) => Ok(()),
        };
    }
    let answers = ask(&rest, &target).await;
    if args.json {
        let all: Vec<_> = answers
            .iter()
            .map(|(url, answer)| match answer {
                Ok(status) => serde_json::json!({"url": url.to_string(), "status": status}),
                Err(e) => serde_json::json!({"url": url.to_string(), "error": e.to_string()}),
            })
            .collect();
        say!("{:#}", serde_json::Value::Array(all));
    } else {
        say!("{}", table(&answers).trim_end());
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(CommandError::new("no node answered"));
    }
    Ok(())
}

async fn watch(rest: &RestClient, target: &ClusterTarget) {
    loop {
        let answers = ask(rest, target).await;
        clear();
        say!("{}", table(&answers).trim_end());
        tokio::time::sleep(EVERY).await;
    }
}

/// Clears the terminal and goes to its top left corner. A reader that went away is no reason to panic.
fn clear() {
    let _ = std::io::stdout().write_all(b"\x1b[2J\x1b[H");
}

async fn ask(rest: &RestClient, target: &ClusterTarget) -> NodeStatuses {
    let each = target.nodes.iter().map(|node| async move { (node.clone(), rest.status(node).await) });
    futures_util::future::join_all(each).await
}

/// The members as the node sees them that knows best: it has a quorum, and it leads if one of those asked does.
fn table(answers: &NodeStatuses) -> String {
    let there = answers.iter().filter_map(|(url, answer)| Some((url, answer.as_ref().ok()?)));
    let best = there.max_by_key(|(_, s)| (s.quorum, s.leader == Some(s.node), s.term, s.applied_index));
    let mut out = String::new();
    if let Some((url, best)) = best {
        let leader = best.leader.map_or_else(|| "none".into(), |leader| format!("node {leader}"));
        let quorum = if best.quorum { "" } else { "; NO QUORUM: nothing can be written" };
        let master = best.master.as_deref().unwrap_or("none");
        let _ = writeln!(
            out,
            "{url}: leader {leader}, term {}, master {master} (term {}), {} changes{quorum}\n",
            best.term, best.master_term, best.head_seq
        );
        let _ = writeln!(
            out,
            "{:<6}{:<9}{:>6}{:>10}{:>7}{:>10}{:>9}{:>9}  {:<18}{:<14}gateway",
            "node", "role", "term", "applied", "lag", "sessions", "ms", "clock", "digest", "master"
        );
        for node in &best.nodes {
            line(&mut out, node);
        }
        for node in &best.nodes {
            if let Some(ms) = node.clock_ahead_ms.filter(|ms| ms.unsigned_abs() > limits::NODE_CLOCK_OFF_MS) {
                let (id, way) = (node.node, if ms > 0 { "ahead of" } else { "behind" });
                let seconds = ms.unsigned_abs() as f64 / 1_000.0;
                let _ = writeln!(out, "node {id}: its CLOCK is {seconds:.1} s {way} most nodes': set it right");
            }
            if let Some(index) = node.differs_from {
                let (id, best) = (node.node, best.node);
                let _ =
                    writeln!(out, "node {id} DIFFERS: it holds other data than node {best} since log index {index}");
            }
        }
    }
    for (url, answer) in answers {
        match answer {
            Ok(status) => {
                if let Some(why) = &status.digest_verdict {
                    let _ = writeln!(out, "{url}: NOTHING CAN BE WRITTEN: {why}");
                }
            }
            Err(why) => {
                let _ = writeln!(out, "{url}: {why}");
            }
        }
    }
    out
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
        "{:<6}{:<9}{:>6}{:>10}{:>7}{:>10}{latency:>9}{clock:>9}  {digest:<18}{master:<14}{}",
        node.node,
        node.role,
        number(node.term),
        number(node.applied_index),
        number(node.lag),
        number(node.sessions),
        node.gateway
    );
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let lost = ClientError::Lost { node: url(7), why: "refused".into() };
        let shown = table(&vec![(url(2), Ok(status(2, false))), (url(1), Ok(status(1, true))), (url(7), Err(lost))]);
        assert!(shown.starts_with("http://h:1: leader node 1, term 2, master none"), "{shown}");
        assert!(shown.contains("LOST") && shown.contains("learner") && shown.contains("h:7"), "{shown}");
        assert!(!shown.contains("NO QUORUM"), "{shown}");
        assert!(table(&vec![(url(2), Ok(status(2, false)))]).contains("NO QUORUM"));
        assert!(!shown.contains("DIFFERS") && !shown.contains("NOTHING") && !shown.contains("CLOCK"), "{shown}");
        let mut two = status(2, true);
        two.nodes[1].differs_from = Some(17);
        two.digest_verdict = Some("no majority tells".into());
        (two.nodes[0].clock_ahead_ms, two.nodes[1].clock_ahead_ms) = (Some(-40), Some(-1_440));
        let shown = table(&vec![(url(2), Ok(two))]);
        assert!(shown.contains("node 3 DIFFERS: it holds other data than node 2 since log index 17"), "{shown}");
        assert!(shown.contains("node 3: its CLOCK is 1.4 s behind most nodes'"), "{shown}");
        assert!(shown.contains(" -0.0 s ") && shown.contains(" -1.4 s ") && !shown.contains("node 1: its"), "{shown}");
        assert!(shown.contains("http://h:2: NOTHING CAN BE WRITTEN: no majority tells"), "{shown}");
    }
}
