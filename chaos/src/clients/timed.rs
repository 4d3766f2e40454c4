//! A device of a program that knows the documented API only: it keeps no cursor, asks for what changed since a time that
//! the server gave it, and applies whatever comes in the order in which it comes.
//!
//! Sometimes it leaves in the middle of a sync, says too early that it is done, or takes its time over a page.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tillsync::ids::UnixMs;
use tillsync::model::time::iso;
use tokio::time::{Instant, sleep};

use super::client::{ChaosClient, ClientAnswer, ClientTalk, Counters, refuses, time};
use super::syncing::answers_completion;
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::{OpOutcome, OpRequest, Store};
use crate::rng::Rng;

/// Records that are so large that a full sync takes several pages; all such devices write them.
pub(crate) const LARGE: &str = "pictures";
const LARGE_RECORDS: i64 = 6;
const LARGE_BYTES: usize = 220 << 10;
/// A time that is never reached: the clock of the device is wrong.
const NEVER_MS: u64 = 4_000_000_000_000;
/// For the last sync, when nothing fails any more.
const CALM: Duration = Duration::from_secs(8);

pub(crate) struct TimedClient<T> {
    client: ChaosClient<T>,
    /// The last time that the server gave it, Unix milliseconds.
    since_ms: Option<u64>,
    /// The cursor of the sync whose last page gave that time.
    since_page: Option<u64>,
    written: u64,
}

