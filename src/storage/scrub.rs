//! Reads all that a folder keeps, so slowly that nobody notices, and says what is damaged. What is seldom read would
//! otherwise rot unseen until it is needed, perhaps on a second node as well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::durability::disk_error::engine_error;
use super::durability::poison::{Poison, closed, guarded};
use super::engine::chunks;
use super::engine::keys;
use super::engine::segments;
use super::engine::{self, segment_size};
use super::log::rows as log_rows;
use super::log::{LogShared, check_read};
use super::rows::tables::TablesShared;
use super::snapshot::file as snapshot_file;
use crate::ids::LogIndex;

/// Rows read under the lock that keeps their writer out: about a millisecond.
const ROWS: usize = 256;
/// Bytes of entries read at once.
const ENTRIES: usize = 256 << 10;
/// The engine writes the parts of a segment in any order: what is missing now may be there a little later, on a disk that
/// stalls much later.
const SETTLED: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };
/// The longest sleep, after which it is seen that the folder is closed.
const NAP: Duration = Duration::from_millis(100);

/// What is read, and how fast.
pub(super) struct Scrub {
    pub tables: Arc<TablesShared>,
    pub log: Arc<LogShared>,
    pub poison: Poison,
    pub bytes_per_second: u64,
}

fn damage(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Scrub {
    /// How many bytes were read. An error of the kind `InvalidData` is damage; it ends all use of the folder.
    pub(super) fn run(self, dir: &Path) -> io::Result<u64> {
        let poison = self.poison.clone();
        let outcome = guarded(|| self.read(dir)).unwrap_or_else(|panic| Err(damage(panic)));
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::NotConnected => error,
            _ => poison.failed("reading all data", &error),
        })
    }

    fn read(self, dir: &Path) -> io::Result<u64> {
        let mut pace = ReadPace { scrub: &self, begun: Instant::now(), bytes: 0 };
        self.rows(&mut pace)?;
        self.entries(&mut pace)?;
        self.snapshots(&dir.join("snapshots"), &mut pace)?;
        self.segments(&engine::sealed_dir(dir), &mut pace)?;
        Ok(pace.bytes)
    }

    fn rows(&self, pace: &mut ReadPace<'_>) -> io::Result<()> {
        let mut at: Option<(keys::Generation, Vec<u8>)> = None;
        loop {
            let mut read = 0;
            let more = {
                // No part of a row changes meanwhile.
                let rows = self.tables.rows.read();
                let rows = rows.as_ref().ok_or_else(closed)?;
                let from = match at.take() {
                    Some((generation, from)) if generation == rows.generation => from,
                    // The rows of an installed snapshot are others.
                    _ => keys::rows_start(rows.generation),
                };
                let end = keys::rows_end(rows.generation);
                let mut last = None;
                for entry in rows.tree.range(from.as_slice()..end.as_slice()).take(ROWS) {
                    let (key, value) = entry.map_err(engine_error)?;
                    read += key.len() + value.len();
                    let (row, part) = keys::parse_row(&key).ok_or_else(|| damage("a row's key does not decode"))?;
                    let torn = || damage(format_args!("row {row:?} is not what was written"));
                    if part == 0 {
                        let whole = rows.get_encoded(&key).map_err(io::Error::other)?;
                        whole.flatten().ok_or_else(torn)?;
                        chunks::announced(&value).ok_or_else(torn)?;
                    }
                    last = Some(key);
                }
                // The smallest key behind the last one.
                at = last.map(|key| (rows.generation, [key.as_ref(), &[0]].concat()));
                at.is_some()
            };
            engine::free_dropped_pages();
            if !more {
                return Ok(());
            }
            pace.took(read)?;
        }
    }

    fn entries(&self, pace: &mut ReadPace<'_>) -> io::Result<()> {
        let mut next = LogIndex(0);
        loop {
            let (end, truncations) = {
                let state = self.log.state.lock();
                let purged = state.bounds.purged.as_ref().map_or(state.first, |(index, _)| index.next());
                next = next.max(purged);
                let end = state.bounds.last.map_or(LogIndex(0), LogIndex::next).min(state.tail.in_engine().next());
                (end, state.truncations)
            };
            if next >= end {
                return Ok(());
            }
            let read = {
                let tree = self.log.tree.read().clone().ok_or_else(closed)?;
                log_rows::read(&tree, next, end, ENTRIES, true)
            };
            engine::free_dropped_pages();
            match read {
                Ok(entries) => {
                    next = next.plus(entries.len() as u64);
                    pace.took(entries.iter().map(|(_, entry)| entry.len()).sum())?;
                }
                Err(error) => {
                    let state = self.log.state.lock();
                    // What was cut off, or purged, meanwhile is no damage.
                    if state.truncations == truncations && check_read(&state.bounds, next, end).is_ok() {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn snapshots(&self, dir: &Path, pace: &mut ReadPace<'_>) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "snap") {
                continue;
            }
            let file = match File::open(&path) {
                // A newer one has taken its place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            snapshot_file::check_sum(Paced { file, pace }).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => damage(format_args!("{}: {error}", path.display())),
                _ => error,
            })?;
        }
        Ok(())
    }

    /// The engine's file as it is on the disk.
    fn segments(&self, engine_dir: &Path, pace: &mut ReadPace<'_>) -> io::Result<()> {
        let size = segment_size(engine_dir);
        let path = engine_dir.join("db");
        let file = File::open(&path)?;
        let mut segment = vec![0; size];
        let mut offset = 0;
        loop {
            let len = read_up_to(&file, &mut segment, offset)?;
            if len == 0 {
                return Ok(());
            }
            if let Some(found) = segments::hole(&segment[..len], offset, size as u64) {
                pace.wait(SETTLED)?;
                let len = read_up_to(&file, &mut segment, offset)?;
                if segments::hole(&segment[..len], offset, size as u64) == Some(found.clone()) {
                    return Err(damage(format_args!("{}: bytes {} to {}", path.display(), found.start, found.end)));
                }
            }
            offset += size as u64;
            pace.took(len)?;
        }
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

/// Keeps to so many bytes a second, and ends when the folder is closed.
struct ReadPace<'a> {
    scrub: &'a Scrub,
    begun: Instant,
    bytes: u64,
}

impl ReadPace<'_> {
    fn took(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes += bytes as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.scrub.bytes_per_second.max(1) as f64);
        self.wait(due.saturating_sub(self.begun.elapsed()))
    }

    fn wait(&self, duration: Duration) -> io::Result<()> {
        let until = Instant::now() + duration;
        loop {
            if self.scrub.tables.rows.read().is_none() || self.scrub.log.tree.read().is_none() {
                return Err(closed());
            }
            self.scrub.poison.check().map_err(|_| closed())?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

struct Paced<'a, 'b> {
    file: File,
    pace: &'a mut ReadPace<'b>,
}

impl Read for Paced<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        self.pace.took(len)?;
        Ok(len)
    }
}
