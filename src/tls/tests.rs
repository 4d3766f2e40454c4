//! Certificates that are right, and each way in which one is wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::acceptor::Acceptor;
use super::admission::{Admission, ConnectionCaps};
use super::authority::{self, Issued, Validity};
use super::expires::Expires;
use super::files;
use crate::clock::SharedClock;
use crate::config::{GatewayTlsFiles, RaftTls};
use crate::ids::UnixMs;
use crate::limits;
use crate::model::error::Code;
use crate::testkit::manual_clock::ManualClock;

const NOW: u64 = 1_795_000_000_000;
const DAY: u64 = 86_400_000;

/// A folder with a CA and what it issued.
struct Ca {
    dir: TempDir,
    ca: Issued,
}

impl Ca {
    fn new() -> Self {
        let ca = authority::make("shop", Validity::days(UnixMs(NOW), 100)).unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("ca.crt"), &ca.cert).unwrap();
        Self { dir, ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues a certificate for a node, in files of a name of their own.
    fn issue(&self, node: u64, name: &str, validity: Validity) -> RaftTls {
        let issued = authority::issue(&self.ca, node, &["till.example".into()], validity).unwrap();
        let files = RaftTls {
            ca: self.path("ca.crt"),
            cert: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        std::fs::write(&files.cert, issued.cert).unwrap();
        std::fs::write(&files.key, issued.key).unwrap();
        files
    }

    fn node(&self, node: u64) -> RaftTls {
        self.issue(node, &format!("node-{node}"), Validity::days(UnixMs(NOW), 10))
    }
}

fn clock() -> SharedClock {
    ManualClock::at(NOW)
}

fn refused(node: u64, files: &RaftTls, says: &[&str]) {
    let error = files::node(node, files, clock()).err().unwrap();
    assert_eq!(error.code, Code::Configuration);
    assert!(says.iter().all(|w| error.message.contains(w)) && !error.message.contains('\n'), "{}", error.message);
}

fn gateway_files(files: &RaftTls) -> GatewayTlsFiles {
    GatewayTlsFiles { cert: files.cert.clone(), key: files.key.clone() }
}

#[test]
fn what_is_wrong_with_a_file_is_named_with_its_setting() {
    let (ca, other) = (Ca::new(), Ca::new());
    let good = ca.node(1);
    files::node(1, &good, clock()).unwrap();
    refused(2, &good, &["raft_tls_cert", "not that of node 2", "node-1.tillsync.internal"]);
    refused(1, &RaftTls { ca: other.path("ca.crt"), ..good.clone() }, &["raft_tls_cert", "is not of the CA in"]);
    refused(1, &RaftTls { key: ca.node(2).key, ..good.clone() }, &["raft_tls_key", "is not the key of"]);
    refused(1, &RaftTls { ca: ca.path("none"), ..good.clone() }, &["raft_tls_ca", "none cannot be read"]);
    refused(1, &RaftTls { key: good.cert.clone(), ..good.clone() }, &["raft_tls_key", "holds no private key"]);
    refused(1, &RaftTls { cert: good.key.clone(), ..good.clone() }, &["raft_tls_cert", "holds no certificate"]);
    let old = ca.issue(1, "old", Validity::between(NOW - 2 * DAY, NOW - DAY));
    refused(1, &old, &["raft_tls_cert", "old.crt ended on 2026-11-1"]);
    let early = ca.issue(1, "early", Validity::between(NOW + DAY, NOW + 2 * DAY));
    refused(1, &early, &["raft_tls_cert", "begins only on 2026-11-", "clock"]);
}

#[test]
fn the_gateway_takes_any_certificate_that_is_good_now() {
    let ca = Ca::new();
    let good = gateway_files(&ca.node(1));
    let read = files::gateway(&good, clock()).unwrap();
    assert_eq!(read.current().ends_before(UnixMs(NOW + 9 * DAY)), None);
    assert_eq!(read.current().ends_before(UnixMs(NOW + 11 * DAY)), Some(UnixMs(NOW + 10 * DAY)));
    let gone = gateway_files(&ca.issue(1, "old", Validity::between(NOW - 2 * DAY, NOW - DAY)));
    let error = files::gateway(&gone, clock()).err().unwrap();
    assert!(error.message.contains("setting gateway_tls_cert") && error.message.contains("ended on"), "{error}");
    let error = files::gateway(&GatewayTlsFiles { key: ca.node(2).key, ..good }, clock()).err().unwrap();
    assert!(error.message.contains("setting gateway_tls_key"), "{error}");
}

#[test]
fn only_names_and_addresses_are_put_into_a_certificate() {
    let ca = Ca::new();
    for bad in ["", "a b", "http://a", "a..b", "*.a", &"a".repeat(64)] {
        assert!(authority::issue(&ca.ca, 1, &[bad.to_owned()], Validity::days(UnixMs(NOW), 1)).is_err(), "{bad}");
    }
    let mixed = Issued { cert: ca.ca.cert.clone(), key: "nonsense".into() };
    assert!(authority::issue(&mixed, 1, &[], Validity::days(UnixMs(NOW), 1)).is_err());
    let leaf = authority::issue(&ca.ca, 1, &[], Validity::days(UnixMs(NOW), 1)).unwrap();
    assert!(authority::issue(&leaf, 2, &[], Validity::days(UnixMs(NOW), 1)).err().unwrap().contains("certs init"));
}

#[tokio::test]
async fn changed_files_are_taken_over_and_bad_ones_change_nothing() {
    let ca = Ca::new();
    let files = ca.node(1);
    let followed = files::node(1, &files, clock()).unwrap();
    assert!(!followed.reread().await.unwrap(), "nothing changed");
    let first = followed.current();
    // A new certificate with the key not yet there.
    let renewed = ca.issue(1, "renewed", Validity::days(UnixMs(NOW), 20));
    std::fs::copy(&renewed.cert, &files.cert).unwrap();
    assert!(followed.reread().await.unwrap_err().message.contains("raft_tls_key"));
    assert!(Arc::ptr_eq(&first, &followed.current()));
    std::fs::copy(&renewed.key, &files.key).unwrap();
    assert!(followed.reread().await.unwrap());
    assert_eq!(followed.current().ends_before(UnixMs(NOW + 30 * DAY)), Some(UnixMs(NOW + 20 * DAY)));
}

fn server(files: &GatewayTlsFiles, listener: TcpListener) -> Acceptor {
    let followed = files::gateway(files, clock()).unwrap();
    let admission =
        Admission::new("test", ConnectionCaps { total: 1_024, anonymous: 512, per_address: 64 }, Vec::new());
    Acceptor::new(listener, Some(Arc::new(move || followed.current().server.clone())), admission, |_| {})
}

/// Speaks TLS as a client that trusts the CA. The certificate is of a time that is not now: no clock is asked here.
async fn connect(
    ca: &Path,
    address: std::net::SocketAddr,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut config = files::client(ca).unwrap();
    config.time_provider = Arc::new(AtNow);
    let tcp = TcpStream::connect(address).await?;
    let name = rustls::pki_types::ServerName::try_from("till.example").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

#[derive(Debug)]
struct AtNow;

impl rustls::time_provider::TimeProvider for AtNow {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_millis(NOW)))
    }
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_waiting() {
    let ca = Ca::new();
    let files = gateway_files(&ca.node(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut silent = Vec::new();
    // More than an address has room for: the oldest gives way.
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // One that speaks plain text, too.
    silent[0].write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut acceptor = server(&files, listener);
    let path = ca.path("ca.crt");
    let client = tokio::spawn(async move {
        let mut stream = connect(&path, address).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        stream
    });
    let mut stream = acceptor.accept().await.stream;
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"hello");
    drop((client.await.unwrap(), silent));
}

#[tokio::test]
async fn a_client_refuses_what_its_ca_did_not_sign() {
    let (ca, other) = (Ca::new(), Ca::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut acceptor = server(&gateway_files(&ca.node(1)), listener);
    let accepting = tokio::spawn(async move { acceptor.accept().await });
    let error = connect(&other.path("ca.crt"), address).await.unwrap_err();
    assert_eq!(super::explain(&error), "its certificate is not of this cluster's CA");
    connect(&ca.path("ca.crt"), address).await.unwrap();
    accepting.await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_given_up_soon() {
    let ca = Ca::new();
    let files = gateway_files(&ca.node(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut acceptor = server(&files, listener);
    let accepting = tokio::spawn(async move { acceptor.accept().await });
    let began = tokio::time::Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    // The beginning of a hello that never ends.
    slow.write_all(&[0x16, 3, 1, 1, 0]).await.unwrap();
    let ended = |took: Duration, limit: Duration| took >= limit - Duration::from_millis(50);
    let _ = silent.read(&mut [0]).await;
    let (silent, limit) = (began.elapsed(), limits::HANDSHAKE_SILENCE);
    assert!(ended(silent, limit) && silent < limits::HANDSHAKE_TIME, "{silent:?}");
    let _ = slow.read_to_end(&mut Vec::new()).await;
    assert!(ended(began.elapsed(), limits::HANDSHAKE_TIME), "{:?}", began.elapsed());
    accepting.abort();
}

/// Else the connection of a device that left the Wi-Fi would stay for ever.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_probes_connections_that_are_idle() {
    use std::os::fd::AsRawFd;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let admission = Admission::new("test", ConnectionCaps { total: 8, anonymous: 8, per_address: 8 }, Vec::new());
    let mut acceptor = Acceptor::new(listener, None, admission, |_| {});
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), acceptor.accept());
    let super::stream::TlsOrTcp::Plain(stream) = &accepted.stream else { panic!("there is no TLS") };
    for (level, option, expected) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, limits::PROBE_AFTER.as_secs() as libc::c_int),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, limits::PROBE_EVERY.as_secs() as libc::c_int),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, limits::PROBES),
    ] {
        let (mut value, mut size): (libc::c_int, libc::socklen_t) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open, and the option is one c_int.
        let got =
            unsafe { libc::getsockopt(stream.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size) };
        assert_eq!((got, value), (0, expected), "{option}");
    }
}
