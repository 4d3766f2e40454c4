//! The answer to a heartbeat.
//!
//! openraft answers it when the disk has all entries that came before. A leader whose followers' disks need longer than its
//! lease then takes them for lost, stops its heartbeats, and is voted out, although all nodes hear each other. But a
//! heartbeat asks no more than whether the follower still follows, and that no disk has to confirm.

use std::time::Duration;

use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use super::state_machine::Raft;
use super::types::TypeConfig;

/// So long the disk is waited for. A fifth of a heartbeat's interval at default settings, after which the leader takes the
/// heartbeat for lost; most disks flush in less.
const PATIENCE: Duration = Duration::from_millis(10);

/// What the leader is told: after [`PATIENCE`] that this node follows it, if it does and has the entry that the leader
/// knows it to have, whatever the disk still has to flush.
pub(super) async fn answer(
    raft: &Raft,
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<AppendEntriesResponse<TypeConfig>, RaftError<TypeConfig>> {
    let (leader, known) = (request.vote, request.prev_log_id);
    let flushed = raft.append_entries(request);
    tokio::pin!(flushed);
    if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut flushed).await {
        return answer;
    }
    // Asked after the heartbeat was queued: openraft has taken it in when it answers, and renewed the leader's lease. A vote
    // for another one, and a log without that entry, the answer itself tells.
    let follows = raft.with_raft_state(move |state| {
        *state.vote_ref() == leader && known.is_none_or(|known| state.log_ids.last().is_some_and(|last| *last >= known))
    });
    tokio::select! {
        biased;
        answer = &mut flushed => return answer,
        follows = follows => if follows? { return Ok(AppendEntriesResponse::Success) },
    }
    flushed.await
}
