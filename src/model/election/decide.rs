//! What a leader's coordinator does next: a pure function of what it sees. Nothing is remembered between two looks
//! but in the state, so the next leader goes on where this one was lost.

use std::collections::BTreeMap;

use super::rules::is_candidate;
use crate::ids::{DeviceNumber, NodeId, PendingElectionId, RaftTerm, UnixMs};
use crate::model::device::present_on;
use crate::model::state::State;
use crate::proto::command::Intent;
use crate::proto::{
    Device, ElectionFailed, ElectionMethod, ElectionReason, ElectionStarted, LeaderAnnounced, LeaderTransferBack,
    MasterElected, MoveHome, PendingElection, TransferBack,
};

/// The documented time-outs and what counts as reachable. Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a whole election.
    pub timeout_ms: u64,
    /// Tries of one candidate, and the pause after the first; every further one is twice as long.
    pub tries: u32,
    pub backoff_ms: u64,
    /// Entries that a candidate's node may be behind.
    pub lag: u64,
    /// A node that was silent for longer may be gone …
    pub silent_ms: u64,
    /// … but a new leader gives it so long to answer, unless nobody listens there.
    pub settle_ms: u64,
    /// The devices of a node that was silent for so long are offline; of one where nobody listens, after the grace.
    pub lost_ms: u64,
    pub grace_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout_ms: 30_000,
            tries: 3,
            backoff_ms: 1_000,
            lag: 1_000,
            silent_ms: 300,
            settle_ms: 100,
            lost_ms: 6_000,
            grace_ms: 2_000,
        }
    }
}

/// Another node, as the leader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub voter: bool,
    /// Entries that its log is behind; `None`: not known yet.
    pub lag: Option<u64>,
    /// Since it was heard last.
    pub silent_ms: u64,
    /// Nobody listened there when it was called last.
    pub refused: bool,
}

/// A transfer of leadership that this leader has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferAttempt {
    Election { pending_election: PendingElectionId, winner: DeviceNumber, tries: u32 },
    Return { tries: u32, tried_ms: UnixMs },
}

