//! This node as its peers see it: their calls, checked and handed to openraft and to the cluster layer.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};

use super::identity::NodeIdentity;
use super::members::{Members, PeerCall};
use super::node::RaftNode;
use super::state_machine::Raft;
use super::transport::{LinkError, Method, Peer, PeerResult, PeerStats, Streaming};
use super::types::{SnapshotMeta, Vote};
use super::{codec, heartbeat, wire};
use crate::ids::NodeId;
use crate::proto::{
    ChangeRequest, ChangeResponse, Handshake, NodeAdd, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse,
    ReadIndexRequest, ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse, raft_response,
};
use crate::storage::{BoxFuture, SnapshotStore, StateSnapshot};

/// The calls that the cluster layer answers; handshakes were checked.
pub(crate) trait ClusterCalls: Send + Sync + 'static {
    /// `from` proposes; the first message is part of the stream.
    fn propose(&self, from: NodeId, requests: Streaming<ProposeRequest>) -> Streaming<ProposeResponse>;
    fn read_index(&self) -> BoxFuture<'_, ReadIndexResponse>;
    /// `fresh`: after a linearizable read, if there is a leader. A node that is no member is told what it needs to join.
    fn status(&self, request: StatusRequest, member: bool) -> BoxFuture<'_, StatusResponse>;
    fn change(&self, request: ChangeRequest) -> BoxFuture<'_, ChangeResponse>;
    /// `from` wants to found a cluster of these members.
    fn founders(&self, from: NodeId, founders: Vec<NodeAdd>);
}

/// Answers peers. Before [`Service::open`] only questions for its status are answered: a node that may have lost its
/// data must not vote.
pub(crate) struct Service {
    identity: Arc<NodeIdentity>,
    stats: Arc<PeerStats>,
    snapshots: Arc<dyn SnapshotStore>,
    calls: OnceLock<(Arc<dyn ClusterCalls>, Arc<Members>)>,
    open: OnceLock<OpenedRaft>,
}

struct OpenedRaft {
    raft: Raft,
    members: Arc<Members>,
}

fn corrupt(error: io::Error) -> LinkError {
    LinkError::Broken(error.to_string())
}

fn fatal(error: impl std::fmt::Display) -> LinkError {
    LinkError::Broken(error.to_string())
}

fn ok(body: Bytes) -> RaftResponse {
    RaftResponse { result: Some(raft_response::Result::Ok(body)) }
}

impl Service {
    pub(crate) fn new(
        identity: Arc<NodeIdentity>,
        stats: Arc<PeerStats>,
        snapshots: Arc<dyn SnapshotStore>,
    ) -> Arc<Self> {
        Arc::new(Self { identity, stats, snapshots, calls: OnceLock::new(), open: OnceLock::new() })
    }

    /// From now on its status is told.
    pub(crate) fn tell_status(&self, calls: Arc<dyn ClusterCalls>, members: Arc<Members>) {
        let _ = self.calls.set((calls, members));
    }

    /// From now on every call of a member is answered.
    pub(crate) fn open(&self, node: &RaftNode, members: Arc<Members>) {
        self.identity.confirm();
        let _ = self.open.set(OpenedRaft { raft: node.raft().clone(), members });
    }

    fn calls(&self) -> Result<&Arc<dyn ClusterCalls>, LinkError> {
        Ok(&self.told()?.0)
    }

    fn told(&self) -> Result<&(Arc<dyn ClusterCalls>, Arc<Members>), LinkError> {
        self.calls.get().ok_or_else(|| LinkError::Unreachable("the node is starting".into()))
    }

    fn opened(&self) -> Result<&OpenedRaft, LinkError> {
        self.open.get().ok_or_else(|| LinkError::Unreachable("the node is starting".into()))
    }

