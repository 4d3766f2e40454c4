//! After a drill: every sale is looked up on every node, and then taken away again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tillsync::client::rest::FeedChange;
use tillsync::client::{ClientError, NodeUrl};
use tokio::time::{Instant, sleep};

use super::PATIENCE;
use super::cluster::OperatedCluster;
use super::tills::{TABLE, TillsShared};
use crate::history::{FinalState, History, ShownChange};

/// Deletes under way at once.
const AT_ONCE: usize = 16;
/// The device that begins a drill and takes its records away.
const KEEPER: &str = "chaos-drill-0";
const AGAIN: Duration = Duration::from_millis(100);

/// Writes this drill's first record: where its changes begin in the log.
pub(super) async fn begin(shop: &TillsShared) -> Result<String, String> {
    let end = Instant::now() + PATIENCE;
    let mut turn = 0;
    loop {
        let nodes = &shop.cluster.target.nodes;
        match try_begin(shop, &nodes[turn % nodes.len()]).await {
            Ok(cursor) => return Ok(cursor),
            Err(error) if !error.is_passing() || Instant::now() >= end => return Err(error.to_string()),
            Err(_) => turn += 1,
        }
        sleep(AGAIN).await;
    }
}

async fn try_begin(shop: &TillsShared, node: &NodeUrl) -> Result<String, ClientError> {
    let rest = &shop.cluster.rest;
    let keeper = json!({"device_id": KEEPER, "capabilities": ["no-master"]});
    let _: Value = rest.post(node, "/device/register", &keeper).await?;
    let body = json!({
        "device_id": KEEPER, "operation": "insert", "new_data": {"drill": shop.run},
        "request_id": format!("{}-begin", shop.run),
    });
    let done: Value = rest.post(node, &format!("/data/{TABLE}/{}", shop.base), &body).await?;
    let strange = || ClientError::Strange { node: node.clone(), why: format!("an answer without a cursor: {done}") };
    done["cursor"].as_str().map(str::to_owned).ok_or_else(strange)
}

/// This drill's sales as every node tells them, in the log's order.
pub(super) async fn read(shop: &TillsShared, cursor: &str) -> Result<Vec<(u64, Vec<ShownChange>)>, String> {
    let mut found = Vec::new();
    for (place, node) in shop.cluster.target.nodes.iter().enumerate() {
        let rows = sales(&shop.cluster, node, cursor, &shop.run).await.map_err(|error| error.to_string())?;
        found.push((place as u64 + 1, rows));
    }
    Ok(found)
}

async fn sales(cluster: &OperatedCluster, node: &NodeUrl, cursor: &str, run: &str) -> Result<Vec<ShownChange>, String> {
    let (mut rows, mut cursor) = (Vec::new(), cursor.to_owned());
    loop {
        let page = cluster.rest.changes(node, Some(&cursor), &[TABLE]).await.map_err(|error| error.to_string())?;
        rows.extend(page.changes.into_iter().filter_map(|change| row(change, run)));
        if !page.has_more {
            return Ok(rows);
        }
        if page.cursor == cursor {
            return Err(format!("the change feed of {node} does not go on"));
        }
        cursor = page.cursor;
    }
}

fn row(change: FeedChange, run: &str) -> Option<ShownChange> {
    let sale = change.data["sale"].as_str().filter(|sale| sale.split_once('-').is_some_and(|(of, _)| of == run))?;
    Some(ShownChange {
        seq: change.seq,
        table: change.table_name,
        record: change.record_id,
        value: sale.to_owned(),
        device: change.device_id.unwrap_or_default(),
        request_id: sale.to_owned(),
    })
}

