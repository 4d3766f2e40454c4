//! Model nodes around one log: who leads is said by the test, what a leader does is decided by the real coordinator's
//! pure part. Every entry that is applied is checked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use super::decide::{Action, LeaderView, Limits, NodeView, TransferAttempt};
use crate::ids::{ElectionId, LogIndex, MasterTerm, NodeId, RaftTerm, UnixMs};
use crate::model::audit::{AuditFilter, read_rows};
use crate::model::background_tasks::{Retention, of_leader, of_node};
use crate::model::device::present_on;
use crate::model::effect::Effect;
use crate::model::read::elections;
use crate::model::state::{Position, State, into_result};
use crate::model::tables::MemoryTables;
use crate::proto::command::Intent;
use crate::proto::{
    Batch, Command, CommandId, Device, DeviceOnline, ElectionMethod, LeaderAnnounced, NodeBooted, Outcome, Presence,
    Role,
};

/// Actions after which a world that goes on and on is taken to be broken.
const MANY: usize = 200;

struct WorldLeader {
    node: u64,
    term: RaftTerm,
    since: u64,
    tried: Option<TransferAttempt>,
}

pub(super) struct ElectionWorld {
    pub state: State,
    tables: MemoryTables,
    index: u64,
    pub now: u64,
    leader: Option<WorldLeader>,
    term: RaftTerm,
    /// Nodes that do not run, and those that run and cannot be reached; since when.
    pub down: BTreeMap<u64, u64>,
    pub cut: BTreeMap<u64, u64>,
    pub lag: BTreeMap<u64, u64>,
    pub transfers_fail: bool,
    pub limits: Limits,
    /// What happened, a line each.
    pub story: Vec<String>,
    checked: u64,
    /// Before the entry that is looked at.
    master: String,
    told_term: MasterTerm,
    roles: u64,
}

pub(super) const NODES: u64 = 3;

impl ElectionWorld {
    pub(super) fn new() -> Self {
        let tables = MemoryTables::default();
        let state = State::open(Box::new(tables.clone())).unwrap();
        Self {
            state,
            tables,
            index: 0,
            now: 1_000_000,
            leader: None,
            term: RaftTerm(0),
            down: BTreeMap::new(),
            cut: BTreeMap::new(),
            lag: BTreeMap::new(),
            transfers_fail: false,
            limits: Limits::default(),
            story: Vec::new(),
            checked: 0,
            master: String::new(),
            told_term: MasterTerm(0),
            roles: 0,
        }
    }

    pub(super) fn leader(&self) -> Option<u64> {
        self.leader.as_ref().map(|lead| lead.node)
    }

    pub(super) fn is_up(&self, node: u64) -> bool {
        !self.down.contains_key(&node) && !self.cut.contains_key(&node)
    }

    pub(super) fn quorum(&self) -> bool {
        (1..=NODES).filter(|node| self.is_up(*node)).count() as u64 * 2 > NODES
    }

    /// Raft has elected a node.
    pub(super) fn lead(&mut self, node: u64) {
        assert!(self.is_up(node) && self.quorum());
        self.term = RaftTerm(self.term.get() + 1);
        self.leader = Some(WorldLeader { node, term: self.term, since: self.now, tried: None });
        self.story.push(format!("node {node} leads in Raft term {}", self.term));
    }

    fn lose(&mut self, node: u64) {
        if self.leader() == Some(node) || !self.quorum() {
            self.leader = None;
        }
    }

    pub(super) fn crash(&mut self, node: u64) {
        self.down.insert(node, self.now);
        self.lose(node);
    }

    pub(super) fn isolate(&mut self, node: u64) {
        self.cut.insert(node, self.now);
        self.lose(node);
    }

    /// A node starts again. Its boot is told by whoever leads.
    pub(super) fn restart(&mut self, node: u64) {
        self.down.remove(&node);
    }

    /// A command of a client of `node`. `None`: there is no leader to take it.
    pub(super) fn send(&mut self, node: u64, intent: Intent) -> Option<Outcome> {
        let term = self.leader.as_ref()?.term;
        self.index += 1;
        self.now += 1;
        let origin = Some(CommandId { node, boot: 1, number: 0 });
        let batch =
            Batch { commands: vec![Command { origin, at_ms: self.now, intent: Some(intent), ..Command::default() }] };
        let at = Position { index: LogIndex(self.index), log_id: Bytes::new(), term };
        let mut done = self.state.apply(at, Bytes::from(batch.encode_to_vec())).unwrap();
        for effect in &done.effects {
            if let Some(line) = told(effect) {
                self.story.push(format!("  all hear {line}"));
            }
        }
        self.check(&done.effects);
        let outcome = done.outcomes.remove(0);
        if let Err(error) = into_result(outcome.clone()) {
            self.story.push(format!("  refused: {error}"));
        }
        Some(outcome)
    }

