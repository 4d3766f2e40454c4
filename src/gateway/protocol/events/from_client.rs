//! What clients send, in the document's order.

use crate::gateway::protocol::client::ClientEvent;
use crate::gateway::protocol::decode::{
    critical_event, data_request, data_update, heartbeat, leaving, master_election, online, queue_status, resolved,
    role_change, sync_complete, sync_conflict, sync_error, sync_request,
};
use crate::gateway::protocol::events::{ClientEventDecoder, EventDescription};
use crate::gateway::protocol::payloads::{
    ACTOR, AFTER, ELECTION, ONLINE, RECORD, RESOLVED, SENT_AT, TABLE, UNSENT, UPDATE,
};
use crate::gateway::protocol::schema::{
    ANY_COUNT, CONFLICT_TYPE, FieldKind, REASON, ROLE, SYNC_TYPE, TABLES, may, must,
};
use crate::limits;
use crate::model::error::Code;

macro_rules! client_events {
    ($($variant:ident {
        name: $name:literal,
        code: $code:expr,
        decode: $decode:expr,
        about: $about:literal,
        fields: $fields:expr,
        answers: $answers:expr,
    })+) => {
        pub const FROM_CLIENT: &[EventDescription] =
            &[$(EventDescription { name: $name, about: $about, fields: $fields, answers: $answers }),+];

        pub(super) const DECODERS: &[ClientEventDecoder] =
            &[$(ClientEventDecoder { name: $name, code: $code, decode: $decode }),+];

        impl ClientEvent {
            /// The documented name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $name,)+
                }
            }
        }
    };
}

