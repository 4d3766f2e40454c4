//! Starting `tillsync`: the program, its ports and settings, and that it does not outlive this process.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tillsync::clock::{Clock, SystemClock};

use crate::mutants;
use crate::rng::Rng;

/// Below the range that systems take for outgoing connections: a restarted node must find its port free.
const PORTS: (u64, u64) = (20_000, 31_900);
/// Ports that are looked at for each that is wanted.
const LOOKS: usize = 2_000;

/// Finds free ports on loopback, each of them once.
pub(crate) struct PortFinder {
    rng: Rng,
    taken: Vec<u16>,
}

impl PortFinder {
    /// Runs at the same time, of one process or of several, look at other ports: `any` tells those of one process apart.
    pub(crate) fn new(any: u64) -> Self {
        let rng = Rng::new(any ^ u64::from(std::process::id()) << 32 ^ SystemClock.now_ms().get());
        Self { rng, taken: Vec::new() }
    }

    /// A free address.
    pub(crate) fn address(&mut self) -> Result<SocketAddr, String> {
        self.row(1).map(|port| (Ipv4Addr::LOCALHOST, port).into())
    }

    /// The first of so many free ports in a row.
    pub(crate) fn row(&mut self, count: u16) -> Result<u16, String> {
        for _ in 0..LOOKS {
            let first = self.rng.between(PORTS.0, PORTS.1 - u64::from(count)) as u16;
            let mut row = first..first + count;
            let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if row.all(|port| !self.taken.contains(&port) && free(port)) {
                self.taken.extend(first..first + count);
                return Ok(first);
            }
        }
        Err(format!("no {count} free ports in a row were found between {} and {}", PORTS.0, PORTS.1))
    }
}

/// The `tillsync` beside this program, whether it is there or not.
pub(crate) fn beside() -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(this.with_file_name(format!("tillsync{}", std::env::consts::EXE_SUFFIX)))
}

/// A `tillsync` whose settings come from the run alone.
pub(crate) fn tillsync(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        // A bug on purpose is what a run is to find.
        if name.to_str().is_some_and(|name| name.starts_with("TILLSYNC_") && name != mutants::ON) {
            command.env_remove(name);
        }
    }
    command
}

/// A node with this settings file.
pub(crate) fn serve(program: &Path, config: &Path) -> Command {
    let mut command = tillsync(program);
    command.arg("serve").arg("--config").arg(config);
    command
}

/// The child is sent this signal when the thread that started it has gone, however that happens.
pub(crate) fn signal_at_our_end(command: &mut Command, signal: libc::c_int) {
    // SAFETY: between fork and exec only this system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// What every node's settings file says.
pub(crate) struct NodeSettings<'a> {
    pub id: u64,
    pub cluster: &'a str,
    pub data: &'a Path,
    pub key: &'a Path,
    pub gateway: SocketAddr,
    pub raft: SocketAddr,
}

impl NodeSettings<'_> {
    /// The file's text. `more`: further lines, among them who the members are.
    pub(crate) fn text(&self, more: &str) -> String {
        let Self { id, cluster, data, key, gateway, raft } = self;
        format!(
            "node_id = {id}\ncluster_name = {cluster:?}\ndata_dir = {data:?}\nkey_file = {key:?}\n\
             gateway_listen = \"{gateway}\"\nraft_listen = \"{raft}\"\n{more}\n"
        )
    }
}

/// A member in the list of a settings file.
pub(crate) fn member(id: u64, raft: impl Display, gateway: impl Display) -> String {
    format!("    {{ id = {id}, raft = \"{raft}\", gateway = \"{gateway}\" }},\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_found_once() {
        let mut ports = PortFinder::new(7);
        let first = ports.row(3).unwrap();
        let held = (first..first + 3).map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        drop(held.collect::<Vec<_>>());
        let mut found: Vec<u16> = (0..50).map(|_| ports.address().unwrap().port()).chain(first..first + 3).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 53);
    }

    #[test]
    fn a_settings_file_is_taken() {
        let address = |port| (Ipv4Addr::LOCALHOST, port).into();
        let (data, key) = (Path::new("d"), Path::new("k"));
        let node = NodeSettings { id: 2, cluster: "c", data, key, gateway: address(7), raft: address(8) };
        let text = node.text(&format!("members = [\n{}]", member(2, node.raft, node.gateway)));
        let mut layers = tillsync::config::Layers::default();
        layers.file("node.toml", &text).unwrap();
        let config = tillsync::config::Config::from_layers(&layers).unwrap();
        assert_eq!((config.gateway_listen, config.raft_listen), (node.gateway, node.raft));
    }
}
