//! Puts the pieces of a data folder together, and takes them apart again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};

use super::engine::{self, OpenedFolder, SledEngine, flatten};
use super::format::{FolderIdentity, OpenError};
use super::log::{self, LogShared, LogState, SledLog};
use super::log_thread::{self, LogCommand, LogThread, Message};
use super::poison::{closed, guarded};
use super::snapshot::{SledSnapshots, blocking};
use super::tables::{RowsPressure, SledTables, TablesShared};
use super::writer::{self, RowsWriter, engine_error};
use super::{BoxFuture, Close, StartMark, StartMarks, Stores, flush};

/// Opens a node's data folder, or makes it. Blocks on the disk.
pub fn open(dir: &Path, identity: &FolderIdentity) -> Result<Stores, OpenError> {
    let OpenedFolder { engine, snapshots, lock, poison } = engine::open(dir, identity)?;
    let (found, log_state) = match find(dir, &engine) {
        Ok(found) => found,
        Err(error) => {
            engine.let_go();
            return Err(error);
        }
    };
    let shared = TablesShared::new(found.rows.clone(), found.applied.clone(), poison.clone());
    let kept = Arc::new(Mutex::new(Some(engine.clone())));
    let kept_starts = kept.clone();
    let store = SledSnapshots::open(snapshots, shared.clone(), kept.clone(), found.applied.index);
    let snapshots = match store {
        Ok(snapshots) => snapshots,
        Err(error) => {
            drop((shared, kept, found));
            engine.let_go();
            return Err(OpenError::io(dir)(error));
        }
    };

    let log_shared =
        Arc::new(LogShared { state: Mutex::new(log_state), poison, tree: RwLock::new(Some(engine.log.clone())) });
    let (sender, messages) = sync_channel(log::QUEUE);
    let log_thread = LogThread::new(engine.clone(), log_shared.clone(), shared.clone(), messages);
    let writer = RowsWriter::new(engine, shared.clone(), found);
    let threads = [spawn("rows", move || writer.run()), spawn("log", move || log_thread.run())];
    let [Ok(writer), Ok(log)] = threads else {
        return Err(OpenError::io(dir)(io::Error::other("no thread could be started")));
    };
    let parts = StorageParts {
        shared: shared.clone(),
        sender: sender.clone(),
        engine: kept,
        writer,
        log,
        lock,
        dir: dir.to_path_buf(),
    };
    let close: Arc<dyn Close> = Arc::new(Closer(Mutex::new(Some(parts))));
    Ok(Stores {
        starts: Arc::new(SledStarts(kept_starts)),
        log: Arc::new(SledLog { shared: log_shared, sender, tables: shared.clone(), _closer: close.clone() }),
        tables: Box::new(SledTables::new(shared.clone())),
        snapshots: Arc::new(snapshots),
        pressure: Arc::new(RowsPressure(shared)),
        close,
    })
}

/// In the engine's tree of marks.
const START: &[u8] = b"start";

struct SledStarts(Arc<Mutex<Option<SledEngine>>>);

impl StartMarks for SledStarts {
    fn last(&self) -> io::Result<StartMark> {
        let engine = self.0.lock().clone().ok_or_else(closed)?;
        let mark = engine.meta.get(START).map_err(engine_error)?;
        mark.map_or(Ok(StartMark::default()), |bytes| StartMark::decode(&bytes))
    }

    fn save(&self, mark: StartMark) -> BoxFuture<'_, io::Result<()>> {
        let engine = self.0.lock().clone();
        Box::pin(blocking(move || {
            let engine = engine.ok_or_else(closed)?;
            engine.meta.insert(START, &mark.encode()).map_err(engine_error)?;
            engine.flush().map_err(engine_error)
        }))
    }
}

/// What the engine holds.
pub(super) fn find(dir: &Path, engine: &SledEngine) -> Result<(writer::OpenedRows, LogState), OpenError> {
    let found = flatten(dir, guarded(|| writer::find(engine)))?;
    match guarded(|| log_thread::load(engine)) {
        Ok(Ok(state)) => Ok((found, state)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(OpenError::corrupt(dir, error)),
        Ok(Err(error)) => Err(OpenError::io(dir)(error)),
        Err(panic) => Err(OpenError::corrupt(dir, panic)),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("tillsync-{name}")).spawn(run)
}

struct StorageParts {
    shared: Arc<TablesShared>,
    sender: SyncSender<Message>,
    engine: Arc<Mutex<Option<SledEngine>>>,
    writer: JoinHandle<()>,
    log: JoinHandle<()>,
    lock: File,
    dir: PathBuf,
}

impl StorageParts {
    fn close(self) -> io::Result<()> {
        // The rows first: the log's last flush then covers them.
        self.shared.queue.close();
        let writer = self.writer.join();
        // Fails only if the thread is gone already.
        let _ = self.sender.send(Message { op: LogCommand::Close, done: None, committed: None });
        let log = self.log.join();
        *self.shared.rows.write() = None;
        if let Some(engine) = self.engine.lock().take() {
            engine.let_go();
        }
        engine::wait_released(&self.dir);
        drop(self.lock);
        // What failed first says more than what it led to.
        self.shared.poison.check()?;
        if writer.is_err() || log.is_err() {
            return Err(io::Error::other("a storage thread panicked"));
        }
        Ok(())
    }
}

struct Closer(Mutex<Option<StorageParts>>);

impl Close for Closer {
    fn check(&self) -> io::Result<()> {
        if let Some(parts) = self.0.lock().as_ref() {
            parts.shared.poison.check()?;
            if let Some(engine) = parts.engine.lock().as_ref() {
                engine.background_error().map_err(engine_error)?;
            }
        }
        flush::failed()
    }

    fn close(&self) -> BoxFuture<'_, io::Result<()>> {
        let parts = self.0.lock().take();
        Box::pin(async move {
            match parts {
                Some(parts) => blocking(move || parts.close()).await,
                None => Ok(()),
            }
        })
    }
}

impl Drop for Closer {
    /// Without [`Close::close`], what was not flushed is left to the log's replay, and the threads end by themselves.
    fn drop(&mut self) {
        if let Some(parts) = self.0.lock().take() {
            parts.shared.queue.close();
            let _ = parts.sender.try_send(Message { op: LogCommand::Close, done: None, committed: None });
        }
    }
}
