//! Reads and syncs.

use serde_json::json;

use super::{GUARDED, PLAIN, RECORDS, SimDevice};
use crate::clients::client::{ClientAnswer, KnownRecord, refuses};
use crate::clients::removals::SEASON;
use crate::clients::{ConnectionLost, ReceivedEvent};
use crate::history::{OpOutcome, OpRequest};
use crate::sim::SimTalk;

impl SimDevice {
    pub(super) async fn read(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
        let table = match self.client.rng.below(100) {
            0..=9 => SEASON,
            10..=72 => PLAIN,
            _ => GUARDED,
        };
        let record = self.client.rng.between(1, RECORDS) as i64;
        let mut op = self.client.op(talk, OpRequest::Read { table: table.into(), record });
        op.tries = 1;
        let ask = json!({ "device_id": self.client.name, "table_name": table, "record_id": record });
        talk.link.send("data_request", &ask);
        let is_it = |event: &ReceivedEvent| event.name == "data_response" || refuses(event, "data_request");
        match self.client.answer(talk, is_it).await? {
            ClientAnswer::Event(event) if event.name == "data_response" => {
                op.version = event.data["version"].as_u64();
                op.value = event.data["data"]["v"].as_str().map(str::to_owned);
                if let Some(seq) = op.version {
                    let known = KnownRecord { seq, value: op.value.clone().unwrap_or_default() };
                    self.client.known.insert((table.to_owned(), record), known);
                }
                self.client.finish(op, OpOutcome::Ok);
                Ok(())
            }
            // Its answer may still come, and would be taken for the next one's.
            ClientAnswer::Silence => Err(ConnectionLost),
            ClientAnswer::Event(_) => Ok(()),
        }
    }

    pub(super) async fn sync(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
        self.ask_for_sync(talk).await?;
        self.end_sync(talk).await
    }

    pub(super) async fn ask_for_sync(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
        let Some((epoch, at)) = self.cursor.clone() else { return Ok(()) };
        let after = match self.client.rng.below(10) {
            0..=1 => None,
            2..=5 => Some(0),
            _ => Some(at),
        };
        let mut ask = json!({ "device_id": self.client.name, "sync_type": "full" });
        if let Some(after) = after {
            ask["sync_type"] = json!("incremental");
            ask["cursor"] = json!(format!("{epoch}.{after}"));
        }
        self.client.begin_sync(talk, OpRequest::Sync { after }, ask).await
    }

    /// Takes the pages that are still to come, and says how far it came.
    pub(super) async fn end_sync(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
        while let Some(last) = self.client.next_page(talk).await? {
            if last {
                break;
            }
        }
        let Some(sync) = talk.sync.take().filter(|sync| sync.done == Some(true)) else { return Ok(()) };
        let cursor = sync.op.cursor;
        self.client.finish(sync.op, OpOutcome::Ok);
        let (Some(cursor), Some((epoch, at))) = (cursor, &mut self.cursor) else { return Ok(()) };
        let text = format!("{epoch}.{cursor}");
        if talk.online && self.client.rng.percent(30) {
            // Everything up to the sync's place was told before its last page.
            *at = cursor.max(*at);
        }
        let mut op = self.client.op(talk, OpRequest::SyncComplete { cursor });
        op.tries = 1;
        let mark = op.id;
        let ask = json!({ "device_id": self.client.name, "changes_count": mark, "cursor": text });
        talk.link.send("sync_complete", &ask);
        let is_it = |event: &ReceivedEvent| {
            (event.name == "sync_complete_ack" && event.data["changes_count"] == json!(mark))
                || refuses(event, "sync_complete")
        };
        let answer = self.client.answer(talk, is_it).await;
        let outcome = match &answer {
            Ok(ClientAnswer::Event(event)) if event.name == "sync_complete_ack" => OpOutcome::Ok,
            Ok(ClientAnswer::Event(event)) if event.data["retry"] != json!("same_request_id") => OpOutcome::Failed,
            _ => OpOutcome::Unknown,
        };
        self.client.finish(op, outcome);
        match answer? {
            ClientAnswer::Silence => Err(ConnectionLost),
            ClientAnswer::Event(_) => Ok(()),
        }
    }
}
