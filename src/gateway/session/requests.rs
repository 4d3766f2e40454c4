//! Requests: what each event of a client asks of the cluster, once it was decoded.

use std::sync::Arc;

use tokio::time::Instant;

use super::{CLOCK_WARNING, Session};
use crate::gateway::Gateway;
use crate::gateway::auth;
use crate::gateway::fanout::hub::ChangeFilter;
use crate::gateway::protocol::{ClientEvent, OnlineAsk, ServerEvent, SyncAsk};
use crate::gateway::rates::RateKind;
use crate::gateway::session::request_pipeline::{ReadRequest, ReplyPlan};
use crate::gateway::session::request_ticket::RequestTicket;
use crate::gateway::session::sync::{Completed, SyncJob};
use crate::ids::{ConflictId, RecordId};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::model::time::IsoTime;
use crate::proto::command::Intent;
use crate::proto::{
    Capabilities, Conflict, ConflictReport, ConflictResolve, CriticalEvent, DataUpdate, DeviceOffline, DeviceOnline,
    DeviceShutdown, Elect, ElectionMethod, ElectionReason, Presence, Role, RoleChange, SyncComplete, SyncErrorReport,
};
use crate::token::Claims;

impl Session {
    /// Does what an event asks for. Every event has its arm: one that nobody answers does not compile.
    pub(super) fn act(&mut self, ticket: RequestTicket, event: ClientEvent) -> Result<(), Error> {
        match event {
            ClientEvent::DataUpdate(update) => self.update(ticket, update),
            ClientEvent::DataRequest { device_id, table_name, record_id } => {
                self.may(&device_id)?;
                self.share.may_read()?;
                self.pipeline.read(ticket, ReadRequest::Record { table_name, record_id });
                Ok(())
            }
            ClientEvent::Heartbeat { device_id, sent, unsent } => self.heartbeat(&ticket, &device_id, sent, unsent),
            ClientEvent::QueueStatus { device_id, offline } => {
                self.may(&device_id)?;
                self.pipeline.read(ticket, ReadRequest::Queue { device_id, offline });
                Ok(())
            }
            ClientEvent::TokenRenew => {
                self.pipeline.read(ticket, ReadRequest::Token);
                Ok(())
            }
            ClientEvent::DeviceOnline(ask) => self.online(ticket, ask),
            ClientEvent::DeviceOffline { device_id, reason } => self.offline(ticket, device_id, reason),
            ClientEvent::DeviceShutdown { device_id, reason } => self.shutdown(ticket, device_id, reason),
            ClientEvent::SyncRequest(ask) => self.begin_sync(ticket, ask),
            ClientEvent::SyncComplete { device_id, sync_timestamp_ms, changes_count, sync_id, cursor } => {
                let sync_timestamp_ms = sync_timestamp_ms.unwrap_or_else(|| self.gateway.now_ms());
                let complete =
                    SyncComplete { device_id, sync_timestamp_ms, changes_count, sync_id, ..SyncComplete::default() };
                self.complete_sync(ticket, complete, cursor)
            }
            ClientEvent::SyncError(report) => self.report_sync_error(ticket, report),
            ClientEvent::SyncConflict(report) => self.report_conflict(ticket, report),
            ClientEvent::SyncConflictResolved(resolve) => self.resolve(ticket, resolve),
            ClientEvent::CriticalEvent(critical) => self.send_critical(ticket, critical),
            ClientEvent::MasterElection { reason, initiated_by } => self.ask_election(ticket, reason, initiated_by),
            ClientEvent::RoleChange { device_id, role, reason } => self.change_role(ticket, device_id, role, reason),
        }
    }

    fn update(&mut self, ticket: RequestTicket, mut update: DataUpdate) -> Result<(), Error> {
        self.may(&update.device_id)?;
        auth::sign_update(&self.gateway, &self.claims, &mut update)?;
        let taken = self.clock.stamp(&mut update);
        let then = ReplyPlan::Update {
            device_id: update.device_id.clone(),
            table_name: update.table_name.clone(),
            record_id: RecordId(update.record_id),
            entry: (update.n > 0).then(|| (update.queue.clone(), update.n)),
            taken,
        };
        self.propose(ticket, then, Intent::DataUpdate(update));
        Ok(())
    }

    fn heartbeat(
        &mut self,
        ticket: &RequestTicket,
        device_id: &str,
        sent: Option<IsoTime>,
        unsent: Option<u64>,
    ) -> Result<(), Error> {
        self.may(device_id)?;
        if let Some(unsent) = unsent {
            self.gateway.presence.said_unsent(device_id, self.send_queue.id, unsent);
        }
        self.measure_clock(device_id, sent);
        let (clock_ahead_ms, at_ms) = (self.clock.ahead_ms(), self.gateway.now_ms());
        self.reply(ticket.ack, &ServerEvent::HeartbeatAck { device_id, clock_ahead_ms, at_ms });
        Ok(())
    }

    fn begin_sync(&mut self, ticket: RequestTicket, ask: SyncAsk) -> Result<(), Error> {
        self.may(&ask.device_id)?;
        let (gateway, send_queue, share) = (self.gateway.clone(), self.send_queue.clone(), self.share.clone());
        let job = SyncJob::new(gateway, send_queue, share, self.claims.clone(), ask, ticket.clone());
        if let Some(job) = job {
            let begin = job.begin();
            self.propose(ticket, ReplyPlan::Sync(job), begin);
        }
        Ok(())
    }

    fn complete_sync(
        &mut self,
        ticket: RequestTicket,
        complete: SyncComplete,
        cursor: Option<String>,
    ) -> Result<(), Error> {
        self.may(&complete.device_id)?;
        let SyncComplete { sync_timestamp_ms, changes_count, .. } = complete;
        let then = ReplyPlan::SyncComplete { device_id: complete.device_id.clone(), sync_timestamp_ms, changes_count };
        let complete = self.completed(complete, cursor)?;
        self.propose(ticket, then, Intent::SyncComplete(complete));
        Ok(())
    }

