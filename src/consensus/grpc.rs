//! gRPC between nodes: one kept HTTP/2 connection per peer and class, and the server side.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use futures_util::{Stream, StreamExt, future, stream};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

use super::peer_tls::{Connector, HasHandshake, PeerCaller};
use super::transport::{ConnectionClass, LinkError, Method, Peer, PeerResult, PeerTransport, Streaming};
use super::types::MemberAddress;
use crate::config::is_loopback;
use crate::ids::NodeId;
use crate::limits;
use crate::proto::cluster_client::ClusterClient;
use crate::proto::cluster_server::{Cluster, ClusterServer};
use crate::proto::raft_client::RaftClient;
use crate::proto::raft_server::{Raft, RaftServer};
use crate::proto::{
    ChangeRequest, ChangeResponse, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse,
};
use crate::tls::acceptor::{Acceptor, CurrentTls};
use crate::tls::admission::{Admission, ConnectionCaps};
use crate::tls::files::NodeTls;
use crate::tls::follow::Followed;

/// The greatest message: one append is at most 1 MiB of entries, or one entry of `limits::BATCH_BYTES`
/// and the greatest command.
const MESSAGE: usize = 8 << 20;
const WINDOW: u32 = 4 << 20;
/// A connection that does not answer a ping for this long is dropped, and with it its streams.
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Reaches peers over gRPC.
pub(crate) struct GrpcTransport {
    /// Addresses from this node's configuration. Where they differ from those in the membership, either may be right: a node
    /// may move to another address with no more than a restart, and the settings may be older than the membership.
    configured: BTreeMap<NodeId, MemberAddress>,
    /// Which of two addresses a node answered at last.
    turned: Mutex<BTreeMap<NodeId, TwoAddresses>>,
    /// Without it, only what is on this machine is spoken with.
    tls: Option<Arc<Connector>>,
    channels: Mutex<BTreeMap<(NodeId, String, ConnectionClass), Channel>>,
}

/// A node's address in the membership, the one in the settings, and whether the second one answered at last.
type TwoAddresses = (String, String, Arc<AtomicBool>);

impl GrpcTransport {
    pub(crate) fn new(configured: BTreeMap<NodeId, MemberAddress>) -> Arc<Self> {
        Arc::new(Self { configured, tls: None, turned: Mutex::default(), channels: Mutex::default() })
    }

    /// The same with mutual TLS.
    pub(crate) fn with_tls(configured: BTreeMap<NodeId, MemberAddress>, tls: Arc<Followed<NodeTls>>) -> Arc<Self> {
        Arc::new(Self {
            configured,
            tls: Some(Connector::new(tls)),
            turned: Mutex::default(),
            channels: Mutex::default(),
        })
    }

    fn channel(&self, node: NodeId, address: &str, class: ConnectionClass) -> Result<Channel, tonic::transport::Error> {
        let mut channels = self.channels.lock();
        let key = (node, address.to_owned(), class);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 2);
        let channel = match &self.tls {
            Some(connector) => connector.channel(&endpoint, node, address),
            None => endpoint.connect_lazy(),
        };
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}

impl PeerTransport for GrpcTransport {
    fn link(&self, node: NodeId, member: &MemberAddress, class: ConnectionClass) -> Arc<dyn Peer> {
        let here = self.link_exactly(node, member, class);
        match self.configured.get(&node) {
            Some(configured) if configured.raft != member.raft => Arc::new(EitherPeer {
                peers: [here, self.link_exactly(node, configured, class)],
                turned: self.turned(node, &member.raft, &configured.raft),
            }),
            _ => here,
        }
    }

