//! Conflicts: found when a change meets a record that another hand has moved, decided by the table's policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::change::{Write, object};
use super::effect::Effect;
use super::error::Code;
use super::records::Version;
use super::state::{Given1, State, refuse};
use super::tables::{Key, TablesError};
use crate::limits;
use crate::proto::outcome::Result as Given;
use crate::proto::{
    Accepted, Change, Conflict, ConflictReport, ConflictResolve, ConflictType, DataUpdate, Done as Nothing, Operation,
    PolicyPut, ResolutionMethod, TableName,
};

impl State {
    /// What this update conflicts with, if anything (design, section 6).
    pub(super) fn conflict_with(
        &self,
        c: &DataUpdate,
        given_ms: Option<u64>,
        device: u32,
        table: u32,
        current: Option<&Version>,
    ) -> Result<Option<ConflictType>, TablesError> {
        if c.base_version.is_some_and(|base| !matches_base(base, current)) {
            return Ok(Some(ConflictType::Version));
        }
        let Some(current) = current else { return Ok(None) };
        if given_ms.is_some_and(|ms| ms < current.timestamp_ms) && current.device != device {
            return Ok(Some(ConflictType::Timestamp));
        }
        let data = match (c.operation(), current.deleted) {
            (Operation::Insert, false) => self.data_of(table, c.record_id, current)? != object(&c.data),
            (Operation::Update | Operation::Delete, true) => true,
            _ => false,
        };
        Ok(data.then_some(ConflictType::Data))
    }

    pub(super) fn conflict(
        &mut self,
        kind: ConflictType,
        c: DataUpdate,
        given_ms: Option<u64>,
        device: u32,
        table: u32,
        current: Option<Version>,
    ) -> Given1 {
        let now = self.meta.now_ms;
        let timestamp_ms = given_ms.unwrap_or(now);
        let local = match &current {
            Some(version) => self.data_of(table, c.record_id, version)?,
            None => Bytes::new(),
        };
        self.meta.conflict_head += 1;
        let mut row = Conflict {
            id: self.meta.conflict_head,
            device_id: c.device_id.clone(),
            table_name: c.table_name.clone(),
            record_id: c.record_id,
            conflict_type: kind.into(),
            local_version: local.clone(),
            remote_version: object(&c.data),
            at_ms: now,
            local_seq: current.as_ref().map_or(0, |v| v.seq),
            local_deleted: current.as_ref().is_none_or(|v| v.deleted),
            remote_timestamp_ms: timestamp_ms,
            remote_delete: c.operation() == Operation::Delete,
            ..Conflict::default()
        };
        let policy = self.policy(table);
        let details = format!("Conflict {} of {}/{} ({})", row.id, row.table_name, row.record_id, type_name(kind));
        self.audit("sync_conflict", type_name(kind), true, &c.device_id, details);
        if policy == ResolutionMethod::Manual {
            let row = Arc::new(row);
            self.put(Key::Conflict(row.id), &*row);
            self.open_conflicts.insert(row.id, row.clone());
            self.effect(Effect::ConflictFound(row.clone()));
            return Ok(Given::Conflict(Conflict::clone(&row)));
        }
        let mut write = Write {
            device,
            device_id: c.device_id.clone(),
            table,
            table_name: c.table_name.clone(),
            record_id: c.record_id,
            operation: c.operation(),
            data: row.remote_version.clone(),
            timestamp_ms,
            previous_seq: row.local_seq,
            request_id: c.request_id.clone(),
            request_number: 0,
        };
        let wins = self.incoming_wins(timestamp_ms, &c.device_id, current.as_ref());
        let mut decided = wins.then_some(());
        if policy == ResolutionMethod::Automatic
            && !row.remote_delete
            && !row.local_deleted
            && let Some(merged) = self.merge(&c, &local, wins)?
        {
            write.data = merged;
            write.operation = Operation::Update;
            write.timestamp_ms = timestamp_ms.max(current.as_ref().map_or(0, |v| v.timestamp_ms));
            decided = Some(());
        }
        row.resolution = policy.into();
        row.resolved_ms = now;
        row.resolved_by = c.device_id.clone();
        let timestamp_ms = write.timestamp_ms;
        self.effect(Effect::ConflictFound(Arc::new(row.clone())));
        if decided.is_some() {
            row.resolved_deleted = write.operation == Operation::Delete;
            row.resolved_data = if row.resolved_deleted { Bytes::new() } else { write.data.clone() };
            row.resolved_seq = self.write(write);
        } else {
            row.resolved_deleted = row.local_deleted;
            row.resolved_data = local;
        }
        self.close_conflict(&row);
        let (seq, conflict) = (row.resolved_seq, Some(row.clone()));
        Ok(if seq > 0 { Given::Accepted(Accepted { seq, timestamp_ms, conflict }) } else { Given::Conflict(row) })
    }

