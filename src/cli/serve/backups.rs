//! Backups by schedule: one node of the cluster takes them, each step in a process of its own (`tillsync backup step`).
//!
//! What is due follows from the names of what is there, so a restart and another node go on where this one was. A step that
//! fails is tried again, each time after a longer pause, and hurts nothing else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backup::names::prefix_of;
use crate::backup::schedule::{BackupStep, BackupsDone, BackupsSeen, due, is_on_duty};
use crate::cli::backup::OTHER_HISTORY;
use crate::cli::backup::step::{BackupStepReport, StepArgs, StepName};
use crate::cluster::SharedCluster;
use crate::config::{BackupSettings, Config};
use crate::consensus::segment::SegmentReader;
use crate::ids::{LogIndex, UnixMs};
use crate::limits;
use crate::model::error::{Code, Error};
use crate::proto::BackupStatus;
use crate::storage::SnapshotReader;

/// How often it is looked whether something is due, and whose duty that is.
const TICK: Duration = Duration::from_secs(1);
/// For how long it has to be this node's duty: while nodes come and go, each would begin.
const SETTLED: Duration = Duration::from_secs(5);
/// The first and the longest pause after a step that failed.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);
/// A node that failed so often leaves it to another one.
const GIVES_WAY: u32 = 2;
/// How long a look at what is there may take.
const LOOK: Duration = Duration::from_secs(120);
/// What a step says is read up to here, and of its reason so much is told.
const SAID: usize = 64 << 10;
const REASON: usize = 400;

/// What the settings ask for.
pub(super) struct BackupSchedule {
    settings: BackupSettings,
    scratch: PathBuf,
    /// Bytes to be left free beside what is in `scratch` for a moment.
    leave: u64,
}

impl BackupSchedule {
    pub(super) fn of(config: &Config) -> Option<Self> {
        let settings = config.backup.clone()?;
        let scratch = settings.scratch.clone().unwrap_or_else(|| config.data_dir.join("backup-scratch"));
        Some(Self { settings, scratch, leave: config.disk.low })
    }

    /// The shortest time between two files.
    fn shortest(&self) -> Duration {
        self.settings.incremental_every.unwrap_or(self.settings.every).min(self.settings.every)
    }
}

/// Runs until the node stops.
pub(super) async fn run(cluster: SharedCluster, schedule: BackupSchedule, stop: CancellationToken) {
    let mut turns = BackupTurns::new(cluster, schedule);
    loop {
        turns.tell();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(TICK) => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = turns.take() => {}
        }
    }
}

/// Why a step came to nothing.
struct StepFailure {
    why: String,
    /// As the step's process ended.
    exit: Option<i32>,
}

impl From<Error> for StepFailure {
    fn from(error: Error) -> Self {
        Self { why: error.message, exit: None }
    }
}

fn failure(why: impl Into<String>) -> StepFailure {
    StepFailure { why: why.into(), exit: None }
}

/// How attempts of one kind went.
#[derive(Default)]
struct Attempts {
    failed: u32,
    next: Option<Instant>,
    why: String,
}

/// What is given to a step.
enum StepInput {
    Nothing,
    Whole(SnapshotReader),
    After(Box<SegmentReader>),
}

impl StepInput {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Whole(reader) => reader.next().await,
            Self::After(reader) => reader.next().await,
        }
    }
}

struct BackupTurns {
    cluster: SharedCluster,
    schedule: BackupSchedule,
    /// Since when it is this node's duty.
    on_duty: Option<Instant>,
    /// What is there of the cluster with this prefix.
    seen: Option<(String, BackupsSeen)>,
    done: BackupsDone,
    covered: UnixMs,
    taking: Attempts,
    proving: Attempts,
    /// One that did not end in time: no other is started beside it.
    stuck: Option<Child>,
}

impl BackupTurns {
    fn new(cluster: SharedCluster, schedule: BackupSchedule) -> Self {
        Self {
            cluster,
            schedule,
            on_duty: None,
            seen: None,
            done: BackupsDone::default(),
            covered: UnixMs(0),
            taking: Attempts::default(),
            proving: Attempts::default(),
            stuck: None,
        }
    }

    /// What the other nodes and the operator are to know.
    fn tell(&self) {
        let proved = self.seen.as_ref().map_or(UnixMs(0), |(_, seen)| seen.proved);
        let failed = if self.taking.failed > 0 { &self.taking.why } else { &self.proving.why };
        self.cluster.tell_backups(BackupStatus {
            covered_ms: self.covered.get(),
            proved_ms: proved.get(),
            failed: failed.clone(),
            on_duty: self.on_duty.is_some(),
            gives_way: self.taking.failed >= GIVES_WAY,
        });
    }

