//! A cluster of one without Raft: commands are applied at once. For tests of what stands above.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;

use crate::clock::SharedClock;
use crate::cluster::peers::shared_room::{NodeRoom, SharedRoom};
use crate::cluster::{Cluster, ClusterStatus, MembershipChange, MembershipChanged, NodeInfo};
use crate::consensus::replica::Replica;
use crate::consensus::segment::SegmentReader;
use crate::ids::{LogIndex, NodeId, RaftTerm};
use crate::model::effect::Effects;
use crate::model::error::{Code, Error};
use crate::model::state::{self, Position, State};
use crate::model::tables::{MemoryTables, TablesError};
use crate::model::version::Build;
use crate::proto::command::Intent;
use crate::proto::{
    Batch, ClusterFinalize, ClusterInit, Command, CommandId, LeaderAnnounced, NodeBoot, Outcome, Principal,
    StatusResponse,
};
use crate::storage::room::{DiskRoom, RoomState};
use crate::storage::{BoxFuture, SnapshotReader, memory};

/// Its one Raft term.
const TERM: RaftTerm = RaftTerm(1);

pub struct LocalCluster {
    clock: SharedClock,
    replica: Arc<Replica>,
    tables: MemoryTables,
    number: AtomicU64,
    room: SharedRoom,
    queue: mpsc::Sender<(Command, tokio::sync::oneshot::Sender<Result<Outcome, Error>>)>,
}

impl LocalCluster {
    /// An empty cluster of node 1, and the effects of what it applies. Needs a tokio runtime.
    pub async fn start(clock: SharedClock) -> Result<(Arc<Self>, mpsc::Receiver<Effects>), TablesError> {
        Self::in_room(clock, DiskRoom::unbounded()).await
    }

    /// The same with a disk that can be low or full.
    pub async fn in_room(
        clock: SharedClock,
        room: Arc<DiskRoom>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Effects>), TablesError> {
        let tables = MemoryTables::default();
        let (replica, effects) = Replica::new(State::open(Box::new(tables.clone()))?);
        let (queue, mut commands) = mpsc::channel::<(Command, tokio::sync::oneshot::Sender<_>)>(4_096);
        let applier = replica.clone();
        tokio::spawn(async move {
            let mut index = LogIndex(0);
            while let Some((command, answer)) = commands.recv().await {
                index = index.next();
                let batch = Bytes::from(Batch { commands: vec![command] }.encode_to_vec());
                let position = Position { index, log_id: Bytes::new(), term: TERM };
                let outcome = match applier.apply(position, batch).await {
                    Ok(mut outcomes) if outcomes.len() == 1 => state::into_result(outcomes.remove(0)),
                    _ => Err(Error::new(Code::Internal, "apply failed")),
                };
                let _ = answer.send(outcome);
            }
        });
        let cluster =
            Arc::new(Self { clock, replica, tables, number: AtomicU64::new(0), room: SharedRoom::new(room), queue });
        let init = Intent::ClusterInit(ClusterInit { cluster_id: "local".into(), epoch: 1 });
        let _ = cluster.propose(init).await;
        let _ = cluster.propose(Intent::LeaderAnnounced(LeaderAnnounced { raft_term: TERM.get() })).await;
        Ok((cluster, effects))
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Code::Storage, error.to_string())
}

impl LocalCluster {
    fn enqueue(&self, principal: Option<Principal>, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        crate::metrics::PROPOSED.add(1);
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        let command = Command {
            origin: Some(CommandId { node: 1, boot: 1, number }),
            at_ms: self.clock.now_ms().get(),
            intent: Some(intent),
            principal,
        };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let queued = self.queue.try_send((command, answer));
        Box::pin(async move {
            queued.map_err(|_| Error::new(Code::Unavailable, "too many requests are waiting"))?;
            answered.await.map_err(|_| Error::new(Code::Unavailable, "the node is shutting down"))?
        })
    }
}

impl Cluster for LocalCluster {
    fn node_id(&self) -> NodeId {
        NodeId(1)
    }

