//! TLS configurations from PEM files. Whatever is wrong with a file is error 5004 with the setting that names it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use super::expires::Expires;
use super::follow::{Followed, NamedFile};
use super::unnamed::{TrustedPeer, UnnamedVerifier};
use super::{provider, server_name};
use crate::clock::SharedClock;
use crate::config::{self, wrong};
use crate::ids::UnixMs;
use crate::model::error::Error;
use crate::model::time::iso;

/// What a node speaks with its peers.
pub struct NodeTls {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    /// As `client`, towards any node of the cluster.
    pub to_any: Arc<ClientConfig>,
    chain: Vec<CertificateDer<'static>>,
}

/// What a gateway speaks with its clients.
pub(crate) struct GatewayTls {
    pub server: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
}

impl Expires for NodeTls {
    fn ends_before(&self, moment: UnixMs) -> Option<UnixMs> {
        ends_before(&self.chain, moment)
    }
}

impl Expires for GatewayTls {
    fn ends_before(&self, moment: UnixMs) -> Option<UnixMs> {
        ends_before(&self.chain, moment)
    }
}

fn ends_before(chain: &[CertificateDer<'_>], moment: UnixMs) -> Option<UnixMs> {
    match verified(chain, &RootCertStore::empty(), moment) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(UnixMs(not_after.as_secs() * 1_000))
        }
        _ => None,
    }
}

/// Reads what node `node` shows its peers and asks of them.
pub(crate) fn node(node: u64, files: &config::RaftTls, clock: SharedClock) -> Result<Arc<Followed<NodeTls>>, Error> {
    let named = vec![
        NamedFile { key: "raft_tls_ca", path: files.ca.clone() },
        NamedFile { key: "raft_tls_cert", path: files.cert.clone() },
        NamedFile { key: "raft_tls_key", path: files.key.clone() },
    ];
    let files = files.clone();
    Followed::read(named, clock, Box::new(move |contents, now| make_node(node, &files, contents, now)))
}

/// The same from the contents of the three files, at a time.
pub(crate) fn make_node(
    node: u64,
    files: &config::RaftTls,
    contents: &[Vec<u8>],
    now: UnixMs,
) -> Result<NodeTls, Error> {
    let [ca, cert, key] = contents else { return Err(wrong("raft_tls_ca", "three files are needed")) };
    let roots = roots("raft_tls_ca", &files.ca, ca)?;
    let pair = CertificateAndKey::read(["raft_tls_cert", "raft_tls_key"], &files.cert, &files.key, cert, key)?;
    let (path, refuse) = (files.cert.display(), |why: String| wrong("raft_tls_cert", &why));
    verified(&pair.chain, &roots, now).map_err(|error| match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            refuse(format!("the certificate in {path} is not of the CA in {} (raft_tls_ca)", files.ca.display()))
        }
        error => refuse(format!("the certificate in {path} {}", in_words(&error))),
    })?;
    let parsed = ParsedCertificate::try_from(&pair.chain[0]).map_err(|e| refuse(format!("{path}: {e}")))?;
    let name = server_name(node).map_err(|e| refuse(e.to_string()))?;
    if let Err(error) = verify_server_name(&parsed, &name) {
        return Err(refuse(format!("the certificate in {path} is not that of node {node}: {error}")));
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider()).build();
    let verifier = verifier.map_err(|e| wrong("raft_tls_ca", &format!("{}: {e}", files.ca.display())))?;
    verifier
        .verify_client_cert(&pair.chain[0], &pair.chain[1..], time(now))
        .map_err(|error| refuse(format!("the certificate in {path} {}", in_words(&error))))?;
    let made = || -> Result<_, rustls::Error> {
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(pair.chain.clone(), pair.key.clone_key())?;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(pair.chain.clone(), pair.key.clone_key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        let mut to_any = client.clone();
        let any = UnnamedVerifier { trusted: TrustedPeer::SignedBy(roots), provider: provider() };
        to_any.dangerous().set_certificate_verifier(Arc::new(any));
        // A session that was resumed would not be looked at again.
        to_any.resumption = Resumption::disabled();
        Ok((Arc::new(server), Arc::new(client), Arc::new(to_any)))
    };
    let (server, client, to_any) = made().map_err(|error| pair.unusable(&error))?;
    Ok(NodeTls { server, client, to_any, chain: pair.chain })
}

