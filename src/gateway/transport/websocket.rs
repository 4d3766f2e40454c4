//! Plain WebSocket at `/ws`: text frames `{"event": …, "data": …}`.
//!
//! One task a connection does everything in one poll: it takes what was sent, answers what is ready, and feeds what
//! waits to the socket, with one flush at the end: under load many frames leave in one write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream};
use std::pin::Pin;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite;

use crate::gateway::Gateway;
use crate::gateway::auth;
use crate::gateway::fanout::send_queue::{EncodedEvent, Encoding, QueuedFrame};
use crate::gateway::http::rest::RestError;
use crate::gateway::protocol::{BadPayload, ServerEvent, envelope};
use crate::gateway::session::{Session, SessionEnd};
use crate::limits;
use crate::model::error::{Code, Error};

/// Frames taken in before others get their turn.
const TURN: usize = 64;
/// Read buffer of a connection: most are idle, and tungstenite's own default is 128 KiB each.
const READ_BUFFER: usize = 2_048;
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// The connection ends with it, as the protocol demands.
const NOT_UTF8: &str = "the frame is not UTF-8";

/// `GET /ws`.
pub(crate) async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    parts: Parts,
) -> Result<Response, RestError> {
    let origin = auth::RequestOrigin::of(&parts);
    let claims = auth::admit(&gateway, &origin, auth::token_of(&parts)).map_err(|e| RestError::new(&gateway, e))?;
    let upgrade = upgrade.map_err(|rejection| {
        let error = Error::new(Code::SocketClosed, format!("not a WebSocket handshake: {rejection}"));
        RestError::new(&gateway, error).with_status(rejection_status(&rejection))
    })?;
    let session = Session::open(gateway.clone(), claims, Encoding::WebSocket);
    let session = session.map_err(|e| RestError::new(&gateway, e))?;
    let upgrade = upgrade.protocols([auth::SUBPROTOCOL]).read_buffer_size(READ_BUFFER);
    let upgrade = upgrade.max_message_size(limits::PACKET_READ).max_frame_size(limits::PACKET_READ);
    Ok(upgrade.on_upgrade(move |socket| WebSocketConnection::new(&gateway, session, socket).run()))
}

fn rejection_status(rejection: &WebSocketUpgradeRejection) -> u16 {
    match rejection {
        WebSocketUpgradeRejection::MethodNotGet(_) => 405,
        WebSocketUpgradeRejection::ConnectionNotUpgradable(_) => 426,
        _ => 400,
    }
}

struct WebSocketConnection {
    session: Session,
    socket: WebSocket,
    sending: VecDeque<QueuedFrame>,
    /// Fed since the last flush that ended.
    dirty: bool,
    blocked_since: Option<Instant>,
    /// Nothing was heard for want of room.
    paused: bool,
    write_timeout: Duration,
    ticks: Interval,
    at_ms: Box<dyn Fn() -> u64 + Send>,
}

