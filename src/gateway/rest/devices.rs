//! Devices and their roles.

use std::sync::Arc;

use axum::extract::State;

use super::{Answer, Asked, At, Body, Failure, OrFail, Source, answer};
use crate::gateway::Gateway;
use crate::gateway::auth::{self, Caller};
use crate::gateway::wire::json::{Object, push_object};
use crate::gateway::wire::{clock_ahead, online, role_and_reason};
use crate::model::device::{present_on, role_name};
use crate::model::error::{Code, Error};
use crate::proto::command::Intent;
use crate::proto::outcome::Result as Given;
use crate::proto::{Capabilities, Device, DeviceOnline, Presence, RoleChange, SyncStatus};

/// `POST /device/register`
pub async fn register(State(gateway): State<Arc<Gateway>>, caller: Caller, body: Body) -> Answer {
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
    });
    gateway.presence.registered_over_rest(&ask.device_id);
    let outcome = gateway.propose_election(&caller.0, intent).await.or_fail(&gateway)?;
    let Some(Given::Online(online)) = outcome.result else { return Err(unexpected(&gateway)) };
    let device = online.device.unwrap_or_default();
    let failed = {
        let state = gateway.cluster.replica().hot();
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

/// `GET /device/roles`
pub async fn list(State(gateway): State<Arc<Gateway>>, _: Caller, asked: Asked) -> Answer {
    let source = Source::asked(&gateway, &asked).await?;
    let devices: Vec<Arc<Device>> = gateway.cluster.replica().hot().devices().cloned().collect();
    Ok(answer(|o| {
        o.array("devices", &devices, |out, device| push_object(out, |o| fill(&gateway, o, device)));
        source.tell(o);
    }))
}

/// `GET /device/roles/{device_id}`
pub async fn one(State(gateway): State<Arc<Gateway>>, _: Caller, At(id): At<String>, asked: Asked) -> Answer {
    let source = Source::asked(&gateway, &asked).await?;
    let device = gateway.cluster.replica().hot().device(&id).cloned();
    let device = device.ok_or_else(|| not_registered(&gateway, &id))?;
    Ok(answer(|o| {
        fill(&gateway, o, &device);
        source.tell(o);
    }))
}

/// `PUT /device/roles/{device_id}`
pub async fn change_role(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    At(device_id): At<String>,
    body: Body,
) -> Answer {
    let (role, reason) = body.read(&gateway, Code::RoleChange, |f| role_and_reason(f, "role"))?;
    auth::may_speak_for(&caller.0, &device_id).or_fail(&gateway)?;
    gateway.rates.of(&caller.0).election().or_fail(&gateway)?;
    let by = caller.0.sub.clone();
    let change = RoleChange { device_id: device_id.clone(), role: role.into(), reason: reason.clone(), by };
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
    o.array("capabilities", &device.capabilities, |out, name| crate::gateway::wire::json::push_text(out, name));
    clock_ahead(o, gateway.presence.clock_ahead_ms(&device.device_id));
}

pub fn not_registered(gateway: &Gateway, id: &str) -> Failure {
    Failure::new(gateway, Error::new(Code::NotRegistered, format!("device {id:?} is not registered")))
}

/// The state machine answered with something else than asked for.
pub fn unexpected(gateway: &Gateway) -> Failure {
    Failure::new(gateway, crate::gateway::bug("a command had an outcome of another kind"))
}
