//! The disk under a mount: it counts, fails as it is told to, and loses its power.
//!
//! When the power goes, no call is answered any more. Only after the program was killed the calls that hang are ended,
//! so that it never sees an error that a machine without power could not have given it.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::{ErrnoCode, Ino, ModelDisk};
use super::events::ProgramEvent;
use super::faults::{Counts, CutMoment, DiskOp, Faults};
use super::loss::Loss;
use crate::rng::Rng;

#[derive(Clone, Copy, PartialEq, Eq)]
enum PowerState {
    On,
    /// No call is answered.
    Off,
    /// The program is dead: whatever still hangs is ended.
    Over,
}

struct DeviceState {
    disk: ModelDisk,
    counts: Counts,
    /// Operations that a fault has hit.
    struck: u64,
    cut: CutMoment,
    faults: Faults,
    power: PowerState,
    /// Who is told that the power went, or that a fault struck for the first time.
    events: Option<SyncSender<ProgramEvent>>,
}

pub(super) struct BlockDevice {
    state: Mutex<DeviceState>,
    changed: Condvar,
}

impl BlockDevice {
    pub(super) fn new(journal: bool) -> Self {
        let state = DeviceState {
            disk: ModelDisk::new(journal),
            counts: Counts::default(),
            struck: 0,
            cut: CutMoment::Never,
            faults: Faults::default(),
            power: PowerState::On,
            events: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// What is to go wrong from now on; operations are counted anew.
    pub(super) fn arm(&self, cut: CutMoment, faults: Faults, events: SyncSender<ProgramEvent>) {
        let mut state = self.state.lock();
        state.counts = Counts::default();
        state.struck = 0;
        state.cut = cut;
        state.faults = faults;
        state.power = PowerState::On;
        state.events = Some(events);
        let used = state.disk.used();
        state.disk.capacity = faults.room.map_or(u64::MAX, |room| used + room);
    }

    /// The power goes now, unless it is gone already.
    pub(super) fn power_off(&self) {
        let mut state = self.state.lock();
        if state.power == PowerState::On {
            state.power = PowerState::Off;
        }
    }

    /// The program is dead: ends the calls that hang.
    pub(super) fn end_calls(&self) {
        let mut state = self.state.lock();
        state.power = PowerState::Over;
        // Whoever listens has to hear the end of it.
        state.events = None;
        self.changed.notify_all();
    }

    /// What the disk has when the power is back.
    pub(super) fn cut(&self, loss: Loss, rng: &mut Rng) {
        self.state.lock().disk.cut(loss, rng);
    }

    pub(super) fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    /// Bytes in use, and how many there may be.
    pub(super) fn space(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.disk.used(), state.disk.capacity)
    }

    /// Waits while there is no power, which is until the program is dead.
    fn powered(&self) -> Result<MutexGuard<'_, DeviceState>, ErrnoCode> {
        let mut state = self.state.lock();
        while state.power == PowerState::Off {
            self.changed.wait(&mut state);
        }
        match state.power {
            PowerState::On => Ok(state),
            _ => Err(libc::EIO),
        }
    }

    fn lose_power<T>(&self, mut state: MutexGuard<'_, DeviceState>) -> Result<T, ErrnoCode> {
        state.power = PowerState::Off;
        tell(&mut state, ProgramEvent::PowerLost);
        drop(state);
        self.powered().and(Err(libc::EIO))
    }

    /// One operation of the program.
    pub(super) fn run<T>(
        &self,
        op: DiskOp,
        work: impl FnOnce(&mut ModelDisk) -> Result<T, ErrnoCode>,
    ) -> Result<T, ErrnoCode> {
        let mut state = self.powered()?;
        let due = count(&mut state, op);
        if due && !state.cut.comes_after(op) {
            return self.lose_power(state);
        }
        if fails(&mut state, op) {
            return Err(libc::EIO);
        }
        let outcome = work(&mut state.disk);
        if matches!(outcome, Err(libc::ENOSPC)) {
            strike(&mut state);
        }
        if due {
            return self.lose_power(state);
        }
        outcome
    }

    /// `op`: which kind of sync it is.
    pub(super) fn sync(&self, ino: Ino, op: DiskOp) -> Result<(), ErrnoCode> {
        let mut state = self.powered()?;
        let due = count(&mut state, op);
        if due && !state.cut.comes_after(op) {
            return self.lose_power(state);
        }
        if fails(&mut state, op) {
            // As Linux does: what could not be written is not tried again, and the next sync says that all is well.
            state.disk.lose(ino);
            return Err(libc::EIO);
        }
        let upto = state.disk.newest();
        let slow = state.faults.slow_sync;
        if slow > Duration::ZERO {
            drop(state);
            std::thread::sleep(slow);
            state = self.powered()?;
        }
        state.disk.sync(ino, upto);
        if due { self.lose_power(state) } else { Ok(()) }
    }
}

fn count(state: &mut DeviceState, op: DiskOp) -> bool {
    state.counts.add(op);
    state.cut.is_due(op, &state.counts)
}

fn fails(state: &mut DeviceState, op: DiskOp) -> bool {
    let fails = state.faults.fail.is_some_and(|fail| fail.is_due(op, &state.counts));
    if fails {
        strike(state);
    }
    fails
}

fn strike(state: &mut DeviceState) {
    state.struck += 1;
    if state.struck == 1 {
        tell(state, ProgramEvent::FaultStruck);
    }
}

fn tell(state: &mut DeviceState, event: ProgramEvent) {
    if let Some(events) = &state.events {
        // Fails only when nobody listens any more.
        let _ = events.send(event);
    }
}
