//! What clients are sent, in the document's order.

use crate::gateway::protocol::events::EventDescription;
use crate::gateway::protocol::payloads::{
    ACKNOWLEDGED, AT, CHANGE, CLASS_RIGHTS, CLOCK_AHEAD, CONFLICT, CONFLICT_ID, CONFLICT_RESOLVED, DATA_RESPONSE,
    ERROR_TAIL, MASTER_ELECTED, OF_REQUEST, RECORD, ROLE_CHANGED, TABLE, TOKEN_RENEWED, UP_TO, WHO,
};
use crate::gateway::protocol::schema::{
    ANY_COUNT, DEVICE_ID, FieldKind, OPERATION, ROLE, SYNC_TYPE, TABLES, WORDS, may, more, must, plus,
};
use crate::gateway::protocol::server::ServerEvent;
use crate::limits;

macro_rules! server_events {
    ($($variant:ident { name: $name:literal, about: $about:literal, fields: $fields:expr, })+) => {
        pub const TO_CLIENT: &[EventDescription] =
            &[$(EventDescription { name: $name, about: $about, fields: $fields, answers: &[] }),+];

        impl ServerEvent<'_> {
            /// The documented name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $name,)+
                }
            }
        }
    };
}

server_events! {
    DeviceOnlineAck {
        name: "device_online_ack",
        about: "The device is online, with this role.",
        fields: &[
            WHO,
            must("current_master", FieldKind::OrNull(&DEVICE_ID), ""),
            must("role", ROLE, ""),
            AT,
            plus("term", ANY_COUNT, ""),
            UP_TO,
            CLOCK_AHEAD,
        ],
    }
    DeviceOfflineAck {
        name: "device_offline_ack",
        about: "The device is offline.",
        fields: &[WHO, AT],
    }
    MasterElected {
        name: "master_elected",
        about: "To all: there is a new master.",
        fields: MASTER_ELECTED,
    }
    RoleChange {
        name: "role_change",
        about: "To all: a device has a new role.",
        fields: &[ROLE_CHANGED[0], ROLE_CHANGED[1], ROLE_CHANGED[2], AT, plus("term", ANY_COUNT, "")],
    }
    RoleChangeAck {
        name: "role_change_ack",
        about: "The role change that was asked for is done.",
        fields: &ROLE_CHANGED,
    }
    SyncResponse {
        name: "sync_response",
        about: "A page of a sync.",
        fields: &[
            must(
                "sync_type",
                SYNC_TYPE,
                "`full` also when an incremental sync is not possible any more, or a full one was not completed.",
            ),
            must(
                "timestamp",
                FieldKind::Time,
                "The place that the sync has come to: an incremental one since then misses nothing.",
            ),
            must("changes", FieldKind::List(CHANGE), ""),
            must("master_device_id", DEVICE_ID, ""),
            must("sync_id", FieldKind::Text(64), "The same on every page."),
            plus("page", ANY_COUNT, "From 1."),
            plus("total", ANY_COUNT, "At most so many changes; exact on the last page."),
            plus("has_more", FieldKind::Flag, "More pages follow by themselves."),
            UP_TO,
        ],
    }
    SyncCompleteAck {
        name: "sync_complete_ack",
        about: "To all: a device is in sync.",
        fields: &[
            WHO,
            must("sync_timestamp", FieldKind::Time, ""),
            must("changes_count", ANY_COUNT, ""),
            must("timestamp", FieldKind::Time, "Up to when the device has everything: of the sync's last page."),
        ],
    }
    SyncConflict {
        name: "sync_conflict",
        about: "To the sender: its change conflicts with the record.",
        fields: CONFLICT,
    }
    SyncConflictResolved {
        name: "sync_conflict_resolved",
        about: "To all: how a conflict was decided.",
        fields: CONFLICT_RESOLVED,
    }
    SyncError {
        name: "sync_error",
        about: "A sync was refused, or has failed.",
        fields: &[
            WHO,
            must("error_message", WORDS, ""),
            ERROR_TAIL[0],
            ERROR_TAIL[1],
            ERROR_TAIL[2],
            ERROR_TAIL[3],
            ERROR_TAIL[4],
            ERROR_TAIL[5],
            may("sync_type", FieldKind::Text(32), ""),
            OF_REQUEST,
        ],
    }
    SyncErrorAck {
        name: "sync_error_ack",
        about: "A reported sync error was noted.",
        fields: &[WHO, must("error_message", WORDS, ""), must("error_code", FieldKind::Text(16), ""), AT],
    }
    DataUpdate {
        name: "data_update",
        about: "To all who subscribed, the sender too: a record changed. In order, each once.",
        fields: &[
            must("device_id", DEVICE_ID, "Who wrote it."),
            TABLE,
            RECORD,
            must("new_data", FieldKind::Data, ""),
            must("operation", OPERATION, ""),
            AT,
            plus("seq", ANY_COUNT, "The change's number, and the record's version."),
            UP_TO,
            plus(
                "after",
                ANY_COUNT,
                "The `seq` of the table's change before this one; 0: none. A session with `subscribe` sees by it that it missed none.",
            ),
            more("request_id", FieldKind::Text(limits::REQUEST_ID), ""),
            more(
                "timestamp_as_sent",
                FieldKind::Text(limits::TIME_TEXT),
                "The writer's time, if `timestamp` is another one.",
            ),
        ],
    }
    DataResponse {
        name: "data_response",
        about: "The record that was asked for.",
        fields: DATA_RESPONSE,
    }
    QueueStatusResponse {
        name: "queue_status_response",
        about: "How much waits for a device.",
        fields: &[
            WHO,
            must("queue_type", FieldKind::Word(&["sync", "offline"]), ""),
            must(
                "pending_count",
                ANY_COUNT,
                "Changes of others since the device's last sync or resume (`offline`: that it missed while it was offline).",
            ),
            must("last_processed", FieldKind::Time, ""),
            must("status", FieldKind::Word(&["idle", "processing", "error"]), ""),
            AT,
        ],
    }
    CriticalEvent {
        name: "critical_event",
        about: "To all: what a device sent.",
        fields: &[
            must("event_type", FieldKind::Name(limits::EVENT_TYPE), ""),
            must("payload", FieldKind::Data, ""),
            WHO,
            AT,
        ],
    }
    Registered {
        name: "registered",
        about: "The device is new to the cluster.",
        fields: &[WHO, must("role", ROLE, ""), AT],
    }
    Acknowledged {
        name: "acknowledged",
        about: "A request is done.",
        fields: ACKNOWLEDGED,
    }
    HeartbeatAck {
        name: "heartbeat_ack",
        about: "",
        fields: &[WHO, AT, CLOCK_AHEAD],
    }
    TokenRenewed {
        name: "token_renewed",
        about: "The token in place of the session's. It may be renewed until its device is suspended or its tokens are taken back.",
        fields: &TOKEN_RENEWED,
    }
    AccessChanged {
        name: "access_changed",
        about: "To all sessions and event streams of a class whose rights were changed; and after `device_online_ack`, if the class may not do everything.",
        fields: &[
            CLASS_RIGHTS[0],
            CLASS_RIGHTS[1],
            CLASS_RIGHTS[2],
            plus("forget", TABLES, "Tables that it may no longer read: what the device has of them must go."),
            plus("resync", TABLES, "Tables that it may read from now on: a full sync brings what was there before."),
            AT,
        ],
    }
    Error {
        name: "error",
        about: "A request was refused, or the session ends. The connection stays unless the server closes it.",
        fields: &[
            must("error", WORDS, ""),
            ERROR_TAIL[0],
            ERROR_TAIL[1],
            ERROR_TAIL[2],
            ERROR_TAIL[3],
            ERROR_TAIL[4],
            ERROR_TAIL[5],
            more("event", WORDS, "The event that it answers."),
            CONFLICT_ID,
            OF_REQUEST,
        ],
    }
}
