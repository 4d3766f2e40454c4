//! What becomes of a data folder whose files were damaged: it is refused, or it holds all that was acknowledged.
//!
//! Fifteen kinds of damage, at places that a seed chooses, on the folder of a node that was stopped and on that of one that
//! was killed. `TILLSYNC_DAMAGES=480 cargo test --workspace --lib -- --nocapture damaged` does more of them, and lists what
//! came. On whole nodes: `tests/cluster/damage/`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::ids::{RecordId, TableId};
use crate::storage::StartMark;
use crate::storage::engine;
use crate::storage::engine::{keys, segments};
use crate::storage::folder::format::WAY;
use crate::storage::folder::side_mark;
use kinds::{KINDS, Random, copy, damage, written};

#[path = "../../../tests/cluster/damage/kinds.rs"]
pub(super) mod kinds;

/// Entries that the folder was given, and how many of them before its older copy was made.
const ENTRIES: u64 = 3_000;
const OLDER: u64 = 1_800;
const PURGED: u64 = 900;
const RECORDS: u64 = 120;
/// Changes that are kept.
const KEPT: u64 = 700;

/// Bytes that say what they must be.
fn content(index: u64, kind: u64) -> Bytes {
    let len = if index.is_multiple_of(97) { 9_000 } else { 40 + (index * 37 + kind * 11) % 300 };
    let mut out = [index.to_be_bytes(), kind.to_be_bytes()].concat();
    out.extend((0..len).map(|i| (i * index + kind) as u8));
    out.into()
}

/// What applying an entry writes.
fn writes(index: u64) -> Vec<(RowKey, Option<Bytes>)> {
    let record = RowKey::Record { table: TableId(1), id: RecordId((index % RECORDS) as i64) };
    let mut rows = vec![
        (RowKey::Meta, Some(content(index, 1))),
        (RowKey::Changes(index), Some(content(index, 2))),
        (record, Some(content(index, 3))),
    ];
    if index > KEPT {
        rows.push((RowKey::Changes(index - KEPT), None));
    }
    rows
}

fn apply(tables: &mut dyn Tables, index: u64) {
    for (key, value) in writes(index) {
        match value {
            Some(value) => tables.put(key, value),
            None => tables.delete(key),
        }
    }
    tables.commit(applied(index));
}

fn rows_at(end: u64) -> BTreeMap<RowKey, Bytes> {
    let mut rows = BTreeMap::new();
    for index in 1..=end {
        for (key, value) in writes(index) {
            match value {
                Some(value) => drop(rows.insert(key, value)),
                None => drop(rows.remove(&key)),
            }
        }
    }
    rows
}

fn vote(number: u64) -> Bytes {
    [&number.to_be_bytes()[..], &[0; 8], &[1]].concat().into()
}

fn start(boot: u64) -> StartMark {
    StartMark { boot, instance: boot * 7 + 1, took_part: true }
}

/// Gives the folder entries as a node does, and everything that goes with them.
async fn work(stores: &mut Stores, entries: std::ops::Range<u64>, boot: u64) {
    stores.starts.save(start(boot)).await.unwrap();
    wait(stores.log.save_vote(vote(entries.start))).await.unwrap();
    let mut next = entries.start;
    while next < entries.end {
        let end = (next + 1 + next % 9).min(entries.end);
        // Some were first another leader's, and were replaced.
        if next.is_multiple_of(11) {
            append(&*stores.log, (next..end + 2).map(|i| (LogIndex(i), content(i, 9))).collect()).await.unwrap();
            wait(stores.log.truncate_after(Some(LogIndex(next - 1)))).await.unwrap();
        }
        append(&*stores.log, (next..end).map(|i| (LogIndex(i), content(i, 0))).collect()).await.unwrap();
        stores.log.save_committed(Some(Bytes::from(format!("{}", end - 1))));
        (next..end).for_each(|index| apply(&mut *stores.tables, index));
        next = end;
    }
    wait(stores.log.save_vote(vote(entries.end))).await.unwrap();
}

struct Folders {
    _dir: tempfile::TempDir,
    stopped: PathBuf,
    killed: PathBuf,
    older: PathBuf,
}

