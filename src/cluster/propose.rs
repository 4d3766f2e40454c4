//! A command's way to the leader: [`pending`] numbers and keeps it, [`forwarder`] brings it to the leader; there [`inbound`]
//! takes those of other nodes and [`batcher`] makes Raft entries of all that is ready, when [`linger`] has waited enough.

pub(crate) mod batcher;
pub(crate) mod forwarder;
pub(crate) mod inbound;
mod linger;
pub(crate) mod pending;
