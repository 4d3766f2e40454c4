//! A device that keeps a cursor: it connects to any node, writes, reads and syncs, loses its connection and resumes with
//! its cursor, and sends what it does not know the end of again.
//!
//! - this file: its life, from one connection to the next; [`habits`]: how often it does what
//! - [`writing`]: changes, several in flight; [`asking`]: reads and syncs; [`roles`]: orders about who is master

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::client::{ChaosClient, ClientAnswer, ClientTalk, Counters, cursor};
use super::syncing::further;
use super::{Connection, ConnectionLost, Testbed, WorkloadPhase};
use crate::rng::Rng;

mod asking;
pub(crate) mod habits;
mod roles;
mod writing;

use habits::{DeviceHabits, Turn};
use writing::UnsettledWrite;

/// Conditional writes go here: conflicts wait for a decision, so a refused write is surely not applied.
pub(crate) const GUARDED: &str = "guarded";
pub(crate) const PLAIN: &str = "stock";
/// Every device numbers its inserts here from 1, so that numbers collide.
pub(crate) const RECEIPTS: &str = "receipts";

/// After this a session that did not come online is told changes all the same.
const FIRST_WORD: Duration = Duration::from_millis(2_300);
const DEAF: Duration = Duration::from_millis(400);

pub(crate) struct WorkloadDevice<T> {
    client: ChaosClient<T>,
    habits: DeviceHabits,
    /// The cursor's epoch, and the seq up to which it has everything.
    cursor: Option<(String, u64)>,
    /// Writes whose end is not known, in their order, to be sent again as they were.
    open: VecDeque<UnsettledWrite>,
    written: u64,
    receipts: i64,
    /// How long it stays away when its connection has ended.
    away: Duration,
}

impl<T: Testbed> WorkloadDevice<T> {
    pub(crate) fn new(world: Arc<T>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let habits = world.habits();
        let client = ChaosClient::new(world, counters, name, rng);
        Self { client, habits, cursor: None, open: VecDeque::new(), written: 0, receipts: 0, away: Duration::ZERO }
    }

    pub(crate) async fn run(mut self) {
        while self.client.phase() != WorkloadPhase::End {
            // Until it is online it has not been told everything.
            self.set_busy(true);
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let ended = self.talk(&mut talk).await;
            if talk.cursor_refused {
                (self.cursor, talk.told.resumed) = (None, None);
            }
            if let Some((_, at)) = &mut self.cursor {
                *at = further(*at, &talk.told, self.client.world.tables().is_some());
            }
            let live = ended.is_ok() && self.client.phase() == WorkloadPhase::End;
            self.client.disconnect(talk, live);
            let pause = self.client.rng.millis(0, 30) + std::mem::take(&mut self.away);
            sleep(pause).await;
        }
        while let Some(open) = self.open.pop_front() {
            self.give_up(open);
        }
    }

    fn set_busy(&self, busy: bool) {
        self.client.world.set_busy(&self.client.name, busy);
    }

    async fn talk(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        if !self.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        if talk.sync.is_some() {
            self.end_sync(talk).await?;
        }
        loop {
            self.set_busy(!self.open.is_empty());
            match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen if self.open.is_empty() => {
                    self.client.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                WorkloadPhase::Listen | WorkloadPhase::Load => {}
            }
            if self.open.is_empty() {
                self.turn(talk).await?;
            } else {
                self.write(talk).await?;
            }
            let pause = self.client.rng.millis(0, self.habits.pause_ms);
            self.client.listen(talk, pause).await?;
        }
    }

    async fn turn(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        match self.habits.turns.turn(self.client.rng.below(1_000)) {
            Turn::Write => {
                self.new_writes(talk);
                self.write(talk).await
            }
            Turn::Insert => {
                let open = self.new_receipt(talk);
                self.open.push_back(open);
                self.write(talk).await
            }
            Turn::Read => self.read(talk).await,
            Turn::Sync => self.sync(talk).await,
            Turn::Reconnect => Err(ConnectionLost),
            Turn::Claim => self.claim_the_role(talk).await,
            Turn::CallElection => self.call_for_an_election(talk).await,
            Turn::ShutDown => self.shut_down(talk).await,
            Turn::Deaf => {
                // The queue of its session grows.
                sleep(DEAF).await;
                Ok(())
            }
            Turn::Listen => self.client.listen(talk, Duration::from_millis(40)).await,
        }
    }

    /// False if the node did not let it.
    async fn come_online(&mut self, talk: &mut ClientTalk<T>) -> Result<bool, ConnectionLost> {
        let from = self.cursor.clone();
        if from.is_some() && self.client.rng.percent(12) {
            self.write_first(talk).await?;
        }
        let priority = self.client.rng.between(0, 3) * 20;
        let mut ask = json!({ "device_id": self.client.name, "priority": priority });
        if self.habits.turns.claims > 0 && self.client.rng.percent(5) {
            ask["role"] = json!("master");
        }
        if let Some(tables) = self.client.world.tables() {
            ask["subscribe"] = json!(tables);
        }
        if let Some((epoch, seq)) = &from {
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
        }
        let resumed = from.as_ref().map(|(_, seq)| *seq);
        talk.told.resumed = resumed;
        if talk.link.send("device_online", &ask).await.is_err() {
            talk.told.resumed = None;
            return Err(ConnectionLost);
        }
        if from.is_some() && self.client.rng.percent(8) {
            // Its pages and what it missed go out at the same time.
            self.ask_for_sync(talk).await?;
        }
        let answer = self.client.online_answer(talk).await;
        let event = match answer {
            Ok(ClientAnswer::Event(event)) => event,
            Ok(ClientAnswer::Silence) | Err(ConnectionLost) => {
                talk.told.resumed = None;
                return answer.map(|_| false);
            }
        };
        if event.name != "device_online_ack" {
            if resumed.is_some() {
                // A program that does not look at the error listens on: it must not be told what follows a gap.
                talk.told.refused = Some(talk.told.rows().count() as u64);
                talk.told.resumed = None;
                self.client.listen(talk, self.habits.refused).await?;
            }
            return Ok(false);
        }
        if !self.client.is_online(talk, &event) {
            return Ok(false);
        }
        if self.cursor.is_none() {
            self.cursor = cursor(&event).map(|(epoch, seq)| (epoch.to_owned(), seq));
        }
        Ok(true)
    }

    /// It sends what it wrote while it was away before it comes online, as libraries do that flush their buffer first.
    async fn write_first(&mut self, talk: &mut ClientTalk<T>) -> Result<(), ConnectionLost> {
        talk.told.late = true;
        if self.open.is_empty() && self.client.phase() == WorkloadPhase::Load {
            self.new_writes(talk);
        }
        if !self.open.is_empty() {
            self.write(talk).await?;
        }
        if self.client.rng.percent(30) {
            // By then it is told what happens, from its connection on.
            self.client.listen(talk, FIRST_WORD).await?;
        }
        Ok(())
    }
}
