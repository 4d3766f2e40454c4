//! `tillsync bench failover`: what clients see when the master goes, killed or in peace, on three nodes of this
//! machine that it starts itself.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::local::{Layout, NODES, NodeEvent, Supervisor, TempFolder, free_ports, wait_ready};
use crate::cli::{CliResult, CommandError, stop_signal};
use crate::client::ClusterTarget;
use crate::client::rest::{NodeStatus, RestClient};

mod among;
mod check;
mod crew;
mod journal;
mod shutdown;

use crew::WriterCrew;
use journal::Times;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long is looked for the end of an outage, at least.
const LOOK: Duration = Duration::from_secs(2);
/// Quiet between two rounds: everything has settled.
const REST: Duration = Duration::from_secs(1);
/// All changes are looked at in the end; many kills write more than a cluster keeps by default.
const KEEP: &str = "keep_changes=1000000000";

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FailoverArgs {
    /// How often the master's node is killed (SIGKILL), and how often the master shuts down
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// Clients that write, each with one write under way
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Registered devices for the elections at the end; none to leave them out
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "10,10000", value_parser = clap::value_parser!(u32).range(0..=90_000))]
    devices: Vec<u32>,
    /// Print the results as JSON, or write them to a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl FailoverArgs {
    fn quiet(&self) -> bool {
        self.json.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    fn say(&self, line: &str) {
        if self.quiet() { note!("{line}") } else { say!("{line}") }
    }
}

pub(super) async fn run(args: &FailoverArgs) -> CliResult {
    let folder = TempFolder::make("failover")?;
    let mut layout = Layout::prepare(&folder.path, &free_ports(NODES)?)?;
    for node in &mut layout.nodes {
        node.set = vec![KEEP.into()];
    }
    let mut nodes = Supervisor::start(&layout, false)?;
    let result = tokio::select! {
        signal = stop_signal() => signal.and(Err(CommandError::new("stopped before the end"))),
        result = measure(args, &layout, &mut nodes) => result,
    };
    nodes.stop().await;
    let report = match result {
        Ok(report) => report,
        Err(failure) => {
            note!("the nodes' logs and data are left in {}", folder.path.display());
            return Err(failure);
        }
    };
    folder.remove();
    if let Some(path) = &args.json {
        let text = format!("{report:#}\n");
        if args.quiet() {
            say!("{}", text.trim_end());
        } else {
            std::fs::write(path, text).map_err(|e| CommandError::new(format!("{}: {e}", path.display())))?;
        }
    }
    let wrong = report["lost"].as_u64() != Some(0) || report["doubled"].as_u64() != Some(0);
    if wrong { Err(CommandError::new("acknowledged writes were lost or doubled")) } else { Ok(()) }
}

async fn measure(args: &FailoverArgs, layout: &Layout, nodes: &mut Supervisor) -> CliResult<Value> {
    let stage = MeasuredCluster {
        rest: RestClient::new(&layout.token)?,
        target: ClusterTarget { nodes: layout.urls(), token: layout.token.clone() },
    };
    stage.ready(nodes).await?;
    let crew = WriterCrew::start(&stage.target, args.clients).await?;
    stage.settled(nodes).await?;
    let killed = kills(args, &stage, nodes, &crew).await?;
    let graceful = shutdown::run(args, &stage, nodes, &crew).await?;
    let acked = crew.stop().await;
    let (lost, doubled) = check::all(&stage, &acked).await?;
    args.say(&format!("{} acknowledged writes: {lost} lost, {doubled} doubled", acked.len()));
    let among = among::run(args, &stage).await?;
    let mut report = json!({
        "bench": "failover", "kills": args.kills, "clients": args.clients, "writes": acked.len(),
        "lost": lost, "doubled": doubled, "shutdown": graceful, "elections": among,
    });
    if let (Some(fields), Value::Object(killed)) = (report.as_object_mut(), killed) {
        fields.extend(killed);
    }
    Ok(report)
}

/// The cluster that is measured.
pub(super) struct MeasuredCluster {
    pub rest: RestClient,
    pub target: ClusterTarget,
}

impl MeasuredCluster {
    async fn ready(&self, nodes: &mut Supervisor) -> CliResult<Vec<NodeStatus>> {
        wait_ready(&self.rest, &self.target.nodes, PATIENCE, || {
            while let Ok(event) = nodes.events.try_recv() {
                if let NodeEvent::GivenUp { node, why } | NodeEvent::Died { node, how: why, .. } = event {
                    return Err(CommandError::new(format!("node {node} ended: {why}")));
                }
            }
            Ok(())
        })
        .await
    }

    /// Waits until all nodes agree on leader and master, and the master's home is the leader. The leader.
    async fn settled(&self, nodes: &mut Supervisor) -> CliResult<usize> {
        let end = Instant::now() + PATIENCE;
        loop {
            let statuses = self.ready(nodes).await?;
            let (leader, master) = (statuses[0].leader, statuses[0].master.clone());
            let agreed = statuses.iter().all(|s| s.master == master && s.peers.iter().all(|p| p.reachable));
            if let (true, Some(leader), Some(master)) = (agreed, leader, master) {
                let path = format!("/device/roles/{master}");
                let device: Value = self.rest.get(&self.target.nodes[0], &path).await?;
                if device["home"].as_u64() == Some(leader) && device["is_active"] == true {
                    return Ok(usize::try_from(leader).unwrap_or_default());
                }
            }
            if Instant::now() >= end {
                return Err(CommandError::new("the leader and the master do not come together"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// SIGKILL of the master's node, again and again.
async fn kills(
    args: &FailoverArgs,
    stage: &MeasuredCluster,
    nodes: &mut Supervisor,
    crew: &WriterCrew,
) -> CliResult<Value> {
    let (mut writes, mut clients, mut elected) = (Times::default(), Times::default(), Times::default());
    for round in 1..=args.kills {
        let victim = stage.settled(nodes).await?;
        tokio::time::sleep(REST).await;
        let at = Instant::now();
        nodes.kill(victim);
        tokio::time::sleep(LOOK).await;
        crew.writing_again(at, PATIENCE).await?;
        let (all, slowest) = crew.outage(at);
        let told = crew
            .elected(at, victim)
            .ok_or_else(|| CommandError::new("a surviving client was not told who is master"))?;
        writes.add(all);
        clients.add(slowest);
        elected.add(told);
        args.say(&format!(
            "kill {round}: next acknowledged write after {:.0} ms, every client's after {:.0} ms, master_elected \
             at every surviving client after {:.0} ms",
            ms(all),
            ms(slowest),
            ms(told)
        ));
        nodes.revive(victim);
    }
    stage.settled(nodes).await?;
    args.say(&format!("kill of the master's node, ms until the next acknowledged write: {writes}"));
    args.say(&format!("  until every client has one: {clients}; until master_elected: {elected}"));
    Ok(json!({
        "median_ms": writes.median(), "min_ms": writes.least(), "max_ms": writes.most(),
        "every_client": clients.json(), "master_elected": elected.json(),
    }))
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