    fn link_exactly(&self, node: NodeId, member: &MemberAddress, class: ConnectionClass) -> Arc<dyn Peer> {
        if self.tls.is_none() && !is_loopback(&member.raft) {
            let why = format!("{} is not loopback, and this node has no certificate: set raft_tls_cert", member.raft);
            return Arc::new(UnreachablePeer(why));
        }
        match self.channel(node, &member.raft, class) {
            Ok(channel) => Arc::new(GrpcPeer {
                raft: RaftClient::new(channel.clone())
                    .max_decoding_message_size(MESSAGE)
                    .max_encoding_message_size(MESSAGE),
                cluster: ClusterClient::new(channel)
                    .max_decoding_message_size(MESSAGE)
                    .max_encoding_message_size(MESSAGE),
            }),
            Err(error) => {
                tracing::error!(node = node.get(), address = member.raft, %error, "a member's address is none");
                Arc::new(UnreachablePeer(format!("{:?} is no address", member.raft)))
            }
        }
    }
}

impl GrpcTransport {
    fn turned(&self, node: NodeId, member: &str, configured: &str) -> Arc<AtomicBool> {
        let mut turned = self.turned.lock();
        match turned.get(&node) {
            Some((one, other, turned)) if one == member && other == configured => turned.clone(),
            _ => {
                let fresh = Arc::new(AtomicBool::new(false));
                turned.insert(node, (member.to_owned(), configured.to_owned(), fresh.clone()));
                fresh
            }
        }
    }
}

fn link_error(status: Status) -> LinkError {
    match status.code() {
        Code::Unavailable => LinkError::Unreachable(status.message().to_owned()),
        Code::DeadlineExceeded => LinkError::Timeout,
        Code::FailedPrecondition => LinkError::Refused(status.message().to_owned()),
        Code::Aborted => LinkError::NotMet(status.message().to_owned()),
        _ => LinkError::Broken(format!("{}: {}", status.code(), status.message())),
    }
}

fn status(error: LinkError) -> Status {
    match error {
        LinkError::Unreachable(why) => Status::unavailable(why),
        LinkError::Timeout => Status::deadline_exceeded("no answer in time"),
        LinkError::Refused(why) => Status::failed_precondition(why),
        LinkError::NotMet(why) => Status::aborted(why),
        LinkError::Broken(why) => Status::internal(why),
    }
}

/// A named type around the boxed stream: without it the compiler cannot see that the call's future is `Send`.
struct RequestStream<T>(Streaming<T>);

impl<T> Stream for RequestStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.as_mut().poll_next(context)
    }
}

/// One peer over one connection. A clone of a tonic client is a handle on the same connection.
struct GrpcPeer {
    raft: RaftClient<Channel>,
    cluster: ClusterClient<Channel>,
}

impl Peer for GrpcPeer {
    fn call(&self, method: Method, request: RaftRequest) -> PeerResult<'_, RaftResponse> {
        let mut client = self.raft.clone();
        Box::pin(async move {
            let answer = match method {
                Method::Append => client.append(request).await,
                Method::Vote => client.vote(request).await,
                Method::PreVote => client.pre_vote(request).await,
                Method::TransferLeader => client.transfer_leader(request).await,
            };
            answer.map(Response::into_inner).map_err(link_error)
        })
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>> {
        let mut client = self.raft.clone();
        Box::pin(async move {
            let answers = client.stream_append(RequestStream(requests)).await.map_err(link_error)?.into_inner();
            Ok(answers.map(|answer| answer.map_err(link_error)).boxed())
        })
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse> {
        let mut client = self.raft.clone();
        Box::pin(async move {
            client.install_snapshot(RequestStream(chunks)).await.map(Response::into_inner).map_err(link_error)
        })
    }

    fn propose(
        &self,
        requests: Streaming<ProposeRequest>,
    ) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        let mut client = self.cluster.clone();
        Box::pin(async move {
            let answers = client.propose(RequestStream(requests)).await.map_err(link_error)?.into_inner();
            Ok(answers.map(|answer| answer.map_err(link_error)).boxed())
        })
    }

    fn read_index(&self, request: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse> {
        let mut client = self.cluster.clone();
        Box::pin(async move { client.read_index(request).await.map(Response::into_inner).map_err(link_error) })
    }

    fn status(&self, request: StatusRequest) -> PeerResult<'_, StatusResponse> {
        let mut client = self.cluster.clone();
        Box::pin(async move { client.status(request).await.map(Response::into_inner).map_err(link_error) })
    }

