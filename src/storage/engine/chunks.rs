//! Values in parts of at most 4 KiB: the engine keeps larger ones in side files that it never syncs. Each carries a checksum
//! of its own, whatever the engine makes of its pages.

use bytes::{Bytes, BytesMut};
use sled::IVec;
use xxhash_rust::xxh3::xxh3_64;

/// The greatest value of one entry of the engine.
pub(crate) const PART: usize = 4_096;
/// In front of part 0: how many parts there are (u16, little-endian), and whether a checksum follows.
const HEADER: usize = 2;
const SUMMED: u16 = 0x8000;
/// Of the whole value (u32, little-endian). Versions before format 2 wrote none.
const SUM: usize = 4;
/// Parts for which room is made at once.
const RESERVED: usize = 16;
const FIRST: usize = PART - HEADER - SUM;

/// How many parts a value of this length has.
pub(crate) fn count(len: usize) -> u16 {
    let more = len.saturating_sub(FIRST).div_ceil(PART);
    // 32,768 parts would be 134 MB, far above every limit of what gets here.
    assert!(more < usize::from(SUMMED) - 1, "a value of {len} bytes");
    more as u16 + 1
}

/// Gives the parts of a value, ascending. `scratch` saves an allocation a value.
pub(crate) fn split<E>(
    value: &[u8],
    scratch: &mut Vec<u8>,
    mut put: impl FnMut(u16, IVec) -> Result<(), E>,
) -> Result<(), E> {
    let (first, rest) = value.split_at(value.len().min(FIRST));
    scratch.clear();
    scratch.extend_from_slice(&(count(value.len()) | SUMMED).to_le_bytes());
    scratch.extend_from_slice(&sum(value).to_le_bytes());
    scratch.extend_from_slice(first);
    put(0, IVec::from(scratch.as_slice()))?;
    for (part, bytes) in (1u16..).zip(rest.chunks(PART)) {
        put(part, IVec::from(bytes))?;
    }
    Ok(())
}

fn sum(value: &[u8]) -> u32 {
    xxh3_64(value) as u32
}

/// How many parts belong to this part 0. `None`: not a part 0.
pub(crate) fn announced(part0: &[u8]) -> Option<u16> {
    Some(header(part0)?.0)
}

/// The number of parts, the checksum if there is one, and the first bytes of the value.
fn header(part0: &[u8]) -> Option<(u16, Option<u32>, &[u8])> {
    let (count, value) = part0.split_first_chunk::<HEADER>()?;
    let count = u16::from_le_bytes(*count);
    let (sum, value) = match count & SUMMED {
        0 => (None, value),
        _ => {
            let (sum, value) = value.split_first_chunk::<SUM>()?;
            (Some(u32::from_le_bytes(*sum)), value)
        }
    };
    let count = count & !SUMMED;
    (count > 0).then_some((count, sum, value))
}

/// Puts parts together again, fed in ascending order.
#[derive(Default)]
pub(crate) struct Joiner {
    buffer: BytesMut,
    /// How many parts are expected, and how many came.
    expected: u16,
    came: u16,
    /// What the whole value must come to.
    sum: Option<u32>,
}

/// A part that does not belong where it was found, or a value that is not the one that was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TornValue;

impl Joiner {
    /// Takes the next part; the value, if it was the last one.
    pub(crate) fn push(&mut self, part: u16, bytes: &[u8]) -> Result<Option<Bytes>, TornValue> {
        if part == 0 {
            if self.is_open() {
                return Err(TornValue);
            }
            let (expected, sum, first) = header(bytes).ok_or(TornValue)?;
            (self.expected, self.sum, self.came) = (expected, sum, 1);
            if self.expected == 1 {
                self.expected = 0;
                return self.whole(Bytes::copy_from_slice(first)).map(Some);
            }
            // Never trust a count with memory: what it promises need not be there.
            self.buffer.reserve(usize::from(self.expected).min(RESERVED) * PART);
            self.buffer.extend_from_slice(first);
            return Ok(None);
        }
        if !self.is_open() || part != self.came {
            return Err(TornValue);
        }
        self.buffer.extend_from_slice(bytes);
        self.came += 1;
        if self.came < self.expected {
            return Ok(None);
        }
        self.expected = 0;
        let value = std::mem::take(&mut self.buffer).freeze();
        self.whole(value).map(Some)
    }

