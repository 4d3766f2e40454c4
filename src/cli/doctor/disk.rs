//! The disk of the data folder: how soon it has what was written, how much, and whether it is one.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Diagnosis, Severity};
use crate::config::RaftTimes;
use crate::storage::room::free_bytes;

const WHAT: &str = "disk";
/// As many writes as are timed, each as long as a small entry with its page.
const WRITES: usize = 200;
const WRITE: usize = 4 << 10;
/// A disk that takes longer is not timed to the end.
const LONGEST: Duration = Duration::from_secs(20);
/// Bytes written at a stretch, as a snapshot is.
const STRETCH: usize = 64 << 20;
const PIECE: usize = 1 << 20;
/// Every write of a device waits for this, on most of the nodes.
const SLOW: Duration = Duration::from_millis(10);
/// Megabytes a second of a stretch.
const SLOW_STRETCH: f64 = 20.0;
/// Megabytes: a shop for years, and what a node needs to start at all with its reserve.
const ROOM: u64 = 8_192;
const LEAST_ROOM: u64 = 2_048;

/// Everything about the disk that holds, or will hold, this folder.
pub(super) fn look(data_dir: &Path, times: RaftTimes) -> Vec<Diagnosis> {
    let Some(folder) = existing(data_dir) else {
        return vec![Diagnosis::new(Severity::Bad, WHAT, format!("{} is nowhere", data_dir.display()))];
    };
    let mut diagnoses = vec![kind(&folder), room(&folder)];
    match Measured::of(&folder) {
        Ok(measured) => diagnoses.extend([measured.syncs(times), measured.stretch()]),
        Err(error) => {
            let words = format!("nothing can be written to {}: {error}", folder.display());
            diagnoses.push(Diagnosis::new(Severity::Bad, WHAT, words));
        }
    }
    diagnoses
}

/// The folder, or the nearest one above it that is there.
fn existing(data_dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(data_dir).ok()?;
    absolute.ancestors().find(|folder| folder.is_dir()).map(Path::to_path_buf)
}

struct Measured {
    /// Ascending.
    syncs: Vec<Duration>,
    /// Megabytes a second.
    stretch: f64,
}

/// Goes with its name, whatever happens.
struct TrialFile(PathBuf);

impl Drop for TrialFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Measured {
    fn of(folder: &Path) -> io::Result<Self> {
        let trial = TrialFile(folder.join(format!(".tillsync-doctor-{}", std::process::id())));
        let mut file = File::options().write(true).create_new(true).open(&trial.0)?;
        let (begun, mut syncs) = (Instant::now(), Vec::with_capacity(WRITES));
        while syncs.len() < WRITES && begun.elapsed() < LONGEST {
            let begun = Instant::now();
            file.write_all(&[syncs.len() as u8; WRITE])?;
            file.sync_data()?;
            syncs.push(begun.elapsed());
        }
        syncs.sort_unstable();
        let (begun, piece, mut written) = (Instant::now(), vec![7; PIECE], 0);
        while written < STRETCH && begun.elapsed() < LONGEST {
            file.write_all(&piece)?;
            written += PIECE;
        }
        file.sync_data()?;
        let stretch = written as f64 / 1e6 / begun.elapsed().as_secs_f64().max(1e-6);
        Ok(Self { syncs, stretch })
    }

    fn part(&self, percent: usize) -> Duration {
        let at = (self.syncs.len() * percent / 100).min(self.syncs.len().saturating_sub(1));
        self.syncs.get(at).copied().unwrap_or_default()
    }

    fn syncs(&self, times: RaftTimes) -> Diagnosis {
        let (half, most) = (self.part(50), self.part(99));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let said = format!("it has a small write after {:.1} ms, 99 of 100 after {:.1} ms", ms(half), ms(most));
        let limit = times.election_min;
        if most >= limit {
            let least = (ms(most) * 3.0).ceil();
            let words = format!(
                "{said}: that is longer than raft_election_timeout_min_ms ({}), and the nodes may find no leader; \
                 take an SSD, or set it to {least} on all nodes, and raft_election_timeout_max_ms to {}",
                limit.as_millis(),
                least * 2.0,
            );
            return Diagnosis::new(Severity::Bad, WHAT, words);
        }
        if half > SLOW {
            return Diagnosis::new(
                Severity::Warn,
                WHAT,
                format!("{said}: every write of a device takes as long at least"),
            );
        }
        Diagnosis::new(Severity::Ok, WHAT, said)
    }

    fn stretch(&self) -> Diagnosis {
        let said = format!("{:.0} MB a second at a stretch", self.stretch);
        match self.stretch < SLOW_STRETCH {
            true => Diagnosis::new(Severity::Warn, WHAT, format!("{said}: snapshots and new nodes take their time")),
            false => Diagnosis::new(Severity::Ok, WHAT, said),
        }
    }
}

