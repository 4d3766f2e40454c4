//! Snapshots: consistent while writes go on, refused when damaged, installed as one.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::tables::rows_of;
use super::*;
use crate::ids::{ConflictId, RecordId, TableId};
use crate::storage::room::{DiskRoom, RoomThresholds, SNAPSHOT_LEAVES};
use crate::storage::{SnapshotBody, SnapshotReceiver, SnapshotStore, StateSnapshot, memory};

const ROWS: u64 = 3_000;

/// The one row that commit `index` changes, and to what.
fn step(index: u64) -> (RowKey, Option<Bytes>) {
    let key = match index * 7_919 % ROWS {
        id if id % 3 == 0 => RowKey::Record { table: TableId(1), id: RecordId(id as i64) },
        seq => RowKey::Changes(seq),
    };
    let len = if index.is_multiple_of(41) { 10_000 } else { 60 };
    (key, (!index.is_multiple_of(5)).then(|| value(index, len)))
}

fn take_step(tables: &mut dyn Tables, index: u64) {
    match step(index) {
        (key, Some(value)) => tables.put(key, value),
        (key, None) => tables.delete(key),
    }
    tables.commit(applied(index));
}

/// All rows after commit `index`.
fn expected(index: u64) -> Vec<(RowKey, Bytes)> {
    let mut rows = BTreeMap::new();
    for (key, value) in (1..=index).map(step) {
        match value {
            Some(value) => drop(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
    rows.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_one_moment_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut tables, stopped, committed) = (stores.tables, stop.clone(), newest.clone());
    let pressure = stores.pressure.clone();
    let writing = tokio::spawn(async move {
        for index in 1.. {
            pressure.ready().await.unwrap();
            take_step(&mut *tables, index);
            committed.store(index, Ordering::SeqCst);
            if stopped.load(Ordering::SeqCst) {
                break;
            }
        }
        tables
    });
    // Also when an assertion fails: the runtime's end waits for the writer.
    let _guard = StopOnDrop(stop.clone());
    while newest.load(Ordering::SeqCst) < 2 * ROWS {
        tokio::task::yield_now().await;
    }
    for _ in 0..6 {
        let before = newest.load(Ordering::SeqCst);
        let snapshot = stores.snapshots.build().await.unwrap();
        assert!(snapshot.applied.index >= before);
        assert_eq!(snapshot.applied, applied(snapshot.applied.index));
        assert_eq!(rows_of(&snapshot.body), expected(snapshot.applied.index));
        assert_eq!(stores.snapshots.current().unwrap().applied, snapshot.applied);
        assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
    }
    stop.store(true, Ordering::SeqCst);
    stores.tables = writing.await.unwrap();
    let current = stores.snapshots.current().unwrap();
    stores.close.close().await.unwrap();
    let stores = open(dir.path());
    assert_eq!(stores.snapshots.current().unwrap().applied, current.applied);
    stores.close.close().await.unwrap();
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

async fn send(from: &dyn SnapshotStore, to: &dyn SnapshotStore) -> io::Result<StateSnapshot> {
    let snapshot = from.build().await?;
    let mut receiver = to.receive().await?;
    let mut at = 0;
    loop {
        let chunk = from.read_chunk(&snapshot, at, 1_000).await?;
        if chunk.is_empty() {
            return receiver.finish().await;
        }
        let len = chunk.len() as u64;
        receiver.write(at, chunk).await?;
        at += len;
    }
}

fn rows(tables: &dyn crate::model::tables::TablesRead) -> Vec<(RowKey, Bytes)> {
    tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).unwrap()
}

async fn install_into(source: &mut Stores, target: &mut Stores, from: u64) {
    (from..from + 500).for_each(|index| take_step(&mut *source.tables, index));
    // Rows of its own that must go, some of them large.
    for index in 1..30 {
        put(&mut *target.tables, index, &[(RowKey::Conflict(ConflictId(index)), value(index, index as usize * 400))]);
    }
    let reader = target.tables.reader();
    let received = send(&*source.snapshots, &*target.snapshots).await.unwrap();
    assert_eq!(received.applied, source.tables.applied());
    assert!(!rows(&*reader).is_empty());
    target.snapshots.install(received.clone()).await.unwrap();
    assert_eq!(target.tables.applied(), received.applied);
    assert_eq!(target.snapshots.current().unwrap().applied, received.applied);
    assert_eq!(rows(&*reader), rows(&*source.tables));
    // And it goes on from there, in both.
    for stores in [&mut *source, &mut *target] {
        take_step(&mut *stores.tables, from + 500);
    }
    assert_eq!(rows(&*target.tables), rows(&*source.tables));
}

#[tokio::test]
async fn installed_rows_are_seen_by_all_and_stay() {
    let (source_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut source = open(source_dir.path());
    let mut target = open(dir.path());
    for from in [1, 501, 1_001] {
        install_into(&mut source, &mut target, from).await;
        target.close.close().await.unwrap();
        target = open(dir.path());
        assert_eq!(target.tables.applied(), source.tables.applied());
        assert_eq!(rows(&*target.tables), rows(&*source.tables));
        assert_eq!(target.snapshots.current().unwrap().applied.index, from + 499);
    }
    target.close.close().await.unwrap();
    source.close.close().await.unwrap();
}

#[tokio::test]
async fn the_twin_in_memory_installs_the_same() {
    let (mut source, mut target) = (memory::stores(), memory::stores());
    install_into(&mut source, &mut target, 1).await;
    let dir = tempfile::tempdir().unwrap();
    let mut disk = open(dir.path());
    // The bytes are the same whatever holds the rows.
    let received = send(&*source.snapshots, &*disk.snapshots).await.unwrap();
    disk.snapshots.install(received).await.unwrap();
    assert_eq!(rows(&*disk.tables), rows(&*source.tables));
    let back = send(&*disk.snapshots, &*target.snapshots).await.unwrap();
    let (SnapshotBody::Memory(a), Some(SnapshotBody::Memory(b))) =
        (back.body, source.snapshots.current().map(|s| s.body))
    else {
        panic!("not in memory")
    };
    assert_eq!(a, b);
    disk.tables.commit(applied(502));
    disk.close.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    let mut source = memory::stores();
    (1..200).for_each(|index| take_step(&mut *source.tables, index));
    let SnapshotBody::Memory(whole) = source.snapshots.build().await.unwrap().body else { panic!("not in memory") };
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    put(&mut *stores.tables, 7, &[(RowKey::Meta, value(7, 10))]);
    let mut flipped = whole.to_vec();
    flipped[whole.len() / 2] ^= 1;
    for bytes in [whole.slice(..whole.len() - 1), whole.slice(..20), flipped.into(), Bytes::new()] {
        let mut receiver = stores.snapshots.receive().await.unwrap();
        receiver.write(0, bytes).await.unwrap();
        let error = receiver.finish().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    // Damaged between receiving and installing.
    let received = send(&*source.snapshots, &*stores.snapshots).await.unwrap();
    let SnapshotBody::File { path, .. } = &received.body else { panic!("not in a file") };
    fs::write(path, &whole[..whole.len() - 3]).unwrap();
    assert!(stores.snapshots.install(received).await.is_err());
    assert_eq!(rows(&*stores.tables), [(RowKey::Meta, value(7, 10))]);
    assert_eq!(stores.tables.applied(), applied(7));
    assert!(stores.snapshots.current().is_none());
    // A refused snapshot is not a failed engine.
    put(&mut *stores.tables, 8, &[(RowKey::Meta, value(8, 10))]);
    stores.close.close().await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0);
    let stores = open(dir.path());
    assert_eq!(rows(&*stores.tables), [(RowKey::Meta, value(8, 10))]);
    stores.close.close().await.unwrap();
}

async fn offsets_are_checked(store: &dyn SnapshotStore) -> Box<dyn SnapshotReceiver> {
    let mut receiver = store.receive().await.unwrap();
    receiver.write(0, value(1, 10)).await.unwrap();
    assert!(receiver.write(9, value(1, 10)).await.is_err());
    assert!(receiver.write(11, value(1, 10)).await.is_err());
    receiver.write(10, value(1, 10)).await.unwrap();
    receiver
}

#[tokio::test]
async fn chunks_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    let mut older = offsets_are_checked(&*stores.snapshots).await;
    let _newer = stores.snapshots.receive().await.unwrap();
    assert!(older.write(20, value(1, 10)).await.is_err());
    drop(offsets_are_checked(&*memory::stores().snapshots).await);
    stores.close.close().await.unwrap();
}

#[tokio::test]
async fn a_replaced_snapshot_can_still_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    take_step(&mut *stores.tables, 1);
    let older = stores.snapshots.build().await.unwrap();
    take_step(&mut *stores.tables, 2);
    stores.snapshots.build().await.unwrap();
    assert!(!stores.snapshots.read_chunk(&older, 0, 100).await.unwrap().is_empty());
    let end = match older.body {
        SnapshotBody::File { len, .. } => len,
        SnapshotBody::Memory(_) => panic!("not in a file"),
    };
    assert!(stores.snapshots.read_chunk(&older, end, 100).await.unwrap().is_empty());
    stores.close.close().await.unwrap();
}

/// Stores on a disk of which the test says how much is free.
fn on_a_disk(dir: &Path) -> (Stores, Arc<DiskRoom>, Arc<AtomicU64>) {
    let free = Arc::new(AtomicU64::new(1 << 40));
    let source = free.clone();
    let read = Box::new(move || Ok(source.load(Ordering::Relaxed)));
    let room = DiskRoom::measured("d".into(), RoomThresholds::default(), read);
    (super::super::open_in(dir, &identity(), room.clone()).unwrap(), room, free)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_would_fill_the_disk_waits_and_is_built_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stores, room, free) = on_a_disk(dir.path());
    (1..=ROWS).for_each(|index| take_step(&mut *stores.tables, index));
    let files = || fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    // Once where it is known before it begins, once where it shows when it has begun.
    for (turn, known) in [true, false].into_iter().enumerate() {
        free.store(SNAPSHOT_LEAVES - 1, Ordering::Relaxed);
        if known {
            room.measure();
        }
        let building = tokio::spawn({
            let snapshots = stores.snapshots.clone();
            async move { snapshots.build().await }
        });
        // It has looked, and what it began is gone.
        let looked = async {
            while room.reading().free >= SNAPSHOT_LEAVES || files() != turn {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looked).await.unwrap();
        // Writes go on meanwhile, and the storage is well.
        let index = ROWS + turn as u64 + 1;
        take_step(&mut *stores.tables, index);
        stores.pressure.ready().await.unwrap();
        stores.close.check().unwrap();
        assert!(!building.is_finished());
        free.store(1 << 40, Ordering::Relaxed);
        room.measure();
        let snapshot = building.await.unwrap().unwrap();
        assert_eq!((snapshot.applied.clone(), rows_of(&snapshot.body)), (applied(index), expected(index)));
        assert_eq!(files(), 1);
    }
    stores.close.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_snapshot_that_does_not_fit_is_refused_and_fits_later() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _, free) = on_a_disk(dir.path());
    let source = memory::stores();
    let mut tables = source.tables;
    put(&mut *tables, 1, &[(RowKey::Meta, value(1, 1 << 20))]);
    let snapshot = source.snapshots.build().await.unwrap();
    let bytes = source.snapshots.read_chunk(&snapshot, 0, 4 << 20).await.unwrap();
    for (mib, goes) in [(10, "not begun"), (20, "taken")] {
        free.store(mib << 20, Ordering::Relaxed);
        let mut receiver = stores.snapshots.receive().await.unwrap();
        let written = receiver.write(0, bytes.clone()).await;
        assert_eq!(written.is_ok(), goes == "taken", "{mib} MiB: {written:?}");
        if let Err(error) = written {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            continue;
        }
        // Its rows are to be written once more.
        free.store(SNAPSHOT_LEAVES + 100, Ordering::Relaxed);
        assert!(receiver.finish().await.is_err());
    }
    free.store(1 << 40, Ordering::Relaxed);
    let mut receiver = stores.snapshots.receive().await.unwrap();
    receiver.write(0, bytes).await.unwrap();
    stores.snapshots.install(receiver.finish().await.unwrap()).await.unwrap();
    assert_eq!(stores.tables.applied(), applied(1));
    stores.close.close().await.unwrap();
}
