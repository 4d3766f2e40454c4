//! A client on a real connection, `/ws` or Socket.IO: it writes, reads and syncs at any node, loses its connection and
//! resumes with its cursor, and sends what it does not know the end of again. All that it is told is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::cli::client::NodeUrl;
use tillsync::cli::client::frame::ReceivedEvent;
use tillsync::cli::client::link::ClientTransport;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::honest_link::HonestLink;
use super::world::ProcessWorld;
use crate::clients::WorkloadPhase;
use crate::clients::client::Counters;
use crate::history::{Op, SessionTold, ShownChange};
use crate::rng::Rng;

mod asking;

/// How long a client waits for an answer: longer than the cluster takes to give up.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tries of one operation.
const TRIES: u32 = 6;
/// Conditional writes go here: conflicts wait for a decision, so a refused write is surely not applied.
pub const GUARDED: &str = "guarded";
pub const PLAIN: &str = "stock";
/// Every client numbers its inserts here from 1, so that numbers collide.
pub const RECEIPTS: &str = "receipts";

pub struct ProcessClient {
    world: Arc<ProcessWorld>,
    counters: Arc<Counters>,
    name: String,
    token: String,
    transport: ClientTransport,
    rng: Rng,
    phase: watch::Receiver<WorkloadPhase>,
    churn: watch::Receiver<u64>,
    /// The cursor's epoch, and the seq up to which it has everything.
    cursor: Option<(String, u64)>,
    versions: BTreeMap<(String, i64), u64>,
    /// A write whose end is not known, to be sent again as it was.
    open: Option<Op>,
    /// An earlier try of it may have been applied.
    unsure: bool,
    written: u64,
    /// Every client numbers its inserts from 1.
    inserted: i64,
}

/// The connection is over.
struct LinkLost;

/// One connection and what came over it.
struct ProcessTalk {
    link: HonestLink,
    told: SessionTold,
    online: bool,
}

enum ProcessAnswer {
    Event(ReceivedEvent),
    /// No answer in time.
    Silence,
}

impl ProcessClient {
    pub fn new(
        world: Arc<ProcessWorld>,
        counters: Arc<Counters>,
        name: String,
        token: String,
        transport: ClientTransport,
        rng: Rng,
    ) -> Self {
        let (phase, churn) = (world.phase.subscribe(), world.churn.subscribe());
        let (cursor, versions, open) = (None, BTreeMap::new(), None);
        Self {
            world,
            counters,
            name,
            token,
            transport,
            rng,
            phase,
            churn,
            cursor,
            versions,
            open,
            unsure: false,
            written: 0,
            inserted: 0,
        }
    }

    fn phase(&self) -> WorkloadPhase {
        *self.phase.borrow()
    }

    pub async fn run(mut self) {
        while self.phase() != WorkloadPhase::End {
            self.stand(0);
            let gateways = self.world.cluster.gateways();
            let Some((node, gateway)) = self.rng.pick(&gateways).copied() else { break };
            let session = self.counters.sessions.fetch_add(1, Ordering::SeqCst) + 1;
            let began_us = self.world.recorder.us();
            let url = NodeUrl::plain(gateway.to_string());
            let who = (&*self.name, &self.world.recorder);
            if let Some(link) = HonestLink::connect(self.transport, (node, &url), &self.token, who).await {
                self.churn.mark_unchanged();
                let told = SessionTold { session, device: self.name.clone(), node, began_us, ..SessionTold::default() };
                let mut talk = ProcessTalk { link, told, online: false };
                let ended = self.talk(&mut talk).await;
                talk.told.ended_us = self.world.recorder.us();
                talk.told.live_at_end = ended.is_ok() && talk.online && self.phase() == WorkloadPhase::End;
                self.advance(&talk.told);
                self.world.recorder.session(talk.told);
                drop(talk.link);
            }
            let pause = self.rng.millis(5, 40);
            sleep(pause).await;
        }
        if let Some(op) = self.open.take() {
            self.give_up(op);
        }
    }

    /// Says where it is and how far it has come.
    fn stand(&self, node: u64) {
        let mut all = self.world.standing.lock();
        let standing = all.entry(self.name.clone()).or_default();
        standing.node = node;
        standing.busy = self.open.is_some();
    }

    fn reached(&self, seq: u64) {
        if let Some(standing) = self.world.standing.lock().get_mut(&self.name) {
            standing.told = standing.told.max(seq);
        }
    }

    /// How far the device has come without a hole.
    fn advance(&mut self, told: &SessionTold) {
        let Some((_, at)) = &mut self.cursor else { return };
        if told.late && told.position.is_some() {
            // What it missed comes in order, without changes of records whose newer state it was told already.
            *at = told.told.iter().map(|row| row.seq).fold(*at, u64::max);
        }
        let mut seqs: Vec<u64> = told.early.iter().chain(&told.told).map(|row| row.seq).collect();
        seqs.sort_unstable();
        for seq in seqs {
            // With `subscribe` it hears of some changes only, in order.
            if seq == *at + 1 || (self.world.tables.is_some() && seq > *at) {
                *at = seq;
            }
        }
    }

