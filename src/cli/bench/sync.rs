//! Full syncs of one device: records a second, page after page.

use tokio::time::Instant;

use super::SyncArgs;
use super::clients::{self, BenchClient, Subscription, event_name, refused};
use super::stats::{BenchLine, Stats};
use crate::cli::{CliResult, CommandError};
use crate::client::frame::ws_frame;
use crate::client::ws::WsSocket;
use crate::client::{ClientError, ClusterTarget};

const TABLE: &str = "bench-sync";
/// Writes under way while the records are made.
const AT_ONCE: usize = 256;

pub(super) async fn run(args: &SyncArgs) -> CliResult<Vec<BenchLine>> {
    let target = args.target.resolve()?;
    let node = target.nodes[0].clone();
    let client = BenchClient { index: 0, device: "bench-sync-0".into(), node };
    let mut socket = connect(&client, &target).await?;
    let (there, _) = full(&client, &mut socket, &mut Stats::new()).await?;
    fill(&client, &mut socket, there, args).await?;
    let (mut reports, wanted) = (Vec::new(), u64::from(args.records));
    BenchLine::print_header();
    for _ in 0..args.rounds {
        let mut stats = Stats::new();
        let began = Instant::now();
        let (records, bytes) = full(&client, &mut socket, &mut stats).await?;
        let took = began.elapsed().as_secs_f64();
        if records < wanted {
            return Err(CommandError::new(format!("a full sync brought {records} of {wanted} records")));
        }
        let pages = stats.done;
        // The table's rate is of records; its latencies are between two pages.
        stats.done = records;
        let report = stats.report("sync", 1, took).with("pages", pages).with("bytes", bytes).with("size", args.size);
        report.print();
        reports.push(report);
    }
    Ok(reports)
}

async fn connect(client: &BenchClient, target: &ClusterTarget) -> Result<WsSocket, ClientError> {
    clients::connect(client, &client.node, &target.token, &Subscription::Nothing).await
}

/// Records and bytes of a full sync of the table.
async fn full(client: &BenchClient, socket: &mut WsSocket, stats: &mut Stats) -> Result<(u64, u64), ClientError> {
    let ask = format!(r#"{{"device_id":"{}","sync_type":"full","requested_tables":["{TABLE}"]}}"#, client.device);
    socket.send(ws_frame("sync_request", &ask)).await?;
    let (mut records, mut bytes, mut since) = (0, 0, Instant::now());
    loop {
        let text = socket.next().await?;
        match event_name(&text) {
            "sync_response" => {
                let now = Instant::now();
                stats.record(now, now - since);
                since = now;
                records += text.matches(r#""record_id":"#).count() as u64;
                bytes += text.len() as u64;
                if text.contains(r#""has_more":false"#) {
                    return Ok((records, bytes));
                }
            }
            "error" | "sync_error" => return Err(refused(&client.node, &text)),
            _ => {}
        }
    }
}

/// Makes the records that are not there yet.
async fn fill(client: &BenchClient, socket: &mut WsSocket, there: u64, args: &SyncArgs) -> Result<(), ClientError> {
    let data = "x".repeat(args.size as usize - 8);
    let (mut sent, mut under_way) = (there, 0);
    while sent < u64::from(args.records) || under_way > 0 {
        while sent < u64::from(args.records) && under_way < AT_ONCE {
            sent += 1;
            under_way += 1;
            let update = format!(
                r#"{{"device_id":"{}","table_name":"{TABLE}","record_id":{sent},"new_data":{{"d":"{data}"}}}}"#,
                client.device
            );
            socket.feed(ws_frame("data_update", &update)).await?;
        }
        socket.flush().await?;
        let text = socket.next().await?;
        match event_name(&text) {
            "acknowledged" => under_way -= 1,
            "error" => return Err(refused(&client.node, &text)),
            _ => {}
        }
    }
    Ok(())
}
