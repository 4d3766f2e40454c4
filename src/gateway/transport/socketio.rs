//! Socket.IO at `/socket.io/`: protocol 5 over Engine.IO 4, and protocol 4 over Engine.IO 3 for old clients.
//!
//! Both layers are ours, as in `/ws` one task a connection ([`connection`]). That way what a client sends is taken in
//! only as fast as it is answered, over WebSocket and over polling; a session ends without the packets that clients
//! take for final; and a frame that is too large, or has attachments, is answered. A broadcast is encoded once for all
//! sockets, and a record's data stays the bytes that the client sent.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE, USER_AGENT,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;
use crate::gateway::auth::{self, RequestOrigin};
use crate::gateway::http::connections::came_late;
use crate::gateway::http::rest::reply::RestError;
use crate::gateway::protocol::json;
use crate::limits;
use crate::model::error::{Code, Error};
use crate::tls::admission::{Admission, AdmissionSlot, ConnectionCaps};
use crate::token::Claims;

mod connection;
mod packet;
mod payload;

use connection::EngineConnection;
use payload::{Decoder, Incoming};

/// Read buffer of a WebSocket: most are idle, and tungstenite's own default is 128 KiB each.
const READ_BUFFER: usize = 2_048;
/// Polls and upgrades of one client that wait for its connection's task.
const REQUESTS: usize = 4;
/// Room in the inbox of a client that has not said who it is. Bytes.
const ANONYMOUS_INBOX: usize = limits::ANONYMOUS_BODY + 1_024;
/// A poll's time-stamp. Bytes.
const STAMP: usize = 64;

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// The version of Engine.IO that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eio {
    V3,
    V4,
}

/// All Engine.IO connections of the node, those that have not said who they are included.
pub(crate) struct EngineIo {
    gateway: Arc<Gateway>,
    sockets: Mutex<HashMap<String, Arc<Socket>>>,
    /// Room for those that have not said who they are; the others are bounded by the sessions.
    admission: Arc<Admission>,
}

/// A connection, as the HTTP requests of its client see it.
struct Socket {
    eio: Eio,
    requests: mpsc::Sender<ConnectionRequest>,
    inbox: mpsc::UnboundedSender<Posted>,
    /// Room in the inbox, in bytes.
    room: Arc<Semaphore>,
    /// One post at a time: their order is the client's.
    posting: tokio::sync::Mutex<()>,
    /// The connection has ended.
    gone: CancellationToken,
    slot: Arc<AdmissionSlot>,
    /// The token that the first request carried.
    opened_with: Option<String>,
    /// Who it is, once it has said so.
    identity: OnceLock<TokenIdentity>,
}

struct TokenIdentity {
    token: String,
    claims: Claims,
}

impl Socket {
    /// Its session was opened with a token.
    fn identify(&self, token: &str, claims: Claims) {
        self.slot.vouch(claims.class.is_privileged());
        let identity = TokenIdentity { token: token.to_owned(), claims };
        if self.identity.set(identity).is_ok() {
            self.room.add_permits(limits::INBOX_BYTES - ANONYMOUS_INBOX);
        }
    }

    /// Whether whoever sent a request may speak for it. Its id is enough: clients say who they are in a packet, old ones of
    /// Python in the headers of the first request only. A token that comes along must be the one that it came with, or one
    /// that is good and was renewed from it: that has the same name.
    fn is_of(&self, gateway: &Gateway, parts: &Parts) -> bool {
        let Some(token) = auth::token_of(parts) else { return true };
        let identity = self.identity.get();
        let own = identity.map(|identity| identity.token.as_str());
        let mut its = [self.opened_with.as_deref(), own].into_iter().flatten().peekable();
        if its.peek().is_none() || its.any(|it| is_same(it, token)) {
            return true;
        }
        identity.is_some_and(|TokenIdentity { claims: own, .. }| {
            let renewed = |c: &Claims| (&c.jti, &c.sub, c.class) == (&own.jti, &own.sub, own.class);
            auth::check(gateway, Some(token)).is_ok_and(|claims| renewed(&claims))
        })
    }
}

