//! The state and the one way to change it: [`State::apply`].
//!
//! What lookups need at every request (devices, sync states, record versions, the newest changes) is kept
//! decoded in memory, written only by apply, and is nothing but what the rows say: [`State::reload`] makes it anew.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use super::access::AccessMatrix;
use super::audit::AuditIndex;
use super::client_dedup::ClientDedup;
use super::conflict_index::ConflictIndex;
use super::door;
use super::effect::Effect;
use super::error::{Code, Error};
use super::gates::DeviceGates;
use super::node_dedup::NodeDedup;
use super::pairing::Pairings;
use super::queues::DeviceQueues;
use super::recent::RecentChanges;
use super::records::Records;
use super::tables::{RowKey, Tables, TablesError, TablesRead, get_row};
use crate::limits;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Applied, Batch, Change, ClusterInit, Command, Device, Empty, EncodedCommands, Meta, Outcome, Principal, Refused,
    Revoked, SyncState, TableName, TokenRevoke,
};

/// Where an entry stands in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub index: u64,
    /// The log id as consensus encodes it; kept with the rows, never looked into.
    pub log_id: Bytes,
    /// The Raft term in which it was proposed.
    pub term: u64,
}

/// What applying one batch gave.
#[derive(Debug, Default)]
pub struct AppliedBatch {
    /// One for every command, in order.
    pub outcomes: Vec<Outcome>,
    /// What the sessions are to be sent, in order.
    pub effects: Vec<Effect>,
}

/// Why a command changed nothing.
#[derive(Debug)]
pub(super) enum ApplyError {
    /// The command is refused; nothing was written.
    Refused(Refused),
    /// The rows cannot be read: this node must stop.
    Tables(TablesError),
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        let (field, last) = (error.field().unwrap_or_default().to_owned(), error.last());
        let (code, message) = (error.code.number(), error.message);
        Self::Refused(Refused { code, message, field, last, ..Refused::default() })
    }
}

impl From<TablesError> for ApplyError {
    fn from(error: TablesError) -> Self {
        Self::Tables(error)
    }
}

/// What an intent gave, or why not.
pub(super) type ApplyResult = Result<Reply, ApplyError>;

pub(super) fn refuse<T>(code: Code, message: impl Into<String>) -> Result<T, ApplyError> {
    Err(ApplyError::Refused(Refused { code: code.number(), message: message.into(), ..Refused::default() }))
}

/// Refuses because of a field; `why` goes on from its name.
pub(super) fn refuse_field<T>(code: Code, field: &str, why: impl std::fmt::Display) -> Result<T, ApplyError> {
    let message = format!("{field} {why}");
    Err(ApplyError::Refused(Refused { code: code.number(), message, field: field.to_owned(), ..Refused::default() }))
}

/// Refuses because a share is used up: nobody else is kept from anything by that.
pub(super) fn refuse_share<T>(field: &str, why: impl std::fmt::Display, retry_after_ms: u64) -> Result<T, ApplyError> {
    let (code, field, retry_after_ms) = (Code::Unavailable.number(), field.to_owned(), Some(retry_after_ms));
    let message = if field.is_empty() { why.to_string() } else { format!("{field} {why}") };
    Err(ApplyError::Refused(Refused { code, message, field, retry_after_ms, ..Refused::default() }))
}

/// What one entry has written and said so far.
#[derive(Default)]
pub(super) struct Txn {
    hash: Xxh3,
    key: Vec<u8>,
    effects: Vec<Effect>,
    /// Changes that are not in a row yet, and their bytes.
    pub block: Vec<Arc<Change>>,
    pub block_bytes: usize,
    /// The present command's own time.
    pub at_ms: u64,
    /// The entry's Raft term.
    pub term: u64,
    /// The election that the present command waits for.
    pub pending_election: u64,
    /// The present command's time as its client sent it, for the change that it makes.
    pub timestamp_as_sent: String,
    /// Whose token asked for the present command.
    pub principal: Option<Principal>,
}

