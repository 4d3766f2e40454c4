//! Conflicts: found when a change meets a record that another hand has moved, decided by the table's policies.
//!
//! An update or delete of an old version is decided by the table's `policy`. An insert that meets a live record with
//! other data is a collision (two devices drew the same number) and has a policy of its own, because last writer wins
//! would throw a whole record away.

use std::sync::Arc;

use bytes::Bytes;

use self::index::{ConflictFilter, ConflictIndex};
use self::key::KEY;
use super::access::ClassNumber;
use super::change::records::Version;
use super::change::{PendingWrite, object};
use super::effect::Effect;
use super::error::Code;
use super::merge::merge_objects;
use super::policy::{decides_of, method_name};
use super::read::{HistoryOf, HistoryPosition};
use super::refusal::{ApplyError, ApplyResult, refuse};
use super::row_pages::RowPages;
use super::state::State;
use super::tables::{RowKey, TablesError, TablesRead};
use super::value;
use crate::ids::{ConflictId, DeviceNumber, RecordId, Seq, TableId, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Accepted, Asker, Change, Conflict, ConflictReport, ConflictResolve, ConflictType, DataUpdate, Decides,
    InsertPolicy, Operation, ResolutionMethod,
};

pub(super) mod index;
pub(super) mod key;

pub(crate) use self::index::ConflictStatus;

/// What an update met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DetectedConflict {
    kind: ConflictType,
    /// An insert met a live record with other data.
    collision: bool,
}

impl State {
    /// What this update conflicts with, if anything (docs/design.md, sections 6 and 16.7).
    pub(super) fn conflict_with(
        &self,
        c: &DataUpdate,
        given_ms: Option<UnixMs>,
        device: DeviceNumber,
        table: TableId,
        current: Option<&Version>,
    ) -> Result<Option<DetectedConflict>, TablesError> {
        // Whatever version or time an insert names: it was made in the belief that there is no such record.
        if let (Operation::Insert, Some(standing)) = (c.operation(), current.filter(|v| !v.deleted)) {
            let same = value::equal(&self.data_of(table, RecordId(c.record_id), standing)?, &c.data);
            return Ok((!same).then_some(DetectedConflict { kind: ConflictType::Data, collision: true }));
        }
        let found = |kind| Ok(Some(DetectedConflict { kind, collision: false }));
        if c.base_version.is_some_and(|base| !matches_base(base, current)) {
            return found(ConflictType::Version);
        }
        let Some(current) = current else { return Ok(None) };
        if given_ms.is_some_and(|ms| ms < current.timestamp_ms) && current.device != device {
            return found(ConflictType::Timestamp);
        }
        if current.deleted && c.operation() != Operation::Insert { found(ConflictType::Data) } else { Ok(None) }
    }

    /// How a conflict is decided: by this method at once, or by hand.
    fn method(&self, table: TableId, collision: bool) -> ResolutionMethod {
        if !collision {
            return self.policy(table);
        }
        match self.insert_policy(table) {
            InsertPolicy::LastWriterWins => ResolutionMethod::LastWriterWins,
            InsertPolicy::Automatic => ResolutionMethod::Automatic,
            InsertPolicy::Manual | InsertPolicy::KeepBoth | InsertPolicy::Unset => ResolutionMethod::Manual,
        }
    }

