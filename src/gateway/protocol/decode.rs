//! Decodes what clients send from its event's name and its raw JSON.

use std::sync::Arc;

use bytes::Bytes;

use super::DecodeError;
use super::client::{ClientEvent, ClientRequest, OnlineAsk, SyncAsk};
use super::events::ClientEventDecoder;
use super::fields::{BadPayload, Fields};
use crate::ids::RecordId;
use crate::limits;
use crate::model::change::operation_of;
use crate::model::conflict::type_name;
use crate::model::election::reason_name;
use crate::model::error::{Code, Error};
use crate::model::policy::method_of;
use crate::proto::{
    ConflictReport, ConflictResolve, ConflictType, CriticalEvent, DataUpdate, ElectionReason, Operation,
    ResolutionMethod, Role, SyncErrorReport, SyncType,
};

const SYNC_ID: usize = 64;
const CURSOR: usize = 64;
const ERROR_CODE: usize = 16;
const SYNC_TYPE: usize = 32;

/// Decodes one event. `payload` is the JSON after the event's name, if there was any; `frame` are the bytes that
/// it is a part of, so that record data is shared, not copied.
pub fn decode(event: &str, payload: Option<&str>, frame: &Bytes) -> Result<ClientRequest, DecodeError> {
    let Some(decoder) = ClientEventDecoder::of(event) else {
        let error = DecodeError::new(Code::InvalidData, format!("unknown event {:?}", shorten(event)));
        return Err(DecodeError { request_id: request_id(payload), ..error });
    };
    let fail = |bad: BadPayload, device_id, request_id| DecodeError {
        error: Error::new(decoder.code, bad.message),
        field: bad.field,
        device_id,
        request_id,
    };
    let fields = Fields::parse(payload.unwrap_or("null")).map_err(|bad| fail(bad, None, request_id(payload)))?;
    let request_id = id_of(&fields);
    match (decoder.decode)(&fields, frame) {
        Ok(event) => Ok(ClientRequest { event, request_id }),
        Err(bad) => Err(fail(bad, fields.device_id().ok(), request_id)),
    }
}

/// The request id in a payload that is not decoded.
pub fn request_id(payload: Option<&str>) -> Option<Arc<str>> {
    id_of(&Fields::of_any_depth(payload?)?)
}

/// Only a usable one is repeated.
fn id_of(f: &Fields<'_>) -> Option<Arc<str>> {
    let id = f.maybe_text("request_id", limits::REQUEST_ID).ok().flatten()?;
    (!id.is_empty()).then(|| Arc::from(id))
}

/// At most the first 64 characters, for an error message.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Also the body of `POST /device/register`.
pub fn online(f: &Fields<'_>) -> Result<OnlineAsk, BadPayload> {
    let ask = OnlineAsk {
        device_id: f.device_id()?,
        role: maybe_role(f, "role")?,
        priority: f.maybe_count("priority", u64::from(limits::PRIORITY))?.map(|p| p as u32),
        capabilities: f.maybe_texts("capabilities", limits::CAPABILITIES, limits::CAPABILITY)?,
        subscribe: f.maybe_texts("subscribe", limits::TABLES as usize, limits::TABLE_NAME)?,
        cursor: f.maybe_text("cursor", CURSOR)?,
        sent: f.maybe_iso("timestamp")?,
        unsent: f.maybe_count("unsent", limits::UNSENT)?,
    };
    Ok(ask)
}

pub(super) fn leaving(f: &Fields<'_>) -> Result<(String, String), BadPayload> {
    let device_id = f.device_id()?;
    let reason = f.maybe_text("reason", limits::REASON)?.unwrap_or_default();
    f.maybe_time("timestamp")?;
    Ok((device_id, reason))
}

