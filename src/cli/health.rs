//! `tillsync health`: what a container's health check runs. It needs no token.

use std::path::PathBuf;

use super::CliResult;
use crate::client::rest::RestClient;
use crate::client::{NodeUrl, Trust};

#[derive(clap::Args, Debug)]
pub struct HealthArgs {
    /// The node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000", env = "TILLSYNC_HEALTH_URL")]
    url: String,
    /// The CA of its certificate, if the URL is one with https
    #[arg(long, value_name = "FILE", env = "TILLSYNC_CA")]
    ca: Option<PathBuf>,
    /// Ask whether it can serve now (it knows a leader), not only whether it is there
    #[arg(long)]
    ready: bool,
}

pub async fn execute(args: HealthArgs) -> CliResult {
    let trust = args.ca.as_deref().map(Trust::read).transpose()?;
    let node = NodeUrl::trusting(&args.url, trust.as_ref())?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer: serde_json::Value = RestClient::new("")?.get(&node, path).await?;
    say!("{}", answer["status"].as_str().unwrap_or("ok"));
    Ok(())
}
