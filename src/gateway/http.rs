//! HTTP: the connections of the one port, and REST.
//!
//! - [`connections`]: each step of a request within its time
//! - [`rest`]: the endpoints; [`listings`]: large answers, one at a time

pub mod connections;
pub(crate) mod listings;
pub mod rest;
