//! The rows over the engine do what the rows in memory do.

use proptest::prelude::*;

use super::*;
use crate::ids::{DeviceNumber, RecordId, TableId};
use crate::limits::PENDING_ROWS;
use crate::model::tables::{MemoryTables, TablesRead};
use crate::storage::snapshot::file::SnapshotRows;
use crate::storage::{SnapshotBody, memory};

/// Few keys, so that they meet often; neighbours in order, so that parts could be taken for each other's.
fn some_key() -> impl Strategy<Value = RowKey> {
    prop_oneof![
        Just(RowKey::Meta),
        prop_oneof![Just("a"), Just("a\0"), Just("ab"), Just("")].prop_map(|id| RowKey::Device(id.into())),
        (-2..3i64).prop_map(|id| RowKey::Record { table: TableId(1), id: RecordId(id) }),
        (1..6u64).prop_map(RowKey::Changes),
        (0..2u32, 0..3u32).prop_map(|(device, slot)| RowKey::Requested { device: DeviceNumber(device), slot }),
        Just(RowKey::Revoked("z".into())),
        (1..3u32, prop_oneof![Just("q"), Just("q\0")])
            .prop_map(|(device, q)| RowKey::Queue { device: DeviceNumber(device), queue: q.into() }),
    ]
}

fn some_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..400usize, 1 => 4_090..4_100usize, 1 => 8_000..20_000usize, 1 => Just(400_000usize)]
}

#[derive(Clone, Debug)]
enum TablesStep {
    Put(RowKey, usize),
    Delete(RowKey),
    Commit,
    Get(RowKey),
    Range(RowKey, RowKey, usize, bool),
    /// Builds a snapshot, which also brings all rows into the engine.
    Build,
    Reopen,
}

fn op() -> impl Strategy<Value = TablesStep> {
    prop_oneof![
        8 => (some_key(), some_len()).prop_map(|(key, len)| TablesStep::Put(key, len)),
        3 => some_key().prop_map(TablesStep::Delete),
        4 => Just(TablesStep::Commit),
        2 => some_key().prop_map(TablesStep::Get),
        4 => (some_key(), some_key(), 0..8usize, any::<bool>()).prop_map(|(a, b, n, r)| TablesStep::Range(a, b, n, r)),
        1 => Just(TablesStep::Build),
        1 => Just(TablesStep::Reopen),
    ]
}

fn all(tables: &dyn TablesRead, reverse: bool) -> Vec<(RowKey, Bytes)> {
    tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, reverse).unwrap()
}

async fn check_equal(ops: Vec<TablesStep>) {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    let mut twin = MemoryTables::default();
    let mut index = 0;
    for (seed, op) in (1u64..).zip(ops) {
        match op {
            TablesStep::Put(key, len) => {
                stores.tables.put(key.clone(), value(seed, len));
                twin.put(key, value(seed, len));
            }
            TablesStep::Delete(key) => {
                stores.tables.delete(key.clone());
                twin.delete(key);
            }
            TablesStep::Get(key) => assert_eq!(stores.tables.get(&key).unwrap(), twin.get(&key).unwrap()),
            TablesStep::Range(a, b, limit, reverse) => {
                let found = stores.tables.range(&a, &b, limit, reverse).unwrap();
                assert_eq!(found, twin.range(&a, &b, limit, reverse).unwrap());
            }
            TablesStep::Commit => commit(&mut stores, &mut twin, &mut index),
            TablesStep::Build => {
                commit(&mut stores, &mut twin, &mut index);
                let snapshot = stores.snapshots.build().await.unwrap();
                assert_eq!(snapshot.applied, applied(index));
                assert_eq!(rows_of(&snapshot.body), twin.rows().into_iter().collect::<Vec<_>>());
            }
            TablesStep::Reopen => {
                commit(&mut stores, &mut twin, &mut index);
                stores.close.close().await.unwrap();
                stores = open(dir.path());
                assert_eq!(stores.tables.applied(), twin.applied());
                assert_eq!(all(&*stores.tables, false), all(&twin, false));
            }
        }
    }
    assert_eq!(all(&*stores.tables, true), all(&twin, true));
    commit(&mut stores, &mut twin, &mut index);
    assert_eq!(all(&*stores.tables.reader(), false), all(&twin, false));
    stores.close.close().await.unwrap();
    let stores = open(dir.path());
    assert_eq!(all(&*stores.tables, false), all(&twin, false));
    assert_eq!(all(&*stores.tables.reader(), true), all(&twin, true));
    stores.close.close().await.unwrap();
}

