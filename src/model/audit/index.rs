//! The index of the audit log, in memory. It answers the documented filters (device, event type, dates) without reading
//! rows: for every filter the ids that it selects, ascending. It is made from the rows and only read by listings, never
//! by apply.

use std::collections::{HashMap, VecDeque};

use crate::ids::{AuditId, Seq, UnixMs};
use crate::model::evidence::EvidenceKind;
use crate::proto::Audit;

/// The event of the rows that are changes.
pub(super) const DATA_UPDATE: &str = "data_update";

/// What the index knows of one row.
#[derive(Clone, Copy, Debug)]
struct AuditIndexEntry {
    at_ms: UnixMs,
    /// The change that is this row, or 0.
    change: Seq,
    device: u32,
    event: u32,
}

#[derive(Debug, Default)]
pub struct AuditIndex {
    /// The id before the first entry.
    before: AuditId,
    entries: VecDeque<AuditIndexEntry>,
    names: HashMap<String, u32>,
    by_device: HashMap<u32, VecDeque<AuditId>>,
    by_event: HashMap<u32, VecDeque<AuditId>>,
    by_both: HashMap<(u32, u32), VecDeque<AuditId>>,
    /// Which events are evidence, by the number of their name.
    evidence: HashMap<u32, EvidenceKind>,
    /// The evidence among the dropped rows: ids up to `before`, ascending.
    kept: VecDeque<(AuditId, AuditIndexEntry)>,
    /// How many of them there are, by kind.
    kept_of: [u64; EvidenceKind::ALL.len()],
    /// Of the rows after `before`, those that changed nothing, ascending: they are no evidence whatever their event is.
    unchanged: VecDeque<AuditId>,
}

/// The documented filters. Times are inclusive.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub device_id: Option<String>,
    pub event_type: Option<String>,
    pub from_ms: Option<UnixMs>,
    pub to_ms: Option<UnixMs>,
    /// Only rows with smaller ids.
    pub before_id: Option<AuditId>,
}

/// Where a listed row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRef {
    pub id: AuditId,
    /// The change that is this row; `None`: it is `RowKey::Audit(id)`.
    pub change: Option<Seq>,
}

impl AuditIndex {
    /// Empty; the first row added has the next id.
    pub(super) fn after(id: AuditId) -> Self {
        Self { before: id, ..Self::default() }
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.insert(name.to_owned(), number);
        if let Some(kind) = EvidenceKind::of(name) {
            self.evidence.insert(number, kind);
        }
        number
    }

    fn entry(&mut self, at_ms: UnixMs, change: Seq, device: &str, event: &str) -> AuditIndexEntry {
        AuditIndexEntry { at_ms, change, device: self.number(device), event: self.number(event) }
    }

    /// The next row, of any kind but a change.
    pub(super) fn add(&mut self, row: &Audit, at_ms: UnixMs) {
        let entry = self.entry(at_ms, Seq(0), &row.device_id, &row.event_type);
        self.push(entry);
        if row.unchanged {
            self.unchanged.push_back(self.newest());
        }
    }

    /// The next row is a change.
    pub(super) fn add_change(&mut self, at_ms: UnixMs, device: &str, seq: Seq) {
        let entry = self.entry(at_ms, seq, device, DATA_UPDATE);
        self.push(entry);
    }

    fn newest(&self) -> AuditId {
        self.before.plus(self.entries.len() as u64)
    }

    /// Of a row that is not dropped.
    fn entry_of(&self, id: AuditId) -> Option<&AuditIndexEntry> {
        self.entries.get(id.get().checked_sub(self.before.get() + 1)? as usize)
    }

    fn push(&mut self, entry: AuditIndexEntry) {
        self.entries.push_back(entry);
        let id = self.newest();
        self.by_device.entry(entry.device).or_default().push_back(id);
        self.by_event.entry(entry.event).or_default().push_back(id);
        self.by_both.entry((entry.device, entry.event)).or_default().push_back(id);
    }

    /// A row older than all that are kept, which is no change.
    pub(super) fn older(&mut self, row: &Audit) {
        // It takes the place of a row that was dropped.
        while let Some((_, entry)) = self.kept.pop_back_if(|(id, _)| *id >= AuditId(row.id)) {
            self.kept_of[self.kind(&entry) as usize] -= 1;
        }
        let entry = self.entry(UnixMs(row.at_ms), Seq(0), &row.device_id, &row.event_type);
        let id = self.before;
        self.before = AuditId(self.before.get() - 1);
        self.entries.push_front(entry);
        self.by_device.entry(entry.device).or_default().push_front(id);
        self.by_event.entry(entry.event).or_default().push_front(id);
        self.by_both.entry((entry.device, entry.event)).or_default().push_front(id);
    }

