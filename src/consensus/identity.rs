//! Who this node is to its peers, and whether it is the one that they know.
//!
//! Raft counts on a node to remember its votes and what it acknowledged. A data folder that was put back to an older
//! copy, or that two processes run from copies of, does not. So every start of a node has a number that grows with its
//! folder (`StartMark`) and a number that was drawn for it; a start that never took part gives its number to the next, so
//! that a copy does not count itself up. Every handshake tells both, together with the newest start that the caller knows
//! of the called node. The one that is older learns so from whoever knows, and stops ([`NodeIdentity::outdated`]); nobody
//! takes a vote, an entry or an answer from it.
//!
//! A start first only asks. Once most have told nothing against it, it claims its number ([`NodeIdentity::claim`]), and
//! from then on each remembers it. So a copy that one node knows as such takes no number at another that does not, and
//! the genuine node is not the one that is refused; of two that ask at once, only one can claim at most of the others.
//!
//! A copy that was made while the node ran may count on to a newer number. It is recognised by its log: nodes remember
//! which committed entries each of them is known to have acknowledged (the leader from its replication, the others from
//! what it tells them), and a log that ends before those is an older one.
//!
//! A call that means another start than the one that runs is refused ([`LinkError::NotMet`]) until both have met, so that
//! no acknowledgement is counted for the start before.
//!
//! Two clusters of one name, founded apart, are told from each other by the epoch of their histories.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::codec::FORMAT;
use super::replica::Replica;
use super::transport::LinkError;
use super::types::MemberAddress;
use crate::ids::{LogIndex, NodeId};
use crate::model::version::{self, Build};
use crate::proto::{CommittedEntry, Handshake, NodeBoot, StatusResponse};
use crate::storage::BoxFuture;
use crate::{limits, metrics};

/// Between two log lines about handshakes that were refused.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What the node itself knows of its cluster.
pub trait OwnHistory: Send + Sync {
    fn replica(&self) -> &Arc<Replica>;

    /// Where a member is, as the newest membership has it.
    fn address_of(&self, node: NodeId) -> Option<MemberAddress>;

    /// On the leader: the newest committed entry that each member is known to have on its disk.
    fn acknowledged(&self) -> Vec<(NodeId, LogIndex)>;

    /// The newest entries up to an index that this node has applied, a few, in order.
    fn applied_entries(&self, index: LogIndex) -> BoxFuture<'_, Vec<CommittedEntry>>;
}

/// One start of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStart {
    /// Which start of its data folder it is; 0: it is not told, and not compared.
    pub boot: u64,
    /// Drawn for it.
    pub instance: u64,
    /// Where the log, or the rows, ended that it found.
    pub log_end: u64,
}

/// How far this start has come with the other nodes. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StartClaim {
    /// It only asks what they know of it.
    Asks,
    /// Enough of them know of nothing against it: it is to be remembered.
    Claimed,
    /// Enough of them have taken it for the newest: it may take part.
    Confirmed,
}

/// Who this node is to its peers.
pub struct NodeIdentity {
    pub cluster: String,
    pub node: NodeId,
    start: NodeStart,
    /// Gives the replicated starts, and what this node knows as the leader.
    history: OnceLock<Weak<dyn OwnHistory>>,
    epoch: AtomicU64,
    /// The state has come to that epoch.
    of_epoch: AtomicBool,
    /// The newest start of each node.
    known: Mutex<BTreeMap<NodeId, NodeBoot>>,
    /// A [`StartClaim`], looked at for each call.
    claim: AtomicU8,
    outdated: watch::Sender<Option<String>>,
    confirmed: watch::Sender<bool>,
    /// When a refusal was logged last, by the peer.
    told: Mutex<BTreeMap<NodeId, Instant>>,
    /// The program that this start runs.
    build: Build,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity").field("cluster", &self.cluster).field("node", &self.node).finish_non_exhaustive()
    }
}

