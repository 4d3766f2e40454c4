//! The two socket transports: each reads frames into a [session](super::session) and writes what its send queue holds.

pub(crate) mod socketio;
pub(crate) mod websocket;
