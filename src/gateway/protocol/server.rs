//! What clients are sent: one variant a documented event, with every documented field and our extras.

use super::json::{Object, push_object, push_text};
use crate::ids::{ConflictId, MasterTerm, RecordId, Seq};
use crate::model::access::{ClassNumber, ClassRights, OTHERS, Right};
use crate::model::change::operation_name;
use crate::model::conflict::type_name;
use crate::model::cursor::Cursor;
use crate::model::device::role_name;
use crate::model::election::{method_name, reason_name};
use crate::model::error::Error;
use crate::model::policy::method_name as resolution_name;
use crate::proto::{Change, Conflict, Election, Operation, ResolutionMethod, Role};
use crate::token::Claims;

/// One event for a client. Borrows: it lives as long as it takes to encode it.
#[derive(Clone, Debug)]
pub enum ServerEvent<'a> {
    DeviceOnlineAck {
        device_id: &'a str,
        master: &'a str,
        role: Role,
        term: MasterTerm,
        cursor: Cursor,
        clock_ahead_ms: Option<i64>,
        at_ms: u64,
    },
    DeviceOfflineAck {
        device_id: &'a str,
        at_ms: u64,
    },
    MasterElected(&'a Election),
    RoleChange {
        device_id: &'a str,
        role: Role,
        reason: &'a str,
        term: MasterTerm,
        at_ms: u64,
    },
    RoleChangeAck {
        device_id: &'a str,
        role: Role,
        reason: &'a str,
        at_ms: u64,
    },
    SyncResponse(&'a SyncPage<'a>),
    SyncCompleteAck {
        device_id: &'a str,
        sync_timestamp_ms: u64,
        changes_count: u64,
        at_ms: u64,
    },
    SyncConflict(&'a Conflict),
    SyncConflictResolved(&'a Conflict),
    SyncError {
        device_id: &'a str,
        error: &'a Error,
        sync_type: Option<&'a str>,
        field: Option<&'a str>,
        request_id: Option<&'a str>,
        at_ms: u64,
    },
    SyncErrorAck {
        device_id: &'a str,
        message: &'a str,
        code: &'a str,
        at_ms: u64,
    },
    DataUpdate {
        change: &'a Change,
        epoch: u64,
    },
    DataResponse {
        table_name: &'a str,
        record_id: RecordId,
        data: Option<&'a [u8]>,
        version: Option<Seq>,
        at_ms: u64,
    },
    QueueStatusResponse {
        device_id: &'a str,
        offline: bool,
        pending: u64,
        processed_ms: u64,
        status: &'a str,
        at_ms: u64,
    },
    CriticalEvent {
        event_type: &'a str,
        payload: &'a [u8],
        device_id: &'a str,
        at_ms: u64,
    },
    Registered {
        device_id: &'a str,
        role: Role,
        at_ms: u64,
    },
    Acknowledged(Acknowledged<'a>),
    HeartbeatAck {
        device_id: &'a str,
        /// How far the client's clock is ahead, if it is off.
        clock_ahead_ms: Option<i64>,
        at_ms: u64,
    },
    TokenRenewed {
        token: &'a str,
        claims: &'a Claims,
        at_ms: u64,
    },
    /// What the session's class may do with tables.
    AccessChanged {
        class: ClassNumber,
        rights: &'a ClassRights,
        /// Tables that it may no longer read, and those of which it lacks what came before.
        forget: &'a [String],
        resync: &'a [String],
        at_ms: u64,
    },
    Error {
        error: &'a Error,
        event: Option<&'a str>,
        field: Option<&'a str>,
        conflict_id: Option<ConflictId>,
        /// The refused request's, if its client gave one.
        request_id: Option<&'a str>,
        at_ms: u64,
    },
}

/// `acknowledged`: the documented message and time, and what was acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged<'a> {
    pub message: &'a str,
    pub at_ms: u64,
    pub event: &'a str,
    pub device_id: Option<&'a str>,
    /// Table and record.
    pub record: Option<(&'a str, RecordId)>,
    pub seq: Option<u64>,
    pub request_id: Option<&'a str>,
    pub cursor: Option<Cursor>,
    /// It met a conflict; its number.
    pub conflict_id: Option<ConflictId>,
    pub repeated: bool,
    /// The queue's entry that it was.
    pub entry: Option<(&'a str, u64)>,
    pub sync_id: Option<&'a str>,
    /// How the change's time was taken, if not as it was sent.
    pub timestamp_taken: Option<&'a str>,
}

/// One page of a sync.
#[derive(Clone, Debug)]
pub struct SyncPage<'a> {
    pub sync_type: &'a str,
    pub at_ms: u64,
    pub changes: Vec<SyncChange<'a>>,
    pub master: &'a str,
    pub sync_id: &'a str,
    /// From 1.
    pub page: u64,
    /// Changes of the whole sync: at most so many while there are more pages, exact in the last one.
    pub total: u64,
    pub has_more: bool,
    pub cursor: Cursor,
}

#[derive(Clone, Debug)]
pub struct SyncChange<'a> {
    pub table_name: &'a str,
    pub record_id: RecordId,
    pub operation: Operation,
    pub data: &'a [u8],
    pub timestamp_ms: u64,
    pub seq: u64,
    /// Who wrote it, where that is known.
    pub device_id: Option<&'a str>,
    /// The seq of the table's change before this one; `None` for a record, which is no change.
    pub after: Option<u64>,
}

impl ServerEvent<'_> {
    /// Appends the payload.
    pub fn body(&self, out: &mut Vec<u8>) {
        push_object(out, |o| self.fill(o));
    }

    /// Writes the payload's fields into an object.
    pub fn fill(&self, o: &mut Object<'_>) {
        match self {
            Self::DataUpdate { change, epoch } => data_update(o, change, *epoch),
            Self::Acknowledged(ack) => acknowledged(o, ack),
            Self::SyncResponse(page) => sync_response(o, page),
            Self::MasterElected(election) => master_elected(o, election),
            Self::SyncConflict(conflict) => sync_conflict(o, conflict),
            Self::SyncConflictResolved(conflict) => sync_conflict_resolved(o, conflict),
            Self::DeviceOnlineAck { device_id, master, role, term, cursor, clock_ahead_ms, at_ms } => {
                o.text("device_id", device_id).text_or_null("current_master", master).text("role", role_name(*role));
                o.time("timestamp", *at_ms).number("term", *term).text("cursor", &cursor.to_string());
                clock_ahead(o, *clock_ahead_ms);
            }
            Self::DeviceOfflineAck { device_id, at_ms } => {
                o.text("device_id", device_id).time("timestamp", *at_ms);
            }
            Self::HeartbeatAck { device_id, clock_ahead_ms, at_ms } => {
                o.text("device_id", device_id).time("timestamp", *at_ms);
                clock_ahead(o, *clock_ahead_ms);
            }
            Self::RoleChange { device_id, role, reason, term, at_ms } => {
                role_change(o, device_id, *role, reason, *at_ms);
                o.number("term", *term);
            }
            Self::RoleChangeAck { device_id, role, reason, at_ms } => role_change(o, device_id, *role, reason, *at_ms),
            Self::SyncCompleteAck { device_id, sync_timestamp_ms, changes_count, at_ms } => {
                o.text("device_id", device_id).time("sync_timestamp", *sync_timestamp_ms);
                o.number("changes_count", *changes_count).time("timestamp", *at_ms);
            }
            Self::SyncError { device_id, error, sync_type, field, request_id, at_ms } => {
                o.text("device_id", device_id).text("error_message", &error.message);
                error_tail(o, error, *field, *at_ms);
                o.maybe_text("sync_type", *sync_type).maybe_text("request_id", *request_id);
            }
            Self::SyncErrorAck { device_id, message, code, at_ms } => {
                o.text("device_id", device_id).text("error_message", message).text("error_code", code);
                o.time("timestamp", *at_ms);
            }
            Self::DataResponse { table_name, record_id, data, version, at_ms } => {
                o.text("table_name", table_name).number("record_id", *record_id);
                o.raw("data", data.map_or(b"null", |d| if d.is_empty() { b"{}" } else { d }));
                o.time("timestamp", *at_ms).maybe_number("version", version.map(Seq::get));
            }
            Self::QueueStatusResponse { device_id, offline, pending, processed_ms, status, at_ms } => {
                o.text("device_id", device_id).text("queue_type", if *offline { "offline" } else { "sync" });
                o.number("pending_count", *pending).time("last_processed", *processed_ms).text("status", status);
                o.time("timestamp", *at_ms);
            }
            Self::CriticalEvent { event_type, payload, device_id, at_ms } => {
                o.text("event_type", event_type).data("payload", payload).text("device_id", device_id);
                o.time("timestamp", *at_ms);
            }
            Self::Registered { device_id, role, at_ms } => {
                o.text("device_id", device_id).text("role", role_name(*role)).time("timestamp", *at_ms);
            }
            Self::TokenRenewed { token, claims, at_ms } => {
                o.text("device_id", &claims.sub).text("class", claims.class.name()).text("token", token);
                o.time("expires", claims.exp.saturating_mul(1_000)).time("timestamp", *at_ms);
            }
            Self::AccessChanged { class, rights, forget, resync, at_ms } => {
                class_rights(o, *class, Some(rights));
                o.array("forget", *forget, |out, table| push_text(out, table));
                o.array("resync", *resync, |out, table| push_text(out, table)).time("timestamp", *at_ms);
            }
            Self::Error { error, event, field, conflict_id, request_id, at_ms } => {
                o.text("error", &error.message);
                error_tail(o, error, *field, *at_ms);
                o.maybe_text("event", *event).maybe_number("conflict_id", *conflict_id);
                o.maybe_text("request_id", *request_id);
            }
        }
    }
}

/// How far a device's clock is ahead (or, negative, behind), where it is known to be off.
pub fn clock_ahead(o: &mut Object<'_>, ahead_ms: Option<i64>) {
    if let Some(ahead_ms) = ahead_ms {
        o.number("clock_ahead_ms", ahead_ms);
    }
}

/// What tokens of a class may do with tables. Without rights that were set, everything.
pub fn class_rights(o: &mut Object<'_>, class: ClassNumber, rights: Option<&ClassRights>) {
    o.text("class", class.name()).object("tables", |o| {
        for (table, right) in rights.into_iter().flat_map(ClassRights::tables) {
            o.text(table, right.name());
        }
        o.text(OTHERS, rights.map_or(Right::Write, ClassRights::others).name());
    });
    o.flag("create_tables", rights.is_none_or(ClassRights::creates_tables));
}

/// What every error has, on sockets and over REST.
pub fn error_tail(o: &mut Object<'_>, error: &Error, field: Option<&str>, at_ms: u64) {
    o.text("error_code", &error.code.to_string()).time("timestamp", at_ms).text("retry", error.retry.name());
    o.maybe_text("field", field).maybe_number("retry_after_ms", error.retry_after_ms);
    o.maybe_number("last", error.last());
}

fn role_change(o: &mut Object<'_>, device_id: &str, role: Role, reason: &str, at_ms: u64) {
    o.text("device_id", device_id).text("new_role", role_name(role)).text("reason", reason).time("timestamp", at_ms);
}

fn data_update(o: &mut Object<'_>, change: &Change, epoch: u64) {
    o.text("device_id", &change.device_id).text("table_name", &change.table_name);
    o.number("record_id", change.record_id).data("new_data", &change.data);
    o.text("operation", operation_name(change.operation())).time("timestamp", change.timestamp_ms);
    o.number("seq", change.seq).text("cursor", &Cursor::after(epoch, change).to_string());
    o.number("after", change.after);
    if !change.request_id.is_empty() {
        o.text("request_id", &change.request_id);
    }
    if !change.timestamp_as_sent.is_empty() {
        o.text("timestamp_as_sent", &change.timestamp_as_sent);
    }
}

fn acknowledged(o: &mut Object<'_>, ack: &Acknowledged<'_>) {
    o.text("message", ack.message).time("timestamp", ack.at_ms).text("event", ack.event);
    o.maybe_text("device_id", ack.device_id);
    if let Some((table, record)) = ack.record {
        o.text("table_name", table).number("record_id", record);
    }
    o.maybe_number("seq", ack.seq).maybe_text("request_id", ack.request_id);
    if let Some(cursor) = ack.cursor {
        o.text("cursor", &cursor.to_string());
    }
    if let Some(id) = ack.conflict_id {
        o.flag("conflict", true).number("conflict_id", id);
    }
    if ack.repeated {
        o.flag("repeated", true);
    }
    if let Some((queue, n)) = ack.entry {
        o.text("queue", queue).number("n", n);
    }
    o.maybe_text("sync_id", ack.sync_id).maybe_text("timestamp_taken", ack.timestamp_taken);
}

fn sync_response(o: &mut Object<'_>, page: &SyncPage<'_>) {
    o.text("sync_type", page.sync_type).time("timestamp", page.at_ms);
    o.array("changes", &page.changes, |out, change| push_object(out, |o| sync_change(o, change)));
    o.text("master_device_id", page.master).text("sync_id", page.sync_id);
    o.number("page", page.page).number("total", page.total).flag("has_more", page.has_more);
    o.text("cursor", &page.cursor.to_string());
}

/// A change as a sync and the change feed give it. A delete carries no data.
pub fn sync_change(o: &mut Object<'_>, change: &SyncChange<'_>) {
    o.text("table_name", change.table_name).number("record_id", change.record_id);
    o.text("operation", operation_name(change.operation));
    o.data("data", if change.operation == Operation::Delete { b"" } else { change.data });
    o.time("timestamp", change.timestamp_ms).number("seq", change.seq);
    o.maybe_text("device_id", change.device_id).maybe_number("after", change.after);
}

impl<'a> From<&'a Change> for SyncChange<'a> {
    fn from(change: &'a Change) -> Self {
        Self {
            table_name: &change.table_name,
            record_id: RecordId(change.record_id),
            operation: change.operation(),
            data: &change.data,
            timestamp_ms: change.timestamp_ms,
            seq: change.seq,
            device_id: Some(&change.device_id),
            after: Some(change.after),
        }
    }
}

