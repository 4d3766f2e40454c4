//! The documented error codes (docs/api.md, docs/errors.md), in one table used by REST, both socket transports and the
//! docs.

use std::fmt;

#[cfg(test)]
mod docs;

/// A documented code. The numbers are the document's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Code {
    Timeout = 1001,
    PeerUnreachable = 1002,
    SocketClosed = 1003,
    Silent = 1004,
    BadCursor = 1005,
    SyncRequest = 2001,
    Conflict = 2002,
    SyncTimeout = 2003,
    InvalidData = 2004,
    NoMaster = 2005,
    Credentials = 3001,
    TokenExpired = 3002,
    Forbidden = 3003,
    NotRegistered = 3004,
    Registration = 4001,
    RoleChange = 4002,
    Election = 4003,
    DeviceOffline = 4004,
    Storage = 5001,
    Internal = 5002,
    Unavailable = 5003,
    Configuration = 5004,
}

/// Whether sending the same request again can help, and whether it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The request itself must change first.
    No,
    /// Nothing was written: send it again.
    Safe,
    /// It may have been written: send it again only with the same `request_id`.
    SameRequestId,
}

impl Retry {
    /// As errors carry it on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Safe => "safe",
            Self::SameRequestId => "same_request_id",
        }
    }
}

/// One row of the table: the code, the document's words for it, its HTTP status, and the retry rule.
#[derive(Clone, Copy, Debug)]
pub struct CodeRow {
    pub code: Code,
    pub title: &'static str,
    pub http: u16,
    pub retry: Retry,
}

macro_rules! table {
    ($($code:ident, $title:literal, $http:literal, $retry:ident;)*) => {
        /// Every code, in order.
        pub const TABLE: &[CodeRow] = &[$(CodeRow { code: Code::$code, title: $title, http: $http, retry: Retry::$retry }),*];
    };
}

table! {
    Timeout, "Connection timeout", 504, SameRequestId;
    PeerUnreachable, "Network unreachable", 502, Safe;
    SocketClosed, "WebSocket connection failed", 503, Safe;
    Silent, "Heartbeat timeout", 408, Safe;
    BadCursor, "Reconnection failed", 409, No;
    SyncRequest, "Sync request failed", 400, No;
    Conflict, "Data conflict detected", 409, No;
    SyncTimeout, "Sync timeout", 504, Safe;
    InvalidData, "Invalid sync data", 400, No;
    NoMaster, "Master unavailable", 503, Safe;
    Credentials, "Invalid credentials", 401, No;
    TokenExpired, "Token expired", 401, No;
    Forbidden, "Insufficient permissions", 403, No;
    NotRegistered, "Device not registered", 404, No;
    Registration, "Device registration failed", 400, No;
    RoleChange, "Role change failed", 409, No;
    Election, "Master election failed", 503, Safe;
    DeviceOffline, "Device offline", 409, Safe;
    Storage, "Database connection failed", 500, SameRequestId;
    Internal, "Internal server error", 500, SameRequestId;
    Unavailable, "Service unavailable", 503, Safe;
    Configuration, "Configuration error", 500, No;
}

impl Code {
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The code of a number, if it is one of the document's.
    pub fn of(number: u32) -> Option<Self> {
        TABLE.iter().map(|r| r.code).find(|c| c.number() == number)
    }

    /// How long the cause usually lasts, where that is known. Milliseconds.
    fn pause_ms(self) -> Option<u64> {
        match self {
            // A new leader is elected in a fraction of a second, a master right after it.
            Self::NoMaster => Some(500),
            Self::Unavailable => Some(1_000),
            _ => None,
        }
    }

    pub fn row(self) -> &'static CodeRow {
        TABLE.iter().find(|r| r.code == self).unwrap_or(&TABLE[0])
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// What a client is told. The cause inside goes to the log, never into `message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    pub code: Code,
    pub message: String,
    /// When to try again, milliseconds, where the server can tell.
    pub retry_after_ms: Option<u64>,
    /// The table's rule for the code, unless this error knows better.
    pub retry: Retry,
    about: Option<Box<ErrorSubject>>,
}

/// What of the request is wrong, where that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ErrorSubject {
    field: String,
    last: Option<u64>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: code.pause_ms(), retry: code.row().retry, about: None }
    }

    /// The field of the request that is wrong (empty: not known); of a queue's entry, the last `n` that was applied.
    #[must_use]
    pub fn about(self, field: &str, last: Option<u64>) -> Self {
        let known = !field.is_empty() || last.is_some();
        Self { about: known.then(|| Box::new(ErrorSubject { field: field.to_owned(), last })), ..self }
    }

    pub fn field(&self) -> Option<&str> {
        self.about.as_ref().map(|about| about.field.as_str()).filter(|field| !field.is_empty())
    }

    /// The last `n` of the queue that was applied.
    pub fn last(&self) -> Option<u64> {
        self.about.as_ref()?.last
    }

    /// As the answer to an event of a socket. A device that is not registered yet may be about to be: libraries send
    /// what waited for the connection before the program's `device_online`.
    #[must_use]
    pub fn over_socket(self) -> Self {
        if self.code == Code::NotRegistered { Self { retry: Retry::Safe, ..self } } else { self }
    }
}
