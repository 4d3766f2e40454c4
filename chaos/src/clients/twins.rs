//! One device with two sessions, on two nodes: a till whose database was cloned, or that came back before its old
//! connection was missed. Either leaves, and the device is still there.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::client::{ChaosClient, ClientTalk, Counters, refuses};
use super::{Connection, DeviceSeen, ReceivedEvent, Testbed, WorkloadPhase};
use crate::history::TwinSeen;
use crate::rng::Rng;

/// One of the two is heard for so long, then the other one.
const TURN: Duration = Duration::from_millis(15);
/// So often a session has to be seen to leave before a run can end.
const SEEN: u64 = 2;

pub(crate) struct Twins<T: Testbed> {
    client: ChaosClient<T>,
    first: Option<ClientTalk<T>>,
    second: Option<ClientTalk<T>>,
    seen: u64,
}

impl<T: Testbed> Twins<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        Self { client: ChaosClient::new(world, counters, name, rng), first: None, second: None, seen: 0 }
    }

    pub(crate) async fn run(mut self) {
        self.client.world.set_busy(&self.client.name, true);
        while self.client.phase() != WorkloadPhase::End {
            self.connect().await;
            if self.first.is_none() || self.second.is_none() {
                continue;
            }
            let together = self.client.rng.millis(100, 900);
            if !self.listen(together).await {
                continue;
            }
            let calm = self.client.phase() == WorkloadPhase::Listen;
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
            if !self.listen(T::SETTLED).await {
                continue;
            }
            if let (Some(before), Some(after)) = (before, self.look().await) {
                self.see(goodbye, before, after);
            }
        }
        let ends = self.client.phase() == WorkloadPhase::End;
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

    /// Hears both in turn; false if one of them is gone, or the run ended before it was so long.
    async fn listen(&mut self, during: Duration) -> bool {
        let mut left = during;
        let there = [&self.first, &self.second].into_iter().flatten().count();
        while !left.is_zero() && self.client.phase() != WorkloadPhase::End {
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
        left.is_zero() && there > 0 && [&self.first, &self.second].into_iter().flatten().count() == there
    }

    /// An order by hand, over the first one's connection.
    async fn claim_the_role(&mut self) {
        let Some(talk) = &mut self.first else { return };
        let ask = json!({ "device_id": self.client.name, "new_role": "master", "reason": "drill" });
        let is_it = |event: &ReceivedEvent| event.name == "role_change_ack" || refuses(event, "role_change");
        let gone = talk.link.send("role_change", &ask).await.is_err() || self.client.answer(talk, is_it).await.is_err();
        if gone && let Some(talk) = self.first.take() {
            self.client.disconnect(talk, false);
        }
    }

    /// The first one leaves, with a word or without.
    async fn leave(&mut self, goodbye: bool) {
        let Some(mut talk) = self.first.take() else { return };
        if goodbye {
            let ask = json!({ "device_id": self.client.name, "reason": "closing" });
            let is_it = |event: &ReceivedEvent| event.name == "device_offline_ack" || refuses(event, "device_offline");
            if talk.link.send("device_offline", &ask).await.is_ok() {
                // Whatever the answer: it goes.
                let _ = self.client.answer(&mut talk, is_it).await;
            }
        }
        self.client.disconnect(talk, false);
    }

    /// The device as the node of the second one knows it now.
    fn look(&self) -> impl Future<Output = Option<DeviceSeen>> + Send + use<T> {
        let node = self.second.as_ref().map(|talk| talk.node.clone());
        let (world, name) = (self.client.world.clone(), self.client.name.clone());
        async move { world.device(node?, name).await }
    }

    /// What has become of the device that has one session left.
    fn see(&mut self, goodbye: bool, before: DeviceSeen, after: DeviceSeen) {
        let Some(talk) = &self.second else { return };
        self.seen += 1;
        self.client.world.recorder().twin(TwinSeen {
            us: self.client.world.recorder().us(),
            device: self.client.name.clone(),
            session: talk.told.session,
            online: after.online,
            goodbye,
            master_before: before.master,
            master_after: after.master,
            time_ahead: after.time_ahead,
        });
        if self.seen >= SEEN {
            self.client.world.set_busy(&self.client.name, false);
        }
    }
}
