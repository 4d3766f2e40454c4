//! Socket.IO at `/socket.io/`: protocol 5 over Engine.IO 4, and protocol 4 over Engine.IO 3 for old clients.
//!
//! Engine.IO (polling, upgrade, heartbeats) is `engineioxide`'s; the packets on top are ours. That way a broadcast is
//! encoded once for all sockets, no packet is dropped in silence, malformed JSON is answered instead of ending the
//! connection, and a record's data stays the bytes that the client sent.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use engineioxide::config::EngineIoConfig;
use engineioxide::handler::EngineIoHandler;
use engineioxide::service::EngineIoService;
use engineioxide::{DisconnectReason, ProtocolVersion, Str, TransportType};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval_at, sleep};

use super::Gateway;
use super::auth;
use super::outbox::{Frame, Out, Outbox, Transport};
use super::session::{Ended, Session};
use super::wire::{Fields, ServerEvent, event_array, json};
use crate::limits;
use crate::model::error::{Code, Error};

mod packet;

use packet::Packet;

type Socket = engineioxide::Socket<Link>;

/// Packets that Engine.IO holds for a socket; more wait in the session's outbox.
const ENGINE_QUEUE: usize = 256;
/// Bytes handed to Engine.IO before it must have sent them all.
const ENGINE_BYTES: usize = 1 << 20;
/// Packets in one answer to a poll: Python's clients take no more than 16, and a ping may be among them.
const POLL_PACKETS: usize = 14;
/// Packets of a client that wait for its session.
const INBOX: usize = 1_024;
/// How soon a full socket is looked at again, and at most how late.
const RETRY: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(32);

/// Takes the requests under `/socket.io`; the others go to `inner`.
pub fn service<S: Clone>(gateway: Arc<Gateway>, inner: S) -> EngineIoService<Handler, S> {
    let settings = &gateway.settings;
    let config = EngineIoConfig::builder()
        .req_path("/socket.io")
        .ping_interval(settings.ping_every)
        .ping_timeout(settings.lost_after.saturating_sub(settings.ping_every))
        .max_buffer_size(ENGINE_QUEUE)
        .max_payload(limits::FRAME as u64)
        .ws_max_message_size(limits::FRAME)
        .ws_max_frame_size(limits::FRAME)
        .build();
    let handler = Handler { gateway, sockets: AtomicUsize::new(0) };
    EngineIoService::with_config_inner(inner, Arc::new(handler), config)
}

pub struct Handler {
    gateway: Arc<Gateway>,
    /// Engine.IO connections, those that have not said who they are included.
    sockets: AtomicUsize,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

/// What a socket is linked to: nothing until its client has said who it is.
#[derive(Default)]
pub struct Link {
    live: OnceLock<Live>,
    counted: OnceLock<()>,
}

struct Live {
    inbox: mpsc::Sender<Packet>,
    /// Bytes in the inbox.
    waiting: Arc<AtomicUsize>,
    outbox: Arc<Outbox>,
    ended: Mutex<Option<oneshot::Sender<Ended>>>,
}

impl EngineIoHandler for Handler {
    type Data = Link;

    fn on_connect(self: Arc<Self>, socket: Arc<Socket>) {
        // Half as many again as there may be sessions: the others have a few seconds to say who they are.
        let bound = self.gateway.settings.sessions + self.gateway.settings.sessions / 2 + 1;
        let _ = socket.data.counted.set(());
        let over = self.sockets.fetch_add(1, Ordering::Relaxed) >= bound;
        let limit = if over { Duration::ZERO } else { self.gateway.settings.connect_timeout };
        if socket.protocol == ProtocolVersion::V3 && !over {
            // Old clients are in the root namespace from the start.
            self.open(&socket, None);
        }
        if socket.data.live.get().is_none() {
            // A socket that is gone by then is not kept for it.
            let socket = Arc::downgrade(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                if let Some(socket) = socket.upgrade().filter(|s| s.data.live.get().is_none()) {
                    socket.close(DisconnectReason::TransportClose);
                }
            });
        }
    }

    fn on_disconnect(&self, socket: Arc<Socket>, reason: DisconnectReason) {
        if socket.data.counted.get().is_some() {
            self.sockets.fetch_sub(1, Ordering::Relaxed);
        }
        let Some(live) = socket.data.live.get() else { return };
        let why = if reason == DisconnectReason::HeartbeatTimeout { Ended::Silent } else { Ended::Gone };
        live.end(why);
    }

