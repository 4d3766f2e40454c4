//! Everything that happens in a run, in order: the history for the checkers, and a hash of it all, the trace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::history::{
    Anomaly, FaultWindow, FinalState, History, LeaderClaim, Op, OpOutcome, Order, Sample, SessionTold, ShownRecord,
    Store, TwinSeen,
};

struct SimRecord {
    history: Mutex<History>,
    trace: Mutex<Xxh3>,
    tick: AtomicU64,
    began: Instant,
}

#[derive(Clone)]
pub struct SimRecorder(Arc<SimRecord>);

impl SimRecorder {
    pub fn new(began: Instant) -> Self {
        let trace = Mutex::new(Xxh3::new());
        Self(Arc::new(SimRecord { history: Mutex::default(), trace, tick: AtomicU64::new(0), began }))
    }

    /// The next moment: a number that only grows, and the time.
    pub fn now(&self) -> (u64, u64) {
        (self.0.tick.fetch_add(1, Ordering::SeqCst), self.us())
    }

    pub fn us(&self) -> u64 {
        self.0.began.elapsed().as_micros() as u64
    }

    /// A part of the trace that no checker needs.
    pub fn note(&self, numbers: &[u64]) {
        let us = self.us();
        let mut trace = self.0.trace.lock();
        trace.update(&us.to_le_bytes());
        for number in numbers {
            trace.update(&number.to_le_bytes());
        }
    }

    pub fn say(&self, text: &str) {
        self.note(&[text.len() as u64]);
        self.0.trace.lock().update(text.as_bytes());
        if std::env::var_os("CHAOS_LOG").is_some() {
            eprintln!("{:>10.4} {text}", self.us() as f64 / 1e6);
        }
    }

    pub fn op(&self, op: Op) {
        self.say(&format!("{op:?}"));
        self.0.history.lock().ops.push(op);
    }

    pub fn session(&self, session: SessionTold) {
        let (early, told) = (session.early.len(), session.told.len());
        self.say(&format!("session {} {} {early} {told}", session.session, session.device));
        self.0.history.lock().sessions.push(session);
    }

    pub fn sample(&self, sample: Sample) {
        self.note(&[sample.node, sample.applied, sample.head]);
        self.0.history.lock().samples.push(sample);
    }

    pub fn led(&self, node: u64, raft_term: u64) {
        self.say(&format!("node {node} leads in {raft_term}"));
        let us = self.us();
        self.0.history.lock().led.push(LeaderClaim { us, node, raft_term });
    }

    pub fn finals(&self, finals: Vec<FinalState>) {
        for node in &finals {
            self.say(&format!("final {} {} {} {}", node.node, node.applied, node.digest, node.rows));
        }
        self.0.history.lock().finals = finals;
    }

    pub fn band(&self, band: FaultWindow) {
        self.say(&format!("{band:?}"));
        self.0.history.lock().bands.push(band);
    }

    pub fn anomaly(&self, what: impl Into<String>) {
        let (us, what) = (self.us(), what.into());
        self.say(&what);
        self.0.history.lock().trouble.push(Anomaly { us, what });
    }

    pub fn store(&self, store: Store) {
        self.say(&format!("store {} {} {:?}", store.device, store.session, store.records));
        self.0.history.lock().stores.push(store);
    }

    pub fn twin(&self, seen: TwinSeen) {
        self.say(&format!("{seen:?}"));
        self.0.history.lock().twins.push(seen);
    }

    pub fn order(&self, order: Order) {
        self.say(&format!("{order:?}"));
        self.0.history.lock().orders.push(order);
    }

    pub fn shown(&self, shown: ShownRecord) {
        self.note(&[shown.session, shown.token.number, shown.seq]);
        self.0.history.lock().shown.push(shown);
    }

    pub fn acknowledged(&self) -> usize {
        self.0.history.lock().ops.iter().filter(|op| op.outcome == OpOutcome::Ok).count()
    }

    /// What was recorded, and the trace.
    pub fn take(&self) -> (History, String) {
        let trace = format!("{:032x}", self.0.trace.lock().digest128());
        (std::mem::take(&mut *self.0.history.lock()), trace)
    }
}
