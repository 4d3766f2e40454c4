//! The program of a storage run: it opens a data folder, says what it found there, and works until it dies.
//!
//! On its output it says beforehand what it is about to take back (upper case), and afterwards what was acknowledged
//! (lower case); see [`super::known`], which hears it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tillsync::ids::LogIndex;
use tillsync::model::tables::{RowKey, TablesRead};
use tillsync::storage::{self, FolderIdentity, LogStore, SnapshotStore, Stores, flush, memory};
use tokio::sync::Semaphore;

use super::content::{FIRST_TERM, applied, apply, mark, payload, rows_at, term_of};
use crate::rng::Rng;

/// Storage said that it failed, and went on saying so.
const STOPPED: u8 = 3;
/// The machine is at fault.
const FAILED: u8 = 1;
/// The data folder was not opened.
const REFUSED: u8 = 4;
/// Between two looks at calls that do not come back, and how long one may take on a disk that does not fail.
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);
/// Appends in flight.
const FLIGHT: usize = 8;
/// Calls that are tried after storage has failed: none of them may be acknowledged wrongly.
const TRIES: u64 = 12;

/// What a life is mostly made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LifeLoad {
    Log,
    Purge,
    Snapshot,
    Install,
    Mixed,
    /// The same, and at the start the engine is copied as soon as it may be.
    Copied,
    /// A little of everything, then a clean end.
    Short,
}

#[derive(Args)]
pub(crate) struct ChildOptions {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    load: LifeLoad,
}

type ChildResult<T = ()> = Result<T, String>;

fn say(what: impl Display) {
    // One write a line: a kill never tears one.
    println!("{what}");
}

fn text(error: impl Display) -> String {
    error.to_string().replace('\n', " ")
}

pub(crate) fn identity() -> FolderIdentity {
    FolderIdentity { node_id: 1, cluster_id: "power".into() }
}

/// Ends the process with a code that says how it went.
pub(crate) fn run(options: &ChildOptions) -> ! {
    let code = start(options);
    std::process::exit(code.into())
}

/// As a node does: ends where the engine never comes back from a sync that failed.
fn watch() {
    loop {
        std::thread::sleep(LOOK);
        if let (Some(stalled), Err(error)) = (flush::stalled(PATIENCE), flush::failed()) {
            say(format_args!("stop {error}: {} does not come back", stalled.name()));
            std::process::exit(STOPPED.into());
        }
    }
}

fn start(options: &ChildOptions) -> u8 {
    std::thread::spawn(watch);
    // In every second life of the other loads a copy of the engine is due as soon as it may be, too.
    let opened = match options.load == LifeLoad::Copied || options.seed.is_multiple_of(2) {
        true => storage::open_shrunk(&options.dir, &identity(), 0),
        false => storage::open(&options.dir, &identity()),
    };
    let stores = match opened {
        Ok(stores) => stores,
        Err(error) => {
            say(format_args!("refused {}", text(error)));
            return REFUSED;
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(format_args!("bad no runtime: {error}"));
            return FAILED;
        }
    };
    let ended = runtime.block_on(live(stores, options));
    if let Err(why) = &ended {
        say(format_args!("stop {}", text(why)));
    }
    match ended {
        Ok(()) => 0,
        Err(_) => STOPPED,
    }
}

async fn live(stores: Stores, options: &ChildOptions) -> ChildResult {
    say("open");
    tell_found(&stores).await?;
    let bounds = stores.log.bounds();
    let purged = bounds.purged.map_or(0, |(index, _)| index.get());
    let vote = stores.log.vote().and_then(|vote| Some(u64::from_be_bytes(vote[..].try_into().ok()?)));
    let mut work = LifeWork {
        random: Rng::new(options.seed),
        term: vote.unwrap_or(FIRST_TERM),
        last: bounds.last.map_or(purged, LogIndex::get),
        flight: Arc::new(Semaphore::new(FLIGHT)),
        stores,
    };
    let at = work.stores.tables.applied().index;
    if work.last < at {
        // As consensus does where the rows are ahead of the log.
        work.last = at;
        work.purge(at).await?;
    }
    match options.load {
        LifeLoad::Short => work.short().await,
        load => work.long(load).await,
    }
}