    /// Decides a conflict, or lets it wait for a decision.
    pub(super) fn conflict(
        &mut self,
        found: DetectedConflict,
        c: DataUpdate,
        given_ms: Option<UnixMs>,
        device: DeviceNumber,
        table: TableId,
        current: Option<Version>,
    ) -> ApplyResult {
        let now = self.meta.now_ms;
        let local = match &current {
            Some(version) => self.data_of(table, RecordId(c.record_id), version)?,
            None => Bytes::new(),
        };
        let method = self.method(table, found.collision);
        if method == ResolutionMethod::Manual
            && found.collision
            && let Some(open) = self.same_open(table, &c)
        {
            // The same insert again: it waits already.
            return Ok(Reply::Conflict(open));
        }
        let mut row = Conflict {
            device_id: c.device_id.clone(),
            table_name: c.table_name.clone(),
            record_id: c.record_id,
            conflict_type: found.kind.into(),
            local_version: local,
            remote_version: object(&c.data),
            at_ms: now,
            local_seq: current.as_ref().map_or(0, |v| v.seq),
            local_deleted: current.as_ref().is_none_or(|v| v.deleted),
            remote_timestamp_ms: given_ms.map_or(now, UnixMs::get),
            remote_delete: c.operation() == Operation::Delete,
            collision: found.collision,
            ..Conflict::default()
        };
        if method == ResolutionMethod::Manual {
            if let Some(version) = current.filter(|_| found.collision) {
                row.writer = self.device_name(version.device).unwrap_or_default().to_owned();
            }
            let row = self.open_conflict(row, device, table, type_name(found.kind))?;
            self.effect(Effect::ConflictFound(row.clone()));
            return Ok(Reply::Conflict(Conflict::clone(&row)));
        }
        self.number_conflict(&mut row, type_name(found.kind));
        let write = self.winning_write(method, &c, &row, device, table, current.as_ref())?;
        row.resolution = method.into();
        row.resolved_ms = now;
        row.resolved_by = c.device_id;
        self.effect(Effect::ConflictFound(Arc::new(row.clone())));
        Ok(self.decide(row, write))
    }

    /// What an update in conflict comes to: itself if it wins, or what a merge makes of both sides. `None`: it loses.
    fn winning_write(
        &self,
        method: ResolutionMethod,
        c: &DataUpdate,
        row: &Conflict,
        device: DeviceNumber,
        table: TableId,
        current: Option<&Version>,
    ) -> Result<Option<PendingWrite>, TablesError> {
        let timestamp_ms = UnixMs(row.remote_timestamp_ms);
        let wins = self.incoming_wins(timestamp_ms, &c.device_id, current);
        let merges = method == ResolutionMethod::Automatic && !row.remote_delete && !row.local_deleted;
        let merged = if merges { self.merge(c, &row.local_version, wins)? } else { None };
        if !wins && merged.is_none() {
            return Ok(None);
        }
        let write = PendingWrite {
            device,
            device_id: c.device_id.clone(),
            table,
            table_name: c.table_name.clone(),
            record_id: RecordId(c.record_id),
            operation: c.operation(),
            data: row.remote_version.clone(),
            timestamp_ms,
            previous_seq: row.local_seq,
            request_id: c.request_id.clone(),
            request_number: 0,
        };
        let Some(data) = merged else { return Ok(Some(write)) };
        let timestamp_ms = timestamp_ms.max(current.map_or(UnixMs(0), |v| v.timestamp_ms));
        Ok(Some(PendingWrite { data, operation: Operation::Update, timestamp_ms, ..write }))
    }

    /// The record is what was decided: what was written, or what it was.
    fn decide(&mut self, mut row: Conflict, write: Option<PendingWrite>) -> Reply {
        let Some(write) = write else {
            row.resolved_deleted = row.local_deleted;
            row.resolved_data = row.local_version.clone();
            return Reply::Conflict(self.close_conflict(row));
        };
        row.resolved_deleted = write.operation == Operation::Delete;
        row.resolved_data = if row.resolved_deleted { Bytes::new() } else { write.data.clone() };
        let timestamp_ms = write.timestamp_ms.get();
        row.resolved_seq = self.write(write).get();
        let row = self.close_conflict(row);
        Reply::Accepted(Accepted { seq: row.resolved_seq, timestamp_ms, conflict: Some(row), ..Accepted::default() })
    }

