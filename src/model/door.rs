//! Every command as if it came from a stranger: what is wrong with it by itself, whatever the state.
//!
//! The gateway has checked what its clients sent, and the leader what other nodes proposed; but entries are in the log
//! whoever wrote them. Here, before anything is applied, each field is held against its bounds once more. What fails
//! is applied as a refusal, on every node alike. Nothing is copied and nothing is parsed twice: of a change, this is
//! the only look at its JSON.
//!
//! The bounds are never tighter than the gateway's: a log that an older version wrote must go on to give what it gave.
//!
//! [`look`] is the leader's first look at the bytes of a command of another node, without decoding it.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::access::CLASSES;
use super::change;
use super::error::{Code, Error};
use super::pairing::{HASH, valid_code};
use super::value;
use crate::ids::{NodeId, UnixMs};
use crate::limits;
use crate::proto::command::Intent;
use crate::proto::{
    Asker, CommandId, ConflictType, ElectionMethod, ElectionReason, ImportRows, InsertPolicy, Presence,
    ResolutionMethod, Role, SyncStatus, SyncType, TableRight,
};

type Checked = Result<(), Error>;

fn bad(field: &str, why: impl std::fmt::Display) -> Checked {
    Err(Error::new(Code::InvalidData, format!("{field} {why}")).about(field, None))
}

/// A string of at most `max` bytes.
fn text(field: &str, text: &str, max: usize) -> Checked {
    if text.len() > max { bad(field, format_args!("is longer than {max} bytes")) } else { Ok(()) }
}

/// The same, and it is there.
fn name(field: &str, name: &str, max: usize) -> Checked {
    if name.is_empty() {
        return bad(field, "must not be empty");
    }
    if name.chars().any(char::is_control) {
        return bad(field, "must not hold control characters");
    }
    text(field, name, max)
}

fn device(id: &str) -> Checked {
    name("device_id", id, limits::DEVICE_ID)
}

/// Who asked, in the audit log: a token's subject, or nobody.
fn by(who: &str) -> Checked {
    text("by", who, limits::DEVICE_ID)
}

fn known<T: TryFrom<i32>>(field: &str, number: i32) -> Checked {
    if T::try_from(number).is_err() { bad(field, "is none that is known") } else { Ok(()) }
}

fn node(field: &str, node: NodeId) -> Checked {
    if node == NodeId(0) { bad(field, "must be a node") } else { Ok(()) }
}

fn count(field: &str, number: u64, max: u64) -> Checked {
    if number > max { bad(field, format_args!("must be at most {max}")) } else { Ok(()) }
}

fn object(field: &str, json: &[u8]) -> Checked {
    if json.len() > limits::RECORD_DATA {
        return bad(field, format_args!("is larger than {} bytes", limits::RECORD_DATA));
    }
    match value::check_object(json) {
        Ok(()) => Ok(()),
        Err(flaw) => bad(field, flaw),
    }
}

