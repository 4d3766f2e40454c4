//! The clients: writers with one write under way each, and on every node one that can be master and listens.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::journal::{AckedWrite, WriteJournal};
use crate::cli::bench::clients::{self, BenchClient, Subscription, event_name, number_after};
use crate::cli::{CliResult, CommandError};
use crate::client::frame::ws_frame;
use crate::client::link::event_of;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};

pub(super) const TABLE: &str = "failover";
/// Records of one writer.
const RECORDS: i64 = 1_000_000_000;
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(5);
/// Before a refused write is sent again.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct WriterCrew {
    journal: Arc<Mutex<WriteJournal>>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    clients: u32,
}

impl WriterCrew {
    pub(super) async fn start(target: &ClusterTarget, count: u32) -> CliResult<Self> {
        let (journal, stop) = (Arc::new(Mutex::new(WriteJournal::default())), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for place in 0..target.nodes.len() {
            let listener = Listener { target: target.clone(), place, journal: journal.clone() };
            let socket = listener.come().await?;
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(listener.run(socket)).await.unwrap_or_default() });
        }
        for client in clients::clients(target, "failover", count) {
            let writer = CrewWriter { client, target: target.clone(), journal: journal.clone(), stop: stop.clone() };
            tasks.spawn(writer.run());
        }
        Ok(Self { journal, tasks, stop, clients: count })
    }

    /// Waits until every client writes, some time after `at`.
    pub(super) async fn writing_again(&self, at: Instant, patience: Duration) -> CliResult {
        let end = Instant::now() + patience;
        let since = Instant::now();
        loop {
            let writes = {
                let journal = self.journal.lock();
                let lately = journal.acked.iter().rev().take_while(|ack| ack.at > since.max(at));
                let mut seen: Vec<u32> = lately.map(|ack| ack.client).collect();
                seen.sort_unstable();
                seen.dedup();
                seen.len()
            };
            if writes >= self.clients as usize {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(CommandError::new(format!("{writes} of {} clients write again", self.clients)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// From the fault to the next acknowledged write of anybody, and of the last client to have one.
    pub(super) fn outage(&self, at: Instant) -> (Duration, Duration) {
        let journal = self.journal.lock();
        let each = (0..self.clients).map(|client| journal.pause_after(at, |c| c == client).1);
        (journal.pause_after(at, |_| true).1, each.max().unwrap_or_default())
    }

    /// The longest pause of any client that ends after `at`.
    pub(super) fn longest_pause(&self, at: Instant) -> Duration {
        let journal = self.journal.lock();
        let each = (0..self.clients).map(|client| journal.pause_after(at, |c| c == client).0);
        each.max().unwrap_or_default()
    }

    /// Requests refused after `at`, and the last reason.
    pub(super) fn refused(&self, at: Instant) -> (usize, Option<String>) {
        let journal = self.journal.lock();
        let mut since = journal.refused.iter().filter(|(when, _)| *when > at);
        (since.clone().count(), since.next_back().map(|(_, why)| why.clone()))
    }

    /// Until the listeners on all other nodes had heard who is master.
    pub(super) fn elected(&self, at: Instant, without: usize) -> Option<Duration> {
        let journal = self.journal.lock();
        let first = |node: usize| {
            let heard = journal.elected.iter().find(|(when, from)| *when > at && *from == node);
            heard.map(|(when, _)| *when - at)
        };
        (1..=crate::cli::local::NODES)
            .filter(|node| *node != without)
            .map(first)
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .max()
    }

    /// Ends all; what was acknowledged.
    pub(super) async fn stop(mut self) -> Vec<AckedWrite> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut self.journal.lock().acked)
    }
}

/// A client that could be master, on its node whenever that is there.
struct Listener {
    target: ClusterTarget,
    place: usize,
    journal: Arc<Mutex<WriteJournal>>,
}

impl Listener {
    async fn come(&self) -> Result<WsSocket, ClientError> {
        let node = &self.target.nodes[self.place];
        let mut socket = WsSocket::connect(node, &self.target.token).await?;
        let (id, priority) = (self.place + 1, 10 * (self.place + 1));
        let ask = format!(r#"{{"device_id":"office-{id}","priority":{priority},"subscribe":[]}}"#);
        socket.send(ws_frame("device_online", &ask)).await?;
        Ok(socket)
    }

    async fn run(self, socket: WsSocket) {
        let mut socket = Some(socket);
        loop {
            let Some(connected) = &mut socket else {
                tokio::time::sleep(AGAIN * 10).await;
                socket = self.come().await.ok();
                continue;
            };
            match connected.next().await {
                Ok(text) if event_name(&text) == "master_elected" => {
                    self.journal.lock().elected.push((Instant::now(), self.place + 1));
                }
                Ok(_) => {}
                Err(_) => socket = None,
            }
        }
    }
}

struct CrewWriter {
    client: BenchClient,
    target: ClusterTarget,
    journal: Arc<Mutex<WriteJournal>>,
    stop: CancellationToken,
}

enum WriteAnswer {
    Acked(u64),
    Refused(String),
}

impl CrewWriter {
    async fn run(self) {
        let (mut socket, mut turn, mut number) = (None, self.client.index as usize, 0i64);
        while !self.stop.is_cancelled() {
            let Some(connected) = &mut socket else {
                let node = &self.target.nodes[turn % self.target.nodes.len()];
                match clients::connect(&self.client, node, &self.target.token, &Subscription::Nothing).await {
                    Ok(new) => socket = Some(new),
                    Err(_) => {
                        turn += 1;
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                continue;
            };
            // The same request until it is acknowledged: it must not count twice.
            let record = i64::from(self.client.index) * RECORDS + number;
            match self.write(connected, record).await {
                Ok(WriteAnswer::Acked(seq)) => {
                    let ack = AckedWrite { at: Instant::now(), client: self.client.index, record, seq };
                    self.journal.lock().acked.push(ack);
                    number += 1;
                }
                Ok(WriteAnswer::Refused(why)) => {
                    self.journal.lock().refused.push((Instant::now(), why));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => {
                    socket = None;
                    turn += 1;
                }
            }
        }
    }

    async fn write(&self, socket: &mut WsSocket, record: i64) -> Result<WriteAnswer, ClientError> {
        let device = &self.client.device;
        let data = format!(
            r#"{{"device_id":"{device}","table_name":"{TABLE}","record_id":{record},"request_id":"f{record}","new_data":{{"n":{record}}}}}"#
        );
        socket.send(ws_frame("data_update", &data)).await?;
        loop {
            let text = socket.next().await?;
            match event_name(&text) {
                "acknowledged" if number_after(&text, r#""record_id":"#) == u64::try_from(record).ok() => {
                    if let Some(seq) = number_after(&text, r#""seq":"#) {
                        return Ok(WriteAnswer::Acked(seq));
                    }
                }
                "error" => {
                    let event = event_of(&text);
                    // What all are told is no answer to this.
                    if event.as_ref().is_some_and(|e| e.text("event") == Some("data_update")) {
                        let why = event.and_then(|e| e.error()).map_or_else(String::new, |(_, why)| why);
                        return Ok(WriteAnswer::Refused(why));
                    }
                }
                _ => {}
            }
        }
    }
}
