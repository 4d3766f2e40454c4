//! What a record was: its changes, and what lost against them.

use std::sync::Arc;

use axum::extract::State;

use super::data::record;
use super::{OrFail, PathParts, QueryFields, RestError, RestResult, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, push_object};
use crate::gateway::protocol::{BadPayload, listed_conflict};
use crate::ids::{ConflictId, DeviceNumber, Seq};
use crate::limits;
use crate::model::change::operation_name;
use crate::model::error::Code;
use crate::model::read::{HistoryItem, HistoryPosition, PageSize, history};
use crate::model::tables::TablesRead;
use crate::proto::Operation;

/// `GET /data/{table}/{record_id}/history`: newest first.
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts((table, id)): PathParts<(String, String)>,
    asked: QueryFields,
) -> RestResult {
    let bad = |bad| RestError::bad(&gateway, Code::InvalidData, bad);
    let id = record(&gateway, &table, &id)?;
    let limit = asked.limit().map_err(bad)?;
    let before = asked.get("before").map(|text| place(text).ok_or_else(not_a_place)).transpose().map_err(bad)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    auth::may_read(&gateway, &caller.0, &table).or_fail(&gateway)?;
    let of = gateway.cluster.replica().state().history_of(&table, id, before, limit);
    let size = PageSize { rows: limit, bytes: limits::SYNC_PAGE_BYTES };
    let read = move |t: &dyn TablesRead| history(t, &of, size);
    let page = gateway.cluster.replica().read_rows(read).await.or_fail(&gateway)?;
    let page = page.ok_or_else(|| bad(not_a_place()))?;
    let entries: Vec<_> = {
        let state = gateway.cluster.replica().state();
        let writer = |past: &HistoryItem| match past {
            HistoryItem::Record(row) => state.device_name(DeviceNumber(row.device)).unwrap_or_default().to_owned(),
            HistoryItem::Change(change) => change.device_id.clone(),
            HistoryItem::Conflict(_) => String::new(),
        };
        page.entries.iter().map(|(place, past)| (*place, past, writer(past))).collect()
    };
    Ok(answer(|o| {
        o.text("table_name", &table).number("record_id", id);
        o.array("history", &entries, |out, (place, past, writer)| {
            push_object(out, |o| entry(o, *place, past, writer));
        });
        o.flag("has_more", page.next.is_some()).flag("older_dropped", page.dropped);
        if let Some((version, conflict)) = page.next {
            o.text("before", &format!("{version}-{conflict}"));
        }
        source.tell(o);
    }))
}

fn entry(o: &mut Object<'_>, (version, _): HistoryPosition, past: &HistoryItem, writer: &str) {
    let (operation, data, timestamp_ms) = match past {
        HistoryItem::Conflict(conflict) => {
            o.text("kind", "conflict").number("version", version);
            o.object("conflict", |o| listed_conflict(o, conflict));
            return;
        }
        HistoryItem::Change(change) => (change.operation(), &change.data, change.timestamp_ms),
        HistoryItem::Record(row) => {
            let operation = if row.deleted { Operation::Delete } else { Operation::Update };
            (operation, &row.data, row.timestamp_ms)
        }
    };
    o.text("kind", "change").number("version", version).text("operation", operation_name(operation));
    o.data("data", if operation == Operation::Delete { b"" } else { data });
    o.text("device_id", writer).time("timestamp", timestamp_ms);
}

/// `VERSION` or `VERSION-CONFLICT`.
fn place(text: &str) -> Option<HistoryPosition> {
    let (version, conflict) = text.split_once('-').unwrap_or((text, "0"));
    Some((Seq(version.parse().ok()?), ConflictId(conflict.parse().ok()?)))
}

fn not_a_place() -> BadPayload {
    BadPayload::field("before", "must be a version of the record, or what an earlier page gave")
}
