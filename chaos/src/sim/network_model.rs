//! The simulated network: every message takes its time; some are lost or come twice when a fault says so.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tillsync::testkit::simulated_network::{MessageFate, NetworkModel};

use crate::recorder::Recorder;
use crate::rng::Rng;

/// How bad it is now. Faults add to it and take their part away again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Badness {
    /// Added to every message, at most.
    pub delay_us: u64,
    /// Of a million.
    pub lost: u64,
    pub again: u64,
}

struct NetworkModelState {
    rng: Rng,
    bad: Badness,
}

pub(crate) struct SimWeather {
    state: Mutex<NetworkModelState>,
    recorder: Recorder,
}

impl SimWeather {
    pub(crate) fn new(rng: Rng, recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(NetworkModelState { rng, bad: Badness::default() }), recorder })
    }

    pub(crate) fn worsen(&self, by: Badness) {
        let mut state = self.state.lock();
        state.bad.delay_us += by.delay_us;
        state.bad.lost += by.lost;
        state.bad.again += by.again;
    }

    pub(crate) fn better(&self, by: Badness) {
        let mut state = self.state.lock();
        state.bad.delay_us = state.bad.delay_us.saturating_sub(by.delay_us);
        state.bad.lost = state.bad.lost.saturating_sub(by.lost);
        state.bad.again = state.bad.again.saturating_sub(by.again);
    }
}

impl NetworkModel for SimWeather {
    fn fate(&self, from: u64, to: u64) -> MessageFate {
        let mut state = self.state.lock();
        let bad = state.bad;
        let mut delay = state.rng.micros(80, 500);
        if state.rng.percent(1) {
            delay += state.rng.micros(500, 5_000);
        }
        delay += state.rng.micros(0, bad.delay_us);
        let lost = state.rng.per_million(bad.lost);
        let again = state.rng.per_million(bad.again).then(|| state.rng.millis(0, 60));
        drop(state);
        self.recorder.note(&[from, to, delay.as_micros() as u64, u64::from(lost)]);
        MessageFate { delay, lost, again: again.map(|later: Duration| later) }
    }
}
