//! Elections under way, as state: how they begin, what a leader's tries write down, how they end.

use super::key::KEY;
use super::rules::{NOBODY, Trigger, Triggered, is_candidate, method_name, reason_name};
use crate::ids::{MasterTerm, NodeId, PendingElectionId, RaftTerm, UnixMs};
use crate::model::effect::Effect;
use crate::model::error::{Code, Error};
use crate::model::refusal::{ApplyError, refuse};
use crate::model::state::State;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    ElectionFailed, ElectionOutcome, ElectionStarted, Empty, LeaderAnnounced, LeaderTransferBack, MasterElected,
    PendingElection, Role, TransferBack,
};

/// Candidates given up that are remembered; there is no time for more.
const GIVEN_UP: usize = 64;

impl PendingElection {
    fn trigger(&self) -> Trigger {
        Trigger {
            reason: self.reason(),
            method: self.method(),
            named: self.named.clone(),
            except: self.except.clone(),
            why: self.why.clone(),
            by: self.by.clone(),
            quiet: self.quiet,
            principal: self.principal.clone(),
        }
    }
}

impl State {
    /// Elects, if the winner is at home where the leader is; else an election is under way from now on. A trigger
    /// that comes while one is joins it, but an order goes before a ranking.
    pub(super) fn trigger(&mut self, trigger: Trigger) -> Result<Triggered, ApplyError> {
        if let Some(open) = &self.meta.pending_election {
            if trigger.named.is_empty() || trigger.named == open.named {
                return Ok(Triggered::Open(PendingElectionId(open.id)));
            }
            if !open.named.is_empty() {
                let why = format!("an election that is to make {:?} master is under way", open.named);
                return refuse(Code::RoleChange, why);
            }
        }
        let id = self.next_pending_election();
        let named = self.devices.get(&trigger.named).filter(|d| is_candidate(d));
        let winner = if trigger.named.is_empty() { self.first_candidate(&trigger.except) } else { named };
        let Some(winner) = winner.map(|d| (d.device_id.clone(), d.home_node())) else {
            self.fail_election(id, &trigger.by, NOBODY);
            return Ok(Triggered::Failed(id));
        };
        if self.leads(winner.1) {
            return Ok(Triggered::Elected(self.make_master(&winner.0, &trigger, id)));
        }
        self.open_pending_election(id, trigger);
        Ok(Triggered::Open(id))
    }

    /// The number of an election that is begun now.
    fn next_pending_election(&mut self) -> PendingElectionId {
        let head = self.meta.elections(KEY).pending_election_head;
        *head += 1;
        PendingElectionId(*head)
    }

    fn open_pending_election(&mut self, id: PendingElectionId, trigger: Trigger) -> &mut PendingElection {
        self.notify_coordinator();
        let (started_ms, asking) = (self.meta.now_ms, &self.txn.principal);
        self.meta.elections(KEY).pending_election.insert(PendingElection {
            id: id.get(),
            reason: trigger.reason.into(),
            method: trigger.method.into(),
            named: trigger.named,
            except: trigger.except,
            started_ms,
            why: trigger.why,
            by: trigger.by,
            quiet: trigger.quiet,
            principal: trigger.principal.or_else(|| asking.clone()),
            ..PendingElection::default()
        })
    }

    /// Whether this entry was proposed by a leader that is `node`.
    pub(in crate::model) fn leads(&self, node: NodeId) -> bool {
        node != NodeId(0) && self.meta.leader_node() == node && self.meta.leader_raft_term() == self.txn.term
    }

    pub(in crate::model) fn leader_announced(&mut self, c: LeaderAnnounced, node: NodeId) -> Reply {
        // Said by one that has lost leadership meanwhile: another one's entry carries it.
        if RaftTerm(c.raft_term) == self.txn.term {
            let before = NodeId(std::mem::replace(self.meta.elections(KEY).leader, node.get()));
            *self.meta.elections(KEY).leader_term = self.txn.term.get();
            *self.meta.elections(KEY).needs_manual_election = false;
            // Leadership has come home, or has just left: tries to bring it back are counted from there on.
            if self.master().is_none_or(|master| [node, before].contains(&master.home_node())) {
                *self.meta.elections(KEY).transfer_back = None;
            }
            self.notify_coordinator();
        }
        Reply::Done(Empty {})
    }

