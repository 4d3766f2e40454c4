//! Who sells by day, and what must be there: each record has one till that writes it, so the last change that was
//! acknowledged is what every node has.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tillsync::token::Class;
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::cluster::ProcessCluster;
use super::super::http::{HttpClient, Refusal};
use crate::rng::Rng;

/// Tills of the shop.
pub(super) const TILLS: u64 = 4;
const SALES: &str = "sales";
const STOCK: &str = "stock";
/// Sales that a till keeps: it deletes older ones.
const KEPT: usize = 300;
/// Articles that a till counts.
const ARTICLES: u64 = 50;
/// What is known of an article, in bytes.
const ARTICLE: usize = 1_000;
/// Deleted sales that are looked for at the end.
const DELETED: usize = 400;
/// Records of one till.
const OWN: i64 = 10_000_000;
const ANSWER: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(30);

/// What is going on in the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShopHours {
    Open,
    Night,
    /// The years are over.
    Closed,
}

/// What was acknowledged.
#[derive(Default)]
struct ShopLedger {
    /// The value of each record that there is.
    there: BTreeMap<(&'static str, i64), String>,
    /// The newest that were deleted.
    deleted: VecDeque<(&'static str, i64)>,
    acknowledged: u64,
    /// What must not be.
    wrong: Vec<String>,
}

pub(super) struct Shop {
    pub cluster: Arc<ProcessCluster>,
    pub hours: watch::Sender<ShopHours>,
    /// Between two changes of a till.
    pace: Duration,
    ledger: Mutex<ShopLedger>,
}

struct ShopTill {
    shop: Arc<Shop>,
    number: u64,
    rng: Rng,
    token: String,
    turn: usize,
    /// Changes so far.
    changes: u64,
    sales: VecDeque<i64>,
    next_sale: i64,
}

impl Shop {
    pub(super) fn new(cluster: Arc<ProcessCluster>, pace: Duration) -> Arc<Self> {
        Arc::new(Self { cluster, hours: watch::Sender::new(ShopHours::Night), pace, ledger: Mutex::default() })
    }

    /// The tills; they end when the shop is closed, each with its last change answered.
    pub(super) fn tills(
        self: &Arc<Self>,
        rng: &mut Rng,
    ) -> Result<Vec<impl Future<Output = ()> + Send + use<>>, String> {
        let mut tills = Vec::new();
        for number in 1..=TILLS {
            let till = ShopTill {
                shop: self.clone(),
                number,
                rng: rng.fork(),
                token: self.cluster.token_of(&name(number), Class::SalesAssistant)?,
                turn: number as usize,
                changes: 0,
                sales: VecDeque::new(),
                next_sale: number as i64 * OWN,
            };
            tills.push(till.run());
        }
        Ok(tills)
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.ledger.lock().acknowledged
    }

    pub(super) fn records(&self) -> u64 {
        self.ledger.lock().there.len() as u64
    }

    pub(super) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.ledger.lock().wrong)
    }

    /// What a node has otherwise than it was acknowledged, asked for up to so many records.
    pub(super) async fn differing(&self, gateway: &str, token: &str, most: usize, rng: &mut Rng) -> Vec<String> {
        let (mut there, deleted) = {
            let ledger = self.ledger.lock();
            let there: Vec<_> = ledger.there.iter().map(|(key, value)| (*key, Some(value.clone()))).collect();
            (there, ledger.deleted.clone())
        };
        there.extend(deleted.into_iter().map(|key| (key, None)));
        while there.len() > most {
            let at = rng.below(there.len() as u64) as usize;
            there.swap_remove(at);
        }
        let client = HttpClient { authority: gateway, token, within: ANSWER };
        let mut wrong = Vec::new();
        for ((table, record), value) in there {
            let has = match read(client, table, record).await {
                Ok(has) => has,
                Err(why) => {
                    wrong.push(format!("{gateway} does not say what {table}/{record} is: {why}"));
                    return wrong;
                }
            };
            if has != value {
                wrong.push(format!("{gateway} has {has:.40?} as {table}/{record}; {value:.40?} was acknowledged"));
            }
        }
        wrong
    }
}