    fn change(&self, request: ChangeRequest) -> PeerResult<'_, ChangeResponse> {
        let mut client = self.cluster.clone();
        Box::pin(async move { client.change(request).await.map(Response::into_inner).map_err(link_error) })
    }
}

/// How long the address that answered last may take before the other one is tried beside it.
const SOON: Duration = Duration::from_millis(150);

/// A member that may be at either of two addresses. Questions for its status, which are asked all the time, find out at
/// which; every other call goes there.
struct EitherPeer {
    peers: [Arc<dyn Peer>; 2],
    turned: Arc<AtomicBool>,
}

impl EitherPeer {
    fn peer(&self) -> &Arc<dyn Peer> {
        &self.peers[usize::from(self.turned.load(Ordering::Relaxed))]
    }

    async fn find(&self, request: StatusRequest) -> Result<StatusResponse, LinkError> {
        let turned = self.turned.load(Ordering::Relaxed);
        let (one, other) = (&self.peers[usize::from(turned)], &self.peers[usize::from(!turned)]);
        let mut first = one.status(request.clone());
        let failed = match tokio::time::timeout(SOON, &mut first).await {
            Ok(Ok(status)) => return Ok(status),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let second = other.status(request);
        let found = match failed {
            Some(error) => second.await.map(|status| (status, true)).or(Err(error)),
            None => match future::select(first, second).await {
                Either::Left((Ok(status), _)) => Ok((status, false)),
                Either::Left((_, second)) => second.await.map(|status| (status, true)),
                Either::Right((Ok(status), _)) => Ok((status, true)),
                Either::Right((_, first)) => first.await.map(|status| (status, false)),
            },
        };
        let (status, elsewhere) = found?;
        if elsewhere {
            self.turned.store(!turned, Ordering::Relaxed);
        }
        Ok(status)
    }
}

impl Peer for EitherPeer {
    fn call(&self, method: Method, request: RaftRequest) -> PeerResult<'_, RaftResponse> {
        self.peer().call(method, request)
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>> {
        self.peer().stream_append(requests)
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse> {
        self.peer().install_snapshot(chunks)
    }

    fn propose(
        &self,
        requests: Streaming<ProposeRequest>,
    ) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        self.peer().propose(requests)
    }

    fn read_index(&self, request: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse> {
        self.peer().read_index(request)
    }

    fn status(&self, request: StatusRequest) -> PeerResult<'_, StatusResponse> {
        Box::pin(self.find(request))
    }

    fn change(&self, request: ChangeRequest) -> PeerResult<'_, ChangeResponse> {
        self.peer().change(request)
    }
}

/// A member that cannot be spoken with, for a reason that no try changes.
pub(super) struct UnreachablePeer(pub(super) String);

impl UnreachablePeer {
    fn error<T>(&self) -> PeerResult<'_, T> {
        let why = self.0.clone();
        Box::pin(async move { Err(LinkError::Unreachable(why)) })
    }
}

impl Peer for UnreachablePeer {
    fn call(&self, _: Method, _: RaftRequest) -> PeerResult<'_, RaftResponse> {
        self.error()
    }

    fn stream_append(&self, _: Streaming<RaftRequest>) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>> {
        self.error()
    }

    fn install_snapshot(&self, _: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse> {
        self.error()
    }

    fn propose(&self, _: Streaming<ProposeRequest>) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        self.error()
    }

    fn read_index(&self, _: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse> {
        self.error()
    }

    fn status(&self, _: StatusRequest) -> PeerResult<'_, StatusResponse> {
        self.error()
    }

    fn change(&self, _: ChangeRequest) -> PeerResult<'_, ChangeResponse> {
        self.error()
    }
}

/// On the port of the nodes.
const CONNECTIONS: ConnectionCaps = ConnectionCaps {
    total: limits::NODE_CONNECTIONS,
    anonymous: limits::ANONYMOUS_NODES,
    per_address: limits::ANONYMOUS_NODES_OF_ADDRESS,
};

