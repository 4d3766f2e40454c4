//! A data folder that is being restored: a locked file in it says so. Until that is gone the folder is opened by nobody else,
//! also when the restore was cut off.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::format::OpenError;
use crate::storage::durability::sync_dir;

const FILE: &str = "restoring";
/// A file system's own.
const OF_THE_DISK: &str = "lost+found";

pub(crate) fn is_there(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// The right to fill a folder. Dropped, the folder stays as it is, and is opened by nobody.
#[derive(Debug)]
pub struct RestoreClaim {
    dir: PathBuf,
    lock: File,
}

impl RestoreClaim {
    /// Of a folder that is not there, is empty, or was restored in part; what that left is removed.
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        let io = OpenError::io(dir);
        let claimed = || OpenError::Restoring { dir: dir.to_path_buf() };
        if dir.is_file() {
            return Err(OpenError::File { dir: dir.to_path_buf() });
        }
        fs::create_dir_all(dir).map_err(&io)?;
        let names = names(dir).map_err(&io)?;
        if !names.is_empty() && !names.iter().any(|name| name == FILE) {
            return Err(OpenError::NotEmpty { dir: dir.to_path_buf() });
        }
        let path = dir.join(FILE);
        let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(&io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(claimed()),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let claim = Self { dir: dir.to_path_buf(), lock };
        // Whoever had it may have ended, and taken the file away, between our open and our lock.
        match claim.is_mine(&path) {
            Ok(true) => {}
            Ok(false) => return Err(OpenError::NotEmpty { dir: dir.to_path_buf() }),
            Err(error) => return Err(io(error)),
        }
        claim.clear().and_then(|()| sync_dir(dir)).map_err(io)?;
        Ok(claim)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn is_mine(&self, path: &Path) -> io::Result<bool> {
        let opened = self.lock.metadata()?;
        match fs::metadata(path) {
            Ok(now) => Ok((now.dev(), now.ino()) == (opened.dev(), opened.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn clear(&self) -> io::Result<()> {
        for name in names(&self.dir)?.into_iter().filter(|name| name != FILE) {
            let path = self.dir.join(name);
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }

    /// The folder is whole and closed: from now on it is a node's.
    pub fn finish(self) -> io::Result<()> {
        fs::remove_file(self.dir.join(FILE))?;
        sync_dir(&self.dir)
    }

    /// Nothing came of it: the folder is empty again, or gone.
    pub fn give_up(self) {
        let removed = self.clear().and_then(|()| fs::remove_file(self.dir.join(FILE)));
        if let Err(error) = removed.and_then(|()| fs::remove_dir(&self.dir)) {
            // A mount point stays.
            tracing::debug!(%error, "the folder of a restore stays");
        }
    }
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let names: io::Result<Vec<OsString>> = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect();
    Ok(names?.into_iter().filter(|name| name != OF_THE_DISK).collect())
}