    /// One node's own background tasks and the leader's: true if there was something to do.
    pub(super) fn step(&mut self) -> bool {
        for node in 1..=NODES {
            if self.is_up(node)
                && self.leader.is_some()
                && let Some(intent) = of_node(&self.state, NodeId(node), &format!("node-{node}"))
            {
                self.send(node, intent);
                return true;
            }
        }
        let Some(action) = self.decide().into_iter().next() else { return false };
        let Some(me) = self.leader() else { return false };
        match action {
            Action::Propose(intent) => {
                self.story.push(format!("node {me} proposes {}", named(&intent)));
                self.send(me, intent);
            }
            Action::Transfer { to: NodeId(to), transfer_attempt } => {
                let fails = self.transfers_fail || !self.is_up(to);
                let how = if fails { " in vain" } else { "" };
                self.story.push(format!("node {me} hands leadership to node {to}{how}"));
                match &mut self.leader {
                    Some(lead) if fails => lead.tried = Some(transfer_attempt),
                    _ => self.lead(to),
                }
            }
            Action::Wait { .. } => return false,
        }
        true
    }

    /// Until there is nothing to do now.
    pub(super) fn run(&mut self) {
        let mut left = MANY;
        while self.step() {
            left -= 1;
            assert!(left > 0, "it never ends:\n{}", self.story.join("\n"));
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.run();
            self.now = (self.now + 50).min(end);
        }
        self.run();
    }

    fn decide(&self) -> Vec<Action> {
        let Some(lead) = &self.leader else { return Vec::new() };
        let see = |node: u64| {
            let since = self.down.get(&node).or_else(|| self.cut.get(&node));
            // Silence is noticed by the election time-out, which this world does not wait for.
            let silent_ms = since.map_or(0, |since| self.now - since + self.limits.silent_ms);
            let lag = since.is_none().then(|| self.lag.get(&node).copied().unwrap_or(0));
            NodeView { voter: true, lag, silent_ms, refused: self.down.contains_key(&node) }
        };
        let nodes = (1..=NODES).filter(|node| *node != lead.node).map(|node| (NodeId(node), see(node))).collect();
        let view = LeaderView {
            state: &self.state,
            me: NodeId(lead.node),
            term: lead.term,
            now_ms: UnixMs(self.now),
            leading_ms: self.now - lead.since,
            nodes: &nodes,
            tried: lead.tried,
            limits: self.limits,
        };
        of_leader(&view, Retention::default())
    }

    /// The invariants, after every entry.
    fn check(&mut self, effects: &[Effect]) {
        let masters: Vec<&str> =
            self.state.devices().filter(|d| d.role() == Role::Master).map(|d| d.device_id.as_str()).collect();
        assert!(masters.len() <= 1, "two masters: {masters:?}");
        let meta = self.state.meta().clone();
        assert_eq!(masters.first().copied().unwrap_or(""), meta.master, "the role and the master differ");
        for device in self.state.devices() {
            let nodes: Vec<u64> = present_on(device).map(|there| there.node).collect();
            assert_eq!(device.is_active, !nodes.is_empty(), "{}: online is to be present somewhere", device.device_id);
            assert!(nodes.is_empty() || nodes.contains(&device.home), "{}: home is one of {nodes:?}", device.device_id);
            assert!(nodes.is_sorted(), "{}: {nodes:?}", device.device_id);
        }
        // Every change of a role is told, and audited.
        let told = effects.iter().filter(|e| matches!(e, Effect::RoleChanged { .. })).count() as u64;
        let filter = AuditFilter { event_type: Some("role_change".into()), ..AuditFilter::default() };
        let audited = self.state.audit_index().page(&filter, 1, 0).0;
        assert_eq!(audited - self.roles, told, "a role change without its audit entry");
        self.roles = audited;
        let log = elections(&self.tables, ElectionId(meta.election_head), 2, 0).unwrap();
        if meta.election_head > self.checked {
            assert_eq!(meta.election_head, self.checked + 1, "two elections in one entry");
            let newest = &log[0];
            assert_eq!(newest.new_master, meta.master);
            assert!(MasterTerm(newest.term) > self.told_term, "terms only grow");
            assert_eq!(newest.previous_master, self.master, "the chain of masters is broken");
            let home = self.state.device(&newest.new_master).map(|d| d.home);
            assert_eq!(home, self.leader(), "elected by an entry of a leader that is not at the winner's home");
            self.told_term = MasterTerm(newest.term);
            self.checked = meta.election_head;
        } else {
            let same = log.first().is_none_or(|newest| newest.new_master == meta.master);
            assert!(meta.master.is_empty() || same, "{} is master without an election", meta.master);
        }
        self.master = meta.master;
    }

