//! A segment of the log as a file: the entries that came after a backup.
//!
//! ```text
//! "TILLSEGM" | version u32 | epoch u64 | term and index of the entry before the first one, u64 each
//! entries, ascending and without a hole: length u32 (> 0) | entry
//! 0 u32 | number of entries u64 | xxh3-64 of everything before u64        (all little-endian)
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use xxhash_rust::xxh3::Xxh3;

use super::codec::{decode_entry, encode_log_id};
use super::log_adapter::LogAdapter;
use super::types::LogId;
use crate::ids::{LogIndex, UnixMs};
use crate::model::state::decode_batch;

const MAGIC: &[u8; 8] = b"TILLSEGM";
const VERSION: u32 = 1;
/// Bytes of entries read at once.
const PIECE: usize = 256 << 10;
/// No entry is longer: a damaged length must not ask for all memory.
const ENTRY_MAX: u32 = 64 << 20;

/// A segment that is read from a node's log, piece by piece.
#[derive(Clone)]
pub struct SegmentReader {
    log: LogAdapter,
    next: LogIndex,
    last: LogIndex,
    entries: u64,
    hash: Xxh3,
    /// The header, then the end.
    begun: bool,
    ended: bool,
    epoch: u64,
    before: LogId,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").field("next", &self.next).field("last", &self.last).finish_non_exhaustive()
    }
}

impl SegmentReader {
    /// All entries after `before`, up to `last`.
    pub(super) fn new(log: LogAdapter, epoch: u64, before: LogId, last: LogIndex) -> Self {
        let next = LogIndex(before.index).next();
        Self { log, next, last, entries: 0, hash: Xxh3::new(), begun: false, ended: false, epoch, before }
    }

    /// No entries, of a log that has none.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn of_nothing(epoch: u64) -> Self {
        let log = LogAdapter::new(crate::storage::memory::stores().log);
        Self::new(log, epoch, LogId::new_term_index(0, 0), LogIndex(0))
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let mut piece = BytesMut::new();
        if !self.begun {
            self.begun = true;
            piece.put_slice(MAGIC);
            piece.put_u32_le(VERSION);
            piece.put_u64_le(self.epoch);
            piece.put_u64_le(self.before.leader_id.term);
            piece.put_u64_le(self.before.index);
        } else if self.next <= self.last {
            let entries = self.log.raw(self.next, self.last.next(), PIECE).await?;
            if entries.first().is_none_or(|(index, _)| *index != self.next) {
                return Err(io::Error::other("the log no longer has these entries"));
            }
            for (index, entry) in entries {
                let len = u32::try_from(entry.len()).map_err(io::Error::other)?;
                piece.put_u32_le(len);
                piece.put_slice(&entry);
                self.entries += 1;
                self.next = index.next();
            }
        } else {
            self.ended = true;
            piece.put_u32_le(0);
            piece.put_u64_le(self.entries);
        }
        self.hash.update(&piece);
        if self.ended {
            piece.put_u64_le(self.hash.digest());
        }
        Ok(Some(piece.freeze()))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What a segment in a file holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SegmentContents {
    /// The ids, as the rows keep them, of the entry before the first one and of the last one.
    pub before_log_id: Bytes,
    pub last_log_id: Bytes,
    pub entries: u64,
    /// The newest time of a command; 0: there is none.
    pub at: UnixMs,
    pub bytes: u64,
}

impl SegmentContents {
    /// Reads all of a file: an error if anything in it is not as it was written. Blocks on the disk.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut file = SegmentFile::new(BufReader::with_capacity(PIECE, file))?;
        let before_log_id = encode_log_id(&file.before);
        let (mut last, mut at) = (file.before, UnixMs(0));
        while let Some((index, entry)) = file.next()? {
            let entry = decode_entry(index, entry)?;
            last = entry.log_id;
            if let EntryPayload::Normal(batch) = entry.payload {
                let times = decode_batch(batch.0).commands.into_iter().map(|command| UnixMs(command.at_ms));
                at = times.fold(at, UnixMs::max);
            }
        }
        Ok(Self { before_log_id, last_log_id: encode_log_id(&last), entries: file.entries, at, bytes })
    }
}

