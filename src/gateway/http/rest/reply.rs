//! What a request is answered with: an object, or an error as REST gives it.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::gateway::Gateway;
use crate::gateway::protocol::json::{self, Object};
use crate::gateway::protocol::{BadPayload, error_tail};
use crate::ids::ConflictId;
use crate::metrics;
use crate::model::error::{Code, Error};

/// An error as REST gives it: `{"success": false, "error", "error_code", "timestamp", …}`.
#[derive(Debug)]
pub struct RestError {
    error: Error,
    field: Option<String>,
    status: u16,
    conflict_id: Option<ConflictId>,
    at_ms: u64,
}

pub type RestResult = Result<Response, RestError>;

impl RestError {
    pub fn new(gateway: &Gateway, error: Error) -> Self {
        let (status, field) = (error.code.row().http, error.field().map(str::to_owned));
        Self { error, field, status, conflict_id: None, at_ms: gateway.now_ms() }
    }

    /// A request that must change first: 400, naming the field.
    pub fn bad(gateway: &Gateway, code: Code, bad: BadPayload) -> Self {
        let failure = Self::new(gateway, Error::new(code, bad.message)).with_status(400);
        Self { field: bad.field, ..failure }
    }

    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub fn with_conflict(self, id: ConflictId) -> Self {
        Self { conflict_id: Some(id), ..self }
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        let body = json::object(|o| {
            o.flag("success", false).text("error", &self.error.message);
            error_tail(o, &self.error, self.field.as_deref(), self.at_ms);
            o.maybe_number("conflict_id", self.conflict_id);
        });
        metrics::ERRORS.count(metrics::ErrorDoor::Http, self.error.code.number());
        let mut response = json_response(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(ms) = self.error.retry_after_ms {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
        }
        response
    }
}

pub(super) fn json_response(body: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// A JSON object with what `fill` writes.
pub fn answer(fill: impl FnOnce(&mut Object<'_>)) -> Response {
    json_response(json::object(fill))
}

/// Reads and writes fail with their documented code.
pub trait OrFail<T> {
    fn or_fail(self, gateway: &Gateway) -> Result<T, RestError>;
}

impl<T> OrFail<T> for Result<T, Error> {
    fn or_fail(self, gateway: &Gateway) -> Result<T, RestError> {
        self.map_err(|error| RestError::new(gateway, error))
    }
}
