//! The row of counters, [`Meta`]: all of `model` reads it, and each field is written by one room.
//!
//! It is one row so that an entry costs one write for all counters. What a room may write of it is opened by the
//! room's key, which nobody else can make: only elections name a master, only changes move the head.

use std::ops::Deref;

use super::audit::key::AuditKey;
use super::change::key::ChangeKey;
use super::conflict::key::ConflictKey;
use super::device::key::DeviceKey;
use super::election::key::ElectionKey;
use super::import::key::ImportKey;
use super::nodes::key::NodesKey;
use super::table::key::TableKey;
use super::tables::{RowKey, TablesError, TablesRead, get_row};
use super::time_back::key::TimeKey;
use super::version::key::VersionKey;
use crate::ids::{MasterTerm, NodeId, RaftTerm, Seq, UnixMs};
use crate::limits;
use crate::proto::{AskedElection, ElectionOutcome, Import, Meta, PendingElection, TimeCorrection, TransferBack};

pub(super) struct MetaRow(Meta);

impl Deref for MetaRow {
    type Target = Meta;

    fn deref(&self) -> &Meta {
        &self.0
    }
}

impl Meta {
    pub fn master_term(&self) -> MasterTerm {
        MasterTerm(self.term)
    }

    /// The leader that has announced itself last; 0: none has.
    pub fn leader_node(&self) -> NodeId {
        NodeId(self.leader)
    }

    /// The applied time.
    pub fn now(&self) -> UnixMs {
        UnixMs(self.now_ms)
    }

    /// The newest change.
    pub fn head(&self) -> Seq {
        Seq(self.head_seq)
    }

    /// The newest change that was dropped.
    pub fn compacted(&self) -> Seq {
        Seq(self.compacted_seq)
    }

    /// In which the leader that has announced itself leads.
    pub fn leader_raft_term(&self) -> RaftTerm {
        RaftTerm(self.leader_term)
    }
}

/// What is counted one by one does not get there; further on nothing has to mind the end of the numbers.
const COUNT_MAX: u64 = i64::MAX as u64;

pub(super) fn checked_count(count: u64, key: &RowKey) -> Result<(), TablesError> {
    if count > COUNT_MAX { Err(TablesError::Corrupt(key.clone())) } else { Ok(()) }
}

/// The counters are such as commands make them. Memory is taken by some of them.
fn check_counters(meta: &Meta) -> Result<(), TablesError> {
    let times = meta.time_corrections.iter().flat_map(|one| [one.from_ms, one.to_ms]);
    let counts = [
        meta.now_ms,
        meta.head_seq,
        meta.audit_head,
        meta.election_head,
        meta.conflict_head,
        meta.term,
        meta.compacted_ms,
        meta.pending_election_head,
        meta.nodes_lost,
        meta.resolved_head,
        meta.leader_term,
    ];
    let in_order = meta.compacted_seq <= meta.head_seq && meta.audit_compacted <= meta.audit_head;
    let in_bounds = meta.devices <= limits::DEVICE_NUMBERS && meta.tables <= limits::TABLE_NUMBERS;
    if !in_order || !in_bounds {
        return Err(TablesError::Corrupt(RowKey::Meta));
    }
    counts.into_iter().chain(times).try_for_each(|count| checked_count(count, &RowKey::Meta))
}

impl MetaRow {
    pub(super) fn load(rows: &dyn TablesRead) -> Result<Self, TablesError> {
        let meta = get_row(rows, &RowKey::Meta)?.unwrap_or_default();
        check_counters(&meta)?;
        Ok(Self(meta))
    }

    #[cfg(test)]
    pub(super) fn for_tests(&mut self) -> &mut Meta {
        &mut self.0
    }
}

/// Gives each room its fields. Together they are the whole row, each field once: else this does not compile.
macro_rules! parts {
    ($($part:ident by $key:ident as $open:ident { $($field:ident: $of:ty),* $(,)? })*) => {
        $(
            pub(super) struct $part<'a> {
                $(pub $field: &'a mut $of,)*
            }
        )*

        impl MetaRow {
            $(
                pub(super) fn $open(&mut self, _: $key) -> $part<'_> {
                    $part { $($field: &mut self.0.$field,)* }
                }
            )*
        }

        const _: fn(Meta) = |meta| {
            let Meta { $($($field: _,)*)* } = meta;
        };
    };
}

parts! {
    ElectionFields by ElectionKey as elections {
        term: u64,
        master: String,
        election_head: u64,
        election_dropped: u64,
        leader: u64,
        leader_term: u64,
        pending_election_head: u64,
        pending_election: Option<PendingElection>,
        settled: Option<ElectionOutcome>,
        needs_manual_election: bool,
        transfer_back: Option<TransferBack>,
        asked_elections: Vec<AskedElection>,
        masters_left: Vec<AskedElection>,
    }
    ChangeFields by ChangeKey as changes {
        head_seq: u64,
        compacted_seq: u64,
        compacted_ms: u64,
    }
    AuditFields by AuditKey as audit {
        audit_head: u64,
        audit_compacted: u64,
    }
    ConflictFields by ConflictKey as conflicts {
        conflict_head: u64,
        resolved_head: u64,
        resolved_compacted: u64,
    }
    TableFields by TableKey as tables {
        tables: u32,
    }
    DeviceFields by DeviceKey as devices {
        devices: u32,
        devices_forgotten: u32,
        nodes_lost: u64,
    }
    NodeFields by NodesKey as nodes {
        cluster_id: String,
        epoch: u64,
        booted_nodes: Vec<u64>,
        removed_nodes: Vec<u64>,
    }
    TimeFields by TimeKey as time {
        now_ms: u64,
        time_corrections: Vec<TimeCorrection>,
    }
    ImportFields by ImportKey as import {
        import: Option<Import>,
    }
    VersionFields by VersionKey as version {
        cluster_version: u32,
    }
}
