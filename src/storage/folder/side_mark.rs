//! What the engine must still hold when it is opened again, in a small file that the engine knows nothing of.
//!
//! The engine takes damage to its files for the end of what was written, or for a part that it wrote anew elsewhere, and goes
//! on from there without a word. A node that did so would have forgotten votes and entries that it acknowledged. So the
//! mark says, beside the engine: where the log ends and what its last entry is, which vote and start are the newest, how far
//! rows and purges have come. An engine that gives less is not opened.
//!
//! A plain write costs no sync for it: behind each flush of the engine the mark goes to the system's memory, where it
//! outlives the process, and a thread of its own syncs it every few seconds. A vote, a start and a close sync it at once,
//! and before entries are taken back the mark is, so that it never says more than what the engine has. A close in order
//! also seals the engine's files: any difference is seen then.
//!
//! ```text
//! three slots of 512 bytes, the newest one counts: the first is not synced, the others are in turns.
//! all numbers little-endian:
//! "TILLMARK" | version u32 | number u64 | opens u64 | log end u64 | its hash u64 | votes u64 | hash of the vote u64
//! purged u64 | applied u64 | start (17 bytes) | sealed u8 | seal u128 | zeros | xxh3-64 of everything before u64
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::LogIndex;
use crate::storage::StartMark;
use crate::storage::durability::sync_dir;

const FILE: &str = "mark";
const MAGIC: &[u8; 8] = b"TILLMARK";
const VERSION: u32 = 1;
/// What a power cut may tear is the first one, or one of the others while it is being synced: there is always a whole one.
const SLOT: usize = 512;
const SLOTS: usize = 3;
const SUM: usize = 8;

/// What the engine must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SideMark {
    /// How often the folder was opened.
    pub opens: u64,
    /// The newest entry, and a hash of it; 0: not known, or purged.
    pub end: LogIndex,
    pub end_hash: u64,
    /// How many votes were saved, and a hash of the last one.
    pub votes: u64,
    pub vote_hash: u64,
    pub purged: LogIndex,
    pub applied: LogIndex,
    pub start: StartMark,
    /// Of the engine's files, when they were closed in order.
    pub seal: Option<u128>,
}

/// The hash of an entry or a vote: never 0.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(1)
}

impl SideMark {
    /// What an engine that holds `found` has lost of this, and whose entry at this mark's end has the hash `held` (`None`: it has
    /// none there any more).
    pub(crate) fn lost(&self, found: &Self, held: Option<u64>) -> Option<String> {
        if found.opens < self.opens {
            return Some(format!("it knows {} of the {} times that it was opened", found.opens, self.opens));
        }
        if found.end < self.end {
            return Some(format!("its log ends at entry {}, and the node acknowledged entry {}", found.end, self.end));
        }
        if held.is_some_and(|held| self.end_hash != 0 && held != self.end_hash) {
            return Some(format!("its entry {} is another one than the node acknowledged", self.end));
        }
        if found.votes < self.votes || (found.votes == self.votes && found.vote_hash != self.vote_hash) {
            return Some("it does not hold the node's last vote".into());
        }
        if found.purged < self.purged {
            return Some(format!("its log begins behind entry {}, and was purged up to {}", found.purged, self.purged));
        }
        if found.applied < self.applied {
            return Some(format!("its rows end with entry {}, and were written up to {}", found.applied, self.applied));
        }
        let (had, has) = (self.start, found.start);
        let newer = has.boot > had.boot;
        let same = has.boot == had.boot && has.instance == had.instance && (has.took_part || !had.took_part);
        if !newer && !same {
            return Some(format!("it knows start {} of the node, and there was start {}", has.boot, had.boot));
        }
        None
    }

