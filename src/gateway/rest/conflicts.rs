//! The conflict inbox, decisions, and the policies of tables.

use std::sync::Arc;

use axum::extract::State;

use super::devices::unexpected;
use super::{Answer, Asked, At, Body, Failure, OrFail, Source, answer, fresh, pagination};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::session::{decider, find_conflict};
use crate::gateway::wire::json::push_object;
use crate::gateway::wire::{Bad, ServerEvent, open_conflict, policy, resolution};
use crate::model::change::valid_table;
use crate::model::conflict::method_name;
use crate::model::error::Code;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{Conflict, PolicyPut};

/// `GET /sync/conflicts`: those that wait for a decision, oldest first.
pub async fn list(State(gateway): State<Arc<Gateway>>, _: Caller, asked: Asked) -> Answer {
    let (limit, offset) = asked.page().map_err(|bad| Failure::bad(&gateway, Code::InvalidData, bad))?;
    let source = Source::asked(&gateway, &asked).await?;
    let wanted = |c: &&Arc<Conflict>| {
        asked.get("device_id").is_none_or(|id| c.device_id == id)
            && asked.get("table_name").is_none_or(|name| c.table_name == name)
    };
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let (total, rows) = {
        let state = gateway.cluster.replica().hot();
        let rows: Vec<_> = state.open_conflicts().filter(wanted).skip(skip).take(limit).cloned().collect();
        (state.open_conflicts().filter(wanted).count() as u64, rows)
    };
    Ok(answer(|o| {
        o.array("conflicts", &rows, |out, row| push_object(out, |o| open_conflict(o, row)));
        pagination(o, limit, offset, total);
        source.tell(o);
    }))
}

/// `POST /sync/conflicts/{id}/resolve`
pub async fn resolve(State(gateway): State<Arc<Gateway>>, caller: Caller, At(id): At<String>, body: Body) -> Answer {
    let bad = |bad| Failure::bad(&gateway, Code::InvalidData, bad);
    let id: u64 = id.parse().map_err(|_| bad(Bad::field("id", "must be a conflict's number")))?;
    let mut resolve = body.read(&gateway, Code::InvalidData, |f| resolution(f, &body.0))?;
    resolve.conflict_id = Some(id);
    fresh(&gateway).await?;
    let owner = find_conflict(&gateway, &resolve).or_fail(&gateway)?;
    auth::may_speak_for(&caller.0, &owner.device_id).or_fail(&gateway)?;
    if resolve.device_id.is_empty() {
        resolve.device_id = decider(&gateway, &caller.0, &owner.device_id);
    }
    auth::may_speak_for(&caller.0, &resolve.device_id).or_fail(&gateway)?;
    resolve.by.clone_from(&caller.0.sub);
    let outcome = gateway.cluster.propose(Intent::ConflictResolve(resolve)).await.or_fail(&gateway)?;
    let Some(Given::Conflict(conflict)) = outcome.result else { return Err(unexpected(&gateway)) };
    Ok(answer(|o| {
        o.flag("success", true);
        ServerEvent::SyncConflictResolved(&conflict).fill(o);
    }))
}

/// `PUT /sync/policies/{table}`
pub async fn put_policy(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    At(table_name): At<String>,
    body: Body,
) -> Answer {
    auth::must_be_privileged(&caller.0, "set a conflict policy").or_fail(&gateway)?;
    let policy = body.read(&gateway, Code::InvalidData, policy)?;
    if !valid_table(&table_name) {
        let bad = Bad::field("table_name", "is not a usable name");
        return Err(Failure::bad(&gateway, Code::InvalidData, bad));
    }
    let put = PolicyPut { table_name: table_name.clone(), policy: policy.into(), by: caller.0.sub };
    gateway.cluster.propose(Intent::PolicyPut(put)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).text("table_name", &table_name).text("policy", method_name(policy));
    }))
}
