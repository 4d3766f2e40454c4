//! Who is let in, and as whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::{Clock, SystemClock};
use crate::config::RaftTls;
use crate::consensus::grpc::{self, GrpcTransport, UnreachablePeer};
use crate::consensus::identity::NodeIdentity;
use crate::consensus::transport::{ConnectionClass, LinkError, Method, Peer, PeerTransport};
use crate::consensus::types::MemberAddress;
use crate::ids::NodeId;
use crate::limits;
use crate::proto::{ChangeRequest, ProposeRequest, RaftRequest, ReadIndexRequest, SnapshotChunk, StatusRequest};
use crate::tls::authority::{self, Validity};
use crate::tls::files::{self, NodeTls};
use crate::tls::follow::Followed;
use crate::tls::{explain, server_name};

/// What the node behind the port says: whoever hears it was let in.
const INSIDE: &str = "inside";

/// A CA, and its nodes' certificates as of now.
struct TestCa {
    dir: tempfile::TempDir,
    ca: authority::Issued,
}

impl TestCa {
    fn new() -> Self {
        let ca = authority::make("shop", Validity::days(SystemClock.now_ms(), 2)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), &ca.cert).unwrap();
        Self { dir, ca }
    }

    fn node(&self, node: u64) -> Arc<Followed<NodeTls>> {
        let issued = authority::issue(&self.ca, node, &[], Validity::days(SystemClock.now_ms(), 1)).unwrap();
        let path = |end: &str| self.dir.path().join(format!("{node}.{end}"));
        std::fs::write(path("crt"), issued.cert).unwrap();
        std::fs::write(path("key"), issued.key).unwrap();
        let files = RaftTls { ca: self.dir.path().join("ca.crt"), cert: path("crt"), key: path("key") };
        files::node(node, &files, Arc::new(SystemClock)).unwrap()
    }
}

/// A port that `tls` guards, and its address.
async fn serve(tls: Option<Arc<Followed<NodeTls>>>) -> (MemberAddress, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let raft = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    tokio::spawn(grpc::serve(listener, tls, Arc::new(UnreachablePeer(INSIDE.into())), stop.clone()));
    (MemberAddress { raft, ..MemberAddress::default() }, stop.drop_guard())
}

fn identity(node: u64) -> NodeIdentity {
    NodeIdentity::new("shop", NodeId(node))
}

fn link(tls: Option<Arc<Followed<NodeTls>>>, to: u64, member: &MemberAddress) -> Arc<dyn Peer> {
    let transport: Arc<dyn PeerTransport> = match tls {
        Some(tls) => GrpcTransport::with_tls(BTreeMap::new(), tls),
        None => GrpcTransport::new(BTreeMap::new()),
    };
    transport.link(NodeId(to), member, ConnectionClass::Control)
}

/// Every kind of call, as node `from` on node 1; what each was answered.
async fn calls(link: &Arc<dyn Peer>, from: u64) -> Vec<LinkError> {
    let handshake = Some(identity(from).handshake(NodeId(1)));
    let raft = RaftRequest { handshake: handshake.clone(), ..RaftRequest::default() };
    let chunk = SnapshotChunk { handshake: handshake.clone(), ..SnapshotChunk::default() };
    let propose = ProposeRequest { handshake: handshake.clone(), ..ProposeRequest::default() };
    let mut errors = Vec::new();
    for method in [Method::Append, Method::Vote, Method::PreVote, Method::TransferLeader] {
        errors.push(link.call(method, raft.clone()).await.err().unwrap());
    }
    errors.push(link.stream_append(stream::iter([raft]).boxed()).await.err().unwrap());
    errors.push(link.install_snapshot(stream::iter([chunk]).boxed()).await.err().unwrap());
    errors.push(link.propose(stream::iter([propose]).boxed()).await.err().unwrap());
    errors.push(link.read_index(ReadIndexRequest { handshake: handshake.clone() }).await.err().unwrap());
    let status = StatusRequest { handshake: handshake.clone(), ..StatusRequest::default() };
    errors.push(link.status(status).await.err().unwrap());
    errors.push(link.change(ChangeRequest { handshake, ..ChangeRequest::default() }).await.err().unwrap());
    errors
}

fn inside() -> LinkError {
    LinkError::Unreachable(INSIDE.into())
}

