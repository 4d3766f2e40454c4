//! What waits to be sent to one session: bounded by count and by bytes, filled by the hub and by the session
//! itself, emptied by the session's transport.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::task::Waker;

use axum::extract::ws::Utf8Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite;

use crate::gateway::protocol::ServerEvent;
use crate::limits;
use crate::metrics;
use crate::model::effect::Effect;
use crate::model::error::{Code, Error};

/// The two ways to put an event into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    WebSocket,
    SocketIo,
}

impl Encoding {
    fn door(self) -> metrics::ErrorDoor {
        match self {
            Self::WebSocket => metrics::ErrorDoor::WebSocket,
            Self::SocketIo => metrics::ErrorDoor::SocketIo,
        }
    }
}

/// An encoded event. Clones share the bytes.
#[derive(Clone, Debug)]
pub enum EncodedEvent {
    WebSocket(Utf8Bytes),
    /// With Engine.IO's `4` before it, so that nothing is copied for a socket.
    SocketIo(tungstenite::Utf8Bytes),
}

impl EncodedEvent {
    pub fn of(transport: Encoding, event: &ServerEvent<'_>) -> Self {
        if let ServerEvent::Error { error, .. } | ServerEvent::SyncError { error, .. } = event {
            metrics::ERRORS.count(transport.door(), error.code.number());
        }
        let mut out = Vec::with_capacity(256);
        match transport {
            Encoding::WebSocket => {
                out.extend_from_slice(b"{\"event\":\"");
                out.extend_from_slice(event.name().as_bytes());
                out.extend_from_slice(b"\",\"data\":");
                event.body(&mut out);
                out.push(b'}');
                Self::WebSocket(text(out).into())
            }
            Encoding::SocketIo => {
                out.extend_from_slice(b"42[\"");
                out.extend_from_slice(event.name().as_bytes());
                out.extend_from_slice(b"\",");
                event.body(&mut out);
                out.push(b']');
                Self::SocketIo(text(out).into())
            }
        }
    }

    /// The answer to a Socket.IO ack callback.
    pub fn ack(id: i64, event: &ServerEvent<'_>) -> Self {
        let mut out = format!("43{id}[").into_bytes();
        event.body(&mut out);
        out.push(b']');
        Self::SocketIo(text(out).into())
    }

    pub fn size(&self) -> usize {
        self.text().len()
    }

    pub fn text(&self) -> &str {
        match self {
            Self::WebSocket(text) => text,
            Self::SocketIo(text) => text,
        }
    }
}

/// Every part was text, so the whole is.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// An event for many sessions: encoded once for each transport, when the first session of it needs it.
pub struct Broadcast {
    pub effect: Effect,
    epoch: u64,
    web_socket: OnceLock<EncodedEvent>,
    socket_io: OnceLock<EncodedEvent>,
}

impl Broadcast {
    pub fn new(effect: Effect, epoch: u64) -> Self {
        Self { effect, epoch, web_socket: OnceLock::new(), socket_io: OnceLock::new() }
    }

    /// `None` for effects that no client is told.
    pub fn frame(&self, transport: Encoding) -> Option<EncodedEvent> {
        let cell = match transport {
            Encoding::WebSocket => &self.web_socket,
            Encoding::SocketIo => &self.socket_io,
        };
        if let Some(frame) = cell.get() {
            return Some(frame.clone());
        }
        let frame = EncodedEvent::of(transport, &event_of(&self.effect, self.epoch)?);
        Some(cell.get_or_init(|| frame).clone())
    }
}

fn event_of(effect: &Effect, epoch: u64) -> Option<ServerEvent<'_>> {
    Some(match effect {
        Effect::Changed(change) => ServerEvent::DataUpdate { change, epoch },
        Effect::Critical { device_id, event_type, payload, timestamp_ms } => {
            ServerEvent::CriticalEvent { event_type, payload, device_id, at_ms: timestamp_ms.get() }
        }
        Effect::ElectionFailed { error, at_ms } => {
            let event = Some("master_election");
            ServerEvent::Error { error, event, field: None, request_id: None, conflict_id: None, at_ms: at_ms.get() }
        }
        Effect::MasterElected(election) => ServerEvent::MasterElected(election),
        Effect::RoleChanged { device_id, role, reason, term, at_ms } => {
            ServerEvent::RoleChange { device_id, role: *role, reason, term: *term, at_ms: at_ms.get() }
        }
        Effect::SyncCompleted { device_id, sync_timestamp_ms, changes_count, at_ms } => ServerEvent::SyncCompleteAck {
            device_id,
            sync_timestamp_ms: sync_timestamp_ms.get(),
            changes_count: *changes_count,
            at_ms: at_ms.get(),
        },
        Effect::ConflictFound(conflict) => ServerEvent::SyncConflict(conflict),
        Effect::ConflictResolved(conflict) => ServerEvent::SyncConflictResolved(conflict),
        Effect::AccessChanged { class, rights, forget, resync, at_ms } => {
            ServerEvent::AccessChanged { class: *class, rights, forget, resync, at_ms: at_ms.get() }
        }
        Effect::TokenRevoked { .. } | Effect::DeviceKeptOut { .. } | Effect::Skipped { .. } => return None,
    })
}