pub struct State {
    tables: Box<dyn Tables>,
    applied: Applied,
    digest: u128,
    pub(super) txn: Txn,
    pub(super) meta: Meta,
    pub(super) devices: BTreeMap<String, Arc<Device>>,
    pub(super) active_devices: usize,
    /// How many devices are present on each node.
    pub(super) present_on: BTreeMap<u64, u32>,
    /// Grows when something happens that a coordinator may have to act on. No part of the state.
    coordinator_epoch: u64,
    /// How many devices each token's subject registered for others.
    pub(super) registered_by: BTreeMap<String, u32>,
    /// Device ids by number, from 1.
    pub(super) device_names: Vec<Arc<str>>,
    pub(super) sync_states: HashMap<String, SyncState>,
    /// Tables by number, from 1.
    pub(super) table_names: Vec<TableName>,
    pub(super) table_numbers: HashMap<String, u32>,
    /// The newest change of each table, by number from 1; 0: none yet.
    pub(super) table_heads: Vec<u64>,
    pub(super) records: Records,
    pub(super) recent: RecentChanges,
    pub(super) answered: NodeDedup,
    pub(super) requests: ClientDedup,
    pub(super) queues: DeviceQueues,
    pub(super) conflicts: ConflictIndex,
    pub(super) revoked: HashMap<String, u64>,
    pub(super) audit: AuditIndex,
    pub(super) access: AccessMatrix,
    pub(super) gates: DeviceGates,
    pub(super) pairings: Pairings,
}

impl State {
    /// The state that the rows hold. Blocks on the disk if they are there.
    pub fn open(tables: Box<dyn Tables>) -> Result<Self, TablesError> {
        let mut state = Self {
            tables,
            applied: Applied::default(),
            digest: 0,
            txn: Txn::default(),
            meta: Meta::default(),
            devices: BTreeMap::new(),
            active_devices: 0,
            present_on: BTreeMap::new(),
            coordinator_epoch: 0,
            registered_by: BTreeMap::new(),
            device_names: Vec::new(),
            sync_states: HashMap::new(),
            table_names: Vec::new(),
            table_numbers: HashMap::new(),
            table_heads: Vec::new(),
            records: Records::default(),
            recent: RecentChanges::default(),
            answered: NodeDedup::default(),
            requests: ClientDedup::default(),
            queues: DeviceQueues::default(),
            conflicts: ConflictIndex::default(),
            revoked: HashMap::new(),
            audit: AuditIndex::default(),
            access: AccessMatrix::default(),
            gates: DeviceGates::default(),
            pairings: Pairings::default(),
        };
        state.reload()?;
        Ok(state)
    }

    /// Before everything is read from the rows: what is not a row of its own kind.
    pub(super) fn forget_all(&mut self, meta: Meta) {
        self.applied = self.tables.applied();
        self.digest = (u128::from(self.applied.digest_high) << 64) | u128::from(self.applied.digest_low);
        self.txn = Txn::default();
        self.meta = meta;
        self.notify_coordinator();
    }

    /// A reader of rows for other threads.
    pub fn reader(&self) -> Arc<dyn TablesRead> {
        self.tables.reader()
    }

    pub fn applied(&self) -> Applied {
        self.applied.clone()
    }

    /// The running digest over every row ever written, as hexadecimal. Equal on all nodes at equal index.
    pub fn digest(&self) -> String {
        format!("{:032x}", self.digest)
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    pub fn device(&self, id: &str) -> Option<&Arc<Device>> {
        self.devices.get(id)
    }

    /// All devices, by id.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<Device>> {
        self.devices.values()
    }

