//! Syncs: pages of changes or records to one device, each sent when the socket has taken the one before.
//!
//! A sync shows the tables as they were at one change, its head: live changes of the session wait meanwhile, and what
//! others write while the pages go out is not in them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::consensus::runtime::random;
use crate::gateway::fanout::feed;
use crate::gateway::fanout::hub::ChangeFilter;
use crate::gateway::fanout::send_queue::{EncodedEvent, SendQueue};
use crate::gateway::protocol::{Acknowledged, ServerEvent, SyncAsk, SyncChange, SyncPage};
use crate::gateway::rates::RateShare;
use crate::gateway::session::delivery::{Delivery, SentBefore};
use crate::gateway::session::removed_records::RemovedRecords;
use crate::gateway::session::request_ticket::RequestTicket;
use crate::gateway::{Gateway, auth};
use crate::ids::{RecordId, Seq, TableId, UnixMs};
use crate::limits;
use crate::model::change::StoredData;
use crate::model::error::{Code, Error};
use crate::model::read::{PageSize, around, records_exact, seq_of_time};
use crate::model::sync::scope;
use crate::model::tables::TablesRead;
use crate::model::time_back::Corrections;
use crate::proto::command::Intent;
use crate::proto::{Change, Meta, Operation, SyncBegin, SyncErrorReport, SyncState, SyncType, TableName};
use crate::token::Claims;

const PAGE: PageSize = PageSize { rows: limits::SYNC_PAGE, bytes: limits::SYNC_PAGE_BYTES };
/// Changes looked at together, to learn which records moved on while a sync is sent.
const LOOK: PageSize = PageSize { rows: 4_096, bytes: 1 << 20 };

/// What a device has when it has applied a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Every change up to this one.
    pub head: Seq,
    /// Changes after it were committed then or later.
    pub at_ms: u64,
    /// Of these tables.
    pub scope: u64,
}

/// What is known here of a sync that a device calls complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// Its last page was not sent yet, or the device speaks of an earlier one.
    Early,
    Sent(Synced),
    /// It is none of those that run on this node.
    Unknown,
}

/// The syncs that run on this node: at most one a device.
#[derive(Default)]
pub struct Syncs(Mutex<HashMap<String, RunningSync>>);

struct RunningSync {
    sync_id: String,
    /// That it goes to.
    session: u64,
    /// The times of pages that more follow.
    earlier: Vec<u64>,
    /// Once its last page is on its way.
    sent: Option<Synced>,
    completed: Arc<Notify>,
}

impl Syncs {
    /// 2001 if one is being sent to the device on this session. One of another session gives way (the device has come
    /// back, before its old connection was found dead), and so does one that only waits for its completion.
    fn begin(&self, device_id: &str, session: u64, sync_id: &str) -> Result<Arc<Notify>, Error> {
        let mut running = self.0.lock();
        if running.get(device_id).is_some_and(|r| r.sent.is_none() && r.session == session) {
            return Err(Error::new(Code::SyncRequest, "a sync of this device is running"));
        }
        let completed = Arc::new(Notify::new());
        let (sync_id, earlier) = (sync_id.to_owned(), Vec::new());
        let run = RunningSync { sync_id, session, earlier, sent: None, completed: completed.clone() };
        if let Some(old) = running.insert(device_id.to_owned(), run) {
            old.completed.notify_one();
        }
        Ok(completed)
    }

    fn sent(&self, device_id: &str, sync_id: &str, synced: Synced) {
        if let Some(run) = self.0.lock().get_mut(device_id)
            && run.sync_id == sync_id
        {
            run.sent = Some(synced);
        }
    }

    /// None of another session has taken its place.
    fn goes_on(&self, device_id: &str, sync_id: &str) -> bool {
        self.0.lock().get(device_id).is_some_and(|run| run.sync_id == sync_id)
    }

