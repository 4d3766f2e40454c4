//! A drill from its first sale to its report.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::clock::{Clock, SystemClock};
use tillsync::ids::UnixMs;
use tillsync::model::time::iso;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::steps::{Act, DrillScene, DrillStep};
use super::tills::{Tills, TillsShared};
use super::{PATIENCE, monitor, readback, stop_signal};
use crate::history::{FaultWindow, History};
use crate::recorder::Recorder;
use crate::report::command::make;
use crate::report::words::{count, took_us};
use crate::report::{RunDescription, folder};
use crate::sim::run::GAP;

/// Between the sales of a till.
const PACE: Duration = Duration::from_millis(40);
/// After a step, until the next one begins.
const REST: Duration = Duration::from_secs(2);

pub(super) struct Play {
    pub scene: DrillScene,
    pub steps: Vec<DrillStep>,
    pub tills: usize,
    /// Of a step, from its words to the next one's.
    pub slot: Duration,
    /// What it is called, and the command that repeats it.
    pub name: String,
    pub replay: String,
    pub machine: String,
    /// Where the report goes.
    pub out: PathBuf,
}

/// What came of a step.
struct StepReport {
    title: String,
    pause_us: u64,
    slowest_us: u64,
}

#[derive(Default)]
struct Notes {
    came: Vec<StepReport>,
    /// Steps that are broken and not healed yet, with when.
    undone: Vec<(usize, u64)>,
    problems: Vec<String>,
}

impl Play {
    /// True if everything held; an error if it could not be played to its end.
    pub(super) async fn run(self) -> Result<bool, String> {
        let statuses = self.scene.cluster.well(PATIENCE).await?;
        let started = SystemClock.now_ms().get();
        let recorder = Recorder::new();
        let shop = TillsShared::new(self.scene.cluster.clone(), recorder.clone(), started, PACE);
        let cursor = readback::begin(&shop).await?;
        let onlooker =
            AbortOnDropHandle::new(tokio::spawn(monitor::watch(self.scene.cluster.clone(), recorder.clone())));
        let tills = Tills::open(&shop, self.tills);
        let notes = Mutex::new(Notes::default());
        let acted = tokio::select! {
            acted = self.act(&shop, &notes) => acted,
            signal = stop_signal() => signal.and(Err("stopped before the end".to_owned())),
        };
        self.heal_all(&recorder, &notes).await;
        if let Err(why) = self.scene.cluster.well(PATIENCE).await {
            recorder.anomaly(why);
        }
        tills.close().await;
        drop(onlooker);
        let mut notes = notes.into_inner();
        notes.problems.extend(acted.err());
        let about = RunDescription {
            scenario: self.name.clone(),
            explained: format!(
                "{} sold on a cluster of {} nodes while it was broken, step by step. Then every sale was looked up again.",
                count(self.tills as u64, "till"),
                statuses.len()
            ),
            replay: self.replay.clone(),
            nodes: statuses.iter().map(|status| status.node).collect(),
            started: iso(UnixMs(started)),
            duration_ms: recorder.us() / 1_000,
            version: statuses.first().map(|status| status.version.clone()).unwrap_or_default(),
            machine: self.machine.clone(),
            gap_ms: GAP.as_millis() as u64,
            notes: notes.problems.clone(),
            ..RunDescription::default()
        };
        let concluded = tokio::select! {
            concluded = self.conclude(&shop, &cursor, &about, recorder.take()) => concluded,
            signal = stop_signal() => signal.and(Err("stopped: the sales were not all looked up and deleted".to_owned())),
        };
        let holds = concluded?;
        self.tell(&shop, &notes, holds);
        if notes.problems.is_empty() { Ok(holds) } else { Err(notes.problems.join("; ")) }
    }

