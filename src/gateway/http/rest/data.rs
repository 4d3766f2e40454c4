//! Records: reading one, and changing one without a socket.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use bytes::Bytes;
use tokio::time::Instant;

use super::conflicts::usable;
use super::devices::unexpected;
use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, Source, answer, fresh};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::{Acknowledged, BadPayload, ServerEvent, update};
use crate::gateway::session::client_clock::{ClientClock, ClockCorrection};
use crate::gateway::session::{look_up, update_message, why_conflict};
use crate::ids::{ConflictId, RecordId, Seq};
use crate::model::access::Right;
use crate::model::change::{RecordNow, valid_table};
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{Accepted, DataUpdate, Outcome, ResolutionMethod, TableRemove};

/// How long one request goes on removing a table.
const REMOVE_TIME: Duration = Duration::from_secs(20);

/// `GET /data/{table}/{record_id}`
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts((table, id)): PathParts<(String, String)>,
    asked: QueryFields,
) -> RestResult {
    let id = record(&gateway, &table, &id)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    auth::may_read(&gateway, &caller.0, &table).or_fail(&gateway)?;
    let now = gateway.cluster.replica().state().record(&table, id);
    let found = match now {
        RecordNow::Absent => None,
        RecordNow::Here { version, data, .. } => data.map(|data| (version, data)),
        RecordNow::InRows(at) => {
            gateway.cluster.replica().read_rows(move |t| look_up(t, at)).await.or_fail(&gateway)?
        }
    };
    let (version, data) = found.as_ref().map(|(version, data)| (*version, &data[..])).unzip();
    let (table_name, record_id, at_ms) = (table.as_str(), id, gateway.now_ms());
    Ok(answer(|o| {
        ServerEvent::DataResponse { table_name, record_id, data, version, at_ms }.fill(o);
        source.tell(o);
    }))
}

/// `POST /data/{table}/{record_id}`: a `data_update`.
pub(super) async fn write(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts((table, id)): PathParts<(String, String)>,
    body: RequestBody,
) -> RestResult {
    let id = record(&gateway, &table, &id)?;
    let mut change = body.read(&gateway, Code::InvalidData, |f| {
        let device = if f.has("device_id") { f.device_id()? } else { caller.0.sub.clone() };
        update(f, &body.0, device, table, id)
    })?;
    auth::may_speak_for(&caller.0, &change.device_id).or_fail(&gateway)?;
    if change.device_id != caller.0.sub {
        gateway.presence.seen_over_rest(&gateway, &change.device_id, &caller.0);
    }
    auth::sign_update(&gateway, &caller.0, &mut change).or_fail(&gateway)?;
    // A request of its own says nothing of the device's clock.
    let taken = ClientClock::default().stamp(&mut change);
    // What the answer repeats.
    let asked = DataUpdate { data: Bytes::new(), ..change.clone() };
    let outcome = gateway.propose_for(&caller.0, Intent::DataUpdate(change)).await.or_fail(&gateway)?;
    committed(&gateway, &asked, taken, &outcome)
}

/// `DELETE /data/{table}`: the table with all its records. What is too much for one request is gone on with when it is
/// asked for again, or by the cluster itself.
pub(super) async fn remove_table(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(table_name): PathParts<String>,
) -> RestResult {
    auth::must_be_privileged(&caller.0, "remove a table").or_fail(&gateway)?;
    let table_name = usable(&gateway, table_name)?;
    fresh(&gateway, &caller.0).await?;
    let class = caller.0.class.number();
    if gateway.cluster.replica().state().access().right(class, &table_name) < Right::Write {
        let why = format!("table_name {table_name:?} is a table that tokens of class {} may not write", caller.0.class);
        return Err(RestError::new(&gateway, Error::new(Code::Forbidden, why).about("table_name", None)));
    }
    let Some(table) = gateway.cluster.replica().state().table_number(&table_name) else {
        let bad = BadPayload::field("table_name", "names no table");
        return Err(RestError::bad(&gateway, Code::InvalidData, bad).with_status(404));
    };
    let (asker, by) = (auth::asker(&caller.0).into(), caller.0.sub.clone());
    let step = TableRemove { table_name: table_name.clone(), table: table.get(), by, asker, class: class.number() };
    let until = Instant::now() + REMOVE_TIME;
    let (mut records, mut conflicts) = (0u64, 0u64);
    let removed = loop {
        let outcome = gateway.propose_for(&caller.0, Intent::TableRemove(step.clone())).await.or_fail(&gateway)?;
        let Some(Given::TableRemove(done)) = outcome.result else { return Err(unexpected(&gateway)) };
        records += u64::from(done.records);
        conflicts += u64::from(done.conflicts);
        if done.removed || Instant::now() >= until || gateway.closing.is_cancelled() {
            break done.removed;
        }
    };
    Ok(answer(|o| {
        o.flag("success", true).text("table_name", &table_name).flag("removed", removed);
        o.number("records_deleted", records).number("conflicts_closed", conflicts);
        o.time("timestamp", gateway.now_ms());
    }))
}

pub(super) fn record(gateway: &Gateway, table: &str, id: &str) -> Result<RecordId, RestError> {
    let bad = |bad| RestError::bad(gateway, Code::InvalidData, bad);
    if !valid_table(table) {
        return Err(bad(BadPayload::field("table_name", "is not a usable name")));
    }
    id.parse().map(RecordId).map_err(|_| bad(BadPayload::field("record_id", "must be a whole number within 64 bits")))
}

fn committed(gateway: &Gateway, asked: &DataUpdate, taken: Option<ClockCorrection>, outcome: &Outcome) -> RestResult {
    let (accepted, conflict) = match &outcome.result {
        Some(Given::Accepted(accepted)) => (Some(accepted), accepted.conflict.as_ref()),
        Some(Given::Conflict(conflict)) => (None, Some(conflict)),
        _ => (None, None),
    };
    if let Some(conflict) = conflict.filter(|c| c.resolution() == ResolutionMethod::Unset) {
        let why = why_conflict(gateway, ConflictId(conflict.id));
        return Err(RestError::new(gateway, Error::new(Code::Conflict, why)).with_conflict(ConflictId(conflict.id)));
    }
    let (seq, epoch) = (accepted.map(|accepted| accepted.seq), gateway.epoch());
    let ack = Acknowledged {
        message: update_message(seq, conflict),
        at_ms: outcome.at_ms,
        event: "data_update",
        device_id: Some(&asked.device_id),
        record: Some((&asked.table_name, RecordId(asked.record_id))),
        seq,
        request_id: Some(asked.request_id.as_str()).filter(|id| !id.is_empty()),
        cursor: accepted.map(|Accepted { seq, print, .. }| Cursor { epoch, seq: Seq(*seq), print: *print }),
        conflict_id: conflict.map(|c| ConflictId(c.id)),
        repeated: outcome.repeated,
        entry: (asked.n > 0).then_some((asked.queue.as_str(), asked.n)),
        sync_id: None,
        timestamp_taken: taken.map(ClockCorrection::name),
    };
    Ok(answer(|o| {
        o.flag("success", true);
        ServerEvent::Acknowledged(ack).fill(o);
    }))
}
