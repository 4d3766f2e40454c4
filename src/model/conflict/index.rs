//! Conflicts in memory: those that wait for a decision whole, of the others only what finds their rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::ids::{ConflictId, DeviceNumber, RecordId, Seq, TableId};
use crate::limits;
use crate::proto::{Conflict, ResolutionMethod};

/// Which conflicts a listing wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictStatus {
    /// Oldest first.
    Open,
    /// Those resolved last first.
    Resolved,
    /// The newest first.
    All,
}

/// What a listing wants of them. Numbers as in the state; `None`: any.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConflictFilter {
    pub(super) status: ConflictStatus,
    pub(super) device: Option<DeviceNumber>,
    pub(super) table: Option<TableId>,
}

/// A conflict without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ConflictEntry {
    device: DeviceNumber,
    table: TableId,
    record_id: RecordId,
    local_seq: Seq,
    /// `None`: open. What an older version resolved has the number 0.
    resolved: Option<u64>,
    bytes: u64,
}

/// Conflicts that wait, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OpenConflicts {
    count: usize,
    bytes: usize,
}

impl OpenConflicts {
    /// Whether a room of this size, of which so much is held, takes one more of a device, that holds so much in all.
    fn takes(self, held: Self, of_device: Self, bytes: usize) -> bool {
        let (count_left, bytes_left) = (self.count.saturating_sub(held.count), self.bytes.saturating_sub(held.bytes));
        if count_left == 0 || bytes > bytes_left {
            return false;
        }
        let scarce = limits::OPEN_CONFLICTS_SCARCE;
        if count_left > self.count / scarce && bytes_left > self.bytes / scarce {
            return true;
        }
        match of_device.count {
            // The first one of a device may be large.
            0 => bytes <= bytes_left / scarce,
            count => {
                count < count_left / limits::OPEN_CONFLICTS_PART
                    && of_device.bytes + bytes <= bytes_left / limits::OPEN_CONFLICTS_PART
            }
        }
    }
}

impl fmt::Display for OpenConflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} open conflicts ({} KiB)", self.count, self.bytes >> 10)
    }
}

#[derive(Debug, Default, PartialEq)]
pub(in crate::model) struct ConflictIndex {
    open: BTreeMap<ConflictId, Arc<Conflict>>,
    all_open: OpenConflicts,
    /// By device, and by table.
    open_of: BTreeMap<DeviceNumber, OpenConflicts>,
    open_in: BTreeMap<TableId, OpenConflicts>,
    notes: BTreeMap<ConflictId, ConflictEntry>,
    /// In the order of their resolution, by number and id.
    resolved: BTreeSet<(u64, ConflictId)>,
    resolved_bytes: u64,
    /// By table, record, the version that each was found at, and id.
    of_record: BTreeSet<(TableId, RecordId, Seq, ConflictId)>,
}

fn weight(row: &Conflict) -> u64 {
    (row.local_version.len() + row.remote_version.len() + row.resolved_data.len() + 256) as u64
}

impl ConflictIndex {
    /// A row that was written or read; it takes the place of what was known of it.
    pub(super) fn set(&mut self, row: &Arc<Conflict>, device: DeviceNumber, table: TableId) {
        let (id, local_seq) = (ConflictId(row.id), Seq(row.local_seq));
        self.remove(id);
        let open = row.resolution() == ResolutionMethod::Unset;
        let bytes = weight(row);
        let resolved = (!open).then_some(row.resolved_number);
        let record_id = RecordId(row.record_id);
        let note = ConflictEntry { device, table, record_id, local_seq, resolved, bytes };
        match resolved {
            None => {
                let (of, within) = (self.open_of.entry(device).or_default(), self.open_in.entry(table).or_default());
                for held in [&mut self.all_open, of, within] {
                    held.count += 1;
                    held.bytes += bytes as usize;
                }
                self.open.insert(id, row.clone());
            }
            Some(number) => {
                self.resolved.insert((number, id));
                self.resolved_bytes += bytes;
            }
        }
        self.of_record.insert((table, record_id, local_seq, id));
        self.notes.insert(id, note);
    }

    fn remove(&mut self, id: ConflictId) {
        let Some(note) = self.notes.remove(&id) else { return };
        self.of_record.remove(&(note.table, note.record_id, note.local_seq, id));
        match note.resolved {
            None => {
                self.open.remove(&id);
                let of = self.open_of.entry(note.device).or_default();
                let within = self.open_in.entry(note.table).or_default();
                for held in [&mut self.all_open, of, within] {
                    held.count -= 1;
                    held.bytes -= note.bytes as usize;
                }
                if self.open_of.get(&note.device).is_some_and(|held| held.count == 0) {
                    self.open_of.remove(&note.device);
                }
                if self.open_in.get(&note.table).is_some_and(|held| held.count == 0) {
                    self.open_in.remove(&note.table);
                }
            }
            Some(number) => {
                self.resolved.remove(&(number, id));
                self.resolved_bytes -= note.bytes;
            }
        }
    }

