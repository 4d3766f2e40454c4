//! What was promised, checked against what every node and every device has.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::TABLE;
use super::device::DeviceJournal;
use crate::client::NodeUrl;
use crate::client::rest::{FeedChange, RestClient};

const PATIENCE: Duration = Duration::from_secs(20);

/// One promise: what it says, and what was found instead if it did not hold.
#[derive(Clone, Debug)]
pub(super) struct PromiseCheck {
    pub what: &'static str,
    pub found: Result<String, String>,
}

/// Checks everything. A question that a node does not answer counts as a promise that did not hold.
pub(super) async fn all(
    rest: &RestClient,
    nodes: &[NodeUrl],
    journals: &[DeviceJournal],
    total: usize,
) -> Vec<PromiseCheck> {
    let feeds = feeds(rest, nodes, total).await;
    let (once, order) = match &feeds {
        Ok(feeds) => (written_once(feeds, journals, total), same_order(feeds, journals)),
        Err(why) => (Err(why.clone()), Err(why.clone())),
    };
    vec![
        PromiseCheck { what: "every acknowledged write exactly once on every node", found: once },
        PromiseCheck { what: "the same order on every node and seen by every device", found: order },
        PromiseCheck { what: "equal digests at an equal index on all nodes", found: digests(rest, nodes).await },
    ]
}