    /// An insert of this device with the same data that waits for a decision already.
    fn same_open(&self, table: TableId, c: &DataUpdate) -> Option<Conflict> {
        let open = self.conflicts.open_of_record(table, RecordId(c.record_id));
        open.rev()
            .filter(|o| o.collision && o.device_id == c.device_id)
            .take(limits::OPEN_CONFLICTS_COMPARED)
            .find(|o| value::equal(&o.remote_version, &c.data))
            .map(|o| Conflict::clone(o))
    }

    /// Gives a new conflict its number, and the audit log a row.
    fn number_conflict(&mut self, row: &mut Conflict, operation: &str) {
        *self.meta.conflicts(KEY).conflict_head += 1;
        row.id = self.meta.conflict_head;
        let details = format!("Conflict {} of {}/{} ({operation})", row.id, row.table_name, row.record_id);
        self.audit("sync_conflict", operation, true, &row.device_id, details);
    }

    /// A conflict waits for a decision, if there is room for it.
    fn open_conflict(
        &mut self,
        mut row: Conflict,
        device: DeviceNumber,
        table: TableId,
        operation: &str,
    ) -> Result<Arc<Conflict>, ApplyError> {
        if let Some(why) = self.conflicts.full(&row, device, table) {
            return refuse(Code::Unavailable, why);
        }
        self.number_conflict(&mut row, operation);
        let row = Arc::new(row);
        self.put(RowKey::Conflict(ConflictId(row.id)), &*row);
        self.conflicts.set(&row, device, table);
        Ok(row)
    }

    pub(super) fn load_conflicts(&mut self, rows: &dyn TablesRead) -> Result<(), TablesError> {
        self.conflicts = ConflictIndex::default();
        for row in
            RowPages::<Conflict>::new(rows, RowKey::Conflict(ConflictId(0)), |k| matches!(k, RowKey::Conflict(_)))
        {
            let (_, row) = row?;
            self.index_conflict(&Arc::new(row));
        }
        Ok(())
    }

    /// A table is gone: its conflicts are of no table any more.
    pub(super) fn forget_conflicts_in(&mut self, table: TableId) {
        self.conflicts.forget_table(table);
    }

    /// A conflict as its row says.
    fn index_conflict(&mut self, row: &Arc<Conflict>) {
        let device = self.writer_number(&row.device_id);
        // One of an older table of that name is of no table.
        let table = self.table_number(&row.table_name).unwrap_or_default();
        let of_it = self.table_of(table).is_some_and(|known| row.id > known.since_conflict);
        self.conflicts.set(row, device, if of_it { table } else { TableId(0) });
    }

    /// Last writer wins: the greater time-stamp, then the greater device id.
    fn incoming_wins(&self, timestamp_ms: UnixMs, device_id: &str, current: Option<&Version>) -> bool {
        let Some(current) = current else { return true };
        let writer = self.device_name(current.device).unwrap_or_default();
        (timestamp_ms, device_id.as_bytes()) >= (current.timestamp_ms, writer.as_bytes())
    }

    /// Field by field: what only one side changed since the base is kept, the rest is the winner's.
    /// `None` if a side is no object, or what comes of it is too large for a record.
    fn merge(&self, c: &DataUpdate, local: &[u8], remote_wins: bool) -> Result<Option<Bytes>, TablesError> {
        let base = match c.base_version {
            Some(seq) if seq > 0 => {
                let same = |c2: &Change| c2.table_name == c.table_name && c2.record_id == c.record_id;
                self.change(Seq(seq))?.filter(same)
            }
            _ => None,
        };
        let base = base.map(|change| change.data).unwrap_or_default();
        let merged = merge_objects(&base, local, &c.data, remote_wins);
        Ok(merged.filter(|data| data.len() <= limits::RECORD_DATA).map(Bytes::from))
    }

