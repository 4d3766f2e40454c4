//! The entry that is being applied: where its rows go, what it has written and said so far, and what its present
//! command carries for all that comes of it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use super::effect::Effect;
use super::tables::{RowKey, Tables, TablesError, TablesRead, get_row};
use crate::ids::{PendingElectionId, RaftTerm, UnixMs};
use crate::proto::{Applied, Change, Principal};

pub(super) struct Txn {
    tables: Box<dyn Tables>,
    hash: Xxh3,
    key: Vec<u8>,
    effects: Vec<Effect>,
    /// Changes that are not in a row yet, and their bytes.
    pub block: Vec<Arc<Change>>,
    pub block_bytes: usize,
    /// The present command's own time.
    pub at_ms: UnixMs,
    /// The entry's Raft term.
    pub term: RaftTerm,
    /// The election that the present command waits for.
    pub pending_election: PendingElectionId,
    /// The present command's time as its client sent it, for the change that it makes.
    pub timestamp_as_sent: String,
    /// Whose token asked for the present command.
    pub principal: Option<Principal>,
}

impl Txn {
    pub(super) fn new(tables: Box<dyn Tables>) -> Self {
        Self {
            tables,
            hash: Xxh3::default(),
            key: Vec::new(),
            effects: Vec::new(),
            block: Vec::new(),
            block_bytes: 0,
            at_ms: UnixMs(0),
            term: RaftTerm(0),
            pending_election: PendingElectionId(0),
            timestamp_as_sent: String::new(),
            principal: None,
        }
    }

    /// Ends the entry, and everything that is known of it: the hash over its rows, and what the sessions are sent.
    pub(super) fn finish(&mut self) -> (Xxh3, Vec<Effect>) {
        self.key.clear();
        self.block.clear();
        (self.block_bytes, self.at_ms, self.term, self.pending_election) =
            (0, UnixMs(0), RaftTerm(0), PendingElectionId(0));
        self.timestamp_as_sent.clear();
        self.principal = None;
        (std::mem::take(&mut self.hash), std::mem::take(&mut self.effects))
    }

    /// The rows of a finished entry leave as one atomic write.
    pub(super) fn commit(&mut self, applied: Applied) {
        self.tables.commit(applied);
    }

    pub(super) fn applied(&self) -> Applied {
        self.tables.applied()
    }

    /// A reader of rows for other threads.
    pub(super) fn reader(&self) -> Arc<dyn TablesRead> {
        self.tables.reader()
    }

    pub(super) fn rows(&self) -> &dyn TablesRead {
        &*self.tables
    }

    pub(super) fn row<M: Message + Default>(&self, key: &RowKey) -> Result<Option<M>, TablesError> {
        get_row(&*self.tables, key)
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn effects_so_far(&self) -> usize {
        self.effects.len()
    }

    /// An effect that comes before some that were said already.
    pub(super) fn effect_at(&mut self, at: usize, effect: Effect) {
        self.effects.insert(at, effect);
    }

    pub(super) fn put<M: Message>(&mut self, key: RowKey, row: &M) {
        self.put_encoded(key, Bytes::from(row.encode_to_vec()));
    }

    /// A row that the digest does not count: versions before do not write it, and their states are the same in all else.
    pub(super) fn put_uncounted<M: Message>(&mut self, key: RowKey, row: &M) {
        self.tables.put(key, Bytes::from(row.encode_to_vec()));
    }

    pub(super) fn put_encoded(&mut self, key: RowKey, value: Bytes) {
        self.key.clear();
        key.canonical(&mut self.key);
        self.hash.update(&(self.key.len() as u32).to_be_bytes());
        self.hash.update(&self.key);
        self.hash.update(&(value.len() as u32 + 1).to_be_bytes());
        self.hash.update(&value);
        self.tables.put(key, value);
    }

    pub(super) fn delete(&mut self, key: RowKey) {
        self.key.clear();
        key.canonical(&mut self.key);
        self.hash.update(&(self.key.len() as u32).to_be_bytes());
        self.hash.update(&self.key);
        self.hash.update(&0u32.to_be_bytes());
        self.tables.delete(key);
    }
}
