//! What a node knows of the others: [`probe`] asks each for its status, [`watch`] tells who came and went. From what they
//! say, [`agreed_clock`] holds the node's clock against theirs ([`clock_skews`] shows them), [`compared_digests`] its data,
//! and [`shared_room`] what the room on the nodes' disks allows.

use std::time::Duration;

use tokio::time::Instant;

use crate::consensus::node::Timing;
use crate::consensus::transport::PeerStats;
use crate::ids::NodeId;

pub(crate) mod agreed_clock;
pub(crate) mod clock_skews;
pub(crate) mod compared_clock;
pub(crate) mod compared_digests;
pub(crate) mod probe;
pub(crate) mod shared_room;
mod watch;

/// How often each peer is asked, to know that it is there, how far away, and how far it has come.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A peer that was not heard for this many of the longest election time-outs is out of reach.
const SILENT: u32 = 4;

/// Whether a peer was heard lately.
pub(super) fn in_reach(stats: &PeerStats, timing: Timing, node: NodeId) -> bool {
    // Peers that are not spoken with otherwise are asked for their status now and then.
    let patience = (timing.election_max * SILENT).max(PROBE_EVERY * 3);
    stats.of(node).is_some_and(|heard| Instant::now() - heard.at < patience)
}
