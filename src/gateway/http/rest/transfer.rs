//! All rows out and an old database's rows in, for `tillsync export` and `tillsync import`. Admins only.
//!
//! Devices and sync states change, so one answer gives all of them together with the heads of the logs as of that
//! moment; rows of the logs never change, so pages up to those heads belong to the same moment.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::rows::{audit_of, device_of, election_of, sync_of, to_audit, to_device, to_election};
use super::changes::page_after;
use super::devices::unexpected;
use super::{OFFSET_MAX, OrFail, QueryFields, RequestBody, RestError, RestResult, Source, fresh, json_response};
use crate::gateway::Gateway;
use crate::gateway::auth::Operator;
use crate::gateway::protocol::BadPayload;
use crate::ids::{AuditId, ElectionId, RecordId, TableId};
use crate::limits;
use crate::model::audit::read_rows;
use crate::model::change::StoredData;
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::model::import::{DEVICE_ROLES, SYNC_STATES, own_rows};
use crate::model::read::records_data;
use crate::model::tables::{RowKey, TablesRead, decode};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{Device, Election, ImportBegin, ImportFinish, ImportRows, Presence};

mod rows;

pub(crate) use self::rows::{AuditRow, DeviceRow, RecordRow, SyncRow, TransferredElection, WithState};

/// What may change, and how far the logs go, at one moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TransferState {
    /// `stale`: without asking the others; there may be newer data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<String>,
    /// The time of what was applied last.
    #[serde(default)]
    pub applied_ms: u64,
    pub applied_index: u64,
    pub head_seq: u64,
    pub compacted_seq: u64,
    /// Of the last change that is no longer kept: the change log begins behind it.
    pub cursor: String,
    pub election_head: u64,
    pub audit_head: u64,
    /// Rows at the ends of the logs that an import wrote itself, as long as nothing has come after them: they are no
    /// part of what was taken over, and a file is written without them.
    #[serde(default)]
    pub own_elections: u64,
    #[serde(default)]
    pub own_audits: u64,
    pub devices: Vec<DeviceRow>,
    pub sync_states: Vec<SyncRow>,
    /// The devices that stand for the cluster's nodes. Another cluster has its own, so no file has them.
    #[serde(default)]
    pub node_devices: Vec<String>,
}

/// Rows of a log, oldest first. `next`: what to ask for as `after`; absent at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LogPage<T> {
    pub rows: Vec<T>,
    pub next: Option<String>,
}

/// A step of an import.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImportStep {
    /// What was read from the database, as a number in hexadecimal.
    pub import_id: String,
    #[serde(flatten)]
    pub what: ImportAction,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum ImportAction {
    Begin {
        device_rows: u64,
        sync_rows: u64,
        election_rows: u64,
        audit_rows: u64,
    },
    Rows {
        #[serde(default)]
        devices: Vec<WithState>,
        #[serde(default)]
        elections: Vec<TransferredElection>,
        #[serde(default)]
        audits: Vec<AuditRow>,
    },
    Finish,
}

/// What became of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepResult {
    pub left: Vec<UntakenRow>,
}

/// A row that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UntakenRow {
    pub table_name: String,
    pub id: u64,
    pub why: String,
}

fn body<T: Serialize>(gateway: &Gateway, value: &T) -> Result<Response, RestError> {
    let body = serde_json::to_vec(value);
    body.map(json_response)
        .map_err(|_| RestError::new(gateway, Error::new(Code::Internal, "the rows cannot be written")))
}

/// `GET /system/export`
pub(crate) async fn snapshot(
    State(gateway): State<Arc<Gateway>>,
    operator: Operator,
    asked: QueryFields,
) -> RestResult {
    let source = Source::asked(&gateway, &operator.0, &asked).await?;
    let (mut snapshot, meta) = {
        let state = gateway.cluster.replica().state();
        let meta = state.meta().clone();
        let sync_row = |d: &Arc<Device>| {
            let sync = state.sync_state(&d.device_id)?;
            Some(sync_of(sync, state.sync_row(sync), state.pending_changes(sync)))
        };
        // There is one master at most, also where one was taken over; a node's is in no file.
        let none_since = state.master().is_none_or(|d| is_a_nodes(d));
        let row = |d: &Arc<Device>| device_of(d, state.device_row(d), none_since);
        let snapshot = TransferState {
            consistency: source.word().map(str::to_owned),
            applied_ms: meta.now_ms,
            applied_index: state.applied().index,
            head_seq: meta.head_seq,
            compacted_seq: meta.compacted_seq,
            cursor: Cursor::at(&state, meta.compacted()).to_string(),
            election_head: meta.election_head,
            audit_head: meta.audit_head,
            devices: state.devices().map(row).collect(),
            sync_states: state.devices().filter_map(sync_row).collect(),
            node_devices: state.devices().filter(|d| is_a_nodes(d)).map(|d| d.device_id.clone()).collect(),
            ..TransferState::default()
        };
        (snapshot, meta)
    };
    // Rows of the logs never change: these still tell of the moment above.
    let own = gateway.cluster.replica().read_rows(move |t| own_rows(t, &meta)).await.or_fail(&gateway)?;
    (snapshot.own_elections, snapshot.own_audits) = (own.elections, own.audits);
    body(&gateway, &snapshot)
}