client_events! {
    DeviceOnline {
        name: "device_online",
        code: Code::Registration,
        decode: |f, _| online(f).map(ClientEvent::DeviceOnline),
        about: "A device comes online, or back.",
        fields: ONLINE,
        answers: &["device_online_ack", "registered"],
    }
    DeviceOffline {
        name: "device_offline",
        code: Code::Registration,
        decode: |f, _| leaving(f).map(|(device_id, reason)| ClientEvent::DeviceOffline { device_id, reason }),
        about: "A device goes offline in good order.",
        fields: &[ACTOR, may("reason", REASON, ""), SENT_AT],
        answers: &["device_offline_ack"],
    }
    DeviceShutdown {
        name: "device_shutdown",
        code: Code::Registration,
        decode: |f, _| leaving(f).map(|(device_id, reason)| ClientEvent::DeviceShutdown { device_id, reason }),
        about: "A device shuts down; if it is the master, a new one is elected.",
        fields: &[ACTOR, may("reason", REASON, ""), SENT_AT],
        answers: &["acknowledged", "master_elected"],
    }
    MasterElection {
        name: "master_election",
        code: Code::Election,
        decode: |f, _| master_election(f),
        about: "Asks for a master election.",
        fields: ELECTION,
        answers: &["master_elected"],
    }
    RoleChange {
        name: "role_change",
        code: Code::RoleChange,
        decode: |f, _| role_change(f),
        about: "Asks for a change of a device's role. A device that asks for itself must rank above a master that is online.",
        fields: &[ACTOR, must("new_role", ROLE, ""), may("reason", REASON, ""), SENT_AT],
        answers: &["role_change_ack", "role_change"],
    }
    SyncRequest {
        name: "sync_request",
        code: Code::SyncRequest,
        decode: |f, _| sync_request(f).map(ClientEvent::SyncRequest),
        about: "Asks for all records, or for what changed since a cursor or a time. Comes in pages with one `sync_id`.",
        fields: &[
            ACTOR,
            may("sync_type", SYNC_TYPE, "Default: full."),
            may(
                "last_sync_timestamp",
                FieldKind::Time,
                "For an incremental sync without a cursor: the time of the last page or of `sync_complete_ack`, or of the \
                 last change that was heard in order. If it has not come yet, what the cluster has noted of the device counts.",
            ),
            may("requested_tables", TABLES, "Default: all."),
            SENT_AT,
            AFTER,
        ],
        answers: &["sync_response", "sync_error"],
    }
    SyncComplete {
        name: "sync_complete",
        code: Code::SyncRequest,
        decode: |f, _| sync_complete(f),
        about: "The device has applied a sync.",
        fields: &[
            ACTOR,
            may("sync_timestamp", FieldKind::Time, ""),
            may("changes_count", ANY_COUNT, ""),
            may(
                "sync_id",
                FieldKind::Text(64),
                "Of the `sync_response`. 2001 before the page with `has_more` false was sent.",
            ),
            SENT_AT,
            AFTER,
        ],
        answers: &["sync_complete_ack"],
    }
    SyncConflict {
        name: "sync_conflict",
        code: Code::InvalidData,
        decode: |f, frame| sync_conflict(f, frame).map(ClientEvent::SyncConflict),
        about: "Reports a conflict that the client found.",
        fields: &[
            ACTOR,
            TABLE,
            RECORD,
            must("conflict_type", CONFLICT_TYPE, ""),
            may(
                "conflict_data",
                FieldKind::Object(&[
                    may("local_version", FieldKind::Data, ""),
                    may("remote_version", FieldKind::Data, ""),
                    may("timestamp", FieldKind::Time, ""),
                ]),
                "",
            ),
            SENT_AT,
        ],
        answers: &["acknowledged"],
    }
    SyncConflictResolved {
        name: "sync_conflict_resolved",
        code: Code::InvalidData,
        decode: |f, frame| resolved(f, frame).map(ClientEvent::SyncConflictResolved),
        about: "Decides an open conflict.",
        fields: RESOLVED,
        answers: &["acknowledged", "sync_conflict_resolved"],
    }
    SyncError {
        name: "sync_error",
        code: Code::InvalidData,
        decode: |f, _| sync_error(f).map(ClientEvent::SyncError),
        about: "Reports that a sync failed on the device.",
        fields: &[
            ACTOR,
            must("error_message", FieldKind::Text(limits::ERROR_MESSAGE), ""),
            may("error_code", FieldKind::Text(16), ""),
            may("sync_type", FieldKind::Text(32), ""),
            SENT_AT,
        ],
        answers: &["sync_error_ack"],
    }
    DataUpdate {
        name: "data_update",
        code: Code::InvalidData,
        decode: |f, frame| data_update(f, frame).map(ClientEvent::DataUpdate),
        about: "Changes a record. Acknowledged when it is committed; then all sessions get it.",
        fields: UPDATE,
        answers: &["acknowledged", "data_update"],
    }
    DataRequest {
        name: "data_request",
        code: Code::InvalidData,
        decode: |f, _| data_request(f),
        about: "Asks for a record.",
        fields: &[ACTOR, TABLE, RECORD, SENT_AT],
        answers: &["data_response"],
    }
    QueueStatus {
        name: "queue_status",
        code: Code::InvalidData,
        decode: |f, _| queue_status(f),
        about: "Asks how much waits for a device.",
        fields: &[ACTOR, may("queue_type", FieldKind::Word(&["sync", "offline"]), "Default: sync."), SENT_AT],
        answers: &["queue_status_response"],
    }
    CriticalEvent {
        name: "critical_event",
        code: Code::InvalidData,
        decode: |f, frame| critical_event(f, frame).map(ClientEvent::CriticalEvent),
        about: "Sends something of the client's own to all sessions.",
        fields: &[
            must("event_type", FieldKind::Name(limits::EVENT_TYPE), ""),
            must("payload", FieldKind::Data, ""),
            ACTOR,
            SENT_AT,
        ],
        answers: &["acknowledged", "critical_event"],
    }
    Heartbeat {
        name: "heartbeat",
        code: Code::InvalidData,
        decode: |f, _| heartbeat(f),
        about: "A sign of life. Not needed: pings of the transport count, too. Its time tells how far the device's clock is off.",
        fields: &[ACTOR, SENT_AT, UNSENT],
        answers: &["heartbeat_ack"],
    }
    TokenRenew {
        name: "token_renew",
        code: Code::InvalidData,
        decode: |f, _| f.maybe_time("timestamp").map(|_| ClientEvent::TokenRenew),
        about: "Asks for a token in place of the session's own. The session goes on with it.",
        fields: &[SENT_AT],
        answers: &["token_renewed"],
    }
}
