//! Writes and reads, closed and open loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::clients::{self, BenchClient, Subscription, event_name, number_after, refused};
use super::stats::{BenchLine, Stats};
use super::{Phases, RequestArgs};
use crate::cli::CliResult;
use crate::client::frame::ws_frame;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};

const TABLE: &str = "bench";
/// Records that a client writes in turn.
const RECORDS: u64 = 1_000;
/// How long an open loop waits for its last answers.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BenchRequest {
    Write,
    Read,
}

pub(super) async fn run(args: &RequestArgs, kind: BenchRequest) -> CliResult<Vec<BenchLine>> {
    let target = args.common.target.resolve()?;
    let mut reports = Vec::new();
    BenchLine::print_header();
    for count in &args.clients {
        let report = one(args, kind, &target, *count).await?;
        report.print();
        reports.push(report);
    }
    Ok(reports)
}

async fn one(args: &RequestArgs, kind: BenchRequest, target: &ClusterTarget, count: u32) -> CliResult<BenchLine> {
    let wants = Subscription::from(args.subscribe);
    let sockets = clients::connect_all(&clients::clients(target, "rw", count), &target.token, &wants).await?;
    let run = format!("{:08x}", rand::random::<u32>());
    let mut workers = Vec::with_capacity(sockets.len());
    let stats = Arc::new(Mutex::new(Stats::new()));
    for (client, socket) in sockets {
        let frames = Frames::new(&client, kind, &run, args.size as usize);
        let (target, wants, stats) = (target.clone(), wants.clone(), stats.clone());
        workers.push(Worker { client, socket: Some(socket), frames, target, wants, stats, turn: 0 });
    }
    if kind == BenchRequest::Read {
        for worker in &mut workers {
            worker.put_record().await?;
        }
    }
    let phases = Phases::from_now(&args.common);
    let mut tasks = JoinSet::new();
    for worker in workers {
        match args.rate {
            None => tasks.spawn(worker.closed(phases)),
            Some(rate) => tasks.spawn(worker.open(phases, f64::from(rate), count)),
        };
    }
    while tasks.join_next().await.is_some() {}
    let stats = stats.lock();
    if let Some(why) = &stats.last_error {
        note!("the last error: {why}");
    }
    let name = if kind == BenchRequest::Write { "write" } else { "read" };
    let mut report = stats.report(name, count, args.common.seconds as f64).with("size", args.size);
    if let Some(rate) = args.rate {
        report = report.with("rate", rate);
    }
    if args.subscribe == super::Subscribe::All {
        report = report.with("subscribe", "all");
    }
    Ok(report)
}

/// The frames of a client, but for the numbers that differ.
struct Frames {
    kind: BenchRequest,
    /// Up to the record id, between it and the request's number, and after that.
    parts: [String; 3],
    /// What stands before the request's number in its acknowledgement.
    ack_key: String,
    first_record: u64,
    next: u64,
}

