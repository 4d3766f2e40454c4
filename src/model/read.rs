//! Reading what is not kept in memory: pages of changes, the data of records, the election log.

use bytes::Bytes;

use super::change::stored::StoredData;
use super::tables::{RowKey, TablesError, TablesRead, decode, get_row};
use super::time_back::Corrections;
use crate::ids::{ConflictId, DeviceNumber, ElectionId, RecordId, Seq, TableId, UnixMs};
use crate::limits;
use crate::proto::{Change, ChangeBlock, Conflict, Election, Operation, Record};

/// A page of the change feed.
#[derive(Debug, Default)]
pub struct ChangePage {
    pub changes: Vec<Change>,
    /// Everything up to this seq has been looked at: where the next page begins.
    pub seq: Seq,
    pub more: bool,
}

/// Bounds of a page. Bytes are those of [`weight`]; one change is always given.
#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    pub rows: usize,
    pub bytes: usize,
}

/// At least as much as a change takes in a page, as JSON: names have no control characters, so that escaping at most
/// doubles them.
pub fn weight(change: &Change) -> usize {
    change.data.len() + 2 * change.device_id.len() + around(&change.table_name)
}

/// The same for a record of this table, without its data.
pub fn around(table_name: &str) -> usize {
    2 * table_name.len() + 320
}

/// Changes looked at for one page, and bytes of them, whatever the filter takes: a page with fewer, or none, leads on.
const SCAN: usize = 20_000;
const SCAN_BYTES: usize = 8 << 20;
const BLOCKS: usize = 16;

/// The changes after `after` up to `head` that `wanted` takes. `None` if some were compacted: only a full sync helps.
pub fn changes_after(
    tables: &dyn TablesRead,
    after: Seq,
    head: Seq,
    size: PageSize,
    wanted: impl Fn(&Change) -> bool,
) -> Result<Option<ChangePage>, TablesError> {
    let mut page = ChangePage { seq: after, ..ChangePage::default() };
    let (mut bytes, mut scanned, mut scanned_bytes) = (0, 0, 0);
    let mut from = block_of(tables, after.next())?;
    while page.seq < head && scanned < SCAN && scanned_bytes < SCAN_BYTES {
        let rows = tables.range(&RowKey::Changes(from.get()), &RowKey::Changes(head.get()), BLOCKS, false)?;
        if rows.is_empty() {
            return Ok(None);
        }
        for (key, value) in rows {
            scanned_bytes += value.len();
            let block: ChangeBlock = decode(&key, value)?;
            for change in block.changes {
                let seq = Seq(change.seq);
                if seq <= page.seq || seq > head {
                    continue;
                }
                if seq != page.seq.next() {
                    return Ok(None);
                }
                if wanted(&change) {
                    bytes += weight(&change);
                    if page.changes.len() >= size.rows || (bytes > size.bytes && !page.changes.is_empty()) {
                        page.more = true;
                        return Ok(Some(page));
                    }
                    page.changes.push(change);
                }
                page.seq = seq;
                scanned += 1;
            }
        }
        from = page.seq.next();
    }
    page.more = page.seq < head;
    Ok(Some(page))
}

/// The first seq of the block that holds `seq`, or `seq` itself if none does.
fn block_of(tables: &dyn TablesRead, seq: Seq) -> Result<Seq, TablesError> {
    let rows = tables.range(&RowKey::Changes(0), &RowKey::Changes(seq.get()), 1, true)?;
    Ok(match rows.first() {
        Some((RowKey::Changes(first), _)) => Seq(*first),
        _ => seq,
    })
}

/// One change, if it is kept.
pub fn change(tables: &dyn TablesRead, seq: Seq) -> Result<Option<Change>, TablesError> {
    Ok(ChangeReader::new(tables).get(seq)?.cloned())
}

/// Reads changes one by one; neighbours come from the same block.
pub struct ChangeReader<'a> {
    tables: &'a dyn TablesRead,
    block: Vec<Change>,
}

