//! One Engine.IO connection and its session: one task, over polling or a WebSocket.

mod farewell;
mod sending;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::packet::ClientPacket;
use super::payload::{Incoming, Payload};
use super::{ConnectionRequest, Eio, EngineIo, Posted, Socket, UpgradedSocket, WebSocket, is_same};
use crate::gateway::auth::{self, RequestOrigin};
use crate::gateway::fanout::send_queue::{Encoding, QueuedFrame};
use crate::gateway::protocol::{BadPayload, Fields, ServerEvent, event_array, json};
use crate::gateway::session::{Session, SessionEnd};
use crate::limits;
use crate::model::error::{Code, Error};

/// Packets taken in before others get their turn.
const TURN: usize = 64;
/// Packets in one answer to a poll. Python's clients take no more than 16, and end the connection over more.
const POLL_PACKETS: usize = 256;
const POLL_PACKETS_PYTHON: usize = 14;
/// Engine.IO's own packets that wait to be sent; with more, nothing more is heard.
const OWN: usize = 64;

enum CurrentTransport {
    Polling,
    WebSocket(Box<WebSocket>),
}

pub(super) struct EngineConnection {
    engine: Arc<EngineIo>,
    sid: String,
    /// The id that the client is told as its socket's. Whoever has the other one may speak for it.
    public_id: String,
    socket: Arc<Socket>,
    eio: Eio,
    /// Where the first request came from, or the WebSocket that the client moved to.
    origin: RequestOrigin,
    /// `None` until the client has said who it is.
    session: Option<Session>,
    wire: CurrentTransport,
    wanted: mpsc::Receiver<ConnectionRequest>,
    posted: mpsc::UnboundedReceiver<Posted>,
    /// The poll that waits for something to send.
    poll: Option<oneshot::Sender<Bytes>>,
    /// What makes its URL another one than that of the poll before, where the client says so.
    stamp: Option<Box<str>>,
    /// The answer to the poll before, with its stamp.
    answered: Option<(Option<Box<str>>, Bytes)>,
    /// Since when none waits.
    no_poll: Instant,
    /// How many packets the client takes at once.
    poll_packets: usize,
    /// A payload whose poll was gone.
    unsent: Option<Bytes>,
    upgrade: Option<oneshot::Receiver<UpgradedSocket>>,
    /// Engine.IO's own packets, and answers that no session gives.
    own: VecDeque<Utf8Bytes>,
    ping_due: bool,
    /// Pings that the client has not answered yet (Engine.IO 4).
    pings_open: u32,
    /// Answers to pings, or pings of an old client, until one shows that it has heard of its session: earlier ones may
    /// have been under way.
    signs_due: u32,
    sending: VecDeque<QueuedFrame>,
    /// Fed to the WebSocket since the last flush that ended.
    dirty: bool,
    blocked_since: Option<Instant>,
    /// Nothing was heard for want of room.
    paused: bool,
    /// Since the last tick of `pings` the client said something, or pinged.
    said: bool,
    pinged: bool,
    /// Attachments that follow a packet which was answered already.
    attachments: u64,
    pings: Interval,
    /// The session's; the first one comes early.
    ticks: Option<Interval>,
    /// Ends a connection without a session.
    give_up: Pin<Box<Sleep>>,
}

