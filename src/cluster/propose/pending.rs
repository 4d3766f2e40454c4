//! This node's own commands on their way: numbered, kept until they are answered, sent again from the
//! oldest on when the leader changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::ids::{NodeId, UnixMs};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::model::state::into_result;
use crate::proto::command::Intent;
use crate::proto::{Command, CommandId, Outcome, Principal};

pub(crate) type ProposalReceiver = oneshot::Receiver<Result<Outcome, Error>>;

/// Which try to bring the commands to a leader; every try begins with the oldest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteAttempt(u64);

struct PendingProposal {
    command: Bytes,
    answer: oneshot::Sender<Result<Outcome, Error>>,
    deadline: Instant,
    /// Sent on the present route and not answered yet.
    out: bool,
    /// An earlier try ended without saying whether it is in the log.
    unknown: bool,
}

#[derive(Default)]
struct Slots {
    /// The number of the first slot.
    base: u64,
    /// `None`: answered, but an older one is not.
    slots: VecDeque<Option<PendingProposal>>,
    /// The next number to send on the present route.
    cursor: u64,
    /// Changes when the route does: a sender of an older one stops.
    attempt: RouteAttempt,
    closed: bool,
}

impl Slots {
    fn at(&mut self, number: u64) -> Option<&mut Option<PendingProposal>> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        self.cursor = self.cursor.max(self.base);
    }
}

/// The commands of one boot of one node. Numbers are dense from 1, and those not answered never span more
/// than [`limits::ORIGIN_WINDOW`]: the state recognises every retry.
pub(crate) struct PendingProposals {
    node: NodeId,
    boot: u64,
    timeout: Duration,
    slots: Mutex<Slots>,
    wake: Arc<Notify>,
}

fn too_late(slot: &PendingProposal) -> Error {
    if slot.out || slot.unknown {
        Error::new(Code::Timeout, "not confirmed by a quorum in time: it may have been applied")
    } else {
        Error::new(Code::NoMaster, "there was no leader to take it: nothing was written")
    }
}

impl PendingProposals {
    /// `wake` is notified when there is something to send.
    pub(crate) fn new(node: NodeId, boot: u64, timeout: Duration, wake: Arc<Notify>) -> Self {
        let slots = Mutex::new(Slots { base: 1, cursor: 1, ..Slots::default() });
        Self { node, boot, timeout, slots, wake }
    }

    /// Numbers and queues a command.
    pub(crate) fn push(
        &self,
        principal: Option<Principal>,
        intent: Intent,
        at_ms: UnixMs,
    ) -> Result<ProposalReceiver, Error> {
        // All but the number is encoded outside the lock; protobuf takes the fields in any order.
        let unnumbered = Command { origin: None, at_ms: at_ms.get(), principal, intent: Some(intent) };
        let mut command = BytesMut::with_capacity(unnumbered.encoded_len() + 40);
        if unnumbered.encode(&mut command).is_err() {
            return Err(Error::new(Code::Internal, "the command cannot be encoded"));
        }
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        let mut slots = self.slots.lock();
        if slots.closed {
            return Err(Error::new(Code::Unavailable, "the node is shutting down"));
        }
        if slots.slots.len() as u64 >= limits::ORIGIN_WINDOW {
            return Err(Error::new(Code::Unavailable, "too many requests are waiting"));
        }
        let number = slots.base + slots.slots.len() as u64;
        let origin = CommandId { node: self.node.get(), boot: self.boot, number };
        let (tag, length) = (0x0a, origin.encoded_len());
        command.put_u8(tag);
        command.put_u8(u8::try_from(length).unwrap_or(u8::MAX));
        if origin.encode(&mut command).is_err() {
            return Err(Error::new(Code::Internal, "the command cannot be encoded"));
        }
        slots.slots.push_back(Some(PendingProposal {
            command: command.freeze(),
            answer,
            deadline,
            out: false,
            unknown: false,
        }));
        drop(slots);
        self.wake.notify_one();
        Ok(answered)
    }

