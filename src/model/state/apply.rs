//! The one way to change the state: [`State::apply`].

use bytes::Bytes;
use prost::Message;

use super::State;
use crate::ids::{LogIndex, NodeId, PendingElectionId, RaftTerm, Seq, UnixMs};
use crate::limits;
use crate::model::dedup::Repeated;
use crate::model::door;
use crate::model::effect::Effect;
use crate::model::error::{Code, Error};
use crate::model::refusal::ApplyError;
use crate::model::tables::{RowKey, TablesError};
use crate::model::version;
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Reply;
use crate::proto::{Batch, Command, EncodedCommands, Outcome, Principal, Refused};

/// Where an entry stands in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub index: LogIndex,
    /// The log id as consensus encodes it; kept with the rows, never looked into.
    pub log_id: Bytes,
    /// The Raft term in which it was proposed.
    pub term: RaftTerm,
}

/// What applying one batch gave.
#[derive(Debug, Default)]
pub struct AppliedBatch {
    /// One for every command, in order.
    pub outcomes: Vec<Outcome>,
    /// What the sessions are to be sent, in order.
    pub effects: Vec<Effect>,
}

impl State {
    /// Applies the commands of one entry; their rows leave as one atomic write.
    pub fn apply(&mut self, at: Position, batch: Bytes) -> Result<AppliedBatch, TablesError> {
        self.apply_batch(at, decode_batch(batch))
    }

    /// The same for a batch that was decoded before.
    pub fn apply_batch(&mut self, at: Position, batch: Batch) -> Result<AppliedBatch, TablesError> {
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        self.txn.term = at.term;
        for command in batch.commands {
            let outcome = self.apply_command(command)?;
            outcomes.push(self.with_print(outcome));
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
        self.seal_answers();
        self.txn.put(RowKey::Meta, &*self.meta);
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
        let first = at.index == LogIndex(0) && self.applied.last_log_id.is_empty();
        assert!(first || at.index.get() > self.applied.index, "entries are applied once, in order");
        let (mut hash, effects) = self.txn.finish();
        hash.update(&self.digest.to_be_bytes());
        hash.update(&at.index.get().to_be_bytes());
        self.digest = hash.digest128();
        self.applied.index = at.index.get();
        self.applied.last_log_id = at.log_id;
        self.applied.digest_high = (self.digest >> 64) as u64;
        self.applied.digest_low = self.digest as u64;
        self.txn.commit(self.applied.clone());
        effects
    }

    /// A node's retry of a command that was applied is answered as the first was; else it is applied.
    fn apply_command(&mut self, command: Command) -> Result<Outcome, TablesError> {
        let origin = command.origin.unwrap_or_default();
        if origin.number > 0
            && let Some(repeated) = self.repeated_command(&origin)?
        {
            return Ok(match repeated {
                Repeated::Answered(outcome) => *outcome,
                Repeated::LongAgo => refused(self.meta.now(), Code::Internal, "the command was answered long ago"),
            });
        }
        if command.at_ms > limits::TIME_MAX_MS {
            return Ok(refused(self.meta.now(), Code::InvalidData, "the command's time is beyond the year 9999"));
        }
        self.txn.at_ms = UnixMs(command.at_ms);
        self.advance_time(self.txn.at_ms);
        let now = self.meta.now();
        let principal = command.principal;
        let intent = command.intent.and_then(|intent| self.as_agreed(intent));
        let outcome = match intent {
            _ if principal.as_ref().is_some_and(|p| !is_usable(p)) => {
                refused(now, Code::InvalidData, "the principal of the command is no token's")
            }
            None => refused(now, Code::Internal, version::UNKNOWN),
            Some(intent) => match self.apply_for(principal, intent, NodeId(origin.node)) {
                Ok((given, repeated)) => Outcome {
                    at_ms: now.get(),
                    repeated,
                    pending_election: std::mem::take(&mut self.txn.pending_election).get(),
                    result: Some(given),
                },
                Err(ApplyError::Refused(refused)) => {
                    self.txn.pending_election = PendingElectionId(0);
                    Outcome { at_ms: now.get(), result: Some(Reply::Refused(refused)), ..Outcome::default() }
                }
                Err(ApplyError::Tables(error)) => return Err(error),
            },
        };
        if origin.number > 0 {
            self.remember_answer(&origin, &outcome);
        }
        Ok(outcome)
    }

    /// Whoever answers a client may not have applied the change yet, but gives its cursor.
    fn with_print(&self, mut outcome: Outcome) -> Outcome {
        if let Some(Reply::Accepted(accepted)) = &mut outcome.result {
            accepted.print = self.print_at(Seq(accepted.seq));
        }
        outcome
    }

    /// Whatever is wrong with a command by itself is refused before anything is looked up or written.
    fn apply_for(
        &mut self,
        principal: Option<Principal>,
        intent: Intent,
        node: NodeId,
    ) -> Result<(Reply, bool), ApplyError> {
        door::check(&intent, node)?;
        self.txn.principal = principal;
        let given = self.apply_intent(intent, node);
        self.txn.principal = None;
        given
    }

    fn apply_intent(&mut self, intent: Intent, node: NodeId) -> Result<(Reply, bool), ApplyError> {
        let given = match intent {
            Intent::DataUpdate(c) => return self.data_update(c),
            Intent::DeviceOnline(c) => self.device_online(c, node)?,
            Intent::DeviceOffline(c) => self.device_offline(c)?,
            Intent::DevicesSeen(c) => self.devices_seen(c),
            Intent::NodeBooted(c) => self.node_booted(node, &c)?,
            Intent::NodeLost(c) => self.node_lost(NodeId(c.node), "node lost")?,
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
            Intent::ClusterRecovered(c) => self.cluster_recovered(node, &c)?,
            Intent::ClusterFinalize(c) => self.cluster_finalize(node, &c)?,
        };
        Ok((given, false))
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

fn refused(at_ms: UnixMs, code: Code, message: impl Into<String>) -> Outcome {
    let result = Some(Reply::Refused(Refused { code: code.number(), message: message.into(), ..Refused::default() }));
    Outcome { at_ms: at_ms.get(), result, ..Outcome::default() }
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