fn is_a_nodes(device: &Device) -> bool {
    device.presence() == Presence::Node
}

/// `after`, `to` and `limit` of a log's page.
fn bounds(gateway: &Gateway, asked: &QueryFields) -> Result<(u64, u64, usize), RestError> {
    let read = || {
        let limit = asked.number("limit", limits::PAGE_MAX, 1, limits::PAGE_MAX)?;
        let to = asked.number("to", OFFSET_MAX, 0, OFFSET_MAX)?;
        Ok((asked.number("after", 0, 0, OFFSET_MAX)?, to, limit as usize))
    };
    read().map_err(|bad| RestError::bad(gateway, Code::InvalidData, bad))
}

/// `GET /system/export/elections?after=&to=&limit=`
pub(crate) async fn elections(
    State(gateway): State<Arc<Gateway>>,
    operator: Operator,
    asked: QueryFields,
) -> RestResult {
    let (after, to, limit) = bounds(&gateway, &asked)?;
    Source::asked(&gateway, &operator.0, &asked).await?;
    let read = move |t: &dyn TablesRead| {
        if after >= to {
            return Ok(Vec::new());
        }
        let rows = t.range(
            &RowKey::Election(ElectionId(after.saturating_add(1))),
            &RowKey::Election(ElectionId(to)),
            limit,
            false,
        )?;
        rows.into_iter().map(|(key, value)| decode::<Election>(&key, value)).collect::<Result<Vec<_>, _>>()
    };
    let rows = gateway.cluster.replica().read_rows(read).await.or_fail(&gateway)?;
    let next = (rows.len() == limit).then(|| rows.last().map(|r| r.id.to_string())).flatten();
    body(&gateway, &LogPage { rows: rows.into_iter().map(election_of).collect(), next })
}

/// `GET /system/export/audit?after=&to=&limit=`
pub(crate) async fn audit(State(gateway): State<Arc<Gateway>>, operator: Operator, asked: QueryFields) -> RestResult {
    let (after, to, limit) = bounds(&gateway, &asked)?;
    Source::asked(&gateway, &operator.0, &asked).await?;
    let page = gateway.cluster.replica().state().audit_index().between(AuditId(after), AuditId(to), limit);
    let next = (page.len() == limit).then(|| page.last().map(|r| r.id.to_string())).flatten();
    let rows = gateway.cluster.replica().read_rows(move |t| read_rows(t, &page)).await.or_fail(&gateway)?;
    body(&gateway, &LogPage { rows: rows.into_iter().map(audit_of).collect(), next })
}