    /// Starts a new route: everything that is not answered will be sent on it, oldest first.
    pub(crate) fn restart_from_oldest(&self) -> RouteAttempt {
        let mut slots = self.slots.lock();
        for slot in slots.slots.iter_mut().flatten() {
            slot.unknown |= slot.out;
            slot.out = false;
        }
        slots.cursor = slots.base;
        slots.attempt.0 += 1;
        slots.attempt
    }

    /// The next commands to send, with their numbers, up to `count` and about `bytes`; `None` if the route
    /// is no longer `attempt`.
    pub(crate) fn next_to_send(&self, attempt: RouteAttempt, count: usize, bytes: usize) -> Option<Vec<(u64, Bytes)>> {
        let mut taken = Vec::new();
        let mut slots = self.slots.lock();
        if slots.attempt != attempt {
            return None;
        }
        let mut left = bytes;
        while taken.len() < count && left > 0 {
            let number = slots.cursor;
            let Some(place) = slots.at(number) else { break };
            if let Some(slot) = place {
                slot.out = true;
                left = left.saturating_sub(slot.command.len());
                taken.push((number, slot.command.clone()));
            }
            slots.cursor += 1;
        }
        Some(taken)
    }

    /// How many wait to be sent.
    pub(crate) fn ready(&self) -> usize {
        let slots = self.slots.lock();
        slots.slots.len().saturating_sub((slots.cursor - slots.base) as usize)
    }

    /// These were applied. Answers of an earlier route count as well.
    pub(crate) fn applied(&self, outcomes: impl IntoIterator<Item = (u64, Outcome)>) {
        let mut slots = self.slots.lock();
        for (number, outcome) in outcomes {
            if let Some(slot) = slots.at(number).and_then(Option::take) {
                // Whoever asked may be gone.
                let _ = slot.answer.send(into_result(outcome));
            }
        }
        slots.trim();
    }

    /// These are surely not in the log by this try.
    pub(crate) fn turned_away(&self, attempt: RouteAttempt, numbers: impl IntoIterator<Item = u64>) {
        let mut slots = self.slots.lock();
        if slots.attempt != attempt {
            return;
        }
        for number in numbers {
            if let Some(Some(slot)) = slots.at(number) {
                slot.out = false;
            }
        }
    }

    /// Fails what has waited too long; it is never sent again.
    pub(crate) fn expire(&self, now: Instant) {
        let mut slots = self.slots.lock();
        // Deadlines come in the order of the numbers.
        let count = slots.slots.iter().take_while(|s| s.as_ref().is_none_or(|s| s.deadline <= now)).count();
        let expired: Vec<_> = slots.slots.iter_mut().take(count).filter_map(Option::take).collect();
        slots.trim();
        drop(slots);
        for slot in expired {
            let error = too_late(&slot);
            let _ = slot.answer.send(Err(error));
        }
    }

