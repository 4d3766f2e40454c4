//! The rows of the documented tables as they travel: out of the state, and out of an old database into commands.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::device::role_name;
use crate::model::election::reason_name;
use crate::model::sync::{status_name, status_of};
use crate::proto::{Audit, Device, Election, ElectionReason, ImportDevice, Role, SyncState};

/// A row of `device_roles`; of a device that was taken over and has not come yet, `is_active` is as it was taken over,
/// and so is `role` until one that is here becomes master. Times are Unix milliseconds everywhere here; 0 stands for
/// NULL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceRow {
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
pub(crate) struct SyncRow {
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
pub(crate) struct TransferredElection {
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
pub(crate) struct AuditRow {
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
pub(crate) struct RecordRow {
    pub table_name: String,
    pub record_id: i64,
    pub version: u64,
    pub data: Box<RawValue>,
    pub device_id: String,
    pub timestamp_ms: u64,
}

/// A device and its sync state; null: it never synced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WithState {
    pub device: DeviceRow,
    pub sync_state: Option<SyncRow>,
}

pub(super) fn device_of(d: &Device, id: u64, none_since: bool) -> DeviceRow {
    DeviceRow {
        id,
        device_id: d.device_id.clone(),
        role: role_name(if d.was_master && none_since { Role::Master } else { d.role() }).to_owned(),
        priority: d.priority,
        last_seen_ms: d.last_seen_ms,
        is_active: d.is_active || d.was_active,
        created_ms: d.created_ms,
        updated_ms: d.updated_ms,
    }
}

pub(super) fn sync_of(s: &SyncState, id: u64, pending_changes_count: u64) -> SyncRow {
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

pub(super) fn election_of(e: Election) -> TransferredElection {
    TransferredElection {
        id: e.id,
        election_reason: reason_name(e.reason()).to_owned(),
        at_ms: e.at_ms,
        devices_participating: e.participating,
        created_ms: if e.imported { e.created_ms } else { e.at_ms },
        previous_master_id: some(e.previous_master),
        new_master_id: e.new_master,
    }
}

pub(super) fn audit_of(a: Audit) -> AuditRow {
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

pub(super) fn to_device(row: WithState) -> ImportDevice {
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

pub(super) fn to_election(e: TransferredElection) -> Election {
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

pub(super) fn to_audit(a: AuditRow) -> Audit {
    Audit {
        id: a.id,
        event_type: a.event_type,
        operation: a.operation,
        error: a.error,
        device_id: a.device_id.unwrap_or_default(),
        details: a.details.unwrap_or_default(),
        at_ms: a.at_ms,
        ..Audit::default()
    }
}
