//! The sessions of a node that cannot serve them, because it has lost its quorum or its clock is wrong: they are told, and
//! closed, so that their devices go elsewhere.
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

/// Runs until it is dropped. Whoever comes while it lasts is told after as long again.
pub(super) async fn run(gateway: Arc<Gateway>) {
    let patience = gateway.settings.lost_after;
    let step = (patience / 8).clamp(Duration::from_millis(20), Duration::from_millis(250));
    let mut waiting_since = Instant::now();
    loop {
        sleep(step).await;
        let Some(why) = cannot_serve(&gateway) else {
            waiting_since = Instant::now();
            continue;
        };
        if waiting_since.elapsed() >= patience {
            waiting_since = Instant::now();
            let sessions = gateway.hub.sessions();
            if sessions > 0 {
                tracing::warn!(sessions, "sessions are sent to other nodes: {why}");
            }
            let mut error = Error::new(Code::Timeout, format!("{why}: connect to another node"));
            error.retry_after_ms = Some(COME_BACK_MS);
            gateway.hub.close_all(&error);
        }
    }
}

fn cannot_serve(gateway: &Gateway) -> Option<String> {
    if gateway.cluster.status().quorum {
        return gateway.cluster.objection();
    }
    let patience = gateway.settings.lost_after.as_secs_f32();
    Some(format!("this node has been without a quorum for {patience} s, so nothing can be written here"))
}
