//! Reads a database of the documented schema, and says of every row what cannot be kept as it is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use xxhash_rust::xxh3::Xxh3;

use crate::cli::{CliResult, CommandError};
use crate::gateway::http::rest::transfer::{AuditRow, DeviceRow, SyncRow, TransferredElection, WithState};
use crate::ids::UnixMs;
use crate::limits;
use crate::model::device::valid_id;
use crate::model::import::{AUDIT_LOGS, DEVICE_ROLES, ELECTION_LOGS, SYNC_STATES};
use crate::model::time::parse_iso;

/// The documented columns, the row's id first.
const TABLES: [(&str, &[&str]); 4] = [
    (DEVICE_ROLES, &["id", "device_id", "role", "priority", "last_seen", "is_active", "created_at", "updated_at"]),
    (
        SYNC_STATES,
        &[
            "id",
            "device_id",
            "sync_status",
            "pending_changes_count",
            "last_sync_timestamp",
            "last_error_message",
            "created_at",
            "updated_at",
        ],
    ),
    (
        ELECTION_LOGS,
        &[
            "id",
            "previous_master_id",
            "new_master_id",
            "election_reason",
            "election_timestamp",
            "devices_participating",
            "created_at",
        ],
    ),
    (AUDIT_LOGS, &["id", "event_type", "operation", "status", "device_id", "details", "timestamp"]),
];

/// A row of a log, which is read again when it is sent: a log may be larger than memory.
#[derive(Debug)]
pub(super) struct LogRowId {
    /// Its id here, and what it becomes.
    old: i64,
    pub id: u64,
    at_ms: u64,
}

/// What a database gives.
#[derive(Debug)]
pub(super) struct OldDatabase {
    file: Connection,
    pub devices: Vec<WithState>,
    /// Both logs: oldest first, their ids without a gap.
    pub elections: Vec<LogRowId>,
    pub audits: Vec<LogRowId>,
    /// Tells this database from another one.
    pub id: u64,
    /// Rows that are not taken, or not as they are.
    pub notes: Vec<String>,
}

/// One row of a table, its values taken one after the other.
struct SqliteRow<'a> {
    table: &'static str,
    id: u64,
    values: std::vec::IntoIter<Value>,
    notes: &'a mut Vec<String>,
}

