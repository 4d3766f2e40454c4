//! The end of a run: everything heals, and then it must converge and serve again; what each node holds is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tillsync::token::Class;
use xxhash_rust::xxh3::Xxh3;

use super::http::{HttpClient, Refusal};
use super::monitor::{start, until};
use super::world::ProcessWorld;
use crate::clients::client::row;
use crate::clients::device::GUARDED;
use crate::history::{ConflictHeld, FinalState, HeldRecord, ShownChange, ShownElection};

/// How long healing may take. Far more than it does.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long all that nodes hold may be read again, because something was applied meanwhile. After a long run one reading
/// takes half a minute.
const REST: Duration = Duration::from_secs(300);
/// How long reading a page may take.
const PAGE: Duration = Duration::from_secs(10);
const LIMIT: u64 = 1_000;
/// Who writes at the end.
pub(super) const CLOSING: &str = "closing";

/// The policy that makes a refused conditional write a sure answer.
pub(super) async fn policy(world: &ProcessWorld) -> Result<(), String> {
    let path = format!("/sync/policies/{GUARDED}");
    let body = json!({ "policy": "manual" });
    let mut last = String::new();
    let done = until(PATIENCE, async || {
        for node in world.cluster.members() {
            match world.ask(node, "PUT", &path, Some(&body), PAGE).await {
                Ok(_) => return true,
                Err(why) => last = why.to_string(),
            }
        }
        false
    });
    if done.await { Ok(()) } else { Err(format!("the policy of a table cannot be set: {last}")) }
}

/// All nodes up, all links whole, all disks and clocks right.
pub(super) async fn heal(world: &Arc<ProcessWorld>) {
    world.cluster.network.heal();
    for id in world.cluster.members() {
        world.cluster.hold(id, false);
        world.cluster.disks.free(id);
        if !start(world, id, PATIENCE).await {
            let why = world.cluster.last_line(id);
            world.recorder.anomaly(format!("node {id} does not serve {PATIENCE:?} after everything healed: {why}"));
        }
    }
    if !until(PATIENCE, async || world.cluster.majority()).await {
        world.recorder.anomaly("there is no majority after everything healed");
    }
}

/// A fresh write and a fresh read on every node.
pub(super) async fn serve_again(world: &ProcessWorld) {
    let Ok(token) = world.cluster.token_of(CLOSING, Class::Manager) else { return };
    for node in world.cluster.members() {
        let Some(authority) = world.cluster.gateway(node) else { continue };
        let door = HttpClient { authority: &authority, token: &token, within: PAGE };
        let online = json!({ "device_id": CLOSING, "priority": 0, "capabilities": ["no-master"] });
        let id = format!("closing-{node}");
        let write = json!({
            "device_id": CLOSING, "operation": "update", "new_data": { "v": id, "r": id }, "request_id": id,
        });
        let record = format!("/data/{CLOSING}/{node}");
        let mut last = String::new();
        let done = until(PATIENCE, async || {
            let tried: Result<(), Refusal> = async {
                door.call("POST", "/device/register", Some(&online)).await?;
                door.call("POST", &record, Some(&write)).await?;
                let seen: Value = serde_json::from_slice(&door.get(&record).await?).unwrap_or_default();
                if seen["data"]["v"] == json!(id) {
                    Ok(())
                } else {
                    Err(Refusal::Lost(format!("it read {seen} after it had written {id}")))
                }
            }
            .await;
            tried.map_err(|why| last = why.to_string()).is_ok()
        });
        if !done.await {
            world.recorder.anomaly(format!("after healing node {node} does not write and read: {last}"));
        }
    }
}

/// Every client is connected, has its answers, and was told everything.
pub(super) async fn all_told(world: &ProcessWorld) {
    let within = PATIENCE;
    let mut missing = Vec::new();
    let told = until(within, async || {
        // Who has nothing to do any more writes nothing any more: the head that is looked up then is the last one.
        missing = world.busy.lock().iter().map(|name| format!("{name}: busy")).collect();
        if !missing.is_empty() {
            return false;
        }
        let statuses = world.statuses().await;
        let Some(head) = statuses.iter().map(|status| status.head_seq).max() else { return false };
        let reached = world.reached.lock();
        let behind = reached.iter().filter(|(_, seq)| **seq < head);
        missing = behind.map(|(session, seq)| format!("session {session}: told up to {seq} of {head}")).collect();
        missing.is_empty()
    });
    if !told.await {
        world
            .recorder
            .anomaly(format!("{within:?} after everything healed not all clients were told all: {missing:?}"));
    }
}

