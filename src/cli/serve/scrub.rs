//! Reads all that the node keeps now and then. Damage that it finds is seen by whoever looks after the storage.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::storage::Close;

/// Runs until the node stops, or damage was found.
pub(super) async fn run(storage: Arc<dyn Close>, every: Duration, stop: CancellationToken) {
    if every.is_zero() {
        return;
    }
    while tokio::time::timeout(every, stop.cancelled()).await.is_err() {
        tracing::info!("reading all data, to see whether it is whole");
        let scrubbed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            scrubbed = storage.scrub(limits::SCRUB_BYTES) => scrubbed,
        };
        match scrubbed {
            Ok(bytes) => tracing::info!(bytes, "all data was read and is whole"),
            Err(error) if error.kind() == ErrorKind::NotConnected => return,
            Err(error) => {
                tracing::error!(%error, "reading all data failed");
                return;
            }
        }
    }
}
