//! Sessions that do nothing but answer pings: how many stay, and what they cost the nodes in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;

use super::IdleArgs;
use super::clients::{self, BenchClient};
use super::stats::{BenchLine, Stats};
use crate::cli::CliResult;
use crate::client::frame::{DeviceOnlineFrame, json};
use crate::client::link::{ClientLink, ClientTransport};
use crate::client::{ClientError, ClusterTarget};

pub(super) async fn run(args: &IdleArgs) -> CliResult<Vec<BenchLine>> {
    let target = args.common.target.resolve()?;
    let mut reports = Vec::new();
    for count in &args.clients {
        let report = one(args, &target, *count).await?;
        say!("{:#}", report.json());
        reports.push(report);
    }
    Ok(reports)
}

async fn one(args: &IdleArgs, target: &ClusterTarget, count: u32) -> CliResult<BenchLine> {
    let before = memory(&args.pids);
    let all = clients::clients(target, "idle", count);
    let links: Vec<ClientLink> = stream::iter(all.iter())
        .map(|client| connect(client, args.transport, &target.token))
        .buffer_unordered(32)
        .try_collect()
        .await?;
    let dropped = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for mut link in links {
        let dropped = dropped.clone();
        tasks.spawn(async move {
            while link.next().await.is_ok() {}
            dropped.fetch_add(1, Ordering::Relaxed);
        });
    }
    tokio::time::sleep(Duration::from_secs(args.common.warmup + args.common.seconds)).await;
    let after = memory(&args.pids);
    tasks.shutdown().await;
    let mut report = Stats::new()
        .report("idle", count, args.common.seconds as f64)
        .with("transport", args.transport.name())
        .with("sessions_lost", dropped.load(Ordering::Relaxed));
    if let (Some(before), Some(after)) = (before, after) {
        let grown = after.saturating_sub(before);
        report = report.with("memory_grown_bytes", grown).with("bytes_a_session", grown / u64::from(count));
    }
    Ok(report)
}

async fn connect(client: &BenchClient, transport: ClientTransport, token: &str) -> Result<ClientLink, ClientError> {
    let mut link = ClientLink::connect(transport, &client.node, token).await?;
    link.send("device_online", &json(&DeviceOnlineFrame::tool(&client.device))).await?;
    link.wait_for(&["device_online_ack"]).await?;
    Ok(link)
}

/// Resident memory of all these processes, bytes; `None` if there are none or one cannot be read.
fn memory(pids: &[u32]) -> Option<u64> {
    let of = |pid: &u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1_024)
    };
    if pids.is_empty() { None } else { pids.iter().map(of).sum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_can_be_read_on_linux() {
        assert_eq!(memory(&[]), None);
        if cfg!(target_os = "linux") {
            assert!(memory(&[std::process::id()]).unwrap() > 100_000);
        }
    }
}