fn master_elected(o: &mut Object<'_>, election: &Election) {
    o.text_or_null("previous_master_id", &election.previous_master).text("new_master_id", &election.new_master);
    o.text("election_reason", reason_name(election.reason())).time("election_timestamp", election.at_ms);
    o.number("devices_participating", election.participating);
    o.text("election_method", method_name(election.method())).number("term", election.term);
    initiator(o, election);
}

/// Who asked for an election, as the request says, and whose token it came with.
pub fn initiator(o: &mut Object<'_>, election: &Election) {
    let by = election.principal.as_ref().map(|principal| principal.sub.as_str()).filter(|by| !by.is_empty());
    let initiated_by = Some(election.initiated_by.as_str()).filter(|by| !by.is_empty());
    o.maybe_text("initiated_by", initiated_by).maybe_text("by", by);
}

fn sync_conflict(o: &mut Object<'_>, conflict: &Conflict) {
    o.text("device_id", &conflict.device_id).text("table_name", &conflict.table_name);
    o.number("record_id", conflict.record_id).text("conflict_type", type_name(conflict.conflict_type()));
    o.object("conflict_data", |o| {
        o.data("local_version", &conflict.local_version).data("remote_version", &conflict.remote_version);
        o.time("timestamp", conflict.remote_timestamp_ms);
    });
    o.time("timestamp", conflict.at_ms).number("conflict_id", conflict.id).number("version", conflict.local_seq);
    if conflict.collision {
        o.flag("collision", true);
    }
}