    fn clock(&self) -> &SharedClock {
        &self.clock
    }

    fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        self.enqueue(None, intent)
    }

    fn propose_for(&self, principal: Principal, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        self.enqueue(Some(principal), intent)
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn status(&self) -> ClusterStatus {
        ClusterStatus {
            leader: Some(NodeId(1)),
            leading: Some(TERM),
            term: TERM,
            quorum: true,
            voters: vec![NodeId(1)],
            ..ClusterStatus::default()
        }
    }

    fn room(&self) -> RoomState {
        let own = NodeRoom { node: NodeId(1), voter: true, reachable: true, free: self.room.own() };
        self.room.judge(&[own]);
        self.room.allowed()
    }

    fn room_reason(&self) -> Option<String> {
        self.room();
        self.room.why()
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let state = self.replica.state();
        let said = StatusResponse {
            node: 1,
            leader: Some(1),
            term: TERM.get(),
            applied_index: state.applied().index,
            digest: state.digest(),
            disk: self.room.own_status(),
            ..StatusResponse::default()
        };
        vec![NodeInfo {
            differs_from: None,
            clock_ahead_ms: Some(0),
            node: NodeId(1),
            voter: true,
            leads: true,
            raft: "local".into(),
            gateway: "local".into(),
            reachable: true,
            silent_for: Some(Duration::ZERO),
            latency: Some(Duration::ZERO),
            said: Some(said),
            lag: Some(0),
        }]
    }

    fn backup(&self) -> BoxFuture<'_, Result<SnapshotReader, Error>> {
        let snapshot = memory::snapshot_of(&self.tables);
        Box::pin(async move {
            let reader = SnapshotReader::open(&snapshot.map_err(failed)?).await;
            reader.map_err(failed)
        })
    }

    /// It keeps no log.
    fn backup_after(&self, after: LogIndex) -> BoxFuture<'_, Result<SegmentReader, Error>> {
        let epoch = self.replica.state().meta().epoch;
        let reader = match after {
            LogIndex(0) => Ok(SegmentReader::of_nothing(epoch)),
            _ => Err(Error::new(Code::InvalidData, format!("this node's log does not have entry {after}"))),
        };
        Box::pin(std::future::ready(reader))
    }

    /// It stays alone.
    fn change(
        &self,
        change: MembershipChange,
        by: Principal,
        _within: Duration,
    ) -> BoxFuture<'_, Result<MembershipChanged, Error>> {
        let version = Build::THIS.newest();
        let here = || Ok(MembershipChanged { node: NodeId(1), voters: vec![NodeId(1)], version });
        if change == MembershipChange::Finalize {
            if self.replica.state().cluster_version() >= version {
                let why = format!("the cluster's version is {version} already");
                return Box::pin(async { Err(Error::new(Code::RoleChange, why)) });
            }
            let programs = vec![NodeBoot { node: 1, ..NodeBoot::default() }];
            let finalize = ClusterFinalize { version, programs, by: by.sub };
            let proposed = self.propose(Intent::ClusterFinalize(finalize));
            let done = here();
            return Box::pin(async move {
                proposed.await?;
                done
            });
        }
        let answer = match change {
            MembershipChange::Finalize => here(),
            MembershipChange::Add { node, raft, .. } => {
                Err(Error::new(Code::PeerUnreachable, format!("node {node} cannot be reached at {raft}")))
            }
            MembershipChange::Remove { node: NodeId(1) } => {
                Err(Error::new(Code::RoleChange, "node 1 is the last voter: without it there is no cluster"))
            }
            MembershipChange::Transfer { to: NodeId(1) } | MembershipChange::Move { node: NodeId(1), .. } => here(),
            MembershipChange::Move { node, .. }
            | MembershipChange::Remove { node }
            | MembershipChange::Transfer { to: node } => {
                Err(Error::new(Code::InvalidData, format!("node {node} is not a node of this cluster")))
            }
        };
        Box::pin(async move { answer })
    }
}
