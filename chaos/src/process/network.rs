//! The network between the nodes: a proxy for every ordered pair, and the rules that they go by.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::proxy;

/// What the bytes from one node to another have to go through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub cut: LinkCut,
    pub latency: Duration,
    /// Up to this much more.
    pub jitter: Duration,
    /// Bytes a second; 0: as many as come.
    pub rate: u64,
    /// Raised to reset all connections.
    pub resets: u64,
    /// There is no process at the other end: nobody listens.
    pub down: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LinkCut {
    #[default]
    No,
    /// Connections stay, and what is sent waits.
    Silent,
    /// Connections are reset, and new ones refused.
    Refused,
}

/// What a fault does to links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkEffect {
    pub cut: LinkCut,
    pub latency: Duration,
    pub jitter: Duration,
    pub rate: u64,
}

/// An ordered pair of nodes: from, to.
pub(super) type NodePair = (u64, u64);

/// Stands for whoever calls a node at its recorded address, which is the same for all.
const ANYBODY: u64 = 0;

#[derive(Default)]
struct NetworkFaults {
    /// What is going on, by its number.
    effects: BTreeMap<u64, (Vec<NodePair>, LinkEffect)>,
    newest: u64,
    resets: BTreeMap<NodePair, u64>,
    /// Nodes without a process.
    down: Vec<u64>,
    /// How many want nodes to answer at their recorded addresses.
    recorded: usize,
}

pub(super) struct ProcessNetwork {
    rules: BTreeMap<NodePair, watch::Sender<Rule>>,
    /// Where `from` finds `to`.
    addresses: BTreeMap<NodePair, SocketAddr>,
    inner: Mutex<NetworkFaults>,
    _proxies: Vec<AbortOnDropHandle<()>>,
}

/// While it is held, nodes answer at their recorded addresses.
pub(super) struct RecordedAddresses<'a>(&'a ProcessNetwork);

impl Drop for RecordedAddresses<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.recorded -= 1;
        self.0.apply(&inner);
    }
}

impl ProcessNetwork {
    /// Proxies between these nodes, which listen on `targets`, at ports that `port` gives.
    pub(super) fn start(
        targets: &BTreeMap<u64, SocketAddr>,
        mut port: impl FnMut() -> Result<SocketAddr, String>,
        seed: u64,
    ) -> Result<Self, String> {
        let all: Vec<u64> = std::iter::once(ANYBODY).chain(targets.keys().copied()).collect();
        let pairs: Vec<NodePair> =
            all.iter().flat_map(|a| all.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b).collect();
        let rules: BTreeMap<NodePair, watch::Sender<Rule>> =
            pairs.iter().map(|pair| (*pair, watch::Sender::new(Rule::default()))).collect();
        let mut addresses = BTreeMap::new();
        let mut proxies = Vec::new();
        for (from, to) in &pairs {
            let (Some(target), Some(out), Some(back)) =
                (targets.get(to), rules.get(&(*from, *to)), rules.get(&(*to, *from)))
            else {
                continue;
            };
            let listen = port()?;
            let seed = seed ^ (from << 32) ^ to;
            let proxy = proxy::Proxy { listen, target: *target, out: out.subscribe(), back: back.subscribe(), seed };
            addresses.insert((*from, *to), listen);
            proxies.push(AbortOnDropHandle::new(tokio::spawn(proxy.run())));
        }
        let network = Self { rules, addresses, inner: Mutex::default(), _proxies: proxies };
        network.apply(&network.inner.lock());
        Ok(network)
    }

    /// Where the membership has a node. Nodes call each other there if they do not find each other as their settings say,
    /// past all proxies of the pair: so nobody answers there, unless a change of the members needs it.
    pub(super) fn recorded_address(&self, node: u64) -> Option<SocketAddr> {
        self.address(ANYBODY, node)
    }

    pub(super) fn open_recorded(&self) -> RecordedAddresses<'_> {
        let mut inner = self.inner.lock();
        inner.recorded += 1;
        self.apply(&inner);
        RecordedAddresses(self)
    }

    pub(super) fn address(&self, from: u64, to: u64) -> Option<SocketAddr> {
        self.addresses.get(&(from, to)).copied()
    }

    /// Begins an effect on these links; the number ends it.
    pub(super) fn begin(&self, pairs: Vec<NodePair>, effect: LinkEffect) -> u64 {
        let mut inner = self.inner.lock();
        inner.newest += 1;
        let number = inner.newest;
        inner.effects.insert(number, (pairs, effect));
        self.apply(&inner);
        number
    }

    pub(super) fn end(&self, number: u64) {
        let mut inner = self.inner.lock();
        inner.effects.remove(&number);
        self.apply(&inner);
    }

    /// Resets every connection on these links.
    pub(super) fn reset(&self, pairs: &[NodePair]) {
        let mut inner = self.inner.lock();
        for pair in pairs {
            *inner.resets.entry(*pair).or_default() += 1;
        }
        self.apply(&inner);
    }

    /// Whether a node's process is there: without it nobody listens at its proxies.
    pub(super) fn set_up(&self, node: u64, up: bool) {
        let mut inner = self.inner.lock();
        inner.down.retain(|other| *other != node);
        if !up {
            inner.down.push(node);
        }
        self.apply(&inner);
    }

    /// All links whole.
    pub(super) fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.effects.clear();
        self.apply(&inner);
    }

    fn is_cut(&self, pair: NodePair) -> bool {
        self.rules.get(&pair).is_some_and(|rule| rule.borrow().cut != LinkCut::No)
    }

    /// Whether anything between two nodes is cut.
    pub(super) fn apart(&self, a: u64, b: u64) -> bool {
        self.is_cut((a, b)) || self.is_cut((b, a))
    }

    /// Whether two nodes hear nothing of each other.
    pub(super) fn cut_off(&self, a: u64, b: u64) -> bool {
        self.is_cut((a, b)) && self.is_cut((b, a))
    }

    fn apply(&self, inner: &NetworkFaults) {
        for (pair, sender) in &self.rules {
            let mut rule = Rule {
                resets: inner.resets.get(pair).copied().unwrap_or(0),
                down: inner.down.contains(&pair.1),
                ..Rule::default()
            };
            for (_, effect) in inner.effects.values().filter(|(pairs, _)| pairs.contains(pair)) {
                rule.cut = rule.cut.max(effect.cut);
                rule.latency += effect.latency;
                rule.jitter += effect.jitter;
                rule.rate = match (rule.rate, effect.rate) {
                    (0, rate) | (rate, 0) => rate,
                    (a, b) => a.min(b),
                };
            }
            if inner.recorded == 0 && (pair.0 == ANYBODY || pair.1 == ANYBODY) {
                rule.cut = LinkCut::Refused;
            }
            sender.send_if_modified(|now| std::mem::replace(now, rule) != rule);
        }
    }
}
