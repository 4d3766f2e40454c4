//! `tillsync cluster`: how a cluster is.

use clap::{Args, Subcommand};

use super::client::rest::{NodeStatus, Rest};
use super::client::{ClientError, NodeUrl, TargetArgs};
use super::{CliResult, Failure};

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Ask every node how it sees the cluster
    Status(StatusArgs),
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print what the nodes answered, as JSON
    #[arg(long)]
    json: bool,
}

pub async fn execute(command: Command) -> CliResult {
    let Command::Status(args) = command;
    let target = args.target.resolve()?;
    let rest = Rest::new(&target.token)?;
    let mut answers = Vec::new();
    for node in &target.nodes {
        answers.push((node.clone(), rest.status(node).await));
    }
    if args.json {
        let all: Vec<_> = answers
            .iter()
            .map(|(url, answer)| match answer {
                Ok(status) => serde_json::json!({"url": url.to_string(), "status": status}),
                Err(e) => serde_json::json!({"url": url.to_string(), "error": e.to_string()}),
            })
            .collect();
        say!("{:#}", serde_json::Value::Array(all));
    } else {
        say!("{}", table(&answers).trim_end());
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(Failure::new("no node answered"));
    }
    Ok(())
}

fn table(answers: &[(NodeUrl, Result<NodeStatus, ClientError>)]) -> String {
    let mut out = format!(
        "{:<6}{:<28}{:<9}{:>6}{:>10}{:>10}{:>10}  {:<18}{}\n",
        "node", "url", "role", "term", "applied", "changes", "sessions", "digest", "master"
    );
    for (url, answer) in answers {
        let url = url.to_string();
        match answer {
            Ok(s) => {
                let role = match s.leader {
                    Some(leader) if leader == s.node => "leader",
                    Some(_) => "follower",
                    None => "no leader",
                };
                let master = s.master.as_deref().unwrap_or("none");
                let digest: String = s.digest.chars().take(16).collect();
                out += &format!(
                    "{:<6}{url:<28}{role:<9}{:>6}{:>10}{:>10}{:>10}  {digest:<18}{master}\n",
                    s.node, s.term, s.digest_index, s.head_seq, s.sessions
                );
            }
            Err(e) => out += &format!("{:<6}{url:<28}{e}\n", "?"),
        }
    }
    out
}
