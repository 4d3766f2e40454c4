//! One client connection: what it asks is decoded, allowed, proposed or read, and answered, whatever the transport.
//!
//! A transport feeds it with [`Session::on_message`], drives it with [`Session::poll`], and sends what its send queue
//! holds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::gateway::Gateway;
use crate::gateway::auth;
use crate::gateway::fanout::hub::TokenHolder;
use crate::gateway::fanout::send_queue::{Encoding, SendQueue};
use crate::gateway::protocol::{
    BadPayload, ClientEvent, ClientRequest, DecodeError, Fields, ServerEvent, decode, request_id,
};
use crate::gateway::rates::{OpenSession, RateShare};
use crate::gateway::session::client_clock::ClientClock;
use crate::gateway::session::delivery::Delivery;
use crate::gateway::session::request_pipeline::{Completion, ReplyPlan, RequestPipeline};
use crate::gateway::session::request_ticket::RequestTicket;
use crate::ids::ConflictId;
use crate::model::access::ClassNumber;
use crate::model::error::{Code, Error};
use crate::proto::AuditNote;
use crate::proto::command::Intent;
use crate::token::Claims;

mod answers;
pub(crate) mod client_clock;
mod delivery;
mod removed_records;
mod request_pipeline;
pub(crate) mod request_ticket;
mod requests;
pub(crate) mod sync;

pub use answers::{look_up, update_message};
pub use requests::{decider, elect, find_conflict, why_conflict};

/// How long changes wait for the first `device_online` of a session, the latter half of it with a client that is awake
/// (one that was busy when it was connected says it later); and how long while others of its requests are unanswered:
/// libraries send first what was emitted offline.
const FIRST_ONLINE: Duration = Duration::from_secs(2);
const FIRST_ONLINE_BUSY: Duration = Duration::from_secs(30);
/// Between two warnings that the clock of one session is off.
const CLOCK_WARNING: Duration = Duration::from_secs(600);

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The client left, or its connection broke.
    Gone,
    /// The server ends it.
    Closed(Error),
    /// Nothing was heard for too long.
    Silent,
}

pub struct Session {
    gateway: Arc<Gateway>,
    claims: Claims,
    pub send_queue: Arc<SendQueue>,
    pipeline: RequestPipeline,
    /// Devices that came online on it, and did not say goodbye.
    devices: Vec<String>,
    delivery: Arc<Delivery>,
    /// Changes wait for the first `device_online` to be answered: if it resumes, nothing may come before that.
    awaiting_online: bool,
    /// A resume was refused for good. Changes wait for one that is granted: live ones would hide what was missed.
    resume_refused: bool,
    opened: Instant,
    /// Its client knows what its class may read, if that is not everything.
    knows_rights: bool,
    /// The clock that its client's times are by, and when the log was told last that it is off.
    clock: ClientClock,
    clock_warned: Option<Instant>,
    heard: Instant,
    /// When the client first said something after it was told that it is connected.
    awake: Option<Instant>,
    pinged: Instant,
    /// What its token may ask for, with its sessions elsewhere on this node.
    share: Arc<RateShare>,
    _opened: OpenSession,
    /// It is not heard until then: its token asked for more than its rate.
    paused: Option<Pin<Box<Sleep>>>,
}

impl Session {
    /// 1003 when the node is full.
    pub fn open(gateway: Arc<Gateway>, claims: Claims, transport: Encoding) -> Result<Self, Error> {
        if gateway.closing.is_cancelled() {
            return Err(shutting_down());
        }
        let share = gateway.rates.of(&claims);
        let opened = share.open()?;
        let (send_queue, position) = gateway.hub.attach(transport, TokenHolder::of(&claims))?;
        if gateway.closing.is_cancelled() {
            // Since it was looked at above: this session was not among those that were told to go.
            gateway.hub.detach(send_queue.id);
            return Err(shutting_down());
        }
        if let Err(error) = auth::still_good(&gateway, &claims) {
            // Revoked after it was checked and before the hub could have closed it.
            gateway.hub.detach(send_queue.id);
            return Err(error);
        }
        let now = Instant::now();
        Ok(Self {
            delivery: Delivery::new(
                gateway.clone(),
                send_queue.clone(),
                share.clone(),
                claims.class.number(),
                position,
            ),
            gateway,
            claims,
            send_queue,
            pipeline: RequestPipeline::default(),
            devices: Vec::new(),
            awaiting_online: true,
            resume_refused: false,
            opened: now,
            knows_rights: false,
            clock: ClientClock::default(),
            clock_warned: None,
            heard: now,
            awake: None,
            pinged: now,
            share,
            _opened: opened,
            paused: None,
        })
    }

