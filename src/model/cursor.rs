//! Cursors: how far a device has come, as an opaque string.

use std::fmt;

use super::change::print_of;
use super::error::{Code, Error};
use super::state::State;
use crate::ids::Seq;
use crate::proto::Change;

/// A place in a history. The epoch is drawn when a cluster is made, and again when a backup is restored. The print is a
/// few bits of the change that it stands at: where all nodes were put back to older disks, the epoch and the numbers go
/// on, but not with the same changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: u64,
    pub seq: Seq,
    /// 0: not known, as in cursors of older versions, or before the first change.
    pub print: u32,
}

impl fmt::Display for Cursor {
    /// The seq comes last, after the only dot: clients may read it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.print {
            0 => write!(f, "{:x}.{}", self.epoch, self.seq),
            print => write!(f, "{:x}-{print:x}.{}", self.epoch, self.seq),
        }
    }
}

impl Cursor {
    /// After the change `seq` of this state.
    pub fn at(state: &State, seq: Seq) -> Self {
        Self { epoch: state.meta().epoch, seq, print: state.print_at(seq) }
    }

    pub fn after(epoch: u64, change: &Change) -> Self {
        Self { epoch, seq: Seq(change.seq), print: print_of(change) }
    }

    /// A cursor that this cluster gave out, for a change of its history; 1005 for any other string.
    pub fn parse(text: &str, state: &State) -> Result<Self, Error> {
        let Some(cursor) = read(text) else {
            return Err(Error::new(Code::BadCursor, "cursor is not one that this cluster gave out"));
        };
        let meta = state.meta();
        let same = match state.print_at(cursor.seq) {
            print if cursor.print == 0 || cursor.print == print => true,
            // Whoever takes it looks whether what comes after it is kept; of this one, only what it stands at is gone.
            0 if cursor.seq == meta.compacted() => {
                return Err(Error::new(Code::BadCursor, "the change of the cursor is gone: do a full sync"));
            }
            print => print == 0,
        };
        if cursor.epoch == meta.epoch && cursor.seq <= meta.head() && same {
            return Ok(cursor);
        }
        Err(Error::new(Code::BadCursor, "cursor is of another history: do a full sync"))
    }
}

fn read(text: &str) -> Option<Cursor> {
    let (history, seq) = text.split_once('.')?;
    let (epoch, print) = match history.split_once('-') {
        Some((epoch, print)) => (epoch, u32::from_str_radix(print, 16).ok()?),
        None => (history, 0),
    };
    Some(Cursor { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: Seq(seq.parse().ok()?), print })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::properties::{StateUnderTest, online, update};
    use crate::proto::command::Intent;
    use crate::proto::{Compact, Role};

    fn code(text: &str, state: &State) -> Option<Code> {
        Cursor::parse(text, state).err().map(|error| error.code)
    }

    #[test]
    fn a_cursor_of_another_cluster_or_of_what_is_not_there_is_refused() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Client));
        b.ok(update("a", 1, "{}"));
        let cursor = Cursor::at(&b.state, Seq(1));
        assert_ne!(cursor.print, 0);
        assert_eq!(Cursor::parse(&cursor.to_string(), &b.state), Ok(cursor));
        let old = Cursor { print: 0, ..cursor };
        assert_eq!(Cursor::parse(&old.to_string(), &b.state), Ok(old), "of an older version");
        for wrong in [
            Cursor { epoch: cursor.epoch + 1, ..cursor },
            Cursor { print: cursor.print ^ 1, ..cursor },
            Cursor { seq: Seq(2), ..cursor },
            Cursor { seq: Seq(2), ..old },
        ] {
            assert_eq!(code(&wrong.to_string(), &b.state), Some(Code::BadCursor), "{wrong}");
        }
        assert_eq!(code("nonsense", &b.state), Some(Code::BadCursor));
    }

    /// All nodes were put back to older disks, and wrote on: the numbers of the lost changes are given again.
    #[test]
    fn a_cursor_of_a_lost_future_is_refused_for_ever() {
        let mut b = StateUnderTest::new();
        b.ok(online("a", 0, Role::Client));
        for _ in 0..5 {
            b.ok(update("a", 1, "{}"));
        }
        let mut lost = b.copy();
        for _ in 0..4 {
            lost.ok(update("a", 1, "{}"));
        }
        let cursors: Vec<String> = (0..=9).map(|seq| Cursor::at(&lost.state, Seq(seq)).to_string()).collect();
        assert!(cursors.iter().all(|cursor| code(cursor, &lost.state).is_none()));
        // The same writes again, a moment later.
        b.now += 1;
        let common = 5;
        let check = |b: &StateUnderTest, from: u64| {
            for (cursor, seq) in cursors.iter().zip(0..) {
                let bad = seq > common;
                if seq >= from {
                    assert_eq!(code(cursor, &b.state), bad.then_some(Code::BadCursor), "{cursor}");
                }
            }
        };
        check(&b, 0);
        for _ in 0..9 {
            b.ok(update("a", 1, "{}"));
            check(&b, 0);
        }
        check(&b.copy(), 0);
        // Of the change that was dropped last nothing is known; what is older is of no use anyway.
        for to in [4, 5, 7] {
            let to_end = Compact { changes_to: to, audit_to: u64::MAX, ..Compact::default() };
            b.ok(Intent::Compact(to_end));
            assert_eq!(b.state.meta().compacted_seq, to);
            check(&b, to + 1);
            check(&b.copy(), to + 1);
            let at = &cursors[to as usize];
            assert_eq!(code(at, &b.state), Some(Code::BadCursor), "{at}");
            let old = Cursor { print: 0, ..read(at).unwrap() };
            assert_eq!(code(&old.to_string(), &b.state), None, "of an older version");
            assert_eq!(code(&cursors[to as usize - 1], &b.state), None, "a sync makes a full one of it");
        }
    }

    #[test]
    fn the_seq_is_read_after_the_only_dot() {
        for (cursor, text) in [
            (Cursor { epoch: 0xabc, seq: Seq(7), print: 0 }, "abc.7"),
            (Cursor { epoch: 0xabc, seq: Seq(7), print: 0x1f }, "abc-1f.7"),
            (
                Cursor { epoch: u64::MAX, seq: Seq(u64::MAX), print: u32::MAX },
                "ffffffffffffffff-ffffffff.18446744073709551615",
            ),
        ] {
            assert_eq!((cursor.to_string().as_str(), read(text)), (text, Some(cursor)));
        }
        for text in ["", "x", "1", "1.", ".1", "-1.1", "1-.1", "1-1ffffffff.1", "1-1", "1-1-1.1", "1.1.1", "1.-1"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