/// Also the body of `POST /system/election`.
pub fn election(f: &Fields<'_>) -> Result<(ElectionReason, String), BadPayload> {
    let reasons = [ElectionReason::Shutdown, ElectionReason::Failure, ElectionReason::Manual];
    let of = |w: &str| reasons.into_iter().find(|r| reason_name(*r) == w);
    let reason = f.word("reason", "shutdown, failure or manual", of)?;
    let initiated_by = f.maybe_text("initiated_by", limits::DEVICE_ID)?.unwrap_or_default();
    f.maybe_time("timestamp")?;
    Ok((reason, initiated_by))
}

pub(super) fn master_election(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let (reason, initiated_by) = election(f)?;
    Ok(ClientEvent::MasterElection { reason, initiated_by })
}

fn role_of(word: &str) -> Option<Role> {
    match word {
        "master" => Some(Role::Master),
        "client" => Some(Role::Client),
        _ => None,
    }
}

fn maybe_role(f: &Fields<'_>, name: &str) -> Result<Option<Role>, BadPayload> {
    f.maybe_word(name, "master or client", role_of)
}

/// A role and the reason for it: also the body of `PUT /device/roles/{device_id}`, where the role's name differs.
pub fn role_and_reason(f: &Fields<'_>, role: &str) -> Result<(Role, String), BadPayload> {
    let role = f.word(role, "master or client", role_of)?;
    let reason = f.text("reason", limits::REASON)?;
    f.maybe_time("timestamp")?;
    Ok((role, reason))
}

pub(super) fn role_change(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let device_id = f.device_id()?;
    let role = f.word("new_role", "master or client", role_of)?;
    let reason = f.maybe_text("reason", limits::REASON)?.unwrap_or_else(|| "asked for by its device".into());
    f.maybe_time("timestamp")?;
    Ok(ClientEvent::RoleChange { device_id, role, reason })
}

pub(super) fn sync_request(f: &Fields<'_>) -> Result<SyncAsk, BadPayload> {
    let device_id = f.device_id()?;
    let of = |w: &str| match w {
        "full" => Some(SyncType::Full),
        "incremental" => Some(SyncType::Incremental),
        _ => None,
    };
    let ask = SyncAsk {
        device_id,
        sync_type: f.maybe_word("sync_type", "full or incremental", of)?.unwrap_or(SyncType::Full),
        last_sync_ms: f.maybe_time("last_sync_timestamp")?,
        cursor: f.maybe_text("cursor", CURSOR)?,
        tables: f.maybe_texts("requested_tables", limits::TABLES as usize, limits::TABLE_NAME)?,
    };
    f.maybe_time("timestamp")?;
    Ok(ask)
}

pub(super) fn sync_complete(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let device_id = f.device_id()?;
    let sync_timestamp_ms = f.maybe_time("sync_timestamp")?;
    let changes_count = f.maybe_count("changes_count", u64::MAX)?.unwrap_or(0);
    let sync_id = f.maybe_text("sync_id", SYNC_ID)?.unwrap_or_default();
    let cursor = f.maybe_text("cursor", CURSOR)?;
    f.maybe_time("timestamp")?;
    Ok(ClientEvent::SyncComplete { device_id, sync_timestamp_ms, changes_count, sync_id, cursor })
}

pub(super) fn sync_conflict(f: &Fields<'_>, frame: &Bytes) -> Result<ConflictReport, BadPayload> {
    let (device_id, table_name, record_id) = (f.device_id()?, table(f)?, f.record_id()?);
    let types = [ConflictType::Timestamp, ConflictType::Data, ConflictType::Version];
    let of = |w: &str| types.into_iter().find(|t| type_name(*t) == w);
    let conflict_type = f.word("conflict_type", "timestamp, data or version", of)?.into();
    let mut report = ConflictReport {
        device_id,
        table_name,
        record_id: record_id.get(),
        conflict_type,
        ..ConflictReport::default()
    };
    if let Some(data) = f.maybe_fields("conflict_data")? {
        let version = |name| Ok(data.maybe_object(name)?.map(|raw| share(frame, raw)).unwrap_or_default());
        report.local_version = version("local_version")?;
        report.remote_version = version("remote_version")?;
        report.timestamp_ms = absolute(&data, "timestamp")?;
    }
    f.maybe_time("timestamp")?;
    Ok(report)
}

