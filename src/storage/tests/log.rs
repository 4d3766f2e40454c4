//! The log, over the engine and in memory: the same calls, the same answers.

use proptest::prelude::*;

use super::*;
use crate::storage::engine::keys;
use crate::storage::{LogBounds, engine, memory};

async fn all(log: &dyn LogStore) -> Vec<(LogIndex, Bytes)> {
    let from = log.bounds().purged.map_or(LogIndex(0), |(index, _)| index.next());
    let mut out: Vec<(LogIndex, Bytes)> = Vec::new();
    let Some(last) = log.bounds().last else { return out };
    let mut next = from.max(LogIndex(1));
    while next <= last {
        let read = log.read(next, last.next(), 10_000).await.unwrap();
        assert!(!read.is_empty());
        next = next.plus(read.len() as u64);
        out.extend(read);
    }
    out
}

async fn exercise(log: &dyn LogStore) {
    assert!(log.read(LogIndex(1), LogIndex(10), 1_000).await.unwrap().is_empty());
    append(log, entries(1..11, 3_000)).await.unwrap();
    assert!(append(log, entries(12..13, 10)).await.is_err());
    assert!(append(log, entries(10..12, 10)).await.is_err());
    // At least one, whatever the budget; not more than the budget otherwise.
    assert_eq!(log.read(LogIndex(1), LogIndex(11), 1).await.unwrap(), entries(1..2, 3_000));
    assert_eq!(log.read(LogIndex(1), LogIndex(11), 7_000).await.unwrap(), entries(1..3, 3_000));
    assert_eq!(log.read(LogIndex(9), LogIndex(100), usize::MAX).await.unwrap(), entries(9..11, 3_000));
    wait(log.truncate_after(Some(LogIndex(8)))).await.unwrap();
    append(log, vec![(LogIndex(9), value(99, 20_000))]).await.unwrap();
    assert_eq!(log.read(LogIndex(9), LogIndex(10), 0).await.unwrap(), vec![(LogIndex(9), value(99, 20_000))]);
    wait(log.purge(LogIndex(3), Bytes::from_static(b"mark3"))).await.unwrap();
    assert_eq!(log.read(LogIndex(3), LogIndex(5), 1_000).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(
        log.bounds(),
        LogBounds { purged: Some((LogIndex(3), Bytes::from_static(b"mark3"))), last: Some(LogIndex(9)) }
    );
    wait(log.save_vote(Bytes::from_static(b"vote"))).await.unwrap();
    log.save_committed(Some(Bytes::from_static(b"committed")));
    assert_eq!(log.committed(), Some(Bytes::from_static(b"committed")));
    // Behind everything, as after an installed snapshot.
    wait(log.purge(LogIndex(20), Bytes::from_static(b"mark20"))).await.unwrap();
    assert_eq!(log.bounds(), LogBounds { purged: Some((LogIndex(20), Bytes::from_static(b"mark20"))), last: None });
    assert!(append(log, entries(10..11, 10)).await.is_err());
    append(log, entries(21..25, 10)).await.unwrap();
    assert_eq!(all(log).await, entries(21..25, 10));
}

#[tokio::test]
async fn the_log_does_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    exercise(&*stores.log).await;
    exercise(&*memory::stores().log).await;
    stores.close.close().await.unwrap();
    let stores = open(dir.path());
    assert_eq!(
        stores.log.bounds(),
        LogBounds { purged: Some((LogIndex(20), Bytes::from_static(b"mark20"))), last: Some(LogIndex(24)) }
    );
    assert_eq!(stores.log.vote(), Some(Bytes::from_static(b"vote")));
    assert_eq!(stores.log.committed(), Some(Bytes::from_static(b"committed")));
    assert_eq!(all(&*stores.log).await, entries(21..25, 10));
    stores.close.close().await.unwrap();
}

#[derive(Clone, Debug)]
enum LogStep {
    Append(u64, usize),
    Truncate(u64),
    Purge(u64),
    Reopen,
}

fn op() -> impl Strategy<Value = LogStep> {
    prop_oneof![
        6 => (1..8u64, prop_oneof![3 => 0..300usize, 1 => 4_000..9_000usize]).prop_map(|(n, len)| LogStep::Append(n, len)),
        2 => (0..10u64).prop_map(LogStep::Truncate),
        1 => (0..12u64).prop_map(LogStep::Purge),
        1 => Just(LogStep::Reopen),
    ]
}