    fn whole(&self, value: Bytes) -> Result<Bytes, TornValue> {
        match self.sum {
            Some(expected) if expected != sum(&value) => Err(TornValue),
            _ => Ok(value),
        }
    }

    /// Parts are still missing.
    pub(crate) fn is_open(&self) -> bool {
        self.expected > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts_of(value: &[u8]) -> Vec<(u16, IVec)> {
        let mut parts = Vec::new();
        split::<()>(value, &mut Vec::new(), |part, bytes| {
            parts.push((part, bytes));
            Ok(())
        })
        .unwrap();
        parts
    }

    #[test]
    fn values_of_every_size_come_back() {
        for len in [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + PART, FIRST + PART + 1, 400_000] {
            let value: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let parts = parts_of(&value);
            assert_eq!(parts.len(), usize::from(count(len)), "{len}");
            assert!(parts.iter().all(|(_, bytes)| bytes.len() <= PART));
            let mut joiner = Joiner::default();
            let mut whole = None;
            for (part, bytes) in &parts {
                assert!(whole.is_none());
                whole = joiner.push(*part, bytes).unwrap();
            }
            assert_eq!(whole.unwrap(), value);
            assert!(!joiner.is_open());
        }
    }

    #[test]
    fn a_changed_bit_is_seen_and_a_value_without_checksum_is_read() {
        for len in [0, 1, 300, FIRST, FIRST + 1, 3 * PART] {
            let value: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let parts = parts_of(&value);
            for (which, (_, bytes)) in parts.iter().enumerate() {
                for at in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
                    let mut joiner = Joiner::default();
                    let mut came = Vec::new();
                    for (part, bytes) in &parts {
                        let mut bytes = bytes.to_vec();
                        if usize::from(*part) == which {
                            bytes[at] ^= 4;
                        }
                        match joiner.push(*part, &bytes) {
                            Ok(whole) => came.extend(whole),
                            Err(TornValue) => break,
                        }
                    }
                    assert!(came.is_empty(), "{len} {which} {at}");
                }
            }
        }
        let old = [&[2, 0][..], &[7; PART - HEADER]].concat();
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(0, &old), Ok(None));
        assert_eq!(joiner.push(1, &[7; 9]).unwrap().unwrap(), vec![7; PART - HEADER + 9]);
        assert_eq!(Joiner::default().push(0, &[1, 0]), Ok(Some(Bytes::new())));
    }

    #[test]
    fn a_missing_part_is_seen() {
        let parts = parts_of(&[7; 3 * PART]);
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(0, &parts[0].1), Ok(None));
        assert_eq!(joiner.push(2, &parts[2].1), Err(TornValue));
        assert_eq!(joiner.push(0, &parts[0].1), Err(TornValue));
        assert!(joiner.is_open());
        assert_eq!(Joiner::default().push(1, &[1]), Err(TornValue));
        assert_eq!(Joiner::default().push(0, &[]), Err(TornValue));
    }

    #[test]
    fn a_count_of_parts_that_are_not_there_takes_no_memory() {
        let (joiner, taken) = crate::testkit::alloc::measure(|| {
            let mut joiner = Joiner::default();
            assert_eq!(joiner.push(0, &[0xFF, 0x7F, 1]), Ok(None));
            joiner
        });
        assert!(joiner.is_open());
        assert!(taken.peak <= (RESERVED * PART) as isize, "{taken:?}");
    }
}