async fn folders() -> Folders {
    let dir = tempfile::tempdir().unwrap();
    let [live, stopped, killed, older] = ["live", "stopped", "killed", "older"].map(|name| dir.path().join(name));
    let mut stores = open(&live);
    work(&mut stores, 1..1_000, 1).await;
    wait(stores.log.purge(LogIndex(PURGED), Bytes::from_static(b"mark"))).await.unwrap();
    stores.close.close().await.unwrap();
    let mut stores = open(&live);
    work(&mut stores, 1_000..OLDER, 2).await;
    stores.snapshots.build().await.unwrap();
    stores.close.close().await.unwrap();
    copy(&live, &older);
    let mut stores = open(&live);
    work(&mut stores, OLDER..ENTRIES, 3).await;
    // Nothing is on its way any more, so the copy is as a kill leaves it: what a process has written stays.
    wait(stores.log.purge(LogIndex(PURGED), Bytes::from_static(b"mark"))).await.unwrap();
    copy(&live, &killed);
    stores.close.close().await.unwrap();
    copy(&live, &stopped);
    Folders { _dir: dir, stopped, killed, older }
}

#[derive(Debug)]
enum Came {
    Refused(String),
    Whole,
    /// Served, and lacks or has changed something.
    Silent(String),
}

/// Opens the folder as a node does, and holds what it gives against what was acknowledged.
async fn look(dir: &Path, expected: &BTreeMap<RowKey, Bytes>) -> Came {
    let mut stores = match crate::storage::open(dir, &identity()) {
        Ok(stores) => stores,
        Err(error) => return Came::Refused(error.to_string()),
    };
    let found = found(&mut stores, expected).await;
    let closed = stores.close.close().await;
    match (found, closed) {
        (Err(error), _) | (Ok(None), Err(error)) => Came::Refused(error.to_string()),
        (Ok(None), Ok(())) => Came::Whole,
        (Ok(Some(lost)), _) => Came::Silent(lost),
    }
}

async fn found(stores: &mut Stores, expected: &BTreeMap<RowKey, Bytes>) -> io::Result<Option<String>> {
    let last = ENTRIES - 1;
    if stores.log.vote() != Some(vote(ENTRIES)) {
        return Ok(Some(format!("vote {:?}", stores.log.vote())));
    }
    let bounds = stores.log.bounds();
    let purged = bounds.purged.map_or(0, |(index, _)| index.get());
    if (bounds.last, purged) != (Some(LogIndex(last)), PURGED) {
        return Ok(Some(format!("the log is {purged} to {:?}", bounds.last)));
    }
    if stores.starts.last()? != start(3) {
        return Ok(Some(format!("start {:?}", stores.starts.last()?)));
    }
    for (index, entry) in stores.log.read(LogIndex(purged + 1), LogIndex(last + 1), usize::MAX).await? {
        if entry != content(index.get(), 0) {
            return Ok(Some(format!("entry {index}")));
        }
    }
    let at = stores.tables.applied().index;
    if at < purged {
        return Ok(Some(format!("rows up to {at} with a log from {purged}")));
    }
    (at + 1..=last).for_each(|index| apply(&mut *stores.tables, index));
    let rows = stores.tables.range(&RowKey::Meta, &RowKey::NodeBoots, usize::MAX, false).map_err(io::Error::other)?;
    let rows: BTreeMap<_, _> = rows.into_iter().collect();
    let differs = expected.iter().find(|(key, value)| rows.get(key) != Some(value)).map(|(key, _)| key.clone());
    let differs = differs.or_else(|| rows.keys().find(|key| !expected.contains_key(key)).cloned());
    if let Some(key) = differs {
        return Ok(Some(format!("row {key:?} (rows up to {at})")));
    }
    match stores.snapshots.current() {
        Some(snapshot) => {
            let mut whole = Vec::new();
            loop {
                let chunk = stores.snapshots.read_chunk(&snapshot, whole.len() as u64, 1 << 20).await?;
                if chunk.is_empty() {
                    break;
                }
                whole.extend_from_slice(&chunk);
            }
            match crate::storage::fuzz::read_snapshot(&whole).remove(0) {
                Ok(_) => Ok(None),
                Err(error) => Ok(Some(format!("the snapshot: {error}"))),
            }
        }
        None => Ok(None),
    }
}