async fn check_equal(ops: Vec<LogStep>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut stores, twin) = (open(dir.path()), memory::stores());
    let mut seed = 0;
    for op in ops {
        let bounds = twin.log.bounds();
        let purged = bounds.purged.as_ref().map_or(LogIndex(0), |(index, _)| *index);
        let last = bounds.last.unwrap_or(purged);
        match op {
            LogStep::Append(count, len) => {
                seed += 1;
                let entries: Vec<_> =
                    (last.next().until(last.next().plus(count))).map(|i| (i, value(i.get() + seed, len))).collect();
                // Not waited for: the order of calls is what counts.
                stores.log.append(entries.clone(), Box::new(|outcome| outcome.unwrap()));
                append(&*twin.log, entries).await.unwrap();
            }
            LogStep::Truncate(back) => {
                let after = LogIndex(last.get().saturating_sub(back)).max(purged);
                drop(stores.log.truncate_after(Some(after)));
                wait(twin.log.truncate_after(Some(after))).await.unwrap();
            }
            LogStep::Purge(ahead) => {
                // What is purged was committed: an index has one mark for ever.
                let index = purged.plus(ahead);
                let mark = Bytes::from(format!("mark{index}"));
                drop(stores.log.purge(index, mark.clone()));
                wait(twin.log.purge(index, mark)).await.unwrap();
            }
            LogStep::Reopen => {
                stores.close.close().await.unwrap();
                stores = open(dir.path());
            }
        }
        assert_eq!(stores.log.bounds(), twin.log.bounds());
        assert_eq!(all(&*stores.log).await, all(&*twin.log).await);
    }
    stores.close.close().await.unwrap();
    let stores = open(dir.path());
    assert_eq!(all(&*stores.log).await, all(&*twin.log).await);
    stores.close.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_on_disk_equals_the_log_in_memory(ops in proptest::collection::vec(op(), 1..40)) {
        tokio::runtime::Runtime::new().unwrap().block_on(check_equal(ops));
    }
}

#[tokio::test]
async fn old_entries_are_read_from_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    // Nearly twice what stays in memory.
    let len = 300_000;
    for index in 1..200 {
        append(&*stores.log, entries(index..index + 1, len)).await.unwrap();
    }
    assert_eq!(stores.log.read(LogIndex(1), LogIndex(3), usize::MAX).await.unwrap(), entries(1..3, len));
    let read = stores.log.read(LogIndex(1), LogIndex(200), usize::MAX).await.unwrap();
    assert_eq!(read, entries(1..200, len));
    wait(stores.log.truncate_after(Some(LogIndex(2)))).await.unwrap();
    append(&*stores.log, entries(3..4, 10)).await.unwrap();
    assert_eq!(
        stores.log.read(LogIndex(2), LogIndex(9), usize::MAX).await.unwrap(),
        [entries(2..3, len), entries(3..4, 10)].concat()
    );
    stores.close.close().await.unwrap();
}

#[tokio::test]
async fn a_hole_stops_the_open_and_a_torn_end_does_not() {
    for (remove, opens) in [((5, 0), false), ((5, 1), false), ((9, 2), true), ((9, 1), false)] {
        let dir = tempfile::tempdir().unwrap();
        let stores = open(dir.path());
        append(&*stores.log, entries(1..10, 9_000)).await.unwrap();
        stores.close.close().await.unwrap();
        let db = sled::Config::new().path(dir.path().join("engine")).segment_size(engine::SEGMENT).open().unwrap();
        let mut key = keys::entry(LogIndex(remove.0)).to_vec();
        let base = key.len();
        keys::set_part(&mut key, base, remove.1);
        assert!(db.open_tree("log").unwrap().remove(key).unwrap().is_some());
        db.flush().unwrap();
        drop(db);
        without_mark(dir.path());
        match crate::storage::open(dir.path(), &identity()) {
            Ok(stores) => {
                assert!(opens, "{remove:?}");
                assert_eq!(all(&*stores.log).await, entries(1..9, 9_000));
                append(&*stores.log, entries(9..10, 10)).await.unwrap();
                stores.close.close().await.unwrap();
                // Nothing of the torn entry is left for the one that took its place.
                let stores = open(dir.path());
                assert_eq!(all(&*stores.log).await, [entries(1..9, 9_000), entries(9..10, 10)].concat());
                stores.close.close().await.unwrap();
            }
            Err(error) => assert!(!opens && matches!(error, OpenError::Corrupt { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_folder_that_was_made_with_other_segments_is_opened_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path());
    append(&*stores.log, entries(1..3, 9_000)).await.unwrap();
    stores.close.close().await.unwrap();
    // As earlier builds made it: with the engine's default.
    let engine = dir.path().join("engine");
    std::fs::rename(&engine, dir.path().join("new")).unwrap();
    let (new, old) =
        (sled::Config::new().path(dir.path().join("new")).segment_size(engine::SEGMENT), sled::open(&engine).unwrap());
    let new = new.open().unwrap();
    old.import(new.export());
    old.flush().unwrap();
    drop((new, old));
    without_mark(dir.path());
    let stores = open(dir.path());
    assert_eq!(all(&*stores.log).await, entries(1..3, 9_000));
    stores.close.close().await.unwrap();
}
