//! Changes: one committed `data_update` each, densely numbered.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use self::key::KEY;
use self::records::Version;
use super::dedup::accepted;
use super::effect::Effect;
use super::error::{Code, Error};
use super::read;
use super::refusal::{ApplyError, ApplyResult, refuse};
use super::state::State;
use super::tables::{RowKey, TablesError};
use super::value;
use super::visible::is_name;
use crate::ids::{DeviceNumber, RecordId, Seq, TableId, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Change, CriticalEvent, DataUpdate, Empty, Operation, Record};

mod compaction;
pub(super) mod key;
mod load;
mod lookup;
pub(super) mod prints;
pub(super) mod recent;
pub(super) mod records;
pub(super) mod stored;

pub(crate) use self::prints::print_of;
pub(crate) use self::stored::{RecordNow, StoredData};

/// Checks everything about a `data_update` that does not depend on the state: names, sizes, the operation, the data.
pub(crate) fn validate(c: &DataUpdate) -> Result<(), Error> {
    let bad =
        |field: &str, why: String| Err(Error::new(Code::InvalidData, format!("{field} {why}")).about(field, None));
    if !valid_table(&c.table_name) {
        let why = format!("must be 1 to {} bytes without control or invisible characters", limits::TABLE_NAME);
        return bad("table_name", why);
    }
    if c.operation() == Operation::Unset {
        return bad("operation", "must be insert, update or delete".into());
    }
    if c.data.len() > limits::RECORD_DATA {
        return bad("new_data", format!("is larger than {} bytes", limits::RECORD_DATA));
    }
    if c.request_id.len() > limits::REQUEST_ID {
        return bad("request_id", format!("is longer than {} bytes", limits::REQUEST_ID));
    }
    if c.queue.len() > limits::QUEUE_ID {
        return bad("queue", format!("is longer than {} bytes", limits::QUEUE_ID));
    }
    if c.queue.chars().any(char::is_control) {
        return bad("queue", "must not hold control characters".into());
    }
    if c.n > i64::MAX as u64 {
        return bad("n", "must be a whole number within 64 bits".into());
    }
    if c.queue.is_empty() != (c.n == 0) {
        let (field, missing) = if c.n == 0 { ("n", "must be 1 or more") } else { ("queue", "is required with n") };
        return bad(field, missing.into());
    }
    if c.n == 0 && c.after > 0 {
        return bad("after", "belongs to an entry of a queue".into());
    }
    let text = &c.timestamp_as_sent;
    if text.len() > limits::TIME_TEXT || text.chars().any(char::is_control) {
        return bad("timestamp", format!("is kept as at most {} bytes without control characters", limits::TIME_TEXT));
    }
    if let Err(flaw) = value::check_object(&c.data) {
        return bad("new_data", flaw.to_string());
    }
    Ok(())
}

/// Changes of one row, in bytes: it must fit one value of the storage engine.
const BLOCK_BYTES: usize = 3_600;

/// A copy of its own (the command's bytes are a slice of the whole entry); nothing stands for `{}`.
pub(super) fn object(data: &[u8]) -> Bytes {
    if data.is_empty() { Bytes::from_static(b"{}") } else { Bytes::copy_from_slice(data) }
}

/// A usable `table_name`.
pub(crate) fn valid_table(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= limits::TABLE_NAME && is_name(name)
}

/// A change on its way in: a `data_update` that found no conflict, or what a conflict was resolved to.
pub(super) struct PendingWrite {
    pub device: DeviceNumber,
    pub device_id: String,
    pub table: TableId,
    pub table_name: String,
    pub record_id: RecordId,
    pub operation: Operation,
    pub data: Bytes,
    pub timestamp_ms: UnixMs,
    pub previous_seq: u64,
    pub request_id: String,
    /// As in the change: 0 if the change alone does not answer the request.
    pub request_number: u64,
}

