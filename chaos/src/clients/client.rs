//! What all these clients share: a connection to some node, what comes over it, and what is recorded of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::ids::UnixMs;
use tillsync::model::time::parse_iso;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::syncing::Sync;
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::{HeldRecord, NumberedToken, Op, OpOutcome, OpRequest, SessionTold, ShownChange, ShownRecord};
use crate::rng::Rng;

/// How long a device waits for an answer: longer than the cluster takes to give up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What is said of an answer that did not come.
const UNANSWERED: &str = "it was not answered in time";

/// Numbers of a run that all devices draw from.
#[derive(Default)]
pub(crate) struct Counters {
    pub ops: AtomicU64,
    pub sessions: AtomicU64,
    pub tokens: AtomicU64,
}

impl Counters {
    /// The number of a token that a device gets.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::SeqCst) + 1
    }
}

pub(crate) struct ChaosClient<T> {
    pub world: Arc<T>,
    counters: Arc<Counters>,
    pub name: String,
    pub rng: Rng,
    phase: watch::Receiver<WorkloadPhase>,
    churn: watch::Receiver<u64>,
    /// What it heard of each record last, in the order of arrival.
    pub known: BTreeMap<(String, i64), KnownRecord>,
    /// A full sync replaces what it knows.
    pub replaces: bool,
    /// A token of its own, which may be taken back, or whose class may not do everything: what comes over its sessions
    /// is judged record by record. Absent: a manager's, which stays good.
    pub bearer: Option<Bearer>,
}

#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    pub token: String,
    pub known: NumberedToken,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownRecord {
    pub seq: u64,
    /// Empty: deleted.
    pub value: String,
}

/// One connection and what came over it.
pub(crate) struct ClientTalk<T: Testbed> {
    pub link: T::Connection,
    pub node: T::Node,
    pub told: SessionTold,
    pub online: bool,
    /// The server does not take the cursor: the device has to begin anew.
    pub cursor_refused: bool,
    /// The sync that was asked for last.
    pub sync: Option<Sync>,
}

pub(crate) enum ClientAnswer {
    Event(ReceivedEvent),
    /// No answer in time.
    Silence,
}

