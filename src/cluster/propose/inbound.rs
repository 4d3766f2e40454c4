//! Proposals of other nodes on the leader: queued in the order of each node's stream, answered in any order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::peers::agreed_clock::AgreedClock;
use crate::cluster::peers::compared_digests::ComparedDigests;
use crate::consensus::node::RaftNode;
use crate::consensus::runtime::spawn;
use crate::consensus::transport::Streaming;
use crate::ids::NodeId;
use crate::limits;
use crate::model::door::{self, CommandSource};
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::proposal_answer::Result as Answer;
use crate::proto::{Command, NotLeader, Outcome, ProposalAnswer, ProposeRequest, ProposeResponse, Refused, outcome};

#[derive(Default)]
struct ReadyAnswers {
    ready: Vec<ProposalAnswer>,
    /// Proposals taken and not answered yet.
    outstanding: usize,
    /// One was turned away: all after it are, or they would overtake it.
    poisoned: bool,
    closed: bool,
}

/// The way back to one stream of proposals.
#[derive(Default)]
pub(crate) struct ProposalStream {
    answers: Mutex<ReadyAnswers>,
    /// Answers are ready, or the stream ended.
    ready: Notify,
    /// Some were answered.
    drained: Notify,
}

impl ProposalStream {
    fn answer(&self, all: impl IntoIterator<Item = ProposalAnswer>) {
        let mut answers = self.answers.lock();
        let before = answers.ready.len();
        answers.ready.extend(all);
        let new = answers.ready.len() - before;
        answers.outstanding = answers.outstanding.saturating_sub(new);
        drop(answers);
        self.ready.notify_one();
        self.drained.notify_one();
    }

    fn is_poisoned(&self) -> bool {
        self.answers.lock().poisoned
    }

    pub(crate) fn applied(&self, outcomes: impl IntoIterator<Item = (u64, Outcome)>) {
        self.answer(outcomes.into_iter().map(|(id, outcome)| {
            let outcome = Bytes::from(outcome.encode_to_vec());
            ProposalAnswer { id, result: Some(Answer::Outcome(outcome)) }
        }));
    }

    pub(crate) fn turned_away(&self, leader: Option<NodeId>, ids: impl IntoIterator<Item = u64>) {
        self.answers.lock().poisoned = true;
        let result = Some(Answer::NotLeader(NotLeader { leader: leader.map(NodeId::get) }));
        self.answer(ids.into_iter().map(|id| ProposalAnswer { id, result: result.clone() }));
    }

    pub(crate) fn unknown(&self, ids: impl IntoIterator<Item = u64>) {
        self.answers.lock().poisoned = true;
        let result = Some(Answer::Unknown("leadership was lost".into()));
        self.answer(ids.into_iter().map(|id| ProposalAnswer { id, result: result.clone() }));
    }

    async fn wait_for_room(&self) {
        loop {
            let drained = self.drained.notified();
            if (self.answers.lock().outstanding as u64) < limits::ORIGIN_WINDOW {
                return;
            }
            drained.await;
        }
    }

