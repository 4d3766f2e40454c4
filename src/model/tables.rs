//! The rows of the state, behind a small trait: typed keys, encoded values, ordered ranges.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;

use crate::ids::{AuditId, ConflictId, DeviceNumber, ElectionId, RecordId, TableId};
use crate::proto::Applied;

/// Where a row lives. The derived order is the order of ranges, and of the keys on disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// `proto::Meta`: the counters.
    Meta,
    /// `proto::Device` by its id.
    Device(String),
    /// `proto::SyncState` by its device's id.
    SyncState(String),
    /// `proto::TableName` by its number.
    Table(TableId),
    /// `proto::Record`.
    Record { table: TableId, id: RecordId },
    /// `proto::ChangeBlock` by the seq of its first change. Read changes with [`super::read`].
    Changes(u64),
    /// `proto::Election` by its id.
    Election(ElectionId),
    /// `proto::Audit` by its id.
    Audit(AuditId),
    /// `proto::Conflict` by its id.
    Conflict(ConflictId),
    /// `proto::AnsweredGroup`, numbered.
    Answered(u64),
    /// `proto::Requested`: a slot of a device's ring of answered `request_id`s.
    Requested { device: DeviceNumber, slot: u32 },
    /// `proto::Revoked` by the token's id.
    Revoked(String),
    /// `proto::Queue` of a device, by the queue's id.
    Queue { device: DeviceNumber, queue: String },
    /// `proto::ClassAccess` by the class's number.
    Access(u32),
    /// `proto::DeviceGate` by the device's id.
    DeviceGate(String),
    /// `proto::Pairing` by its code.
    Pairing(String),
    /// `proto::Forgotten` by the device's id.
    Forgotten(String),
    /// `proto::NodeBoots`.
    NodeBoots,
}

impl RowKey {
    /// A key after all others, as the end of open ranges.
    pub fn end() -> Self {
        Self::NodeBoots
    }

    /// A byte form that no other key has, the same in every build: what the digest is made of.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        let tag = |out: &mut Vec<u8>, tag: u8| out.push(tag);
        match self {
            Self::Meta => tag(out, 1),
            Self::Device(id) => {
                tag(out, 2);
                out.extend_from_slice(id.as_bytes());
            }
            Self::SyncState(id) => {
                tag(out, 3);
                out.extend_from_slice(id.as_bytes());
            }
            Self::Table(number) => {
                tag(out, 4);
                out.extend_from_slice(&number.get().to_be_bytes());
            }
            Self::Record { table, id } => {
                tag(out, 5);
                out.extend_from_slice(&table.get().to_be_bytes());
                out.extend_from_slice(&id.get().to_be_bytes());
            }
            Self::Changes(n) => {
                tag(out, 6);
                out.extend_from_slice(&n.to_be_bytes());
            }
            Self::Election(n) => {
                tag(out, 7);
                out.extend_from_slice(&n.get().to_be_bytes());
            }
            Self::Audit(n) => {
                tag(out, 8);
                out.extend_from_slice(&n.get().to_be_bytes());
            }
            Self::Conflict(n) => {
                tag(out, 9);
                out.extend_from_slice(&n.get().to_be_bytes());
            }
            Self::Answered(group) => {
                tag(out, 10);
                out.extend_from_slice(&group.to_be_bytes());
            }
            Self::Requested { device, slot } => {
                tag(out, 11);
                out.extend_from_slice(&device.get().to_be_bytes());
                out.extend_from_slice(&slot.to_be_bytes());
            }
            Self::Revoked(jti) => {
                tag(out, 12);
                out.extend_from_slice(jti.as_bytes());
            }
            Self::Queue { device, queue } => {
                tag(out, 13);
                out.extend_from_slice(&device.get().to_be_bytes());
                out.extend_from_slice(queue.as_bytes());
            }
            Self::Access(class) => {
                tag(out, 18);
                out.extend_from_slice(&class.to_be_bytes());
            }
            Self::DeviceGate(id) => {
                tag(out, 19);
                out.extend_from_slice(id.as_bytes());
            }
            Self::Pairing(code) => {
                tag(out, 20);
                out.extend_from_slice(code.as_bytes());
            }
            Self::Forgotten(id) => {
                tag(out, 21);
                out.extend_from_slice(id.as_bytes());
            }
            Self::NodeBoots => tag(out, 90),
        }
    }
}