    /// Rule 8's last: nothing has failed for 5 s.
    pub(super) fn check_quiet(&self) {
        let devices: Vec<&str> =
            self.state.devices().filter(|d| super::is_candidate(d)).map(|d| d.device_id.as_str()).collect();
        if devices.is_empty() {
            return;
        }
        let story = self.story.join("\n");
        let master = self.state.master().unwrap_or_else(|| panic!("no master among {devices:?}\n{story}"));
        assert!(master.is_active, "{} is master and offline\n{story}", master.device_id);
        assert_eq!(Some(master.home), self.leader(), "the master's home is not the leader\n{story}");
        assert_eq!(self.state.meta().pending_election, None, "an election goes on and on\n{story}");
    }

    /// The state in one line.
    pub(super) fn summary(&self) -> String {
        let meta = self.state.meta();
        let master = if meta.master.is_empty() { "none" } else { &meta.master };
        let mut line = match self.leader() {
            Some(leader) => format!("leader: node {leader}"),
            None => "leader: none".into(),
        };
        line += &format!("; master: {master}, term {}", meta.term);
        if let Some(pending_election) = &meta.pending_election {
            let winner = if pending_election.winner.is_empty() { "nobody yet" } else { &pending_election.winner };
            line += &format!("; election {} under way: {winner}, try {}", pending_election.id, pending_election.tries);
        }
        if let Some(back) = meta.transfer_back {
            line += &format!("; leadership on its way back, try {}", back.tries);
        }
        if meta.needs_manual_election {
            line += "; a manual election is needed";
        }
        line
    }

    /// The newest election in the log, and the newest audit row of a kind.
    pub(super) fn audit(&self, event: &str) -> Option<String> {
        let filter = AuditFilter { event_type: Some(event.into()), ..AuditFilter::default() };
        let page = self.state.audit_index().page(&filter, 1, 0).1;
        read_rows(&self.tables, &page).unwrap().pop().map(|row| row.details)
    }
}

pub(super) fn online(id: &str, priority: u32, role: Role, capabilities: Option<Vec<String>>) -> Intent {
    Intent::DeviceOnline(DeviceOnline {
        device_id: id.into(),
        role: role.into(),
        priority: Some(priority),
        presence: Presence::Session.into(),
        capabilities: capabilities.map(|names| crate::proto::Capabilities { names }),
        ..DeviceOnline::default()
    })
}

pub(super) fn booted() -> Intent {
    Intent::NodeBooted(NodeBooted::default())
}

/// What the leader of a fresh cluster has at the start: its claim, and every node's own device.
pub(super) fn founded() -> ElectionWorld {
    let mut world = ElectionWorld::new();
    world.lead(1);
    world.run();
    world.story.clear();
    world
}

pub(super) fn describe(device: &Device) -> String {
    let state = if device.is_active { "online" } else { "offline" };
    let role = if device.role() == Role::Master { "master" } else { "client" };
    let nodes: Vec<String> = present_on(device).map(|there| there.node.to_string()).collect();
    let nodes = if nodes.len() > 1 {
        format!(" on {}, at home on {}", nodes.join(" and "), device.home)
    } else {
        String::new()
    };
    format!("{}: {role}, {state}{nodes}", device.device_id)
}

fn told(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::MasterElected(e) => {
            let before = if e.previous_master.is_empty() { "null" } else { &e.previous_master };
            let (reason, method) = (super::reason_name(e.reason()), super::method_name(e.method()));
            format!(
                "master_elected: {before} -> {}, {reason}, {method}, {} devices, term {}",
                e.new_master, e.participating, e.term
            )
        }
        Effect::RoleChanged { device_id, role, reason, .. } => {
            let role = if *role == Role::Master { "master" } else { "client" };
            format!("role_change: {device_id} is {role} ({reason})")
        }
        Effect::ElectionFailed { error, .. } => format!("error {error}"),
        _ => return None,
    })
}

fn named(intent: &Intent) -> String {
    match intent {
        Intent::LeaderAnnounced(LeaderAnnounced { raft_term }) => format!("LeaderAnnounced {raft_term}"),
        Intent::ElectionStarted(c) => {
            let given_up = if c.given_up.is_empty() { String::new() } else { format!(", {} given up", c.given_up) };
            format!("ElectionStarted: {}, try {}{given_up}", c.winner, c.tries)
        }
        Intent::MasterElected(c) if c.pending_election == 0 => {
            let method = ElectionMethod::try_from(c.method).unwrap_or_default();
            format!("MasterElected: {}, at once ({})", c.winner, super::method_name(method))
        }
        Intent::MasterElected(c) => format!("MasterElected: {}", c.winner),
        Intent::ElectionFailed(c) => format!("ElectionFailed: {}", c.why),
        Intent::LeaderTransferBack(c) => format!("LeaderTransferBack, try {}", c.tries),
        Intent::NodeLost(c) => format!("NodeLost {}", c.node),
        Intent::MoveHome(c) => format!("MoveHome: {} from {} to {}", c.device_id, c.from, c.to),
        other => format!("{other:?}"),
    }
}

/// Every node id that a scenario may name.
pub(super) fn nodes() -> BTreeSet<u64> {
    (1..=NODES).collect()
}
