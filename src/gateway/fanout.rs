//! What was applied, on its way to the sessions.
//!
//! - [`hub`]: to every live session, in order; [`send_queue`]: what waits for one of them
//! - [`feed`]: pages of the change log, for those that are behind

pub(crate) mod feed;
pub mod hub;
pub mod send_queue;
