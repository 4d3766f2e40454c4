//! Only members speak: what a node that was removed, or never was one, can do with its certificate.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use prost::Message;

use super::harness::{Cell, PATIENCE, online, update, write};
use crate::clock::{Clock, SystemClock};
use crate::cluster::MembershipChange;
use crate::consensus::identity::NodeIdentity;
use crate::consensus::transport::{ConnectionClass, LinkError, Method, Peer};
use crate::consensus::types::{MemberAddress, TypeConfig, Vote};
use crate::consensus::wire;
use crate::ids::NodeId;
use crate::limits;
use crate::model::state::into_result;
use crate::proto::command::Intent;
use crate::proto::{
    ChangeRequest, Command, CommandId, MembersChanged, NodeAdd, NodeLost, Outcome, Principal, Proposal, ProposeRequest,
    RaftRequest, ReadIndexRequest, SnapshotChunk, StatusRequest, change_request, proposal_answer,
};

/// A machine that speaks to the others as this node, with nothing behind it.
pub(super) struct Rogue {
    identity: NodeIdentity,
    to: u64,
    link: std::sync::Arc<dyn Peer>,
}

impl Rogue {
    pub(super) fn new(cell: &Cell, me: u64, to: u64) -> Self {
        let link = cell.router.transport(me).link(NodeId(to), &MemberAddress::default(), ConnectionClass::Control);
        Self { identity: NodeIdentity::new("cell", NodeId(me)), to, link }
    }

    fn raft(&self, body: Bytes) -> RaftRequest {
        RaftRequest { handshake: Some(self.identity.handshake(NodeId(self.to))), body }
    }

    async fn call(&self, method: Method, vote: Vote) -> Result<(), LinkError> {
        let body = match method {
            Method::Append => wire::encode_append(&AppendEntriesRequest {
                vote,
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            })
            .unwrap(),
            Method::Vote | Method::PreVote => {
                let mut request = VoteRequest::<TypeConfig>::new(vote, None);
                request.leadership_transfer = true;
                wire::encode_vote_request(&request)
            }
            Method::TransferLeader => {
                wire::encode_transfer(&openraft::raft::TransferLeaderRequest::new(vote, NodeId(self.to), None))
            }
        };
        self.link.call(method, self.raft(body)).await.map(|_| ())
    }

    /// What the first answer says; `None`: it was turned away, or nobody answered.
    pub(super) async fn propose(&self, command: Bytes) -> Result<Option<Outcome>, LinkError> {
        let proposals = vec![Proposal { id: 1, command }];
        let request = ProposeRequest { handshake: Some(self.identity.handshake(NodeId(self.to))), proposals };
        let mut answers = self.link.propose(stream::iter([request]).chain(stream::pending()).boxed()).await?;
        let first = tokio::time::timeout(PATIENCE, answers.next()).await.ok().flatten().transpose()?;
        let first = first.and_then(|response| response.answers.into_iter().next()?.result);
        Ok(match first {
            Some(proposal_answer::Result::Outcome(bytes)) => Outcome::decode(bytes).ok(),
            _ => None,
        })
    }

