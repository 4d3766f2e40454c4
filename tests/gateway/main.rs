//! The gateway over a cluster of one, through real sockets.

// Clippy's leave for tests covers test functions, not the helpers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod auth;
mod backpressure;
mod clocks;
mod collisions;
mod coverage;
mod describe;
mod disk_room;
mod door;
mod endpoints;
mod errors;
mod events;
mod from_client;
mod harness;
mod limits;
mod order;
mod pairing;
mod places;
mod presence;
mod principals;
mod queues;
mod quorum;
mod rates;
mod request_ids;
mod rest;
mod resume;
mod revoked_reads;
mod schema;
mod shares;
mod socketio;
mod sqlite;
mod stolen;
mod streams;
mod taken_away;
mod to_client;
mod transports;
mod values;
