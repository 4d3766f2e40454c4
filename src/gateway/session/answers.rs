//! Answers: what a proposal's outcome and a read become for the client that asked.

use super::{Session, why_conflict};
use crate::gateway::auth;
use crate::gateway::bug;
use crate::gateway::fanout::hub::TokenHolder;
use crate::gateway::fanout::send_queue::{EncodedEvent, Encoding};
use crate::gateway::protocol::{Acknowledged, ServerEvent};
use crate::gateway::session::client_clock::ClockCorrection;
use crate::gateway::session::request_pipeline::{ReadRequest, ReplyPlan, StoredRecord};
use crate::gateway::session::request_ticket::RequestTicket;
use crate::ids::{ConflictId, MasterTerm, RecordId, Seq};
use crate::model::change::{RecordNow, StoredData};
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error, Retry};
use crate::model::read::RecordReader;
use crate::model::sync::status_name;
use crate::model::tables::{TablesError, TablesRead};
use crate::proto::outcome::Result as Given;
use crate::proto::{Accepted, Conflict, OnlineDone, Outcome, ResolutionMethod, Role};

impl Session {
    pub(super) fn proposed(&mut self, ticket: RequestTicket, then: ReplyPlan, outcome: Result<Outcome, Error>) {
        match outcome {
            Ok(outcome) => self.done(ticket, then, outcome),
            Err(error) => self.failed(&ticket, then, &error),
        }
    }

    fn failed(&mut self, ticket: &RequestTicket, then: ReplyPlan, error: &Error) {
        match then {
            ReplyPlan::Sync(job) => job.fail(error),
            ReplyPlan::Online { device_id, cursor, fresh } => {
                if fresh {
                    self.unbind(&device_id, "its coming online failed");
                }
                match cursor {
                    Some(_) => self.fail_resume(ticket, error),
                    None => self.refuse(ticket, error, None),
                }
            }
            ReplyPlan::Update { .. }
            | ReplyPlan::Critical { .. }
            | ReplyPlan::Offline { .. }
            | ReplyPlan::Shutdown { .. }
            | ReplyPlan::Election
            | ReplyPlan::Role { .. }
            | ReplyPlan::SyncComplete { .. }
            | ReplyPlan::SyncError { .. }
            | ReplyPlan::Conflict { .. } => self.refuse(ticket, error, None),
        }
    }

    fn done(&mut self, ticket: RequestTicket, then: ReplyPlan, outcome: Outcome) {
        let at_ms = outcome.at_ms;
        match then {
            ReplyPlan::Update { device_id, table_name, record_id, entry, taken } => {
                self.updated(&ticket, &device_id, (&table_name, record_id), (entry.as_ref(), taken), &outcome);
            }
            ReplyPlan::Online { device_id, cursor, fresh } => {
                self.brought_online(ticket, device_id, cursor, fresh, outcome)
            }
            ReplyPlan::Sync(job) => {
                self.awaiting_online = false;
                job.begun(&self.delivery, at_ms);
            }
            ReplyPlan::Offline { device_id } => {
                self.reply(ticket.ack, &ServerEvent::DeviceOfflineAck { device_id: &device_id, at_ms });
            }
            ReplyPlan::Shutdown { device_id } => {
                self.acknowledge(ticket, "device is shut down", &device_id, None, at_ms)
            }
            ReplyPlan::Critical { device_id } => {
                self.acknowledge(ticket, "critical event sent to all", &device_id, None, at_ms);
            }
            ReplyPlan::Conflict { device_id, table_name, record_id, message } => {
                self.conflict_done(&ticket, &device_id, (&table_name, record_id), message, &outcome);
            }
            ReplyPlan::Role { device_id, role, reason } => {
                let (device_id, reason) = (device_id.as_str(), reason.as_str());
                self.reply(ticket.ack, &ServerEvent::RoleChangeAck { device_id, role, reason, at_ms });
            }
            ReplyPlan::SyncError { device_id, message, code } => {
                let (device_id, message, code) = (device_id.as_str(), message.as_str(), code.as_str());
                self.reply(ticket.ack, &ServerEvent::SyncErrorAck { device_id, message, code, at_ms });
            }
            // These come to all, the sender included, as effects: only the callback is left to answer.
            ReplyPlan::Election => {
                if let (Some(ack), Some(Given::Election(election))) = (ticket.ack, &outcome.result) {
                    self.send_queue.answer(ack, &ServerEvent::MasterElected(election));
                }
            }
            ReplyPlan::SyncComplete { device_id, sync_timestamp_ms, changes_count } => {
                if let (Some(ack), Some(Given::SyncState(sync))) = (ticket.ack, &outcome.result) {
                    let at_ms = sync.last_sync_ms;
                    let device_id = device_id.as_str();
                    let event = ServerEvent::SyncCompleteAck { device_id, sync_timestamp_ms, changes_count, at_ms };
                    self.send_queue.answer(ack, &event);
                }
            }
        }
    }

