//! The table of events: the one place where an event's name stands. A row of [`from_client`] says of an event of clients
//! what it is called, how it is decoded, with which code it fails, and what the description says of it; a row of
//! [`to_client`] what an event of ours is called and what the description says.
//!
//! Each row names the variant of [`ClientEvent`] or [`ServerEvent`](super::ServerEvent) that it is of: one without a
//! row does not compile, nor does a row without one.

use bytes::Bytes;

use super::client::ClientEvent;
use super::fields::{BadPayload, Fields};
use crate::gateway::protocol::schema::FieldDescription;
use crate::model::error::Code;

mod from_client;
mod to_client;

pub use from_client::FROM_CLIENT;
pub use to_client::TO_CLIENT;

/// What the description says of an event.
pub struct EventDescription {
    pub name: &'static str,
    pub about: &'static str,
    pub fields: &'static [FieldDescription],
    /// The events that answer it.
    pub answers: &'static [&'static str],
}

/// How an event of clients is decoded.
pub(super) struct ClientEventDecoder {
    pub(super) name: &'static str,
    /// Of an error in its payload.
    pub(super) code: Code,
    pub(super) decode: fn(&Fields<'_>, &Bytes) -> Result<ClientEvent, BadPayload>,
}

impl ClientEventDecoder {
    pub(super) fn of(event: &str) -> Option<&'static Self> {
        from_client::DECODERS.iter().find(|decoder| decoder.name == event)
    }
}
