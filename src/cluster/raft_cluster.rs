//! The cluster as this node sees it: its member of the Raft group, its proposals and its reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::inbox::Inbox;
use super::outbox::Outbox;
use super::reader::Reader;
use super::{Cluster, Peer, Status};
use crate::clock::SharedClock;
use crate::consensus::node::{Node, StartError};
use crate::consensus::replica::Replica;
use crate::consensus::service::ClusterCalls;
use crate::consensus::transport::{Identity, PeerStats, Streaming};
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::{Outcome, ProposeRequest, ProposeResponse, ReadIndexResponse, StatusResponse};
use crate::storage::BoxFuture;

/// A peer that was not heard for this many of the longest election time-outs is out of reach.
const SILENT: u32 = 4;

pub struct RaftCluster {
    pub(super) identity: Arc<Identity>,
    pub(super) clock: SharedClock,
    pub(super) node: Arc<Node>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) reader: Arc<Reader>,
    pub(super) stats: Arc<PeerStats>,
}

impl RaftCluster {
    /// The member of the Raft group.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Moves leadership to `to`, if this node leads, and waits until it has arrived there.
    pub async fn transfer_leader(&self, to: u64, within: Duration) -> Result<(), StartError> {
        self.node.transfer_leader(to, within).await
    }

    fn peers(&self) -> Vec<Peer> {
        let patience = self.node.timing().election_max * SILENT;
        // Peers that are not spoken with otherwise are asked for their status now and then.
        let patience = patience.max(super::boot::PROBE_EVERY * 3);
        let others = self.node.members().into_keys().filter(|node| *node != self.identity.node);
        others
            .map(|node| match self.stats.of(node) {
                None => Peer { node, ..Peer::default() },
                Some(heard) => {
                    let silent_for = Instant::now() - heard.at;
                    let reachable = silent_for < patience;
                    Peer { node, reachable, silent_for: Some(silent_for), latency: heard.round_trip }
                }
            })
            .collect()
    }
}

impl Cluster for RaftCluster {
    fn node_id(&self) -> u64 {
        self.identity.node
    }

    fn clock(&self) -> &SharedClock {
        &self.clock
    }

    fn replica(&self) -> &Arc<Replica> {
        self.node.replica()
    }

    fn propose(&self, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        let queued = self.outbox.push(intent, self.clock.now_ms());
        Box::pin(async move {
            // Whatever becomes of the command, the outbox answers it, at its deadline at the latest.
            queued?.await.unwrap_or_else(|_| Err(Error::new(Code::Unavailable, "the node is shutting down")))
        })
    }

    fn read_barrier(&self) -> BoxFuture<'static, Result<(), Error>> {
        let reader = self.reader.clone();
        Box::pin(async move { reader.barrier().await })
    }

    fn status(&self) -> Status {
        let lease = self.node.timing().election_max;
        let view = self.node.view();
        let quorum = match view.leader {
            _ if view.leads => view.voters.len() == 1 || view.quorum_acked.is_some_and(|ago| ago < lease),
            Some(leader) => self.stats.of(leader).is_some_and(|heard| Instant::now() - heard.at < lease * 2),
            None => false,
        };
        Status {
            leader: view.leader,
            term: view.term,
            last_log_index: view.last_log_index,
            quorum,
            peers: self.peers(),
            voters: view.voters,
        }
    }
}

impl ClusterCalls for RaftCluster {
    fn propose(&self, _from: u64, requests: Streaming<ProposeRequest>) -> Streaming<ProposeResponse> {
        self.inbox.accept(requests)
    }

    fn read_index(&self) -> BoxFuture<'_, ReadIndexResponse> {
        Box::pin(self.reader.answer())
    }

    fn status(&self) -> StatusResponse {
        let status = Cluster::status(self);
        let state = self.replica().hot();
        StatusResponse {
            node: self.identity.node,
            leader: status.leader,
            term: status.term,
            last_log_index: status.last_log_index,
            applied_index: state.applied().index,
            digest: state.digest(),
            master: state.meta().master.clone(),
            master_term: state.meta().term,
            head_seq: state.meta().head_seq,
            sessions: 0,
            version: env!("CARGO_PKG_VERSION").into(),
            voters: status.voters,
        }
    }
}
