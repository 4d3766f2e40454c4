//! The election log and the audit log.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, QueryFields, RestError, RestResult, Source, answer, pagination};
use crate::gateway::Gateway;
use crate::gateway::auth::Caller;
use crate::gateway::protocol::json::push_object;
use crate::gateway::protocol::{BadPayload, initiator};
use crate::ids::{AuditId, ElectionId, UnixMs};
use crate::model::access::Right;
use crate::model::audit::{AuditFilter, read_rows_shown};
use crate::model::election::{method_name, reason_name};
use crate::model::error::Code;
use crate::model::read::elections as read_elections;
use crate::model::time::parse_iso;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// `GET /sync/master-election-logs`
pub(super) async fn elections(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    let read = || Ok((asked.page()?, asked.before_id()?));
    let ((limit, offset), before) = read().map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let (head, total) = {
        let state = gateway.cluster.replica().state();
        let head = before.map_or(u64::MAX, |before| before - 1).min(state.meta().election_head);
        (ElectionId(head), head.saturating_sub(state.meta().election_dropped))
    };
    let read = move |t: &dyn crate::model::tables::TablesRead| read_elections(t, head, limit, offset);
    let rows = gateway.cluster.replica().read_rows(read).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.array("logs", &rows, |out, row| {
            push_object(out, |o| {
                o.number("id", row.id).text_or_null("previous_master_id", &row.previous_master);
                o.text("new_master_id", &row.new_master).text("election_reason", reason_name(row.reason()));
                o.time("election_timestamp", row.at_ms).number("devices_participating", row.participating);
                o.text("election_method", method_name(row.method())).number("term", row.term);
                initiator(o, row);
            });
        });
        pagination(o, limit, offset, total);
        source.tell(o);
    }))
}

/// `GET /sync/audit-logs`
pub(super) async fn audit(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    let read = || {
        let (limit, offset) = asked.page()?;
        let filter = AuditFilter {
            device_id: asked.get("device_id").map(str::to_owned),
            event_type: asked.get("event_type").map(str::to_owned),
            from_ms: date(&asked, "start_date", false)?,
            to_ms: date(&asked, "end_date", true)?,
            before_id: asked.before_id()?.map(AuditId),
        };
        Ok((limit, offset, filter))
    };
    let (limit, offset, filter) = read().map_err(|bad| RestError::bad(&gateway, Code::InvalidData, bad))?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let offset_rows = usize::try_from(offset).unwrap_or(usize::MAX);
    let (total, page) = gateway.cluster.replica().state().audit_index().page(&filter, limit, offset_rows);
    let rights = gateway.cluster.replica().state().access().of(caller.0.class.number()).cloned();
    let shown = move |table: &str| rights.as_ref().is_none_or(|rights| rights.right(table) >= Right::Read);
    let rows =
        gateway.cluster.replica().read_rows(move |t| read_rows_shown(t, &page, shown)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.array("logs", &rows, |out, row| {
            push_object(out, |o| {
                o.number("id", row.id).text("event_type", &row.event_type).text("operation", &row.operation);
                o.text("status", if row.error { "error" } else { "success" }).text("device_id", &row.device_id);
                o.text("details", &row.details).time("timestamp", row.at_ms);
                o.maybe_text("by", some(&row.by)).maybe_text("jti", some(&row.jti));
            });
        });
        pagination(o, limit, offset, total);
        source.tell(o);
    }))
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// An inclusive bound; as an end, a date alone means the whole day.
fn date(asked: &QueryFields, name: &str, is_end: bool) -> Result<Option<UnixMs>, BadPayload> {
    let Some(text) = asked.get(name) else { return Ok(None) };
    // A plus sign in a query reads as a space: the offset `+02:00` often comes unescaped. A date and a time with a
    // space between them are none with a plus.
    let repaired = text.trim().rsplit_once(' ').map(|(time, offset)| format!("{time}+{offset}"));
    let ms = repaired.as_deref().and_then(parse_iso).or_else(|| parse_iso(text));
    let ms = ms.ok_or_else(|| BadPayload::field(name, "must be an ISO 8601 time or date"))?;
    let is_date = !text.trim().contains(['T', 't', ' ']);
    Ok(Some(if is_end && is_date { ms.plus_ms(DAY_MS - 1) } else { ms }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_date_alone_means_the_whole_day() {
        let ask = |v: &str| QueryFields(vec![("d".into(), v.into())]);
        let day = parse_iso("2026-11-22").unwrap();
        assert_eq!(date(&ask("2026-11-22"), "d", false).unwrap(), Some(day));
        assert_eq!(date(&ask("2026-11-22"), "d", true).unwrap(), Some(day.plus_ms(DAY_MS - 1)));
        assert_eq!(date(&ask("2026-11-22T00:00:00Z"), "d", true).unwrap(), Some(day));
        assert_eq!(date(&ask("2026-11-22T02:00:00 02:00"), "d", true).unwrap(), Some(day));
        assert_eq!(date(&ask("2026-11-22 02:00:00"), "d", true).unwrap(), Some(day.plus_ms(7_200_000)));
        assert_eq!(date(&ask("2026-11-22 02:00"), "d", true).unwrap(), Some(day.plus_ms(7_200_000)));
        for same in ["20261122T053000 0530", "2026-11-22T05:30 0530", "2026-11-22 02:00:00 02", "2026-W47-7T00Z"] {
            assert_eq!(date(&ask(same), "d", true).unwrap(), Some(day), "{same}");
        }
        assert_eq!(date(&ask("20261122"), "d", true).unwrap(), Some(day.plus_ms(DAY_MS - 1)));
        assert_eq!(date(&ask("1960-01-01T00:00:00Z"), "d", false).unwrap(), Some(UnixMs(0)));
        assert!(date(&ask("soon"), "d", true).is_err());
        assert!(date(&ask("é—é—é—"), "d", true).is_err());
    }
}
