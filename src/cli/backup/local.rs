//! A backup, and what follows it, as files of one folder, wherever they are kept.

use std::path::{Path, PathBuf};

use super::scratch::ScratchClaim;
use crate::backup::names::{BackupFolder, BackupName};
use crate::backup::store::BackupStore;
use crate::cli::{CliResult, CommandError};
use crate::ids::{LogIndex, UnixMs};

/// The end of a whole backup's name.
const BACKUP: &str = ".backup";

/// Which one is meant where a folder or a bucket was named: the newest of these.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Wanted<'a> {
    /// The cluster's name; `None`: of any.
    pub cluster: Option<&'a str>,
    pub until: UnixMs,
    pub entry: LogIndex,
}

impl Wanted<'_> {
    pub(super) const NEWEST: Self = Self { cluster: None, until: UnixMs(u64::MAX), entry: LogIndex(u64::MAX) };

    fn choose(self, folder: &BackupFolder) -> Option<BackupName> {
        match self.cluster {
            Some(cluster) => folder.newest_of(cluster, self.until, self.entry.get()).cloned(),
            None => folder.newest().cloned(),
        }
    }
}

/// While this lives, the files are there.
pub(in crate::cli) struct LocalBackup {
    pub file: PathBuf,
    /// Where it comes from, for people.
    pub shown: String,
    _fetched: Option<ScratchClaim>,
}

impl LocalBackup {
    /// Of a file, a folder, `s3://BUCKET/PREFIX` or a file there. What is in a bucket is put into a folder in `scratch`, or in
    /// that for temporary files.
    pub(in crate::cli) async fn open(place: &str, wanted: Wanted<'_>, scratch: Option<&Path>) -> CliResult<Self> {
        let is_url = place.contains("://");
        let (store, name) = match place.rsplit_once('/').filter(|(_, name)| is_url && name.ends_with(BACKUP)) {
            Some((store, name)) => {
                let unknown =
                    || CommandError::usage(format!("{name} is no name of a backup: name it as it was written"));
                (BackupStore::open(store)?, Some(BackupName::parse(name).ok_or_else(unknown)?))
            }
            None if is_url || Path::new(place).is_dir() => (BackupStore::open(place)?, None),
            None => return Ok(Self { file: place.into(), shown: place.to_owned(), _fetched: None }),
        };
        let folder = store.list().await?;
        let none = || CommandError::usage(format!("{} has no backup that is meant", store.shown("")));
        let name = name.or_else(|| wanted.choose(&folder)).ok_or_else(none)?;
        Self::of(&store, &folder, &name, scratch).await
    }

    pub(super) async fn of(
        store: &BackupStore,
        folder: &BackupFolder,
        name: &BackupName,
        scratch: Option<&Path>,
    ) -> CliResult<Self> {
        let shown = store.shown(&name.file());
        if let BackupStore::Folder(dir) = store {
            return Ok(Self { file: dir.join(name.file()), shown, _fetched: None });
        }
        let temporary = std::env::temp_dir();
        let fetched = ScratchClaim::make(scratch.unwrap_or(&temporary))?;
        let file = store.read(&name.file(), fetched.path()?, None).await?;
        let chain = folder.after(&name.prefix, name.entry);
        let end = chain.last().map_or(name.entry, |segment| segment.last);
        // What is behind a hole is there to be missed.
        let hole = folder.hole_after(&name.prefix, end);
        let behind = folder.segments.iter().find(|one| one.prefix == name.prefix && Some(one.first) == hole);
        for segment in chain.into_iter().chain(behind) {
            store.read(&segment.file(), fetched.path()?, None).await?;
        }
        Ok(Self { file, shown, _fetched: Some(fetched) })
    }
}