    /// Everything that a peer can ask for, with the right vote of a leader of the next term.
    async fn everything(&self, term: u64) -> Vec<(&'static str, Result<(), LinkError>)> {
        let me = self.identity.node;
        let (candidate, leader) = (Vote::new(term, me), Vote::new_committed(term, me));
        let handshake = Some(self.identity.handshake(NodeId(self.to)));
        let origin = Some(CommandId { node: me.get(), boot: 1, number: 1 });
        let command = Command { origin, at_ms: 1, intent: Some(online("rogue-till")), principal: None };
        let add = change_request::Change::Add(NodeAdd { node: 66, raft: "h:1".into(), gateway: "h:2".into() });
        let change = ChangeRequest {
            handshake: handshake.clone(),
            by: "boss".into(),
            jti: String::new(),
            within_ms: 500,
            change: Some(add),
        };
        let append = self.raft(
            wire::encode_append(&AppendEntriesRequest::<TypeConfig> {
                vote: leader,
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            })
            .unwrap(),
        );
        let snapshot = SnapshotChunk { handshake: handshake.clone(), last: true, ..SnapshotChunk::default() };
        let streamed = async {
            let mut answers = self.link.stream_append(stream::iter([append]).boxed()).await?;
            answers.next().await.unwrap_or(Err(LinkError::Refused("the stream ended".into()))).map(|_| ())
        };
        vec![
            ("vote", self.call(Method::Vote, candidate).await),
            ("pre-vote", self.call(Method::PreVote, candidate).await),
            ("append", self.call(Method::Append, leader).await),
            ("transfer", self.call(Method::TransferLeader, leader).await),
            ("stream of appends", streamed.await),
            ("snapshot", self.link.install_snapshot(stream::iter([snapshot]).boxed()).await.map(|_| ())),
            ("read index", self.link.read_index(ReadIndexRequest { handshake: handshake.clone() }).await.map(|_| ())),
            ("change of members", self.link.change(change).await.map(|_| ())),
            ("proposal", self.propose(command.encode_to_vec().into()).await.map(|_| ())),
        ]
    }
}

/// It is refused everything, and nothing happens by it.
async fn gets_nothing(cell: &Cell, rogue: u64, members: &[u64]) {
    let leader = cell.leader(members).await;
    let before = cell.at(leader).status();
    for to in members {
        for (what, answer) in Rogue::new(cell, rogue, *to).everything(before.term.get() + 1).await {
            assert!(
                matches!(&answer, Err(LinkError::Refused(why)) if why.contains("not a member")),
                "{what}: {answer:?}"
            );
        }
        let status = StatusRequest {
            handshake: Some(Rogue::new(cell, rogue, *to).identity.handshake(NodeId(*to))),
            fresh: true,
            ..StatusRequest::default()
        };
        let told = Rogue::new(cell, rogue, *to).link.status(status).await.unwrap();
        // Enough to join, or to learn that it was removed; nothing of the shop.
        assert!(told.fresh && told.digest.is_empty() && told.head_seq == 0 && !told.voters.is_empty(), "{told:?}");
    }
    cell.at(leader).propose(online("till-1")).await.unwrap();
    assert_eq!((cell.leader(members).await, cell.at(leader).status().term), (leader, before.term));
    assert!(cell.at(leader).replica().state().device("rogue-till").is_none());
    assert_eq!(cell.at(leader).nodes().len(), members.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_was_a_member_gets_nothing() {
    let cell = Cell::new(3, |_| {}).await;
    gets_nothing(&cell, 9, &[1, 2, 3]).await;
    cell.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_gets_nothing_and_neither_after_a_restart() {
    let mut cell = Cell::new(3, |_| {}).await;
    // A node that stops leading just then takes nothing: the next leader is asked.
    let (leader, gone) = loop {
        let leader = cell.leader(&[1, 2, 3]).await;
        let gone = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
        let open = Rogue::new(&cell, gone, leader);
        let origin = Some(CommandId { node: gone, boot: 77, number: 1 });
        let at_ms = SystemClock.now_ms().get();
        let proposed = Command { origin, at_ms, intent: Some(online("before")), principal: None };
        if open.propose(proposed.encode_to_vec().into()).await.unwrap().is_some() {
            break (leader, gone);
        }
    };
    let left: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != gone).collect();
    cell.at(leader)
        .change(
            MembershipChange::Remove { node: NodeId(gone) },
            Principal { sub: "admin".into(), jti: String::new() },
            PATIENCE,
        )
        .await
        .unwrap();
    cell.converge_among(&left).await;
    gets_nothing(&cell, gone, &left).await;
    for node in &left {
        cell.stop(*node).await;
        cell.start(*node).await;
    }
    gets_nothing(&cell, gone, &left).await;
    cell.shutdown().await;
}

/// The lead jumped to term 1,000,001 once: a member speaks for itself only, and never of a term near the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_votes_for_itself_and_in_a_term_that_can_be() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let (follower, other) = if leader == 1 { (2, 3) } else { (1, 5 - leader) };
    let term = cell.at(leader).status().term.get();
    let rogue = Rogue::new(&cell, follower, leader);
    for (vote, words) in [
        (Vote::new(term + 1, NodeId(other)), "speaks for node"),
        (Vote::new(u64::MAX, NodeId(follower)), "too far ahead"),
        (Vote::new(term + limits::TERM_AHEAD + 1, NodeId(follower)), "too far ahead"),
    ] {
        for method in [Method::Vote, Method::PreVote, Method::Append, Method::TransferLeader] {
            let answer = rogue.call(method, vote).await;
            assert!(matches!(&answer, Err(LinkError::Refused(why)) if why.contains(words)), "{method:?}: {answer:?}");
        }
    }
    assert_eq!(cell.at(leader).status().term.get(), term);
    cell.shutdown().await;
}

/// It knows nobody of those that lead by now: it takes entries from them, as those that it does know say who they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_the_change_follows_a_leader_that_it_never_heard_of() {
    let mut cell = Cell::new(3, |_| {}).await;
    cell.leader(&[1, 2, 3]).await;
    cell.at(1).propose(online("till-1")).await.unwrap();
    cell.converge().await;
    cell.stop(3).await;
    let leader = cell.leader(&[1, 2]).await;
    for node in [4, 5] {
        cell.start_new(node).await;
        let add = MembershipChange::Add {
            node: NodeId(node),
            raft: format!("node-{node}"),
            gateway: format!("gateway-{node}"),
        };
        cell.at(leader).change(add, Principal { sub: "admin".into(), jti: String::new() }, PATIENCE).await.unwrap();
    }
    cell.at(leader)
        .change(
            MembershipChange::Transfer { to: NodeId(5) },
            Principal { sub: "admin".into(), jti: String::new() },
            PATIENCE,
        )
        .await
        .unwrap();
    write(&cell.at(5), "till-1", 1).await;
    cell.stop(if leader == 1 { 2 } else { 1 }).await;
    cell.start(3).await;
    let members: Vec<u64> = cell.nodes.keys().copied().collect();
    assert_eq!(cell.leader(&members).await, 5);
    cell.at(3).propose(update("till-1", 2, "{}".into())).await.unwrap();
    cell.converge().await;
    cell.shutdown().await;
}

