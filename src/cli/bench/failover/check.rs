//! Every acknowledged write is there, once, as the change that it was acknowledged as.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::MeasuredCluster;
use super::crew::TABLE;
use super::journal::AckedWrite;
use crate::cli::{CliResult, CommandError};
use crate::client::rest::FeedChange;

const PATIENCE: Duration = Duration::from_secs(20);

/// Writes lost and writes doubled, on the node that has the most of either.
pub(super) async fn all(stage: &MeasuredCluster, acked: &[AckedWrite]) -> CliResult<(u64, u64)> {
    let newest = acked.iter().map(|ack| ack.seq).max().unwrap_or(0);
    let (mut lost, mut doubled) = (0, 0);
    for node in &stage.target.nodes {
        let end = Instant::now() + PATIENCE;
        let feed = loop {
            let mut feed: Vec<FeedChange> = Vec::with_capacity(acked.len());
            stage.rest.each_change(node, &[TABLE], |change| feed.push(change)).await?;
            if feed.last().is_some_and(|change| change.seq >= newest) || acked.is_empty() {
                break feed;
            }
            if Instant::now() >= end {
                return Err(CommandError::new(format!("{node} does not come up to change {newest}")));
            }
        };
        let found = compare(&feed, acked);
        (lost, doubled) = (lost.max(found.0), doubled.max(found.1));
    }
    Ok((lost, doubled))
}

fn compare(feed: &[FeedChange], acked: &[AckedWrite]) -> (u64, u64) {
    let mut there: HashMap<i64, Vec<u64>> = HashMap::with_capacity(feed.len());
    for change in feed {
        there.entry(change.record_id).or_default().push(change.seq);
    }
    let is_lost = |ack: &&AckedWrite| there.get(&ack.record).is_none_or(|seqs| !seqs.contains(&ack.seq));
    let lost = acked.iter().filter(is_lost).count();
    let doubled = there.values().filter(|seqs| seqs.len() > 1).count();
    (lost as u64, doubled as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_there_twice_is_found() {
        let change = |seq, record_id| FeedChange {
            seq,
            table_name: TABLE.into(),
            record_id,
            operation: "update".into(),
            data: serde_json::Value::Null,
            device_id: None,
            timestamp: None,
        };
        let ack = |record, seq| AckedWrite { at: Instant::now(), client: 0, record, seq };
        let acked = [ack(7, 1), ack(8, 2)];
        assert_eq!(compare(&[change(1, 7), change(2, 8)], &acked), (0, 0));
        assert_eq!(compare(&[change(1, 7)], &acked), (1, 0));
        assert_eq!(compare(&[change(1, 7), change(3, 8)], &acked), (1, 0));
        assert_eq!(compare(&[change(1, 7), change(2, 8), change(3, 8)], &acked), (0, 1));
    }
}
