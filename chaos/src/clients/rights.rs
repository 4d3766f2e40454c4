//! Rights that change under load: an administrator gives and takes the right of a class to one table, while devices of
//! that class, and one of a class that may do everything, write and read it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tillsync::token::Class;
use tokio::time::sleep;

use super::answers::error;
use super::client::{Bearer, ChaosClient, ClientAnswer, ClientTalk, Counters, refuses};
use super::desk::{Desk, request};
use super::{Connection, ConnectionLost, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::{NumberedToken, OpOutcome, OpRequest, Ordered, ShownChange};
use crate::rng::Rng;

/// The table whose rights change.
pub(crate) const PRICES: &str = "prices";
const RECORDS: u64 = 3;
/// The classes whose rights change.
pub(crate) const CLASSES: [Class; 2] = [Class::SalesAssistant, Class::InventoryAssistant];
const RIGHTS: [&str; 3] = ["none", "read", "write"];

/// Changes rights as long as there is load.
pub(crate) async fn administer<T: Testbed>(world: Arc<T>, rng: Rng) {
    let Some(token) = world.token("head-office", Class::Admin) else { return };
    let mut desk = Desk { world, token, rng };
    while desk.phase() == WorkloadPhase::Load {
        let pause = desk.rng.millis(150, 1_200);
        sleep(pause).await;
        let class = desk.rng.pick(&CLASSES).map_or("", |class| class.name());
        let right = desk.rng.pick(&RIGHTS).copied().unwrap_or_default();
        let ordered = Ordered::Rights { class: class.into(), table: PRICES.into(), right: right.into() };
        desk.give(ordered, request("PUT", format!("/access/{class}"), Some(json!({ "tables": { PRICES: right } }))))
            .await;
    }
}

/// A device that works with that table.
pub(crate) struct Clerk<T: Testbed> {
    client: ChaosClient<T>,
    written: u64,
}

impl<T: Testbed> Clerk<T> {
    /// `class`: that of its token; `None`: one that may do everything, and stays so.
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng, class: Option<Class>) -> Self {
        let bearer = class.and_then(|class| {
            let known = NumberedToken { number: counters.token(), class: class.name().into() };
            world.token(&name, class).map(|token| Bearer { token, known })
        });
        let mut client = ChaosClient::new(world, counters, name, rng);
        client.bearer = bearer;
        Self { client, written: 0 }
    }

    pub(crate) async fn run(mut self) {
        while self.client.phase() != WorkloadPhase::End {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let live = self.talk(&mut talk).await.is_ok();
            self.client.disconnect(talk, live);
            let pause = self.client.rng.millis(0, 60);
            sleep(pause).await;
        }
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if !self.client.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        loop {
            match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen => {
                    self.client.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                WorkloadPhase::Load => {}
            }
            match self.client.rng.below(100) {
                0..=39 => self.write(talk).await?,
                40..=64 => read(&mut self.client, talk, PRICES, RECORDS).await?,
                65..=74 => self.sync(talk).await?,
                75 => return Err(ConnectionLost),
                _ => {}
            }
            let pause = self.client.rng.millis(5, 60);
            self.client.listen(talk, pause).await?;
        }
    }

    async fn write(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        self.written += 1;
        write(&mut self.client, talk, PRICES, RECORDS, self.written).await.map(|_| ())
    }

    /// Everything that it may read.
    async fn sync(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        let ask = json!({ "device_id": self.client.name, "sync_type": "full" });
        self.client.begin_sync(talk, OpRequest::Sync { after: None }, ask).await?;
        while let Some(last) = self.client.next_page(talk).await? {
            if last {
                break;
            }
        }
        // What came for a class that may not read everything is judged record by record.
        if let Some(sync) = talk.sync.take().filter(|sync| sync.done == Some(true) && self.client.bearer.is_none()) {
            self.client.finish(sync.op, OpOutcome::Ok);
        }
        Ok(())
    }
}

/// Changes some record of the table, and does not try again. What came of it.
pub(crate) async fn write<T: Testbed>(
    client: &mut ChaosClient<T>,
    talk: &mut ClientTalk<T>,
    table: &str,
    records: u64,
    written: u64,
) -> Result<OpOutcome, ConnectionLost> {
    let record = client.rng.between(1, records) as i64;
    let (value, request_id) = (format!("{}-{written}", client.name), format!("r{written}"));
    let ask = json!({
        "device_id": client.name, "table_name": table, "record_id": record, "operation": "update",
        "new_data": { "v": value, "r": request_id }, "request_id": request_id,
    });
    let asked = OpRequest::Write { table: table.into(), record, value, request_id: request_id.clone(), base: None };
    let mut op = client.op(talk, asked);
    op.tries = 1;
    let is_it = |event: &ReceivedEvent| {
        event.data["request_id"] == json!(request_id) && (event.name == "acknowledged" || refuses(event, "data_update"))
    };
    let answer = match talk.link.send("data_update", &ask).await {
        Ok(()) => client.answer(talk, is_it).await,
        Err(ConnectionLost) => Err(ConnectionLost),
    };
    let mut outcome = OpOutcome::Unknown;
    if let Ok(ClientAnswer::Event(event)) = &answer {
        op.version = event.data["seq"].as_u64().filter(|_| event.name == "acknowledged");
        op.error = error(event);
        outcome = match event.data["retry"].as_str() {
            _ if op.version.is_some() => OpOutcome::Ok,
            Some("same_request_id") => OpOutcome::Unknown,
            _ => OpOutcome::Failed,
        };
    }
    client.finish(op, outcome);
    answer.map(|_| outcome)
}

/// Reads some record of the table.
pub(crate) async fn read<T: Testbed>(
    client: &mut ChaosClient<T>,
    talk: &mut ClientTalk<T>,
    table: &str,
    records: u64,
) -> Result<(), ConnectionLost> {
    let record = client.rng.between(1, records) as i64;
    let (mut op, event) = client.read(talk, table, record).await?;
    if event.name != "data_response" {
        op.error = error(&event);
        client.finish(op, OpOutcome::Failed);
        return Ok(());
    }
    if let (Some(seq), Some(value)) = (op.version, op.value.clone()) {
        let row = ShownChange { seq, table: table.into(), record, value, ..ShownChange::default() };
        client.show(talk, Some(op.invoked), &row);
    }
    client.finish(op, OpOutcome::Ok);
    Ok(())
}

pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// All that work with rights: the administrator, a device of each class, and one that may do everything.
pub(crate) fn all<T: Testbed>(world: &Arc<T>, counters: &Arc<Counters>, rng: &mut Rng) -> Vec<Task> {
    let mut tasks: Vec<Task> = vec![Box::pin(administer(world.clone(), rng.fork()))];
    for (n, class) in CLASSES.into_iter().map(Some).chain([None]).enumerate() {
        let clerk = Clerk::new(world.clone(), counters.clone(), format!("clerk-{}", n + 1), rng.fork(), class);
        tasks.push(Box::pin(clerk.run()));
    }
    tasks
}
