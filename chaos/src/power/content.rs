//! What the program of a storage run writes: entries and rows that say themselves what they must be, so that anything
//! torn, mixed up or lost is seen, and rows that follow from the index alone, as a replay of the log would make them.

use std::collections::BTreeMap;

use bytes::Bytes;
use tillsync::ids::{RecordId, TableId};
use tillsync::model::tables::{RowKey, Tables};
use tillsync::proto::Applied;

/// Terms begin here; below, they are kinds of rows.
pub(super) const FIRST_TERM: u64 = 8;
/// Changes that are kept before older ones are deleted.
const KEPT: u64 = 150;
const RECORDS: u64 = 50;

/// The bytes under an index, as written in a term.
pub(super) fn payload(index: u64, term: u64) -> Bytes {
    let len = match index {
        // Appends that go to the disk in several pieces.
        i if term >= FIRST_TERM && term.is_multiple_of(4) => 12_000 + (i * 6_007 % 30_000) as usize,
        i if i.is_multiple_of(53) => 50_000,
        i if i.is_multiple_of(17) => 9_000,
        i => 60 + (i * 37 % 400) as usize,
    };
    let mut out = [index.to_be_bytes(), term.to_be_bytes()].concat();
    out.resize(len, (index * 3 + term) as u8);
    out.into()
}

/// The term that an entry says it is of; `None`: it is no entry of ours.
pub(super) fn term_of(entry: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(entry.get(8..16)?.try_into().ok()?))
}

/// What comes back with a purge.
pub(super) fn mark(index: u64) -> Bytes {
    payload(index, 0).slice(..20)
}

pub(super) fn applied(index: u64) -> Applied {
    let digest = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Applied {
        index,
        last_log_id: payload(index, 0).slice(..40),
        digest_high: digest,
        digest_low: !digest,
        ..Applied::default()
    }
}

/// What applying the entry at an index does.
pub(super) fn apply(tables: &mut dyn Tables, index: u64) {
    tables.put(RowKey::Meta, payload(index, 0));
    tables.put(RowKey::Changes(index), payload(index, 1));
    tables.put(RowKey::Record { table: TableId(1), id: RecordId((index % RECORDS) as i64) }, payload(index, 2));
    if index > KEPT {
        tables.delete(RowKey::Changes(index - KEPT));
    }
    tables.commit(applied(index));
}

/// All rows when the entries up to `index` are applied.
pub(super) fn rows_at(index: u64) -> Vec<(RowKey, Bytes)> {
    let mut rows = BTreeMap::new();
    if index > 0 {
        rows.insert(RowKey::Meta, payload(index, 0));
    }
    for i in index.saturating_sub(KEPT - 1).max(1)..=index {
        rows.insert(RowKey::Changes(i), payload(i, 1));
        rows.insert(RowKey::Record { table: TableId(1), id: RecordId((i % RECORDS) as i64) }, payload(i, 2));
    }
    rows.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use tillsync::storage::memory;

    use super::*;

    #[test]
    fn rows_are_what_applying_gives() {
        let mut tables = memory::stores().tables;
        for index in 1..=400 {
            apply(&mut *tables, index);
            if index % 97 == 0 {
                let rows = tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).unwrap();
                assert!(rows == rows_at(index));
            }
        }
        assert_eq!(tables.applied(), applied(400));
    }
}
