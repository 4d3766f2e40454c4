//! What a leader's coordinator does next: a pure function of what it sees. Nothing is remembered between two looks
//! but in the state, so the next leader goes on where this one was lost.

use std::collections::BTreeMap;

use super::is_candidate;
use crate::model::device::present_on;
use crate::model::state::State;
use crate::proto::command::Intent;
use crate::proto::{
    Ballot, Device, ElectionFailed, ElectionMethod, ElectionReason, ElectionStarted, HandBack, LeaderHere,
    LeadershipReturn, MasterElected, MoveHome,
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
pub struct NodeView {
    pub voter: bool,
    /// Entries that its log is behind; `None`: not known yet.
    pub lag: Option<u64>,
    /// Since it was heard last.
    pub silent_ms: u64,
    /// Nobody listened there when it was called last.
    pub refused: bool,
}

/// A handover of leadership that this leader has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    Election { ballot: u64, winner: u32, tries: u32 },
    Return { tries: u32, tried_ms: u64 },
}

/// What the leader sees.
pub struct View<'a> {
    pub state: &'a State,
    pub me: u64,
    /// The Raft term in which this node leads.
    pub term: u64,
    /// On the clock of the state, which never goes back.
    pub now_ms: u64,
    /// Since this node leads.
    pub leading_ms: u64,
    pub nodes: &'a BTreeMap<u64, NodeView>,
    /// The last handover of this leadership: it has failed, as this node still leads.
    pub tried: Option<Handover>,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Propose(Intent),
    /// Leadership goes to another node.
    Transfer {
        to: u64,
        handover: Handover,
    },
    /// Nothing to do before this time, unless something happens.
    Wait {
        until_ms: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Here,
    /// A new leader has not heard it yet.
    Unknown,
    Gone,
}

/// How soon a node that was not heard yet is looked at again.
const SOON_MS: u64 = 10;

/// What to do now, in this order; what comes after a proposal is decided when that is applied.
pub fn decide(view: &View<'_>) -> Vec<Action> {
    let meta = view.state.meta();
    let mut actions = Vec::new();
    if (meta.leader, meta.leader_term) != (view.me, view.term) {
        actions.push(Action::Propose(Intent::LeaderHere(LeaderHere { raft_term: view.term })));
    }
    let next = match &meta.ballot {
        Some(ballot) => Some(view.go_on(ballot)),
        None => view.look(),
    };
    actions.extend(next);
    actions
}

