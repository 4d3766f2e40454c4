//! The proof that a backup can be restored: it is restored for a moment, with what follows it.

use std::path::Path;

use super::contents::{failed, whole};
use super::local::LocalBackup;
use super::scratch::ScratchClaim;
use crate::cli::CliResult;
use crate::cli::restore::restored_in;
use crate::consensus::recovery::RestorePoint;
use crate::proto::{Applied, Meta};
use crate::storage::SnapshotContents;

/// What a backup holds, and how far it goes with what follows it.
pub(super) struct Proved {
    pub contents: SnapshotContents,
    pub applied: Applied,
    pub meta: Meta,
}

/// Restores it in a folder in `scratch`. Exit code 2: that could not be tried.
pub(super) async fn prove(backup: &LocalBackup, scratch: &Path) -> CliResult<Proved> {
    let contents = whole(&backup.file).await?;
    let folder = ScratchClaim::make(scratch)?;
    let stopped = restored_in(folder.claim()?, &backup.file, &contents, None, RestorePoint::End).await?;
    let (applied, meta) = stopped.reached();
    stopped.close().await.map_err(failed(folder.path()?))?;
    Ok(Proved { contents, applied, meta })
}