#[tokio::test]
async fn a_damaged_folder_is_refused_or_whole() {
    let asked: Option<u64> = std::env::var("TILLSYNC_DAMAGES").ok().map(|n| n.parse().unwrap());
    let seed: u64 = std::env::var("TILLSYNC_DAMAGES_SEED").map_or(1, |n| n.parse().unwrap());
    let count = asked.unwrap_or(2 * KINDS.len() as u64);
    let folders = folders().await;
    let expected = rows_at(ENTRIES - 1);
    for whole in [&folders.stopped, &folders.killed] {
        let dir = tempfile::tempdir().unwrap();
        copy(whole, dir.path());
        let came = look(dir.path(), &expected).await;
        assert!(matches!(came, Came::Whole), "{}: {came:?}", whole.display());
    }
    let mut table: BTreeMap<(&str, &str), [u64; 3]> = BTreeMap::new();
    let mut silent = Vec::new();
    for number in 0..count {
        let mut random = Random::new(seed * 1_000_000 + number);
        let kind = KINDS[number as usize % KINDS.len()];
        let of = ["stopped", "killed"][(number as usize / KINDS.len()) % 2];
        let from = if of == "stopped" { &folders.stopped } else { &folders.killed };
        let dir = tempfile::tempdir().unwrap();
        copy(from, dir.path());
        let what = damage(dir.path(), &folders.older, kind, &mut random);
        let came = look(dir.path(), &expected).await;
        let counts = table.entry((of, kind)).or_default();
        match &came {
            Came::Refused(why) => {
                counts[0] += 1;
                assert!(!why.contains('\n'), "{why}");
                if !(why.contains(dir.path().to_str().unwrap()) && why.contains(WAY)) {
                    silent.push(format!("{number} {of}, {kind}: {what}: no way is named: {why}"));
                }
                if asked.is_some() {
                    println!("{number} {of}, {kind}: {what}: {why}");
                }
            }
            Came::Whole => counts[1] += 1,
            Came::Silent(lost) => {
                counts[2] += 1;
                silent.push(format!("{number} {of}, {kind}: {what}: {lost}"));
            }
        }
    }
    if asked.is_some() {
        for ((of, kind), [refused, whole, silent]) in &table {
            println!("| {of} | {kind} | {refused} refused | {whole} whole | {silent} silent |");
        }
    }
    assert!(silent.is_empty(), "{} of {count} damages were served:\n{}", silent.len(), silent.join("\n"));
}