fn commit(stores: &mut Stores, twin: &mut MemoryTables, index: &mut u64) {
    *index += 1;
    stores.tables.commit(applied(*index));
    twin.commit(applied(*index));
}

pub(super) fn rows_of(body: &SnapshotBody) -> Vec<(RowKey, Bytes)> {
    let SnapshotBody::File { path, .. } = body else { panic!("not in a file") };
    let mut input = SnapshotRows::new(std::fs::File::open(path).map(std::io::BufReader::new).unwrap()).unwrap();
    std::iter::from_fn(|| input.next_row().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_on_disk_equal_rows_in_memory(ops in proptest::collection::vec(op(), 1..60)) {
        tokio::runtime::Runtime::new().unwrap().block_on(check_equal(ops));
    }
}

#[tokio::test]
async fn pressure_holds_until_the_writer_has_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    let mut index = 0;
    // More than may wait, in spite of the writer, which goes on meanwhile.
    for round in 0..3u64 {
        for seq in 0..PENDING_ROWS as u64 {
            stores.tables.put(RowKey::Changes(round * PENDING_ROWS as u64 + seq), Bytes::from_static(b"row"));
        }
        index += 1;
        stores.tables.commit(applied(index));
    }
    stores.pressure.ready().await.unwrap();
    assert_eq!(stores.tables.get(&RowKey::Changes(1)).unwrap(), Some(Bytes::from_static(b"row")));
    let last = 3 * PENDING_ROWS as u64 - 1;
    let found = stores.tables.range(&RowKey::Changes(0), &RowKey::Changes(u64::MAX), 2, true).unwrap();
    assert_eq!(
        found.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(),
        [RowKey::Changes(last), RowKey::Changes(last - 1)]
    );
    stores.close.close().await.unwrap();
    assert!(stores.pressure.ready().await.is_ok());
}

#[tokio::test]
async fn readers_see_an_apply_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    let reader = stores.tables.reader();
    let rows = |index: u64, len: usize| [1, 2, 3].map(|seq| (RowKey::Changes(seq), value(index, len)));
    put(&mut *stores.tables, 1, &rows(1, 10));
    let writing = std::thread::spawn(move || {
        for index in 2..400 {
            put(&mut *stores.tables, index, &rows(index, if index % 3 == 0 { 9_000 } else { 10 }));
            if index % 10 == 0 {
                // So that the engine gets several batches, not one.
                std::thread::yield_now();
            }
        }
        stores
    });
    while !writing.is_finished() {
        let found = reader.range(&RowKey::Changes(0), &RowKey::Changes(9), 10, false).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|(_, value)| *value == found[0].1));
    }
    let stores = writing.join().unwrap();
    stores.close.close().await.unwrap();
}

#[test]
fn memory_has_no_pressure() {
    let mut stores = memory::stores();
    put(&mut *stores.tables, 1, &[(RowKey::Meta, value(1, 10))]);
    assert!(stores.tables.reader().in_memory());
    assert_eq!(stores.tables.applied(), applied(1));
}

#[tokio::test]
async fn ranges_go_back_over_numbers_with_all_bits_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    let mut twin = MemoryTables::default();
    let edges = [0u64, 1, 0xFF, 0xFFFF_FFFF, 0x1_0000_0000, 0xFFFF_FFFF_FFFF, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX];
    let numbers = edges.into_iter().flat_map(|edge| (0..40).map(move |i| edge.wrapping_add(i).wrapping_sub(20)));
    for (seed, number) in (1..).zip(numbers) {
        for key in [
            RowKey::Changes(number),
            RowKey::Record { table: TableId(number as u32), id: RecordId(number as i64) },
            RowKey::Record { table: TableId(u32::MAX), id: RecordId(number as i64) },
            RowKey::Answered(number),
        ] {
            // With parts enough that pages end among them.
            let len = if seed % 40 == 20 { 200_000 } else { 30 };
            stores.tables.put(key.clone(), value(seed, len));
            twin.put(key, value(seed, len));
        }
        stores.tables.commit(applied(seed));
    }
    stores.snapshots.build().await.unwrap();
    assert!(all(&*stores.tables, true) == all(&twin, true));
    assert!(all(&*stores.tables, false) == all(&twin, false));
    stores.close.close().await.unwrap();
}
