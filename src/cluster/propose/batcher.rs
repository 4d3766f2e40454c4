//! The leader's side of proposing: what is ready becomes one Raft entry, a few entries are on their way at
//! once. Alone, a command leaves at once; under load, batches grow by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inbound::{Inbox, ProposalStream, Proposed};
use super::linger::AdaptiveLinger;
use super::pending::{PendingProposals, RouteAttempt};
use crate::cluster::peers::agreed_clock::AgreedClock;
use crate::consensus::node::RaftNode;
use crate::consensus::write::{TurnedAway, Written};
use crate::ids::{NodeId, RaftTerm};
use crate::limits::{BATCH_BYTES, BATCH_COMMANDS};
use crate::proto::Outcome;

/// Entries on their way at once. What comes meanwhile makes the next one larger: an entry costs three disks a sync,
/// and on a busy machine fewer and larger ones win (measured against 2 and 4).
const PIPELINE: usize = 1;

type BatchOutcomes = Vec<(u64, Outcome)>;

/// Who waits for a command of a batch.
enum ProposalTicket {
    Own(u64),
    Other { stream: Arc<ProposalStream>, id: u64 },
}

/// Why this node no longer takes proposals as the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeadEnd {
    /// It leads no more, or may not know.
    Lost { leader: Option<NodeId> },
    /// Leadership is being handed to this node.
    Transfer { to: NodeId },
    /// It has not heard a majority for a while; it may lead on.
    Lease,
}

/// One time of leading.
struct BatcherTerm {
    attempt: RouteAttempt,
    inflight: AtomicUsize,
    /// Commands of the batch that was answered last; zero when that is taken note of.
    answered: AtomicUsize,
    ended: Mutex<Option<LeadEnd>>,
    pending_proposals: Arc<PendingProposals>,
    wake: Arc<Notify>,
}

impl BatcherTerm {
    fn end(&self, why: LeadEnd) {
        self.ended.lock().get_or_insert(why);
    }

    /// Gives every ticket of a batch its answer. Runs in the task that applied the entry: it never waits.
    fn finish(&self, tickets: Vec<ProposalTicket>, result: Written) {
        self.answered.store(tickets.len(), Ordering::SeqCst);
        match result {
            Written::Applied(outcomes) if outcomes.len() == tickets.len() => self.applied(tickets, outcomes),
            Written::Applied(_) => {
                tracing::error!("an entry gave another number of outcomes than it had commands");
                self.unknown(tickets, LeadEnd::Lost { leader: None });
            }
            Written::TurnedAway(why) => {
                let why = match why {
                    TurnedAway::Transfer { to } => LeadEnd::Transfer { to },
                    TurnedAway::Lease => LeadEnd::Lease,
                    TurnedAway::NotLeader { leader } => LeadEnd::Lost { leader },
                };
                self.turned_away(tickets, why);
            }
            Written::Unknown => self.unknown(tickets, LeadEnd::Lost { leader: None }),
        }
        self.inflight.fetch_sub(1, Ordering::SeqCst);
        self.wake.notify_one();
    }

    fn applied(&self, tickets: Vec<ProposalTicket>, outcomes: Vec<Outcome>) {
        let mut own = Vec::new();
        let mut others = Vec::<(Arc<ProposalStream>, BatchOutcomes)>::new();
        for (ticket, outcome) in tickets.into_iter().zip(outcomes) {
            match ticket {
                ProposalTicket::Own(number) => own.push((number, outcome)),
                ProposalTicket::Other { stream, id } => {
                    match others.iter_mut().find(|(to, _)| Arc::ptr_eq(to, &stream)) {
                        Some((_, answers)) => answers.push((id, outcome)),
                        None => others.push((stream, vec![(id, outcome)])),
                    }
                }
            }
        }
        if !own.is_empty() {
            self.pending_proposals.applied(own);
        }
        for (stream, answers) in others {
            stream.applied(answers);
        }
    }

    fn turned_away(&self, tickets: Vec<ProposalTicket>, why: LeadEnd) {
        self.end(why);
        let leader = match why {
            LeadEnd::Transfer { to } => Some(to),
            LeadEnd::Lost { leader } => leader,
            LeadEnd::Lease => None,
        };
        for ticket in tickets {
            match ticket {
                ProposalTicket::Own(number) => self.pending_proposals.turned_away(self.attempt, [number]),
                ProposalTicket::Other { stream, id } => stream.turned_away(leader, [id]),
            }
        }
    }

    fn unknown(&self, tickets: Vec<ProposalTicket>, why: LeadEnd) {
        self.end(why);
        for ticket in tickets {
            if let ProposalTicket::Other { stream, id } = ticket {
                stream.unknown([id]);
            }
        }
    }
}

pub(crate) struct Batcher {
    pub node: Arc<RaftNode>,
    pub clock: Arc<AgreedClock>,
    pub pending_proposals: Arc<PendingProposals>,
    pub inbound_proposals: Arc<Inbox>,
    pub wake: Arc<Notify>,
    pub stop: CancellationToken,
}

