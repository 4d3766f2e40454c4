//! `tillsync health`: what a container's health check runs. It needs no token.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::CliResult;
use super::serve::node_settings;
use crate::client::rest::RestClient;
use crate::client::{NodeUrl, Trust};

#[derive(clap::Args, Debug)]
pub(super) struct HealthArgs {
    /// The node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5000", env = "TILLSYNC_HEALTH_URL")]
    url: String,
    /// The CA of its certificate, if the URL is one with https
    #[arg(long, value_name = "FILE", env = "TILLSYNC_CA")]
    ca: Option<PathBuf>,
    /// The node's own settings, in place of --url and --ca: it is asked on this machine, and trusted by the certificate
    /// that they name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask whether it can serve now (it has a quorum and has caught up), not only whether it is there
    #[arg(long)]
    ready: bool,
}

pub(super) async fn execute(args: HealthArgs) -> CliResult {
    let node = match &args.config {
        Some(file) => of_settings(file)?,
        None => {
            let trust = args.ca.as_deref().map(Trust::read).transpose()?;
            NodeUrl::trusting(&args.url, trust.as_ref())?
        }
    };
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let answer: serde_json::Value = RestClient::new("")?.get(&node, path).await?;
    say!("{}", answer["status"].as_str().unwrap_or("ok"));
    Ok(())
}

/// The node of these settings, asked on its own machine.
fn of_settings(file: &Path) -> CliResult<NodeUrl> {
    let config = node_settings(Some(file), &[])?;
    let trust = config.gateway_tls.map(|files| Trust::pinned(&files.cert)).transpose()?;
    Ok(NodeUrl { authority: on_this_machine(config.gateway_listen).to_string(), trust })
}

/// Where a process of the same machine reaches who listens there.
fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_of_the_settings_is_asked_on_this_machine() {
        let asked = |listen: &str| on_this_machine(listen.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:5000"), "127.0.0.1:5000");
        assert_eq!(asked("[::]:5000"), "[::1]:5000");
        assert_eq!(asked("10.0.0.7:5001"), "10.0.0.7:5001");
    }
}
