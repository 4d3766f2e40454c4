//! What a backup holds, in words.

use std::fs;
use std::path::Path;

use crate::cli::{CliResult, CommandError};
use crate::ids::UnixMs;
use crate::model::time::iso;
use crate::proto::{Applied, Meta};
use crate::storage::{SnapshotContents, read_contents};

/// What a file holds, if it is whole.
pub(in crate::cli) async fn whole(file: &Path) -> CliResult<SnapshotContents> {
    let kind = fs::metadata(file).map_err(|error| CommandError::usage(format!("{}: {error}", file.display())))?;
    if !kind.is_file() {
        return Err(CommandError::usage(format!("{} is no file", file.display())));
    }
    let path = file.to_path_buf();
    let read = tokio::task::spawn_blocking(move || read_contents(&path)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| CommandError::new(format!("{} is no whole backup: {error}", file.display())))
}

pub(super) fn told(contents: &SnapshotContents) -> String {
    let SnapshotContents { applied, meta, rows, bytes } = contents;
    format!("{}: {rows} rows, {:.1} MB", moment(applied, meta), *bytes as f64 / 1e6)
}

/// How far a cluster had come.
pub(in crate::cli) fn moment(applied: &Applied, meta: &Meta) -> String {
    format!(
        "cluster {:?}, up to change {} of {} (log entry {}, digest {:016x}{:016x})",
        meta.cluster_id,
        meta.head_seq,
        iso(UnixMs(meta.now_ms)),
        applied.index,
        applied.digest_high,
        applied.digest_low
    )
}

pub(in crate::cli) fn failed(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    move |error| CommandError::new(format!("{}: {error}", path.display()))
}
