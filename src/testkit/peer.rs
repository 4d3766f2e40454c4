//! What another node sends: the bodies of its calls, whole calls to a running node, and commands that get applied.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use prost::Message;
use tokio::time::timeout;

use super::alloc::measure;
use super::{NOW_MS, run, state};
use crate::cluster::boot::{NodeConfig, PeerLinks, start};
use crate::consensus::identity::NodeIdentity;
use crate::consensus::transport::{ConnectionClass, Method};
use crate::consensus::types::MemberAddress;
use crate::consensus::{codec, wire};
use crate::ids::{LogIndex, NodeId, RaftTerm};
use crate::model::door::{self, CommandSource};
use crate::model::state::{Position, State};
use crate::model::tables::MemoryTables;
use crate::proto::{
    ChangeRequest, ChangeResponse, Command, EncodedCommands, Handshake, Proposal, ProposeRequest, ProposeResponse,
    RaftRequest, RaftResponse, ReadIndexRequest, ReadIndexResponse, SnapshotChunk, StatusRequest, StatusResponse,
};
use crate::storage::fuzz::read_snapshot;
use crate::storage::memory::MemoryDisk;
use crate::testkit::manual_clock::ManualClock;
use crate::testkit::simulated_network::Router;

/// Messages of a case.
const MESSAGES: usize = 64;
const CALLS: usize = 8;
/// By the case's own clock.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a case may take: so many times its length, and this. Bytes.
const PEAK_TIMES: isize = 512;
const PEAK: isize = 32 << 20;
const LEFT: isize = 1 << 20;

thread_local! {
    /// What the first node of a thread makes for all that follow is no part of a case.
    static WARM: () = run(call(Vec::new()));
}

/// A case: a letter, then messages, each behind its length (`u16`, little-endian; the last one may be shorter).
///
/// `a`: commands, applied one an entry. `b`: the same, all in one entry. `n`: calls to a node of a cluster of two by the
/// other one, each with a letter for its kind in front. `s`: a snapshot. Else: bodies of calls and answers, which are
/// decoded only.
pub fn peer(input: &[u8]) {
    let Some((letter, rest)) = input.split_first() else { return };
    WARM.with(|_| ());
    let ((), taken) = measure(|| match letter {
        b'a' => apply(messages(rest).map(|command| vec![command]).collect()),
        b'b' => apply(vec![messages(rest).collect()]),
        b'n' => run(call(messages(rest).take(CALLS).collect())),
        b's' => drop(read_snapshot(rest)),
        _ => messages(rest).for_each(decode),
    });
    let peak = PEAK + PEAK_TIMES * input.len() as isize;
    assert!(taken.peak < peak && taken.left < LEFT, "{taken:?} of {} bytes", input.len());
}

pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (message, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        rest = after;
        Some(Bytes::copy_from_slice(message))
    })
    .take(MESSAGES)
}

fn apply(entries: Vec<Vec<Bytes>>) {
    let tables = MemoryTables::default();
    let mut state = State::open(Box::new(tables)).unwrap();
    for (index, commands) in (1..).zip(entries) {
        commands.iter().for_each(look);
        let count = commands.len();
        let batch = Bytes::from(EncodedCommands { commands }.encode_to_vec());
        let done = state
            .apply(Position { index: LogIndex(index), log_id: Bytes::new(), term: RaftTerm(1) }, batch)
            .expect("the rows are good");
        assert_eq!(done.outcomes.len(), count, "each command has its outcome");
    }
    state::check(&state);
}

/// What the leader sees of a command without decoding it is what it is once it is decoded.
fn look(bytes: &Bytes) {
    let (Some(seen), Ok(command)) = (door::look(bytes), Command::decode(bytes.clone())) else { return };
    assert_eq!(Some(seen.origin), command.origin);
    assert_eq!(seen.at_ms.get(), command.at_ms);
    let Some(intent) = &command.intent else { return };
    match door::proposer(intent) {
        CommandSource::Leader => assert_eq!(seen.proposer, CommandSource::Leader, "{intent:?}"),
        CommandSource::Membership => assert_ne!(seen.proposer, CommandSource::Node, "{intent:?}"),
        CommandSource::Node => {}
    }
}

/// What decodes is the same after it was encoded again.
fn same<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &Bytes) {
    let Ok(message) = M::decode(bytes.clone()) else { return };
    assert_eq!(M::decode(&message.encode_to_vec()[..]).unwrap(), message);
}

