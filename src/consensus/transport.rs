//! How nodes talk: the calls that one node can make on another, whatever carries them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::types::MemberAddress;
use crate::ids::NodeId;
use crate::proto::{
    ChangeRequest, ChangeResponse, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse,
};
use crate::storage::BoxFuture;

/// Why a call on a peer gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or the link is down: back off before the next try.
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Timeout,
    /// The link broke in the middle, or the peer could not answer.
    #[error("{0}")]
    Broken(String),
    /// The peer is of another cluster or format, or is not the node that was meant.
    #[error("turned away: {0}")]
    Refused(String),
    /// The call means an earlier start of the peer: ask for its status, then try again.
    #[error("not met: {0}")]
    NotMet(String),
}

pub type Streaming<T> = BoxStream<'static, T>;
pub type PeerResult<'a, T> = BoxFuture<'a, Result<T, LinkError>>;

/// The unary calls of Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Append,
    Vote,
    PreVote,
    TransferLeader,
}

/// One node as another one sees it. The node itself implements it (`service`), and so does what carries
/// the calls there: gRPC (`grpc`) or a [`LocalNetwork`].
pub trait Peer: Send + Sync + 'static {
    fn call(&self, method: Method, request: RaftRequest) -> PeerResult<'_, RaftResponse>;

    /// Pipelined appends: answers come in the order of the requests. The handshake is in the first one.
    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>>;

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse>;

    fn propose(
        &self,
        requests: Streaming<ProposeRequest>,
    ) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>>;

    fn read_index(&self, request: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse>;

    fn status(&self, request: StatusRequest) -> PeerResult<'_, StatusResponse>;

    fn change(&self, request: ChangeRequest) -> PeerResult<'_, ChangeResponse>;
}

/// A connection of its own for each, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionClass {
    /// Entries, proposals, read indexes.
    Data,
    /// Heartbeats, votes, transfers, status: must not wait behind a megabyte of entries.
    Control,
    /// Snapshots.
    Bulk,
}

/// Makes links to peers. A link is cheap to keep and connects again by itself.
pub trait PeerTransport: Send + Sync + 'static {
    fn link(&self, node: NodeId, member: &MemberAddress, class: ConnectionClass) -> Arc<dyn Peer>;

    /// The same at this address, whatever else is known of where the node may be.
    fn link_exactly(&self, node: NodeId, member: &MemberAddress, class: ConnectionClass) -> Arc<dyn Peer> {
        self.link(node, member, class)
    }
}

/// Carries the calls between nodes of one process, in place of sockets: the seam for simulation.
pub trait LocalNetwork: Send + Sync + 'static {
    /// The network as seen from `node`, in its present life.
    fn seen_from(self: Arc<Self>, node: NodeId) -> Arc<dyn PeerTransport>;

    /// The node answers from now on.
    fn register(&self, node: NodeId, peer: Arc<dyn Peer>);

    /// The node is gone.
    fn remove(&self, node: NodeId);
}

/// What this node knows of a peer from talking with it.
#[derive(Clone, Copy, Debug)]
pub struct PeerContact {
    pub at: Instant,
    pub round_trip: Option<Duration>,
    /// When it answered a call last: this node reaches it.
    pub answered: Option<Instant>,
    /// Nobody listened there when it was called since.
    pub gone: bool,
}

/// When each peer was last heard, and how far away it is.
#[derive(Debug)]
pub struct PeerStats {
    /// Counts the times that a peer was found gone or came back.
    turns: watch::Sender<u64>,
    heard: Mutex<BTreeMap<NodeId, PeerContact>>,
    /// When a peer's refusal was logged last.
    refused: Mutex<BTreeMap<NodeId, Instant>>,
    /// Peers that have said that they cannot lead now.
    unfit: Mutex<BTreeSet<NodeId>>,
}

/// Between two log lines about the same peer turning this node away.
const REFUSED_EVERY: Duration = Duration::from_secs(10);

impl Default for PeerStats {
    fn default() -> Self {
        Self {
            turns: watch::Sender::new(0),
            heard: Mutex::default(),
            refused: Mutex::default(),
            unfit: Mutex::default(),
        }
    }
}

impl PeerStats {
    /// Something came from this peer.
    pub fn heard(&self, node: NodeId) {
        self.note(node, None);
    }

    fn note(&self, node: NodeId, round_trip: Option<Duration>) {
        let now = Instant::now();
        let was_gone = {
            let mut heard = self.heard.lock();
            let before = heard.get(&node).copied();
            let answered = round_trip.map(|_| now).or(before.and_then(|before| before.answered));
            let round_trip = round_trip.or(before.and_then(|before| before.round_trip));
            heard.insert(node, PeerContact { at: now, round_trip, answered, gone: false });
            before.is_some_and(|before| before.gone)
        };
        if was_gone {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// Nobody listens where this peer should.
    pub fn gone(&self, node: NodeId) {
        let turned = self.heard.lock().get_mut(&node).is_some_and(|heard| !std::mem::replace(&mut heard.gone, true));
        if turned {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// News whenever a peer was found gone, or is back.
    pub fn watch_turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// A call on this peer that began at `since` was answered.
    pub fn answered(&self, node: NodeId, since: Instant) {
        self.note(node, Some(Instant::now() - since));
    }

    /// A peer turned this node away: an operator has to look.
    pub fn refused(&self, node: NodeId, why: &str) {
        let now = Instant::now();
        let mut refused = self.refused.lock();
        if refused.get(&node).is_none_or(|at| now - *at >= REFUSED_EVERY) {
            refused.insert(node, now);
            tracing::error!(peer = node.get(), why, "a peer turned this node away");
        }
    }

    /// A peer has said whether it could lead.
    pub fn can_lead(&self, node: NodeId, can: bool) {
        let mut unfit = self.unfit.lock();
        if can {
            unfit.remove(&node);
        } else {
            unfit.insert(node);
        }
    }

    pub fn is_unfit(&self, node: NodeId) -> bool {
        self.unfit.lock().contains(&node)
    }

    pub fn of(&self, node: NodeId) -> Option<PeerContact> {
        self.heard.lock().get(&node).copied()
    }
}