    /// A page with this time goes out, and more follow.
    fn more_follow(&self, device_id: &str, sync_id: &str, at_ms: u64) {
        if let Some(run) = self.0.lock().get_mut(device_id)
            && run.sync_id == sync_id
            && run.earlier.last() != Some(&at_ms)
            && run.earlier.len() < limits::SYNC_PAGE_TIMES
        {
            run.earlier.push(at_ms);
        }
    }

    fn end(&self, device_id: &str, sync_id: &str) {
        let mut running = self.0.lock();
        if running.get(device_id).is_some_and(|r| r.sync_id == sync_id) {
            running.remove(device_id);
        }
    }

    /// The device says that it has applied a sync, and the time of the page that it got. A client that knows only the
    /// document calls a sync complete after its first page; the others may have left by then, but not arrived.
    pub fn complete(&self, device_id: &str, sync_id: &str, page_ms: u64) -> Completed {
        let mut running = self.0.lock();
        let Some(run) = running.get(device_id) else { return Completed::Unknown };
        if !(sync_id.is_empty() || run.sync_id == sync_id) {
            return Completed::Unknown;
        }
        let Some(synced) = run.sent else { return Completed::Early };
        if page_ms != synced.at_ms && run.earlier.contains(&page_ms) {
            return Completed::Early;
        }
        run.completed.notify_one();
        running.remove(device_id);
        Completed::Sent(synced)
    }
}

/// One sync of one device, from the request to its completion.
pub(crate) struct SyncJob {
    gateway: Arc<Gateway>,
    send_queue: Arc<SendQueue>,
    /// Of the token that asked.
    share: Arc<RateShare>,
    claims: Claims,
    ask: SyncAsk,
    ticket: RequestTicket,
    sync_id: String,
    completed: Arc<Notify>,
    begun_ms: u64,
}

/// What all pages of a sync share: the tables as of change `meta.head_seq`.
struct SyncCourse {
    meta: Meta,
    /// How far the device had come before, if it is known.
    before: Option<SyncState>,
    tables: Arc<[TableName]>,
    /// About so many records exist.
    records: u64,
    filter: ChangeFilter,
    scope: u64,
    /// What the session was sent beside it.
    sent: SentBefore,
}

/// A page of a sync.
struct SyncPart<'a> {
    sync_type: SyncType,
    changes: Vec<SyncChange<'a>>,
    number: u64,
    total: u64,
    has_more: bool,
    /// How far it goes.
    seq: Seq,
    /// The time that this place stands for.
    at_ms: u64,
}

impl Drop for SyncJob {
    fn drop(&mut self) {
        self.gateway.syncs.end(&self.ask.device_id, &self.sync_id);
    }
}

