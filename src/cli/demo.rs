//! `tillsync demo`: what Tillsync is for, in one command on a fresh machine.
//!
//! Three nodes, five devices that push real order lines and receive each other's, the leading node killed in
//! the middle and brought back; then everything that was promised is checked.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::load::csv_file::{CsvFile, CsvLine};
use super::local::{Layout, NODES, NodeEvent, Supervisor, TempFolder, free_ports, wait_ready};
use super::{CliResult, CommandError, stop_signal};
use crate::client::link::ClientTransport;
use crate::client::rest::{NodeStatus, RestClient};
use crate::clock::{Clock, SystemClock};
use crate::token::{Class, KeyRing};

mod check;
mod device;
mod report;

use device::{DemoDevice, DemoProgress, DeviceJournal};
use report::DemoReport;

/// Real order lines; see the NOTICE beside the file.
const ORDERS: &str = include_str!("demo/orders.csv");
const KEY: &str = "Row ID";
const TABLE: &str = "orders";

const PATIENCE: Duration = Duration::from_secs(30);
/// The share of the lines that is acknowledged when the leader is killed, and when it is brought back. Percent.
const KILL_AT: usize = 40;
const REVIVE_AT: usize = 75;

/// The devices: name, class, transport and the node (from 1) that each is connected to at first.
const DEVICES: [(&str, Class, ClientTransport, usize); 5] = [
    ("till-1", Class::SalesAssistant, ClientTransport::Socketio, 1),
    ("till-2", Class::SalesAssistant, ClientTransport::Ws, 2),
    ("handheld-1", Class::InventoryAssistant, ClientTransport::Ws, 3),
    ("handheld-2", Class::InventoryAssistant, ClientTransport::Socketio, 3),
    ("back-office", Class::Manager, ClientTransport::Ws, 1),
];

#[derive(clap::Args, Debug)]
pub(super) struct DemoArgs {
    /// Leave the cluster running afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(super) async fn execute(args: DemoArgs) -> CliResult {
    let folder = TempFolder::make("demo")?;
    let layout = Layout::prepare(&folder.path, &free_ports(NODES)?)?;
    let mut nodes = Supervisor::start(&layout, false)?;
    let result = tokio::select! {
        signal = stop_signal() => signal.and(Err(CommandError::new("stopped before the end"))),
        result = show(&layout, &mut nodes) => result,
    };
    if args.keep && result.is_ok() {
        say!("\nThe cluster goes on running; Ctrl-C stops it.");
        for url in layout.urls() {
            say!("  {url}");
        }
        say!("  token  {}", layout.token);
        stop_signal().await?;
    }
    nodes.stop().await;
    match result {
        Ok(()) => folder.remove(),
        Err(_) => note!("the nodes' logs and data are left in {}", folder.path.display()),
    }
    result
}

/// The whole play; an error if anything did not hold.
async fn show(layout: &Layout, nodes: &mut Supervisor) -> CliResult {
    let begun = Instant::now();
    let rest = RestClient::new(&layout.token)?;
    let statuses = ready(&rest, layout, nodes).await?;
    say!("three nodes are up after {:.1} s; node {} leads", begun.elapsed().as_secs_f64(), leader(&statuses)?);
    let lines = orders(&layout.dir)?;
    let total = lines.len();
    let (progress, watching) = watch::channel(DemoProgress::default());
    let mut devices = start_devices(layout, lines, &progress).await?;
    say!("five devices are connected and push {total} order lines");
    let outage = conduct(&rest, layout, nodes, watching, &mut devices, total).await?;
    say!("all lines are acknowledged and every device has received them; checking");
    // Anything sent twice would come now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    progress.send_modify(|p| p.over = true);
    let mut journals: Vec<DeviceJournal> = Vec::new();
    while let Some(journal) = devices.join_next().await {
        journals.push(journal.map_err(|e| CommandError::new(format!("a device failed: {e}")))??);
    }
    journals.sort_by_key(|j| DEVICES.iter().position(|d| d.0 == j.device));
    let statuses = ready(&rest, layout, nodes).await?;
    let checks = check::all(&rest, &layout.urls(), &journals, total).await;
    let report = DemoReport { journals, checks, statuses, outage, took: begun.elapsed() };
    say!("{}", report.text().trim_end());
    if report.holds() { Ok(()) } else { Err(CommandError::new("not everything held")) }
}

/// What the kill looked like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub killed: usize,
    pub at: Instant,
    pub new_leader: u64,
}