/// All nodes have applied the same; then what each of them holds.
pub(super) async fn converge(world: &ProcessWorld) {
    let members = world.cluster.members().len();
    if !until(PATIENCE, async || world.statuses().await.len() >= members).await {
        world.recorder.anomaly("the nodes do not converge: not all of them answer");
        return;
    }
    let mut why = String::new();
    let read = until(REST, async || {
        let at = |statuses: &[tillsync::client::rest::NodeStatus]| -> Vec<u64> {
            statuses.iter().map(|status| status.digest_index).collect()
        };
        let before = world.statuses().await;
        let indexes = at(&before);
        if before.len() < world.cluster.members().len() || indexes.iter().any(|index| *index != indexes[0]) {
            why = format!("the nodes do not converge: they have applied {indexes:?}");
            return false;
        }
        let reads = before.iter().map(|status| holds(world, status.node, (&status.digest, status.head_seq)));
        let mut finals = Vec::new();
        for (status, read) in before.iter().zip(join_all(reads).await) {
            match read {
                Ok((applied, node)) if applied == status.digest_index => finals.push(node),
                Ok((applied, _)) => {
                    let (node, before) = (status.node, status.digest_index);
                    why = format!("node {node} does not come to rest: it has applied {applied}, and {before} before");
                    return false;
                }
                Err(refusal) => {
                    why = format!("what node {} holds cannot be read: {refusal}", status.node);
                    return false;
                }
            }
        }
        // Something may have been applied meanwhile: then all of it is read again.
        if at(&world.statuses().await) != indexes {
            why = "the nodes do not come to rest".into();
            return false;
        }
        world.recorder.finals(finals);
        true
    });
    if !read.await {
        world.recorder.anomaly(why);
    }
}

async fn get(world: &ProcessWorld, node: u64, path: &str, hash: Option<&mut Xxh3>) -> Result<Value, Refusal> {
    let body = world.ask(node, "GET", path, None, PAGE).await?;
    if let Some(hash) = hash {
        hash.update(&body);
    }
    serde_json::from_slice(&body).map_err(|error| Refusal::Lost(format!("{path}: {error}")))
}

fn rows<'a>(page: &'a Value, name: &str) -> &'a [Value] {
    page[name].as_array().map_or(&[], |rows| rows)
}

