//! A table that is removed again and again while devices fill it, read it and keep a copy of it: a buyer orders it gone at
//! any node, now and then two of them at once or one who may not, and the next write makes the table anew.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tillsync::token::Class;
use tokio::time::sleep;

use super::client::{ChaosClient, ClientAnswer, ClientTalk, Counters, cursor};
use super::desk::{order, request};
use super::rights::{Task, read, write};
use super::syncing::further;
use super::{Connection, ConnectionLost, Testbed, WorkloadPhase};
use crate::history::{OpOutcome, OpRequest, Ordered, Store};
use crate::rng::Rng;

/// The table that is removed.
pub(crate) const SEASON: &str = "season";
/// Its records: more than one step of a removal deletes.
pub(crate) const RECORDS: u64 = 96;
/// A copy that knows fewer is filled up with several writes in a row.
const FULL: usize = 80;
const BURST: u64 = 12;
const PAUSE: Duration = Duration::from_millis(150);

/// Orders the table gone as long as there is load, and goes on until no removal is left half done.
pub(crate) async fn remove_tables<T: Testbed>(world: Arc<T>, mut rng: Rng) {
    let phase = world.phase();
    let (mut orders, mut in_doubt) = (0, false);
    loop {
        let now = *phase.borrow();
        let pause = match now {
            WorkloadPhase::Load => rng.millis(500, 2_400),
            WorkloadPhase::Listen if in_doubt => PAUSE,
            _ => return,
        };
        sleep(pause).await;
        orders += 1;
        let name = format!("buyer-{orders}");
        in_doubt = match rng.below(100) {
            0..=9 => {
                // It is refused: nothing is in doubt that was not before.
                remove(&world, &mut rng, &format!("assistant-{orders}"), Class::SalesAssistant).await;
                in_doubt
            }
            10..=34 => {
                let (mut one, mut other) = (rng.fork(), rng.fork());
                let name_of_other = format!("rival-{orders}");
                let both = tokio::join!(
                    remove(&world, &mut one, &name, Class::Admin),
                    remove(&world, &mut other, &name_of_other, Class::Manager),
                );
                both.0 == OpOutcome::Unknown || both.1 == OpOutcome::Unknown
            }
            // What was begun and is not known to have ended may as well be left to the cluster for a while.
            _ => remove(&world, &mut rng, &name, Class::Manager).await == OpOutcome::Unknown,
        };
    }
}

/// One order, by this name. Where the answer says that there is more to remove, what becomes of it is not known.
async fn remove<T: Testbed>(world: &Arc<T>, rng: &mut Rng, by: &str, class: Class) -> OpOutcome {
    let nodes = world.nodes();
    let (Some(node), Some(token)) = (rng.pick(&nodes).cloned(), world.token(by, class)) else {
        return OpOutcome::Failed;
    };
    let privileged = matches!(class, Class::Admin | Class::Manager);
    let ordered = Ordered::RemoveTable { table: SEASON.into(), by: by.into(), privileged };
    let (mut order, body) =
        order(world, node, &token, ordered, request("DELETE", format!("/data/{SEASON}"), None)).await;
    if order.outcome == OpOutcome::Ok && body["removed"] != json!(true) {
        (order.outcome, order.returned, order.returned_us) = (OpOutcome::Unknown, u64::MAX, u64::MAX);
    }
    let outcome = order.outcome;
    world.recorder().order(order);
    outcome
}

/// A device that fills the table, and keeps a copy of everything with a cursor: it resumes, syncs after its cursor, or
/// begins anew with a full sync, often after it was away over a removal.
pub(crate) struct Keeper<T: Testbed> {
    client: ChaosClient<T>,
    /// The cursor's epoch, and the seq up to which its copy holds everything. `None`: it has to begin anew.
    cursor: Option<(String, u64)>,
    /// The epoch of the session's cursors.
    epoch: String,
    written: u64,
    /// A write was taken after the load: the table is there at the end.
    made_anew: bool,
}