    /// The device is online: a resume begins with a read, everything else is said at once.
    fn brought_online(
        &mut self,
        ticket: RequestTicket,
        device_id: String,
        cursor: Option<String>,
        fresh: bool,
        outcome: Outcome,
    ) {
        let at_ms = outcome.at_ms;
        let Some(Given::Online(online)) = outcome.result else {
            let error = bug("a device came online with an outcome of another kind");
            return self.failed(&ticket, ReplyPlan::Online { device_id, cursor, fresh }, &error);
        };
        match cursor {
            Some(cursor) => {
                let online = Box::new(online);
                self.pipeline.read_next(ticket, ReadRequest::Resume { device_id, cursor, online, at_ms });
            }
            None => {
                self.came_online(&ticket, &device_id, self.delivery.position(), &online, at_ms);
                self.start_delivery();
            }
        }
    }

    fn conflict_done(
        &self,
        ticket: &RequestTicket,
        device_id: &str,
        record: (&str, RecordId),
        message: &str,
        outcome: &Outcome,
    ) {
        let Some(Given::Conflict(conflict)) = &outcome.result else {
            return self.refuse(ticket, &bug("a conflict was answered with an outcome of another kind"), None);
        };
        let (at_ms, event, conflict_id) = (outcome.at_ms, ticket.event, Some(ConflictId(conflict.id)));
        let (device_id, record) = (Some(device_id), Some(record));
        let ack = Acknowledged { message, at_ms, event, device_id, record, conflict_id, ..Default::default() };
        self.reply(ticket.ack, &ServerEvent::Acknowledged(ack));
    }

    fn acknowledge(&self, ticket: RequestTicket, message: &str, device_id: &str, seq: Option<u64>, at_ms: u64) {
        let (event, device_id) = (ticket.event, Some(device_id));
        let ack = Acknowledged { message, at_ms, event, device_id, seq, ..Acknowledged::default() };
        self.reply(ticket.ack, &ServerEvent::Acknowledged(ack));
    }

    fn updated(
        &self,
        ticket: &RequestTicket,
        device_id: &str,
        record: (&str, RecordId),
        (entry, taken): (Option<&(String, u64)>, Option<ClockCorrection>),
        outcome: &Outcome,
    ) {
        let (accepted, conflict) = match &outcome.result {
            Some(Given::Accepted(accepted)) => (Some(accepted), accepted.conflict.as_ref()),
            Some(Given::Conflict(conflict)) => (None, Some(conflict)),
            // It was committed so long ago that its first answer is not known any more.
            Some(Given::Done(_)) | None => (None, None),
            Some(
                Given::Refused(_)
                | Given::Online(_)
                | Given::Device(_)
                | Given::SyncState(_)
                | Given::Election(_)
                | Given::Import(_)
                | Given::Pairing(_)
                | Given::DeviceReport(_)
                | Given::TableRemove(_),
            ) => return self.refuse(ticket, &bug("a change was answered with an outcome of another kind"), None),
        };
        if let Some(conflict) = conflict.filter(|_| !outcome.repeated) {
            self.tell_conflict(conflict);
        }
        if let Some(conflict) = conflict
            && conflict.resolution() == ResolutionMethod::Unset
        {
            let why = why_conflict(&self.gateway, ConflictId(conflict.id));
            self.refuse(ticket, &Error::new(Code::Conflict, why), Some(ConflictId(conflict.id)));
            return;
        }
        let (seq, epoch) = (accepted.map(|accepted| accepted.seq), self.gateway.epoch());
        let ack = Acknowledged {
            message: update_message(seq, conflict),
            at_ms: outcome.at_ms,
            event: ticket.event,
            device_id: Some(device_id),
            record: Some(record),
            seq,
            request_id: ticket.request_id.as_deref(),
            cursor: accepted.map(|Accepted { seq, print, .. }| Cursor { epoch, seq: Seq(*seq), print: *print }),
            conflict_id: conflict.map(|c| ConflictId(c.id)),
            repeated: outcome.repeated,
            entry: entry.map(|(queue, n)| (queue.as_str(), *n)),
            sync_id: None,
            timestamp_taken: taken.map(ClockCorrection::name),
        };
        self.reply(ticket.ack, &ServerEvent::Acknowledged(ack));
    }

