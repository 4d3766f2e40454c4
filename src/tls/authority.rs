//! The cluster's own CA. Its certificate says whose it is; its key is used only to issue, never by a running node.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, string::Ia5String,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::node_name;
use crate::ids::UnixMs;

/// The machines of a store may disagree about the time a little when a certificate is made.
const BEFORE: Duration = Duration::from_secs(3_600);
/// How the CA's name begins; the cluster's name follows.
const CA_NAME: &str = "Tillsync CA of ";

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub cert: String,
    pub key: String,
}

/// From when to when a certificate is good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    from: UnixMs,
    to: UnixMs,
}

impl Validity {
    /// From a moment before now, for so many days.
    pub(crate) fn days(now: UnixMs, days: u64) -> Self {
        let before = u64::try_from(BEFORE.as_millis()).unwrap_or(0);
        Self { from: now.minus_ms(before), to: now.plus_ms(days.saturating_mul(86_400_000)) }
    }

    #[cfg(test)]
    pub(crate) fn between(from: u64, to: u64) -> Self {
        Self { from: UnixMs(from), to: UnixMs(to) }
    }

    fn set(self, params: &mut CertificateParams) -> Result<(), String> {
        let date = |ms: u64| {
            let seconds = i64::try_from(ms / 1_000).map_err(|e| e.to_string())?;
            OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| e.to_string())
        };
        (params.not_before, params.not_after) = (date(self.from.get())?, date(self.to.get())?);
        Ok(())
    }
}

/// Makes a CA for a cluster.
pub(crate) fn make(cluster: &str, validity: Validity) -> Result<Issued, String> {
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let mut params = ca_params(&format!("{CA_NAME}{cluster}"));
    validity.set(&mut params)?;
    let cert = params.self_signed(&key).map_err(|e| e.to_string())?;
    Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Issues a certificate for a node. It is good as a server and as a client, under the node's own name, under these
/// names and addresses, and on the machine itself.
pub(crate) fn issue(ca: &Issued, node: u64, hosts: &[String], validity: Validity) -> Result<Issued, String> {
    let name = ca_name(&ca.cert)?;
    let ca_key = KeyPair::from_pem(&ca.key).map_err(|_| "the CA's key is not a private key in PEM".to_owned())?;
    let issuer = Issuer::new(ca_params(&name), ca_key);
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, node_name(node));
    params.subject_alt_names = vec![san(&node_name(node))?];
    for host in hosts.iter().map(String::as_str).chain(["localhost", "127.0.0.1", "::1"]) {
        let san = san(host)?;
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    validity.set(&mut params)?;
    let cert = params.signed_by(&key, &issuer).map_err(|e| e.to_string())?;
    Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
}

fn san(host: &str) -> Result<SanType, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let fits = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && host.split('.').all(|label| (1..=63).contains(&label.len()));
    let name = || Ia5String::try_from(host).map(SanType::DnsName).ok();
    fits.then(name).flatten().ok_or_else(|| format!("{host:?} is neither a host name nor an IP address"))
}

/// The name of our own CAs stands at the end of their subject: nothing more of X.509 need be read.
fn ca_name(pem: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "the CA's file holds no certificate")?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der).map_err(|e| format!("the CA's certificate cannot be read: {e}"))?;
    let subject = roots.roots.first().map(|root| root.subject.as_ref().to_vec()).unwrap_or_default();
    let begins = subject.windows(CA_NAME.len()).position(|part| part == CA_NAME.as_bytes());
    let name = begins.and_then(|at| String::from_utf8(subject[at..].to_vec()).ok());
    name.ok_or_else(|| "the CA was not made by `tillsync certs init`".to_owned())
}