impl State {
    /// Of what [`validate`] has let through. The second value: it had been applied before.
    pub(super) fn data_update(&mut self, c: DataUpdate) -> Result<(Reply, bool), ApplyError> {
        let device = self.device_number(&c.device_id)?;
        if let Some(given) = self.queue_entry(&c, device)? {
            return Ok((given, true));
        }
        if let Some(given) = self.repeated_request(&c, device)? {
            return Ok((given, true));
        }
        // A repeat is answered as the first was; what is new must be allowed by now.
        self.must_be_let_in(&c.device_id, c.token_iat)?;
        self.must_write(c.class, &c.table_name)?;
        self.txn.timestamp_as_sent.clone_from(&c.timestamp_as_sent);
        let given = self.write_or_conflict(c, device);
        // Still there if it lost a conflict.
        self.txn.timestamp_as_sent.clear();
        Ok((given?, false))
    }

    fn write_or_conflict(&mut self, c: DataUpdate, device: DeviceNumber) -> ApplyResult {
        let table = self.number_of_table(&c.table_name, &c.device_id)?;
        let now = self.meta.now();
        let given_ms = c.timestamp_ms.map(|ms| UnixMs(ms).min(now.plus_ms(limits::CLIENT_CLOCK_AHEAD_MS)));
        let record_id = RecordId(c.record_id);
        let current = self.version(table, record_id);
        if let Some(found) = self.conflict_with(&c, given_ms, device, table, current.as_ref())? {
            let asked = c.clone();
            let given = self.conflict(found, c, given_ms, device, table, current)?;
            self.answer_update_by_row(device, &asked, given.clone());
            return Ok(given);
        }
        // A writer whose time-stamp is older than its own last one still comes after it.
        let mut timestamp_ms = given_ms.unwrap_or(now);
        if let (Operation::Insert, Some(standing)) = (c.operation(), current.as_ref().filter(|v| !v.deleted)) {
            // The same data once more, perhaps from long ago: the record does not become older by it.
            timestamp_ms = timestamp_ms.max(standing.timestamp_ms);
        }
        let request_number = self.next_request_number(device, &c);
        let write = PendingWrite {
            device,
            device_id: c.device_id.clone(),
            table,
            table_name: c.table_name.clone(),
            record_id,
            operation: c.operation(),
            data: object(&c.data),
            timestamp_ms,
            previous_seq: current.map_or(0, |v| v.seq),
            request_id: c.request_id,
            request_number,
        };
        Ok(accepted(self.write_entry(write, c.queue, c.n), timestamp_ms))
    }

    /// Appends the change and makes it the record's newest version. Returns its seq.
    pub(super) fn write(&mut self, w: PendingWrite) -> Seq {
        self.write_entry(w, String::new(), 0)
    }

    /// The same for what a queue's entry becomes; 0: it stands in no queue.
    fn write_entry(&mut self, w: PendingWrite, queue: String, n: u64) -> Seq {
        *self.meta.changes(KEY).head_seq += 1;
        let seq = Seq(self.meta.head_seq);
        let deleted = w.operation == Operation::Delete;
        let audit_id = self.audit_change(&w.device_id, seq);
        let principal = self.txn.principal.as_ref().filter(|p| p.sub != w.device_id).cloned();
        let data = if deleted { Bytes::new() } else { w.data.clone() };
        let after = self.table_numbers.advance_head(w.table, seq).get();
        let change = Change {
            seq: seq.get(),
            device_id: w.device_id,
            table_name: w.table_name,
            record_id: w.record_id.get(),
            operation: w.operation.into(),
            data: w.data,
            timestamp_ms: w.timestamp_ms.get(),
            committed_ms: self.meta.now_ms,
            audit_id: audit_id.get(),
            previous_seq: w.previous_seq,
            request_id: w.request_id,
            request_number: w.request_number,
            after,
            queue,
            n,
            timestamp_as_sent: std::mem::take(&mut self.txn.timestamp_as_sent),
            principal,
        };
        self.remember_change(w.device, &change);
        self.records.set(w.table, w.record_id, &change.record(w.device), data);
        self.prints.push(&change);
        self.change_sizes.push(change.seq, change.encoded_len());
        let change = Arc::new(change);
        self.add_to_block(change.clone());
        self.recent.push(change.clone());
        self.effect(Effect::Changed(change));
        seq
    }