    async fn act(&self, shop: &Arc<TillsShared>, notes: &Mutex<Notes>) -> Result<(), String> {
        for (place, step) in self.steps.iter().enumerate() {
            let end = Instant::now() + self.slot;
            println!("\n{}. {}", place + 1, step.title);
            if !step.explained.is_empty() {
                println!("   {}", step.explained);
            }
            sleep(self.slot / 5).await;
            let from_us = shop.recorder.us();
            notes.lock().undone.push((place, from_us));
            let done = self.scene.inject(&step.act).await;
            if done.is_ok() {
                sleep(step.lasts).await;
            }
            self.undo(place, step, notes).await;
            if let Err(why) = self.scene.cluster.well(PATIENCE).await {
                shop.recorder.anomaly(format!("after {}: {why}", step.name));
            }
            let what = match done {
                Ok(what) => what,
                Err(why) => {
                    println!("   This could not be done: {why}");
                    notes.lock().problems.push(format!("{} could not be done: {why}", step.name));
                    continue;
                }
            };
            if !matches!(step.act, Act::Nothing) {
                let (name, majority, to_us) = (step.name.clone(), step.majority, shop.recorder.us());
                shop.recorder.band(FaultWindow { name, what: what.clone(), from_us, to_us, majority });
            }
            sleep_until(end.max(Instant::now() + REST)).await;
            let (pause_us, slowest_us) = shop.pauses(from_us, shop.recorder.us());
            let done = if matches!(step.act, Act::Nothing) { String::new() } else { format!("Done: {what}. ") };
            println!(
                "   {done}Longest time without a sale: {}. Slowest single sale: {}.",
                took_us(pause_us),
                took_us(slowest_us)
            );
            notes.lock().came.push(StepReport { title: step.title.clone(), pause_us, slowest_us });
        }
        Ok(())
    }

    async fn undo(&self, place: usize, step: &DrillStep, notes: &Mutex<Notes>) {
        match self.scene.heal(&step.act).await {
            Ok(()) => notes.lock().undone.retain(|(other, _)| *other != place),
            Err(why) => {
                println!("   It could not be healed: {why}");
                notes.lock().problems.push(format!("not healed: {why}"));
            }
        }
    }

    /// Whatever is still broken, also after an interruption.
    async fn heal_all(&self, recorder: &Recorder, notes: &Mutex<Notes>) {
        let undone = notes.lock().undone.clone();
        for (place, from_us) in undone.into_iter().rev() {
            let Some(step) = self.steps.get(place) else { continue };
            println!("   healing {}", step.name);
            self.undo(place, step, notes).await;
            let (name, what, to_us) = (step.name.clone(), format!("{}, interrupted", step.name), recorder.us());
            recorder.band(FaultWindow { name, what, from_us, to_us, majority: step.majority });
        }
    }

    /// Looks every sale up, writes the report, and takes the sales away.
    async fn conclude(
        &self,
        shop: &TillsShared,
        cursor: &str,
        about: &RunDescription,
        mut history: History,
    ) -> Result<bool, String> {
        println!("\nThe tills are closed. Every sale is looked up on every node …");
        let found = readback::read(shop, cursor).await;
        let mut records = BTreeSet::from([shop.base]);
        if let Ok(found) = &found {
            records.extend(found.iter().flat_map(|(_, rows)| rows.iter().map(|row| row.record)));
            readback::conclude(&mut history, found.clone());
        }
        folder::save(&self.out, about, &history).map_err(|error| format!("{}: {error}", self.out.display()))?;
        found.map_err(|why| format!("the sales could not be looked up, so nothing can be said of them: {why}"))?;
        let (holds, _) = make(&self.out, about, &history)?;
        let left = readback::sweep(shop, records).await;
        if left > 0 {
            println!("{} of this drill could not be deleted.", count(left as u64, "record"));
        }
        Ok(holds)
    }

    fn tell(&self, shop: &TillsShared, notes: &Notes, holds: bool) {
        let sold = count(shop.sold() as u64, "sale");
        if holds {
            println!("\nNOTHING WAS LOST. {sold} confirmed; every one is there once, on every node.");
        } else {
            println!("\nBROKEN. {sold} confirmed; the report says what is wrong, and proves it.");
        }
        println!("\n   {:<28}{:>28}{:>22}", "", "longest time without a sale", "slowest single sale");
        for StepReport { title, pause_us, slowest_us } in &notes.came {
            println!("   {title:<28}{:>28}{:>22}", took_us(*pause_us), took_us(*slowest_us));
        }
        println!("\nThe report: {}", self.out.join("report.html").display());
    }
}
