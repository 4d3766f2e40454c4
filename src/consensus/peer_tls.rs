//! Mutual TLS between nodes: a peer is who its certificate says, not who it claims to be.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::verify_server_name;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::ids::NodeId;
use crate::proto::{
    ChangeRequest, Handshake, ProposeRequest, RaftRequest, ReadIndexRequest, SnapshotChunk, StatusRequest,
};
use crate::tls::acceptor::AcceptedConnection;
use crate::tls::files::NodeTls;
use crate::tls::follow::Followed;
use crate::tls::stream::TlsOrTcp;
use crate::tls::{explain, server_name};

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum PeerCaller {
    /// Plain text, which is on loopback only: whoever it says.
    Anyone,
    Shown(Arc<PeerCertificate>),
    /// TLS without a certificate: no handshake lets that through.
    Nobody,
}

#[derive(Debug)]
pub struct PeerCertificate {
    certificate: CertificateDer<'static>,
    /// The node that the certificate was found to be of.
    node: OnceLock<u64>,
}

impl Connected for TlsOrTcp {
    type ConnectInfo = PeerCaller;

    fn connect_info(&self) -> PeerCaller {
        match (self, self.peer_certificate()) {
            (Self::Plain(_), _) => PeerCaller::Anyone,
            #[cfg(any(test, feature = "testkit"))]
            (Self::Memory(_), _) => PeerCaller::Anyone,
            (Self::Tls(_), None) => PeerCaller::Nobody,
            (Self::Tls(_), Some(certificate)) => {
                PeerCaller::Shown(Arc::new(PeerCertificate { certificate: certificate.clone(), node: OnceLock::new() }))
            }
        }
    }
}

impl Connected for AcceptedConnection {
    type ConnectInfo = PeerCaller;

    fn connect_info(&self) -> PeerCaller {
        self.stream.connect_info()
    }
}

impl PeerCaller {
    /// Whether it may speak as the node that its first words name.
    pub fn check(&self, handshake: Option<&Handshake>) -> Result<(), Status> {
        let (shown, handshake) = match (self, handshake) {
            (Self::Nobody, _) => return Err(Status::failed_precondition("no certificate")),
            (Self::Shown(shown), Some(handshake)) => (shown, handshake),
            // Without a handshake the node itself turns it away.
            (Self::Anyone, _) | (_, None) => return Ok(()),
        };
        if shown.node.get() == Some(&handshake.from) {
            return Ok(());
        }
        let is_of = || -> Result<(), rustls::Error> {
            verify_server_name(&ParsedCertificate::try_from(&shown.certificate)?, &server_name(handshake.from)?)
        };
        match is_of() {
            Ok(()) => {
                let _ = shown.node.set(handshake.from);
                Ok(())
            }
            Err(error) => {
                let why = format!("the certificate is not that of node {}: {error}", handshake.from);
                tracing::warn!(peer = handshake.from, "a connection was turned away: {why}");
                Err(Status::failed_precondition(why))
            }
        }
    }
}

/// What begins a call: who calls whom.
pub(super) trait HasHandshake {
    fn handshake(&self) -> Option<&Handshake>;
}

macro_rules! greetings {
    ($($message:ty),*) => {
        $(impl HasHandshake for $message {
            fn handshake(&self) -> Option<&Handshake> {
                self.handshake.as_ref()
            }
        })*
    };
}

greetings!(RaftRequest, SnapshotChunk, ProposeRequest, ReadIndexRequest, StatusRequest, ChangeRequest);

/// Between two log lines about the same peer's handshake.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Connects to peers with this node's certificate.
pub(super) struct Connector {
    tls: Arc<Followed<NodeTls>>,
    told: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Connector {
    pub(super) fn new(tls: Arc<Followed<NodeTls>>) -> Arc<Self> {
        Arc::new(Self { tls, told: Mutex::default() })
    }

    /// A channel to a node: only what shows that node's certificate is spoken with. 0: whichever node it is.
    pub(super) fn channel(self: &Arc<Self>, endpoint: &Endpoint, node: NodeId, address: &str) -> Channel {
        let (connector, address) = (self.clone(), address.to_owned());
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let (connector, address) = (connector.clone(), address.clone());
            async move { connector.connect(node, &address).await.map(TokioIo::new) }
        }))
    }

    async fn connect(&self, node: NodeId, address: &str) -> io::Result<TlsOrTcp> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.current();
        let config = if node == NodeId(0) { &tls.to_any } else { &tls.client };
        let connector = TlsConnector::from(config.clone());
        let name = server_name(node.get()).map_err(io::Error::other)?;
        match connector.connect(name, tcp).await {
            Ok(stream) => Ok(TlsOrTcp::Tls(Box::new(stream.into()))),
            Err(error) => {
                let why = explain(&error);
                self.tell(node, address, &why);
                Err(io::Error::other(why))
            }
        }
    }

    fn tell(&self, node: NodeId, address: &str, why: &str) {
        let mut told = self.told.lock();
        if told.get(&node).is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            told.insert(node, Instant::now());
            tracing::error!(peer = node.get(), address, why, "no TLS with a peer");
        }
    }
}

#[cfg(test)]
mod tests;
