//! A sum over all rows, whatever their order: it tells that one is missing, or is an older one, where each alone is right.
//!
//! It is written in the same step as the rows, behind what was applied, in the same row: as a field that `Applied` has not.

use prost::Message;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::proto::Applied;

/// Behind the generation, which is not part of the sum: an installed snapshot has the same one.
const GENERATION: usize = 4;

/// Hashes of all rows, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowsSum(u64);

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SumField {
    #[prost(fixed64, optional, tag = "960")]
    sum: Option<u64>,
}

impl RowsSum {
    /// A row is there now; `key` as the engine has it.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash(key, value));
    }

    /// A row is there no more.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(key, value));
    }

    /// The row that says what was applied.
    pub(crate) fn behind(self, applied: &Applied) -> Vec<u8> {
        let mut out = applied.encode_to_vec();
        out.extend(SumField { sum: Some(self.0) }.encode_to_vec());
        out
    }

    /// The sum in such a row; `None`: an earlier version wrote it.
    pub(crate) fn beside(row: &[u8]) -> Result<Option<Self>, prost::DecodeError> {
        Ok(SumField::decode(row)?.sum.map(Self))
    }
}

fn hash(key: &[u8], value: &[u8]) -> u64 {
    let key = key.get(GENERATION..).unwrap_or_default();
    xxh3_64_with_seed(value, xxh3_64_with_seed(key, key.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_in_any_order_and_another_one_for_any_difference() {
        let sum = |rows: &[(&[u8], &[u8])]| {
            let mut sum = RowsSum::default();
            rows.iter().for_each(|(key, value)| sum.add(key, value));
            sum
        };
        let rows: [(&[u8], &[u8]); 3] = [(b"0000a", b"1"), (b"0000b", b"2"), (b"0000c", b"")];
        let all = sum(&rows);
        assert_eq!(sum(&[rows[2], rows[0], rows[1]]), all);
        assert_eq!(sum(&[(b"0001a", b"1"), rows[1], rows[2]]), all, "another generation");
        for other in
            [sum(&rows[..2]), sum(&[(b"0000a", b"2"), (b"0000b", b"1"), rows[2]]), sum(&[rows[0], rows[0], rows[1]])]
        {
            assert_ne!(other, all);
        }
        let mut less = all;
        less.take(rows[1].0, rows[1].1);
        assert_eq!(less, sum(&[rows[0], rows[2]]));
    }

    #[test]
    fn a_row_with_it_is_read_as_one_without() {
        let applied = Applied { index: 7, ..Applied::default() };
        let row = RowsSum(5).behind(&applied);
        assert_eq!(Applied::decode(&row[..]).unwrap(), applied);
        assert_eq!(RowsSum::beside(&row).unwrap(), Some(RowsSum(5)));
        assert_eq!(RowsSum::beside(&applied.encode_to_vec()).unwrap(), None);
    }
}
