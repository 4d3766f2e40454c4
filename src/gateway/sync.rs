//! Syncs: pages of changes or records to one device, each sent when the socket has taken the one before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Gateway;
use super::feed;
use super::hub::Filter;
use super::lane::Ticket;
use super::outbox::{Frame, Outbox};
use super::wire::{Acknowledged, ServerEvent, SyncAsk, SyncChange, SyncPage};
use crate::consensus::runtime::random;
use crate::limits;
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::model::read::{PageSize, records_data, seq_before};
use crate::model::tables::TablesRead;
use crate::proto::command::Intent;
use crate::proto::{Meta, Operation, SyncBegin, SyncErrorReport, SyncType, TableName};

const PAGE: PageSize = PageSize { rows: limits::SYNC_PAGE, bytes: limits::SYNC_PAGE_BYTES };

/// The syncs that run on this node: at most one a device.
#[derive(Default)]
pub struct Syncs(Mutex<HashMap<String, Running>>);

struct Running {
    sync_id: String,
    streaming: bool,
    /// How far the device has come with it.
    head: u64,
    completed: Arc<Notify>,
}

impl Syncs {
    /// 2001 if one is being sent to the device; one that only waits for its completion gives way.
    fn begin(&self, device_id: &str, sync_id: &str) -> Result<Arc<Notify>, Error> {
        let mut running = self.0.lock();
        if running.get(device_id).is_some_and(|r| r.streaming) {
            return Err(Error::new(Code::SyncRequest, "a sync of this device is running"));
        }
        let completed = Arc::new(Notify::new());
        let sync_id = sync_id.to_owned();
        let run = Running { sync_id, streaming: true, head: 0, completed: completed.clone() };
        if let Some(old) = running.insert(device_id.to_owned(), run) {
            old.completed.notify_one();
        }
        Ok(completed)
    }

    fn sent(&self, device_id: &str, head: u64) {
        if let Some(run) = self.0.lock().get_mut(device_id) {
            run.streaming = false;
            run.head = head;
        }
    }

    fn end(&self, device_id: &str, sync_id: &str) {
        let mut running = self.0.lock();
        if running.get(device_id).is_some_and(|r| r.sync_id == sync_id) {
            running.remove(device_id);
        }
    }

    /// The device says that it is done: how far it has come, if that is known here.
    pub fn complete(&self, device_id: &str, sync_id: &str) -> Option<u64> {
        let mut running = self.0.lock();
        let run = running.get(device_id)?;
        if run.streaming || !(sync_id.is_empty() || run.sync_id == sync_id) {
            return None;
        }
        let head = run.head;
        run.completed.notify_one();
        running.remove(device_id);
        Some(head)
    }
}

/// One sync of one device, from the request to its completion.
pub struct SyncJob {
    pub gateway: Arc<Gateway>,
    pub outbox: Arc<Outbox>,
    pub ask: SyncAsk,
    pub ticket: Ticket,
    pub sync_id: String,
}

/// What all pages of a sync share.
struct Course {
    meta: Meta,
    master: String,
    filter: Filter,
}

impl Drop for SyncJob {
    fn drop(&mut self) {
        self.gateway.syncs.end(&self.ask.device_id, &self.sync_id);
    }
}

impl SyncJob {
    pub fn new(gateway: Arc<Gateway>, outbox: Arc<Outbox>, ask: SyncAsk, ticket: Ticket) -> Self {
        let sync_id = format!("{:016x}{:016x}", random(), random());
        Self { gateway, outbox, ask, ticket, sync_id }
    }

