//! Taking over a database of the documented schema, in bounded steps, into a cluster that has nothing of its own yet.
//!
//! Ids are kept. The database's rows are older than all rows of the cluster, so [`State::import_begin`] moves both
//! logs behind the database's last ids, and the rows come in below that, newest first: at every step the logs have no
//! gap, and what is there already is known by its id. So a step that is sent again changes nothing, and an import that
//! was interrupted goes on by being run again.

use self::key::KEY;
use super::device::valid_id;
use super::error::Code;
use super::refusal::{ApplyResult, refuse};
use super::state::State;
use crate::ids::{AuditId, UnixMs};
use crate::limits;
use crate::proto::outcome::Result as Reply;
use crate::proto::{
    Device, Import, ImportBegin, ImportDevice, ImportDone, ImportFinish, ImportLeft, ImportRows, Presence, Role,
    SyncState, SyncStatus,
};

pub(super) mod key;
mod own;

pub(crate) use own::own_rows;

/// The rows of the audit log that tell of an import.
const EVENT: &str = "import";
const BEGIN: &str = "begin";
const FINISH: &str = "finish";

pub(crate) const DEVICE_ROLES: &str = "device_roles";
pub(crate) const SYNC_STATES: &str = "sync_states";
pub(crate) const ELECTION_LOGS: &str = "master_election_logs";
pub(crate) const AUDIT_LOGS: &str = "sync_audit_logs";

impl State {
    /// The id of a device's row in the documented table.
    pub fn device_row(&self, device: &Device) -> u64 {
        let after = self.meta.import.as_ref().map_or(0, |i| i.device_rows);
        if device.row_id > 0 { device.row_id } else { after + u64::from(device.number) }
    }

    /// The id of a sync state's row in the documented table.
    pub fn sync_row(&self, sync: &SyncState) -> u64 {
        let after = self.meta.import.as_ref().map_or(0, |i| i.sync_rows);
        let number = self.devices.get(&sync.device_id).map_or(0, |d| d.number);
        if sync.row_id > 0 { sync.row_id } else { after + u64::from(number) }
    }

    pub(super) fn import_begin(&mut self, c: &ImportBegin) -> ApplyResult {
        match &self.meta.import {
            Some(import) if import.finished_ms > 0 => {
                return refuse(Code::Conflict, "this cluster has taken over a database already: it does so only once");
            }
            Some(import) if import.import_id != c.import_id => {
                let why = "this cluster has begun to take over another database: that one must be finished first";
                return refuse(Code::Conflict, why);
            }
            Some(import) => return Ok(done(import, Vec::new())),
            None => {}
        }
        if let Some(why) = self.not_empty() {
            return refuse(Code::Conflict, format!("only an empty cluster can take over a database: {why}"));
        }
        let import = Import {
            import_id: c.import_id,
            begun_ms: self.meta.now_ms,
            finished_ms: 0,
            device_rows: c.device_rows,
            sync_rows: c.sync_rows,
            audit_ms: self.meta.now_ms,
        };
        let gone = self.make_room(c);
        *self.meta.import(KEY).import = Some(import);
        let details =
            format!("Taking over database {:016x}; {gone} rows of the empty cluster's own logs gave way", c.import_id);
        self.audit(EVENT, BEGIN, false, &c.by, details);
        Ok(done(&import, Vec::new()))
    }

    /// Why no database can be taken over.
    fn not_empty(&self) -> Option<String> {
        if let Some(device) = self.devices.iter().find(|d| d.presence() != Presence::Node) {
            return Some(format!("device {:?} is registered", device.device_id));
        }
        if self.meta.head_seq > 0 {
            return Some(format!("it has {} changes", self.meta.head_seq));
        }
        let audits = self.audit.between(
            AuditId(0),
            AuditId::MAX,
            usize::try_from(limits::IMPORT_OWN_ROWS + 1).unwrap_or(usize::MAX),
        );
        let rows = (audits.len() as u64).max(self.meta.election_head);
        (rows > limits::IMPORT_OWN_ROWS).then(|| format!("its logs have {rows} rows of its own"))
    }

