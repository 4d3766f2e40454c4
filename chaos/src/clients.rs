//! Clients that the simulation and the runs on real processes share: the same behaviour, checked by the same invariants.
//!
//! - this file: what they need of the cluster under test, whichever it is
//! - [`client`]: one connection, what comes over it, and what is recorded of it; [`answers`]: what an answer means;
//!   [`syncing`]: pages, and how far they go
//! - [`device`]: devices that keep a cursor, most of the load
//! - [`queue`]: durable queues; [`timed`]: clients that know times only; [`twins`]: one device on two nodes;
//!   [`newcomer`]: devices that write before they are known
//! - [`desk`]: orders about others, over REST; [`rights`]: classes that may not do everything; [`admission`]: devices
//!   whose tokens are taken back, and that come back by a code; [`removals`]: a table that is removed and made anew

use std::time::Duration;

use serde_json::Value;
pub(crate) use tillsync::client::frame::ReceivedEvent;
use tillsync::token::Class;
use tokio::sync::watch;

use crate::clients::device::habits::DeviceHabits;
use crate::recorder::Recorder;

pub(crate) mod admission;
pub(crate) mod answers;
pub(crate) mod client;
pub(crate) mod desk;
pub(crate) mod device;
pub(crate) mod newcomer;
pub(crate) mod queue;
pub(crate) mod removals;
pub(crate) mod rights;
pub(crate) mod syncing;
pub(crate) mod timed;
pub(crate) mod twins;

/// What clients are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkloadPhase {
    Load,
    /// Ask nothing more, but stay connected and listen.
    Listen,
    End,
}

/// The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLost;

/// What a node knows of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceSeen {
    pub online: bool,
    /// Who is master there.
    pub master: String,
    /// The applied time is ahead of every clock, so it stands still.
    pub time_ahead: bool,
}

/// One connection to a node.
pub(crate) trait Connection: Send {
    fn send(&mut self, event: &str, data: &Value) -> impl Future<Output = Result<(), ConnectionLost>> + Send;

    /// The next event; `None` if none comes in time.
    fn next(&mut self, within: Duration) -> impl Future<Output = Result<Option<ReceivedEvent>, ConnectionLost>> + Send;
}

/// What is asked over REST.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub method: &'static str,
    pub path: String,
    pub body: Option<Value>,
}

/// The cluster under test, as its clients meet it.
pub(crate) trait Testbed: Send + Sync + 'static {
    type Connection: Connection;
    /// A node that one can connect to.
    type Node: Clone + Send + Sync;

    /// A page is made only when the client has taken the one before, so it knows what has not been sent yet.
    const PAGES_WAIT: bool;
    /// Longer than a node waits for a device whose connection has ended.
    const SETTLED: Duration;

    /// All tables that devices want to hear of; `None`: whatever there is.
    fn tables(&self) -> Option<&'static [&'static str]> {
        None
    }
    /// In how many of a hundred turns a client that knows times only writes: each of its records is large.
    fn large_percent(&self) -> u64;
    fn habits(&self) -> DeviceHabits;
    fn recorder(&self) -> &Recorder;
    fn phase(&self) -> watch::Receiver<WorkloadPhase>;
    /// Raised to end every connection of every client.
    fn churn(&self) -> watch::Receiver<u64>;
    /// The nodes to choose from, by number.
    fn nodes(&self) -> Vec<(u64, Self::Node)>;
    /// `None` if the node refuses.
    fn connect(&self, node: &Self::Node, device: &str) -> impl Future<Output = Option<Self::Connection>> + Send;
    /// The same with a token.
    fn connect_with(
        &self,
        node: &Self::Node,
        device: &str,
        token: &str,
    ) -> impl Future<Output = Option<Self::Connection>> + Send;
    /// A token that the owner of the key issued an hour ago.
    fn token(&self, device: &str, class: Class) -> Option<String>;
    /// One REST request: its status and body. `None`: nobody knows what came of it.
    fn call(
        &self,
        node: Self::Node,
        token: &str,
        request: Request,
    ) -> impl Future<Output = Option<(u16, Value)>> + Send;

    /// The device has something to do yet before the run can end.
    fn set_busy(&self, device: &str, busy: bool);
    /// A session that is online was told everything up to this change; `None`: it has ended.
    fn set_reached(&self, session: u64, seq: Option<u64>);

    /// The device as the node knows it now.
    fn device(&self, node: Self::Node, device: String) -> impl Future<Output = Option<DeviceSeen>> + Send;
    /// The time that a device's sync state shows, Unix milliseconds.
    fn last_sync_ms(&self, node: Self::Node, device: String) -> impl Future<Output = Option<u64>> + Send;
}