fn all_rows(tables: &dyn TablesRead) -> ChildResult<Vec<(RowKey, bytes::Bytes)>> {
    tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).map_err(text)
}

/// Says what is there, and what is wrong with it.
async fn tell_found(stores: &Stores) -> ChildResult {
    let bounds = stores.log.bounds();
    let purged = bounds.purged.as_ref().map_or(0, |(index, _)| index.get());
    let vote = stores.log.vote().map_or(0, |vote| vote[..].try_into().map_or(0, u64::from_be_bytes));
    let at = stores.tables.applied();
    if bounds.purged.as_ref().is_some_and(|(index, found)| *found != mark(index.get())) {
        say("bad the purge mark is torn");
    }
    if at.index > 0 && at != applied(at.index) {
        say(format_args!("bad what was applied is torn at {}", at.index));
    }
    if all_rows(&*stores.tables)? != rows_at(at.index) {
        say(format_args!("bad the rows at {} are not what the log makes them", at.index));
    }
    let snapshot = stores.snapshots.current();
    if let Some(snapshot) = &snapshot {
        let twin = memory::stores();
        let received = copy(&*stores.snapshots, &*twin.snapshots).await?;
        twin.snapshots.install(received).await.map_err(text)?;
        if all_rows(&*twin.tables)? != rows_at(snapshot.applied.index) {
            say(format_args!("bad the snapshot at {} is wrong", snapshot.applied.index));
        }
    }
    if let Some(last) = bounds.last {
        tell_entries(&*stores.log, LogIndex(purged + 1), last).await?;
    }
    let snapshot = snapshot.map_or(0, |snapshot| snapshot.applied.index);
    say(format_args!("found {purged} {} {vote} {} {snapshot}", bounds.last.map_or(purged, LogIndex::get), at.index));
    Ok(())
}

/// Says which terms the entries are of, as runs of equal ones.
async fn tell_entries(log: &dyn LogStore, mut from: LogIndex, last: LogIndex) -> ChildResult {
    let mut run: Option<(LogIndex, LogIndex, u64)> = None;
    while from <= last {
        let entries = log.read(from, last.next(), 4 << 20).await.map_err(text)?;
        if entries.is_empty() {
            return Err(format!("entry {from} cannot be read, of {last}"));
        }
        for (index, entry) in entries {
            let term = term_of(&entry).unwrap_or(0);
            if index != from || entry != payload(index.get(), term) {
                say(format_args!("bad entry {from} is torn, or is {index}"));
            }
            run = match run {
                Some((first, to, of)) if of == term && to.next() == index => Some((first, index, of)),
                other => {
                    tell_run(other);
                    Some((index, index, term))
                }
            };
            from = from.next();
        }
    }
    tell_run(run);
    Ok(())
}

fn tell_run(run: Option<(LogIndex, LogIndex, u64)>) {
    if let Some((from, to, term)) = run {
        say(format_args!("entries {from} {to} {term}"));
    }
}

async fn copy(from: &dyn SnapshotStore, to: &dyn SnapshotStore) -> ChildResult<storage::StateSnapshot> {
    let snapshot = match from.current() {
        Some(snapshot) => snapshot,
        None => from.build().await.map_err(text)?,
    };
    let mut receiver = to.receive().await.map_err(text)?;
    let mut at = 0;
    loop {
        let chunk = from.read_chunk(&snapshot, at, 100_000).await.map_err(text)?;
        if chunk.is_empty() {
            return receiver.finish().await.map_err(text);
        }
        let len = chunk.len() as u64;
        receiver.write(at, chunk).await.map_err(text)?;
        at += len;
    }
}