    /// Puts the logs of the empty cluster, which tell of its nodes only, behind the rows that come. Returns how many
    /// rows gave way.
    fn make_room(&mut self, c: &ImportBegin) -> u64 {
        let audits = self.audit_gives_way(c.audit_rows);
        audits + self.elections_give_way(c.election_rows)
    }

    fn importing(&self, import_id: u64) -> Result<Import, super::refusal::ApplyError> {
        match &self.meta.import {
            Some(import) if import.import_id == import_id => Ok(*import),
            _ => refuse(Code::Conflict, "the import of this database has not begun"),
        }
    }

    pub(super) fn import_rows(&mut self, c: ImportRows) -> ApplyResult {
        let import = self.importing(c.import_id)?;
        if import.finished_ms > 0 {
            return refuse(Code::Conflict, "the import of this database has finished");
        }
        if c.devices.len() + c.elections.len() + c.audits.len() > limits::IMPORT_ROWS {
            return refuse(Code::InvalidData, format!("at most {} rows at a time", limits::IMPORT_ROWS));
        }
        let mut left = Vec::new();
        for row in c.devices {
            let id = row.device.as_ref().map_or(0, |d| d.row_id);
            if let Err(why) = self.import_device(row, &import) {
                left.push(ImportLeft { table_name: DEVICE_ROLES.into(), id, why });
            }
        }
        for row in c.elections {
            let id = row.id;
            if !self.import_election(row, UnixMs(import.begun_ms)) && id < self.meta.election_dropped {
                left.push(out_of_turn(ELECTION_LOGS, id));
            }
        }
        let mut audit_ms = UnixMs(import.audit_ms);
        for row in c.audits {
            let id = row.id;
            match self.import_audit(row, audit_ms) {
                Some(at_ms) => audit_ms = at_ms,
                None if id < self.meta.audit_compacted => left.push(out_of_turn(AUDIT_LOGS, id)),
                None => {}
            }
        }
        let import = Import { audit_ms: audit_ms.get(), ..import };
        *self.meta.import(KEY).import = Some(import);
        Ok(done(&import, left))
    }

    /// A device of the database is here, offline and a client: only an election makes a master. A device of this
    /// cluster's nodes takes over its sync state, the ids of its rows and when it was made; what it is now stays. (Only
    /// older gateways propose such rows; theirs in the log must go on to give what they gave.)
    fn import_device(&mut self, row: ImportDevice, import: &Import) -> Result<(), String> {
        let (given, now) = (row.device.unwrap_or_default(), self.meta.now_ms);
        let id = given.device_id.clone();
        if !valid_id(&id) {
            return Err("its device_id is empty, longer than 255 bytes or holds control or invisible characters".into());
        }
        let row_id = if given.row_id <= import.device_rows { given.row_id } else { 0 };
        if let Some(device) = self.devices.get(&id) {
            let again = row_id > 0 && device.row_id == row_id;
            return match again {
                true => Ok(()),
                false if device.presence() == Presence::Node && device.row_id == 0 => {
                    self.import_node(&id, row_id, &given, row.sync.as_ref(), import);
                    Ok(())
                }
                false => Err(format!("device {id:?} is registered in this cluster already")),
            };
        }
        if self.device_count() >= limits::DEVICES {
            return Err(format!("the cluster keeps at most {} devices", limits::DEVICES));
        }
        let number = self.next_device_number(&id);
        let sync = row.sync.unwrap_or_else(|| SyncState { created_ms: now, updated_ms: now, ..SyncState::default() });
        self.import_sync_state(&id, sync, import);
        self.save_device(Device {
            device_id: id,
            role: Role::Client.into(),
            priority: given.priority.min(limits::PRIORITY),
            last_seen_ms: given.last_seen_ms.min(now),
            created_ms: given.created_ms.min(now),
            updated_ms: given.updated_ms.min(now),
            number: number.get(),
            // It is known: it is not told `registered` when it comes.
            had_session: true,
            row_id,
            was_master: given.role() == Role::Master,
            was_active: given.is_active,
            ..Device::default()
        });
        Ok(())
    }

