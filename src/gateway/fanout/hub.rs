//! The fan-out: what the cluster applied, to every session of this node, in order and exactly once.
//!
//! One lock covers who is attached and how far the effects have been handed out, so a session's place in the
//! stream is exact: what was dispatched before it attached it never gets, everything after it does.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::gateway::Gateway;
use crate::gateway::fanout::send_queue::{Broadcast, EncodedEvent, Encoding, SendQueue};
use crate::ids::Seq;
use crate::metrics;
use crate::model::access::{ClassNumber, Readers};
use crate::model::effect::{Effect, Effects};
use crate::model::error::{Code, Error};
use crate::model::sync::scope;
use crate::proto::Change;
use crate::token::Claims;

/// Effects taken from the cluster at once.
const BATCH: usize = 256;

/// The tables whose changes a reader wants, and the class of its token, which says what it may read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangeFilter {
    /// `None`: all.
    tables: Option<Arc<HashSet<String>>>,
    class: ClassNumber,
}

impl ChangeFilter {
    pub fn of(tables: Option<Vec<String>>, class: ClassNumber) -> Self {
        Self { tables: tables.map(|t| Arc::new(t.into_iter().collect())), class }
    }

    /// The number of the set of tables.
    pub fn scope(&self) -> u64 {
        match &self.tables {
            None => scope(None),
            Some(tables) => scope(Some(&tables.iter().cloned().collect::<Vec<_>>())),
        }
    }

    /// Whose rights are asked whenever something is read.
    pub fn class(&self) -> ClassNumber {
        self.class
    }

    /// The same tables, whoever reads them.
    pub fn of_any_class(&self) -> Self {
        Self { tables: self.tables.clone(), class: ClassNumber::default() }
    }

    /// It is wanted; whether it may be read is for the state to say.
    pub fn takes_table(&self, name: &str) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.contains(name))
    }

    pub fn takes(&self, change: &Change) -> bool {
        self.takes_table(&change.table_name)
    }

    /// Whoever was sent all that this takes was sent all that `other` takes.
    pub fn covers(&self, other: &Self) -> bool {
        let tables = match (&self.tables, &other.tables) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => theirs.is_subset(mine),
        };
        tables && self.class == other.class
    }
}

/// The token that a session came with.
#[derive(Clone, Debug)]
pub struct TokenHolder {
    pub sub: String,
    pub jti: String,
    pub iat: u64,
    pub class: ClassNumber,
}

impl TokenHolder {
    pub fn of(claims: &Claims) -> Self {
        Self { sub: claims.sub.clone(), jti: claims.jti.clone(), iat: claims.iat, class: claims.class.number() }
    }
}

struct Subscriber {
    send_queue: Arc<SendQueue>,
    holder: TokenHolder,
    filter: ChangeFilter,
    /// It has not begun, or something else is being delivered: changes wait in the change log for it.
    paused: bool,
    /// Changes up to this one are not for it, or it has them.
    live_after: Seq,
}

#[derive(Default)]
struct Registry {
    entries: Vec<Subscriber>,
    places: HashMap<u64, usize>,
    last_id: u64,
    /// The newest change that was handed out.
    dispatched: Seq,
}

/// What the sessions of a transport weigh.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionLoad {
    pub sessions: usize,
    /// Waiting in their queues.
    pub events: usize,
    pub bytes: usize,
}

pub struct Hub {
    registry: Mutex<Registry>,
    epoch: AtomicU64,
    limit: usize,
    emptied: Notify,
}

impl Hub {
    /// `head`: everything up to this change counts as handed out.
    pub fn new(head: Seq, epoch: u64, limit: usize) -> Self {
        let registry = Mutex::new(Registry { dispatched: head, ..Registry::default() });
        Self { registry, epoch: AtomicU64::new(epoch), limit, emptied: Notify::new() }
    }

