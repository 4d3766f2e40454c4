//! The documented API on one port: REST, Socket.IO and WebSocket, translated into proposals and reads.
//!
//! - [`protocol`]: the documented events, in and out: their table, their encoding, the fields of payloads
//! - [`transport`]: WebSocket and Socket.IO; [`session`]: one client connection, the same logic for both
//! - [`fanout`]: what was applied, to every session
//! - [`http`]: the connections, and the REST endpoints
//! - [`presence`]: which devices are here; [`auth`]: who may speak; [`rates`]: how often, and how much is read;
//!   `room`: what is written while disks run full
//! - [`spec`]: all of it described, for machines and readers

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::fanout::hub::{self, Hub};
use self::http::connections::{self, Deadlines};
use self::http::listings::Listings;
use self::http::rest;
use self::http::rest::backup::BackupTurn;
use self::rates::refusals::Refusals;
use self::rates::stranger_rates::StrangerRates;
use self::session::sync::Syncs;
use crate::cluster::{SharedCluster, elections};
use crate::config::{AddressRange, RateLimits};
use crate::ids::Seq;
use crate::limits;
use crate::model::cursor::Cursor;
use crate::model::effect::Effects;
use crate::model::error::{Code, Error};
use crate::proto::Outcome;
use crate::proto::command::Intent;
use crate::storage::BoxFuture;
use crate::tls::acceptor::CurrentTls;
use crate::tls::admission::{Admission, ConnectionCaps};
use crate::token::{Claims, KeyRing};

pub mod auth;
mod cut_off;
pub mod fanout;
pub mod http;
pub mod presence;
pub mod protocol;
pub(crate) mod rates;
mod room;
pub mod session;
pub mod spec;
pub(crate) mod transport;

/// Every timing and bound of the gateway that is a setting.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// How often a session is pinged, and the silence after which it is lost.
    pub ping_every: Duration,
    pub lost_after: Duration,
    /// How long a device without a session still counts as online.
    pub grace: Duration,
    /// How long a device seen only over REST counts as active after its last request.
    pub rest_active: Duration,
    /// How long whoever asked for an election waits for its end.
    pub election_wait: Duration,
    /// How often `last_seen` is written, and how old it may grow.
    pub seen_every: Duration,
    pub seen_age: Duration,
    /// A socket that takes nothing for so long is closed.
    pub write_timeout: Duration,
    /// How long a Socket.IO client may take to say who it is.
    pub connect_timeout: Duration,
    /// A sync whose `sync_complete` has not come by then has failed.
    pub sync_timeout: Duration,
    /// How long sessions have to end at a shutdown.
    pub drain: Duration,
    /// Of each step of a request.
    pub http: Deadlines,
    /// Live sessions on this node.
    pub sessions: usize,
    /// Connections: all, without a token, and without one of one address.
    pub connections: ConnectionCaps,
    /// Engine.IO connections that have not said who they are: all, and of one address.
    pub anonymous_sockets: (usize, usize),
    /// Proxies of ours: many devices come from their addresses.
    pub trusted_proxies: Vec<AddressRange>,
    /// Of the web pages that may ask, with credentials; empty: any, without.
    pub origins: Vec<String>,
    /// What one token's subject may ask for.
    pub allowed: RateLimits,
    /// The longest life of a token that this node signs: of a paired device, or in place of an older one.
    pub paired_token: Duration,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(2),
            lost_after: Duration::from_secs(6),
            grace: Duration::from_secs(2),
            rest_active: Duration::from_secs(60),
            election_wait: Duration::from_secs(35),
            seen_every: Duration::from_secs(5),
            seen_age: Duration::from_secs(30),
            write_timeout: Duration::from_secs(6),
            connect_timeout: Duration::from_secs(10),
            sync_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            http: Deadlines::default(),
            sessions: limits::SESSIONS,
            connections: ConnectionCaps {
                total: 2 * limits::SESSIONS + limits::CONNECTIONS_BESIDE,
                anonymous: limits::ANONYMOUS_CONNECTIONS,
                per_address: limits::ANONYMOUS_CONNECTIONS_OF_ADDRESS,
            },
            anonymous_sockets: (limits::ANONYMOUS_SOCKETS, limits::ANONYMOUS_SOCKETS_OF_ADDRESS),
            trusted_proxies: Vec::new(),
            origins: Vec::new(),
            allowed: RateLimits::default(),
            paired_token: limits::PAIRED_TOKEN,
        }
    }
}

