//! A device with a durable queue: its entries carry queue numbers, go out many at a time, and are sent again in order
//! until each was answered, over reconnections, failovers and lost answers.
//!
//! Now and then it sends entries again that were acknowledged long ago, as one that was restored from a backup does; it
//! sends an entry whose predecessor never went out, or a number again with other data; and it gives up an entry that is refused for what it says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::answers::{AnswerEnd, answered, end, error};
use super::client::{ChaosClient, ClientAnswer, ClientTalk, Counters};
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::{Op, OpOutcome, OpRequest, QueuePlace};
use crate::rng::Rng;

pub(crate) const SALES: &str = "sales";
/// Entries under way at once.
const IN_FLIGHT: usize = 40;
/// How a run's entries come: how many in all, and how many together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    entries: u64,
    burst: (u64, u64),
}

impl Pace {
    pub(crate) const FEW: Self = Self { entries: 140, burst: (1, 12) };
    /// More than a device's window of `request_id`s remembers.
    pub(crate) const MANY: Self = Self { entries: 1_300, burst: (30, 150) };
    /// All the time, through every fault of a run that takes minutes.
    pub(crate) const LASTING: Self = Self { entries: 20_000, burst: (1, 12) };
}

/// Acknowledged entries sent again at once.
const AGAIN: usize = 24;
/// An entry that is surely refused at the door: it must never be sent as it is.
const POISON: &str = "poison";

struct QueueEntry {
    op: Op,
    place: QueuePlace,
    record: i64,
    value: String,
    poison: bool,
    /// Sent in this round, and not answered yet.
    sent: bool,
}

pub(crate) struct QueueClient<T> {
    client: ChaosClient<T>,
    queue: String,
    queues: u64,
    /// The newest entry's number, and the newest one's that was not given up.
    n: u64,
    after: u64,
    open: VecDeque<QueueEntry>,
    /// Entries that were acknowledged, in their order.
    done: Vec<(QueuePlace, i64, String)>,
    made: u64,
    pace: Pace,
}

