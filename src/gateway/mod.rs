//! The documented API on one port.
