//! Keeps the log within a number of bytes. openraft builds a snapshot after so many entries, and keeps so many: of large
//! records that would be gigabytes.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::node::RaftNode;
use crate::ids::LogIndex;
use crate::storage::room::{DiskRoom, RoomState};
use crate::storage::{LogStore, SnapshotStore};

/// How often a node looks how large its log is.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct LogBound {
    pub node: Arc<RaftNode>,
    pub log: Arc<dyn LogStore>,
    pub snapshots: Arc<dyn SnapshotStore>,
    /// While the disk is low, half of it.
    pub bytes: u64,
    pub room: Arc<DiskRoom>,
}

impl LogBound {
    /// Until it is stopped, or consensus has ended.
    pub(crate) async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() && self.look().await {}
    }

    /// False: consensus has ended.
    async fn look(&self) -> bool {
        let raft = self.node.raft();
        let covered = raft.metrics().borrow_watched().snapshot.map_or(LogIndex(0), |covered| LogIndex(covered.index));
        // A snapshot costs as many bytes as there are rows: beside many of them the log may be larger.
        let bytes = if self.room.state() == RoomState::Plenty { self.bytes } else { self.bytes / 2 };
        let limit = bytes.max(self.snapshots.current().map_or(0, |snapshot| snapshot.bytes()) / 2);
        if self.log.bytes() <= limit {
            return true;
        }
        let purged = match self.log.leaves(limit / 2) {
            Some(index) if covered > LogIndex(0) => raft.trigger().purge_log(index.min(covered).get()).await.is_ok(),
            _ => true,
        };
        if self.log.bytes_behind(covered) <= limit {
            return purged;
        }
        tracing::debug!(bytes = self.log.bytes(), limit, "the log is large: building a snapshot");
        purged && raft.trigger().snapshot().await.is_ok()
    }
}
