//! The cluster's health. None of these endpoints waits for a quorum.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::devices::unexpected;
use super::{OrFail, QueryFields, RequestBody, RestError, RestResult, answer};
use crate::cluster::peers::shared_room::room_said;
use crate::cluster::{NodeInfo, PeerState};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, push_object};
use crate::gateway::protocol::{BadPayload, ServerEvent, election};
use crate::gateway::session::elect as elect_command;
use crate::ids::{LogIndex, NodeId};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::model::version::of_told;
use crate::proto::ElectionReason;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;

/// Entries that this node may be behind the leader and still count as synced.
const BEHIND: u64 = 1_000;

/// `GET /system/health`
pub(super) async fn health(State(gateway): State<Arc<Gateway>>, _: Caller) -> RestResult {
    let status = gateway.cluster.status();
    let (master, active, applied) = {
        let state = gateway.cluster.replica().state();
        let master = state.master().filter(|d| d.is_active).map(|d| d.device_id.clone());
        (master, state.active_devices(), LogIndex(state.applied().index))
    };
    let whole = master.is_some() && status.peers.iter().all(|p| p.reachable);
    let health = match (status.quorum, whole) {
        (false, _) => "unhealthy",
        (true, false) => "degraded",
        (true, true) => "healthy",
    };
    let sync_status = match (status.quorum, applied.plus(BEHIND) >= status.last_log_index) {
        (false, _) => "error",
        (true, false) => "syncing",
        (true, true) => "synced",
    };
    Ok(answer(|o| {
        o.text("status", health).text_or_null("master_device", master.as_deref().unwrap_or_default());
        o.number("active_devices", active as u64).text("sync_status", sync_status);
        o.time("last_check", gateway.now_ms());
    }))
}

/// `GET /system/network`; with `?node=N` only if this node can reach that one, else 1002.
pub(super) async fn network(State(gateway): State<Arc<Gateway>>, _: Caller, asked: QueryFields) -> RestResult {
    let status = gateway.cluster.status();
    if let Some(node) = asked.get("node") {
        let asked = node.parse().ok().map(NodeId);
        let peer = asked.and_then(|node| status.peers.iter().find(|peer| peer.node == node));
        let me = asked == Some(gateway.cluster.node_id());
        match peer {
            Some(peer) if !peer.reachable => {
                let why = format!("node {} cannot be reached from here", peer.node);
                return Err(RestError::new(&gateway, Error::new(Code::PeerUnreachable, why)));
            }
            None if !me => {
                let bad = BadPayload::field("node", "is not a node of this cluster");
                return Err(RestError::bad(&gateway, Code::InvalidData, bad));
            }
            _ => {}
        }
    }
    let reached = status.peers.iter().filter(|p| p.reachable).count();
    let network = match (status.quorum, reached == status.peers.len()) {
        (true, true) => "connected",
        (true, false) => "partitioned",
        (false, _) => "disconnected",
    };
    let silent = status.peers.iter().filter_map(|p| p.silent_for).min().unwrap_or(Duration::ZERO);
    let worst = status.peers.iter().filter_map(|p| p.latency).max().unwrap_or(Duration::ZERO);
    // One time for all of the answer.
    let now_ms = gateway.now_ms();
    Ok(answer(|o| {
        o.text("network_status", network).number("active_connections", gateway.hub.sessions() as u64);
        o.time("last_heartbeat", now_ms.saturating_sub(silent.as_millis() as u64));
        o.raw("network_latency", milliseconds(worst).as_bytes()).flag("quorum", status.quorum);
        o.array("peers", &status.peers, |out, peer| push_object(out, |o| fill_peer(o, peer, now_ms)));
        let unreachable = status.peers.iter().filter(|p| !p.reachable);
        o.array("unreachable", unreachable, |out, p| out.extend_from_slice(p.node.to_string().as_bytes()));
    }))
}

/// `GET /system/cluster`: this node's view, for operators.
pub(super) async fn cluster(State(gateway): State<Arc<Gateway>>, _: Caller) -> RestResult {
    let status = gateway.cluster.status();
    let nodes = gateway.cluster.nodes();
    // Digest and index under one lock: they belong together.
    let (meta, index, digest, version) = {
        let state = gateway.cluster.replica().state();
        (state.meta().clone(), state.applied().index, state.digest(), state.cluster_version())
    };
    Ok(answer(|o| {
        o.number("node", gateway.cluster.node_id());
        match status.leader {
            Some(leader) => o.number("leader", leader),
            None => o.raw("leader", b"null"),
        };
        o.number("term", status.term).number("applied_index", gateway.cluster.replica().applied_index());
        o.text("digest", &digest).number("digest_index", index).text_or_null("master", &meta.master);
        o.number("master_term", meta.master_term()).number("head_seq", meta.head_seq);
        o.number("sessions", gateway.hub.sessions() as u64).flag("quorum", status.quorum);
        o.array("peers", &status.peers, |out, peer| push_object(out, |o| fill_peer(o, peer, gateway.now_ms())));
        o.array("voters", &status.voters, |out, node| out.extend_from_slice(node.to_string().as_bytes()));
        o.array("nodes", &nodes, |out, node| push_object(out, |o| fill_node(o, node, gateway.now_ms())));
        let differing = nodes.iter().filter(|node| node.differs_from.is_some());
        o.array("differing", differing, |out, node| out.extend_from_slice(node.node.to_string().as_bytes()));
        o.text_or_null("digest_verdict", &status.digests.to_string());
        o.text_or_null("disk_verdict", &gateway.cluster.room_reason().unwrap_or_default());
        o.number("cluster_version", version);
        o.text("version", env!("CARGO_PKG_VERSION")).time("timestamp", gateway.now_ms());
    }))
}