    /// Any sign of life.
    pub fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// A sign of life that came after the client had been told that it is connected.
    pub fn heard_awake(&mut self) {
        self.heard();
        self.awake.get_or_insert(self.heard);
    }

    /// When to tick first, and then how often.
    pub fn ticks(&self) -> (Instant, Duration) {
        let every = self.gateway.settings.ping_every;
        (Instant::now() + every.min(FIRST_ONLINE), every)
    }

    /// True when a ping is due. An error ends the session: it fell silent, or its token expired.
    pub fn tick(&mut self) -> Result<bool, SessionEnd> {
        let now = Instant::now();
        self.start_if_late();
        if !self.has_room() {
            // It is not listened to: that is not its silence.
            self.heard = now;
        }
        if now.duration_since(self.heard) >= self.gateway.settings.lost_after {
            return Err(SessionEnd::Silent);
        }
        auth::still_good(&self.gateway, &self.claims).map_err(SessionEnd::Closed)?;
        let idle_since = self.heard.max(self.pinged);
        let due =
            now.duration_since(idle_since) + self.gateway.settings.ping_every / 8 >= self.gateway.settings.ping_every;
        if due {
            self.pinged = now;
        }
        Ok(due)
    }

    /// More may be heard: fewer requests than the limit are unanswered, the client takes its answers, and its token has
    /// not asked for more than its rate.
    pub fn has_room(&self) -> bool {
        self.paused.is_none() && self.pipeline.has_room(self.share.in_flight()) && !self.send_queue.is_crowded()
    }

    /// Is woken when the token's rate allows more.
    fn pause_over_rate(&mut self, cx: &mut Context<'_>) {
        while let Some(wait) = self.share.wait() {
            let until = Instant::now() + wait;
            let held = self.paused.get_or_insert_with(|| Box::pin(sleep_until(until)));
            held.as_mut().reset(until);
            if held.as_mut().poll(cx).is_pending() {
                return;
            }
        }
        self.paused = None;
    }

    /// One event of the client. `frame` are the bytes that `payload` is a part of.
    pub fn on_message(&mut self, event: &str, payload: Option<&str>, frame: &Bytes, ack: Option<i64>) {
        self.share.heard(frame.len());
        match decode(event, payload, frame) {
            Ok(ClientRequest { event, request_id }) => {
                let ticket = RequestTicket { event: event.name(), ack, request_id };
                let resumes = matches!(&event, ClientEvent::DeviceOnline(ask) if ask.cursor.is_some());
                if let Err(error) = self.act(ticket.clone(), event) {
                    self.resume_refused |= resumes;
                    self.refuse(&ticket, &error, None);
                }
            }
            Err(bad) => {
                let cursor = || Some(Fields::parse(payload?).ok()?.has("cursor"));
                self.resume_refused |= event == "device_online" && cursor().unwrap_or_default();
                self.refuse_decode(event, ack, &bad);
            }
        }
    }

    /// A frame that holds no event.
    pub fn on_bad_frame(&self, bad: &BadPayload) {
        self.share.heard(0);
        let field = bad.field.as_deref();
        let error = Error::new(Code::InvalidData, bad.message.clone());
        let at_ms = self.gateway.now_ms();
        let (conflict_id, request_id) = (None, None);
        self.send_queue.send(&ServerEvent::Error { error: &error, event: None, field, conflict_id, request_id, at_ms });
    }

    /// A frame that is refused whatever is in it, such as one that is too large.
    pub fn refuse_frame(&self, event: &str, payload: Option<&str>, ack: Option<i64>, why: &BadPayload) {
        self.share.heard(payload.map_or(0, str::len));
        let error = Error::new(Code::InvalidData, why.message.clone());
        let (event, request_id, at_ms) = (known(event), request_id(payload), self.gateway.now_ms());
        let request_id = request_id.as_deref();
        self.reply(
            ack,
            &ServerEvent::Error { error: &error, event, field: None, conflict_id: None, request_id, at_ms },
        );
    }

