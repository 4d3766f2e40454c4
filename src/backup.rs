//! Where backups are kept, and when one is due.
//!
//! - [`names`]: what a folder of backups holds, by the names of its files
//! - [`store`]: a folder or a bucket, as one thing that files are put into and taken from
//! - [`bucket`]: a bucket of an object store that speaks S3
//! - [`schedule`]: what is due, and which node does it

pub(crate) mod bucket;
pub(crate) mod names;
pub(crate) mod schedule;
pub(crate) mod store;

/// Why something could not be put into a folder or a bucket, or taken from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// What the operator gave cannot be used: a URL, a key.
    #[error("{0}")]
    Unusable(String),
    /// It can succeed later.
    #[error("{0}")]
    Failed(String),
}