    /// The rows after `after` up to `to`, oldest first.
    pub fn between(&self, after: AuditId, to: AuditId, limit: usize) -> Vec<AuditRef> {
        let kept = self.kept.partition_point(|(id, _)| *id <= after);
        let kept = self.kept.iter().skip(kept).map(|(id, _)| *id).take_while(|id| *id <= to);
        let first = after.max(self.before).plus(1);
        kept.chain(first.up_to(to.min(self.newest()))).take(limit).map(|id| self.reference(id)).collect()
    }

    /// No row is later than that.
    pub(super) fn cap_times(&mut self, ms: UnixMs) {
        for entry in self.kept.iter_mut().map(|(_, entry)| entry).chain(&mut self.entries) {
            entry.at_ms = entry.at_ms.min(ms);
        }
    }

    /// Whether the row, one of those that are not dropped yet, is evidence.
    pub(super) fn is_evidence(&self, id: AuditId) -> bool {
        self.entry_of(id).is_some_and(|entry| self.evidence.contains_key(&entry.event))
            && self.unchanged.binary_search(&id).is_err()
    }

    /// A row up to `before` that is kept as evidence; they come in the order of their ids.
    pub(super) fn load_evidence(&mut self, row: &Audit) {
        let entry = self.entry(UnixMs(row.at_ms), Seq(0), &row.device_id, &row.event_type);
        self.keep(AuditId(row.id), entry);
    }

    fn keep(&mut self, id: AuditId, entry: AuditIndexEntry) {
        self.kept_of[self.kind(&entry) as usize] += 1;
        self.kept.push_back((id, entry));
    }

    /// A row that is kept is evidence, whatever its event is called.
    fn kind(&self, entry: &AuditIndexEntry) -> EvidenceKind {
        self.evidence.get(&entry.event).copied().unwrap_or(EvidenceKind::Rights)
    }

    /// By how many rows a kind of evidence is over `keep`, at most.
    pub(in crate::model) fn surplus_evidence(&self, keep: u64) -> u64 {
        self.kept_of.into_iter().map(|rows| rows.saturating_sub(keep)).max().unwrap_or(0)
    }

    /// The oldest evidence of each kind that is over `keep`, at most `step` rows: it is no longer listed.
    pub(super) fn drop_evidence(&mut self, keep: u64, step: usize) -> Vec<AuditId> {
        if self.surplus_evidence(keep) == 0 {
            return Vec::new();
        }
        let mut over = self.kept_of.map(|rows| rows.saturating_sub(keep));
        let mut dropped = Vec::new();
        for (id, entry) in std::mem::take(&mut self.kept) {
            let kind = self.kind(&entry) as usize;
            if over[kind] > 0 && dropped.len() < step {
                over[kind] -= 1;
                self.kept_of[kind] -= 1;
                dropped.push(id);
            } else {
                self.kept.push_back((id, entry));
            }
        }
        dropped
    }

    /// Drops everything up to `id`, but for evidence if that is kept.
    pub(super) fn forget(&mut self, id: AuditId, keep_evidence: bool) {
        while self.before < id {
            let Some(entry) = self.entries.pop_front() else { return };
            self.before = self.before.plus(1);
            let unchanged = self.unchanged.pop_front_if(|id| *id <= self.before).is_some();
            if keep_evidence && !unchanged && self.evidence.contains_key(&entry.event) {
                self.keep(self.before, entry);
            }
            for list in [
                self.by_device.get_mut(&entry.device),
                self.by_event.get_mut(&entry.event),
                self.by_both.get_mut(&(entry.device, entry.event)),
            ]
            .into_iter()
            .flatten()
            {
                list.pop_front();
            }
        }
    }

    /// How many rows the filter selects, and those at `offset`, newest first.
    pub fn page(&self, filter: &AuditFilter, limit: usize, offset: usize) -> (u64, Vec<AuditRef>) {
        let (mut total, mut page) = self.live_page(filter, limit, offset);
        // The evidence is older than all other rows.
        for id in self.evidence_ids(filter).rev() {
            if total >= offset as u64 && page.len() < limit {
                page.push(self.reference(id));
            }
            total += 1;
        }
        (total, page)
    }

