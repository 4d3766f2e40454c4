//! Taking tokens back.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, RequestBody, RestResult, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::BadPayload;
use crate::ids::UnixMs;
use crate::limits;
use crate::model::error::Code;
use crate::proto::TokenRevoke;
use crate::proto::command::Intent;

/// The longest `jti` and the longest token that are taken.
const JTI: usize = 128;
const TOKEN: usize = 8_192;

/// `POST /system/tokens/revoke`: `{"token": …}`, or `{"jti": …}` for a token that nobody has at hand. Its sessions
/// end on every node as soon as that node has applied it.
pub(super) async fn revoke(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    auth::must_be_admin(&caller.0, "revoke tokens").or_fail(&gateway)?;
    let (jti, exp_ms) = body.read(&gateway, Code::InvalidData, |f| {
        if let Some(token) = f.maybe_text("token", TOKEN)? {
            // An expired one may be revoked as well: it changes nothing.
            let claims = gateway.keys.verify(&token, UnixMs(0));
            let claims = claims.map_err(|_| BadPayload::field("token", "is not a token of this cluster"))?;
            return Ok((claims.jti, claims.exp.saturating_mul(1_000)));
        }
        Ok((f.name("jti", JTI)?, f.maybe_time("expires")?.unwrap_or(u64::MAX)))
    })?;
    // Where nobody knows when it ends: no token that there is now can live longer.
    let now_ms = gateway.now_ms();
    // And what was renewed from it lives for so much longer at most.
    let renewed_ms = gateway.settings.paired_token.as_secs() * 1_000;
    let exp_ms = exp_ms.min(now_ms + limits::TOKEN_SECONDS * 1_000).max(now_ms + renewed_ms);
    let revoke = TokenRevoke { jti: jti.clone(), exp_ms, by: caller.0.sub.clone() };
    let outcome = gateway.propose_for(&caller.0, Intent::TokenRevoke(revoke)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).text("jti", &jti).time("timestamp", outcome.at_ms);
    }))
}
