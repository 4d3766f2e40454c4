//! The leader and a follower that do not reach each other, while a third node reaches both: the lead goes to that one.
//!
//! The follower cannot help itself. It hears no leader, but the third node does, and grants it no vote; so its devices would
//! be without a quorum for as long as the break lasts, though every node runs. A follower that is gone is gone for the
//! third node as well, and changes nothing: what counts is who has heard it since the leader did.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::cluster::membership::CAUGHT_UP;
use crate::cluster::peers::PROBE_EVERY;
use crate::cluster::raft_cluster::RaftCluster;
use crate::ids::NodeId;
use crate::proto::{PeerHeard, Principal, StatusResponse};

/// For so long after it was heard last it is looked closely whether somebody else hears a follower.
const CLOSELY: Duration = Duration::from_secs(3);
/// After a try that changed nothing.
const AGAIN: Duration = Duration::from_secs(2);
/// The lead is handed over within this time.
const HAND_OVER: Duration = Duration::from_millis(500);

/// When a node heard others last, as it said.
pub(crate) struct HeardBy {
    node: NodeId,
    heard: BTreeMap<NodeId, Instant>,
}

impl HeardBy {
    /// Of an answer that came just now.
    pub(crate) fn of(node: NodeId, status: &StatusResponse) -> Self {
        let now = Instant::now();
        let at = |one: &PeerHeard| Some((NodeId(one.node), now.checked_sub(Duration::from_millis(one.ago_ms))?));
        Self { node, heard: status.heard.iter().filter_map(at).collect() }
    }
}

/// What a leader sees of the voters.
struct LeaderReach<'a> {
    me: NodeId,
    voters: &'a [NodeId],
    heard: BTreeMap<NodeId, Instant>,
    /// A voter that was not heard for so long is lost.
    lost_after: Duration,
    /// So much later than this node another one must have heard it: a leader hears of every heartbeat.
    later: Duration,
}

impl LeaderReach<'_> {
    fn lost(&self, now: Instant) -> Vec<NodeId> {
        let silent = |voter: &NodeId| self.heard.get(voter).is_none_or(|at| now - *at >= self.lost_after);
        self.voters.iter().copied().filter(|voter| *voter != self.me && silent(voter)).collect()
    }

    /// The voter that reaches more of the others than this node does, if there is one.
    fn better_placed(&self, round: &[HeardBy], now: Instant) -> Option<NodeId> {
        let lost = self.lost(now);
        let gain = |third: &HeardBy| -> usize {
            let hears = |lost: &&NodeId| {
                let since =
                    self.heard.get(lost).map_or_else(|| now.checked_sub(self.lost_after), |at| Some(*at + self.later));
                third.heard.get(lost).zip(since).is_some_and(|(at, since)| *at > since)
            };
            lost.iter().filter(hears).count()
        };
        let loss = |third: &HeardBy| -> usize {
            let others =
                self.voters.iter().filter(|voter| ![self.me, third.node].contains(voter) && !lost.contains(voter));
            let deaf = |voter: &&NodeId| third.heard.get(voter).is_none_or(|at| now - *at >= PROBE_EVERY * 2);
            others.filter(deaf).count()
        };
        let there = round.iter().filter(|third| self.voters.contains(&third.node) && !lost.contains(&third.node));
        let gains = there.map(|third| (gain(third).saturating_sub(loss(third)), third.node));
        gains.filter(|(gain, _)| *gain > 0).max().map(|(_, node)| node)
    }
}

/// What a leader remembers between two looks.
#[derive(Debug, Default)]
pub(crate) struct BridgeWatch {
    tried: Option<Instant>,
}