/// What is wrong with a command that `from` proposed; the name of what is wrong is the field's.
pub(super) fn check(intent: &Intent, from: NodeId) -> Checked {
    match intent {
        Intent::DataUpdate(c) => change::validate(c),
        Intent::DeviceOnline(c) => {
            // Its id and priority are refused with the code for registrations.
            known::<Role>("role", c.role)?;
            known::<Presence>("presence", c.presence)?;
            text("class", &c.class, limits::EVENT_TYPE)?;
            known::<Asker>("asker", c.asker)?;
            text("asked_by", &c.asked_by, limits::DEVICE_ID)?;
            count("unsent", c.unsent.unwrap_or(0), limits::UNSENT)?;
            let names = c.capabilities.as_ref().map_or(&[][..], |all| &all.names[..]);
            count("capabilities", names.len() as u64, limits::CAPABILITIES as u64)?;
            names.iter().try_for_each(|one| text("capabilities", one, limits::CAPABILITY))
        }
        Intent::DeviceOffline(c) => {
            device(&c.device_id)?;
            text("reason", &c.reason, limits::ERROR_MESSAGE)
        }
        Intent::DevicesSeen(c) => {
            count("device_ids", c.device_ids.len() as u64, limits::DEVICES_SEEN as u64)?;
            c.device_ids.iter().try_for_each(|id| device(id))?;
            count("unsent", c.unsent.len() as u64, limits::DEVICES_SEEN as u64)?;
            c.unsent.iter().try_for_each(|said| {
                device(&said.device_id)?;
                count("unsent", said.count, limits::UNSENT)
            })
        }
        Intent::NodeBooted(_) => node("origin", from),
        Intent::NodeLost(c) => node("node", NodeId(c.node)),
        Intent::MoveHome(c) => {
            device(&c.device_id)?;
            node("to", NodeId(c.to))
        }
        Intent::CriticalEvent(c) => {
            device(&c.device_id)?;
            // Its length is looked at where it is applied.
            if c.event_type.chars().any(char::is_control) {
                return bad("event_type", "must not hold control characters");
            }
            object("payload", &c.payload)
        }
        Intent::SyncBegin(c) => {
            device(&c.device_id)?;
            known::<SyncType>("sync_type", c.sync_type)?;
            text("sync_id", &c.sync_id, limits::SYNC_ID)
        }
        Intent::SyncComplete(c) => {
            device(&c.device_id)?;
            text("sync_id", &c.sync_id, limits::SYNC_ID)
        }
        Intent::SyncStatePut(c) => {
            device(&c.device_id)?;
            known::<SyncStatus>("sync_status", c.sync_status.unwrap_or_default())?;
            count("pending_changes_count", c.pending_changes_count.unwrap_or(0), limits::PENDING_CHANGES)?;
            text("last_error_message", c.last_error_message.as_deref().unwrap_or(""), limits::ERROR_MESSAGE)?;
            by(&c.by)
        }
        Intent::SyncErrorReport(c) => {
            device(&c.device_id)?;
            text("error_message", &c.error_message, limits::IMPORT_TEXT)?;
            text("error_code", &c.error_code, limits::REASON)?;
            text("sync_type", &c.sync_type, limits::REASON)
        }
        Intent::Delivered(c) => device(&c.device_id),
        Intent::Elect(c) => {
            known::<ElectionReason>("reason", c.reason)?;
            known::<ElectionMethod>("method", c.method)?;
            text("initiated_by", &c.initiated_by, limits::DEVICE_ID)?;
            known::<Asker>("asker", c.asker)?;
            text("asked_by", &c.asked_by, limits::DEVICE_ID)?;
            text("except", &c.except, limits::DEVICE_ID)
        }
        Intent::RoleChange(c) => {
            device(&c.device_id)?;
            known::<Role>("role", c.role)?;
            known::<Asker>("asker", c.asker)?;
            text("reason", &c.reason, limits::ERROR_MESSAGE)?;
            by(&c.by)
        }
        Intent::DeviceShutdown(c) => {
            device(&c.device_id)?;
            text("reason", &c.reason, limits::ERROR_MESSAGE)
        }
        Intent::LeaderAnnounced(_) | Intent::LeaderTransferBack(_) => node("origin", from),
        Intent::ElectionStarted(c) => {
            known::<ElectionReason>("reason", c.reason)?;
            known::<ElectionMethod>("method", c.method)?;
            device(&c.winner)?;
            text("except", &c.except, limits::DEVICE_ID)?;
            text("given_up", &c.given_up, limits::DEVICE_ID)
        }
        Intent::MasterElected(c) => {
            known::<ElectionReason>("reason", c.reason)?;
            known::<ElectionMethod>("method", c.method)?;
            device(&c.winner)
        }
        Intent::ElectionFailed(c) => text("why", &c.why, limits::ERROR_MESSAGE),
        Intent::ConflictReport(c) => {
            device(&c.device_id)?;
            if !change::valid_table(&c.table_name) {
                return bad("table_name", "is not a usable name");
            }
            known::<ConflictType>("conflict_type", c.conflict_type)?;
            object("local_version", &c.local_version)?;
            object("remote_version", &c.remote_version)
        }
        Intent::ConflictResolve(c) => {
            device(&c.device_id)?;
            text("table_name", &c.table_name, limits::TABLE_NAME)?;
            known::<ResolutionMethod>("method", c.method)?;
            known::<Asker>("asker", c.asker)?;
            by(&c.by)?;
            object("resolved_data", &c.resolved_data)
        }
        Intent::PolicyPut(c) => {
            known::<ResolutionMethod>("policy", c.policy)?;
            known::<InsertPolicy>("insert_policy", c.insert_policy)?;
            known::<Asker>("asker", c.asker)?;
            by(&c.by)
        }
        Intent::TokenRevoke(c) => {
            name("jti", &c.jti, limits::JTI)?;
            by(&c.by)
        }
        Intent::ClusterInit(c) => {
            name("cluster_id", &c.cluster_id, limits::REASON)?;
            if c.epoch == 0 { bad("epoch", "must be 1 or more") } else { Ok(()) }
        }
        Intent::ClusterRecovered(c) => {
            node("origin", from)?;
            if c.epoch == 0 { bad("epoch", "must be 1 or more") } else { Ok(()) }
        }
        Intent::ClusterFinalize(c) => {
            count("programs", c.programs.len() as u64, limits::NODES_EVER as u64)?;
            by(&c.by)
        }
        Intent::Compact(_) | Intent::QueuesForget(_) => Ok(()),
        Intent::AuditNote(c) => {
            name("event_type", &c.event_type, limits::EVENT_TYPE)?;
            text("operation", &c.operation, limits::EVENT_TYPE)?;
            text("device_id", &c.device_id, limits::DEVICE_ID)?;
            text("details", &c.details, limits::IMPORT_TEXT)
        }
        Intent::MembersChanged(c) => {
            node("node", NodeId(c.node))?;
            text("raft", &c.raft, limits::ADDRESS)?;
            text("gateway", &c.gateway, limits::ADDRESS)?;
            by(&c.by)
        }
        Intent::ImportBegin(c) => {
            for (field, rows) in [
                ("device_rows", c.device_rows),
                ("sync_rows", c.sync_rows),
                ("election_rows", c.election_rows),
                ("audit_rows", c.audit_rows),
            ] {
                count(field, rows, limits::IMPORT_ROW_ID)?;
            }
            by(&c.by)
        }
        Intent::ImportRows(c) => import_rows(c),
        Intent::ImportFinish(c) => by(&c.by),
        Intent::TimeBack(c) => by(&c.by),
        Intent::TableRemove(c) => {
            text("table_name", &c.table_name, limits::TABLE_NAME)?;
            known::<Asker>("asker", c.asker)?;
            by(&c.by)
        }
        Intent::AccessPut(c) => {
            count("class", c.class.into(), CLASSES.len() as u64)?;
            count("tables", c.tables.len() as u64, limits::TABLES.into())?;
            c.tables.iter().try_for_each(|table| {
                text("tables", &table.table_name, limits::TABLE_NAME)?;
                known::<TableRight>("tables", table.right)
            })?;
            known::<TableRight>("others", c.others)?;
            by(&c.by)
        }
        Intent::DeviceRevoke(c) => {
            device(&c.device_id)?;
            by(&c.by)
        }
        Intent::DeviceSuspend(c) => {
            device(&c.device_id)?;
            by(&c.by)
        }
        Intent::DeviceForget(c) => {
            device(&c.device_id)?;
            by(&c.by)
        }
        Intent::PairAsk(c) => {
            code(&c.code)?;
            hash(&c.secret_hash)?;
            text("device_id", &c.device_id, limits::DEVICE_ID)?;
            text("name", &c.name, limits::PAIR_NAME)?;
            text("address", &c.address, limits::ADDRESS)
        }
        Intent::PairDecide(c) => {
            // A code that none is, is no code that waits: whoever decides is told that.
            text("code", &c.code, limits::REASON)?;
            count("class", c.class.into(), CLASSES.len() as u64)?;
            known::<Asker>("asker", c.asker)?;
            text("device_id", &c.device_id, limits::DEVICE_ID)?;
            by(&c.by)
        }
        Intent::PairClaim(c) => {
            code(&c.code)?;
            hash(&c.secret_hash)
        }
    }
}

