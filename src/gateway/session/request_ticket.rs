//! What a client asked for.

use std::sync::Arc;

/// What a client asked for, and what it gave to know the answer by: an ack callback, a `request_id`.
#[derive(Clone, Debug)]
pub(crate) struct RequestTicket {
    pub event: &'static str,
    pub ack: Option<i64>,
    pub request_id: Option<Arc<str>>,
}
