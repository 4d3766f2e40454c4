//! What is done with stolen tokens.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::socket::{AttackOrigin, AttackReply, AttackSocket, frame, upgrade};
use super::{AttackGround, AttemptResult, DeviceToken, Victim};
use crate::process::hostile::CATALOGUE;
use crate::rng::Rng;

const HOLD: Duration = Duration::from_secs(10);
const SEND: Duration = Duration::from_secs(2);
/// How much of an answer is looked at. Bytes.
const LOOKED_AT: usize = 64 << 10;
/// Frames handed to the kernel at once.
const BATCH: usize = 32;
/// Of what a flood sends one in so many is written: what is written has to be kept, by every node, for the checks.
const WRITTEN: u64 = 10;
/// The tables of all thieves begin with this.
const LOOT: &str = "loot";
/// Who the manager registers begins with this.
pub(crate) const GHOST: &str = "ghost";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ThiefAttack {
    Tables,
    Devices,
    Conflicts,
    CriticalEvents,
    FloodOfRequests,
    FloodOfBytes,
    Elections,
    RolesOverRest,
    Listings,
    Streams,
    Opens,
    SidsOfOthers,
    Resumes,
    SlowReaders,
}

impl ThiefAttack {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tables => "new tables",
            Self::Devices => "new devices",
            Self::Conflicts => "conflicts",
            Self::CriticalEvents => "critical events",
            Self::FloodOfRequests => "floods of requests",
            Self::FloodOfBytes => "floods of bytes",
            Self::Elections => "elections",
            Self::RolesOverRest => "roles over REST",
            Self::Listings => "large listings, read slowly",
            Self::Streams => "event streams, not read",
            Self::Opens => "/ws opens",
            Self::SidsOfOthers => "sids of others",
            Self::Resumes => "resumes and syncs",
            Self::SlowReaders => "broadcasts, not read",
        }
    }

    pub(super) async fn attempt(self, ground: &AttackGround, number: u64, rng: &mut Rng) -> AttemptResult {
        let victim = ground.victim(number)?;
        let stolen = &ground.stolen;
        let [till, other] = &stolen.tills;
        let any = [till, other, &stolen.warehouse, &stolen.onlooker, &stolen.manager];
        let one = any.get((number % any.len() as u64) as usize).copied().unwrap_or(till);
        match self {
            Self::Tables => {
                let path = format!("/data/{LOOT}-{}-{}/1", one.device, rng.below(300));
                let write = json!({ "device_id": one.device, "operation": "update", "new_data": { "x": 1 } });
                rest(ground, self.name(), victim, one, "POST", &path, Some(&write)).await
            }
            Self::Devices => {
                let body = json!({ "device_id": format!("{GHOST}-{}", ground.number()) });
                rest(ground, self.name(), victim, &stolen.manager, "POST", "/device/register", Some(&body)).await
            }
            Self::RolesOverRest => {
                let path = format!("/device/roles/{}", one.device);
                let body = json!({ "role": "master", "reason": "mine" });
                rest(ground, self.name(), victim, one, "PUT", &path, Some(&body)).await
            }
            Self::Conflicts => {
                let pad = "x".repeat(4 << 10);
                let versions = json!({ "local_version": { "p": pad }, "remote_version": { "p": pad } });
                let device = one.device.clone();
                let mut record = ground.number() * 1_000_000;
                flood(ground, self.name(), victim, one, 4, move || {
                    record += 1;
                    let data = json!({
                        "device_id": device, "table_name": format!("{LOOT}-{device}-0"), "record_id": record,
                        "conflict_type": "data", "conflict_data": versions,
                    });
                    event("sync_conflict", &data)
                })
                .await
            }
            Self::CriticalEvents => {
                let data = json!({
                    "device_id": one.device, "event_type": "alarm", "payload": { "p": "x".repeat(1 << 10) },
                });
                let alarm = event("critical_event", &data);
                flood(ground, self.name(), victim, one, 4, move || alarm.clone()).await
            }
            Self::FloodOfRequests => {
                let device = one.device.clone();
                let mut rng = rng.fork();
                flood(ground, self.name(), victim, one, BATCH, move || {
                    let record = rng.below(1_000);
                    if rng.below(WRITTEN) > 0 {
                        let data = json!({ "device_id": device, "table_name": CATALOGUE, "record_id": record });
                        return event("data_request", &data);
                    }
                    let data = json!({
                        "device_id": device, "table_name": format!("{LOOT}-{device}-0"), "record_id": rng.next() >> 12,
                        "operation": "update", "new_data": { "x": record },
                    });
                    event("data_update", &data)
                })
                .await
            }
            Self::FloodOfBytes => {
                // Not the manager, who may send twenty times as much: that would fill the disk of the machine that runs this.
                let devices = [till, other, &stolen.warehouse, &stolen.onlooker];
                let one = devices.get((number % devices.len() as u64) as usize).copied().unwrap_or(till);
                let device = one.device.clone();
                let pad = "x".repeat(96 << 10);
                let mut rng = rng.fork();
                flood(ground, self.name(), victim, one, 1, move || {
                    // Most of it names no table.
                    let written = rng.below(WRITTEN) == 0;
                    let table = if written { format!("{LOOT}-{device}-0") } else { String::new() };
                    let data = json!({
                        "device_id": device, "table_name": table, "record_id": rng.below(64), "operation": "update",
                        "new_data": { "p": pad },
                    });
                    event("data_update", &data)
                })
                .await
            }
            Self::Elections => {
                elections(ground, self.name(), victim, if number.is_multiple_of(2) { till } else { other }, rng).await
            }
            Self::Listings => {
                let paths = ["/device/roles", "/sync/conflicts?limit=1000", "/sync/audit-logs?limit=1000"];
                let path = rng.pick(&paths).copied().unwrap_or(paths[0]);
                let ask = request("GET", path, &one.token, "", None);
                let mut socket = ground.connect(self.name(), AttackOrigin::ThiefWhoDoesNotRead, victim.gateway).await?;
                socket.send(ask.as_bytes(), SEND).await;
                if rng.percent(50) {
                    return Some(socket.read_slowly(HOLD).await);
                }
                // The head, and then nothing.
                socket.head().await;
                sleep(HOLD).await;
                Some(socket.seen())
            }
            Self::Streams => {
                let ask = request("GET", "/sync/changes", &one.token, "Accept: text/event-stream\r\n", None);
                let mut socket = ground.connect(self.name(), AttackOrigin::ThiefWhoDoesNotRead, victim.gateway).await?;
                socket.send(ask.as_bytes(), SEND).await;
                socket.head().await;
                sleep(HOLD).await;
                Some(socket.seen())
            }
            Self::Opens => {
                let (socket, _) = open(ground, self.name(), AttackOrigin::Thief, victim, one, &json!({})).await?;
                let hold = rng.millis(200, 3_000);
                Some(socket.hold(hold).await)
            }
            Self::SlowReaders => {
                let (mut socket, _) =
                    open(ground, self.name(), AttackOrigin::ThiefWhoDoesNotRead, victim, one, &json!({})).await?;
                // Everything once more, to be kept for it.
                let all = json!({ "device_id": one.device, "sync_type": "full" });
                socket.send(&event("sync_request", &all), SEND).await;
                sleep(HOLD * 2).await;
                Some(socket.seen())
            }
            Self::Resumes => resumes(ground, self.name(), victim, one).await,
            Self::SidsOfOthers => sids(ground, self.name(), victim, till, other).await,
        }
    }
}