impl BridgeWatch {
    /// After a round of questions: hands the lead to a node that reaches a voter which this one does not. Whether it is
    /// worth asking again soon.
    pub(crate) async fn look(&mut self, cluster: &RaftCluster, round: &[HeardBy]) -> bool {
        if cluster.node.leading().is_none() {
            return false;
        }
        let (now, voters) = (Instant::now(), cluster.node.voters());
        let heard = voters.iter().filter_map(|voter| Some((*voter, cluster.stats.of(*voter)?.at))).collect();
        let timing = cluster.node.timing();
        let (lost_after, later) = (timing.election_max * 2, timing.heartbeat * 2);
        let reach = LeaderReach { me: cluster.identity.node, voters: &voters, heard, lost_after, later };
        let lately = |voter: &NodeId| reach.heard.get(voter).is_some_and(|at| now - *at < CLOSELY);
        let again = reach.lost(now).iter().any(lately);
        let Some(to) = reach.better_placed(round, now) else { return again };
        let behind = cluster.node.behind(to).is_none_or(|entries| entries > CAUGHT_UP);
        if behind || self.tried.is_some_and(|tried| now - tried < AGAIN) {
            return again;
        }
        self.tried = Some(now);
        tracing::warn!(to = to.get(), lost = ?reach.lost(now), "this leader does not reach voters that another one does: it gives way");
        let me = Principal { sub: format!("node-{}", reach.me), ..Principal::default() };
        cluster.membership.give_role(to, "its node does not reach all nodes", &me).await;
        let stays = cluster.replica().state().master().is_some_and(|master| master.home != to.get());
        if stays {
            // The lead would come back to the master.
            return again;
        }
        let moved = cluster.membership.transfer_leadership(to, Instant::now() + HAND_OVER).await;
        tracing::info!(to = to.get(), ?moved, "the lead was handed over");
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Node 1 leads and heard the others so many milliseconds ago; the same of what they heard.
    fn better(own: &[(u64, u32)], others: &[(u64, &[(u64, u32)])]) -> Option<u64> {
        let now = Instant::now() + Duration::from_secs(3_600);
        let ago = |heard: &[(u64, u32)]| heard.iter().map(|(node, ms)| (NodeId(*node), now - MS * *ms)).collect();
        let round: Vec<HeardBy> =
            others.iter().map(|(node, heard)| HeardBy { node: NodeId(*node), heard: ago(heard) }).collect();
        let voters: Vec<NodeId> = (1..=if own.len() > 2 { 5 } else { 3 }).map(NodeId).collect();
        let (lost_after, later) = (MS * 600, MS * 100);
        let reach = LeaderReach { me: NodeId(1), voters: &voters, heard: ago(own), lost_after, later };
        reach.better_placed(&round, now).map(NodeId::get)
    }

    #[test]
    fn who_hears_what_the_leader_has_lost_is_better_placed() {
        assert_eq!(better(&[(2, 10), (3, 900)], &[(2, &[(1, 10), (3, 200)])]), Some(2));
        assert_eq!(better(&[(2, 10)], &[(2, &[(1, 10), (3, 200)])]), Some(2), "never heard");
        // Nobody is lost.
        assert_eq!(better(&[(2, 10), (3, 500)], &[(2, &[(1, 10), (3, 20)])]), None);
        // It is gone: the third node has not heard it since either.
        assert_eq!(better(&[(2, 10), (3, 900)], &[(2, &[(1, 10), (3, 890)])]), None);
        assert_eq!(better(&[(2, 10)], &[(2, &[(1, 10), (3, 700)])]), None);
        assert_eq!(better(&[(2, 10), (3, 900)], &[(2, &[(1, 10)])]), None);
        // Only voters that answered count, and the lost one itself is none of them.
        assert_eq!(better(&[(2, 10), (3, 900)], &[(3, &[(1, 10), (3, 0)]), (9, &[(3, 0)])]), None);
    }

    #[test]
    fn of_five_the_lead_goes_where_more_are_reached_not_only_others() {
        let own = [(2, 10), (3, 10), (4, 900), (5, 900)];
        let whole: &[(u64, u32)] = &[(1, 10), (2, 900), (3, 900), (4, 100), (5, 100)];
        assert_eq!(better(&own, &[(2, &[(1, 10), (3, 900), (4, 100)]), (3, whole)]), Some(3));
        // It gains one and loses one.
        assert_eq!(better(&own, &[(2, &[(1, 10), (3, 9_000), (4, 100)])]), None);
        assert_eq!(better(&own, &[(2, &[(1, 10), (3, 9_000), (4, 100), (5, 1)])]), Some(2));
    }
}
