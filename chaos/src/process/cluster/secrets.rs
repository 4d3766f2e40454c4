//! The keys that sign tokens, and the nodes' certificates: made, and taken out of use while the nodes run.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tillsync::token::make_key_file;
use tokio::time::sleep;

use super::folders::said_by;
use super::{ProcessCluster, failed};
use crate::starter;

/// Nodes look for new certificates every two seconds; that they have them cannot be asked.
const TAKEN_OVER: Duration = Duration::from_secs(5);

impl ProcessCluster {
    /// Another key signs tokens from now on; the one before is still good. Nodes look for it every second.
    pub(crate) fn new_key(&self) -> Result<(), String> {
        let (path, next) = (self.key_file(), self.data.join("next.key"));
        make_key_file(&next).map_err(failed(&next))?;
        let read = |path: &Path| fs::read_to_string(path).map_err(failed(path));
        let keys = format!("{}\n{}", read(&next)?.trim(), read(&path)?);
        fs::write(&next, keys).map_err(failed(&next))?;
        fs::rename(&next, &path).map_err(failed(&path))
    }

    /// Only the current key is good from now on.
    pub(crate) fn forget_old_keys(&self) -> Result<(), String> {
        let (path, next) = (self.key_file(), self.data.join("next.key"));
        let keys = fs::read_to_string(&path).map_err(failed(&path))?;
        let mut keys = keys.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let current = keys.next().ok_or_else(|| format!("{} holds no key", path.display()))?;
        // For its rights; then it gets that key.
        make_key_file(&next).map_err(failed(&next))?;
        fs::write(&next, format!("{current}\n")).map_err(failed(&next))?;
        fs::rename(&next, &path).map_err(failed(&path))
    }

    /// Certificates of a new CA for all nodes, in the steps that cut nobody off. The first time they have none yet.
    pub(crate) async fn new_certificates(&self) -> Result<(), String> {
        let Some(certs) = &self.certs else { return Ok(()) };
        let (trusted, next) = (certs.join("trusted.crt"), certs.join("next"));
        let running = trusted.exists();
        match fs::remove_dir_all(&next) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&next)(error)),
            _ => {}
        }
        fs::create_dir_all(&next).map_err(failed(&next))?;
        let dir = next.to_string_lossy().into_owned();
        self.certs(&["init", "--dir", &dir, "--cluster", "chaos"]).await?;
        let read = |path: &Path| fs::read_to_string(path).map_err(failed(path));
        let ca = read(&next.join("ca.crt"))?;
        if running {
            replace(&trusted, &format!("{ca}{}", read(&trusted)?))?;
            sleep(TAKEN_OVER).await;
        }
        let ids: Vec<u64> = self.slots.lock().keys().copied().collect();
        for id in ids {
            self.certs(&["issue", &id.to_string(), "--dir", &dir]).await?;
            for end in ["key", "crt"] {
                let name = format!("node-{id}.{end}");
                fs::rename(next.join(&name), certs.join(&name)).map_err(failed(certs))?;
            }
        }
        if running {
            sleep(TAKEN_OVER).await;
        }
        replace(&trusted, &ca)
    }

    async fn certs(&self, words: &[&str]) -> Result<(), String> {
        let mut command = starter::tillsync(&self.binary);
        command.arg("certs").args(words);
        said_by(command, &format!("certs {}", words.join(" "))).await.map(drop)
    }

    /// What a node's settings say of certificates.
    pub(super) fn tls_settings(&self, id: u64) -> String {
        let Some(certs) = &self.certs else { return String::new() };
        let file = |name: &str| certs.join(name);
        format!(
            "raft_tls_ca = {:?}\nraft_tls_cert = {:?}\nraft_tls_key = {:?}\n",
            file("trusted.crt"),
            file(&format!("node-{id}.crt")),
            file(&format!("node-{id}.key"))
        )
    }
}

/// At once: whoever reads it has the whole.
fn replace(path: &Path, text: &str) -> Result<(), String> {
    let next = path.with_extension("next");
    fs::write(&next, text).map_err(failed(&next))?;
    fs::rename(&next, path).map_err(failed(path))
}
