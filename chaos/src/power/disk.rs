//! A disk that forgets: what was written and not synced is gone after a power cut, or a part of it is.
//!
//! Every file and folder has two contents: `seen`, as programs see it, and `kept`, as the disk would have it if the
//! power went now and all that waits were lost. In between stand the changes that wait for a sync, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::mem;

use super::loss::Loss;
use crate::rng::Rng;

pub(super) type Ino = u64;
pub(super) type DirectoryNames = BTreeMap<OsString, Ino>;
/// What a call fails with, as in `errno`.
pub(super) type ErrnoCode = libc::c_int;

pub(super) const ROOT: Ino = 1;
/// A kernel does not let more than this wait: the oldest goes to the disk by itself.
const DIRTY: usize = 64 << 20;
const MAX_FILE: u64 = 1 << 30;

/// A change that waits for a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnsyncedWrite {
    Write {
        ino: Ino,
        at: u64,
        bytes: Vec<u8>,
    },
    /// The file ends here: what was behind is gone, what was not there yet is zero.
    Size {
        ino: Ino,
        len: u64,
    },
    /// The file ends here, or further.
    Grow {
        ino: Ino,
        len: u64,
    },
    Link {
        folder: Ino,
        name: OsString,
        ino: Ino,
    },
    Unlink {
        folder: Ino,
        name: OsString,
    },
    Rename {
        from: (Ino, OsString),
        to: (Ino, OsString),
        ino: Ino,
    },
}

