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

use super::devices::unexpected;
use super::{Answer, Asked, Body, Failure, OFFSET_MAX, OrFail, fresh, json_response};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::wire::Bad;
use crate::limits;
use crate::model::audit::read_rows;
use crate::model::change::Stored;
use crate::model::cursor::Cursor;
use crate::model::device::role_name;
use crate::model::election::reason_name;
use crate::model::error::{Code, Error};
use crate::model::read::records_data;
use crate::model::sync::{status_name, status_of};
use crate::model::tables::{Key, TablesRead, decode};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{
    Audit, Device, Election, ElectionReason, ImportBegin, ImportDevice, ImportFinish, ImportRows, Role, SyncState,
};

/// A row of `device_roles`; of a device that was taken over and has not come yet, `role` and `is_active` are as they
/// were taken over. Times are Unix milliseconds everywhere here; 0 stands for NULL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceRow {
    pub id: u64,
    pub device_id: String,
    pub role: String,
    pub priority: u32,
    pub last_seen_ms: u64,
    pub is_active: bool,
    pub created_ms: u64,
    pub updated_ms: u64,
}

/// A row of `sync_states`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncRow {
    pub id: u64,
    pub device_id: String,
    pub sync_status: String,
    pub pending_changes_count: u64,
    pub last_sync_ms: u64,
    pub last_error_message: Option<String>,
    pub created_ms: u64,
    pub updated_ms: u64,
}

/// A row of `master_election_logs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ElectionRow {
    pub id: u64,
    pub previous_master_id: Option<String>,
    pub new_master_id: String,
    pub election_reason: String,
    pub at_ms: u64,
    pub devices_participating: u32,
    pub created_ms: u64,
}

/// A row of `sync_audit_logs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    pub id: u64,
    pub event_type: String,
    pub operation: String,
    pub error: bool,
    pub device_id: Option<String>,
    pub details: Option<String>,
    pub at_ms: u64,
}

/// A record that exists.
#[derive(Debug, Serialize, Deserialize)]
pub struct RecordRow {
    pub table_name: String,
    pub record_id: i64,
    pub version: u64,
    pub data: Box<RawValue>,
    pub device_id: String,
    pub timestamp_ms: u64,
}

/// What may change, and how far the logs go, at one moment.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub applied_index: u64,
    pub head_seq: u64,
    pub compacted_seq: u64,
    /// Of the last change that is no longer kept: the change log begins behind it.
    pub cursor: String,
    pub election_head: u64,
    pub audit_head: u64,
    pub devices: Vec<DeviceRow>,
    pub sync_states: Vec<SyncRow>,
}

/// Rows of a log, oldest first. `next`: what to ask for as `after`; absent at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogPage<T> {
    pub rows: Vec<T>,
    pub next: Option<String>,
}

/// A step of an import.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// What was read from the database, as a number in hexadecimal.
    pub import_id: String,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum What {
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
        elections: Vec<ElectionRow>,
        #[serde(default)]
        audits: Vec<AuditRow>,
    },
    Finish,
}

/// A device and its sync state; null: it never synced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WithState {
    pub device: DeviceRow,
    pub sync_state: Option<SyncRow>,
}

/// What became of a step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    pub left: Vec<Left>,
}

/// A row that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    pub table_name: String,
    pub id: u64,
    pub why: String,
}

fn admin(gateway: &Gateway, caller: &Caller) -> Result<(), Failure> {
    auth::must_be_admin(&caller.0, "export and import").or_fail(gateway)
}

fn body<T: Serialize>(gateway: &Gateway, value: &T) -> Result<Response, Failure> {
    let body = serde_json::to_vec(value);
    body.map(json_response).map_err(|_| Failure::new(gateway, Error::new(Code::Internal, "the rows cannot be written")))
}

/// `GET /system/export`
pub async fn snapshot(State(gateway): State<Arc<Gateway>>, caller: Caller) -> Answer {
    admin(&gateway, &caller)?;
    fresh(&gateway).await?;
    let snapshot = {
        let state = gateway.cluster.replica().hot();
        let meta = state.meta();
        let sync_row = |d: &Arc<Device>| {
            let sync = state.sync_state(&d.device_id)?;
            Some(sync_of(sync, state.sync_row(sync), state.pending_changes(sync)))
        };
        Snapshot {
            applied_index: state.applied().index,
            head_seq: meta.head_seq,
            compacted_seq: meta.compacted_seq,
            cursor: Cursor { epoch: meta.epoch, seq: meta.compacted_seq }.to_string(),
            election_head: meta.election_head,
            audit_head: meta.audit_head,
            devices: state.devices().map(|d| device_of(d, state.device_row(d))).collect(),
            sync_states: state.devices().filter_map(sync_row).collect(),
        }
    };
    body(&gateway, &snapshot)
}