impl SqliteRow<'_> {
    fn note(&mut self, what: impl std::fmt::Display) {
        self.notes.push(format!("{} row {}: {what}", self.table, self.id));
    }

    fn not_taken<T>(&mut self, why: impl std::fmt::Display) -> Option<T> {
        self.note(format_args!("not taken: {why}"));
        None
    }

    fn text(&mut self, column: &str, max: usize) -> String {
        let mut text = match self.values.next() {
            Some(Value::Text(text)) => text,
            Some(Value::Integer(n)) => n.to_string(),
            Some(Value::Real(n)) => n.to_string(),
            Some(Value::Blob(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Some(Value::Null) | None => String::new(),
        };
        if text.len() > max {
            self.note(format_args!("{column} is longer than {max} bytes and was cut"));
            text.truncate(text.floor_char_boundary(max));
        }
        text
    }

    fn maybe_text(&mut self, column: &str, max: usize) -> Option<String> {
        Some(self.text(column, max)).filter(|t| !t.is_empty())
    }

    /// A number from 0 to `max`; what lies beyond is brought to the bound.
    fn number(&mut self, column: &str, max: u64) -> u64 {
        let given = match self.values.next() {
            Some(Value::Integer(n)) => n,
            Some(Value::Null) | None => 0,
            Some(other) => {
                self.note(format_args!("{column} is no whole number ({other:?}) and became 0"));
                0
            }
        };
        let number = u64::try_from(given).unwrap_or(0).min(max);
        if i128::from(number) != i128::from(given) {
            self.note(format_args!("{column} {given} became {number}"));
        }
        number
    }

    /// 0 for NULL. `None`: it is no time, or one that is still to come.
    fn time(&mut self, now: u64) -> Option<u64> {
        match self.values.next() {
            Some(Value::Text(text)) => parse_iso(&text).map(UnixMs::get).filter(|ms| *ms <= now),
            Some(Value::Null) | None => Some(0),
            Some(_) => None,
        }
    }

    /// A time that the row can do without.
    fn loose_time(&mut self, column: &str, now: u64) -> u64 {
        self.time(now).unwrap_or_else(|| {
            self.note(format_args!("{column} is no time that has been, and is left empty"));
            0
        })
    }
}

/// Reads all of it; `now` is this machine's clock.
pub(super) fn read(path: &Path, now: UnixMs) -> CliResult<OldDatabase> {
    let at = path.display();
    let mut head = [0; 16];
    let opened = File::open(path).map_err(|e| CommandError::usage(format!("{at} cannot be read: {e}")))?;
    let is_database = opened.take(16).read_exact(&mut head).is_ok() && head == *b"SQLite format 3\0";
    if !is_database {
        return Err(CommandError::usage(format!("{at} is no SQLite database")));
    }
    let failed = |e: rusqlite::Error| CommandError::usage(format!("{at} cannot be read: {e}"));
    let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    // One moment of it, should the old server still run.
    file.execute_batch("BEGIN").map_err(failed)?;
    for (table, columns) in TABLES {
        let mut list = file.prepare("SELECT name FROM pragma_table_info(?)").map_err(failed)?;
        let found = list.query_map([table], |row| row.get(0)).and_then(Iterator::collect::<Result<_, _>>);
        let found: HashSet<String> = found.map_err(failed)?;
        if found.is_empty() {
            return Err(CommandError::usage(format!("{at} has no table {table}")));
        }
        if let Some(missing) = columns.iter().find(|c| !found.contains(**c)) {
            return Err(CommandError::usage(format!("{at}: table {table} has no column {missing}")));
        }
    }
    let mut reader = SqliteReader { file: &file, notes: Vec::new(), hash: Xxh3::new(), now: now.get() };
    let devices = reader.devices().map_err(failed)?;
    let (elections, audits) = (reader.elections().map_err(failed)?, reader.audits().map_err(failed)?);
    let (id, notes) = (reader.hash.digest(), reader.notes);
    Ok(OldDatabase { file, devices, elections, audits, id, notes })
}

impl OldDatabase {
    pub(super) fn election(&self, at: &LogRowId) -> CliResult<TransferredElection> {
        let row = self.again(2, at, |row| election(row, at.at_ms))?;
        Ok(TransferredElection { id: at.id, ..row })
    }

    pub(super) fn audit(&self, at: &LogRowId) -> CliResult<AuditRow> {
        let row = self.again(3, at, |row| audit(row, at.at_ms))?;
        Ok(AuditRow { id: at.id, ..row })
    }

    fn again<T>(
        &self,
        table: usize,
        at: &LogRowId,
        read: impl FnOnce(&mut SqliteRow<'_>) -> Option<T>,
    ) -> CliResult<T> {
        let (table, columns) = TABLES[table];
        let failed = |e: rusqlite::Error| CommandError::new(format!("{table} row {}: {e}", at.old));
        let select = format!("SELECT {} FROM {table} WHERE id = ?", columns.join(", "));
        let mut list = self.file.prepare_cached(&select).map_err(failed)?;
        let values = |row: &rusqlite::Row<'_>| (1..columns.len()).map(|i| row.get(i)).collect();
        let values: Vec<Value> = list.query_row([at.old], values).map_err(failed)?;
        let mut row = SqliteRow { table, id: at.id, values: values.into_iter(), notes: &mut Vec::new() };
        read(&mut row).ok_or_else(|| CommandError::new(format!("{table} row {} reads otherwise than before", at.old)))
    }
}

struct SqliteReader<'a> {
    file: &'a Connection,
    notes: Vec<String>,
    hash: Xxh3,
    now: u64,
}

impl SqliteReader<'_> {
    /// Hands the rows of a table to `each`, by id.
    fn rows(&mut self, table: usize, mut each: impl FnMut(&mut SqliteRow<'_>)) -> rusqlite::Result<()> {
        let (table, columns) = TABLES[table];
        let mut list = self.file.prepare(&format!("SELECT {} FROM {table} ORDER BY id", columns.join(", ")))?;
        let mut rows = list.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns.len()).map(|i| row.get(i)).collect::<rusqlite::Result<Vec<Value>>>()?;
            self.hash.update(format!("{table}{values:?}").as_bytes());
            let mut values = values.into_iter();
            let id = match values.next() {
                Some(Value::Integer(id)) if id > 0 => id as u64,
                other => {
                    self.notes.push(format!("{table}: a row is not taken: its id is {other:?}"));
                    continue;
                }
            };
            each(&mut SqliteRow { table, id, values, notes: &mut self.notes });
        }
        Ok(())
    }

    fn devices(&mut self) -> rusqlite::Result<Vec<WithState>> {
        let now = self.now;
        let mut devices = Vec::new();
        self.rows(0, |row| devices.extend(device(row, now)))?;
        let known: HashSet<String> = devices.iter().map(|d| d.device_id.clone()).collect();
        let mut states = HashMap::new();
        self.rows(1, |row| states.extend(sync_state(row, now, &known).map(|s| (s.device_id.clone(), s))))?;
        let with_state = |device: DeviceRow| WithState { sync_state: states.remove(&device.device_id), device };
        Ok(devices.into_iter().map(with_state).collect())
    }

    fn elections(&mut self) -> rusqlite::Result<Vec<LogRowId>> {
        let now = self.now;
        let mut places = Vec::new();
        self.rows(2, |row| {
            let (id, old) = (row.id, row.id as i64);
            places.extend(election(row, now).map(|e| LogRowId { old, id, at_ms: e.at_ms }));
        })?;
        let last = places.last().map_or(0, |e| e.id);
        self.close_gaps(ELECTION_LOGS, last, &mut places);
        Ok(places)
    }

    fn audits(&mut self) -> rusqlite::Result<Vec<LogRowId>> {
        let now = self.now;
        let (mut places, mut surplus) = (VecDeque::new(), 0);
        self.rows(3, |row| {
            let (id, old) = (row.id, row.id as i64);
            places.extend(audit(row, now).map(|a| LogRowId { old, id, at_ms: a.at_ms }));
            if places.len() as u64 > limits::AUDIT_ROWS {
                places.pop_front();
                surplus += 1;
            }
        })?;
        if surplus > 0 {
            let why = "a cluster keeps the newest";
            self.notes.push(format!("{AUDIT_LOGS}: the {surplus} oldest rows are not taken: {why}"));
        }
        let mut places = Vec::from(places);
        let last = places.last().map_or(0, |a| a.id);
        // Listings by date need times that never go back.
        places.sort_by_key(|a| (a.at_ms, a.id));
        self.close_gaps(AUDIT_LOGS, last, &mut places);
        Ok(places)
    }

    /// The last row keeps its id, and so do all before it back to the first gap.
    fn close_gaps(&mut self, table: &str, last: u64, rows: &mut [LogRowId]) {
        for (new, row) in (0..=last).rev().zip(rows.iter_mut().rev()) {
            if row.id != new {
                self.notes.push(format!("{table} row {}: its id is {new} now, as the ids or times had a gap", row.id));
            }
            row.id = new;
        }
    }
}

