//! This node's copy of the state: written only by apply, read by everything above.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, watch};

use super::digests::DigestRing;
use crate::ids::LogIndex;
use crate::limits;
use crate::metrics;
use crate::model::effect::{Effect, Effects};
use crate::model::error::{Code, Error};
use crate::model::state::{Position, State, decode_batch};
use crate::model::tables::{RowKey, TablesError, TablesRead};
use crate::proto::command::Intent;
use crate::proto::{Applied, Batch, Command, Outcome};

/// Entries whose effects the hub has not taken yet; apply waits when it is full.
const EFFECTS_QUEUE: usize = 4_096;

pub struct Replica {
    state: RwLock<State>,
    reader: Arc<dyn TablesRead>,
    applied: watch::Sender<LogIndex>,
    coordinator_epoch: watch::Sender<u64>,
    effects: mpsc::Sender<Effects>,
    digests: DigestRing,
    /// How often the whole state was replaced.
    reloads: AtomicU64,
}

impl Replica {
    /// The replica, and the effects of everything that it applies from now on, in order.
    pub fn new(state: State) -> (Arc<Self>, mpsc::Receiver<Effects>) {
        let (effects, receiver) = mpsc::channel(EFFECTS_QUEUE);
        let reader = state.reader();
        let applied = watch::Sender::new(LogIndex(state.applied().index));
        let coordinator_epoch = watch::Sender::new(state.coordinator_epoch());
        let digests = DigestRing::default();
        if !state.applied().last_log_id.is_empty() {
            let (index, digest) = state.digest_at();
            digests.restart(index, digest);
        }
        let reloads = AtomicU64::new(0);
        let state = RwLock::new(state);
        (Arc::new(Self { state, reader, applied, coordinator_epoch, effects, digests, reloads }), receiver)
    }

    /// The state in memory. Hold it for lookups only: apply waits meanwhile, and no await may happen under it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Reads rows that may be on disk, off the async runtime.
    pub async fn read_rows<T, F>(&self, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn TablesRead) -> Result<T, TablesError> + Send + 'static,
    {
        let reader = self.reader.clone();
        let outcome = if reader.in_memory() {
            read(&*reader)
        } else {
            let read = move || {
                let outcome = read(&*reader);
                reader.end_read();
                outcome
            };
            match tokio::task::spawn_blocking(read).await {
                Ok(outcome) => outcome,
                Err(_) => return Err(Error::new(Code::Unavailable, "the node is shutting down")),
            }
        };
        outcome.map_err(|error| {
            tracing::error!(%error, "reading rows failed");
            Error::new(Code::Storage, "the node could not read its storage")
        })
    }

    /// Digests of the entries that were applied last.
    pub fn digests(&self) -> &DigestRing {
        &self.digests
    }

    /// Grows when the whole state is replaced by an installed snapshot.
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::SeqCst)
    }

    /// The greatest applied index.
    pub fn applied_index(&self) -> LogIndex {
        *self.applied.borrow()
    }

    /// Resolves when `index` is applied here.
    pub async fn wait_applied(&self, index: LogIndex) {
        if self.applied_index() >= index {
            return;
        }
        let mut applied = self.applied.subscribe();
        // The sender lives as long as this replica, so the wait cannot fail.
        let _ = applied.wait_for(|at| *at >= index).await;
    }

    /// Applied indexes as they come.
    pub fn watch_applied(&self) -> watch::Receiver<LogIndex> {
        self.applied.subscribe()
    }

    /// News for coordinators, and for whoever waits for an election: seldom, whatever is written.
    pub fn watch_coordinator_epoch(&self) -> watch::Receiver<u64> {
        self.coordinator_epoch.subscribe()
    }

    fn publish_coordinator_epoch(&self, coordinator_epoch: u64) {
        self.coordinator_epoch.send_if_modified(|last| std::mem::replace(last, coordinator_epoch) != coordinator_epoch);
    }

    pub fn applied(&self) -> Applied {
        self.state.read().applied()
    }

    /// Applies one entry's batch of commands. Called by consensus only, in log order.
    pub async fn apply(&self, at: Position, batch: Bytes) -> Result<Vec<Outcome>, TablesError> {
        let index = at.index;
        let empty = batch.is_empty();
        let batch = decode_batch(batch);
        if batch.commands.is_empty() && !empty {
            tracing::error!(
                index = index.get(),
                "an entry of the log holds no commands that can be read: it changes nothing"
            );
        }
        self.prefetch(&batch).await?;
        let (done, epoch, coordinator_epoch, (_, digest)) = {
            let mut state = self.state.write();
            (state.apply_batch(at, batch)?, state.meta().epoch, state.coordinator_epoch(), state.digest_at())
        };
        self.digests.push(index, digest);
        if !done.effects.is_empty() {
            // A closed hub means that the node is shutting down: the state is what counts.
            let _ = self.effects.send(Effects { index, epoch, effects: done.effects }).await;
        }
        metrics::APPLIED.add(done.outcomes.len() as u64);
        self.applied.send_replace(index);
        self.publish_coordinator_epoch(coordinator_epoch);
        Ok(done.outcomes)
    }

    /// Reads what a compaction will read, before the state is locked: the engine has it in memory then.
    async fn prefetch(&self, batch: &Batch) -> Result<(), TablesError> {
        let compacts = |command: &Command| matches!(command.intent, Some(Intent::Compact(_)));
        if self.reader.in_memory() || !batch.commands.iter().any(compacts) {
            return Ok(());
        }
        let from = self.state().meta().compacted_seq + 1;
        let reader = self.reader.clone();
        let to = from + limits::COMPACT_STEP;
        let read =
            move || reader.range(&RowKey::Changes(from), &RowKey::Changes(to), limits::COMPACT_STEP as usize, false);
        // Without a runtime that takes it, apply reads for itself.
        tokio::task::spawn_blocking(read).await.map_or(Ok(()), |rows| rows.map(drop))
    }

    /// Applies an entry that carries no commands: a blank one, or a membership.
    pub fn apply_other(&self, at: Position, membership: Option<Bytes>) {
        let index = at.index;
        let (coordinator_epoch, (_, digest)) = {
            let mut state = self.state.write();
            state.apply_other(at, membership);
            (state.coordinator_epoch(), state.digest_at())
        };
        self.digests.push(index, digest);
        self.applied.send_replace(index);
        self.publish_coordinator_epoch(coordinator_epoch);
    }

    /// The rows were replaced by an installed snapshot: read everything again. Sessions are told that they
    /// have missed something.
    pub async fn reload(&self) -> Result<(), TablesError> {
        let (index, head, epoch, coordinator_epoch) = {
            let mut state = self.state.write();
            if self.reader.in_memory() || Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread {
                state.reload()?;
            } else {
                // This takes as long as the disk does: let this thread's tasks move elsewhere.
                tokio::task::block_in_place(|| state.reload())?;
            }
            let (index, digest) = state.digest_at();
            self.digests.restart(index, digest);
            self.reloads.fetch_add(1, Ordering::SeqCst);
            let meta = state.meta();
            (index, meta.head(), meta.epoch, state.coordinator_epoch())
        };
        // A closed hub means that the node is shutting down: the state is what counts.
        let _ = self.effects.send(Effects { index, epoch, effects: vec![Effect::Skipped { head }] }).await;
        self.applied.send_replace(index);
        self.publish_coordinator_epoch(coordinator_epoch);
        Ok(())
    }
}