/// What a device shows that asks to be let in.
fn code(code: &str) -> Checked {
    if valid_code(code) { Ok(()) } else { bad("code", "is none that a device shows") }
}

/// SHA-256 of the secret of such a device.
fn hash(hash: &[u8]) -> Checked {
    if hash.len() == HASH { Ok(()) } else { bad("secret_hash", "is no hash") }
}

/// Device ids are looked at where they are applied: a row that has none is left out, the others are taken.
fn import_rows(c: &ImportRows) -> Checked {
    let rows = c.devices.len() + c.elections.len() + c.audits.len();
    count("rows", rows as u64, limits::IMPORT_STEP_ROWS as u64)?;
    for row in &c.devices {
        if let Some(sync) = &row.sync {
            known::<SyncStatus>("sync_status", sync.sync_status)?;
            count("pending_changes_count", sync.base, limits::PENDING_CHANGES)?;
            text("last_error_message", sync.last_error_message.as_deref().unwrap_or(""), limits::IMPORT_BYTES)?;
        }
        let Some(device) = &row.device else { continue };
        known::<Role>("role", device.role)?;
    }
    for row in &c.elections {
        known::<ElectionReason>("election_reason", row.reason)?;
        known::<ElectionMethod>("election_method", row.method)?;
        text("previous_master_id", &row.previous_master, limits::IMPORT_TEXT)?;
        text("new_master_id", &row.new_master, limits::IMPORT_TEXT)?;
    }
    for row in &c.audits {
        text("event_type", &row.event_type, limits::IMPORT_TEXT)?;
        text("operation", &row.operation, limits::IMPORT_TEXT)?;
        text("device_id", &row.device_id, limits::IMPORT_TEXT)?;
        text("details", &row.details, limits::IMPORT_BYTES)?;
    }
    Ok(())
}