/// Kills the leader, brings it back, and waits until every device has everything.
async fn conduct(
    rest: &RestClient,
    layout: &Layout,
    nodes: &mut Supervisor,
    mut watching: watch::Receiver<DemoProgress>,
    devices: &mut JoinSet<CliResult<DeviceJournal>>,
    total: usize,
) -> CliResult<Outage> {
    let urls = layout.urls();
    reach(&mut watching, devices, "the first lines", |p| p.acked * 100 >= KILL_AT * total).await?;
    let statuses = wait_ready(rest, &urls, PATIENCE, || Ok(())).await?;
    let killed = leader(&statuses)?;
    nodes.kill(killed);
    let at = Instant::now();
    say!("node {killed}, which leads, is killed (SIGKILL) after {} lines", watching.borrow().acked);
    let survivors: Vec<_> = urls.iter().enumerate().filter(|(i, _)| i + 1 != killed).map(|(_, u)| u.clone()).collect();
    let new_leader = loop {
        let statuses = wait_ready(rest, &survivors, PATIENCE, || Ok(())).await?;
        // A survivor may still believe in the dead leader.
        if leader(&statuses)? != killed {
            break statuses[0].leader.unwrap_or_default();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    say!("node {new_leader} leads; the devices of node {killed} go on elsewhere");
    reach(&mut watching, devices, "lines without the killed node", |p| p.acked * 100 >= REVIVE_AT * total).await?;
    nodes.revive(killed);
    say!("node {killed} is started again after {} lines", watching.borrow().acked);
    reach(&mut watching, devices, "the rest", |p| p.complete == DEVICES.len()).await?;
    Ok(Outage { killed, at, new_leader })
}

/// Waits for the devices to come this far. A device that fails ends the wait.
async fn reach(
    watching: &mut watch::Receiver<DemoProgress>,
    devices: &mut JoinSet<CliResult<DeviceJournal>>,
    what: &str,
    there: impl FnMut(&DemoProgress) -> bool,
) -> CliResult {
    let reached = tokio::select! {
        reached = tokio::time::timeout(PATIENCE, watching.wait_for(there)) => matches!(reached, Ok(Ok(_))),
        ended = devices.join_next() => {
            let why = match ended {
                Some(Ok(Err(failure))) => return Err(failure),
                Some(Err(e)) => e.to_string(),
                _ => "it ended early".into(),
            };
            return Err(CommandError::new(format!("a device failed: {why}")));
        }
    };
    if reached {
        return Ok(());
    }
    let DemoProgress { acked, complete, .. } = *watching.borrow();
    let patience = PATIENCE.as_secs();
    Err(CommandError::new(format!(
        "waited {patience} s for {what}: {acked} lines are acknowledged, {complete} devices have received everything"
    )))
}

async fn ready(rest: &RestClient, layout: &Layout, nodes: &mut Supervisor) -> CliResult<Vec<NodeStatus>> {
    wait_ready(rest, &layout.urls(), PATIENCE, || {
        while let Ok(event) = nodes.events.try_recv() {
            if let NodeEvent::GivenUp { node, why } | NodeEvent::Died { node, how: why, .. } = event {
                return Err(CommandError::new(format!("node {node} ended: {why}")));
            }
        }
        Ok(())
    })
    .await
}

fn leader(statuses: &[NodeStatus]) -> CliResult<usize> {
    let leader = statuses.first().and_then(|s| s.leader).and_then(|l| usize::try_from(l).ok());
    leader.ok_or_else(|| CommandError::new("the nodes know no leader"))
}

/// Every device online before the first line is sent, so that each receives all of them.
async fn start_devices(
    layout: &Layout,
    lines: Vec<CsvLine>,
    progress: &watch::Sender<DemoProgress>,
) -> CliResult<JoinSet<CliResult<DeviceJournal>>> {
    let keys = KeyRing::read(&layout.dir.join("token.key"))?;
    let (total, mut shares) = (lines.len(), vec![Vec::new(); DEVICES.len()]);
    for (i, line) in lines.into_iter().enumerate() {
        shares[i % DEVICES.len()].push(line);
    }
    let mut ready = Vec::new();
    for ((name, class, transport, home), share) in DEVICES.into_iter().zip(shares) {
        let (token, _) = keys.issue(name, class, SystemClock.now_ms(), 3_600)?;
        let mut device = DemoDevice::new(name, class, transport, layout.urls(), home - 1, token);
        device.come_online().await?;
        ready.push((device, share));
    }
    let mut tasks = JoinSet::new();
    for (device, share) in ready {
        tasks.spawn(device.run(share, total, progress.clone()));
    }
    Ok(tasks)
}

fn orders(dir: &Path) -> CliResult<Vec<CsvLine>> {
    let path = dir.join("orders.csv");
    fs::write(&path, ORDERS).map_err(|e| CommandError::new(format!("{}: {e}", path.display())))?;
    let file = CsvFile::open(&path, KEY)?;
    file.check()?;
    file.lines()?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_lines_are_records() {
        let dir = tempfile::tempdir().unwrap();
        let lines = orders(dir.path()).unwrap();
        assert_eq!(lines.len(), 500);
        assert!(lines[0].data.contains(r#""Sales":261.96,"Quantity":2"#));
        assert!(lines.len().is_multiple_of(DEVICES.len()));
    }
}
