//! The documentation, held against the code and against itself.

// Clippy's leave for tests covers test functions, not the helpers that they share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod citations;
mod files;
mod glossary;
mod sections;
