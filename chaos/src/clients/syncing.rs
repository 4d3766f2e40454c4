//! Syncs: the pages as they come, and how far a device has come.

use serde_json::{Value, json};

use super::client::{ChaosClient, ClientAnswer, ClientTalk, cursor, refuses, row, time};
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed};
use crate::history::{Op, OpOutcome, OpRequest, PageTold, SessionTold, ShownChange};

/// A sync under way, and what came of it.
pub(crate) struct Sync {
    pub op: Op,
    pub sync_id: String,
    /// The time that its newest page carries.
    pub page_ms: u64,
    /// Pages came, and more will.
    pub more: bool,
    /// All pages came (true), or it failed.
    pub done: Option<bool>,
}

impl<T: Testbed> ChaosClient<T> {
    pub(super) fn page(&mut self, talk: &mut ClientTalk<T>, event: &ReceivedEvent) {
        let full = event.data["sync_type"] == json!("full");
        let number = event.data["page"].as_u64().unwrap_or(0);
        let more = event.data["has_more"] == json!(true);
        let changes = event.data["changes"].as_array().map_or(&[][..], |changes| changes);
        let rows: Vec<ShownChange> = changes.iter().map(|change| row(change, "data")).collect();
        let cursor = cursor(event).map(|(_, seq)| seq).filter(|_| !more);
        if full && number == 1 && self.replaces {
            self.known.clear();
        }
        let asked = talk.sync.as_ref().map_or(0, |sync| sync.op.invoked);
        for row in &rows {
            self.learn(row);
            self.show(talk, Some(asked), row);
        }
        if let Some(sync) = talk.sync.as_mut().filter(|sync| sync.done.is_none()) {
            if full {
                sync.op.asked = OpRequest::Sync { after: None };
            }
            // Changes were compacted while they were sent: it begins again with everything.
            if number == 1 {
                sync.op.pages.clear();
            }
            sync.op.pages.push(rows.clone());
            sync.op.cursor = cursor;
            sync.page_ms = time(&event.data["timestamp"]);
            sync.sync_id = event.data["sync_id"].as_str().unwrap_or_default().to_owned();
            sync.more = more;
            sync.done = (!more).then_some(true);
        }
        let at = talk.told.rows().count() as u64;
        talk.told.pages.push(PageTold { at, full, number, rows, cursor });
    }

    /// Asks for a sync; its pages are noted as they come.
    pub(crate) async fn begin_sync(
        &mut self,
        talk: &mut ClientTalk<T>,
        asked: OpRequest,
        mut ask: Value,
    ) -> Result<(), ConnectionLost> {
        let mut op = self.op(talk, asked);
        op.tries = 1;
        if let Some(tables) = self.world.tables() {
            ask["requested_tables"] = json!(tables);
        }
        talk.link.send("sync_request", &ask).await?;
        talk.sync = Some(Sync { op, sync_id: String::new(), page_ms: 0, more: false, done: None });
        Ok(())
    }

    /// Waits for the next page; true if it was the last one, `None` if the sync failed or nothing comes.
    pub(crate) async fn next_page(&mut self, talk: &mut ClientTalk<T>) -> Result<Option<bool>, ConnectionLost> {
        match talk.sync.as_ref().map(|sync| sync.done) {
            Some(None) => {}
            Some(Some(true)) => return Ok(Some(true)),
            _ => return Ok(None),
        }
        let is_it = |event: &ReceivedEvent| {
            matches!(event.name.as_str(), "sync_response" | "sync_error") || refuses(event, "sync_request")
        };
        match self.answer(talk, is_it).await? {
            ClientAnswer::Silence => Err(ConnectionLost),
            ClientAnswer::Event(_) => match talk.sync.as_ref().map(|sync| sync.done) {
                Some(Some(true)) => Ok(Some(true)),
                Some(None) => Ok(Some(false)),
                _ => Ok(None),
            },
        }
    }

    /// Says that a sync is done. What came of it, and the answer.
    pub(crate) async fn complete_sync(
        &mut self,
        talk: &mut ClientTalk<T>,
        cursor: u64,
        mut ask: Value,
    ) -> Result<(OpOutcome, ReceivedEvent), ConnectionLost> {
        let mut op = self.op(talk, OpRequest::SyncComplete { cursor });
        op.tries = 1;
        let mark = op.id;
        ask["changes_count"] = json!(mark);
        let answer = match talk.link.send("sync_complete", &ask).await {
            Ok(()) => self.answer(talk, |event| answers_completion(event, mark)).await,
            Err(ConnectionLost) => Err(ConnectionLost),
        };
        let outcome = match &answer {
            Ok(ClientAnswer::Event(event)) if event.name == "sync_complete_ack" => OpOutcome::Ok,
            Ok(ClientAnswer::Event(event)) if event.data["retry"] != json!("same_request_id") => OpOutcome::Failed,
            Ok(ClientAnswer::Event(_) | ClientAnswer::Silence) | Err(ConnectionLost) => OpOutcome::Unknown,
        };
        self.finish(op, outcome);
        match answer? {
            ClientAnswer::Silence => Err(ConnectionLost),
            ClientAnswer::Event(event) => Ok((outcome, event)),
        }
    }
}

/// The answer to a `sync_complete`; `mark` is the `changes_count` that it named.
pub(crate) fn answers_completion(event: &ReceivedEvent, mark: u64) -> bool {
    (event.name == "sync_complete_ack" && event.data["changes_count"] == json!(mark)) || refuses(event, "sync_complete")
}

/// How far a device that had everything up to `at` has come without a hole. `subscribed`: it hears of some changes only,
/// in order.
pub(crate) fn further(mut at: u64, told: &SessionTold, subscribed: bool) -> u64 {
    if told.late && told.position.is_some() {
        // What it missed comes in order, without changes of records whose newer state it was told already.
        at = told.told.iter().map(|row| row.seq).fold(at, u64::max);
    }
    let mut seqs: Vec<u64> = told.rows().map(|row| row.seq).collect();
    seqs.sort_unstable();
    for seq in seqs {
        if seq == at + 1 || (subscribed && seq > at) {
            at = seq;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_ends_what_a_device_has() {
        let rows = |seqs: &[u64]| seqs.iter().map(|seq| ShownChange { seq: *seq, ..ShownChange::default() }).collect();
        let told = SessionTold { early: rows(&[5]), told: rows(&[6, 4, 9]), ..SessionTold::default() };
        assert_eq!((further(3, &told, false), further(3, &told, true), further(1, &told, false)), (6, 9, 1));
        let late = SessionTold { late: true, position: Some(3), told: rows(&[4, 9]), ..SessionTold::default() };
        assert_eq!(further(3, &late, false), 9);
    }
}
