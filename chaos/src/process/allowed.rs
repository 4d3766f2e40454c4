//! What this machine lets a run do, and what is left out here.

use std::path::{Path, PathBuf};

use super::kind::Kind;
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
pub struct Allowed {
    pub mounts: bool,
    pub faketime: Option<PathBuf>,
    /// Faults that cannot be injected here.
    pub left_out: Vec<Kind>,
    pub notes: Vec<String>,
    /// What is used, in words.
    pub machine: String,
}

/// Looks only for what the scenario needs.
pub fn here(scenario: &Scenario, dir: &Path) -> Allowed {
    let mut allowed = Allowed { machine: "processes on loopback, proxies between them".into(), ..Allowed::default() };
    if scenario.has(Kind::FullDisk) {
        match disks::can_mount(dir) {
            Ok(()) => {
                allowed.mounts = true;
                allowed.machine += ", data on a tmpfs for each node";
            }
            Err(why) => allowed.leave_out(Kind::FullDisk, &format!("no small file system can be mounted here ({why})")),
        }
    }
    if scenario.has(Kind::ClockSkew) {
        match FAKETIME.iter().map(PathBuf::from).find(|path| path.exists()) {
            Some(path) => {
                allowed.faketime = Some(path);
                allowed.machine += ", clocks by libfaketime";
            }
            None => allowed.leave_out(Kind::ClockSkew, "libfaketime is not installed"),
        }
    }
    if scenario.has(Kind::SlowDisk) {
        match stall::possible() {
            Ok(()) => allowed.machine += ", slow disks by holding up the thread that writes the log",
            Err(why) => allowed.leave_out(Kind::SlowDisk, &why),
        }
    }
    allowed
}

impl Allowed {
    fn leave_out(&mut self, kind: Kind, why: &str) {
        self.left_out.push(kind);
        self.notes.push(format!("{} is left out: {why}", kind.name()));
    }
}
