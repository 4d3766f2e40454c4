//! The state machine that openraft sees, over [`Replica`] and [`SnapshotStore`].

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::codec::{decode_log_id, decode_stored_membership, encode_log_id, encode_stored_membership};
use super::replica::Replica;
use super::types::{Entry, LogId, Outcomes, SnapshotMeta, StoredMembership, TypeConfig};
use crate::ids::{LogIndex, RaftTerm};
use crate::model::state::Position;
use crate::proto::{Applied, Outcome};
use crate::storage::{Backpressure, SnapshotStore, StateSnapshot};

type BuiltSnapshot = openraft::alias::SnapshotOf<TypeConfig, StateSnapshot>;

/// What was applied last, as openraft wants to know it.
pub(crate) fn decode_applied(applied: &Applied) -> io::Result<(Option<LogId>, StoredMembership)> {
    let membership = decode_stored_membership(&applied.membership)?;
    if applied.last_log_id.is_empty() {
        return Ok((None, membership));
    }
    Ok((Some(decode_log_id(&applied.last_log_id)?), membership))
}

fn with_meta(snapshot: StateSnapshot) -> io::Result<BuiltSnapshot> {
    let (last_log_id, last_membership) = decode_applied(&snapshot.applied)?;
    Ok(BuiltSnapshot { meta: SnapshotMeta { last_log_id, last_membership }, snapshot })
}

/// The openraft that runs over it.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

#[derive(Clone)]
pub struct StateMachine {
    replica: Arc<Replica>,
    snapshots: Arc<dyn SnapshotStore>,
    pressure: Arc<dyn Backpressure>,
}

impl StateMachine {
    pub fn new(replica: Arc<Replica>, snapshots: Arc<dyn SnapshotStore>, pressure: Arc<dyn Backpressure>) -> Self {
        Self { replica, snapshots, pressure }
    }
}

impl StateMachine {
    pub(super) async fn apply_entry(&self, entry: Entry) -> io::Result<Vec<Outcome>> {
        self.pressure.ready().await?;
        let at = Position {
            index: LogIndex(entry.log_id.index),
            log_id: encode_log_id(&entry.log_id),
            term: RaftTerm(entry.log_id.leader_id.term),
        };
        match entry.payload {
            EntryPayload::Normal(batch) => return self.replica.apply(at, batch.0).await.map_err(io::Error::other),
            EntryPayload::Blank => self.replica.apply_other(at, None),
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership);
                self.replica.apply_other(at, Some(encode_stored_membership(&stored)?));
            }
        }
        Ok(Vec::new())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = StateSnapshot;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        decode_applied(&self.replica.applied())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            // A panic would end only this task and leave a node that looks alive: make it an error, which
            // ends the node.
            let applied = AssertUnwindSafe(self.apply_entry(entry)).catch_unwind().await;
            let outcomes = applied.unwrap_or_else(|_| Err(io::Error::other("applying an entry panicked")))?;
            if let Some(responder) = responder {
                responder.send(Outcomes(outcomes));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: StateSnapshot) -> Result<(), io::Error> {
        let (last_log_id, _) = decode_applied(&snapshot.applied)?;
        if last_log_id != meta.last_log_id {
            let message = format!("the snapshot holds {last_log_id:?}, its header says {:?}", meta.last_log_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.snapshots.install(snapshot).await?;
        self.replica.reload().await.map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<BuiltSnapshot>, io::Error> {
        self.snapshots.current().map(with_meta).transpose()
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = StateSnapshot;

    async fn build_snapshot(&mut self) -> Result<BuiltSnapshot, io::Error> {
        with_meta(self.snapshots.build().await?)
    }
}
