//! The end of a run: everything heals, and then it must converge and serve again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tillsync::cluster::{Cluster, SharedCluster};
use tillsync::consensus::runtime::spawn;
use tillsync::ids::{AuditId, ConflictId, ElectionId, Seq};
use tillsync::limits;
use tillsync::model::read;
use tillsync::model::state::State;
use tillsync::model::tables::{RowKey, TablesError, TablesRead, decode};
use tillsync::proto::command::Intent;
use tillsync::proto::{
    Audit, Change, Conflict, DataUpdate, DeviceOnline, Operation, PolicyPut, Presence, ResolutionMethod, SyncStatus,
};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::Xxh3;

use super::world::{SimWorld, UpNode};
use crate::clients::device::GUARDED;
use crate::history::{ConflictHeld, FinalState, HeldRecord, ShownChange, ShownElection, TableAudit};

/// How long healing may take, in simulated time. Far more than it does.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Proposes until it is done; false if that takes too long.
pub(crate) async fn insist(world: &SimWorld, intent: Intent) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        for up in world.up().into_values() {
            let cluster: SharedCluster = up.cluster;
            if cluster.propose(intent.clone()).await.is_ok() {
                return true;
            }
        }
        sleep(PAUSE).await;
    }
    false
}

/// The policy that makes a refused conditional write a sure answer.
pub(crate) fn policy() -> Intent {
    let policy = ResolutionMethod::Manual.into();
    Intent::PolicyPut(PolicyPut { table_name: GUARDED.into(), policy, by: "chaos".into(), ..PolicyPut::default() })
}

/// All nodes up, all links whole, all disks and clocks right.
pub(crate) async fn heal(world: &Arc<SimWorld>) {
    world.held.lock().clear();
    world.router.heal();
    for id in world.ids() {
        world.with(id, |place| {
            place.disk.mend();
            place.clock.skew(0);
        });
    }
    let until = Instant::now() + PATIENCE;
    while world.is_starting() && Instant::now() < until {
        sleep(PAUSE).await;
    }
    for id in world.ids() {
        let world = world.clone();
        spawn(async move { world.start(id).await });
    }
    while world.up().len() < world.ids().len() {
        if Instant::now() >= until {
            return world.recorder.anomaly("not all nodes started again");
        }
        sleep(PAUSE).await;
    }
}

