//! `tillsync backup step`: what a node has done by its schedule, in a process of its own. The disk or the network of the backups
//! can fail or hang there, and the node serves on; and a sync that fails in the node's own process would end the node.
//!
//! The node gives what is to be stored on standard input and reads on standard output what is there afterwards ([`BackupStepReport`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::contents::failed;
use super::local::LocalBackup;
use super::part::{PartFile, remove_outdated};
use super::proof::prove;
use super::scratch::must_hold;
use crate::backup::names::{BackupName, ProofName};
use crate::backup::schedule::{BackupsSeen, counted};
use crate::backup::store::BackupStore;
use crate::cli::{CliResult, CommandError};
use crate::clock::{Clock, SystemClock};
use crate::ids::{LogIndex, UnixMs};

/// How many times as many bytes as its backup a cluster has while it is restored; one that comes from a bucket is there, too.
const RESTORED: u64 = 3;
/// How often it is looked whether the node is still there.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug, PartialEq)]
pub(in crate::cli) struct StepArgs {
    #[arg(value_enum)]
    pub step: StepName,
    #[arg(long)]
    pub to: String,
    /// What the names of the cluster's files begin with
    #[arg(long)]
    pub prefix: String,
    #[arg(long)]
    pub scratch: PathBuf,
    #[arg(long)]
    pub keep: u64,
    /// Bytes that are given, if that is known
    #[arg(long, default_value_t = 0)]
    pub bytes: u64,
    /// Bytes that have to be left free on the disk of the scratch folder
    #[arg(long, default_value_t = 0)]
    pub leave: u64,
    /// The entry that what is given goes on from
    #[arg(long, default_value_t = 0)]
    pub after: u64,
    /// The node's process: this one ends with it
    #[arg(long, default_value_t = 0)]
    pub node: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum StepName {
    Look,
    Whole,
    After,
    Prove,
}

/// What is there of the cluster after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct BackupStepReport {
    newest: Option<String>,
    last: u64,
    last_ms: u64,
    proved_ms: u64,
    /// What was written, if anything was.
    pub written: Option<String>,
}

impl BackupStepReport {
    pub(in crate::cli) fn seen(&self) -> BackupsSeen {
        BackupsSeen {
            newest: self.newest.as_deref().and_then(BackupName::parse),
            last: LogIndex(self.last),
            last_at: UnixMs(self.last_ms),
            proved: UnixMs(self.proved_ms),
        }
    }
}

impl StepArgs {
    /// As the command line has it.
    pub(in crate::cli) fn words(&self) -> Vec<String> {
        let step = self.step.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let Self { to, prefix, scratch, keep, bytes, leave, after, node, .. } = self;
        let mut words = vec!["backup".to_owned(), "step".to_owned(), step];
        words.extend([format!("--to={to}"), format!("--prefix={prefix}"), format!("--scratch={}", scratch.display())]);
        words.extend(
            [("keep", keep), ("bytes", bytes), ("leave", leave), ("after", after), ("node", &u64::from(*node))]
                .map(|(name, n)| format!("--{name}={n}")),
        );
        words
    }
}

pub(super) async fn execute(args: StepArgs) -> CliResult {
    stand_back();
    end_with(args.node);
    let store = BackupStore::open(&args.to)?;
    if let BackupStore::Folder(dir) = &store {
        fs::create_dir_all(dir).map_err(failed(dir))?;
    }
    fs::create_dir_all(&args.scratch).map_err(failed(&args.scratch))?;
    let written = match args.step {
        StepName::Look => None,
        StepName::Whole => Some(take_whole(&args, &store).await?),
        StepName::After => take_entries(&args, &store).await?,
        StepName::Prove => Some(prove_newest(&args, &store).await?),
    };
    let BackupsSeen { newest, last, last_at, proved } =
        BackupsSeen::of(&store.list().await?, &args.prefix, SystemClock.now_ms());
    let report = BackupStepReport {
        newest: newest.map(|name| name.file()),
        last: last.get(),
        last_ms: last_at.get(),
        proved_ms: proved.get(),
        written,
    };
    say!("{}", serde_json::to_string(&report).map_err(|error| CommandError::new(error.to_string()))?);
    Ok(())
}

/// The node goes first, for the processor and for the memory.
fn stand_back() {
    // SAFETY: the call takes numbers and concerns this process alone; that it is refused does no harm.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Without the node that has started it this process has nothing to do. (A signal at the parent's death comes at that of the
/// thread that made this process, which the node's runtime may end.)
fn end_with(node: u32) {
    if node == 0 {
        return;
    }
    std::thread::spawn(move || {
        // SAFETY: the call has no arguments and cannot fail.
        while u32::try_from(unsafe { libc::getppid() }) == Ok(node) {
            std::thread::sleep(WATCH);
        }
        std::process::exit(1);
    });
}

async fn take_whole(args: &StepArgs, store: &BackupStore) -> CliResult<String> {
    let place = match store {
        BackupStore::Folder(dir) => dir.as_path(),
        BackupStore::Bucket(_) => args.scratch.as_path(),
    };
    must_hold(place, args.bytes, if place == args.scratch { args.leave } else { 0 })?;
    let mut part = PartFile::open(store, &args.scratch)?;
    part.receive(std::io::stdin().lock())?;
    let (name, _) = part.store_whole(store).await?;
    remove_outdated(store, &name, args.keep).await?;
    Ok(store.shown(&name.file()))
}

async fn take_entries(args: &StepArgs, store: &BackupStore) -> CliResult<Option<String>> {
    let mut part = PartFile::open(store, &args.scratch)?;
    let folder = counted(&store.list().await?, &args.prefix, SystemClock.now_ms());
    let end = part.chain_end(store, &folder).await?;
    if end.entry != LogIndex(args.after) {
        // Another node was faster: what is there now is told.
        return Ok(None);
    }
    part.receive(std::io::stdin().lock())?;
    let stored = part.store_entries(store, &end).await?;
    remove_outdated(store, &end.backup, args.keep).await?;
    Ok(stored.map(|(name, _)| store.shown(&name.file())))
}

async fn prove_newest(args: &StepArgs, store: &BackupStore) -> CliResult<String> {
    let folder = counted(&store.list().await?, &args.prefix, SystemClock.now_ms());
    let newest = folder.newest().ok_or_else(|| CommandError::usage("there is no backup to prove"))?;
    let scratch: &Path = &args.scratch;
    let times = if matches!(store, BackupStore::Bucket(_)) { RESTORED + 1 } else { RESTORED };
    must_hold(scratch, store.bytes(&newest.file()).await?.saturating_mul(times), args.leave)?;
    let local = LocalBackup::of(store, &folder, newest, Some(scratch)).await?;
    let proved = prove(&local, scratch)
        .await
        .map_err(|error| CommandError { message: format!("{}: {error}", local.shown), ..error })?;
    let name = ProofName::of(newest, SystemClock.now_ms(), proved.applied.index).file();
    // Nothing is in it: its name says all.
    let mut part = PartFile::open(store, scratch)?;
    part.receive(std::io::empty())?;
    part.store_as(store, &name).await?;
    remove_outdated(store, newest, args.keep).await?;
    Ok(store.shown(&name))
}