/// A snapshot of the rows at `index`, as another node would send it.
async fn snapshot_from_elsewhere(target: &dyn SnapshotStore, index: u64) -> ChildResult<storage::StateSnapshot> {
    let mut source = memory::stores();
    rows_at(index).into_iter().for_each(|(key, value)| source.tables.put(key, value));
    source.tables.commit(applied(index));
    copy(&*source.snapshots, target).await
}

async fn acknowledged(ack: storage::WriteAck) -> ChildResult {
    ack.await.map_err(|_| "storage let go of a call".to_owned())?.map_err(text)
}

struct LifeWork {
    stores: Stores,
    random: Rng,
    term: u64,
    last: u64,
    flight: Arc<Semaphore>,
}

impl LifeWork {
    async fn append(&mut self) -> ChildResult {
        let count = 1 + self.random.below(12);
        let (first, last, term) = (self.last + 1, self.last + count, self.term);
        let entries: Vec<_> = (first..=last).map(|index| (LogIndex(index), payload(index, term))).collect();
        self.last = last;
        let permit = self.flight.clone().acquire_owned().await.map_err(text)?;
        let done = move |outcome: std::io::Result<()>| {
            match outcome {
                Ok(()) => say(format_args!("a {first} {last} {term}")),
                Err(error) => say(format_args!("failed {}", text(error))),
            }
            drop(permit);
        };
        self.stores.log.append(entries, Box::new(done));
        Ok(())
    }

    /// Waits until nothing is in flight.
    async fn settle(&self) -> ChildResult {
        self.flight.acquire_many(FLIGHT as u32).await.map(drop).map_err(text)
    }

    async fn apply_some(&mut self) -> ChildResult {
        self.settle().await?;
        let from = self.stores.tables.applied().index + 1;
        let to = self.last.saturating_sub(self.random.below(20));
        for index in from..=to {
            self.stores.pressure.ready().await.map_err(text)?;
            let entry = self.stores.log.read(LogIndex(index), LogIndex(index + 1), 1).await.map_err(text)?;
            match entry.first() {
                Some((at, entry))
                    if *at == LogIndex(index) && term_of(entry).is_some_and(|t| *entry == payload(index, t)) => {}
                _ => say(format_args!("bad entry {index} is not what was appended")),
            }
            apply(&mut *self.stores.tables, index);
        }
        Ok(())
    }

    async fn truncate(&mut self) -> ChildResult {
        self.settle().await?;
        let keep = self.stores.tables.applied().index.max(self.purged());
        let to = keep + self.random.below(self.last.saturating_sub(keep) + 1);
        say(format_args!("T {to}"));
        self.term += 1;
        // The vote of the new term goes first, as it does in Raft.
        let voted = self.stores.log.save_vote(self.term.to_be_bytes().to_vec().into());
        let cut = self.stores.log.truncate_after(Some(LogIndex(to)));
        self.last = to;
        self.append().await?;
        acknowledged(voted).await?;
        say(format_args!("v {}", self.term));
        acknowledged(cut).await
    }

    /// As a node that is asked for its vote: it answers when the vote is kept, and writes nothing else meanwhile.
    async fn vote(&mut self) -> ChildResult {
        self.settle().await?;
        self.term += 1;
        acknowledged(self.stores.log.save_vote(self.term.to_be_bytes().to_vec().into())).await?;
        say(format_args!("v {}", self.term));
        Ok(())
    }

    fn purged(&self) -> u64 {
        self.stores.log.bounds().purged.map_or(0, |(index, _)| index.get())
    }

    async fn snapshot_and_purge(&mut self) -> ChildResult {
        let building = self.stores.snapshots.build();
        let committed = self.stores.tables.applied().index;
        let snapshot = building.await.map_err(text)?;
        if snapshot.applied.index != committed {
            say(format_args!("bad a snapshot at {} was asked for at {committed}", snapshot.applied.index));
        }
        say(format_args!("s {committed}"));
        let upto = committed.saturating_sub(self.random.below(30));
        self.purge(upto).await
    }

