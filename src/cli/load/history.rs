//! What a table has seen: which lines need not be sent again.

use std::collections::HashMap;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::client::rest::FeedChange;

/// The contents that each record has had. A line that was ever committed as it stands is not missing, even if
/// someone changed the record since.
#[derive(Debug, Default)]
pub(super) struct LoadHistory {
    records: HashMap<i64, RecordContents>,
}

#[derive(Debug, Default)]
struct RecordContents {
    contents: Vec<u64>,
    deleted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeenLine {
    Absent,
    /// Exactly this was committed before.
    Same,
    /// The record is there, with other contents.
    Other,
}

impl LoadHistory {
    pub(super) fn add(&mut self, change: &FeedChange) {
        let record = self.records.entry(change.record_id).or_default();
        record.deleted = change.operation == "delete";
        if !record.deleted {
            let content = hash(&change.data);
            if !record.contents.contains(&content) {
                record.contents.push(content);
            }
        }
    }

    pub(super) fn look(&self, record_id: i64, data: &str) -> SeenLine {
        let Some(record) = self.records.get(&record_id) else { return SeenLine::Absent };
        let content = serde_json::from_str(data).map(|value| hash(&value));
        match content {
            Ok(content) if record.contents.contains(&content) => SeenLine::Same,
            _ if record.deleted => SeenLine::Absent,
            _ => SeenLine::Other,
        }
    }
}

/// Of the value, not of its text: another client may write the same data with other spaces or key order.
fn hash(value: &Value) -> u64 {
    // serde_json keeps objects sorted by key.
    xxh3_64(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(record_id: i64, operation: &str, data: &str) -> FeedChange {
        FeedChange {
            seq: 1,
            table_name: "t".into(),
            record_id,
            operation: operation.into(),
            data: serde_json::from_str(data).unwrap(),
            device_id: None,
            timestamp: None,
        }
    }

    #[test]
    fn only_what_was_never_committed_is_missing() {
        let mut history = LoadHistory::default();
        history.add(&change(1, "insert", r#"{"a":1,"b":2.50}"#));
        history.add(&change(1, "update", r#"{"a":9}"#));
        history.add(&change(2, "insert", r#"{"a":1}"#));
        history.add(&change(2, "delete", "{}"));
        assert_eq!(history.look(1, r#"{ "b":2.5, "a":1 }"#), SeenLine::Same);
        assert_eq!(history.look(1, r#"{"a":2}"#), SeenLine::Other);
        assert_eq!(history.look(2, r#"{"a":2}"#), SeenLine::Absent);
        assert_eq!(history.look(3, r#"{"a":1}"#), SeenLine::Absent);
    }
}
