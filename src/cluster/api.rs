//! The cluster as the gateway sees it: any node takes any request.

use std::sync::Arc;
use std::time::Duration;

use super::peers::compared_digests::DigestVerdict;
use crate::clock::SharedClock;
use crate::consensus::replica::Replica;
use crate::consensus::segment::SegmentReader;
use crate::ids::{LogIndex, NodeId, RaftTerm};
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::{BackupStatus, NodeBooted, Outcome, Principal, StatusResponse};
use crate::storage::room::RoomState;
use crate::storage::{BoxFuture, SnapshotReader};

/// Writes and reads on the cluster, wherever the leader is.
pub trait Cluster: Send + Sync + 'static {
    fn node_id(&self) -> NodeId;

    /// This start of the node, as the cluster is to know it.
    fn booted(&self) -> NodeBooted {
        NodeBooted::default()
    }

    /// Resolves when the node may take part: before that, a new one has no start to tell.
    fn admitted(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn clock(&self) -> &SharedClock;

    /// This node's copy of the state. Linearizable only after [`Cluster::read_barrier`].
    fn replica(&self) -> &Arc<Replica>;

    /// Stamps and queues a command. It is queued by this call itself, not by the first poll, so calls made one
    /// after the other are applied in that order. The future resolves when the command is committed and
    /// applied; a refusal by the state machine comes back as an `Err` with its code. It is retried with its
    /// identity across leader changes until the deadline (`request_timeout`, 5 s), then fails with 1001 (may
    /// have been applied) or 2005 (surely not).
    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>>;

    /// The same for whoever's token the gateway checked, so that the audit log can say who it was.
    fn propose_for(&self, _principal: Principal, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        self.propose(intent)
    }

    /// When it resolves, this node's replica has applied everything that any client anywhere was told was
    /// committed before the call.
    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>>;

    fn status(&self) -> ClusterStatus;

    /// Why this node serves nothing now, though it runs: its clock is wrong.
    fn objection(&self) -> Option<String> {
        None
    }

    /// Why this node takes no part in the cluster yet.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// What the room on the nodes' disks allows to write. Read for each write.
    fn room(&self) -> RoomState {
        RoomState::Plenty
    }

    /// Whose disks leave no more, for whoever is refused.
    fn room_reason(&self) -> Option<String> {
        None
    }

    /// Resolves with the next news, from this call on, about who leads, who is a member, and which peers can be
    /// reached.
    fn changed(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    /// Moves leadership to another node, if this one leads, and waits until it has arrived there.
    fn transfer(&self, to: NodeId, _within: Duration) -> BoxFuture<'static, Result<(), Error>> {
        let why = format!("node {to} is not a member");
        Box::pin(async move { Err(Error::new(Code::PeerUnreachable, why)) })
    }

    /// Every member, as far as this node knows.
    fn nodes(&self) -> Vec<NodeInfo>;

    /// Changes who belongs to the cluster or who leads it; resolves when that is done. `by` is who asked.
    fn change(
        &self,
        change: MembershipChange,
        by: Principal,
        within: Duration,
    ) -> BoxFuture<'_, Result<MembershipChanged, Error>>;

    /// All that this node has applied, to be taken away. It takes as long as the disk does.
    fn backup(&self) -> BoxFuture<'_, Result<SnapshotReader, Error>> {
        Box::pin(async { Err(Error::new(Code::Unavailable, "this cluster keeps no snapshots")) })
    }

    /// What this node has applied after the entry at `after`.
    fn backup_after(&self, _after: LogIndex) -> BoxFuture<'_, Result<SegmentReader, Error>> {
        Box::pin(async { Err(Error::new(Code::Unavailable, "this cluster keeps no log")) })
    }

    /// What the others are to know of the backups that this node takes by its settings.
    fn tell_backups(&self, _status: BackupStatus) {}

    /// How the node learns how many sessions it has; the first call counts.
    fn count_sessions(&self, _count: CountSessions) {}
}

pub type CountSessions = Box<dyn Fn() -> u64 + Send + Sync>;

/// A change of the members, or of who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    Add {
        node: NodeId,
        raft: String,
        gateway: String,
    },
    Remove {
        node: NodeId,
    },
    /// Its addresses are these from now on.
    Move {
        node: NodeId,
        raft: String,
        gateway: String,
    },
    Transfer {
        to: NodeId,
    },
    /// The cluster's version becomes the newest that the programs of all nodes know.
    Finalize,
}

impl MembershipChange {
    /// Whom it is about; `None`: all.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Add { node, .. } | Self::Move { node, .. } | Self::Remove { node } | Self::Transfer { to: node } => {
                Some(*node)
            }
            Self::Finalize => None,
        }
    }
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChanged {
    /// The node that was added, moved or removed, or that leads now.
    pub node: NodeId,
    pub voters: Vec<NodeId>,
    /// The cluster's version by now.
    pub version: u32,
}

/// One member as this node sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeInfo {
    pub node: NodeId,
    pub voter: bool,
    pub leads: bool,
    pub raft: String,
    pub gateway: String,
    pub reachable: bool,
    pub silent_for: Option<Duration>,
    pub latency: Option<Duration>,
    /// What it said of itself when it was asked last.
    pub said: Option<StatusResponse>,
    /// Entries that it had not applied then.
    pub lag: Option<u64>,
    /// The oldest log index at which its data is known to differ from this node's.
    pub differs_from: Option<LogIndex>,
    /// How far its clock is ahead of most of the voters', if it was compared. Milliseconds.
    pub clock_ahead_ms: Option<i64>,
}

pub type SharedCluster = Arc<dyn Cluster>;

/// The cluster as this node sees it now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterStatus {
    pub leader: Option<NodeId>,
    /// The Raft term in which this node leads.
    pub leading: Option<RaftTerm>,
    /// The Raft term.
    pub term: RaftTerm,
    pub last_log_index: LogIndex,
    /// A quorum answers: writes can be committed.
    pub quorum: bool,
    /// Every other member.
    pub peers: Vec<PeerState>,
    pub voters: Vec<NodeId>,
    /// Whether the nodes hold the same data.
    pub digests: DigestVerdict,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerState {
    pub node: NodeId,
    pub reachable: bool,
    /// Since this node last heard from it; `None`: never.
    pub silent_for: Option<Duration>,
    /// Round trip of the last exchange.
    pub latency: Option<Duration>,
    /// Nobody listened there when it was called last.
    pub gone: bool,
    /// On the leader: entries that its log is behind, where that is known.
    pub lag: Option<u64>,
}