/// Takes as long whatever differs.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// A packet that came over polling, and its room in the inbox.
struct Posted(Incoming, #[allow(dead_code)] OwnedSemaphorePermit);

/// What an HTTP request wants of the connection's task.
enum ConnectionRequest {
    /// The next payload; with the time-stamp of the poll's URL, by which one that is sent again is recognised.
    Poll(oneshot::Sender<Bytes>, Option<Box<str>>),
    /// The client tries a WebSocket: polls are answered at once. It comes here when the client has moved to it.
    Upgrade(oneshot::Receiver<UpgradedSocket>),
}

/// The WebSocket that a client moved to, and the connection that it is.
struct UpgradedSocket {
    ws: Box<WebSocket>,
    origin: RequestOrigin,
}

impl EngineIo {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Arc<Self> {
        let settings = &gateway.settings;
        let (anonymous, per_address) = settings.anonymous_sockets;
        // Those that say who they are have room of their own.
        let caps = ConnectionCaps { total: usize::MAX, anonymous, per_address };
        let admission = Admission::new("Engine.IO connections", caps, Vec::new());
        Arc::new(Self { gateway, sockets: Mutex::default(), admission })
    }

    /// A passing reason to refuse a client before it has a connection: HTTP's 503, after which all clients come again,
    /// later each time.
    fn check_room(&self) -> Result<(), Error> {
        let gateway = &self.gateway;
        if gateway.closing.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "the node is shutting down: connect to another one"));
        }
        if gateway.hub.sessions() >= gateway.settings.sessions {
            return Err(full());
        }
        Ok(())
    }

    fn socket(&self, sid: &str) -> Option<Arc<Socket>> {
        self.sockets.lock().get(sid).cloned()
    }
}

fn full() -> Error {
    let mut error = Error::new(Code::SocketClosed, "this node has as many sessions as it can hold");
    // Spread out, so that those refused together do not come back together.
    error.retry_after_ms = Some(rand::random_range(1_000..5_000));
    error
}

/// What a request's query says.
struct Query {
    eio: Eio,
    sid: Option<String>,
    /// `t`: clients' libraries give each request another one, so that no cache answers it.
    stamp: Option<Box<str>>,
    websocket: bool,
}

impl Query {
    /// The error is Engine.IO's number and text for it.
    fn of(request: &Request) -> Result<Self, (u8, &'static str)> {
        let query = request.uri().query().unwrap_or_default();
        let get = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let websocket = match get("transport") {
            Some("websocket") => true,
            Some("polling") => false,
            _ => return Err((0, "Transport unknown")),
        };
        let eio = match get("EIO") {
            Some("3") => Eio::V3,
            Some("4") => Eio::V4,
            _ => return Err((5, "Unsupported protocol version")),
        };
        let stamp = get("t").filter(|stamp| stamp.len() <= STAMP).map(Box::from);
        Ok(Self { eio, sid: get("sid").map(str::to_owned), stamp, websocket })
    }
}

/// Every request under `/socket.io/`.
pub(crate) async fn handle(State(engine): State<Arc<EngineIo>>, request: Request) -> Response {
    let query = match Query::of(&request) {
        Ok(query) => query,
        Err((code, message)) => return refused(code, message),
    };
    let Some(sid) = query.sid else {
        if request.method() != Method::GET {
            return refused(2, "Bad handshake method");
        }
        if let Err(error) = engine.check_room() {
            return RestError::new(&engine.gateway, error).into_response();
        }
        let opened =
            if query.websocket { engine.open_web_socket(query.eio, request) } else { engine.open(query.eio, request) };
        return opened.unwrap_or_else(|| RestError::new(&engine.gateway, full()).into_response());
    };
    let Some(socket) = engine.socket(&sid) else { return unknown() };
    let (parts, body) = request.into_parts();
    let origin = RequestOrigin::of(&parts);
    if !socket.is_of(&engine.gateway, &parts) {
        let error = Error::new(Code::Credentials, "the token is not that of this connection");
        engine.gateway.refusals.count(origin.address(), &error);
        return RestError::new(&engine.gateway, error).into_response();
    }
    if let Some(identity) = socket.identity.get() {
        origin.vouch(&identity.claims);
    }
    match (&parts.method, query.websocket) {
        (&Method::GET, true) => engine.upgrade(&socket, origin, Request::from_parts(parts, body)),
        (&Method::GET, false) => poll(&socket, query.stamp).await,
        (&Method::POST, false) => engine.post(&socket, &parts, body).await,
        _ => refused(3, "Bad request"),
    }
}

