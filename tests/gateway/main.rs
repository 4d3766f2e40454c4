//! The gateway over a cluster of one, through real sockets.

// Clippy's leave for tests covers test functions, not the helpers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod auth;
mod backpressure;
mod errors;
mod events;
mod harness;
mod limits;
mod presence;
mod rates;
mod rest;
mod resume;
mod socketio;
mod streams;
