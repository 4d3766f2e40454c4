//! Asks every peer for its status now and then: a follower speaks with nobody but the leader otherwise.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PROBE_EVERY;
use super::agreed_clock::AgreedClock;
use super::compared_clock::{ClockPeers, Compared};
use super::compared_digests::DigestVerdict;
use super::watch::{self, PeerWatch};
use crate::cluster::Cluster;
use crate::cluster::elections::bridge::{BridgeWatch, HeardBy};
use crate::cluster::membership::settle;
use crate::cluster::raft_cluster::RaftCluster;
use crate::consensus::transport::{ConnectionClass, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::{LogIndex, NodeId, UnixMs};
use crate::model::error::{Code, Error};
use crate::proto::StatusRequest;

/// How often until most of the voters have confirmed this node's clock.
const PROBE_SOON: Duration = Duration::from_millis(100);
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// Leadership is handed over within this time, or tried again.
const HAND_OVER: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    cluster: Arc<RaftCluster>,
    clock: Arc<AgreedClock>,
    transport: Arc<dyn PeerTransport>,
    stop: CancellationToken,
) {
    let mut reloads = cluster.replica().reloads();
    let mut peer_watch = PeerWatch::default();
    let mut bridge = BridgeWatch::default();
    loop {
        let mut place = cluster.node.place();
        place.current();
        let began = Instant::now();
        let me = cluster.identity.node;
        let questions = asked(&cluster).into_iter().map(|(peer, member)| {
            let link = transport.link(peer, &member, ConnectionClass::Control);
            let digests = cluster.replica().digests();
            let handshake = Some(cluster.identity.handshake(peer));
            let request = StatusRequest {
                handshake,
                digests_up_to: digests.newest().map(LogIndex::get),
                ..StatusRequest::default()
            };
            let request = cluster.addresses.tell(me, request);
            let cluster = &cluster;
            let clock = &clock;
            async move {
                let (asked_ms, since) = (clock.clock().now_ms(), Instant::now());
                let (mut compared, mut heard) = (None, None);
                if let Ok(Ok(status)) = tokio::time::timeout(PROBE_EVERY / 2, link.status(request)).await {
                    // At an address of which it is not known who is there, it says so itself.
                    let peer = if peer == NodeId(0) { NodeId(status.node) } else { peer };
                    if status.clock_ms > 0 {
                        compared = Some(Compared::new(peer, UnixMs(status.clock_ms), asked_ms, since.elapsed()));
                    }
                    cluster.stats.answered(peer, since);
                    cluster.stats.can_lead(peer, !status.cannot_lead);
                    heard = Some(HeardBy::of(peer, &status));
                    if status.removed.contains(&me.get()) {
                        let why = format!(
                            "node {me} was removed from the cluster and serves no more: to use this machine again, \
                             give it a new id and an empty data folder"
                        );
                        cluster.end(Error::new(Code::Configuration, why));
                    }
                    cluster.identity.learn(&status);
                    if !status.pristine {
                        cluster.members.vouch(status.voters.iter().copied().map(NodeId));
                    }
                    // What an older copy holds, or a node that takes no part, says nothing about who is right.
                    if status.version == env!("CARGO_PKG_VERSION") && cluster.identity.is_newest(&status) {
                        cluster.digests.hear(peer, &status.digests, |index| digests.at(index));
                    }
                    cluster.said(peer, status);
                }
                (compared, heard)
            }
        });
        let (round, heard): (Vec<_>, Vec<_>) = join_all(questions).await.into_iter().unzip();
        let round: Vec<Compared> = round.into_iter().flatten().collect();
        cluster.identity.refresh();
        let reachable = cluster.peers(false).into_iter().map(|peer| (peer.node, peer.reachable));
        watch::tell(peer_watch.look(Instant::now(), reachable));
        compare(&cluster, &clock, &round).await;
        let heard: Vec<HeardBy> = heard.into_iter().flatten().collect();
        let closely = bridge.look(&cluster, &heard).await;
        let before = std::mem::replace(&mut reloads, cluster.replica().reloads());
        if before != reloads {
            cluster.digests.forget();
        }
        cluster.judge_room();
        let verdict = cluster.judge_digests();
        if let DigestVerdict::Outvoted { index, .. } = verdict {
            say_why(&cluster, &transport, index).await;
            cluster.end(Error::new(Code::Storage, verdict.to_string()));
        }
        let undecided = verdict == DigestVerdict::Open;
        settle(&cluster.node).await;
        cluster.membership.record_told();
        let cut_off = !cluster.reaches_most();
        let confirmed = clock.is_confirmed();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = jumped(&clock) => {}
            () = cluster.replica().digests().due() => {}
            () = tokio::time::sleep(PROBE_SOON), if undecided || cut_off || closely => {}
            // The first leader waits for it.
            () = place.changed_within(PROBE_SOON), if !confirmed => {}
            () = tokio::time::sleep_until(began + PROBE_EVERY) => {}
        }
    }
}

/// This node stops, because its data differs since `index`: the others are told, or they might never learn which node it
/// was.
async fn say_why(cluster: &Arc<RaftCluster>, transport: &Arc<dyn PeerTransport>, index: LogIndex) {
    let digests = cluster.replica().digests().up_to(index);
    let told = asked(cluster).into_iter().filter(|(peer, _)| *peer != NodeId(0)).map(|(peer, member)| {
        let link = transport.link(peer, &member, ConnectionClass::Control);
        let handshake = Some(cluster.identity.handshake(peer));
        let request = StatusRequest { handshake, digests: digests.clone(), ..StatusRequest::default() };
        async move { tokio::time::timeout(PROBE_EVERY / 2, link.status(request)).await.is_ok() }
    });
    join_all(told).await;
}

/// The clock has jumped; but nobody is asked again without a pause.
async fn jumped(clock: &AgreedClock) {
    tokio::time::sleep(PROBE_PAUSE).await;
    clock.wants_comparison().await;
}

/// A node that reaches too few voters stands in no election. One whose clock is wrong does not lead, and hands leadership to
/// one whose is not.
async fn compare(cluster: &RaftCluster, clock: &AgreedClock, round: &[Compared]) {
    let node = &cluster.node;
    let voters = node.voters();
    let group = ClockPeers { me: cluster.identity.node, voters, leader: node.leader() };
    let right = clock.judge(&group, round);
    let reaches = cluster.reaches_most();
    if cluster.identity.is_confirmed() && cluster.cut_off.swap(!reaches, Ordering::Relaxed) == reaches {
        match reaches {
            true => tracing::info!("this node reaches most of the voters"),
            false => tracing::warn!("this node reaches too few of the voters: it stands in no election"),
        }
    }
    node.stand(clock.objection().is_none() && cluster.identity.is_confirmed() && reaches);
    if let Some(NodeId(to)) = right
        && node.leading().is_some()
    {
        let moved = node.transfer_leader(NodeId(to), HAND_OVER).await;
        tracing::info!(to, ?moved, "leadership is handed over: this node's clock is wrong");
    }
}

/// The members; and while none of them is known to lead, those that the configuration names: the members may be others
/// by now, and one of these may know them.
fn asked(cluster: &RaftCluster) -> Vec<(NodeId, MemberAddress)> {
    let mut peers = cluster.node.members();
    peers.remove(&cluster.identity.node);
    let mut all: Vec<_> = peers.clone().into_iter().collect();
    if cluster.node.leader().is_none() {
        all.extend(cluster.configured.iter().filter(|(id, _)| !peers.contains_key(id)).cloned());
    }
    all
}