    /// Who calls, if it is a member that may have what it wants.
    fn greet(&self, handshake: Option<&Handshake>, wants: PeerCall) -> Result<(NodeId, &OpenedRaft), LinkError> {
        let from = self.identity.check(handshake)?;
        let opened = self.opened()?;
        opened.members.check(from, wants)?;
        handshake.map_or(Ok(()), |theirs| self.identity.meet(theirs))?;
        self.stats.heard(from);
        Ok((from, opened))
    }

    /// The same for what consensus counts: it must mean this start of the node.
    fn greet_exactly(
        &self,
        handshake: Option<&Handshake>,
        wants: PeerCall,
    ) -> Result<(NodeId, &OpenedRaft), LinkError> {
        let greeted = self.greet(handshake, wants)?;
        handshake.map_or(Ok(()), |theirs| self.identity.check_met(theirs))?;
        Ok(greeted)
    }

    async fn answer(&self, method: Method, request: RaftRequest) -> Result<RaftResponse, LinkError> {
        let wants = match method {
            Method::Append | Method::TransferLeader => PeerCall::Member,
            Method::Vote | Method::PreVote => PeerCall::Vote,
        };
        let (from, OpenedRaft { raft, members }) = self.greet_exactly(request.handshake.as_ref(), wants)?;
        let body = request.body;
        let answer = match method {
            Method::Append => {
                let request = wire::decode_append(body).map_err(corrupt)?;
                members.check_vote(from, &request.vote)?;
                let answer = match request.entries.is_empty() {
                    true => heartbeat::answer(raft, request).await,
                    false => raft.append_entries(request).await,
                };
                wire::encode_append_response(&answer.map_err(fatal)?)
            }
            Method::Vote => {
                let request = wire::decode_vote_request(body).map_err(corrupt)?;
                members.check_vote(from, &request.vote)?;
                wire::encode_vote_response(&raft.vote(request).await.map_err(fatal)?)
            }
            Method::PreVote => {
                let request = wire::decode_vote_request(body).map_err(corrupt)?;
                members.check_vote(from, &request.vote)?;
                wire::encode_vote_response(&raft.pre_vote(request).await.map_err(fatal)?)
            }
            Method::TransferLeader => {
                let request = wire::decode_transfer(body).map_err(corrupt)?;
                members.check_vote(from, request.from_leader())?;
                members.check_transfer(*request.to_node_id(), self.identity.node)?;
                wire::encode_transfer_response(&raft.handle_transfer_leader(request).await.map_err(fatal)?)
            }
        };
        Ok(ok(answer))
    }

    async fn appends(
        &self,
        mut requests: Streaming<RaftRequest>,
    ) -> Result<Streaming<Result<RaftResponse, LinkError>>, LinkError> {
        let Some(first) = requests.next().await else { return Ok(stream::empty().boxed()) };
        let (from, OpenedRaft { raft, members }) = self.greet_exactly(first.handshake.as_ref(), PeerCall::Member)?;
        let (stats, members) = (self.stats.clone(), members.clone());
        let decoded = stream::iter([first]).chain(requests).map(move |request| {
            let request = wire::decode_append(request.body)?;
            // It may have been removed since the stream began.
            members.check(from, PeerCall::Member).map_err(io::Error::other)?;
            members.check_vote(from, &request.vote).map_err(io::Error::other)?;
            stats.heard(from);
            Ok::<_, io::Error>(request)
        });
        // A request that is refused ends the stream: what follows it would leave a hole.
        let decoded = decoded.scan((), |(), request| async move {
            request.inspect_err(|error| tracing::debug!(%error, "an append of a peer was refused")).ok()
        });
        let answers = raft.stream_append(decoded);
        Ok(answers.map(|answer| answer.map(|done| ok(wire::encode_append_answer(&done))).map_err(fatal)).boxed())
    }

