//! Small disks of the nodes' own, which can be filled: tmpfs, where this user may mount it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tillsync::storage::room::free_bytes;

/// Room for a run's data, in MiB.
const SIZE: u64 = 160;
const BALLAST: &str = "ballast";

pub(super) struct Disks {
    mounted: Vec<PathBuf>,
}

/// Whether a tmpfs can be mounted here: tried, not guessed.
pub(super) fn can_mount(folder: &Path) -> Result<(), String> {
    let probe = folder.join("probe");
    fs::create_dir_all(&probe).map_err(|error| format!("{}: {error}", probe.display()))?;
    let mounted = mount(&probe, 1);
    if mounted.is_ok() {
        unmount(&probe);
    }
    let _ = fs::remove_dir(&probe);
    mounted
}

fn mount(at: &Path, mib: u64) -> Result<(), String> {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "chaos"]).arg(at).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("mount: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

fn unmount(at: &Path) {
    let _ = Command::new("umount").arg("-l").arg(at).stdin(Stdio::null()).output();
}

impl Disks {
    pub(super) fn none() -> Self {
        Self { mounted: Vec::new() }
    }

    pub(super) fn mount(data: &Path, nodes: u64) -> Result<Self, String> {
        let mut disks = Self::none();
        for id in 1..=nodes {
            let at = data.join(format!("node-{id}"));
            fs::create_dir_all(&at).map_err(|error| format!("{}: {error}", at.display()))?;
            mount(&at, SIZE)?;
            disks.mounted.push(at);
        }
        Ok(disks)
    }

    fn of(&self, node: u64) -> Option<&PathBuf> {
        self.mounted.get(usize::try_from(node.checked_sub(1)?).ok()?)
    }

    /// Fills a node's disk to the last byte.
    pub(super) fn fill(&self, node: u64) -> Result<(), String> {
        let at = self.of(node).ok_or("the node has no disk of its own")?;
        let mut file = File::create(at.join(BALLAST)).map_err(|error| error.to_string())?;
        let block = vec![0_u8; 64 << 10];
        let mut size = block.len();
        // Bounded by the size of the disk.
        while size > 0 {
            match file.write_all(block.get(..size).unwrap_or_default()) {
                Ok(()) => {}
                Err(_) => size /= 2,
            }
        }
        Ok(())
    }

    /// Takes so many bytes more of a node's disk; false: no more than `leaves` are free.
    pub(super) fn fill_some(&self, node: u64, bytes: u64, leaves: u64) -> Result<bool, String> {
        let at = self.of(node).ok_or("the node has no disk of its own")?;
        let free = free_bytes(at).map_err(|error| error.to_string())?;
        let more = bytes.min(free.saturating_sub(leaves));
        let file = File::options().create(true).append(true).open(at.join(BALLAST));
        let block = vec![0_u8; usize::try_from(more).unwrap_or(0)];
        file.and_then(|mut file| file.write_all(&block)).map_err(|error| error.to_string())?;
        Ok(more > 0)
    }

    pub(super) fn free(&self, node: u64) {
        if let Some(at) = self.of(node) {
            let _ = fs::remove_file(at.join(BALLAST));
        }
    }

    pub(super) fn unmount(&self) {
        self.mounted.iter().for_each(|at| unmount(at));
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.unmount();
    }
}