impl<'a> ChangeReader<'a> {
    pub fn new(tables: &'a dyn TablesRead) -> Self {
        Self { tables, block: Vec::new() }
    }

    pub fn get(&mut self, seq: Seq) -> Result<Option<&Change>, TablesError> {
        if self.index(seq).is_none() {
            let rows = self.tables.range(&RowKey::Changes(0), &RowKey::Changes(seq.get()), 1, true)?;
            self.block = match rows.into_iter().next() {
                Some((key, value)) => decode::<ChangeBlock>(&key, value)?.changes,
                None => Vec::new(),
            };
        }
        Ok(self.index(seq).and_then(|at| self.block.get(at)))
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        let at = seq.get().checked_sub(self.block.first()?.seq)? as usize;
        (at < self.block.len()).then_some(at)
    }
}

/// Reads the data of records whose versions were seen in the state a moment ago. Neighbours in time come from the
/// same block. What has been compacted is read from the record's row, which may be newer.
pub struct RecordReader<'a>(ChangeReader<'a>);

impl<'a> RecordReader<'a> {
    pub fn new(tables: &'a dyn TablesRead) -> Self {
        Self(ChangeReader::new(tables))
    }

    /// With the version that it is of. `None`: deleted meanwhile.
    pub fn data(&mut self, at: StoredData) -> Result<Option<(Seq, Bytes)>, TablesError> {
        if let Some(change) = self.0.get(at.seq)? {
            return Ok(Some((at.seq, change.data.clone())));
        }
        let row = get_row::<Record>(self.0.tables, &RowKey::Record { table: at.table, id: at.id })?;
        Ok(row.filter(|record| !record.deleted).map(|record| (Seq(record.seq), record.data)))
    }
}

/// One version of a record.
#[derive(Clone, Debug)]
pub struct RecordVersion {
    pub at: StoredData,
    pub data: Bytes,
    pub deleted: bool,
}

impl RecordReader<'_> {
    /// Exactly the version that is asked for; `None` if compaction has taken it away.
    pub fn exact(&mut self, at: StoredData) -> Result<Option<RecordVersion>, TablesError> {
        if let Some(change) = self.0.get(at.seq)? {
            let at = StoredData { timestamp_ms: UnixMs(change.timestamp_ms), ..at };
            let deleted = change.operation() == Operation::Delete;
            return Ok(Some(RecordVersion { at, data: change.data.clone(), deleted }));
        }
        let row = get_row::<Record>(self.0.tables, &RowKey::Record { table: at.table, id: at.id })?;
        Ok(row.filter(|record| Seq(record.seq) == at.seq).map(|record| {
            let at =
                StoredData { timestamp_ms: UnixMs(record.timestamp_ms), device: DeviceNumber(record.device), ..at };
            RecordVersion { at, data: record.data, deleted: record.deleted }
        }))
    }
}

/// Versions, and the last one looked at, if some are left.
pub type ExactPage = (Vec<RecordVersion>, Option<StoredData>);

/// The first of these versions, up to `bytes` (`around` a record's data there are so many), but one at least; and the
/// last one looked at, if some are left. `None` if compaction has taken one of them away.
pub fn records_exact(
    tables: &dyn TablesRead,
    page: Vec<StoredData>,
    bytes: usize,
    around: impl Fn(TableId) -> usize,
) -> Result<Option<ExactPage>, TablesError> {
    let mut reader = RecordReader::new(tables);
    let mut out: Vec<RecordVersion> = Vec::with_capacity(page.len());
    let (mut taken, mut last) = (0, None);
    for at in page {
        let Some(found) = reader.exact(at)? else { return Ok(None) };
        if !found.deleted {
            taken += found.data.len() + around(at.table);
            if taken > bytes && !out.is_empty() {
                return Ok(Some((out, last)));
            }
            out.push(found);
        }
        last = Some(at);
    }
    Ok(Some((out, None)))
}

/// Records with their data, in the order asked for.
pub type WithData = Vec<(StoredData, Bytes)>;

