//! Changes: up to a few in flight at once, sent again until their end is known.

use serde_json::{Value, json};

use super::{GUARDED, PLAIN, RECEIPTS, WorkloadDevice};
use crate::clients::answers::{AnswerEnd, answered, end, error, tells_of_all};
use crate::clients::client::{ClientAnswer, ClientTalk};
use crate::clients::removals::SEASON;
use crate::clients::{Connection, ConnectionLost, ReceivedEvent, Testbed};
use crate::history::{Op, OpOutcome, OpRequest};

/// Tries of one operation.
const TRIES: u32 = 6;
/// Writes in flight at once, at most.
const IN_FLIGHT: u64 = 5;

/// A write whose end is not known.
pub(super) struct UnsettledWrite {
    op: Op,
    /// What is sent.
    ask: Value,
    request_id: String,
    /// An earlier try may have been applied.
    unsure: bool,
    /// Sent in this round, and not answered yet.
    sent: bool,
}

impl<T: Testbed> WorkloadDevice<T> {
    /// One write, or several that are sent without waiting for each other.
    pub(super) fn new_writes(&mut self, talk: &ClientTalk<T>) {
        let count = if self.client.rng.percent(25) { self.client.rng.between(2, IN_FLIGHT) } else { 1 };
        for _ in 0..count {
            let open = self.new_write(talk);
            self.open.push_back(open);
        }
    }

    fn new_write(&mut self, talk: &ClientTalk<T>) -> UnsettledWrite {
        let habits = self.habits.writes;
        if self.client.rng.percent(habits.inserts) {
            return self.new_receipt(talk);
        }
        self.written += 1;
        let guarded = self.client.rng.percent(habits.conditional);
        let table = match self.client.rng.below(100) {
            _ if guarded => GUARDED,
            drawn if drawn < habits.removed_table => SEASON,
            _ => PLAIN,
        };
        let record = self.client.rng.between(1, self.habits.records) as i64;
        let known = self.client.known.get(&(table.into(), record)).cloned();
        let base = guarded.then_some(known.as_ref().map_or(0, |known| known.seq));
        let request_id = format!("r{}", self.written);
        let deletes = self.client.rng.percent(habits.deletes);
        let mut ask = json!({
            "device_id": self.client.name, "table_name": table, "record_id": record, "request_id": request_id,
        });
        if let Some(base) = base {
            ask["base_version"] = json!(base);
        }
        let table = table.to_owned();
        let asked = if deletes {
            ask["operation"] = json!("delete");
            OpRequest::Delete { table, record, request_id: request_id.clone(), base }
        } else {
            let value = format!("{}-{}", self.client.name, self.written);
            // What was deleted is made anew.
            let gone = habits.deletes > 0 && known.is_none_or(|known| known.value.is_empty());
            ask["operation"] = json!(if gone { "insert" } else { "update" });
            ask["new_data"] = self.data(&value, &request_id);
            OpRequest::Write { table, record, value, request_id: request_id.clone(), base }
        };
        UnsettledWrite { op: self.client.op(talk, asked), ask, request_id, unsure: false, sent: false }
    }

    /// Two devices draw the same number: what each of them wrote has to stay.
    pub(super) fn new_receipt(&mut self, talk: &ClientTalk<T>) -> UnsettledWrite {
        (self.written, self.receipts) = (self.written + 1, self.receipts + 1);
        let (record, value) = (self.receipts, format!("{}-{}", self.client.name, self.written));
        let request_id = format!("r{}", self.written);
        let ask = json!({
            "device_id": self.client.name, "table_name": RECEIPTS, "record_id": record, "request_id": request_id,
            "operation": "insert", "new_data": self.data(&value, &request_id),
        });
        let asked =
            OpRequest::Write { table: RECEIPTS.into(), record, value, request_id: request_id.clone(), base: None };
        let op = Op { insert: true, ..self.client.op(talk, asked) };
        UnsettledWrite { op, ask, request_id, unsure: false, sent: false }
    }

    fn data(&self, value: &str, request_id: &str) -> Value {
        let mut data = json!({ "v": value });
        if self.habits.writes.name_the_request {
            data["r"] = json!(request_id);
        }
        data
    }

    /// Sends what is open, in its order, and hears what became of it.
    pub(super) async fn write(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let before: Vec<bool> = self.open.iter().map(|open| open.unsure).collect();
        for open in &mut self.open {
            open.op.tries += 1;
            open.op.node = talk.told.node;
            // Until it is answered it may have been applied.
            (open.unsure, open.sent) = (true, true);
            talk.link.send("data_update", &open.ask).await?;
        }
        let ids: Vec<String> = self.open.iter().map(|open| open.request_id.clone()).collect();
        while self.open.iter().any(|open| open.sent) {
            let answers = |event: &ReceivedEvent| answered(event).is_some_and(|id| ids.iter().any(|open| open == id));
            let ClientAnswer::Event(event) = self.client.answer(talk, answers).await? else { break };
            let id = answered(&event).unwrap_or_default();
            let Some(at) = self.open.iter().position(|open| open.sent && open.request_id == id) else { continue };
            let was_unsure = ids.iter().position(|sent| sent == id).is_some_and(|at| before[at]);
            match end(&event) {
                AnswerEnd::Known(outcome) => {
                    let Some(mut open) = self.open.remove(at) else { continue };
                    open.op.version = event.data["seq"].as_u64().filter(|_| outcome == OpOutcome::Ok);
                    open.op.error = error(&event);
                    open.op.conflict = event.data["conflict_id"].as_u64();
                    // What is refused now may have been applied before, but for an answer that tells of every try.
                    let doubt = outcome == OpOutcome::Failed && was_unsure && !tells_of_all(&event);
                    self.client.finish(open.op, if doubt { OpOutcome::Unknown } else { outcome });
                }
                AnswerEnd::Again { sure } => {
                    let open = &mut self.open[at];
                    (open.sent, open.unsure, open.op.error) = (false, was_unsure || !sure, error(&event));
                    // Who is told that nothing was written may leave it at that.
                    if (sure && self.client.rng.percent(40))
                        && let Some(open) = self.open.remove(at)
                    {
                        self.give_up(open);
                    }
                }
            }
        }
        for open in std::mem::take(&mut self.open) {
            if open.op.tries >= TRIES {
                self.give_up(open);
            } else {
                self.open.push_back(open);
            }
        }
        if self.open.is_empty() {
            return Ok(());
        }
        let pause = self.client.rng.millis(1, 60);
        self.client.listen(talk, pause).await?;
        // Now and then it looks for another node.
        if self.client.rng.percent(50) { Err(ConnectionLost) } else { Ok(()) }
    }

    pub(super) fn give_up(&mut self, open: UnsettledWrite) {
        let outcome = if open.unsure { OpOutcome::Unknown } else { OpOutcome::Failed };
        self.client.finish(open.op, outcome);
    }
}
