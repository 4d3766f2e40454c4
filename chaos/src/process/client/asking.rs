//! What a client asks: writes, reads, syncs, and the role.

use std::sync::atomic::Ordering;

use serde_json::json;
use tillsync::client::frame::ReceivedEvent;

use super::{GUARDED, LinkLost, PLAIN, ProcessAnswer, ProcessClient, ProcessTalk, RECEIPTS, TRIES, refuses, row};
use crate::history::{Op, OpOutcome, OpRequest, PageTold};

impl ProcessClient {
    fn op(&self, talk: &ProcessTalk, asked: OpRequest) -> Op {
        let id = self.counters.ops.fetch_add(1, Ordering::SeqCst) + 1;
        Op::new(id, &self.name, (talk.told.session, talk.told.node), asked, self.world.recorder.now())
    }

    fn finish(&self, mut op: Op, outcome: OpOutcome) {
        (op.returned, op.returned_us) = self.world.recorder.now();
        op.outcome = outcome;
        self.world.recorder.op(op);
    }

    pub(super) fn give_up(&mut self, op: Op) {
        let outcome = if self.unsure { OpOutcome::Unknown } else { OpOutcome::Failed };
        self.unsure = false;
        self.finish(op, outcome);
    }

    pub(super) fn new_write(&mut self, talk: &ProcessTalk) -> Op {
        let guarded = self.rng.percent(self.world.load.conditional_percent);
        let table = if guarded { GUARDED } else { PLAIN };
        let record = self.rng.between(1, self.world.load.records) as i64;
        let base = guarded.then(|| self.versions.get(&(table.into(), record)).copied().unwrap_or(0));
        self.written += 1;
        let value = format!("{}-{}", self.name, self.written);
        self.unsure = false;
        let request_id = format!("r{}", self.written);
        self.op(talk, OpRequest::Write { table: table.into(), record, value, request_id, base })
    }

    /// Two clients draw the same number: what each of them wrote has to stay.
    pub(super) fn new_insert(&mut self, talk: &ProcessTalk) -> Op {
        (self.written, self.inserted, self.unsure) = (self.written + 1, self.inserted + 1, false);
        let (value, request_id) = (format!("{}-{}", self.name, self.written), format!("r{}", self.written));
        let asked = OpRequest::Write { table: RECEIPTS.into(), record: self.inserted, value, request_id, base: None };
        Op { insert: true, ..self.op(talk, asked) }
    }

    pub(super) async fn write(&mut self, talk: &mut ProcessTalk, mut op: Op) -> Result<(), LinkLost> {
        let OpRequest::Write { table, record, value, request_id, base } = op.asked.clone() else { return Ok(()) };
        op.tries += 1;
        op.node = talk.told.node;
        // The request's name travels in the data as well: the change feed does not give it.
        let mut ask = json!({
            "device_id": self.name, "table_name": table, "record_id": record,
            "operation": if op.insert { "insert" } else { "update" },
            "new_data": { "v": value, "r": request_id }, "request_id": request_id,
        });
        if let Some(base) = base {
            ask["base_version"] = json!(base);
        }
        let id = json!(request_id);
        let is_it = |event: &ReceivedEvent| {
            (event.name == "acknowledged" && event.data["request_id"] == id)
                || (refuses(event, "data_update")
                    && (event.data["request_id"].is_null() || event.data["request_id"] == id))
        };
        // Until it is answered it is to be sent again.
        self.open = Some(op);
        let was_unsure = std::mem::replace(&mut self.unsure, true);
        self.send(talk, "data_update", &ask).await?;
        let answer = self.answer(talk, is_it).await?;
        let Some(mut op) = self.open.take() else { return Ok(()) };
        let (again, sure) = match answer {
            ProcessAnswer::Silence => (true, false),
            ProcessAnswer::Event(event) if event.name == "acknowledged" => {
                (op.version, op.conflict) = (event.number("seq"), event.number("conflict_id"));
                self.unsure = false;
                let outcome = if op.version.is_some() { OpOutcome::Ok } else { OpOutcome::Failed };
                self.finish(op, outcome);
                return Ok(());
            }
            ProcessAnswer::Event(event) => {
                op.error = format!("{} {}", event.data["error_code"], event.data["error"]);
                op.conflict = event.number("conflict_id");
                // A conflict is an answer that repeats get as well: it tells of every try.
                if event.data["error_code"] == json!("2002") {
                    self.unsure = false;
                    self.finish(op, OpOutcome::Failed);
                    return Ok(());
                }
                match event.text("retry") {
                    Some("safe") => (true, true),
                    Some("same_request_id") => (true, false),
                    _ => (false, true),
                }
            }
        };
        self.unsure = was_unsure || !sure;
        if !again || op.tries >= TRIES {
            self.give_up(op);
            // A late answer to it would be taken for the next one's.
            return Err(LinkLost);
        }
        self.open = Some(op);
        let pause = self.rng.millis(1, 60);
        self.listen(talk, pause).await?;
        // Now and then it looks for another node.
        if self.rng.percent(50) { Err(LinkLost) } else { Ok(()) }
    }