    async fn next(self: Arc<Self>) -> Option<(ProposeResponse, Arc<Self>)> {
        loop {
            {
                let mut answers = self.answers.lock();
                if !answers.ready.is_empty() {
                    let ready = std::mem::take(&mut answers.ready);
                    drop(answers);
                    return Some((ProposeResponse { answers: ready }, self));
                }
                if answers.closed && answers.outstanding == 0 {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }
}

fn refusal(error: Error) -> Outcome {
    let refused = Refused { code: error.code.number(), message: error.message, ..Refused::default() };
    Outcome { result: Some(outcome::Result::Refused(refused)), ..Outcome::default() }
}

/// A proposal of another node.
pub(crate) struct Proposed {
    pub stream: Arc<ProposalStream>,
    pub id: u64,
    pub command: Bytes,
}

#[derive(Default)]
struct InboundQueue {
    proposed: VecDeque<Proposed>,
    /// This node leads and takes proposals.
    open: bool,
    leader: Option<NodeId>,
}

/// All streams of proposals that other nodes have opened here.
pub(crate) struct Inbox {
    queue: Mutex<InboundQueue>,
    door: CommandGuard,
    wake: Arc<Notify>,
    stop: CancellationToken,
}

/// What a command of another node has to pass before it gets into the log.
pub(crate) struct CommandGuard {
    pub node: Arc<RaftNode>,
    pub clock: Arc<AgreedClock>,
    pub digests: Arc<ComparedDigests>,
    /// How long a command may have waited for a leader.
    pub waited: Duration,
}

impl CommandGuard {
    /// `from` is who its certificate says. What is refused is surely not in the log.
    fn check(&self, from: NodeId, command: &Bytes) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::new(Code::InvalidData, why));
        if command.len() > limits::COMMAND_BYTES {
            return invalid(format!("a command may have at most {} bytes", limits::COMMAND_BYTES));
        }
        let Some(seen) = door::look(command) else { return invalid("these bytes are no command".into()) };
        if seen.origin.node != from.get() {
            return invalid(format!("node {from} proposes in the name of node {}", seen.origin.node));
        }
        match seen.proposer {
            CommandSource::Node => self.digests.may_write()?,
            CommandSource::Leader => {
                return Err(Error::new(Code::Unavailable, "only the leader proposes that, and it is another node"));
            }
            CommandSource::Membership if self.is_so(command) => {}
            CommandSource::Membership => return invalid("the membership is another one".into()),
        }
        self.clock.check(from, seen.at_ms, self.waited)
    }

    /// A leader that lost leadership while it changed the members has its record still taken: it is compared with what
    /// this node knows of them.
    fn is_so(&self, command: &Bytes) -> bool {
        let intent = Command::decode(command.clone()).ok().and_then(|command| command.intent);
        let Some(Intent::MembersChanged(changed)) = intent else { return false };
        self.node.group().members.contains_key(&NodeId(changed.node)) != changed.removed
    }
}

impl Inbox {
    pub(crate) fn new(door: CommandGuard, wake: Arc<Notify>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::default(), door, wake, stop })
    }

    /// From now on proposals are taken.
    pub(crate) fn open(&self) {
        self.queue.lock().open = true;
    }

    /// From now on proposals are turned away to `leader`, and so are those that wait here.
    pub(crate) fn close(&self, leader: Option<NodeId>) {
        let mut queue = self.queue.lock();
        queue.open = false;
        queue.leader = leader;
        let left = std::mem::take(&mut queue.proposed);
        drop(queue);
        for proposed in left {
            proposed.stream.turned_away(leader, [proposed.id]);
        }
    }

    /// How many wait to be proposed.
    pub(crate) fn ready(&self) -> usize {
        self.queue.lock().proposed.len()
    }

    /// The next proposals, up to `count` and about `bytes`.
    pub(crate) fn take(&self, count: usize, bytes: usize) -> Vec<Proposed> {
        let mut taken = Vec::new();
        let mut left = bytes;
        let mut queue = self.queue.lock();
        let leader = queue.leader;
        while taken.len() < count && left > 0 {
            let Some(proposed) = queue.proposed.pop_front() else { break };
            if proposed.stream.is_poisoned() {
                proposed.stream.turned_away(leader, [proposed.id]);
                continue;
            }
            left = left.saturating_sub(proposed.command.len());
            taken.push(proposed);
        }
        taken
    }

    fn offer(&self, from: NodeId, stream: &Arc<ProposalStream>, mut request: ProposeRequest) {
        if request.proposals.is_empty() {
            return;
        }
        let mut refused = Vec::new();
        if self.door.clock.may_lead() {
            request.proposals.retain(|proposal| match self.door.check(from, &proposal.command) {
                Ok(()) => true,
                Err(error) => {
                    refused.push((proposal.id, error));
                    false
                }
            });
        }
        if let Some((_, why)) = refused.first() {
            tracing::warn!(peer = from.get(), count = refused.len(), %why, "commands of another node were refused");
            stream.answers.lock().outstanding += refused.len();
            stream.applied(refused.into_iter().map(|(id, error)| (id, refusal(error))));
        }
        let mut queue = self.queue.lock();
        let poisoned = {
            let mut answers = stream.answers.lock();
            answers.outstanding += request.proposals.len();
            answers.poisoned
        };
        if !queue.open || poisoned || !self.door.clock.may_lead() {
            let leader = queue.leader;
            drop(queue);
            stream.turned_away(leader, request.proposals.iter().map(|proposal| proposal.id));
            return;
        }
        queue.proposed.extend(request.proposals.into_iter().map(|proposal| Proposed {
            stream: stream.clone(),
            id: proposal.id,
            command: proposal.command,
        }));
        drop(queue);
        self.wake.notify_one();
    }

    /// Takes a stream of proposals of `from`; gives the answers.
    pub(crate) fn accept(
        self: &Arc<Self>,
        from: NodeId,
        mut requests: Streaming<ProposeRequest>,
    ) -> Streaming<ProposeResponse> {
        let stream = Arc::new(ProposalStream::default());
        let (inbound_proposals, answers) = (self.clone(), stream.clone());
        spawn(async move {
            loop {
                stream.wait_for_room().await;
                let request = tokio::select! {
                    biased;
                    () = inbound_proposals.stop.cancelled() => None,
                    request = requests.next() => request,
                };
                let Some(request) = request else { break };
                inbound_proposals.offer(from, &stream, request);
            }
            stream.answers.lock().closed = true;
            stream.ready.notify_one();
        });
        stream::unfold(answers, ProposalStream::next).boxed()
    }
}
