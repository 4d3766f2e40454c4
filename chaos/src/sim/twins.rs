//! One device with two sessions, on two nodes: a till whose database was cloned, or that came back before its old
//! connection was missed. Either leaves, and the device is still there.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tillsync::cluster::Cluster;
use tokio::time::{sleep, timeout};

use super::client::{Client, Counters, PATIENCE, Talk, refuses};
use super::link::Event;
use super::world::{Phase, World};
use crate::history::TwinSeen;
use crate::rng::Rng;

/// Longer than a node waits for a device whose connection has ended.
const SETTLED: Duration = Duration::from_millis(1_500);
/// One of the two is heard for so long, then the other one.
const TURN: Duration = Duration::from_millis(15);

pub struct Twins {
    client: Client,
    first: Option<Talk>,
    second: Option<Talk>,
}

impl Twins {
    pub fn new(world: Arc<World>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        Self { client: Client::new(world, counters, name, rng), first: None, second: None }
    }

    pub async fn run(mut self) {
        while self.client.phase() != Phase::End {
            self.connect().await;
            if self.first.is_none() || self.second.is_none() {
                continue;
            }
            let together = self.client.rng.millis(100, 900);
            if !self.listen(together).await {
                continue;
            }
            let calm = self.client.phase() == Phase::Listen;
            if self.client.rng.percent(60) {
                self.claim_the_role().await;
            }
            if self.client.rng.percent(50) {
                std::mem::swap(&mut self.first, &mut self.second);
            }
            if self.first.is_none() || self.second.is_none() {
                continue;
            }
            let goodbye = self.client.rng.percent(25);
            let before = if calm { self.look().await } else { None };
            self.leave(goodbye).await;
            if !self.listen(SETTLED).await {
                continue;
            }
            if let (Some((before, ..)), Some((after, online, time_ahead))) = (before, self.look().await) {
                self.see(goodbye, online, before, after, time_ahead);
            }
        }
        let ends = self.client.phase() == Phase::End;
        for talk in [self.first.take(), self.second.take()].into_iter().flatten() {
            self.client.disconnect(talk, ends);
        }
    }

    /// Both are there afterwards, if nodes let them.
    async fn connect(&mut self) {
        for _ in 0..2 {
            let there = self.first.as_ref().or(self.second.as_ref()).map(|talk| talk.told.node);
            let place = if self.first.is_none() {
                &mut self.first
            } else if self.second.is_none() {
                &mut self.second
            } else {
                return;
            };
            let Some(mut talk) = self.client.connect(there).await else { return };
            match self.client.come_online(&mut talk).await {
                Ok(true) => *place = Some(talk),
                _ => {
                    self.client.disconnect(talk, false);
                    sleep(TURN).await;
                    return;
                }
            }
        }
    }

    /// Hears both in turn; false if one of them is gone.
    async fn listen(&mut self, during: Duration) -> bool {
        let mut left = during;
        let there = [&self.first, &self.second].into_iter().flatten().count();
        while !left.is_zero() && self.client.phase() != Phase::End {
            for place in [&mut self.first, &mut self.second] {
                if let Some(talk) = place
                    && self.client.listen(talk, TURN).await.is_err()
                    && let Some(talk) = place.take()
                {
                    self.client.disconnect(talk, false);
                }
            }
            left = left.saturating_sub(TURN);
        }
        there > 0 && [&self.first, &self.second].into_iter().flatten().count() == there
    }

    /// An order by hand, over the first one's connection.
    async fn claim_the_role(&mut self) {
        let Some(talk) = &mut self.first else { return };
        let ask = json!({ "device_id": self.client.name, "new_role": "master", "reason": "drill" });
        talk.link.send("role_change", &ask);
        let is_it = |event: &Event| event.name == "role_change_ack" || refuses(event, "role_change");
        if self.client.answer(talk, is_it).await.is_err()
            && let Some(talk) = self.first.take()
        {
            self.client.disconnect(talk, false);
        }
    }

    /// The first one leaves, with a word or without.
    async fn leave(&mut self, goodbye: bool) {
        let Some(mut talk) = self.first.take() else { return };
        if goodbye {
            talk.link.send("device_offline", &json!({ "device_id": self.client.name, "reason": "closing" }));
            let is_it = |event: &Event| event.name == "device_offline_ack" || refuses(event, "device_offline");
            // Whatever the answer: it goes.
            let _ = self.client.answer(&mut talk, is_it).await;
        }
        self.client.disconnect(talk, false);
    }

    /// Who is master, whether the device is online, and whether the applied time is ahead, as the node of the second
    /// one knows it now.
    fn look(&self) -> impl Future<Output = Option<(String, bool, bool)>> + Send + 'static {
        let (up, name) = (self.second.as_ref().map(|talk| talk.up.clone()), self.client.name.clone());
        async move {
            let up = up?;
            timeout(PATIENCE, up.cluster.read_barrier()).await.ok()?.ok()?;
            let state = up.cluster.replica().hot();
            let online = state.device(&name).is_some_and(|device| device.is_active);
            Some((state.meta().master.clone(), online, state.meta().now_ms > up.gateway.now_ms()))
        }
    }

    /// What has become of the device that has one session left.
    fn see(&self, goodbye: bool, online: bool, master_before: String, master_after: String, time_ahead: bool) {
        let Some(talk) = &self.second else { return };
        self.client.world.recorder.twin(TwinSeen {
            us: self.client.world.recorder.us(),
            device: self.client.name.clone(),
            session: talk.told.session,
            online,
            goodbye,
            master_before,
            master_after,
            time_ahead,
        });
    }
}
