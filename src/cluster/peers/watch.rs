//! Which peers are out of reach, for the log: a line when one goes, one when it is back, a reminder an hour.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::NodeId;
use tokio::time::Instant;

const REMIND_EVERY: Duration = Duration::from_secs(3_600);

/// What the operator is told of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerNews {
    Gone,
    StillGone(Duration),
    Back(Duration),
}

/// The peers that are out of reach.
#[derive(Default)]
pub(super) struct PeerWatch(BTreeMap<NodeId, Absence>);

struct Absence {
    since: Instant,
    reminded: Instant,
}

impl PeerWatch {
    /// What is new, of all peers as they are now: `true`, one can be reached. Nothing is known of one that was never
    /// reached since this node was started but that it is away.
    pub(super) fn look(
        &mut self,
        now: Instant,
        peers: impl IntoIterator<Item = (NodeId, bool)>,
    ) -> Vec<(NodeId, PeerNews)> {
        let peers: BTreeMap<NodeId, bool> = peers.into_iter().collect();
        // One that was removed is missed no more.
        self.0.retain(|peer, _| peers.contains_key(peer));
        let mut news = Vec::new();
        for (peer, reachable) in peers {
            match (self.0.get_mut(&peer), reachable) {
                (None, false) => {
                    self.0.insert(peer, Absence { since: now, reminded: now });
                    news.push((peer, PeerNews::Gone));
                }
                (Some(absence), false) if now - absence.reminded >= REMIND_EVERY => {
                    absence.reminded = now;
                    news.push((peer, PeerNews::StillGone(now - absence.since)));
                }
                (Some(absence), true) => {
                    news.push((peer, PeerNews::Back(now - absence.since)));
                    self.0.remove(&peer);
                }
                (None, true) | (Some(_), false) => {}
            }
        }
        news
    }
}

/// Logs the news.
pub(super) fn tell(news: Vec<(NodeId, PeerNews)>) {
    for (peer, news) in news {
        let peer = peer.get();
        match news {
            PeerNews::Gone => tracing::warn!(peer, "a node cannot be reached"),
            PeerNews::StillGone(away) => {
                tracing::warn!(peer, hours = away.as_secs() / 3_600, "a node still cannot be reached")
            }
            PeerNews::Back(away) => tracing::info!(peer, seconds = away.as_secs(), "a node can be reached again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_when_one_goes_one_when_it_is_back_and_one_an_hour() {
        let (mut watch, begin) = (PeerWatch::default(), Instant::now());
        let mut lines = Vec::new();
        // A day by the second, with node 2 away for the last 23 hours of it.
        for second in 0..86_400 {
            let now = begin + Duration::from_secs(second);
            lines.extend(watch.look(now, [(NodeId(2), second < 3_600), (NodeId(3), true)]));
        }
        assert_eq!(lines.len(), 23, "{lines:?}");
        assert_eq!(lines[0], (NodeId(2), PeerNews::Gone));
        assert_eq!(lines[22], (NodeId(2), PeerNews::StillGone(Duration::from_secs(22 * 3_600))));
        let back = begin + Duration::from_secs(86_400);
        assert_eq!(watch.look(back, [(NodeId(2), true), (NodeId(3), false)]).len(), 2);
        assert_eq!(watch.look(back, [(NodeId(2), true)]), [], "node 3 was removed");
    }
}