/// A row could not be read. The node cannot go on: it must not guess.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TablesError {
    #[error("storage: {0}")]
    Storage(String),
    /// What is kept is not what was written.
    #[error("storage: {0}")]
    Damaged(String),
    #[error("row {0:?} does not decode")]
    Corrupt(RowKey),
    /// The cluster has gone on to a version of its log that came after this program.
    #[error(
        "the cluster's version is {found}, and this program knows up to {known}: install the program that the other nodes have"
    )]
    NewerVersion { found: u32, known: u32 },
}

/// Reading rows; safe to call while another thread applies. May block on a disk: never call it on the
/// async runtime's threads unless [`TablesRead::in_memory`].
pub trait TablesRead: Send + Sync {
    fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError>;

    /// At most `limit` rows with `from <= key <= to`, ascending, or descending if `reverse`.
    fn range(
        &self,
        from: &RowKey,
        to: &RowKey,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(RowKey, Bytes)>, TablesError>;

    /// Reads never touch a disk.
    fn in_memory(&self) -> bool {
        false
    }

    /// This thread has read what it wanted: what the engine keeps for it may go.
    fn end_read(&self) {}
}

/// The rows as `apply` sees them: what was put is read back at once, and leaves as one atomic write
/// with [`Tables::commit`].
pub trait Tables: TablesRead {
    fn put(&mut self, key: RowKey, value: Bytes);
    fn delete(&mut self, key: RowKey);

    /// Ends one apply: all puts and deletes since the last commit, and `applied`, become one atomic write.
    fn commit(&mut self, applied: Applied);

    /// What was applied when these tables were opened or last committed.
    fn applied(&self) -> Applied;

    /// A reader for other threads.
    fn reader(&self) -> Arc<dyn TablesRead>;
}

/// Decodes a row.
pub fn decode<M: Message + Default>(key: &RowKey, bytes: Bytes) -> Result<M, TablesError> {
    M::decode(bytes).map_err(|_| TablesError::Corrupt(key.clone()))
}

/// Reads and decodes a row.
pub fn get_row<M: Message + Default>(tables: &dyn TablesRead, key: &RowKey) -> Result<Option<M>, TablesError> {
    tables.get(key)?.map(|bytes| decode(key, bytes)).transpose()
}

/// The tables in memory: for tests and simulation. Clones share the rows.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    rows: Arc<RwLock<BTreeMap<RowKey, Bytes>>>,
    applied: Arc<RwLock<Applied>>,
}

impl MemoryTables {
    /// All rows, in order.
    pub fn rows(&self) -> BTreeMap<RowKey, Bytes> {
        self.rows.read().clone()
    }

    /// Puts other rows in place of all, for every clone and reader, as an installed snapshot does.
    pub fn replace(&self, rows: BTreeMap<RowKey, Bytes>, applied: Applied) {
        *self.rows.write() = rows;
        *self.applied.write() = applied;
    }
}

impl TablesRead for MemoryTables {
    fn get(&self, key: &RowKey) -> Result<Option<Bytes>, TablesError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn range(
        &self,
        from: &RowKey,
        to: &RowKey,
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<(RowKey, Bytes)>, TablesError> {
        if from > to {
            return Ok(Vec::new());
        }
        let rows = self.rows.read();
        let found = rows.range(from.clone()..=to.clone());
        let copy = |(k, v): (&RowKey, &Bytes)| (k.clone(), v.clone());
        Ok(if reverse { found.rev().take(limit).map(copy).collect() } else { found.take(limit).map(copy).collect() })
    }

    fn in_memory(&self) -> bool {
        true
    }
}

impl Tables for MemoryTables {
    fn put(&mut self, key: RowKey, value: Bytes) {
        self.rows.write().insert(key, value);
    }

    fn delete(&mut self, key: RowKey) {
        self.rows.write().remove(&key);
    }

    fn commit(&mut self, applied: Applied) {
        *self.applied.write() = applied;
    }

    fn applied(&self) -> Applied {
        self.applied.read().clone()
    }

    fn reader(&self) -> Arc<dyn TablesRead> {
        Arc::new(self.clone())
    }
}