fn every(first: Instant, period: Duration) -> Interval {
    let mut ticks = interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl EngineConnection {
    pub(super) fn new(
        engine: Arc<EngineIo>,
        sid: String,
        socket: Arc<Socket>,
        origin: RequestOrigin,
        is_python: bool,
        wanted: mpsc::Receiver<ConnectionRequest>,
        posted: mpsc::UnboundedReceiver<Posted>,
    ) -> Self {
        let now = Instant::now();
        let settings = &engine.gateway.settings;
        let (ping_every, connect_timeout) = (settings.ping_every, settings.connect_timeout);
        let eio = socket.eio;
        let poll_packets = if is_python { POLL_PACKETS_PYTHON } else { POLL_PACKETS };
        Self {
            engine,
            sid,
            public_id: format!("{:032x}", rand::random::<u128>()),
            socket,
            eio,
            origin,
            session: None,
            wire: CurrentTransport::Polling,
            wanted,
            posted,
            poll: None,
            stamp: None,
            answered: None,
            no_poll: now,
            poll_packets,
            unsent: None,
            upgrade: None,
            own: VecDeque::new(),
            ping_due: false,
            pings_open: 0,
            signs_due: u32::MAX,
            sending: VecDeque::new(),
            dirty: false,
            blocked_since: None,
            paused: false,
            said: false,
            pinged: false,
            attachments: 0,
            pings: every(now + ping_every, if eio == Eio::V3 { ping_every / 2 } else { ping_every }),
            ticks: None,
            give_up: Box::pin(sleep(connect_timeout)),
        }
    }

    pub(super) async fn run_over(mut self, ws: WebSocket, hello: String) {
        self.wire = CurrentTransport::WebSocket(Box::new(ws));
        self.own.push_back(hello.into());
        self.begin();
        self.run().await;
    }

    /// Old clients are in the root namespace from the start.
    pub(super) fn begin(&mut self) {
        if self.eio == Eio::V3 {
            self.open(None);
        }
    }

    /// Resolves when others need its room: it has not said who it is.
    pub(super) fn must_close(&self) -> impl Future<Output = ()> + use<> {
        let socket = self.socket.clone();
        async move { socket.slot.closed().await }
    }

    pub(super) async fn run(mut self) {
        let ended = poll_fn(|cx| self.poll(cx)).await;
        self.farewell(&ended).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        if let Some(session) = &mut self.session {
            // What the session queues for itself from here on needs no wake-up: it is sent below.
            session.send_queue.clear_waker();
            session.poll(cx);
        }
        if self.session.is_none() && self.socket.slot.poll_closed(cx).is_ready() {
            return Poll::Ready(SessionEnd::Gone);
        }
        self.take_requests(cx);
        if let Poll::Ready(ended) = self.on_message(cx) {
            return Poll::Ready(ended);
        }
        if let Err(ended) = self.tick(cx) {
            return Poll::Ready(ended);
        }
        if let Some(session) = &self.session {
            session.send_queue.register(cx.waker());
        }
        if let Err(ended) = self.write(cx) {
            return Poll::Ready(ended);
        }
        if self.paused && self.has_room() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Polls, and the move to a WebSocket.
    fn take_requests(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(wanted)) = self.wanted.poll_recv(cx) {
            match wanted {
                ConnectionRequest::Poll(poll, stamp) => {
                    // It may overtake what the client posted before: no sign that that has all come.
                    if let Some(session) = &mut self.session {
                        session.heard();
                    }
                    // A client has one poll at a time: the older one was given up.
                    self.answer_noop();
                    match self.answered.take() {
                        // Its answer got lost, and the library under the client asks again.
                        Some((last, payload)) if stamp.is_some() && last == stamp => {
                            self.unsent.get_or_insert(payload);
                        }
                        _ => {}
                    }
                    (self.poll, self.stamp) = (Some(poll), stamp);
                }
                ConnectionRequest::Upgrade(upgrade) => self.upgrade = Some(upgrade),
            }
        }
        if let Some(upgrade) = &mut self.upgrade
            && let Poll::Ready(moved) = Pin::new(upgrade).poll(cx)
        {
            self.upgrade = None;
            if let Ok(UpgradedSocket { ws, origin }) = moved {
                self.answer_noop();
                if let Some(identity) = self.socket.identity.get() {
                    origin.vouch(&identity.claims);
                }
                // Python's clients say who they are only after the move: then this is vouched for.
                self.origin = origin;
                self.wire = CurrentTransport::WebSocket(ws);
                self.dirty = true;
            }
        }
    }

    fn answer_noop(&mut self) {
        if let Some(poll) = self.poll.take() {
            let mut payload = Payload::default();
            payload.push(self.eio, "6");
            // Nobody is there to hear it, if it was given up.
            let _ = poll.send(payload.into_bytes());
            self.no_poll = Instant::now();
        }
    }

    /// The client answered a ping, or pinged: one sign less until it is sure that it knows of its session.
    fn sign(&mut self) {
        self.signs_due = self.signs_due.saturating_sub(1);
        if self.signs_due == 0
            && let Some(session) = &mut self.session
        {
            session.heard_awake();
        }
    }

    /// More may be heard: the client takes its answers, and fewer of its requests than the limit are unanswered.
    fn has_room(&self) -> bool {
        let waits = self.sending.len() >= limits::SESSION_QUEUE / limits::SESSION_QUEUE_HEARS;
        self.own.len() < OWN && !waits && self.session.as_ref().is_none_or(Session::has_room)
    }

    /// Takes in what the client sent, as long as its requests find room.
    fn on_message(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        for _ in 0..TURN {
            self.paused = !self.has_room();
            if self.paused {
                // An answer that is due, or one that is sent, makes room and wakes this task.
                return Poll::Pending;
            }
            let Poll::Ready(packet) = self.poll_packet(cx) else { return Poll::Pending };
            if let Some(session) = &mut self.session {
                session.heard();
            }
            if let Err(ended) = packet.and_then(|packet| self.hear_packet(packet)) {
                return Poll::Ready(ended);
            }
            if let Some(session) = &mut self.session {
                session.poll(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What was posted comes before what came over the WebSocket that the client then moved to.
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, SessionEnd>> {
        if let Poll::Ready(posted) = self.posted.poll_recv(cx) {
            return Poll::Ready(posted.map(|Posted(packet, _)| packet).ok_or(SessionEnd::Gone));
        }
        let CurrentTransport::WebSocket(ws) = &mut self.wire else { return Poll::Pending };
        loop {
            return Poll::Ready(match std::task::ready!(Pin::new(&mut **ws).poll_next(cx)) {
                Some(Ok(Message::Text(text))) => Ok(Incoming::parse(text)),
                Some(Ok(Message::Binary(_))) => Ok(Incoming::Binary),
                Some(Ok(Message::Close(_))) | None => Err(SessionEnd::Gone),
                Some(Ok(_)) => continue,
                Some(Err(tungstenite::Error::Capacity(_))) => Ok(Incoming::Huge),
                Some(Err(tungstenite::Error::Utf8(_))) => {
                    Err(SessionEnd::Closed(Error::new(Code::InvalidData, "the frame is not UTF-8")))
                }
                Some(Err(_)) => Err(SessionEnd::Gone),
            });
        }
    }

    fn hear_packet(&mut self, packet: Incoming) -> Result<(), SessionEnd> {
        match packet {
            Incoming::Message(text) => {
                self.said = true;
                return self.hear_message(&text);
            }
            Incoming::Ping(repeated) => {
                self.pinged = true;
                self.own.push_back(format!("3{repeated}").into());
                if self.eio == Eio::V3 {
                    self.sign();
                }
            }
            Incoming::Pong => {
                self.pings_open = self.pings_open.saturating_sub(1);
                if self.eio == Eio::V4 {
                    self.sign();
                }
            }
            Incoming::Nothing => {}
            Incoming::Close => return Err(SessionEnd::Gone),
            Incoming::Binary => match self.attachments.checked_sub(1) {
                Some(left) => self.attachments = left,
                None => self.on_bad_frame(&BadPayload::payload("an attachment came without its packet")),
            },
            Incoming::Bad(why) => self.on_bad_frame(&BadPayload::payload(why)),
            Incoming::Huge => {
                return Err(SessionEnd::Closed(Error::new(Code::InvalidData, too_large())));
            }
        }
        Ok(())
    }

    fn on_bad_frame(&self, bad: &BadPayload) {
        if let Some(session) = &self.session {
            session.on_bad_frame(bad);
        }
    }

    fn hear_message(&mut self, text: &Utf8Bytes) -> Result<(), SessionEnd> {
        let packet = match ClientPacket::parse(&text[1..]) {
            Ok(packet) => packet,
            Err(bad) => {
                self.on_bad_frame(&bad);
                return Ok(());
            }
        };
        match packet {
            ClientPacket::Connect { namespace: "" | "/", auth } => {
                if self.session.is_none() {
                    self.open(auth);
                } else {
                    self.open_again(auth);
                }
            }
            ClientPacket::Connect { namespace, .. } => {
                let shown: String = namespace.chars().take(64).collect();
                self.own.push_back(format!("44{shown},{{\"message\":\"Invalid namespace\"}}").into());
            }
            ClientPacket::Disconnect => return Err(SessionEnd::Gone),
            ClientPacket::Ack { attachments } => self.attachments = attachments,
            ClientPacket::Event { body, ack } => {
                let Some(session) = &mut self.session else { return Ok(()) };
                session.heard_awake();
                match event_array(body) {
                    Ok((event, data)) if text.len() > limits::FRAME => {
                        session.refuse_frame(&event, data, ack, &BadPayload::payload(too_large()));
                    }
                    Ok((event, data)) => session.on_message(&event, data, &Bytes::from(text.clone()), ack),
                    Err(_) if text.len() > limits::FRAME => session.on_bad_frame(&BadPayload::payload(too_large())),
                    Err(bad) => session.on_bad_frame(&bad),
                }
            }
            ClientPacket::WithAttachments { attachments, body, ack } => {
                self.attachments = attachments;
                let Some(session) = &self.session else { return Ok(()) };
                match event_array(body) {
                    Ok((event, data)) => {
                        let why =
                            BadPayload::payload("binary data is not understood here: send it as text, such as base64");
                        session.refuse_frame(&event, data, ack, &why);
                    }
                    Err(bad) => session.on_bad_frame(&bad),
                }
            }
        }
        Ok(())
    }

    /// The client says who it is: `auth.token`, or what its first HTTP request carried.
    fn open(&mut self, auth: Option<&str>) {
        let given = token_in(auth);
        let token = given.as_deref().or(self.socket.opened_with.as_deref());
        let gateway = &self.engine.gateway;
        let opened = auth::admit(gateway, &self.origin, token).and_then(|claims| {
            let session = Session::open(gateway.clone(), claims.clone(), Encoding::SocketIo)?;
            self.socket.identify(token.unwrap_or_default(), claims);
            Ok(session)
        });
        match opened {
            Ok(session) => {
                let (first, period) = session.ticks();
                self.ticks = Some(every(first, period));
                self.session = Some(session);
                match self.eio {
                    // Its second ping comes after the pong to the first, which comes after this.
                    Eio::V3 => {
                        self.own.push_back("40".into());
                        self.signs_due = 2;
                    }
                    // The pong says that the client has read this.
                    Eio::V4 => {
                        self.own.push_back(format!("40{{\"sid\":\"{}\"}}", self.public_id).into());
                        self.own.push_back("2".into());
                        self.pings_open += 1;
                        self.signs_due = self.pings_open + u32::from(self.ping_due);
                    }
                }
            }
            // The timer closes the connection, when the refusal has had time to arrive.
            Err(error) if is_final(&error) || error.code == Code::TokenExpired => {
                self.own.push_back(refusal(&error, self.eio, gateway.now_ms()).into());
            }
            // Clients take a refusal for final. They come again when their transport ends, spread out in time.
            Err(error) => {
                let wait = error.retry_after_ms.unwrap_or_else(|| rand::random_range(100..1_000));
                self.give_up.as_mut().reset(Instant::now() + Duration::from_millis(wait));
            }
        }
    }

    /// A session stays whose it is.
    fn open_again(&mut self, auth: Option<&str>) {
        let Some(given) = token_in(auth) else { return };
        if self.socket.identity.get().is_some_and(|identity| is_same(&identity.token, &given)) {
            return;
        }
        let gateway = &self.engine.gateway;
        let error = Error::new(Code::Credentials, "the session is that of another token");
        gateway.refusals.count(self.origin.address(), &error);
        self.own.push_back(refusal(&error, self.eio, gateway.now_ms()).into());
    }

    fn tick(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        let Some(session) = &mut self.session else {
            if self.give_up.as_mut().poll(cx).is_ready() {
                return Err(SessionEnd::Gone);
            }
            while self.pings.poll_tick(cx).is_ready() {
                self.ping_due = self.eio == Eio::V4;
            }
            return Ok(());
        };
        while self.pings.poll_tick(cx).is_ready() {
            // Old clients ping by themselves, and miss the pong when the ping is behind a burst that is not heard yet.
            // A pong that nobody waits for puts off the client's next ping, so one that says nothing gets none.
            let behind = std::mem::take(&mut self.said) && !std::mem::take(&mut self.pinged);
            self.ping_due = self.eio == Eio::V4 || self.paused || behind;
        }
        while self.ticks.as_mut().is_some_and(|ticks| ticks.poll_tick(cx).is_ready()) {
            if self.paused {
                session.heard();
            }
            session.tick()?;
            let settings = &self.engine.gateway.settings;
            if self.blocked_since.is_some_and(|since| since.elapsed() >= settings.write_timeout) {
                return Err(SessionEnd::Closed(Error::new(Code::SocketClosed, "the client takes nothing")));
            }
            let polls = matches!(self.wire, CurrentTransport::Polling) && self.poll.is_none();
            if polls && self.no_poll.elapsed() >= settings.lost_after {
                return Err(SessionEnd::Silent);
            }
        }
        Ok(())
    }
}

impl Drop for EngineConnection {
    fn drop(&mut self) {
        self.engine.sockets.lock().remove(&self.sid);
        self.socket.gone.cancel();
    }
}

/// The token in the auth payload of a CONNECT.
fn token_in(auth: Option<&str>) -> Option<String> {
    Fields::parse(auth?).ok()?.maybe_text("token", 8_192).ok().flatten()
}

fn too_large() -> String {
    format!("a packet may have at most {} bytes", limits::FRAME)
}

/// The same token will be refused again. One that has expired may be followed by a fresh one.
fn is_final(error: &Error) -> bool {
    matches!(error.code, Code::Credentials | Code::Forbidden)
}

/// Connect errors carry a message only in most clients, so the code stands in it.
fn refusal(error: &Error, eio: Eio, at_ms: u64) -> String {
    let mut out = b"44".to_vec();
    if eio == Eio::V3 {
        json::push_text(&mut out, &error.to_string());
    } else {
        json::push_object(&mut out, |o| {
            o.text("message", &error.to_string());
            o.object("data", |o| {
                ServerEvent::Error { error, event: None, field: None, conflict_id: None, request_id: None, at_ms }
                    .fill(o);
            });
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