/// Puts what was read into the history as the nodes' final logs. Others write to the cluster, too, so this drill's
/// changes are numbered anew, without the gaps that those leave: what the checkers look at is their order.
pub(super) fn conclude(history: &mut History, found: Vec<(u64, Vec<ShownChange>)>) {
    let told = found.iter().flat_map(|(_, rows)| rows.iter().map(|row| row.seq));
    let seqs: BTreeSet<u64> = told.chain(history.ops.iter().filter_map(|op| op.version)).collect();
    let anew: BTreeMap<u64, u64> = seqs.into_iter().zip(1..).collect();
    for op in &mut history.ops {
        op.version = op.version.and_then(|seq| anew.get(&seq).copied());
    }
    let head = anew.len() as u64;
    for (node, mut rows) in found {
        for row in &mut rows {
            row.seq = anew.get(&row.seq).copied().unwrap_or(0);
        }
        history.finals.push(FinalState {
            node,
            applied: head,
            head,
            previous: vec![0; rows.len()],
            changes: rows,
            ..FinalState::default()
        });
    }
}

/// Deletes what the drill wrote; how many records could not be deleted.
pub(super) async fn sweep(shop: &TillsShared, records: BTreeSet<i64>) -> usize {
    let nodes = &shop.cluster.target.nodes;
    let deletes = records.into_iter().enumerate().map(|(turn, record)| async move {
        let body =
            json!({"device_id": KEEPER, "operation": "delete", "request_id": format!("{}-delete-{record}", shop.run)});
        let path = format!("/data/{TABLE}/{record}");
        for attempt in 0..3 {
            let node = &nodes[(turn + attempt) % nodes.len()];
            if shop.cluster.rest.post::<Value>(node, &path, &body).await.is_ok() {
                return 0;
            }
        }
        1
    });
    futures_util::stream::iter(deletes).buffer_unordered(AT_ONCE).fold(0, async |sum, failed| sum + failed).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Expectations, Verdict, check};
    use crate::history::{Op, OpRequest};
    use crate::invariants::samples;

    fn sold(id: u64, seq: u64) -> Op {
        let (value, record) = (format!("a-{id}"), id as i64);
        let asked = OpRequest::Write { table: TABLE.into(), record, request_id: value.clone(), value, base: None };
        Op { version: Some(seq), ..samples::op(id, asked) }
    }

    fn there(id: u64, seq: u64) -> ShownChange {
        let value = format!("a-{id}");
        let record = id as i64;
        ShownChange { seq, table: TABLE.into(), record, request_id: value.clone(), value, device: "till-1".into() }
    }

    fn verdict(found: Vec<(u64, Vec<ShownChange>)>) -> Verdict {
        let mut history = History { ops: vec![sold(1, 40), sold(2, 44), sold(3, 51)], ..History::default() };
        conclude(&mut history, found);
        check(&history, Expectations { gap: Duration::from_secs(5) })
    }

    #[test]
    fn sales_among_others_changes_are_checked_and_what_is_lost_or_doubled_is_found() {
        let all = || vec![there(1, 40), there(2, 44), there(3, 51)];
        assert!(verdict(vec![(1, all()), (2, all())]).holds());
        // One node lacks a sale; all do; one sale is there twice.
        assert_eq!(verdict(vec![(1, all()), (2, vec![there(1, 40), there(3, 51)])]).broken(), ["one_log"]);
        let without = || vec![there(1, 40), there(2, 44)];
        assert_eq!(verdict(vec![(1, without()), (2, without())]).broken(), ["exactly_once", "one_log"]);
        let twice = || [all(), vec![there(2, 60)]].concat();
        assert!(verdict(vec![(1, twice()), (2, twice())]).broken().contains(&"exactly_once"));
    }

    #[test]
    fn only_this_drills_sales_count() {
        let change = |data: Value| FeedChange {
            seq: 7,
            table_name: TABLE.into(),
            record_id: 1,
            operation: "insert".into(),
            data,
            device_id: Some("till-1".into()),
            timestamp: None,
        };
        assert_eq!(row(change(json!({"sale": "a-1"})), "a"), Some(there(1, 7)));
        for other in [json!({"sale": "b-1"}), json!({"sale": "ab-1"}), json!({}), json!({"drill": "a"})] {
            assert_eq!(row(change(other), "a"), None);
        }
    }
}