    fn import_node(&mut self, id: &str, row_id: u64, given: &Device, sync: Option<&SyncState>, import: &Import) {
        if let Some(device) = self.devices.get(id) {
            let created_ms = device.created_ms.min(given.created_ms);
            self.save_device(Device { row_id, created_ms, ..Device::clone(device) });
        }
        if let Some(sync) = sync {
            self.import_sync_state(id, sync.clone(), import);
        }
    }

    fn import_sync_state(&mut self, id: &str, sync: SyncState, import: &Import) {
        let now = self.meta.now_ms;
        let status = if sync.sync_status() == SyncStatus::Unset { SyncStatus::Pending } else { sync.sync_status() };
        self.save_sync_state(SyncState {
            device_id: id.to_owned(),
            sync_status: status.into(),
            base: sync.base,
            last_sync_ms: sync.last_sync_ms.min(now),
            last_error_message: sync.last_error_message,
            created_ms: sync.created_ms.min(now),
            updated_ms: sync.updated_ms.min(now),
            row_id: if sync.row_id <= import.sync_rows { sync.row_id } else { 0 },
            ..SyncState::default()
        });
    }

    pub(super) fn import_finish(&mut self, c: &ImportFinish) -> ApplyResult {
        let mut import = self.importing(c.import_id)?;
        if import.finished_ms == 0 {
            import.finished_ms = self.meta.now_ms;
            *self.meta.import(KEY).import = Some(import);
            self.audit(EVENT, FINISH, false, &c.by, format!("Database {:016x} is taken over", c.import_id));
        }
        Ok(done(&import, Vec::new()))
    }
}

fn done(import: &Import, left: Vec<ImportLeft>) -> Reply {
    Reply::Import(ImportDone { import: Some(*import), left })
}

/// Compaction went past it meanwhile, or a row before it is missing.
fn out_of_turn(table_name: &str, id: u64) -> ImportLeft {
    ImportLeft { table_name: table_name.into(), id, why: "the rows after it are not there (any more)".into() }
}

#[cfg(test)]
mod tests {
    use super::super::audit::{AuditFilter, read_rows};
    use super::super::properties::{StateUnderTest, online};
    use super::super::read::elections;
    use super::*;
    use crate::ids::ElectionId;
    use crate::proto::command::Intent;
    use crate::proto::{Audit, DeviceOnline, Election};

    const ID: u64 = 7;

    fn node() -> Intent {
        let device_id = "node-1".to_owned();
        Intent::DeviceOnline(DeviceOnline { device_id, presence: Presence::Node.into(), ..DeviceOnline::default() })
    }

    fn begin(import_id: u64) -> Intent {
        Intent::ImportBegin(ImportBegin {
            import_id,
            device_rows: 9,
            sync_rows: 9,
            election_rows: 2,
            audit_rows: 4,
            by: "admin".into(),
        })
    }

    fn rows() -> ImportRows {
        let device = |row_id, id: &str| ImportDevice {
            device: Some(Device { row_id, device_id: id.into(), priority: 40, last_seen_ms: 5, ..Device::default() }),
            sync: Some(SyncState { row_id: row_id + 1, base: 3, ..SyncState::default() }),
        };
        let election = |id| Election { id, new_master: "till".into(), at_ms: id, ..Election::default() };
        let audit = |id| Audit { id, event_type: "old".into(), at_ms: id * 10, ..Audit::default() };
        ImportRows {
            import_id: ID,
            devices: vec![device(4, "till"), device(5, "node-1"), device(6, ""), device(7, "node-1")],
            elections: vec![election(2), election(1)],
            audits: vec![audit(4), audit(3)],
        }
    }

