//! The network of a simulation: nodes of one process call each other directly, over links that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::transport::{Answer, Lane, LinkError, Method, Peer, Streaming, Transport};
use super::types::Member;
use crate::proto::{
    ChangeRequest, ChangeResponse, ProposeRequest, ProposeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse,
};

#[derive(Default)]
struct Nodes {
    peers: BTreeMap<u64, Arc<dyn Peer>>,
    /// Ordered pairs that do not hear each other, in this direction.
    cut: BTreeSet<(u64, u64)>,
}

/// All nodes of the process.
pub struct Router {
    nodes: Mutex<Nodes>,
    /// Changes whenever a node comes or goes or a link is cut: streams look again.
    changed: watch::Sender<u64>,
}

impl Router {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { nodes: Mutex::default(), changed: watch::Sender::new(0) })
    }

    /// The node answers from now on.
    pub fn register(&self, node: u64, peer: Arc<dyn Peer>) {
        self.nodes.lock().peers.insert(node, peer);
        self.changed.send_modify(|n| *n += 1);
    }

    /// The node is gone: its streams break.
    pub fn remove(&self, node: u64) {
        self.nodes.lock().peers.remove(&node);
        self.changed.send_modify(|n| *n += 1);
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

    /// Every link works again.
    pub fn heal(&self) {
        self.nodes.lock().cut.clear();
        self.changed.send_modify(|n| *n += 1);
    }

    /// This router as seen from `node`.
    pub fn transport(self: &Arc<Self>, node: u64) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport { router: self.clone(), from: node })
    }
}

struct MemoryTransport {
    router: Arc<Router>,
    from: u64,
}

impl Transport for MemoryTransport {
    fn link(&self, node: u64, _member: &Member, _lane: Lane) -> Arc<dyn Peer> {
        Arc::new(Link { router: self.router.clone(), from: self.from, to: node })
    }
}

struct Link {
    router: Arc<Router>,
    from: u64,
    to: u64,
}

impl Link {
    /// The node at the other end, if requests get there and answers come back.
    fn up(&self) -> Result<Arc<dyn Peer>, LinkError> {
        let nodes = self.router.nodes.lock();
        if nodes.cut.contains(&(self.from, self.to)) || nodes.cut.contains(&(self.to, self.from)) {
            return Err(LinkError::Unreachable("the link is cut".into()));
        }
        nodes.peers.get(&self.to).cloned().ok_or_else(|| LinkError::Unreachable("the node is down".into()))
    }

    /// Resolves when the link goes down, or the node at its end is another one than `peer`.
    fn down(&self, peer: &Arc<dyn Peer>) -> impl Future<Output = ()> + Send + 'static {
        let link = Self { router: self.router.clone(), from: self.from, to: self.to };
        let peer = Arc::downgrade(peer);
        let mut changed = self.router.changed.subscribe();
        async move {
            loop {
                match (link.up(), peer.upgrade()) {
                    (Ok(now), Some(then)) if Arc::ptr_eq(&now, &then) => {}
                    _ => return,
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    async fn once<T>(&self, peer: Arc<dyn Peer>, answer: Answer<'_, T>) -> Result<T, LinkError> {
        tokio::select! {
            biased;
            () = self.down(&peer) => Err(LinkError::Unreachable("the link went down".into())),
            answer = answer => answer,
        }
    }
}

/// Requests stop, and then the answers break off, when the link goes down.
fn until_down<T: Send + 'static>(
    answers: Streaming<Result<T, LinkError>>,
    down: impl Future<Output = ()> + Send + 'static,
) -> Streaming<Result<T, LinkError>> {
    let broken = futures_util::stream::once(async { Err(LinkError::Broken("the link went down".into())) });
    answers.take_until(down).chain(broken.filter(|_| async { true })).boxed()
}

impl Peer for Link {
    fn call(&self, method: Method, request: RaftRequest) -> Answer<'_, RaftResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.call(method, request)).await
        })
    }

    fn stream_append(
        &self,
        requests: Streaming<RaftRequest>,
    ) -> Answer<'_, Streaming<Result<RaftResponse, LinkError>>> {
        Box::pin(async move {
            let peer = self.up()?;
            let requests = requests.take_until(self.down(&peer)).boxed();
            let answers = self.once(peer.clone(), peer.stream_append(requests)).await?;
            Ok(until_down(answers, self.down(&peer)))
        })
    }

    fn install_snapshot(&self, chunks: Streaming<SnapshotChunk>) -> Answer<'_, RaftResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            let chunks = chunks.take_until(self.down(&peer)).boxed();
            self.once(peer.clone(), peer.install_snapshot(chunks)).await
        })
    }

    fn propose(
        &self,
        requests: Streaming<ProposeRequest>,
    ) -> Answer<'_, Streaming<Result<ProposeResponse, LinkError>>> {
        Box::pin(async move {
            let peer = self.up()?;
            let requests = requests.take_until(self.down(&peer)).boxed();
            let answers = self.once(peer.clone(), peer.propose(requests)).await?;
            Ok(until_down(answers, self.down(&peer)))
        })
    }

    fn read_index(&self, request: ReadIndexRequest) -> Answer<'_, ReadIndexResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.read_index(request)).await
        })
    }

    fn status(&self, request: StatusRequest) -> Answer<'_, StatusResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.status(request)).await
        })
    }

    fn change(&self, request: ChangeRequest) -> Answer<'_, ChangeResponse> {
        Box::pin(async move {
            let peer = self.up()?;
            self.once(peer.clone(), peer.change(request)).await
        })
    }
}
