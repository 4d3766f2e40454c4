//! One sender's changes to many sessions: deliveries a second and how long they take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::clients::{self, BenchClient, Subscription, event_name, number_after, refused};
use super::stats::{BenchLine, Stats};
use super::{FanoutArgs, Phases};
use crate::cli::CliResult;
use crate::client::frame::ws_frame;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};

/// Without a rate: changes that are on their way to the slowest receivers.
const ON_THEIR_WAY: u64 = 16;
/// After the last change: how long for its deliveries.
const DRAIN: Duration = Duration::from_secs(5);

pub(super) async fn run(args: &FanoutArgs) -> CliResult<Vec<BenchLine>> {
    let mut target = args.common.target.resolve()?;
    if !args.spread {
        target.nodes.truncate(1);
    }
    let mut reports = Vec::new();
    BenchLine::print_header();
    for count in &args.clients {
        let report = one(args, &target, *count).await?;
        report.print();
        reports.push(report);
    }
    Ok(reports)
}

struct FanoutShared {
    stats: Mutex<Stats>,
    delivered: AtomicU64,
    /// Rung when deliveries came, for the sender that waits for them.
    came: Notify,
    lost: AtomicU64,
    /// What the changes' times count from.
    epoch: Instant,
}

async fn one(args: &FanoutArgs, target: &ClusterTarget, count: u32) -> CliResult<BenchLine> {
    let table = format!("fanout-{count}");
    let wants = Subscription::Table(table.clone());
    let receivers = clients::connect_all(&clients::clients(target, "fan", count), &target.token, &wants).await?;
    let sender = BenchClient { index: 0, device: "bench-sender".into(), node: target.nodes[0].clone() };
    let mut socket = clients::connect(&sender, &sender.node, &target.token, &Subscription::Nothing).await?;
    let phases = Phases::from_now(&args.common);
    let shared = Arc::new(FanoutShared {
        stats: Mutex::new(Stats::new()),
        delivered: AtomicU64::new(0),
        came: Notify::new(),
        lost: AtomicU64::new(0),
        epoch: Instant::now(),
    });
    let mut tasks = JoinSet::new();
    for (_, socket) in receivers {
        tasks.spawn(receive(socket, shared.clone(), phases));
    }
    let sent = send(args, &mut socket, &table, count, &shared, phases).await?;
    sleep_until(Instant::now() + DRAIN.min(Duration::from_millis(500))).await;
    tasks.shutdown().await;
    let stats = shared.stats.lock();
    let lost = shared.lost.load(Ordering::Relaxed);
    if let Some(why) = &stats.last_error {
        note!("the last error: {why}");
    }
    let report = stats.report("fanout", count, args.common.seconds as f64);
    Ok(report.with("changes_sent", sent).with("sessions_lost", lost).with("size", args.size))
}

async fn receive(mut socket: WsSocket, shared: Arc<FanoutShared>, phases: Phases) {
    loop {
        let first = match socket.next().await {
            Ok(text) => text,
            Err(e) => {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                shared.stats.lock().error(e.to_string());
                return;
            }
        };
        let (mut count, mut text) = (0, Some(first));
        {
            let mut stats = shared.stats.lock();
            while let Some(frame) = text {
                if event_name(&frame) == "data_update" {
                    count += 1;
                    let now = Instant::now();
                    if phases.measured(now)
                        && let Some(sent) = number_after(&frame, r#""t":"#)
                    {
                        stats.record(now, now.saturating_duration_since(shared.epoch + Duration::from_micros(sent)));
                    }
                }
                text = socket.try_next().unwrap_or(None);
            }
        }
        shared.delivered.fetch_add(count, Ordering::Relaxed);
        shared.came.notify_one();
    }
}

/// Sends changes until the end; how many.
async fn send(
    args: &FanoutArgs,
    socket: &mut WsSocket,
    table: &str,
    count: u32,
    shared: &FanoutShared,
    phases: Phases,
) -> Result<u64, ClientError> {
    let interval = args.rate.map(|rate| Duration::from_secs_f64(1.0 / f64::from(rate)));
    let filling = "x".repeat((args.size as usize).saturating_sub(30));
    let mut due = Instant::now();
    let mut sent = 0u64;
    loop {
        match interval {
            Some(interval) => {
                sleep_until(due).await;
                due += interval;
            }
            None => {
                due = Instant::now();
                let alive = u64::from(count).saturating_sub(shared.lost.load(Ordering::Relaxed)).max(1);
                while shared.delivered.load(Ordering::Relaxed) + ON_THEIR_WAY * alive < sent * alive
                    && Instant::now() < phases.end
                {
                    // Deliveries that were lost with their session must not stop the sender for ever.
                    let _ = tokio::time::timeout(Duration::from_millis(200), shared.came.notified()).await;
                }
            }
        }
        if due >= phases.end || Instant::now() >= phases.end {
            return Ok(sent);
        }
        // From when it was due: a sender that is held up must not hide it.
        let micros = due.saturating_duration_since(shared.epoch).as_micros();
        let record = sent % 1_000;
        let data = format!(
            r#"{{"device_id":"bench-sender","table_name":"{table}","record_id":{record},"new_data":{{"t":{micros},"p":"{filling}"}}}}"#
        );
        socket.send(ws_frame("data_update", &data)).await?;
        sent += 1;
        while let Some(text) = socket.try_next()? {
            if event_name(&text) == "error" {
                return Err(refused(&socket.node, &text));
            }
        }
    }
}