/// A decision on the oldest open conflict of a record, or on the one that `conflict_id` names.
pub(super) fn resolved(f: &Fields<'_>, frame: &Bytes) -> Result<ConflictResolve, BadPayload> {
    let (table_name, record_id) = (table(f)?, f.record_id()?);
    let mut resolve = resolution(f, frame)?;
    resolve.conflict_id = f.maybe_count("conflict_id", u64::MAX)?;
    resolve.table_name = table_name;
    resolve.record_id = record_id.get();
    Ok(resolve)
}

/// What a conflict is decided to: also the body of `POST /sync/conflicts/{id}/resolve`.
pub fn resolution(f: &Fields<'_>, frame: &Bytes) -> Result<ConflictResolve, BadPayload> {
    let method = f.maybe_word("resolution_method", METHODS, method_of)?.unwrap_or(ResolutionMethod::Manual);
    let delete = f.maybe_flag("delete")?.unwrap_or(false);
    let new_record_id = f.maybe_record_id("new_record_id")?;
    if delete && new_record_id.is_some() {
        return Err(BadPayload::field("new_record_id", "and delete exclude each other"));
    }
    // Under a new number, what lost is written as it is unless something else is given.
    let needed = !delete && new_record_id.is_none();
    let data = if needed { Some(f.object("resolved_data")?) } else { f.maybe_object("resolved_data")? };
    let device_id = if f.has("device_id") { f.device_id()? } else { String::new() };
    let version = f.maybe_count("version", u64::MAX)?;
    f.maybe_time("timestamp")?;
    Ok(ConflictResolve {
        device_id,
        method: method.into(),
        resolved_data: data.filter(|_| !delete).map(|raw| share(frame, raw)).unwrap_or_default(),
        delete,
        new_record_id: new_record_id.map(RecordId::get),
        version,
        ..ConflictResolve::default()
    })
}

pub(super) const METHODS: &str = "last_writer_wins, manual or automatic";

pub(super) fn sync_error(f: &Fields<'_>) -> Result<SyncErrorReport, BadPayload> {
    let report = SyncErrorReport {
        device_id: f.device_id()?,
        error_message: f.text("error_message", limits::ERROR_MESSAGE)?,
        error_code: f.maybe_text("error_code", ERROR_CODE)?.unwrap_or_default(),
        sync_type: f.maybe_text("sync_type", SYNC_TYPE)?.unwrap_or_default(),
    };
    f.maybe_time("timestamp")?;
    Ok(report)
}

pub(super) fn table(f: &Fields<'_>) -> Result<String, BadPayload> {
    f.name("table_name", limits::TABLE_NAME)
}

pub(super) fn data_update(f: &Fields<'_>, frame: &Bytes) -> Result<DataUpdate, BadPayload> {
    let (device_id, table_name) = (f.device_id()?, table(f)?);
    update(f, frame, device_id, table_name, f.record_id()?)
}

/// The part of a `data_update` that is also the body of `POST /data/{table}/{record_id}`.
pub fn update(
    f: &Fields<'_>,
    frame: &Bytes,
    device_id: String,
    table_name: String,
    record_id: RecordId,
) -> Result<DataUpdate, BadPayload> {
    let operation = f.maybe_word("operation", "insert, update or delete", operation_of)?.unwrap_or(Operation::Update);
    // The document requires it; but there is nothing to say about a record that goes.
    let new_data = match operation {
        Operation::Delete => f.maybe_object("new_data")?.map(|raw| share(frame, raw)).unwrap_or_default(),
        _ => share(frame, f.object("new_data")?),
    };
    let request_id = f.maybe_text("request_id", limits::REQUEST_ID)?.unwrap_or_default();
    let (queue, n, after) = entry(f)?;
    Ok(DataUpdate {
        device_id,
        table_name,
        record_id: record_id.get(),
        operation: operation.into(),
        data: new_data,
        base_version: f.maybe_count("base_version", u64::MAX)?,
        request_id,
        queue,
        n,
        after,
        timestamp_as_sent: as_sent(f)?,
        bulk: f.maybe_flag("bulk")?.unwrap_or_default(),
        ..DataUpdate::default()
    })
}