/// One frame on its way out.
pub struct QueuedFrame {
    pub frame: EncodedEvent,
    /// Told when the socket has taken the frame; dropped unsent when the session ends.
    pub taken: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct WaitingFrames {
    frames: VecDeque<QueuedFrame>,
    bytes: usize,
    /// The server ends the session: why.
    closed: Option<Error>,
}

pub struct SendQueue {
    /// The session's number on this node.
    pub id: u64,
    pub transport: Encoding,
    waiting: Mutex<WaitingFrames>,
    waker: AtomicWaker,
}

impl SendQueue {
    pub fn new(id: u64, transport: Encoding) -> Self {
        Self { id, transport, waiting: Mutex::default(), waker: AtomicWaker::new() }
    }

    /// Encodes and queues one event for this session alone.
    pub fn send(&self, event: &ServerEvent<'_>) {
        self.push(QueuedFrame { frame: EncodedEvent::of(self.transport, event), taken: None });
    }

    /// Answers a client's ack callback; only Socket.IO has them.
    pub fn answer(&self, ack: i64, event: &ServerEvent<'_>) {
        if self.transport == Encoding::SocketIo {
            self.push(QueuedFrame { frame: EncodedEvent::ack(ack, event), taken: None });
        }
    }

    /// Queues one event and resolves to true when the socket has taken it.
    pub async fn send_and_wait(&self, frame: EncodedEvent) -> bool {
        let (taken, done) = oneshot::channel();
        self.push(QueuedFrame { frame, taken: Some(taken) });
        done.await.is_ok()
    }

    /// Events that wait, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        let waiting = self.waiting.lock();
        (waiting.frames.len(), waiting.bytes)
    }

    pub fn push(&self, out: QueuedFrame) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.frames.is_empty();
        enqueue(&mut waiting, out);
        self.unlock_and_wake(waiting, was_empty);
    }

    /// Queues what the hub has for this session, with one lock and at most one wake-up.
    pub fn push_all(&self, frames: &mut Vec<EncodedEvent>) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.frames.is_empty();
        for frame in frames.drain(..) {
            enqueue(&mut waiting, QueuedFrame { frame, taken: None });
        }
        self.unlock_and_wake(waiting, was_empty);
    }

    fn unlock_and_wake(&self, waiting: parking_lot::MutexGuard<'_, WaitingFrames>, was_empty: bool) {
        let closed = waiting.closed.is_some();
        drop(waiting);
        // A transport with frames left is waiting for its socket, and looks here again after that.
        if was_empty || closed {
            self.waker.wake();
        }
    }

    /// Ends the session for this reason, after what was queued.
    pub fn close(&self, why: Error) {
        let mut waiting = self.waiting.lock();
        waiting.closed.get_or_insert(why);
        self.unlock_and_wake(waiting, true);
    }

    /// So much waits that the client should not be heard before some of it is sent.
    pub fn is_crowded(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.frames.len() >= limits::SESSION_QUEUE / limits::SESSION_QUEUE_HEARS
            || waiting.bytes >= limits::SESSION_QUEUE_BYTES / limits::SESSION_QUEUE_HEARS
    }

    /// Why the session ends, if it does.
    pub fn end(&self) -> Option<Error> {
        self.waiting.lock().closed.clone()
    }

    pub fn is_closed(&self) -> bool {
        self.end().is_some()
    }

    /// Whom to wake when something is queued.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Wakes nobody until [`SendQueue::register`] is called again.
    pub fn clear_waker(&self) {
        self.waker.take();
    }

    /// Moves everything that waits into `into`, which must be empty. An error ends the session.
    pub fn take(&self, into: &mut VecDeque<QueuedFrame>) -> Result<(), Error> {
        debug_assert!(into.is_empty());
        let mut waiting = self.waiting.lock();
        if let Some(why) = &waiting.closed
            && waiting.frames.is_empty()
        {
            return Err(why.clone());
        }
        waiting.bytes = 0;
        std::mem::swap(&mut waiting.frames, into);
        // A burst's room is not kept for ever.
        if waiting.frames.capacity() > 64 {
            waiting.frames = VecDeque::new();
        }
        Ok(())
    }
}

fn enqueue(waiting: &mut WaitingFrames, out: QueuedFrame) {
    if waiting.closed.is_some() {
        return;
    }
    let bytes = waiting.bytes + out.frame.size();
    // A single frame always fits, whatever its size.
    let full = waiting.frames.len() >= limits::SESSION_QUEUE || bytes > limits::SESSION_QUEUE_BYTES;
    if full && !waiting.frames.is_empty() {
        end(waiting, Error::new(Code::SocketClosed, "too slow: connect again and resume from your cursor"));
        return;
    }
    waiting.bytes = bytes;
    waiting.frames.push_back(out);
}

fn end(waiting: &mut WaitingFrames, why: Error) {
    if waiting.closed.is_none() {
        waiting.closed = Some(why);
    }
    waiting.frames = VecDeque::new();
    waiting.bytes = 0;
}
