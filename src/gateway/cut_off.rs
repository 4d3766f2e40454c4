//! The sessions of a node that has lost its quorum: they are told, and closed, so that their devices go elsewhere.
//!
//! Nothing else would tell them: their connections are as good as before, their requests only take long and fail, and no
//! change of another device reaches them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Gateway;
use crate::model::error::{Code, Error};

/// How soon a client may come back, if it knows no other node. Milliseconds.
const COME_BACK_MS: u64 = 1_000;

/// Runs until it is dropped. Whoever comes while the quorum is away is told after as long again.
pub async fn run(gateway: Arc<Gateway>) {
    let patience = gateway.settings.lost_after;
    let step = (patience / 8).clamp(Duration::from_millis(20), Duration::from_millis(250));
    let mut waiting_since = Instant::now();
    loop {
        sleep(step).await;
        if gateway.cluster.status().quorum {
            waiting_since = Instant::now();
        } else if waiting_since.elapsed() >= patience {
            waiting_since = Instant::now();
            let sessions = gateway.hub.sessions();
            if sessions > 0 {
                tracing::warn!(sessions, "this node has no quorum: its sessions are sent to other nodes");
            }
            let why = format!(
                "this node has been without a quorum for {} s, so nothing can be written here: connect to another node",
                patience.as_secs_f32()
            );
            let mut error = Error::new(Code::Timeout, why);
            error.retry_after_ms = Some(COME_BACK_MS);
            gateway.hub.close_all(&error);
        }
    }
}
