//! A simulated device: it connects to any node, writes, reads and syncs, loses its connection and resumes with its
//! cursor, and sends what it does not know the end of again.

use std::collections::BTreeMap;
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

/// How long a device waits for an answer: longer than the cluster takes to give up.
const PATIENCE: Duration = Duration::from_secs(3);
/// Tries of one operation.
const TRIES: u32 = 6;
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
    versions: BTreeMap<(String, i64), u64>,
    /// A write whose end is not known, to be sent again as it was.
    open: Option<Op>,
    /// An earlier try of it may have been applied.
    unsure: bool,
    written: u64,
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
        let (cursor, versions, open) = (None, BTreeMap::new(), None);
        Self { world, counters, name, rng, phase, churn, cursor, versions, open, unsure: false, written: 0 }
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub async fn run(mut self) {
        while self.phase() != Phase::End {
            let up = self.world.up();
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
            let pause = self.rng.millis(0, 30);
            sleep(pause).await;
        }
        if let Some(op) = self.open.take() {
            self.give_up(op);
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
                Phase::Listen if self.open.is_none() => {
                    self.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                _ => {}
            }
            if let Some(op) = self.open.take() {
                self.write(talk, op).await?;
            } else {
                match self.rng.below(1_000) {
                    0..=549 => {
                        let op = self.new_write(talk);
                        self.write(talk, op).await?;
                    }
                    550..=909 => self.read(talk).await?,
                    910..=934 => self.sync(talk).await?,
                    935..=944 => return Err(Gone),
                    950..=954 => self.claim_the_role(talk).await?,
                    // Not listening for a while: the queue of its session grows.
                    945..=949 => sleep(Duration::from_millis(400)).await,
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
                self.versions.insert((row.table.clone(), row.record), row.seq);
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

    fn give_up(&mut self, op: Op) {
        let outcome = if self.unsure { Outcome::Unknown } else { Outcome::Failed };
        self.unsure = false;
        self.finish(op, outcome);
    }

    fn new_write(&mut self, talk: &Talk) -> Op {
        let guarded = self.rng.percent(30);
        let table = if guarded { GUARDED } else { PLAIN };
        let record = self.rng.between(1, RECORDS) as i64;
        let base = guarded.then(|| self.versions.get(&(table.into(), record)).copied().unwrap_or(0));
        self.written += 1;
        let value = format!("{}-{}", self.name, self.written);
        self.unsure = false;
        let request_id = format!("r{}", self.written);
        self.op(talk, Asked::Write { table: table.into(), record, value, request_id, base })
    }

    async fn write(&mut self, talk: &mut Talk, mut op: Op) -> Result<(), Gone> {
        let Asked::Write { table, record, value, request_id, base } = op.asked.clone() else { return Ok(()) };
        op.tries += 1;
        op.node = talk.told.node;
        let mut ask = json!({
            "device_id": self.name, "table_name": table, "record_id": record, "operation": "update",
            "new_data": { "v": value }, "request_id": request_id,
        });
        if let Some(base) = base {
            ask["base_version"] = json!(base);
        }
        talk.link.send("data_update", &ask);
        let id = json!(request_id);
        let is_it = |event: &Event| {
            (event.name == "acknowledged" && event.data["request_id"] == id) || refuses(event, "data_update")
        };
        // Until it is answered it is to be sent again.
        self.open = Some(op);
        let was_unsure = std::mem::replace(&mut self.unsure, true);
        let answer = self.answer(talk, is_it).await?;
        let Some(mut op) = self.open.take() else { return Ok(()) };
        let (again, sure) = match answer {
            Answer::Silence => (true, false),
            Answer::Event(event) if event.name == "acknowledged" => {
                op.version = event.data["seq"].as_u64();
                self.unsure = false;
                let outcome = if op.version.is_some() { Outcome::Ok } else { Outcome::Failed };
                self.finish(op, outcome);
                return Ok(());
            }
            Answer::Event(event) => {
                op.error = format!("{} {}", event.data["error_code"], event.data["error"]);
                // A conflict is an answer that repeats get as well: it tells of every try.
                if event.data["error_code"] == json!("2002") {
                    self.unsure = false;
                    self.finish(op, Outcome::Failed);
                    return Ok(());
                }
                match event.data["retry"].as_str() {
                    Some("safe") => (true, true),
                    Some("same_request_id") => (true, false),
                    _ => (false, true),
                }
            }
        };
        self.unsure = was_unsure || !sure;
        // Who is told that nothing was written may leave it at that.
        let leaves_it = sure && self.rng.percent(40);
        if !again || leaves_it || op.tries >= TRIES {
            self.give_up(op);
            return Ok(());
        }
        self.open = Some(op);
        let pause = self.rng.millis(1, 60);
        self.listen(talk, pause).await?;
        // Now and then it looks for another node.
        if self.rng.percent(50) { Err(Gone) } else { Ok(()) }
    }

    async fn read(&mut self, talk: &mut Talk) -> Result<(), Gone> {
        let table = if self.rng.percent(70) { PLAIN } else { GUARDED };
        let record = self.rng.between(1, RECORDS) as i64;
        let mut op = self.op(talk, Asked::Read { table: table.into(), record });
        op.tries = 1;
        talk.link.send("data_request", &json!({ "device_id": self.name, "table_name": table, "record_id": record }));
        let is_it = |event: &Event| event.name == "data_response" || refuses(event, "data_request");
        match self.answer(talk, is_it).await? {
            Answer::Event(event) if event.name == "data_response" => {
                op.version = event.data["version"].as_u64();
                op.value = event.data["data"]["v"].as_str().map(str::to_owned);
                if let Some(version) = op.version {
                    self.versions.insert((table.to_owned(), record), version);
                }
                self.finish(op, Outcome::Ok);
                Ok(())
            }
            // Its answer may still come, and would be taken for the next one's.
            Answer::Silence => Err(Gone),
            Answer::Event(_) => Ok(()),
        }
    }

    /// An order by hand: it moves the role whatever the priorities.
    async fn claim_the_role(&mut self, talk: &mut Talk) -> Result<(), Gone> {
        talk.link.send("role_change", &json!({ "device_id": self.name, "new_role": "master", "reason": "drill" }));
        let is_it = |event: &Event| event.name == "role_change_ack" || refuses(event, "role_change");
        match self.answer(talk, is_it).await? {
            Answer::Event(_) => Ok(()),
            Answer::Silence => Err(Gone),
        }
    }

    async fn sync(&mut self, talk: &mut Talk) -> Result<(), Gone> {
        let Some((epoch, at)) = self.cursor.clone() else { return Ok(()) };
        let after = match self.rng.below(10) {
            0..=1 => None,
            2..=5 => Some(0),
            _ => Some(at),
        };
        let mut op = self.op(talk, Asked::Sync { after });
        op.tries = 1;
        let mut ask = json!({ "device_id": self.name, "sync_type": "full" });
        if let Some(after) = after {
            ask["sync_type"] = json!("incremental");
            ask["cursor"] = json!(format!("{epoch}.{after}"));
        }
        talk.link.send("sync_request", &ask);
        loop {
            let answer = self.answer(talk, |event| event.name == "sync_response" || event.name == "sync_error");
            let Answer::Event(event) = answer.await? else { return Err(Gone) };
            if event.name == "sync_error" {
                return Ok(());
            }
            if after.is_some() && event.data["sync_type"] == json!("full") {
                op.asked = Asked::Sync { after: None };
            }
            // Changes were compacted while they were sent: it begins again with everything.
            if event.data["page"] == json!(1) {
                op.pages.clear();
            }
            let changes = event.data["changes"].as_array().map_or(&[][..], |changes| changes);
            op.pages.push(changes.iter().map(|change| row(change, "data")).collect());
            if event.data["has_more"] == json!(false) {
                op.cursor = event.data["cursor"].as_str().and_then(|text| text.split_once('.')?.1.parse().ok());
                break;
            }
        }
        let cursor = op.cursor;
        self.finish(op, Outcome::Ok);
        let Some(cursor) = cursor else { return Ok(()) };
        let mut op = self.op(talk, Asked::SyncComplete { cursor });
        op.tries = 1;
        let mark = op.id;
        let ask = json!({ "device_id": self.name, "changes_count": mark, "cursor": format!("{epoch}.{cursor}") });
        talk.link.send("sync_complete", &ask);
        let is_it = |event: &Event| {
            (event.name == "sync_complete_ack" && event.data["changes_count"] == json!(mark))
                || refuses(event, "sync_complete")
        };
        let answer = self.answer(talk, is_it).await;
        let outcome = match &answer {
            Ok(Answer::Event(event)) if event.name == "sync_complete_ack" => Outcome::Ok,
            Ok(Answer::Event(event)) if event.data["retry"] != json!("same_request_id") => Outcome::Failed,
            _ => Outcome::Unknown,
        };
        self.finish(op, outcome);
        match answer? {
            Answer::Silence => Err(Gone),
            Answer::Event(_) => Ok(()),
        }
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
