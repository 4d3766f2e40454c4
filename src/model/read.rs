//! Reading what is not kept in memory: pages of changes, the data of records, the election log.

use bytes::Bytes;

use super::change::Stored;
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

/// Reads the data of records whose versions were seen in the state a moment ago. Neighbours in time come from the
/// same block. What has been compacted is read from the record's row, which may be newer.
pub struct RecordReader<'a>(ChangeReader<'a>);

impl<'a> RecordReader<'a> {
    pub fn new(tables: &'a dyn TablesRead) -> Self {
        Self(ChangeReader::new(tables))
    }

    /// With the version that it is of. `None`: deleted meanwhile.
    pub fn data(&mut self, at: Stored) -> Result<Option<(u64, Bytes)>, TablesError> {
        if let Some(change) = self.0.get(at.seq)? {
            return Ok(Some((at.seq, change.data.clone())));
        }
        let row = get_row::<Record>(self.0.tables, &Key::Record { table: at.table, id: at.id })?;
        Ok(row.filter(|record| !record.deleted).map(|record| (record.seq, record.data)))
    }
}

/// Records with their data, in the order asked for.
pub type WithData = Vec<(Stored, Bytes)>;

/// The data of the first of these records, up to about `bytes`, but of one at least; and the last one looked at, if
/// some are left.
pub fn records_data(
    tables: &dyn TablesRead,
    page: Vec<Stored>,
    bytes: usize,
) -> Result<(WithData, Option<Stored>), TablesError> {
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
            out.push((Stored { seq, ..at }, data));
        }
        last = Some(at);
    }
    Ok((out, None))
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