    /// Adds a session, paused: its first `device_online` decides where its changes begin. Also returns the newest
    /// change that was handed out before it came. 1003 when the node has as many as it can hold.
    pub fn attach(&self, transport: Encoding, holder: TokenHolder) -> Result<(Arc<SendQueue>, Seq), Error> {
        let mut registry = self.registry.lock();
        if registry.entries.len() >= self.limit {
            let mut error = Error::new(Code::SocketClosed, "this node has as many sessions as it can hold");
            // Spread out, so that those refused together do not come back together.
            error.retry_after_ms = Some(rand::random_range(1_000..5_000));
            return Err(error);
        }
        registry.last_id += 1;
        let id = registry.last_id;
        let send_queue = Arc::new(SendQueue::new(id, transport));
        let (place, position) = (registry.entries.len(), registry.dispatched);
        registry.places.insert(id, place);
        let filter = ChangeFilter::of(None, holder.class);
        registry.entries.push(Subscriber {
            send_queue: send_queue.clone(),
            holder,
            filter,
            paused: true,
            live_after: position,
        });
        Ok((send_queue, position))
    }

    pub fn detach(&self, id: u64) {
        let mut registry = self.registry.lock();
        let Some(place) = registry.places.remove(&id) else { return };
        registry.entries.swap_remove(place);
        if let Some(moved) = registry.entries.get(place).map(|e| e.send_queue.id) {
            registry.places.insert(moved, place);
        }
        if registry.entries.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// The tables that a session wants from now on. Returns the newest change that it was sent before, if it is live.
    pub fn subscribe(&self, id: u64, filter: ChangeFilter) -> Seq {
        let mut registry = self.registry.lock();
        registry
            .with(id, |entry, dispatched| {
                entry.filter = filter;
                dispatched.max(entry.live_after)
            })
            .unwrap_or_default()
    }

    /// Stops changes for a live session. Returns the newest one that it was sent.
    pub fn pause(&self, id: u64) -> Seq {
        let mut registry = self.registry.lock();
        registry
            .with(id, |entry, dispatched| {
                entry.paused = true;
                dispatched.max(entry.live_after)
            })
            .unwrap_or_default()
    }

    /// The newest change that a live session was sent.
    pub fn sent_to(&self, id: u64) -> Seq {
        let mut registry = self.registry.lock();
        registry.with(id, |entry, dispatched| dispatched.max(entry.live_after)).unwrap_or_default()
    }

    /// Lets changes flow to a paused session that was sent everything up to `seq`. If more were handed out
    /// meanwhile, it must catch up to that first.
    pub fn go_live(&self, id: u64, seq: Seq) -> Result<(), Seq> {
        let live = self.registry.lock().with(id, |entry, dispatched| {
            if dispatched > seq {
                return Err(dispatched);
            }
            entry.paused = false;
            entry.live_after = seq;
            Ok(())
        });
        live.unwrap_or(Ok(()))
    }

    pub fn sessions(&self) -> usize {
        self.registry.lock().entries.len()
    }

    /// Sessions, and what waits in all of their queues: for each transport.
    pub fn load(&self) -> [SessionLoad; 2] {
        let mut loads = [SessionLoad::default(); 2];
        for entry in &self.registry.lock().entries {
            let load = &mut loads[usize::from(entry.send_queue.transport == Encoding::SocketIo)];
            let (events, bytes) = entry.send_queue.waiting();
            load.sessions += 1;
            load.events += events;
            load.bytes += bytes;
        }
        loads
    }

    /// The history that cursors are of.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub fn close_all(&self, why: &Error) {
        for entry in &self.registry.lock().entries {
            entry.send_queue.close(why.clone());
        }
    }

    /// Resolves when no session is attached.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.sessions() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn dispatch(&self, batch: &[(Broadcast, Audience, Readers)]) {
        let mut registry = self.registry.lock();
        let mut frames: Vec<EncodedEvent> = Vec::with_capacity(batch.len());
        let mut deliveries = 0;
        for entry in &registry.entries {
            for (event, to, readers) in batch {
                if readers.includes(entry.holder.class) && to.includes(entry) {
                    frames.extend(event.frame(entry.send_queue.transport));
                }
            }
            if !frames.is_empty() {
                deliveries += frames.len() as u64;
                entry.send_queue.push_all(&mut frames);
            }
        }
        metrics::BROADCASTS.add(batch.len() as u64);
        metrics::DELIVERIES.add(deliveries);
        for (_, to, _) in batch {
            if let Audience::Change { seq, .. } = to {
                registry.dispatched = registry.dispatched.max(*seq);
            }
        }
    }

    /// Closes the sessions that came with this token.
    fn revoke(&self, jti: &str) {
        for entry in self.registry.lock().entries.iter().filter(|e| e.holder.jti == jti) {
            entry.send_queue.close(Error::new(Code::Credentials, "the token was revoked"));
        }
    }

    /// Closes the sessions of a device's tokens, those that are refused by now: `why` says so of the time of issue.
    fn keep_out(&self, device_id: &str, why: impl Fn(u64) -> Option<Error>) {
        for entry in self.registry.lock().entries.iter().filter(|e| e.holder.sub == device_id) {
            if let Some(error) = why(entry.holder.iat) {
                entry.send_queue.close(error);
            }
        }
    }

    /// A session goes on with another token of the same device and class.
    pub fn renew(&self, id: u64, holder: TokenHolder) {
        self.registry.lock().with(id, |entry, _| entry.holder = holder);
    }

    /// What came before `head` will not be handed out one by one: nobody may be left with a gap.
    fn skip(&self, head: Seq) {
        let mut registry = self.registry.lock();
        registry.dispatched = registry.dispatched.max(head);
        let why = "this node was brought up to date at once: connect again and resume from your cursor";
        for entry in &registry.entries {
            entry.send_queue.close(Error::new(Code::SocketClosed, why));
        }
    }
}