/// Engine.IO's refusals: its clients begin anew.
fn refused(code: u8, message: &str) -> Response {
    let body = json::object(|o| {
        o.number("code", u64::from(code)).text("message", message);
    });
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (StatusCode::BAD_REQUEST, json, body).into_response()
}

fn unknown() -> Response {
    refused(1, "Session ID unknown")
}

fn plain(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"))], body.into()).into_response()
}

/// Answers when something waits for the client.
async fn poll(socket: &Socket, stamp: Option<Box<str>>) -> Response {
    let (answer, payload) = oneshot::channel();
    if socket.requests.send(ConnectionRequest::Poll(answer, stamp)).await.is_err() {
        return unknown();
    }
    payload.await.map_or_else(|_| unknown(), plain)
}

impl EngineIo {
    /// Takes packets in, as fast as there is room for them.
    async fn post(&self, socket: &Socket, parts: &Parts, body: Body) -> Response {
        // Clients send one at a time, in order.
        let Ok(_turn) = socket.posting.try_lock() else { return refused(3, "another POST is under way") };
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let is_too_large = |length: usize| length > limits::ANONYMOUS_BODY && socket.identity.get().is_none();
        if length.is_some_and(is_too_large) {
            return self.not_taken(Posting::TooLarge);
        }
        let taken = socket.gone.run_until_cancelled(async {
            let mut body = body.into_data_stream();
            let (mut decoder, mut length) = (Decoder::new(socket.eio), 0);
            loop {
                let piece = body.next().await.transpose().map_err(|error| match came_late(&error) {
                    true => Posting::TooSlow,
                    false => Posting::Ended,
                })?;
                length += piece.as_ref().map_or(0, Bytes::len);
                if is_too_large(length) {
                    return Err(Posting::TooLarge);
                }
                decoder.push(piece.as_deref().unwrap_or_default());
                while let Some(packet) = decoder.next(piece.is_none()) {
                    let room = socket.room.clone().acquire_many_owned(packet.weight()).await;
                    let room = room.map_err(|_| Posting::Ended)?;
                    socket.inbox.send(Posted(packet, room)).map_err(|_| Posting::Ended)?;
                }
                if piece.is_none() {
                    return Ok(());
                }
            }
        });
        match taken.await {
            Some(Ok(())) => plain("ok"),
            Some(Err(why)) => self.not_taken(why),
            None => unknown(),
        }
    }

    fn not_taken(&self, why: Posting) -> Response {
        let (status, message) = match why {
            Posting::Ended => return unknown(),
            Posting::TooSlow => (408, "the body comes too slowly".to_owned()),
            Posting::TooLarge => {
                let most = limits::ANONYMOUS_BODY;
                (413, format!("the body may have at most {most} bytes before a token was seen"))
            }
        };
        let error = Error::new(Code::InvalidData, message);
        RestError::new(&self.gateway, error).with_status(status).into_response()
    }
}

/// Why a POST was not taken as a whole.
enum Posting {
    /// With its connection.
    Ended,
    TooSlow,
    TooLarge,
}

