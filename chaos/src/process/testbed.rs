//! The cluster of processes as the clients meet it that the simulation has, too: connections on both transports in turn.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tillsync::client::NodeUrl;
use tillsync::client::link::ClientTransport;
use tillsync::clock::{Clock, SystemClock};
use tillsync::token::Class;
use tokio::sync::watch;
use tokio::time::timeout;

use super::honest_link::HonestLink;
use super::http::{HttpClient, Refusal};
use super::world::ProcessWorld;
use crate::clients::client::{PATIENCE, time};
use crate::clients::device::habits::DeviceHabits;
use crate::clients::{DeviceSeen, Request, Testbed, WorkloadPhase};
use crate::recorder::Recorder;

impl Testbed for ProcessWorld {
    type Connection = HonestLink;
    type Node = u64;

    // The kernel's buffers take pages that the client has not looked at.
    const PAGES_WAIT: bool = false;
    const SETTLED: Duration = Duration::from_millis(2_500);

    fn tables(&self) -> Option<&'static [&'static str]> {
        self.tables
    }

    fn large_percent(&self) -> u64 {
        self.load.large_percent
    }

    fn habits(&self) -> DeviceHabits {
        self.load.habits()
    }

    fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn phase(&self) -> watch::Receiver<WorkloadPhase> {
        self.phase.subscribe()
    }

    fn churn(&self) -> watch::Receiver<u64> {
        self.churn.subscribe()
    }

    fn nodes(&self) -> Vec<(u64, u64)> {
        self.cluster.members().into_iter().map(|id| (id, id)).collect()
    }

    async fn connect(&self, node: &u64, device: &str) -> Option<HonestLink> {
        let token = self.cluster.token_of(device, self.class).ok()?;
        self.connect_with(node, device, &token).await
    }

    async fn connect_with(&self, node: &u64, device: &str, token: &str) -> Option<HonestLink> {
        let url = NodeUrl::plain(self.cluster.gateway(*node)?);
        let kept = self.transports.get(device).copied();
        let transport = kept.unwrap_or_else(|| match self.connections.fetch_add(1, Ordering::Relaxed) % 5 {
            0 | 2 => ClientTransport::Ws,
            1 | 3 => ClientTransport::Socketio,
            _ => ClientTransport::SocketioPolling,
        });
        // With a callback the event of an answer comes as well, and would be taken for the answer to the next request of
        // the same `request_id`: only devices that listen before they ask again want callbacks.
        let callbacks = kept.is_some();
        let connecting = HonestLink::connect((transport, callbacks), (*node, &url), token, (device, &self.recorder));
        timeout(PATIENCE, connecting).await.unwrap_or_else(|_| {
            self.recorder.failure(device, *node, "it could not connect in time");
            None
        })
    }

    fn token(&self, device: &str, class: Class) -> Option<String> {
        self.cluster.earlier_token_of(device, class).ok()
    }

    async fn call(&self, node: u64, token: &str, request: Request) -> Option<(u16, Value)> {
        let authority = self.cluster.gateway(node)?;
        let door = HttpClient { authority: &authority, token, within: PATIENCE * 2 };
        match door.call(request.method, &request.path, request.body.as_ref()).await {
            Ok(body) => Some((200, serde_json::from_slice(&body).ok()?)),
            Err(Refusal::Refused(status, why)) => {
                let (code, error) = why.split_once(' ').unwrap_or_default();
                Some((status, json!({ "error_code": code, "error": error })))
            }
            Err(Refusal::Lost(_)) => None,
        }
    }

    fn set_busy(&self, device: &str, busy: bool) {
        let mut all = self.busy.lock();
        if busy {
            all.insert(device.to_owned());
        } else {
            all.remove(device);
        }
    }

    fn set_reached(&self, session: u64, seq: Option<u64>) {
        let mut all = self.reached.lock();
        match seq {
            Some(seq) => {
                let reached = all.entry(session).or_default();
                *reached = seq.max(*reached);
            }
            None => {
                all.remove(&session);
            }
        }
    }

    async fn device(&self, node: u64, device: String) -> Option<DeviceSeen> {
        let answer = self.ask(node, "GET", "/device/roles", None, PATIENCE).await.ok()?;
        let answer: Value = serde_json::from_slice(&answer).ok()?;
        let devices = answer["devices"].as_array()?;
        let master = devices.iter().find(|row| row["role"] == json!("master"));
        let own = devices.iter().find(|row| row["device_id"] == json!(device));
        // It came online a moment ago, in applied time.
        let ahead = own.is_some_and(|row| time(&row["last_seen"]) > SystemClock.now_ms().get());
        Some(DeviceSeen {
            online: own.is_some_and(|row| row["is_active"] == json!(true)),
            master: master.and_then(|row| row["device_id"].as_str()).unwrap_or_default().to_owned(),
            time_ahead: ahead,
        })
    }

    async fn last_sync_ms(&self, node: u64, device: String) -> Option<u64> {
        let answer = self.ask(node, "GET", &format!("/sync/state/{device}"), None, PATIENCE).await.ok()?;
        let answer: Value = serde_json::from_slice(&answer).ok()?;
        Some(time(&answer["last_sync_timestamp"])).filter(|ms| *ms > 0)
    }
}