    fn refuse_decode(&self, event: &str, ack: Option<i64>, bad: &DecodeError) {
        let (error, field, at_ms) = (&bad.error, bad.field.as_deref(), self.gateway.now_ms());
        let request_id = bad.request_id.as_deref();
        let answer = match &bad.device_id {
            Some(device_id) if event == "sync_request" => {
                ServerEvent::SyncError { device_id, error, sync_type: None, field, request_id, at_ms }
            }
            _ => ServerEvent::Error { error, event: known(event), field, conflict_id: None, request_id, at_ms },
        };
        self.reply(ack, &answer);
    }

    fn refuse(&self, ticket: &RequestTicket, error: &Error, conflict_id: Option<ConflictId>) {
        let (event, request_id, at_ms) = (Some(ticket.event), ticket.request_id.as_deref(), self.gateway.now_ms());
        let error = &error.clone().over_socket();
        let field = error.field();
        self.reply(ticket.ack, &ServerEvent::Error { error, event, field, conflict_id, request_id, at_ms });
    }

    fn reply(&self, ack: Option<i64>, event: &ServerEvent<'_>) {
        self.send_queue.send(event);
        if let Some(ack) = ack {
            self.send_queue.answer(ack, event);
        }
    }

    fn propose(&mut self, ticket: RequestTicket, then: ReplyPlan, intent: Intent) {
        let answer = if then.may_elect() {
            self.gateway.propose_election(&self.claims, intent)
        } else {
            self.gateway.propose_for(&self.claims, intent)
        };
        self.pipeline.propose(ticket, then, answer);
    }

    /// Answers what is ready to be answered.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        self.pause_over_rate(cx);
        while let Poll::Ready(step) = self.pipeline.poll_next(cx, &*self.gateway.cluster) {
            match step {
                Completion::Proposed(ticket, then, outcome) => self.proposed(ticket, then, outcome),
                Completion::Read(ticket, read, passed) => self.read(ticket, read, passed),
                Completion::Cold(ticket, record, found) => self.found(ticket, record, found),
            }
        }
        self.start_if_late();
    }

    fn class(&self) -> ClassNumber {
        self.claims.class.number()
    }

    fn may(&self, device_id: &str) -> Result<(), Error> {
        auth::may_speak_for(&self.claims, device_id)
    }

    /// Nobody comes online on it, or not soon: it hears of everything since it was opened.
    fn start_if_late(&mut self) {
        if !self.awaiting_online || self.resume_refused {
            return;
        }
        let waited = self.opened.elapsed();
        let awake = self.awake.is_some_and(|since| since.elapsed() >= FIRST_ONLINE / 2);
        if waited >= FIRST_ONLINE_BUSY || (waited >= FIRST_ONLINE && awake && self.pipeline.is_empty()) {
            self.start_delivery();
        }
    }

    fn start_delivery(&mut self) {
        self.awaiting_online = false;
        self.delivery.start();
    }

    /// The connection is over: its devices have the grace to come back.
    pub fn end(self, why: &SessionEnd) {
        let reason = match why {
            SessionEnd::Silent => "heartbeat timeout (1004)",
            SessionEnd::Closed(error) if error.code == Code::SocketClosed => "the session was too slow (1003)",
            SessionEnd::Closed(_) => "the session was closed",
            SessionEnd::Gone => "the connection was lost",
        };
        if *why == SessionEnd::Silent {
            for device_id in &self.devices {
                self.gateway.propose_aside(Intent::AuditNote(AuditNote {
                    event_type: "heartbeat_timeout".into(),
                    operation: "disconnect".into(),
                    error: true,
                    device_id: device_id.clone(),
                    details: format!("1004: nothing heard for {:?}", self.gateway.settings.lost_after),
                }));
            }
        }
        let grace = self.gateway.settings.grace;
        self.gateway.presence.session_ended(&self.devices, self.send_queue.id, grace, reason);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.delivery.close();
        self.gateway.hub.detach(self.send_queue.id);
    }
}

fn shutting_down() -> Error {
    Error::new(Code::Unavailable, "the node is shutting down: connect to another one")
}

/// What a client called the event, if it is not too long to repeat.
fn known(event: &str) -> Option<&str> {
    (event.len() <= 64).then_some(event)
}
