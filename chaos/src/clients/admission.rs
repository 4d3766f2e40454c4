//! Devices that are kept out and let in again: an officer takes a device's tokens back, suspends it, forgets it, and lets
//! it in by the code that it shows; the device works on meanwhile, renews its token, and asks for a code when it has none.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::token::Class;
use tokio::time::sleep;

use super::client::{Bearer, ChaosClient, ClientTalk, Counters};
use super::desk::{Desk, order, request};
use super::rights::{Task, read, write};
use super::{ConnectionLost, Request, Testbed, WorkloadPhase};
use crate::history::{NumberedToken, OpOutcome, Order, Ordered};
use crate::rng::Rng;

/// What these devices write.
const COUNTED: &str = "counted";
const RECORDS: u64 = 3;
const CLASS: Class = Class::SalesAssistant;
/// How often its tokens are taken back in a run.
const REVOKED: u64 = 3;
/// How often a device asks what became of its code, and for how long.
const POLLS: u64 = 25;
/// Looks at a device that is to be forgotten, until it is offline.
const LOOKS: u64 = 10;

/// The device that is kept out now and then.
pub(crate) struct Guest<T: Testbed> {
    client: ChaosClient<T>,
    counters: Arc<Counters>,
    written: u64,
    /// Its last write was taken: it is in again.
    works: bool,
}

impl<T: Testbed> Guest<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        Self { client: ChaosClient::new(world, counters.clone(), name, rng), counters, written: 0, works: false }
    }

    pub(crate) async fn run(mut self) {
        let (world, name) = (self.client.world.clone(), self.client.name.clone());
        world.set_busy(&name, true);
        if let Some(token) = world.token(&name, CLASS) {
            let (number, (tick, us)) = (self.counters.token(), world.recorder().now());
            self.got(number, &token);
            world.recorder().order(Order {
                node: 0,
                ordered: Ordered::Token { device: name.clone(), number, renews: None, code: None },
                invoked: tick,
                invoked_us: us,
                returned: tick,
                returned_us: us,
                outcome: OpOutcome::Ok,
                error: String::new(),
            });
        }
        while self.client.phase() != WorkloadPhase::End {
            // What it wrote under load is no answer to whether it is in when all is over.
            let calm = self.client.phase() != WorkloadPhase::Load;
            if self.client.bearer.is_none() {
                if calm {
                    world.set_busy(&name, false);
                    // Nobody lets it in any more. An error: the run has ended.
                    let _ = world.phase().wait_for(|phase| *phase != WorkloadPhase::Listen).await;
                } else {
                    self.ask_to_be_let_in().await;
                }
                continue;
            }
            if let Some(mut talk) = self.client.connect(None).await {
                let live = self.talk(&mut talk).await.is_ok();
                self.client.disconnect(talk, live);
            }
            if self.client.phase() != WorkloadPhase::End && self.client.rng.percent(60) {
                self.renew().await;
            }
            let pause = self.client.rng.millis(5, 80);
            sleep(pause).await;
        }
        if self.client.bearer.is_some() && !self.works {
            world.recorder().anomaly(format!("{name} is not let in after everything had healed"));
        }
    }

    fn got(&mut self, number: u64, token: &str) {
        let known = NumberedToken { number, class: CLASS.name().into() };
        self.client.bearer = Some(Bearer { token: token.to_owned(), known });
        self.works = false;
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if !self.client.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        loop {
            let calm = match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen => true,
                WorkloadPhase::Load => false,
            };
            match self.client.rng.below(100) {
                _ if calm && self.works => {}
                0..=49 => {
                    self.written += 1;
                    let done = write(&mut self.client, talk, COUNTED, RECORDS, self.written).await?;
                    self.works = calm && done == OpOutcome::Ok;
                    if self.works {
                        self.client.world.set_busy(&self.client.name, false);
                    }
                }
                50..=79 => read(&mut self.client, talk, COUNTED, RECORDS).await?,
                80..=82 if !calm => return Err(ConnectionLost),
                _ => {}
            }
            let pause = self.client.rng.millis(5, 50);
            self.client.listen(talk, pause).await?;
        }
    }

    /// Another token for the one that it has; without any, if that one was taken back.
    async fn renew(&mut self) {
        let Some(bearer) = self.client.bearer.clone() else { return };
        let nodes = self.client.world.nodes();
        let Some(node) = self.client.rng.pick(&nodes).cloned() else { return };
        let number = self.counters.token();
        let (device, renews) = (self.client.name.clone(), Some(bearer.known.number));
        let ordered = Ordered::Token { device, number, renews, code: None };
        let ask = request("POST", "/token/renew".into(), None);
        let (order, body) = order(&self.client.world, node, &bearer.token, ordered, ask).await;
        let taken_back = order.outcome == OpOutcome::Failed && order.error.starts_with("3001");
        self.client.world.recorder().order(order);
        if let Some(token) = body["token"].as_str() {
            let works = self.works;
            self.got(number, token);
            self.works = works;
        } else if taken_back {
            self.client.bearer = None;
        }
    }

    /// Shows a code, and takes the token when somebody has let it in.
    async fn ask_to_be_let_in(&mut self) {
        let nodes = self.client.world.nodes();
        let Some((_, node)) = self.client.rng.pick(&nodes).cloned() else { return sleep(PAUSE).await };
        let ask = request("POST", "/device/pair".into(), Some(json!({ "device_id": self.client.name })));
        let answer = self.client.world.call(node, "", ask).await;
        let Some((200, shown)) = answer else { return sleep(PAUSE).await };
        let (Some(code), Some(secret)) = (shown["code"].as_str(), shown["secret"].as_str()) else { return };
        for _ in 0..POLLS {
            let pause = self.client.rng.millis(60, 160);
            sleep(pause).await;
            if self.client.phase() != WorkloadPhase::Load || self.collect(code, secret).await {
                return;
            }
        }
    }

    /// Asks one node for the token, now and then two at once. True if there is no more to ask.
    async fn collect(&mut self, code: &str, secret: &str) -> bool {
        let nodes = self.client.world.nodes();
        let count = if self.client.rng.percent(40) { 2 } else { 1 };
        let mut asked = Vec::new();
        for _ in 0..count {
            let Some(node) = self.client.rng.pick(&nodes).cloned() else { return false };
            let (device, code_shown) = (self.client.name.clone(), Some(code.to_owned()));
            let ordered = Ordered::Token { device, number: self.counters.token(), renews: None, code: code_shown };
            let ask = request("GET", format!("/device/pair/{code}"), None);
            let world = self.client.world.clone();
            asked.push(async move { order(&world, node, secret, ordered, ask).await });
        }
        let mut over = false;
        for (order, body) in futures_util::future::join_all(asked).await {
            over |= self.came(order, &body);
        }
        over
    }

    fn came(&mut self, order: Order, body: &Value) -> bool {
        let (Ordered::Token { number, .. }, Some(token)) = (order.ordered.clone(), body["token"].as_str()) else {
            // Somebody decided otherwise, or the token was handed out and got lost; a code that waits is no order.
            let over = matches!(body["status"].as_str(), Some("refused" | "claimed"));
            if order.outcome == OpOutcome::Unknown {
                self.client.world.recorder().order(order);
            }
            return over;
        };
        self.client.world.recorder().order(order);
        self.got(number, token);
        true
    }
}

