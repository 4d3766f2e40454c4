//! Fields of payloads that several events, or events and REST, have in common.

use super::schema::{
    ANY_COUNT, CLASS, CONFLICT_TYPE, CURSOR, DEVICE_ID, ELECTION_REASON, FieldDescription, FieldKind, METHOD,
    OPERATION, REASON, RETRY, RIGHTS, ROLE, TABLE_NAME, TABLES, WORDS, may, more, must, plus,
};
use crate::limits;

pub(crate) const CLOCK_AHEAD: FieldDescription = more(
    "clock_ahead_ms",
    FieldKind::Number,
    "The device's clock is so far ahead (or, negative, behind): its times are corrected. Missing below 2 s.",
);
/// Which device acts. The token must allow it.
pub(in crate::gateway) const ACTOR: FieldDescription = must("device_id", DEVICE_ID, "The device that acts.");
pub(in crate::gateway) const SENT_AT: FieldDescription = may("timestamp", FieldKind::Time, "The client's time.");
pub(in crate::gateway) const AT: FieldDescription =
    must("timestamp", FieldKind::Time, "When it happened, by the cluster's clock.");
pub(in crate::gateway) const WHO: FieldDescription = must("device_id", DEVICE_ID, "");
pub(in crate::gateway) const TABLE: FieldDescription = must("table_name", TABLE_NAME, "");
pub(in crate::gateway) const RECORD: FieldDescription = must("record_id", FieldKind::RecordId, "");
pub(in crate::gateway) const AFTER: FieldDescription =
    more("cursor", CURSOR, "Where the device left off: from an earlier answer.");
pub(in crate::gateway) const UP_TO: FieldDescription =
    plus("cursor", CURSOR, "Keep it: a sync or a resume goes on from here.");
pub(in crate::gateway) const CONFLICT_ID: FieldDescription = more("conflict_id", ANY_COUNT, "The conflict's number.");

pub(in crate::gateway) const OF_REQUEST: FieldDescription =
    more("request_id", FieldKind::Text(limits::REQUEST_ID), "Of the refused request, if it had one.");