    /// The devices after this id, by id; all of them without one.
    pub fn devices_after(&self, id: Option<&str>) -> impl Iterator<Item = &Arc<Device>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices.range::<str, _>((from, Bound::Unbounded)).map(|(_, device)| device)
    }

    pub fn active_devices(&self) -> usize {
        self.active_devices
    }

    /// The nodes that any device is present on.
    pub fn nodes_with_devices(&self) -> impl Iterator<Item = u64> {
        self.present_on.iter().filter(|(_, count)| **count > 0).map(|(node, _)| *node)
    }

    /// Changes when there may be something to do for a coordinator.
    pub fn coordinator_epoch(&self) -> u64 {
        self.coordinator_epoch
    }

    pub(super) fn notify_coordinator(&mut self) {
        self.coordinator_epoch += 1;
    }

    /// The device with the role `master`.
    pub fn master(&self) -> Option<&Arc<Device>> {
        self.devices.get(&self.meta.master)
    }

    pub fn is_revoked(&self, jti: &str) -> bool {
        self.revoked.contains_key(jti)
    }

    /// Applies the commands of one entry; their rows leave as one atomic write.
    pub fn apply(&mut self, at: Position, batch: Bytes) -> Result<AppliedBatch, TablesError> {
        self.apply_batch(at, decode_batch(batch))
    }

    /// The same for a batch that was decoded before.
    pub fn apply_batch(&mut self, at: Position, batch: Batch) -> Result<AppliedBatch, TablesError> {
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        self.txn.term = at.term;
        for command in batch.commands {
            outcomes.push(self.apply_command(command)?);
        }
        if !outcomes.is_empty() {
            self.seal();
        }
        let effects = self.commit(at);
        Ok(AppliedBatch { outcomes, effects })
    }

    /// The entry's commands are done: what they share as rows.
    fn seal(&mut self) {
        self.seal_changes();
        for stored in self.answered.seal() {
            self.put(RowKey::Answered(stored.group), &stored.row);
            for group in stored.dropped {
                self.delete(RowKey::Answered(group));
            }
        }
        let meta = self.meta.clone();
        self.put(RowKey::Meta, &meta);
    }

    /// Applies an entry without commands: a blank one, or a membership as consensus encodes it.
    pub fn apply_other(&mut self, at: Position, membership: Option<Bytes>) {
        if let Some(membership) = membership {
            self.applied.membership = membership;
            self.notify_coordinator();
        }
        self.commit(at);
    }

    fn commit(&mut self, at: Position) -> Vec<Effect> {
        // Raft's first entry has index 0.
        let first = at.index == 0 && self.applied.last_log_id.is_empty();
        assert!(first || at.index > self.applied.index, "entries are applied once, in order");
        let Txn { mut hash, effects, .. } = std::mem::take(&mut self.txn);
        hash.update(&self.digest.to_be_bytes());
        hash.update(&at.index.to_be_bytes());
        self.digest = hash.digest128();
        self.applied.index = at.index;
        self.applied.last_log_id = at.log_id;
        self.applied.digest_high = (self.digest >> 64) as u64;
        self.applied.digest_low = self.digest as u64;
        self.tables.commit(self.applied.clone());
        effects
    }

    /// A node's retry of a command that was applied is answered as the first was; else it is applied.
    fn apply_command(&mut self, command: Command) -> Result<Outcome, TablesError> {
        let origin = command.origin.unwrap_or_default();
        if origin.number > 0
            && let Some(given) = self.answered.find(&origin)
        {
            let Some(outcome) = given else {
                return Ok(refused(self.meta.now_ms, Code::Internal, "the command was answered long ago"));
            };
            let corrupt = |_| TablesError::Corrupt(RowKey::Answered(0));
            let mut outcome = Outcome::decode(outcome).map_err(corrupt)?;
            outcome.repeated = true;
            return Ok(outcome);
        }
        if command.at_ms > limits::TIME_MAX_MS {
            return Ok(refused(self.meta.now_ms, Code::InvalidData, "the command's time is beyond the year 9999"));
        }
        self.txn.at_ms = command.at_ms;
        self.meta.now_ms = self.meta.now_ms.max(command.at_ms);
        let now = self.meta.now_ms;
        let principal = command.principal;
        let outcome = match command.intent {
            _ if principal.as_ref().is_some_and(|p| !is_usable(p)) => {
                refused(now, Code::InvalidData, "the principal of the command is no token's")
            }
            None => refused(now, Code::Internal, "no command, or one of a newer version"),
            Some(intent) => match self.apply_for(principal, intent, origin.node) {
                Ok((given, repeated)) => Outcome {
                    at_ms: now,
                    repeated,
                    pending_election: std::mem::take(&mut self.txn.pending_election),
                    result: Some(given),
                },
                Err(ApplyError::Refused(refused)) => {
                    self.txn.pending_election = 0;
                    Outcome { at_ms: now, result: Some(Reply::Refused(refused)), ..Outcome::default() }
                }
                Err(ApplyError::Tables(error)) => return Err(error),
            },
        };
        if origin.number > 0 {
            self.answered.remember(&origin, Bytes::from(outcome.encode_to_vec()));
        }
        Ok(outcome)
    }

    /// Whatever is wrong with a command by itself is refused before anything is looked up or written.
    fn apply_for(
        &mut self,
        principal: Option<Principal>,
        intent: Intent,
        node: u64,
    ) -> Result<(Reply, bool), ApplyError> {
        door::check(&intent, node)?;
        self.txn.principal = principal;
        let given = self.apply_intent(intent, node);
        self.txn.principal = None;
        given
    }

    fn apply_intent(&mut self, intent: Intent, node: u64) -> Result<(Reply, bool), ApplyError> {
        let given = match intent {
            Intent::DataUpdate(c) => return self.data_update(c),
            Intent::DeviceOnline(c) => self.device_online(c, node)?,
            Intent::DeviceOffline(c) => self.device_offline(c)?,
            Intent::DevicesSeen(c) => self.devices_seen(c),
            Intent::NodeBooted(_) => self.node_booted(node)?,
            Intent::NodeLost(c) => self.node_lost(c.node, "node lost")?,
            Intent::MoveHome(c) => self.move_home(&c, node),
            Intent::CriticalEvent(c) => self.critical_event(c)?,
            Intent::SyncBegin(c) => self.sync_begin(c)?,
            Intent::SyncComplete(c) => self.sync_complete(c)?,
            Intent::SyncStatePut(c) => self.sync_state_put(c)?,
            Intent::SyncErrorReport(c) => self.sync_error_report(c)?,
            Intent::Delivered(c) => self.delivered(&c)?,
            Intent::Elect(c) => self.elect_command(c)?,
            Intent::RoleChange(c) => self.role_change(c)?,
            Intent::DeviceShutdown(c) => self.device_shutdown(c)?,
            Intent::LeaderAnnounced(c) => self.leader_announced(c, node),
            Intent::ElectionStarted(c) => self.election_started(c, node),
            Intent::MasterElected(c) => self.master_elected(&c, node),
            Intent::ElectionFailed(c) => self.election_failed(&c, node),
            Intent::LeaderTransferBack(c) => self.leader_transfer_back(c, node),
            Intent::ConflictReport(c) => self.conflict_report(c)?,
            Intent::ConflictResolve(c) => self.conflict_resolve(c)?,
            Intent::PolicyPut(c) => self.policy_put(c)?,
            Intent::TokenRevoke(c) => self.token_revoke(c)?,
            Intent::ClusterInit(c) => self.cluster_init(c),
            Intent::Compact(c) => self.compact(&c)?,
            Intent::AuditNote(c) => self.audit_note(c),
            Intent::MembersChanged(c) => self.members_changed(c)?,
            Intent::ImportBegin(c) => self.import_begin(&c)?,
            Intent::ImportRows(c) => self.import_rows(c)?,
            Intent::ImportFinish(c) => self.import_finish(&c)?,
            Intent::QueuesForget(_) => self.queues_forget(),
            Intent::AccessPut(c) => self.access_put(c)?,
            Intent::DeviceRevoke(c) => self.device_revoke(c)?,
            Intent::DeviceSuspend(c) => self.device_suspend(c)?,
            Intent::DeviceForget(c) => self.device_forget(c)?,
            Intent::PairAsk(c) => self.pair_ask(c)?,
            Intent::PairDecide(c) => self.pair_decide(c)?,
            Intent::PairClaim(c) => self.pair_claim(c)?,
            Intent::TableRemove(c) => self.table_remove(c)?,
            Intent::TimeBack(c) => self.time_back(&c)?,
        };
        Ok((given, false))
    }

    /// The first one names the cluster; later ones (every node may try) change nothing.
    fn cluster_init(&mut self, c: ClusterInit) -> Reply {
        if self.meta.cluster_id.is_empty() {
            self.meta.cluster_id = c.cluster_id;
            self.meta.epoch = c.epoch;
        }
        Reply::Done(Empty {})
    }

    fn token_revoke(&mut self, c: TokenRevoke) -> ApplyResult {
        // Rows whose token has ended by itself long ago have done their work.
        let long_ago = self.meta.now_ms.saturating_sub(limits::REVOKED_DAYS * 86_400_000);
        let mut ended: Vec<String> =
            self.revoked.iter().filter(|(_, exp)| **exp < long_ago).map(|(jti, _)| jti.clone()).collect();
        ended.sort_unstable();
        for jti in ended.into_iter().take(limits::COMPACT_STEP as usize) {
            self.revoked.remove(&jti);
            self.delete(RowKey::Revoked(jti));
        }
        if self.revoked.len() >= limits::REVOKED && !self.revoked.contains_key(&c.jti) {
            let why =
                "so many tokens are revoked that no more can be remembered: change the key, which ends all tokens";
            return refuse(Code::Unavailable, why);
        }
        let row = Revoked { jti: c.jti.clone(), exp_ms: c.exp_ms };
        self.put(RowKey::Revoked(c.jti.clone()), &row);
        self.revoked.insert(c.jti.clone(), c.exp_ms);
        self.audit("token_revoke", "revoke", false, &c.by, format!("Token {} revoked", c.jti));
        self.effect(Effect::TokenRevoked { jti: c.jti });
        Ok(Reply::Done(Empty {}))
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.txn.effects.push(effect);
    }

    pub(super) fn effects_so_far(&self) -> usize {
        self.txn.effects.len()
    }

    /// An effect that comes before some that were said already.
    pub(super) fn effect_at(&mut self, at: usize, effect: Effect) {
        self.txn.effects.insert(at, effect);
    }

    pub(super) fn put<M: Message>(&mut self, key: RowKey, row: &M) {
        self.put_encoded(key, Bytes::from(row.encode_to_vec()));
    }

    pub(super) fn put_encoded(&mut self, key: RowKey, value: Bytes) {
        self.txn.key.clear();
        key.canonical(&mut self.txn.key);
        self.txn.hash.update(&(self.txn.key.len() as u32).to_be_bytes());
        self.txn.hash.update(&self.txn.key);
        self.txn.hash.update(&(value.len() as u32 + 1).to_be_bytes());
        self.txn.hash.update(&value);
        self.tables.put(key, value);
    }

    pub(super) fn delete(&mut self, key: RowKey) {
        self.txn.key.clear();
        key.canonical(&mut self.txn.key);
        self.txn.hash.update(&(self.txn.key.len() as u32).to_be_bytes());
        self.txn.hash.update(&self.txn.key);
        self.txn.hash.update(&0u32.to_be_bytes());
        self.tables.delete(key);
    }

    pub(super) fn rows(&self) -> &dyn TablesRead {
        &*self.tables
    }

    pub(super) fn row<M: Message + Default>(&self, key: &RowKey) -> Result<Option<M>, TablesError> {
        get_row(&*self.tables, key)
    }
}

