//! Every event, in the document's order: first what clients send, then what they are sent.

use super::field::{
    ANY_COUNT, CLASS, CONFLICT_TYPE, CURSOR, DEVICE_ID, ELECTION_REASON, FieldDescription, FieldKind, METHOD,
    OPERATION, REASON, RETRY, RIGHTS, ROLE, SYNC_TYPE, TABLE_NAME, TABLES, WORDS, may, more, must, plus,
};
use crate::limits;

pub struct EventDescription {
    pub name: &'static str,
    pub about: &'static str,
    pub fields: &'static [FieldDescription],
    /// The events that answer it.
    pub answers: &'static [&'static str],
}

const fn event(
    name: &'static str,
    about: &'static str,
    fields: &'static [FieldDescription],
    answers: &'static [&'static str],
) -> EventDescription {
    EventDescription { name, about, fields, answers }
}

pub const CLOCK_AHEAD: FieldDescription = more(
    "clock_ahead_ms",
    FieldKind::Number,
    "The device's clock is so far ahead (or, negative, behind): its times are corrected. Missing below 2 s.",
);
/// Which device acts. The token must allow it.
const ACTOR: FieldDescription = must("device_id", DEVICE_ID, "The device that acts.");
const SENT_AT: FieldDescription = may("timestamp", FieldKind::Time, "The client's time.");
const AT: FieldDescription = must("timestamp", FieldKind::Time, "When it happened, by the cluster's clock.");
const WHO: FieldDescription = must("device_id", DEVICE_ID, "");
const TABLE: FieldDescription = must("table_name", TABLE_NAME, "");
const RECORD: FieldDescription = must("record_id", FieldKind::RecordId, "");
const AFTER: FieldDescription = more("cursor", CURSOR, "Where the device left off: from an earlier answer.");
const UP_TO: FieldDescription = plus("cursor", CURSOR, "Keep it: a sync or a resume goes on from here.");
const CONFLICT_ID: FieldDescription = more("conflict_id", ANY_COUNT, "The conflict's number.");

const OF_REQUEST: FieldDescription =
    more("request_id", FieldKind::Text(limits::REQUEST_ID), "Of the refused request, if it had one.");

pub const ONLINE: &[FieldDescription] = &[
    must("device_id", DEVICE_ID, "The device that comes online."),
    may("role", ROLE, "`master` is granted if there is none, or by higher priority. Default: client."),
    may(
        "priority",
        FieldKind::Count(limits::PRIORITY as u64),
        "In elections; the token's class bounds it. Default: 0.",
    ),
    may(
        "capabilities",
        FieldKind::Texts(limits::CAPABILITIES, limits::CAPABILITY),
        "`no-master`: it is no candidate in elections.",
    ),
    SENT_AT,
    AFTER,
    more(
        "subscribe",
        TABLES,
        "The tables whose updates this session wants, from now on. Default: as before, at first all; `[]`: none.",
    ),
    UNSENT,
];
const UNSENT: FieldDescription =
    more("unsent", FieldKind::Count(limits::UNSENT), "How many changes the device has that it has not sent yet.");

/// A token that takes the place of another one.
pub const TOKEN_RENEWED: [FieldDescription; 5] = [
    must("device_id", DEVICE_ID, "The token's device."),
    must("class", CLASS, ""),
    must("token", WORDS, "Keep it in place of the one before, which stays good until it ends by itself."),
    must("expires", FieldKind::Time, ""),
    AT,
];

/// What a class may do with tables.
pub const CLASS_RIGHTS: [FieldDescription; 3] = [
    plus("class", CLASS, "Of the token."),
    plus("tables", RIGHTS, "What it may do with each table; `*` stands for every table that is not named."),
    plus("create_tables", FieldKind::Flag, "It may write to a table that does not exist yet."),
];

pub const ELECTION: &[FieldDescription] = &[
    must(
        "reason",
        ELECTION_REASON,
        "`manual` needs an admin or a manager. A device may say `failure` when the master is gone, and `shutdown` also as the master.",
    ),
    may("initiated_by", FieldKind::Text(limits::DEVICE_ID), ""),
    SENT_AT,
];