/// What a node holds, and the index that its devices and sync states belong to.
async fn holds(world: &ProcessWorld, node: u64, (digest, head): (&str, u64)) -> Result<(u64, FinalState), Refusal> {
    let mut hash = Xxh3::new();
    let snapshot = get(world, node, "/system/export", Some(&mut hash)).await?;
    let (mut committed, mut records) = (BTreeMap::new(), Vec::new());
    for log in ["elections", "audit", "records"] {
        let mut after = String::new();
        loop {
            let path = format!("/system/export/{log}?limit={LIMIT}{after}");
            let page = get(world, node, &path, Some(&mut hash)).await?;
            match log {
                "audit" => committed.extend(rows(&page, "rows").iter().filter_map(committed_of)),
                "records" => records.extend(rows(&page, "rows").iter().map(held)),
                _ => {}
            }
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
    }
    let mut changes = Vec::new();
    let mut cursor = snapshot["cursor"].as_str().unwrap_or_default().to_owned();
    loop {
        let path = format!("/sync/changes?consistency=stale&limit={LIMIT}&cursor={cursor}");
        let page = get(world, node, &path, None).await?;
        changes.extend(rows(&page, "changes").iter().map(|change| row(change, "data")));
        if page["has_more"] != json!(true) {
            break;
        }
        page["cursor"].as_str().unwrap_or_default().clone_into(&mut cursor);
    }
    let mut elections = Vec::new();
    loop {
        let path = format!("/sync/master-election-logs?consistency=stale&limit={LIMIT}&offset={}", elections.len());
        let page = get(world, node, &path, None).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        elections.extend(rows(&page, "logs").iter().map(|row| ShownElection {
            id: number(&row["id"]),
            term: number(&row["term"]),
            previous: text(&row["previous_master_id"]),
            new: text(&row["new_master_id"]),
        }));
        if (rows(&page, "logs").len() as u64) < LIMIT {
            break;
        }
    }
    elections.reverse();
    let mut sync_states = Vec::new();
    for state in rows(&snapshot, "sync_states") {
        let Some(device) = state["device_id"].as_str() else { continue };
        let state = get(world, node, &format!("/sync/state/{device}?consistency=stale"), None).await?;
        // Versions without this field: the check is left out.
        let Some((_, seq)) = state["cursor"].as_str().and_then(|text| text.split_once('.')) else { continue };
        let synced = state["sync_status"] == json!("synced");
        sync_states.push((device.to_owned(), seq.parse().unwrap_or(0), synced));
    }
    let conflicts = conflicts(world, node).await?;
    let committed_ms = committed_ms(&changes, &committed).map_err(Refusal::Lost)?;
    let masters: Vec<_> = rows(&snapshot, "devices").iter().filter(|d| d["role"] == json!("master")).collect();
    if masters.len() > 1 {
        world.recorder.anomaly(format!("node {node} holds several masters: {masters:?}"));
    }
    let compacted = snapshot["compacted_seq"].as_u64().unwrap_or(0);
    let applied = snapshot["applied_index"].as_u64().unwrap_or(0);
    Ok((
        applied,
        FinalState {
            node,
            applied,
            digest: digest.to_owned(),
            rows: format!("{:032x}", hash.digest128()),
            head,
            compacted,
            previous: previous(world, compacted, &changes),
            changes,
            elections,
            sync_states,
            committed_ms,
            records,
            conflicts,
            ..FinalState::default()
        },
    ))
}

/// The change that an audit row is about, and when it was applied.
fn committed_of(audit: &Value) -> Option<(u64, u64)> {
    let (_, change) = audit["details"].as_str()?.split_once(" as change ")?;
    let (seq, _) = change.split_once(" at ")?;
    Some((seq.parse().ok()?, audit["at_ms"].as_u64()?))
}

/// When each change was applied. Audit rows of the oldest may be gone: those count as applied before every time.
fn committed_ms(changes: &[ShownChange], committed: &BTreeMap<u64, u64>) -> Result<Vec<u64>, String> {
    let mut times = Vec::with_capacity(changes.len());
    for row in changes {
        match (committed.get(&row.seq), times.last()) {
            (Some(at), _) => times.push(*at),
            (None, None | Some(0)) => times.push(0),
            (None, Some(_)) => return Err(format!("the audit log lacks change {}", row.seq)),
        }
    }
    Ok(times)
}

fn held(record: &Value) -> HeldRecord {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    HeldRecord {
        table: text(&record["table_name"]),
        record: record["record_id"].as_i64().unwrap_or(0),
        seq: record["version"].as_u64().unwrap_or(0),
        value: text(&record["data"]["v"]),
    }
}

/// What lost against a record, of open conflicts and of decided ones.
async fn conflicts(world: &ProcessWorld, node: u64) -> Result<Vec<ConflictHeld>, Refusal> {
    let (mut held, mut offset) = (Vec::new(), 0);
    loop {
        let path = format!("/sync/conflicts?status=all&consistency=stale&limit={LIMIT}&offset={offset}");
        let page = get(world, node, &path, None).await?;
        held.extend(rows(&page, "conflicts").iter().map(|row| ConflictHeld {
            id: row["conflict_id"].as_u64().unwrap_or(0),
            table: row["table_name"].as_str().unwrap_or_default().to_owned(),
            record: row["record_id"].as_i64().unwrap_or(0),
            value: row["conflict_data"]["remote_version"]["v"].as_str().unwrap_or_default().to_owned(),
        }));
        let Some(next) = page["next_offset"].as_u64() else { return Ok(held) };
        offset = next;
    }
}

/// The version that each change replaced, as the order of the log has it: nodes do not tell. What is compacted is known
/// from what clients were told.
fn previous(world: &ProcessWorld, compacted: u64, changes: &[ShownChange]) -> Vec<u64> {
    let mut newest = if compacted > 0 { world.recorder.newest_told(compacted) } else { BTreeMap::new() };
    changes.iter().map(|row| newest.insert((row.table.clone(), row.record), row.seq).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_log_tells_when_a_change_was_applied() {
        let row = json!({
            "id": 9, "event_type": "DATA_UPDATE", "device_id": "till-1", "at_ms": 1_700,
            "details": "update of stock/1 as change 12 at 2026-11-28T00:00:00.000Z",
        });
        assert_eq!(committed_of(&row), Some((12, 1_700)));
        assert_eq!(committed_of(&json!({ "details": "till-1 came online", "at_ms": 1 })), None);
        let changes: Vec<ShownChange> = [11, 12, 13].map(crate::invariants::samples::row).into();
        let times = |known: &[(u64, u64)]| committed_ms(&changes, &known.iter().copied().collect());
        assert_eq!(times(&[(11, 5), (12, 5), (13, 8)]), Ok(vec![5, 5, 8]));
        assert_eq!(times(&[(12, 5), (13, 8)]), Ok(vec![0, 5, 8]), "the oldest row is gone");
        assert_eq!(times(&[(11, 5), (13, 8)]), Err("the audit log lacks change 12".into()));
    }
}