/// Who may have proposed a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandSource {
    /// Any node: for its clients, or of itself.
    Node,
    /// The leader only: it is about what the leader does, or sees.
    Leader,
    /// A former leader may have begun it: the leader compares it with the membership.
    Membership,
}

#[cfg(any(test, feature = "testkit"))]
pub(crate) fn proposer(intent: &Intent) -> CommandSource {
    match intent {
        Intent::NodeLost(_)
        | Intent::MoveHome(_)
        | Intent::LeaderAnnounced(_)
        | Intent::ElectionStarted(_)
        | Intent::MasterElected(_)
        | Intent::ElectionFailed(_)
        | Intent::LeaderTransferBack(_)
        | Intent::Compact(_)
        | Intent::ClusterRecovered(_)
        | Intent::ClusterFinalize(_)
        | Intent::QueuesForget(_) => CommandSource::Leader,
        Intent::MembersChanged(_) => CommandSource::Membership,
        Intent::DeviceOnline(_)
        | Intent::DeviceOffline(_)
        | Intent::DevicesSeen(_)
        | Intent::NodeBooted(_)
        | Intent::DataUpdate(_)
        | Intent::CriticalEvent(_)
        | Intent::SyncBegin(_)
        | Intent::SyncComplete(_)
        | Intent::SyncStatePut(_)
        | Intent::SyncErrorReport(_)
        | Intent::Delivered(_)
        | Intent::Elect(_)
        | Intent::RoleChange(_)
        | Intent::DeviceShutdown(_)
        | Intent::ConflictReport(_)
        | Intent::ConflictResolve(_)
        | Intent::PolicyPut(_)
        | Intent::TokenRevoke(_)
        | Intent::ClusterInit(_)
        | Intent::AuditNote(_)
        | Intent::ImportBegin(_)
        | Intent::ImportRows(_)
        | Intent::ImportFinish(_)
        | Intent::TableRemove(_)
        | Intent::TimeBack(_)
        | Intent::AccessPut(_)
        | Intent::DeviceRevoke(_)
        | Intent::DeviceSuspend(_)
        | Intent::DeviceForget(_)
        | Intent::PairAsk(_)
        | Intent::PairDecide(_)
        | Intent::PairClaim(_) => CommandSource::Node,
    }
}

/// The fields of `Command` whose commands are a leader's, and the one that is compared with the membership. A test
/// holds them against [`proposer`].
const LEADERS: [u32; 11] = [14, 15, 43, 44, 45, 46, 47, 71, 90, 980, 1050];
const MEMBERSHIP: u32 = 73;
const ORIGIN: u32 = 1;
const AT_MS: u32 = 2;

/// What can be seen of a command without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommandHeader {
    pub origin: CommandId,
    pub at_ms: UnixMs,
    pub proposer: CommandSource,
}

/// Looks at an encoded `proto::Command`. `None`: it is none, or says who proposed it or when not exactly once.
pub(crate) fn look(command: &Bytes) -> Option<CommandHeader> {
    let (mut origin, mut at_ms, mut proposer) = (None, None, CommandSource::Node);
    let mut rest: &[u8] = command;
    while rest.has_remaining() {
        let (field, wire) = decode_key(&mut rest).ok()?;
        match (field, wire) {
            (ORIGIN, WireType::LengthDelimited) => {
                let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                let (inside, after) = rest.split_at_checked(length)?;
                rest = after;
                if origin.replace(CommandId::decode(inside).ok()?).is_some() {
                    return None;
                }
            }
            (AT_MS, WireType::Varint) => {
                if at_ms.replace(decode_varint(&mut rest).ok()?).is_some() {
                    return None;
                }
            }
            (ORIGIN | AT_MS, _) => return None,
            (field, wire) => {
                if LEADERS.contains(&field) {
                    proposer = CommandSource::Leader;
                } else if field == MEMBERSHIP && proposer == CommandSource::Node {
                    proposer = CommandSource::Membership;
                }
                skip_field(wire, field, &mut rest, DecodeContext::default()).ok()?;
            }
        }
    }
    Some(CommandHeader { origin: origin?, at_ms: UnixMs(at_ms?), proposer })
}

#[cfg(test)]
mod tests;
