//! What the machine shows others and reaches of them: its ports, its certificates, the other nodes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Diagnosis, Severity};
use crate::client::rest::RestClient;
use crate::client::{NodeUrl, Trust};
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::config::{Config, Member, RaftTimes};
use crate::model::time::iso;
use crate::tls::expires::Expires;
use crate::tls::files;

/// How long another node may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Connections that are timed.
const TRIALS: usize = 5;
/// Days: a certificate that ends sooner is named.
const SOON: u64 = 30;
/// What HTTP says of a clock is whole seconds.
const APART_MS: i64 = 2_000;

pub(super) async fn look(config: &Config) -> Vec<Diagnosis> {
    let mut diagnoses = Vec::new();
    for (setting, listen) in [("raft_listen", config.raft_listen), ("gateway_listen", config.gateway_listen)] {
        diagnoses.push(port(setting, listen).await);
    }
    let clock: SharedClock = Arc::new(SystemClock);
    if let Some(files) = &config.raft_tls {
        diagnoses.push(certificate(
            "raft_tls_cert",
            files::node(config.node_id.get(), files, clock.clone()).map(|tls| tls.current()),
        ));
    }
    if let Some(files) = &config.gateway_tls {
        diagnoses.push(certificate("gateway_tls_cert", files::gateway(files, clock).map(|tls| tls.current())));
    }
    let others: Vec<&Member> = config.members.iter().filter(|member| member.id != config.node_id).collect();
    let looked = others.iter().map(|member| other(config, member));
    diagnoses.extend(futures_util::future::join_all(looked).await.into_iter().flatten());
    let joined = config.join.iter().map(|raft| reach(format!("{raft} (join)"), raft, config.raft));
    diagnoses.extend(futures_util::future::join_all(joined).await);
    diagnoses
}

async fn port(setting: &'static str, listen: SocketAddr) -> Diagnosis {
    match TcpListener::bind(listen).await {
        Ok(_) => Diagnosis::new(Severity::Ok, "port", format!("{listen} is free ({setting})")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let words = format!("{listen} is in use, by this node if it runs already ({setting})");
            Diagnosis::new(Severity::Warn, "port", words)
        }
        Err(error) => {
            Diagnosis::new(Severity::Bad, "port", format!("nobody can listen on {listen} ({setting}): {error}"))
        }
    }
}

fn certificate<T: Expires>(setting: &str, read: Result<Arc<T>, crate::model::error::Error>) -> Diagnosis {
    let tls = match read {
        Ok(tls) => tls,
        Err(error) => return Diagnosis::new(Severity::Bad, "certificate", error.to_string()),
    };
    match tls.ends_before(SystemClock.now_ms().plus_ms(SOON * 86_400_000)) {
        Some(end) => Diagnosis::new(
            Severity::Warn,
            "certificate",
            format!("it ends on {} ({setting}): issue a new one", iso(end)),
        ),
        None => Diagnosis::new(Severity::Ok, "certificate", format!("it is good for {SOON} days and more ({setting})")),
    }
}

/// Another node: how far it is, and what its clock says.
async fn other(config: &Config, member: &Member) -> Vec<Diagnosis> {
    let (far, clock) = tokio::join!(
        reach(format!("node {} at {}", member.id, member.raft), &member.raft, config.raft),
        its_clock(config, member)
    );
    [Some(far), clock].into_iter().flatten().collect()
}

async fn reach(name: String, raft: &str, times: RaftTimes) -> Diagnosis {
    let mut trials = Vec::with_capacity(TRIALS);
    for _ in 0..TRIALS {
        let begun = Instant::now();
        match timeout(ANSWER, TcpStream::connect(raft)).await {
            Ok(Ok(_)) => trials.push(begun.elapsed()),
            Ok(Err(error)) => return unreached(&name, &error.to_string()),
            Err(_) => return unreached(&name, "no answer within 2 s"),
        }
    }
    trials.sort_unstable();
    judge_distance(&name, trials.get(TRIALS / 2).copied().unwrap_or_default(), times)
}