    pub async fn run(self) {
        let done = match self.gateway.syncs.begin(&self.ask.device_id, &self.sync_id) {
            Ok(completed) => self.send().await.map(|()| completed),
            Err(error) => Err(error),
        };
        match done {
            Ok(completed) => self.wait(&completed).await,
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &Error) {
        let sync_type = Some(type_name(self.ask.sync_type));
        let (device_id, at_ms) = (self.ask.device_id.as_str(), self.gateway.now_ms());
        let request_id = self.ticket.request_id.as_deref();
        let error = &error.clone().over_socket();
        let field = error.field();
        let event = ServerEvent::SyncError { device_id, error, sync_type, field, request_id, at_ms };
        self.outbox.send(&event);
        if let Some(ack) = self.ticket.ack {
            self.outbox.answer(ack, &event);
        }
    }

    /// 2003 if the device does not say in time that it is done.
    async fn wait(&self, completed: &Notify) {
        if tokio::time::timeout(self.gateway.settings.sync_timeout, completed.notified()).await.is_ok() {
            return;
        }
        let error = Error::new(Code::SyncTimeout, "the sync was not completed in time");
        self.gateway.propose_aside(Intent::SyncErrorReport(SyncErrorReport {
            device_id: self.ask.device_id.clone(),
            error_message: error.message.clone(),
            error_code: error.code.to_string(),
            sync_type: type_name(self.ask.sync_type).to_owned(),
        }));
        let (device_id, at_ms) = (self.ask.device_id.as_str(), self.gateway.now_ms());
        let (sync_type, field, request_id) = (None, None, self.ticket.request_id.as_deref());
        self.outbox.send(&ServerEvent::SyncError { device_id, error: &error, sync_type, field, request_id, at_ms });
    }

    async fn send(&self) -> Result<(), Error> {
        let begin = SyncBegin {
            device_id: self.ask.device_id.clone(),
            sync_type: self.ask.sync_type.into(),
            sync_id: self.sync_id.clone(),
        };
        let begun = self.gateway.cluster.propose(Intent::SyncBegin(begin)).await?;
        self.gateway.cluster.read_barrier().await?;
        if let Some(ack) = self.ticket.ack {
            let (event, device_id) = ("sync_request", Some(self.ask.device_id.as_str()));
            let (message, at_ms, sync_id) = ("sync begins", begun.at_ms, Some(self.sync_id.as_str()));
            let begins = Acknowledged { message, at_ms, event, device_id, sync_id, ..Acknowledged::default() };
            self.outbox.answer(ack, &ServerEvent::Acknowledged(begins));
        }
        let (meta, master) = {
            let state = self.gateway.cluster.replica().hot();
            (state.meta().clone(), state.meta().master.clone())
        };
        if master.is_empty() {
            return Err(Error::new(Code::NoMaster, "there is no master to sync with"));
        }
        let course = Course { meta, master, filter: Filter::of(self.ask.tables.clone()) };
        match self.start(&course.meta).await? {
            Some(from) => self.send_changes(&course, from).await?,
            None => self.send_records(&course).await?,
        }
        self.gateway.syncs.sent(&self.ask.device_id, course.meta.head_seq);
        Ok(())
    }

    /// Where an incremental sync begins: after this change. `None`: it has to be a full one.
    async fn start(&self, meta: &Meta) -> Result<Option<u64>, Error> {
        if self.ask.sync_type != SyncType::Incremental {
            return Ok(None);
        }
        let from = if let Some(cursor) = &self.ask.cursor {
            Cursor::parse(cursor, meta)?.seq
        } else if let Some(ms) = self.ask.last_sync_ms {
            if meta.compacted_seq > 0 && ms <= meta.compacted_ms {
                return Ok(None);
            }
            let (compacted, head) = (meta.compacted_seq, meta.head_seq);
            self.gateway.cluster.replica().cold(move |t| seq_before(t, compacted, head, ms)).await?
        } else {
            let state = self.gateway.cluster.replica().hot();
            state.sync_state(&self.ask.device_id).map_or(0, |s| s.cursor_seq)
        };
        Ok((from >= meta.compacted_seq).then_some(from))
    }

    async fn send_changes(&self, course: &Course, from: u64) -> Result<(), Error> {
        let head = course.meta.head_seq;
        let (mut after, mut number, mut sent) = (from, 0, 0);
        loop {
            let Some(page) = feed::page(&self.gateway, after, head, PAGE, &course.filter).await? else {
                // Compacted under our hands: begin again with everything.
                return self.send_records(course).await;
            };
            after = page.seq;
            if page.changes.is_empty() && page.more {
                continue;
            }
            number += 1;
            sent += page.changes.len() as u64;
            let changes = page.changes.iter().map(|c| SyncChange::from(&**c)).collect();
            let total = if page.more { sent + (head - page.seq) } else { sent };
            let cursor = Cursor { epoch: course.meta.epoch, seq: page.seq.max(if page.more { 0 } else { head }) };
            self.send_page(course, SyncType::Incremental, changes, number, total, page.more, cursor).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn send_records(&self, course: &Course) -> Result<(), Error> {
        let (tables, records) = {
            let state = self.gateway.cluster.replica().hot();
            (Arc::<[TableName]>::from(state.tables()), state.records_known() as u64)
        };
        let numbers: HashSet<u32> =
            (1..).zip(tables.iter()).filter(|(_, t)| course.filter.takes_table(&t.name)).map(|(n, _)| n).collect();
        let (mut after, mut number, mut sent) = (None, 0, 0);
        loop {
            let takes = |table| numbers.contains(&table);
            let (page, next) = self.gateway.cluster.replica().hot().records_after(after, PAGE.rows, takes);
            let read = move |t: &dyn TablesRead| records_data(t, page, PAGE.bytes);
            let (page, cut) = self.gateway.cluster.replica().cold(read).await?;
            after = cut.map(|at| (at.table, at.id)).or(next);
            let more = after.is_some();
            if page.is_empty() && more {
                continue;
            }
            number += 1;
            sent += page.len() as u64;
            let changes = page.iter().map(|(at, data)| SyncChange {
                table_name: tables.get(at.table as usize - 1).map_or("", |t| &t.name),
                record_id: at.id,
                operation: Operation::Insert,
                data,
                timestamp_ms: at.timestamp_ms,
                seq: at.seq,
                device_id: None,
            });
            let changes = changes.collect();
            let total = if more { records.max(sent + 1) } else { sent };
            // Records are sent by key, so a part of them is no place in the history: only the whole is.
            let seq = if more { 0 } else { course.meta.head_seq };
            let cursor = Cursor { epoch: course.meta.epoch, seq };
            self.send_page(course, SyncType::Full, changes, number, total, more, cursor).await?;
            if !more {
                return Ok(());
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn send_page(
        &self,
        course: &Course,
        sync_type: SyncType,
        changes: Vec<SyncChange<'_>>,
        page: u64,
        total: u64,
        has_more: bool,
        cursor: Cursor,
    ) -> Result<(), Error> {
        let frame = {
            let page = SyncPage {
                sync_type: type_name(sync_type),
                at_ms: self.gateway.now_ms(),
                changes,
                master: &course.master,
                sync_id: &self.sync_id,
                page,
                total,
                has_more,
                cursor,
            };
            Frame::of(self.outbox.transport, &ServerEvent::SyncResponse(&page))
        };
        if self.outbox.send_and_wait(frame).await {
            return Ok(());
        }
        Err(Error::new(Code::SocketClosed, "the session ended"))
    }
}

/// A sync type as the document writes it.
pub fn type_name(sync_type: SyncType) -> &'static str {
    if sync_type == SyncType::Incremental { "incremental" } else { "full" }
}