impl UnsyncedWrite {
    /// The file whose content it is about.
    pub(super) fn file(&self) -> Option<Ino> {
        match self {
            Self::Write { ino, .. } | Self::Size { ino, .. } | Self::Grow { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    fn is_in(&self, of: Ino) -> bool {
        match self {
            Self::Link { folder, .. } | Self::Unlink { folder, .. } => *folder == of,
            Self::Rename { from, to, .. } => from.0 == of || to.0 == of,
            _ => false,
        }
    }

    fn weight(&self) -> usize {
        64 + if let Self::Write { bytes, .. } = self { bytes.len() } else { 0 }
    }
}

enum Inode {
    File { seen: Vec<u8>, kept: Vec<u8> },
    Folder { seen: DirectoryNames, kept: DirectoryNames },
}

pub(super) struct ModelDisk {
    nodes: BTreeMap<Ino, Inode>,
    next: Ino,
    pending: VecDeque<(u64, UnsyncedWrite)>,
    pending_bytes: usize,
    /// The number of the newest change.
    newest: u64,
    /// Names reach the disk in their order, and with the sync of any file, as on journaling file systems. Without it
    /// nothing is sure of a name before its folder was synced, which is all that POSIX promises.
    journal: bool,
    /// Bytes in files, and how many there may be.
    used: u64,
    pub capacity: u64,
}

impl ModelDisk {
    pub(super) fn new(journal: bool) -> Self {
        let root = Inode::Folder { seen: DirectoryNames::new(), kept: DirectoryNames::new() };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            pending: VecDeque::new(),
            pending_bytes: 0,
            newest: 0,
            journal,
            used: 0,
            capacity: u64::MAX,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    fn names(&self, folder: Ino) -> Result<&DirectoryNames, ErrnoCode> {
        match self.nodes.get(&folder) {
            Some(Inode::Folder { seen, .. }) => Ok(seen),
            Some(Inode::File { .. }) => Err(libc::ENOTDIR),
            None => Err(libc::ENOENT),
        }
    }

    fn names_mut(&mut self, folder: Ino) -> Result<&mut DirectoryNames, ErrnoCode> {
        match self.nodes.get_mut(&folder) {
            Some(Inode::Folder { seen, .. }) => Ok(seen),
            Some(Inode::File { .. }) => Err(libc::ENOTDIR),
            None => Err(libc::ENOENT),
        }
    }

    fn content(&self, file: Ino) -> Result<&Vec<u8>, ErrnoCode> {
        match self.nodes.get(&file) {
            Some(Inode::File { seen, .. }) => Ok(seen),
            Some(Inode::Folder { .. }) => Err(libc::EISDIR),
            None => Err(libc::ENOENT),
        }
    }

    pub(super) fn find(&self, folder: Ino, name: &OsStr) -> Result<Ino, ErrnoCode> {
        self.names(folder)?.get(name).copied().ok_or(libc::ENOENT)
    }

    /// The length of a file; `None`: it is a folder.
    pub(super) fn len(&self, ino: Ino) -> Result<Option<u64>, ErrnoCode> {
        match self.nodes.get(&ino) {
            Some(Inode::File { seen, .. }) => Ok(Some(seen.len() as u64)),
            Some(Inode::Folder { .. }) => Ok(None),
            None => Err(libc::ENOENT),
        }
    }

    pub(super) fn list(&self, folder: Ino) -> Result<Vec<(OsString, Ino)>, ErrnoCode> {
        Ok(self.names(folder)?.iter().map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    pub(super) fn make(&mut self, folder: Ino, name: &OsStr, is_folder: bool) -> Result<Ino, ErrnoCode> {
        if self.names(folder)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        if self.used >= self.capacity {
            return Err(libc::ENOSPC);
        }
        let ino = self.next;
        self.next += 1;
        let node = match is_folder {
            true => Inode::Folder { seen: DirectoryNames::new(), kept: DirectoryNames::new() },
            false => Inode::File { seen: Vec::new(), kept: Vec::new() },
        };
        self.nodes.insert(ino, node);
        self.names_mut(folder)?.insert(name.to_owned(), ino);
        self.wait(UnsyncedWrite::Link { folder, name: name.to_owned(), ino });
        Ok(ino)
    }

    pub(super) fn remove(&mut self, folder: Ino, name: &OsStr, is_folder: bool) -> Result<(), ErrnoCode> {
        let ino = self.find(folder, name)?;
        match (is_folder, self.len(ino)?) {
            (true, Some(_)) => return Err(libc::ENOTDIR),
            (false, None) => return Err(libc::EISDIR),
            (true, None) if !self.names(ino)?.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.names_mut(folder)?.remove(name);
        self.used -= self.len(ino)?.unwrap_or(0);
        self.wait(UnsyncedWrite::Unlink { folder, name: name.to_owned() });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), ErrnoCode> {
        let ino = self.find(from.0, from.1)?;
        let replaced = self.names(to.0)?.get(to.1).copied().filter(|other| *other != ino);
        if let Some(other) = replaced {
            match self.len(other)? {
                Some(len) => self.used -= len,
                None if self.names(other)?.is_empty() => {}
                None => return Err(libc::ENOTEMPTY),
            }
        }
        self.names_mut(from.0)?.remove(from.1);
        self.names_mut(to.0)?.insert(to.1.to_owned(), ino);
        self.wait(UnsyncedWrite::Rename { from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()), ino });
        Ok(())
    }

    pub(super) fn read(&self, file: Ino, at: u64, len: usize) -> Result<Vec<u8>, ErrnoCode> {
        let content = self.content(file)?;
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        Ok(content[from..from.saturating_add(len).min(content.len())].to_vec())
    }

    /// How many bytes were written: fewer than given on a disk that becomes full.
    pub(super) fn write(&mut self, file: Ino, at: u64, bytes: &[u8]) -> Result<usize, ErrnoCode> {
        let len = self.content(file)?.len() as u64;
        let end = at.checked_add(bytes.len() as u64).filter(|end| *end <= MAX_FILE).ok_or(libc::EFBIG)?;
        let missing = end.saturating_sub(len).saturating_sub(self.capacity.saturating_sub(self.used));
        let fits = (bytes.len() as u64).saturating_sub(missing) as usize;
        if fits == 0 && !bytes.is_empty() {
            return Err(libc::ENOSPC);
        }
        let change = UnsyncedWrite::Write { ino: file, at, bytes: bytes[..fits].to_vec() };
        self.see(&change);
        self.wait(change);
        Ok(fits)
    }

    /// Cuts a file off, or makes it longer.
    pub(super) fn set_len(&mut self, file: Ino, len: u64) -> Result<(), ErrnoCode> {
        self.content(file)?;
        let change = UnsyncedWrite::Size { ino: file, len };
        self.resize(file, len, change)
    }

    /// Room up to here.
    pub(super) fn grow(&mut self, file: Ino, len: u64) -> Result<(), ErrnoCode> {
        let now = self.content(file)?.len() as u64;
        let change = UnsyncedWrite::Grow { ino: file, len };
        self.resize(file, len.max(now), change)
    }

    fn resize(&mut self, file: Ino, len: u64, change: UnsyncedWrite) -> Result<(), ErrnoCode> {
        if len > MAX_FILE {
            return Err(libc::EFBIG);
        }
        let now = self.content(file)?.len() as u64;
        if len.saturating_sub(now) > self.capacity.saturating_sub(self.used) {
            return Err(libc::ENOSPC);
        }
        self.see(&change);
        self.wait(change);
        Ok(())
    }

    fn see(&mut self, change: &UnsyncedWrite) {
        let Some(Inode::File { seen, .. }) = change.file().and_then(|ino| self.nodes.get_mut(&ino)) else { return };
        let before = seen.len() as u64;
        put(seen, change);
        self.used = self.used + seen.len() as u64 - before;
    }

    fn wait(&mut self, change: UnsyncedWrite) {
        self.newest += 1;
        self.pending_bytes += change.weight();
        self.pending.push_back((self.newest, change));
        while self.pending_bytes > DIRTY {
            let Some((_, oldest)) = self.pending.pop_front() else { break };
            self.pending_bytes -= oldest.weight();
            self.keep(&oldest);
        }
    }

    /// The number of the newest change: a sync that begins now covers up to here.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// A sync of a file or folder that began when `upto` was the newest change.
    pub(super) fn sync(&mut self, ino: Ino, upto: u64) {
        let journal = self.journal;
        let due = |change: &UnsyncedWrite| match change.file() {
            Some(file) => file == ino,
            None => journal || change.is_in(ino),
        };
        for change in self.take(upto, due) {
            self.keep(&change);
        }
    }

    /// A sync failed: what waited for it will never be on the disk, and programs still see it.
    pub(super) fn lose(&mut self, ino: Ino) {
        drop(self.take(self.newest, |change| change.file() == Some(ino)));
    }

    fn take(&mut self, upto: u64, due: impl Fn(&UnsyncedWrite) -> bool) -> Vec<UnsyncedWrite> {
        let mut taken = Vec::new();
        for (number, change) in mem::take(&mut self.pending) {
            if number <= upto && due(&change) {
                self.pending_bytes -= change.weight();
                taken.push(change);
            } else {
                self.pending.push_back((number, change));
            }
        }
        taken
    }

    fn keep(&mut self, change: &UnsyncedWrite) {
        match change {
            UnsyncedWrite::Write { ino, .. } | UnsyncedWrite::Size { ino, .. } | UnsyncedWrite::Grow { ino, .. } => {
                if let Some(Inode::File { kept, .. }) = self.nodes.get_mut(ino) {
                    put(kept, change);
                }
            }
            UnsyncedWrite::Link { folder, name, ino } => self.keep_name(*folder, name, Some(*ino)),
            UnsyncedWrite::Unlink { folder, name } => self.keep_name(*folder, name, None),
            UnsyncedWrite::Rename { from, to, ino } => {
                if self.kept(from.0).and_then(|names| names.get(&from.1)) == Some(ino) {
                    self.keep_name(from.0, &from.1, None);
                }
                self.keep_name(to.0, &to.1, Some(*ino));
            }
        }
    }

    fn kept(&mut self, folder: Ino) -> Option<&mut DirectoryNames> {
        match self.nodes.get_mut(&folder) {
            Some(Inode::Folder { kept, .. }) => Some(kept),
            _ => None,
        }
    }

    fn keep_name(&mut self, folder: Ino, name: &OsStr, ino: Option<Ino>) {
        let Some(kept) = self.kept(folder) else { return };
        match ino {
            Some(ino) => drop(kept.insert(name.to_owned(), ino)),
            None => drop(kept.remove(name)),
        }
    }

    /// The power goes, and comes back.
    pub(super) fn cut(&mut self, loss: Loss, rng: &mut Rng) {
        self.pending_bytes = 0;
        let pending = mem::take(&mut self.pending).into_iter().map(|(_, change)| change).collect();
        for change in loss.survivors(pending, self.journal, rng) {
            self.keep(&change);
        }
        self.used = 0;
        let reachable = self.reachable();
        self.nodes.retain(|ino, _| reachable.contains(ino));
        for node in self.nodes.values_mut() {
            match node {
                Inode::File { seen, kept } => {
                    seen.clone_from(kept);
                    self.used += seen.len() as u64;
                }
                Inode::Folder { seen, kept } => seen.clone_from(kept),
            }
        }
    }

    fn reachable(&self) -> BTreeSet<Ino> {
        let (mut found, mut open) = (BTreeSet::new(), vec![ROOT]);
        while let Some(ino) = open.pop() {
            if found.insert(ino)
                && let Some(Inode::Folder { kept, .. }) = self.nodes.get(&ino)
            {
                open.extend(kept.values());
            }
        }
        found
    }
}

/// Changes a file's content.
fn put(content: &mut Vec<u8>, change: &UnsyncedWrite) {
    match change {
        UnsyncedWrite::Write { at, bytes, .. } => {
            let at = *at as usize;
            let end = at + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[at..end].copy_from_slice(bytes);
        }
        UnsyncedWrite::Size { len, .. } => content.resize(*len as usize, 0),
        UnsyncedWrite::Grow { len, .. } => content.resize((*len as usize).max(content.len()), 0),
        UnsyncedWrite::Link { .. } | UnsyncedWrite::Unlink { .. } | UnsyncedWrite::Rename { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn made(disk: &mut ModelDisk, text: &str) -> Ino {
        disk.make(ROOT, name(text), false).unwrap()
    }

    fn cut(disk: &mut ModelDisk) {
        disk.cut(Loss::Whole, &mut Rng::new(1));
    }

    fn sync(disk: &mut ModelDisk, ino: Ino) {
        disk.sync(ino, disk.newest());
    }

    #[test]
    fn only_what_was_synced_is_there_after_a_cut() {
        let mut disk = ModelDisk::new(false);
        let file = made(&mut disk, "a");
        disk.write(file, 0, b"synced").unwrap();
        sync(&mut disk, file);
        sync(&mut disk, ROOT);
        disk.write(file, 2, b"XX and more").unwrap();
        assert_eq!(disk.read(file, 0, 100).unwrap(), b"syXX and more");
        cut(&mut disk);
        assert_eq!(disk.read(file, 0, 100).unwrap(), b"synced");
        assert_eq!(disk.used(), 6);
    }

    #[test]
    fn a_sync_covers_what_came_before_it_began() {
        let mut disk = ModelDisk::new(false);
        let file = made(&mut disk, "a");
        sync(&mut disk, ROOT);
        disk.write(file, 0, b"one").unwrap();
        let began = disk.newest();
        disk.write(file, 3, b"two").unwrap();
        disk.sync(file, began);
        cut(&mut disk);
        assert_eq!(disk.read(file, 0, 100).unwrap(), b"one");
    }

    #[test]
    fn a_name_needs_the_sync_of_its_folder_unless_there_is_a_journal() {
        for journal in [false, true] {
            let mut disk = ModelDisk::new(journal);
            let file = made(&mut disk, "a");
            disk.write(file, 0, b"x").unwrap();
            sync(&mut disk, file);
            cut(&mut disk);
            assert_eq!(disk.find(ROOT, name("a")).is_ok(), journal);
        }
    }

    #[test]
    fn a_rename_that_was_not_synced_leaves_the_old_name() {
        let mut disk = ModelDisk::new(false);
        let (old, new) = (made(&mut disk, "old"), made(&mut disk, "new"));
        disk.write(old, 0, b"old").unwrap();
        sync(&mut disk, old);
        sync(&mut disk, ROOT);
        disk.rename((ROOT, name("old")), (ROOT, name("new"))).unwrap();
        assert_eq!(disk.find(ROOT, name("new")), Ok(old));
        cut(&mut disk);
        assert_eq!((disk.find(ROOT, name("old")), disk.find(ROOT, name("new"))), (Ok(old), Ok(new)));
        disk.rename((ROOT, name("old")), (ROOT, name("new"))).unwrap();
        sync(&mut disk, ROOT);
        cut(&mut disk);
        assert_eq!((disk.find(ROOT, name("old")), disk.find(ROOT, name("new"))), (Err(libc::ENOENT), Ok(old)));
    }

    #[test]
    fn what_a_failed_sync_dropped_is_seen_until_the_power_goes() {
        let mut disk = ModelDisk::new(false);
        let file = made(&mut disk, "a");
        sync(&mut disk, ROOT);
        disk.write(file, 0, b"x").unwrap();
        disk.lose(file);
        sync(&mut disk, file);
        assert_eq!(disk.read(file, 0, 9).unwrap(), b"x");
        cut(&mut disk);
        assert_eq!(disk.read(file, 0, 9).unwrap(), b"");
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_gives_back_what_is_removed() {
        let mut disk = ModelDisk::new(false);
        let (a, b) = (made(&mut disk, "a"), made(&mut disk, "b"));
        disk.capacity = 10;
        assert_eq!(disk.write(a, 0, &[1; 8]), Ok(8));
        assert_eq!(disk.write(b, 0, &[2; 8]), Ok(2));
        assert_eq!(disk.write(b, 2, &[2; 8]), Err(libc::ENOSPC));
        assert_eq!(disk.write(a, 0, &[3; 8]), Ok(8), "what is there can be written over");
        assert_eq!(disk.grow(b, 5), Err(libc::ENOSPC));
        disk.remove(ROOT, name("a"), false).unwrap();
        assert_eq!(disk.write(b, 2, &[2; 8]), Ok(8));
        disk.set_len(b, 1).unwrap();
        assert_eq!(disk.used(), 1);
    }
}
