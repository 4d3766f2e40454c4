//! The folder of a local cluster: keys, ports, and a folder for every node.
//!
//! ```text
//! DIR/token.key     signs the cluster's tokens
//! DIR/admin.token   an admin's token
//! DIR/ports.toml    the ports between the nodes, the same at every start
//! DIR/lock          held while a `tillsync dev` runs on the folder
//! DIR/node-N/       node.toml, data/, log, pid
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::NODES;
use super::ports::{free_ports, must_be_free};
use crate::cli::{CliResult, CommandError};
use crate::client::NodeUrl;
use crate::clock::{Clock, SystemClock};
use crate::token::{Class, KeyRing, make_key_file};

/// How long the admin token of a local cluster is valid, and how much of it must be left to keep it. Seconds.
const TOKEN_TTL: u64 = 365 * 86_400;
const TOKEN_LEFT: u64 = 30 * 86_400;

/// A local cluster's folder, ready for the nodes to start.
pub(crate) struct Layout {
    pub dir: PathBuf,
    pub token: String,
    pub nodes: Vec<NodeFiles>,
    /// Dropped with the layout; the system drops it, too, if this process is killed.
    _lock: File,
}

/// One node's place.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles {
    /// From 1.
    pub id: usize,
    pub dir: PathBuf,
    pub gateway: NodeUrl,
    /// Settings over those of its file, `KEY=VALUE`.
    pub set: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    raft: Vec<u16>,
}

impl NodeFiles {
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }
}

impl Layout {
    /// Makes what is missing in `dir`; every port must be free.
    pub(crate) fn prepare(dir: &Path, gateways: &[u16]) -> CliResult<Self> {
        fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
        let lock = lock(dir)?;
        let key = dir.join("token.key");
        make_key_file(&key).map_err(|e| failed(&key, &e))?;
        let token = admin_token(dir, &key)?;
        let raft = raft_ports(dir)?;
        let mut nodes = Vec::with_capacity(NODES);
        for (i, (gateway, raft)) in gateways.iter().zip(&raft).enumerate() {
            must_be_free(*gateway, &format!("gateway of node {}", i + 1))?;
            must_be_free(*raft, &format!("node {} to the others, from {}", i + 1, dir.join("ports.toml").display()))?;
        }
        for (i, gateway) in gateways.iter().enumerate() {
            let node_dir = dir.join(format!("node-{}", i + 1));
            fs::create_dir_all(&node_dir).map_err(|e| failed(&node_dir, &e))?;
            let gateway = NodeUrl::plain(format!("127.0.0.1:{gateway}"));
            let files = NodeFiles { id: i + 1, dir: node_dir, gateway, set: Vec::new() };
            let text = node_toml(&files, dir, gateways, &raft)?;
            fs::write(files.config(), text).map_err(|e| failed(&files.config(), &e))?;
            nodes.push(files);
        }
        Ok(Self { dir: dir.to_owned(), token, nodes, _lock: lock })
    }

    pub(crate) fn urls(&self) -> Vec<NodeUrl> {
        self.nodes.iter().map(|n| n.gateway.clone()).collect()
    }
}

fn lock(dir: &Path) -> CliResult<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| failed(&path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CommandError::usage(format!("another tillsync runs on the folder {}", dir.display())))
        }
        Err(TryLockError::Error(e)) => Err(failed(&path, &e)),
    }
}

/// The token in `admin.token` while it is good for a while, else a fresh one.
fn admin_token(dir: &Path, key: &Path) -> CliResult<String> {
    let (ring, now, path) = (KeyRing::read(key)?, SystemClock.now_ms(), dir.join("admin.token"));
    if let Ok(text) = fs::read_to_string(&path)
        && ring.verify(text.trim(), now.plus_ms(TOKEN_LEFT * 1_000)).is_ok()
    {
        return Ok(text.trim().to_owned());
    }
    let (token, _) = ring.issue("admin", Class::Admin, now, TOKEN_TTL)?;
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).map_err(|e| failed(&path, &e))?;
    writeln!(file, "{token}").map_err(|e| failed(&path, &e))?;
    Ok(token)
}

