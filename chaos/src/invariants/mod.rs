//! What must hold, one invariant a file. Each has a test that feeds it a history that breaks it.

use crate::checker::Finding;
use crate::history::History;

pub mod availability;
mod deletes;
pub mod digests;
pub mod exactly_once;
pub mod linearizable;
pub mod liveness;
pub mod masters;
pub mod no_stale_read;
pub mod one_log;
pub mod own_order;
pub mod raft_leaders;
#[cfg(test)]
pub mod samples;
pub mod sessions;
pub mod sync_states;
pub mod syncs;

type Invariant = fn(&History) -> Finding;

/// All but availability, which needs a bound.
pub const ALL: [(&str, Invariant); 12] = [
    ("exactly_once", exactly_once::check),
    ("one_log", one_log::check),
    ("digests", digests::check),
    ("linearizable", linearizable::check),
    ("no_stale_read", no_stale_read::check),
    ("sessions", sessions::check),
    ("own_order", own_order::check),
    ("syncs", syncs::check),
    ("sync_states", sync_states::check),
    ("masters", masters::check),
    ("raft_leaders", raft_leaders::check),
    ("liveness", liveness::check),
];