    fn report_sync_error(&mut self, ticket: RequestTicket, report: SyncErrorReport) -> Result<(), Error> {
        self.may(&report.device_id)?;
        self.share.heard_as(RateKind::Report);
        let then = ReplyPlan::SyncError {
            device_id: report.device_id.clone(),
            message: report.error_message.clone(),
            code: report.error_code.clone(),
        };
        self.propose(ticket, then, Intent::SyncErrorReport(report));
        Ok(())
    }

    fn report_conflict(&mut self, ticket: RequestTicket, mut report: ConflictReport) -> Result<(), Error> {
        self.may(&report.device_id)?;
        self.share.heard_as(RateKind::Report);
        report.class = self.class().number();
        let then = ReplyPlan::Conflict {
            device_id: report.device_id.clone(),
            table_name: report.table_name.clone(),
            record_id: RecordId(report.record_id),
            message: "conflict noted",
        };
        self.propose(ticket, then, Intent::ConflictReport(report));
        Ok(())
    }

    fn send_critical(&mut self, ticket: RequestTicket, mut critical: CriticalEvent) -> Result<(), Error> {
        self.may(&critical.device_id)?;
        self.share.heard_as(RateKind::Critical);
        self.clock.stamp_event(&mut critical);
        let then = ReplyPlan::Critical { device_id: critical.device_id.clone() };
        self.propose(ticket, then, Intent::CriticalEvent(critical));
        Ok(())
    }

    fn ask_election(
        &mut self,
        ticket: RequestTicket,
        reason: ElectionReason,
        initiated_by: String,
    ) -> Result<(), Error> {
        if reason == ElectionReason::Manual {
            auth::must_be_privileged(&self.claims, "start a manual election")?;
        }
        self.share.election()?;
        let elect = elect(&self.claims, reason, initiated_by);
        self.propose(ticket, ReplyPlan::Election, Intent::Elect(elect));
        Ok(())
    }

    fn change_role(
        &mut self,
        ticket: RequestTicket,
        device_id: String,
        role: Role,
        reason: String,
    ) -> Result<(), Error> {
        self.may(&device_id)?;
        self.share.election()?;
        let then = ReplyPlan::Role { device_id: device_id.clone(), role, reason: reason.clone() };
        let (by, asker) = (self.claims.sub.clone(), auth::asker(&self.claims).into());
        let change = RoleChange { device_id, role: role.into(), reason, by, asker };
        self.propose(ticket, then, Intent::RoleChange(change));
        Ok(())
    }

    fn offline(&mut self, ticket: RequestTicket, device_id: String, reason: String) -> Result<(), Error> {
        self.leave(&device_id)?;
        let then = ReplyPlan::Offline { device_id: device_id.clone() };
        let offline = DeviceOffline { device_id, reason, ..DeviceOffline::default() };
        self.propose(ticket, then, Intent::DeviceOffline(offline));
        Ok(())
    }

    fn shutdown(&mut self, ticket: RequestTicket, device_id: String, reason: String) -> Result<(), Error> {
        self.leave(&device_id)?;
        let then = ReplyPlan::Shutdown { device_id: device_id.clone() };
        self.propose(ticket, then, Intent::DeviceShutdown(DeviceShutdown { device_id, reason }));
        Ok(())
    }

    /// How far a device is that says that it has applied a sync: never further than it was sent.
    fn completed(&self, complete: SyncComplete, cursor: Option<String>) -> Result<SyncComplete, Error> {
        let cursor = match cursor {
            Some(cursor) => Some(self.gateway.parse_cursor(&cursor)?.seq),
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
            (None, Some(sent)) => SyncComplete {
                cursor_seq: Some(sent.head.get()),
                completed_ms: sent.at_ms,
                scope: sent.scope,
                ..complete
            },
            (Some(seq), sent) => SyncComplete {
                cursor_seq: Some(seq.get()),
                completed_ms: sent.filter(|sent| sent.head == seq).map_or(0, |sent| sent.at_ms),
                scope: sent.map_or_else(|| self.delivery.scope(), |sent| sent.scope),
                ..complete
            },
        })
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
    pub(super) fn unbind(&mut self, device_id: &str, why: &'static str) {
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
            record_id: RecordId(owner.record_id),
            message: "conflict resolved",
        };
        self.propose(ticket, then, Intent::ConflictResolve(resolve));
        Ok(())
    }
}

/// An election as a client asked for it.
pub fn elect(claims: &Claims, reason: ElectionReason, initiated_by: String) -> Elect {
    let initiated_by = if initiated_by.is_empty() { claims.sub.clone() } else { initiated_by };
    let (asker, asked_by) = (auth::asker(claims).into(), claims.sub.clone());
    let (reason, method) = (reason.into(), ElectionMethod::Priority.into());
    Elect { reason, method, initiated_by, asker, asked_by, ..Elect::default() }
}

/// The open conflict that a decision is about; 2002 if there is none.
pub fn find_conflict(gateway: &Gateway, c: &ConflictResolve) -> Result<Arc<Conflict>, Error> {
    let found = gateway.cluster.replica().state().conflict_to_resolve(c).cloned();
    found.ok_or_else(|| Error::new(Code::Conflict, "there is no such open conflict"))
}

/// What the sender of a change that met a conflict is told: it may be the repeat of one that was decided since.
pub fn why_conflict(gateway: &Gateway, conflict_id: ConflictId) -> &'static str {
    let asked = ConflictResolve { conflict_id: Some(conflict_id.get()), ..ConflictResolve::default() };
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
