//! Everything that happens in a run, as it happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::failures::Failures;
use crate::history::{
    Anomaly, Attacked, FaultWindow, FinalState, History, LeaderClaim, Op, OpOutcome, Order, Sample, SessionTold,
    ShownRecord, Store, TwinSeen,
};

pub struct ProcessRecorder {
    history: Mutex<History>,
    tick: AtomicU64,
    began: Instant,
    /// What honest devices were refused.
    pub failures: Arc<Failures>,
    /// Operations answered, refused, and of unknown end.
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    pub unknown: AtomicU64,
}

impl ProcessRecorder {
    pub fn new() -> Self {
        let count = || AtomicU64::new(0);
        let (ok, failed, unknown) = (count(), count(), count());
        let began = Instant::now();
        let failures = Arc::new(Failures::new(began));
        Self { history: Mutex::default(), tick: count(), began, failures, ok, failed, unknown }
    }

    /// The next moment: a number that only grows, and the time.
    pub fn now(&self) -> (u64, u64) {
        (self.tick.fetch_add(1, Ordering::SeqCst), self.us())
    }

    pub fn us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn op(&self, op: Op) {
        let count = match op.outcome {
            OpOutcome::Ok => &self.ok,
            OpOutcome::Failed => &self.failed,
            OpOutcome::Unknown => &self.unknown,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.history.lock().ops.push(op);
    }

    pub fn session(&self, session: SessionTold) {
        self.history.lock().sessions.push(session);
    }

    pub fn store(&self, store: Store) {
        self.history.lock().stores.push(store);
    }

    pub fn twin(&self, seen: TwinSeen) {
        self.history.lock().twins.push(seen);
    }

    pub fn order(&self, order: Order) {
        self.history.lock().orders.push(order);
    }

    pub fn shown(&self, shown: ShownRecord) {
        self.history.lock().shown.push(shown);
    }

    pub fn sample(&self, sample: Sample) {
        self.history.lock().samples.push(sample);
    }

    pub fn led(&self, node: u64, raft_term: u64) {
        let us = self.us();
        self.history.lock().led.push(LeaderClaim { us, node, raft_term });
    }

    pub fn finals(&self, finals: Vec<FinalState>) {
        self.history.lock().finals = finals;
    }

    pub fn band(&self, band: FaultWindow) {
        self.history.lock().bands.push(band);
    }

    pub fn anomaly(&self, what: impl Into<String>) {
        let (us, what) = (self.us(), what.into());
        self.history.lock().trouble.push(Anomaly { us, what });
    }

    /// The newest change of each record up to this one, as clients were told.
    pub fn newest_told(&self, up_to: u64) -> BTreeMap<(String, i64), u64> {
        let mut newest = BTreeMap::new();
        for session in &self.history.lock().sessions {
            for row in session.early.iter().chain(&session.told).filter(|row| row.seq <= up_to) {
                let seq = newest.entry((row.table.clone(), row.record)).or_insert(0);
                *seq = row.seq.max(*seq);
            }
        }
        newest
    }

    pub fn attacked(&self, attacked: Attacked) {
        self.history.lock().attacked = Some(attacked);
    }

    pub fn take(&self) -> History {
        let mut history = std::mem::take(&mut *self.history.lock());
        if let Some(attacked) = &mut history.attacked {
            attacked.failures = self.failures.take();
        }
        history
    }
}