/// What the leader sees.
pub(crate) struct LeaderView<'a> {
    pub state: &'a State,
    pub me: NodeId,
    /// The Raft term in which this node leads.
    pub term: RaftTerm,
    /// On the clock of the state, which never goes back.
    pub now_ms: UnixMs,
    /// Since this node leads.
    pub leading_ms: u64,
    pub nodes: &'a BTreeMap<NodeId, NodeView>,
    /// The last transfer of this leadership: it has failed, as this node still leads.
    pub tried: Option<TransferAttempt>,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Propose(Intent),
    /// Leadership goes to another node.
    Transfer {
        to: NodeId,
        transfer_attempt: TransferAttempt,
    },
    /// Nothing to do before this time, unless something happens.
    Wait {
        until_ms: UnixMs,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reachability {
    Here,
    /// A new leader has not heard it yet.
    Unknown,
    Gone,
}

/// How soon a node that was not heard yet is looked at again.
const SOON_MS: u64 = 10;

/// What to do now, in this order; what comes after a proposal is decided when that is applied.
pub(crate) fn decide(view: &LeaderView<'_>) -> Vec<Action> {
    let meta = view.state.meta();
    let mut actions = Vec::new();
    if (meta.leader_node(), meta.leader_raft_term()) != (view.me, view.term) {
        actions.push(Action::Propose(Intent::LeaderAnnounced(LeaderAnnounced { raft_term: view.term.get() })));
    }
    let next = match &meta.pending_election {
        Some(pending_election) => Some(view.go_on(pending_election)),
        None => view.look(),
    };
    actions.extend(next);
    actions
}

impl LeaderView<'_> {
    /// No election is under way: is one needed, or is leadership in the wrong place?
    fn look(&self) -> Option<Action> {
        let meta = self.state.meta();
        let Some(master) = self.state.master().filter(|master| master.is_active) else {
            if meta.needs_manual_election || self.state.first_candidate("").is_none() {
                return None;
            }
            return Some(self.begin(ElectionMethod::Automatic, ""));
        };
        if master.home_node() == self.me {
            return None;
        }
        match self.reach(master.home_node()) {
            Reachability::Unknown => Some(self.soon()),
            // The leader died, and with it the master's node.
            Reachability::Gone => Some(self.replace(master, true)),
            Reachability::Here => Some(self.transfer_back(master)),
        }
    }

    /// Leadership belongs to the master's home.
    fn transfer_back(&self, master: &Device) -> Action {
        let Some(TransferBack { tries, tried_ms }) = self.state.meta().transfer_back else {
            return match self.is_eligible_home(master.home_node()) {
                Some(true) => Action::Propose(Intent::LeaderTransferBack(LeaderTransferBack { tries: 1 })),
                // It catches up first. When that takes too long the master comes here instead.
                _ if self.leading_ms < self.limits.timeout_ms => self.soon_enough(),
                _ => self.replace(master, false),
            };
        };
        let (transfer_attempt, due) = (
            TransferAttempt::Return { tries, tried_ms: UnixMs(tried_ms) },
            UnixMs(tried_ms).plus_ms(self.backoff(tries)),
        );
        if self.now_ms < due {
            if self.tried == Some(transfer_attempt) {
                return Action::Wait { until_ms: due };
            }
            return Action::Transfer { to: master.home_node(), transfer_attempt };
        }
        if tries < self.limits.tries {
            return Action::Propose(Intent::LeaderTransferBack(LeaderTransferBack { tries: tries + 1 }));
        }
        // The master follows the leader.
        self.replace(master, false)
    }

    /// Leadership can't be at the master's home. The master may have a session here, too, or (if leadership was not
    /// tried to be moved in vain already) on another node that can be reached: then that is its home. Else another
    /// device is elected.
    fn replace(&self, master: &Device, anywhere: bool) -> Action {
        let (mut best, mut not_known) = (None, false);
        let others = present_on(master).filter(|there| there.node != master.home);
        let others = others.map(|there| (NodeId(there.node), there.online_count));
        for (node, online_count) in others.filter(|(node, _)| anywhere || *node == self.me) {
            match self.is_eligible_home(node) {
                Some(true) => best = best.max(Some((node == self.me, online_count, node))),
                Some(false) => {}
                None => not_known = true,
            }
        }
        match best {
            Some((_, _, to)) => Action::Propose(Intent::MoveHome(MoveHome {
                device_id: master.device_id.clone(),
                from: master.home,
                to: to.get(),
            })),
            None if not_known => self.soon(),
            None => self.begin(ElectionMethod::Priority, &master.device_id),
        }
    }

    /// An election without a trigger of its own. One entry if the winner is at home here.
    fn begin(&self, method: ElectionMethod, except: &str) -> Action {
        let (reason, method) = (ElectionReason::Failure.into(), method.into());
        let if_term = self.state.meta().master_term().get();
        match self.winner(|d| d.device_id != except) {
            Winner::Nobody => Action::Wait { until_ms: self.now_ms.plus_ms(self.limits.backoff_ms) },
            Winner::NotKnown => self.soon(),
            Winner::Is(d) if d.home_node() == self.me => {
                let winner = d.device_id.clone();
                Action::Propose(Intent::MasterElected(MasterElected {
                    pending_election: 0,
                    if_term,
                    reason,
                    method,
                    winner,
                }))
            }
            Winner::Is(d) => Action::Propose(Intent::ElectionStarted(ElectionStarted {
                if_term,
                reason,
                method,
                except: except.to_owned(),
                winner: d.device_id.clone(),
                tries: 1,
                ..ElectionStarted::default()
            })),
        }
    }

    fn go_on(&self, pending_election: &PendingElection) -> Action {
        // Time in which nobody led does not count: nothing was tried in it.
        let taken_ms = self.now_ms.ms_since(UnixMs(pending_election.started_ms)).min(self.leading_ms);
        if taken_ms >= self.limits.timeout_ms {
            return failed(pending_election, "the election ran out of time: a manual election is needed");
        }
        let winner = self.state.device(&pending_election.winner).filter(|d| is_candidate(d));
        let Some(winner) = winner else { return self.next(pending_election) };
        if winner.home_node() == self.me {
            return elected(pending_election, winner);
        }
        match self.is_eligible_home(winner.home_node()) {
            None => return self.soon(),
            Some(false) => return self.next(pending_election),
            Some(true) => {}
        }
        let tries = pending_election.tries;
        let transfer_attempt = TransferAttempt::Election {
            pending_election: PendingElectionId(pending_election.id),
            winner: DeviceNumber(winner.number),
            tries,
        };
        let due = UnixMs(pending_election.tried_ms).plus_ms(self.backoff(tries));
        if self.now_ms < due {
            if self.tried == Some(transfer_attempt) {
                return Action::Wait { until_ms: due };
            }
            return Action::Transfer { to: winner.home_node(), transfer_attempt };
        }
        if tries < self.limits.tries {
            return started(pending_election, winner, tries + 1, "");
        }
        self.next(pending_election)
    }

    /// The present candidate is out.
    fn next(&self, pending_election: &PendingElection) -> Action {
        let stands = |d: &Device| {
            d.device_id != pending_election.except
                && d.device_id != pending_election.winner
                && (pending_election.named.is_empty() || d.device_id == pending_election.named)
                && !pending_election.given_up.contains(&d.device_id)
        };
        match self.winner(stands) {
            Winner::Nobody => failed(pending_election, super::rules::NOBODY),
            Winner::NotKnown => self.soon(),
            Winner::Is(d) if d.home_node() == self.me => elected(pending_election, d),
            Winner::Is(d) => started(pending_election, d, 1, &pending_election.winner),
        }
    }

    /// The candidate that ranks first among those that stand.
    fn winner(&self, stands: impl Fn(&Device) -> bool) -> Winner<'_> {
        let mut homes: BTreeMap<NodeId, Option<bool>> = BTreeMap::new();
        let mut best: Option<&Device> = None;
        let mut best_unknown: Option<&Device> = None;
        for device in self.state.devices().filter(|d| is_candidate(d) && stands(d)) {
            let home = device.home_node();
            let place = match homes.entry(home).or_insert_with(|| self.is_eligible_home(home)) {
                Some(true) => &mut best,
                None => &mut best_unknown,
                Some(false) => continue,
            };
            if place.is_none_or(|other| self.state.ranks(device, other).is_lt()) {
                *place = Some(device);
            }
        }
        match (best, best_unknown) {
            (None, None) => Winner::Nobody,
            (Some(best), None) => Winner::Is(best),
            (Some(best), Some(unknown)) if self.state.ranks(best, unknown).is_lt() => Winner::Is(best),
            _ => Winner::NotKnown,
        }
    }

    /// Whether a device at home there can be master: a reachable voter whose log is not far behind.
    fn is_eligible_home(&self, node: NodeId) -> Option<bool> {
        if node == self.me {
            return Some(true);
        }
        let Some(there) = self.nodes.get(&node).filter(|there| there.voter) else { return Some(false) };
        match (self.reach(node), there.lag) {
            (Reachability::Gone, _) => Some(false),
            (Reachability::Unknown, _) => None,
            (Reachability::Here, Some(lag)) => Some(lag <= self.limits.lag),
            (Reachability::Here, None) if self.leading_ms < self.limits.settle_ms => None,
            (Reachability::Here, None) => Some(false),
        }
    }

    fn reach(&self, node: NodeId) -> Reachability {
        let Some(there) = self.nodes.get(&node) else { return Reachability::Gone };
        match () {
            () if there.refused => Reachability::Gone,
            () if there.silent_ms < self.limits.silent_ms => Reachability::Here,
            () if self.leading_ms >= self.limits.settle_ms => Reachability::Gone,
            () => Reachability::Unknown,
        }
    }

    /// The pause after the try of this number.
    fn backoff(&self, tries: u32) -> u64 {
        self.limits.backoff_ms << tries.saturating_sub(1).min(16)
    }

    fn soon(&self) -> Action {
        Action::Wait { until_ms: self.now_ms.plus_ms(SOON_MS) }
    }

    fn soon_enough(&self) -> Action {
        let known = self.leading_ms >= self.limits.settle_ms;
        Action::Wait { until_ms: self.now_ms.plus_ms(if known { self.limits.settle_ms } else { SOON_MS }) }
    }
}

enum Winner<'a> {
    Nobody,
    /// One whose node was not heard yet may rank first.
    NotKnown,
    Is(&'a Device),
}

fn elected(pending_election: &PendingElection, winner: &Device) -> Action {
    let elected = MasterElected {
        pending_election: pending_election.id,
        winner: winner.device_id.clone(),
        ..MasterElected::default()
    };
    Action::Propose(Intent::MasterElected(elected))
}

fn started(pending_election: &PendingElection, winner: &Device, tries: u32, given_up: &str) -> Action {
    Action::Propose(Intent::ElectionStarted(ElectionStarted {
        pending_election: pending_election.id,
        winner: winner.device_id.clone(),
        tries,
        given_up: given_up.to_owned(),
        ..ElectionStarted::default()
    }))
}

fn failed(pending_election: &PendingElection, why: &str) -> Action {
    Action::Propose(Intent::ElectionFailed(ElectionFailed {
        pending_election: pending_election.id,
        why: why.to_owned(),
    }))
}