/// Whether a start of `node` is at least as new as the newest one that is known; true: it is newer.
fn is_newer(node: NodeId, known: Option<&NodeBoot>, start: NodeStart) -> Result<bool, String> {
    let way = format!(
        "it may have forgotten votes and entries that it acknowledged, so it takes no part: give the machine a new number \
         and an empty data folder (cluster remove {node}, then cluster add); if most of the nodes say so, make the folder \
         with the newest data a cluster of one instead (recover --alone)"
    );
    let Some(known) = known.filter(|known| known.boot != 0 && start.boot != 0) else { return Ok(start.boot != 0) };
    if (known.boot, known.instance) == (start.boot, start.instance) {
        return Ok(false);
    }
    if start.boot <= known.boot {
        return Err(format!(
            "this folder of node {node} is a copy from before its start {} (this is start {} of it), or another process runs \
             from a copy of it, or another machine's settings say node_id = {node}: {way}",
            known.boot, start.boot
        ));
    }
    if start.log_end < known.held {
        return Err(format!(
            "this folder of node {node} is a copy from before entry {}, which the node acknowledged in its start {} (the \
             folder ends at entry {}): {way}",
            known.held, known.boot, start.log_end
        ));
    }
    Ok(true)
}

/// Whether two entries of one index cannot be the same.
fn is_another(one: &CommittedEntry, other: &CommittedEntry) -> bool {
    one.term != other.term || (one.sum != 0 && other.sum != 0 && one.sum != other.sum)
}

/// What an operator is told, after how it was seen.
fn two_histories(seen: &str) -> String {
    format!(
        "{seen}: an older copy of a folder has taken part while nodes were away, so there are two histories, and each may \
         lack what clients were told in the other. Stop the nodes, decide which folder is to go on, make it a cluster of one \
         (recover --alone), and let the other machines join it under new numbers with empty data folders"
    )
}

impl NodeIdentity {
    /// A node that tells no start.
    pub fn new(cluster: impl Into<String>, node: NodeId) -> Self {
        Self::of_start(cluster, node, NodeStart::default())
    }

    pub fn of_start(cluster: impl Into<String>, node: NodeId, start: NodeStart) -> Self {
        Self {
            cluster: cluster.into(),
            node,
            start,
            history: OnceLock::new(),
            epoch: AtomicU64::new(0),
            of_epoch: AtomicBool::new(false),
            known: Mutex::default(),
            claim: AtomicU8::new(StartClaim::Asks as u8),
            outdated: watch::Sender::new(None),
            confirmed: watch::Sender::new(false),
            told: Mutex::default(),
            build: Build::THIS,
        }
    }

    /// The same, run by another program.
    #[must_use]
    pub fn run_by(self, build: Build) -> Self {
        Self { build, ..self }
    }

    pub fn build(&self) -> Build {
        self.build
    }

    /// From now on what this node has replicated counts.
    pub fn attach(&self, history: Weak<dyn OwnHistory>) {
        let _ = self.history.set(history);
        self.refresh();
    }

    /// This start, as it is told. One that begins with an empty folder is none before it takes part.
    pub fn start(&self) -> NodeStart {
        if self.start.log_end == 0 && !self.is_confirmed() { NodeStart::default() } else { self.start }
    }

    /// The epoch of this node's history; 0: none yet.
    pub fn epoch(&self) -> u64 {
        let epoch = self.epoch.load(Ordering::Relaxed);
        if epoch != 0 {
            return epoch;
        }
        let epoch =
            self.history.get().and_then(Weak::upgrade).map_or(0, |history| history.replica().state().meta().epoch);
        self.epoch.store(epoch, Ordering::Relaxed);
        epoch
    }

