//! This node as its peers see it: their calls, checked and handed to openraft and to the cluster layer.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::node::Node;
use super::transport::{Answer, Identity, LinkError, Method, Peer, PeerStats, Streaming};
use super::types::{Raft, SnapshotMeta, Vote};
use super::{codec, wire};
use crate::proto::{
    ChangeRequest, ChangeResponse, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse, raft_response,
};
use crate::storage::{BoxFuture, Snapshot, SnapshotStore};

/// The calls that the cluster layer answers; handshakes were checked.
pub trait ClusterCalls: Send + Sync + 'static {
    /// `from` proposes; the first message is part of the stream.
    fn propose(&self, from: u64, requests: Streaming<ProposeRequest>) -> Streaming<ProposeResponse>;
    fn read_index(&self) -> BoxFuture<'_, ReadIndexResponse>;
    /// `fresh`: after a linearizable read, if there is a leader.
    fn status(&self, fresh: bool) -> BoxFuture<'_, StatusResponse>;
    fn change(&self, request: ChangeRequest) -> BoxFuture<'_, ChangeResponse>;
}

/// Answers peers. Before [`Service::open`] only questions for its status are answered: a node that may have lost its
/// data must not vote.
pub struct Service {
    identity: Arc<Identity>,
    stats: Arc<PeerStats>,
    snapshots: Arc<dyn SnapshotStore>,
    calls: OnceLock<Arc<dyn ClusterCalls>>,
    raft: OnceLock<Raft>,
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
    pub fn new(identity: Arc<Identity>, stats: Arc<PeerStats>, snapshots: Arc<dyn SnapshotStore>) -> Arc<Self> {
        Arc::new(Self { identity, stats, snapshots, calls: OnceLock::new(), raft: OnceLock::new() })
    }

    /// From now on its status is told.
    pub fn tell_status(&self, calls: Arc<dyn ClusterCalls>) {
        let _ = self.calls.set(calls);
    }

    /// From now on every call is answered.
    pub fn open(&self, node: &Node) {
        let _ = self.raft.set(node.raft().clone());
    }

    fn calls(&self) -> Result<&Arc<dyn ClusterCalls>, LinkError> {
        self.calls.get().ok_or_else(|| LinkError::Unreachable("the node is starting".into()))
    }

    fn parts(&self) -> Result<(&Raft, &Arc<dyn ClusterCalls>), LinkError> {
        match self.raft.get() {
            Some(raft) => Ok((raft, self.calls()?)),
            None => Err(LinkError::Unreachable("the node is starting".into())),
        }
    }

    fn greet(&self, handshake: Option<&crate::proto::Handshake>) -> Result<u64, LinkError> {
        let from = self.identity.check(handshake)?;
        self.stats.heard(from);
        Ok(from)
    }

    async fn answer(&self, method: Method, request: RaftRequest) -> Result<RaftResponse, LinkError> {
        self.greet(request.handshake.as_ref())?;
        let (raft, _) = self.parts()?;
        let body = request.body;
        let answer = match method {
            Method::Append => {
                let request = wire::decode_append(body).map_err(corrupt)?;
                wire::encode_append_response(&raft.append_entries(request).await.map_err(fatal)?)
            }
            Method::Vote => {
                let request = wire::decode_vote_request(body).map_err(corrupt)?;
                wire::encode_vote_response(&raft.vote(request).await.map_err(fatal)?)
            }
            Method::PreVote => {
                let request = wire::decode_vote_request(body).map_err(corrupt)?;
                wire::encode_vote_response(&raft.pre_vote(request).await.map_err(fatal)?)
            }
            Method::TransferLeader => {
                let request = wire::decode_transfer(body).map_err(corrupt)?;
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
        let from = self.greet(first.handshake.as_ref())?;
        let (raft, _) = self.parts()?;
        let stats = self.stats.clone();
        let decoded = stream::iter([first]).chain(requests).map(move |request| {
            stats.heard(from);
            wire::decode_append(request.body)
        });
        // A request that does not decode ends the stream: what follows it would leave a hole.
        let decoded = decoded.scan((), |(), request| async move {
            request.inspect_err(|error| tracing::error!(%error, "a peer sent an append that is not one")).ok()
        });
        let answers = raft.stream_append(decoded);
        Ok(answers.map(|answer| answer.map(|done| ok(wire::encode_append_answer(&done))).map_err(fatal)).boxed())
    }

    async fn receive(&self, mut chunks: Streaming<SnapshotChunk>) -> Result<RaftResponse, LinkError> {
        let Some(first) = chunks.next().await else { return Err(LinkError::Broken("an empty snapshot".into())) };
        let from = self.greet(first.handshake.as_ref())?;
        let (raft, _) = self.parts()?;
        let (vote, meta) = wire::decode_snapshot_header(first.header.clone()).map_err(corrupt)?;
        tracing::info!(peer = from, last_log_id = ?meta.last_log_id, "receiving a snapshot");
        let snapshot = self.receive_body(from, first, chunks).await?;
        let answer = install(raft, vote, meta, snapshot).await?;
        tracing::info!(peer = from, "installed a snapshot");
        Ok(ok(codec::encode_vote(&answer)))
    }

    async fn receive_body(
        &self,
        from: u64,
        first: SnapshotChunk,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<Snapshot, LinkError> {
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

async fn install(raft: &Raft, vote: Vote, meta: SnapshotMeta, snapshot: Snapshot) -> Result<Vote, LinkError> {
    let snapshot = openraft::Snapshot { meta, snapshot };
    Ok(raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?.vote)
}

impl Peer for Service {
    fn call(&self, method: Method, request: RaftRequest) -> Answer<'_, RaftResponse> {
        Box::pin(self.answer(method, request))
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> Answer<'_, Streaming<Result<RaftResponse, LinkError>>> {
        Box::pin(self.appends(requests))
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> Answer<'_, RaftResponse> {
        Box::pin(self.receive(chunks))
    }

    fn propose(
        &self,
        mut requests: Streaming<ProposeRequest>,
    ) -> Answer<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        Box::pin(async move {
            let Some(first) = requests.next().await else { return Ok(stream::empty().boxed()) };
            let from = self.greet(first.handshake.as_ref())?;
            let (_, calls) = self.parts()?;
            let requests = stream::iter([first]).chain(requests).boxed();
            Ok(calls.propose(from, requests).map(Ok).boxed())
        })
    }

    fn read_index(&self, request: ReadIndexRequest) -> Answer<'_, ReadIndexResponse> {
        Box::pin(async move {
            self.greet(request.handshake.as_ref())?;
            let (_, calls) = self.parts()?;
            Ok(calls.read_index().await)
        })
    }

    fn status(&self, request: StatusRequest) -> Answer<'_, StatusResponse> {
        Box::pin(async move {
            let from = self.identity.check_any(request.handshake.as_ref())?;
            self.stats.heard(from);
            Ok(self.calls()?.status(request.fresh).await)
        })
    }

    fn change(&self, request: ChangeRequest) -> Answer<'_, ChangeResponse> {
        Box::pin(async move {
            self.greet(request.handshake.as_ref())?;
            let (_, calls) = self.parts()?;
            Ok(calls.change(request).await)
        })
    }
}
