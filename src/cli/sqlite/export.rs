//! `tillsync export`: everything that the cluster keeps, as of one moment, in a SQLite file.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{ClusterNodes, DOCUMENTED, OWN, sql_time};
use crate::cli::recover::age;
use crate::cli::target::TargetArgs;
use crate::cli::{CliResult, CommandError};
use crate::client::NodeUrl;
use crate::client::rest::{PAGE, percent};
use crate::clock::{Clock, SystemClock};
use crate::gateway::http::rest::transfer::{AuditRow, LogPage, RecordRow, TransferState, TransferredElection};
use crate::ids::UnixMs;
use crate::model::time::{iso, parse_iso};

#[derive(clap::Args, Debug)]
pub(crate) struct ExportArgs {
    /// The file to write; it must not exist
    file: PathBuf,
    /// Take what a node has without asking the others: for a node that is left without a quorum. Of the nodes that answer it
    /// is the one that has most
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// A change, its data as the client wrote it.
#[derive(Debug, Deserialize)]
struct ExportedChange {
    seq: u64,
    table_name: String,
    record_id: i64,
    operation: String,
    data: Box<RawValue>,
    #[serde(default)]
    device_id: String,
    timestamp: String,
}

#[derive(Debug, Deserialize)]
struct ExportedPage {
    changes: Vec<ExportedChange>,
    cursor: String,
    has_more: bool,
}

pub(crate) async fn execute(args: ExportArgs) -> CliResult {
    if args.file.exists() {
        return Err(CommandError::usage(format!("{} exists already", args.file.display())));
    }
    let mut nodes = ClusterNodes::new(&args.target.resolve()?)?;
    let mut snapshot: TransferState = match args.stale {
        true => furthest(&mut nodes).await?,
        false => nodes.get("/system/export").await?,
    };
    leave_out_own(&mut snapshot);
    // Under another name until it is whole.
    let mut part = args.file.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let _ = fs::remove_file(&part);
    let written = match write(&part, &snapshot, &mut nodes).await {
        Ok(counts) => fs::rename(&part, &args.file).map(|()| counts).map_err(|e| io(&args.file, &e)),
        Err(e) => Err(e),
    };
    let counts = written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    say!("{}: {counts}, as of entry {} of the log", args.file.display(), snapshot.applied_index);
    if args.stale {
        say!(
            "stale: this is what {} had by {} ({}); what others wrote later is not in it",
            nodes.nodes[0],
            iso(UnixMs(snapshot.applied_ms)),
            age(SystemClock.now_ms().ms_since(UnixMs(snapshot.applied_ms)))
        );
    }
    let (elections, audits) = (snapshot.own_elections, snapshot.own_audits);
    if elections + audits > 0 {
        say!(
            "{elections} elections and {audits} audit rows are left out: the import wrote them itself, and nothing has \
             happened since"
        );
    }
    Ok(())
}

/// What the node has that has come furthest; from now on only that one is asked, and without a quorum.
async fn furthest(nodes: &mut ClusterNodes) -> CliResult<TransferState> {
    let (mut best, mut last): (Option<(NodeUrl, TransferState)>, _) = (None, CommandError::new("no node is known"));
    for node in nodes.nodes.clone() {
        match nodes.rest.get::<TransferState>(&node, "/system/export?consistency=stale").await {
            Ok(snapshot) if best.as_ref().is_none_or(|(_, best)| best.applied_index < snapshot.applied_index) => {
                best = Some((node, snapshot));
            }
            Ok(_) => {}
            Err(error) if error.is_passing() => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    let (node, snapshot) = best.ok_or(last)?;
    (nodes.nodes, nodes.at, nodes.stale) = (vec![node], 0, true);
    Ok(snapshot)
}

/// What is the cluster's own and no part of the store's history.
fn leave_out_own(snapshot: &mut TransferState) {
    let nodes = &snapshot.node_devices;
    snapshot.devices.retain(|d| !nodes.contains(&d.device_id));
    snapshot.sync_states.retain(|s| !nodes.contains(&s.device_id));
    snapshot.election_head -= snapshot.own_elections.min(snapshot.election_head);
    snapshot.audit_head -= snapshot.own_audits.min(snapshot.audit_head);
}

fn io(path: &Path, why: &dyn std::fmt::Display) -> CommandError {
    CommandError::new(format!("{} cannot be written: {why}", path.display()))
}

async fn write(path: &Path, snapshot: &TransferState, nodes: &mut ClusterNodes) -> CliResult<String> {
    let failed = |e: rusqlite::Error| io(path, &e);
    let mut file = Connection::open(path).map_err(failed)?;
    file.execute_batch(DOCUMENTED).and_then(|()| file.execute_batch(OWN)).map_err(failed)?;
    let out = file.transaction().map_err(failed)?;
    devices(&out, snapshot).map_err(failed)?;
    let pages = format!("to={}", snapshot.election_head);
    let elections = log(nodes, "elections", &pages, |row| election(&out, row).map_err(failed)).await?;
    let pages = format!("to={}", snapshot.audit_head);
    let audits = log(nodes, "audit", &pages, |row| audit(&out, row).map_err(failed)).await?;
    log(nodes, "records", "", |row| record(&out, &row).map_err(failed)).await?;
    let unsure = changes(&out, snapshot, nodes, path).await?;
    let count = |table: &str| {
        out.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get::<_, u64>(0)).map_err(failed)
    };
    let (records, changes) = (count("records")?, count("changes")?);
    out.commit().map_err(failed)?;
    file.close().map_err(|(_, e)| failed(e))?;
    if unsure > 0 {
        say!("{unsure} records were changed while this was written and are newer than the rest");
    }
    Ok(format!(
        "{} devices, {elections} elections, {audits} audit rows, {records} records, {changes} changes",
        snapshot.devices.len()
    ))
}

fn devices(out: &Transaction<'_>, snapshot: &TransferState) -> rusqlite::Result<()> {
    let mut put = out.prepare("INSERT INTO device_roles VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
    for d in by_id(&snapshot.devices, |d| d.id) {
        let (seen, created, updated) = (sql_time(d.last_seen_ms), sql_time(d.created_ms), sql_time(d.updated_ms));
        put.execute(params![d.id, d.device_id, d.role, d.priority, seen, d.is_active, created, updated])?;
    }
    let mut put = out.prepare("INSERT INTO sync_states VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
    for s in by_id(&snapshot.sync_states, |s| s.id) {
        let (synced, created, updated) = (sql_time(s.last_sync_ms), sql_time(s.created_ms), sql_time(s.updated_ms));
        let (status, pending, error) = (&s.sync_status, s.pending_changes_count, &s.last_error_message);
        put.execute(params![s.id, s.device_id, status, pending, synced, error, created, updated])?;
    }
    Ok(())
}

fn by_id<T>(rows: &[T], id: impl Fn(&T) -> u64) -> Vec<&T> {
    let mut rows: Vec<&T> = rows.iter().collect();
    rows.sort_by_key(|row| id(row));
    rows
}

fn election(out: &Transaction<'_>, e: TransferredElection) -> rusqlite::Result<()> {
    let mut put = out.prepare_cached("INSERT INTO master_election_logs VALUES (?, ?, ?, ?, ?, ?, ?)")?;
    let (at, created) = (sql_time(e.at_ms).unwrap_or_default(), sql_time(e.created_ms));
    let (previous, new, reason) = (e.previous_master_id, e.new_master_id, e.election_reason);
    put.execute(params![e.id, previous, new, reason, at, e.devices_participating, created]).map(drop)
}

fn audit(out: &Transaction<'_>, a: AuditRow) -> rusqlite::Result<()> {
    let mut put = out.prepare_cached("INSERT INTO sync_audit_logs VALUES (?, ?, ?, ?, ?, ?, ?)")?;
    let status = if a.error { "error" } else { "success" };
    put.execute(params![a.id, a.event_type, a.operation, status, a.device_id, a.details, sql_time(a.at_ms)]).map(drop)
}

fn record(out: &Transaction<'_>, r: &RecordRow) -> rusqlite::Result<()> {
    let mut put = out.prepare_cached("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)")?;
    let at = sql_time(r.timestamp_ms).unwrap_or_default();
    put.execute(params![r.table_name, r.record_id, r.version, r.data.get(), r.device_id, at]).map(drop)
}

/// Every row of a log, page after page. Returns how many.
async fn log<T: DeserializeOwned>(
    nodes: &mut ClusterNodes,
    name: &str,
    bounds: &str,
    mut each: impl FnMut(T) -> CliResult,
) -> CliResult<u64> {
    let (mut after, mut rows) = (String::new(), 0);
    loop {
        let path = format!("/system/export/{name}?limit={PAGE}&{bounds}&after={after}");
        let page: LogPage<T> = nodes.get(&path).await?;
        for row in page.rows {
            rows += 1;
            each(row)?;
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(rows),
        }
    }
}

/// The changes up to the snapshot's, and the records of later ones as they were then. Returns how many records
/// cannot be brought back, because what they were before is no longer kept.
async fn changes(
    out: &Transaction<'_>,
    snapshot: &TransferState,
    nodes: &mut ClusterNodes,
    path: &Path,
) -> CliResult<u64> {
    let failed = |e: rusqlite::Error| io(path, &e);
    let (mut cursor, mut later) = (snapshot.cursor.clone(), Vec::new());
    loop {
        let page: ExportedPage =
            nodes.get(&format!("/system/export/changes?limit={PAGE}&cursor={}", percent(&cursor))).await?;
        for change in page.changes {
            if change.seq <= snapshot.head_seq {
                put_change(out, &change).map_err(failed)?;
            } else {
                later.push((change.table_name, change.record_id));
            }
        }
        if !page.has_more {
            break;
        }
        cursor = page.cursor;
    }
    later.sort_unstable();
    later.dedup();
    let mut unsure = 0;
    for (table, id) in later {
        unsure += u64::from(!as_it_was(out, &table, id, snapshot.compacted_seq).map_err(failed)?);
    }
    Ok(unsure)
}

fn put_change(out: &Transaction<'_>, c: &ExportedChange) -> rusqlite::Result<()> {
    let mut put = out.prepare_cached("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)")?;
    let at = parse_iso(&c.timestamp).map(UnixMs::get).and_then(sql_time).unwrap_or_default();
    put.execute(params![c.seq, c.device_id, c.table_name, c.record_id, c.operation, c.data.get(), at]).map(drop)
}

/// Makes a record what the changes in the file say. `false`: they do not tell.
fn as_it_was(out: &Transaction<'_>, table: &str, id: i64, compacted: u64) -> rusqlite::Result<bool> {
    let last = "SELECT max(seq) FROM changes WHERE table_name = ? AND record_id = ?";
    let last: Option<u64> = out.query_row(last, params![table, id], |row| row.get(0))?;
    if last.is_none() && compacted > 0 {
        return Ok(false);
    }
    out.execute("DELETE FROM records WHERE table_name = ? AND record_id = ?", params![table, id])?;
    let put = "INSERT INTO records SELECT table_name, record_id, seq, data, device_id, timestamp FROM changes \
               WHERE seq = ? AND operation <> 'delete'";
    out.execute(put, params![last])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(sql: &str) -> String {
        sql.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_schema_is_the_documents() {
        let file = Connection::open_in_memory().unwrap();
        file.execute_batch(DOCUMENTED).unwrap();
        file.execute_batch(OWN).unwrap();
        let text: String =
            [DOCUMENTED, OWN].concat().lines().filter(|l| !l.starts_with("--")).map(|l| format!("{l}\n")).collect();
        let mut written: Vec<String> = text.split(';').map(squeezed).filter(|s| !s.is_empty()).collect();
        let mut list =
            file.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'").unwrap();
        let mut made: Vec<String> =
            list.query_map([], |row| row.get::<_, String>(0)).unwrap().map(|s| squeezed(&s.unwrap())).collect();
        written.sort();
        made.sort();
        assert_eq!(made, written);
        assert_eq!(made.len(), 6 + 8);
    }

    #[test]
    fn a_record_changed_meanwhile_is_brought_back_from_its_changes() {
        let mut file = Connection::open_in_memory().unwrap();
        file.execute_batch(OWN).unwrap();
        let out = file.transaction().unwrap();
        let change = |seq, record_id, operation: &str, data: &str| ExportedChange {
            seq,
            table_name: "t".into(),
            record_id,
            operation: operation.into(),
            data: RawValue::from_string(data.into()).unwrap(),
            device_id: "d".into(),
            timestamp: "2026-11-22T10:00:00Z".into(),
        };
        for c in
            [change(1, 1, "insert", "{\"v\":1.10}"), change(2, 1, "update", "{\"v\":2}"), change(3, 2, "delete", "{}")]
        {
            put_change(&out, &c).unwrap();
        }
        out.execute("INSERT INTO records VALUES ('t', 2, 9, '{}', 'd', ''), ('t', 3, 8, '{}', 'd', '')", []).unwrap();
        for (id, compacted, sure) in [(1, 0, true), (2, 0, true), (3, 5, false)] {
            assert_eq!(as_it_was(&out, "t", id, compacted).unwrap(), sure);
        }
        let rows = || -> Vec<(i64, u64)> {
            let mut list = out.prepare("SELECT record_id, version FROM records ORDER BY 1").unwrap();
            list.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(rows(), [(1, 2), (3, 8)]);
        assert!(as_it_was(&out, "t", 3, 0).unwrap());
        assert_eq!(rows(), [(1, 2)]);
    }
}