/// What every request and session works with.
pub struct Gateway {
    pub cluster: SharedCluster,
    pub hub: Hub,
    pub presence: presence::PresenceTracker,
    pub syncs: Syncs,
    pub rates: rates::Rates,
    /// Of those without a token: all that an address may ask; new pairings, and wrong codes or secrets of them, of an
    /// address and of all.
    pub stranger_rates: StrangerRates,
    pub pairing_rates: StrangerRates,
    pub all_pairings: StrangerRates,
    pub wrong_pairings: StrangerRates,
    pub all_wrong_pairings: StrangerRates,
    pub listings: Listings,
    pub backup_turn: BackupTurn,
    pub refusals: Refusals,
    pub connections: Arc<Admission>,
    pub settings: GatewaySettings,
    pub keys: KeyRing,
    /// Ends long answers (event streams) at a shutdown.
    pub closing: CancellationToken,
}

impl Gateway {
    pub fn new(cluster: SharedCluster, settings: GatewaySettings, keys: KeyRing) -> Arc<Self> {
        let meta = cluster.replica().state().meta().clone();
        let connections =
            Admission::new("connections of the gateway", settings.connections, settings.trusted_proxies.clone());
        let hub = Hub::new(meta.head(), meta.epoch, settings.sessions);
        Arc::new(Self {
            cluster,
            hub,
            presence: presence::PresenceTracker::default(),
            syncs: Syncs::default(),
            rates: rates::Rates::new(settings.allowed, settings.sessions),
            stranger_rates: StrangerRates::new(4, 40),
            pairing_rates: StrangerRates::new(1, 8),
            all_pairings: StrangerRates::new(4, 64),
            wrong_pairings: StrangerRates::new(1, limits::WRONG_PAIRINGS),
            all_wrong_pairings: StrangerRates::new(16, limits::ALL_WRONG_PAIRINGS),
            listings: Listings::default(),
            backup_turn: BackupTurn::default(),
            refusals: Refusals::default(),
            connections,
            settings,
            keys,
            closing: CancellationToken::new(),
        })
    }

    /// The time for answers that no command stamped.
    pub fn now_ms(&self) -> u64 {
        self.cluster.clock().now_ms().get()
    }

    /// The history that cursors are of.
    pub fn epoch(&self) -> u64 {
        // Until something was handed out, the cluster may have got its name after this gateway began.
        match self.hub.epoch() {
            0 => self.cluster.replica().state().meta().epoch,
            epoch => epoch,
        }
    }

    /// A cursor after a change that this node has applied. Not for whoever holds the state: it is looked at.
    pub fn cursor(&self, seq: Seq) -> Cursor {
        Cursor { epoch: self.epoch(), ..Cursor::at(&self.cluster.replica().state(), seq) }
    }

    /// The cursor that a client gave.
    pub fn parse_cursor(&self, text: &str) -> Result<Cursor, Error> {
        Cursor::parse(text, &self.cluster.replica().state())
    }

    /// Proposes what the bearer of a token asked for: the audit log names the token. A change that a device makes itself
    /// says so already.
    pub fn propose_for(&self, claims: &Claims, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        if let Err(full) = self.must_have_room(&intent) {
            return Box::pin(std::future::ready(Err(full)));
        }
        if matches!(&intent, Intent::DataUpdate(update) if update.device_id == claims.sub) {
            return self.cluster.propose(intent);
        }
        self.cluster.propose_for(claims.principal(), intent)
    }

