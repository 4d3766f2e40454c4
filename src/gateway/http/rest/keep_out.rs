//! Devices that are kept out: tokens taken back, devices suspended and forgotten, and why one is refused.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, PathParts, QueryFields, RestError, RestResult, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, push_object};
use crate::gateway::protocol::{BadPayload, class_rights};
use crate::ids::Seq;
use crate::model::access::ClassNumber;
use crate::model::cursor::Cursor;
use crate::model::device::valid_id;
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{DeviceForget, DeviceReport, DeviceRevoke, DeviceSuspend};
use crate::token::{Claims, Class};

use super::devices::unexpected;

/// One that registered before names were looked at so closely can be kept out, too.
fn may_be_a_device(gateway: &Gateway, device_id: &str) -> Result<(), RestError> {
    if valid_id(device_id) || gateway.cluster.replica().state().device(device_id).is_some() {
        return Ok(());
    }
    let bad = BadPayload::field("device_id", "must be 1 to 255 bytes without control or invisible characters");
    Err(RestError::bad(gateway, Code::InvalidData, bad))
}

/// Admins keep anyone out; managers only devices that have shown a token of a lesser class than an admin's.
fn may_keep_out(gateway: &Gateway, claims: &Claims, device_id: &str) -> Result<(), RestError> {
    auth::must_be_privileged(claims, "keep a device out").or_fail(gateway)?;
    may_be_a_device(gateway, device_id)?;
    let state = gateway.cluster.replica().state();
    let shown = state.device(device_id).is_some_and(|d| !d.class.is_empty() && d.class != Class::Admin.name());
    if claims.class == Class::Admin || shown {
        return Ok(());
    }
    drop(state);
    let why = "only admins may keep out an admin's device, or one that has not come with a token of its own";
    Err(RestError::new(gateway, Error::new(Code::Forbidden, why)))
}

/// `POST /device/{device_id}/revoke`: its sessions end on every node as soon as that node has applied it.
pub(super) async fn revoke(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(device_id): PathParts<String>,
) -> RestResult {
    may_keep_out(&gateway, &caller.0, &device_id)?;
    let revoke = DeviceRevoke { device_id, by: caller.0.sub.clone() };
    let outcome = gateway.propose_election(&caller.0, Intent::DeviceRevoke(revoke)).await.or_fail(&gateway)?;
    let Some(Given::DeviceReport(report)) = outcome.result else { return Err(unexpected(&gateway)) };
    let cursor = gateway.cursor(Seq(report.cursor_seq));
    Ok(answer(|o| {
        o.flag("success", true).text("device_id", &report.device_id);
        o.time("not_before", report.not_before.saturating_mul(1_000)).flag("registered", report.registered);
        if report.registered {
            tell_report(o, &report, &cursor);
        }
        o.time("timestamp", outcome.at_ms);
    }))
}

fn tell_report(o: &mut Object<'_>, report: &DeviceReport, cursor: &Cursor) {
    o.object("confirmed", |o| {
        o.number("changes", report.changes);
        o.maybe_number("last_seq", Some(report.last_seq).filter(|seq| *seq > 0));
        if report.last_seq > 0 {
            o.time("last_timestamp", report.last_ms);
        }
    });
    o.text("cursor", &cursor.to_string()).time("last_seen", report.last_seen_ms);
    o.object("unsent", |o| {
        if report.unsent_ms > 0 {
            o.number("count", report.unsent).time("said_at", report.unsent_ms);
        }
        o.array("queues", &report.queues, |out, queue| {
            push_object(out, |o| {
                o.text("queue", &queue.queue).number("last", queue.last).time("used_at", queue.used_ms);
            });
        });
    });
    o.raw("leases", b"null");
}

/// `POST /device/{device_id}/suspend`
pub(super) async fn suspend(gateway: State<Arc<Gateway>>, caller: Caller, at: PathParts<String>) -> RestResult {
    set_suspended(gateway.0, caller, at.0, true).await
}

/// `POST /device/{device_id}/resume`
pub(super) async fn resume(gateway: State<Arc<Gateway>>, caller: Caller, at: PathParts<String>) -> RestResult {
    set_suspended(gateway.0, caller, at.0, false).await
}

async fn set_suspended(gateway: Arc<Gateway>, caller: Caller, device_id: String, suspended: bool) -> RestResult {
    may_keep_out(&gateway, &caller.0, &device_id)?;
    let suspend = DeviceSuspend { device_id: device_id.clone(), suspended, by: caller.0.sub.clone() };
    let outcome = gateway.propose_election(&caller.0, Intent::DeviceSuspend(suspend)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).text("device_id", &device_id).flag("suspended", suspended);
        o.time("timestamp", outcome.at_ms);
    }))
}

/// `DELETE /device/{device_id}`
pub(super) async fn forget(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(device_id): PathParts<String>,
) -> RestResult {
    auth::must_be_privileged(&caller.0, "forget a device").or_fail(&gateway)?;
    let forget = DeviceForget { device_id: device_id.clone(), by: caller.0.sub.clone() };
    let outcome = gateway.propose_for(&caller.0, Intent::DeviceForget(forget)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).text("device_id", &device_id).time("timestamp", outcome.at_ms);
    }))
}

/// `GET /device/{device_id}/admission`: whether the device is let in, and what it may do then.
pub(super) async fn admission(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(device_id): PathParts<String>,
    asked: QueryFields,
) -> RestResult {
    auth::may_speak_for(&caller.0, &device_id).or_fail(&gateway)?;
    may_be_a_device(&gateway, &device_id)?;
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let state = gateway.cluster.replica().state();
    let (device, gate) = (state.device(&device_id).cloned(), state.gate(&device_id).cloned());
    let class = device.as_ref().and_then(|device| ClassNumber::named(&device.class));
    let rights = class.and_then(|class| state.access().of(class).cloned());
    drop(state);
    Ok(answer(|o| {
        o.text("device_id", &device_id).flag("registered", device.is_some());
        if let Some(device) = &device {
            o.flag("is_active", device.is_active).time("last_seen", device.last_seen_ms);
        }
        o.flag("suspended", gate.as_ref().is_some_and(|gate| gate.suspended));
        match gate.as_ref().map_or(0, |gate| gate.not_before) {
            0 => o.raw("not_before", b"null"),
            seconds => o.time("not_before", seconds.saturating_mul(1_000)),
        };
        if let Some(gate) = &gate {
            o.text("set_by", &gate.by).time("set_at", gate.at_ms);
        }
        if let Some(class) = class {
            o.object("rights", |o| class_rights(o, class, rights.as_deref()));
        }
        source.tell(o);
    }))
}
