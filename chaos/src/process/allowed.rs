//! What this machine lets a run do, and what is left out here.

use std::path::{Path, PathBuf};

use super::kind::FaultKind;
use super::scenario::Scenario;
use super::{disks, stall};

/// Where distributions put libfaketime.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

#[derive(Default)]
pub(super) struct MachineRights {
    pub mounts: bool,
    pub faketime: Option<PathBuf>,
    /// Faults that cannot be injected here.
    pub left_out: Vec<FaultKind>,
    pub notes: Vec<String>,
    /// What is used, in words.
    pub machine: String,
}

/// The library that moves a process's clock, if it is installed.
pub(super) fn faketime() -> Option<PathBuf> {
    FAKETIME.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Looks only for what the scenario needs.
pub(super) fn here(scenario: &Scenario, dir: &Path) -> MachineRights {
    let mut allowed =
        MachineRights { machine: "processes on loopback, proxies between them".into(), ..MachineRights::default() };
    let small: Vec<FaultKind> =
        [FaultKind::FullDisk, FaultKind::DisksFill].into_iter().filter(|kind| scenario.has(*kind)).collect();
    if !small.is_empty() {
        match disks::can_mount(dir) {
            Ok(()) => {
                allowed.mounts = true;
                allowed.machine += ", data on a tmpfs for each node";
            }
            Err(why) => {
                for kind in small {
                    allowed.leave_out(kind, &format!("no small file system can be mounted here ({why})"));
                }
            }
        }
    }
    if scenario.has(FaultKind::ClockSkew) {
        match faketime() {
            Some(path) => {
                allowed.faketime = Some(path);
                allowed.machine += ", clocks by libfaketime";
            }
            None => allowed.leave_out(FaultKind::ClockSkew, "libfaketime is not installed"),
        }
    }
    if scenario.has(FaultKind::SlowDisk) {
        match stall::possible() {
            Ok(()) => allowed.machine += ", slow disks by holding up the thread that writes the log",
            Err(why) => allowed.leave_out(FaultKind::SlowDisk, &why),
        }
    }
    allowed
}

impl MachineRights {
    fn leave_out(&mut self, kind: FaultKind, why: &str) {
        self.left_out.push(kind);
        self.notes.push(format!("{} is left out: {why}", kind.name()));
    }
}
