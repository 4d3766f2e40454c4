//! Reads and syncs.

use serde_json::json;

use super::{GUARDED, PLAIN, WorkloadDevice};
use crate::clients::client::{ClientTalk, KnownRecord};
use crate::clients::removals::SEASON;
use crate::clients::{ConnectionLost, Testbed};
use crate::history::{OpOutcome, OpRequest};

impl<T: Testbed> WorkloadDevice<T> {
    pub(super) async fn read(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let season = self.habits.writes.removed_table;
        let table = match self.client.rng.below(100) {
            drawn if drawn < season => SEASON,
            0..=72 => PLAIN,
            _ => GUARDED,
        };
        let record = self.client.rng.between(1, self.habits.records) as i64;
        let (op, event) = self.client.read(talk, table, record).await?;
        if event.name == "data_response" {
            if let Some(seq) = op.version {
                let known = KnownRecord { seq, value: op.value.clone().unwrap_or_default() };
                self.client.known.insert((table.to_owned(), record), known);
            }
            self.client.finish(op, OpOutcome::Ok);
        }
        Ok(())
    }

    pub(super) async fn sync(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        self.ask_for_sync(talk).await?;
        self.end_sync(talk).await
    }

    pub(super) async fn ask_for_sync(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let Some((epoch, at)) = self.cursor.clone() else { return Ok(()) };
        let habits = self.habits.syncs;
        let after = match self.client.rng.below(10) {
            drawn if drawn < habits.full => None,
            drawn if drawn < habits.full + habits.from_the_beginning => Some(0),
            _ if habits.before_the_cursor == 0 => Some(at),
            _ => Some(at.saturating_sub(self.client.rng.below(habits.before_the_cursor))),
        };
        let mut ask = json!({ "device_id": self.client.name, "sync_type": "full" });
        if let Some(after) = after {
            ask["sync_type"] = json!("incremental");
            ask["cursor"] = json!(format!("{epoch}.{after}"));
        }
        self.client.begin_sync(talk, OpRequest::Sync { after }, ask).await
    }

    /// Takes the pages that are still to come, and says how far it came.
    pub(super) async fn end_sync(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
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
        let ask = json!({ "device_id": self.client.name, "cursor": text });
        self.client.complete_sync(talk, cursor, ask).await.map(drop)
    }
}