    /// Proposes what may begin an election: the answer comes when that is over.
    pub fn propose_election(&self, claims: &Claims, intent: Intent) -> BoxFuture<'static, Result<Outcome, Error>> {
        let (answer, cluster, within) =
            (self.propose_for(claims, intent), self.cluster.clone(), self.settings.election_wait);
        Box::pin(async move { elections::settled(cluster, answer.await?, within).await })
    }

    /// Proposes something that nobody waits for.
    pub fn propose_aside(&self, intent: Intent) {
        Self::aside(self.cluster.propose(intent));
    }

    /// Runs a proposal that nobody waits for.
    fn aside(answer: BoxFuture<'static, Result<Outcome, Error>>) {
        tokio::spawn(async move {
            if let Err(error) = answer.await {
                tracing::debug!(%error, "a proposal on the side was refused");
            }
        });
    }
}

/// A bug: what it is goes to the log with a number that the client is told, nothing else.
pub fn bug(what: &str) -> Error {
    let id = rand::random::<u32>();
    tracing::error!(id = format!("{id:08x}"), "internal error: {what}");
    Error::new(Code::Internal, format!("an internal error, logged as {id:08x}"))
}

/// Serves the API in plain text; see [`serve_tls`].
pub async fn serve(
    listener: TcpListener,
    cluster: SharedCluster,
    effects: mpsc::Receiver<Effects>,
    settings: GatewaySettings,
    keys: KeyRing,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    serve_tls(listener, None, cluster, effects, settings, keys, shutdown).await
}

/// Serves the API on `listener`, over TLS if there is any, until `shutdown`; returns when every session has ended and
/// every request has been answered, or when the time for that is over.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Option<CurrentTls>,
    cluster: SharedCluster,
    effects: mpsc::Receiver<Effects>,
    settings: GatewaySettings,
    keys: KeyRing,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let gateway = Gateway::new(cluster, settings, keys);
    let counting = Arc::downgrade(&gateway);
    gateway.cluster.count_sessions(Box::new(move || counting.upgrade().map_or(0, |g| g.hub.sessions() as u64)));
    let mut hub = AbortOnDropHandle::new(tokio::spawn(hub::run(gateway.clone(), effects)));
    let mut cut_off = AbortOnDropHandle::new(tokio::spawn(cut_off::run(gateway.clone())));
    let mut presence = AbortOnDropHandle::new(tokio::spawn(presence::run(gateway.clone())));
    let app = rest::router(gateway.clone());
    let acceptor = connections::acceptor(listener, tls, gateway.connections.clone(), gateway.settings.write_timeout);
    let server = connections::serve(acceptor, app, gateway.settings.http, shutdown.clone());
    // A task of its own: it ends as soon as it is asked to and has no open requests; sessions are none of them.
    let mut server = AbortOnDropHandle::new(tokio::spawn(server));
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        // Only a panic ends it before.
        ended = &mut server => return ended.map_err(std::io::Error::other),
        panic = panic_of(&mut hub) => return Err(panic),
        panic = panic_of(&mut cut_off) => return Err(panic),
        panic = panic_of(&mut presence) => return Err(panic),
    }
    gateway.closing.cancel();
    gateway.hub.close_all(&Error::new(Code::Unavailable, "the node is shutting down: connect to another one"));
    let drained = async {
        gateway.hub.emptied().await;
        server.await.map_err(std::io::Error::other)
    };
    tokio::time::timeout(gateway.settings.drain, drained).await.unwrap_or(Ok(()))
}

/// Resolves if a task panics. One that ends in order is waited for no more.
async fn panic_of(task: &mut AbortOnDropHandle<()>) -> std::io::Error {
    match task.await {
        Err(panic) => std::io::Error::other(panic),
        Ok(()) => std::future::pending().await,
    }
}