fn path_of(folder: &Path) -> io::Result<CString> {
    Ok(CString::new(folder.as_os_str().as_bytes())?)
}

fn room(folder: &Path) -> Diagnosis {
    match free_bytes(folder) {
        Ok(free) => judge_room(free >> 20),
        Err(error) => Diagnosis::new(Severity::Warn, WHAT, format!("its free room is not known: {error}")),
    }
}

fn judge_room(free_mb: u64) -> Diagnosis {
    let said = format!("{free_mb} MB are free");
    if free_mb < LEAST_ROOM {
        return Diagnosis::new(Severity::Bad, WHAT, format!("{said}: a node needs {LEAST_ROOM} MB"));
    }
    if free_mb < ROOM {
        let words = format!("{said}: {ROOM} MB last a shop with half a gigabyte of records for years");
        return Diagnosis::new(Severity::Warn, WHAT, words);
    }
    Diagnosis::new(Severity::Ok, WHAT, said)
}

fn kind(folder: &Path) -> Diagnosis {
    let found = path_of(folder).and_then(|path| {
        // SAFETY: the structure is plain numbers, for which zeros are values.
        let mut found: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends with a zero, and the structure lives as long as the call.
        match unsafe { libc::statfs(path.as_ptr(), &raw mut found) } {
            0 => Ok(i128::from(found.f_type)),
            _ => Err(io::Error::last_os_error()),
        }
    });
    match found {
        Ok(magic) => judge_kind(folder, magic),
        Err(error) => Diagnosis::new(Severity::Warn, WHAT, format!("its file system is not known: {error}")),
    }
}

fn judge_kind(folder: &Path, magic: i128) -> Diagnosis {
    let folder = folder.display();
    let (severity, words) = match magic as u32 {
        0x6969 | 0x517B | 0xFF53_4D42 | 0xFE53_4D42 => {
            (Severity::Bad, format!("{folder} is on another machine (a network file system): take a local disk"))
        }
        0x0102_1994 | 0x8584_58F6 => {
            (Severity::Bad, format!("{folder} is in memory (tmpfs): a restart of the machine forgets all of it"))
        }
        0x794C_7630 => (
            Severity::Warn,
            format!("{folder} is in a container's own layer (overlayfs), and goes with the container: mount a volume"),
        ),
        0x6573_5546 => {
            (Severity::Warn, format!("{folder} is on a file system of a program (FUSE): whether it syncs is not known"))
        }
        _ => (Severity::Ok, format!("{folder} is on a local file system")),
    };
    Diagnosis::new(severity, WHAT, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> RaftTimes {
        let ms = Duration::from_millis;
        RaftTimes { heartbeat: ms(50), election_min: ms(150), election_max: ms(300) }
    }

    fn disk(ms: u64, slowest: u64) -> Measured {
        let mut syncs = vec![Duration::from_millis(ms); 97];
        syncs.extend([Duration::from_millis(slowest); 3]);
        Measured { syncs, stretch: 200.0 }
    }

    #[test]
    fn a_disk_is_judged_by_what_the_nodes_wait_for() {
        let judged = |measured: Measured| measured.syncs(times());
        assert_eq!(judged(disk(2, 9)).severity, Severity::Ok);
        assert_eq!(judged(disk(11, 40)).severity, Severity::Warn);
        assert_eq!(judged(disk(2, 149)).severity, Severity::Ok);
        let bad = judged(disk(2, 150));
        assert_eq!(bad.severity, Severity::Bad);
        assert!(bad.words.contains("set it to 450 on all nodes") && bad.words.contains("max_ms to 900"), "{bad:?}");
        let slow = Measured { stretch: 12.0, ..disk(1, 1) };
        assert_eq!(slow.stretch().severity, Severity::Warn);
        assert_eq!(disk(1, 1).stretch().severity, Severity::Ok);
    }

    #[test]
    fn a_disk_that_forgets_or_is_elsewhere_is_none() {
        let judged = |magic| judge_kind(Path::new("/data"), magic).severity;
        assert_eq!(judged(0xEF53), Severity::Ok);
        assert_eq!(judged(0x6969), Severity::Bad);
        // Sign-extended, as some systems give it.
        assert_eq!(judged(i128::from(0xFE53_4D42_u32 as i32)), Severity::Bad);
        assert_eq!(judged(0x0102_1994), Severity::Bad);
        assert_eq!(judged(0x794C_7630), Severity::Warn);
        assert_eq!(judge_room(9_000).severity, Severity::Ok);
        assert_eq!(judge_room(8_000).severity, Severity::Warn);
        assert_eq!(judge_room(1_000).severity, Severity::Bad);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_measured_above_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let diagnoses = look(&dir.path().join("a/b"), times());
        assert_eq!(diagnoses.len(), 4, "{diagnoses:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
