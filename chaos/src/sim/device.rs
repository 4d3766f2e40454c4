//! A simulated device: it connects to any node, writes, reads and syncs, loses its connection and resumes with its
//! cursor, and sends what it does not know the end of again.
//!
//! - this file: its life, from one connection to the next
//! - [`writing`]: changes, several in flight; [`asking`]: reads and syncs; [`roles`]: orders about who is master

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::link::{Event, Gone, Link};
use super::world::{Phase, World};
use crate::history::{Asked, Op, Outcome, Row, SessionTold};
use crate::rng::Rng;

mod asking;
mod roles;
mod writing;

use writing::Open;

/// How long a device waits for an answer: longer than the cluster takes to give up.
const PATIENCE: Duration = Duration::from_secs(3);
const RECORDS: u64 = 5;
/// Conditional writes go here: conflicts wait for a decision, so a refused write is surely not applied.
pub const GUARDED: &str = "guarded";
pub const PLAIN: &str = "stock";

/// Numbers of a run that all devices draw from.
#[derive(Default)]
pub struct Counters {
    pub ops: AtomicU64,
    pub sessions: AtomicU64,
}

pub struct Device {
    world: Arc<World>,
    counters: Arc<Counters>,
    name: String,
    rng: Rng,
    phase: watch::Receiver<Phase>,
    churn: watch::Receiver<u64>,
    /// The cursor's epoch, and the seq up to which it has everything.
    cursor: Option<(String, u64)>,
    /// What it knows of records.
    versions: BTreeMap<(String, i64), Known>,
    /// Writes whose end is not known, in their order, to be sent again as they were.
    open: VecDeque<Open>,
    written: u64,
    /// How long it stays away when its connection has ended.
    away: Duration,
}

#[derive(Clone, Copy)]
struct Known {
    seq: u64,
    deleted: bool,
}

/// One connection and what came over it.
struct Talk {
    link: Link,
    told: SessionTold,
    online: bool,
}

enum Answer {
    Event(Event),
    /// No answer in time.
    Silence,
}