impl View<'_> {
    /// No election is under way: is one needed, or is leadership in the wrong place?
    fn look(&self) -> Option<Action> {
        let meta = self.state.meta();
        let Some(master) = self.state.master().filter(|master| master.is_active) else {
            if meta.stalled || self.state.first_candidate("").is_none() {
                return None;
            }
            return Some(self.begin(ElectionMethod::Automatic, ""));
        };
        if master.home == self.me {
            return None;
        }
        match self.reach(master.home) {
            Reach::Unknown => Some(self.soon()),
            // The leader died, and with it the master's node.
            Reach::Gone => Some(self.replace(master, true)),
            Reach::Here => Some(self.give_back(master)),
        }
    }

    /// Leadership belongs to the master's home.
    fn give_back(&self, master: &Device) -> Action {
        let Some(HandBack { tries, tried_ms }) = self.state.meta().hand_back else {
            return match self.is_eligible_home(master.home) {
                Some(true) => Action::Propose(Intent::LeadershipReturn(LeadershipReturn { tries: 1 })),
                // It catches up first. When that takes too long the master comes here instead.
                _ if self.leading_ms < self.limits.timeout_ms => self.soon_enough(),
                _ => self.replace(master, false),
            };
        };
        let (handover, due) = (Handover::Return { tries, tried_ms }, tried_ms + self.backoff(tries));
        if self.now_ms < due {
            if self.tried == Some(handover) {
                return Action::Wait { until_ms: due };
            }
            return Action::Transfer { to: master.home, handover };
        }
        if tries < self.limits.tries {
            return Action::Propose(Intent::LeadershipReturn(LeadershipReturn { tries: tries + 1 }));
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
        for there in others.filter(|there| anywhere || there.node == self.me) {
            match self.is_eligible_home(there.node) {
                Some(true) => best = best.max(Some((there.node == self.me, there.online_count, there.node))),
                Some(false) => {}
                None => not_known = true,
            }
        }
        match best {
            Some((_, _, to)) => Action::Propose(Intent::MoveHome(MoveHome {
                device_id: master.device_id.clone(),
                from: master.home,
                to,
            })),
            None if not_known => self.soon(),
            None => self.begin(ElectionMethod::Priority, &master.device_id),
        }
    }

    /// An election without a trigger of its own. One entry if the winner is at home here.
    fn begin(&self, method: ElectionMethod, except: &str) -> Action {
        let (reason, method) = (ElectionReason::Failure.into(), method.into());
        let if_term = self.state.meta().term;
        match self.winner(|d| d.device_id != except) {
            Winner::Nobody => Action::Wait { until_ms: self.now_ms + self.limits.backoff_ms },
            Winner::NotKnown => self.soon(),
            Winner::Is(d) if d.home == self.me => {
                let winner = d.device_id.clone();
                Action::Propose(Intent::MasterElected(MasterElected { ballot: 0, if_term, reason, method, winner }))
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

    fn go_on(&self, ballot: &Ballot) -> Action {
        // Time in which nobody led does not count: nothing was tried in it.
        let taken_ms = self.now_ms.saturating_sub(ballot.started_ms).min(self.leading_ms);
        if taken_ms >= self.limits.timeout_ms {
            return failed(ballot, "the election ran out of time: a manual election is needed");
        }
        let winner = self.state.device(&ballot.winner).filter(|d| is_candidate(d));
        let Some(winner) = winner else { return self.next(ballot) };
        if winner.home == self.me {
            return elected(ballot, winner);
        }
        match self.is_eligible_home(winner.home) {
            None => return self.soon(),
            Some(false) => return self.next(ballot),
            Some(true) => {}
        }
        let tries = ballot.tries;
        let handover = Handover::Election { ballot: ballot.id, winner: winner.number, tries };
        let due = ballot.tried_ms + self.backoff(tries);
        if self.now_ms < due {
            if self.tried == Some(handover) {
                return Action::Wait { until_ms: due };
            }
            return Action::Transfer { to: winner.home, handover };
        }
        if tries < self.limits.tries {
            return started(ballot, winner, tries + 1, "");
        }
        self.next(ballot)
    }

    /// The present candidate is out.
    fn next(&self, ballot: &Ballot) -> Action {
        let stands = |d: &Device| {
            d.device_id != ballot.except
                && d.device_id != ballot.winner
                && (ballot.named.is_empty() || d.device_id == ballot.named)
                && !ballot.given_up.contains(&d.device_id)
        };
        match self.winner(stands) {
            Winner::Nobody => failed(ballot, super::ballot::NOBODY),
            Winner::NotKnown => self.soon(),
            Winner::Is(d) if d.home == self.me => elected(ballot, d),
            Winner::Is(d) => started(ballot, d, 1, &ballot.winner),
        }
    }

    /// The candidate that ranks first among those that stand.
    fn winner(&self, stands: impl Fn(&Device) -> bool) -> Winner<'_> {
        let mut homes: BTreeMap<u64, Option<bool>> = BTreeMap::new();
        let mut best: Option<&Device> = None;
        let mut best_unknown: Option<&Device> = None;
        for device in self.state.devices().filter(|d| is_candidate(d) && stands(d)) {
            let place = match homes.entry(device.home).or_insert_with(|| self.is_eligible_home(device.home)) {
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
    fn is_eligible_home(&self, node: u64) -> Option<bool> {
        if node == self.me {
            return Some(true);
        }
        let Some(there) = self.nodes.get(&node).filter(|there| there.voter) else { return Some(false) };
        match (self.reach(node), there.lag) {
            (Reach::Gone, _) => Some(false),
            (Reach::Unknown, _) => None,
            (Reach::Here, Some(lag)) => Some(lag <= self.limits.lag),
            (Reach::Here, None) if self.leading_ms < self.limits.settle_ms => None,
            (Reach::Here, None) => Some(false),
        }
    }

    fn reach(&self, node: u64) -> Reach {
        let Some(there) = self.nodes.get(&node) else { return Reach::Gone };
        match () {
            () if there.refused => Reach::Gone,
            () if there.silent_ms < self.limits.silent_ms => Reach::Here,
            () if self.leading_ms >= self.limits.settle_ms => Reach::Gone,
            () => Reach::Unknown,
        }
    }

    /// The pause after the try of this number.
    fn backoff(&self, tries: u32) -> u64 {
        self.limits.backoff_ms << tries.saturating_sub(1).min(16)
    }

    fn soon(&self) -> Action {
        Action::Wait { until_ms: self.now_ms + SOON_MS }
    }

    fn soon_enough(&self) -> Action {
        let known = self.leading_ms >= self.limits.settle_ms;
        Action::Wait { until_ms: self.now_ms + if known { self.limits.settle_ms } else { SOON_MS } }
    }
}

enum Winner<'a> {
    Nobody,
    /// One whose node was not heard yet may rank first.
    NotKnown,
    Is(&'a Device),
}

fn elected(ballot: &Ballot, winner: &Device) -> Action {
    let elected = MasterElected { ballot: ballot.id, winner: winner.device_id.clone(), ..MasterElected::default() };
    Action::Propose(Intent::MasterElected(elected))
}

fn started(ballot: &Ballot, winner: &Device, tries: u32, given_up: &str) -> Action {
    Action::Propose(Intent::ElectionStarted(ElectionStarted {
        ballot: ballot.id,
        winner: winner.device_id.clone(),
        tries,
        given_up: given_up.to_owned(),
        ..ElectionStarted::default()
    }))
}

fn failed(ballot: &Ballot, why: &str) -> Action {
    Action::Propose(Intent::ElectionFailed(ElectionFailed { ballot: ballot.id, why: why.to_owned() }))
}
