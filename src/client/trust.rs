//! Whom a command trusts: the CAs in a file that it was given, and no others.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ClientError, rest};
use crate::tls::stream::TlsOrTcp;
use crate::tls::{explain, files};

/// A clone is a handle on the same trust and the same kept connections.
#[derive(Clone)]
pub struct Trust(Arc<TrustState>);

struct TrustState {
    config: Arc<ClientConfig>,
    http: reqwest::Client,
}

impl Trust {
    /// Trusts the CAs in a PEM file.
    pub fn read(ca: &Path) -> Result<Self, ClientError> {
        Self::of(files::client(ca).map_err(|why| ClientError::Unusable(format!("--ca {why}")))?)
    }

    /// Trusts whoever shows the first certificate of a PEM file, by whatever name.
    pub fn pinned(cert: &Path) -> Result<Self, ClientError> {
        Self::of(files::pinned(cert).map_err(ClientError::Unusable)?)
    }

    fn of(config: ClientConfig) -> Result<Self, ClientError> {
        let http = rest::http(Some(config.clone()))?;
        Ok(Self(Arc::new(TrustState { config: Arc::new(config), http })))
    }

    /// The REST client that trusts it.
    pub fn http(&self) -> &reqwest::Client {
        &self.0.http
    }

    /// Speaks TLS on a connection to `authority`.
    pub async fn connect(&self, authority: &str, tcp: TcpStream) -> Result<TlsOrTcp, String> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|e| format!("{host}: {e}"))?;
        let connected = TlsConnector::from(self.0.config.clone()).connect(name, tcp).await;
        connected.map(|stream| TlsOrTcp::Tls(Box::new(stream.into()))).map_err(|e| explain(&e))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trust {}

impl Hash for Trust {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