/// A member whose program is another one: it speaks for its own clients only, and never as if it led.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_proposes_what_is_its_own_to_propose_and_nothing_else() {
    let cell = Cell::new(3, |_| {}).await;
    let leader = cell.leader(&[1, 2, 3]).await;
    let (me, other) = if leader == 1 { (2, 3) } else { (1, 5 - leader) };
    let rogue = Rogue::new(&cell, me, leader);
    let command = |node, number, intent| {
        let origin = Some(CommandId { node, boot: 7, number });
        Command { origin, at_ms: SystemClock.now_ms().get(), intent: Some(intent), principal: None }
    };
    let removed = MembersChanged { node: other, removed: true, by: "boss".into(), ..MembersChanged::default() };
    let added = MembersChanged { node: 77, removed: false, by: "boss".into(), ..MembersChanged::default() };
    for (number, (node, intent, words)) in [
        (other, online("till-1"), "in the name of"),
        (me, Intent::NodeLost(NodeLost { node: other }), "only the leader"),
        (me, Intent::MembersChanged(removed), "membership is another"),
        (me, Intent::MembersChanged(added), "membership is another"),
        (me, online(&"x".repeat(limits::COMMAND_BYTES)), "at most"),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = command(node, number as u64 + 1, intent).encode_to_vec();
        let error = into_result(rogue.propose(bytes.into()).await.unwrap().unwrap()).unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
    let error = into_result(rogue.propose(Bytes::from_static(b"\xff\xff")).await.unwrap().unwrap()).unwrap_err();
    assert!(error.message.contains("no command"), "{error}");
    let good = command(me, 9, online("till-2")).encode_to_vec();
    assert!(into_result(rogue.propose(good.into()).await.unwrap().unwrap()).is_ok());
    let there = cell.at(leader);
    {
        let state = there.replica().state();
        assert!(state.device("till-1").is_none() && state.device("till-2").is_some());
        assert!(state.meta().removed_nodes.is_empty());
    }
    cell.shutdown().await;
}