impl Registry {
    fn with<T>(&mut self, id: u64, change: impl FnOnce(&mut Subscriber, Seq) -> T) -> Option<T> {
        let place = *self.places.get(&id)?;
        let dispatched = self.dispatched;
        self.entries.get_mut(place).map(|entry| change(entry, dispatched))
    }
}

/// Whom an event is for.
enum Audience {
    All,
    /// Those who want the table, are live, and do not have it yet.
    Change {
        seq: Seq,
        table: Arc<Change>,
    },
    Sessions(Vec<u64>),
}

impl Audience {
    fn includes(&self, entry: &Subscriber) -> bool {
        match self {
            Self::All => true,
            Self::Change { seq, table } => !entry.paused && *seq > entry.live_after && entry.filter.takes(table),
            Self::Sessions(ids) => ids.contains(&entry.send_queue.id),
        }
    }
}

/// Hands out effects as they come, until the cluster ends.
pub async fn run(gateway: Arc<Gateway>, mut effects: mpsc::Receiver<Effects>) {
    let mut entries: Vec<Effects> = Vec::with_capacity(BATCH);
    // As of the effect that is being handed out: rights and changes are told in one order.
    let mut access = gateway.cluster.replica().state().access().clone();
    while effects.recv_many(&mut entries, BATCH).await > 0 {
        let mut batch = Vec::with_capacity(entries.len());
        for (epoch, effect) in
            entries.drain(..).flat_map(|e| e.effects.into_iter().map(move |effect| (e.epoch, effect)))
        {
            gateway.hub.epoch.store(epoch, Ordering::Relaxed);
            let (to, readers) = match &effect {
                Effect::TokenRevoked { jti } => {
                    gateway.hub.dispatch(&std::mem::take(&mut batch));
                    gateway.hub.revoke(jti);
                    continue;
                }
                Effect::DeviceKeptOut { device_id } => {
                    gateway.hub.dispatch(&std::mem::take(&mut batch));
                    let refusal = |iat| gateway.cluster.replica().state().refusal_of(device_id, iat);
                    gateway.hub.keep_out(device_id, refusal);
                    continue;
                }
                Effect::Skipped { head } => {
                    batch.clear();
                    access = gateway.cluster.replica().state().access().clone();
                    gateway.hub.skip(*head);
                    continue;
                }
                Effect::Changed(change) => {
                    let to = Audience::Change { seq: Seq(change.seq), table: change.clone() };
                    (to, access.readers(&change.table_name))
                }
                Effect::ConflictFound(conflict) => {
                    let devices = [conflict.device_id.as_str(), &conflict.writer];
                    let to = Audience::Sessions(gateway.presence.sessions_of_any(devices));
                    (to, access.readers(&conflict.table_name))
                }
                Effect::ConflictResolved(conflict) => (Audience::All, access.readers(&conflict.table_name)),
                Effect::AccessChanged { class, rights, .. } => {
                    access.put(*class, rights.clone());
                    (Audience::All, Readers::only(*class))
                }
                Effect::Critical { .. }
                | Effect::MasterElected(_)
                | Effect::ElectionFailed { .. }
                | Effect::RoleChanged { .. }
                | Effect::SyncCompleted { .. } => (Audience::All, Readers::ALL),
            };
            batch.push((Broadcast::new(effect, epoch), to, readers));
        }
        gateway.hub.dispatch(&batch);
    }
}
