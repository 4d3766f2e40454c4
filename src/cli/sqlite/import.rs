//! `tillsync import`: a database of the documented schema into an empty cluster.
//!
//! All of the file is read and checked before anything is sent; the rows of its logs are read again as they go out. Steps may be sent twice, so a run that was interrupted
//! goes on by being run again.

use std::path::PathBuf;

use super::ClusterNodes;
use super::old::{self, LogRowId, OldDatabase};
use crate::cli::CliResult;
use crate::cli::target::TargetArgs;
use crate::clock::{Clock, SystemClock};
use crate::gateway::http::rest::transfer::{AuditRow, ImportAction, ImportStep, StepResult, WithState};
use crate::model::import::{AUDIT_LOGS, DEVICE_ROLES, ELECTION_LOGS};

/// Rows of one step, and about how many bytes: it becomes one entry of the log.
const ROWS: usize = 200;
const BYTES: usize = 128 << 10;

#[derive(clap::Args, Debug)]
pub(crate) struct ImportArgs {
    /// A SQLite database with the documented tables
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
}

pub(crate) async fn execute(args: ImportArgs) -> CliResult {
    let old = old::read(&args.file, SystemClock.now_ms())?;
    let mut import = SqliteImport {
        id: format!("{:016x}", old.id),
        nodes: ClusterNodes::new(&args.target.resolve()?)?,
        left: Vec::new(),
    };
    import.send(begin(&old)).await?;
    let (devices, elections, audits) = (old.devices.len(), old.elections.len(), old.audits.len());
    import.devices(&old.devices).await?;
    let rows = |elections| ImportAction::Rows { devices: Vec::new(), elections, audits: Vec::new() };
    import.newest_first(&old.elections, |at| old.election(at), |_| 256, rows).await?;
    let rows = |audits| ImportAction::Rows { devices: Vec::new(), elections: Vec::new(), audits };
    let size = |a: &AuditRow| 256 + a.details.as_ref().map_or(0, String::len);
    import.newest_first(&old.audits, |at| old.audit(at), size, rows).await?;
    let mut notes = old.notes;
    import.send(ImportAction::Finish).await?;
    notes.extend(import.left.iter().map(|(table, id, why)| format!("{table} row {id}: not taken: {why}")));
    for note in &notes {
        say!("{note}");
    }
    let left = |table: &str| import.left.iter().filter(|(t, ..)| t == table).count();
    say!(
        "{}: {} devices, {} elections, {} audit rows taken over; {} remarks",
        args.file.display(),
        devices - left(DEVICE_ROLES),
        elections - left(ELECTION_LOGS),
        audits - left(AUDIT_LOGS),
        notes.len()
    );
    Ok(())
}

fn begin(old: &OldDatabase) -> ImportAction {
    ImportAction::Begin {
        device_rows: old.devices.iter().map(|d| d.device.id).max().unwrap_or(0),
        sync_rows: old.devices.iter().filter_map(|d| d.sync_state.as_ref()).map(|s| s.id).max().unwrap_or(0),
        election_rows: old.elections.last().map_or(0, |e| e.id),
        audit_rows: old.audits.last().map_or(0, |a| a.id),
    }
}

struct SqliteImport {
    id: String,
    nodes: ClusterNodes,
    left: Vec<(String, u64, String)>,
}

impl SqliteImport {
    async fn send(&mut self, what: ImportAction) -> CliResult {
        let step = ImportStep { import_id: self.id.clone(), what };
        let taken: StepResult = self.nodes.post("/system/import", &step).await?;
        self.left.extend(taken.left.into_iter().map(|l| (l.table_name, l.id, l.why)));
        Ok(())
    }

    async fn devices(&mut self, rows: &[WithState]) -> CliResult {
        // A row has at most some 2 KiB.
        for devices in rows.chunks(BYTES >> 11) {
            let devices = devices.to_vec();
            self.send(ImportAction::Rows { devices, elections: Vec::new(), audits: Vec::new() }).await?;
        }
        Ok(())
    }

    async fn newest_first<T>(
        &mut self,
        places: &[LogRowId],
        read: impl Fn(&LogRowId) -> CliResult<T>,
        bytes: impl Fn(&T) -> usize,
        step: impl Fn(Vec<T>) -> ImportAction,
    ) -> CliResult {
        let (mut some, mut size) = (Vec::new(), 0);
        for place in places.iter().rev() {
            let row = read(place)?;
            size += bytes(&row);
            some.push(row);
            if some.len() >= ROWS || size >= BYTES {
                size = 0;
                self.send(step(std::mem::take(&mut some))).await?;
            }
        }
        if some.is_empty() { Ok(()) } else { self.send(step(some)).await }
    }
}