    async fn receive(&self, mut chunks: Streaming<SnapshotChunk>) -> Result<RaftResponse, LinkError> {
        let Some(first) = chunks.next().await else { return Err(LinkError::Broken("an empty snapshot".into())) };
        let (from, OpenedRaft { raft, members }) = self.greet_exactly(first.handshake.as_ref(), PeerCall::Member)?;
        let (vote, meta) = wire::decode_snapshot_header(first.header.clone()).map_err(corrupt)?;
        members.check_vote(from, &vote)?;
        tracing::info!(peer = from.get(), last_log_id = ?meta.last_log_id, "receiving a snapshot");
        let snapshot = self.receive_body(from, first, chunks).await?;
        let answer = install(raft, vote, meta, snapshot).await?;
        tracing::info!(peer = from.get(), "installed a snapshot");
        Ok(ok(codec::encode_vote(&answer)))
    }

    async fn receive_body(
        &self,
        from: NodeId,
        first: SnapshotChunk,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<StateSnapshot, LinkError> {
        let mut receiver = self.snapshots.receive().await.map_err(corrupt)?;
        let mut chunk = first;
        loop {
            self.stats.heard(from);
            if chunk.checksum != xxhash_rust::xxh3::xxh3_64(&chunk.data) {
                return Err(LinkError::Broken("a chunk of the snapshot was damaged on the way".into()));
            }
            if !chunk.data.is_empty() {
                receiver.write(chunk.offset, chunk.data).await.map_err(corrupt)?;
            }
            if chunk.last {
                return receiver.finish().await.map_err(corrupt);
            }
            chunk = match chunks.next().await {
                Some(next) => next,
                None => return Err(LinkError::Broken("the snapshot ended early".into())),
            };
        }
    }
}

async fn install(raft: &Raft, vote: Vote, meta: SnapshotMeta, snapshot: StateSnapshot) -> Result<Vote, LinkError> {
    let snapshot = openraft::Snapshot { meta, snapshot };
    Ok(raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?.vote)
}

impl Peer for Service {
    fn call(&self, method: Method, request: RaftRequest) -> PeerResult<'_, RaftResponse> {
        Box::pin(self.answer(method, request))
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>> {
        Box::pin(self.appends(requests))
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse> {
        Box::pin(self.receive(chunks))
    }

    fn propose(
        &self,
        mut requests: Streaming<ProposeRequest>,
    ) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        Box::pin(async move {
            let Some(first) = requests.next().await else { return Ok(stream::empty().boxed()) };
            let (from, OpenedRaft { members, .. }) = self.greet(first.handshake.as_ref(), PeerCall::Member)?;
            let (calls, members) = (self.calls()?, members.clone());
            // Who is removed while the stream is open proposes nothing more.
            let requests = stream::iter([first]).chain(requests);
            let requests = requests.take_while(move |_| future::ready(members.check(from, PeerCall::Member).is_ok()));
            Ok(calls.propose(from, requests.boxed()).map(Ok).boxed())
        })
    }

    fn read_index(&self, request: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse> {
        Box::pin(async move {
            self.greet(request.handshake.as_ref(), PeerCall::Member)?;
            Ok(self.calls()?.read_index().await)
        })
    }

    fn status(&self, request: StatusRequest) -> PeerResult<'_, StatusResponse> {
        Box::pin(async move {
            let from = self.identity.check_any(request.handshake.as_ref())?;
            let (calls, members) = self.told()?;
            let member = members.admits(from, PeerCall::Member);
            if member {
                self.stats.heard(from);
                // One that is refused is told why, too: it has to know.
                let met = request.handshake.as_ref().map(|theirs| self.identity.meet(theirs));
                tracing::trace!(?met, from = from.get(), "a peer asks for the status");
            }
            if !request.founders.is_empty() {
                calls.founders(from, request.founders.clone());
            }
            Ok(calls.status(request, member).await)
        })
    }

    fn change(&self, request: ChangeRequest) -> PeerResult<'_, ChangeResponse> {
        Box::pin(async move {
            self.greet(request.handshake.as_ref(), PeerCall::Member)?;
            Ok(self.calls()?.change(request).await)
        })
    }
}