impl<T: Testbed> QueueClient<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng, pace: Pace) -> Self {
        let mut queue = Self {
            client: ChaosClient::new(world, counters, name, rng),
            queue: String::new(),
            queues: 0,
            n: 0,
            after: 0,
            open: VecDeque::new(),
            done: Vec::new(),
            made: 0,
            pace,
        };
        queue.new_queue();
        queue
    }

    fn new_queue(&mut self) {
        self.queues += 1;
        self.queue = format!("{}-{}", self.client.name, self.queues);
        (self.n, self.after) = (0, 0);
    }

    pub(crate) async fn run(mut self) {
        while self.client.phase() != WorkloadPhase::End {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let ended = self.talk(&mut talk).await;
            let live = ended.is_ok() && self.client.phase() == WorkloadPhase::End;
            self.client.disconnect(talk, live);
            let pause = self.client.rng.millis(0, 120);
            sleep(pause).await;
        }
        for entry in std::mem::take(&mut self.open) {
            self.client.finish(entry.op, OpOutcome::Unknown);
        }
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if !self.client.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        if !self.done.is_empty() && self.client.rng.percent(35) {
            self.send_again(talk).await?;
        }
        loop {
            if self.open.is_empty() {
                self.client.world.set_busy(&self.client.name, false);
            }
            match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen if self.open.is_empty() => {
                    self.client.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                WorkloadPhase::Load if self.open.is_empty() => self.act(talk).await?,
                _ => {}
            }
            if !self.open.is_empty() {
                self.flush(talk).await?;
            }
        }
    }

    async fn act(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        match self.client.rng.below(100) {
            0..=44 if self.made < self.pace.entries => {
                for _ in 0..self.client.rng.between(self.pace.burst.0, self.pace.burst.1) {
                    self.new_entry(talk);
                }
                // A device that sells goes on before the answers are there.
                if self.client.rng.percent(20) {
                    self.send(talk).await?;
                    return Err(ConnectionLost);
                }
                Ok(())
            }
            45..=49 => self.leave_a_gap(talk).await,
            50..=53 => self.send_again(talk).await,
            54..=58 => Err(ConnectionLost),
            59 => {
                self.new_queue();
                Ok(())
            }
            _ => {
                let during = self.client.rng.millis(10, 200);
                self.client.listen(talk, during).await
            }
        }
    }

    fn new_entry(&mut self, talk: &ClientTalk<T>) {
        self.made += 1;
        // Numbers may be left out.
        self.n += self.client.rng.between(1, 2);
        let place = QueuePlace { queue: self.queue.clone(), n: self.n, after: self.after };
        let poison = self.client.rng.percent(3);
        if !poison {
            self.after = self.n;
        }
        let record = self.record();
        let value = format!("{}#{}", self.queue, self.n);
        let asked = OpRequest::Write {
            table: SALES.into(),
            record,
            value: value.clone(),
            request_id: value.clone(),
            base: None,
        };
        let op = Op { queued: Some(place.clone()), insert: true, ..self.client.op(talk, asked) };
        self.client.world.set_busy(&self.client.name, true);
        self.open.push_back(QueueEntry { op, place, record, value, poison, sent: false });
    }

    /// A record that no other entry and no other device has.
    fn record(&self) -> i64 {
        let device = self.client.name.bytes().filter(u8::is_ascii_digit).fold(0, |n, c| n * 10 + i64::from(c - b'0'));
        device * 1_000_000 + self.made as i64
    }

    fn ask(&self, place: &QueuePlace, record: i64, value: &str) -> Value {
        json!({
            "device_id": self.client.name, "table_name": SALES, "record_id": record, "operation": "insert",
            "new_data": { "v": value, "r": value }, "request_id": value,
            "queue": place.queue, "n": place.n, "after": place.after,
        })
    }

    /// Sends the oldest open entries, in their order.
    async fn send(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let ask = |entry: &QueueEntry| {
            let mut ask = self.ask(&entry.place, entry.record, &entry.value);
            if entry.poison {
                ask["new_data"] = json!(POISON);
            }
            ask
        };
        let asks: Vec<Value> = self.open.iter().take(IN_FLIGHT).map(ask).collect();
        for (entry, ask) in self.open.iter_mut().zip(asks) {
            entry.op.tries += 1;
            entry.op.node = talk.told.node;
            entry.op.unregistered |= !talk.online;
            entry.sent = true;
            talk.link.send("data_update", &ask).await?;
        }
        Ok(())
    }

    /// Sends what is open and hears what became of it; what is not known then is sent again later.
    async fn flush(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        for entry in &mut self.open {
            entry.sent = false;
        }
        self.send(talk).await?;
        let ids: Vec<String> = self.open.iter().map(|entry| entry.value.clone()).collect();
        while self.open.iter().any(|entry| entry.sent) {
            let answers = |event: &ReceivedEvent| answered(event).is_some_and(|id| ids.iter().any(|open| open == id));
            let ClientAnswer::Event(event) = self.client.answer(talk, answers).await? else {
                return Err(ConnectionLost);
            };
            let id = answered(&event).unwrap_or_default();
            let Some(at) = self.open.iter().position(|entry| entry.sent && entry.value == id) else { continue };
            self.hear(at, &event);
        }
        if !self.open.is_empty() {
            let pause = self.client.rng.millis(1, 60);
            self.client.listen(talk, pause).await?;
            if self.client.rng.percent(30) {
                return Err(ConnectionLost);
            }
        }
        Ok(())
    }

    fn hear(&mut self, at: usize, event: &ReceivedEvent) {
        let entry = &mut self.open[at];
        entry.sent = false;
        entry.op.error = error(event);
        // One before it is still to be taken: it is sent again behind that one.
        if is_gap(event) {
            return;
        }
        match end(event) {
            AnswerEnd::Again { .. } => {}
            // The answer to a repeat from long ago does not say which change it is.
            AnswerEnd::Known(_) if event.name == "acknowledged" => self.done(at, event),
            AnswerEnd::Known(_) => self.give_up(at),
        }
    }

    fn done(&mut self, at: usize, event: &ReceivedEvent) {
        let Some(mut entry) = self.open.remove(at) else { return };
        entry.op.version = event.data["seq"].as_u64();
        entry.op.repeated = event.data["repeated"] == json!(true);
        self.client.finish(entry.op, OpOutcome::Ok);
        self.done.push((entry.place, entry.record, entry.value));
    }

    /// What it says is refused: the entry behind it follows the one before it.
    fn give_up(&mut self, at: usize) {
        let Some(entry) = self.open.remove(at) else { return };
        let QueuePlace { queue, n, after } = entry.place;
        for next in self.open.iter_mut().filter(|next| next.place.queue == queue && next.place.after == n) {
            next.place.after = after;
            next.op.queued = Some(next.place.clone());
        }
        if self.queue == queue && self.after == n {
            self.after = after;
        }
        self.client.finish(entry.op, OpOutcome::Failed);
    }

    /// Acknowledged entries once more, as a device sends them that was restored from a backup.
    async fn send_again(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if self.done.is_empty() {
            return Ok(());
        }
        // Long ago as often as lately.
        let oldest = self.client.rng.percent(50);
        let first = if oldest { 0 } else { self.done.len().saturating_sub(AGAIN) };
        let again: Vec<_> = self.done.iter().skip(first).take(AGAIN).cloned().collect();
        let mut waiting: VecDeque<(String, Op)> = VecDeque::new();
        for (place, record, value) in again {
            let QueuePlace { queue, n, .. } = place.clone();
            let mut ask = self.ask(&place, record, &value);
            let asked = if self.client.rng.percent(10) {
                let value = format!("other {value}");
                ask["new_data"] = json!({ "v": value, "r": ask["request_id"] });
                OpRequest::Reused { queue, n, value }
            } else {
                OpRequest::Repeat { queue, n, value: value.clone() }
            };
            let mut op = self.client.op(talk, asked);
            op.tries = 1;
            talk.link.send("data_update", &ask).await?;
            waiting.push_back((value, op));
        }
        while !waiting.is_empty() {
            let answers =
                |event: &ReceivedEvent| answered(event).is_some_and(|id| waiting.iter().any(|(open, _)| open == id));
            let ClientAnswer::Event(event) = self.client.answer(talk, answers).await? else {
                return Err(ConnectionLost);
            };
            let id = answered(&event).unwrap_or_default();
            let at = waiting.iter().position(|(open, _)| open == id).unwrap_or_default();
            let Some((_, mut op)) = waiting.remove(at) else { continue };
            op.version = event.data["seq"].as_u64();
            op.repeated = event.data["repeated"] == json!(true);
            op.error = error(&event);
            let outcome = match end(&event) {
                _ if event.name == "acknowledged" => OpOutcome::Ok,
                AnswerEnd::Again { .. } => OpOutcome::Unknown,
                AnswerEnd::Known(_) => OpOutcome::Failed,
            };
            self.client.finish(op, outcome);
        }
        Ok(())
    }

    /// An entry behind one that was lost before it was ever sent.
    async fn leave_a_gap(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let (n, after) = (self.n + 9, self.n + 8);
        let (queue, value) = (self.queue.clone(), format!("gap {}#{n} {}", self.queue, self.made));
        self.made += 1;
        let place = QueuePlace { queue: queue.clone(), n, after };
        let mut op = self.client.op(talk, OpRequest::Gap { queue, n, after, value: value.clone() });
        op.tries = 1;
        talk.link.send("data_update", &self.ask(&place, self.record(), &value)).await?;
        let answers = |event: &ReceivedEvent| answered(event) == Some(&*value);
        let ClientAnswer::Event(event) = self.client.answer(talk, answers).await? else { return Err(ConnectionLost) };
        op.version = event.data["seq"].as_u64();
        op.error = error(&event);
        let outcome = match end(&event) {
            _ if event.name == "acknowledged" => OpOutcome::Ok,
            _ if is_gap(&event) => OpOutcome::Failed,
            _ => OpOutcome::Unknown,
        };
        self.client.finish(op, outcome);
        Ok(())
    }
}

/// Refused because another entry has to come first.
fn is_gap(event: &ReceivedEvent) -> bool {
    event.name == "error" && event.data["field"] == json!("after")
}