    fn add_to_block(&mut self, change: Arc<Change>) {
        let bytes = change.encoded_len() + 4;
        if self.txn.block_bytes + bytes > BLOCK_BYTES {
            self.seal_changes();
        }
        self.txn.block_bytes += bytes;
        self.txn.block.push(change);
    }

    /// The entry's changes so far become a row.
    pub(super) fn seal_changes(&mut self) {
        let block = std::mem::take(&mut self.txn.block);
        let Some(first) = block.first() else { return };
        let mut row = Vec::with_capacity(self.txn.block_bytes);
        for change in &block {
            prost::encoding::message::encode(1, &**change, &mut row);
        }
        self.txn.block_bytes = 0;
        self.txn.put_encoded(RowKey::Changes(first.seq), row.into());
    }

    /// A change that is kept, also one of the entry that is being applied.
    pub(super) fn change(&self, seq: Seq) -> Result<Option<Change>, TablesError> {
        if let Some(change) = self.txn.block.iter().find(|c| Seq(c.seq) == seq) {
            return Ok(Some(Change::clone(change)));
        }
        read::change(self.rows(), seq)
    }

    /// A few bits of the change with this number, as they stand in cursors; 0: it is not kept.
    pub fn print_at(&self, seq: Seq) -> u32 {
        self.prints.get(seq).unwrap_or(0)
    }

    pub(super) fn version(&self, table: TableId, id: RecordId) -> Option<Version> {
        let mut version = self.records.get(table, id).cloned()?;
        version.timestamp_ms = self.corrections().of_change(Seq(version.seq), version.timestamp_ms);
        Some(version)
    }

    /// A record's data as stored; empty for a deleted one.
    pub(super) fn data_of(&self, table: TableId, id: RecordId, version: &Version) -> Result<Bytes, TablesError> {
        if let Some(data) = &version.data {
            return Ok(data.clone());
        }
        if version.deleted {
            return Ok(Bytes::new());
        }
        if let Some(change) = self.change(Seq(version.seq))? {
            return Ok(change.data);
        }
        // Compaction has written it down.
        Ok(self.row::<Record>(&RowKey::Record { table, id })?.map(|r| r.data).unwrap_or_default())
    }

    /// A table is gone, and its records with it.
    pub(super) fn forget_records_of(&mut self, table: TableId) {
        self.records.forget_table(table);
    }

    pub(super) fn critical_event(&mut self, c: CriticalEvent) -> ApplyResult {
        self.existing(&c.device_id)?;
        if c.event_type.is_empty() || c.event_type.len() > limits::EVENT_TYPE {
            return refuse(Code::InvalidData, format!("event_type must be 1 to {} bytes", limits::EVENT_TYPE));
        }
        self.audit("critical_event", &c.event_type, false, &c.device_id, format!("Critical event {}", c.event_type));
        let now = self.meta.now();
        let timestamp_ms = c.timestamp_ms.map_or(now, |ms| UnixMs(ms).min(now.plus_ms(limits::CLIENT_CLOCK_AHEAD_MS)));
        let (device_id, event_type, payload) = (c.device_id, c.event_type, c.payload);
        self.effect(Effect::Critical { device_id, event_type, payload, timestamp_ms });
        Ok(Reply::Done(Empty {}))
    }
}

/// An operation as the document writes it.
pub(crate) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Delete => "delete",
        Operation::Update | Operation::Unset => "update",
    }
}

/// The operation of a documented name.
pub(crate) fn operation_of(name: &str) -> Option<Operation> {
    [Operation::Insert, Operation::Update, Operation::Delete].into_iter().find(|o| operation_name(*o) == name)
}
