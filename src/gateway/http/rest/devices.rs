//! Devices and their roles.

use std::sync::Arc;

use axum::extract::State;

use super::{OrFail, PathParts, QueryFields, RequestBody, RestError, RestResult, Source, answer, pagination};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::protocol::json::{Object, object, push_object};
use crate::gateway::protocol::{BadPayload, clock_ahead, online, role_and_reason};
use crate::limits;
use crate::model::device::{present_on, role_name};
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{Capabilities, Device, DeviceOnline, Presence, RoleChange, SyncStatus};
use crate::token::Claims;

/// `POST /device/register`
pub(super) async fn register(State(gateway): State<Arc<Gateway>>, caller: Caller, body: RequestBody) -> RestResult {
    let ask = body.read(&gateway, Code::Registration, online)?;
    auth::may_speak_for(&caller.0, &ask.device_id).or_fail(&gateway)?;
    auth::may_claim(&caller.0, ask.priority).or_fail(&gateway)?;
    let own = caller.0.sub == ask.device_id;
    let intent = Intent::DeviceOnline(DeviceOnline {
        device_id: ask.device_id.clone(),
        role: ask.role.unwrap_or_default().into(),
        priority: ask.priority,
        capabilities: ask.capabilities.map(|names| Capabilities { names }),
        presence: Presence::Rest.into(),
        class: if own { caller.0.class.name().to_owned() } else { String::new() },
        returns: false,
        token_iat: auth::own_token_iat(&caller.0, &ask.device_id),
        unsent: ask.unsent,
        asker: auth::asker(&caller.0).into(),
        asked_by: caller.0.sub.clone(),
    });
    gateway.presence.registered_over_rest(&ask.device_id);
    let outcome = gateway.propose_election(&caller.0, intent).await.or_fail(&gateway)?;
    let Some(Given::Online(online)) = outcome.result else { return Err(unexpected(&gateway)) };
    let device = online.device.unwrap_or_default();
    let failed = {
        let state = gateway.cluster.replica().state();
        state.sync_state(&ask.device_id).is_some_and(|s| s.sync_status() == SyncStatus::Error)
    };
    let sync_status = match (failed, device.is_active) {
        (true, _) => "error",
        (false, true) => "connected",
        (false, false) => "disconnected",
    };
    Ok(answer(|o| {
        o.flag("success", true).text("device_id", &ask.device_id).text("role", role_name(device.role()));
        o.text_or_null("master_device_id", &online.master).text("sync_status", sync_status);
        o.flag("registered", online.first).number("term", online.term);
    }))
}

/// `GET /device/roles`: all of them, as documented; or pages of them, with `limit` and `after` or `offset`.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>, caller: Caller, asked: QueryFields) -> RestResult {
    if ["limit", "offset", "after"].iter().any(|name| asked.get(name).is_some()) {
        return page(&gateway, &caller.0, &asked).await;
    }
    let devices = gateway.cluster.replica().state().devices().count();
    // A large one is sent in pieces, made as they are taken, and one at a time on a node.
    let turn = match devices > limits::LISTING_PIECE {
        true => Some(gateway.listings.whole(&caller.0.sub).await.or_fail(&gateway)?),
        false => None,
    };
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let devices: Vec<Arc<Device>> = gateway.cluster.replica().state().devices().cloned().collect();
    let Some(turn) = turn else {
        return Ok(answer(|o| {
            o.array("devices", &devices, |out, device| push_object(out, |o| fill(&gateway, o, device)));
            source.tell(o);
        }));
    };
    let end = object(|o| source.tell(o));
    let mut at = 0;
    Ok(turn.pieces(std::iter::from_fn(move || {
        if at > devices.len() {
            return None;
        }
        let mut piece = if at == 0 { br#"{"devices":["#.to_vec() } else { Vec::new() };
        let next = devices.len().min(at + limits::LISTING_PIECE);
        for (index, device) in devices.iter().enumerate().take(next).skip(at) {
            if index > 0 {
                piece.push(b',');
            }
            push_object(&mut piece, |o| fill(&gateway, o, device));
        }
        at = next;
        if next == devices.len() {
            at += 1;
            piece.push(b']');
            // What stands after the list, without its opening brace.
            let (comma, rest): (&[u8], &[u8]) = if end.len() > 2 { (b",", &end[1..]) } else { (b"", b"}") };
            piece.extend_from_slice(comma);
            piece.extend_from_slice(rest);
        }
        Some(piece)
    })))
}