impl Frames {
    fn new(client: &BenchClient, kind: BenchRequest, run: &str, size: usize) -> Self {
        let device = &client.device;
        let record = "\u{1}";
        let data = match kind {
            BenchRequest::Write => {
                // {"p":"…"} is eight bytes around the filling.
                let filling = "x".repeat(size.saturating_sub(8));
                format!(
                    r#"{{"device_id":"{device}","table_name":"{TABLE}","record_id":{record},"request_id":"{run}-{record}","new_data":{{"p":"{filling}"}}}}"#
                )
            }
            BenchRequest::Read => format!(r#"{{"device_id":"{device}","table_name":"{TABLE}","record_id":{record}}}"#),
        };
        let frame = ws_frame(if kind == BenchRequest::Write { "data_update" } else { "data_request" }, &data);
        let mut parts = frame.split(record).map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let parts = [part(), part(), part()];
        let ack_key = format!(r#""request_id":"{run}-"#);
        Self { kind, parts, ack_key, first_record: u64::from(client.index) * RECORDS, next: 0 }
    }

    /// The next frame and its number.
    fn next(&mut self) -> (u64, String) {
        let (number, [head, middle, tail]) = (self.next, &self.parts);
        self.next += 1;
        let frame = match self.kind {
            BenchRequest::Write => format!("{head}{}{middle}{number}{tail}", self.first_record + number % RECORDS),
            BenchRequest::Read => format!("{head}{}{middle}", self.first_record),
        };
        (number, frame)
    }

    /// Whether a frame answers a request, and which. Reads are answered in order and carry no number.
    fn answer(&self, socket: &WsSocket, text: &str) -> Result<Option<Option<u64>>, ClientError> {
        match (event_name(text), self.kind) {
            ("acknowledged", BenchRequest::Write) => Ok(Some(number_after(text, &self.ack_key))),
            ("data_response", BenchRequest::Read) => Ok(Some(None)),
            ("error" | "sync_error", _) => Err(refused(&socket.node, text)),
            _ => Ok(None),
        }
    }
}

struct Worker {
    client: BenchClient,
    socket: Option<WsSocket>,
    frames: Frames,
    target: ClusterTarget,
    wants: Subscription,
    stats: Arc<Mutex<Stats>>,
    turn: usize,
}

impl Worker {
    /// Makes the record that reads ask for.
    async fn put_record(&mut self) -> Result<(), ClientError> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        let mut frames = Frames::new(&self.client, BenchRequest::Write, "prepare", 256);
        // Another run may have written it under this number: then that one's answer comes back.
        socket.send(frames.next().1).await?;
        loop {
            let text = socket.next().await?;
            if frames.answer(socket, &text)?.is_some() {
                return Ok(());
            }
        }
    }

    async fn closed(mut self, phases: Phases) {
        while Instant::now() < phases.end {
            match timeout_at(phases.end, self.ask()).await {
                Ok(Ok((sent, at))) => {
                    if phases.measured(at) {
                        self.stats.lock().record(at, at - sent);
                    }
                }
                Ok(Err(e)) => self.lost(&e).await,
                Err(_) => return,
            }
        }
    }

    /// One request and its answer: when it was sent and when it was answered.
    async fn ask(&mut self) -> Result<(Instant, Instant), ClientError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            None => self.socket.insert(reconnect(&self.client, &self.target, &self.wants, self.turn).await?),
        };
        let (number, frame) = self.frames.next();
        let sent = Instant::now();
        socket.send(frame).await?;
        loop {
            let text = socket.next().await?;
            if let Some(answered) = self.frames.answer(socket, &text)?
                && answered.is_none_or(|n| n == number)
            {
                return Ok((sent, Instant::now()));
            }
        }
    }

    async fn lost(&mut self, error: &ClientError) {
        self.stats.lock().error(error.to_string());
        if !matches!(error, ClientError::Refused { .. }) {
            self.socket = None;
            self.turn += 1;
        }
        sleep(Duration::from_millis(20)).await;
    }

    async fn open(mut self, phases: Phases, rate: f64, count: u32) {
        let interval = Duration::from_secs_f64(f64::from(count) / rate);
        // The clients' first requests are spread over one interval.
        let mut due = Instant::now() + interval.mul_f64(f64::from(self.client.index) / f64::from(count));
        // When each request that is not answered was due.
        let mut waiting: VecDeque<(u64, Instant)> = VecDeque::new();
        loop {
            let over = due >= phases.end;
            if over && waiting.is_empty() || Instant::now() >= phases.end + DRAIN {
                break;
            }
            if let Err(e) = self.step(&mut waiting, &mut due, interval, over, phases).await {
                self.stats.lock().error(e.to_string());
                // What was under way is not answered any more; each counts as long as the loss took to see.
                self.give_up(&mut waiting, phases);
                self.socket = None;
                self.turn += 1;
                sleep(Duration::from_millis(20)).await;
            }
        }
        self.give_up(&mut waiting, phases);
    }

    async fn step(
        &mut self,
        waiting: &mut VecDeque<(u64, Instant)>,
        due: &mut Instant,
        interval: Duration,
        over: bool,
        phases: Phases,
    ) -> Result<(), ClientError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            None => self.socket.insert(reconnect(&self.client, &self.target, &self.wants, self.turn).await?),
        };
        tokio::select! {
            () = sleep_until(*due), if !over => {
                while *due <= Instant::now() && *due < phases.end {
                    let (number, frame) = self.frames.next();
                    socket.feed(frame).await?;
                    waiting.push_back((number, *due));
                    *due += interval;
                }
                socket.flush().await
            }
            () = sleep_until(phases.end + DRAIN), if over => Ok(()),
            text = socket.next() => {
                let text = text?;
                let Some(answered) = self.frames.answer(socket, &text)? else { return Ok(()) };
                let place = answered.map_or(Some(0), |n| waiting.iter().position(|(number, _)| *number == n));
                if let Some((_, was_due)) = place.and_then(|p| waiting.remove(p))
                    && phases.measured(was_due)
                {
                    let at = Instant::now();
                    self.stats.lock().record(at, at - was_due);
                }
                Ok(())
            }
        }
    }

    fn give_up(&self, waiting: &mut VecDeque<(u64, Instant)>, phases: Phases) {
        let mut stats = self.stats.lock();
        for (_, was_due) in waiting.drain(..).filter(|(_, due)| phases.measured(*due)) {
            let now = Instant::now();
            stats.record(now, now - was_due);
            stats.done -= 1;
            stats.errors += 1;
        }
    }
}

/// Connects again, to the next node each time.
async fn reconnect(
    client: &BenchClient,
    target: &ClusterTarget,
    wants: &Subscription,
    turn: usize,
) -> Result<WsSocket, ClientError> {
    let node = &target.nodes[(client.index as usize + turn) % target.nodes.len()];
    clients::connect(client, node, &target.token, wants).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::NodeUrl;

    #[test]
    fn frames_have_the_size_and_the_numbers_asked_for() {
        let client = BenchClient { index: 2, device: "d".into(), node: NodeUrl::plain("h:1") };
        let mut frames = Frames::new(&client, BenchRequest::Write, "ab", 64);
        frames.next();
        let (number, frame) = frames.next();
        let parsed: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!((number, &parsed["data"]["record_id"]), (1, &2_001.into()));
        assert_eq!(parsed["data"]["request_id"], "ab-1");
        assert_eq!(parsed["data"]["new_data"].to_string().len(), 64);
        let (_, frame) = Frames::new(&client, BenchRequest::Read, "ab", 64).next();
        let parsed: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!((&parsed["event"], &parsed["data"]["record_id"]), (&"data_request".into(), &2_000.into()));
    }
}
