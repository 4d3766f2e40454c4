//! Snapshots in memory, in the same bytes as in files.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::log::MemoryLogState;
use crate::model::tables::{MemoryTables, Tables};
use crate::storage::durability::poison::closed;
use crate::storage::snapshot::file::{SnapshotRows, SnapshotWriter};
use crate::storage::snapshot::receiver::check_offset;
use crate::storage::snapshot::slice;
use crate::storage::{BoxFuture, SnapshotBody, SnapshotReceiver, SnapshotStore, StateSnapshot};

/// All rows that these tables hold.
pub(crate) fn snapshot_of(rows: &MemoryTables) -> io::Result<StateSnapshot> {
    let applied = rows.applied();
    let mut out = SnapshotWriter::new(Vec::new(), &applied)?;
    for (key, value) in rows.rows() {
        out.row(&key, &value)?;
    }
    let (bytes, _) = out.finish()?;
    Ok(StateSnapshot { applied, body: SnapshotBody::Memory(bytes.into()) })
}

pub(super) struct MemorySnapshots {
    pub disk: Arc<Mutex<MemoryLogState>>,
    pub session: u64,
}

impl MemorySnapshots {
    fn build_now(&self) -> io::Result<StateSnapshot> {
        let mut disk = self.disk.lock();
        if disk.opened != self.session {
            return Err(closed());
        }
        disk.rows = disk.copy_rows();
        let snapshot = snapshot_of(&disk.rows)?;
        disk.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }

    fn install_now(&self, snapshot: StateSnapshot) -> io::Result<()> {
        let SnapshotBody::Memory(bytes) = &snapshot.body else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a snapshot in a file, for rows in memory"));
        };
        let mut input = SnapshotRows::new(&bytes[..])?;
        let mut rows = BTreeMap::new();
        while let Some((key, value)) = input.next_row()? {
            rows.insert(key, value);
        }
        let mut disk = self.disk.lock();
        if disk.opened != self.session {
            return Err(closed());
        }
        disk.tables.replace(rows, input.applied);
        disk.rows = disk.copy_rows();
        disk.snapshot = Some(snapshot);
        Ok(())
    }
}

impl SnapshotStore for MemorySnapshots {
    fn build(&self) -> BoxFuture<'_, io::Result<StateSnapshot>> {
        Box::pin(std::future::ready(self.build_now()))
    }

    fn current(&self) -> Option<StateSnapshot> {
        self.disk.lock().snapshot.clone()
    }

    fn read_chunk(&self, snapshot: &StateSnapshot, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let chunk = match &snapshot.body {
            SnapshotBody::Memory(bytes) => Ok(slice(bytes, offset, len)),
            SnapshotBody::File { .. } => Err(io::Error::new(io::ErrorKind::InvalidInput, "a snapshot in a file")),
        };
        Box::pin(std::future::ready(chunk))
    }

    fn receive(&self) -> BoxFuture<'_, io::Result<Box<dyn SnapshotReceiver>>> {
        Box::pin(std::future::ready(Ok(Box::new(MemoryReceiver(BytesMut::new())) as Box<dyn SnapshotReceiver>)))
    }

    fn install(&self, snapshot: StateSnapshot) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(self.install_now(snapshot)))
    }
}

struct MemoryReceiver(BytesMut);

impl SnapshotReceiver for MemoryReceiver {
    fn write(&mut self, offset: u64, data: Bytes) -> BoxFuture<'_, io::Result<()>> {
        let outcome = check_offset(self.0.len() as u64, offset);
        if outcome.is_ok() {
            self.0.extend_from_slice(&data);
        }
        Box::pin(std::future::ready(outcome))
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<StateSnapshot>> {
        let bytes = self.0.freeze();
        let applied = SnapshotRows::new(&bytes[..]).and_then(SnapshotRows::verify);
        let snapshot = applied.map(|applied| StateSnapshot { applied, body: SnapshotBody::Memory(bytes) });
        Box::pin(std::future::ready(snapshot))
    }
}