    async fn purge(&mut self, index: u64) -> ChildResult {
        if index == 0 || self.purged() >= index {
            return Ok(());
        }
        let ack = self.stores.log.purge(LogIndex(index), mark(index));
        // Appends go on meanwhile.
        self.last = self.last.max(index);
        self.append().await?;
        self.append().await?;
        acknowledged(ack).await?;
        say(format_args!("p {index}"));
        Ok(())
    }

    /// Purges what is applied, but in no snapshot, and perhaps not in the engine yet.
    async fn purge_fresh(&mut self) -> ChildResult {
        self.apply_some().await?;
        let applied = self.stores.tables.applied().index;
        self.purge(applied).await
    }

    async fn install(&mut self) -> ChildResult {
        self.settle().await?;
        let index = self.last + 40 + self.random.below(60);
        let snapshot = snapshot_from_elsewhere(&*self.stores.snapshots, index).await?;
        let snapshots = self.stores.snapshots.clone();
        let installing = tokio::spawn(async move { snapshots.install(snapshot).await });
        // Entries that come meanwhile make the engine flush, whatever the install has written by then.
        self.append().await?;
        self.append().await?;
        installing.await.map_err(text)?.map_err(text)?;
        say(format_args!("i {index}"));
        if all_rows(&*self.stores.tables)? != rows_at(index) {
            say(format_args!("bad an installed snapshot of {index} gave other rows"));
        }
        self.settle().await?;
        self.purge(index).await
    }

    async fn step(&mut self, load: LifeLoad) -> ChildResult {
        let usual = match load {
            LifeLoad::Log => LifeLoad::Log,
            LifeLoad::Mixed | LifeLoad::Copied | LifeLoad::Short => {
                [LifeLoad::Log, LifeLoad::Purge, LifeLoad::Snapshot, LifeLoad::Install][self.random.below(4) as usize]
            }
            other => other,
        };
        match self.random.below(24) {
            0..10 => self.append().await,
            10..13 => self.apply_some().await,
            13..15 => self.truncate().await,
            15..17 => self.vote().await,
            _ => match usual {
                LifeLoad::Purge => self.purge_fresh().await,
                LifeLoad::Snapshot => {
                    self.apply_some().await?;
                    self.snapshot_and_purge().await
                }
                LifeLoad::Install => self.install().await,
                _ => self.append().await,
            },
        }
    }

    /// Until the end comes from outside, or storage fails; then what it says to further calls.
    async fn long(mut self, load: LifeLoad) -> ChildResult {
        loop {
            let Err(first) = self.step(load).await else { continue };
            say(format_args!("failed {}", text(&first)));
            for _ in 0..TRIES {
                if let Err(again) = self.step(load).await {
                    say(format_args!("failed {}", text(again)));
                }
            }
            // As a node that stops by itself does.
            let close = self.stores.close.clone();
            if let Err(again) = close.close().await {
                say(format_args!("failed {}", text(again)));
            }
            return Err(first);
        }
    }

    async fn short(mut self) -> ChildResult {
        for load in [LifeLoad::Log, LifeLoad::Purge, LifeLoad::Snapshot, LifeLoad::Install] {
            for _ in 0..4 {
                self.step(load).await?;
            }
        }
        self.settle().await?;
        let close = self.stores.close.clone();
        close.close().await.map_err(text)?;
        say("closed");
        Ok(())
    }
}

/// The command that starts it.
pub(crate) fn command(dir: &Path, seed: u64, load: LifeLoad) -> std::io::Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("power-child").arg("--dir").arg(dir).arg("--seed").arg(seed.to_string());
    command.arg("--load").arg(format!("{load:?}").to_lowercase());
    Ok(command)
}
