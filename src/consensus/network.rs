//! openraft's calls on its peers, over whatever [`PeerTransport`] carries them.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::identity::NodeIdentity;
use super::transport::{ConnectionClass, LinkError, Method, Peer, PeerStats, PeerTransport};
use super::types::{LogId, MemberAddress, TypeConfig, Vote};
use super::{codec, wire};
use crate::ids::{LogIndex, NodeId};
use crate::proto::{RaftRequest, RaftResponse, SnapshotChunk, StatusRequest, raft_response};
use crate::storage::{SnapshotStore, StateSnapshot};

/// Bytes of one chunk of a snapshot.
pub(crate) const CHUNK: usize = 512 << 10;
/// How long opening a stream of appends may take. Only its first answer is awaited, but the peer may be busy.
const OPEN_STREAM: Duration = Duration::from_secs(1);

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type SentSnapshot = openraft::alias::SnapshotOf<TypeConfig, StateSnapshot>;

/// Makes openraft's clients.
pub(crate) struct PeerNetwork {
    pub identity: Arc<NodeIdentity>,
    pub transport: Arc<dyn PeerTransport>,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub stats: Arc<PeerStats>,
}

impl PeerNetwork {
    fn client(&self, target: NodeId, member: &MemberAddress, class: ConnectionClass) -> PeerClient {
        PeerClient {
            identity: self.identity.clone(),
            target,
            class,
            link: Mutex::new((member.clone(), self.transport.link(target, member, class))),
            transport: self.transport.clone(),
            snapshots: self.snapshots.clone(),
            stats: self.stats.clone(),
            acknowledged: AtomicU64::new(0),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, node: &MemberAddress) -> PeerClient {
        self.client(target, node, ConnectionClass::Data)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &MemberAddress) -> PeerClient {
        self.client(target, node, ConnectionClass::Control)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &MemberAddress) -> PeerClient {
        self.client(target, node, ConnectionClass::Bulk)
    }
}

/// The calls on one peer.
pub(crate) struct PeerClient {
    identity: Arc<NodeIdentity>,
    target: NodeId,
    class: ConnectionClass,
    /// Where it is, and the link to there.
    link: Mutex<(MemberAddress, Arc<dyn Peer>)>,
    transport: Arc<dyn PeerTransport>,
    snapshots: Arc<dyn SnapshotStore>,
    stats: Arc<PeerStats>,
    /// The newest entry that the peer has acknowledged to this client.
    acknowledged: AtomicU64,
}

fn broken(error: impl ToString) -> RPCError<TypeConfig> {
    NetworkError::from_string(error).into()
}

fn body(response: RaftResponse) -> Result<Bytes, LinkError> {
    match response.result {
        Some(raft_response::Result::Ok(body)) => Ok(body),
        Some(raft_response::Result::Error(why)) => Err(LinkError::Broken(String::from_utf8_lossy(&why).into_owned())),
        None => Err(LinkError::Broken("an empty answer".into())),
    }
}

impl PeerClient {
    /// The link to where the peer is now: openraft keeps a client as long as the peer is a member.
    fn link(&self) -> Arc<dyn Peer> {
        let now = self.identity.address_of(self.target);
        let mut link = self.link.lock();
        if let Some(now) = now
            && now != link.0
        {
            let peer = self.transport.link(self.target, &now, self.class);
            *link = (now, peer);
        }
        link.1.clone()
    }

    /// Only what means "nobody there" is `Unreachable`: openraft then backs off, and retries the rest at once.
    fn error(&self, error: LinkError, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        match error {
            LinkError::Timeout => Timeout { action, id: self.identity.node, target: self.target, timeout }.into(),
            LinkError::Unreachable(why) => {
                self.stats.gone(self.target);
                Unreachable::from_string(why).into()
            }
            LinkError::Refused(why) => {
                self.stats.refused(self.target, &why);
                Unreachable::from_string(why).into()
            }
            // Its start is asked for before the next try.
            LinkError::NotMet(why) => Unreachable::from_string(why).into(),
            LinkError::Broken(why) => broken(why),
        }
    }

    /// Asks who is there: the next call means the start that runs.
    async fn meet(&self) {
        let link = self.link();
        let request =
            StatusRequest { handshake: Some(self.identity.handshake(self.target)), ..StatusRequest::default() };
        match tokio::time::timeout(OPEN_STREAM, link.status(request)).await {
            Ok(Ok(status)) => self.identity.learn(&status),
            other => tracing::debug!(target = self.target.get(), ?other, "a peer does not say who it is"),
        }
    }

    /// The leader counts on it for what the peer has acknowledged. openraft would send the same entries again and again
    /// to one that has lost them.
    fn lost(&self, at: LogIndex, acknowledged: LogIndex) -> RPCError<TypeConfig> {
        let why = format!(
            "node {} does not have entry {at}, though it acknowledged all up to {acknowledged}: its data folder is an older \
             copy, or damaged; give the machine a new number and an empty data folder",
            self.target
        );
        self.stats.refused(self.target, &why);
        self.identity.holds(self.target, acknowledged);
        Unreachable::from_string(why).into()
    }

    async fn call(&self, method: Method, action: RPCTypes, body_bytes: Bytes, ttl: Duration) -> Rpc<Bytes> {
        let mut since = Instant::now();
        let link = self.link();
        let call = async || {
            let request =
                RaftRequest { handshake: Some(self.identity.handshake(self.target)), body: body_bytes.clone() };
            let answered = tokio::time::timeout(ttl, link.call(method, request)).await;
            answered.unwrap_or(Err(LinkError::Timeout)).and_then(body)
        };
        let mut answer = call().await;
        if matches!(answer, Err(LinkError::NotMet(_))) {
            self.meet().await;
            since = Instant::now();
            answer = call().await;
        }
        let answer = answer.map_err(|error| self.error(error, action, ttl))?;
        self.stats.answered(self.target, since);
        Ok(answer)
    }

