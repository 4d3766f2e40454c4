//! The bytes of a snapshot, for whoever takes them away: newer snapshots may take its place meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::slice;
use crate::storage::durability::blocking;
use crate::storage::{SnapshotBody, StateSnapshot};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// A snapshot that stays readable as long as this lives.
#[derive(Clone, Debug)]
pub struct SnapshotReader {
    body: OpenBody,
    bytes: u64,
    at: u64,
}

#[derive(Clone, Debug)]
enum OpenBody {
    File(Arc<File>),
    Memory(Bytes),
}

impl SnapshotReader {
    pub async fn open(snapshot: &StateSnapshot) -> io::Result<Self> {
        let bytes = snapshot.bytes();
        let body = match snapshot.body.clone() {
            SnapshotBody::File { path, .. } => OpenBody::File(blocking(move || File::open(path).map(Arc::new)).await?),
            SnapshotBody::Memory(bytes) => OpenBody::Memory(bytes),
        };
        Ok(Self { body, bytes, at: 0 })
    }

    /// How many it has in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next ones; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let at = self.at;
        let len = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(PIECE);
        if len == 0 {
            return Ok(None);
        }
        let piece = match &self.body {
            OpenBody::Memory(bytes) => slice(bytes, at, len),
            OpenBody::File(file) => {
                let file = file.clone();
                blocking(move || {
                    let mut piece = BytesMut::zeroed(len);
                    file.read_exact_at(&mut piece, at)?;
                    Ok(piece.freeze())
                })
                .await?
            }
        };
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }
}
