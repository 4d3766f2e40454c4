//! Reads and syncs.

use serde_json::json;

use super::{Answer, Device, GUARDED, Known, PLAIN, RECORDS, Talk, refuses, row};
use crate::history::{Asked, Outcome};
use crate::sim::link::{Event, Gone};

impl Device {
    pub(super) async fn read(&mut self, talk: &mut Talk) -> Result<(), Gone> {
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
                if let Some(seq) = op.version {
                    self.versions.insert((table.to_owned(), record), Known { seq, deleted: op.value.is_none() });
                }
                self.finish(op, Outcome::Ok);
                Ok(())
            }
            // Its answer may still come, and would be taken for the next one's.
            Answer::Silence => Err(Gone),
            Answer::Event(_) => Ok(()),
        }
    }

    pub(super) async fn sync(&mut self, talk: &mut Talk) -> Result<(), Gone> {
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
