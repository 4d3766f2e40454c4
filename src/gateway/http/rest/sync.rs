//! Sync states of devices.

use std::sync::Arc;

use axum::extract::State;

use super::devices::{not_registered, unexpected};
use super::{OrFail, PathParts, QueryFields, RequestBody, RestResult, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::Object;
use crate::ids::Seq;
use crate::limits;
use crate::model::cursor::Cursor;
use crate::model::error::Code;
use crate::model::sync::{status_name, status_of};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{SyncState, SyncStatePut};

/// The greatest `pending_changes_count` that can be set.
const PENDING: u64 = 1_000_000_000_000;

/// `GET /sync/state/{device_id}`
pub(super) async fn state(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(id): PathParts<String>,
    asked: QueryFields,
) -> RestResult {
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let found = {
        let state = gateway.cluster.replica().state();
        state.sync_state(&id).map(|sync| (sync.clone(), state.pending_changes(sync)))
    };
    let (sync, pending) = found.ok_or_else(|| not_registered(&gateway, &id))?;
    let cursor = gateway.cursor(Seq(sync.cursor_seq));
    Ok(answer(|o| {
        fill(o, &sync, pending, &cursor);
        source.tell(o);
    }))
}

/// `PUT /sync/state/{device_id}`
pub(super) async fn put_state(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(device_id): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    auth::may_speak_for(&caller.0, &device_id).or_fail(&gateway)?;
    let by = caller.0.sub.clone();
    let put = body.read(&gateway, Code::InvalidData, |f| {
        Ok(SyncStatePut {
            device_id,
            sync_status: f.maybe_word("sync_status", "pending, syncing, synced or error", status_of)?.map(Into::into),
            pending_changes_count: f.maybe_count("pending_changes_count", PENDING)?,
            last_error_message: f.maybe_text("last_error_message", limits::ERROR_MESSAGE)?,
            by,
        })
    })?;
    let outcome = gateway.propose_for(&caller.0, Intent::SyncStatePut(put)).await.or_fail(&gateway)?;
    let Some(Given::SyncState(sync)) = outcome.result else { return Err(unexpected(&gateway)) };
    // Counted against the newest change that this node has applied: another node's may be newer by a moment.
    let pending = gateway.cluster.replica().state().pending_changes(&sync);
    let cursor = gateway.cursor(Seq(sync.cursor_seq));
    Ok(answer(|o| {
        o.flag("success", true).object("sync_state", |o| fill(o, &sync, pending, &cursor));
    }))
}

fn fill(o: &mut Object<'_>, sync: &SyncState, pending: u64, cursor: &Cursor) {
    o.text("device_id", &sync.device_id).text("sync_status", status_name(sync.sync_status()));
    o.number("pending_changes_count", pending);
    match sync.last_sync_ms {
        0 => o.raw("last_sync_timestamp", b"null"),
        ms => o.time("last_sync_timestamp", ms),
    };
    o.text_or_null("last_error_message", sync.last_error_message.as_deref().unwrap_or_default());
    o.text("cursor", &cursor.to_string()).time("updated_at", sync.updated_ms);
}