fn device(row: &mut SqliteRow<'_>, now: u64) -> Option<DeviceRow> {
    let device_id = row.text("device_id", usize::MAX);
    if !valid_id(&device_id) {
        return row.not_taken("its device_id is empty, longer than 255 bytes or holds control or invisible characters");
    }
    let role = row.text("role", usize::MAX);
    if role != "client" {
        row.note(format_args!(
            "{device_id:?} was {role:?} and is a client now: the master is elected among the devices that are there"
        ));
    }
    // In the order of the columns.
    let priority = row.number("priority", u64::from(limits::PRIORITY)) as u32;
    let last_seen_ms = row.loose_time("last_seen", now);
    let is_active = row.number("is_active", 1) == 1;
    if is_active {
        row.note("it was active and is offline until it connects");
    }
    let (created_ms, updated_ms) = (row.loose_time("created_at", now), row.loose_time("updated_at", now));
    Some(DeviceRow { id: row.id, device_id, role, priority, last_seen_ms, is_active, created_ms, updated_ms })
}

fn sync_state(row: &mut SqliteRow<'_>, now: u64, known: &HashSet<String>) -> Option<SyncRow> {
    let device_id = row.text("device_id", usize::MAX);
    if !known.contains(&device_id) {
        return row.not_taken(format_args!("device {device_id:?} is not in {DEVICE_ROLES} or was not taken"));
    }
    let mut sync_status = row.text("sync_status", usize::MAX);
    if !["pending", "syncing", "synced", "error"].contains(&sync_status.as_str()) {
        row.note(format_args!("sync_status {sync_status:?} became \"pending\""));
        sync_status = "pending".into();
    }
    Some(SyncRow {
        id: row.id,
        device_id,
        sync_status,
        pending_changes_count: row.number("pending_changes_count", limits::PENDING_CHANGES),
        last_sync_ms: row.loose_time("last_sync_timestamp", now),
        last_error_message: row.maybe_text("last_error_message", limits::ERROR_MESSAGE),
        created_ms: row.loose_time("created_at", now),
        updated_ms: row.loose_time("updated_at", now),
    })
}

fn election(row: &mut SqliteRow<'_>, now: u64) -> Option<TransferredElection> {
    let previous_master_id = row.maybe_text("previous_master_id", limits::DEVICE_ID);
    let new_master_id = row.text("new_master_id", limits::DEVICE_ID);
    let mut election_reason = row.text("election_reason", usize::MAX);
    let at_ms = match row.time(now) {
        Some(ms) if ms > 0 => ms,
        _ => return row.not_taken("election_timestamp is no time that has been"),
    };
    if !["shutdown", "failure", "manual"].contains(&election_reason.as_str()) {
        row.note(format_args!("election_reason {election_reason:?} became \"manual\""));
        election_reason = "manual".into();
    }
    Some(TransferredElection {
        id: row.id,
        previous_master_id,
        new_master_id,
        election_reason,
        at_ms,
        devices_participating: row.number("devices_participating", u64::from(u32::MAX)) as u32,
        created_ms: row.loose_time("created_at", now),
    })
}

