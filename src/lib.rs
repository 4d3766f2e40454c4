//! Tillsync keeps the devices of a store in step: a small Raft cluster behind a documented
//! REST, Socket.IO and WebSocket API.
//!
//! What it promises: `docs/design.md`; the API, which comments call the document: `docs/api.md`; words: `GLOSSARY.md`.
//!
//! The house, from the ground up; each floor imports only what is below it:
//!
//! - [`allocator`]: where memory comes from
//! - [`proto`]: the messages of the log, the rows and the wire between nodes
//! - [`ids`]: the numbers that must not be taken for one another, each a type of its own
//! - [`clock`], [`limits`], [`metrics`], [`sizes`], [`supervised`]: time, every bound, what is counted, how large what
//!   follows one another is, tasks that may not fail
//! - [`model`]: the pure core: commands in, state and effects out
//! - [`config`], [`token`]: every setting of a node; the tokens that clients carry and the key that signs them
//! - [`tls`]: the certificates of nodes and gateways, and connections with or without them
//! - [`storage`]: all that knows sled: the Raft log and the rows on disk
//! - [`consensus`]: all that knows openraft: one replicated log of commands
//! - [`cluster`]: proposals and reads to the leader, wherever it is; presence, elections
//! - [`gateway`]: the documented API on one port
//! - [`client`]: a client of that API, for the commands and for tests
//! - `backup`: where backups are kept, and when one is due
//! - [`cli`]: the commands of the `tillsync` binary
//! - `testkit`: what only tests, fuzz targets and chaos use, among it the doubles of network, disk and clock; behind a
//!   feature of that name

// What integration tests share with `testkit` names the crate.
#[cfg(any(test, feature = "testkit"))]
extern crate self as tillsync;

// Half of the code, and no part of what is fuzzed.
pub mod allocator;
#[cfg(not(fuzzing))]
mod backup;
#[cfg(not(fuzzing))]
pub mod cli;
#[cfg(not(fuzzing))]
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod consensus;
pub mod gateway;
pub mod ids;
pub mod limits;
mod metrics;
pub mod model;
mod sizes;
pub mod storage;
mod supervised;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod tls;
pub mod token;

/// The protobuf messages of `proto/tillsync/v1`.
pub mod proto {
    #![allow(clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]
    tonic::include_proto!("tillsync.v1");
}