    /// Called in the order of arrival: what is queued here is handled in that order.
    fn on_message(self: &Arc<Self>, message: Str, socket: Arc<Socket>) {
        match Packet::parse(message) {
            Ok(Packet::Connect { namespace, auth }) if namespace.is_empty() || namespace == "/" => {
                if socket.data.live.get().is_none() {
                    self.open(&socket, auth.as_deref());
                }
            }
            Ok(Packet::Connect { namespace, .. }) => {
                let refusal = format!("4{namespace},{{\"message\":\"Invalid namespace\"}}");
                let _ = socket.emit(refusal);
            }
            Ok(Packet::Disconnect) => {
                if let Some(live) = socket.data.live.get() {
                    live.end(Ended::Gone);
                }
                socket.close(DisconnectReason::TransportClose);
            }
            Ok(Packet::Ack) => {}
            Ok(packet) => {
                if let Some(live) = socket.data.live.get() {
                    live.put(packet, &self.gateway);
                }
            }
            Err(bad) => {
                if let Some(live) = socket.data.live.get() {
                    live.put(Packet::Bad(bad), &self.gateway);
                }
            }
        }
    }

    /// Attachments of binary packets; the packet itself was answered with an error.
    fn on_binary(self: &Arc<Self>, _: Bytes, _: Arc<Socket>) {}
}

impl Live {
    fn end(&self, why: Ended) {
        if let Some(ended) = self.ended.lock().take() {
            // The connection's task may have ended by itself.
            let _ = ended.send(why);
        }
    }

    fn put(&self, packet: Packet, gateway: &Gateway) {
        let bytes = packet.len();
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting <= limits::SESSION_QUEUE_BYTES.max(bytes) && self.inbox.try_send(packet).is_ok() {
            return;
        }
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let mut error = Error::new(Code::Unavailable, "too many of your requests are waiting: this one was dropped");
        error.retry_after_ms = Some(1_000);
        let at_ms = gateway.now_ms();
        self.outbox.send(&ServerEvent::Error {
            error: &error,
            event: None,
            field: None,
            conflict_id: None,
            request_id: None,
            at_ms,
        });
    }
}

