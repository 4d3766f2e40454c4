//! Looks into the engine's file for damage that the engine does not see: what it keeps in memory it does not read, and at
//! its next start it takes a broken message for the end of what was written.
//!
//! The file is made of segments. Each has a header, then messages without room in between, each with a checksum and the
//! segment's number; behind the last one is what an earlier use of the segment left. So a message that is whole, behind
//! something that is none, was written after what is missing.
//!
//! ```text
//! header:  crc32 of the rest, inverted u32 | number × size, masked i64 | masked i64
//! message: crc32 of body and the rest, inverted u32 | kind u8 | length | segment's number | page | body
//! (little-endian; the engine writes its numbers in one to nine bytes)
//! ```

use std::ops::Range;

const HEADER: usize = 20;
/// No message begins so near to the end of a segment.
const RED_ZONE: usize = 32;
const MASK: u64 = 0x7FFF_FFFF_FFFF_FFFF;
/// Kinds of messages: nothing, padding up to the segment's end, and the greatest one.
const NOTHING: u8 = 0;
const CAP: u8 = 2;
const LAST_KIND: u8 = 11;

/// Where a segment that was read at `offset` has lost something, if it has.
pub(crate) fn hole(segment: &[u8], offset: u64, size: u64) -> Option<Range<u64>> {
    let (header, _) = segment.split_first_chunk::<HEADER>()?;
    if header.iter().all(|byte| *byte == 0) {
        // It was never written, or was thrown away.
        return None;
    }
    let Some(number) = number_of(header, size) else { return Some(offset..offset + HEADER as u64) };
    let end = segment.len().min(usize::try_from(size).unwrap_or(usize::MAX)).saturating_sub(RED_ZONE);
    let mut at = HEADER;
    while at < end {
        match message(segment, at, number) {
            Some((CAP, _)) => return None,
            Some((_, len)) => at += len,
            None => {
                let next = (at + 1..end).find(|next| message(segment, *next, number).is_some())?;
                return Some(offset + at as u64..offset + next as u64);
            }
        }
    }
    None
}

/// `None`: its checksum is wrong.
fn number_of(header: &[u8; HEADER], size: u64) -> Option<u64> {
    let (sum, rest) = header.split_first_chunk()?;
    (u32::from_le_bytes(*sum) ^ u32::MAX == crc32fast::hash(rest)).then_some(())?;
    let (start, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*start) ^ MASK) / size.max(1))
}

/// The kind and the length of the message that begins here, if one does.
fn message(segment: &[u8], at: usize, number: u64) -> Option<(u8, usize)> {
    let whole = segment.get(at..)?;
    let (sum, rest) = whole.split_first_chunk()?;
    let (kind, mut rest) = rest.split_first()?;
    (*kind > NOTHING && *kind <= LAST_KIND).then_some(())?;
    let len = usize::try_from(varint(&mut rest)?).ok()?;
    (varint(&mut rest)? == number).then_some(())?;
    varint(&mut rest)?;
    let body = rest.get(..len)?;
    let header = whole.len() - rest.len();
    let mut hash = crc32fast::Hasher::new();
    hash.update(body);
    hash.update(whole.get(4..header)?);
    (hash.finalize() ^ u32::MAX == u32::from_le_bytes(*sum)).then_some((*kind, header + len))
}

/// A number as the engine writes it: small ones in one byte, others behind a byte that says how many follow.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(taken.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let first = u64::from(*first);
    Some(match first {
        0..=240 => first,
        241..=248 => 240 + 256 * (first - 241) + take(1)?,
        // The only one that has its higher byte first.
        249 => 2_288 + 256 * take(1)? + take(1)?,
        _ => take(first as usize - 247)?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// All segments of an engine's file.
    fn segments(file: &[u8], size: usize) -> impl Iterator<Item = (u64, &[u8])> {
        file.chunks(size).enumerate().map(move |(n, segment)| ((n * size) as u64, segment))
    }

    #[test]
    fn a_hole_is_found_wherever_it_is_and_none_is_seen_where_there_is_none() {
        const SIZE: usize = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let db = sled::Config::new().path(dir.path()).segment_size(SIZE).flush_every_ms(None).open().unwrap();
        for n in 0..4_000u32 {
            db.insert(n.wrapping_mul(0x9E37_79B9).to_be_bytes(), vec![n as u8; n as usize % 700]).unwrap();
            if n % 7 == 0 {
                db.flush().unwrap();
            }
        }
        drop(db);
        let file = fs::read(dir.path().join("db")).unwrap();
        assert!(file.len() > 4 * SIZE);
        let mut whole = 0;
        for (offset, segment) in segments(&file, SIZE) {
            assert_eq!(hole(segment, offset, SIZE as u64), None, "{offset}");
            let Some(number) = segment.first_chunk().and_then(|header| number_of(header, SIZE as u64)) else {
                continue;
            };
            let (mut at, mut starts) = (HEADER, Vec::new());
            while let Some((kind, len)) = message(segment, at, number) {
                starts.push(at);
                at += len;
                if kind == CAP || at + RED_ZONE >= SIZE {
                    break;
                }
            }
            whole += usize::from(starts.len() > 2);
            for (n, pair) in starts.windows(2).enumerate().step_by(11) {
                let mut damaged = segment.to_vec();
                damaged[pair[0] + n % (pair[1] - pair[0])] ^= 1 << (n % 8);
                let found = hole(&damaged, offset, SIZE as u64);
                assert_eq!(found, Some(offset + pair[0] as u64..offset + pair[1] as u64));
            }
            let mut damaged = segment.to_vec();
            damaged[7] ^= 1;
            assert_eq!(hole(&damaged, offset, SIZE as u64), Some(offset..offset + HEADER as u64));
        }
        assert!(whole > 3, "{whole}");
        assert_eq!(hole(&[0; SIZE], 0, SIZE as u64), None);
        assert_eq!(hole(&[1, 2, 3], 0, SIZE as u64), None);
    }
}
