//! Records: reading one, and changing one without a socket.

use std::sync::Arc;

use axum::extract::State;
use bytes::Bytes;

use super::{Answer, Asked, At, Body, Failure, OrFail, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::client_clock::{ClientClock, Taken};
use crate::gateway::session::{look_up, update_message, why_conflict};
use crate::gateway::wire::{Acknowledged, Bad, ServerEvent, update};
use crate::model::change::{RecordNow, valid_table};
use crate::model::cursor::Cursor;
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{DataUpdate, Outcome, ResolutionMethod};

/// `GET /data/{table}/{record_id}`
pub async fn read(
    State(gateway): State<Arc<Gateway>>,
    _: Caller,
    At((table, id)): At<(String, String)>,
    asked: Asked,
) -> Answer {
    let id = record(&gateway, &table, &id)?;
    let source = Source::asked(&gateway, &asked).await?;
    let now = gateway.cluster.replica().hot().record(&table, id);
    let found = match now {
        RecordNow::Absent => None,
        RecordNow::Here { version, data, .. } => data.map(|data| (version, data)),
        RecordNow::InRows(at) => gateway.cluster.replica().cold(move |t| look_up(t, at)).await.or_fail(&gateway)?,
    };
    let (version, data) = found.as_ref().map(|(version, data)| (*version, &data[..])).unzip();
    let (table_name, record_id, at_ms) = (table.as_str(), id, gateway.now_ms());
    Ok(answer(|o| {
        ServerEvent::DataResponse { table_name, record_id, data, version, at_ms }.fill(o);
        source.tell(o);
    }))
}

/// `POST /data/{table}/{record_id}`: a `data_update`.
pub async fn write(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    At((table, id)): At<(String, String)>,
    body: Body,
) -> Answer {
    let id = record(&gateway, &table, &id)?;
    let mut change = body.read(&gateway, Code::InvalidData, |f| {
        let device = if f.has("device_id") { f.device_id()? } else { caller.0.sub.clone() };
        update(f, &body.0, device, table, id)
    })?;
    auth::may_speak_for(&caller.0, &change.device_id).or_fail(&gateway)?;
    if change.device_id != caller.0.sub {
        gateway.presence.seen_over_rest(&gateway, &change.device_id, &caller.0);
    }
    // A request of its own says nothing of the device's clock.
    let taken = ClientClock::default().stamp(&mut change);
    // What the answer repeats.
    let asked = DataUpdate { data: Bytes::new(), ..change.clone() };
    let outcome = gateway.propose_for(&caller.0, Intent::DataUpdate(change)).await.or_fail(&gateway)?;
    committed(&gateway, &asked, taken, &outcome)
}

pub(super) fn record(gateway: &Gateway, table: &str, id: &str) -> Result<i64, Failure> {
    let bad = |bad| Failure::bad(gateway, Code::InvalidData, bad);
    if !valid_table(table) {
        return Err(bad(Bad::field("table_name", "is not a usable name")));
    }
    id.parse().map_err(|_| bad(Bad::field("record_id", "must be a whole number within 64 bits")))
}

fn committed(gateway: &Gateway, asked: &DataUpdate, taken: Option<Taken>, outcome: &Outcome) -> Answer {
    let (seq, conflict) = match &outcome.result {
        Some(Given::Accepted(accepted)) => (Some(accepted.seq), accepted.conflict.as_ref()),
        Some(Given::Conflict(conflict)) => (None, Some(conflict)),
        _ => (None, None),
    };
    if let Some(conflict) = conflict.filter(|c| c.resolution() == ResolutionMethod::Unset) {
        let why = why_conflict(gateway, conflict.id);
        return Err(Failure::new(gateway, Error::new(Code::Conflict, why)).with_conflict(conflict.id));
    }
    let epoch = gateway.epoch();
    let ack = Acknowledged {
        message: update_message(seq, conflict),
        at_ms: outcome.at_ms,
        event: "data_update",
        device_id: Some(&asked.device_id),
        record: Some((&asked.table_name, asked.record_id)),
        seq,
        request_id: Some(asked.request_id.as_str()).filter(|id| !id.is_empty()),
        cursor: seq.map(|seq| Cursor { epoch, seq }),
        conflict_id: conflict.map(|c| c.id),
        repeated: outcome.repeated,
        entry: (asked.n > 0).then_some((asked.queue.as_str(), asked.n)),
        sync_id: None,
        timestamp_taken: taken.map(Taken::name),
    };
    Ok(answer(|o| {
        o.flag("success", true);
        ServerEvent::Acknowledged(ack).fill(o);
    }))
}
