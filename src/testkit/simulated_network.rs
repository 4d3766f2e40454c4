//! The network of a simulation: nodes of one process call each other directly, over links that can be cut.
//!
//! With a [`NetworkModel`] every message takes its time, and may be lost or come twice; without one, calls are
//! immediate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::consensus::runtime::spawn;
use crate::consensus::transport::{
    ConnectionClass, LinkError, LocalNetwork, Method, Peer, PeerResult, PeerTransport, Streaming,
};
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::proto::{
    ChangeRequest, ChangeResponse, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse,
};

/// A connection on which nothing comes through for so long is given up, as by the pings of a real one.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// Messages on their way on one stream.
const ON_THE_WAY: usize = 64;

/// What becomes of one message.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageFate {
    pub delay: Duration,
    /// A call or a stream breaks: the sender does not know whether it arrived.
    pub lost: bool,
    /// A call arrives a second time, so much later.
    pub again: Option<Duration>,
}

/// Decides what becomes of messages.
pub trait NetworkModel: Send + Sync + 'static {
    fn fate(&self, from: u64, to: u64) -> MessageFate;
}

#[derive(Default)]
struct MemoryPeers {
    peers: BTreeMap<u64, Arc<dyn Peer>>,
    /// Ordered pairs that do not hear each other, in this direction.
    cut: BTreeSet<(u64, u64)>,
    /// Ordered pairs whose messages wait, in this direction, until the link speaks again.
    mute: BTreeSet<(u64, u64)>,
    /// How often each node was removed: links of an earlier life are dead.
    lives: BTreeMap<u64, u64>,
}

/// All nodes of the process.
pub struct Router {
    nodes: Mutex<MemoryPeers>,
    /// Changes whenever a node comes or goes or a link is cut: streams look again.
    changed: watch::Sender<u64>,
    weather: Option<Arc<dyn NetworkModel>>,
}