/// The change feed of each node, when it has everything.
async fn feeds(rest: &RestClient, nodes: &[NodeUrl], total: usize) -> Result<Vec<Vec<FeedChange>>, String> {
    let end = Instant::now() + PATIENCE;
    let mut feeds = Vec::with_capacity(nodes.len());
    for node in nodes {
        loop {
            let mut feed = Vec::with_capacity(total);
            let why = match rest.each_change(node, &[TABLE], |change| feed.push(change)).await {
                Ok(()) if feed.len() >= total => {
                    feeds.push(feed);
                    break;
                }
                Ok(()) => format!("{node} has {} of {total} changes", feed.len()),
                Err(e) => e.to_string(),
            };
            if Instant::now() >= end {
                return Err(why);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(feeds)
}

fn written_once(feeds: &[Vec<FeedChange>], journals: &[DeviceJournal], total: usize) -> Result<String, String> {
    let acked: Vec<_> = journals.iter().flat_map(|j| j.acked.iter().map(move |a| (j.device, a))).collect();
    if acked.len() != total {
        return Err(format!("{} of {total} lines were acknowledged", acked.len()));
    }
    for (node, feed) in feeds.iter().enumerate() {
        let node = node + 1;
        let mut by_record: HashMap<i64, Vec<&FeedChange>> = HashMap::new();
        for change in feed {
            by_record.entry(change.record_id).or_default().push(change);
        }
        for (device, ack) in &acked {
            match by_record.remove(&ack.record_id).as_deref() {
                Some([one]) if one.seq == ack.seq && one.device_id.as_deref() == Some(*device) => {}
                Some([one]) => {
                    return Err(format!(
                        "node {node}: record {} of {device} was acknowledged as change {} and is change {}",
                        ack.record_id, ack.seq, one.seq
                    ));
                }
                Some(many) => {
                    return Err(format!("node {node}: record {} is there {} times", ack.record_id, many.len()));
                }
                None => return Err(format!("node {node}: record {} is missing", ack.record_id)),
            }
        }
        if let Some(record) = by_record.keys().next() {
            return Err(format!("node {node}: record {record} was never acknowledged"));
        }
    }
    Ok(format!("{total} of {total}"))
}

fn same_order(feeds: &[Vec<FeedChange>], journals: &[DeviceJournal]) -> Result<String, String> {
    let Some((first, others)) = feeds.split_first() else { return Err("no node answered".into()) };
    if !first.windows(2).all(|w| w[0].seq < w[1].seq) {
        return Err("the changes of node 1 are not in the order of seq".into());
    }
    for (node, feed) in others.iter().enumerate() {
        if let Some((a, b)) = first.iter().zip(feed).find(|(a, b)| a != b) {
            return Err(format!("node {} has change {} where node 1 has {}", node + 2, b.seq, a.seq));
        }
        if feed.len() != first.len() {
            return Err(format!("node {} has {} changes, node 1 has {}", node + 2, feed.len(), first.len()));
        }
    }
    let order: Vec<_> = first.iter().map(|c| (c.seq, c.record_id)).collect();
    for journal in journals {
        if let Some(place) = journal.received.iter().zip(&order).position(|(a, b)| a != b) {
            let (device, got, want) = (journal.device, journal.received[place].0, order[place].0);
            return Err(format!("{device} received change {got} where {want} was next"));
        }
        if journal.received.len() != order.len() {
            return Err(format!("{} received {} of {} changes", journal.device, journal.received.len(), order.len()));
        }
    }
    Ok(format!("{} nodes, {} devices", feeds.len(), journals.len()))
}

/// The nodes go on applying (presence, for one), so an index that all have been seen at is waited for.
async fn digests(rest: &RestClient, nodes: &[NodeUrl]) -> Result<String, String> {
    let end = Instant::now() + PATIENCE;
    let mut seen: BTreeMap<u64, HashMap<usize, String>> = BTreeMap::new();
    let mut why = String::from("no index was seen on all nodes");
    while Instant::now() < end {
        for (i, node) in nodes.iter().enumerate() {
            match rest.status(node).await {
                Ok(s) => drop(seen.entry(s.digest_index).or_default().insert(i, s.digest)),
                Err(e) => why = e.to_string(),
            }
        }
        if let Some((index, digests)) = seen.iter().rev().find(|(_, d)| d.len() == nodes.len()) {
            let first = &digests[&0];
            if first.is_empty() {
                return Err("the nodes give no digest".into());
            }
            if digests.values().all(|d| d == first) {
                return Ok(format!("{} at index {index}", first.chars().take(16).collect::<String>()));
            }
            return Err(format!("at index {index}: {digests:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::super::device::AckedLine;
    use super::*;
    use crate::client::link::ClientTransport;

    fn feed(records: &[i64]) -> Vec<FeedChange> {
        let change = |(i, record): (usize, &i64)| FeedChange {
            seq: i as u64 + 1,
            table_name: TABLE.into(),
            record_id: *record,
            operation: "insert".into(),
            data: serde_json::Value::Null,
            device_id: Some("d".into()),
            timestamp: None,
        };
        records.iter().enumerate().map(change).collect()
    }

    fn journal(acked: &[(i64, u64)], received: &[(u64, i64)]) -> DeviceJournal {
        let ack = |(record_id, seq): &(i64, u64)| AckedLine { record_id: *record_id, seq: *seq, at: Instant::now() };
        DeviceJournal {
            device: "d",
            transport: ClientTransport::Ws,
            acked: acked.iter().map(ack).collect(),
            received: received.to_vec(),
            reconnects: 0,
        }
    }

    #[test]
    fn what_holds_passes() {
        let (feeds, journal) = (vec![feed(&[7, 8]); 3], journal(&[(7, 1), (8, 2)], &[(1, 7), (2, 8)]));
        assert!(written_once(&feeds, std::slice::from_ref(&journal), 2).is_ok());
        assert!(same_order(&feeds, &[journal]).is_ok());
    }

    /// A check that cannot fail proves nothing.
    #[test]
    fn what_does_not_hold_is_found() {
        let good = feed(&[7, 8]);
        let acked = [(7, 1), (8, 2)];
        for (bad, says) in [
            (feed(&[7]), "record 8 is missing"),
            (feed(&[7, 8, 8]), "record 8 is there 2 times"),
            (feed(&[8, 7]), "acknowledged as change 1 and is change 2"),
            (feed(&[7, 8, 9]), "record 9 was never acknowledged"),
        ] {
            let why = written_once(&[good.clone(), bad], &[journal(&acked, &[])], 2).unwrap_err();
            assert!(why.contains(says) && why.starts_with("node 2"), "{why}");
        }
        for (received, says) in [
            (vec![(2, 8), (1, 7)], "received change 2 where 1 was next"),
            (vec![(1, 7)], "received 1 of 2"),
            (vec![(1, 7), (2, 8), (2, 8)], "received 3 of 2"),
        ] {
            let why = same_order(std::slice::from_ref(&good), &[journal(&acked, &received)]).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
        let why = same_order(&[good.clone(), feed(&[8, 7])], &[]).unwrap_err();
        assert!(why.contains("node 2"), "{why}");
    }
}
