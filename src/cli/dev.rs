//! `tillsync dev`: a three-node cluster on this machine, with nothing to configure.

use std::path::PathBuf;
use std::time::Duration;

use super::local::{Layout, NODES, NodeEvent, Supervisor, wait_ready};
use super::{CliResult, CommandError, stop_signal};
use crate::client::rest::RestClient;

/// How long the first election may take, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args, Debug)]
pub(super) struct DevArgs {
    /// Where the cluster keeps its data, keys and logs
    #[arg(long, value_name = "DIR", default_value = "./tillsync-data")]
    data: PathBuf,
    /// The gateways listen on BASE, BASE+1 and BASE+2
    #[arg(long, value_name = "BASE", default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..=65533))]
    port: u16,
    /// Leave a node that died as it is
    #[arg(long)]
    no_restart: bool,
    /// A setting of every node; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) async fn execute(args: DevArgs) -> CliResult {
    let ports: Vec<u16> = (0..NODES as u16).map(|i| args.port + i).collect();
    let mut layout = Layout::prepare(&args.data, &ports)?;
    for node in &mut layout.nodes {
        node.set.clone_from(&args.set);
    }
    let mut nodes = Supervisor::start(&layout, !args.no_restart)?;
    let result = tokio::select! {
        signal = stop_signal() => signal,
        result = watch_over(&layout, &mut nodes) => result,
    };
    say!("stopping");
    nodes.stop().await;
    result
}

/// Says when the cluster is ready, then what happens to its nodes.
async fn watch_over(layout: &Layout, nodes: &mut Supervisor) -> CliResult {
    let rest = RestClient::new(&layout.token)?;
    let mut pids = [0; NODES];
    let events = &mut nodes.events;
    wait_ready(&rest, &layout.urls(), PATIENCE, || {
        while let Ok(event) = events.try_recv() {
            match event {
                NodeEvent::Started { node, pid } => pids[node - 1] = pid,
                NodeEvent::Died { node, how, .. } => say!("node {node} ended ({how})"),
                NodeEvent::GivenUp { node, why } => return Err(CommandError::usage(format!("node {node}: {why}"))),
            }
        }
        Ok(())
    })
    .await?;
    announce(layout, &pids);
    let mut alive = NODES;
    while let Some(event) = nodes.events.recv().await {
        match event {
            NodeEvent::Started { node, pid } => say!("node {node} started, pid {pid}"),
            NodeEvent::Died { node, how, again: true } => say!("node {node} ended ({how}); starting it again"),
            NodeEvent::Died { node, how, again: false } => say!("node {node} ended ({how}); left as it is"),
            NodeEvent::GivenUp { node, why } => {
                say!("node {node} does not start: {why}");
                alive -= 1;
                if alive == 0 {
                    return Err(CommandError::new("no node is left"));
                }
            }
        }
    }
    Err(CommandError::new("no node is left"))
}

fn announce(layout: &Layout, pids: &[u32]) {
    say!("Tillsync runs on this machine.\n");
    for (node, pid) in layout.nodes.iter().zip(pids) {
        say!("  node {}  {}  pid {pid}  log {}", node.id, node.gateway, node.log().display());
    }
    say!("\n  data         {}", layout.dir.display());
    say!("  admin token  {} (also in {})", layout.token, layout.dir.join("admin.token").display());
    say!("\nTry: tillsync cluster status    Stop: Ctrl-C");
}