fn decode(bytes: Bytes) {
    same::<ProposeRequest>(&bytes);
    same::<ProposeResponse>(&bytes);
    same::<ReadIndexRequest>(&bytes);
    same::<ReadIndexResponse>(&bytes);
    same::<StatusRequest>(&bytes);
    same::<StatusResponse>(&bytes);
    same::<ChangeRequest>(&bytes);
    same::<ChangeResponse>(&bytes);
    same::<RaftRequest>(&bytes);
    same::<RaftResponse>(&bytes);
    same::<SnapshotChunk>(&bytes);
    same::<Handshake>(&bytes);
    if let Ok(request) = wire::decode_append(bytes.clone()) {
        let again = wire::decode_append(wire::encode_append(&request).unwrap()).unwrap();
        assert_eq!(again.entries, request.entries);
    }
    let _ = wire::decode_append_answer(bytes.clone(), None);
    let _ = wire::decode_append_response(bytes.clone());
    let _ = wire::decode_vote_request(bytes.clone());
    let _ = wire::decode_vote_response(bytes.clone());
    let _ = wire::decode_transfer(bytes.clone());
    let _ = wire::decode_transfer_response(bytes.clone());
    let _ = wire::decode_snapshot_header(bytes.clone());
    let _ = codec::decode_entry(LogIndex(1), bytes.clone());
    let _ = codec::decode_stored_membership(&bytes);
}

/// The calls of node 2 to node 1, which know each other.
async fn call(calls: Vec<Bytes>) {
    let router = Router::new();
    let member = |id: u64| (NodeId(id), MemberAddress { raft: format!("node-{id}"), ..MemberAddress::default() });
    let config = NodeConfig::new(NodeId(1), "shop", BTreeMap::from([member(1), member(2)]));
    let disk = MemoryDisk::default();
    let node = start(config, disk.open(), PeerLinks::Memory(router.clone()), ManualClock::at(NOW_MS)).await.unwrap();
    let (cluster, effects, stopper) = node.split();
    let caller = FuzzedPeer { identity: NodeIdentity::new("shop", NodeId(2)), router };
    for call in calls {
        let _ = timeout(PATIENCE, caller.call(call)).await;
    }
    let alive = cluster.node().raft().with_raft_state(|state| state.vote_ref().to_owned());
    alive.await.expect("the node goes on");
    state::check(&crate::cluster::Cluster::replica(&*cluster).state());
    drop(effects);
    stopper.shutdown().await;
}

struct FuzzedPeer {
    identity: NodeIdentity,
    router: std::sync::Arc<Router>,
}

impl FuzzedPeer {
    async fn call(&self, call: Bytes) {
        let link = crate::consensus::transport::PeerTransport::link(
            &*self.router.transport(2),
            NodeId(1),
            &MemberAddress::default(),
            ConnectionClass::Control,
        );
        let Some(letter) = call.first() else { return };
        let (handshake, body) = (Some(self.identity.handshake(NodeId(1))), call.slice(1..));
        let raft = RaftRequest { handshake: handshake.clone(), body: body.clone() };
        match letter {
            b'v' => drop(link.call(Method::Vote, raft).await),
            b'V' => drop(link.call(Method::PreVote, raft).await),
            b't' => drop(link.call(Method::TransferLeader, raft).await),
            b's' => {
                if let Ok(answers) = link.stream_append(stream::iter([raft]).boxed()).await {
                    answers.for_each(async |_| ()).await;
                }
            }
            b'i' => {
                let mut parts = messages(&body);
                let (header, data) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                let checksum = xxhash_rust::xxh3::xxh3_64(&data);
                let chunk = SnapshotChunk { handshake, header, data, checksum, last: true, ..SnapshotChunk::default() };
                let _ = link.install_snapshot(stream::iter([chunk]).boxed()).await;
            }
            b'o' => {
                let proposals = messages(&body).zip(1..).map(|(command, id)| Proposal { id, command }).collect();
                let request = ProposeRequest { handshake, proposals };
                if let Ok(answers) = link.propose(stream::iter([request]).boxed()).await {
                    answers.for_each(async |_| ()).await;
                }
            }
            b'r' => drop(link.read_index(ReadIndexRequest { handshake }).await),
            b'u' => drop(
                link.status(StatusRequest { handshake, fresh: !body.is_empty(), ..StatusRequest::default() }).await,
            ),
            b'c' => {
                if let Ok(request) = ChangeRequest::decode(body) {
                    let _ = link.change(ChangeRequest { handshake, within_ms: 100, ..request }).await;
                }
            }
            _ => drop(link.call(Method::Append, raft).await),
        }
    }
}