    /// Last writer wins: the greater time-stamp, then the greater device id.
    fn incoming_wins(&self, timestamp_ms: u64, device_id: &str, current: Option<&Version>) -> bool {
        let Some(current) = current else { return true };
        let writer = self.device_names.get((current.device as usize).wrapping_sub(1)).map_or("", |name| &**name);
        (timestamp_ms, device_id.as_bytes()) >= (current.timestamp_ms, writer.as_bytes())
    }

    /// Field by field: what only one side changed since the base is kept, the rest is the winner's.
    /// `None` if a side is no object.
    fn merge(&self, c: &DataUpdate, local: &[u8], remote_wins: bool) -> Result<Option<Bytes>, TablesError> {
        let base = match c.base_version {
            Some(seq) if seq > 0 => {
                let same = |c2: &Change| c2.table_name == c.table_name && c2.record_id == c.record_id;
                self.change(seq)?.filter(same)
            }
            _ => None,
        };
        let base = base.map(|change| change.data).unwrap_or_default();
        Ok(merge_objects(&base, local, &c.data, remote_wins).map(Bytes::from))
    }

    fn close_conflict(&mut self, row: &Conflict) {
        self.open_conflicts.remove(&row.id);
        self.put(Key::Conflict(row.id), row);
        let method = method_name(row.resolution());
        let details = format!("Conflict {} of {}/{} resolved ({method})", row.id, row.table_name, row.record_id);
        self.audit("sync_conflict_resolved", method, false, &row.resolved_by, details);
        self.effect(Effect::ConflictResolved(Arc::new(row.clone())));
    }

    fn policy(&self, table: u32) -> ResolutionMethod {
        match self.table_names.get((table as usize).wrapping_sub(1)).map(TableName::policy) {
            None | Some(ResolutionMethod::Unset) => ResolutionMethod::LastWriterWins,
            Some(policy) => policy,
        }
    }

    pub(super) fn policy_put(&mut self, c: PolicyPut) -> Given1 {
        if c.policy() == ResolutionMethod::Unset {
            return refuse(Code::InvalidData, "policy must be last_writer_wins, automatic or manual");
        }
        let number = self.number_of_table(&c.table_name)?;
        if let Some(table) = self.table_names.get_mut(number as usize - 1) {
            table.policy = c.policy;
            let row = table.clone();
            self.put(Key::Table(number), &row);
        }
        let details = format!("Conflict policy of {} is {}", c.table_name, method_name(c.policy()));
        self.audit("policy_change", "put", false, &c.by, details);
        Ok(Given::Done(Nothing {}))
    }

    /// A device or an operator decides an open conflict.
    pub(super) fn conflict_resolve(&mut self, c: ConflictResolve) -> Given1 {
        let open = match c.conflict_id {
            Some(id) => self.open_conflicts.get(&id),
            None => self.open_conflicts.values().find(|o| o.table_name == c.table_name && o.record_id == c.record_id),
        };
        let Some(open) = open.cloned() else {
            return refuse(Code::Conflict, "there is no such open conflict");
        };
        if c.resolved_data.len() > limits::RECORD_DATA {
            return refuse(Code::InvalidData, format!("resolved_data is larger than {} bytes", limits::RECORD_DATA));
        }
        let device = self.existing(&c.device_id)?.number;
        let table = self.number_of_table(&open.table_name)?;
        let current = self.version(table, open.record_id);
        let data = object(&c.resolved_data);
        let mut row = Conflict::clone(&open);
        row.resolution = if c.method == 0 { ResolutionMethod::Manual.into() } else { c.method };
        row.resolved_ms = self.meta.now_ms;
        row.resolved_by.clone_from(if c.by.is_empty() { &c.device_id } else { &c.by });
        row.resolved_deleted = c.delete;
        row.resolved_data = if c.delete { Bytes::new() } else { data.clone() };
        row.resolved_seq = self.write(Write {
            device,
            device_id: c.device_id,
            table,
            table_name: open.table_name.clone(),
            record_id: open.record_id,
            operation: if c.delete { Operation::Delete } else { Operation::Update },
            data,
            timestamp_ms: self.meta.now_ms.max(current.as_ref().map_or(0, |v| v.timestamp_ms)),
            previous_seq: current.map_or(0, |v| v.seq),
            request_id: String::new(),
            request_number: 0,
        });
        self.close_conflict(&row);
        Ok(Given::Conflict(row))
    }

