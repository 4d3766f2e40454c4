//! The load of a drill: tills that sell, each sale a record of its own, and look at what was sold.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tillsync::client::frame::{DeviceOnlineFrame, json as text_of};
use tillsync::client::link::{ClientLink, ClientTransport};
use tillsync::client::rest::percent;
use tillsync::client::{ClientError, NodeUrl};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::OperatedCluster;
use crate::history::{Op, OpOutcome, OpRequest};
use crate::recorder::Recorder;
use crate::rng::Rng;

pub(super) const TABLE: &str = "chaos_drill";
/// A till that waits longer than this for an answer asks another node.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);
/// How often a sale is followed by a look at an earlier one. Percent.
const LOOKS: u64 = 30;
/// Of the newest sales, those that are looked at.
const NEWEST: usize = 500;
/// Records of one drill. Drills have different ones, and all are whole numbers also for clients in JavaScript.
const RECORDS: i64 = 10_000_000;
const MOST_RUNS: u64 = 900_000_000;

/// What all tills share.
pub(super) struct TillsShared {
    pub cluster: OperatedCluster,
    pub recorder: Recorder,
    /// Names this drill's sales.
    pub run: String,
    /// Its records begin here.
    pub base: i64,
    seed: u64,
    pace: Duration,
    stop: CancellationToken,
    state: Mutex<TillTotals>,
}

#[derive(Default)]
struct TillTotals {
    ops: u64,
    sales: i64,
    newest: Vec<i64>,
    /// When each confirmed sale began and ended, microseconds, in the order of the ends.
    sold: Vec<(u64, u64)>,
}

pub(super) struct Tills {
    shop: Arc<TillsShared>,
    tasks: JoinSet<()>,
}

impl TillsShared {
    pub(super) fn new(cluster: OperatedCluster, recorder: Recorder, run: u64, pace: Duration) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            recorder,
            run: format!("{run:x}"),
            base: (run % MOST_RUNS) as i64 * RECORDS,
            seed: run,
            pace,
            stop: CancellationToken::new(),
            state: Mutex::default(),
        })
    }

    /// The longest time without a confirmed sale that ended in this time, and the slowest sale, microseconds.
    pub(super) fn pauses(&self, from_us: u64, to_us: u64) -> (u64, u64) {
        let state = self.state.lock();
        let sold = &state.sold;
        let begin = sold.partition_point(|(_, end)| *end < from_us);
        let end = sold.partition_point(|(_, end)| *end <= to_us);
        let slowest = sold[begin..end].iter().map(|(from, to)| to - from).max().unwrap_or(0);
        let ends = sold[begin.saturating_sub(1)..end].windows(2).map(|pair| pair[1].1 - pair[0].1);
        (ends.max().unwrap_or(0), slowest)
    }

    /// Confirmed sales so far.
    pub(super) fn sold(&self) -> usize {
        self.state.lock().sold.len()
    }
}

impl Tills {
    pub(super) fn open(shop: &Arc<TillsShared>, tills: usize) -> Self {
        let mut tasks = JoinSet::new();
        for number in 1..=tills {
            let till = Till {
                shop: shop.clone(),
                name: format!("chaos-drill-{number}"),
                number,
                turn: number - 1,
                line: None,
                rng: Rng::new(shop.seed ^ number as u64),
            };
            tasks.spawn(till.run());
        }
        Self { shop: shop.clone(), tasks }
    }

