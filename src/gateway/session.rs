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

use super::Gateway;
use super::auth;
use super::client_clock::ClientClock;
use super::delivery::Delivery;
use super::hub::{ChangeFilter, TokenHolder};
use super::rates::{OpenSession, RateKind, RateShare};
use super::request_pipeline::{Completion, ReadRequest, ReplyPlan, RequestPipeline, RequestTicket};
use super::send_queue::{Encoding, SendQueue};
use super::sync::{Completed, SyncJob};
use super::wire::{
    BadPayload, ClientEvent, ClientRequest, DecodeError, Fields, OnlineAsk, ServerEvent, decode, request_id,
};
use crate::limits;
use crate::model::access::ClassNumber;
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::model::time::IsoTime;
use crate::proto::command::Intent;
use crate::proto::{
    AuditNote, Capabilities, ConflictResolve, DeviceOffline, DeviceOnline, DeviceShutdown, Elect, ElectionMethod,
    ElectionReason, Presence, RoleChange, SyncComplete,
};
use crate::token::Claims;

mod answers;

pub use answers::{look_up, update_message};

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

    fn refuse(&self, ticket: &RequestTicket, error: &Error, conflict_id: Option<u64>) {
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
        // Answered when the election that they may bring is over, so that nothing of it comes after the answer.
        let elects = matches!(
            then,
            ReplyPlan::Online { .. }
                | ReplyPlan::Offline { .. }
                | ReplyPlan::Shutdown { .. }
                | ReplyPlan::Election
                | ReplyPlan::Role { .. }
        );
        let answer = if elects {
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
                Completion::Cold(ticket, read, found) => self.found(ticket, &read, found),
            }
        }
        self.start_if_late();
    }

    fn act(&mut self, ticket: RequestTicket, event: ClientEvent) -> Result<(), Error> {
        match event {
            ClientEvent::DataUpdate(mut update) => {
                self.may(&update.device_id)?;
                auth::sign_update(&self.gateway, &self.claims, &mut update)?;
                let taken = self.clock.stamp(&mut update);
                let then = ReplyPlan::Update {
                    device_id: update.device_id.clone(),
                    table_name: update.table_name.clone(),
                    record_id: update.record_id,
                    entry: (update.n > 0).then(|| (update.queue.clone(), update.n)),
                    taken,
                };
                self.propose(ticket, then, Intent::DataUpdate(update));
            }
            ClientEvent::DataRequest { device_id, table_name, record_id } => {
                self.may(&device_id)?;
                self.share.may_read()?;
                self.pipeline.read(ticket, ReadRequest::Record { table_name, record_id });
            }
            ClientEvent::Heartbeat { device_id, sent, unsent } => {
                self.may(&device_id)?;
                if let Some(unsent) = unsent {
                    self.gateway.presence.said_unsent(&device_id, self.send_queue.id, unsent);
                }
                self.measure_clock(&device_id, sent);
                let (clock_ahead_ms, at_ms) = (self.clock.ahead_ms(), self.gateway.now_ms());
                self.reply(ticket.ack, &ServerEvent::HeartbeatAck { device_id: &device_id, clock_ahead_ms, at_ms });
            }
            ClientEvent::QueueStatus { device_id, offline } => {
                self.may(&device_id)?;
                self.pipeline.read(ticket, ReadRequest::Queue { device_id, offline });
            }
            ClientEvent::TokenRenew => self.pipeline.read(ticket, ReadRequest::Token),
            ClientEvent::DeviceOnline(ask) => self.online(ticket, ask)?,
            ClientEvent::DeviceOffline { device_id, reason } => {
                self.leave(&device_id)?;
                let then = ReplyPlan::Offline { device_id: device_id.clone() };
                let offline = DeviceOffline { device_id, reason, ..DeviceOffline::default() };
                self.propose(ticket, then, Intent::DeviceOffline(offline));
            }
            ClientEvent::DeviceShutdown { device_id, reason } => {
                self.leave(&device_id)?;
                let then = ReplyPlan::Shutdown { device_id: device_id.clone() };
                self.propose(ticket, then, Intent::DeviceShutdown(DeviceShutdown { device_id, reason }));
            }
            ClientEvent::SyncRequest(ask) => {
                self.may(&ask.device_id)?;
                let (gateway, send_queue, share) = (self.gateway.clone(), self.send_queue.clone(), self.share.clone());
                let job = SyncJob::new(gateway, send_queue, share, self.class(), ask, ticket.clone());
                if let Some(job) = job {
                    let begin = job.begin();
                    self.propose(ticket, ReplyPlan::Sync(job), begin);
                }
            }
            other => self.act_rarely(ticket, other)?,
        }
        Ok(())
    }

    fn act_rarely(&mut self, ticket: RequestTicket, event: ClientEvent) -> Result<(), Error> {
        match event {
            ClientEvent::CriticalEvent(mut critical) => {
                self.may(&critical.device_id)?;
                self.share.heard_as(RateKind::Critical);
                self.clock.stamp_event(&mut critical);
                let then = ReplyPlan::Critical { device_id: critical.device_id.clone() };
                self.propose(ticket, then, Intent::CriticalEvent(critical));
            }
            ClientEvent::MasterElection { reason, initiated_by } => {
                if reason == ElectionReason::Manual {
                    auth::must_be_privileged(&self.claims, "start a manual election")?;
                }
                self.share.election()?;
                let elect = elect(&self.claims, reason, initiated_by);
                self.propose(ticket, ReplyPlan::Election, Intent::Elect(elect));
            }
            ClientEvent::RoleChange { device_id, role, reason } => {
                self.may(&device_id)?;
                self.share.election()?;
                let then = ReplyPlan::Role { device_id: device_id.clone(), role, reason: reason.clone() };
                let (by, asker) = (self.claims.sub.clone(), auth::asker(&self.claims).into());
                let change = RoleChange { device_id, role: role.into(), reason, by, asker };
                self.propose(ticket, then, Intent::RoleChange(change));
            }
            ClientEvent::SyncComplete { device_id, sync_timestamp_ms, changes_count, sync_id, cursor } => {
                self.may(&device_id)?;
                let sync_timestamp_ms = sync_timestamp_ms.unwrap_or_else(|| self.gateway.now_ms());
                let then = ReplyPlan::SyncComplete { device_id: device_id.clone(), sync_timestamp_ms, changes_count };
                let complete =
                    SyncComplete { device_id, sync_timestamp_ms, changes_count, sync_id, ..SyncComplete::default() };
                let complete = self.completed(complete, cursor)?;
                self.propose(ticket, then, Intent::SyncComplete(complete));
            }
            ClientEvent::SyncError(report) => {
                self.may(&report.device_id)?;
                self.share.heard_as(RateKind::Report);
                let then = ReplyPlan::SyncError {
                    device_id: report.device_id.clone(),
                    message: report.error_message.clone(),
                    code: report.error_code.clone(),
                };
                self.propose(ticket, then, Intent::SyncErrorReport(report));
            }
            ClientEvent::SyncConflict(mut report) => {
                self.may(&report.device_id)?;
                self.share.heard_as(RateKind::Report);
                report.class = self.class().number();
                let then = ReplyPlan::Conflict {
                    device_id: report.device_id.clone(),
                    table_name: report.table_name.clone(),
                    record_id: report.record_id,
                };
                self.propose(ticket, then, Intent::ConflictReport(report));
            }
            ClientEvent::SyncConflictResolved(resolve) => self.resolve(ticket, resolve)?,
            // The others are `act`'s.
            _ => {}
        }
        Ok(())
    }

    /// How far a device is that says that it has applied a sync: never further than it was sent.
    fn completed(&self, complete: SyncComplete, cursor: Option<String>) -> Result<SyncComplete, Error> {
        let cursor = match cursor {
            Some(cursor) => Some(Cursor::parse(&cursor, self.gateway.cluster.replica().state().meta())?.seq),
            None => None,
        };
        let SyncComplete { device_id, sync_id, sync_timestamp_ms, .. } = &complete;
        let sent = match self.gateway.syncs.complete(device_id, sync_id, *sync_timestamp_ms) {
            Completed::Early => {
                let why = "sync_complete comes after the sync's last page, the one with has_more false";
                return Err(Error::new(Code::SyncRequest, why));
            }
            Completed::Sent(sent) => Some(sent),
            Completed::Unknown => None,
        };
        Ok(match (cursor, sent) {
            (None, None) => SyncComplete { nothing_sent: true, ..complete },
            (None, Some(sent)) => {
                SyncComplete { cursor_seq: Some(sent.head), completed_ms: sent.at_ms, scope: sent.scope, ..complete }
            }
            (Some(seq), sent) => SyncComplete {
                cursor_seq: Some(seq),
                completed_ms: sent.filter(|sent| sent.head == seq).map_or(0, |sent| sent.at_ms),
                scope: sent.map_or_else(|| self.delivery.scope(), |sent| sent.scope),
                ..complete
            },
        })
    }

    fn class(&self) -> ClassNumber {
        self.claims.class.number()
    }

    fn may(&self, device_id: &str) -> Result<(), Error> {
        auth::may_speak_for(&self.claims, device_id)
    }

    /// The device is bound to the session before its coming online is proposed: what is sent to it from then on
    /// finds it here.
    fn online(&mut self, ticket: RequestTicket, ask: OnlineAsk) -> Result<(), Error> {
        self.may(&ask.device_id)?;
        self.share.heard_as(RateKind::Presence);
        auth::may_claim(&self.claims, ask.priority)?;
        let fresh = !self.devices.contains(&ask.device_id);
        if fresh && self.devices.len() >= limits::SESSION_DEVICES {
            let why = format!("a session may speak for at most {} devices", limits::SESSION_DEVICES);
            return Err(Error::new(Code::Registration, why));
        }
        if fresh {
            self.devices.push(ask.device_id.clone());
        }
        self.gateway.presence.bind(&ask.device_id, self.send_queue.id);
        self.measure_clock(&ask.device_id, ask.sent);
        if ask.subscribe.is_some() {
            self.delivery.subscribe(ChangeFilter::of(ask.subscribe, self.class()));
        }
        let then = ReplyPlan::Online { device_id: ask.device_id.clone(), cursor: ask.cursor, fresh };
        let token_iat = auth::own_token_iat(&self.claims, &ask.device_id);
        let intent = Intent::DeviceOnline(DeviceOnline {
            class: if self.claims.sub == ask.device_id { self.claims.class.name().to_owned() } else { String::new() },
            device_id: ask.device_id,
            role: ask.role.unwrap_or_default().into(),
            priority: ask.priority,
            capabilities: ask.capabilities.map(|names| Capabilities { names }),
            presence: Presence::Session.into(),
            returns: false,
            token_iat,
            unsent: ask.unsent,
            asker: auth::asker(&self.claims).into(),
            asked_by: self.claims.sub.clone(),
        });
        self.propose(ticket, then, intent);
        Ok(())
    }

    /// `sent` is the time of something that the client sent as it happened.
    fn measure_clock(&mut self, device_id: &str, sent: Option<IsoTime>) {
        let Some(sent) = sent else { return };
        self.clock.measure(sent, self.gateway.now_ms());
        let ahead_ms = self.clock.ahead_ms();
        self.gateway.presence.clock_measured(device_id, self.send_queue.id, ahead_ms);
        let due = self.clock_warned.is_none_or(|at| at.elapsed() >= CLOCK_WARNING);
        if let Some(ahead_ms) = ahead_ms.filter(|_| due) {
            self.clock_warned = Some(Instant::now());
            tracing::warn!(device_id, ahead_ms, "the clock of a device is off: its times are corrected by that much");
        }
    }

    fn leave(&mut self, device_id: &str) -> Result<(), Error> {
        self.may(device_id)?;
        self.share.heard_as(RateKind::Presence);
        self.unbind(device_id, "said goodbye");
        Ok(())
    }

    /// What was asked of the cluster about the device may get lost, or may be done although its answer did not come:
    /// then it is reported after the grace.
    fn unbind(&mut self, device_id: &str, why: &'static str) {
        self.devices.retain(|d| d != device_id);
        let grace = self.gateway.settings.grace;
        self.gateway.presence.session_ended(&[device_id.to_owned()], self.send_queue.id, grace, why);
    }

    /// A decision on an open conflict: the sender's own, or anybody's by an admin or a manager.
    fn resolve(&mut self, ticket: RequestTicket, mut resolve: ConflictResolve) -> Result<(), Error> {
        if !resolve.device_id.is_empty() {
            self.may(&resolve.device_id)?;
        }
        let owner = find_conflict(&self.gateway, &resolve)?;
        // What the rights are checked on is what is decided, whatever is open by the time that this is applied.
        resolve.conflict_id = Some(owner.id);
        auth::may_speak_for(&self.claims, &owner.device_id)?;
        if resolve.device_id.is_empty() {
            resolve.device_id = decider(&self.gateway, &self.claims, &owner.device_id);
        }
        resolve.by.clone_from(&self.claims.sub);
        resolve.class = self.class().number();
        resolve.asker = auth::asker(&self.claims).into();
        let then = ReplyPlan::Conflict {
            device_id: resolve.device_id.clone(),
            table_name: owner.table_name.clone(),
            record_id: owner.record_id,
        };
        self.propose(ticket, then, Intent::ConflictResolve(resolve));
        Ok(())
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

/// An election as a client asked for it.
pub fn elect(claims: &Claims, reason: ElectionReason, initiated_by: String) -> Elect {
    let initiated_by = if initiated_by.is_empty() { claims.sub.clone() } else { initiated_by };
    let (asker, asked_by) = (auth::asker(claims).into(), claims.sub.clone());
    let (reason, method) = (reason.into(), ElectionMethod::Priority.into());
    Elect { reason, method, initiated_by, asker, asked_by, ..Elect::default() }
}

/// The open conflict that a decision is about; 2002 if there is none.
pub fn find_conflict(gateway: &Gateway, c: &ConflictResolve) -> Result<Arc<crate::proto::Conflict>, Error> {
    let found = gateway.cluster.replica().state().conflict_to_resolve(c).cloned();
    found.ok_or_else(|| Error::new(Code::Conflict, "there is no such open conflict"))
}

/// What the sender of a change that met a conflict is told: it may be the repeat of one that was decided since.
pub fn why_conflict(gateway: &Gateway, conflict_id: u64) -> &'static str {
    let asked = ConflictResolve { conflict_id: Some(conflict_id), ..ConflictResolve::default() };
    if gateway.cluster.replica().state().conflict_to_resolve(&asked).is_some() {
        "the change conflicts with the record and waits for a decision by hand"
    } else {
        "the change conflicted with the record, and that was decided: see the resolved conflicts"
    }
}

/// Whose decision it is when the client names nobody: the token's device, if it is one, else the conflict's own.
pub fn decider(gateway: &Gateway, claims: &Claims, owner: &str) -> String {
    let registered = gateway.cluster.replica().state().device(&claims.sub).is_some();
    if registered { claims.sub.clone() } else { owner.to_owned() }
}

/// What a client called the event, if it is not too long to repeat.
fn known(event: &str) -> Option<&str> {
    (event.len() <= 64).then_some(event)
}
