//! What makes bytes durable: [`flush`] syncs where the engine does not, [`poison`] keeps the first error, [`stalls`] sees
//! calls that do not come back, [`disk_error`] says what an operator can do.

use std::fs::File;
use std::io;
use std::path::Path;

pub(crate) mod disk_error;
pub mod flush;
pub(crate) mod poison;
pub(crate) mod stalls;

/// Runs file work off the async runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| io::Error::other(error.to_string()))?
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
