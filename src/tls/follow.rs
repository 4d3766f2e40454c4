//! Files whose changes are taken over while the node runs: certificates end, and are renewed, long before a node stops.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::expires::Expires;
use crate::clock::SharedClock;
use crate::ids::UnixMs;
use crate::model::error::{Code, Error};
use crate::model::time::iso;

/// How often the files are looked at. They are small, and a file system that tells of changes is not everywhere.
const LOOK: Duration = Duration::from_secs(2);
/// How long before its end a certificate is complained about, and how often.
const WARN_BEFORE_MS: u64 = 30 * 86_400_000;
const WARN_EVERY: Duration = Duration::from_secs(86_400);

/// One file and the setting that names it.
#[derive(Clone, Debug)]
pub struct NamedFile {
    pub key: &'static str,
    pub path: PathBuf,
}

/// What files say, kept current.
pub struct Followed<T> {
    files: Vec<NamedFile>,
    make: Make<T>,
    clock: SharedClock,
    read: RwLock<(Vec<Vec<u8>>, Arc<T>)>,
}

/// Makes the value of the contents of the files, or says which of them is wrong. The number is the time in ms.
pub(crate) type Make<T> = Box<dyn Fn(&[Vec<u8>], UnixMs) -> Result<T, Error> + Send + Sync>;

fn unreadable(file: &NamedFile, error: &std::io::Error) -> Error {
    let why = format!("setting {}: {} cannot be read: {error}", file.key, file.path.display());
    Error::new(Code::Configuration, why)
}

impl<T: Expires + Send + Sync + 'static> Followed<T> {
    /// Reads the files. Blocks on the disk: for the start of a node.
    pub fn read(files: Vec<NamedFile>, clock: SharedClock, make: Make<T>) -> Result<Arc<Self>, Error> {
        let mut contents = Vec::with_capacity(files.len());
        for file in &files {
            contents.push(std::fs::read(&file.path).map_err(|error| unreadable(file, &error))?);
        }
        let made = Arc::new(make(&contents, clock.now_ms())?);
        Ok(Arc::new(Self { files, make, clock, read: RwLock::new((contents, made)) }))
    }

    pub fn current(&self) -> Arc<T> {
        self.read.read().1.clone()
    }

    /// Reads the files again; true if they changed. If they cannot be used, what there was stays.
    pub async fn reread(&self) -> Result<bool, Error> {
        let mut contents = Vec::with_capacity(self.files.len());
        for file in &self.files {
            contents.push(tokio::fs::read(&file.path).await.map_err(|error| unreadable(file, &error))?);
        }
        if self.read.read().0 == contents {
            return Ok(false);
        }
        let made = Arc::new((self.make)(&contents, self.clock.now_ms())?);
        *self.read.write() = (contents, made);
        Ok(true)
    }

    /// Follows the files until `stop`, and says in the log when the certificate is about to end.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut warned): (Option<Error>, Option<Instant>) = (None, None);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = stop.cancelled() => return,
            }
            match self.reread().await {
                Ok(changed) => {
                    if changed {
                        tracing::info!(files = %self.names(), "certificates were changed");
                        warned = None;
                    }
                    told = None;
                }
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        tracing::warn!("certificates stay as they are: {}", error.message);
                    }
                    told = Some(error);
                }
            }
            if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                warned = Some(Instant::now());
                self.warn_of_the_end();
            }
        }
    }

    fn warn_of_the_end(&self) {
        if let Some(end) = self.current().ends_before(self.clock.now_ms().plus_ms(WARN_BEFORE_MS)) {
            tracing::warn!(files = %self.names(), "a certificate ends on {}: renew it", iso(end));
        }
    }

    fn names(&self) -> String {
        self.files.iter().map(|f| f.path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}