    #[test]
    fn rows_keep_their_ids_and_the_clusters_own_come_after() {
        let mut b = StateUnderTest::new();
        b.ok(node());
        b.ok(Intent::Elect(crate::proto::Elect { reason: 2, ..Default::default() }));
        b.ok(begin(ID));
        let Reply::Import(taken) = b.ok(Intent::ImportRows(rows())) else { panic!() };
        assert_eq!(taken.left.iter().map(|l| l.id).collect::<Vec<_>>(), [6, 7], "{:?}", taken.left);
        // Sent again: nothing new, and the same is left.
        let before = b.state.meta().clone();
        b.ok(Intent::ImportRows(rows()));
        assert_eq!(Some(before.import), Some(b.state.meta().import));
        assert_eq!((before.devices, before.audit_compacted), (2, 2));
        // A row too early is not taken.
        let early = ImportRows { audits: vec![Audit { id: 1, ..Audit::default() }], import_id: ID, ..rows() };
        let Reply::Import(taken) = b.ok(Intent::ImportRows(early)) else { panic!() };
        assert!(taken.left.iter().any(|l| (l.table_name.as_str(), l.id) == (AUDIT_LOGS, 1)));
        b.ok(Intent::ImportFinish(ImportFinish { import_id: ID, by: "admin".into() }));
        assert_eq!(b.code(Intent::ImportRows(rows())), Code::Conflict);

        let till = b.state.device("till").unwrap().clone();
        assert_eq!((till.role(), till.is_active, till.priority, till.last_seen_ms), (Role::Client, false, 40, 5));
        assert_eq!((b.state.device_row(&till), b.state.sync_row(b.state.sync_state("till").unwrap())), (4, 5));
        let node = b.state.device("node-1").unwrap().clone();
        assert_eq!((node.role(), node.is_active, b.state.device_row(&node)), (Role::Master, true, 5));
        assert_eq!(b.state.sync_row(b.state.sync_state("node-1").unwrap()), 6);
        let log = elections(&b.tables, ElectionId(b.state.meta().election_head), 10, 0).unwrap();
        let told: Vec<_> = log.iter().map(|e| (e.id, e.new_master.as_str(), e.imported)).collect();
        assert_eq!(told, [(3, "node-1", false), (2, "till", true), (1, "till", true)]);
        assert_eq!(b.state.meta().term, log[0].term);
        let (total, page) = b.state.audit_index().page(&AuditFilter::default(), 10, 0);
        let ids: Vec<_> = read_rows(&b.tables, &page).unwrap().iter().map(|a| (a.id, a.operation.clone())).collect();
        assert_eq!(total, 4);
        assert_eq!(ids, [(6, "finish".into()), (5, "begin".into()), (4, String::new()), (3, String::new())]);
    }

    #[test]
    fn only_once_and_only_into_an_empty_cluster() {
        let mut b = StateUnderTest::new();
        b.ok(online("till", 0, Role::Client));
        let before = b.state.meta().clone();
        assert_eq!(b.code(begin(ID)), Code::Conflict);
        assert_eq!((b.state.meta().audit_head, b.state.meta().import.as_ref()), (before.audit_head, None));
        let mut b = StateUnderTest::new();
        assert_eq!(b.code(Intent::ImportRows(rows())), Code::Conflict);
        b.ok(begin(ID));
        b.ok(begin(ID));
        assert_eq!(b.code(begin(ID + 1)), Code::Conflict);
        let finish = Intent::ImportFinish(ImportFinish { import_id: ID, by: String::new() });
        b.ok(finish.clone());
        let head = b.state.meta().audit_head;
        b.ok(finish);
        assert_eq!(b.state.meta().audit_head, head);
        assert_eq!(b.code(begin(ID)), Code::Conflict);
    }
}