/// The data of the first of these records, up to about `bytes`, but of one at least; and the last one looked at, if
/// some are left.
pub fn records_data(
    tables: &dyn TablesRead,
    page: Vec<StoredData>,
    bytes: usize,
) -> Result<(WithData, Option<StoredData>), TablesError> {
    let mut reader = RecordReader::new(tables);
    let mut out = Vec::with_capacity(page.len());
    let mut left = bytes;
    let mut last = None;
    for at in page {
        if left == 0 {
            return Ok((out, last));
        }
        if let Some((seq, data)) = reader.data(at)? {
            left = left.saturating_sub(data.len());
            out.push((StoredData { seq, ..at }, data));
        }
        last = Some(at);
    }
    Ok((out, None))
}

/// The seq after which every change was committed at `ms` or later. Changes are dense from `compacted + 1` to
/// `head`, and their times, as the corrections have them, never go back.
pub fn seq_before(
    tables: &dyn TablesRead,
    compacted: Seq,
    head: Seq,
    ms: UnixMs,
    corrections: Corrections<'_>,
) -> Result<Seq, TablesError> {
    let (mut low, mut high) = (compacted.get(), head.get());
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match change(tables, Seq(middle))? {
            Some(at) if corrections.of_change(Seq(at.seq), UnixMs(at.committed_ms)) >= ms => high = middle - 1,
            // Compacted meanwhile counts as older.
            _ => low = middle,
        }
    }
    Ok(Seq(low))
}

/// The place in the log that a time stands for, wherever it was taken from: every change after it was committed at
/// `ms` or later, or came after a change whose own time-stamp, which may be ahead of the clock, is that late.
pub fn seq_of_time(
    tables: &dyn TablesRead,
    compacted: Seq,
    head: Seq,
    ms: UnixMs,
    corrections: Corrections<'_>,
) -> Result<Seq, TablesError> {
    let to = seq_before(tables, compacted, head, ms, corrections)?;
    let from = seq_before(tables, compacted, to, ms.minus_ms(limits::CLIENT_CLOCK_AHEAD_MS), corrections)?;
    let mut reader = ChangeReader::new(tables);
    for before in from.get()..to.get() {
        let seq = Seq(before).next();
        if reader.get(seq)?.is_some_and(|change| corrections.of_change(seq, UnixMs(change.timestamp_ms)) >= ms) {
            return Ok(Seq(before));
        }
    }
    Ok(to)
}

/// The election log, newest first.
pub fn elections(
    tables: &dyn TablesRead,
    head: ElectionId,
    limit: usize,
    offset: u64,
) -> Result<Vec<Election>, TablesError> {
    let Some(newest) = head.get().checked_sub(offset).map(ElectionId) else { return Ok(Vec::new()) };
    let rows = tables.range(&RowKey::Election(ElectionId(0)), &RowKey::Election(newest), limit, true)?;
    rows.into_iter().map(|(key, value)| decode(&key, value)).collect()
}

/// The conflicts with these ids that are still kept, until their data has this many bytes, but one at least; and how
/// many ids were looked at.
pub fn conflicts(
    tables: &dyn TablesRead,
    ids: &[ConflictId],
    bytes: usize,
) -> Result<(Vec<Conflict>, usize), TablesError> {
    let (mut rows, mut left) = (Vec::new(), bytes);
    for (seen, id) in ids.iter().enumerate() {
        let Some(row) = get_row::<Conflict>(tables, &RowKey::Conflict(*id))? else { continue };
        let weight = conflict_bytes(&row);
        if weight > left && !rows.is_empty() {
            return Ok((rows, seen));
        }
        left = left.saturating_sub(weight);
        rows.push(row);
    }
    Ok((rows, ids.len()))
}

fn conflict_bytes(row: &Conflict) -> usize {
    row.local_version.len() + row.remote_version.len() + row.resolved_data.len() + 256
}

/// A place in a record's history: a version, or (with an id) a conflict that was found at it.
pub type HistoryPosition = (Seq, ConflictId);

