//! The REST endpoints: the documented ones, and what a client without a socket needs (docs/design.md, section 7).

use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, Any, CorsLayer};

use self::reply::json_response;
pub use self::reply::{OrFail, RestError, RestResult, answer};
use crate::gateway::http::connections::came_late;
use crate::gateway::protocol::json::Object;
use crate::gateway::protocol::{BadPayload, Fields};
use crate::gateway::rates::read_meter;
use crate::gateway::transport::socketio;
use crate::gateway::{Gateway, auth, bug};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::token::Claims;

mod access;
pub(crate) mod backup;
pub(crate) mod bodies;
mod changes;
mod conflicts;
mod data;
mod devices;
mod history;
mod keep_out;
mod logs;
mod members;
mod pairing;
mod prometheus;
pub(crate) mod reply;
pub mod routes;
mod sync;
mod system;
mod time_back;
mod tokens;
pub(crate) mod transfer;

/// Everything on the one port.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let mut routes = Router::new();
    for endpoint in routes::ENDPOINTS {
        routes = routes.route(endpoint.path, (endpoint.handler)());
    }
    let missing = |gateway: axum::extract::State<Arc<Gateway>>, uri: axum::http::Uri| async move {
        let error = Error::new(Code::InvalidData, format!("there is no {}", uri.path()));
        RestError::new(&gateway, error).with_status(404)
    };
    let wrong_method = |gateway: axum::extract::State<Arc<Gateway>>, method: axum::http::Method| async move {
        let error = Error::new(Code::InvalidData, format!("{method} is not a method of this path"));
        RestError::new(&gateway, error).with_status(405)
    };
    let (of_routes, of_sockets) = cors(&gateway.settings.origins);
    let routes = routes
        .fallback(missing)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(read_meter::count))
        .layer(CatchPanicLayer::custom(panicked(gateway.clone())))
        .layer(DefaultBodyLimit::max(limits::FRAME))
        .with_state(gateway.clone());
    let engine = socketio::EngineIo::new(gateway);
    let sockets = Router::new()
        .route("/socket.io", any(socketio::handle))
        .route("/socket.io/", any(socketio::handle))
        .with_state(engine);
    sockets.layer(of_sockets).merge(routes.layer(of_routes))
}

/// What pages of other origins may do: at the endpoints, and at Socket.IO.
///
/// Socket.IO 2 asks with credentials, which browsers allow only when the answer names the page's origin. That gives a
/// page nothing: a token is never a cookie.
fn cors(origins: &[String]) -> (CorsLayer, CorsLayer) {
    // Browsers send `Authorization` only where it is named, so the headers asked for are given back.
    let open =
        CorsLayer::new().allow_methods(AllowMethods::mirror_request()).allow_headers(AllowHeaders::mirror_request());
    if origins.is_empty() {
        let sockets = open.clone().allow_origin(AllowOrigin::mirror_request()).allow_credentials(true);
        return (open.allow_origin(Any), sockets);
    }
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let listed = open.allow_origin(AllowOrigin::list(origins)).allow_credentials(true);
    (listed.clone(), listed)
}

/// A handler that panics is a bug, and answers like one.
fn panicked(gateway: Arc<Gateway>) -> impl FnMut(Box<dyn std::any::Any + Send>) -> Response + Clone {
    move |panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        RestError::new(&gateway, bug(text.unwrap_or("a panic without a message"))).into_response()
    }
}

/// The body of a request: at most a frame's size, and of somebody whose token was not seen much less; not looked into yet.
pub struct RequestBody(pub Bytes);

impl RequestBody {
    /// Reads the JSON object in it.
    pub fn read<T>(
        &self,
        gateway: &Gateway,
        code: Code,
        read: impl FnOnce(&Fields<'_>) -> Result<T, BadPayload>,
    ) -> Result<T, RestError> {
        let text = std::str::from_utf8(&self.0).map_err(|_| BadPayload::payload("the body is not UTF-8"));
        text.and_then(Fields::parse).and_then(|f| read(&f)).map_err(|bad| RestError::bad(gateway, code, bad))
    }
}

impl FromRequest<Arc<Gateway>> for RequestBody {
    type Rejection = RestError;

