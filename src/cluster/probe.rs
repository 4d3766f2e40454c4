//! Asks every peer for its status now and then: a follower speaks with nobody but the leader otherwise.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::membership::settle;
use super::raft_cluster::RaftCluster;
use crate::consensus::transport::{Lane, Transport};
use crate::proto::StatusRequest;

/// How often each peer is asked, to know that it is there, how far away, and how far it has come.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

pub async fn run(cluster: Arc<RaftCluster>, transport: Arc<dyn Transport>, stop: CancellationToken) {
    loop {
        let me = cluster.identity.node;
        let members = cluster.node.members().into_iter().filter(|(peer, _)| *peer != me);
        let questions = members.map(|(peer, member)| {
            let link = transport.link(peer, &member, Lane::Control);
            let request = StatusRequest { handshake: Some(cluster.identity.handshake(peer)), fresh: false };
            let cluster = &cluster;
            async move {
                let since = Instant::now();
                if let Ok(Ok(status)) = tokio::time::timeout(PROBE_EVERY / 2, link.status(request)).await {
                    cluster.stats.answered(peer, since);
                    if status.removed.contains(&me) {
                        cluster.end(format!(
                            "node {me} was removed from the cluster and serves no more: to use this machine again, \
                             give it a new id and an empty data folder"
                        ));
                    }
                    cluster.said(peer, status);
                }
            }
        });
        join_all(questions).await;
        settle(&cluster.node).await;
        if tokio::time::timeout(PROBE_EVERY, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}