fn name(till: u64) -> String {
    format!("till-{till}")
}

async fn read(client: HttpClient<'_>, table: &str, record: i64) -> Result<Option<String>, String> {
    let mut tries = 0;
    loop {
        tries += 1;
        match client.get(&format!("/data/{table}/{record}")).await {
            Ok(answer) => {
                let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
                return Ok(answer["data"]["v"].as_str().map(str::to_owned));
            }
            Err(why) if tries >= 20 => return Err(why.to_string()),
            Err(_) => sleep(AGAIN).await,
        }
    }
}

impl ShopTill {
    async fn run(mut self) {
        let mut hours = self.shop.hours.subscribe();
        if let Err(why) = self.insist("/device/register", &json!({ "device_id": name(self.number) })).await {
            return self.shop.ledger.lock().wrong.push(why);
        }
        loop {
            let now = *hours.borrow_and_update();
            match now {
                ShopHours::Closed => return,
                // It fails when the shop is gone.
                ShopHours::Night => drop(hours.changed().await),
                ShopHours::Open => {
                    self.trade().await;
                    sleep(self.shop.pace).await;
                }
            }
        }
    }

    async fn trade(&mut self) {
        if self.rng.percent(40) {
            let article = self.number as i64 * OWN + self.rng.below(ARTICLES) as i64;
            let value = format!("{}-{:.<ARTICLE$}", self.changes, article);
            return self.change(STOCK, article, "update", Some(value)).await;
        }
        let sale = self.next_sale;
        self.next_sale += 1;
        self.change(SALES, sale, "insert", Some(format!("sale {sale}"))).await;
        self.sales.push_back(sale);
        if self.sales.len() > KEPT
            && let Some(oldest) = self.sales.pop_front()
        {
            self.change(SALES, oldest, "delete", None).await;
        }
    }

    async fn change(&mut self, table: &'static str, record: i64, operation: &str, value: Option<String>) {
        self.changes += 1;
        let mut body = json!({ "operation": operation, "request_id": format!("r{}", self.changes) });
        if let Some(value) = &value {
            body["new_data"] = json!({ "v": value });
        }
        if let Err(why) = self.insist(&format!("/data/{table}/{record}"), &body).await {
            return self.shop.ledger.lock().wrong.push(format!("{operation} of {table}/{record}: {why}"));
        }
        let mut ledger = self.shop.ledger.lock();
        ledger.acknowledged += 1;
        match value {
            Some(value) => drop(ledger.there.insert((table, record), value)),
            None => {
                ledger.there.remove(&(table, record));
                ledger.deleted.push_back((table, record));
                if ledger.deleted.len() > DELETED {
                    ledger.deleted.pop_front();
                }
            }
        }
    }

    /// Asks again, and other nodes, until it is acknowledged; an error: it was refused for good.
    async fn insist(&mut self, path: &str, body: &Value) -> Result<(), String> {
        loop {
            let nodes = self.shop.cluster.gateways();
            let Some((_, gateway)) = nodes.get(self.turn % nodes.len().max(1)) else { return Err("no nodes".into()) };
            let gateway = gateway.to_string();
            let client = HttpClient { authority: &gateway, token: &self.token, within: ANSWER };
            match client.call("POST", path, Some(body)).await {
                Ok(_) => return Ok(()),
                // The key that signed it is gone.
                Err(Refusal::Refused(401, _)) => {
                    self.token = self.shop.cluster.token_of(&name(self.number), Class::SalesAssistant)?;
                }
                Err(Refusal::Refused(status @ 400..=499, why)) if status != 429 => {
                    return Err(format!("{} was refused: {status} {why}", name(self.number)));
                }
                Err(_) => self.turn += 1,
            }
            sleep(AGAIN).await;
        }
    }
}
