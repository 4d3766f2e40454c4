//! `chaos inject` and `chaos heal`: faults in a cluster that `tillsync dev` runs on this machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::{Instant, sleep};

use super::cluster::OperatedCluster;
use super::local::{LocalNode, nodes, target};
use super::{PATIENCE, ask, block_on};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InjectedFault {
    /// SIGKILL: as if the machine lost power, but what was written is there
    Kill,
    /// SIGSTOP: the node stands still, and nobody is told; until `cont` or `heal`
    Stop,
    /// SIGCONT: a node that stands still goes on
    Cont,
    /// A clean stop and start, as in an upgrade; of several nodes one after the other
    Restart,
    /// Leadership goes to the node
    Transfer,
}

#[derive(Args)]
pub(crate) struct Inject {
    kind: InjectedFault,
    /// The data folder of `tillsync dev`
    #[arg(long, value_name = "DIR", default_value = "./tillsync-data")]
    data: PathBuf,
    /// Which nodes: numbers with commas between them, `leader`, or `all`
    #[arg(long, value_name = "N")]
    node: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(crate) struct HealArgs {
    /// The data folder of `tillsync dev`
    #[arg(long, value_name = "DIR", default_value = "./tillsync-data")]
    data: PathBuf,
    /// How long the cluster may take to be well, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    within: u64,
}

impl Inject {
    pub(crate) fn run(&self) -> Result<bool, String> {
        let nodes = nodes(&self.data)?;
        let cluster = OperatedCluster::new(target(&self.data, &nodes)?)?;
        block_on(self.inject(&nodes, &cluster))
    }

    async fn inject(&self, all: &[LocalNode], cluster: &OperatedCluster) -> Result<bool, String> {
        let leader = cluster.leader().await;
        let chosen = choose(&self.node, all, leader)?;
        if self.kind == InjectedFault::Transfer && chosen.len() != 1 {
            return Err("leadership can go to one node only: name one".into());
        }
        if !ask::sure(&self.plan(&chosen, all.len(), leader)?, self.yes)? {
            println!("nothing was done");
            return Ok(true);
        }
        for node in &chosen {
            match self.kind {
                InjectedFault::Kill => node.signal(libc::SIGKILL)?,
                InjectedFault::Stop => node.signal(libc::SIGSTOP)?,
                InjectedFault::Cont => node.signal(libc::SIGCONT)?,
                InjectedFault::Restart => restart(node, cluster).await?,
                InjectedFault::Transfer => cluster.transfer(node.id, PATIENCE).await?,
            }
        }
        println!("done{}", if self.kind == InjectedFault::Stop { "; `chaos heal` lets them go on" } else { "" });
        Ok(true)
    }

    /// What will be done, in words; every process is looked at before the first one is touched.
    fn plan(&self, chosen: &[&LocalNode], all: usize, leader: Option<u64>) -> Result<String, String> {
        let mut text = String::new();
        for node in chosen {
            let leads = if leader == Some(node.id) { ", which leads," } else { "" };
            if self.kind == InjectedFault::Transfer {
                text += &format!("Leadership goes to node {}.\n", node.id);
                continue;
            }
            let what = match self.kind {
                InjectedFault::Kill => "gets SIGKILL. `tillsync dev` starts it again, unless it was told not to",
                InjectedFault::Stop => "gets SIGSTOP and stands still until it gets SIGCONT (`chaos heal`)",
                InjectedFault::Cont => "gets SIGCONT and goes on",
                InjectedFault::Restart | InjectedFault::Transfer => {
                    "gets SIGTERM, hands over, ends, and is started again by `tillsync dev`"
                }
            };
            text += &format!("Node {}{leads} (process {}) {what}.\n", node.id, node.pid()?);
        }
        let gone = matches!(self.kind, InjectedFault::Kill | InjectedFault::Stop);
        if gone && chosen.len() * 2 >= all {
            text += "With so many nodes gone there is no majority: nothing can be written meanwhile.\n";
        }
        Ok(text.trim_end().to_owned())
    }
}

fn choose<'a>(who: &str, all: &'a [LocalNode], leader: Option<u64>) -> Result<Vec<&'a LocalNode>, String> {
    let numbers = match who {
        "all" => all.iter().map(|node| node.id).collect(),
        "leader" => vec![leader.ok_or("no node knows a leader now")?],
        list => {
            let numbers: Result<Vec<u64>, _> = list.split(',').map(|number| number.trim().parse()).collect();
            numbers.map_err(|_| format!("--node {who:?}: expected numbers such as 1 or 1,2, or leader, or all"))?
        }
    };
    let find =
        |id: &u64| all.iter().find(|node| node.id == *id).ok_or_else(|| format!("--node: there is no node {id}"));
    numbers.iter().map(find).collect()
}

/// A clean stop; back when a new process serves.
pub(crate) async fn restart(node: &LocalNode, cluster: &OperatedCluster) -> Result<(), String> {
    let old = node.pid()?;
    node.signal(libc::SIGTERM)?;
    let end = Instant::now() + PATIENCE;
    while node.pid().is_err() || node.pid() == Ok(old) {
        if Instant::now() >= end {
            let id = node.id;
            return Err(format!(
                "node {id} was stopped and is not started again: was `tillsync dev` told --no-restart?"
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
    cluster.well(PATIENCE).await.map(drop)
}

/// Lets all go on that stand still.
pub(crate) fn go_on(nodes: &[LocalNode]) -> Result<Vec<u64>, String> {
    let stopped: Vec<&LocalNode> = nodes.iter().filter(|node| node.stopped()).collect();
    let went: Vec<Result<u64, String>> =
        stopped.iter().map(|node| node.signal(libc::SIGCONT).map(|()| node.id)).collect();
    went.into_iter().collect()
}

impl HealArgs {
    pub(crate) fn run(&self) -> Result<bool, String> {
        let nodes = nodes(&self.data)?;
        let cluster = OperatedCluster::new(target(&self.data, &nodes)?)?;
        for id in go_on(&nodes)? {
            println!("node {id} goes on");
        }
        let statuses = block_on(cluster.well(Duration::from_secs(self.within))).map_err(|why| {
            let gone = nodes.iter().filter_map(|node| node.pid().err()).collect::<Vec<_>>().join("; ");
            if gone.is_empty() { why } else { format!("{why}. {gone}") }
        })?;
        let leader = statuses.first().and_then(|status| status.leader).unwrap_or_default();
        println!("all {} nodes are well; node {leader} leads", statuses.len());
        Ok(true)
    }
}