/// What the state knows of a record's history; the rest is read from rows.
#[derive(Clone, Debug)]
pub struct HistoryOf {
    pub table_name: String,
    pub table: TableId,
    pub record_id: RecordId,
    /// Only what comes before this.
    pub before: Option<HistoryPosition>,
    /// The record's version now; 0: there was never one.
    pub newest: Seq,
    /// Conflicts before that place, newest first: one more than a page holds, if there are so many.
    pub conflicts: Vec<HistoryPosition>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HistoryItem {
    Change(Change),
    /// The record as compaction wrote it down: its change is gone.
    Record(Record),
    Conflict(Conflict),
}

/// A page of a record's history, newest first.
#[derive(Debug, Default)]
pub struct RecordHistory {
    pub entries: Vec<(HistoryPosition, HistoryItem)>,
    /// Where the next page begins; `None`: this was the last one.
    pub next: Option<HistoryPosition>,
    /// Older versions are no longer kept.
    pub dropped: bool,
}

/// Follows a record's changes back, with its conflicts where they were found. `None`: `before` is no place in it.
pub fn history(tables: &dyn TablesRead, of: &HistoryOf, size: PageSize) -> Result<Option<RecordHistory>, TablesError> {
    let mut changes = ChangeReader::new(tables);
    let mut change = |seq: Seq| -> Result<Option<Change>, TablesError> {
        if seq == Seq(0) { Ok(None) } else { Ok(changes.get(seq)?.cloned()) }
    };
    let ours = |c: &Change| c.table_name == of.table_name && c.record_id == of.record_id.get();
    let mut page = RecordHistory::default();
    // The next change to be told; 0: none is left.
    let mut seq = match of.before {
        None => of.newest,
        Some((Seq(0), _)) => Seq(0),
        Some((version, conflict)) => match change(version)? {
            Some(c) if !ours(&c) => return Ok(None),
            Some(c) => {
                if conflict > ConflictId(0) {
                    version
                } else {
                    Seq(c.previous_seq)
                }
            }
            None if conflict > ConflictId(0) => version,
            None => {
                page.dropped = true;
                Seq(0)
            }
        },
    };
    let mut found = of.conflicts.iter().copied().peekable();
    let mut left = size.bytes;
    loop {
        let conflict = found.peek().copied().filter(|(at, _)| *at >= seq);
        let next = conflict.unwrap_or((seq, ConflictId(0)));
        if next == (Seq(0), ConflictId(0)) {
            return Ok(Some(page));
        }
        let past = match conflict {
            Some((_, id)) => get_row(tables, &RowKey::Conflict(id))?.map(HistoryItem::Conflict),
            None => match change(seq)? {
                Some(c) if ours(&c) => Some(HistoryItem::Change(c)),
                Some(_) => return Ok(None),
                None if seq == of.newest => {
                    let row = get_row::<Record>(tables, &RowKey::Record { table: of.table, id: of.record_id })?;
                    row.filter(|r| Seq(r.seq) == seq).map(HistoryItem::Record)
                }
                None => None,
            },
        };
        let weight = match &past {
            None => 0,
            Some(HistoryItem::Change(c)) => c.data.len() + 128,
            Some(HistoryItem::Record(r)) => r.data.len() + 128,
            Some(HistoryItem::Conflict(c)) => conflict_bytes(c),
        };
        if page.entries.len() >= size.rows || (weight > left && !page.entries.is_empty()) {
            page.next = page.entries.last().map(|(place, _)| *place);
            return Ok(Some(page));
        }
        left = left.saturating_sub(weight);
        match conflict {
            Some(_) => {
                found.next();
            }
            None => {
                page.dropped |= !matches!(past, Some(HistoryItem::Change(_)));
                seq = if let Some(HistoryItem::Change(c)) = &past { Seq(c.previous_seq) } else { Seq(0) };
            }
        }
        page.entries.extend(past.map(|past| (next, past)));
    }
}