    fn encode(&self, number: u64) -> [u8; SLOT] {
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let Self { opens, end, end_hash, votes, vote_hash, purged, applied, start, seal } = self;
        for field in [&number, opens, &end.get(), end_hash, votes, vote_hash, &purged.get(), &applied.get()] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&start.encode());
        bytes.push(seal.is_some().into());
        bytes.extend_from_slice(&seal.unwrap_or_default().to_le_bytes());
        bytes.resize(SLOT - SUM, 0);
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        let mut slot = [0; SLOT];
        slot.copy_from_slice(&bytes);
        slot
    }

    /// Its number, and the mark; `None`: it is no mark, or a damaged one.
    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let (bytes, sum) = slot.split_last_chunk::<SUM>()?;
        let mut rest = bytes.strip_prefix(MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?;
        if xxh3_64(bytes) != u64::from_le_bytes(*sum) {
            return None;
        }
        let mut field = || {
            let (field, behind) = rest.split_first_chunk()?;
            rest = behind;
            Some(u64::from_le_bytes(*field))
        };
        let number = field()?;
        let mut mark = Self {
            opens: field()?,
            end: LogIndex(field()?),
            end_hash: field()?,
            votes: field()?,
            vote_hash: field()?,
            purged: LogIndex(field()?),
            applied: LogIndex(field()?),
            ..Self::default()
        };
        let (start, rest) = rest.split_first_chunk::<17>()?;
        mark.start = StartMark::decode(start).ok()?;
        let (sealed, rest) = rest.split_first()?;
        let (seal, _) = rest.split_first_chunk()?;
        mark.seal = (*sealed == 1).then_some(u128::from_le_bytes(*seal));
        Some((number, mark))
    }
}

/// The mark of a folder; `None`: it has none.
pub(crate) fn read(dir: &Path) -> io::Result<Option<SideMark>> {
    let bytes = match fs::read(dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let newest = match bytes.len() == SLOTS * SLOT {
        true => bytes.chunks(SLOT).filter_map(SideMark::decode).max_by_key(|(number, _)| *number),
        false => None,
    };
    match newest {
        Some((_, mark)) => Ok(Some(mark)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "its mark of what it must hold cannot be read")),
    }
}

pub(crate) fn is_there(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Forgets the mark of a folder whose engine was never opened to the end.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps the mark of a folder that is open.
pub(crate) struct SideMarks {
    file: File,
    kept: Mutex<KeptMark>,
    /// The slot to be synced next; locked while one is: the other is whole meanwhile.
    next: Mutex<usize>,
}

struct KeptMark {
    mark: SideMark,
    number: u64,
    /// Written, but not synced.
    dirty: bool,
}

impl SideMarks {
    /// Durable when it returns.
    pub(crate) fn create(dir: &Path, mark: SideMark) -> io::Result<Self> {
        let path = dir.join(FILE);
        // Never cut: what is there stays until the next slot is synced.
        let file = File::options().write(true).create(true).truncate(false).open(&path)?;
        let bytes = fs::read(path)?;
        let numbers: Vec<u64> =
            bytes.chunks(SLOT).map(|slot| SideMark::decode(slot).map_or(0, |(number, _)| number)).collect();
        let number = numbers.iter().copied().max().unwrap_or(0);
        let next = if numbers.get(1) > numbers.get(2) { 2 } else { 1 };
        let marks = Self { file, kept: Mutex::new(KeptMark { mark, number, dirty: false }), next: Mutex::new(next) };
        marks.file.set_len((SLOTS * SLOT) as u64)?;
        marks.settle(|_| {})?;
        marks.file.sync_all()?;
        sync_dir(dir)?;
        Ok(marks)
    }

    pub(crate) fn current(&self) -> SideMark {
        self.kept.lock().mark.clone()
    }

    /// Outlives the process when it returns, and a power cut some seconds later ([`SideMarks::sync`]).
    pub(crate) fn update(&self, change: impl FnOnce(&mut SideMark)) -> io::Result<()> {
        let mut kept = self.kept.lock();
        let before = kept.mark.clone();
        change(&mut kept.mark);
        if kept.mark == before {
            return Ok(());
        }
        kept.dirty = true;
        self.file.write_all_at(&kept.next(), 0)
    }

    /// Durable when it returns.
    pub(crate) fn settle(&self, change: impl FnOnce(&mut SideMark)) -> io::Result<()> {
        let mut next = self.next.lock();
        let slot = {
            let mut kept = self.kept.lock();
            change(&mut kept.mark);
            kept.dirty = false;
            kept.next()
        };
        self.file.write_all_at(&slot, (*next * SLOT) as u64)?;
        *next = SLOTS - *next;
        self.file.sync_data()
    }

    /// What was written so far is durable when it returns.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let dirty = self.kept.lock().dirty;
        if dirty { self.settle(|_| {}) } else { Ok(()) }
    }
}

