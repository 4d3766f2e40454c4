//! What only tests, fuzz targets and `chaos` use; compiled with `cargo test`, or with the feature of this name.
//!
//! Doubles: [`simulated_network`] in place of sockets, [`local_cluster`] in place of Raft, [`manual_clock`], and
//! [`crate::storage::memory`], a disk that forgets what was not synced; the last stands beside the storage whose insides
//! it shares.
//!
//! Each fuzz target (`fuzz/`) is one function here that takes bytes and panics when something is wrong: [`frames`],
//! [`rest`], [`peer`], [`open`]. The tests below give every file of the kept corpus to the same functions, so what a
//! fuzzer found stays found without a fuzzer.
//!
//! A case has a runtime of its own whose time is paused: it goes on when nothing else is left to do, so "all has been
//! answered" needs no waiting, and a case gives the same whenever it runs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use self::local_cluster::LocalCluster;
use self::manual_clock::ManualClock;
use crate::cluster::Cluster;
use crate::gateway::{self, Gateway, GatewaySettings};
use crate::ids::UnixMs;
use crate::token::{Class, KeyRing};

pub mod alloc;
mod frames;
pub mod local_cluster;
pub(crate) mod manual_clock;
mod open;
mod peer;
mod rest;
#[allow(dead_code)]
#[path = "../tests/gateway/schema.rs"]
mod schema;
pub mod simulated_network;
mod state;

pub use frames::frames;
pub use open::open;
pub use peer::peer;
pub use rest::rest;

/// Counts what the tests of this crate allocate.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// Stands between the messages of a case. No text holds it.
const BETWEEN: u8 = 0xFF;
/// The time at which every case begins, by the cluster's clock.
const NOW_MS: u64 = 1_790_000_000_000;

/// Runs a case on a runtime of its own.
fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(case)
}

/// Waits until nothing is left to do before time goes on.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A whole node in memory, without Raft and without a port.
struct Node {
    gateway: Arc<Gateway>,
    app: Router,
    cluster: Arc<LocalCluster>,
    keys: KeyRing,
}

impl Node {
    async fn start() -> Self {
        let keys = KeyRing::parse(&"5a".repeat(32)).unwrap();
        let (cluster, effects) = LocalCluster::start(ManualClock::at(NOW_MS)).await.unwrap();
        let gateway = Gateway::new(cluster.clone(), GatewaySettings::default(), keys.clone());
        tokio::spawn(gateway::fanout::hub::run(gateway.clone(), effects));
        tokio::spawn(gateway::presence::run(gateway.clone()));
        let app = gateway::http::rest::router(gateway.clone());
        Self { gateway, app, cluster, keys }
    }

    fn token(&self, class: Class) -> String {
        self.keys.issue("till-1", class, UnixMs(NOW_MS), 3_600).unwrap().0
    }

    /// Whatever was asked for, what the node holds is still whole.
    fn check(&self) {
        state::check(&self.cluster.replica().state());
    }
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod seeds;
