//! What clients send: one variant a documented event. The table of events says how each is decoded.

use std::sync::Arc;

use crate::ids::RecordId;
use crate::model::time::IsoTime;
use crate::proto::{
    ConflictReport, ConflictResolve, CriticalEvent, DataUpdate, ElectionReason, Role, SyncErrorReport, SyncType,
};

/// One event of a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    DeviceOnline(OnlineAsk),
    DeviceOffline {
        device_id: String,
        reason: String,
    },
    DeviceShutdown {
        device_id: String,
        reason: String,
    },
    MasterElection {
        reason: ElectionReason,
        initiated_by: String,
    },
    RoleChange {
        device_id: String,
        role: Role,
        reason: String,
    },
    SyncRequest(SyncAsk),
    SyncComplete {
        device_id: String,
        sync_timestamp_ms: Option<u64>,
        changes_count: u64,
        sync_id: String,
        cursor: Option<String>,
    },
    SyncConflict(ConflictReport),
    SyncConflictResolved(ConflictResolve),
    SyncError(SyncErrorReport),
    DataUpdate(DataUpdate),
    DataRequest {
        device_id: String,
        table_name: String,
        record_id: RecordId,
    },
    QueueStatus {
        device_id: String,
        offline: bool,
    },
    CriticalEvent(CriticalEvent),
    Heartbeat {
        device_id: String,
        sent: Option<IsoTime>,
        /// Changes that it has and has not sent yet.
        unsent: Option<u64>,
    },
    TokenRenew,
}

/// `device_online`, with our extensions `cursor` and `subscribe`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnlineAsk {
    pub device_id: String,
    pub role: Option<Role>,
    pub priority: Option<u32>,
    pub capabilities: Option<Vec<String>>,
    /// The tables whose `data_update` broadcasts the session wants.
    pub subscribe: Option<Vec<String>>,
    /// Where the device left off.
    pub cursor: Option<String>,
    /// By the device's clock.
    pub sent: Option<IsoTime>,
    /// Changes that it has and has not sent yet.
    pub unsent: Option<u64>,
}

/// `sync_request`, with our extension `cursor`.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncAsk {
    pub device_id: String,
    pub sync_type: SyncType,
    pub last_sync_ms: Option<u64>,
    pub cursor: Option<String>,
    pub tables: Option<Vec<String>>,
}

/// What a client asks for, and the `request_id` that its answer is to carry.
#[derive(Clone, Debug)]
pub struct ClientRequest {
    pub event: ClientEvent,
    pub request_id: Option<Arc<str>>,
}
