//! What applying a command gives the gateway to send: the documented server events.

use std::sync::Arc;

use super::access::rights::{ClassNumber, ClassRights};
use super::error::Error;
use crate::ids::{LogIndex, MasterTerm, Seq, UnixMs};
use crate::proto::{Change, Conflict, Election, Role};

/// One event for the sessions of every node, in the order of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// `data_update` to every session that wants the table.
    Changed(Arc<Change>),
    /// `critical_event` to all. `payload` is the sender's JSON.
    Critical { device_id: String, event_type: String, payload: bytes::Bytes, timestamp_ms: UnixMs },
    /// `master_elected` to all.
    MasterElected(Arc<Election>),
    /// `error` 4003 to all: a manual election is needed.
    ElectionFailed { error: Error, at_ms: UnixMs },
    /// `role_change` to all.
    RoleChanged { device_id: String, role: Role, reason: String, term: MasterTerm, at_ms: UnixMs },
    /// `sync_complete_ack` to all.
    SyncCompleted { device_id: String, sync_timestamp_ms: UnixMs, changes_count: u64, at_ms: UnixMs },
    /// `sync_conflict` to the sessions of the sender, `Conflict::device_id`, and of `Conflict::writer`, if there is one.
    ConflictFound(Arc<Conflict>),
    /// `sync_conflict_resolved` to all.
    ConflictResolved(Arc<Conflict>),
    /// Sessions that came with this token end.
    TokenRevoked { jti: String },
    /// Sessions that came with a token of this device end, if the state refuses it by now: for the reason that it tells.
    DeviceKeptOut { device_id: String },
    /// `access_changed` to the sessions of the class: what it may do from now on, the tables that it may no longer read,
    /// and those of which it may lack what came before.
    AccessChanged {
        class: ClassNumber,
        rights: Arc<ClassRights>,
        forget: Vec<String>,
        resync: Vec<String>,
        at_ms: UnixMs,
    },
    /// This node took a snapshot in: what came before change `head` was not told one by one. Sessions must
    /// be brought to it from the change log, or closed to resume.
    Skipped { head: Seq },
}

/// The effects of one Raft entry, as the hub gets them.
#[derive(Clone, Debug)]
pub struct Effects {
    /// The entry's index in the log.
    pub index: LogIndex,
    /// The history that the changes are of, for their cursors.
    pub epoch: u64,
    pub effects: Vec<Effect>,
}
