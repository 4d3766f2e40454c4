//! Cursors: how far a device has come, as an opaque string.

use std::fmt;

use super::error::{Code, Error};
use crate::proto::Meta;

/// An epoch (drawn when a cluster is made, and again when a backup is restored) and a seq of that history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: u64,
    pub seq: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.epoch, self.seq)
    }
}

impl Cursor {
    pub fn head(meta: &Meta) -> Self {
        Self { epoch: meta.epoch, seq: meta.head_seq }
    }

    /// The seq of a cursor that this cluster gave out; 1005 for any other string.
    pub fn parse(text: &str, meta: &Meta) -> Result<Self, Error> {
        let parts = text.split_once('.').and_then(|(epoch, seq)| {
            Some(Self { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: seq.parse().ok()? })
        });
        match parts {
            Some(cursor) if cursor.epoch == meta.epoch && cursor.seq <= meta.head_seq => Ok(cursor),
            Some(_) => Err(Error::new(Code::BadCursor, "cursor is of another history: do a full sync")),
            None => Err(Error::new(Code::BadCursor, "cursor is not one that this cluster gave out")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_another_history_is_recognised() {
        let meta = Meta { epoch: 0xabc, head_seq: 7, ..Meta::default() };
        let cursor = Cursor::head(&meta);
        assert_eq!(Cursor::parse(&cursor.to_string(), &meta).unwrap(), cursor);
        let restored = Meta { epoch: 0xabd, ..meta.clone() };
        let shorter = Meta { head_seq: 6, ..meta.clone() };
        for (text, meta) in [(cursor.to_string(), &restored), (cursor.to_string(), &shorter), ("x".into(), &meta)] {
            assert_eq!(Cursor::parse(&text, meta).unwrap_err().code, Code::BadCursor);
        }
    }
}