/// A segment in a file. Only when [`SegmentFile::next`] gave `None` it is known to be whole.
pub(crate) struct SegmentFile<R> {
    input: R,
    hash: Xxh3,
    pub(crate) epoch: u64,
    /// The entry before the first one.
    pub(crate) before: LogId,
    entries: u64,
    ended: bool,
}

impl<R: Read> SegmentFile<R> {
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let mut hash = Xxh3::new();
        if &take::<8>(&mut input, &mut hash)? != MAGIC {
            return Err(bad("it holds no entries of a log"));
        }
        if u32::from_le_bytes(take(&mut input, &mut hash)?) > VERSION {
            return Err(bad("it was written by a newer version"));
        }
        let mut field = || take(&mut input, &mut hash).map(u64::from_le_bytes);
        let (epoch, term, index) = (field()?, field()?, field()?);
        let before = LogId::new_term_index(term, index);
        Ok(Self { input, hash, epoch, before, entries: 0, ended: false })
    }

    /// The next entry, by its index.
    pub(crate) fn next(&mut self) -> io::Result<Option<(LogIndex, Bytes)>> {
        if self.ended {
            return Ok(None);
        }
        let len = u32::from_le_bytes(take(&mut self.input, &mut self.hash)?);
        if len == 0 {
            self.ended = true;
            return self.check_end().map(|()| None);
        }
        if len > ENTRY_MAX {
            return Err(bad("a length is impossible"));
        }
        let mut entry = Vec::new();
        // Grows with what is really there, not with what the length promises.
        (&mut self.input).take(u64::from(len)).read_to_end(&mut entry)?;
        if entry.len() != len as usize {
            return Err(bad("it is cut off"));
        }
        self.hash.update(&entry);
        self.entries += 1;
        Ok(Some((LogIndex(self.before.index).plus(self.entries), entry.into())))
    }

    fn check_end(&mut self) -> io::Result<()> {
        let entries = u64::from_le_bytes(take(&mut self.input, &mut self.hash)?);
        let hash = self.hash.digest();
        if entries != self.entries || u64::from_le_bytes(take(&mut self.input, &mut self.hash)?) != hash {
            return Err(bad("its checksum is wrong"));
        }
        match self.input.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(bad("something follows its end")),
        }
    }
}

fn take<const N: usize>(input: &mut impl Read, hash: &mut Xxh3) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("it is cut off"),
        _ => error,
    })?;
    hash.update(&bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory;

    async fn written(entries: u64) -> Vec<u8> {
        let log = memory::stores().log;
        let entry = |index: u64| (LogIndex(index), Bytes::from(vec![7; 1 + (index as usize * 37_000) % 90_000]));
        log.append((0..=entries + 3).map(entry).collect(), Box::new(|_| {}));
        let before = LogId::new_term_index(5, 3);
        let mut reader = SegmentReader::new(LogAdapter::new(log), 0xE, before, LogIndex(entries + 3));
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    /// Also whether the header is what was written.
    fn read(bytes: &[u8]) -> io::Result<Vec<(u64, usize)>> {
        let mut file = SegmentFile::new(bytes)?;
        let header = (file.epoch, file.before);
        let mut found = Vec::new();
        while let Some((index, entry)) = file.next()? {
            found.push((index.get(), entry.len()));
        }
        assert_eq!(header, (0xE, LogId::new_term_index(5, 3)));
        Ok(found)
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_and_damage_is_an_error() {
        assert_eq!(read(&written(0).await).unwrap(), []);
        let bytes = written(40).await;
        let found = read(&bytes).unwrap();
        assert_eq!((found.len(), found[0], found[39].0), (40, (4, 1 + 148_000 % 90_000), 43));
        for at in (0..28).chain((28..bytes.len()).step_by(bytes.len() / 50)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(read(&damaged).is_err(), "a bit at {at}");
            assert!(read(&bytes[..at]).is_err(), "cut off at {at}");
        }
        assert!(read(&[bytes.as_slice(), b"x"].concat()).is_err());
    }
}
