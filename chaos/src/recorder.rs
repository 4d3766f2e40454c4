//! Everything that happens in a run, in order: the history for the checkers and, where one is wanted, a hash of it all,
//! the trace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::history::{
    Anomaly, Attacked, FaultWindow, FinalState, History, HonestFailure, LeaderClaim, Op, OpOutcome, Order, Sample,
    SessionTold, ShownRecord, Store, TwinSeen,
};

/// Failures of honest devices that are kept. More are counted as this many.
const MOST_FAILURES: usize = 1_000;

/// The recorder of a run. Its clones record into the same history.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<RunRecord>);

struct RunRecord {
    history: Mutex<History>,
    /// `None`: this run cannot be repeated to the letter, so its trace is of no use.
    trace: Option<Mutex<Xxh3>>,
    tick: AtomicU64,
    began: Instant,
    outcomes: OutcomeCounts,
    failures: Mutex<Vec<HonestFailure>>,
}

/// Operations answered, refused, and of unknown end.
#[derive(Default)]
pub(crate) struct OutcomeCounts {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    pub unknown: AtomicU64,
}

impl Recorder {
    /// For a run in real time.
    pub(crate) fn new() -> Self {
        Self::of(Instant::now(), None)
    }

    /// For a run that a seed repeats.
    pub(crate) fn traced(began: Instant) -> Self {
        Self::of(began, Some(Mutex::new(Xxh3::new())))
    }

    fn of(began: Instant, trace: Option<Mutex<Xxh3>>) -> Self {
        Self(Arc::new(RunRecord {
            history: Mutex::default(),
            trace,
            tick: AtomicU64::new(0),
            began,
            outcomes: OutcomeCounts::default(),
            failures: Mutex::default(),
        }))
    }

    /// The next moment: a number that only grows, and the time in microseconds.
    pub(crate) fn now(&self) -> (u64, u64) {
        (self.0.tick.fetch_add(1, Ordering::SeqCst), self.us())
    }

    pub(crate) fn us(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn outcomes(&self) -> &OutcomeCounts {
        &self.0.outcomes
    }

    /// A part of the trace that no checker needs.
    pub(crate) fn note(&self, numbers: &[u64]) {
        let Some(trace) = &self.0.trace else { return };
        let us = self.us();
        let mut trace = trace.lock();
        trace.update(&us.to_le_bytes());
        for number in numbers {
            trace.update(&number.to_le_bytes());
        }
    }

    /// The same in words; `text` is called only where there is a trace.
    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        let Some(trace) = &self.0.trace else { return };
        let text = text();
        self.note(&[text.len() as u64]);
        trace.lock().update(text.as_bytes());
        if std::env::var_os("CHAOS_LOG").is_some() {
            eprintln!("{:>10.4} {text}", self.us() as f64 / 1e6);
        }
    }

    pub(crate) fn op(&self, op: Op) {
        self.say(|| format!("{op:?}"));
        let outcomes = &self.0.outcomes;
        let count = match op.outcome {
            OpOutcome::Ok => &outcomes.ok,
            OpOutcome::Failed => &outcomes.failed,
            OpOutcome::Unknown => &outcomes.unknown,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.0.history.lock().ops.push(op);
    }

    pub(crate) fn session(&self, session: SessionTold) {
        let (early, told) = (session.early.len(), session.told.len());
        self.say(|| format!("session {} {} {early} {told}", session.session, session.device));
        self.0.history.lock().sessions.push(session);
    }

    pub(crate) fn sample(&self, sample: Sample) {
        self.note(&[sample.node, sample.applied, sample.head]);
        self.0.history.lock().samples.push(sample);
    }

    pub(crate) fn led(&self, node: u64, raft_term: u64) {
        self.say(|| format!("node {node} leads in {raft_term}"));
        let us = self.us();
        self.0.history.lock().led.push(LeaderClaim { us, node, raft_term });
    }

    pub(crate) fn finals(&self, finals: Vec<FinalState>) {
        for node in &finals {
            self.say(|| format!("final {} {} {} {}", node.node, node.applied, node.digest, node.rows));
        }
        self.0.history.lock().finals = finals;
    }

    pub(crate) fn band(&self, band: FaultWindow) {
        self.say(|| format!("{band:?}"));
        self.0.history.lock().bands.push(band);
    }

    /// Notes whether a majority is there. A time without one is recorded when it is over; `gone` is when it began.
    pub(crate) fn majority(&self, gone: &mut Option<u64>, is_there: bool) {
        let now = self.us();
        match (*gone, is_there) {
            (None, false) => *gone = Some(now),
            (Some(from_us), true) => {
                *gone = None;
                let (name, what) = ("no_majority".into(), "no majority".into());
                self.band(FaultWindow { name, what, from_us, to_us: now, majority: false });
            }
            (None, true) | (Some(_), false) => {}
        }
    }

    pub(crate) fn anomaly(&self, what: impl Into<String>) {
        let (us, what) = (self.us(), what.into());
        self.say(|| what.clone());
        self.0.history.lock().trouble.push(Anomaly { us, what });
    }

    pub(crate) fn store(&self, store: Store) {
        self.say(|| format!("store {} {} {:?}", store.device, store.session, store.records));
        self.0.history.lock().stores.push(store);
    }

    pub(crate) fn twin(&self, seen: TwinSeen) {
        self.say(|| format!("{seen:?}"));
        self.0.history.lock().twins.push(seen);
    }

    pub(crate) fn order(&self, order: Order) {
        self.say(|| format!("{order:?}"));
        self.0.history.lock().orders.push(order);
    }

    pub(crate) fn shown(&self, shown: ShownRecord) {
        self.note(&[shown.session, shown.token.number, shown.seq]);
        self.0.history.lock().shown.push(shown);
    }

    pub(crate) fn attacked(&self, attacked: Attacked) {
        self.0.history.lock().attacked = Some(attacked);
    }

    /// An honest device was refused, left without an answer, or cut off.
    pub(crate) fn failure(&self, device: &str, node: u64, what: impl Into<String>) {
        let us = self.us();
        let mut failures = self.0.failures.lock();
        if failures.len() < MOST_FAILURES {
            failures.push(HonestFailure { us, device: device.to_owned(), node, what: what.into() });
        }
    }

    /// The newest change of each record up to this one, as clients were told.
    pub(crate) fn newest_told(&self, up_to: u64) -> BTreeMap<(String, i64), u64> {
        let mut newest = BTreeMap::new();
        for session in &self.0.history.lock().sessions {
            for row in session.early.iter().chain(&session.told).filter(|row| row.seq <= up_to) {
                let seq = newest.entry((row.table.clone(), row.record)).or_insert(0);
                *seq = row.seq.max(*seq);
            }
        }
        newest
    }

    /// A hash of all that was recorded so far; `None` if no trace is kept.
    pub(crate) fn trace(&self) -> Option<String> {
        self.0.trace.as_ref().map(|trace| format!("{:032x}", trace.lock().digest128()))
    }

    /// Takes what was recorded.
    pub(crate) fn take(&self) -> History {
        let mut history = std::mem::take(&mut *self.0.history.lock());
        if let Some(attacked) = &mut history.attacked {
            attacked.failures = std::mem::take(&mut *self.0.failures.lock());
        }
        history
    }
}