    pub(in crate::model) fn election_started(&mut self, c: ElectionStarted, node: NodeId) -> Reply {
        let new = c.pending_election == 0
            && self.meta.pending_election.is_none()
            && MasterTerm(c.if_term) == self.meta.master_term();
        if !self.leads(node) || !(new || self.is_open(PendingElectionId(c.pending_election))) {
            return Reply::Done(Empty {});
        }
        if new {
            let id = self.next_pending_election();
            let (reason, method, except) = (c.reason(), c.method(), c.except.clone());
            let why = reason_name(reason).to_owned();
            self.open_pending_election(id, Trigger { reason, method, except, why, ..Trigger::default() });
        }
        let now = self.meta.now_ms;
        let Some(pending_election) = self.meta.elections(KEY).pending_election else { return Reply::Done(Empty {}) };
        if !c.given_up.is_empty() && pending_election.given_up.len() < GIVEN_UP {
            pending_election.given_up.push(c.given_up.clone());
        }
        pending_election.winner.clone_from(&c.winner);
        (pending_election.tries, pending_election.tried_ms) = (c.tries, now);
        let mut details = format!(
            "Election {}: {} is to be master, try {} ({}, {})",
            pending_election.id,
            c.winner,
            c.tries,
            reason_name(pending_election.reason()),
            method_name(pending_election.method())
        );
        if !c.given_up.is_empty() {
            details += &format!("; {} was given up", c.given_up);
        }
        let principal = self.meta.pending_election.as_ref().and_then(|open| open.principal.clone());
        let asking = self.asked_by(&principal);
        let unchanged = c.winner == self.meta.master;
        self.audit_row("election_started", "elect", false, &c.winner, details, unchanged);
        self.txn.principal = asking;
        self.notify_coordinator();
        Reply::Done(Empty {})
    }

    fn is_open(&self, pending_election: PendingElectionId) -> bool {
        self.meta.pending_election.as_ref().is_some_and(|open| PendingElectionId(open.id) == pending_election)
    }

    pub(in crate::model) fn master_elected(&mut self, c: &MasterElected, node: NodeId) -> Reply {
        let at_home = self.devices.get(&c.winner).is_some_and(|d| is_candidate(d) && d.home_node() == node);
        if !self.leads(node) || !at_home {
            return Reply::Done(Empty {});
        }
        let (trigger, id) = match &self.meta.pending_election {
            Some(open) if open.id == c.pending_election && (open.named.is_empty() || open.named == c.winner) => {
                (open.trigger(), PendingElectionId(open.id))
            }
            None if c.pending_election == 0 && MasterTerm(c.if_term) == self.meta.master_term() => {
                let id = self.next_pending_election();
                let (reason, method) = (c.reason(), c.method());
                let why = reason_name(reason).to_owned();
                (Trigger { reason, method, why, ..Trigger::default() }, id)
            }
            _ => return Reply::Done(Empty {}),
        };
        self.make_master(&c.winner, &trigger, id);
        Reply::Done(Empty {})
    }

    pub(in crate::model) fn election_failed(&mut self, c: &ElectionFailed, node: NodeId) -> Reply {
        if self.leads(node) && self.is_open(PendingElectionId(c.pending_election)) {
            let open = self.meta.pending_election.as_ref().map(|open| (open.by.clone(), open.principal.clone()));
            let (by, principal) = open.unwrap_or_default();
            let asking = self.asked_by(&principal);
            self.fail_election(PendingElectionId(c.pending_election), &by, &c.why);
            self.txn.principal = asking;
        }
        Reply::Done(Empty {})
    }

    pub(in crate::model) fn leader_transfer_back(&mut self, c: LeaderTransferBack, node: NodeId) -> Reply {
        if self.leads(node) && self.meta.pending_election.is_none() {
            let tried_ms = self.meta.now_ms;
            *self.meta.elections(KEY).transfer_back = Some(TransferBack { tries: c.tries, tried_ms });
            self.notify_coordinator();
        }
        Reply::Done(Empty {})
    }

    /// The applied time goes back: no election began later than that.
    pub(in crate::model) fn cap_election_times(&mut self, ms: UnixMs) {
        let ms = ms.get();
        let fields = self.meta.elections(KEY);
        if let Some(pending_election) = fields.pending_election {
            (pending_election.started_ms, pending_election.tried_ms) =
                (pending_election.started_ms.min(ms), pending_election.tried_ms.min(ms));
        }
        if let Some(transfer_back) = fields.transfer_back {
            transfer_back.tried_ms = transfer_back.tried_ms.min(ms);
        }
    }

    /// Nobody was elected. A master that is still there stays.
    fn fail_election(&mut self, pending_election: PendingElectionId, by: &str, why: &str) {
        // Unless the master is gone, in which case its role is taken below.
        let unchanged = self.meta.master.is_empty() || self.master().is_some_and(|master| master.is_active);
        self.audit_row("master_election", "elect", true, by, format!("4003: {why}"), unchanged);
        *self.meta.elections(KEY).pending_election = None;
        *self.meta.elections(KEY).settled =
            Some(ElectionOutcome { pending_election: pending_election.get(), election: 0, why: why.to_owned() });
        let at_ms = self.meta.now();
        self.effect(Effect::ElectionFailed { error: Error::new(Code::Election, why), at_ms });
        self.notify_coordinator();
        if self.master().is_some_and(|master| master.is_active) {
            return;
        }
        *self.meta.elections(KEY).needs_manual_election = true;
        let lost = std::mem::take(self.meta.elections(KEY).master);
        if !lost.is_empty() {
            self.set_role(&lost, Role::Client);
            self.audit_role(&lost, Role::Client, why);
            self.announce_role(&lost, Role::Client, why);
        }
    }
}
