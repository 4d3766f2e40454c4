//! Settings of a node: a TOML file, then the environment (`TILLSYNC_…`), then flags.