/// A fresh write and a fresh read on every node.
pub(crate) async fn serve_again(world: &SimWorld) {
    let device = "closing";
    let presence = Presence::Rest.into();
    let online = DeviceOnline { device_id: device.into(), presence, ..DeviceOnline::default() };
    if !insist(world, Intent::DeviceOnline(online)).await {
        return world.recorder.anomaly("after healing no device could come online");
    }
    for (id, up) in world.up() {
        let update = DataUpdate {
            device_id: device.into(),
            table_name: "closing".into(),
            record_id: id as i64,
            operation: Operation::Update.into(),
            data: Bytes::from(format!("{{\"v\":\"closing-{id}\"}}")),
            request_id: format!("closing-{id}"),
            ..DataUpdate::default()
        };
        let until = Instant::now() + PATIENCE;
        while let Err(error) = up.cluster.propose(Intent::DataUpdate(update.clone())).await {
            if Instant::now() >= until {
                world.recorder.anomaly(format!("after healing node {id} takes no write: {error}"));
                break;
            }
            sleep(PAUSE).await;
        }
        while let Err(error) = up.cluster.read_barrier().await {
            if Instant::now() >= until {
                world.recorder.anomaly(format!("after healing node {id} serves no read: {error}"));
                break;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Whatever the clocks said meanwhile: the time of the cluster is not ahead of the right one.
pub(crate) fn time_is_right(world: &SimWorld) {
    for (id, up) in world.up() {
        let now_ms = up.cluster.replica().state().meta().now_ms;
        let mut right = u64::MAX - limits::NODE_CLOCK_APART_MS * 2;
        world.with(id, |place| right = place.clock.right_ms());
        if now_ms > right + limits::NODE_CLOCK_APART_MS * 2 {
            world.recorder.anomaly(format!("the time ran away: node {id} has applied {now_ms}, it is {right}"));
        }
    }
}

/// When nothing fails any more elections are over, and the master's home is the leader.
pub(crate) async fn bring_the_master_home(world: &SimWorld) {
    let until = Instant::now() + PATIENCE;
    loop {
        let (leader, up) = (world.leader(), world.up());
        let stands = leader.and_then(|leader| up.get(&leader)).map(|up| {
            let state = up.cluster.replica().state();
            let master = state.master().map(|master| (master.device_id.clone(), master.home, master.is_active));
            (state.meta().needs_manual_election, master, state.meta().pending_election.is_some())
        });
        let home = stands.as_ref().and_then(|(_, master, _)| master.as_ref()).filter(|master| master.2);
        // After an election that failed someone has to ask for the next one.
        let stalled = stands.as_ref().is_some_and(|(stalled, ..)| *stalled);
        let electing = stands.as_ref().is_none_or(|(.., electing)| *electing);
        if !electing && (stalled || home.map(|(_, home, _)| *home) == leader) {
            return;
        }
        if Instant::now() >= until {
            let what =
                format!("the master's home is not the leader, or an election goes on: {leader:?} leads, {stands:?}");
            return world.recorder.anomaly(what);
        }
        sleep(PAUSE).await;
    }
}

/// All nodes have applied the same; then what each of them holds.
pub(crate) async fn converge(world: &SimWorld) {
    let until = Instant::now() + PATIENCE;
    loop {
        let up = world.up();
        let applied: Vec<_> = up.values().map(|up| up.cluster.replica().applied_index()).collect();
        let ends: Vec<_> = up.values().map(|up| up.cluster.status().last_log_index).collect();
        if applied.iter().chain(&ends).all(|index| *index == applied[0]) {
            // Nothing is awaited from here on: all nodes are looked at in one moment.
            match up.iter().map(|(id, up)| holds(*id, up)).collect::<Result<Vec<_>, _>>() {
                Ok(finals) => world.recorder.finals(finals),
                Err(error) => world.recorder.anomaly(format!("rows cannot be read: {error}")),
            }
            return;
        }
        if Instant::now() >= until {
            return world.recorder.anomaly(format!("the nodes do not converge: applied {applied:?}, logs {ends:?}"));
        }
        sleep(PAUSE).await;
    }
}

fn holds(node: u64, up: &UpNode) -> Result<FinalState, TablesError> {
    let state = up.cluster.replica().state();
    let (meta, reader) = (state.meta().clone(), state.reader());
    let rows: &dyn TablesRead = &*reader;
    let mut hash = Xxh3::new();
    for (key, value) in rows.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false)? {
        let mut bytes = Vec::new();
        key.canonical(&mut bytes);
        hash.update(&bytes);
        hash.update(&value);
    }
    let (mut changes, mut previous, mut committed_ms) = (Vec::new(), Vec::new(), Vec::new());
    let mut audit_ids = Vec::new();
    for seq in meta.compacted_seq + 1..=meta.head_seq {
        // A hole is for the checkers to find.
        if let Some(change) = read::change(rows, Seq(seq))? {
            previous.push(change.previous_seq);
            committed_ms.push(change.committed_ms);
            audit_ids.push(change.audit_id);
            changes.push(row_of(&change));
        }
    }
    let elections = read::elections(rows, ElectionId(meta.election_head), usize::MAX, 0)?.into_iter().rev();
    let elections =
        elections.map(|e| ShownElection { id: e.id, term: e.term, previous: e.previous_master, new: e.new_master });
    let synced = |status: SyncStatus| status == SyncStatus::Synced;
    let sync_states = state.devices().filter_map(|device| state.sync_state(&device.device_id));
    Ok(FinalState {
        node,
        applied: state.applied().index,
        digest: state.digest(),
        rows: format!("{:032x}", hash.digest128()),
        head: meta.head_seq,
        compacted: meta.compacted_seq,
        changes,
        previous,
        elections: elections.collect(),
        sync_states: sync_states.map(|s| (s.device_id.clone(), s.cursor_seq, synced(s.sync_status()))).collect(),
        committed_ms,
        records: records(&state, rows)?,
        conflicts: conflicts(rows)?,
        table_audits: table_audits(rows, meta.compacted_seq, &audit_ids)?,
    })
}

/// All records that exist.
fn records(state: &State, rows: &dyn TablesRead) -> Result<Vec<HeldRecord>, TablesError> {
    let (mut held, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = state.records_after(after, 1_000, |_| true);
        let (page, _) = read::records_data(rows, page, usize::MAX)?;
        held.extend(page.into_iter().map(|(at, data)| {
            let table = state.tables().get(at.table.place()).map(|table| table.name.clone()).unwrap_or_default();
            HeldRecord { table, record: at.id.get(), seq: at.seq.get(), value: value_of(&data) }
        }));
        after = next;
        if after.is_none() {
            held.sort_unstable();
            return Ok(held);
        }
    }
}

/// What lost against a record, of open conflicts and of decided ones.
fn conflicts(rows: &dyn TablesRead) -> Result<Vec<ConflictHeld>, TablesError> {
    let mut held = Vec::new();
    for (key, value) in
        rows.range(&RowKey::Conflict(ConflictId(0)), &RowKey::Conflict(ConflictId::MAX), usize::MAX, false)?
    {
        let conflict: Conflict = decode(&key, value)?;
        let value = value_of(&conflict.remote_version);
        held.push(ConflictHeld { id: conflict.id, table: conflict.table_name, record: conflict.record_id, value });
    }
    Ok(held)
}

/// What the audit log says of tables that were removed. `audit_ids` are the audit numbers of the changes after `compacted`.
fn table_audits(rows: &dyn TablesRead, compacted: u64, audit_ids: &[u64]) -> Result<Vec<TableAudit>, TablesError> {
    let mut found = Vec::new();
    for (key, value) in rows.range(&RowKey::Audit(AuditId(0)), &RowKey::Audit(AuditId::MAX), usize::MAX, false)? {
        let audit: Audit = decode(&key, value)?;
        if audit.event_type != "table_remove" {
            continue;
        }
        let about = audit.details.strip_prefix("Table ").and_then(|details| details.split_once(" is "));
        let (table, what) = about.unwrap_or_default();
        let count = what.strip_prefix("removed; ").and_then(|what| what.split_once(' '));
        let deleted = count.and_then(|(count, _)| count.parse().ok());
        let before = audit_ids.partition_point(|id| *id < audit.id) as u64;
        let head = (before > 0 || compacted == 0).then_some(compacted + before);
        found.push(TableAudit { by: audit.device_id, table: table.to_owned(), deleted, head });
    }
    Ok(found)
}

fn value_of(data: &[u8]) -> String {
    let data: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
    data["v"].as_str().unwrap_or_default().to_owned()
}

fn row_of(change: &Change) -> ShownChange {
    ShownChange {
        seq: change.seq,
        table: change.table_name.clone(),
        record: change.record_id,
        value: value_of(&change.data),
        device: change.device_id.clone(),
        request_id: change.request_id.clone(),
    }
}