impl SyncJob {
    /// The device may have no other one whose pages are being sent, and its token may not have read too much: then it is
    /// refused, and that is answered.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        send_queue: Arc<SendQueue>,
        share: Arc<RateShare>,
        claims: Claims,
        ask: SyncAsk,
        ticket: RequestTicket,
    ) -> Option<Box<Self>> {
        let sync_id = format!("{:016x}{:016x}", random(), random());
        let begun = share.may_read().and_then(|()| gateway.syncs.begin(&ask.device_id, send_queue.id, &sync_id));
        match begun {
            Ok(completed) => Some(Box::new(Self {
                gateway,
                send_queue,
                share,
                claims,
                ask,
                ticket,
                sync_id,
                completed,
                begun_ms: 0,
            })),
            Err(error) => {
                refuse(&gateway, &send_queue, &ask, &ticket, &error);
                None
            }
        }
    }

    /// The command that begins it.
    pub(crate) fn begin(&self) -> Intent {
        Intent::SyncBegin(SyncBegin {
            device_id: self.ask.device_id.clone(),
            sync_type: self.ask.sync_type.into(),
            sync_id: self.sync_id.clone(),
        })
    }

    /// It has begun: its pages go out when it is their turn.
    pub(crate) fn begun(mut self: Box<Self>, delivery: &Arc<Delivery>, at_ms: u64) {
        self.begun_ms = at_ms;
        let (gateway, send_queue, ask, ticket) =
            (self.gateway.clone(), self.send_queue.clone(), self.ask.clone(), self.ticket.clone());
        let queued = delivery.sync(Box::new(move |delivery| Box::pin(self.run(delivery))));
        if let Err(error) = queued {
            refuse(&gateway, &send_queue, &ask, &ticket, &error);
        }
    }

    async fn run(self: Box<Self>, delivery: Arc<Delivery>) {
        match self.send(&delivery).await {
            // Live changes do not wait for what the client says.
            Ok(()) => drop(tokio::spawn(async move {
                tokio::select! {
                    () = delivery.closed() => {}
                    () = self.wait() => {}
                }
            })),
            Err(error) => self.fail(&error),
        }
    }

    pub(crate) fn fail(&self, error: &Error) {
        refuse(&self.gateway, &self.send_queue, &self.ask, &self.ticket, error);
    }

    /// 2003 if the device does not say in time that it is done.
    async fn wait(&self) {
        if tokio::time::timeout(self.gateway.settings.sync_timeout, self.completed.notified()).await.is_ok() {
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
        self.send_queue.send(&ServerEvent::SyncError { device_id, error: &error, sync_type, field, request_id, at_ms });
    }

    async fn send(&self, delivery: &Delivery) -> Result<(), Error> {
        self.gateway.cluster.read_barrier().await?;
        auth::still_good(&self.gateway, &self.claims)?;
        if let Some(ack) = self.ticket.ack {
            let (event, device_id) = ("sync_request", Some(self.ask.device_id.as_str()));
            let (message, at_ms, sync_id) = ("sync begins", self.begun_ms, Some(self.sync_id.as_str()));
            let begins = Acknowledged { message, at_ms, event, device_id, sync_id, ..Acknowledged::default() };
            self.send_queue.answer(ack, &ServerEvent::Acknowledged(begins));
        }
        // One look: the head, the time that it stands for, and what there is.
        let (meta, before, tables, records) = {
            let state = self.gateway.cluster.replica().state();
            let before = state.sync_state(&self.ask.device_id).cloned();
            (
                state.meta().clone(),
                before,
                Arc::from(state.tables()),
                state.records_known_to(self.claims.class.number()),
            )
        };
        if meta.master.is_empty() {
            return Err(Error::new(Code::NoMaster, "there is no master to sync with"));
        }
        // The session's own stream comes first, up to where the pages are from.
        delivery.send_to(meta.head()).await?;
        let sent = delivery.pages_follow(meta.head());
        let filter = ChangeFilter::of(self.ask.tables.clone(), self.claims.class.number());
        let scope = scope(self.ask.tables.as_deref());
        let course = SyncCourse { meta, before, tables, records, filter, scope, sent };
        match self.start(&course).await? {
            Some(from) => self.send_changes(&course, from).await,
            None => self.send_records(&course).await,
        }
    }

    /// Where an incremental sync begins: after this change. `None`: it has to be a full one.
    async fn start(&self, course: &SyncCourse) -> Result<Option<Seq>, Error> {
        if self.ask.sync_type != SyncType::Incremental {
            return Ok(None);
        }
        let meta = &course.meta;
        let cursor = match &self.ask.cursor {
            // No further than the pages go.
            Some(text) => Some(self.gateway.parse_cursor(text)?.seq.min(meta.head())),
            None => None,
        };
        let owed = course.before.as_ref().is_some_and(|before| before.full_owed);
        let corrections = Corrections::from(meta);
        let last_sync_ms = self.ask.last_sync_ms.map(|ms| corrections.of_client(UnixMs(ms)));
        let from = match (cursor, last_sync_ms) {
            // The client knows its own place.
            (Some(seq), _) if seq > Seq(0) || !owed => Some(seq),
            _ if owed => None,
            (_, Some(ms)) if gone(meta, ms) => None,
            (_, Some(ms)) => {
                let (compacted, head) = (meta.compacted(), meta.head());
                let corrected = meta.time_corrections.clone();
                let find = move |t: &dyn TablesRead| seq_of_time(t, compacted, head, ms, Corrections(&corrected));
                let seq = self.gateway.cluster.replica().read_rows(find).await?;
                // A time that has not come: the client's clock is wrong, so what the cluster has noted counts, too.
                let noted = if course.completed_one() { course.recorded() } else { None };
                if ms > meta.now() { noted.map(|noted| noted.min(seq)) } else { Some(seq) }
            }
            (_, None) => course.recorded(),
        };
        // Before the class was granted a table, the device was not sent it: only a full sync brings what it lacks.
        let whole = |from: Seq| {
            self.gateway.cluster.replica().state().access().is_whole_after(self.claims.class.number(), from)
        };
        Ok(from.filter(|from| *from >= meta.compacted() && whole(*from)))
    }

    /// The changes after `from`, without those that would bring back an older state than the session was sent.
    async fn send_changes(&self, course: &SyncCourse, from: Seq) -> Result<(), Error> {
        let head = course.meta.head();
        let (mut moved, mut removed) = (MovedRecords::since(head), RemovedRecords::default());
        let (mut after, mut number, mut sent) = (from, 0, 0);
        loop {
            let Some(page) = feed::page(&self.gateway, after, head, PAGE, &course.filter).await? else {
                // Compacted under our hands: begin again with everything.
                return self.send_records(course).await;
            };
            let Some(changes) = self.without_older(course, &mut moved, &mut removed, after, &page.changes).await?
            else {
                return self.send_records(course).await;
            };
            after = page.seq;
            if changes.is_empty() && page.more {
                continue;
            }
            number += 1;
            sent += changes.len() as u64;
            let at_ms = match changes.last() {
                Some(last) if page.more => {
                    Corrections::from(&course.meta).of_change(Seq(last.seq), UnixMs(last.committed_ms)).get()
                }
                _ => course.meta.now_ms,
            };
            let total = if page.more { sent + (head.get() - page.seq.get()) } else { sent };
            let seq = if page.more { page.seq } else { head };
            let changes = changes.iter().map(|c| SyncChange::from(&***c)).collect();
            let (sync_type, has_more) = (SyncType::Incremental, page.more);
            self.send_page(course, SyncPart { sync_type, changes, number, total, has_more, seq, at_ms }).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Of the changes after `after`. `None`: what became of records of a removed table cannot be told.
    async fn without_older<'c>(
        &self,
        course: &SyncCourse,
        moved: &mut MovedRecords,
        removed: &mut RemovedRecords,
        after: Seq,
        changes: &'c [Arc<Change>],
    ) -> Result<Option<Vec<&'c Arc<Change>>>, Error> {
        let (newest, to): (Vec<_>, Seq) = {
            let state = self.gateway.cluster.replica().state();
            let newest = changes.iter().map(|change| {
                let table = state.table_number(&change.table_name).unwrap_or_default();
                let id = RecordId(change.record_id);
                ((table, id), state.version_of(&change.table_name, id))
            });
            (newest.collect(), state.meta().head())
        };
        if newest.iter().any(|(_, version)| *version > Some(course.meta.head())) {
            moved.look(&self.gateway, to, &course.filter.of_any_class()).await?;
        }
        let newest: Vec<Option<Seq>> = newest.into_iter().map(|(key, version)| moved.version(key, version)).collect();
        // The table was removed by now.
        let gone = |removed: &RemovedRecords| {
            changes.iter().zip(&newest).any(|(c, version)| version.is_none() && removed.newest(c).is_none())
        };
        if gone(removed) {
            let (head, filter) = (course.meta.head(), course.filter.of_any_class());
            let Some(found) = RemovedRecords::look(&self.gateway, after, head, &filter).await? else { return Ok(None) };
            *removed = found;
        }
        let version = |c: &Change, version: Option<Seq>| version.or_else(|| removed.newest(c));
        let pairs = changes.iter().zip(newest);
        Ok(Some(pairs.filter(|(c, at)| !course.sent.has_newer(c, version(c, *at))).map(|(c, _)| c).collect()))
    }

    /// Every record as it was at the head.
    async fn send_records(&self, course: &SyncCourse) -> Result<(), Error> {
        let head = course.meta.head();
        let wanted: HashSet<TableId> = (1..)
            .map(TableId)
            .zip(course.tables.iter())
            .filter(|(_, t)| course.filter.takes_table(&t.name))
            .map(|(n, _)| n)
            .collect();
        let mut moved = MovedRecords::since(head);
        let (mut after, mut number, mut sent) = (None, 0, 0);
        loop {
            let (mut page, next, to) = {
                let state = self.gateway.cluster.replica().state();
                // Rights may change between two pages.
                let shown: Vec<bool> = course
                    .tables
                    .iter()
                    .map(|t| state.access().may_read(self.claims.class.number(), &t.name))
                    .collect();
                let takes =
                    |table: TableId| wanted.contains(&table) && shown.get(table.place()).copied().unwrap_or(false);
                let (page, next) = state.records_at(head, after, PAGE.rows, takes);
                (page, next, state.meta().head())
            };
            if page.iter().any(|at| at.seq > head) {
                moved.look(&self.gateway, to, &course.filter.of_any_class()).await?;
                // Without those that came only later.
                let then =
                    |at: StoredData| Some(StoredData { seq: moved.version((at.table, at.id), Some(at.seq))?, ..at });
                page = page.into_iter().filter_map(then).collect();
            }
            let tables = course.tables.clone();
            let around = move |table: TableId| tables.get(table.place()).map_or(0, |t| around(&t.name));
            let read = move |t: &dyn TablesRead| records_exact(t, page, PAGE.bytes, around);
            let Some((page, cut)) = self.gateway.cluster.replica().read_rows(read).await? else {
                return Err(moved_on("a record's version was compacted"));
            };
            after = cut.map(|at| (at.table, at.id)).or(next);
            let has_more = after.is_some();
            if page.is_empty() && has_more {
                continue;
            }
            number += 1;
            sent += page.len() as u64;
            let changes = page.iter().map(|found| SyncChange {
                table_name: course.tables.get(found.at.table.place()).map_or("", |t| &t.name),
                record_id: found.at.id,
                operation: Operation::Insert,
                data: &found.data,
                timestamp_ms: found.at.timestamp_ms.get(),
                seq: found.at.seq.get(),
                device_id: None,
                after: None,
            });
            let changes = changes.collect();
            let total = if has_more { course.records.max(sent + 1) } else { sent };
            // Records are sent by key, so a part of them is no place in the history: only the whole is.
            let (seq, at_ms) = if has_more { (Seq(0), course.before_ms()) } else { (head, course.meta.now_ms) };
            let sync_type = SyncType::Full;
            self.send_page(course, SyncPart { sync_type, changes, number, total, has_more, seq, at_ms }).await?;
            if !has_more {
                return Ok(());
            }
        }
    }

    async fn send_page(&self, course: &SyncCourse, part: SyncPart<'_>) -> Result<(), Error> {
        let frame = {
            let page = SyncPage {
                sync_type: type_name(part.sync_type),
                at_ms: part.at_ms,
                changes: part.changes,
                master: &course.meta.master,
                sync_id: &self.sync_id,
                page: part.number,
                total: part.total,
                has_more: part.has_more,
                cursor: self.gateway.cursor(part.seq),
            };
            EncodedEvent::of(self.send_queue.transport, &ServerEvent::SyncResponse(&page))
        };
        if !self.gateway.syncs.goes_on(&self.ask.device_id, &self.sync_id) {
            return Err(Error::new(Code::SyncRequest, "the device began a sync on another session"));
        }
        if part.has_more {
            self.gateway.syncs.more_follow(&self.ask.device_id, &self.sync_id, part.at_ms);
        } else {
            // Before the client can say that it has it.
            let synced = Synced { head: course.meta.head(), at_ms: course.meta.now_ms, scope: course.scope };
            self.gateway.syncs.sent(&self.ask.device_id, &self.sync_id, synced);
        }
        self.share.read(frame.size() as u64);
        if self.send_queue.send_and_wait(frame).await {
            return Ok(());
        }
        Err(Error::new(Code::SocketClosed, "the session ended"))
    }
}