impl<T: Testbed> ChaosClient<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let (phase, churn) = (world.phase(), world.churn());
        let known = BTreeMap::new();
        Self { world, counters, name, rng, phase, churn, known, replaces: false, bearer: None }
    }

    pub(crate) fn phase(&self) -> WorkloadPhase {
        *self.phase.borrow()
    }

    /// Connects to a node that serves, but not to `other`; `None` after a pause if there is none or it refuses.
    pub(crate) async fn connect(&mut self, other: Option<u64>) -> Option<ClientTalk<T>> {
        let nodes: Vec<_> = self.world.nodes().into_iter().filter(|(id, _)| Some(*id) != other).collect();
        let mut found = None;
        if let Some((id, node)) = self.rng.pick(&nodes).cloned() {
            let link = match &self.bearer {
                None => self.world.connect(&node, &self.name).await,
                Some(bearer) => self.world.connect_with(&node, &self.name, &bearer.token).await,
            };
            found = link.map(|link| (id, node, link));
        }
        let Some((id, node, link)) = found else {
            sleep(Duration::from_millis(20)).await;
            return None;
        };
        let told = SessionTold {
            session: self.counters.sessions.fetch_add(1, Ordering::SeqCst) + 1,
            device: self.name.clone(),
            node: id,
            began_us: self.world.recorder().us(),
            ..SessionTold::default()
        };
        self.churn.mark_unchanged();
        Some(ClientTalk { link, node, told, online: false, cursor_refused: false, sync: None })
    }

    /// The connection is over: what it was told is recorded.
    pub(crate) fn disconnect(&mut self, mut talk: ClientTalk<T>, live_at_end: bool) {
        talk.told.ended_us = self.world.recorder().us();
        talk.told.live_at_end = live_at_end && talk.online;
        self.world.set_reached(talk.told.session, None);
        if self.bearer.is_none() {
            self.world.recorder().session(talk.told);
        }
        drop(talk.link);
    }

    /// `device_online` without a cursor. False if the node did not let it.
    pub(crate) async fn come_online(&mut self, talk: &mut ClientTalk<T>) -> Result<bool, ConnectionLost> {
        let priority = if self.bearer.is_some() { 0 } else { self.rng.between(0, 3) * 20 };
        let mut ask = json!({ "device_id": self.name, "priority": priority });
        if let Some(tables) = self.world.tables() {
            ask["subscribe"] = json!(tables);
        }
        talk.link.send("device_online", &ask).await?;
        let ClientAnswer::Event(event) = self.online_answer(talk).await? else { return Ok(false) };
        Ok(self.is_online(talk, &event))
    }

    pub(crate) async fn online_answer(&mut self, talk: &mut ClientTalk<T>) -> Result<ClientAnswer, ConnectionLost> {
        let name = json!(self.name);
        let is_it = |event: &ReceivedEvent| {
            (event.name == "device_online_ack" && event.data["device_id"] == name) || refuses(event, "device_online")
        };
        self.answer(talk, is_it).await
    }

    /// Notes the place in the log at which the session stands; false if this is no such answer.
    pub(crate) fn is_online(&self, talk: &mut ClientTalk<T>, event: &ReceivedEvent) -> bool {
        let cursor = cursor(event).filter(|_| event.name == "device_online_ack");
        talk.online = cursor.is_some();
        talk.told.position = cursor.map(|(_, seq)| seq);
        if talk.online && self.bearer.is_none() {
            // One that says late that it is there may have been told all by then.
            let told = talk.told.rows().map(|row| row.seq).max();
            self.world.set_reached(talk.told.session, talk.told.position.max(told));
        }
        talk.online
    }

    /// The next event that `is_it` takes. All that comes is noted.
    pub(crate) async fn answer(
        &mut self,
        talk: &mut ClientTalk<T>,
        is_it: impl Fn(&ReceivedEvent) -> bool,
    ) -> Result<ClientAnswer, ConnectionLost> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(ConnectionLost);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.world.recorder().failure(&self.name, talk.told.node, UNANSWERED);
                return Ok(ClientAnswer::Silence);
            }
            let Some(event) = talk.link.next(left.min(Duration::from_millis(100))).await? else { continue };
            self.note(talk, &event)?;
            if is_it(&event) {
                return Ok(ClientAnswer::Event(event));
            }
        }
    }

    pub(crate) async fn listen(&mut self, talk: &mut ClientTalk<T>, during: Duration) -> Result<(), ConnectionLost> {
        let until = Instant::now() + during;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(ConnectionLost);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if let Some(event) = talk.link.next(left).await? {
                self.note(talk, &event)?;
            }
        }
    }

    fn note(&mut self, talk: &mut ClientTalk<T>, event: &ReceivedEvent) -> Result<(), ConnectionLost> {
        match event.name.as_str() {
            "data_update" => {
                let row = row(&event.data, "new_data");
                self.learn(&row);
                if talk.online && self.bearer.is_none() {
                    self.world.set_reached(talk.told.session, Some(row.seq));
                }
                self.show(talk, None, &row);
                if talk.online { talk.told.told.push(row) } else { talk.told.early.push(row) }
            }
            "sync_response" => self.page(talk, event),
            "sync_error" | "error" if event.name == "sync_error" || refuses(event, "sync_request") => {
                if let Some(sync) = &mut talk.sync
                    && sync.done.is_none()
                {
                    sync.op.error = format!("{} {}", event.data["error_code"], event.data["error_message"]);
                    sync.done = Some(false);
                }
            }
            "error" if event.data["field"] == json!("cursor") => {
                talk.cursor_refused = true;
                return Err(ConnectionLost);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn learn(&mut self, row: &ShownChange) {
        let known = KnownRecord { seq: row.seq, value: row.value.clone() };
        self.known.insert((row.table.clone(), row.record), known);
    }

    /// What a session of a bearer is shown, with the time.
    pub(crate) fn show(&self, talk: &ClientTalk<T>, asked: Option<u64>, row: &ShownChange) {
        let Some(bearer) = &self.bearer else { return };
        let (tick, us) = self.world.recorder().now();
        self.world.recorder().shown(ShownRecord {
            tick,
            us,
            asked,
            device: self.name.clone(),
            node: talk.told.node,
            session: talk.told.session,
            token: bearer.known.clone(),
            table: row.table.clone(),
            record: row.record,
            seq: row.seq,
            value: row.value.clone(),
        });
    }

    /// Asks for a record. What was asked, with what was answered, and the answer: the record, or a refusal.
    pub(crate) async fn read(
        &mut self,
        talk: &mut ClientTalk<T>,
        table: &str,
        record: i64,
    ) -> Result<(Op, ReceivedEvent), ConnectionLost> {
        let mut op = self.op(talk, OpRequest::Read { table: table.into(), record });
        op.tries = 1;
        let ask = json!({ "device_id": self.name, "table_name": table, "record_id": record });
        talk.link.send("data_request", &ask).await?;
        let is_it = |event: &ReceivedEvent| event.name == "data_response" || refuses(event, "data_request");
        // An answer that is late may still come, and would be taken for the next one's.
        let ClientAnswer::Event(event) = self.answer(talk, is_it).await? else { return Err(ConnectionLost) };
        if event.name == "data_response" {
            op.version = event.data["version"].as_u64();
            op.value = event.data["data"]["v"].as_str().map(str::to_owned);
        }
        Ok((op, event))
    }

    pub(crate) fn op(&self, talk: &ClientTalk<T>, asked: OpRequest) -> Op {
        let id = self.counters.ops.fetch_add(1, Ordering::SeqCst) + 1;
        let op = Op::new(id, &self.name, (talk.told.session, talk.told.node), asked, self.world.recorder().now());
        Op { token: self.bearer.as_ref().map(|bearer| bearer.known.clone()), ..op }
    }

    pub(crate) fn finish(&self, mut op: Op, outcome: OpOutcome) {
        (op.returned, op.returned_us) = self.world.recorder().now();
        op.outcome = outcome;
        self.world.recorder().op(op);
    }

    /// All records that it knows to exist.
    pub(crate) fn held(&self) -> Vec<HeldRecord> {
        let there = self.known.iter().filter(|(_, known)| !known.value.is_empty());
        let held = there.map(|((table, record), known)| {
            let (table, value) = (table.clone(), known.value.clone());
            HeldRecord { table, record: *record, seq: known.seq, value }
        });
        held.collect()
    }
}

/// The server's error about an event of this name.
pub(crate) fn refuses(event: &ReceivedEvent, what: &str) -> bool {
    event.name == "error" && event.data["event"] == json!(what) && event.data["field"] != json!("cursor")
}

/// Epoch and seq of an event's cursor, without the print of its change: these clients come back with other seqs, too.
pub(crate) fn cursor(event: &ReceivedEvent) -> Option<(&str, u64)> {
    let (history, seq) = event.data["cursor"].as_str()?.split_once('.')?;
    let epoch = history.split_once('-').map_or(history, |(epoch, _)| epoch);
    Some((epoch, seq.parse().ok()?))
}

/// Unix milliseconds of a time that the server gave.
pub(crate) fn time(value: &Value) -> u64 {
    value.as_str().and_then(parse_iso).map_or(0, UnixMs::get)
}

/// A change. Where the request's name is not told with it, it is what its data says.
pub(crate) fn row(data: &Value, field: &str) -> ShownChange {
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    let request_id = data["request_id"].as_str().or(data[field]["r"].as_str()).unwrap_or_default().to_owned();
    ShownChange {
        seq: data["seq"].as_u64().unwrap_or(0),
        table: text("table_name"),
        record: data["record_id"].as_i64().unwrap_or(0),
        value: data[field]["v"].as_str().unwrap_or_default().to_owned(),
        device: text("device_id"),
        request_id,
    }
}