    pub(super) async fn read(&mut self, talk: &mut ProcessTalk) -> Result<(), LinkLost> {
        let table = if self.rng.percent(70) { PLAIN } else { GUARDED };
        let record = self.rng.between(1, self.world.load.records) as i64;
        let mut op = self.op(talk, OpRequest::Read { table: table.into(), record });
        op.tries = 1;
        let ask = json!({ "device_id": self.name, "table_name": table, "record_id": record });
        self.send(talk, "data_request", &ask).await?;
        let is_it = |event: &ReceivedEvent| event.name == "data_response" || refuses(event, "data_request");
        match self.answer(talk, is_it).await? {
            ProcessAnswer::Event(event) if event.name == "data_response" => {
                op.version = event.number("version");
                op.value = event.data["data"]["v"].as_str().map(str::to_owned);
                if let Some(version) = op.version {
                    self.versions.insert((table.to_owned(), record), version);
                }
                self.finish(op, OpOutcome::Ok);
                Ok(())
            }
            // Its answer may still come, and would be taken for the next one's.
            ProcessAnswer::Silence => Err(LinkLost),
            ProcessAnswer::Event(_) => Ok(()),
        }
    }

    /// An order by hand: it moves the role whatever the priorities.
    pub(super) async fn claim_the_role(&mut self, talk: &mut ProcessTalk) -> Result<(), LinkLost> {
        let ask = json!({ "device_id": self.name, "new_role": "master", "reason": "drill" });
        self.send(talk, "role_change", &ask).await?;
        let is_it = |event: &ReceivedEvent| event.name == "role_change_ack" || refuses(event, "role_change");
        match self.answer(talk, is_it).await? {
            ProcessAnswer::Event(_) => Ok(()),
            ProcessAnswer::Silence => Err(LinkLost),
        }
    }

    pub(super) async fn sync(&mut self, talk: &mut ProcessTalk) -> Result<(), LinkLost> {
        let Some((epoch, at)) = self.cursor.clone() else { return Ok(()) };
        let after = match self.rng.below(10) {
            0..=2 => None,
            // From the beginning now and then: several pages.
            3 => Some(0),
            _ => Some(at.saturating_sub(self.rng.below(700))),
        };
        let mut op = self.op(talk, OpRequest::Sync { after });
        op.tries = 1;
        let mut ask = json!({ "device_id": self.name, "sync_type": "full" });
        if let Some(tables) = self.world.tables {
            ask["requested_tables"] = json!(tables);
        }
        if let Some(after) = after {
            ask["sync_type"] = json!("incremental");
            ask["cursor"] = json!(format!("{epoch}.{after}"));
        }
        self.send(talk, "sync_request", &ask).await?;
        loop {
            let answer = self.answer(talk, |event| {
                matches!(event.name.as_str(), "sync_response" | "sync_error") || refuses(event, "sync_request")
            });
            let ProcessAnswer::Event(event) = answer.await? else { return Err(LinkLost) };
            if event.name != "sync_response" {
                return Ok(());
            }
            if after.is_some() && event.data["sync_type"] == json!("full") {
                op.asked = OpRequest::Sync { after: None };
            }
            // Changes were compacted while they were sent: it begins again with everything.
            if event.data["page"] == json!(1) {
                op.pages.clear();
            }
            let changes = event.data["changes"].as_array().map_or(&[][..], |changes| changes);
            let rows: Vec<_> = changes.iter().map(|change| row(change, "data")).collect();
            let last = event.data["has_more"] == json!(false);
            let cursor = event.text("cursor").and_then(|text| text.split_once('.')?.1.parse().ok()).filter(|_| last);
            op.pages.push(rows.clone());
            let (at, number) = (talk.told.rows().count() as u64, event.number("page").unwrap_or(0));
            let full = event.data["sync_type"] == json!("full");
            talk.told.pages.push(PageTold { at, full, number, rows, cursor });
            if last {
                op.cursor = cursor;
                break;
            }
        }
        let cursor = op.cursor;
        self.finish(op, OpOutcome::Ok);
        match cursor {
            Some(cursor) => self.sync_complete(talk, &epoch, cursor).await,
            None => Ok(()),
        }
    }

    async fn sync_complete(&mut self, talk: &mut ProcessTalk, epoch: &str, cursor: u64) -> Result<(), LinkLost> {
        let mut op = self.op(talk, OpRequest::SyncComplete { cursor });
        op.tries = 1;
        let mark = op.id;
        let ask = json!({ "device_id": self.name, "changes_count": mark, "cursor": format!("{epoch}.{cursor}") });
        let is_it = |event: &ReceivedEvent| {
            (event.name == "sync_complete_ack" && event.data["changes_count"] == json!(mark))
                || refuses(event, "sync_complete")
        };
        let answer = match self.send(talk, "sync_complete", &ask).await {
            Ok(()) => self.answer(talk, is_it).await,
            Err(LinkLost) => Err(LinkLost),
        };
        let outcome = match &answer {
            Ok(ProcessAnswer::Event(event)) if event.name == "sync_complete_ack" => OpOutcome::Ok,
            Ok(ProcessAnswer::Event(event)) if event.data["retry"] != json!("same_request_id") => OpOutcome::Failed,
            _ => OpOutcome::Unknown,
        };
        self.finish(op, outcome);
        match answer? {
            ProcessAnswer::Silence => Err(LinkLost),
            ProcessAnswer::Event(_) => Ok(()),
        }
    }
}
