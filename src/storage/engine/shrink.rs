//! Copies an engine whose files have become much larger than what is in them, at a start, into a new one. A node that runs
//! and finds it worth it starts again for it (`cli::serve::waste`).
//!
//! The engine uses the room of what it no longer needs again, and never gives it back: after a week of pictures that were
//! replaced, or a month without a snapshot, a folder stays as large as it was at its worst. So a start that finds the files
//! far larger than their content copies rows, log and marks into an engine of their own beside it. The copy must be found
//! equal, and is durable before it takes the place:
//!
//! ```text
//! engine              engine.new   being made: thrown away by the next start
//!          engine.old engine.new   the engine has gone aside: comes back at the next start
//! engine   engine.old              the copy is in its place: the old one goes once the new one was opened
//! ```

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::Path;

use super::keys::{self, Generation};
use crate::ids::LogIndex;
use crate::storage::durability::sync_dir;
use crate::storage::engine::{self, ENGINE, SledEngine};
use crate::storage::room::free_bytes;

const NEW: &str = "engine.new";
const OLD: &str = "engine.old";
/// Files may have so many times the bytes of what is in them, and this much more.
const TIMES: u64 = 2;
pub(crate) const SLACK: u64 = 48 << 20;
/// What was just copied is not copied again before it has grown by half, however the engine packs it.
const GROWN_PERCENT: u64 = 150;
/// How large the files were when they were made, in the engine's tree of marks.
const SIZE: &[u8] = b"size";
/// Bytes copied between two moments at which pages that the engine dropped are freed.
const CHUNK: usize = 1 << 20;

/// What is to be copied of an engine.
pub(crate) struct EngineContent {
    pub generation: Generation,
    /// Entries up to here are gone, also those that were not removed yet.
    pub purged: Option<LogIndex>,
    /// Of all rows and entries, with their keys.
    pub bytes: u64,
}

/// Whether files of `size` bytes, which had `made` when they were last copied, are worth a copy.
fn is_due(size: u64, content: u64, slack: u64, made: u64) -> bool {
    size > content * TIMES + slack && size > made / 100 * GROWN_PERCENT
}

/// Brings a folder to one of its two ends in which a copy was interrupted. Before anything else looks at it.
pub(crate) fn settle(dir: &Path) -> io::Result<()> {
    let (current, new, old) = (dir.join(ENGINE), dir.join(NEW), dir.join(OLD));
    if !current.exists() && old.exists() {
        fs::rename(&old, &current)?;
        sync_dir(dir)?;
    }
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    Ok(())
}

/// Copies the engine if it is worth it and there is room; `None`: it is not. The copy is durable.
pub(crate) fn copy_if_due(
    dir: &Path,
    from: &SledEngine,
    content: &EngineContent,
    slack: u64,
) -> sled::Result<Option<SledEngine>> {
    let size = engine_size(dir)?;
    if !is_due(size, content.bytes, slack, made(from)?) {
        return Ok(None);
    }
    let (mb, free) = (size >> 20, free_bytes(dir)?);
    if free < room_for(content.bytes) {
        tracing::warn!(
            "the engine's files have {mb} MB for {} MB: a copy of them would be smaller, but the disk has only {} MB free",
            content.bytes >> 20,
            free >> 20,
        );
        return Ok(None);
    }
    tracing::info!("the engine's files have {mb} MB for {} MB: copying what is in them", content.bytes >> 20);
    copy(dir, from, content).map(Some)
}

/// The bytes of the files, if they are worth a copy and there is room for it.
pub(crate) fn worth_it(dir: &Path, engine: &SledEngine, content: u64, slack: u64) -> sled::Result<Option<u64>> {
    let size = engine_size(dir)?;
    let worth = is_due(size, content, slack, made(engine)?) && free_bytes(dir)? >= room_for(content);
    Ok(worth.then_some(size))
}

/// How large the files were when they were made; 0: they are no copy.
fn made(engine: &SledEngine) -> sled::Result<u64> {
    let made = engine.meta.get(SIZE)?;
    Ok(made.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// What a copy needs on the disk beside what is copied.
fn room_for(content: u64) -> u64 {
    content * TIMES + SLACK
}

pub(crate) fn engine_size(dir: &Path) -> io::Result<u64> {
    size_of(&dir.join(ENGINE))
}

fn copy(dir: &Path, from: &SledEngine, content: &EngineContent) -> sled::Result<SledEngine> {
    let new = dir.join(NEW);
    let to = engine::open_trees(&new)?;
    copy_tree(&from.meta, &to.meta, Vec::new(), Bound::Unbounded)?;
    let end = match content.generation.checked_add(1) {
        Some(next) => Bound::Excluded(keys::generation_prefix(next).to_vec()),
        None => Bound::Unbounded,
    };
    copy_tree(&from.rows, &to.rows, keys::generation_prefix(content.generation).to_vec(), end)?;
    let first = content.purged.map_or(LogIndex(0), LogIndex::next);
    copy_tree(&from.log, &to.log, keys::entry(first).to_vec(), Bound::Unbounded)?;
    to.flush()?;
    to.meta.insert(SIZE, &size_of(&new)?.to_be_bytes())?;
    to.flush()?;
    engine::sync_all(dir, &new)?;
    Ok(to)
}

fn copy_tree(from: &sled::Tree, to: &sled::Tree, start: Vec<u8>, end: Bound<Vec<u8>>) -> sled::Result<()> {
    let mut copied = 0;
    for entry in from.range((Bound::Included(start), end)) {
        let (key, value) = entry?;
        // As slices: the engine would keep the page that they came from.
        to.insert(&key[..], &value[..])?;
        copied += key.len() + value.len();
        if copied >= CHUNK {
            copied = 0;
            engine::free_dropped_pages();
        }
    }
    Ok(())
}

/// Both engines are closed: the copy takes the other one's place.
pub(crate) fn exchange(dir: &Path) -> io::Result<()> {
    let (current, new, old) = (dir.join(ENGINE), dir.join(NEW), dir.join(OLD));
    discard(dir)?;
    fs::rename(&current, &old)?;
    sync_dir(dir)?;
    fs::rename(&new, &current)?;
    sync_dir(dir)
}

/// The engine was opened and is whole: what a copy has replaced goes.
pub(crate) fn discard(dir: &Path) -> io::Result<()> {
    let old = dir.join(OLD);
    if old.exists() { fs::remove_dir_all(old) } else { Ok(()) }
}

/// Of all files below a folder; one that goes meanwhile has none.
fn size_of(dir: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        size += match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path())?,
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_or_was_just_copied_is_left() {
        const MB: u64 = 1 << 20;
        for (size, content, made, due) in [
            (40 * MB, 0, 0, false),
            (48 * MB, 0, 0, false),
            (60 * MB, 0, 0, true),
            (248 * MB, 100 * MB, 0, false),
            (249 * MB, 100 * MB, 0, true),
            (300 * MB, 100 * MB, 250 * MB, false),
            (400 * MB, 100 * MB, 250 * MB, true),
        ] {
            assert_eq!(is_due(size, content, SLACK, made), due, "{size} for {content}, made with {made}");
        }
    }
}
