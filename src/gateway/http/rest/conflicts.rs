//! The conflict inbox, decisions, and the policies of tables.

use std::sync::Arc;

use axum::extract::State;

use super::devices::unexpected;
use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, Source, answer, fresh, pagination};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, push_object};
use crate::gateway::protocol::{BadPayload, ServerEvent, listed_conflict, policy, resolution};
use crate::gateway::session::{decider, find_conflict};
use crate::ids::{ConflictId, RecordId, Seq};
use crate::limits;
use crate::model::change::valid_table;
use crate::model::conflict::ConflictStatus;
use crate::model::error::Code;
use crate::model::policy::{decides_name, decides_of, insert_policy_name, insert_policy_of, method_name, policy_of};
use crate::model::read::conflicts as read_conflicts;
use crate::model::tables::TablesRead;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{PolicyPut, TableName};

/// `GET /sync/conflicts`: open ones oldest first, resolved ones by their resolution and all of them by their number,
/// newest first.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    let bad = |bad| RestError::bad(&gateway, Code::InvalidData, bad);
    let (limit, offset) = asked.page().map_err(bad)?;
    let status = match asked.get("status") {
        None | Some("open") => ConflictStatus::Open,
        Some("resolved") => ConflictStatus::Resolved,
        Some("all") => ConflictStatus::All,
        Some(_) => return Err(bad(BadPayload::field("status", "must be open, resolved or all"))),
    };
    // Before any row is read: what one token has read and not taken is bounded.
    let turn = gateway.listings.turn(&caller.0.sub).await.or_fail(&gateway)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let (device_id, table_name) = (asked.get("device_id"), asked.get("table_name"));
    let class = caller.0.class.number();
    let (ids, total) = {
        let state = gateway.cluster.replica().state();
        state.conflict_page(status, device_id, table_name, class, limit, skip)
    };
    let read = move |t: &dyn TablesRead| read_conflicts(t, &ids, limits::SYNC_PAGE_BYTES);
    let (rows, seen) = gateway.cluster.replica().read_rows(read).await.or_fail(&gateway)?;
    let now: Vec<Option<Seq>> = {
        let state = gateway.cluster.replica().state();
        rows.iter().map(|row| state.version_of(&row.table_name, RecordId(row.record_id))).collect()
    };
    Ok(turn.answer(|o| {
        o.array("conflicts", rows.iter().zip(now), |out, (row, version)| {
            push_object(out, |o| {
                listed_conflict(o, row);
                o.number("record_version", version.map_or(0, Seq::get));
            });
        });
        pagination(o, limit, offset, total);
        o.flag("has_more", offset.saturating_add(seen as u64) < total);
        o.maybe_number("next_offset", Some(offset.saturating_add(seen as u64)).filter(|next| *next < total));
        source.tell(o);
    }))
}

/// `POST /sync/conflicts/{id}/resolve`
pub(super) async fn resolve(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(id): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    let bad = |bad| RestError::bad(&gateway, Code::InvalidData, bad);
    let id = id.parse().map(ConflictId).map_err(|_| bad(BadPayload::field("id", "must be a conflict's number")))?;
    let mut resolve = body.read(&gateway, Code::InvalidData, |f| resolution(f, &body.0))?;
    resolve.conflict_id = Some(id.get());
    fresh(&gateway, &caller.0).await?;
    let owner = find_conflict(&gateway, &resolve).or_fail(&gateway)?;
    auth::may_speak_for(&caller.0, &owner.device_id).or_fail(&gateway)?;
    if resolve.device_id.is_empty() {
        resolve.device_id = decider(&gateway, &caller.0, &owner.device_id);
    }
    auth::may_speak_for(&caller.0, &resolve.device_id).or_fail(&gateway)?;
    resolve.by.clone_from(&caller.0.sub);
    resolve.class = caller.0.class.number().number();
    resolve.asker = auth::asker(&caller.0).into();
    let outcome = gateway.propose_for(&caller.0, Intent::ConflictResolve(resolve)).await.or_fail(&gateway)?;
    let Some(Given::Conflict(conflict)) = outcome.result else { return Err(unexpected(&gateway)) };
    Ok(answer(|o| {
        o.flag("success", true);
        ServerEvent::SyncConflictResolved(&conflict).fill(o);
    }))
}

/// `PUT /sync/policies/{table}`
pub(super) async fn put_policy(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(table_name): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    auth::must_be_privileged(&caller.0, "set a conflict policy").or_fail(&gateway)?;
    let asked = body.read(&gateway, Code::InvalidData, policy)?;
    let table_name = usable(&gateway, table_name)?;
    let class = caller.0.class.number().number();
    let (table, asker, by) = (table_name.clone(), auth::asker(&caller.0).into(), caller.0.sub.clone());
    let put = PolicyPut { table_name: table, asker, class, by, ..asked };
    gateway.propose_for(&caller.0, Intent::PolicyPut(put)).await.or_fail(&gateway)?;
    // It is committed; this node may not have applied it yet.
    gateway.cluster.read_barrier().await.or_fail(&gateway)?;
    let now = table_of(&gateway, table_name);
    Ok(answer(|o| {
        o.flag("success", true);
        tell_policy(o, &now);
    }))
}

/// `GET /sync/policies`: of every table that was ever named and that the caller may read, by name.
pub(super) async fn policies(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let class = caller.0.class.number();
    let mut tables = {
        let state = gateway.cluster.replica().state();
        let shown = |table: &&TableName| !table.name.is_empty() && state.access().may_read(class, &table.name);
        state.tables().iter().filter(shown).cloned().collect::<Vec<_>>()
    };
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(answer(|o| {
        o.array("policies", &tables, |out, table| push_object(out, |o| tell_policy(o, table)));
        source.tell(o);
    }))
}

/// `GET /sync/policies/{table}`: of a table that does not exist yet, what it would begin with.
pub(super) async fn policy_of_table(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(table_name): PathParts<String>,
    asked: QueryFields,
) -> RestResult {
    let table_name = usable(&gateway, table_name)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    auth::may_read(&gateway, &caller.0, &table_name).or_fail(&gateway)?;
    let table = table_of(&gateway, table_name);
    Ok(answer(|o| {
        tell_policy(o, &table);
        source.tell(o);
    }))
}

pub(super) fn usable(gateway: &Gateway, table_name: String) -> Result<String, RestError> {
    if valid_table(&table_name) {
        return Ok(table_name);
    }
    Err(RestError::bad(gateway, Code::InvalidData, BadPayload::field("table_name", "is not a usable name")))
}

fn table_of(gateway: &Gateway, name: String) -> TableName {
    let state = gateway.cluster.replica().state();
    let known = state.table_number(&name).and_then(|number| state.tables().get(number.place())).cloned();
    known.unwrap_or_else(|| TableName { name, ..TableName::default() })
}

fn tell_policy(o: &mut Object<'_>, table: &TableName) {
    o.text("table_name", &table.name).text("policy", method_name(policy_of(table)));
    o.text("insert_policy", insert_policy_name(insert_policy_of(table)));
    o.text("decides", decides_name(decides_of(table)));
}