fn raft_ports(dir: &Path) -> CliResult<Vec<u16>> {
    let path = dir.join("ports.toml");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let ports: Ports = toml::from_str(&text)
                .map_err(|e| CommandError::usage(format!("{}: {}", path.display(), e.message().replace('\n', " "))))?;
            if ports.raft.len() != NODES {
                return Err(CommandError::usage(format!("{}: raft needs {NODES} ports", path.display())));
            }
            Ok(ports.raft)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let raft = free_ports(NODES)?;
            fs::write(&path, format!("raft = {raft:?}\n")).map_err(|e| failed(&path, &e))?;
            Ok(raft)
        }
        Err(e) => Err(failed(&path, &e)),
    }
}

/// The node's settings. Paths are absolute: a node may be started by hand from anywhere.
fn node_toml(files: &NodeFiles, dir: &Path, gateways: &[u16], raft: &[u16]) -> CliResult<String> {
    let dir = fs::canonicalize(dir).map_err(|e| failed(dir, &e))?;
    let quoted = |path: PathBuf| -> CliResult<String> {
        let text = path.to_str().ok_or_else(|| CommandError::usage(format!("{} is not UTF-8", path.display())))?;
        // A JSON text is a TOML text.
        Ok(serde_json::Value::from(text).to_string())
    };
    let data = quoted(dir.join(format!("node-{}", files.id)).join("data"))?;
    let key = quoted(dir.join("token.key"))?;
    let i = files.id - 1;
    let mut text = format!(
        "# Written by `tillsync dev` at every start.\n\
         node_id = {}\ncluster_name = \"dev\"\ndata_dir = {data}\nkey_file = {key}\n\
         gateway_listen = \"127.0.0.1:{}\"\nraft_listen = \"127.0.0.1:{}\"\nmembers = [\n",
        files.id, gateways[i], raft[i]
    );
    for (i, (gateway, raft)) in gateways.iter().zip(raft).enumerate() {
        let id = i + 1;
        text += &format!("    {{ id = {id}, raft = \"127.0.0.1:{raft}\", gateway = \"127.0.0.1:{gateway}\" }},\n");
    }
    Ok(text + "]\n")
}

fn failed(path: &Path, e: &std::io::Error) -> CommandError {
    CommandError::new(format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    #[test]
    fn a_folder_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let gateways = free_ports(NODES).unwrap();
        let first = Layout::prepare(dir.path(), &gateways).unwrap();
        let read = |n: &NodeFiles| {
            let mut layers = Layers::default();
            layers.file("node.toml", &fs::read_to_string(n.config()).unwrap()).unwrap();
            Config::from_layers(&layers).unwrap()
        };
        let configs: Vec<_> = first.nodes.iter().map(read).collect();
        assert_eq!(configs[1].gateway_listen.port(), gateways[1]);
        let token = first.token.clone();
        assert!(Layout::prepare(dir.path(), &gateways).err().unwrap().message.contains("another tillsync"));
        drop(first);
        let second = Layout::prepare(dir.path(), &gateways).unwrap();
        assert_eq!(second.token, token);
        assert_eq!(second.nodes.iter().map(read).collect::<Vec<_>>(), configs);
    }

    #[test]
    fn a_taken_port_and_a_spoilt_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let gateways = free_ports(NODES).unwrap();
        let held = std::net::TcpListener::bind(("127.0.0.1", gateways[1])).unwrap();
        let failure = Layout::prepare(dir.path(), &gateways).err().unwrap();
        assert!(failure.message.contains(&format!("port {} (gateway of node 2)", gateways[1])), "{failure}");
        drop(held);
        fs::write(dir.path().join("ports.toml"), "raft = 7").unwrap();
        assert!(Layout::prepare(dir.path(), &gateways).err().unwrap().message.contains("ports.toml"));
    }
}