fn fill_peer(o: &mut Object<'_>, peer: &PeerState, now_ms: u64) {
    o.number("node", peer.node).flag("reachable", peer.reachable);
    let ms = |d: Option<Duration>| d.map_or_else(|| "null".into(), milliseconds);
    o.raw("latency_ms", ms(peer.latency).as_bytes()).raw("silent_ms", ms(peer.silent_for).as_bytes());
    heard(o, peer.silent_for, now_ms);
}

fn heard(o: &mut Object<'_>, silent_for: Option<Duration>, now_ms: u64) {
    match silent_for {
        Some(silent) => o.time("last_heard", now_ms.saturating_sub(silent.as_millis() as u64)),
        None => o.raw("last_heard", b"null"),
    };
}

fn fill_node(o: &mut Object<'_>, node: &NodeInfo, now_ms: u64) {
    let role = match (node.leads, node.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    };
    o.number("node", node.node).text("role", role).text("raft", &node.raft).text("gateway", &node.gateway);
    o.flag("reachable", node.reachable);
    o.raw("latency_ms", node.latency.map_or_else(|| "null".into(), milliseconds).as_bytes());
    heard(o, node.silent_for, now_ms);
    let said = node.said.as_ref();
    let mut number = |name: &str, value: Option<u64>| {
        o.raw(name, value.map_or_else(|| "null".into(), |v| v.to_string()).as_bytes());
    };
    number("term", said.map(|s| s.term));
    number("applied_index", said.map(|s| s.applied_index));
    number("lag", node.lag);
    number("sessions", said.map(|s| s.sessions));
    number("knows_version", said.map(|s| of_told(s.knows).into()));
    number("differs_from", node.differs_from.map(LogIndex::get));
    let disk = said.and_then(|s| s.disk.as_ref()).map(room_said);
    number("disk_free", disk.map(|(free, _)| free));
    o.raw("clock_ahead_ms", node.clock_ahead_ms.map_or_else(|| "null".into(), |ms| ms.to_string()).as_bytes());
    for (name, value) in [
        ("digest", said.map(|s| s.digest.as_str())),
        ("master", said.map(|s| s.master.as_str())),
        ("version", said.map(|s| s.version.as_str())),
        ("disk", disk.map(|(_, room)| room.name())),
    ] {
        o.text_or_null(name, value.unwrap_or_default());
    }
    match said.and_then(|s| s.backup.as_ref()) {
        None => o.raw("backup", b"null"),
        Some(backup) => o.object("backup", |o| {
            for (name, ms) in [("covered_until", backup.covered_ms), ("proved_at", backup.proved_ms)] {
                match ms {
                    0 => o.raw(name, b"null"),
                    ms => o.time(name, ms),
                };
            }
            o.flag("on_duty", backup.on_duty).text_or_null("failed", &backup.failed);
        }),
    };
}

fn milliseconds(d: Duration) -> String {
    format!("{:.3}", d.as_secs_f64() * 1_000.0)
}

/// `POST /system/election`
pub(super) async fn elect(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    let (reason, by) = body.read(&gateway, Code::Election, election)?;
    if reason == ElectionReason::Manual {
        auth::must_be_privileged(&caller.0, "start a manual election").or_fail(&gateway)?;
    }
    gateway.rates.of(&caller.0).election().or_fail(&gateway)?;
    let command = elect_command(&caller.0, reason, by);
    let outcome = gateway.propose_election(&caller.0, Intent::Elect(command)).await.or_fail(&gateway)?;
    let Some(Given::Election(election)) = outcome.result else { return Err(unexpected(&gateway)) };
    Ok(answer(|o| {
        o.flag("success", true);
        ServerEvent::MasterElected(&election).fill(o);
    }))
}

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> Response {
    answer(|o| {
        o.text("status", "ok");
    })
}

/// Why this node should not be sent devices now, if so.
fn not_ready(gateway: &Gateway) -> Option<String> {
    if gateway.closing.is_cancelled() {
        return Some("the node is shutting down".to_owned());
    }
    if let Some(why) = gateway.cluster.objection() {
        return Some(why);
    }
    if let Some(why) = gateway.cluster.waiting() {
        return Some(format!("this node takes no part yet: {why}"));
    }
    let status = gateway.cluster.status();
    if status.leader.is_none() {
        return Some("this node knows no leader".to_owned());
    }
    if !status.quorum {
        return Some(
            "this node has no quorum: most of the nodes cannot be reached, and nothing can be written".to_owned(),
        );
    }
    let me = gateway.cluster.node_id();
    let behind = gateway.cluster.nodes().into_iter().find(|node| node.node == me).and_then(|node| node.lag);
    let behind = behind.filter(|lag| *lag > limits::READY_LAG)?;
    Some(format!("this node is catching up: it lacks {behind} entries of the log"))
}

/// `GET /readyz`: this node can serve: it has a quorum and has caught up, its clock is right, and it is not shutting down.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let objection = not_ready(&gateway);
    let ready = objection.is_none();
    let body = answer(|o| {
        o.text("status", if ready { "ready" } else { "not ready" });
        if let Some(why) = &objection {
            o.text("reason", why);
        }
    });
    if ready { body } else { (axum::http::StatusCode::SERVICE_UNAVAILABLE, body).into_response() }
}