impl SyncCourse {
    /// How far the device had come, if that is known of the tables that it asks for.
    fn recorded(&self) -> Option<Seq> {
        match &self.before {
            None => Some(Seq(0)),
            Some(before) if before.cursor_scope == 0 || before.cursor_scope == self.scope => {
                Some(Seq(before.cursor_seq))
            }
            Some(_) => None,
        }
    }

    fn completed_one(&self) -> bool {
        self.before.as_ref().is_some_and(|before| before.last_sync_ms > 0)
    }

    /// A time that the device has everything up to, whatever comes of this sync.
    fn before_ms(&self) -> u64 {
        let before = self.before.as_ref().filter(|b| b.cursor_scope == 0 || b.cursor_scope == self.scope);
        before.map_or(0, |before| before.last_sync_ms)
    }
}

/// Changes may have been compacted that came after a change which this time was taken from.
fn gone(meta: &Meta, ms: UnixMs) -> bool {
    meta.compacted_seq > 0 && ms <= UnixMs(meta.compacted_ms).plus_ms(limits::CLIENT_CLOCK_AHEAD_MS)
}

/// The records that were changed after a sync's head, with the version that they had at the head.
struct MovedRecords {
    /// Changes up to this one were looked at.
    to: Seq,
    versions: HashMap<(TableId, RecordId), Option<Seq>>,
}