    /// Takes out the resolved ones up to a number, at most `limit`: their ids, in order.
    pub(super) fn take_resolved(&mut self, to: u64, limit: usize) -> Vec<(u64, ConflictId)> {
        let old: Vec<_> = self.resolved.iter().take_while(|(number, _)| *number <= to).take(limit).copied().collect();
        old.iter().for_each(|(_, id)| self.remove(*id));
        old
    }

    pub(super) fn resolved_bytes(&self) -> u64 {
        self.resolved_bytes
    }

    /// The number up to which resolved ones must go, so that those that stay have at most so many bytes.
    pub(super) fn over_bytes(&self, limit: u64) -> u64 {
        let (mut bytes, mut to) = (self.resolved_bytes, 0);
        for (number, id) in &self.resolved {
            if bytes <= limit {
                break;
            }
            bytes -= self.notes.get(id).map_or(0, |note| note.bytes);
            to = *number;
        }
        to
    }

    /// Why this one may not wait for a decision, if it may not. The last quarter of the room in a table, and in the
    /// cluster, is shared out: a device that holds more than its part of what is left has no more of it. So however many
    /// devices fill it, what is left for one that holds few grows smaller, and never ends.
    pub(super) fn full(&self, row: &Conflict, device: DeviceNumber, table: TableId) -> Option<String> {
        let of_device = self.open_of.get(&device).copied().unwrap_or_default();
        let in_table = self.open_in.get(&table).copied().unwrap_or_default();
        let bytes = weight(row) as usize;
        let own =
            OpenConflicts { count: limits::OPEN_CONFLICTS_OF_DEVICE, bytes: limits::OPEN_CONFLICT_BYTES_OF_DEVICE };
        if of_device.count >= own.count || of_device.bytes + bytes > own.bytes {
            return Some(format!("device {:?} has {of_device}, no more can wait: decide some", row.device_id));
        }
        let part =
            OpenConflicts { count: limits::OPEN_CONFLICTS_OF_TABLE, bytes: limits::OPEN_CONFLICT_BYTES_OF_TABLE };
        let whole = OpenConflicts { count: limits::OPEN_CONFLICTS, bytes: limits::OPEN_CONFLICT_BYTES };
        for (held, room, whose) in [
            (in_table, part, format!("table {:?} has", row.table_name)),
            (self.all_open, whole, "the cluster has".into()),
        ] {
            if !room.takes(held, of_device, bytes) {
                return Some(format!("{whose} {held}, no more of device {:?} can wait: decide some", row.device_id));
            }
        }
        None
    }

    /// The open ones of a table, oldest first.
    pub(super) fn open_in(&self, table: TableId) -> impl Iterator<Item = &Arc<Conflict>> {
        let any = self.open_in.contains_key(&table);
        let ids = self.open.iter().filter(move |_| any);
        ids.filter(move |(id, _)| self.notes.get(id).is_some_and(|note| note.table == table)).map(|(_, row)| row)
    }

    /// A table is gone: what was decided in it is of no table any more.
    pub(super) fn forget_table(&mut self, table: TableId) {
        let of_table =
            (table, RecordId::MIN, Seq(0), ConflictId(0))..=(table, RecordId::MAX, Seq::MAX, ConflictId::MAX);
        let there: Vec<_> = self.of_record.range(of_table).copied().collect();
        for at in there {
            self.of_record.remove(&at);
            let (_, record_id, seq, id) = at;
            self.of_record.insert((TableId(0), record_id, seq, id));
            if let Some(note) = self.notes.get_mut(&id) {
                note.table = TableId(0);
            }
        }
    }

    pub(super) fn open(&self) -> &BTreeMap<ConflictId, Arc<Conflict>> {
        &self.open
    }

    /// The open ones of a record, oldest first by the version that they were found at.
    pub(super) fn open_of_record(
        &self,
        table: TableId,
        record_id: RecordId,
    ) -> impl DoubleEndedIterator<Item = &Arc<Conflict>> {
        self.of_record
            .range((table, record_id, Seq(0), ConflictId(0))..=(table, record_id, Seq::MAX, ConflictId::MAX))
            .filter_map(|(_, _, _, id)| self.open.get(id))
    }

    /// Conflicts of a record before this place, newest first: the version that each was found at, and its id.
    pub(super) fn of_record_before(
        &self,
        table: TableId,
        record_id: RecordId,
        before: (Seq, ConflictId),
    ) -> impl Iterator<Item = (Seq, ConflictId)> {
        self.of_record
            .range((table, record_id, Seq(0), ConflictId(0))..(table, record_id, before.0, before.1))
            .rev()
            .map(|(_, _, seq, id)| (*seq, *id))
    }

