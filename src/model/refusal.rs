//! How a command is refused: with a documented code, and nothing written.

use super::error::{Code, Error};
use super::tables::TablesError;
use crate::proto::Refused;
use crate::proto::outcome::Result as Reply;

/// Why a command changed nothing.
#[derive(Debug)]
pub(super) enum ApplyError {
    /// The command is refused; nothing was written.
    Refused(Refused),
    /// The rows cannot be read: this node must stop.
    Tables(TablesError),
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        let (field, last) = (error.field().unwrap_or_default().to_owned(), error.last());
        let (code, message) = (error.code.number(), error.message);
        Self::Refused(Refused { code, message, field, last, ..Refused::default() })
    }
}

impl From<TablesError> for ApplyError {
    fn from(error: TablesError) -> Self {
        Self::Tables(error)
    }
}

/// What an intent gave, or why not.
pub(super) type ApplyResult = Result<Reply, ApplyError>;

pub(super) fn refuse<T>(code: Code, message: impl Into<String>) -> Result<T, ApplyError> {
    Err(ApplyError::Refused(Refused { code: code.number(), message: message.into(), ..Refused::default() }))
}

/// Refuses because of a field; `why` goes on from its name.
pub(super) fn refuse_field<T>(code: Code, field: &str, why: impl std::fmt::Display) -> Result<T, ApplyError> {
    let message = format!("{field} {why}");
    Err(ApplyError::Refused(Refused { code: code.number(), message, field: field.to_owned(), ..Refused::default() }))
}

/// Refuses because a share is used up: nobody else is kept from anything by that.
pub(super) fn refuse_share<T>(field: &str, why: impl std::fmt::Display, retry_after_ms: u64) -> Result<T, ApplyError> {
    let (code, field, retry_after_ms) = (Code::Unavailable.number(), field.to_owned(), Some(retry_after_ms));
    let message = if field.is_empty() { why.to_string() } else { format!("{field} {why}") };
    Err(ApplyError::Refused(Refused { code, message, field, retry_after_ms, ..Refused::default() }))
}
