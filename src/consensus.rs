//! All that knows openraft: one replicated log of commands, applied to this node's [`replica::Replica`].
//!
//! - [`types`], [`codec`], [`wire`]: what an entry, a vote, a call is, and its bytes
//! - [`runtime`]: tokio, with random numbers that a simulation can seed
//! - [`log_adapter`], [`state_machine`]: openraft's storage over ours
//! - [`transport`]: the calls between nodes; [`grpc`] carries them, and in a simulation the `testkit`
//! - [`digests`]: what nodes compare
//! - `peer_tls`: mutual TLS under gRPC
//! - [`identity`]: who this node is to the others, and whether it is the one that they know
//! - [`network`]: openraft's calls out; [`service`]: the peers' calls in; `heartbeat`: the answer to one of them
//! - [`node`]: one running member; [`leadership`]: who leads, as it sees it; [`write`](mod@write): what became of a
//!   write; [`group`]: who is a member, and changes of that; [`members`]: who may speak to this node
//! - [`recovery`]: a stopped node's folder becomes a cluster of one

pub(crate) mod codec;
pub(crate) mod digests;
pub(crate) mod group;
pub(crate) mod grpc;
mod heartbeat;
pub(crate) mod identity;
pub(crate) mod leadership;
pub(crate) mod log_adapter;
pub(crate) mod log_bound;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod node;
mod peer_tls;
pub(crate) mod recovery;
pub mod replica;
pub mod runtime;
pub(crate) mod segment;
pub(crate) mod service;
pub(crate) mod state_machine;
#[cfg(test)]
mod suite;
pub mod transport;
pub mod types;
pub(crate) mod wire;
pub(crate) mod write;