#[tokio::test]
async fn a_scrub_finds_what_rots_in_a_folder_that_is_open() {
    const FAST: u64 = 1 << 30;
    let folders = folders().await;
    let size = engine::SEGMENT as u64;
    let flip = |path: &Path, at: u64| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    for rots in ["nothing", "engine", "snapshot"] {
        let dir = tempfile::tempdir().unwrap();
        copy(&folders.stopped, dir.path());
        let stores = open(dir.path());
        let db = dir.path().join("engine/db");
        match rots {
            "engine" => {
                let first = fs::read(&db).unwrap()[..size as usize].to_vec();
                let seen = (1_000..1_200).find(|at| {
                    let mut damaged = first.clone();
                    damaged[*at] ^= 1;
                    segments::hole(&damaged, 0, size).is_some()
                });
                flip(&db, seen.unwrap() as u64);
            }
            "snapshot" => {
                let snapshot = fs::read_dir(dir.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
                flip(&snapshot, fs::metadata(&snapshot).unwrap().len() / 2);
            }
            _ => {}
        }
        let scrubbed = stores.close.scrub(FAST).await;
        if rots == "nothing" {
            assert!(scrubbed.unwrap() > 2 * size);
            stores.close.check().unwrap();
            stores.close.close().await.unwrap();
            continue;
        }
        for error in [scrubbed.unwrap_err(), stores.close.check().unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{rots}: {error}");
        }
        assert!(stores.close.close().await.is_err());
    }
    // One that is under way when the folder is closed ends, and holds nothing up.
    let dir = tempfile::tempdir().unwrap();
    copy(&folders.stopped, dir.path());
    let stores = open(dir.path());
    let (slow, closed) = tokio::join!(stores.close.scrub(1), stores.close.close());
    closed.unwrap();
    assert_eq!(slow.unwrap_err().kind(), io::ErrorKind::NotConnected);
    open(dir.path()).close.close().await.unwrap();
}

#[tokio::test]
async fn a_row_or_an_entry_that_is_not_what_was_written_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    append(&*stores.log, entries(1..9, 5_000)).await.unwrap();
    put(&mut *stores.tables, 8, &[(RowKey::Changes(1), value(1, 5_000)), (RowKey::Meta, value(2, 50))]);
    stores.close.close().await.unwrap();
    for (tree, key) in [
        ("log", keys::entry(LogIndex(3)).to_vec()),
        ("rows", {
            let mut key = Vec::new();
            keys::row(0, &RowKey::Changes(1), &mut key);
            key
        }),
    ] {
        let other = tempfile::tempdir().unwrap();
        copy(dir.path(), other.path());
        let db = sled::Config::new().path(other.path().join("engine")).segment_size(engine::SEGMENT).open().unwrap();
        let mut part = key.clone();
        keys::set_part(&mut part, key.len(), 1);
        let tree = db.open_tree(tree).unwrap();
        let mut bytes = tree.get(&part).unwrap().unwrap().to_vec();
        bytes[7] ^= 1;
        tree.insert(&part, bytes).unwrap();
        drop((tree, db));
        without_mark(other.path());
        let error = open_error(other.path(), &identity());
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

/// A folder that was closed in order, as one that was not.
pub(super) fn unseal(dir: &Path) {
    let mark = side_mark::read(dir).unwrap().unwrap();
    assert!(mark.seal.is_some());
    drop(side_mark::SideMarks::create(dir, side_mark::SideMark { seal: None, ..mark }).unwrap());
}

#[tokio::test]
async fn rows_that_do_not_add_up_and_files_that_were_changed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut stores = open(dir.path());
    append(&*stores.log, entries(1..9, 50)).await.unwrap();
    put(&mut *stores.tables, 7, &[(RowKey::Changes(1), value(1, 50)), (RowKey::Meta, value(2, 50))]);
    put(&mut *stores.tables, 8, &[(RowKey::Changes(1), value(3, 9_000))]);
    stores.close.close().await.unwrap();
    let row = |key: &RowKey| {
        let mut out = Vec::new();
        keys::row(0, key, &mut out);
        out
    };
    // Each row alone is right.
    let older = value(1, 50);
    let (_, older) = crate::storage::fuzz::stored_row(&RowKey::Meta, &older);
    for (key, put) in [(RowKey::Meta, None), (RowKey::Meta, Some(&older)), (RowKey::Changes(2), Some(&older))] {
        let other = tempfile::tempdir().unwrap();
        copy(dir.path(), other.path());
        let db = sled::Config::new().path(other.path().join("engine")).segment_size(engine::SEGMENT).open().unwrap();
        let rows = db.open_tree("rows").unwrap();
        match put {
            Some(bytes) => rows.insert(row(&key), bytes.as_slice()).unwrap(),
            None => rows.remove(row(&key)).unwrap(),
        };
        drop((rows, db));
        unseal(other.path());
        let error = open_error(other.path(), &identity());
        assert!(matches!(error, OpenError::Lost { .. }) && error.to_string().contains("some of its rows"), "{error}");
    }
    // A byte behind all that was written harms nobody, and is seen.
    let other = tempfile::tempdir().unwrap();
    copy(dir.path(), other.path());
    let db = other.path().join("engine/db");
    let (len, end) = (fs::metadata(&db).unwrap().len(), written(&db));
    let file = File::options().write(true).open(&db).unwrap();
    file.write_all_at(&[1], end.max(len - 1)).unwrap();
    let error = open_error(other.path(), &identity());
    assert!(error.to_string().contains("not those that the node closed"), "{error}");
    open(dir.path()).close.close().await.unwrap();
}

#[tokio::test]
async fn a_log_that_was_cut_off_is_opened_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (live, copied) = (dir.path().join("live"), |n: u64| dir.path().join(n.to_string()));
    let stores = open(&live);
    append(&*stores.log, entries(1..9, 50)).await.unwrap();
    for (number, last) in [(0, 8), (1, 5), (2, 6)] {
        match number {
            1 => wait(stores.log.truncate_after(Some(LogIndex(5)))).await.unwrap(),
            2 => append(&*stores.log, vec![(LogIndex(6), value(99, 40))]).await.unwrap(),
            _ => {}
        }
        copy(&live, &copied(number));
        let killed = open(&copied(number));
        assert_eq!(killed.log.bounds().last, Some(LogIndex(last)));
        killed.close.close().await.unwrap();
    }
    stores.close.close().await.unwrap();
}
