//! Who belongs to the cluster: asked on any node, done by the leader.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;

use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, answer};
use crate::cluster::MembershipChange;
use crate::config::is_address;
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::{BadPayload, Fields};
use crate::ids::NodeId;
use crate::limits;
use crate::model::error::Code;

/// How long a change may take if the caller does not say.
const DEFAULT_MS: u64 = 30_000;
const MOST_MS: u64 = limits::MEMBERS_CHANGE.as_millis() as u64;

/// `POST /system/cluster/nodes`
pub(super) async fn add(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    auth::must_be_admin(&caller.0, "add nodes").or_fail(&gateway)?;
    let (change, within) = body.read(&gateway, Code::InvalidData, |f| {
        let change = MembershipChange::Add {
            node: node(f, "node")?,
            raft: address(f, "raft")?,
            gateway: address(f, "gateway")?,
        };
        Ok((change, within(f)?))
    })?;
    make(&gateway, caller, change, within).await
}

/// `PUT /system/cluster/nodes/{id}`
pub(super) async fn relocate(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(id): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    auth::must_be_admin(&caller.0, "move nodes").or_fail(&gateway)?;
    let node = in_path(&id).map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    let (change, within) = body.read(&gateway, Code::InvalidData, |f| {
        let change = MembershipChange::Move { node, raft: address(f, "raft")?, gateway: address(f, "gateway")? };
        Ok((change, within(f)?))
    })?;
    make(&gateway, caller, change, within).await
}

/// The node that a path names.
fn in_path(id: &str) -> Result<NodeId, BadPayload> {
    id.parse().ok().filter(|id| *id > 0).map(NodeId).ok_or_else(|| BadPayload::field("id", "must be a node's number"))
}

/// `DELETE /system/cluster/nodes/{id}`
pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(id): PathParts<String>,
    asked: QueryFields,
) -> RestResult {
    auth::must_be_admin(&caller.0, "remove nodes").or_fail(&gateway)?;
    let read =
        || Ok((MembershipChange::Remove { node: in_path(&id)? }, asked.number("timeout_ms", DEFAULT_MS, 1, MOST_MS)?));
    let (change, within) = read().map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    make(&gateway, caller, change, within).await
}

/// `POST /system/cluster/transfer`
pub(super) async fn transfer(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    auth::must_be_admin(&caller.0, "hand over leadership").or_fail(&gateway)?;
    let (change, within) = body
        .read(&gateway, Code::InvalidData, |f| Ok((MembershipChange::Transfer { to: node(f, "to")? }, within(f)?)))?;
    make(&gateway, caller, change, within).await
}

/// `POST /system/cluster/finalize`
pub(super) async fn finalize(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    auth::must_be_admin(&caller.0, "raise the cluster's version").or_fail(&gateway)?;
    let within = body.read(&gateway, Code::InvalidData, within)?;
    let (by, within) = (caller.0.principal(), Duration::from_millis(within));
    let changed = gateway.cluster.change(MembershipChange::Finalize, by, within).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).number("cluster_version", changed.version).time("timestamp", gateway.now_ms());
    }))
}

fn node(f: &Fields<'_>, name: &str) -> Result<NodeId, BadPayload> {
    let node = f.maybe_count(name, u64::MAX)?.ok_or_else(|| BadPayload::field(name, "is required"))?;
    if node == 0 { Err(BadPayload::field(name, "must be a whole number, 1 or more")) } else { Ok(NodeId(node)) }
}

fn address(f: &Fields<'_>, name: &str) -> Result<String, BadPayload> {
    let text = f.name(name, limits::ADDRESS)?;
    if is_address(&text) { Ok(text) } else { Err(BadPayload::field(name, "must be HOST:PORT")) }
}

fn within(f: &Fields<'_>) -> Result<u64, BadPayload> {
    match f.maybe_count("timeout_ms", MOST_MS)? {
        Some(0) => Err(BadPayload::field("timeout_ms", format_args!("must be a number from 1 to {MOST_MS}"))),
        given => Ok(given.unwrap_or(DEFAULT_MS)),
    }
}

async fn make(gateway: &Gateway, caller: Caller, change: MembershipChange, within_ms: u64) -> RestResult {
    let changed = gateway.cluster.change(change, caller.0.principal(), Duration::from_millis(within_ms)).await;
    let changed = changed.or_fail(gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).number("node", changed.node);
        o.array("voters", &changed.voters, |out, node| out.extend_from_slice(node.to_string().as_bytes()));
        o.time("timestamp", gateway.now_ms());
    }))
}
