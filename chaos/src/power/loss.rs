//! What a power cut leaves of the changes that were not synced.

use std::fmt;

use super::disk::UnsyncedWrite;
use crate::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// All of them are lost.
    Whole,
    /// The later ones are lost; the one at the border is torn.
    Prefix,
    /// Any of them are lost.
    Subset,
    /// Any of them are lost, and writes end, or begin, anywhere.
    Torn,
    /// Of each write any sectors are lost.
    Sectors,
    /// None of them is lost.
    Nothing,
}

const ALL: [Loss; 6] = [Loss::Whole, Loss::Prefix, Loss::Subset, Loss::Torn, Loss::Sectors, Loss::Nothing];

impl fmt::Display for Loss {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Whole => "all un-synced lost",
            Self::Prefix => "the later ones lost",
            Self::Subset => "any lost",
            Self::Torn => "any lost, writes torn",
            Self::Sectors => "any sectors lost",
            Self::Nothing => "nothing lost",
        })
    }
}

impl Loss {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        rng.pick(&ALL).copied().unwrap_or(Self::Whole)
    }

    /// The changes that reach the disk, in order.
    pub(super) fn survivors(self, pending: Vec<UnsyncedWrite>, journal: bool, rng: &mut Rng) -> Vec<UnsyncedWrite> {
        let percent = rng.between(5, 95);
        match self {
            Self::Whole => Vec::new(),
            Self::Nothing => pending,
            Self::Prefix => prefix(pending, rng),
            Self::Subset | Self::Torn | Self::Sectors => {
                // With a journal, names are lost from the newest backwards.
                let names = pending.iter().filter(|change| change.file().is_none()).count();
                let mut names_left = rng.below(names as u64 + 1);
                let mut out = Vec::new();
                for change in pending {
                    match change.file() {
                        None if journal && names_left == 0 => {}
                        None if journal => {
                            names_left -= 1;
                            out.push(change);
                        }
                        None if rng.percent(percent) => out.push(change),
                        None => {}
                        Some(_) => self.of_file(change, percent, rng, &mut out),
                    }
                }
                out
            }
        }
    }

    fn of_file(self, change: UnsyncedWrite, percent: u64, rng: &mut Rng, out: &mut Vec<UnsyncedWrite>) {
        let UnsyncedWrite::Write { ino, at, bytes } = change else {
            if rng.percent(percent) {
                out.push(change);
            }
            return;
        };
        let end = at + bytes.len() as u64;
        if self == Self::Sectors {
            sectors(ino, at, &bytes, percent, rng, out);
        } else if rng.percent(percent) {
            out.push(if self == Self::Torn {
                torn(ino, at, bytes, rng)
            } else {
                UnsyncedWrite::Write { ino, at, bytes }
            });
        }
        // A file may have got its new length and not its new content.
        if rng.percent(30) {
            out.push(UnsyncedWrite::Grow { ino, len: end });
        }
    }
}

fn prefix(mut pending: Vec<UnsyncedWrite>, rng: &mut Rng) -> Vec<UnsyncedWrite> {
    let left = rng.below(pending.len() as u64 + 1) as usize;
    let border = pending.drain(left..).next();
    if let Some(UnsyncedWrite::Write { ino, at, mut bytes }) = border {
        bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
        pending.push(UnsyncedWrite::Write { ino, at, bytes });
    }
    pending
}

fn torn(ino: u64, at: u64, mut bytes: Vec<u8>, rng: &mut Rng) -> UnsyncedWrite {
    let border = rng.below(bytes.len() as u64 + 1);
    if rng.percent(50) {
        bytes.truncate(border as usize);
        UnsyncedWrite::Write { ino, at, bytes }
    } else {
        UnsyncedWrite::Write { ino, at: at + border, bytes: bytes.split_off(border as usize) }
    }
}

fn sectors(ino: u64, at: u64, bytes: &[u8], percent: u64, rng: &mut Rng, out: &mut Vec<UnsyncedWrite>) {
    let (mut from, end) = (at, at + bytes.len() as u64);
    while from < end {
        let to = ((from / SECTOR + 1) * SECTOR).min(end);
        if rng.percent(percent) {
            let bytes = bytes[(from - at) as usize..(to - at) as usize].to_vec();
            out.push(UnsyncedWrite::Write { ino, at: from, bytes });
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64, len: usize) -> UnsyncedWrite {
        UnsyncedWrite::Write { ino: 2, at, bytes: vec![7; len] }
    }

    fn names(count: u64) -> Vec<UnsyncedWrite> {
        (0..count).map(|n| UnsyncedWrite::Link { folder: 1, name: n.to_string().into(), ino: n + 2 }).collect()
    }

    #[test]
    fn each_kind_loses_what_it_says() {
        let pending: Vec<UnsyncedWrite> = (0..8).map(|n| write(n * 2_000, 2_000)).collect();
        for seed in 0..200 {
            let left = |loss: Loss| loss.survivors(pending.clone(), false, &mut Rng::new(seed));
            assert_eq!(left(Loss::Whole), []);
            assert_eq!(left(Loss::Nothing), pending);
            let prefix = left(Loss::Prefix);
            let whole = prefix.len().saturating_sub(1);
            assert_eq!(prefix[..whole], pending[..whole]);
            assert!(left(Loss::Subset).iter().all(|c| matches!(c, UnsyncedWrite::Grow { .. }) || pending.contains(c)));
            for change in left(Loss::Sectors) {
                let UnsyncedWrite::Write { at, bytes, .. } = change else { continue };
                let end = at + bytes.len() as u64;
                assert!(bytes.len() as u64 <= SECTOR && at / SECTOR == (end - 1) / SECTOR, "within one sector");
            }
        }
        let torn = |seed| Loss::Torn.survivors(pending.clone(), false, &mut Rng::new(seed));
        assert!(
            (0..50)
                .any(|seed| torn(seed).iter().any(|c| matches!(c, UnsyncedWrite::Write { at, .. } if at % 2_000 > 0)))
        );
    }

    #[test]
    fn a_journal_loses_names_from_the_newest_backwards() {
        let pending = names(10);
        for seed in 0..100 {
            let left = Loss::Subset.survivors(pending.clone(), true, &mut Rng::new(seed));
            assert_eq!(left, pending[..left.len()]);
        }
        let holes = |seed| Loss::Subset.survivors(pending.clone(), false, &mut Rng::new(seed));
        assert!((0..100).any(|seed| holes(seed) != pending[..holes(seed).len()]));
    }
}
