//! Where backups are kept: a folder, or a bucket of an object store.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::bucket::ObjectBucket;
use super::names::BackupFolder;

/// What a bucket's URL begins with.
const S3: &str = "s3://";

#[derive(Clone, Debug)]
pub(crate) enum BackupStore {
    Folder(PathBuf),
    Bucket(Box<ObjectBucket>),
}

/// An error with the path that it is about.
pub(crate) fn of_path(path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |error| StoreError::Failed(format!("{path}: {error}"))
}

impl BackupStore {
    /// A folder, or `s3://BUCKET/PREFIX` with what the environment says of the server.
    pub(crate) fn open(place: &str) -> Result<Self, StoreError> {
        if place.starts_with(S3) {
            let bucket = ObjectBucket::open(place, |name| std::env::var(name).ok())?;
            return Ok(Self::Bucket(Box::new(bucket)));
        }
        Ok(Self::Folder(place.into()))
    }

    /// A place in it, for people.
    pub(crate) fn shown(&self, name: &str) -> String {
        match self {
            Self::Folder(dir) => dir.join(name).display().to_string(),
            Self::Bucket(bucket) => bucket.shown(name),
        }
    }

    /// What is there. Blocks on the disk of a folder.
    pub(crate) async fn list(&self) -> Result<BackupFolder, StoreError> {
        match self {
            Self::Folder(dir) => BackupFolder::read(dir).map_err(of_path(dir)),
            Self::Bucket(bucket) => {
                let mut found = BackupFolder::default();
                bucket.list(|name| found.add(name)).await?;
                found.in_order();
                Ok(found)
            }
        }
    }

    /// Takes a file that is whole and synced under its name; a file of that name is replaced. It is there, also after a
    /// power cut, when this resolves, and the file that was given is gone. One for a folder has to be in it already.
    pub(crate) async fn take(&self, file: &Path, name: &str) -> Result<(), StoreError> {
        match self {
            Self::Folder(dir) => {
                let target = dir.join(name);
                fs::rename(file, &target).map_err(of_path(&target))?;
                File::open(dir).and_then(|dir| dir.sync_all()).map_err(of_path(dir))
            }
            Self::Bucket(bucket) => {
                bucket.put(file, name).await?;
                fs::remove_file(file).map_err(of_path(file))
            }
        }
    }

    /// How many bytes a file of it has.
    pub(crate) async fn bytes(&self, name: &str) -> Result<u64, StoreError> {
        match self {
            Self::Folder(dir) => {
                let file = dir.join(name);
                fs::metadata(&file).map(|found| found.len()).map_err(of_path(&file))
            }
            Self::Bucket(bucket) => bucket.bytes(name).await,
        }
    }

    /// A file of it where it can be read: its first `most` bytes at least. One of a bucket is put into `scratch`.
    pub(crate) async fn read(&self, name: &str, scratch: &Path, most: Option<u64>) -> Result<PathBuf, StoreError> {
        match self {
            Self::Folder(dir) => Ok(dir.join(name)),
            Self::Bucket(bucket) => {
                let to = scratch.join(name);
                bucket.fetch(name, &to, most).await?;
                Ok(to)
            }
        }
    }

    /// It is there no more, also if another one removed it.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self {
            Self::Folder(dir) => match fs::remove_file(dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(of_path(&dir.join(name))(error)),
                _ => Ok(()),
            },
            Self::Bucket(bucket) => bucket.remove(name).await,
        }
    }
}