/// Reads what the gateway shows its clients.
pub(crate) fn gateway(files: &config::GatewayTlsFiles, clock: SharedClock) -> Result<Arc<Followed<GatewayTls>>, Error> {
    let named = vec![
        NamedFile { key: "gateway_tls_cert", path: files.cert.clone() },
        NamedFile { key: "gateway_tls_key", path: files.key.clone() },
    ];
    let files = files.clone();
    Followed::read(named, clock, Box::new(move |contents, now| make_gateway(&files, contents, now)))
}

fn make_gateway(files: &config::GatewayTlsFiles, contents: &[Vec<u8>], now: UnixMs) -> Result<GatewayTls, Error> {
    let [cert, key] = contents else { return Err(wrong("gateway_tls_cert", "two files are needed")) };
    let pair = CertificateAndKey::read(["gateway_tls_cert", "gateway_tls_key"], &files.cert, &files.key, cert, key)?;
    // Which CA the clients trust is not known here: only what any of them would refuse is.
    if let Err(error) = verified(&pair.chain, &RootCertStore::empty(), now)
        && !matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
    {
        let why = format!("the certificate in {} {}", files.cert.display(), in_words(&error));
        return Err(wrong("gateway_tls_cert", &why));
    }
    let made = || -> Result<_, rustls::Error> {
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(pair.chain.clone(), pair.key.clone_key())?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    };
    let server = made().map_err(|error| pair.unusable(&error))?;
    Ok(GatewayTls { server, chain: pair.chain })
}

/// What a client speaks that trusts nobody.
pub(crate) fn nobody() -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// What a client that trusts the CAs in a PEM file speaks.
pub(crate) fn client(ca: &Path) -> Result<ClientConfig, String> {
    let contents = std::fs::read(ca).map_err(|e| format!("{} cannot be read: {e}", ca.display()))?;
    let roots = roots("ca", ca, &contents).map_err(|e| e.message)?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What a client speaks that trusts the one who shows this very certificate, by whatever name.
pub(crate) fn pinned(cert: &Path) -> Result<ClientConfig, String> {
    let contents = std::fs::read(cert).map_err(|e| format!("{} cannot be read: {e}", cert.display()))?;
    let chain = certificates("gateway_tls_cert", cert, &contents).map_err(|e| e.message)?;
    let certificate = chain.into_iter().next().ok_or_else(|| format!("{} holds no certificate", cert.display()))?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let verifier = UnnamedVerifier { trusted: TrustedPeer::Exactly(certificate), provider: provider() };
    let config = config.map_err(|e| e.to_string())?.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A certificate, what leads from it to its CA, and its key.
struct CertificateAndKey<'a> {
    key_setting: &'static str,
    cert_path: &'a Path,
    key_path: &'a Path,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl<'a> CertificateAndKey<'a> {
    fn read(
        [cert_setting, key_setting]: [&'static str; 2],
        cert_path: &'a Path,
        key_path: &'a Path,
        cert: &[u8],
        key: &[u8],
    ) -> Result<Self, Error> {
        let chain = certificates(cert_setting, cert_path, cert)?;
        // Not what was read: a key has no place in an error.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| wrong(key_setting, &format!("{} holds no private key in PEM", key_path.display())))?;
        Ok(Self { key_setting, cert_path, key_path, chain, key })
    }

    fn unusable(&self, error: &rustls::Error) -> Error {
        let path = self.key_path.display();
        let why = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{path} is not the key of the certificate in {}", self.cert_path.display())
            }
            error => format!("{path} cannot be used: {error}"),
        };
        wrong(self.key_setting, &why)
    }
}

fn certificates(key: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|e| wrong(key, &format!("{} is not PEM: {e}", path.display())))?;
    if read.is_empty() {
        return Err(wrong(key, &format!("{} holds no certificate in PEM", path.display())));
    }
    Ok(read)
}

fn roots(key: &'static str, path: &Path, pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let certificates = certificates(key, path, pem)?;
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(wrong(key, &format!("{} holds no certificate of a CA that can be read", path.display())));
    }
    Ok(roots)
}

fn time(at: UnixMs) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(at.get()))
}

fn verified(chain: &[CertificateDer<'_>], roots: &RootCertStore, now: UnixMs) -> Result<(), rustls::Error> {
    let algorithms = provider().signature_verification_algorithms;
    let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        rest,
        time(now),
        algorithms.all,
    )
}

/// "the certificate in F …"
fn in_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            format!("ended on {}", iso(UnixMs(not_after.as_secs() * 1_000)))
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            let begin = iso(UnixMs(not_before.as_secs() * 1_000));
            format!("begins only on {begin}: look at this machine's clock")
        }
        error => format!("cannot be used: {error}"),
    }
}
