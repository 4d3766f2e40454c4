//! Once the cluster's version was raised, programs that do not know it must not open the data folder: not even where no other
//! node is there to refuse them.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::cluster::SharedCluster;
use crate::storage;

/// Ends when the folder is marked, or the node stops.
pub(super) async fn run(cluster: SharedCluster, folder: PathBuf, stop: CancellationToken) {
    let mut news = cluster.replica().watch_coordinator_epoch();
    while !cluster.replica().state().has_versions() {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = news.changed() => if changed.is_err() { return },
        }
    }
    let marked = tokio::task::spawn_blocking(move || storage::format::keep_older_out(&folder)).await;
    if let Err(error) = marked.map_err(std::io::Error::other).flatten() {
        tracing::error!(%error, "the data folder could not be marked as one of a newer cluster version");
    }
}