    fn close_conflict(&mut self, mut row: Conflict) -> Conflict {
        *self.meta.conflicts(KEY).resolved_head += 1;
        row.resolved_number = self.meta.resolved_head;
        self.put(RowKey::Conflict(ConflictId(row.id)), &row);
        let method = method_name(row.resolution());
        let mut details = format!("Conflict {} of {}/{} resolved ({method})", row.id, row.table_name, row.record_id);
        if let Some(id) = row.new_record_id {
            details.push_str(&format!(", kept as record {id}"));
        }
        self.audit("sync_conflict_resolved", method, false, &row.resolved_by, details);
        let row = Arc::new(row);
        self.index_conflict(&row);
        self.effect(Effect::ConflictResolved(row.clone()));
        Conflict::clone(&row)
    }

    /// Drops the oldest resolved conflicts up to this number; never one that waits for a decision.
    pub(super) fn drop_resolved(&mut self, to: u64) {
        let to = to.min(self.meta.resolved_head);
        for (number, id) in self.conflicts.take_resolved(to, limits::COMPACT_STEP as usize) {
            self.delete(RowKey::Conflict(id));
            let compacted = self.meta.conflicts(KEY).resolved_compacted;
            *compacted = number.max(*compacted);
        }
    }

    /// The number up to which resolved conflicts may be dropped, so that at most `keep` of them stay, and not too
    /// many bytes.
    pub fn resolved_to(&self, keep: u64) -> u64 {
        let by_count = self.meta.resolved_head.saturating_sub(keep);
        // An eighth less than the limit, so that it is not one command a conflict.
        let room = if self.too_many_conflict_bytes() { limits::CONFLICT_BYTES / 8 * 7 } else { u64::MAX };
        by_count.max(self.conflicts.over_bytes(room))
    }

    pub fn too_many_conflict_bytes(&self) -> bool {
        self.conflicts.resolved_bytes() > limits::CONFLICT_BYTES
    }

    /// Conflicts that wait for a decision, oldest first.
    pub fn open_conflicts(&self) -> impl Iterator<Item = &Arc<Conflict>> {
        self.conflicts.open().values()
    }

    /// The ids of a page of conflicts that a token of the class may see, and how many of these there are in all. The
    /// names that are given must be exact.
    pub fn conflict_page(
        &self,
        status: ConflictStatus,
        device_id: Option<&str>,
        table_name: Option<&str>,
        class: ClassNumber,
        limit: usize,
        skip: usize,
    ) -> (Vec<ConflictId>, u64) {
        let device = device_id.map(|id| self.device(id).map(|d| DeviceNumber(d.number)));
        let table = table_name.map(|name| self.table_number(name));
        if matches!(device, Some(None)) || matches!(table, Some(None)) {
            return (Vec::new(), 0);
        }
        let readable: Vec<bool> = self.tables().iter().map(|t| self.access().may_read(class, &t.name)).collect();
        // Conflicts of removed tables are of no number: only who may read every table sees them.
        let reads_all = self.access().reads_all(class);
        let shown = |table: TableId| readable.get(table.place()).copied().unwrap_or(reads_all);
        let filter = ConflictFilter { status, device: device.flatten(), table: table.flatten() };
        self.conflicts.page(filter, shown, limit, skip)
    }

    /// Where a record's history begins; `rows` is the size of a page.
    pub fn history_of(
        &self,
        table_name: &str,
        record_id: RecordId,
        before: Option<HistoryPosition>,
        rows: usize,
    ) -> HistoryOf {
        let table = self.table_number(table_name).unwrap_or_default();
        let newest = self.version(table, record_id).map_or(Seq(0), |v| Seq(v.seq));
        let end = before.unwrap_or((Seq::MAX, ConflictId::MAX));
        let conflicts = self.conflicts.of_record_before(table, record_id, end).take(rows + 1);
        let conflicts = conflicts.filter(|_| table > TableId(0)).collect();
        HistoryOf { table_name: table_name.to_owned(), table, record_id, before, newest, conflicts }
    }

    /// The open conflict that a decision names: by its id, or as the oldest one of its record.
    pub fn conflict_to_resolve(&self, c: &ConflictResolve) -> Option<&Arc<Conflict>> {
        match c.conflict_id {
            Some(id) => self.conflicts.open().get(&ConflictId(id)),
            None => {
                let open = self.conflicts.open_of_record(self.table_number(&c.table_name)?, RecordId(c.record_id));
                open.min_by_key(|o| o.id)
            }
        }
    }