pub const FROM_CLIENT: &[EventDescription] = &[
    event("device_online", "A device comes online, or back.", ONLINE, &["device_online_ack", "registered"]),
    event(
        "device_offline",
        "A device goes offline in good order.",
        &[ACTOR, may("reason", REASON, ""), SENT_AT],
        &["device_offline_ack"],
    ),
    event(
        "device_shutdown",
        "A device shuts down; if it is the master, a new one is elected.",
        &[ACTOR, may("reason", REASON, ""), SENT_AT],
        &["acknowledged", "master_elected"],
    ),
    event("master_election", "Asks for a master election.", ELECTION, &["master_elected"]),
    event(
        "role_change",
        "Asks for a change of a device's role. A device that asks for itself must rank above a master that is online.",
        &[ACTOR, must("new_role", ROLE, ""), may("reason", REASON, ""), SENT_AT],
        &["role_change_ack", "role_change"],
    ),
    event(
        "sync_request",
        "Asks for all records, or for what changed since a cursor or a time. Comes in pages with one `sync_id`.",
        &[
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
        &["sync_response", "sync_error"],
    ),
    event(
        "sync_complete",
        "The device has applied a sync.",
        &[
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
        &["sync_complete_ack"],
    ),
    event(
        "sync_conflict",
        "Reports a conflict that the client found.",
        &[
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
        &["acknowledged"],
    ),
    event("sync_conflict_resolved", "Decides an open conflict.", RESOLVED, &["acknowledged", "sync_conflict_resolved"]),
    event(
        "sync_error",
        "Reports that a sync failed on the device.",
        &[
            ACTOR,
            must("error_message", FieldKind::Text(limits::ERROR_MESSAGE), ""),
            may("error_code", FieldKind::Text(16), ""),
            may("sync_type", FieldKind::Text(32), ""),
            SENT_AT,
        ],
        &["sync_error_ack"],
    ),
    event(
        "data_update",
        "Changes a record. Acknowledged when it is committed; then all sessions get it.",
        UPDATE,
        &["acknowledged", "data_update"],
    ),
    event("data_request", "Asks for a record.", &[ACTOR, TABLE, RECORD, SENT_AT], &["data_response"]),
    event(
        "queue_status",
        "Asks how much waits for a device.",
        &[ACTOR, may("queue_type", FieldKind::Word(&["sync", "offline"]), "Default: sync."), SENT_AT],
        &["queue_status_response"],
    ),
    event(
        "critical_event",
        "Sends something of the client's own to all sessions.",
        &[
            must("event_type", FieldKind::Name(limits::EVENT_TYPE), ""),
            must("payload", FieldKind::Data, ""),
            ACTOR,
            SENT_AT,
        ],
        &["acknowledged", "critical_event"],
    ),
    event(
        "heartbeat",
        "A sign of life. Not needed: pings of the transport count, too. Its time tells how far the device's clock is off.",
        &[ACTOR, SENT_AT, UNSENT],
        &["heartbeat_ack"],
    ),
    event(
        "token_renew",
        "Asks for a token in place of the session's own. The session goes on with it.",
        &[SENT_AT],
        &["token_renewed"],
    ),
];

const RESOLVED: &[FieldDescription] = &[
    TABLE,
    RECORD,
    may("resolution_method", METHOD, "Default: manual."),
    may("resolved_data", FieldKind::Data, "What the record becomes. Required without `delete` and `new_record_id`."),
    SENT_AT,
    more("device_id", DEVICE_ID, "Who decides. Default: the token's device."),
    CONFLICT_ID,
    more("delete", FieldKind::Flag, "The record goes."),
    NEW_RECORD,
    DECIDED_ON,
];
pub const NEW_RECORD: FieldDescription = more(
    "new_record_id",
    FieldKind::RecordId,
    "What lost (or `resolved_data`) becomes this record, which must not exist; the record stays as it is.",
);
pub const DECIDED_ON: FieldDescription =
    more("version", ANY_COUNT, "The record's version that the decision was made on: 2002 if it has moved on.");

/// All of `data_update`; a REST call has table and record in its path.
pub const UPDATE: &[FieldDescription] = &[
    ACTOR,
    TABLE,
    RECORD,
    must("new_data", FieldKind::Data, "The whole record. Not needed for a delete. At most 256 KiB."),
    may("operation", OPERATION, "Default: update."),
    may("timestamp", FieldKind::Time, "When it was changed, by the device's clock, with an offset. Default: now."),
    BASE,
    REQUEST_ID,
    QUEUE,
    N,
    AFTER_N,
];
pub const BASE: FieldDescription =
    more("base_version", ANY_COUNT, "The version (`seq`) that was changed: finds conflicts.");
pub const REQUEST_ID: FieldDescription = more(
    "request_id",
    FieldKind::Text(limits::REQUEST_ID),
    "A repeat with the same id is not applied again, if it is one of the device's newest 1,024; with other content it is refused.",
);
pub const QUEUE: FieldDescription = more(
    "queue",
    FieldKind::Name(limits::QUEUE_ID),
    "The id of a durable queue of the device, drawn when the queue was made. With `n` and `after`: each entry is applied once, however late its repeat comes.",
);
pub const N: FieldDescription = more("n", FieldKind::Size(i64::MAX as u64), "The entry's number in its queue; grows.");
pub const AFTER_N: FieldDescription =
    more("after", ANY_COUNT, "The `n` of the entry before it that was not given up; 0 for the first one.");

/// What every error carries, whatever the transport.
pub const ERROR_TAIL: [FieldDescription; 6] = [
    must("error_code", FieldKind::Text(16), "One of the documented codes."),
    AT,
    plus("retry", RETRY, "`safe`: nothing was written. `same_request_id`: it may have been."),
    more("field", WORDS, "The field that is wrong."),
    more("retry_after_ms", ANY_COUNT, "When to try again."),
    more("last", ANY_COUNT, "Of a queue's entry that is out of order: the last `n` of the queue that was applied."),
];

const ROLE_CHANGED: [FieldDescription; 4] = [WHO, must("new_role", ROLE, ""), must("reason", REASON, ""), AT];

pub const MASTER_ELECTED: &[FieldDescription] = &[
    must("previous_master_id", FieldKind::OrNull(&DEVICE_ID), ""),
    must("new_master_id", DEVICE_ID, ""),
    must("election_reason", ELECTION_REASON, ""),
    must("election_timestamp", FieldKind::Time, ""),
    must("devices_participating", ANY_COUNT, ""),
    must("election_method", FieldKind::Word(&["priority", "manual", "automatic"]), ""),
    plus("term", ANY_COUNT, "Grows with every election: the newest master has the greatest."),
    super::bodies::INITIATED_BY,
    super::bodies::ELECTED_BY,
];

/// A change in a sync or in the change feed.
pub const CHANGE: &[FieldDescription] = &[
    TABLE,
    RECORD,
    must("operation", OPERATION, ""),
    must("data", FieldKind::Data, "Empty for a delete."),
    AT,
    plus("seq", ANY_COUNT, "The change's number, and the record's version."),
    more("device_id", DEVICE_ID, "Who wrote it."),
    more(
        "after",
        ANY_COUNT,
        "The `seq` of the table's change before this one; 0: none. Not of a record in a full sync.",
    ),
];

const CONFLICT_DATA: FieldKind = FieldKind::Object(&[
    must("local_version", FieldKind::Data, "What the record is."),
    must("remote_version", FieldKind::Data, "What the device sent."),
    must("timestamp", FieldKind::Time, "Of what the device sent."),
]);

pub const CONFLICT: &[FieldDescription] = &[
    must("device_id", DEVICE_ID, "Whose change conflicts."),
    TABLE,
    RECORD,
    must("conflict_type", CONFLICT_TYPE, ""),
    must("conflict_data", CONFLICT_DATA, ""),
    AT,
    plus("conflict_id", ANY_COUNT, "The conflict's number."),
    plus("version", ANY_COUNT, "The record's version when the conflict was found."),
    more("collision", FieldKind::Flag, "An insert met a live record: two devices drew the same number."),
];

pub const CONFLICT_RESOLVED: &[FieldDescription] = &[
    TABLE,
    RECORD,
    must("resolution_method", METHOD, ""),
    must("resolved_data", FieldKind::Data, ""),
    AT,
    plus("conflict_id", ANY_COUNT, ""),
    plus("device_id", DEVICE_ID, "Whose change it was."),
    plus("deleted", FieldKind::Flag, "The record is gone."),
    more("seq", ANY_COUNT, "The change that the decision made."),
    more("new_record_id", FieldKind::RecordId, "What lost became this record; `record_id` is what it was."),
    more("new_record_version", ANY_COUNT, "The version of that new record."),
];

pub const DATA_RESPONSE: &[FieldDescription] = &[
    TABLE,
    RECORD,
    must("data", FieldKind::OrNull(&FieldKind::Data), "Null: there is no such record."),
    AT,
    more("version", ANY_COUNT, ""),
];

/// Of a change that was committed.
pub const TIME_TAKEN: FieldDescription = more(
    "timestamp_taken",
    FieldKind::Word(&["now", "corrected"]),
    "The change's time was not taken as sent. `now`: it has no offset and the device's is not known. `corrected`: by \
         how far the device's clock is off, or by its offset.",
);
pub const ACKNOWLEDGED: &[FieldDescription] = &[
    must("message", WORDS, ""),
    AT,
    plus("event", WORDS, "What was acknowledged."),
    more("device_id", DEVICE_ID, ""),
    more("table_name", TABLE_NAME, ""),
    more("record_id", FieldKind::RecordId, ""),
    more("seq", ANY_COUNT, "The change's number; missing if it lost a conflict, or was committed long ago."),
    more("request_id", FieldKind::Text(limits::REQUEST_ID), ""),
    more("cursor", CURSOR, ""),
    more("conflict", FieldKind::Flag, "It met a conflict."),
    CONFLICT_ID,
    more("repeated", FieldKind::Flag, "It had been applied before."),
    more("queue", FieldKind::Name(limits::QUEUE_ID), "Of a queue's entry."),
    more("n", ANY_COUNT, "Of a queue's entry."),
    more("sync_id", FieldKind::Text(64), ""),
    TIME_TAKEN,
];

pub const TO_CLIENT: &[EventDescription] = &[
    event(
        "device_online_ack",
        "The device is online, with this role.",
        &[
            WHO,
            must("current_master", FieldKind::OrNull(&DEVICE_ID), ""),
            must("role", ROLE, ""),
            AT,
            plus("term", ANY_COUNT, ""),
            UP_TO,
            CLOCK_AHEAD,
        ],
        &[],
    ),
    event("device_offline_ack", "The device is offline.", &[WHO, AT], &[]),
    event("master_elected", "To all: there is a new master.", MASTER_ELECTED, &[]),
    event(
        "role_change",
        "To all: a device has a new role.",
        &[ROLE_CHANGED[0], ROLE_CHANGED[1], ROLE_CHANGED[2], AT, plus("term", ANY_COUNT, "")],
        &[],
    ),
    event("role_change_ack", "The role change that was asked for is done.", &ROLE_CHANGED, &[]),
    event(
        "sync_response",
        "A page of a sync.",
        &[
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
        &[],
    ),
    event(
        "sync_complete_ack",
        "To all: a device is in sync.",
        &[
            WHO,
            must("sync_timestamp", FieldKind::Time, ""),
            must("changes_count", ANY_COUNT, ""),
            must("timestamp", FieldKind::Time, "Up to when the device has everything: of the sync's last page."),
        ],
        &[],
    ),
    event("sync_conflict", "To the sender: its change conflicts with the record.", CONFLICT, &[]),
    event("sync_conflict_resolved", "To all: how a conflict was decided.", CONFLICT_RESOLVED, &[]),
    event(
        "sync_error",
        "A sync was refused, or has failed.",
        &[
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
        &[],
    ),
    event(
        "sync_error_ack",
        "A reported sync error was noted.",
        &[WHO, must("error_message", WORDS, ""), must("error_code", FieldKind::Text(16), ""), AT],
        &[],
    ),
    event(
        "data_update",
        "To all who subscribed, the sender too: a record changed. In order, each once.",
        &[
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
        &[],
    ),
    event("data_response", "The record that was asked for.", DATA_RESPONSE, &[]),
    event(
        "queue_status_response",
        "How much waits for a device.",
        &[
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
        &[],
    ),
    event(
        "critical_event",
        "To all: what a device sent.",
        &[must("event_type", FieldKind::Name(limits::EVENT_TYPE), ""), must("payload", FieldKind::Data, ""), WHO, AT],
        &[],
    ),
    event("registered", "The device is new to the cluster.", &[WHO, must("role", ROLE, ""), AT], &[]),
    event("acknowledged", "A request is done.", ACKNOWLEDGED, &[]),
    event("heartbeat_ack", "", &[WHO, AT, CLOCK_AHEAD], &[]),
    event(
        "token_renewed",
        "The token in place of the session's. It may be renewed until its device is suspended or its tokens are taken back.",
        &TOKEN_RENEWED,
        &[],
    ),
    event(
        "access_changed",
        "To all sessions and event streams of a class whose rights were changed; and after `device_online_ack`, if the class may not do everything.",
        &[
            CLASS_RIGHTS[0],
            CLASS_RIGHTS[1],
            CLASS_RIGHTS[2],
            plus("forget", TABLES, "Tables that it may no longer read: what the device has of them must go."),
            plus("resync", TABLES, "Tables that it may read from now on: a full sync brings what was there before."),
            AT,
        ],
        &[],
    ),
    event(
        "error",
        "A request was refused, or the session ends. The connection stays unless the server closes it.",
        &[
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
        &[],
    ),
];
