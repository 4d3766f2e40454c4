//! The only place that builds or parses a key of the engine.
//!
//! Rows live in one tree. A row's key is
//!
//! ```text
//! generation (u32, big-endian) | table tag (u8) | the fields of the key | part (u16, big-endian; not for part 0)
//! ```
//!
//! Encoded fields are prefix-free and sort as the fields do, so bytes sort as [`RowKey`] does, and the parts of a row
//! stand right behind it. Log entries live in a tree of their own: `index | part`.
//!
//! Numbers are big-endian with seven bits a byte, because the engine's way back goes round for ever (and then
//! panics) where a page begins with a key that follows `… FF FF FF FF …`: it looks for the page before `80` behind
//! `7F FF FF FF FF`, and that is how record -1 began. No key may have four such bytes in a row.
//!
//! The tags are on disk and in snapshots: never reuse a number.

use crate::ids::{AuditId, ConflictId, DeviceNumber, ElectionId, LogIndex, RecordId, TableId};
use crate::model::tables::RowKey;

/// The row that says what was applied; written with every write set.
const APPLIED: u8 = 0;
const META: u8 = 1;
const DEVICE: u8 = 2;
const SYNC_STATE: u8 = 3;
const TABLE: u8 = 4;
const RECORD: u8 = 5;
const CHANGE: u8 = 6;
const ELECTION: u8 = 7;
const AUDIT: u8 = 8;
const CONFLICT: u8 = 9;
const ANSWERED: u8 = 10;
const REQUESTED: u8 = 11;
const REVOKED: u8 = 12;
const QUEUE: u8 = 13;
const ACCESS: u8 = 18;
const DEVICE_GATE: u8 = 19;
const PAIRING: u8 = 20;
const FORGOTTEN: u8 = 21;
const NODE_BOOTS: u8 = 90;
/// Behind all rows: versions before format 2 kept the keys of rows there that have more than one part.
const CHUNKED: u8 = 0xF0;

const GENERATION: usize = 4;
/// Bytes of a number of 64 and of 32 bits.
const LONG: usize = 10;
const SHORT: usize = 5;

/// One installed set of rows; a snapshot is loaded under a new one.
pub(crate) type Generation = u32;

/// The start of every key of a generation.
pub(crate) fn generation_prefix(generation: Generation) -> [u8; GENERATION] {
    generation.to_be_bytes()
}

/// The generation that a key belongs to.
pub(crate) fn generation_of(key: &[u8]) -> Option<Generation> {
    Some(u32::from_be_bytes(key.get(..GENERATION)?.try_into().ok()?))
}

/// Writes a row's key.
pub(crate) fn row(generation: Generation, key: &RowKey, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&generation.to_be_bytes());
    encode(key, out);
}

/// The key of the row that says what was applied.
pub(crate) fn applied(generation: Generation) -> Vec<u8> {
    let mut out = generation.to_be_bytes().to_vec();
    out.push(APPLIED);
    out
}

/// The first key of a generation's rows, after the one that says what was applied.
pub(crate) fn rows_start(generation: Generation) -> Vec<u8> {
    let mut out = generation.to_be_bytes().to_vec();
    out.push(META);
    out
}

/// Behind the last key of a generation's rows.
pub(crate) fn rows_end(generation: Generation) -> Vec<u8> {
    let mut out = generation.to_be_bytes().to_vec();
    out.push(CHUNKED);
    out
}

/// The entry that marks a row as one of several parts.
pub(crate) fn chunk_mark(row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() + 1);
    let (generation, key) = row.split_at(GENERATION.min(row.len()));
    out.extend_from_slice(generation);
    out.push(CHUNKED);
    out.extend_from_slice(key);
    out
}

/// The row that a key of the rows tree belongs to, and its part. `None`: not a row's key.
pub(crate) fn parse_row(bytes: &[u8]) -> Option<(RowKey, u16)> {
    let mut rest = bytes.get(GENERATION..)?;
    let key = decode(&mut rest)?;
    Some((key, parse_part(rest)?))
}

/// The first part of a log entry.
pub(crate) fn entry(index: LogIndex) -> [u8; LONG] {
    long(index.get())
}

/// The log entry that a key belongs to, and its part.
pub(crate) fn parse_entry(bytes: &[u8]) -> Option<(LogIndex, u16)> {
    let mut rest = bytes;
    let index = take_u64(&mut rest).map(LogIndex)?;
    Some((index, parse_part(rest)?))
}

/// Makes the key of a part out of the key of part 0, in place.
pub(crate) fn set_part(key: &mut Vec<u8>, base: usize, part: u16) {
    key.truncate(base);
    if part > 0 {
        key.extend_from_slice(&part.to_be_bytes());
    }
}

/// Behind the last part of the row or entry with this key.
pub(crate) fn parts_end(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 3);
    out.extend_from_slice(key);
    // One byte longer than the greatest part, so that this is behind it.
    out.extend_from_slice(&[0xFF, 0xFF, 0x00]);
    out
}