impl Device {
    pub fn new(world: Arc<World>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let (phase, churn) = (world.phase.subscribe(), world.churn.subscribe());
        let (cursor, versions, open) = (None, BTreeMap::new(), VecDeque::new());
        Self { world, counters, name, rng, phase, churn, cursor, versions, open, written: 0, away: Duration::ZERO }
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub async fn run(mut self) {
        while self.phase() != Phase::End {
            let up = self.world.serving();
            let nodes: Vec<u64> = up.keys().copied().collect();
            let node = self.rng.pick(&nodes).and_then(|id| up.get(id).cloned().map(|up| (*id, up)));
            let Some((node, up)) = node else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Some(link) = Link::open(&up.gateway, &self.name, up.dead.clone()) else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let told = SessionTold {
                session: self.counters.sessions.fetch_add(1, Ordering::SeqCst) + 1,
                device: self.name.clone(),
                node,
                began_us: self.world.recorder.us(),
                ended_us: 0,
                resumed: None,
                position: None,
                early: Vec::new(),
                told: Vec::new(),
                live_at_end: false,
            };
            let mut talk = Talk { link, told, online: false };
            self.churn.mark_unchanged();
            let ended = self.talk(&mut talk).await;
            talk.told.ended_us = self.world.recorder.us();
            talk.told.live_at_end = ended.is_ok() && talk.online && self.phase() == Phase::End;
            self.advance(&talk.told);
            self.world.recorder.session(talk.told);
            drop(talk.link);
            let pause = self.rng.millis(0, 30) + std::mem::take(&mut self.away);
            sleep(pause).await;
        }
        while let Some(open) = self.open.pop_front() {
            self.give_up(open);
        }
    }

    /// How far the device has come without a hole.
    fn advance(&mut self, told: &SessionTold) {
        let Some((_, at)) = &mut self.cursor else { return };
        let mut seqs: Vec<u64> = told.early.iter().chain(&told.told).map(|row| row.seq).collect();
        seqs.sort_unstable();
        for seq in seqs {
            if seq == *at + 1 {
                *at = seq;
            }
        }
    }

    async fn talk(&mut self, talk: &mut Talk) -> Result<(), Gone> {
        if !self.come_online(talk).await? {
            return Err(Gone);
        }
        loop {
            match self.phase() {
                Phase::End => return Ok(()),
                Phase::Listen if self.open.is_empty() => {
                    self.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                _ => {}
            }
            if !self.open.is_empty() {
                self.write(talk).await?;
            } else {
                match self.rng.below(1_000) {
                    0..=549 => {
                        self.new_writes(talk);
                        self.write(talk).await?;
                    }
                    550..=899 => self.read(talk).await?,
                    900..=924 => self.sync(talk).await?,
                    925..=934 => return Err(Gone),
                    935..=949 => self.claim_the_role(talk).await?,
                    950..=954 => self.call_for_an_election(talk),
                    955..=962 => return self.shut_down(talk).await,
                    // Not listening for a while: the queue of its session grows.
                    963..=967 => sleep(Duration::from_millis(400)).await,
                    _ => self.listen(talk, Duration::from_millis(40)).await?,
                }
            }
            let pause = self.rng.millis(0, 25);
            self.listen(talk, pause).await?;
        }
    }

    /// False if the node did not let it.
    async fn come_online(&mut self, talk: &mut Talk) -> Result<bool, Gone> {
        let cursor = self.cursor.clone();
        let mut ask = json!({ "device_id": self.name, "priority": self.rng.between(0, 3) * 20 });
        if self.rng.percent(5) {
            ask["role"] = json!("master");
        }
        if let Some((epoch, seq)) = &cursor {
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
        }
        talk.link.send("device_online", &ask);
        let name = self.name.clone();
        let answer = self.answer(talk, |event| {
            (event.name == "device_online_ack" && event.data["device_id"] == json!(name))
                || refuses(event, "device_online")
        });
        let Answer::Event(event) = answer.await? else { return Ok(false) };
        if event.name != "device_online_ack" {
            return Ok(false);
        }
        let Some((epoch, seq)) = event.data["cursor"].as_str().and_then(|text| text.split_once('.')) else {
            return Ok(false);
        };
        let seq: u64 = seq.parse().unwrap_or(0);
        talk.online = true;
        talk.told.position = Some(seq);
        talk.told.resumed = cursor.as_ref().map(|(_, seq)| *seq);
        if cursor.is_none() {
            self.cursor = Some((epoch.to_owned(), seq));
        }
        Ok(true)
    }

    /// The next event that `is_it` takes; what else comes is noted.
    async fn answer(&mut self, talk: &mut Talk, is_it: impl Fn(&Event) -> bool) -> Result<Answer, Gone> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(Gone);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Answer::Silence);
            }
            let Some(event) = talk.link.next(left.min(Duration::from_millis(100))).await? else { continue };
            if is_it(&event) {
                return Ok(Answer::Event(event));
            }
            self.note(talk, &event)?;
        }
    }

    async fn listen(&mut self, talk: &mut Talk, during: Duration) -> Result<(), Gone> {
        let until = Instant::now() + during;
        loop {
            if self.churn.has_changed().unwrap_or(false) {
                return Err(Gone);
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

    fn note(&mut self, talk: &mut Talk, event: &Event) -> Result<(), Gone> {
        match event.name.as_str() {
            "data_update" => {
                let row = row(&event.data, "new_data");
                let known = Known { seq: row.seq, deleted: row.value.is_empty() };
                self.versions.insert((row.table.clone(), row.record), known);
                if talk.online {
                    talk.told.told.push(row)
                } else {
                    talk.told.early.push(row)
                }
                Ok(())
            }
            // The cursor was refused: the device has to begin anew.
            "error" if event.data["field"] == json!("cursor") => {
                self.cursor = None;
                talk.told.resumed = None;
                Err(Gone)
            }
            _ => Ok(()),
        }
    }

    fn op(&self, talk: &Talk, asked: Asked) -> Op {
        let (invoked, invoked_us) = self.world.recorder.now();
        Op {
            id: self.counters.ops.fetch_add(1, Ordering::SeqCst) + 1,
            device: self.name.clone(),
            session: talk.told.session,
            node: talk.told.node,
            asked,
            invoked,
            invoked_us,
            returned: u64::MAX,
            returned_us: u64::MAX,
            outcome: Outcome::Unknown,
            version: None,
            value: None,
            pages: Vec::new(),
            cursor: None,
            tries: 0,
            error: String::new(),
        }
    }

    fn finish(&self, mut op: Op, outcome: Outcome) {
        (op.returned, op.returned_us) = self.world.recorder.now();
        op.outcome = outcome;
        self.world.recorder.op(op);
    }
}

/// The server's error about an event of this name.
fn refuses(event: &Event, what: &str) -> bool {
    event.name == "error" && event.data["event"] == json!(what) && event.data["field"] != json!("cursor")
}

fn row(data: &Value, field: &str) -> Row {
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    Row {
        seq: data["seq"].as_u64().unwrap_or(0),
        table: text("table_name"),
        record: data["record_id"].as_i64().unwrap_or(0),
        value: data[field]["v"].as_str().unwrap_or_default().to_owned(),
        device: text("device_id"),
        request_id: text("request_id"),
    }
}