/// Serves `peer` on a listener until `stop`; with `tls` only to nodes that have a certificate of the cluster's CA.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Followed<NodeTls>>>,
    peer: Arc<dyn Peer>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls = tls.map(|tls| -> CurrentTls { Arc::new(move || tls.current().server.clone()) });
    let admission = Admission::new("connections of nodes", CONNECTIONS, Vec::new());
    let acceptor = Acceptor::new(listener, tls, admission, |stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection's options could not be set");
        }
    });
    let incoming = stream::unfold(acceptor, |mut acceptor| async {
        let accepted = acceptor.accept().await;
        // It showed a certificate of the cluster; without TLS it is on this machine. Its address goes first from now on.
        accepted.slot.vouch(true);
        Some((Ok::<_, Infallible>(accepted), acceptor))
    });
    let raft = RaftServer::new(GrpcService(peer.clone()))
        .max_decoding_message_size(MESSAGE)
        .max_encoding_message_size(MESSAGE);
    let cluster =
        ClusterServer::new(GrpcService(peer)).max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 2)
        .add_service(raft)
        .add_service(cluster)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// The server side: hands every call to the node, if the caller is who it says.
struct GrpcService(Arc<dyn Peer>);

/// Who calls.
fn caller<T>(request: &Request<T>) -> Result<PeerCaller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("a call without a connection"))
}

/// The message of a call.
fn message<T: HasHandshake>(request: Request<T>) -> Result<T, Status> {
    caller(&request)?.check(request.get_ref().handshake())?;
    Ok(request.into_inner())
}

/// The messages of a stream up to the first that fails: the connection is gone then. The first one says who calls.
async fn messages<T: HasHandshake + Send + 'static>(
    request: Request<tonic::Streaming<T>>,
) -> Result<Streaming<T>, Status> {
    let caller = caller(&request)?;
    let mut messages = request.into_inner();
    let first = messages.message().await?;
    caller.check(first.as_ref().and_then(HasHandshake::handshake))?;
    let rest = messages.take_while(|message| future::ready(message.is_ok())).filter_map(|m| async { m.ok() });
    Ok(stream::iter(first).chain(rest).boxed())
}

type AnswerStream<T> = Streaming<Result<T, Status>>;

fn answers<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, LinkError>> + Send + 'static,
) -> Response<AnswerStream<T>> {
    Response::new(stream.map(|answer| answer.map_err(status)).boxed())
}

impl GrpcService {
    async fn call(&self, method: Method, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.0.call(method, message(request)?).await.map(Response::new).map_err(status)
    }
}

#[tonic::async_trait]
impl Raft for GrpcService {
    type StreamAppendStream = AnswerStream<RaftResponse>;

    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.call(Method::Append, request).await
    }

    async fn stream_append(
        &self,
        request: Request<tonic::Streaming<RaftRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        self.0.stream_append(messages(request).await?).await.map(answers).map_err(status)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.call(Method::Vote, request).await
    }

    async fn pre_vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.call(Method::PreVote, request).await
    }

    async fn transfer_leader(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        self.call(Method::TransferLeader, request).await
    }

    async fn install_snapshot(
        &self,
        request: Request<tonic::Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftResponse>, Status> {
        self.0.install_snapshot(messages(request).await?).await.map(Response::new).map_err(status)
    }
}

#[tonic::async_trait]
impl Cluster for GrpcService {
    type ProposeStream = AnswerStream<ProposeResponse>;

    async fn propose(
        &self,
        request: Request<tonic::Streaming<ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        self.0.propose(messages(request).await?).await.map(answers).map_err(status)
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        self.0.read_index(message(request)?).await.map(Response::new).map_err(status)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.status(message(request)?).await.map(Response::new).map_err(status)
    }

    async fn change(&self, request: Request<ChangeRequest>) -> Result<Response<ChangeResponse>, Status> {
        self.0.change(message(request)?).await.map(Response::new).map_err(status)
    }
}