    async fn pipeline<'s, S>(&'s self, mut input: S) -> Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // openraft backs off inside the stream of requests: to open a link without asking it for one first
        // would try an unreachable peer again and again without a pause.
        let Some(first) = input.next().await else { return Ok(Box::pin(stream::empty())) };
        let input = stream::iter([first]).chain(input);
        let (link, handshake) = (self.link(), self.identity.handshake(self.target));
        let sent = Arc::new(Mutex::new(VecDeque::<Option<LogId>>::new()));
        let sending = sent.clone();
        let start = (input, Some(handshake), sending);
        let requests = stream::unfold(start, |(mut input, mut handshake, sending)| async move {
            let request = input.next().await?;
            let encoded = match wire::encode_append(&request) {
                Ok(encoded) => encoded,
                Err(error) => {
                    tracing::error!(%error, "an append request cannot be encoded");
                    return None;
                }
            };
            sending.lock().push_back(request.prev_log_id);
            Some((RaftRequest { handshake: handshake.take(), body: encoded }, (input, handshake, sending)))
        });
        let action = RPCTypes::AppendEntries;
        let opened = tokio::time::timeout(OPEN_STREAM, link.stream_append(requests.boxed())).await;
        let answers = opened.unwrap_or(Err(LinkError::Timeout));
        if matches!(answers, Err(LinkError::NotMet(_))) {
            self.meet().await;
        }
        let answers = answers.map_err(|error| self.error(error, action, OPEN_STREAM))?;
        Ok(Box::pin(answers.map(move |answer| {
            let answer = answer.and_then(body).map_err(|error| self.error(error, action, OPEN_STREAM))?;
            self.stats.heard(self.target);
            let previous = sent.lock().pop_front().flatten();
            let answer = wire::decode_append_answer(answer, previous).map_err(broken)?;
            match &answer {
                Ok(Some(matched)) => drop(self.acknowledged.fetch_max(matched.index, Ordering::Relaxed)),
                Err(StreamAppendError::Conflict(at)) => {
                    let acknowledged = self.acknowledged.load(Ordering::Relaxed);
                    if at.index <= acknowledged && acknowledged > 0 {
                        return Err(self.lost(LogIndex(at.index), LogIndex(acknowledged)));
                    }
                }
                _ => {}
            }
            Ok(answer)
        })))
    }

    /// The snapshot as a stream of chunks; a failed read ends it without a last chunk.
    fn chunks(&self, vote: &Vote, snapshot: SentSnapshot) -> Rpc<impl Stream<Item = SnapshotChunk> + Send + 'static> {
        let header = wire::encode_snapshot_header(vote, &snapshot.meta).map_err(broken)?;
        let first = Some((self.identity.handshake(self.target), header));
        let start = (self.snapshots.clone(), snapshot.snapshot, 0, first, false);
        Ok(stream::unfold(start, |(snapshots, snapshot, offset, mut first, ended)| async move {
            if ended {
                return None;
            }
            let data = match snapshots.read_chunk(&snapshot, offset, CHUNK).await {
                Ok(data) => data,
                Err(error) => {
                    tracing::error!(%error, "reading a snapshot to send failed");
                    return None;
                }
            };
            let (handshake, header) = first.take().unzip();
            let next = offset + data.len() as u64;
            let last = data.is_empty();
            let checksum = xxhash_rust::xxh3::xxh3_64(&data);
            let chunk = SnapshotChunk { handshake, header: header.unwrap_or_default(), offset, data, last, checksum };
            Some((chunk, (snapshots, snapshot, next, first, last)))
        }))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = StateSnapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let request = wire::encode_append(&rpc).map_err(broken)?;
        let answer = self.call(Method::Append, RPCTypes::AppendEntries, request, option.hard_ttl()).await?;
        wire::decode_append_response(answer).map_err(broken)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // A heartbeat is one request: a call is cheaper than a stream, and measures the round trip.
        match self.class {
            ConnectionClass::Control => stream_append_sequential(self, input, option),
            _ => Box::pin(self.pipeline(input)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let request = wire::encode_vote_request(&rpc);
        let answer = self.call(Method::Vote, RPCTypes::Vote, request, option.soft_ttl()).await?;
        wire::decode_vote_response(answer).map_err(broken)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let request = wire::encode_vote_request(&rpc);
        let answer = self.call(Method::PreVote, RPCTypes::Vote, request, option.soft_ttl()).await?;
        wire::decode_vote_response(answer).map_err(broken)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SentSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let chunks = self.chunks(&vote, snapshot)?;
        let link = self.link();
        let sending = tokio::time::timeout(option.hard_ttl(), link.install_snapshot(chunks.boxed()));
        let answered = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answered = sending => answered.unwrap_or(Err(LinkError::Timeout)),
        };
        let answer = answered.and_then(body);
        if matches!(answer, Err(LinkError::NotMet(_))) {
            self.meet().await;
        }
        let answer = answer.map_err(|error| self.error(error, RPCTypes::InstallSnapshot, option.hard_ttl()))?;
        self.stats.heard(self.target);
        let vote = codec::decode_vote(&answer).map_err(broken)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let request = wire::encode_transfer(&req);
        let answer = self.call(Method::TransferLeader, RPCTypes::TransferLeader, request, option.soft_ttl()).await?;
        wire::decode_transfer_response(answer).map_err(broken)
    }
}