impl MovedRecords {
    fn since(head: Seq) -> Self {
        Self { to: head, versions: HashMap::new() }
    }

    /// Looks at the changes up to `to`, as far as that was not done.
    async fn look(&mut self, gateway: &Gateway, to: Seq, filter: &ChangeFilter) -> Result<(), Error> {
        while self.to < to {
            let Some(page) = feed::page(gateway, self.to, to, LOOK, filter).await? else {
                return Err(moved_on("changes that came meanwhile were compacted"));
            };
            let state = gateway.cluster.replica().state();
            for change in &page.changes {
                let Some(table) = state.table_number(&change.table_name) else { continue };
                // The first change after the head tells the version at the head.
                self.versions
                    .entry((table, RecordId(change.record_id)))
                    .or_insert(Some(Seq(change.previous_seq)).filter(|seq| *seq > Seq(0)));
            }
            self.to = page.seq;
            if self.versions.len() > limits::SYNC_MOVED {
                return Err(moved_on("too many records were changed meanwhile"));
            }
        }
        Ok(())
    }

    /// A record's version at the head, of its version when it was looked up; `None`: there was none.
    fn version(&self, record: (TableId, RecordId), now: Option<Seq>) -> Option<Seq> {
        self.versions.get(&record).copied().unwrap_or(now)
    }
}

/// The pages would be a mixture of states: nothing is better.
fn moved_on(what: &str) -> Error {
    Error::new(Code::SyncTimeout, format!("the sync took too long, {what}: ask again"))
}

fn refuse(gateway: &Gateway, send_queue: &SendQueue, ask: &SyncAsk, ticket: &RequestTicket, error: &Error) {
    let sync_type = Some(type_name(ask.sync_type));
    let (device_id, at_ms) = (ask.device_id.as_str(), gateway.now_ms());
    let request_id = ticket.request_id.as_deref();
    let error = &error.clone().over_socket();
    let field = error.field();
    let event = ServerEvent::SyncError { device_id, error, sync_type, field, request_id, at_ms };
    send_queue.send(&event);
    if let Some(ack) = ticket.ack {
        send_queue.answer(ack, &event);
    }
}

/// A sync type as the document writes it.
pub(crate) fn type_name(sync_type: SyncType) -> &'static str {
    if sync_type == SyncType::Incremental { "incremental" } else { "full" }
}
