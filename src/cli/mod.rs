//! The commands of the `tillsync` binary; no logic of their own.
