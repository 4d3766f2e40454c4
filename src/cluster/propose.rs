//! A command's way to the leader: [`pending`] numbers and keeps it, [`forwarder`] brings it to the leader; there [`inbound`]
//! takes those of other nodes and [`batcher`] makes Raft entries of all that is ready, when [`linger`] has waited enough.

pub mod batcher;
pub mod forwarder;
pub mod inbound;
mod linger;
pub mod pending;
