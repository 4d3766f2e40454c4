//! How much room is left on the data folder's file system. Two thresholds come before it is full: below the first less is
//! kept and bulk loads wait, below the second only what has to be written is.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::durability::blocking;
pub use crate::config::RoomThresholds;

/// How often the room is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// How often it is said again that there is little.
const REMIND_EVERY: Duration = Duration::from_secs(3_600);
/// A threshold that was passed counts until so much more than it is free: one part in so many of it.
const HYSTERESIS: u64 = 8;
/// What a snapshot must leave free: the engine has to go on beside it.
pub const SNAPSHOT_LEAVES: u64 = 16 << 20;
/// Bytes of a snapshot after which the room is measured anew.
pub const SNAPSHOT_STEP: u64 = 4 << 20;

/// What the room allows. A greater one allows less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RoomState {
    #[default]
    Plenty,
    /// Below `disk_low`: nothing in bulk, and less is kept.
    Low,
    /// Below `disk_min`: devices write nothing more.
    Full,
}

impl RoomState {
    pub const ALL: [Self; 3] = [Self::Plenty, Self::Low, Self::Full];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plenty => "plenty",
            Self::Low => "low",
            Self::Full => "full",
        }
    }
}

impl RoomThresholds {
    /// With so much free, after that state.
    fn state(self, before: RoomState, free: u64) -> RoomState {
        // What began ends only with a little more room, or it would begin and end again and again.
        let below = |threshold: u64, since: bool| {
            free < if since { threshold.saturating_add(threshold / HYSTERESIS) } else { threshold }
        };
        if below(self.min, before == RoomState::Full) {
            RoomState::Full
        } else if below(self.low, before >= RoomState::Low) {
            RoomState::Low
        } else {
            RoomState::Plenty
        }
    }
}

/// What was measured last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskReading {
    /// Bytes; the greatest number where they cannot be known.
    pub free: u64,
    pub state: RoomState,
}

/// Tells how many bytes are free.
pub type FreeSpace = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// The room of one data folder.
pub struct DiskRoom {
    /// Where the folder is, in words.
    place: String,
    thresholds: RoomThresholds,
    /// `None`: in memory, there is always enough.
    source: Option<FreeSpace>,
    reading: watch::Sender<DiskReading>,
}

impl DiskRoom {
    /// Of a folder's file system. It is measured for the first time when the folder is opened.
    pub fn of(dir: &Path, thresholds: RoomThresholds) -> Arc<Self> {
        let folder = dir.to_path_buf();
        Self::measured(dir.display().to_string(), thresholds, Box::new(move || free_bytes(&folder)))
    }

    /// Of what is in memory.
    pub fn unbounded() -> Arc<Self> {
        Arc::new(Self::new("memory".into(), RoomThresholds::default(), None))
    }

    /// By whatever tells how much is free.
    pub fn measured(place: String, thresholds: RoomThresholds, source: FreeSpace) -> Arc<Self> {
        Arc::new(Self::new(place, thresholds, Some(source)))
    }

    fn new(place: String, thresholds: RoomThresholds, source: Option<FreeSpace>) -> Self {
        let unknown = DiskReading { free: u64::MAX, state: RoomState::Plenty };
        Self { place, thresholds, source, reading: watch::Sender::new(unknown) }
    }

    pub fn reading(&self) -> DiskReading {
        *self.reading.borrow()
    }

    pub fn state(&self) -> RoomState {
        self.reading().state
    }

    /// Bytes, if they are known.
    pub fn free(&self) -> Option<u64> {
        Some(self.reading().free).filter(|free| *free != u64::MAX)
    }

    /// Whether so many bytes more can be written, by what was measured last.
    pub fn holds(&self, bytes: u64) -> bool {
        self.reading().free >= bytes
    }

    /// Measures now. Where that fails, what was measured before stays; nothing is held back before the first time.
    pub fn measure(&self) -> DiskReading {
        let Some(source) = &self.source else { return self.reading() };
        let free = match source() {
            Ok(free) => free,
            Err(error) => {
                tracing::debug!(%error, "how much is free on the disk of {} cannot be known", self.place);
                return self.reading();
            }
        };
        let mut reading = self.reading();
        self.reading.send_if_modified(|last| {
            reading = DiskReading { free, state: self.thresholds.state(last.state, free) };
            std::mem::replace(last, reading) != reading
        });
        reading
    }

    /// Resolves when so many bytes more can be written.
    pub async fn wait_for(&self, bytes: u64) {
        // Fails only when the sender is gone, which is this.
        let _ = self.reading.subscribe().wait_for(|reading| reading.free >= bytes).await;
    }