/// `GET /system/export/records?after=&limit=`: in the order of tables and ids, as they are now.
pub(crate) async fn records(State(gateway): State<Arc<Gateway>>, operator: Operator, asked: QueryFields) -> RestResult {
    let read = || {
        let bad = || BadPayload::field("after", "must be what a page gave as `next`");
        let after = match asked.get("after") {
            Some(text) => {
                let (table, id) = text.split_once('.').ok_or_else(bad)?;
                Some((TableId(table.parse().map_err(|_| bad())?), RecordId(id.parse().map_err(|_| bad())?)))
            }
            None => None,
        };
        Ok((after, asked.number("limit", limits::PAGE_MAX, 1, limits::PAGE_MAX)? as usize))
    };
    let (after, rows): (Option<(TableId, RecordId)>, usize) =
        read().map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    Source::asked(&gateway, &operator.0, &asked).await?;
    let (page, more) = gateway.cluster.replica().state().records_after(after, rows, |_| true);
    let read = move |t: &dyn TablesRead| records_data(t, page, limits::SYNC_PAGE_BYTES);
    let (page, cut) = gateway.cluster.replica().read_rows(read).await.or_fail(&gateway)?;
    let next = cut.map(|at| (at.table, at.id)).or(more).map(|(table, id)| format!("{table}.{id}"));
    let rows = {
        let state = gateway.cluster.replica().state();
        let name =
            |table: TableId| state.tables().get(table.place()).map(|t| t.name.clone()).filter(|name| !name.is_empty());
        let row = |(at, data): (StoredData, Bytes)| {
            Some(RecordRow {
                table_name: name(at.table)?,
                record_id: at.id.get(),
                version: at.seq.get(),
                data: RawValue::from_string(String::from_utf8(data.to_vec()).ok()?).ok()?,
                device_id: state.device_name(at.device).unwrap_or_default().to_owned(),
                timestamp_ms: at.timestamp_ms.get(),
            })
        };
        // A table that was removed meanwhile has none.
        page.into_iter().filter(|(at, _)| name(at.table).is_some()).map(row).collect::<Option<Vec<_>>>()
    };
    let rows = rows.ok_or_else(|| RestError::new(&gateway, Error::new(Code::Internal, "a record cannot be read")))?;
    body(&gateway, &LogPage { rows, next })
}

/// `GET /system/export/changes?cursor=&limit=`: a page of what is kept.
pub(crate) async fn changes(State(gateway): State<Arc<Gateway>>, operator: Operator, asked: QueryFields) -> RestResult {
    page_after(&gateway, &operator.0, &asked).await
}

/// `POST /system/import`: a step of taking over a database.
pub(crate) async fn import(State(gateway): State<Arc<Gateway>>, operator: Operator, sent: RequestBody) -> RestResult {
    let bad = |why: String| RestError::bad(&gateway, Code::InvalidData, BadPayload::payload(why));
    if sent.0.len() > limits::IMPORT_BYTES {
        return Err(bad(format!("a step may have at most {} bytes", limits::IMPORT_BYTES)));
    }
    let step: ImportStep = serde_json::from_slice(&sent.0).map_err(|e| bad(format!("the step of the import: {e}")))?;
    let import_id = u64::from_str_radix(&step.import_id, 16).map_err(|_| {
        RestError::bad(&gateway, Code::InvalidData, BadPayload::field("import_id", "must be hexadecimal"))
    })?;
    let by = operator.0.sub.clone();
    let mut left = Vec::new();
    let intent = match step.what {
        ImportAction::Begin { device_rows, sync_rows, election_rows, audit_rows } => {
            Intent::ImportBegin(ImportBegin { import_id, device_rows, sync_rows, election_rows, audit_rows, by })
        }
        ImportAction::Rows { devices, elections, audits } => {
            fresh(&gateway, &operator.0).await?;
            let devices = without_nodes(&gateway, devices, &mut left);
            Intent::ImportRows(ImportRows {
                import_id,
                devices: devices.into_iter().map(to_device).collect(),
                elections: elections.into_iter().map(to_election).collect(),
                audits: audits.into_iter().map(to_audit).collect(),
            })
        }
        ImportAction::Finish => Intent::ImportFinish(ImportFinish { import_id, by }),
    };
    let outcome = gateway.propose_for(&operator.0, intent).await.or_fail(&gateway)?;
    let Some(Given::Import(done)) = outcome.result else { return Err(unexpected(&gateway)) };
    left.extend(done.left.into_iter().map(|l| UntakenRow { table_name: l.table_name, id: l.id, why: l.why }));
    body(&gateway, &StepResult { left })
}

/// A node's device is what its node does here and now: no other system's row can tell anything of it. Decided before
/// anything is proposed and not by `apply`, which so does the same in every version.
fn without_nodes(gateway: &Gateway, rows: Vec<WithState>, left: &mut Vec<UntakenRow>) -> Vec<WithState> {
    let state = gateway.cluster.replica().state();
    let is_a_nodes = |id: &str| state.device(id).is_some_and(|d| is_a_nodes(d));
    let (nodes, others) = rows.into_iter().partition(|row: &WithState| is_a_nodes(&row.device.device_id));
    for WithState { device, sync_state } in nodes {
        let why = format!("{:?} is the own device of a node of this cluster", device.device_id);
        let state = sync_state.map(|s| UntakenRow { table_name: SYNC_STATES.into(), id: s.id, why: why.clone() });
        left.push(UntakenRow { table_name: DEVICE_ROLES.into(), id: device.id, why });
        left.extend(state);
    }
    others
}
