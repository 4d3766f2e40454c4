//! Folders for a moment, of this process alone.

use std::fs;
use std::path::Path;

use crate::cli::{CliResult, CommandError};
use crate::consensus::runtime::random;
use crate::storage::RestoreClaim;
use crate::storage::room::{DiskRoom, megabytes};

/// What their names begin with.
const SCRATCH: &str = ".tillsync-verify-";

/// It is removed with all that is in it when this is dropped.
pub(in crate::cli) struct ScratchClaim {
    claim: Option<RestoreClaim>,
}

impl ScratchClaim {
    /// A new one in `dir`. What processes that were killed left there is removed.
    pub(in crate::cli) fn make(dir: &Path) -> CliResult<Self> {
        let unusable = |why: String| {
            CommandError::usage(format!("{why}: nothing was done; --scratch names another folder for the moment"))
        };
        let left = fs::read_dir(dir).map_err(|error| unusable(format!("{}: {error}", dir.display())))?;
        for entry in
            left.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH))
        {
            // One that runs keeps its own.
            if let Ok(claim) = RestoreClaim::take(&entry.path()) {
                claim.give_up();
            }
        }
        // A name that nobody else can have made there before.
        let own = dir.join(format!("{SCRATCH}{}-{:016x}", std::process::id(), random()));
        let claim = RestoreClaim::take(&own).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { claim: Some(claim) })
    }

    pub(in crate::cli) fn claim(&self) -> CliResult<&RestoreClaim> {
        self.claim.as_ref().ok_or_else(|| CommandError::new("the folder for the moment is gone"))
    }

    pub(in crate::cli) fn path(&self) -> CliResult<&Path> {
        self.claim().map(RestoreClaim::dir)
    }
}

impl Drop for ScratchClaim {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            claim.give_up();
        }
    }
}

/// Fails where so many bytes would leave less than `leave` on a folder's disk.
pub(super) fn must_hold(dir: &Path, bytes: u64, leave: u64) -> CliResult {
    let free = DiskRoom::of(dir, Default::default()).measure().free;
    if free >= bytes.saturating_add(leave) {
        return Ok(());
    }
    let (place, needed, left, free) = (dir.display(), megabytes(bytes), megabytes(leave), megabytes(free));
    let why = format!("{place} has {free} MiB free: {needed} MiB are needed for a moment, and {left} have to be left");
    Err(CommandError::usage(why))
}
