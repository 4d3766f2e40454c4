//! Who leads, as a node sees it: watched by everything that brings work to the leader.

use std::time::Duration;

use openraft::ServerState;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;

use super::types::TypeConfig;
use crate::ids::{NodeId, RaftTerm};

type Metrics = RaftServerMetrics<TypeConfig>;

/// Changes with leadership and membership only.
#[derive(Clone)]
pub struct LeadershipWatch(WatchReceiverOf<TypeConfig, Metrics>);

/// A node's place in the group at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The term in which this node leads, if it does.
    pub leading: Option<RaftTerm>,
    /// The leader as far as this node knows.
    pub leader: Option<NodeId>,
}

fn place(metrics: &Metrics) -> Leadership {
    let leads = metrics.state == ServerState::Leader && metrics.vote.committed;
    let term = RaftTerm(metrics.vote.leader_id.term);
    Leadership { leading: leads.then_some(term), leader: metrics.current_leader }
}

impl LeadershipWatch {
    pub(super) fn new(metrics: WatchReceiverOf<TypeConfig, Metrics>) -> Self {
        Self(metrics)
    }

    pub fn now(&self) -> Leadership {
        place(&self.0.borrow_watched())
    }

    /// The same; what was seen is no news any more.
    pub fn current(&mut self) -> Leadership {
        place(&self.0.borrow_and_update())
    }

    /// Resolves with the next news. False: consensus has ended, there will be none.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Waits for news, but no longer than `within`.
    pub async fn changed_within(&mut self, within: Duration) {
        let changed = async {
            if !self.changed().await {
                // Nobody may spin on that.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(within, changed).await;
    }
}
