//! Reading what is not kept in memory: pages of changes and records, the election log.

use super::tables::{Key, TablesError, TablesRead, decode, get_row};
use crate::proto::{Change, ChangeBlock, Election, Record};

/// A page of the change feed.
#[derive(Debug, Default)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// Everything up to this seq has been looked at: where the next page begins.
    pub seq: u64,
    pub more: bool,
}

/// Bounds of a page. Bytes are those of `data`; one change is always given.
#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    pub rows: usize,
    pub bytes: usize,
}

/// Rows looked at for one page, whatever the filter takes.
const SCAN: usize = 20_000;
const CHUNK: usize = 1_000;
const BLOCKS: usize = 64;

/// The changes after `seq` up to `head` that `wanted` takes. `None` if some were compacted: only a full sync helps.
pub fn changes_after(
    tables: &dyn TablesRead,
    seq: u64,
    head: u64,
    size: PageSize,
    wanted: impl Fn(&Change) -> bool,
) -> Result<Option<Changes>, TablesError> {
    let mut page = Changes { seq, ..Changes::default() };
    let (mut bytes, mut scanned) = (0, 0);
    let mut from = block_of(tables, seq + 1)?;
    while page.seq < head && scanned < SCAN {
        let rows = tables.range(&Key::Changes(from), &Key::Changes(head), BLOCKS, false)?;
        if rows.is_empty() {
            return Ok(None);
        }
        for (key, value) in rows {
            let block: ChangeBlock = decode(&key, value)?;
            for change in block.changes {
                if change.seq <= page.seq || change.seq > head {
                    continue;
                }
                if change.seq != page.seq + 1 {
                    return Ok(None);
                }
                if wanted(&change) {
                    bytes += change.data.len();
                    if page.changes.len() >= size.rows || (bytes > size.bytes && !page.changes.is_empty()) {
                        page.more = true;
                        return Ok(Some(page));
                    }
                    page.seq = change.seq;
                    page.changes.push(change);
                } else {
                    page.seq = change.seq;
                }
                scanned += 1;
            }
        }
        from = page.seq + 1;
    }
    page.more = page.seq < head;
    Ok(Some(page))
}

/// The first seq of the block that holds `seq`, or `seq` itself if none does.
fn block_of(tables: &dyn TablesRead, seq: u64) -> Result<u64, TablesError> {
    let rows = tables.range(&Key::Changes(0), &Key::Changes(seq), 1, true)?;
    Ok(match rows.first() {
        Some((Key::Changes(first), _)) => *first,
        _ => seq,
    })
}

/// One change, if it is kept.
pub fn change(tables: &dyn TablesRead, seq: u64) -> Result<Option<Change>, TablesError> {
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

    pub fn get(&mut self, seq: u64) -> Result<Option<&Change>, TablesError> {
        if self.index(seq).is_none() {
            let rows = self.tables.range(&Key::Changes(0), &Key::Changes(seq), 1, true)?;
            self.block = match rows.into_iter().next() {
                Some((key, value)) => decode::<ChangeBlock>(&key, value)?.changes,
                None => Vec::new(),
            };
        }
        Ok(self.index(seq).and_then(|at| self.block.get(at)))
    }

    fn index(&self, seq: u64) -> Option<usize> {
        let at = seq.checked_sub(self.block.first()?.seq)? as usize;
        (at < self.block.len()).then_some(at)
    }
}

/// A record with its data, deleted ones too.
pub fn record(tables: &dyn TablesRead, table: u32, id: i64) -> Result<Option<Record>, TablesError> {
    let Some(record) = get_row::<Record>(tables, &Key::Record { table, id })? else { return Ok(None) };
    with_data(tables, &mut ChangeReader::new(tables), table, id, record).map(Some)
}

/// The data stands in the record's last change as long as that is kept, then in the record itself.
fn with_data(
    tables: &dyn TablesRead,
    changes: &mut ChangeReader<'_>,
    table: u32,
    id: i64,
    mut record: Record,
) -> Result<Record, TablesError> {
    // Compaction or another write may come between the two looks: then the record says something new.
    while !record.deleted && record.data.is_empty() {
        if let Some(change) = changes.get(record.seq)? {
            record.data = change.data.clone();
            break;
        }
        let key = Key::Record { table, id };
        let again: Record = get_row(tables, &key)?.ok_or_else(|| TablesError::Corrupt(key.clone()))?;
        if again == record && changes.get(record.seq)?.is_none() {
            return Err(TablesError::Corrupt(key));
        }
        record = again;
    }
    Ok(record)
}

/// A page of records that exist, in the order of their keys.
#[derive(Debug, Default)]
pub struct Records {
    /// Table number, record id, record.
    pub records: Vec<(u32, i64, Record)>,
    /// Where the next page begins: after this key.
    pub after: Option<(u32, i64)>,
    pub more: bool,
}

/// The records after `after` in the tables that `wanted` takes.
pub fn records_after(
    tables: &dyn TablesRead,
    after: Option<(u32, i64)>,
    size: PageSize,
    wanted: impl Fn(u32) -> bool,
) -> Result<Records, TablesError> {
    let mut page = Records { after, ..Records::default() };
    let (mut bytes, mut scanned) = (0, 0);
    let end = Key::Record { table: u32::MAX, id: i64::MAX };
    let mut changes = ChangeReader::new(tables);
    loop {
        let from = match page.after {
            None => Key::Record { table: 0, id: i64::MIN },
            Some((table, i64::MAX)) => Key::Record { table: table.saturating_add(1), id: i64::MIN },
            Some((table, id)) => Key::Record { table, id: id + 1 },
        };
        let rows = tables.range(&from, &end, CHUNK.min(size.rows.max(1)), false)?;
        if rows.is_empty() {
            return Ok(page);
        }
        for (key, value) in rows {
            let Key::Record { table, id } = key else { return Ok(page) };
            if !wanted(table) {
                // Straight to the next table.
                page.after = Some((table, i64::MAX));
                break;
            }
            let record: Record = decode(&key, value)?;
            scanned += 1;
            if !record.deleted {
                let record = with_data(tables, &mut changes, table, id, record)?;
                bytes += record.data.len();
                if page.records.len() >= size.rows || (bytes > size.bytes && !page.records.is_empty()) {
                    page.more = true;
                    return Ok(page);
                }
                page.records.push((table, id, record));
            }
            page.after = Some((table, id));
        }
        if scanned >= SCAN {
            page.more = true;
            return Ok(page);
        }
    }
}

/// The seq after which every change was committed at `ms` or later. Changes are dense from `compacted + 1` to
/// `head`, and their times never go back.
pub fn seq_before(tables: &dyn TablesRead, compacted: u64, head: u64, ms: u64) -> Result<u64, TablesError> {
    let (mut low, mut high) = (compacted, head);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match change(tables, middle)? {
            Some(at) if at.committed_ms >= ms => high = middle - 1,
            // Compacted meanwhile counts as older.
            _ => low = middle,
        }
    }
    Ok(low)
}

/// The election log, newest first.
pub fn elections(tables: &dyn TablesRead, head: u64, limit: usize, offset: u64) -> Result<Vec<Election>, TablesError> {
    let Some(newest) = head.checked_sub(offset) else { return Ok(Vec::new()) };
    let rows = tables.range(&Key::Election(0), &Key::Election(newest), limit, true)?;
    rows.into_iter().map(|(key, value)| decode(&key, value)).collect()
}
