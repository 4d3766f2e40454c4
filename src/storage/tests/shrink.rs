//! A folder that was large once is copied at the next start, and whatever interrupts that loses nothing.

use std::fs;
use std::path::Path;

use super::damage::kinds::copy;
use super::*;
use crate::ids::{RecordId, TableId};
use crate::storage::engine;
use crate::storage::engine::keys;
use crate::storage::engine::shrink::{EngineContent, copy_if_due};
use crate::storage::{StartMark, open_shrunk};

/// Of the tests: the engine alone has a few segments of two megabytes.
const SLACK: u64 = 4 << 20;
const ENTRIES: u64 = 400;
const PURGED: u64 = 390;

fn size(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    files.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

fn start() -> StartMark {
    StartMark { boot: 3, instance: 77, took_part: true }
}

/// A folder with forty megabytes of what is gone, and a little that is not; closed in order.
async fn large(dir: &Path) {
    let mut stores = open(dir);
    stores.starts.save(start()).await.unwrap();
    stores.starts.save_epoch(9).await.unwrap();
    wait(stores.log.save_vote(Bytes::from_static(b"vote"))).await.unwrap();
    for index in 1..=ENTRIES {
        append(&*stores.log, vec![(LogIndex(index), value(index, 50_000))]).await.unwrap();
        let record = RowKey::Record { table: TableId(1), id: RecordId((index % 5) as i64) };
        put(&mut *stores.tables, index, &[(record, value(index, 50_000)), (RowKey::Meta, value(index, 20))]);
    }
    stores.log.save_committed(Some(Bytes::from_static(b"committed")));
    wait(stores.log.purge(LogIndex(PURGED), Bytes::from_static(b"mark"))).await.unwrap();
    stores.close.close().await.unwrap();
    assert!(size(&dir.join("engine")) > 30 << 20, "{}", size(&dir.join("engine")));
}

/// All that a folder holds, as text.
async fn held(dir: &Path, slack: u64) -> String {
    let stores = open_shrunk(dir, &identity(), slack).unwrap();
    let rows = stores.tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).unwrap();
    let bounds = stores.log.bounds();
    let entries = stores.log.read(LogIndex(PURGED + 1), LogIndex(ENTRIES + 1), usize::MAX).await.unwrap();
    let marks =
        (stores.log.vote(), stores.log.committed(), stores.starts.last().unwrap(), stores.starts.epoch().unwrap());
    let found = format!("{:?} {bounds:?} {entries:?} {marks:?} {rows:?}", stores.tables.applied());
    stores.close.close().await.unwrap();
    found
}

#[tokio::test]
async fn a_folder_that_was_large_is_copied_once_and_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine_dir = dir.path().join("engine");
    large(dir.path()).await;
    let before = held(dir.path(), u64::MAX / 2).await;
    let was = size(&engine_dir);
    assert_eq!(held(dir.path(), SLACK).await, before);
    let is = size(&engine_dir);
    assert!(is < was / 3, "{was} -> {is}");
    assert!(!dir.path().join("engine.old").exists() && !dir.path().join("engine.new").exists());
    // Not again: even an engine that has more than it may had no less when it was made.
    let made = fs::metadata(engine_dir.join("conf")).unwrap().modified().unwrap();
    assert_eq!(held(dir.path(), 0).await, before);
    assert_eq!(fs::metadata(engine_dir.join("conf")).unwrap().modified().unwrap(), made);
    // And it goes on.
    let stores = open(dir.path());
    append(&*stores.log, entries(ENTRIES + 1..ENTRIES + 3, 100)).await.unwrap();
    stores.close.close().await.unwrap();
    let stores = open(dir.path());
    assert_eq!(stores.log.bounds().last, Some(LogIndex(ENTRIES + 2)));
    stores.close.close().await.unwrap();
}

/// A kill leaves some, and what opens a folder removes them only later.
#[test]
fn entries_that_were_purged_and_not_removed_are_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let from = engine::open_trees(&dir.path().join("engine")).unwrap();
    for index in 1..=ENTRIES {
        from.log.insert(keys::entry(LogIndex(index)), b"entry").unwrap();
    }
    from.flush().unwrap();
    let content = EngineContent { generation: 1, purged: Some(LogIndex(PURGED)), bytes: 0 };
    let copy = copy_if_due(dir.path(), &from, &content, 0).unwrap().expect("it is due");
    assert_eq!(copy.log.get(keys::entry(LogIndex(PURGED))).unwrap(), None);
    assert_eq!(copy.log.len() as u64, ENTRIES - PURGED);
    copy.let_go();
    from.let_go();
}

#[tokio::test]
async fn whatever_interrupts_the_copy_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path()).await;
    let before = held(dir.path(), u64::MAX / 2).await;
    for (have, gone) in [
        // While it is made.
        (&["engine", "engine.new"][..], "engine.new"),
        // Between the two names.
        (&["engine.old", "engine.new"], "engine.new"),
        // Before the old one was removed.
        (&["engine", "engine.old"], "engine.old"),
    ] {
        let other = tempfile::tempdir().unwrap();
        copy(dir.path(), other.path());
        let engine = other.path().join("engine");
        for name in have {
            let to = other.path().join(name);
            match *name {
                // Half of a file: nothing that an engine could be opened from.
                "engine.new" => {
                    fs::create_dir(&to).unwrap();
                    fs::write(to.join("db"), [7; 5_000]).unwrap();
                }
                "engine.old" if have.contains(&"engine") => copy(&engine, &to),
                "engine.old" => fs::rename(&engine, &to).unwrap(),
                _ => {}
            }
        }
        assert_eq!(held(other.path(), u64::MAX / 2).await, before, "{have:?}");
        assert!(engine.exists() && !other.path().join(gone).exists(), "{have:?}");
        // The same, and a copy is due as well.
        assert_eq!(held(other.path(), SLACK).await, before, "{have:?}");
    }
}
