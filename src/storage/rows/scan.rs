//! Reads all rows as they stood at one moment while the writer goes on.
//!
//! The reader goes through the tree in chunks, ascending, under a lock that the writer also takes for each of its
//! batches. What the reader has passed may change freely. Before the writer changes an entry that the reader has
//! not reached, it leaves the entry's value of that moment here (its before-image), and the reader takes that one
//! instead. Images are dropped as the reader passes them, and the writer waits when they are too many, so memory
//! is bounded.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use sled::IVec;

use super::GenerationRows;
use crate::proto::Applied;
use crate::storage::engine::keys;

/// Bytes of before-images at which the writer waits for the reader.
const IMAGES: usize = 32 << 20;
/// Entries read under the lock at a time: about a millisecond.
const CHUNK: usize = 512;

/// An entry as the engine has it.
pub(crate) type StoredPair = (IVec, IVec);

/// What becomes of an entry; `None`: it goes.
pub(crate) type StoredPut = (IVec, Option<IVec>);

struct Scan {
    rows: GenerationRows,
    /// All keys before this one were read.
    cursor: Vec<u8>,
    images: BTreeMap<IVec, Option<IVec>>,
    image_bytes: usize,
}

/// Where the writer and one reader meet.
#[derive(Default)]
pub(crate) struct ScanSlot {
    scan: Mutex<Option<Scan>>,
    moved: Condvar,
}

/// A running scan; dropping it lets the writer forget about it.
pub(crate) struct ScanReader {
    slot: Arc<ScanSlot>,
    /// What was applied at the moment that the scan sees.
    pub applied: Applied,
    done: bool,
}

impl ScanSlot {
    /// Called by the writer between two batches. Waits until an earlier scan has ended.
    pub(crate) fn start(self: &Arc<Self>, rows: GenerationRows, applied: Applied) -> ScanReader {
        let mut scan = self.scan.lock();
        while scan.is_some() {
            self.moved.wait(&mut scan);
        }
        let cursor = keys::rows_start(rows.generation);
        *scan = Some(Scan { rows, cursor, images: BTreeMap::new(), image_bytes: 0 });
        ScanReader { slot: self.clone(), applied, done: false }
    }

    /// Waits until no scan runs.
    pub(crate) fn wait_idle(&self) {
        let mut scan = self.scan.lock();
        while scan.is_some() {
            self.moved.wait(&mut scan);
        }
    }

    /// Runs the writer's batch after the before-images of what it changes are kept.
    pub(crate) fn write<T>(
        &self,
        changes: Vec<StoredPut>,
        write: impl FnOnce(Vec<StoredPut>) -> sled::Result<T>,
    ) -> sled::Result<T> {
        let mut guard = self.scan.lock();
        while guard.as_ref().is_some_and(|scan| scan.image_bytes > IMAGES) {
            self.moved.wait(&mut guard);
        }
        if let Some(scan) = guard.as_mut() {
            for (key, _) in &changes {
                if key.as_ref() < scan.cursor.as_slice() || scan.images.contains_key(key) {
                    continue;
                }
                let image = scan.rows.tree.get(key)?;
                scan.image_bytes += key.len() + image.as_ref().map_or(0, |v| v.len()) + 64;
                scan.images.insert(key.clone(), image);
            }
        }
        // Still under the lock: the reader must not see half a batch.
        write(changes)
    }
}

impl ScanReader {
    /// The next entries, ascending; empty at the end.
    pub(crate) fn next_chunk(&mut self) -> sled::Result<Vec<StoredPair>> {
        let mut out = Vec::with_capacity(CHUNK);
        while out.is_empty() && !self.done {
            let mut guard = self.slot.scan.lock();
            let Some(scan) = guard.as_mut() else { break };
            let end = keys::rows_end(scan.rows.generation);
            let entries = scan.rows.tree.range(scan.cursor.as_slice()..end.as_slice()).take(CHUNK);
            let entries = entries.collect::<sled::Result<Vec<StoredPair>>>()?;
            let next = match entries.last() {
                // The smallest key behind the last one read.
                Some((key, _)) if entries.len() == CHUNK => [key.as_ref(), &[0]].concat(),
                _ => end,
            };
            self.done = entries.len() < CHUNK;
            merge(entries, scan.take_images(&next), &mut out);
            scan.cursor = next;
            if self.done {
                *guard = None;
            }
            self.slot.moved.notify_all();
        }
        Ok(out)
    }
}

impl Scan {
    /// The before-images up to `next`.
    fn take_images(&mut self, next: &[u8]) -> BTreeMap<IVec, Option<IVec>> {
        let passed = match self.images.range::<[u8], _>((Bound::Included(next), Bound::Unbounded)).next() {
            Some((first, _)) => {
                let first = first.clone();
                let later = self.images.split_off(&first);
                std::mem::replace(&mut self.images, later)
            }
            None => std::mem::take(&mut self.images),
        };
        for (key, image) in &passed {
            self.image_bytes -= key.len() + image.as_ref().map_or(0, |v| v.len()) + 64;
        }
        passed
    }
}

/// Entries with the images in their place.
fn merge(entries: Vec<StoredPair>, images: BTreeMap<IVec, Option<IVec>>, out: &mut Vec<StoredPair>) {
    let mut images = images.into_iter().peekable();
    for (key, value) in entries {
        while let Some((gone, image)) = images.next_if(|(image, _)| *image < key) {
            out.extend(image.map(|image| (gone, image)));
        }
        match images.next_if(|(image, _)| *image == key) {
            Some((_, image)) => out.extend(image.map(|image| (key, image))),
            None => out.push((key, value)),
        }
    }
    out.extend(images.filter_map(|(key, image)| Some((key, image?))));
}

impl Drop for ScanReader {
    fn drop(&mut self) {
        // Once done, the slot may already be another scan's.
        if !self.done {
            *self.slot.scan.lock() = None;
            self.slot.moved.notify_all();
        }
    }
}