    /// Does what is due, if that is for this node.
    async fn take(&mut self) {
        let takes_part = self.cluster.waiting().is_none() && self.cluster.objection().is_none();
        if !takes_part || !is_on_duty(self.cluster.node_id(), &self.cluster.nodes()) {
            (self.on_duty, self.seen, self.proving) = (None, None, Attempts::default());
            if takes_part && self.taking.failed > 0 {
                self.look_again().await;
            }
            return;
        }
        let since = *self.on_duty.get_or_insert_with(Instant::now);
        // Without a quorum nothing comes, and nobody knows what the newest is.
        if since.elapsed() < SETTLED.min(self.schedule.shortest() / 2) || !self.cluster.status().quorum {
            return;
        }
        let Some(prefix) = self.prefix() else { return };
        self.seen = self.seen.take().filter(|(seen_of, _)| *seen_of == prefix);
        if self.seen.is_none() && self.taking.may_begin() {
            let looked = self.look(&prefix).await;
            self.note(false, "backups cannot be taken", &looked);
        }
        let Some(step) = self.due() else { return };
        let is_proof = matches!(step, BackupStep::Prove(_));
        let attempts = if is_proof { &self.proving } else { &self.taking };
        if !attempts.may_begin() {
            return;
        }
        // Another node may have done it meanwhile.
        let outcome = match self.look(&prefix).await {
            Ok(()) => match self.due() {
                Some(step) => self.carry_out(&prefix, step).await,
                None => Ok(()),
            },
            Err(failure) => Err(failure),
        };
        let what = if is_proof { "the newest backup could not be proved" } else { "backups cannot be taken" };
        self.note(is_proof, what, &outcome);
    }

    /// Whether what failed here does so still, while another node takes the backups.
    async fn look_again(&mut self) {
        if let Some(prefix) = self.prefix().filter(|_| self.taking.may_begin()) {
            let looked = self.look(&prefix).await;
            self.note(false, "backups cannot be taken", &looked);
            self.seen = None;
        }
    }

    /// Of the cluster's files, once the state says which cluster it is.
    fn prefix(&self) -> Option<String> {
        let state = self.cluster.replica().state();
        let meta = state.meta();
        (!meta.cluster_id.is_empty() && meta.epoch != 0).then(|| prefix_of(meta))
    }

    /// What is due by what is known; also how far the backups go.
    fn due(&mut self) -> Option<BackupStep> {
        let (_, seen) = self.seen.as_ref()?;
        let (now, applied) = (self.cluster.clock().now_ms(), self.cluster.replica().applied_index());
        let covers_all = seen.newest.is_some() && applied <= seen.last;
        self.covered = self.covered.max(if covers_all { now } else { seen.last_at });
        due(seen, &self.done, &self.schedule.settings, applied, self.proving.may_begin(), now)
    }

    async fn look(&mut self, prefix: &str) -> Result<(), StepFailure> {
        let args = self.args(StepName::Look, prefix);
        self.run(args, StepInput::Nothing, LOOK).await.map(drop)
    }

    async fn carry_out(&mut self, prefix: &str, step: BackupStep) -> Result<(), StepFailure> {
        match step {
            BackupStep::Whole => self.take_whole(prefix).await,
            BackupStep::After(last) => match self.take_entries(prefix, last).await {
                // The log does not go back so far, or what is there is of another history.
                Err(failure) if failure.exit == Some(i32::from(OTHER_HISTORY)) => {
                    tracing::info!(why = failure.why, "a whole backup is taken");
                    self.take_whole(prefix).await
                }
                other => other,
            },
            BackupStep::Prove(name) => {
                let args = self.args(StepName::Prove, prefix);
                let proved = self.run(args, StepInput::Nothing, limits::BACKUP_TAKEN).await;
                match &proved {
                    Ok(_) => tracing::info!(
                        backup = name.file(),
                        "the newest backup was restored for a moment, and is whole"
                    ),
                    // Something is wrong with it.
                    Err(failure) => self.done.start_anew |= failure.exit == Some(1),
                }
                proved.map(drop)
            }
        }
    }

    async fn take_whole(&mut self, prefix: &str) -> Result<(), StepFailure> {
        let now = self.cluster.clock().now_ms();
        self.cluster.read_barrier().await?;
        let reader = self.cluster.backup().await?;
        let args = StepArgs { bytes: reader.bytes(), ..self.args(StepName::Whole, prefix) };
        self.run(args, StepInput::Whole(reader), limits::BACKUP_TAKEN).await?;
        let anew = if self.done.start_anew { now } else { self.done.anew };
        self.done = BackupsDone { whole: now, after: now, start_anew: false, anew };
        self.covered = self.covered.max(now);
        Ok(())
    }

    async fn take_entries(&mut self, prefix: &str, last: LogIndex) -> Result<(), StepFailure> {
        let now = self.cluster.clock().now_ms();
        self.cluster.read_barrier().await?;
        let reader = match self.cluster.backup_after(last).await {
            Err(error) if error.code == Code::InvalidData => {
                return Err(StepFailure { why: error.message, exit: Some(OTHER_HISTORY.into()) });
            }
            other => other?,
        };
        let args = StepArgs { after: last.get(), ..self.args(StepName::After, prefix) };
        let written = self.run(args, StepInput::After(Box::new(reader)), limits::BACKUP_TAKEN).await?;
        self.done.after = now;
        if written.is_some() {
            self.covered = self.covered.max(now);
        }
        Ok(())
    }