impl<T: Testbed> TimedClient<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let mut client = ChaosClient::new(world, counters, name, rng);
        client.replaces = true;
        Self { client, since_ms: None, since_page: None, written: 0 }
    }

    pub(crate) async fn run(mut self) {
        let mut judged = false;
        self.client.world.set_busy(&self.client.name, true);
        while self.client.phase() != WorkloadPhase::End {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let ended = self.talk(&mut talk).await;
            let live = ended.is_ok() && self.client.phase() == WorkloadPhase::End;
            if live {
                judged = true;
                let (device, session) = (self.client.name.clone(), talk.told.session);
                let records = self.client.held();
                self.client.world.recorder().store(Store { device, session, records });
            }
            self.client.disconnect(talk, live);
            if self.client.phase() == WorkloadPhase::Load {
                let pause = self.client.rng.millis(0, 600);
                sleep(pause).await;
            }
        }
        if !judged {
            let what = format!("{} could not sync after everything had healed", self.client.name);
            self.client.world.recorder().anomaly(what);
        }
    }

    /// Ends in order only when everything has healed and its last sync is complete.
    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if !self.client.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        // Until its last sync is complete.
        self.client.world.set_busy(&self.client.name, true);
        loop {
            let calm = self.client.phase() != WorkloadPhase::Load;
            if self.client.phase() == WorkloadPhase::End {
                return Err(ConnectionLost);
            }
            let complete = self.sync(talk, calm).await?;
            if calm && complete {
                self.client.world.set_busy(&self.client.name, false);
                let until = Instant::now() + CALM * 4;
                while self.client.phase() != WorkloadPhase::End && Instant::now() < until {
                    self.client.listen(talk, Duration::from_millis(50)).await?;
                }
                return if self.client.phase() == WorkloadPhase::End { Ok(()) } else { Err(ConnectionLost) };
            }
            for _ in 0..self.client.rng.between(1, 4) {
                if !calm && self.client.rng.percent(self.client.world.large_percent()) {
                    self.write(talk).await?;
                }
                let during = self.client.rng.millis(20, 150);
                self.client.listen(talk, during).await?;
            }
            if !calm && self.client.rng.percent(40) {
                return Err(ConnectionLost);
            }
        }
    }

    /// True if it is complete.
    async fn sync(&mut self, talk: &mut ClientTalk<T>, calm: bool) -> Result<bool, ConnectionLost> {
        let mut ask = json!({ "device_id": self.client.name, "sync_type": "full" });
        let mut asked = OpRequest::Sync { after: None };
        // Now and then it asks for everything again.
        let anew = !calm && self.client.rng.percent(12);
        if let Some(since_ms) = self.since_ms.filter(|_| !anew) {
            let never = !calm && self.client.rng.percent(6);
            let (since_ms, after) = if never { (NEVER_MS, None) } else { (since_ms, self.since_page) };
            asked = OpRequest::SyncSince { since_ms, after };
            ask["sync_type"] = json!("incremental");
            ask["last_sync_timestamp"] = json!(iso(UnixMs(since_ms)));
        }
        self.client.begin_sync(talk, asked, ask).await?;
        loop {
            let Some(last) = self.client.next_page(talk).await? else { return Ok(false) };
            if !calm && self.client.rng.percent(30) {
                // Each page carries a time; a program may keep it at once.
                self.since_ms = talk.sync.as_ref().map(|sync| sync.page_ms);
                self.since_page = talk.sync.as_ref().filter(|_| last).and_then(|sync| sync.op.cursor);
            }
            if last {
                break;
            }
            if calm {
                continue;
            }
            match self.client.rng.below(10) {
                0 => return Err(ConnectionLost),
                1 | 2 => self.complete_early(talk).await?,
                // What others write meanwhile is not of this sync.
                3..=6 => {
                    let pause = self.client.rng.millis(5, 60);
                    sleep(pause).await;
                }
                _ => {}
            }
        }
        let Some(sync) = talk.sync.take() else { return Ok(false) };
        let (cursor, page_ms, sync_id) = (sync.op.cursor.unwrap_or(0), sync.page_ms, sync.sync_id);
        self.client.finish(sync.op, OpOutcome::Ok);
        if !calm && self.client.rng.percent(25) {
            // It leaves without a word. It has everything, or asks again.
            if self.client.rng.percent(50) {
                (self.since_ms, self.since_page) = (Some(page_ms), Some(cursor));
            }
            return Err(ConnectionLost);
        }
        let ask = json!({ "device_id": self.client.name, "sync_id": sync_id, "sync_timestamp": iso(UnixMs(page_ms)) });
        let (outcome, event) = self.client.complete_sync(talk, cursor, ask).await?;
        if outcome != OpOutcome::Ok {
            return Ok(false);
        }
        self.since_page = None;
        self.since_ms = match self.client.rng.below(3) {
            0 => {
                self.since_page = Some(cursor);
                Some(page_ms)
            }
            1 => Some(time(&event.data["timestamp"])),
            _ => {
                let known = self.client.world.last_sync_ms(talk.node.clone(), self.client.name.clone()).await;
                known.or(Some(page_ms))
            }
        };
        Ok(true)
    }

    /// It says that it is done while pages are still to come.
    async fn complete_early(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        // The next page is not made before this one was taken, so the server has not sent the last one either.
        let under_way = talk.sync.as_ref().filter(|sync| T::PAGES_WAIT && sync.done.is_none());
        let Some(sync_id) = under_way.map(|sync| sync.sync_id.clone()) else { return Ok(()) };
        let mut op = self.client.op(talk, OpRequest::CompleteEarly);
        op.tries = 1;
        let mark = op.id;
        let ask = json!({ "device_id": self.client.name, "changes_count": mark, "sync_id": sync_id });
        talk.link.send("sync_complete", &ask).await?;
        let is_it = |event: &ReceivedEvent| answers_completion(event, mark);
        if let ClientAnswer::Event(event) = self.client.answer(talk, is_it).await? {
            op.error = format!("{} {}", event.data["error_code"].as_str().unwrap_or_default(), event.data["error"]);
            let acknowledged = event.name == "sync_complete_ack";
            self.client.finish(op, if acknowledged { OpOutcome::Ok } else { OpOutcome::Failed });
        }
        Ok(())
    }

    /// One large record; whoever syncs meanwhile has to get it as it was when the sync began, or afterwards.
    async fn write(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        self.written += 1;
        let record = self.client.rng.between(1, LARGE_RECORDS as u64) as i64;
        let (value, request_id) = (format!("{}-{}", self.client.name, self.written), format!("r{}", self.written));
        let ask = json!({
            "device_id": self.client.name, "table_name": LARGE, "record_id": record, "operation": "update",
            "new_data": { "v": value, "r": request_id, "pad": "x".repeat(LARGE_BYTES) }, "request_id": request_id,
        });
        let table = LARGE.to_owned();
        let asked = OpRequest::Write { table, record, value, request_id: request_id.clone(), base: None };
        let mut op = self.client.op(talk, asked);
        op.tries = 1;
        let is_it = |event: &ReceivedEvent| {
            event.data["request_id"] == json!(request_id)
                && (event.name == "acknowledged" || refuses(event, "data_update"))
        };
        let answer = match talk.link.send("data_update", &ask).await {
            Ok(()) => self.client.answer(talk, is_it).await,
            Err(ConnectionLost) => Err(ConnectionLost),
        };
        // It does not send again: what was not acknowledged may be there or not.
        let outcome = match &answer {
            Ok(ClientAnswer::Event(event)) if event.name == "acknowledged" => {
                op.version = event.data["seq"].as_u64();
                if op.version.is_some() { OpOutcome::Ok } else { OpOutcome::Failed }
            }
            Ok(ClientAnswer::Event(event)) if event.data["retry"] != json!("same_request_id") => OpOutcome::Failed,
            _ => OpOutcome::Unknown,
        };
        self.client.finish(op, outcome);
        answer.map(|_| ())
    }
}