/// `after`, `to` and `limit` of a log's page.
fn bounds(gateway: &Gateway, asked: &Asked) -> Result<(u64, u64, usize), Failure> {
    let read = || {
        let limit = asked.number("limit", limits::PAGE_MAX, 1, limits::PAGE_MAX)?;
        let to = asked.number("to", OFFSET_MAX, 0, OFFSET_MAX)?;
        Ok((asked.number("after", 0, 0, OFFSET_MAX)?, to, limit as usize))
    };
    read().map_err(|bad| Failure::bad(gateway, Code::InvalidData, bad))
}

/// `GET /system/export/elections?after=&to=&limit=`
pub async fn elections(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: Asked) -> Answer {
    admin(&gateway, &caller)?;
    let (after, to, limit) = bounds(&gateway, &asked)?;
    fresh(&gateway).await?;
    let read = move |t: &dyn TablesRead| {
        if after >= to {
            return Ok(Vec::new());
        }
        let rows = t.range(&Key::Election(after.saturating_add(1)), &Key::Election(to), limit, false)?;
        rows.into_iter().map(|(key, value)| decode::<Election>(&key, value)).collect::<Result<Vec<_>, _>>()
    };
    let rows = gateway.cluster.replica().cold(read).await.or_fail(&gateway)?;
    let next = (rows.len() == limit).then(|| rows.last().map(|r| r.id.to_string())).flatten();
    body(&gateway, &LogPage { rows: rows.into_iter().map(election_of).collect(), next })
}

/// `GET /system/export/audit?after=&to=&limit=`
pub async fn audit(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: Asked) -> Answer {
    admin(&gateway, &caller)?;
    let (after, to, limit) = bounds(&gateway, &asked)?;
    fresh(&gateway).await?;
    let page = gateway.cluster.replica().hot().audit_index().between(after, to, limit);
    let next = (page.len() == limit).then(|| page.last().map(|r| r.id.to_string())).flatten();
    let rows = gateway.cluster.replica().cold(move |t| read_rows(t, &page)).await.or_fail(&gateway)?;
    body(&gateway, &LogPage { rows: rows.into_iter().map(audit_of).collect(), next })
}

/// `GET /system/export/records?after=&limit=`: in the order of tables and ids, as they are now.
pub async fn records(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: Asked) -> Answer {
    admin(&gateway, &caller)?;
    let read = || {
        let bad = || Bad::field("after", "must be what a page gave as `next`");
        let after = match asked.get("after") {
            Some(text) => {
                let (table, id) = text.split_once('.').ok_or_else(bad)?;
                Some((table.parse().map_err(|_| bad())?, id.parse().map_err(|_| bad())?))
            }
            None => None,
        };
        Ok((after, asked.number("limit", limits::PAGE_MAX, 1, limits::PAGE_MAX)? as usize))
    };
    let (after, rows): (Option<(u32, i64)>, usize) =
        read().map_err(|bad| Failure::bad(&gateway, Code::InvalidData, bad))?;
    fresh(&gateway).await?;
    let (page, more) = gateway.cluster.replica().hot().records_after(after, rows, |_| true);
    let read = move |t: &dyn TablesRead| records_data(t, page, limits::SYNC_PAGE_BYTES);
    let (page, cut) = gateway.cluster.replica().cold(read).await.or_fail(&gateway)?;
    let next = cut.map(|at| (at.table, at.id)).or(more).map(|(table, id)| format!("{table}.{id}"));
    let rows = {
        let state = gateway.cluster.replica().hot();
        let name = |table: u32| state.tables().get((table as usize).wrapping_sub(1)).map(|t| t.name.clone());
        let row = |(at, data): (Stored, Bytes)| {
            Some(RecordRow {
                table_name: name(at.table)?,
                record_id: at.id,
                version: at.seq,
                data: RawValue::from_string(String::from_utf8(data.to_vec()).ok()?).ok()?,
                device_id: state.device_name(at.device).unwrap_or_default().to_owned(),
                timestamp_ms: at.timestamp_ms,
            })
        };
        page.into_iter().map(row).collect::<Option<Vec<_>>>()
    };
    let rows = rows.ok_or_else(|| Failure::new(&gateway, Error::new(Code::Internal, "a record cannot be read")))?;
    body(&gateway, &LogPage { rows, next })
}

