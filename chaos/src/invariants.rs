//! What must hold, one invariant a file. Each has a test that feeds it a history that breaks it.

use crate::finding::Finding;
use crate::history::History;

mod attackers;
pub mod availability;
mod deletes;
pub mod digests;
pub mod exactly_once;
mod honest;
pub mod inserts;
pub mod linearizable;
pub mod liveness;
pub mod masters;
mod memory;
pub mod newcomers;
pub mod no_stale_read;
pub mod one_log;
pub mod own_order;
mod pairing;
pub mod presence;
pub mod queues;
pub mod raft_leaders;
pub mod record_order;
mod removed_tables;
pub mod resumes;
mod revoked;
pub mod rights;
#[cfg(test)]
pub mod samples;
pub mod sessions;
pub mod stores;
pub mod sync_states;
pub mod syncs;
pub mod time_syncs;

type Invariant = fn(&History) -> Finding;

/// All but availability, which needs a bound.
pub const ALL: [(&str, Invariant); 27] = [
    ("exactly_once", exactly_once::check),
    ("one_log", one_log::check),
    ("digests", digests::check),
    ("linearizable", linearizable::check),
    ("no_stale_read", no_stale_read::check),
    ("sessions", sessions::check),
    ("resumes", resumes::check),
    ("record_order", record_order::check),
    ("own_order", own_order::check),
    ("queues", queues::check),
    ("newcomers", newcomers::check),
    ("inserts", inserts::check),
    ("syncs", syncs::check),
    ("time_syncs", time_syncs::check),
    ("stores", stores::check),
    ("sync_states", sync_states::check),
    ("presence", presence::check),
    ("rights", rights::check),
    ("revoked", revoked::check),
    ("pairing", pairing::check),
    ("removed_tables", removed_tables::check),
    ("masters", masters::check),
    ("raft_leaders", raft_leaders::check),
    ("liveness", liveness::check),
    ("honest", honest::check),
    ("memory", memory::check),
    ("attackers", attackers::check),
];