#[tokio::test]
async fn a_node_of_the_cluster_is_let_in() {
    let cluster = TestCa::new();
    let (member, _stop) = serve(Some(cluster.node(1))).await;
    for error in calls(&link(Some(cluster.node(2)), 1, &member), 2).await {
        assert_eq!(error, inside());
    }
}

#[tokio::test]
async fn plain_text_and_foreign_certificates_are_refused() {
    let (cluster, other) = (TestCa::new(), TestCa::new());
    let (member, _stop) = serve(Some(cluster.node(1))).await;
    for tls in [None, Some(other.node(2))] {
        for error in calls(&link(tls, 1, &member), 2).await {
            assert!(matches!(error, LinkError::Unreachable(_) | LinkError::Broken(_)) && error != inside(), "{error}");
        }
    }
    // Nor one that takes the server for what it is, and shows a certificate of its own CA, or none.
    let both = [cluster.ca.cert.as_str(), other.ca.cert.as_str()].concat();
    std::fs::write(other.dir.path().join("ca.crt"), both).unwrap();
    for error in calls(&link(Some(other.node(2)), 1, &member), 2).await {
        assert!(matches!(error, LinkError::Unreachable(_) | LinkError::Broken(_)) && error != inside(), "{error}");
    }
    let mut none = files::client(&cluster.dir.path().join("ca.crt")).unwrap();
    none.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(&member.raft).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(none)).connect(server_name(1).unwrap(), tcp).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(explain(&error), "it ended the handshake: CertificateRequired");
    // It trusts nobody else either: neither plain text nor another CA at a member's address.
    for tls in [None, Some(other.node(1))] {
        let (member, _stop) = serve(tls).await;
        for error in calls(&link(Some(cluster.node(2)), 1, &member), 2).await {
            assert!(matches!(error, LinkError::Unreachable(_)) && error != inside(), "{error}");
        }
    }
}

#[tokio::test]
async fn a_certificate_is_good_for_its_own_node_only() {
    let cluster = TestCa::new();
    let (member, _stop) = serve(Some(cluster.node(1))).await;
    let third = link(Some(cluster.node(3)), 1, &member);
    for error in calls(&third, 2).await {
        let LinkError::Refused(why) = &error else { panic!("{error}") };
        assert!(why.contains("not that of node 2") && why.contains("node-3.tillsync.internal"), "{why}");
    }
    // As itself it is let in, also on the same connection; and then still not as another one.
    assert!(calls(&third, 3).await.iter().all(|e| *e == inside()));
    assert!(calls(&third, 2).await.iter().all(|e| matches!(e, LinkError::Refused(_))));
    // Who asks whoever is there needs no name, but a node of this cluster.
    assert!(calls(&link(Some(cluster.node(3)), 0, &member), 3).await.iter().all(|e| *e == inside()));
    let stranger = link(Some(TestCa::new().node(3)), 0, &member);
    assert!(calls(&stranger, 3).await.iter().all(|e| matches!(e, LinkError::Unreachable(_)) && *e != inside()));
    // A node that answers at another one's address is not spoken with.
    let misled = link(Some(cluster.node(3)), 2, &member);
    assert!(calls(&misled, 3).await.iter().all(|e| matches!(e, LinkError::Unreachable(_)) && *e != inside()));
}

#[tokio::test]
async fn without_certificates_only_this_machine_is_spoken_with() {
    let far = MemberAddress { raft: "192.0.2.1:5100".into(), ..MemberAddress::default() };
    let error = link(None, 1, &far).status(StatusRequest::default()).await.err().unwrap();
    assert!(error.to_string().contains("raft_tls_cert"), "{error}");
    let (member, _stop) = serve(None).await;
    assert!(calls(&link(None, 1, &member), 2).await.iter().all(|e| *e == inside()));
}

#[tokio::test]
async fn strangers_who_say_nothing_keep_no_node_out() {
    let cluster = TestCa::new();
    let (member, _stop) = serve(Some(cluster.node(1))).await;
    // More than the port has places for.
    let mut silent = Vec::new();
    for _ in 0..limits::NODE_CONNECTIONS + 50 {
        silent.push(TcpStream::connect(&member.raft).await.unwrap());
    }
    for error in calls(&link(Some(cluster.node(2)), 1, &member), 2).await {
        assert_eq!(error, inside());
    }
    // The oldest had to go; the kernel may still have some for the port.
    silent.truncate(50);
    for mut stream in silent {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), stream.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