impl WebSocketConnection {
    fn new(gateway: &Arc<Gateway>, session: Session, socket: WebSocket) -> Self {
        let (first, every) = session.ticks();
        let mut ticks = interval_at(first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let clock = gateway.cluster.clock().clone();
        Self {
            session,
            socket,
            sending: VecDeque::new(),
            dirty: false,
            blocked_since: None,
            paused: false,
            write_timeout: gateway.settings.write_timeout,
            ticks,
            at_ms: Box::new(move || clock.now_ms().get()),
        }
    }

    async fn run(mut self) {
        // The answer says that the client is awake; a socket that is broken already ends below.
        self.dirty = self.socket.feed(Message::Ping(Bytes::new())).await.is_ok();
        let ended = poll_fn(|cx| self.poll(cx)).await;
        let Self { session, mut socket, sending, at_ms, .. } = self;
        // A peer that takes nothing is not waited for. A node that shuts down waits for its sessions, so that all are
        // told; else a session that has ended takes up no room.
        let shuts_down = matches!(&ended, SessionEnd::Closed(error) if error.code == Code::Unavailable);
        let (first, last) = if shuts_down { (None, Some(session)) } else { (Some(session), None) };
        if let Some(session) = first {
            session.end(&ended);
        }
        let told = timeout(FAREWELL, farewell(&mut socket, sending, &ended, at_ms())).await;
        if let Some(session) = last {
            session.end(&ended);
        }
        if told == Ok(true) {
            // Until the client closes too: closing first would throw away what it has not read yet.
            let closed = async { while let Some(Ok(_)) = futures_util::StreamExt::next(&mut socket).await {} };
            let _ = timeout(FAREWELL, closed).await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        // What the session queues for itself from here on needs no wake-up: it is written below.
        self.session.send_queue.clear_waker();
        self.session.poll(cx);
        if let Poll::Ready(ended) = self.on_message(cx) {
            return Poll::Ready(ended);
        }
        if let Err(ended) = self.tick(cx) {
            return Poll::Ready(ended);
        }
        self.session.send_queue.register(cx.waker());
        if let Err(ended) = self.write(cx) {
            return Poll::Ready(ended);
        }
        if self.paused && self.has_room() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// More may be heard: the client takes its answers, and fewer of its requests than the limit are unanswered.
    fn has_room(&self) -> bool {
        self.sending.len() < limits::SESSION_QUEUE / limits::SESSION_QUEUE_HEARS && self.session.has_room()
    }

    /// Takes in what the client sent, as long as its requests find room.
    fn on_message(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        for _ in 0..TURN {
            self.paused = !self.has_room();
            if self.paused {
                // An answer that is due, or one that is sent, makes room and wakes this task.
                return Poll::Pending;
            }
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(SessionEnd::Gone),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(broken(&error)),
                Poll::Ready(Some(Ok(message))) => message,
            };
            self.session.heard_awake();
            match message {
                Message::Text(text) => self.hear_text(text),
                Message::Binary(_) => {
                    self.session.on_bad_frame(&BadPayload::payload("binary frames are not understood here"))
                }
                Message::Close(_) => return Poll::Ready(SessionEnd::Gone),
                Message::Ping(_) | Message::Pong(_) => {}
            }
            self.session.poll(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn hear_text(&mut self, text: Utf8Bytes) {
        let frame = Bytes::from(text.clone());
        match envelope(&text) {
            Ok((event, data)) if text.len() > limits::FRAME => {
                self.session.refuse_frame(&event, data, None, &BadPayload::payload(too_large()));
            }
            Err(_) if text.len() > limits::FRAME => self.session.on_bad_frame(&BadPayload::payload(too_large())),
            Ok((event, data)) => self.session.on_message(&event, data, &frame, None),
            Err(bad) => self.session.on_bad_frame(&bad),
        }
    }

    fn tick(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        while self.ticks.poll_tick(cx).is_ready() {
            if self.blocked_since.is_some_and(|since| since.elapsed() >= self.write_timeout) {
                return Err(SessionEnd::Closed(Error::new(Code::SocketClosed, "the client takes nothing")));
            }
            if self.paused {
                // It is not listened to: that is not its silence.
                self.session.heard();
            }
            if self.session.tick()?
                && let Poll::Ready(Ok(())) = Pin::new(&mut self.socket).poll_ready(cx)
            {
                let ping = Message::Ping(Bytes::new());
                Pin::new(&mut self.socket).start_send(ping).map_err(|_| SessionEnd::Gone)?;
                self.dirty = true;
            }
        }
        Ok(())
    }

    /// Feeds what waits, then flushes once.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        loop {
            if self.sending.is_empty() {
                if self.sending.capacity() > 64 {
                    self.sending = VecDeque::new();
                }
                self.session.send_queue.take(&mut self.sending).map_err(SessionEnd::Closed)?;
            }
            if self.sending.is_empty() {
                break;
            }
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    // Why it is closed does not wait for a peer that takes nothing.
                    return self.session.send_queue.end().map_or(Ok(()), |why| Err(SessionEnd::Closed(why)));
                }
                Poll::Ready(Err(_)) => return Err(SessionEnd::Gone),
                Poll::Ready(Ok(())) => {}
            }
            let Some(QueuedFrame { frame: EncodedEvent::WebSocket(text), taken }) = self.sending.pop_front() else {
                continue;
            };
            Pin::new(&mut self.socket).start_send(Message::Text(text)).map_err(|_| SessionEnd::Gone)?;
            self.dirty = true;
            if let Some(taken) = taken {
                // Nobody waits for it any more if its job has ended.
                let _ = taken.send(());
            }
        }
        if self.dirty {
            match Pin::new(&mut self.socket).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.dirty = false;
                    self.blocked_since = None;
                }
                Poll::Ready(Err(_)) => return Err(SessionEnd::Gone),
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(())
    }
}

fn too_large() -> String {
    format!("a frame may have at most {} bytes", limits::FRAME)
}

fn broken(error: &axum::Error) -> SessionEnd {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<tungstenite::Error>() {
            Some(tungstenite::Error::Capacity(_)) => {
                return SessionEnd::Closed(Error::new(Code::InvalidData, too_large()));
            }
            Some(tungstenite::Error::Utf8(_)) => return SessionEnd::Closed(Error::new(Code::InvalidData, NOT_UTF8)),
            _ => {}
        }
        cause = error.source();
    }
    SessionEnd::Gone
}

/// Sends what waits, says why the server ends it, and closes. True when all of it was taken.
async fn farewell(socket: &mut WebSocket, sending: VecDeque<QueuedFrame>, ended: &SessionEnd, at_ms: u64) -> bool {
    let silent = Error::new(Code::Silent, "nothing was heard from you");
    let error = match ended {
        SessionEnd::Closed(error) => error,
        SessionEnd::Silent => &silent,
        SessionEnd::Gone => {
            // The answer to the client's close frame, if there was one.
            let _ = socket.flush().await;
            return false;
        }
    };
    let event = ServerEvent::Error { error, event: None, field: None, conflict_id: None, request_id: None, at_ms };
    let last = EncodedEvent::of(Encoding::WebSocket, &event);
    for frame in sending.into_iter().map(|out| out.frame).chain([last]) {
        if let EncodedEvent::WebSocket(text) = frame
            && socket.feed(Message::Text(text)).await.is_err()
        {
            return false;
        }
    }
    let code = match error.code {
        Code::InvalidData if error.message == NOT_UTF8 => 1007,
        Code::InvalidData => 1009,
        Code::Credentials | Code::TokenExpired => 1008,
        Code::Unavailable => 1001,
        _ => 1013,
    };
    // A control frame holds 123 bytes of reason.
    let reason: String = error.to_string().chars().take(100).collect();
    socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await.is_ok()
}
