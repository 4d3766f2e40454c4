//! What a snapshot in a file holds, for an operator who has the file alone.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use super::file::SnapshotRows;
use crate::model::tables::{RowKey, decode};
use crate::proto::{Applied, Meta};

/// What was found in a whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotContents {
    pub applied: Applied,
    /// The name of the cluster, its epoch, how far it had come and when.
    pub meta: Meta,
    pub rows: u64,
    pub bytes: u64,
}

/// What a file says that it is of, without a look at the rest. Blocks on the disk.
pub fn read_header(path: &Path) -> io::Result<Applied> {
    SnapshotRows::new(BufReader::new(File::open(path)?)).map(|rows| rows.applied)
}

/// Reads all of a file: an error if anything in it is not as it was written. Blocks on the disk.
pub fn read_contents(path: &Path) -> io::Result<SnapshotContents> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut input = SnapshotRows::new(BufReader::with_capacity(1 << 20, file))?;
    let (mut meta, mut rows) = (None, 0);
    while let Some((key, value)) = input.next_row()? {
        rows += 1;
        if key == RowKey::Meta {
            let decoded = decode::<Meta>(&key, value);
            meta = Some(decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?);
        }
    }
    let without = || io::Error::new(io::ErrorKind::InvalidData, "it holds nothing of a cluster");
    Ok(SnapshotContents { applied: input.applied, meta: meta.ok_or_else(without)?, rows, bytes })
}