/// A key as it stands in snapshots: without generation and part.
pub(crate) fn encode(key: &RowKey, out: &mut Vec<u8>) {
    match key {
        RowKey::Meta => out.push(META),
        RowKey::Device(id) => tagged_string(DEVICE, id, out),
        RowKey::SyncState(id) => tagged_string(SYNC_STATE, id, out),
        RowKey::Table(number) => tagged(TABLE, &short(number.get()), out),
        RowKey::Record { table, id } => {
            tagged(RECORD, &short(table.get()), out);
            // With the sign flipped, negative numbers sort before the others.
            out.extend_from_slice(&long((id.get() as u64) ^ (1 << 63)));
        }
        RowKey::Changes(seq) => tagged(CHANGE, &long(*seq), out),
        RowKey::Election(id) => tagged(ELECTION, &long(id.get()), out),
        RowKey::Audit(id) => tagged(AUDIT, &long(id.get()), out),
        RowKey::Conflict(id) => tagged(CONFLICT, &long(id.get()), out),
        RowKey::Answered(group) => tagged(ANSWERED, &long(*group), out),
        RowKey::Requested { device, slot } => {
            tagged(REQUESTED, &short(device.get()), out);
            out.extend_from_slice(&short(*slot));
        }
        RowKey::Revoked(id) => tagged_string(REVOKED, id, out),
        RowKey::Queue { device, queue } => {
            tagged(QUEUE, &short(device.get()), out);
            string(queue, out);
        }
        RowKey::Access(class) => tagged(ACCESS, &short(*class), out),
        RowKey::DeviceGate(id) => tagged_string(DEVICE_GATE, id, out),
        RowKey::Pairing(code) => tagged_string(PAIRING, code, out),
        RowKey::Forgotten(id) => tagged_string(FORGOTTEN, id, out),
        RowKey::NodeBoots => out.push(NODE_BOOTS),
    }
}

/// A key as it stands in snapshots, taken off the front of `bytes`.
pub(crate) fn decode(bytes: &mut &[u8]) -> Option<RowKey> {
    let tag = take::<1>(bytes)?[0];
    Some(match tag {
        META => RowKey::Meta,
        DEVICE => RowKey::Device(take_string(bytes)?),
        SYNC_STATE => RowKey::SyncState(take_string(bytes)?),
        TABLE => RowKey::Table(TableId(take_u32(bytes)?)),
        RECORD => {
            RowKey::Record { table: TableId(take_u32(bytes)?), id: RecordId((take_u64(bytes)? ^ (1 << 63)) as i64) }
        }
        CHANGE => RowKey::Changes(take_u64(bytes)?),
        ELECTION => RowKey::Election(ElectionId(take_u64(bytes)?)),
        AUDIT => RowKey::Audit(AuditId(take_u64(bytes)?)),
        CONFLICT => RowKey::Conflict(ConflictId(take_u64(bytes)?)),
        ANSWERED => RowKey::Answered(take_u64(bytes)?),
        REQUESTED => RowKey::Requested { device: DeviceNumber(take_u32(bytes)?), slot: take_u32(bytes)? },
        REVOKED => RowKey::Revoked(take_string(bytes)?),
        QUEUE => RowKey::Queue { device: DeviceNumber(take_u32(bytes)?), queue: take_string(bytes)? },
        ACCESS => RowKey::Access(take_u32(bytes)?),
        DEVICE_GATE => RowKey::DeviceGate(take_string(bytes)?),
        PAIRING => RowKey::Pairing(take_string(bytes)?),
        FORGOTTEN => RowKey::Forgotten(take_string(bytes)?),
        NODE_BOOTS => RowKey::NodeBoots,
        _ => return None,
    })
}

/// Seven bits a byte, the highest first.
fn long(number: u64) -> [u8; LONG] {
    std::array::from_fn(|i| (number >> (7 * (LONG - 1 - i))) as u8 & 0x7F)
}

fn short(number: u32) -> [u8; SHORT] {
    std::array::from_fn(|i| (number >> (7 * (SHORT - 1 - i))) as u8 & 0x7F)
}

fn tagged(tag: u8, field: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(field);
}

fn tagged_string(tag: u8, text: &str, out: &mut Vec<u8>) {
    out.push(tag);
    string(text, out);
}