impl KeptMark {
    /// The bytes of the next slot.
    fn next(&mut self) -> [u8; SLOT] {
        self.number += 1;
        self.mark.encode(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> SideMark {
        let start = StartMark { boot: 3, instance: 9, took_part: true };
        let (end, purged, applied) = (LogIndex(100), LogIndex(40), LogIndex(90));
        SideMark { opens: 4, end, end_hash: 7, votes: 2, vote_hash: 8, purged, applied, start, seal: None }
    }

    #[test]
    fn a_mark_comes_back_and_a_torn_one_gives_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(read(dir.path()).unwrap(), None);
        let marks = SideMarks::create(dir.path(), mark()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(mark()));
        marks.settle(|mark| mark.end = LogIndex(101)).unwrap();
        marks.update(|mark| mark.end = LogIndex(102)).unwrap();
        let sealed = SideMark { end: LogIndex(102), seal: Some(u128::MAX - 5), ..mark() };
        // Whichever is being written, the one that was synced before is whole.
        for (change, torn, before) in [(None, 0, 101), (Some(sealed.seal), 1, 102)] {
            if let Some(seal) = change {
                marks.settle(|mark| mark.seal = seal).unwrap();
                assert_eq!(read(dir.path()).unwrap(), Some(sealed.clone()));
            }
            let whole = fs::read(&path).unwrap();
            for at in 0..SLOT {
                let mut bytes = whole.clone();
                bytes[torn * SLOT + at] ^= 0x10;
                fs::write(&path, &bytes).unwrap();
                assert_eq!(read(dir.path()).unwrap(), Some(SideMark { end: LogIndex(before), ..mark() }), "{at}");
            }
            fs::write(&path, &whole).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..SLOT], &whole[..1], b"", &[whole.clone(), vec![0]].concat(), &[0; SLOTS * SLOT]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_mark_that_is_taken_back_counts_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let marks = SideMarks::create(dir.path(), mark()).unwrap();
        marks.update(|mark| mark.end = LogIndex(120)).unwrap();
        marks.settle(|mark| mark.end = LogIndex(60)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().end, LogIndex(60));
        // The next open goes on behind the newest one, and leaves the last one that was synced.
        for end in [130, 131, 132] {
            let before = read(dir.path()).unwrap().unwrap();
            let marks = SideMarks::create(dir.path(), SideMark { end: LogIndex(end), ..mark() }).unwrap();
            assert_eq!(read(dir.path()).unwrap().unwrap().end, LogIndex(end));
            let bytes = fs::read(dir.path().join(FILE)).unwrap();
            let kept: Vec<_> = bytes.chunks(SLOT).filter_map(SideMark::decode).map(|(_, mark)| mark.end).collect();
            assert!(kept.contains(&before.end) && kept.len() == SLOTS, "{kept:?}");
            marks.sync().unwrap();
        }
    }

    #[test]
    fn whatever_the_engine_lacks_is_named() {
        let known = mark();
        assert_eq!(known.lost(&known, Some(7)), None);
        let later = StartMark { boot: 4, ..StartMark::default() };
        let more = SideMark {
            opens: 5,
            end: LogIndex(130),
            votes: 3,
            purged: LogIndex(100),
            applied: LogIndex(101),
            start: later,
            ..SideMark::default()
        };
        assert_eq!(known.lost(&more, None), None);
        let less = [
            (SideMark { opens: 3, ..mark() }, "3 of the 4 times"),
            (SideMark { end: LogIndex(99), ..mark() }, "ends at entry 99"),
            (SideMark { votes: 1, ..mark() }, "last vote"),
            (SideMark { vote_hash: 5, ..mark() }, "last vote"),
            (SideMark { purged: LogIndex(0), ..mark() }, "purged up to 40"),
            (SideMark { applied: LogIndex(89), ..mark() }, "written up to 90"),
            (SideMark { start: StartMark { boot: 2, ..known.start }, ..mark() }, "start 2"),
            (SideMark { start: StartMark { took_part: false, ..known.start }, ..mark() }, "start 3"),
        ];
        for (found, words) in less {
            let lost = known.lost(&found, Some(7)).unwrap();
            assert!(lost.contains(words), "{lost}");
        }
        assert!(known.lost(&known, Some(6)).unwrap().contains("entry 100 is another one"));
    }
}