    /// The history that this node is to belong to, before its state has come there.
    pub fn belong_to(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The state is of the history that this node belongs to: else it has to take or write some entries first, and what
    /// it would serve is of another one.
    pub fn has_its_epoch(&self) -> bool {
        if self.of_epoch.load(Ordering::Relaxed) {
            return true;
        }
        let epoch = self.epoch();
        let state =
            self.history.get().and_then(Weak::upgrade).map_or(0, |history| history.replica().state().meta().epoch);
        let has = state == epoch;
        self.of_epoch.store(has && epoch != 0, Ordering::Relaxed);
        has
    }

    /// Where a member is, as the newest membership has it.
    pub fn address_of(&self, node: NodeId) -> Option<MemberAddress> {
        self.history.get().and_then(Weak::upgrade)?.address_of(node)
    }

    /// What this node says to `to` first.
    pub fn handshake(&self, to: NodeId) -> Handshake {
        let NodeStart { boot, instance, log_end } = self.start();
        let known = self.known.lock().get(&to).copied().unwrap_or_default();
        Handshake {
            cluster: self.cluster.clone(),
            format: FORMAT,
            from: self.node.get(),
            to: to.get(),
            epoch: self.epoch(),
            boot,
            instance,
            log_end,
            to_boot: known.boot,
            to_instance: known.instance,
            to_held: known.held,
            only_asks: !self.claims(),
            knows: self.build.told(),
        }
    }

    /// Whether a program that told `knows` can read the cluster's log. Looked up only for one that is older than this one.
    fn check_program(&self, from: u64, knows: u32) -> Result<(), String> {
        let knows = version::of_told(knows);
        if knows >= self.build.newest() {
            return Ok(());
        }
        let history = self.history.get().and_then(Weak::upgrade);
        let agreed = history.map_or(0, |history| history.replica().state().cluster_version());
        if knows >= agreed {
            return Ok(());
        }
        Err(format!(
            "the cluster's version is {agreed}, and the program of node {from} knows up to {knows}: it can take no part any \
             more, install the program that the other nodes have"
        ))
    }

    /// Whether a caller speaks of this node and this cluster.
    fn check_names(&self, handshake: Option<&Handshake>) -> Result<Handshake, LinkError> {
        let refuse = |why: String| Err(LinkError::Refused(why));
        let Some(theirs) = handshake else { return refuse("no handshake".into()) };
        if theirs.cluster != self.cluster {
            return refuse(format!("this is cluster {:?}, not {:?}", self.cluster, theirs.cluster));
        }
        if theirs.format != FORMAT {
            return refuse(format!("this node speaks format {FORMAT}, not {}", theirs.format));
        }
        if theirs.to != self.node.get() {
            return refuse(format!("this is node {}, not {}: check the addresses", self.node, theirs.to));
        }
        if theirs.from == 0 {
            return refuse("a node's id is 1 or more".into());
        }
        if theirs.from == self.node.get() {
            return refuse(format!("two nodes are configured as node {}", self.node));
        }
        let (ours, epoch) = (self.epoch(), theirs.epoch);
        if ours != 0 && epoch != 0 && ours != epoch {
            let why = format!(
                "two clusters are named {:?}: node {} is of epoch {ours:016x}, node {} of epoch {epoch:016x}; they were \
                 founded apart: decide which one stays, and give the machines of the other one new numbers and empty data \
                 folders",
                self.cluster, self.node, theirs.from
            );
            return Err(self.refused(NodeId(theirs.from), why));
        }
        self.check_program(theirs.from, theirs.knows).map_err(|why| self.refused(NodeId(theirs.from), why))?;
        Ok(theirs.clone())
    }

    /// Whether a caller may speak to this node.
    pub fn check(&self, handshake: Option<&Handshake>) -> Result<NodeId, LinkError> {
        let theirs = self.check_names(handshake)?;
        if let Some(why) = self.outdated.borrow().clone() {
            return Err(LinkError::Refused(why));
        }
        match self.compare(&theirs) {
            Ok(_) => Ok(NodeId(theirs.from)),
            Err(why) => Err(self.refused(NodeId(theirs.from), why)),
        }
    }

    /// The same for the question for its status, which an outdated node may ask, too: it learns so. And it may be meant
    /// for whoever is there: `to` is 0 then.
    pub fn check_any(&self, handshake: Option<&Handshake>) -> Result<NodeId, LinkError> {
        match handshake {
            Some(theirs) if theirs.to == 0 => self
                .check_names(Some(&Handshake { to: self.node.get(), ..theirs.clone() }))
                .map(|theirs| NodeId(theirs.from)),
            _ => self.check_names(handshake).map(|theirs| NodeId(theirs.from)),
        }
    }

    /// Whether the caller's start is newer than the newest that is known of it.
    fn compare(&self, theirs: &Handshake) -> Result<bool, String> {
        let start = NodeStart { boot: theirs.boot, instance: theirs.instance, log_end: theirs.log_end };
        let newer = is_newer(NodeId(theirs.from), self.known.lock().get(&NodeId(theirs.from)), start);
        if newer == Ok(false) {
            return newer;
        }
        // Seldom: what this node knows by other ways counts as well.
        self.refresh();
        is_newer(NodeId(theirs.from), self.known.lock().get(&NodeId(theirs.from)), start)
    }

    /// A member calls: its start is remembered if it claims it, and what it knows of this node's.
    pub fn meet(&self, theirs: &Handshake) -> Result<(), LinkError> {
        let of_me = NodeBoot {
            node: self.node.get(),
            boot: theirs.to_boot,
            instance: theirs.to_instance,
            held: theirs.to_held,
            ..NodeBoot::default()
        };
        self.hear_of_me(NodeId(theirs.from), &of_me)?;
        match self.compare(theirs) {
            Ok(true) if !theirs.only_asks => {
                let Handshake { from: node, boot, instance, log_end: held, .. } = *theirs;
                self.remember(NodeBoot { node, boot, instance, held, ..NodeBoot::default() });
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(why) => Err(self.refused(NodeId(theirs.from), why)),
        }
    }

    /// A call of consensus must mean this very start: what is answered is counted for the start that the caller knows.
    pub fn check_met(&self, theirs: &Handshake) -> Result<(), LinkError> {
        let NodeStart { boot, instance, .. } = self.start();
        if theirs.boot == 0 || boot == 0 || (theirs.to_boot, theirs.to_instance) == (boot, instance) {
            return Ok(());
        }
        Err(LinkError::NotMet(format!(
            "node {} has started anew, and node {} does not know yet",
            self.node, theirs.from
        )))
    }

    /// What a member's status says of starts. Its own is among them.
    pub fn learn(&self, status: &StatusResponse) {
        let ours = self.epoch();
        if ours != 0 && status.epoch != 0 && ours != status.epoch {
            return;
        }
        for boot in status.boots.iter().take(limits::NODES_EVER) {
            if boot.node == self.node.get() {
                // This node stops: whoever has asked sees why.
                let _ = self.hear_of_me(NodeId(status.node), boot);
            } else {
                self.remember(*boot);
            }
        }
    }

    /// Whether a member that answers is no older start of it than the newest that is known: one that has not claimed its
    /// number yet says nothing of it.
    pub fn may_be_newest(&self, status: &StatusResponse) -> bool {
        status.boots.iter().all(|boot| boot.node != status.node) || self.is_newest(status)
    }

    /// The same, and it has claimed its number.
    pub fn is_newest(&self, status: &StatusResponse) -> bool {
        let Some(own) = status.boots.iter().find(|boot| boot.node == status.node) else { return false };
        let start = NodeStart { boot: own.boot, instance: own.instance, log_end: own.held };
        is_newer(NodeId(own.node), self.known.lock().get(&NodeId(own.node)), start).is_ok()
    }

    /// The same of a member that asks.
    pub fn is_witness(&self, asker: &Handshake) -> bool {
        !asker.only_asks && self.compare(asker).is_ok()
    }

    /// Why a member's history is another one than this node's: a start that took part in this one's is another process
    /// there. Both have told clients what the other one lacks.
    pub fn other_history(&self, status: &StatusResponse) -> Option<String> {
        let history = self.history.get().and_then(Weak::upgrade)?;
        let state = history.replica().state();
        let conflict = status.boots.iter().take(limits::NODES_EVER).find(|told| {
            let here = state.boot_of(NodeId(told.node));
            here.is_some_and(|here| told.boot != 0 && here.boot == told.boot && here.instance != told.instance)
        })?;
        Some(two_histories(&format!(
            "node {} takes another process for start {} of node {} than this node does",
            status.node, conflict.boot, conflict.node
        )))
    }

    /// The same, where both have applied another entry at one index. A copy that forgot its vote may have begun the same
    /// term anew, so the terms alone do not tell.
    pub async fn other_entry(&self, status: &StatusResponse) -> Option<String> {
        let history = self.history.get().and_then(Weak::upgrade)?;
        let last = status.shared_entries.iter().map(|entry| entry.index).max()?;
        let ours = history.applied_entries(LogIndex(last)).await;
        let theirs = status.shared_entries.iter().take(limits::SHARED_ENTRIES as usize);
        let (index, ours, theirs) = theirs
            .filter_map(|theirs| Some((theirs.index, ours.iter().find(|entry| entry.index == theirs.index)?, theirs)))
            .find(|(_, ours, theirs)| is_another(ours, theirs))
            .map(|(index, ours, theirs)| (index, ours.term, theirs.term))?;
        Some(two_histories(&format!(
            "node {} has committed another entry {index} than this node has (of term {theirs}; here of term {ours})",
            status.node
        )))
    }

    fn hear_of_me(&self, from: NodeId, known: &NodeBoot) -> Result<(), LinkError> {
        let Err(why) = is_newer(self.node, Some(known), self.start()) else { return Ok(()) };
        self.outdated.send_if_modified(|outdated| {
            let first = outdated.is_none();
            if first {
                tracing::error!(by = from.get(), "{why}");
                *outdated = Some(why.clone());
            }
            first
        });
        Err(LinkError::Refused(why))
    }

    fn remember(&self, new: NodeBoot) {
        let mut known = self.known.lock();
        let room = known.len() < limits::NODES_EVER;
        match known.get_mut(&NodeId(new.node)) {
            Some(old) if (old.boot, old.instance) == (new.boot, new.instance) => old.held = old.held.max(new.held),
            Some(old) if new.boot > old.boot => *old = new,
            Some(_) => {}
            None if room && new.boot != 0 => drop(known.insert(NodeId(new.node), new)),
            None => {}
        }
    }

    /// What took part in this node's history counts more than what was told.
    fn remember_replicated(&self, new: NodeBoot) {
        if let Some(old) = self.known.lock().get_mut(&NodeId(new.node))
            && (old.boot, old.instance == new.instance) == (new.boot, false)
        {
            *old = new;
            return;
        }
        self.remember(new);
    }

    /// Takes over what was replicated, and what this node knows as the leader.
    pub fn refresh(&self) {
        let Some(history) = self.history.get().and_then(Weak::upgrade) else { return };
        let boots = history.replica().state().boots().to_vec();
        for boot in boots {
            if boot.node == self.node.get() {
                // Its own log says that there was a newer start: the mark in the folder is an older one.
                let _ = self.hear_of_me(self.node, &boot);
            } else {
                self.remember_replicated(boot);
            }
        }
        for (node, held) in history.acknowledged() {
            self.holds(node, held);
        }
    }

    /// A member is known to have acknowledged this entry in the start that is known.
    pub fn holds(&self, node: NodeId, entry: LogIndex) {
        if let Some(known) = self.known.lock().get_mut(&node) {
            known.held = known.held.max(entry.get());
        }
    }

    /// The newest start of every node, this one's among them if it claims it.
    pub fn boots(&self) -> Vec<NodeBoot> {
        let NodeStart { boot, instance, log_end: held } = self.start();
        let own = Some(NodeBoot { node: self.node.get(), boot, instance, held, ..NodeBoot::default() })
            .filter(|own| own.boot != 0 && self.claims());
        self.known.lock().values().copied().chain(own).collect()
    }

    /// Enough others know of nothing against this start: from now on it asks to be remembered.
    pub fn claim(&self) {
        self.come_to(StartClaim::Claimed);
    }

    pub fn claims(&self) -> bool {
        self.has_come_to(StartClaim::Claimed)
    }

    /// This node may take part: enough others have taken this start for the newest.
    pub fn confirm(&self) {
        self.come_to(StartClaim::Confirmed);
        self.confirmed.send_replace(true);
    }

    /// Resolves when it may.
    pub async fn confirmation(&self) {
        // The sender lives as long as this.
        let _ = self.confirmed.subscribe().wait_for(|confirmed| *confirmed).await;
    }

    pub fn is_confirmed(&self) -> bool {
        self.has_come_to(StartClaim::Confirmed)
    }

    fn come_to(&self, claim: StartClaim) {
        self.claim.fetch_max(claim as u8, Ordering::Relaxed);
    }

    fn has_come_to(&self, claim: StartClaim) -> bool {
        self.claim.load(Ordering::Relaxed) >= claim as u8
    }

    /// Why this node must stop, if it must.
    pub fn is_outdated(&self) -> Option<String> {
        self.outdated.borrow().clone()
    }

    /// Resolves with the reason when this node must stop: its folder is an older copy, or another process runs as it.
    pub async fn outdated(&self) -> String {
        let mut outdated = self.outdated.subscribe();
        match outdated.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender lives as long as this.
            Err(_) => String::new(),
        }
    }

    /// The error for the caller, and a line for the operator.
    fn refused(&self, from: NodeId, why: String) -> LinkError {
        metrics::PEERS_REFUSED.add(1);
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.get(&from).is_none_or(|at| now - *at >= TOLD_EVERY) && (told.len() < limits::NODES_EVER) {
            told.insert(from, now);
            tracing::error!(peer = from.get(), "a call of another node was turned away: {why}");
        }
        LinkError::Refused(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(boot: u64, instance: u64, log_end: u64) -> NodeStart {
        NodeStart { boot, instance, log_end }
    }

    fn node(node: u64, start: NodeStart) -> NodeIdentity {
        let identity = NodeIdentity::of_start("shop", NodeId(node), start);
        identity.confirm();
        identity
    }

    fn meet(from: &NodeIdentity, to: &NodeIdentity) -> Result<(), LinkError> {
        let handshake = from.handshake(to.node);
        to.check(Some(&handshake))?;
        to.meet(&handshake)
    }

    fn refusal(result: Result<(), LinkError>) -> String {
        match result {
            Err(LinkError::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn strangers_are_turned_away() {
        let (one, two) = (NodeIdentity::new("shop", NodeId(1)), NodeIdentity::new("shop", NodeId(2)));
        assert_eq!(one.check(Some(&two.handshake(NodeId(1)))), Ok(NodeId(2)));
        let refused = |handshake: Option<&Handshake>, word: &str| match one.check(handshake) {
            Err(LinkError::Refused(why)) => assert!(why.contains(word), "{why}"),
            other => panic!("{other:?}"),
        };
        refused(None, "no handshake");
        refused(Some(&two.handshake(NodeId(3))), "addresses");
        refused(Some(&two.handshake(NodeId(0))), "addresses");
        assert_eq!(one.check_any(Some(&two.handshake(NodeId(0)))), Ok(NodeId(2)));
        refused(Some(&one.handshake(NodeId(1))), "two nodes");
        refused(Some(&NodeIdentity::new("other", NodeId(2)).handshake(NodeId(1))), "cluster");
        refused(Some(&Handshake { format: FORMAT + 1, ..two.handshake(NodeId(1)) }), "format");
    }

    #[test]
    fn another_epoch_is_refused_with_both_and_none_is_not_another() {
        let (one, two) = (node(1, start(1, 5, 0)), node(2, start(1, 6, 0)));
        one.epoch.store(0xA1, Ordering::Relaxed);
        assert_eq!(meet(&two, &one), Ok(()), "it has none yet");
        two.epoch.store(0xB2, Ordering::Relaxed);
        let why = refusal(meet(&two, &one));
        assert!(why.contains("00000000000000a1") && why.contains("00000000000000b2") && why.contains("empty"), "{why}");
        assert!(matches!(one.check_any(Some(&two.handshake(NodeId(0)))), Err(LinkError::Refused(_))));
        let poison = StatusResponse {
            epoch: 0xB2,
            boots: vec![NodeBoot { node: 1, boot: 9, ..NodeBoot::default() }],
            ..StatusResponse::default()
        };
        one.learn(&poison);
        assert_eq!(one.is_outdated(), None, "another cluster's word counts for nothing");
    }

    #[test]
    fn an_older_copy_is_refused_by_whoever_knows_and_learns_so_itself() {
        let (one, two) = (node(1, start(1, 5, 0)), node(2, start(3, 77, 10)));
        assert_eq!(meet(&two, &one), Ok(()));
        for old in [start(2, 78, 10), start(3, 78, 10), start(3, 78, 0)] {
            let copy = node(2, old);
            let why = refusal(meet(&copy, &one));
            assert!(why.contains("copy from before its start 3"), "{why}");
            // It may ask, and learns from the answer; or from who calls it.
            assert_eq!(one.check_any(Some(&copy.handshake(NodeId(1)))), Ok(NodeId(2)));
            copy.learn(&StatusResponse { node: 1, boots: one.boots(), ..StatusResponse::default() });
            assert!(copy.is_outdated().unwrap().contains("new number"));
            let called = node(2, old);
            assert!(refusal(meet(&one, &called)).contains("node 2"));
            assert!(called.is_outdated().is_some());
            assert!(matches!(called.check(Some(&one.handshake(NodeId(2)))), Err(LinkError::Refused(_))));
        }
        // The one that is known goes on, and so does its next start.
        assert_eq!(meet(&two, &one), Ok(()));
        assert_eq!(meet(&node(2, start(4, 79, 10)), &one), Ok(()));
        assert!(refusal(meet(&two, &one)).contains("start 4"), "the older of two processes");
    }

    #[test]
    fn a_copy_of_a_running_node_is_known_by_what_it_lacks() {
        let (one, two) = (node(1, start(1, 5, 0)), node(2, start(3, 77, 10)));
        meet(&two, &one).unwrap();
        one.remember(NodeBoot { node: 2, boot: 3, instance: 77, held: 50, ..NodeBoot::default() });
        let copy = node(2, start(4, 78, 49));
        assert!(refusal(meet(&copy, &one)).contains("copy from before entry 50"));
        assert!(refusal(meet(&one, &copy)).contains("ends at entry 49"));
        assert_eq!(meet(&node(2, start(5, 79, 50)), &one), Ok(()));
        // What another node knew of an older start says nothing about this one.
        one.remember(NodeBoot { node: 2, boot: 3, instance: 77, held: 90, ..NodeBoot::default() });
        assert_eq!(one.handshake(NodeId(2)).to_held, 50);
    }

    #[test]
    fn a_copy_that_only_asks_takes_no_number_from_the_genuine_node() {
        // One knows what node 2 acknowledged, and another one lags behind.
        let [one, lagging] = [1, 3].map(|id| node(id, start(1, id, 0)));
        for peer in [&one, &lagging] {
            meet(&node(2, start(3, 77, 10)), peer).unwrap();
        }
        one.holds(NodeId(2), LogIndex(50));
        let copy = NodeIdentity::of_start("shop", NodeId(2), start(4, 78, 49));
        assert_eq!(meet(&copy, &lagging), Ok(()), "it cannot know");
        assert!(refusal(meet(&copy, &one)).contains("copy from before entry 50"));
        assert_eq!(copy.boots(), [], "nor does it tell anybody");
        assert!(!lagging.is_witness(&copy.handshake(NodeId(3))), "nor does its digest count");
        let genuine = NodeIdentity::of_start("shop", NodeId(2), start(4, 79, 50));
        for peer in [&lagging, &one] {
            assert_eq!(meet(&genuine, peer), Ok(()));
        }
        genuine.claim();
        for peer in [&lagging, &one] {
            assert_eq!(meet(&genuine, peer), Ok(()));
            assert!(peer.is_witness(&genuine.handshake(peer.node)));
        }
        copy.claim();
        assert!(refusal(meet(&copy, &lagging)).contains("start 4"), "of two, the first one that claimed");
    }

    #[test]
    fn an_entry_is_another_by_its_term_or_by_its_commands() {
        let entry = |term, sum| CommittedEntry { index: 9, term, sum };
        assert!(is_another(&entry(3, 0), &entry(4, 0)) && is_another(&entry(3, 7), &entry(3, 8)));
        assert!(!is_another(&entry(3, 7), &entry(3, 7)));
        assert!(!is_another(&entry(3, 7), &entry(3, 0)), "one that is not kept any more");
    }

    #[test]
    fn a_call_that_means_another_start_is_not_answered() {
        let (one, two) = (node(1, start(1, 5, 0)), node(2, start(3, 77, 10)));
        assert!(matches!(two.check_met(&one.handshake(NodeId(2))), Err(LinkError::NotMet(_))));
        meet(&two, &one).unwrap();
        assert_eq!(two.check_met(&one.handshake(NodeId(2))), Ok(()));
        let again = node(2, start(4, 78, 10));
        assert!(matches!(again.check_met(&one.handshake(NodeId(2))), Err(LinkError::NotMet(_))));
        assert_eq!(again.is_outdated(), None);
        // An older version tells no start.
        assert_eq!(again.check_met(&NodeIdentity::new("shop", NodeId(1)).handshake(NodeId(2))), Ok(()));
    }
}