    /// A device or an operator decides an open conflict.
    pub(super) fn conflict_resolve(&mut self, c: ConflictResolve) -> ApplyResult {
        let Some(open) = self.conflict_to_resolve(&c).cloned() else {
            return refuse(Code::Conflict, "there is no such open conflict");
        };
        // A client that names a conflict and a record means that conflict of that record.
        if !c.table_name.is_empty() && (&*c.table_name, c.record_id) != (&*open.table_name, open.record_id) {
            let why = format!("conflict_id: conflict {} is about {}/{}", open.id, open.table_name, open.record_id);
            return refuse(Code::InvalidData, why);
        }
        self.must_write(c.class, &open.table_name)?;
        self.may_decide(&c, &open)?;
        let (device, record_id) = (DeviceNumber(self.existing(&c.device_id)?.number), RecordId(open.record_id));
        let table = self.number_of_table(&open.table_name, &c.device_id)?;
        let current = self.version(table, record_id);
        let version = current.as_ref().map_or(0, |v| v.seq);
        if c.version.is_some_and(|decided_on| decided_on != version) {
            let why = format!("the record has moved on to version {version}: look at it and decide again");
            return refuse(Code::Conflict, why);
        }
        let mut row = Conflict::clone(&open);
        row.resolution = if c.method == 0 { ResolutionMethod::Manual.into() } else { c.method };
        row.resolved_ms = self.meta.now_ms;
        row.resolved_by.clone_from(if c.by.is_empty() { &c.device_id } else { &c.by });
        let decision = self.decision(&c, &open, table, current)?;
        row.new_record_id = c.new_record_id;
        if c.new_record_id.is_some() {
            // The record that it met stays what it is: that is what whoever applies the decision to it is told.
            let standing = self.version(table, record_id);
            row.resolved_deleted = standing.as_ref().is_none_or(|v| v.deleted);
            row.resolved_data = match &standing {
                Some(standing) => self.data_of(table, record_id, standing)?,
                None => Bytes::new(),
            };
        } else {
            row.resolved_deleted = c.delete;
            row.resolved_data = if c.delete { Bytes::new() } else { decision.data.clone() };
        }
        row.resolved_seq = self.write(PendingWrite { device, device_id: c.device_id, ..decision }).get();
        Ok(Reply::Conflict(self.close_conflict(row)))
    }

    /// The gateway has looked already, but at what was open then: a decision is allowed on the conflict that it decides.
    fn may_decide(&self, c: &ConflictResolve, open: &Conflict) -> Result<(), ApplyError> {
        if c.asker() != Asker::Device {
            return Ok(());
        }
        if c.by != c.device_id || c.by != open.device_id {
            let why = format!("conflict {} is to be decided by device {:?}", open.id, open.device_id);
            return refuse(Code::Forbidden, why);
        }
        let table = self.table_number(&open.table_name).and_then(|number| self.table_of(number));
        if table.is_some_and(|table| decides_of(table) == Decides::Privileged) {
            let why = format!("only admins and managers may decide conflicts in {:?}", open.table_name);
            return refuse(Code::Forbidden, why);
        }
        Ok(())
    }

    /// Closes open conflicts of a table that is being removed: there will be no record that could be decided on.
    pub(super) fn close_conflicts_of(&mut self, table: TableId, by: &str, at_most: usize) -> usize {
        let open: Vec<_> = self.conflicts.open_in(table).take(at_most).cloned().collect();
        for conflict in &open {
            let mut row = Conflict::clone(conflict);
            row.resolution = ResolutionMethod::Manual.into();
            row.resolved_ms = self.meta.now_ms;
            row.resolved_by = by.to_owned();
            row.resolved_deleted = true;
            self.close_conflict(row);
        }
        open.len()
    }