    /// A device found a conflict on its own side and tells both versions. What the cluster holds stands, unless
    /// the table waits for a decision by hand.
    pub(super) fn conflict_report(&mut self, c: ConflictReport) -> Given1 {
        self.existing(&c.device_id)?;
        let table = self.number_of_table(&c.table_name)?;
        let current = self.version(table, c.record_id);
        let now = self.meta.now_ms;
        self.meta.conflict_head += 1;
        let mut row = Conflict {
            id: self.meta.conflict_head,
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
        let details = format!("Conflict {} of {}/{} reported", row.id, row.table_name, row.record_id);
        self.audit("sync_conflict", type_name(c.conflict_type()), true, &c.device_id, details);
        let policy = self.policy(table);
        if policy == ResolutionMethod::Manual {
            self.put(Key::Conflict(row.id), &row);
            self.open_conflicts.insert(row.id, Arc::new(row.clone()));
        } else {
            row.resolution = policy.into();
            row.resolved_ms = now;
            row.resolved_by = c.device_id;
            row.resolved_deleted = row.local_deleted;
            row.resolved_data = match &current {
                Some(version) => self.data_of(table, c.record_id, version)?,
                None => Bytes::new(),
            };
            self.close_conflict(&row);
        }
        Ok(Given::Conflict(row))
    }
}

/// Is this the version that the writer saw? 0 stands for "there is no such record".
fn matches_base(base: u64, current: Option<&Version>) -> bool {
    match current {
        None => base == 0,
        Some(version) => version.seq == base || (base == 0 && version.deleted),
    }
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn merge_objects(base: &[u8], local: &[u8], remote: &[u8], remote_wins: bool) -> Option<Vec<u8>> {
    let base: Fields = serde_json::from_slice(base).unwrap_or_default();
    let local: Fields = serde_json::from_slice(local).ok()?;
    let remote: Fields = serde_json::from_slice(remote).ok()?;
    let mut merged = Fields::new();
    let text = |v: Option<&&RawValue>| v.map(|v| v.get().to_owned());
    for name in local.keys().chain(remote.keys()) {
        let (b, l, r) = (base.get(name), local.get(name), remote.get(name));
        let take_remote = match (text(l) == text(b), text(r) == text(b)) {
            (true, false) => true,
            (false, true) => false,
            _ => remote_wins,
        };
        if let Some(value) = if take_remote { r } else { l } {
            merged.insert(name.clone(), value);
        }
    }
    serde_json::to_vec(&merged).ok()
}

/// A conflict type as the document writes it.
pub fn type_name(kind: ConflictType) -> &'static str {
    match kind {
        ConflictType::Timestamp => "timestamp",
        ConflictType::Data => "data",
        ConflictType::Version | ConflictType::Unset => "version",
    }
}

/// A resolution method as the document writes it.
pub fn method_name(method: ResolutionMethod) -> &'static str {
    match method {
        ResolutionMethod::Manual => "manual",
        ResolutionMethod::Automatic => "automatic",
        ResolutionMethod::LastWriterWins | ResolutionMethod::Unset => "last_writer_wins",
    }
}

/// The method of a documented name.
pub fn method_of(name: &str) -> Option<ResolutionMethod> {
    [ResolutionMethod::LastWriterWins, ResolutionMethod::Manual, ResolutionMethod::Automatic]
        .into_iter()
        .find(|m| method_name(*m) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_keeps_what_only_one_side_changed() {
        let merged = |remote_wins| {
            let out = merge_objects(
                br#"{"price":1,"stock":5,"name":"a","gone":1}"#,
                br#"{"price":2,"stock":5,"name":"b"}"#,
                br#"{"price":1,"stock":4,"name":"c","gone":1,"new":1.50}"#,
                remote_wins,
            );
            String::from_utf8(out.unwrap()).unwrap()
        };
        // price: only here; stock, new: only there; gone: removed here; name: both, so the winner's.
        assert_eq!(merged(true), r#"{"name":"c","new":1.50,"price":2,"stock":4}"#);
        assert_eq!(merged(false), r#"{"name":"b","new":1.50,"price":2,"stock":4}"#);
        assert_eq!(merge_objects(b"", b"[]", b"{}", true), None);
    }
}