/// What a gateway that checked a token can have said.
fn is_usable(principal: &Principal) -> bool {
    let is_name = |name: &str, most: usize| name.len() <= most && !name.chars().any(char::is_control);
    is_name(&principal.sub, limits::DEVICE_ID) && is_name(&principal.jti, limits::TOKEN_ID)
}

/// The commands of an entry. Bytes that are no command stand for one that is refused: an entry that was committed must
/// not stop every node that comes to it. For the same reason what is no batch is one without commands.
pub fn decode_batch(batch: Bytes) -> Batch {
    let encoded = EncodedCommands::decode(batch).unwrap_or_default();
    let commands = encoded.commands.into_iter().map(|command| Command::decode(command).unwrap_or_default());
    Batch { commands: commands.collect() }
}

fn refused(at_ms: u64, code: Code, message: impl Into<String>) -> Outcome {
    let result = Some(Reply::Refused(Refused { code: code.number(), message: message.into(), ..Refused::default() }));
    Outcome { at_ms, result, ..Outcome::default() }
}

/// The outcome as a result: a refusal is an error with its documented code.
pub fn into_result(outcome: Outcome) -> Result<Outcome, Error> {
    match outcome.result {
        Some(Reply::Refused(refused)) => {
            let mut error = Error::new(Code::of(refused.code).unwrap_or(Code::Internal), refused.message);
            error.retry_after_ms = refused.retry_after_ms.or(error.retry_after_ms);
            Err(error.about(&refused.field, refused.last))
        }
        _ => Ok(outcome),
    }
}
