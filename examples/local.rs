//! The gateway over a cluster of one in memory: `cargo run --example local -- [PORT]`. Prints an admin token.
//!
//! For trying clients against the API without disks or peers; nothing that it is told survives it.

use std::error::Error;
use std::sync::Arc;

use tillsync::clock::SystemClock;
use tillsync::cluster::local::LocalCluster;
use tillsync::gateway::{self, Settings};
use tillsync::token::{Class, KeyRing};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let port: u16 = std::env::args().nth(1).map_or(Ok(5000), |p| p.parse())?;
    let clock = Arc::new(SystemClock);
    let keys = KeyRing::parse(&"5a".repeat(32))?;
    let now_ms = tillsync::clock::Clock::now_ms(&*clock);
    let (token, _) = keys.issue("admin", Class::Admin, now_ms, 86_400)?;
    let (cluster, effects) = LocalCluster::start(clock).await?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}\n{token}", listener.local_addr()?);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    gateway::serve(listener, cluster, effects, Settings::default(), keys, shutdown).await?;
    Ok(())
}
