//! Certificates end.

use crate::ids::UnixMs;

/// What speaks TLS for a time only.
pub trait Expires {
    /// When it ends, if that is before a moment.
    fn ends_before(&self, moment: UnixMs) -> Option<UnixMs>;
}
