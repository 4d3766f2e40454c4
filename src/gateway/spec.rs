//! The API described by machine-readable tables: `/openapi.json`, `/asyncapi.json`, and a page to read each. The pages
//! that people write, `docs/api.md` and its companions, are held against the same tables.
//!
//! - [`openapi`]: made from the table that routes the endpoints (`http::rest::routes`); [`asyncapi`]: made from the table
//!   of events (`protocol::events`)
//! - [`page`]: the pages under `/docs`; [`coverage`]: every event and endpoint with its test

pub mod asyncapi;
pub mod coverage;
pub mod openapi;
pub(crate) mod page;

/// What both descriptions say of the API as a whole.
const ABOUT: &str = "Keeps a store's terminals, handhelds and back office in step. One port carries REST, Socket.IO \
(`/socket.io/`) and plain WebSocket (`/ws`). Fields and endpoints marked as extensions are additions to the documented API: \
a client that does not know them never needs them, and clients should ignore fields that they do not know.";