fn request(method: &str, path: &str, token: &str, more: &str, body: Option<&Value>) -> String {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{more}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

async fn rest(
    ground: &AttackGround,
    name: &'static str,
    victim: Victim,
    who: &DeviceToken,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> AttemptResult {
    let mut socket = ground.connect(name, AttackOrigin::Thief, victim.gateway).await?;
    socket.send(request(method, path, &who.token, "", body).as_bytes(), SEND).await;
    socket.answer(LOOKED_AT).await;
    Some(socket.seen())
}

fn event(name: &str, data: &Value) -> Vec<u8> {
    frame(&json!({ "event": name, "data": data }).to_string())
}

/// A session of `/ws` that has said `device_online`, and what the node answered to the upgrade.
async fn open(
    ground: &AttackGround,
    name: &'static str,
    from: AttackOrigin,
    victim: Victim,
    who: &DeviceToken,
    more: &Value,
) -> Option<(AttackSocket, String)> {
    let mut socket = ground.connect(name, from, victim.gateway).await?;
    socket.send(upgrade("/ws", Some(&who.token)).as_bytes(), SEND).await;
    let head = socket.head().await.unwrap_or_default();
    let mut online = json!({ "device_id": who.device, "priority": 20 });
    if let (Some(online), Some(more)) = (online.as_object_mut(), more.as_object()) {
        online.extend(more.clone());
    }
    socket.send(&event("device_online", &online), SEND).await;
    Some((socket, head))
}

/// As fast as the node takes it, for a while.
async fn flood(
    ground: &AttackGround,
    name: &'static str,
    victim: Victim,
    who: &DeviceToken,
    batch: usize,
    mut make: impl FnMut() -> Vec<u8>,
) -> AttemptResult {
    let (socket, head) = open(ground, name, AttackOrigin::Thief, victim, who, &json!({ "subscribe": [] })).await?;
    if !head.starts_with("HTTP/1.1 101") {
        return Some(socket.seen());
    }
    let many = move || (0..batch).flat_map(|_| make()).collect();
    Some(socket.flood(HOLD, many).await)
}

/// Elections against a master that is well, the role again and again, and a device that leaves and comes.
async fn elections(
    ground: &AttackGround,
    name: &'static str,
    victim: Victim,
    who: &DeviceToken,
    rng: &mut Rng,
) -> AttemptResult {
    let (mut socket, _) =
        open(ground, name, AttackOrigin::Thief, victim, who, &json!({ "subscribe": [], "role": "master" })).await?;
    for _ in 0..20 {
        let asks = [
            event("master_election", &json!({ "reason": "failure" })),
            event("master_election", &json!({ "reason": "shutdown" })),
            event("role_change", &json!({ "device_id": who.device, "new_role": "master", "reason": "mine" })),
            event("role_change", &json!({ "device_id": who.device, "new_role": "slave", "reason": "not mine" })),
        ];
        let Some(ask) = rng.pick(&asks) else { break };
        let pause = rng.millis(20, 300);
        if !socket.send(ask, SEND).await || !socket.listen(pause).await {
            break;
        }
    }
    Some(socket.seen())
}

/// From the oldest change on, and everything: once more before the last answer is there.
async fn resumes(ground: &AttackGround, name: &'static str, victim: Victim, who: &DeviceToken) -> AttemptResult {
    let mut first = ground.connect(name, AttackOrigin::Thief, victim.gateway).await?;
    first.send(request("GET", "/sync/changes?limit=1", &who.token, "", None).as_bytes(), SEND).await;
    let answer = first.answer(LOOKED_AT).await;
    let epoch =
        answer.split_once("\"cursor\":\"").and_then(|(_, rest)| rest.split_once(['.', '-'])).map(|(epoch, _)| epoch);
    let Some(epoch) = epoch else { return Some(first.seen()) };
    let cursor = format!("{epoch}.0");
    let (mut socket, _) = open(ground, name, AttackOrigin::Thief, victim, who, &json!({ "cursor": cursor })).await?;
    for _ in 0..10 {
        let sync = json!({ "device_id": who.device, "sync_type": "incremental", "cursor": cursor });
        let sent = socket.send(&event("sync_request", &sync), SEND).await;
        if !sent || !socket.listen(SEND / 4).await {
            break;
        }
    }
    Some(socket.seen())
}

/// An Engine.IO connection opened with one token, and used with another and with none.
async fn sids(
    ground: &AttackGround,
    name: &'static str,
    victim: Victim,
    owner: &DeviceToken,
    thief: &DeviceToken,
) -> AttemptResult {
    let path = "/socket.io/?EIO=4&transport=polling";
    let mut first = ground.connect(name, AttackOrigin::Thief, victim.gateway).await?;
    first.send(request("GET", path, &owner.token, "", None).as_bytes(), SEND).await;
    let answer = first.answer(LOOKED_AT).await;
    let sid = answer.split_once("\"sid\":\"").and_then(|(_, rest)| rest.split_once('"')).map(|(sid, _)| sid.to_owned());
    let Some(sid) = sid else { return Some(first.seen()) };
    let path = format!("{path}&sid={sid}");
    let mut seen = AttackReply::default();
    for token in [&thief.token, "none"] {
        let mut socket = ground.connect(name, AttackOrigin::Thief, victim.gateway).await?;
        socket.send(request("POST", &path, token, "", Some(&json!(0))).as_bytes(), SEND).await;
        socket.answer(LOOKED_AT).await;
        seen.bytes += socket.seen().bytes;
        seen.ended |= socket.seen().ended;
    }
    Some(seen)
}