    /// Fails everything: the node is going down.
    pub(crate) fn close(&self) {
        let mut slots = self.slots.lock();
        slots.closed = true;
        slots.attempt.0 += 1;
        let left = std::mem::take(&mut slots.slots);
        drop(slots);
        for slot in left.into_iter().flatten() {
            let error = if slot.out || slot.unknown {
                Error::new(Code::Timeout, "the node is shutting down: it may have been applied")
            } else {
                Error::new(Code::Unavailable, "the node is shutting down")
            };
            let _ = slot.answer.send(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::NodeBooted;

    fn pending_proposals() -> PendingProposals {
        PendingProposals::new(NodeId(3), 9, Duration::from_secs(5), Arc::default())
    }

    fn push(pending_proposals: &PendingProposals) -> ProposalReceiver {
        pending_proposals.push(None, Intent::NodeBooted(NodeBooted::default()), UnixMs(77)).unwrap()
    }

    fn numbers(taken: Option<Vec<(u64, Bytes)>>) -> Vec<u64> {
        taken.unwrap().into_iter().map(|(number, _)| number).collect()
    }

    #[tokio::test]
    async fn a_command_is_stamped_and_numbered() {
        let pending_proposals = pending_proposals();
        let attempt = pending_proposals.restart_from_oldest();
        let _answers = [push(&pending_proposals), push(&pending_proposals)];
        let taken = pending_proposals.next_to_send(attempt, 10, 1_000).unwrap();
        for (number, bytes) in taken {
            let command = Command::decode(bytes).unwrap();
            assert_eq!(command.origin, Some(CommandId { node: 3, boot: 9, number }));
            assert_eq!((command.at_ms, command.intent), (77, Some(Intent::NodeBooted(NodeBooted::default()))));
        }
        assert_eq!(pending_proposals.ready(), 0);
    }

    #[tokio::test]
    async fn a_new_route_sends_the_unanswered_again_in_order() {
        let pending_proposals = pending_proposals();
        let first = pending_proposals.restart_from_oldest();
        let mut answers: Vec<_> = (0..4).map(|_| push(&pending_proposals)).collect();
        assert_eq!(numbers(pending_proposals.next_to_send(first, 3, 1_000)), [1, 2, 3]);
        pending_proposals.applied([(2, Outcome::default())]);
        let second = pending_proposals.restart_from_oldest();
        assert_eq!(pending_proposals.next_to_send(first, 10, 1_000), None);
        assert_eq!(numbers(pending_proposals.next_to_send(second, 10, 1_000)), [1, 3, 4]);
        pending_proposals.applied([(1, Outcome::default()), (3, Outcome::default()), (4, Outcome::default())]);
        for answer in &mut answers {
            assert!(answer.try_recv().unwrap().is_ok());
        }
        assert_eq!(pending_proposals.slots.lock().base, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_too_long_says_whether_it_may_be_applied_and_is_not_sent_again() {
        let pending_proposals = pending_proposals();
        let attempt = pending_proposals.restart_from_oldest();
        let (sent, turned_away, unsent) =
            (push(&pending_proposals), push(&pending_proposals), push(&pending_proposals));
        assert_eq!(numbers(pending_proposals.next_to_send(attempt, 2, 1_000)), [1, 2]);
        pending_proposals.turned_away(attempt, [2]);
        pending_proposals.expire(Instant::now() + Duration::from_secs(6));
        assert_eq!(sent.await.unwrap().unwrap_err().code, Code::Timeout);
        assert_eq!(turned_away.await.unwrap().unwrap_err().code, Code::NoMaster);
        assert_eq!(unsent.await.unwrap().unwrap_err().code, Code::NoMaster);
        let attempt = pending_proposals.restart_from_oldest();
        let _late = push(&pending_proposals);
        assert_eq!(numbers(pending_proposals.next_to_send(attempt, 9, 1_000)), [4]);
    }

    #[tokio::test]
    async fn an_unknown_try_stays_unknown() {
        let pending_proposals = pending_proposals();
        let first = pending_proposals.restart_from_oldest();
        let answer = push(&pending_proposals);
        pending_proposals.next_to_send(first, 1, 1_000);
        let second = pending_proposals.restart_from_oldest();
        pending_proposals.next_to_send(second, 1, 1_000);
        pending_proposals.turned_away(second, [1]);
        pending_proposals.expire(Instant::now() + Duration::from_secs(6));
        assert_eq!(answer.await.unwrap().unwrap_err().code, Code::Timeout);
    }

    #[tokio::test]
    async fn the_window_is_bounded() {
        let pending_proposals = pending_proposals();
        let answers: Vec<_> = (0..limits::ORIGIN_WINDOW).map(|_| push(&pending_proposals)).collect();
        let error = pending_proposals.push(None, Intent::NodeBooted(NodeBooted::default()), UnixMs(1)).unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        pending_proposals.applied([(2, Outcome::default())]);
        assert!(
            pending_proposals.push(None, Intent::NodeBooted(NodeBooted::default()), UnixMs(1)).is_err(),
            "1 still holds the window"
        );
        pending_proposals.applied([(1, Outcome::default())]);
        assert!(pending_proposals.push(None, Intent::NodeBooted(NodeBooted::default()), UnixMs(1)).is_ok());
        drop(answers);
    }
}