    /// The ids of the evidence that the filter selects, ascending.
    fn evidence_ids(&self, filter: &AuditFilter) -> impl DoubleEndedIterator<Item = AuditId> {
        let number = |name: &Option<String>| name.as_ref().map(|n| self.names.get(n).copied());
        let (device, event) = (number(&filter.device_id), number(&filter.event_type));
        let (from, to) = (filter.from_ms.unwrap_or_default(), filter.to_ms.unwrap_or(UnixMs::MAX));
        let before = filter.before_id.unwrap_or(AuditId::MAX);
        self.kept.iter().filter_map(move |(id, entry)| {
            let named = device.is_none_or(|d| d == Some(entry.device)) && event.is_none_or(|e| e == Some(entry.event));
            (named && *id < before && (from..=to).contains(&entry.at_ms)).then_some(*id)
        })
    }

    fn live_page(&self, filter: &AuditFilter, limit: usize, offset: usize) -> (u64, Vec<AuditRef>) {
        let (first, last) = self.ids_between(filter.from_ms, filter.to_ms);
        let last = filter.before_id.map_or(last, |before| last.min(AuditId(before.get().saturating_sub(1))));
        let none = VecDeque::new();
        let number = |name: &Option<String>| name.as_ref().map(|n| self.names.get(n).copied());
        let list = match (number(&filter.device_id), number(&filter.event_type)) {
            (None, None) => {
                let total = (last.get() + 1).saturating_sub(first.get());
                // As plain numbers, of which any number are skipped at once.
                let ids = (first.get()..=last.get()).rev().skip(offset).take(limit);
                return (total, ids.map(|id| self.reference(AuditId(id))).collect());
            }
            (Some(Some(device)), None) => self.by_device.get(&device),
            (None, Some(Some(event))) => self.by_event.get(&event),
            (Some(Some(device)), Some(Some(event))) => self.by_both.get(&(device, event)),
            _ => None,
        }
        .unwrap_or(&none);
        let start = list.partition_point(|id| *id < first);
        let end = list.partition_point(|id| *id <= last).max(start);
        let ids = list.range(start..end).rev().skip(offset).take(limit);
        ((end - start) as u64, ids.map(|id| self.reference(*id)).collect())
    }

    /// Changes of a device after `seq`, among those whose audit row is kept.
    pub(in crate::model) fn changes_by(&self, device_id: &str, seq: Seq) -> u64 {
        let key = (self.names.get(device_id), self.names.get(DATA_UPDATE));
        let (Some(device), Some(event)) = key else { return 0 };
        let Some(ids) = self.by_both.get(&(*device, *event)) else { return 0 };
        let up_to = ids.partition_point(|id| self.reference(*id).change <= Some(seq));
        (ids.len() - up_to) as u64
    }

    /// The changes of a device whose audit row is kept: how many, and the seq and the time of the newest; 0: none.
    pub(in crate::model) fn changes_of(&self, device_id: &str) -> (u64, (Seq, UnixMs)) {
        let key = (self.names.get(device_id), self.names.get(DATA_UPDATE));
        let (Some(device), Some(event)) = key else { return (0, (Seq(0), UnixMs(0))) };
        let Some(ids) = self.by_both.get(&(*device, *event)) else { return (0, (Seq(0), UnixMs(0))) };
        let last = ids.back().and_then(|id| self.entry_of(*id));
        (ids.len() as u64, last.map_or((Seq(0), UnixMs(0)), |entry| (entry.change, entry.at_ms)))
    }

    /// Ids grow with time, so dates select a range of ids (empty: first > last).
    fn ids_between(&self, from_ms: Option<UnixMs>, to_ms: Option<UnixMs>) -> (AuditId, AuditId) {
        let first = from_ms.map_or(0, |from| self.entries.partition_point(|e| e.at_ms < from));
        let end = to_ms.map_or(self.entries.len(), |to| self.entries.partition_point(|e| e.at_ms <= to));
        (self.before.plus(1 + first as u64), self.before.plus(end as u64))
    }

    fn reference(&self, id: AuditId) -> AuditRef {
        AuditRef { id, change: self.entry_of(id).map(|e| e.change).filter(|change| *change > Seq(0)) }
    }
}
