//! Devices that were never seen before: each one sends what it wrote while it was offline before it comes online, as
//! client libraries do that flush their buffer first. Nothing of that may be lost.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::answers::{AnswerEnd, answered, end, error};
use super::client::{ChaosClient, ClientAnswer, ClientTalk, Counters};
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::{Op, OpOutcome, OpRequest};
use crate::rng::Rng;

pub(crate) const FIRST: &str = "first_sales";
/// What a device wrote before anybody knew it.
const MOST: u64 = 6;

/// Newcomers of one line at most, so that their numbers are their own.
const LINE: u64 = 100_000;

/// One newcomer after the other.
pub(crate) async fn run<T: Testbed>(world: Arc<T>, counters: Arc<Counters>, line: u64, mut rng: Rng) {
    let mut number = (line - 1) * LINE;
    while *world.phase().borrow() == WorkloadPhase::Load {
        number += 1;
        let client = ChaosClient::new(world.clone(), counters.clone(), format!("new-{number}"), rng.fork());
        Newcomer { client, number, open: VecDeque::new() }.run().await;
        let pause = rng.millis(100, 1_500);
        sleep(pause).await;
    }
}

struct Newcomer<T> {
    client: ChaosClient<T>,
    number: u64,
    open: VecDeque<(Op, Value)>,
}

impl<T: Testbed> Newcomer<T> {
    /// Until all that it wrote was taken, or the run ends.
    async fn run(mut self) {
        let (world, name) = (self.client.world.clone(), self.client.name.clone());
        world.set_busy(&name, true);
        self.write_until_taken().await;
        world.set_busy(&name, false);
    }

    async fn write_until_taken(&mut self) {
        let (count, mut wrote) = (self.client.rng.between(1, MOST), false);
        while self.client.phase() != WorkloadPhase::End && (!self.open.is_empty() || !wrote) {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            if !std::mem::replace(&mut wrote, true) {
                self.open = (1..=count).map(|n| self.new_sale(&talk, n)).collect();
            }
            let done = self.talk(&mut talk).await;
            self.client.disconnect(talk, false);
            if done.is_ok() {
                return;
            }
            let pause = self.client.rng.millis(0, 60);
            sleep(pause).await;
        }
        for (op, _) in std::mem::take(&mut self.open) {
            self.client.finish(op, OpOutcome::Unknown);
        }
    }

    fn new_sale(&self, talk: &ClientTalk<T>, n: u64) -> (Op, Value) {
        let (record, value) = ((self.number * 100 + n) as i64, format!("{}-{n}", self.client.name));
        let ask = json!({
            "device_id": self.client.name, "table_name": FIRST, "record_id": record, "operation": "insert",
            "new_data": { "v": value, "r": value }, "request_id": value,
        });
        let asked = OpRequest::Write { table: FIRST.into(), record, request_id: value.clone(), value, base: None };
        (Op { unregistered: true, insert: true, ..self.client.op(talk, asked) }, ask)
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        self.send(talk).await?;
        if self.client.rng.percent(50) {
            self.hear(talk).await?;
        }
        if !self.client.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        // What was refused before may be taken now.
        for _ in 0..20 {
            if self.open.is_empty() {
                return Ok(());
            }
            self.send(talk).await?;
            self.hear(talk).await?;
            let pause = self.client.rng.millis(1, 40);
            self.client.listen(talk, pause).await?;
        }
        Err(ConnectionLost)
    }

    async fn send(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        for (op, ask) in &mut self.open {
            op.tries += 1;
            op.node = talk.told.node;
            talk.link.send("data_update", ask).await?;
        }
        Ok(())
    }

    /// One answer to each of them.
    async fn hear(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        for _ in 0..self.open.len() {
            let ids: Vec<Value> = self.open.iter().map(|(_, ask)| ask["request_id"].clone()).collect();
            let answers = |event: &ReceivedEvent| answered(event).is_some_and(|id| ids.iter().any(|open| open == id));
            let ClientAnswer::Event(event) = self.client.answer(talk, answers).await? else {
                return Err(ConnectionLost);
            };
            let id = answered(&event).unwrap_or_default();
            let at = self.open.iter().position(|(_, ask)| ask["request_id"] == json!(id)).unwrap_or_default();
            let ends = match end(&event) {
                AnswerEnd::Known(outcome) => Some(outcome),
                AnswerEnd::Again { .. } => None,
            };
            if let Some((op, _)) = self.open.get_mut(at) {
                op.error = error(&event);
                op.version = event.data["seq"].as_u64().filter(|_| ends == Some(OpOutcome::Ok));
            }
            if let Some(outcome) = ends
                && let Some((op, _)) = self.open.remove(at)
            {
                self.client.finish(op, outcome);
            }
        }
        Ok(())
    }
}