impl EngineIo {
    /// Makes a connection; what runs it is given back.
    fn connect(self: &Arc<Self>, eio: Eio, parts: &Parts) -> Option<(String, EngineConnection)> {
        let origin = RequestOrigin::of(parts);
        let slot = self.admission.admit(origin.address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))?;
        let sid = format!("{:032x}", rand::random::<u128>());
        let (requests, asked) = mpsc::channel(REQUESTS);
        // Bounded by the semaphore, in bytes.
        let (inbox, posted) = mpsc::unbounded_channel();
        let socket = Arc::new(Socket {
            eio,
            requests,
            inbox,
            room: Arc::new(Semaphore::new(ANONYMOUS_INBOX)),
            posting: tokio::sync::Mutex::default(),
            gone: CancellationToken::new(),
            slot,
            opened_with: auth::token_of(parts).map(str::to_owned),
            identity: OnceLock::new(),
        });
        self.sockets.lock().insert(sid.clone(), socket.clone());
        let is_python = parts.headers.get(USER_AGENT).map_or(&b"python"[..], HeaderValue::as_bytes);
        let is_python = is_python.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"python"));
        let connection = EngineConnection::new(self.clone(), sid.clone(), socket, origin, is_python, asked, posted);
        Some((sid, connection))
    }

    /// The first packet of a connection.
    fn hello(&self, sid: &str, upgrades: &str) -> String {
        let settings = &self.gateway.settings;
        let (every, lost) = (settings.ping_every.as_millis(), settings.lost_after.as_millis());
        format!(
            "0{{\"sid\":\"{sid}\",\"upgrades\":[{upgrades}],\"pingInterval\":{every},\"pingTimeout\":{},\"maxPayload\":{}}}",
            lost.saturating_sub(every),
            limits::FRAME
        )
    }

    /// `None`: there is no room for it.
    fn open(self: &Arc<Self>, eio: Eio, request: Request) -> Option<Response> {
        let (sid, mut connection) = self.connect(eio, &request.into_parts().0)?;
        connection.begin();
        let mut payload = payload::Payload::default();
        payload.push(eio, &self.hello(&sid, "\"websocket\""));
        tokio::spawn(connection.run());
        Some(plain(payload.into_bytes()))
    }

    fn open_web_socket(self: &Arc<Self>, eio: Eio, mut request: Request) -> Option<Response> {
        let (upgrade, answer) = match accept(&mut request) {
            Ok(accepted) => accepted,
            Err(refused) => return Some(*refused),
        };
        let (sid, connection) = self.connect(eio, &request.into_parts().0)?;
        let hello = self.hello(&sid, "");
        let within = self.gateway.settings.connect_timeout;
        tokio::spawn(async move {
            // A client that is gone by then leaves nothing: the connection goes with this task.
            let upgraded = tokio::select! {
                upgraded = timeout(within, upgrade) => upgraded,
                () = connection.must_close() => return,
            };
            if let Ok(Ok(io)) = upgraded {
                connection.run_over(web_socket(io).await, hello).await;
            }
        });
        Some(answer)
    }

    /// A client that polls moves to a WebSocket: it probes it, waits for its last poll, and says that it has moved.
    fn upgrade(&self, socket: &Socket, origin: RequestOrigin, mut request: Request) -> Response {
        let (upgrade, answer) = match accept(&mut request) {
            Ok(accepted) => accepted,
            Err(refused) => return *refused,
        };
        let (moved, web_socket_here) = oneshot::channel();
        let (requests, within) = (socket.requests.clone(), self.gateway.settings.connect_timeout);
        let probe = async move {
            let Ok(io) = upgrade.await else { return };
            let mut ws = web_socket(io).await;
            if !matches!(ws.next().await, Some(Ok(Message::Text(text))) if text.as_str() == "2probe") {
                return;
            }
            if ws.send(Message::text("3probe")).await.is_err()
                || requests.send(ConnectionRequest::Upgrade(web_socket_here)).await.is_err()
            {
                return;
            }
            while let Some(Ok(message)) = ws.next().await {
                match message {
                    Message::Text(text) if text.as_str() == "5" => {
                        // Its connection may have ended.
                        let _ = moved.send(UpgradedSocket { ws: Box::new(ws), origin });
                        return;
                    }
                    Message::Ping(_) | Message::Pong(_) => {}
                    _ => return,
                }
            }
        };
        tokio::spawn(socket.gone.clone().run_until_cancelled_owned(timeout(within, probe)));
        answer
    }
}

async fn web_socket(io: Upgraded) -> WebSocket {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(limits::PACKET_READ))
        .max_frame_size(Some(limits::PACKET_READ));
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await
}

/// The WebSocket handshake, with what becomes the connection when it was answered.
fn accept(request: &mut Request) -> Result<(OnUpgrade, Response), Box<Response>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let asks = request.headers().get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let (Some(key), true) = (key, asks) else { return Err(Box::new(refused(3, "Bad request"))) };
    let Ok(key) = HeaderValue::from_str(&key) else { return Err(Box::new(refused(3, "Bad request"))) };
    let upgrade = hyper::upgrade::on(request);
    let headers = [
        (UPGRADE, HeaderValue::from_static("websocket")),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (SEC_WEBSOCKET_ACCEPT, key),
    ];
    Ok((upgrade, (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()))
}