    fn args(&self, step: StepName, prefix: &str) -> StepArgs {
        StepArgs {
            step,
            to: self.schedule.settings.to.clone(),
            prefix: prefix.to_owned(),
            scratch: self.schedule.scratch.clone(),
            keep: self.schedule.settings.keep,
            bytes: 0,
            leave: self.schedule.leave,
            after: 0,
            node: std::process::id(),
        }
    }

    /// Runs a step, and keeps what it says is there; what it wrote.
    async fn run(&mut self, args: StepArgs, input: StepInput, within: Duration) -> Result<Option<String>, StepFailure> {
        if let Some(stuck) = &mut self.stuck {
            match stuck.try_wait() {
                Ok(None) => {
                    return Err(failure(
                        "the process of an earlier step hangs: look at the disk or the network of backup_to",
                    ));
                }
                _ => self.stuck = None,
            }
        }
        let mut child = start(&args).map_err(|error| failure(format!("no process could be started: {error}")))?;
        let report = match timeout(within, converse(&mut child, input)).await {
            Ok(report) => report?,
            Err(_) => {
                let _ = child.start_kill();
                self.stuck = Some(child);
                return Err(failure(format!(
                    "it did not end in {} s: look at the disk or the network of backup_to",
                    within.as_secs()
                )));
            }
        };
        if let Some(written) = &report.written {
            tracing::info!("backup: {written}");
        }
        self.seen = Some((args.prefix, report.seen()));
        Ok(report.written)
    }

    /// Says once that something fails, and once that it does no more.
    fn note(&mut self, is_proof: bool, what: &'static str, outcome: &Result<(), StepFailure>) {
        let pause = PAUSE.min(self.schedule.shortest());
        let attempts = if is_proof { &mut self.proving } else { &mut self.taking };
        match outcome {
            Ok(()) if attempts.failed > 0 => {
                tracing::info!(
                    "{} again",
                    if is_proof { "the newest backup is proved" } else { "backups can be taken" }
                );
                *attempts = Attempts::default();
            }
            Ok(()) => {}
            Err(failure) => {
                if attempts.failed == 0 {
                    tracing::error!(why = failure.why, "{what}; it is tried again");
                } else {
                    tracing::debug!(why = failure.why, "{what}");
                }
                let pause = pause.saturating_mul(1 << attempts.failed.min(16)).min(LONGEST_PAUSE);
                let next = Some(Instant::now() + pause);
                let why = format!("{what}: {}", failure.why).chars().take(REASON).collect();
                *attempts = Attempts { failed: attempts.failed.saturating_add(1), next, why };
            }
        }
    }
}

impl Attempts {
    fn may_begin(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }
}

fn start(args: &StepArgs) -> io::Result<Child> {
    // Also where the file was replaced by another version's since the node started.
    let own = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    let mut command = Command::new(own);
    command.args(args.words()).kill_on_drop(true);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command.spawn()
}

/// Gives a step what it is to store, and takes what it says.
async fn converse(child: &mut Child, mut input: StepInput) -> Result<BackupStepReport, StepFailure> {
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failure("its process has no pipes"));
    };
    let given = async move {
        loop {
            match input.next().await {
                Ok(None) => return Ok(()),
                Err(error) => return Err(failure(format!("the node could not read what is to be stored: {error}"))),
                // It has ended, and says why.
                Ok(Some(piece)) if stdin.write_all(&piece).await.is_err() => return Ok(()),
                Ok(Some(_)) => {}
            }
        }
    };
    let (given, said, complaint) = tokio::join!(given, said(stdout), said(stderr));
    let status = child.wait().await.map_err(|error| failure(error.to_string()))?;
    given?;
    if !status.success() {
        let last = complaint.lines().last().unwrap_or_default();
        let why = last.strip_prefix("error: ").unwrap_or(last);
        let why = if why.is_empty() { format!("its process ended with {status}") } else { why.to_owned() };
        return Err(StepFailure { why, exit: status.code() });
    }
    serde_json::from_str(&said)
        .map_err(|error| failure(format!("its process said something else than expected: {error}")))
}

/// The beginning of what comes, when all of it has come.
async fn said(mut from: impl AsyncRead + Unpin) -> String {
    let (mut text, mut piece) = (Vec::new(), [0; 4 << 10]);
    while let Ok(read) = from.read(&mut piece).await {
        if read == 0 {
            break;
        }
        let room = SAID.saturating_sub(text.len());
        text.extend_from_slice(&piece[..read.min(room)]);
    }
    String::from_utf8_lossy(&text).into_owned()
}