fn audit(row: &mut SqliteRow<'_>, now: u64) -> Option<AuditRow> {
    let event_type = row.text("event_type", limits::EVENT_TYPE);
    let operation = row.text("operation", limits::EVENT_TYPE);
    let status = row.text("status", usize::MAX);
    let device_id = row.maybe_text("device_id", limits::DEVICE_ID);
    let details = row.maybe_text("details", limits::IMPORT_TEXT);
    let at_ms = match row.time(now) {
        Some(ms) if ms > 0 => ms,
        _ => return row.not_taken("timestamp is no time that has been"),
    };
    if !["success", "error"].contains(&status.as_str()) {
        row.note(format_args!("status {status:?} became \"error\""));
    }
    Some(AuditRow { id: row.id, event_type, operation, error: status != "success", device_id, details, at_ms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sqlite::DOCUMENTED;
    use crate::clock::{Clock, SystemClock};

    fn read_after(sql: &str) -> CliResult<OldDatabase> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        Connection::open(&path).unwrap().execute_batch(&format!("{DOCUMENTED}{sql}")).unwrap();
        read(&path, SystemClock.now_ms())
    }

    #[test]
    fn what_cannot_be_kept_is_said_row_by_row() {
        let old = read_after(
            "INSERT INTO device_roles VALUES (3, 'office', 'master', 250, '2026-01-02 03:04:05.678901', 1, NULL, 'soon');
             INSERT INTO device_roles (id, device_id, is_active) VALUES (4, '', 0), (9, 'till', 0);
             INSERT INTO sync_states (id, device_id, sync_status) VALUES (1, 'till', 'synced'), (2, 'ghost', 'error');
             INSERT INTO master_election_logs VALUES (5, NULL, 'office', 'priority', '2026-01-02 03:04:05', 2, NULL);
             INSERT INTO master_election_logs VALUES (7, NULL, 'till', 'failure', '9000-01-02 03:04:05', 2, NULL);
             INSERT INTO sync_audit_logs VALUES (1, 'e', 'o', 'success', NULL, NULL, '2026-01-02 03:04:05');
             INSERT INTO sync_audit_logs VALUES (3, 'e', 'o', 'warning', 'till', 'x', '2026-01-02 03:04:06');",
        )
        .unwrap();
        let rows: Vec<_> =
            old.devices.iter().map(|d| (d.device.id, d.device.priority, d.sync_state.as_ref().map(|s| s.id))).collect();
        assert_eq!(rows, [(3, 100, None), (9, 0, Some(1))]);
        assert_eq!(old.devices[0].device.last_seen_ms, 1_767_323_045_678);
        assert_eq!(old.elections.iter().map(|e| e.id).collect::<Vec<_>>(), [5]);
        let audits: Vec<_> = old.audits.iter().map(|at| old.audit(at).unwrap()).map(|a| (a.id, a.error)).collect();
        assert_eq!(audits, [(2, false), (3, true)]);
        assert_eq!(old.election(&old.elections[0]).unwrap().new_master_id, "office");
        let mut notes = old.notes.iter().map(String::as_str);
        for (at, says) in [
            ("device_roles row 3", "\"office\" was \"master\" and is a client now"),
            ("device_roles row 3", "priority 250 became 100"),
            ("device_roles row 3", "it was active"),
            ("device_roles row 3", "updated_at is no time"),
            ("device_roles row 4", "not taken"),
            ("sync_states row 2", "not taken: device \"ghost\""),
            ("master_election_logs row 5", "\"priority\" became \"manual\""),
            ("master_election_logs row 7", "not taken"),
            ("sync_audit_logs row 3", "\"warning\" became \"error\""),
            ("sync_audit_logs row 1", "its id is 2 now"),
        ] {
            let note = notes.next().unwrap();
            assert!(note.starts_with(at) && note.contains(says), "{note}");
        }
        assert_eq!(notes.next(), None);
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let says = |path: &Path| read(path, SystemClock.now_ms()).unwrap_err().message;
        assert!(says(&path).contains("cannot be read"));
        std::fs::write(&path, "id,name\n").unwrap();
        assert!(says(&path).ends_with("is no SQLite database"));
        let message = |sql: &str| read_after(sql).unwrap_err().message;
        assert!(message("DROP TABLE sync_states;").ends_with("has no table sync_states"));
        let dropped = message("ALTER TABLE sync_audit_logs DROP COLUMN details;");
        assert!(dropped.ends_with("table sync_audit_logs has no column details"), "{dropped}");
        assert_ne!(
            read_after("").unwrap().id,
            read_after("INSERT INTO device_roles (device_id) VALUES ('a');").unwrap().id
        );
    }
}