/// An entry of a queue: its id, `n` and `after`. All of them or none.
fn entry(f: &Fields<'_>) -> Result<(String, u64, u64), BadPayload> {
    const ALL: [&str; 3] = ["queue", "n", "after"];
    let Some(given) = ALL.into_iter().find(|name| f.has(name)) else { return Ok((String::new(), 0, 0)) };
    if let Some(missing) = ALL.into_iter().find(|name| !f.has(name)) {
        return Err(BadPayload::field(missing, format_args!("is required with {given}")));
    }
    let queue = f.name("queue", limits::QUEUE_ID)?;
    let n = f.maybe_count("n", u64::MAX)?.unwrap_or(0);
    if n == 0 {
        return Err(BadPayload::field("n", "must be a whole number, 1 or more"));
    }
    let after = f.maybe_count("after", u64::MAX)?.unwrap_or(0);
    Ok((queue, n, after))
}

pub(super) fn data_request(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let (device_id, table_name, record_id) = (f.device_id()?, table(f)?, f.record_id()?);
    f.maybe_time("timestamp")?;
    Ok(ClientEvent::DataRequest { device_id, table_name, record_id })
}

pub(super) fn queue_status(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let device_id = f.device_id()?;
    let of = |w: &str| match w {
        "sync" => Some(false),
        "offline" => Some(true),
        _ => None,
    };
    let offline = f.maybe_word("queue_type", "sync or offline", of)?.unwrap_or(false);
    f.maybe_time("timestamp")?;
    Ok(ClientEvent::QueueStatus { device_id, offline })
}

pub(super) fn critical_event(f: &Fields<'_>, frame: &Bytes) -> Result<CriticalEvent, BadPayload> {
    Ok(CriticalEvent {
        event_type: f.name("event_type", limits::EVENT_TYPE)?,
        payload: share(frame, f.object("payload")?),
        device_id: f.device_id()?,
        timestamp_ms: absolute(f, "timestamp")?,
    })
}

pub(super) fn heartbeat(f: &Fields<'_>) -> Result<ClientEvent, BadPayload> {
    let device_id = f.device_id()?;
    let unsent = f.maybe_count("unsent", limits::UNSENT)?;
    Ok(ClientEvent::Heartbeat { device_id, sent: f.maybe_iso("timestamp")?, unsent })
}

/// A time with an offset; one without says nothing, as if there were none.
fn absolute(f: &Fields<'_>, name: &str) -> Result<Option<u64>, BadPayload> {
    Ok(f.maybe_iso(name)?.filter(|sent| !sent.is_local).map(|sent| sent.unix_ms().get()))
}

/// The client's time as it came, if it came: what it means is for the session to say, which knows the client's clock.
fn as_sent(f: &Fields<'_>) -> Result<String, BadPayload> {
    let Some(sent) = f.maybe_iso("timestamp")? else { return Ok(String::new()) };
    let text = f.maybe_text("timestamp", usize::MAX)?.unwrap_or_default();
    // Only a fraction can be that long.
    Ok(if text.len() <= limits::TIME_TEXT { text } else { sent.to_string() })
}

/// The bytes of a part of the frame: the frame's own, unless the part was unescaped into another place.
fn share(frame: &Bytes, part: &str) -> Bytes {
    let (start, part_start) = (frame.as_ptr() as usize, part.as_ptr() as usize);
    match part_start.checked_sub(start) {
        Some(at) if at + part.len() <= frame.len() => frame.slice(at..at + part.len()),
        _ => Bytes::copy_from_slice(part.as_bytes()),
    }
}
