//! What must hold, one invariant a file. Each has a test that feeds it a history that breaks it.

use crate::finding::Finding;
use crate::history::History;

mod attackers;
pub(crate) mod availability;
mod deletes;
pub(crate) mod digests;
pub(crate) mod exactly_once;
mod honest;
pub(crate) mod inserts;
pub(crate) mod linearizable;
pub(crate) mod liveness;
pub(crate) mod masters;
mod memory;
pub(crate) mod newcomers;
pub(crate) mod no_stale_read;
pub(crate) mod one_log;
pub(crate) mod own_order;
mod pairing;
pub(crate) mod presence;
pub(crate) mod queues;
pub(crate) mod raft_leaders;
pub(crate) mod record_order;
mod removed_tables;
pub(crate) mod resumes;
mod revoked;
pub(crate) mod rights;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod sessions;
pub(crate) mod stores;
pub(crate) mod sync_states;
pub(crate) mod syncs;
pub(crate) mod time_syncs;
mod versions;

type Invariant = fn(&History) -> Finding;

/// All but availability, which needs a bound.
pub(crate) const ALL: [(&str, Invariant); 28] = [
    ("exactly_once", exactly_once::check),
    ("one_log", one_log::check),
    ("digests", digests::check),
    ("versions", versions::check),
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