impl Router {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { nodes: Mutex::default(), changed: watch::Sender::new(0), weather: None })
    }

    pub fn under(weather: Arc<dyn NetworkModel>) -> Arc<Self> {
        Arc::new(Self { nodes: Mutex::default(), changed: watch::Sender::new(0), weather: Some(weather) })
    }

    /// Cuts one node off all others.
    pub fn isolate(&self, node: u64) {
        let mut nodes = self.nodes.lock();
        let others: Vec<u64> = nodes.peers.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            nodes.cut.insert((node, other));
            nodes.cut.insert((other, node));
        }
        drop(nodes);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Cuts one direction: `to` no longer hears `from`, nor answers it.
    pub fn cut(&self, from: u64, to: u64) {
        self.nodes.lock().cut.insert((from, to));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Undoes one [`Router::cut`].
    pub fn join(&self, from: u64, to: u64) {
        self.nodes.lock().cut.remove(&(from, to));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Messages in this direction wait until [`Router::unmute`], or until the connection is given up: nobody is told.
    pub fn mute(&self, from: u64, to: u64) {
        self.nodes.lock().mute.insert((from, to));
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn unmute(&self, from: u64, to: u64) {
        self.nodes.lock().mute.remove(&(from, to));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Every link works again.
    pub fn heal(&self) {
        let mut nodes = self.nodes.lock();
        nodes.cut.clear();
        nodes.mute.clear();
        drop(nodes);
        self.changed.send_modify(|n| *n += 1);
    }

    /// This router as seen from `node`, in its present life.
    pub fn transport(self: &Arc<Self>, node: u64) -> Arc<dyn PeerTransport> {
        let life = self.nodes.lock().life(node);
        Arc::new(MemoryTransport { router: self.clone(), from: node, life })
    }
}

impl LocalNetwork for Router {
    fn seen_from(self: Arc<Self>, node: NodeId) -> Arc<dyn PeerTransport> {
        self.transport(node.get())
    }

    fn register(&self, node: NodeId, peer: Arc<dyn Peer>) {
        self.nodes.lock().peers.insert(node.get(), peer);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Its streams break, and nothing that it still sends arrives.
    fn remove(&self, node: NodeId) {
        let node = node.get();
        let mut nodes = self.nodes.lock();
        if nodes.peers.remove(&node).is_some() {
            *nodes.lives.entry(node).or_default() += 1;
        }
        drop(nodes);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl MemoryPeers {
    fn life(&self, node: u64) -> u64 {
        self.lives.get(&node).copied().unwrap_or(0)
    }

    fn is_mute(&self, one: u64, other: u64) -> bool {
        self.mute.contains(&(one, other)) || self.mute.contains(&(other, one))
    }
}

struct MemoryTransport {
    router: Arc<Router>,
    from: u64,
    life: u64,
}

impl PeerTransport for MemoryTransport {
    fn link(&self, node: NodeId, _member: &MemberAddress, _lane: ConnectionClass) -> Arc<dyn Peer> {
        Arc::new(MemoryLink { router: self.router.clone(), from: self.from, life: self.life, to: node.get() })
    }
}

#[derive(Clone)]
struct MemoryLink {
    router: Arc<Router>,
    from: u64,
    /// Of the node at this end: after a restart it has other links.
    life: u64,
    to: u64,
}

/// Which way a message goes.
#[derive(Clone, Copy)]
enum MessageDirection {
    There,
    Back,
}

impl MemoryLink {
    /// The node at the other end, if requests get there and answers come back.
    fn up(&self) -> Result<Arc<dyn Peer>, LinkError> {
        let nodes = self.router.nodes.lock();
        if nodes.life(self.from) != self.life {
            return Err(LinkError::Unreachable("this node is down".into()));
        }
        if nodes.cut.contains(&(self.from, self.to)) || nodes.cut.contains(&(self.to, self.from)) {
            return Err(LinkError::Unreachable("the link is cut".into()));
        }
        nodes.peers.get(&self.to).cloned().ok_or_else(|| LinkError::Unreachable("the node is down".into()))
    }

    /// Resolves when the link goes down, or the node at its end is another one than `peer`, or nothing has come
    /// through for too long.
    fn down(&self, peer: &Arc<dyn Peer>) -> impl Future<Output = ()> + Send + 'static {
        let link = self.clone();
        let peer = Arc::downgrade(peer);
        let mut changed = self.router.changed.subscribe();
        async move {
            let mut mute_since: Option<Instant> = None;
            loop {
                match (link.up(), peer.upgrade()) {
                    (Ok(now), Some(then)) if Arc::ptr_eq(&now, &then) => {}
                    _ => return,
                }
                let mute = link.router.nodes.lock().is_mute(link.from, link.to);
                mute_since = if mute { mute_since.or_else(|| Some(Instant::now())) } else { None };
                let ended = match mute_since {
                    None => changed.changed().await.is_err(),
                    Some(since) => match timeout(KEEP_ALIVE.saturating_sub(since.elapsed()), changed.changed()).await {
                        Ok(changed) => changed.is_err(),
                        Err(_) => return,
                    },
                };
                if ended {
                    return;
                }
            }
        }
    }

    fn fate(&self, way: MessageDirection) -> MessageFate {
        let Some(weather) = &self.router.weather else { return MessageFate::default() };
        match way {
            MessageDirection::There => weather.fate(self.from, self.to),
            MessageDirection::Back => weather.fate(self.to, self.from),
        }
    }

    /// Resolves when messages this way come through.
    async fn spoken(&self, way: MessageDirection) {
        let pair = match way {
            MessageDirection::There => (self.from, self.to),
            MessageDirection::Back => (self.to, self.from),
        };
        let mut changed = self.router.changed.subscribe();
        while self.router.nodes.lock().mute.contains(&pair) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// One message of a call on its way.
    async fn carry(&self, way: MessageDirection) -> Result<(), LinkError> {
        if self.router.weather.is_some() {
            let fate = self.fate(way);
            if fate.lost {
                sleep(KEEP_ALIVE).await;
                return Err(LinkError::Broken("the connection broke".into()));
            }
            sleep(fate.delay).await;
        }
        self.spoken(way).await;
        Ok(())
    }

    async fn once<T>(&self, peer: Arc<dyn Peer>, answer: PeerResult<'_, T>) -> Result<T, LinkError> {
        let there_and_back = async {
            self.carry(MessageDirection::There).await?;
            let answer = answer.await;
            self.carry(MessageDirection::Back).await?;
            answer
        };
        tokio::select! {
            biased;
            () = self.down(&peer) => Err(LinkError::Unreachable("the link went down".into())),
            answer = there_and_back => answer,
        }
    }

    /// The same call may come a second time: nobody waits for its answer.
    fn repeat(&self, peer: &Arc<dyn Peer>, method: Method, request: &RaftRequest) {
        let Some(later) = self.fate(MessageDirection::There).again else { return };
        let (link, peer, request) = (self.clone(), peer.clone(), request.clone());
        spawn(async move {
            sleep(later).await;
            link.spoken(MessageDirection::There).await;
            if link.up().is_ok_and(|now| Arc::ptr_eq(&now, &peer)) {
                let _ = peer.call(method, request).await;
            }
        });
    }

    /// Messages of a stream arrive in their order, each after its time; a lost one ends it.
    fn flow<T: Send + 'static>(&self, way: MessageDirection, mut messages: Streaming<T>) -> Streaming<T> {
        if self.router.weather.is_none() {
            return messages;
        }
        let link = self.clone();
        let (sending, arriving) = mpsc::channel::<(Instant, T)>(ON_THE_WAY);
        spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = sending.closed() => return,
                    next = messages.next() => next,
                };
                let Some(message) = next else { return };
                let fate = link.fate(way);
                if fate.lost || sending.send((Instant::now() + fate.delay, message)).await.is_err() {
                    return;
                }
            }
        });
        let start = (self.clone(), arriving);
        let arrived = futures_util::stream::unfold(start, move |(link, mut arriving)| async move {
            let (due, message) = arriving.recv().await?;
            sleep_until(due).await;
            link.spoken(way).await;
            Some((message, (link, arriving)))
        });
        arrived.boxed()
    }

    fn requests<T: Send + 'static>(&self, peer: &Arc<dyn Peer>, requests: Streaming<T>) -> Streaming<T> {
        self.flow(MessageDirection::There, requests.take_until(self.down(peer)).boxed())
    }

    fn answers<T: Send + 'static>(
        &self,
        peer: &Arc<dyn Peer>,
        answers: Streaming<Result<T, LinkError>>,
    ) -> Streaming<Result<T, LinkError>> {
        until_down(self.flow(MessageDirection::Back, answers), self.down(peer))
    }
}

