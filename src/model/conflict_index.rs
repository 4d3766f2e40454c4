//! Conflicts in memory: those that wait for a decision whole, of the others only what finds their rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::limits;
use crate::proto::{Conflict, ResolutionMethod};

/// Which conflicts a listing wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Oldest first.
    Open,
    /// Those resolved last first.
    Resolved,
    /// The newest first.
    All,
}

/// What a listing wants of them. Numbers as in the state; `None`: any.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    pub status: Status,
    pub device: Option<u32>,
    pub table: Option<u32>,
}

/// A conflict without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    device: u32,
    table: u32,
    record_id: i64,
    local_seq: u64,
    /// `None`: open. What an older version resolved has the number 0.
    resolved: Option<u64>,
    bytes: u64,
}

/// Conflicts that wait, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    count: usize,
    bytes: usize,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct ConflictIndex {
    open: BTreeMap<u64, Arc<Conflict>>,
    all_open: Open,
    /// By device, and by table.
    open_of: BTreeMap<u32, Open>,
    open_in: BTreeMap<u32, Open>,
    notes: BTreeMap<u64, Note>,
    /// In the order of their resolution, by number and id.
    resolved: BTreeSet<(u64, u64)>,
    resolved_bytes: u64,
    /// By table, record, the version that each was found at, and id.
    of_record: BTreeSet<(u32, i64, u64, u64)>,
}

fn weight(row: &Conflict) -> u64 {
    (row.local_version.len() + row.remote_version.len() + row.resolved_data.len() + 256) as u64
}

impl ConflictIndex {
    /// A row that was written or read; it takes the place of what was known of it.
    pub fn set(&mut self, row: &Arc<Conflict>, device: u32, table: u32) {
        self.remove(row.id);
        let open = row.resolution() == ResolutionMethod::Unset;
        let bytes = weight(row);
        let resolved = (!open).then_some(row.resolved_number);
        let note = Note { device, table, record_id: row.record_id, local_seq: row.local_seq, resolved, bytes };
        match resolved {
            None => {
                let (of, within) = (self.open_of.entry(device).or_default(), self.open_in.entry(table).or_default());
                for held in [&mut self.all_open, of, within] {
                    held.count += 1;
                    held.bytes += bytes as usize;
                }
                self.open.insert(row.id, row.clone());
            }
            Some(number) => {
                self.resolved.insert((number, row.id));
                self.resolved_bytes += bytes;
            }
        }
        self.of_record.insert((table, row.record_id, row.local_seq, row.id));
        self.notes.insert(row.id, note);
    }

    fn remove(&mut self, id: u64) {
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
    pub fn take_resolved(&mut self, to: u64, limit: usize) -> Vec<(u64, u64)> {
        let old: Vec<_> = self.resolved.iter().take_while(|(number, _)| *number <= to).take(limit).copied().collect();
        old.iter().for_each(|(_, id)| self.remove(*id));
        old
    }

    pub fn resolved_bytes(&self) -> u64 {
        self.resolved_bytes
    }

    /// The number up to which resolved ones must go, so that those that stay have at most so many bytes.
    pub fn over_bytes(&self, limit: u64) -> u64 {
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

    /// Why this one may not wait for a decision, if it may not. The last fifth of the room in a table, and in the
    /// cluster, is kept for devices that hold little: what one device fills is no other's room.
    pub fn full(&self, row: &Conflict, device: u32, table: u32) -> Option<String> {
        let of_device = self.open_of.get(&device).copied().unwrap_or_default();
        let in_table = self.open_in.get(&table).copied().unwrap_or_default();
        let bytes = weight(row) as usize;
        let small = of_device.count < limits::OPEN_CONFLICTS_SMALL
            && (of_device.count == 0 || of_device.bytes + bytes <= limits::OPEN_CONFLICT_BYTES_SMALL);
        let for_all = |room: usize| if small { room } else { room / 5 * 4 };
        let (whole, part) = (for_all(limits::OPEN_CONFLICTS), for_all(limits::OPEN_CONFLICTS_OF_TABLE));
        let bytes_whole = for_all(limits::OPEN_CONFLICT_BYTES);
        let bytes_part = for_all(limits::OPEN_CONFLICT_BYTES_OF_TABLE);
        let (own, own_bytes) = (limits::OPEN_CONFLICTS_OF_DEVICE, limits::OPEN_CONFLICT_BYTES_OF_DEVICE);
        for (held, count, room, whose) in [
            (of_device, own, own_bytes, format!("device {:?} has", row.device_id)),
            (in_table, part, bytes_part, format!("table {:?} has", row.table_name)),
            (self.all_open, whole, bytes_whole, "the cluster has".to_owned()),
        ] {
            if held.count >= count || held.bytes + bytes > room {
                let (count, kib) = (held.count, held.bytes >> 10);
                return Some(format!("{whose} {count} open conflicts ({kib} KiB), no more can wait: decide some"));
            }
        }
        None
    }

    /// The open ones of a table, oldest first.
    pub fn open_in(&self, table: u32) -> impl Iterator<Item = &Arc<Conflict>> {
        let any = self.open_in.contains_key(&table);
        let ids = self.open.iter().filter(move |_| any);
        ids.filter(move |(id, _)| self.notes.get(id).is_some_and(|note| note.table == table)).map(|(_, row)| row)
    }

    /// A table is gone: what was decided in it is of no table any more.
    pub fn forget_table(&mut self, table: u32) {
        let of_table = (table, i64::MIN, 0, 0)..=(table, i64::MAX, u64::MAX, u64::MAX);
        let there: Vec<_> = self.of_record.range(of_table).copied().collect();
        for at in there {
            self.of_record.remove(&at);
            let (_, record_id, seq, id) = at;
            self.of_record.insert((0, record_id, seq, id));
            if let Some(note) = self.notes.get_mut(&id) {
                note.table = 0;
            }
        }
    }

    pub fn open(&self) -> &BTreeMap<u64, Arc<Conflict>> {
        &self.open
    }

    /// The open ones of a record, oldest first by the version that they were found at.
    pub fn open_of_record(&self, table: u32, record_id: i64) -> impl DoubleEndedIterator<Item = &Arc<Conflict>> {
        self.of_record
            .range((table, record_id, 0, 0)..=(table, record_id, u64::MAX, u64::MAX))
            .filter_map(|(_, _, _, id)| self.open.get(id))
    }

    /// Conflicts of a record before this place, newest first: the version that each was found at, and its id.
    pub fn of_record_before(&self, table: u32, record_id: i64, before: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
        self.of_record
            .range((table, record_id, 0, 0)..(table, record_id, before.0, before.1))
            .rev()
            .map(|(_, _, seq, id)| (*seq, *id))
    }

    /// The ids of a page of those wanted, in tables that may be shown, and how many there are.
    pub fn page(&self, filter: Filter, shown: impl Fn(u32) -> bool, limit: usize, skip: usize) -> (Vec<u64>, u64) {
        let wanted = |id: &u64| {
            self.notes.get(id).is_some_and(|note| {
                shown(note.table)
                    && filter.device.is_none_or(|device| note.device == device)
                    && filter.table.is_none_or(|table| note.table == table)
            })
        };
        let all: Box<dyn Iterator<Item = u64>> = match filter.status {
            Status::Open => Box::new(self.open.keys().copied()),
            Status::Resolved => Box::new(self.resolved.iter().rev().map(|(_, id)| *id)),
            Status::All => Box::new(self.notes.keys().rev().copied()),
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