fn unreached(name: &str, why: &str) -> Diagnosis {
    Diagnosis::new(Severity::Warn, "node", format!("{name} is not reached: {why}. It may not run yet"))
}

fn judge_distance(name: &str, far: Duration, times: RaftTimes) -> Diagnosis {
    let said = format!("{name} answers after {:.1} ms", far.as_secs_f64() * 1e3);
    if far * 2 >= times.election_min {
        let words = format!("{said}: too far for raft_election_timeout_min_ms ({})", times.election_min.as_millis());
        return Diagnosis::new(Severity::Bad, "node", words);
    }
    if far * 2 >= times.heartbeat {
        return Diagnosis::new(
            Severity::Warn,
            "node",
            format!("{said}: every write of a device takes as long at least"),
        );
    }
    Diagnosis::new(Severity::Ok, "node", said)
}

/// `None`: it did not say. It may not run yet, or show a certificate that this one's settings do not name.
async fn its_clock(config: &Config, member: &Member) -> Option<Diagnosis> {
    let trust = match (&config.gateway_tls, &config.raft_tls) {
        (None, _) => None,
        (Some(_), Some(files)) => Some(Trust::read(&files.ca).ok()?),
        (Some(_), None) => return None,
    };
    let node = NodeUrl { authority: member.gateway.clone(), trust };
    let client = RestClient::new("").ok()?;
    let theirs = timeout(ANSWER, client.clock(&node)).await.ok()??;
    Some(judge_clock(member.id.get(), i64::try_from(theirs).ok()? - i64::try_from(SystemClock.now_ms().get()).ok()?))
}

fn judge_clock(node: u64, ahead_ms: i64) -> Diagnosis {
    if ahead_ms.abs() < APART_MS {
        return Diagnosis::new(Severity::Ok, "clock", format!("it is within two seconds of node {node}'s"));
    }
    let seconds = ahead_ms.unsigned_abs() / 1_000;
    let way = if ahead_ms > 0 { "behind" } else { "ahead of" };
    let words = format!("it is {seconds} s {way} node {node}'s: from 5 s on this node would serve nothing");
    Diagnosis::new(if seconds < 5 { Severity::Warn } else { Severity::Bad }, "clock", words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_clocks_are_judged_by_what_they_do_to_the_cluster() {
        let ms = Duration::from_millis;
        let times = RaftTimes { heartbeat: ms(50), election_min: ms(150), election_max: ms(300) };
        let judged = |far| judge_distance("node 2", ms(far), times).severity;
        assert_eq!(
            [judged(1), judged(24), judged(25), judged(74)],
            [Severity::Ok, Severity::Ok, Severity::Warn, Severity::Warn]
        );
        assert_eq!(judged(75), Severity::Bad);
        assert_eq!(judge_clock(2, -900).severity, Severity::Ok);
        let fast = judge_clock(2, -3_000);
        assert!(fast.severity == Severity::Warn && fast.words.contains("3 s ahead of node 2's"), "{fast:?}");
        let slow = judge_clock(2, 60_000);
        assert!(slow.severity == Severity::Bad && slow.words.contains("60 s behind"), "{slow:?}");
    }

    #[tokio::test]
    async fn a_port_in_use_and_a_node_that_does_not_run_are_named() {
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = held.local_addr().unwrap();
        let found = port("raft_listen", address).await;
        assert!(found.severity == Severity::Warn && found.words.contains("raft_listen"), "{found:?}");
        let ms = Duration::from_millis;
        let times = RaftTimes { heartbeat: ms(50), election_min: ms(5_000), election_max: ms(9_000) };
        let name = || "node 2".to_owned();
        assert_ne!(reach(name(), &address.to_string(), times).await.severity, Severity::Bad);
        drop(held);
        let gone = reach(name(), &address.to_string(), times).await;
        assert!(gone.severity == Severity::Warn && gone.words.contains("not reached"), "{gone:?}");
    }
}