    async fn talk(&mut self, talk: &mut ProcessTalk) -> Result<(), LinkLost> {
        if !self.come_online(talk).await? {
            return Err(LinkLost);
        }
        let load = self.world.load;
        loop {
            self.stand(talk.told.node);
            match self.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen if self.open.is_none() => {
                    self.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                _ => {}
            }
            if let Some(op) = self.open.take() {
                self.write(talk, op).await?;
            } else {
                let mut drawn = self.rng.below(1_000);
                let mut is = |share: u64| {
                    let hit = drawn < share;
                    drawn = drawn.wrapping_sub(share);
                    hit
                };
                if is(load.writes) {
                    let op = self.new_write(talk);
                    self.write(talk, op).await?;
                } else if is(load.inserts) {
                    let op = self.new_insert(talk);
                    self.write(talk, op).await?;
                } else if is(load.reads) {
                    self.read(talk).await?;
                } else if is(load.syncs) {
                    self.sync(talk).await?;
                } else if is(load.reconnects) {
                    return Err(LinkLost);
                } else if is(load.claims) {
                    self.claim_the_role(talk).await?;
                } else {
                    self.listen(talk, Duration::from_millis(40)).await?;
                }
            }
            let pause = self.rng.millis(0, load.pause_ms);
            self.listen(talk, pause).await?;
        }
    }

    async fn send(&self, talk: &mut ProcessTalk, event: &str, ask: &Value) -> Result<(), LinkLost> {
        match timeout(PATIENCE, talk.link.send(event, &ask.to_string(), true)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(LinkLost),
        }
    }

    /// False if the node did not let it.
    async fn come_online(&mut self, talk: &mut ProcessTalk) -> Result<bool, LinkLost> {
        let cursor = self.cursor.clone();
        if cursor.is_some() && self.open.is_some() && self.rng.percent(50) {
            // As libraries do that flush their buffer first.
            talk.told.late = true;
            if let Some(op) = self.open.take() {
                self.write(talk, op).await?;
            }
        }
        let mut ask = json!({ "device_id": self.name, "priority": self.rng.between(0, 3) * 20 });
        if self.world.load.claims > 0 && self.rng.percent(5) {
            ask["role"] = json!("master");
        }
        if let Some(tables) = self.world.tables {
            ask["subscribe"] = json!(tables);
        }
        if let Some((epoch, seq)) = &cursor {
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
        }
        self.send(talk, "device_online", &ask).await?;
        let name = self.name.clone();
        let answer = self.answer(talk, |event| {
            (event.name == "device_online_ack" && event.data["device_id"] == json!(name))
                || refuses(event, "device_online")
        });
        let ProcessAnswer::Event(event) = answer.await? else { return Ok(false) };
        if event.name != "device_online_ack" {
            return Ok(false);
        }
        let Some((epoch, seq)) = event.text("cursor").and_then(|text| text.split_once('.')) else { return Ok(false) };
        let seq: u64 = seq.parse().unwrap_or(0);
        talk.online = true;
        talk.told.position = Some(seq);
        talk.told.resumed = cursor.as_ref().map(|(_, seq)| *seq);
        if cursor.is_none() {
            self.cursor = Some((epoch.to_owned(), seq));
        }
        self.reached(seq);
        Ok(true)
    }

    async fn next(talk: &mut ProcessTalk, within: Duration) -> Result<Option<ReceivedEvent>, LinkLost> {
        match timeout(within, talk.link.next()).await {
            Ok(Ok(event)) => Ok(Some(event)),
            Ok(Err(_)) => Err(LinkLost),
            Err(_) => Ok(None),
        }
    }

    /// The next event that `is_it` takes; what else comes is noted.
    async fn answer(
        &mut self,
        talk: &mut ProcessTalk,
        is_it: impl Fn(&ReceivedEvent) -> bool,
    ) -> Result<ProcessAnswer, LinkLost> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(LinkLost);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.world.recorder.failure(&self.name, talk.told.node, "it was not answered in time");
                return Ok(ProcessAnswer::Silence);
            }
            let Some(event) = Self::next(talk, left.min(Duration::from_millis(100))).await? else { continue };
            if is_it(&event) {
                return Ok(ProcessAnswer::Event(event));
            }
            self.note(talk, &event)?;
        }
    }

    async fn listen(&mut self, talk: &mut ProcessTalk, during: Duration) -> Result<(), LinkLost> {
        let until = Instant::now() + during;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(LinkLost);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if let Some(event) = Self::next(talk, left).await? {
                self.note(talk, &event)?;
            }
        }
    }

    fn note(&mut self, talk: &mut ProcessTalk, event: &ReceivedEvent) -> Result<(), LinkLost> {
        match event.name.as_str() {
            "data_update" => {
                let row = row(&event.data, "new_data");
                self.versions.insert((row.table.clone(), row.record), row.seq);
                self.reached(row.seq);
                if talk.online {
                    talk.told.told.push(row);
                } else {
                    talk.told.early.push(row);
                }
                Ok(())
            }
            // The cursor was refused: the device has to begin anew.
            "error" if event.data["field"] == json!("cursor") => {
                self.cursor = None;
                talk.told.resumed = None;
                Err(LinkLost)
            }
            _ => Ok(()),
        }
    }
}

/// The server's error about an event of this name.
fn refuses(event: &ReceivedEvent, what: &str) -> bool {
    event.name == "error" && event.data["event"] == json!(what) && event.data["field"] != json!("cursor")
}

/// A change; the request's name is in its data.
pub fn row(data: &Value, field: &str) -> ShownChange {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ShownChange {
        seq: data["seq"].as_u64().unwrap_or(0),
        table: text(&data["table_name"]),
        record: data["record_id"].as_i64().unwrap_or(0),
        value: text(&data[field]["v"]),
        device: text(&data["device_id"]),
        request_id: text(&data[field]["r"]),
    }
}
