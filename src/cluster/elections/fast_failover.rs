//! A leader whose process has ended is not waited for.
//!
//! Followers grant no vote while the leader's lease runs, so that nobody deposes a live one: that is most of the time
//! that a failover takes. But where nobody listens any more nobody leads. A follower that finds its leader's port
//! closed drops the lease that it gave, and asks with a pre-vote whether the others would elect it. They would only if
//! they have dropped theirs, too: a leader that a majority still hears stays, and no term is lost on it. Votes are as
//! safe as ever; reads use the read index, never a lease.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::consensus::identity::NodeIdentity;
use crate::consensus::node::RaftNode;
use crate::consensus::transport::PeerStats;
use crate::ids::NodeId;

/// Runs until the node stops.
pub(crate) async fn run(
    node: Arc<RaftNode>,
    identity: Arc<NodeIdentity>,
    stats: Arc<PeerStats>,
    stop: CancellationToken,
) {
    let gone = |leader: NodeId| stats.of(leader).is_some_and(|heard| heard.gone);
    let patience = node.timing().heartbeat;
    while !stop.is_cancelled() {
        let mut turns = stats.watch_turns();
        let leader = node.leader().filter(|leader| *leader != identity.node && gone(*leader));
        let Some(leader) = leader else {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = turns.changed() => {}
                () = next_leader(&node) => {}
            }
            continue;
        };
        tracing::info!(leader = leader.get(), "nobody listens where the leader was");
        node.drop_lease(leader).await;
        // One after the other, so that votes are not split: the first at once.
        let before_me = node.voters().into_iter().filter(|voter| *voter != leader && *voter < identity.node).count();
        for place in 0.. {
            if node.leader() != Some(leader) || !gone(leader) || stop.is_cancelled() {
                break;
            }
            if place % 2 == before_me % 2 {
                node.ask_to_lead().await;
            }
            let mut place = node.place();
            if place.current().leader == Some(leader) {
                place.changed_within(patience).await;
            }
        }
    }
}

async fn next_leader(node: &RaftNode) {
    let mut place = node.place();
    place.current();
    place.changed_within(Duration::MAX).await;
}
