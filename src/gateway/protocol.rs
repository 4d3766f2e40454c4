//! The documented events: what clients send ([`ClientEvent`]) and what they are sent ([`ServerEvent`]).
//!
//! Both socket transports decode to and encode from these two enums; the transports differ only in the envelope.
//! A record's data stays the client's JSON bytes: checked once, sliced out of its frame, copied into what goes out.
//!
//! - [`events`]: the table of events, which names each once and describes it
//! - [`schema`]: a field of a payload: its name, what it may hold, its schema and an example; [`payloads`]: fields that
//!   payloads have in common

mod bodies;
mod client;
mod decode;
pub mod events;
mod fields;
pub(crate) mod json;
pub(crate) mod payloads;
pub mod schema;
mod server;

pub use bodies::{access, policy};
pub use client::{ClientEvent, ClientRequest, OnlineAsk, SyncAsk};
pub use decode::{decode, election, online, request_id, resolution, role_and_reason, update};
pub use fields::{BadPayload, Fields, envelope, event_array};
pub use server::{
    Acknowledged, ServerEvent, SyncChange, SyncPage, class_rights, clock_ahead, error_tail, initiator, listed_conflict,
    sync_change,
};

use std::sync::Arc;

use crate::model::error::{Code, Error};

/// Why an event was not understood. The connection stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    pub error: Error,
    /// What is wrong with the payload, where it is one field.
    pub field: Option<String>,
    /// The device that the payload names, if it does: a malformed sync request is answered with `sync_error`.
    pub device_id: Option<String>,
    /// The request's id, if it has a usable one.
    pub request_id: Option<Arc<str>>,
}

impl DecodeError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { error: Error::new(code, message), field: None, device_id: None, request_id: None }
    }
}

#[cfg(test)]
mod tests;