/// A zero byte becomes `00 FF` and the end is `00 00`: no string is the start of another one, and order stays.
fn string(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn take_string(bytes: &mut &[u8]) -> Option<String> {
    let mut text = Vec::new();
    loop {
        match take::<1>(bytes)?[0] {
            0 => match take::<1>(bytes)?[0] {
                0 => return String::from_utf8(text).ok(),
                0xFF => text.push(0),
                _ => return None,
            },
            byte => text.push(byte),
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    u32::try_from(join(&take::<SHORT>(bytes)?)?).ok()
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    u64::try_from(join(&take::<LONG>(bytes)?)?).ok()
}

fn join(bytes: &[u8]) -> Option<u128> {
    bytes.iter().try_fold(0, |number, byte| (*byte < 0x80).then_some(number << 7 | u128::from(*byte)))
}

fn parse_part(rest: &[u8]) -> Option<u16> {
    match rest {
        [] => Some(0),
        [high, low] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Strings that try the escape: zeros, the bytes around it, and plain text.
    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('b'), any::<char>()], 0..6)
            .prop_map(|chars| chars.into_iter().collect())
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..4u64, any::<u64>(), Just(u64::MAX)]
    }

    fn small() -> impl Strategy<Value = u32> {
        prop_oneof![0..3u32, any::<u32>(), Just(u32::MAX)]
    }

    pub(in crate::storage) fn any_key() -> impl Strategy<Value = RowKey> {
        prop_oneof![
            Just(RowKey::Meta),
            text().prop_map(RowKey::Device),
            text().prop_map(RowKey::SyncState),
            small().prop_map(|number| RowKey::Table(TableId(number))),
            (small(), prop_oneof![-2..3i64, any::<i64>()])
                .prop_map(|(table, id)| RowKey::Record { table: TableId(table), id: RecordId(id) }),
            number().prop_map(RowKey::Changes),
            number().prop_map(|id| RowKey::Election(ElectionId(id))),
            number().prop_map(|id| RowKey::Audit(AuditId(id))),
            number().prop_map(|id| RowKey::Conflict(ConflictId(id))),
            number().prop_map(RowKey::Answered),
            (small(), small()).prop_map(|(device, slot)| RowKey::Requested { device: DeviceNumber(device), slot }),
            text().prop_map(RowKey::Revoked),
            (small(), text()).prop_map(|(device, queue)| RowKey::Queue { device: DeviceNumber(device), queue }),
            small().prop_map(RowKey::Access),
            text().prop_map(RowKey::DeviceGate),
            text().prop_map(RowKey::Pairing),
            text().prop_map(RowKey::Forgotten),
            Just(RowKey::NodeBoots),
        ]
    }

    fn bytes_of(generation: Generation, key: &RowKey, part: u16) -> Vec<u8> {
        let mut out = Vec::new();
        row(generation, key, &mut out);
        let base = out.len();
        set_part(&mut out, base, part);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_sort_as_keys_do(a in any_key(), b in any_key(), part in any::<u16>(), other in any::<u16>()) {
            let sorted = (&a, part).cmp(&(&b, other));
            prop_assert_eq!(bytes_of(7, &a, part).cmp(&bytes_of(7, &b, other)), sorted);
        }

        #[test]
        fn a_key_comes_back(generation in any::<u32>(), key in any_key(), part in any::<u16>()) {
            let bytes = bytes_of(generation, &key, part);
            prop_assert_eq!(generation_of(&bytes), Some(generation));
            prop_assert_eq!(parse_row(&bytes), Some((key.clone(), part)));
            let end = parts_end(&bytes_of(generation, &key, 0));
            prop_assert!(bytes < end);
            prop_assert!(rows_start(generation) <= bytes && bytes < rows_end(generation));
            prop_assert!(applied(generation) < bytes);
            let marked = chunk_mark(&bytes);
            if generation < 0x00FF_FFFF {
                for key in [&bytes, &marked] {
                    prop_assert!(!key.windows(4).any(|run| run == [0xFF; 4]), "{:?}", key);
                }
            }
            prop_assert!(marked > rows_end(generation));
            prop_assert_eq!(generation_of(&marked), Some(generation));
        }

        #[test]
        fn entries_sort_by_index_and_part(a in any::<(u64, u16)>(), b in any::<(u64, u16)>()) {
            let make = |(index, part): (u64, u16)| {
                let mut key = entry(LogIndex(index)).to_vec();
                set_part(&mut key, LONG, part);
                key
            };
            prop_assert_eq!(make(a).cmp(&make(b)), a.cmp(&b));
            prop_assert_eq!(parse_entry(&make(a)), Some((LogIndex(a.0), a.1)));
        }

        #[test]
        fn garbage_is_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((key, part)) = parse_row(&bytes) {
                prop_assert_eq!(bytes_of(generation_of(&bytes).unwrap(), &key, part), bytes);
            }
        }
    }

    #[test]
    fn numbers_on_disk_stay() {
        let mut out = Vec::new();
        encode(&RowKey::Record { table: TableId(1), id: RecordId(-1) }, &mut out);
        assert_eq!(out, [5, 0, 0, 0, 0, 1, 0, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F]);
        out.clear();
        encode(&RowKey::Device("a\0".into()), &mut out);
        assert_eq!(out, [2, b'a', 0, 0xFF, 0, 0]);
    }
}
