//! Asks every peer for its status now and then: a follower speaks with nobody but the leader otherwise.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::membership::settle;
use super::raft_cluster::RaftCluster;
use crate::consensus::transport::{Lane, Transport};
use crate::consensus::types::Member;
use crate::proto::StatusRequest;

/// How often each peer is asked, to know that it is there, how far away, and how far it has come.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

pub async fn run(cluster: Arc<RaftCluster>, transport: Arc<dyn Transport>, stop: CancellationToken) {
    loop {
        let me = cluster.identity.node;
        let questions = asked(&cluster).into_iter().map(|(peer, member)| {
            let link = transport.link(peer, &member, Lane::Control);
            let request = StatusRequest { handshake: Some(cluster.identity.handshake(peer)), fresh: false };
            let cluster = &cluster;
            async move {
                let since = Instant::now();
                if let Ok(Ok(status)) = tokio::time::timeout(PROBE_EVERY / 2, link.status(request)).await {
                    // At an address of which it is not known who is there, it says so itself.
                    let peer = if peer == 0 { status.node } else { peer };
                    cluster.stats.answered(peer, since);
                    if status.removed.contains(&me) {
                        cluster.end(format!(
                            "node {me} was removed from the cluster and serves no more: to use this machine again, \
                             give it a new id and an empty data folder"
                        ));
                    }
                    if !status.pristine {
                        cluster.members.vouch(&status.voters);
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

/// The members; and while none of them is known to lead, those that the configuration names: the members may be others
/// by now, and one of these may know them.
fn asked(cluster: &RaftCluster) -> Vec<(u64, Member)> {
    let mut peers = cluster.node.members();
    peers.remove(&cluster.identity.node);
    let mut all: Vec<_> = peers.clone().into_iter().collect();
    if cluster.node.leader().is_none() {
        all.extend(cluster.configured.iter().filter(|(id, _)| !peers.contains_key(id)).cloned());
    }
    all
}