    /// Every till ends its sale, or leaves it open if nobody answers.
    pub(super) async fn close(mut self) {
        self.shop.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// How a till talks to its node.
enum TillLink {
    Socket(Box<ClientLink>),
    Rest(NodeUrl),
}

struct Till {
    shop: Arc<TillsShared>,
    name: String,
    number: usize,
    /// The node that it talks to, or the next to try.
    turn: usize,
    line: Option<TillLink>,
    rng: Rng,
}

impl Till {
    async fn run(mut self) {
        while !self.shop.stop.is_cancelled() {
            self.sell().await;
            if self.rng.percent(LOOKS) {
                self.look().await;
            }
            let pace = self.shop.pace;
            let _ = timeout(pace, self.shop.stop.cancelled()).await;
        }
        if let Some(TillLink::Socket(link)) = self.line.take() {
            link.close().await;
        }
    }

    fn node(&self) -> &NodeUrl {
        let nodes = &self.shop.cluster.target.nodes;
        &nodes[self.turn % nodes.len()]
    }

    fn op(&self, asked: OpRequest) -> Op {
        let now = self.shop.recorder.now();
        let mut state = self.shop.state.lock();
        state.ops += 1;
        Op::new(state.ops, &self.name, (self.number as u64, self.turn as u64), asked, now)
    }

    /// Records it; when it began and ended.
    fn finish(&self, mut op: Op, outcome: OpOutcome) -> (u64, u64) {
        (op.returned, op.returned_us) = self.shop.recorder.now();
        op.outcome = outcome;
        op.node = (self.turn % self.shop.cluster.target.nodes.len()) as u64 + 1;
        let times = (op.invoked_us, op.returned_us);
        self.shop.recorder.op(op);
        times
    }

    /// One sale, again and again under the same id until it is confirmed, refused for good, or the drill ends.
    async fn sell(&mut self) {
        let number = {
            let mut state = self.shop.state.lock();
            state.sales += 1;
            state.sales
        };
        let (record, request_id) = (self.shop.base + number, format!("{}-{number}", self.shop.run));
        let sale = OpRequest::Write {
            table: TABLE.into(),
            record,
            value: request_id.clone(),
            request_id: request_id.clone(),
            base: None,
        };
        let (mut op, mut unsure) = (self.op(sale), false);
        loop {
            op.tries += 1;
            match timeout(ANSWER, self.try_sell(record, &request_id)).await {
                Ok(Ok(seq)) => {
                    op.version = Some(seq);
                    let ended = self.finish(op, OpOutcome::Ok);
                    let mut state = self.shop.state.lock();
                    let at = state.sold.partition_point(|(_, end)| *end <= ended.1);
                    state.sold.insert(at, ended);
                    if state.newest.len() >= NEWEST {
                        state.newest.remove(0);
                    }
                    state.newest.push(record);
                    return;
                }
                Ok(Err(error)) if !error.is_passing() => {
                    op.error = error.to_string();
                    self.finish(op, if unsure { OpOutcome::Unknown } else { OpOutcome::Failed });
                    return;
                }
                Ok(Err(error)) => op.error = error.to_string(),
                Err(_) => op.error = format!("{} did not answer within {} s", self.node(), ANSWER.as_secs()),
            }
            unsure = true;
            self.line = None;
            self.turn += 1;
            if self.shop.stop.is_cancelled() {
                return self.shop.recorder.op(op);
            }
            sleep(AGAIN).await;
        }
    }

    async fn try_sell(&mut self, record: i64, request_id: &str) -> Result<u64, ClientError> {
        let mut line = match self.line.take() {
            Some(line) => line,
            None => self.connect().await?,
        };
        let mut update = json!({
            "device_id": self.name, "request_id": request_id, "operation": "insert",
            "new_data": {"sale": request_id},
        });
        let seq = match &mut line {
            TillLink::Rest(node) => {
                let done: Value =
                    self.shop.cluster.rest.post(node, &format!("/data/{TABLE}/{record}"), &update).await?;
                done["seq"].as_u64().ok_or_else(|| strange(node, &done))?
            }
            TillLink::Socket(link) => {
                update["table_name"] = json!(TABLE);
                update["record_id"] = json!(record);
                link.send("data_update", &update.to_string()).await?;
                loop {
                    let event = link.wait_for(&["acknowledged"]).await?;
                    // The answer to an earlier try may come, too.
                    if event.text("request_id") == Some(request_id) {
                        break event.number("seq").ok_or_else(|| strange(link.node(), &event.data))?;
                    }
                }
            }
        };
        self.line = Some(line);
        Ok(seq)
    }

    /// Tills take turns in how they talk, so that each way is tried.
    async fn connect(&self) -> Result<TillLink, ClientError> {
        let node = self.node().clone();
        let transport = match self.number % 3 {
            1 => ClientTransport::Ws,
            2 => ClientTransport::Socketio,
            _ => {
                let register = json!({"device_id": self.name, "capabilities": ["no-master"]});
                let _: Value = self.shop.cluster.rest.post(&node, "/device/register", &register).await?;
                return Ok(TillLink::Rest(node));
            }
        };
        let mut link = ClientLink::connect(transport, &node, &self.shop.cluster.target.token).await?;
        link.send("device_online", &text_of(&DeviceOnlineFrame::tool(&self.name))).await?;
        link.wait_for(&["device_online_ack"]).await?;
        Ok(TillLink::Socket(Box::new(link)))
    }

    /// A look at a sale that some till was told is confirmed.
    async fn look(&mut self) {
        let record = self.rng.pick(&self.shop.state.lock().newest).copied();
        let Some(record) = record else { return };
        let mut op = self.op(OpRequest::Read { table: TABLE.into(), record });
        op.tries = 1;
        let path = format!("/data/{TABLE}/{}", percent(&record.to_string()));
        match timeout(ANSWER, self.shop.cluster.rest.get::<Value>(self.node(), &path)).await {
            Ok(Ok(found)) => {
                op.version = found["version"].as_u64();
                op.value = found["data"]["sale"].as_str().map(str::to_owned);
                self.finish(op, OpOutcome::Ok);
            }
            Ok(Err(error @ ClientError::Refused { .. })) => {
                op.error = error.to_string();
                self.finish(op, OpOutcome::Failed);
            }
            Ok(Err(error)) => {
                op.error = error.to_string();
                self.finish(op, OpOutcome::Unknown);
            }
            Err(_) => drop(self.finish(op, OpOutcome::Unknown)),
        }
    }
}

fn strange(node: &NodeUrl, answer: &Value) -> ClientError {
    ClientError::Strange { node: node.clone(), why: format!("an answer without a seq: {answer}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillsync::client::ClusterTarget;

    #[test]
    fn pauses_are_measured_from_sale_to_sale_and_across_the_beginning() {
        let target = ClusterTarget { nodes: vec![NodeUrl::plain("127.0.0.1:1")], token: String::new() };
        let recorder = Recorder::new();
        let shop = TillsShared::new(OperatedCluster::new(target).unwrap(), recorder, 7, Duration::ZERO);
        assert_eq!(shop.pauses(0, 1_000), (0, 0));
        shop.state.lock().sold = vec![(0, 100), (90, 200), (150, 900), (800, 950), (940, 5_000)];
        assert_eq!(shop.pauses(0, 1_000), (700, 750));
        assert_eq!(shop.pauses(500, 940), (700, 750));
        assert_eq!(shop.pauses(910, 1_000), (50, 150));
        assert!(shop.base > 0 && shop.base + RECORDS < 1 << 53);
        assert!((MOST_RUNS as i64 * RECORDS) < 1 << 53);
    }
}
