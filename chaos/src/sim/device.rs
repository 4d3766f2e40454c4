//! A simulated device: it connects to any node, writes, reads and syncs, loses its connection and resumes with its
//! cursor, and sends what it does not know the end of again.
//!
//! - this file: its life, from one connection to the next
//! - [`writing`]: changes, several in flight; [`asking`]: reads and syncs; [`roles`]: orders about who is master

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::world::SimWorld;
use super::{SimClient, SimTalk};
use crate::clients::client::{ClientAnswer, Counters, cursor};
use crate::clients::{ConnectionLost, WorkloadPhase};
use crate::history::SessionTold;
use crate::rng::Rng;

mod asking;
mod roles;
pub mod writing;

use writing::UnsettledWrite;

const RECORDS: u64 = 5;
/// Conditional writes go here: conflicts wait for a decision, so a refused write is surely not applied.
pub const GUARDED: &str = "guarded";
pub const PLAIN: &str = "stock";
/// Every device numbers its inserts here from 1, so that numbers collide.
pub const RECEIPTS: &str = "receipts";

/// After this a session that did not come online is told changes all the same.
const FIRST_WORD: Duration = Duration::from_millis(2_300);
/// How long a device whose resume was refused stays to see what it is told all the same.
const REFUSED: Duration = Duration::from_secs(4);

pub struct SimDevice {
    client: SimClient,
    /// The cursor's epoch, and the seq up to which it has everything.
    cursor: Option<(String, u64)>,
    /// Writes whose end is not known, in their order, to be sent again as they were.
    open: VecDeque<UnsettledWrite>,
    written: u64,
    receipts: i64,
    /// How long it stays away when its connection has ended.
    away: Duration,
}

impl SimDevice {
    pub fn new(world: Arc<SimWorld>, counters: Arc<Counters>, name: String, rng: Rng) -> Self {
        let client = SimClient::new(world, counters, name, rng);
        Self { client, cursor: None, open: VecDeque::new(), written: 0, receipts: 0, away: Duration::ZERO }
    }

    pub async fn run(mut self) {
        while self.client.phase() != WorkloadPhase::End {
            let Some(mut talk) = self.client.connect(None).await else { continue };
            let ended = self.talk(&mut talk).await;
            if talk.cursor_refused {
                (self.cursor, talk.told.resumed) = (None, None);
            }
            self.advance(&talk.told);
            let live = ended.is_ok() && self.client.phase() == WorkloadPhase::End;
            self.client.disconnect(talk, live);
            let pause = self.client.rng.millis(0, 30) + std::mem::take(&mut self.away);
            sleep(pause).await;
        }
        while let Some(open) = self.open.pop_front() {
            self.give_up(open);
        }
    }

    /// How far the device has come without a hole.
    fn advance(&mut self, told: &SessionTold) {
        let Some((_, at)) = &mut self.cursor else { return };
        if told.late && told.position.is_some() {
            // What it missed comes in order, without changes of records whose newer state it was told already.
            *at = told.told.iter().map(|row| row.seq).fold(*at, u64::max);
        }
        let mut seqs: Vec<u64> = told.rows().map(|row| row.seq).collect();
        seqs.sort_unstable();
        for seq in seqs {
            if seq == *at + 1 {
                *at = seq;
            }
        }
    }

    async fn talk(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
        if !self.come_online(talk).await? {
            return Err(ConnectionLost);
        }
        if talk.sync.is_some() {
            self.end_sync(talk).await?;
        }
        loop {
            match self.client.phase() {
                WorkloadPhase::End => return Ok(()),
                WorkloadPhase::Listen if self.open.is_empty() => {
                    self.client.listen(talk, Duration::from_millis(20)).await?;
                    continue;
                }
                _ => {}
            }
            if !self.open.is_empty() {
                self.write(talk).await?;
            } else {
                match self.client.rng.below(1_000) {
                    0..=549 => {
                        self.new_writes(talk);
                        self.write(talk).await?;
                    }
                    550..=899 => self.read(talk).await?,
                    900..=924 => self.sync(talk).await?,
                    925..=934 => return Err(ConnectionLost),
                    935..=949 => self.claim_the_role(talk).await?,
                    950..=954 => self.call_for_an_election(talk),
                    955..=962 => return self.shut_down(talk).await,
                    // Not listening for a while: the queue of its session grows.
                    963..=967 => sleep(Duration::from_millis(400)).await,
                    _ => self.client.listen(talk, Duration::from_millis(40)).await?,
                }
            }
            let pause = self.client.rng.millis(0, 25);
            self.client.listen(talk, pause).await?;
        }
    }

    /// False if the node did not let it.
    async fn come_online(&mut self, talk: &mut SimTalk) -> Result<bool, ConnectionLost> {
        let from = self.cursor.clone();
        if from.is_some() && self.client.rng.percent(12) {
            self.write_first(talk).await?;
        }
        let priority = self.client.rng.between(0, 3) * 20;
        let mut ask = json!({ "device_id": self.client.name, "priority": priority });
        if self.client.rng.percent(5) {
            ask["role"] = json!("master");
        }
        if let Some((epoch, seq)) = &from {
            ask["cursor"] = json!(format!("{epoch}.{seq}"));
        }
        let resumed = from.as_ref().map(|(_, seq)| *seq);
        talk.told.resumed = resumed;
        talk.link.send("device_online", &ask);
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
                self.client.listen(talk, REFUSED).await?;
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
    async fn write_first(&mut self, talk: &mut SimTalk) -> Result<(), ConnectionLost> {
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
