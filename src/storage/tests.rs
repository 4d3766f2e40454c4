//! What holds for all of storage: both implementations of the traits go through the same tests where they can.

mod damage;
mod folder;
mod log;
mod shrink;
mod snapshots;
mod state;
mod tables;

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{FolderIdentity, LogStore, OpenError, Stores, WriteAck};
use crate::ids::LogIndex;
use crate::model::tables::{RowKey, Tables};
use crate::proto::Applied;

pub(super) fn identity() -> FolderIdentity {
    FolderIdentity { node_id: 1, cluster_id: "c".into() }
}

pub(super) fn open(dir: &Path) -> Stores {
    super::open(dir, &identity()).unwrap()
}

/// The error of an open, which cannot be printed with its stores.
pub(super) fn open_error(dir: &Path, identity: &FolderIdentity) -> OpenError {
    match super::open(dir, identity) {
        Ok(_) => panic!("the folder was opened"),
        Err(error) => error,
    }
}

/// Makes a folder what versions before format 2 left: without a mark beside the engine.
pub(super) fn without_mark(dir: &Path) {
    std::fs::remove_file(dir.join("mark")).unwrap();
    write_identity(dir, "format 2", "format 1");
}

/// Writes the file that says whose folder it is with other words in it, as a version does that writes no sum.
pub(super) fn write_identity(dir: &Path, words: &str, others: &str) {
    let path = dir.join("identity");
    let text = std::fs::read_to_string(&path).unwrap();
    let (text, _) = text.split_once(super::folder::format::SUM).unwrap();
    assert!(text.contains(words), "{text}");
    std::fs::write(path, text.replace(words, others)).unwrap();
}

pub(super) fn applied(index: u64) -> Applied {
    Applied { index, last_log_id: Bytes::from(format!("id{index}")), ..Applied::default() }
}

pub(super) fn value(seed: u64, len: usize) -> Bytes {
    (0..len).map(|i| (seed as usize * 31 + i) as u8).collect::<Vec<_>>().into()
}

/// Commits one row a call, under ascending indexes.
pub(super) fn put(tables: &mut dyn Tables, index: u64, rows: &[(RowKey, Bytes)]) {
    for (key, value) in rows {
        tables.put(key.clone(), value.clone());
    }
    tables.commit(applied(index));
}

pub(super) async fn append(log: &dyn LogStore, entries: Vec<(LogIndex, Bytes)>) -> io::Result<()> {
    let (done, durable) = oneshot::channel();
    log.append(entries, Box::new(move |outcome| drop(done.send(outcome))));
    durable.await.unwrap()
}

pub(super) async fn wait(ack: WriteAck) -> io::Result<()> {
    ack.await.unwrap()
}

pub(super) fn entries(indexes: std::ops::Range<u64>, len: usize) -> Vec<(LogIndex, Bytes)> {
    indexes.map(|index| (LogIndex(index), value(index, len))).collect()
}
