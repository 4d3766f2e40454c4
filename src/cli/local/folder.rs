//! A fresh folder among the system's temporary ones.

use std::fs;
use std::path::PathBuf;

use crate::cli::{CliResult, CommandError};

pub(crate) struct TempFolder {
    pub path: PathBuf,
}

impl TempFolder {
    pub(crate) fn make(what: &str) -> CliResult<Self> {
        let name = format!("tillsync-{what}-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|e| CommandError::new(format!("{}: {e}", path.display())))?;
        Ok(Self { path })
    }

    pub(crate) fn remove(&self) {
        if let Err(e) = fs::remove_dir_all(&self.path) {
            note!("{} could not be removed: {e}", self.path.display());
        }
    }
}