    /// The change that a decision comes to; its writer is still to be put in.
    fn decision(
        &self,
        c: &ConflictResolve,
        open: &Conflict,
        table: TableId,
        current: Option<Version>,
    ) -> Result<PendingWrite, ApplyError> {
        let (record_id, operation, data, current) = match c.new_record_id {
            None => {
                let operation = if c.delete { Operation::Delete } else { Operation::Update };
                (RecordId(open.record_id), operation, object(&c.resolved_data), current)
            }
            Some(_) if c.delete || open.remote_delete => {
                return refuse(Code::InvalidData, "new_record_id: a deletion has no data to be kept");
            }
            Some(id) => {
                let id = RecordId(id);
                let there = self.version(table, id);
                if there.as_ref().is_some_and(|v| !v.deleted) {
                    return refuse(Code::Conflict, format!("new_record_id: {}/{id} is taken", open.table_name));
                }
                let data = if c.resolved_data.is_empty() { &open.remote_version } else { &c.resolved_data };
                (id, Operation::Insert, object(data), there)
            }
        };
        Ok(PendingWrite {
            device: DeviceNumber(0),
            device_id: String::new(),
            table,
            table_name: open.table_name.clone(),
            record_id,
            operation,
            data,
            timestamp_ms: self.meta.now().max(current.as_ref().map_or(UnixMs(0), |v| v.timestamp_ms)),
            previous_seq: current.map_or(0, |v| v.seq),
            request_id: String::new(),
            request_number: 0,
        })
    }

    /// A device found a conflict on its own side and tells both versions. What the cluster holds stands, unless
    /// the table waits for a decision by hand.
    pub(super) fn conflict_report(&mut self, c: ConflictReport) -> ApplyResult {
        let device = DeviceNumber(self.existing(&c.device_id)?.number);
        self.must_write(c.class, &c.table_name)?;
        let table = self.number_of_table(&c.table_name, &c.device_id)?;
        let current = self.version(table, RecordId(c.record_id));
        let now = self.meta.now_ms;
        let mut row = Conflict {
            device_id: c.device_id.clone(),
            table_name: c.table_name.clone(),
            record_id: c.record_id,
            conflict_type: c.conflict_type,
            local_version: Bytes::copy_from_slice(&c.local_version),
            remote_version: Bytes::copy_from_slice(&c.remote_version),
            at_ms: now,
            local_seq: current.as_ref().map_or(0, |v| v.seq),
            local_deleted: current.as_ref().is_none_or(|v| v.deleted),
            remote_timestamp_ms: c.timestamp_ms.map_or(now, |ms| ms.min(now + limits::CLIENT_CLOCK_AHEAD_MS)),
            ..Conflict::default()
        };
        let policy = self.policy(table);
        let kind = type_name(c.conflict_type());
        if policy == ResolutionMethod::Manual {
            let row = self.open_conflict(row, device, table, kind)?;
            return Ok(Reply::Conflict(Conflict::clone(&row)));
        }
        self.number_conflict(&mut row, kind);
        row.resolution = policy.into();
        row.resolved_ms = now;
        row.resolved_by = c.device_id;
        row.resolved_deleted = row.local_deleted;
        row.resolved_data = match &current {
            Some(version) => self.data_of(table, RecordId(c.record_id), version)?,
            None => Bytes::new(),
        };
        Ok(Reply::Conflict(self.close_conflict(row)))
    }
}

/// Is this the version that the writer saw? 0 stands for "there is no such record".
fn matches_base(base: u64, current: Option<&Version>) -> bool {
    match current {
        None => base == 0,
        Some(version) => version.seq == base || (base == 0 && version.deleted),
    }
}

/// A conflict type as the document writes it.
pub(crate) fn type_name(kind: ConflictType) -> &'static str {
    match kind {
        ConflictType::Timestamp => "timestamp",
        ConflictType::Data => "data",
        ConflictType::Version | ConflictType::Unset => "version",
    }
}