/// The answers break off when the link goes down.
fn until_down<T: Send + 'static>(
    answers: Streaming<Result<T, LinkError>>,
    down: impl Future<Output = ()> + Send + 'static,
) -> Streaming<Result<T, LinkError>> {
    let broken = futures_util::stream::once(async { Err(LinkError::Broken("the link went down".into())) });
    answers.take_until(down).chain(broken.filter(|_| async { true })).boxed()
}

impl Peer for MemoryLink {
    fn call(&self, method: Method, request: RaftRequest) -> PeerResult<'_, RaftResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.repeat(&peer, method, &request);
            self.once(peer.clone(), peer.call(method, request)).await
        })
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> PeerResult<'_, Streaming<Result<RaftResponse, LinkError>>> {
        Box::pin(async move {
            let peer = self.up()?;
            let requests = self.requests(&peer, requests);
            let answers = self.once(peer.clone(), peer.stream_append(requests)).await?;
            Ok(self.answers(&peer, answers))
        })
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> PeerResult<'_, RaftResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            let chunks = self.requests(&peer, chunks);
            self.once(peer.clone(), peer.install_snapshot(chunks)).await
        })
    }

    fn propose(
        &self,
        requests: Streaming<ProposeRequest>,
    ) -> PeerResult<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        Box::pin(async move {
            let peer = self.up()?;
            let requests = self.requests(&peer, requests);
            let answers = self.once(peer.clone(), peer.propose(requests)).await?;
            Ok(self.answers(&peer, answers))
        })
    }

    fn read_index(&self, request: ReadIndexRequest) -> PeerResult<'_, ReadIndexResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.read_index(request)).await
        })
    }

    fn status(&self, request: StatusRequest) -> PeerResult<'_, StatusResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.status(request)).await
        })
    }

    fn change(&self, request: ChangeRequest) -> PeerResult<'_, ChangeResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.change(request)).await
        })
    }
}
