//! The cluster's time, where a wrong clock took it ahead.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, RestResult, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::proto::TimeBack;
use crate::proto::command::Intent;

/// `POST /system/time/back`: the applied time becomes that of the clocks, which the nodes hold against each other.
pub(super) async fn back(State(gateway): State<Arc<Gateway>>, caller: Caller) -> RestResult {
    auth::must_be_admin(&caller.0, "bring the cluster's time back").or_fail(&gateway)?;
    let order = Intent::TimeBack(TimeBack { by: caller.0.sub.clone() });
    let outcome = gateway.propose_for(&caller.0, order).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).time("timestamp", outcome.at_ms);
    }))
}
