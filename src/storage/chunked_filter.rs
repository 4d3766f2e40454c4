//! Which rows may have more than one part: a filter, so that a put need not read the row that it replaces.

use xxhash_rust::xxh3::xxh3_64;

use super::keys::{self, Generation};

/// 128 KiB. With many large rows it says "maybe" too often, which costs a read, never a wrong answer.
const BITS: u64 = 1 << 20;

/// Has a bit for every row that was ever put with several parts.
pub struct ChunkedFilter(Vec<u64>);

impl Default for ChunkedFilter {
    fn default() -> Self {
        Self(vec![0; (BITS / 64) as usize])
    }
}

impl ChunkedFilter {
    /// From the marks of a generation, which are written with the rows.
    pub fn load(rows: &sled::Tree, generation: Generation) -> sled::Result<Self> {
        let mut large = Self::default();
        for mark in rows.range(keys::rows_end(generation)..).keys() {
            let mark = mark?;
            if keys::generation_of(&mark) != Some(generation) {
                break;
            }
            large.add(&keys::chunked_row(&mark));
        }
        Ok(large)
    }

    pub fn add(&mut self, row: &[u8]) {
        let bit = xxh3_64(row) % BITS;
        self.0[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    pub fn may_contain(&self, row: &[u8]) -> bool {
        let bit = xxh3_64(row) % BITS;
        self.0[(bit / 64) as usize] & (1 << (bit % 64)) != 0
    }
}