/// Some of the devices, by id.
async fn page(gateway: &Arc<Gateway>, asker: &Claims, asked: &QueryFields) -> RestResult {
    let bad = |bad| RestError::bad(gateway, Code::InvalidData, bad);
    let limit = asked.number("limit", limits::PAGE_MAX, 1, limits::PAGE_MAX).map_err(bad)? as usize;
    let offset = asked.number("offset", 0, 0, super::OFFSET_MAX).map_err(bad)?;
    let after = asked.get("after");
    if after.is_some() && asked.get("offset").is_some() {
        return Err(bad(BadPayload::field("after", "and offset exclude each other")));
    }
    let source = Source::asked(gateway, asker, asked).await?;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let (mut devices, total) = {
        let state = gateway.cluster.replica().state();
        let page: Vec<Arc<Device>> = state.devices_after(after).skip(skip).take(limit + 1).cloned().collect();
        (page, state.devices().count() as u64)
    };
    let more = devices.len() > limit;
    devices.truncate(limit);
    Ok(answer(|o| {
        o.array("devices", &devices, |out, device| push_object(out, |o| fill(gateway, o, device)));
        pagination(o, limit, offset, total);
        o.flag("has_more", more);
        o.maybe_text("next_after", devices.last().filter(|_| more).map(|last| last.device_id.as_str()));
        source.tell(o);
    }))
}

/// `GET /device/roles/{device_id}`
pub(super) async fn one(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(id): PathParts<String>,
    asked: QueryFields,
) -> RestResult {
    let source = Source::asked(&gateway, &caller.0, &asked).await?;
    let device = gateway.cluster.replica().state().device(&id).cloned();
    let device = device.ok_or_else(|| not_registered(&gateway, &id))?;
    Ok(answer(|o| {
        fill(&gateway, o, &device);
        source.tell(o);
    }))
}

/// `PUT /device/roles/{device_id}`
pub(super) async fn change_role(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    PathParts(device_id): PathParts<String>,
    body: RequestBody,
) -> RestResult {
    let (role, reason) = body.read(&gateway, Code::RoleChange, |f| role_and_reason(f, "role"))?;
    auth::may_speak_for(&caller.0, &device_id).or_fail(&gateway)?;
    gateway.rates.of(&caller.0).election().or_fail(&gateway)?;
    let asker = auth::asker(&caller.0).into();
    let by = caller.0.sub.clone();
    let change = RoleChange { device_id: device_id.clone(), role: role.into(), reason: reason.clone(), by, asker };
    gateway.propose_election(&caller.0, Intent::RoleChange(change)).await.or_fail(&gateway)?;
    Ok(answer(|o| {
        o.flag("success", true).text("device_id", &device_id).text("new_role", role_name(role));
        o.text("reason", &reason);
    }))
}

fn fill(gateway: &Gateway, o: &mut Object<'_>, device: &Device) {
    o.text("device_id", &device.device_id).text("role", role_name(device.role()));
    o.number("priority", device.priority).time("last_seen", device.last_seen_ms);
    o.flag("is_active", device.is_active).number("home", device.home);
    let nodes: Vec<u64> = present_on(device).map(|there| there.node).collect();
    o.array("nodes", &nodes, |out, node| out.extend_from_slice(node.to_string().as_bytes()));
    o.array("capabilities", &device.capabilities, |out, name| crate::gateway::protocol::json::push_text(out, name));
    clock_ahead(o, gateway.presence.clock_ahead_ms(&device.device_id));
}

pub(super) fn not_registered(gateway: &Gateway, id: &str) -> RestError {
    RestError::new(gateway, Error::new(Code::NotRegistered, format!("device {id:?} is not registered")))
}

/// The state machine answered with something else than asked for.
pub(super) fn unexpected(gateway: &Gateway) -> RestError {
    RestError::new(gateway, crate::gateway::bug("a command had an outcome of another kind"))
}