    /// The ids of a page of those wanted, in tables that may be shown, and how many there are.
    pub(super) fn page(
        &self,
        filter: ConflictFilter,
        shown: impl Fn(TableId) -> bool,
        limit: usize,
        skip: usize,
    ) -> (Vec<ConflictId>, u64) {
        let wanted = |id: &ConflictId| {
            self.notes.get(id).is_some_and(|note| {
                shown(note.table)
                    && filter.device.is_none_or(|device| note.device == device)
                    && filter.table.is_none_or(|table| note.table == table)
            })
        };
        let all: Box<dyn Iterator<Item = ConflictId>> = match filter.status {
            ConflictStatus::Open => Box::new(self.open.keys().copied()),
            ConflictStatus::Resolved => Box::new(self.resolved.iter().rev().map(|(_, id)| *id)),
            ConflictStatus::All => Box::new(self.notes.keys().rev().copied()),
        };
        let (mut page, mut total) = (Vec::new(), 0u64);
        for id in all.filter(wanted) {
            if total >= skip as u64 && page.len() < limit {
                page.push(id);
            }
            total += 1;
        }
        (page, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(id: u64, bytes: usize) -> Arc<Conflict> {
        Arc::new(Conflict { id, remote_version: vec![b'x'; bytes].into(), ..Conflict::default() })
    }

    struct Pool {
        index: ConflictIndex,
        id: u64,
    }

    impl Pool {
        /// One more open conflict, if there is room for it.
        fn open(&mut self, device: u32, table: TableId, bytes: usize) -> bool {
            let device = DeviceNumber(device);
            self.id += 1;
            let row = conflict(self.id, bytes);
            let has_room = self.index.full(&row, device, table).is_none();
            if has_room {
                self.index.set(&row, device, table);
            }
            has_room
        }

        /// As many as there is room for.
        fn fill(&mut self, device: u32, tables: u32, bytes: usize) -> usize {
            let mut opened = 0;
            for table in (1..=tables).map(TableId) {
                while self.open(device, table, bytes) {
                    opened += 1;
                }
            }
            opened
        }
    }

    /// However many conflicts stolen tokens open, and however large: in one table or in all of them, those that hold few
    /// still open theirs.
    #[test]
    fn a_dozen_stolen_tokens_leave_room_for_all_others() {
        for (thieves, bytes, others, each) in
            [(12, 10, 30, 8), (40, 10, 30, 2), (12, 200_000, 30, 8), (40, 500_000, 30, 2)]
        {
            for tables in [1, 4] {
                let mut pool = Pool { index: ConflictIndex::default(), id: 0 };
                for device in 1..=thieves {
                    pool.fill(device, tables, bytes);
                }
                let held = pool.index.all_open;
                for other in 1_001..=1_000 + others {
                    for n in 0..each {
                        assert!(
                            pool.open(other, TableId(1), 1_000),
                            "{thieves} thieves hold {held:?} in {tables} tables of {bytes} bytes: device {other} opened {n}"
                        );
                    }
                }
                let all = pool.index.all_open;
                assert!(all.count <= limits::OPEN_CONFLICTS && all.bytes <= limits::OPEN_CONFLICT_BYTES, "{all:?}");
            }
        }
    }

    #[test]
    fn while_there_is_room_a_device_has_its_own_share_of_it() {
        let mut pool = Pool { index: ConflictIndex::default(), id: 0 };
        assert_eq!(pool.fill(1, 1, 10), limits::OPEN_CONFLICTS_OF_DEVICE);
        assert_eq!(pool.fill(2, 1, 10), limits::OPEN_CONFLICTS_OF_DEVICE);
        let mut pool = Pool { index: ConflictIndex::default(), id: 0 };
        let held = pool.fill(1, 1, 256 << 10) * (256 << 10);
        assert!(held > limits::OPEN_CONFLICT_BYTES_OF_DEVICE / 10 * 9, "{held}");
    }

    /// What is decided makes room again.
    #[test]
    fn what_was_decided_makes_room() {
        let mut pool = Pool { index: ConflictIndex::default(), id: 0 };
        for device in 1..=12 {
            pool.fill(device, 1, 10);
        }
        assert!(!pool.open(12, TableId(1), 10));
        let decided: Vec<_> = pool.index.open().values().take(2_000).cloned().collect();
        for row in decided {
            let resolution = ResolutionMethod::Manual.into();
            pool.index.set(&Arc::new(Conflict { resolution, ..Conflict::clone(&row) }), DeviceNumber(1), TableId(1));
        }
        assert!(pool.open(12, TableId(1), 10));
    }
}