    /// Measures again and again, and tells the operator.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        if self.source.is_none() {
            return;
        }
        let mut told = RoomTold::default();
        loop {
            let room = self.clone();
            // A disk that hangs may hold this up, too.
            let measured = blocking(move || Ok(room.measure())).await;
            if let Ok(reading) = measured {
                self.tell(told.next(reading.state, Instant::now()), reading);
            }
            if stop.run_until_cancelled(tokio::time::sleep(MEASURE_EVERY)).await.is_none() {
                return;
            }
        }
    }

    fn tell(&self, news: Option<RoomState>, DiskReading { free, .. }: DiskReading) {
        let (place, free) = (&self.place, megabytes(free));
        match news {
            None => {}
            Some(RoomState::Plenty) => tracing::info!("the disk of {place} has room again: {free} MiB"),
            Some(RoomState::Low) => tracing::warn!(
                "the disk of {place} has only {free} MiB left, less than disk_low_mb ({}): fewer changes are kept and no \
                 bulk load is taken; make room",
                megabytes(self.thresholds.low)
            ),
            Some(RoomState::Full) => tracing::warn!(
                "the disk of {place} has only {free} MiB left, less than disk_min_mb ({}): if most of the nodes are so, \
                 devices can write nothing but deletes; make room",
                megabytes(self.thresholds.min)
            ),
        }
    }

    /// Where it is, for a sentence.
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// Whole MiB, for people.
pub fn megabytes(bytes: u64) -> u64 {
    bytes >> 20
}

/// What the operator was told last: a state when it begins, and again after an hour.
#[derive(Default)]
struct RoomTold {
    state: RoomState,
    at: Option<Instant>,
}

impl RoomTold {
    /// What is to be told now.
    fn next(&mut self, state: RoomState, now: Instant) -> Option<RoomState> {
        let reminded = state != RoomState::Plenty && self.at.is_some_and(|at| now - at >= REMIND_EVERY);
        if state == self.state && !reminded {
            return None;
        }
        (self.state, self.at) = (state, Some(now));
        Some(state)
    }
}

/// Bytes that are free for this process on a folder's file system.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this struct of numbers.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, and both live longer than the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const THRESHOLDS: RoomThresholds = RoomThresholds { low: 800, min: 80 };

    /// A room of which the test says how much is free.
    fn faked(thresholds: RoomThresholds) -> (Arc<DiskRoom>, Arc<AtomicU64>) {
        let free = Arc::new(AtomicU64::new(u64::MAX - 1));
        let source = free.clone();
        (DiskRoom::measured("d".into(), thresholds, Box::new(move || Ok(source.load(Ordering::Relaxed)))), free)
    }

    #[test]
    fn a_state_begins_below_its_threshold_and_ends_a_little_above() {
        use RoomState::{Full, Low, Plenty};
        let (room, free) = faked(THRESHOLDS);
        for (bytes, state) in [
            (801, Plenty),
            (800, Plenty),
            (799, Low),
            (800, Low),
            (899, Low),
            (900, Plenty),
            (799, Low),
            (80, Low),
            (79, Full),
            (80, Full),
            (89, Full),
            (90, Low),
            (0, Full),
            (900, Plenty),
            (0, Full),
            (850, Low),
        ] {
            free.store(bytes, Ordering::Relaxed);
            assert_eq!(room.measure(), DiskReading { free: bytes, state }, "{bytes}");
            assert_eq!((room.state(), room.free()), (state, Some(bytes)));
        }
    }

    #[test]
    fn thresholds_of_zero_hold_nothing_back_and_neither_does_a_disk_of_which_nothing_is_known() {
        let (room, free) = faked(RoomThresholds::default());
        free.store(0, Ordering::Relaxed);
        assert_eq!(room.measure().state, RoomState::Plenty);
        let unknown = Box::new(|| Err(io::Error::from_raw_os_error(libc::EIO)));
        let room = DiskRoom::measured("d".into(), THRESHOLDS, unknown);
        assert_eq!((room.measure().state, room.free(), room.holds(1 << 40)), (RoomState::Plenty, None, true));
        assert!(DiskRoom::unbounded().measure().free == u64::MAX);
    }

    #[test]
    fn the_file_system_of_a_folder_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        let room = DiskRoom::of(dir.path(), RoomThresholds { low: u64::MAX / 2, min: 0 });
        let reading = room.measure();
        assert!(reading.free > 0 && reading.free < 1 << 60, "{reading:?}");
        assert_eq!(reading.state, RoomState::Low);
        assert!(free_bytes(&dir.path().join("nowhere")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn each_state_is_told_once_and_again_after_an_hour() {
        use RoomState::{Full, Low, Plenty};
        let (mut told, start) = (RoomTold::default(), Instant::now());
        let mut at = |seconds: u64, state| told.next(state, start + Duration::from_secs(seconds));
        assert_eq!(at(0, Plenty), None);
        assert_eq!(at(5_000, Plenty), None);
        assert_eq!(at(5_001, Low), Some(Low));
        assert_eq!(at(5_002, Low), None);
        assert_eq!(at(8_600, Low), None);
        assert_eq!(at(8_601, Low), Some(Low));
        assert_eq!(at(8_602, Full), Some(Full));
        assert_eq!(at(12_201, Full), None);
        assert_eq!(at(12_202, Full), Some(Full));
        assert_eq!(at(12_203, Plenty), Some(Plenty));
        assert_eq!(at(99_999, Plenty), None);
    }

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_it_comes() {
        let (room, free) = faked(THRESHOLDS);
        free.store(10, Ordering::Relaxed);
        room.measure();
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.wait_for(100).await }
        });
        free.store(99, Ordering::Relaxed);
        room.measure();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !room.holds(100));
        free.store(100, Ordering::Relaxed);
        room.measure();
        waiting.await.unwrap();
        assert!(room.holds(100));
    }
}