    /// The sender hears of its conflict by an effect if its device, or the one whose version stands, came online here;
    /// else it is told now.
    fn tell_conflict(&self, conflict: &Conflict) {
        let bound = |device: &str| self.gateway.presence.is_bound(device, self.send_queue.id);
        let may_read = auth::may_read(&self.gateway, &self.claims, &conflict.table_name).is_ok();
        if may_read && !bound(&conflict.device_id) && !bound(&conflict.writer) {
            self.send_queue.send(&ServerEvent::SyncConflict(conflict));
        }
    }

    /// `seq`: everything after it comes after this answer, or came before it.
    fn came_online(&mut self, ticket: &RequestTicket, device_id: &str, seq: Seq, online: &OnlineDone, at_ms: u64) {
        let role = online.device.as_ref().map_or(Role::Client, |d| d.role());
        let cursor = self.gateway.cursor(seq);
        let (master, term) = (online.master.as_str(), MasterTerm(online.term));
        let clock_ahead_ms = self.clock.ahead_ms();
        let ack = ServerEvent::DeviceOnlineAck { device_id, master, role, term, cursor, clock_ahead_ms, at_ms };
        self.reply(ticket.ack, &ack);
        self.tell_rights();
        if online.first {
            self.send_queue.send(&ServerEvent::Registered { device_id, role, at_ms });
        }
    }

    /// A client may have been away when its rights were changed.
    fn tell_rights(&mut self) {
        if std::mem::replace(&mut self.knows_rights, true) {
            return;
        }
        let rights = self.gateway.cluster.replica().state().access().of(self.class()).cloned();
        if let Some(rights) = rights {
            let (class, rights, at_ms) = (self.class(), &*rights, self.gateway.now_ms());
            self.send_queue.send(&ServerEvent::AccessChanged { class, rights, forget: &[], resync: &[], at_ms });
        }
    }

    /// Where a resume begins: the cursor's change.
    fn cursor_seq(&self, text: &str) -> Result<Seq, Error> {
        let state = self.gateway.cluster.replica().state();
        let cursor = Cursor::parse(text, &state)?;
        if cursor.seq < state.meta().compacted() {
            return Err(Error::new(Code::BadCursor, "the changes after the cursor are gone: do a full sync"));
        }
        if !state.access().is_whole_after(self.class(), cursor.seq) {
            let why = "this token's class may read more tables than when the cursor was given: do a full sync";
            return Err(Error::new(Code::BadCursor, why));
        }
        Ok(cursor.seq)
    }

    /// The answer to a device that came with a cursor; what was missed since then, and live changes, come after it.
    fn resume(
        &mut self,
        ticket: &RequestTicket,
        device_id: String,
        asked: Result<Seq, Error>,
        online: &OnlineDone,
        at_ms: u64,
    ) {
        let seq = match asked {
            Ok(seq) => seq,
            Err(error) if error.code == Code::BadCursor => {
                // It is told so, and goes on without what it missed: a full sync brings that.
                self.came_online(ticket, &device_id, self.delivery.position(), online, at_ms);
                let (event, field, request_id) = (Some(ticket.event), Some("cursor"), ticket.request_id.as_deref());
                let conflict_id = None;
                self.send_queue.send(&ServerEvent::Error {
                    error: &error,
                    event,
                    field,
                    conflict_id,
                    request_id,
                    at_ms,
                });
                return self.start_delivery();
            }
            Err(error) => return self.fail_resume(ticket, &error),
        };
        self.came_online(ticket, &device_id, seq, online, at_ms);
        self.awaiting_online = false;
        if let Err(error) = self.delivery.resume(device_id, seq) {
            self.fail_resume(ticket, &error);
        }
    }

    /// A resume that cannot be granted, but for a cursor of no use: the session is never live past what was missed. It
    /// ends, if trying again can help; else changes wait for a resume that is granted.
    fn fail_resume(&mut self, ticket: &RequestTicket, error: &Error) {
        if error.code.row().retry == Retry::No && error.code != Code::SyncRequest {
            self.resume_refused = true;
            return self.refuse(ticket, error, None);
        }
        let (event, request_id, at_ms) = (Some(ticket.event), ticket.request_id.as_deref(), self.gateway.now_ms());
        let refused = ServerEvent::Error { error, event, field: None, conflict_id: None, request_id, at_ms };
        let mut answers = vec![EncodedEvent::of(self.send_queue.transport, &refused)];
        if let Some(ack) = ticket.ack.filter(|_| self.send_queue.transport == Encoding::SocketIo) {
            answers.push(EncodedEvent::ack(ack, &refused));
        }
        self.delivery.fail(answers, error);
    }