impl Handler {
    /// The client says who it is: `auth.token`, or what its first HTTP request carried.
    fn open(&self, socket: &Arc<Socket>, auth: Option<&str>) {
        let given = auth.and_then(|text| Fields::parse(text).ok()?.maybe_text("token", 8_192).ok().flatten());
        let token = given.as_deref().or_else(|| auth::token_of(&socket.req_parts));
        let opened = auth::check(&self.gateway, token)
            .and_then(|claims| Session::open(self.gateway.clone(), claims, Transport::SocketIo));
        let session = match opened {
            Ok(session) => session,
            Err(error) => {
                // The timer of `on_connect` closes the connection, when the refusal has had time to arrive.
                let _ = socket.emit(refusal(&error, socket.protocol, self.gateway.now_ms()));
                return;
            }
        };
        let (inbox, packets) = mpsc::channel(INBOX);
        let (end, ended) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let outbox = session.outbox.clone();
        let live = Live { inbox, waiting: waiting.clone(), outbox, ended: Mutex::new(Some(end)) };
        let hello = match socket.protocol {
            ProtocolVersion::V3 => "0".to_owned(),
            ProtocolVersion::V4 => format!("0{{\"sid\":\"{}\"}}", socket.id),
        };
        if socket.data.live.set(live).is_err() || socket.emit(hello).is_err() {
            return;
        }
        let (first, every) = session.ticks();
        let mut ticks = interval_at(first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let connection = Connection {
            gateway: self.gateway.clone(),
            session,
            socket: socket.clone(),
            packets,
            waiting,
            ended,
            sending: VecDeque::new(),
            handed: 0,
            count: 0,
            retry: None,
            retry_in: RETRY,
            ticks,
        };
        tokio::spawn(connection.run());
    }
}

/// Connect errors carry a message only in most clients, so the code stands in it.
fn refusal(error: &Error, protocol: ProtocolVersion, at_ms: u64) -> String {
    let mut out = b"4".to_vec();
    if protocol == ProtocolVersion::V3 {
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

/// A socket and its session.
struct Connection {
    gateway: Arc<Gateway>,
    session: Session,
    socket: Arc<Socket>,
    packets: mpsc::Receiver<Packet>,
    waiting: Arc<AtomicUsize>,
    ended: oneshot::Receiver<Ended>,
    sending: VecDeque<Out>,
    /// Bytes handed to Engine.IO since it was last seen empty.
    handed: usize,
    /// Packets handed over since then.
    count: usize,
    retry: Option<Pin<Box<Sleep>>>,
    retry_in: Duration,
    ticks: Interval,
}

impl Connection {
    async fn run(mut self) {
        let ended = poll_fn(|cx| self.poll(cx)).await;
        if let Ended::Closed(error) = &ended {
            let at_ms = self.gateway.now_ms();
            let event =
                ServerEvent::Error { error, event: None, field: None, conflict_id: None, request_id: None, at_ms };
            if let Frame::SocketIo(text) = Frame::of(Transport::SocketIo, &event) {
                // A socket that is full gets neither: it will see the connection end.
                let _ = self.socket.emit(text).and_then(|()| self.socket.emit("1"));
            }
        }
        let Self { session, socket, .. } = self;
        session.end(&ended);
        socket.close(DisconnectReason::ClosingServer);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        // What the session queues for itself from here on needs no wake-up: it is handed on below.
        self.session.outbox.deafen();
        if let Poll::Ready(ended) = Pin::new(&mut self.ended).poll(cx) {
            return Poll::Ready(ended.unwrap_or(Ended::Gone));
        }
        self.session.poll(cx);
        while self.session.has_room() {
            let Poll::Ready(Some(packet)) = self.packets.poll_recv(cx) else { break };
            self.waiting.fetch_sub(packet.len(), Ordering::Relaxed);
            self.hear(packet);
            self.session.poll(cx);
        }
        while self.ticks.poll_tick(cx).is_ready() {
            // Liveness is Engine.IO's here; the tick looks at the token.
            self.session.heard();
            if let Err(ended) = self.session.tick() {
                return Poll::Ready(ended);
            }
        }
        self.session.outbox.register(cx.waker());
        match self.write(cx) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        }
    }

    fn hear(&mut self, packet: Packet) {
        match packet {
            Packet::Event { body, ack } => {
                let frame = Bytes::from(body.clone());
                match event_array(&body) {
                    Ok((event, data)) => self.session.hear(&event, data, &frame, ack),
                    Err(bad) => self.session.misheard(&bad),
                }
            }
            Packet::Bad(bad) => self.session.misheard(&bad),
            Packet::Connect { .. } | Packet::Disconnect | Packet::Ack => {}
        }
    }

    /// Hands what waits to Engine.IO, as far as it has room.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        if let Some(retry) = &mut self.retry
            && retry.as_mut().poll(cx).is_pending()
        {
            return if self.session.outbox.is_closed() { self.take() } else { Ok(()) };
        }
        self.retry = None;
        loop {
            if self.sending.is_empty() {
                self.take()?;
            }
            if self.sending.is_empty() {
                return Ok(());
            }
            if self.socket.is_closed() {
                return Err(Ended::Gone);
            }
            if !self.has_room() {
                let mut retry = Box::pin(sleep(self.retry_in));
                self.retry_in = (self.retry_in * 2).min(RETRY_MAX);
                // Not due yet; polled so that it wakes this task.
                let _ = retry.as_mut().poll(cx);
                self.retry = Some(retry);
                return if self.session.outbox.is_closed() { self.take() } else { Ok(()) };
            }
            self.retry_in = RETRY;
            let Some(Out { frame: Frame::SocketIo(text), taken }) = self.sending.pop_front() else { continue };
            self.handed += text.len();
            self.count += 1;
            self.socket.emit(text).map_err(|_| Ended::Gone)?;
            if let Some(taken) = taken {
                // Nobody waits for it any more if its job has ended.
                let _ = taken.send(());
            }
        }
    }

    /// An error ends the session.
    fn take(&mut self) -> Result<(), Ended> {
        let mut taken = VecDeque::new();
        self.session.outbox.take(&mut taken).map_err(Ended::Closed)?;
        self.sending.append(&mut taken);
        Ok(())
    }

    /// Engine.IO shows its queue only by its permits: as many as can be held at once are free. One is always left
    /// for its own pings, which end the connection when they find none.
    fn has_room(&mut self) -> bool {
        // A page of a sync, and anything after a lot of bytes, waits until what was handed over is on its way.
        let polls = self.socket.transport_type() == TransportType::Polling;
        let all = self.handed >= ENGINE_BYTES
            || (polls && self.count >= POLL_PACKETS)
            || self.sending.front().is_some_and(|o| o.taken.is_some());
        if !all {
            let (one, another) = (self.socket.reserve(), self.socket.reserve());
            return one.is_ok() && another.is_ok();
        }
        let permits: Vec<_> = (1..ENGINE_QUEUE).map_while(|_| self.socket.reserve().ok()).collect();
        let empty = permits.len() == ENGINE_QUEUE - 1;
        if empty {
            (self.handed, self.count) = (0, 0);
        }
        empty
    }
}