fn sync_conflict_resolved(o: &mut Object<'_>, conflict: &Conflict) {
    o.text("table_name", &conflict.table_name).number("record_id", conflict.record_id);
    o.text("resolution_method", resolution_name(conflict.resolution()));
    o.data("resolved_data", &conflict.resolved_data).time("timestamp", conflict.resolved_ms);
    o.number("conflict_id", conflict.id).text("device_id", &conflict.device_id);
    o.flag("deleted", conflict.resolved_deleted);
    match conflict.new_record_id {
        // The change is another record's: nobody may take it for this one's version.
        Some(id) => {
            o.number("new_record_id", id).number("new_record_version", conflict.resolved_seq);
        }
        None if conflict.resolved_seq > 0 => {
            o.number("seq", conflict.resolved_seq);
        }
        None => {}
    }
}

/// A conflict in a listing: what was found and, once it is resolved, what became of it.
pub fn listed_conflict(o: &mut Object<'_>, conflict: &Conflict) {
    sync_conflict(o, conflict);
    o.flag("deleted_here", conflict.local_deleted).flag("deleted_there", conflict.remote_delete);
    if conflict.resolution() == ResolutionMethod::Unset {
        o.text("status", "open");
        return;
    }
    o.text("status", "resolved").object("resolution", |o| {
        sync_conflict_resolved(o, conflict);
        o.text("resolved_by", &conflict.resolved_by);
    });
}