const PAUSE: Duration = Duration::from_millis(150);

/// Keeps the device out and lets it in again, as long as there is load.
pub(crate) async fn officer<T: Testbed>(world: Arc<T>, rng: Rng, device: String) {
    let Some(token) = world.token("security", Class::Admin) else { return };
    let mut officer = Officer { desk: Desk { world, token, rng }, device };
    let mut revoked = 0;
    while officer.desk.phase() == WorkloadPhase::Load {
        let pause = officer.desk.rng.millis(100, 900);
        sleep(pause).await;
        match officer.desk.rng.below(100) {
            0..=39 => officer.suspend().await,
            40..=84 if revoked < REVOKED => {
                revoked += 1;
                officer.revoke().await;
            }
            _ => {}
        }
        for _ in 0..3 {
            officer.let_in().await;
            sleep(PAUSE).await;
        }
    }
}

/// A device that is kept out now and then, and who does that.
pub(crate) fn all<T: Testbed>(world: &Arc<T>, counters: &Arc<Counters>, rng: &mut Rng) -> [Task; 2] {
    let name = "guest-1";
    let guest = Guest::new(world.clone(), counters.clone(), name.into(), rng.fork());
    [Box::pin(guest.run()), Box::pin(officer(world.clone(), rng.fork(), name.into()))]
}

struct Officer<T> {
    desk: Desk<T>,
    device: String,
}

impl<T: Testbed> Officer<T> {
    fn about(&self, what: &str) -> Request {
        request("POST", format!("/device/{}/{what}", self.device), None)
    }

    /// For a while.
    async fn suspend(&mut self) {
        let device = self.device.clone();
        let ask = self.about("suspend");
        self.desk.give(Ordered::Suspend { device: device.clone() }, ask).await;
        let pause = self.desk.rng.millis(50, 700);
        sleep(pause).await;
        while self.desk.phase() != WorkloadPhase::End {
            let ask = self.about("resume");
            if self.desk.give(Ordered::Resume { device: device.clone() }, ask).await.0 == OpOutcome::Ok {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn revoke(&mut self) {
        let (device, ask) = (self.device.clone(), self.about("revoke"));
        let done = self.desk.give(Ordered::Revoke { device: device.clone() }, ask).await.0;
        if done != OpOutcome::Ok || self.desk.rng.percent(40) {
            return;
        }
        // Nobody lets it in meanwhile, so it stays away until it is forgotten.
        for _ in 0..LOOKS {
            sleep(PAUSE).await;
            let ask = request("DELETE", format!("/device/{device}"), None);
            if self.desk.give(Ordered::Forget { device: device.clone() }, ask).await.0 == OpOutcome::Ok {
                for _ in 0..2 {
                    let ask = request("GET", format!("/device/roles/{device}"), None);
                    self.desk.give(Ordered::Look { device: device.clone() }, ask).await;
                }
                return;
            }
        }
    }

    /// Decides on the codes that the device shows.
    async fn let_in(&mut self) {
        let nodes = self.desk.world.nodes();
        let Some((_, node)) = self.desk.rng.pick(&nodes).cloned() else { return };
        let list = request("GET", "/device/pairings".into(), None);
        let Some((200, body)) = self.desk.world.call(node, &self.desk.token, list).await else { return };
        for row in body["pairings"].as_array().map_or(&[][..], |rows| rows) {
            let (Some(code), "waiting") = (row["code"].as_str(), row["status"].as_str().unwrap_or_default()) else {
                continue;
            };
            if row["device_id"] != json!(self.device) {
                continue;
            }
            let (code, device) = (code.to_owned(), self.device.clone());
            let of = |what: &str| format!("/device/pairings/{code}/{what}");
            let approve = request("POST", of("approve"), Some(json!({ "class": CLASS.name() })));
            match self.desk.rng.below(100) {
                0..=14 => {
                    let ask = request("POST", of("refuse"), None);
                    self.desk.give(Ordered::Refuse { code, device }, ask).await;
                }
                15..=54 => self.desk.give_twice(Ordered::Approve { code, device }, approve).await,
                _ => drop(self.desk.give(Ordered::Approve { code, device }, approve).await),
            }
        }
    }
}
