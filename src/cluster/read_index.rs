//! Linearizable reads: which index must be applied before a read that began now may be answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::consensus::identity::NodeIdentity;
use crate::consensus::node::RaftNode;
use crate::consensus::transport::{ConnectionClass, PeerTransport};
use crate::ids::{LogIndex, NodeId};
use crate::model::error::{Code, Error};
use crate::proto::read_index_response::Result as Answer;
use crate::proto::{NotLeader, ReadIndexRequest, ReadIndexResponse};

/// Between two tries of a round.
const PAUSE: Duration = Duration::from_millis(5);

/// Everyone who asks while a round is on its way shares the next one: one question to the quorum, or to the
/// leader, however many read.
pub(super) struct ReadRounds {
    node: Arc<RaftNode>,
    identity: Arc<NodeIdentity>,
    transport: Arc<dyn PeerTransport>,
    timeout: Duration,
    waiting: Mutex<Vec<oneshot::Sender<LogIndex>>>,
    wake: Notify,
    stop: CancellationToken,
}

impl ReadRounds {
    pub(super) fn new(
        node: Arc<RaftNode>,
        identity: Arc<NodeIdentity>,
        transport: Arc<dyn PeerTransport>,
        timeout: Duration,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let waiting = Mutex::default();
        Arc::new(Self { node, identity, transport, timeout, waiting, wake: Notify::new(), stop })
    }

    /// Resolves when this node has applied all that was committed before the call. 2005 if until the deadline no leader
    /// with a quorum said how far that is, whoever this node takes for the leader; 1001 if this node is behind.
    pub(super) async fn barrier(&self) -> Result<(), Error> {
        let told = AtomicBool::new(false);
        let ready = async {
            let index = self.index().await?;
            told.store(true, Ordering::Relaxed);
            self.node.replica().wait_applied(index).await;
            self.node.wait_read_gate().await;
            Ok(())
        };
        match tokio::time::timeout(self.timeout, ready).await {
            Ok(done) => done,
            Err(_) if told.into_inner() => Err(Error::new(Code::Timeout, "this node did not catch up in time")),
            Err(_) => Err(Error::new(Code::NoMaster, "no leader with a quorum answered in time")),
        }
    }

    /// Joins the next round.
    async fn index(&self) -> Result<LogIndex, Error> {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().push(answer);
        self.wake.notify_one();
        answered.await.map_err(|_| Error::new(Code::Unavailable, "the node is shutting down"))
    }

    /// What a follower is told. Asked again only by nodes that take this one for the leader.
    pub(super) async fn answer(&self) -> ReadIndexResponse {
        let result = if self.node.leading().is_none() {
            Answer::NotLeader(NotLeader {
                leader: self.node.leader().filter(|leader| *leader != self.identity.node).map(NodeId::get),
            })
        } else {
            match tokio::time::timeout(self.node.timing().election_max, self.index()).await {
                Ok(Ok(index)) => Answer::Index(index.get()),
                _ => Answer::Unavailable("no quorum answered in time".into()),
            }
        };
        ReadIndexResponse { result: Some(result) }
    }

    /// Runs the rounds until the node stops.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = self.wake.notified() => {}
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = self.round() => {}
            }
        }
        // Whoever waits sees its channel close.
        self.waiting.lock().clear();
    }

    /// Tries until there is an index, or nobody waits any more. Who comes before a try shares it.
    async fn round(&self) {
        let mut joined = Vec::new();
        let mut hint = None;
        loop {
            joined.append(&mut self.waiting.lock());
            joined.retain(|answer| !answer.is_closed());
            if joined.is_empty() {
                return;
            }
            match self.ask(hint).await {
                ReadReply::Index(index) => {
                    for answer in joined {
                        let _ = answer.send(index);
                    }
                    return;
                }
                ReadReply::Elsewhere(leader) => hint = leader,
            }
            let mut place = self.node.place();
            place.current();
            place.changed_within(PAUSE).await;
        }
    }

    async fn ask(&self, hint: Option<NodeId>) -> ReadReply {
        if self.node.leading().is_some() {
            self.node.wait_read_gate().await;
            return match self.node.read_index().await {
                Ok(index) => ReadReply::Index(index),
                Err(leader) => ReadReply::Elsewhere(leader),
            };
        }
        let leader = hint.or_else(|| self.node.leader()).filter(|leader| *leader != self.identity.node);
        let Some(leader) = leader else { return ReadReply::Elsewhere(None) };
        let Some(member) = self.node.members().remove(&leader) else { return ReadReply::Elsewhere(None) };
        let link = self.transport.link(leader, &member, ConnectionClass::Data);
        let request = ReadIndexRequest { handshake: Some(self.identity.handshake(leader)) };
        // The leader itself gives up after one lease.
        let answered = tokio::time::timeout(self.node.timing().election_max * 2, link.read_index(request)).await;
        match answered.map(|answer| answer.map(|answer| answer.result)) {
            Ok(Ok(Some(Answer::Index(index)))) => ReadReply::Index(LogIndex(index)),
            Ok(Ok(Some(Answer::NotLeader(not)))) => ReadReply::Elsewhere(not.leader.map(NodeId)),
            _ => ReadReply::Elsewhere(None),
        }
    }
}

enum ReadReply {
    Index(LogIndex),
    /// No index; perhaps who to ask.
    Elsewhere(Option<NodeId>),
}
