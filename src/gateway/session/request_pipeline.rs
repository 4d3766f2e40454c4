//! The work of one session, in the order in which it was asked for.
//!
//! Writes are proposed at once, in order, and answered in order; only the first unanswered one is polled, because
//! a session's writes are applied in the order of their proposals. A read waits until everything before it was
//! answered, so it sees the session's own writes; reads that wait together share one barrier.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use crate::cluster::Cluster;
use crate::gateway::session::client_clock::ClockCorrection;
use crate::gateway::session::request_ticket::RequestTicket;
use crate::gateway::session::sync::SyncJob;
use crate::ids::{RecordId, Seq};
use crate::model::error::Error;
use crate::proto::{OnlineDone, Outcome, Role};
use crate::storage::BoxFuture;

/// What to do with the outcome of a proposal.
pub(super) enum ReplyPlan {
    Update {
        device_id: String,
        table_name: String,
        record_id: RecordId,
        /// The queue's entry that it is: queue and `n`.
        entry: Option<(String, u64)>,
        /// How its time was taken, if not as it was sent.
        taken: Option<ClockCorrection>,
    },
    Critical {
        device_id: String,
    },
    Online {
        device_id: String,
        cursor: Option<String>,
        fresh: bool,
    },
    Offline {
        device_id: String,
    },
    Shutdown {
        device_id: String,
    },
    Election,
    Role {
        device_id: String,
        role: Role,
        reason: String,
    },
    /// A sync has begun: its pages come when it is their turn.
    Sync(Box<SyncJob>),
    SyncComplete {
        device_id: String,
        sync_timestamp_ms: u64,
        changes_count: u64,
    },
    SyncError {
        device_id: String,
        message: String,
        code: String,
    },
    Conflict {
        device_id: String,
        table_name: String,
        record_id: RecordId,
        /// That it is done, in words.
        message: &'static str,
    },
}

impl ReplyPlan {
    /// Answered when the election that it may bring is over, so that nothing of it comes after the answer.
    pub(super) fn may_elect(&self) -> bool {
        match self {
            Self::Online { .. } | Self::Offline { .. } | Self::Shutdown { .. } | Self::Election | Self::Role { .. } => {
                true
            }
            Self::Update { .. }
            | Self::Critical { .. }
            | Self::Sync(_)
            | Self::SyncComplete { .. }
            | Self::SyncError { .. }
            | Self::Conflict { .. } => false,
        }
    }
}

/// What to read when everything before it was answered.
#[derive(Debug)]
pub(super) enum ReadRequest {
    Record {
        table_name: String,
        record_id: RecordId,
    },
    Queue {
        device_id: String,
        offline: bool,
    },
    /// A new token: what was taken back by now is refused.
    Token,
    /// A device came online with a cursor, which may be newer than what this node had applied.
    Resume {
        device_id: String,
        cursor: String,
        online: Box<OnlineDone>,
        at_ms: u64,
    },
}

enum InFlight {
    Propose(RequestTicket, ReplyPlan, BoxFuture<'static, Result<Outcome, Error>>),
    Read(RequestTicket, ReadRequest),
    /// A read of a record (its table and id) that is not in memory.
    Cold(RequestTicket, (String, RecordId), BoxFuture<'static, Result<StoredRecord, Error>>),
}

/// A record as its row has it: version and data, `None` when there is none.
pub(crate) type StoredRecord = Option<(Seq, bytes::Bytes)>;

/// The next thing to answer. Lives on the stack for a moment.
#[allow(clippy::large_enum_variant)]
pub(super) enum Completion {
    Proposed(RequestTicket, ReplyPlan, Result<Outcome, Error>),
    Read(RequestTicket, ReadRequest, Result<(), Error>),
    Cold(RequestTicket, (String, RecordId), Result<StoredRecord, Error>),
}

#[derive(Default)]
pub(super) struct RequestPipeline {
    work: VecDeque<InFlight>,
    /// The barrier of the reads at the front, and how many of them share it.
    barrier: Option<BoxFuture<'static, Result<(), Error>>>,
    sharing: usize,
    /// What the shared barrier gave, for those that still stand at the front.
    passed: Option<Result<(), Error>>,
}

impl RequestPipeline {
    pub(super) fn propose(
        &mut self,
        ticket: RequestTicket,
        then: ReplyPlan,
        answer: BoxFuture<'static, Result<Outcome, Error>>,
    ) {
        self.work.push_back(InFlight::Propose(ticket, then, answer));
    }

    pub(super) fn read(&mut self, ticket: RequestTicket, read: ReadRequest) {
        self.work.push_back(InFlight::Read(ticket, read));
    }

    /// The read just stepped to has to look into the rows: its answer comes next.
    pub(super) fn look(
        &mut self,
        ticket: RequestTicket,
        record: (String, RecordId),
        found: BoxFuture<'static, Result<StoredRecord, Error>>,
    ) {
        self.work.push_front(InFlight::Cold(ticket, record, found));
    }

    /// The answer just given depends on a read.
    pub(super) fn read_next(&mut self, ticket: RequestTicket, read: ReadRequest) {
        debug_assert_eq!(self.sharing, 0, "a proposal stood at the front, so no barrier is shared");
        self.work.push_front(InFlight::Read(ticket, read));
    }

    /// Everything that was asked was answered.
    pub(super) fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    /// More may be asked for, if `most` may be unanswered.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.work.len() < most
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, cluster: &dyn Cluster) -> Poll<Completion> {
        match self.work.front_mut() {
            None => Poll::Pending,
            Some(InFlight::Propose(_, _, answer)) => {
                let Poll::Ready(outcome) = answer.as_mut().poll(cx) else { return Poll::Pending };
                let Some(InFlight::Propose(ticket, then, _)) = self.work.pop_front() else { return Poll::Pending };
                Poll::Ready(Completion::Proposed(ticket, then, outcome))
            }
            Some(InFlight::Cold(_, _, found)) => {
                let Poll::Ready(found) = found.as_mut().poll(cx) else { return Poll::Pending };
                let Some(InFlight::Cold(ticket, record, _)) = self.work.pop_front() else { return Poll::Pending };
                Poll::Ready(Completion::Cold(ticket, record, found))
            }
            Some(InFlight::Read(..)) => {
                let Poll::Ready(passed) = self.poll_barrier(cx, cluster) else { return Poll::Pending };
                let Some(InFlight::Read(ticket, read)) = self.work.pop_front() else { return Poll::Pending };
                self.sharing -= 1;
                if self.sharing == 0 {
                    self.passed = None;
                }
                Poll::Ready(Completion::Read(ticket, read, passed))
            }
        }
    }

    /// A read stands at the front: one barrier for it and the reads that follow it directly.
    fn poll_barrier(&mut self, cx: &mut Context<'_>, cluster: &dyn Cluster) -> Poll<Result<(), Error>> {
        if let Some(passed) = &self.passed {
            return Poll::Ready(passed.clone());
        }
        let barrier = self.barrier.get_or_insert_with(|| {
            self.sharing = self.work.iter().take_while(|w| matches!(w, InFlight::Read(..))).count();
            cluster.read_barrier()
        });
        let Poll::Ready(passed) = barrier.as_mut().poll(cx) else { return Poll::Pending };
        self.barrier = None;
        self.passed = Some(passed.clone());
        Poll::Ready(passed)
    }
}