/// `POST /system/import`: a step of taking over a database.
pub async fn import(State(gateway): State<Arc<Gateway>>, caller: Caller, sent: Body) -> Answer {
    admin(&gateway, &caller)?;
    let bad = |why: String| Failure::bad(&gateway, Code::InvalidData, Bad::payload(why));
    if sent.0.len() > limits::IMPORT_BYTES {
        return Err(bad(format!("a step may have at most {} bytes", limits::IMPORT_BYTES)));
    }
    let step: Step = serde_json::from_slice(&sent.0).map_err(|e| bad(format!("the step of the import: {e}")))?;
    let import_id = u64::from_str_radix(&step.import_id, 16)
        .map_err(|_| Failure::bad(&gateway, Code::InvalidData, Bad::field("import_id", "must be hexadecimal")))?;
    let by = caller.0.sub;
    let intent = match step.what {
        What::Begin { device_rows, sync_rows, election_rows, audit_rows } => {
            Intent::ImportBegin(ImportBegin { import_id, device_rows, sync_rows, election_rows, audit_rows, by })
        }
        What::Rows { devices, elections, audits } => Intent::ImportRows(ImportRows {
            import_id,
            devices: devices.into_iter().map(to_device).collect(),
            elections: elections.into_iter().map(to_election).collect(),
            audits: audits.into_iter().map(to_audit).collect(),
        }),
        What::Finish => Intent::ImportFinish(ImportFinish { import_id, by }),
    };
    let outcome = gateway.cluster.propose(intent).await.or_fail(&gateway)?;
    let Some(Given::Import(done)) = outcome.result else { return Err(unexpected(&gateway)) };
    let left = done.left.into_iter().map(|l| Left { table_name: l.table_name, id: l.id, why: l.why }).collect();
    body(&gateway, &Taken { left })
}

fn device_of(d: &Device, id: u64) -> DeviceRow {
    DeviceRow {
        id,
        device_id: d.device_id.clone(),
        role: role_name(if d.was_master { Role::Master } else { d.role() }).to_owned(),
        priority: d.priority,
        last_seen_ms: d.last_seen_ms,
        is_active: d.is_active || d.was_active,
        created_ms: d.created_ms,
        updated_ms: d.updated_ms,
    }
}

fn sync_of(s: &SyncState, id: u64, pending_changes_count: u64) -> SyncRow {
    SyncRow {
        id,
        device_id: s.device_id.clone(),
        sync_status: status_name(s.sync_status()).to_owned(),
        pending_changes_count,
        last_sync_ms: s.last_sync_ms,
        last_error_message: s.last_error_message.clone().filter(|m| !m.is_empty()),
        created_ms: s.created_ms,
        updated_ms: s.updated_ms,
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

fn election_of(e: Election) -> ElectionRow {
    ElectionRow {
        id: e.id,
        election_reason: reason_name(e.reason()).to_owned(),
        at_ms: e.at_ms,
        devices_participating: e.participating,
        created_ms: if e.imported { e.created_ms } else { e.at_ms },
        previous_master_id: some(e.previous_master),
        new_master_id: e.new_master,
    }
}

fn audit_of(a: Audit) -> AuditRow {
    AuditRow {
        id: a.id,
        event_type: a.event_type,
        operation: a.operation,
        error: a.error,
        device_id: some(a.device_id),
        details: some(a.details),
        at_ms: a.at_ms,
    }
}

fn to_device(row: WithState) -> ImportDevice {
    let d = row.device;
    let sync = row.sync_state.map(|s| SyncState {
        sync_status: status_of(&s.sync_status).unwrap_or_default().into(),
        base: s.pending_changes_count,
        last_sync_ms: s.last_sync_ms,
        last_error_message: s.last_error_message,
        created_ms: s.created_ms,
        updated_ms: s.updated_ms,
        row_id: s.id,
        ..SyncState::default()
    });
    let device = Device {
        role: if d.role == role_name(Role::Master) { Role::Master } else { Role::Client }.into(),
        is_active: d.is_active,
        device_id: d.device_id,
        priority: d.priority,
        last_seen_ms: d.last_seen_ms,
        created_ms: d.created_ms,
        updated_ms: d.updated_ms,
        row_id: d.id,
        ..Device::default()
    };
    ImportDevice { device: Some(device), sync }
}

fn to_election(e: ElectionRow) -> Election {
    let reasons = [ElectionReason::Shutdown, ElectionReason::Failure, ElectionReason::Manual];
    let reason = reasons.into_iter().find(|r| reason_name(*r) == e.election_reason).unwrap_or(ElectionReason::Manual);
    Election {
        id: e.id,
        previous_master: e.previous_master_id.unwrap_or_default(),
        new_master: e.new_master_id,
        reason: reason.into(),
        at_ms: e.at_ms,
        participating: e.devices_participating,
        created_ms: e.created_ms,
        ..Election::default()
    }
}

fn to_audit(a: AuditRow) -> Audit {
    Audit {
        id: a.id,
        event_type: a.event_type,
        operation: a.operation,
        error: a.error,
        device_id: a.device_id.unwrap_or_default(),
        details: a.details.unwrap_or_default(),
        at_ms: a.at_ms,
    }
}