impl Batcher {
    /// Takes proposals while this node leads in `term`.
    pub(crate) async fn lead(&self, term: RaftTerm) -> LeadEnd {
        let lead = Arc::new(BatcherTerm {
            attempt: self.pending_proposals.restart_from_oldest(),
            inflight: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            ended: Mutex::new(None),
            pending_proposals: self.pending_proposals.clone(),
            wake: self.wake.clone(),
        });
        self.inbound_proposals.open();
        let why = self.run(&lead, term).await;
        let leader = match why {
            LeadEnd::Transfer { to } => Some(to),
            LeadEnd::Lost { leader } => leader,
            LeadEnd::Lease => None,
        };
        self.inbound_proposals.close(leader);
        why
    }

    async fn run(&self, lead: &Arc<BatcherTerm>, term: RaftTerm) -> LeadEnd {
        let mut place = self.node.place();
        let mut linger = AdaptiveLinger::default();
        loop {
            let now = place.now();
            if now.leading != Some(term) {
                lead.end(LeadEnd::Lost { leader: now.leader });
            } else if !self.clock.may_lead() {
                // Another node will: this one hands leadership over.
                lead.end(LeadEnd::Lost { leader: None });
            }
            if let Some(why) = *lead.ended.lock() {
                return why;
            }
            let mut until = None;
            if lead.inflight.load(Ordering::SeqCst) < PIPELINE {
                let ready = self.pending_proposals.ready() + self.inbound_proposals.ready();
                let now = Instant::now();
                match lead.answered.swap(0, Ordering::SeqCst) {
                    0 => {}
                    answered => linger.finished(answered, ready, now),
                }
                until = linger.waits(ready, now);
                if until.is_none()
                    && let Some((batch, tickets)) = self.next_batch(lead.attempt)
                {
                    linger.leaves(now);
                    self.write(lead, term, batch, tickets).await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
                () = self.stop.cancelled() => return LeadEnd::Lost { leader: None },
                changed = place.changed() => if !changed { return LeadEnd::Lost { leader: None } },
                () = self.wake.notified() => {}
            }
        }
    }

    async fn write(&self, lead: &Arc<BatcherTerm>, term: RaftTerm, batch: Bytes, tickets: Vec<ProposalTicket>) {
        lead.inflight.fetch_add(1, Ordering::SeqCst);
        let finishing = lead.clone();
        // Bound to the term: once one batch is turned away, those behind it must not get in.
        if !self.node.write(term, batch, move |result| finishing.finish(tickets, result)).await {
            lead.end(LeadEnd::Lost { leader: None });
        }
    }

    /// What is ready, as one encoded `proto::Batch`. Own commands and those of others share it evenly.
    fn next_batch(&self, attempt: RouteAttempt) -> Option<(Bytes, Vec<ProposalTicket>)> {
        let others_wait = self.inbound_proposals.ready() > 0;
        let share = if others_wait { 2 } else { 1 };
        let own = self
            .pending_proposals
            .next_to_send(attempt, BATCH_COMMANDS / share, BATCH_BYTES / share)
            .unwrap_or_default();
        let own_bytes: usize = own.iter().map(|(_, command)| command.len()).sum();
        let others = match others_wait {
            true => {
                self.inbound_proposals.take(BATCH_COMMANDS - own.len(), BATCH_BYTES.saturating_sub(own_bytes).max(1))
            }
            false => Vec::new(),
        };
        if own.is_empty() && others.is_empty() {
            return None;
        }
        let bytes: usize = own_bytes + others.iter().map(|proposed| proposed.command.len()).sum::<usize>();
        let mut batch = BytesMut::with_capacity(bytes + 6 * (own.len() + others.len()));
        let mut tickets = Vec::with_capacity(own.len() + others.len());
        for (number, command) in own {
            put_command(&mut batch, &command);
            tickets.push(ProposalTicket::Own(number));
        }
        for Proposed { stream, id, command } in others {
            put_command(&mut batch, &command);
            tickets.push(ProposalTicket::Other { stream, id });
        }
        Some((batch.freeze(), tickets))
    }
}

/// Adds an encoded command to an encoded `proto::Batch`: field 1, its length, its bytes.
fn put_command(batch: &mut BytesMut, command: &Bytes) {
    batch.put_u8(0x0a);
    prost::encoding::encode_varint(command.len() as u64, batch);
    batch.put_slice(command);
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{Batch, Command, CommandId};

    #[test]
    fn commands_side_by_side_are_a_batch() {
        let command =
            |number| Command { origin: Some(CommandId { node: 1, boot: 2, number }), at_ms: 300, ..Command::default() };
        let mut bytes = BytesMut::new();
        for number in [1, 1_000_000] {
            put_command(&mut bytes, &command(number).encode_to_vec().into());
        }
        assert_eq!(Batch::decode(bytes.freeze()).unwrap(), Batch { commands: vec![command(1), command(1_000_000)] });
    }
}