impl<T: Testbed> Keeper<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let mut client = ChaosClient::new(world, counters, name, rng);
        client.replaces = true;
        Self { client, cursor: None, epoch: String::new(), written: 0, made_anew: false }
    }

    pub(crate) async fn run(mut self) {
        let mut judged = false;
        self.client.world.set_busy(&self.client.name, true);
        while self.client.phase() != WorkloadPhase::End {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let ended = self.talk(&mut talk).await;
            if talk.cursor_refused {
                (self.cursor, talk.told.resumed) = (None, None);
            }
            self.advance(&talk);
            let live = ended.is_ok() && self.client.phase() == WorkloadPhase::End;
            if live {
                judged = true;
                let (device, session) = (self.client.name.clone(), talk.told.session);
                self.client.world.recorder().store(Store { device, session, records: self.client.held() });
            }
            self.client.disconnect(talk, live);
            if self.client.phase() == WorkloadPhase::Load {
                let most = if self.client.rng.percent(35) { 2_500 } else { 80 };
                let pause = self.client.rng.millis(0, most);
                sleep(pause).await;
            }
        }
        if !judged {
            let what = format!("{} could not catch up after everything had healed", self.client.name);
            self.client.world.recorder().anomaly(what);
        }
    }

    /// How far its copy has come without a hole.
    fn advance(&mut self, talk: &ClientTalk<T>) {
        if let Some((_, at)) = &mut self.cursor {
            *at = further(*at, &talk.told, false);
        }
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        self.come_online(talk).await?;
        loop {
            let calm = match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen => true,
                WorkloadPhase::Load => false,
            };
            match self.client.rng.below(100) {
                _ if calm && self.made_anew => {}
                0..=49 => self.fill(talk, calm).await?,
                50..=69 => read(&mut self.client, talk, SEASON, RECORDS).await?,
                70..=79 => {
                    let full = self.client.rng.percent(50);
                    self.advance(talk);
                    self.sync(talk, full).await?;
                }
                80..=84 if !calm => return Err(ConnectionLost),
                _ => {}
            }
            let pause = self.client.rng.millis(5, 60);
            self.client.listen(talk, pause).await?;
        }
    }

    /// Comes online and has everything, or fails.
    async fn come_online(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if self.client.rng.percent(10) {
            self.cursor = None;
        }
        let resumes = self.client.rng.percent(60);
        let mut ask = json!({ "device_id": self.client.name, "priority": 0 });
        if let Some(tables) = self.client.world.tables() {
            ask["subscribe"] = json!(tables);
        }
        if let Some((epoch, seq)) = self.cursor.as_ref().filter(|_| resumes) {
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
            talk.told.resumed = Some(*seq);
        }
        talk.link.send("device_online", &ask).await?;
        let answer = self.client.online_answer(talk).await;
        match &answer {
            Ok(ClientAnswer::Event(event)) if self.client.is_online(talk, event) => {
                cursor(event).unwrap_or_default().0.clone_into(&mut self.epoch);
            }
            _ => {
                talk.told.resumed = None;
                return Err(ConnectionLost);
            }
        }
        if talk.told.resumed.is_some() { Ok(()) } else { self.sync(talk, self.cursor.is_none()).await }
    }

    /// A full sync replaces the copy; the other one brings what changed after its cursor.
    async fn sync(&mut self, talk: &mut ClientTalk<T>, full: bool) -> Result<(), ConnectionLost> {
        let mut ask = json!({ "device_id": self.client.name, "sync_type": "full" });
        let mut after = None;
        // From its first page on the old copy is gone.
        let before = if full { self.cursor.take() } else { self.cursor.clone() };
        if let Some((epoch, seq)) = before.filter(|_| !full) {
            ask["sync_type"] = json!("incremental");
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
            after = Some(seq);
        }
        self.client.begin_sync(talk, OpRequest::Sync { after }, ask).await?;
        while let Some(last) = self.client.next_page(talk).await? {
            // What was compacted meanwhile is sent as a full sync after all.
            if talk.sync.as_ref().is_some_and(|sync| sync.op.asked == OpRequest::Sync { after: None }) {
                self.cursor = None;
            }
            if last {
                break;
            }
            let pause = self.client.rng.millis(0, 60);
            sleep(pause).await;
        }
        let Some(sync) = talk.sync.take().filter(|sync| sync.done == Some(true)) else { return Err(ConnectionLost) };
        let cursor = sync.op.cursor;
        self.client.finish(sync.op, OpOutcome::Ok);
        let Some(seq) = cursor else { return Err(ConnectionLost) };
        self.complete(talk, seq).await
    }

    /// Says that the sync is done, and keeps its place.
    async fn complete(&mut self, talk: &mut ClientTalk<T>, seq: u64) -> Result<(), ConnectionLost> {
        let epoch = self.epoch.clone();
        let ask = json!({ "device_id": self.client.name, "cursor": format!("{epoch}.{seq}") });
        self.cursor = Some((epoch, seq));
        self.client.complete_sync(talk, seq, ask).await.map(drop)
    }

    /// One write, or many in a row into a table that was removed.
    async fn fill(&mut self, talk: &mut ClientTalk<T>, calm: bool) -> Result<(), ConnectionLost> {
        let there = self.client.known.iter().filter(|((table, _), known)| table == SEASON && !known.value.is_empty());
        let count = if !calm && there.count() < FULL { self.client.rng.between(1, BURST) } else { 1 };
        for _ in 0..count {
            self.written += 1;
            let done = write(&mut self.client, talk, SEASON, RECORDS, self.written).await?;
            self.made_anew = calm && done == OpOutcome::Ok;
        }
        if self.made_anew {
            self.client.world.set_busy(&self.client.name, false);
        }
        Ok(())
    }
}

/// Two devices that fill the table and keep a copy, and who removes it.
pub(crate) fn all<T: Testbed>(world: &Arc<T>, counters: &Arc<Counters>, rng: &mut Rng) -> [Task; 3] {
    let mut keeper = |n: u64| Keeper::new(world.clone(), counters.clone(), format!("keeper-{n}"), rng.fork()).run();
    let (first, second) = (keeper(1), keeper(2));
    [Box::pin(first), Box::pin(second), Box::pin(remove_tables(world.clone(), rng.fork()))]
}