    async fn from_request(mut request: Request, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let most = match request.extensions().get::<auth::Authenticated>() {
            Some(_) => limits::FRAME,
            None => limits::ANONYMOUS_BODY,
        };
        let too_large = || (413, format!("the body may have at most {most} bytes"));
        let refused = |(status, why): (u16, String)| {
            RestError::new(gateway, Error::new(Code::InvalidData, why)).with_status(status)
        };
        // None of a body is taken in that says itself that it is too large.
        if request.body().size_hint().lower() > most as u64 {
            return Err(refused(too_large()));
        }
        DefaultBodyLimit::max(most).apply(&mut request);
        Bytes::from_request(request, gateway).await.map(Self).map_err(|rejection: BytesRejection| {
            refused(match rejection.status().as_u16() {
                413 => too_large(),
                _ if came_late(&rejection) => (408, "the body comes too slowly".to_owned()),
                status => (status, "the body could not be read".to_owned()),
            })
        })
    }
}

/// The variable parts of a path, percent-decoded.
pub struct PathParts<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Gateway>> for PathParts<T> {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let path = Path::<T>::from_request_parts(parts, gateway).await;
        path.map(|Path(at)| Self(at)).map_err(|_: PathRejection| {
            RestError::bad(gateway, Code::InvalidData, BadPayload::payload("the path is not valid UTF-8"))
        })
    }
}

/// What fits into 64 bits with a sign, as most clients' whole numbers do: the answer repeats it.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// The query of a request, percent-decoded.
pub struct QueryFields(Vec<(String, String)>);

impl FromRequestParts<Arc<Gateway>> for QueryFields {
    type Rejection = RestError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, RestError> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, gateway).await;
        query.map(|Query(pairs)| Self(pairs)).map_err(|_: QueryRejection| {
            RestError::bad(gateway, Code::InvalidData, BadPayload::payload("the query cannot be read"))
        })
    }
}

impl QueryFields {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    fn number(&self, name: &str, default: u64, from: u64, to: u64) -> Result<u64, BadPayload> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|n| (from..=to).contains(n));
        number.ok_or_else(|| match to {
            OFFSET_MAX => BadPayload::field(name, format_args!("must be a whole number, {from} or more")),
            _ => BadPayload::field(name, format_args!("must be a number from {from} to {to}")),
        })
    }

    /// `limit` and `offset` of a listing.
    pub fn page(&self) -> Result<(usize, u64), BadPayload> {
        Ok((self.limit()?, self.number("offset", 0, 0, OFFSET_MAX)?))
    }

    pub fn limit(&self) -> Result<usize, BadPayload> {
        Ok(self.number("limit", limits::PAGE_DEFAULT, 1, limits::PAGE_MAX)? as usize)
    }

    /// `before_id` of a log: only rows with smaller ids.
    pub fn before_id(&self) -> Result<Option<u64>, BadPayload> {
        self.get("before_id").map(|_| self.number("before_id", OFFSET_MAX, 1, OFFSET_MAX)).transpose()
    }
}

/// The documented end of a listing.
pub fn pagination(o: &mut Object<'_>, limit: usize, offset: u64, total: u64) {
    o.object("pagination", |o| {
        o.number("limit", limit as u64).number("offset", offset).number("total", total);
    });
}

/// Waits until this node has everything that any client was told was committed; also that the token was taken back.
pub async fn fresh(gateway: &Gateway, asker: &Claims) -> Result<(), RestError> {
    gateway.cluster.read_barrier().await.or_fail(gateway)?;
    auth::still_good(gateway, asker).or_fail(gateway)
}

/// What an answer was read from.
#[derive(Clone, Copy)]
pub struct Source {
    stale: bool,
}

impl Source {
    /// The newest, or with `?consistency=stale` whatever this node has: a node without a quorum has nothing else.
    pub async fn asked(gateway: &Gateway, asker: &Claims, asked: &QueryFields) -> Result<Self, RestError> {
        match asked.get("consistency") {
            None | Some("linearizable") => fresh(gateway, asker).await.map(|()| Self { stale: false }),
            Some("stale") => Ok(Self { stale: true }),
            Some(_) => {
                let bad = BadPayload::field("consistency", "must be linearizable or stale");
                Err(RestError::bad(gateway, Code::InvalidData, bad))
            }
        }
    }

    /// An answer that may be old says so.
    pub fn tell(self, o: &mut Object<'_>) {
        if let Some(word) = self.word() {
            o.text("consistency", word);
        }
    }

    fn word(self) -> Option<&'static str> {
        self.stale.then_some("stale")
    }
}