pub(crate) const ONLINE: &[FieldDescription] = &[
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
pub(in crate::gateway) const UNSENT: FieldDescription =
    more("unsent", FieldKind::Count(limits::UNSENT), "How many changes the device has that it has not sent yet.");

/// A token that takes the place of another one.
pub(crate) const TOKEN_RENEWED: [FieldDescription; 5] = [
    must("device_id", DEVICE_ID, "The token's device."),
    must("class", CLASS, ""),
    must("token", WORDS, "Keep it in place of the one before, which stays good until it ends by itself."),
    must("expires", FieldKind::Time, ""),
    AT,
];

/// What a class may do with tables.
pub(crate) const CLASS_RIGHTS: [FieldDescription; 3] = [
    plus("class", CLASS, "Of the token."),
    plus("tables", RIGHTS, "What it may do with each table; `*` stands for every table that is not named."),
    plus("create_tables", FieldKind::Flag, "It may write to a table that does not exist yet."),
];

pub(crate) const ELECTION: &[FieldDescription] = &[
    must(
        "reason",
        ELECTION_REASON,
        "`manual` needs an admin or a manager. A device may say `failure` when the master is gone, and `shutdown` also as the master.",
    ),
    may("initiated_by", FieldKind::Text(limits::DEVICE_ID), ""),
    SENT_AT,
];

pub(in crate::gateway) const RESOLVED: &[FieldDescription] = &[
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
pub(crate) const NEW_RECORD: FieldDescription = more(
    "new_record_id",
    FieldKind::RecordId,
    "What lost (or `resolved_data`) becomes this record, which must not exist; the record stays as it is.",
);
pub(crate) const DECIDED_ON: FieldDescription =
    more("version", ANY_COUNT, "The record's version that the decision was made on: 2002 if it has moved on.");

/// All of `data_update`; a REST call has table and record in its path.
pub(crate) const UPDATE: &[FieldDescription] = &[
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
    more("bulk", FieldKind::Flag, "A part of a bulk load: it waits (5003) while disks are low."),
];
pub(crate) const BASE: FieldDescription =
    more("base_version", ANY_COUNT, "The version (`seq`) that was changed: finds conflicts.");
pub(crate) const REQUEST_ID: FieldDescription = more(
    "request_id",
    FieldKind::Text(limits::REQUEST_ID),
    "A repeat with the same id is not applied again, if it is one of the device's newest 1,024; with other content it is refused.",
);
pub(crate) const QUEUE: FieldDescription = more(
    "queue",
    FieldKind::Name(limits::QUEUE_ID),
    "The id of a durable queue of the device, drawn when the queue was made. With `n` and `after`: each entry is applied once, however late its repeat comes.",
);
pub(crate) const N: FieldDescription =
    more("n", FieldKind::Size(i64::MAX as u64), "The entry's number in its queue; grows.");
pub(crate) const AFTER_N: FieldDescription =
    more("after", ANY_COUNT, "The `n` of the entry before it that was not given up; 0 for the first one.");

/// What every error carries, whatever the transport.
pub(crate) const ERROR_TAIL: [FieldDescription; 6] = [
    must("error_code", FieldKind::Text(16), "One of the documented codes."),
    AT,
    plus("retry", RETRY, "`safe`: nothing was written. `same_request_id`: it may have been."),
    more("field", WORDS, "The field that is wrong."),
    more("retry_after_ms", ANY_COUNT, "When to try again."),
    more("last", ANY_COUNT, "Of a queue's entry that is out of order: the last `n` of the queue that was applied."),
];

pub(in crate::gateway) const ROLE_CHANGED: [FieldDescription; 4] =
    [WHO, must("new_role", ROLE, ""), must("reason", REASON, ""), AT];

pub(crate) const INITIATED_BY: FieldDescription =
    more("initiated_by", WORDS, "Who asked for it, as the request says; none: the master was gone.");
pub(crate) const ELECTED_BY: FieldDescription =
    more("by", FieldKind::Text(limits::DEVICE_ID), "Whose token asked for it (its `sub`), or brought it about.");

pub(crate) const MASTER_ELECTED: &[FieldDescription] = &[
    must("previous_master_id", FieldKind::OrNull(&DEVICE_ID), ""),
    must("new_master_id", DEVICE_ID, ""),
    must("election_reason", ELECTION_REASON, ""),
    must("election_timestamp", FieldKind::Time, ""),
    must("devices_participating", ANY_COUNT, ""),
    must("election_method", FieldKind::Word(&["priority", "manual", "automatic"]), ""),
    plus("term", ANY_COUNT, "Grows with every election: the newest master has the greatest."),
    INITIATED_BY,
    ELECTED_BY,
];

/// A change in a sync or in the change feed.
pub(crate) const CHANGE: &[FieldDescription] = &[
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

pub(in crate::gateway) const CONFLICT_DATA: FieldKind = FieldKind::Object(&[
    must("local_version", FieldKind::Data, "What the record is."),
    must("remote_version", FieldKind::Data, "What the device sent."),
    must("timestamp", FieldKind::Time, "Of what the device sent."),
]);

pub(crate) const CONFLICT: &[FieldDescription] = &[
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

pub(crate) const CONFLICT_RESOLVED: &[FieldDescription] = &[
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

pub(crate) const DATA_RESPONSE: &[FieldDescription] = &[
    TABLE,
    RECORD,
    must("data", FieldKind::OrNull(&FieldKind::Data), "Null: there is no such record."),
    AT,
    more("version", ANY_COUNT, ""),
];

/// Of a change that was committed.
pub(crate) const TIME_TAKEN: FieldDescription = more(
    "timestamp_taken",
    FieldKind::Word(&["now", "corrected"]),
    "The change's time was not taken as sent. `now`: it has no offset and the device's is not known. `corrected`: by \
         how far the device's clock is off, or by its offset.",
);
pub(crate) const ACKNOWLEDGED: &[FieldDescription] = &[
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
