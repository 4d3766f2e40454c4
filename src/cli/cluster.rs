//! `tillsync cluster`: how a cluster is, and who belongs to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::CliResult;
use crate::cli::target::TargetArgs;
use crate::cli::waiting::nobody_answered;
use crate::client::rest::{FinalizedAnswer, MembersChangedAnswer, RestClient};
use crate::client::{ClientError, ClusterTarget};

mod init;
mod status;

#[derive(Subcommand, Debug)]
pub(super) enum ClusterCommand {
    /// Write the key and the settings of a new cluster's first node
    Init(ClusterInitArgs),
    /// Show every node: its role, how far it has come, whom it holds for the master
    Status(StatusArgs),
    /// Add a node that runs with `join` set; it gets its vote when it has caught up
    Add(AddArgs),
    /// Give a node other addresses, at which it answers already
    Move(MoveArgs),
    /// Remove a node for good, alive or dead; its id is never used again
    Remove(RemoveArgs),
    /// Hand leadership to a node, and the master's role to a device that is connected there
    Transfer(TransferArgs),
    /// After an upgrade: raise the cluster's version, for good, to the newest that the programs of all nodes know
    Finalize(FinalizeArgs),
    /// Bring the cluster's time back to that of the clocks, where a wrong clock took it ahead
    TimeBack(TimeBackArgs),
}

#[derive(Args, Debug)]
pub(super) struct TimeBackArgs {
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
pub(super) struct ClusterInitArgs {
    /// Where to put token.key, node.toml and the data
    dir: PathBuf,
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = "tillsync")]
    name: String,
    /// Where the other nodes reach this one
    #[arg(long, value_name = "IP:PORT")]
    raft: std::net::SocketAddr,
    /// Where devices reach it
    #[arg(long, value_name = "IP:PORT")]
    gateway: std::net::SocketAddr,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print what the nodes answered, as JSON
    #[arg(long)]
    json: bool,
    /// Show it again every second
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

#[derive(Args, Debug)]
pub(super) struct AddArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The node's `node_id`, one that was never used before
    #[arg(long, value_name = "ID")]
    id: u64,
    /// Where the other nodes reach it
    #[arg(long, value_name = "HOST:PORT")]
    raft: String,
    /// Where devices reach it
    #[arg(long, value_name = "HOST:PORT")]
    gateway: String,
}

#[derive(Args, Debug)]
pub(super) struct MoveArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The node
    id: u64,
    /// Where the other nodes reach it
    #[arg(long, value_name = "HOST:PORT")]
    raft: String,
    /// Where devices reach it: HOST:PORT, or a URL
    #[arg(long, value_name = "URL")]
    gateway: String,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The node
    id: u64,
}

#[derive(Args, Debug)]
pub(super) struct TransferArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The node that is to lead
    to: u64,
}

#[derive(Args, Debug)]
pub(super) struct FinalizeArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args, Debug)]
struct ChangeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

pub(super) async fn execute(command: ClusterCommand) -> CliResult {
    match command {
        ClusterCommand::Init(args) => init::execute(&args),
        ClusterCommand::Status(args) => status::execute(args).await,
        ClusterCommand::Add(args) => {
            let body = json!({
                "node": args.id, "raft": args.raft, "gateway": args.gateway, "timeout_ms": args.change.timeout * 1_000,
            });
            let done: MembersChangedAnswer =
                change(&args.change, Method::POST, "/system/cluster/nodes", Some(body)).await?;
            say!("node {} was added; voters: {}", done.node, list(&done.voters));
            Ok(())
        }
        ClusterCommand::Move(args) => {
            let path = format!("/system/cluster/nodes/{}", args.id);
            let gateway = host_and_port(&args.gateway);
            let body = json!({"raft": args.raft, "gateway": gateway, "timeout_ms": args.change.timeout * 1_000});
            let done: MembersChangedAnswer = change(&args.change, Method::PUT, &path, Some(body)).await?;
            say!("node {} is at {}, its gateway at {gateway}", done.node, args.raft);
            Ok(())
        }
        ClusterCommand::Remove(args) => {
            let path = format!("/system/cluster/nodes/{}?timeout_ms={}", args.id, args.change.timeout * 1_000);
            let done: MembersChangedAnswer = change(&args.change, Method::DELETE, &path, None).await?;
            say!("node {} was removed; voters: {}", done.node, list(&done.voters));
            Ok(())
        }
        ClusterCommand::Finalize(args) => {
            let body = json!({"timeout_ms": args.change.timeout * 1_000});
            let done: FinalizedAnswer =
                change(&args.change, Method::POST, "/system/cluster/finalize", Some(body)).await?;
            say!(
                "the cluster's version is {}: no node can go back to a program that does not know it",
                done.cluster_version
            );
            Ok(())
        }
        ClusterCommand::TimeBack(args) => {
            let ClusterTarget { nodes, token } = args.target.resolve()?;
            let rest = RestClient::new(&token)?;
            let mut reasons = Vec::new();
            for node in &nodes {
                match rest.time_back(node).await {
                    Ok(at) => {
                        say!("the cluster's time is {at}");
                        return Ok(());
                    }
                    Err(error @ ClientError::Lost { .. }) => reasons.push(error),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(nobody_answered(&reasons))
        }
        ClusterCommand::Transfer(args) => {
            let body = json!({"to": args.to, "timeout_ms": args.change.timeout * 1_000});
            let done: MembersChangedAnswer =
                change(&args.change, Method::POST, "/system/cluster/transfer", Some(body)).await?;
            say!("node {} leads", done.node);
            Ok(())
        }
    }
}

/// Asks the first node that can be reached.
async fn change<T: DeserializeOwned>(
    args: &ChangeArgs,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> CliResult<T> {
    let ClusterTarget { nodes, token } = args.target.resolve()?;
    let (rest, within) = (RestClient::new(&token)?, Duration::from_secs(args.timeout));
    let mut reasons = Vec::new();
    for node in &nodes {
        match rest.change_members(node, method.clone(), path, body.as_ref(), within).await {
            Ok(done) => return Ok(done),
            Err(error @ ClientError::Lost { .. }) => reasons.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(nobody_answered(&reasons))
}

/// Of a URL, what the members' addresses have of it.
fn host_and_port(gateway: &str) -> &str {
    let bare = gateway.strip_prefix("https://").or(gateway.strip_prefix("http://")).unwrap_or(gateway);
    bare.strip_suffix('/').unwrap_or(bare)
}

fn list(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}
