//! TLS: the certificates that a node shows, and what it asks of those who connect. One provider of cryptography: ring.
//!
//! - [`authority`]: the cluster's own CA, and the certificates that it issues
//! - [`files`]: configurations made from PEM files; what is wrong with one is a sentence that names the setting
//! - [`follow`]: taking over what changes in the files
//! - [`acceptor`], [`stream`]: connections with and without it; [`admission`]: how many there may be

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;

pub(crate) mod acceptor;
pub mod admission;
pub(crate) mod authority;
pub(crate) mod expires;
pub(crate) mod files;
pub(crate) mod follow;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod unnamed;

/// The name of a node in its certificate. It is what the others check, wherever the node is: addresses change.
pub fn node_name(node: u64) -> String {
    format!("node-{node}.tillsync.internal")
}

/// The same for rustls.
pub fn server_name(node: u64) -> Result<ServerName<'static>, rustls::Error> {
    ServerName::try_from(node_name(node)).map_err(|error| rustls::Error::General(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes ring the process's provider, for users of rustls that do not name one. None of this crate's needs it.
pub fn install_provider() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a failed handshake means to an operator.
pub fn explain(error: &std::io::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::NoCertificatesPresented) => "it shows no certificate".into(),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "its certificate is not of this cluster's CA".into()
        }
        Some(Error::InvalidCertificate(why)) => format!("its certificate is refused: {why}"),
        Some(Error::InvalidMessage(_)) => "it does not speak TLS".into(),
        Some(Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate)) => {
            "it does not trust this node's certificate".into()
        }
        Some(Error::AlertReceived(alert)) => format!("it ended the handshake: {alert:?}"),
        _ => error.to_string(),
    }
}