    pub(super) fn read(&mut self, ticket: RequestTicket, read: ReadRequest, passed: Result<(), Error>) {
        // What has come with the barrier may have taken the token back: the session's end is on its way then.
        let passed = passed.and_then(|()| auth::still_good(&self.gateway, &self.claims));
        match (read, passed) {
            (ReadRequest::Resume { device_id, cursor, online, at_ms }, passed) => {
                let asked = passed.and_then(|()| self.cursor_seq(&cursor));
                self.resume(&ticket, device_id, asked, &online, at_ms);
            }
            (ReadRequest::Record { .. } | ReadRequest::Queue { .. } | ReadRequest::Token, Err(error)) => {
                self.refuse(&ticket, &error, None);
            }
            (ReadRequest::Record { table_name, record_id }, Ok(())) => self.read_record(ticket, table_name, record_id),
            (ReadRequest::Queue { device_id, offline }, Ok(())) => self.tell_queue(ticket, &device_id, offline),
            (ReadRequest::Token, Ok(())) => self.renew_token(&ticket),
        }
    }

    fn read_record(&mut self, ticket: RequestTicket, table_name: String, record_id: RecordId) {
        if let Err(error) = auth::may_read(&self.gateway, &self.claims, &table_name) {
            return self.refuse(&ticket, &error, None);
        }
        let now = self.gateway.cluster.replica().state().record(&table_name, record_id);
        match now {
            RecordNow::Absent => self.tell_record(ticket, &table_name, record_id, None),
            RecordNow::Here { version, data, .. } => {
                let found = data.map(|d| (version, d));
                self.tell_record(ticket, &table_name, record_id, found);
            }
            RecordNow::InRows(at) => {
                let replica = self.gateway.cluster.replica().clone();
                let look = async move { replica.read_rows(move |t| look_up(t, at)).await };
                self.pipeline.look(ticket, (table_name, record_id), Box::pin(look));
            }
        }
    }

    pub(super) fn found(
        &self,
        ticket: RequestTicket,
        (table_name, record_id): (String, RecordId),
        found: Result<StoredRecord, Error>,
    ) {
        match found {
            Ok(found) => self.tell_record(ticket, &table_name, record_id, found),
            Err(error) => self.refuse(&ticket, &error, None),
        }
    }

    fn tell_record(&self, ticket: RequestTicket, table_name: &str, record_id: RecordId, found: StoredRecord) {
        let (version, data) = found.as_ref().map(|(version, data)| (*version, &data[..])).unzip();
        self.share.read(data.map_or(0, <[u8]>::len) as u64);
        let at_ms = self.gateway.now_ms();
        self.reply(ticket.ack, &ServerEvent::DataResponse { table_name, record_id, data, version, at_ms });
    }

    fn renew_token(&mut self, ticket: &RequestTicket) {
        match auth::renewed(&self.gateway, &self.claims) {
            Ok((token, claims)) => {
                self.gateway.hub.renew(self.send_queue.id, TokenHolder::of(&claims));
                let at_ms = self.gateway.now_ms();
                self.reply(ticket.ack, &ServerEvent::TokenRenewed { token: &token, claims: &claims, at_ms });
                self.claims = claims;
            }
            Err(error) => self.refuse(ticket, &error, None),
        }
    }

    fn tell_queue(&self, ticket: RequestTicket, device_id: &str, offline: bool) {
        let state = self.gateway.cluster.replica().state();
        let known = state.device(device_id).zip(state.sync_state(device_id)).map(|(device, sync)| {
            let pending = if offline { state.offline_changes(device) } else { state.pending_changes(sync) };
            let processed = if sync.last_sync_ms > 0 { sync.last_sync_ms } else { sync.updated_ms };
            (pending, processed, sync.sync_status())
        });
        drop(state);
        let Some((pending, processed_ms, status)) = known else {
            let error = Error::new(Code::NotRegistered, format!("device {device_id:?} is not registered"));
            return self.refuse(&ticket, &error, None);
        };
        let status = match status_name(status) {
            "syncing" => "processing",
            "error" => "error",
            _ => "idle",
        };
        let at_ms = self.gateway.now_ms();
        let event = ServerEvent::QueueStatusResponse { device_id, offline, pending, processed_ms, status, at_ms };
        self.reply(ticket.ack, &event);
    }
}

/// What became of a `data_update` that was not refused. One that was committed so long ago that its first answer is
/// not known any more has neither a change nor a conflict.
pub fn update_message(seq: Option<u64>, conflict: Option<&Conflict>) -> &'static str {
    match (seq, conflict) {
        (Some(_), _) => "data_update committed",
        (None, Some(_)) => "data_update lost a conflict",
        (None, None) => "data_update was answered before",
    }
}

/// A record that is not in memory: its version and data, if it exists.
pub fn look_up(tables: &dyn TablesRead, at: StoredData) -> Result<StoredRecord, TablesError> {
    RecordReader::new(tables).data(at)
}
