//! A process that uses storage is killed again and again, at any moment: nothing that it was told is durable may be
//! missing afterwards, nothing may be torn, and no entry may be missing between others.
//!
//! The child is this test binary itself. It says on its output what it is about to take back
//! (upper case), and what was acknowledged (lower case).

// Helpers of a test are outside of what clippy takes for one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tillsync::ids::{LogIndex, RecordId, TableId};
use tillsync::model::tables::{RowKey, Tables, TablesRead};
use tillsync::proto::Applied;
use tillsync::storage::{self, FolderIdentity, LogStore, SnapshotStore, Stores, flush, memory};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

const DIR: &str = "TILLSYNC_KILL_TEST_DIR";
const SEED: &str = "TILLSYNC_KILL_TEST_SEED";
const KILLS: u64 = 80;
/// Changes that are kept before older ones are deleted.
const KEPT: u64 = 150;
const RECORDS: u64 = 50;
/// Terms begin here; below, they are kinds of rows.
const FIRST_TERM: u64 = 8;
/// Entries in flight.
const FLIGHT: usize = 8;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn identity() -> FolderIdentity {
    FolderIdentity { node_id: 1, cluster_id: "kill".into() }
}

/// Bytes that say what they must be: anything torn or mixed up is seen.
fn payload(index: u64, term: u64) -> Bytes {
    let len = match index {
        // Appends that are written in several pieces, so that a kill finds them half done.
        i if term >= FIRST_TERM && term.is_multiple_of(4) => 20_000 + (i * 6_007 % 50_000) as usize,
        i if i.is_multiple_of(53) => 50_000,
        i if i.is_multiple_of(17) => 9_000,
        i => 60 + (i * 37 % 400) as usize,
    };
    let mut out = [index.to_be_bytes(), term.to_be_bytes()].concat();
    out.resize(len, (index * 3 + term) as u8);
    out.into()
}

fn term_of(entry: &[u8]) -> u64 {
    u64::from_be_bytes(entry[8..16].try_into().unwrap())
}

fn applied(index: u64) -> Applied {
    Applied { index, last_log_id: payload(index, 0).slice(..40), ..Applied::default() }
}

/// What applying an entry does. The rows do not depend on the term, only on the index.
fn apply(tables: &mut dyn Tables, index: u64) {
    tables.put(RowKey::Meta, payload(index, 0));
    tables.put(RowKey::Changes(index), payload(index, 1));
    tables.put(RowKey::Record { table: TableId(1), id: RecordId((index % RECORDS) as i64) }, payload(index, 2));
    if index > KEPT {
        tables.delete(RowKey::Changes(index - KEPT));
    }
    tables.commit(applied(index));
}

/// All rows when the entries up to `index` are applied.
fn rows_at(index: u64) -> Vec<(RowKey, Bytes)> {
    let mut rows = BTreeMap::new();
    if index > 0 {
        rows.insert(RowKey::Meta, payload(index, 0));
    }
    for i in index.saturating_sub(KEPT - 1).max(1)..=index {
        rows.insert(RowKey::Changes(i), payload(i, 1));
        rows.insert(RowKey::Record { table: TableId(1), id: RecordId((i % RECORDS) as i64) }, payload(i, 2));
    }
    rows.into_iter().collect()
}

fn all_rows(tables: &dyn TablesRead) -> Vec<(RowKey, Bytes)> {
    tables.range(&RowKey::Meta, &RowKey::end(), usize::MAX, false).unwrap()
}

async fn read_all(log: &dyn LogStore) -> Vec<(LogIndex, Bytes)> {
    let bounds = log.bounds();
    let Some(last) = bounds.last else { return Vec::new() };
    log.read(bounds.purged.map_or(LogIndex(1), |(index, _)| index.next()), last.next(), usize::MAX).await.unwrap()
}

/// A snapshot of the rows at `index`, as another node would send it.
async fn snapshot_from_elsewhere(target: &dyn SnapshotStore, index: u64) -> storage::StateSnapshot {
    let mut source = memory::stores();
    rows_at(index).into_iter().for_each(|(key, value)| source.tables.put(key, value));
    source.tables.commit(applied(index));
    copy(&*source.snapshots, target).await
}

async fn copy(from: &dyn SnapshotStore, to: &dyn SnapshotStore) -> storage::StateSnapshot {
    let snapshot = match from.current() {
        Some(snapshot) => snapshot,
        None => from.build().await.unwrap(),
    };
    let mut receiver = to.receive().await.unwrap();
    let mut at = 0;
    loop {
        let chunk = from.read_chunk(&snapshot, at, 100_000).await.unwrap();
        if chunk.is_empty() {
            return receiver.finish().await.unwrap();
        }
        let len = chunk.len() as u64;
        receiver.write(at, chunk).await.unwrap();
        at += len;
    }
}

/// The child's work on an open folder.
struct Work {
    stores: Stores,
    random: Random,
    term: u64,
    last: u64,
    flight: Arc<Semaphore>,
}

impl Work {
    async fn append(&mut self) {
        let count = 1 + self.random.below(12);
        let entries: Vec<_> =
            (self.last + 1..=self.last + count).map(|i| (LogIndex(i), payload(i, self.term))).collect();
        self.last += count;
        let permit = self.flight.clone().acquire_owned().await.unwrap();
        let (last, term) = (self.last, self.term);
        let done = move |outcome: std::io::Result<()>| {
            outcome.unwrap();
            println!("@a {last} {term}");
            drop(permit);
        };
        self.stores.log.append(entries, Box::new(done));
    }

    /// Waits until nothing is in flight.
    async fn settle(&self) {
        drop(self.flight.acquire_many(FLIGHT as u32).await.unwrap());
    }

    async fn apply_some(&mut self) {
        self.settle().await;
        let applied = self.stores.tables.applied().index;
        let to = self.last.saturating_sub(self.random.below(20));
        for index in applied + 1..=to {
            self.stores.pressure.ready().await.unwrap();
            let entry = self.stores.log.read(LogIndex(index), LogIndex(index + 1), 1).await.unwrap();
            assert_eq!(entry[0].1, payload(index, term_of(&entry[0].1)));
            apply(&mut *self.stores.tables, index);
        }
    }

    async fn truncate(&mut self) {
        self.settle().await;
        let keep = self.stores.tables.applied().index;
        let to = keep + self.random.below(self.last.saturating_sub(keep) + 1);
        println!("@T {to}");
        self.term += 1;
        // The vote of the new term goes first, as it does in Raft.
        let voted = self.stores.log.save_vote(self.term.to_be_bytes().to_vec().into());
        let cut = self.stores.log.truncate_after(Some(LogIndex(to)));
        self.last = to;
        self.append().await;
        voted.await.unwrap().unwrap();
        println!("@v {}", self.term);
        cut.await.unwrap().unwrap();
    }

    async fn snapshot_and_purge(&mut self) {
        let building = self.stores.snapshots.build();
        let committed = self.stores.tables.applied().index;
        let snapshot = building.await.unwrap();
        assert_eq!(snapshot.applied.index, committed);
        println!("@s {committed}");
        let upto = committed.saturating_sub(self.random.below(30));
        self.purge(upto).await;
    }

    async fn purge(&mut self, index: u64) {
        if index == 0 || self.stores.log.bounds().purged.is_some_and(|(purged, _)| purged >= LogIndex(index)) {
            return;
        }
        let ack = self.stores.log.purge(LogIndex(index), payload(index, 0).slice(..20));
        // Appends go on meanwhile.
        self.last = self.last.max(index);
        self.append().await;
        self.append().await;
        ack.await.unwrap().unwrap();
        println!("@p {index}");
    }

    /// Purges what is applied, but in no snapshot, and perhaps not in the engine yet.
    async fn purge_fresh(&mut self) {
        self.apply_some().await;
        let applied = self.stores.tables.applied().index;
        self.purge(applied).await;
    }

    async fn install(&mut self) {
        self.settle().await;
        let index = self.last + 40 + self.random.below(60);
        let snapshot = snapshot_from_elsewhere(&*self.stores.snapshots, index).await;
        let snapshots = self.stores.snapshots.clone();
        let installing = tokio::spawn(async move { snapshots.install(snapshot).await });
        // Entries that come meanwhile make the engine flush, whatever the install has written by then.
        self.append().await;
        self.append().await;
        installing.await.unwrap().unwrap();
        println!("@i {index}");
        assert_eq!(all_rows(&*self.stores.tables), rows_at(index));
        self.settle().await;
        self.purge(index).await;
    }

    async fn run(mut self) {
        // Each life does one of the rarer things more often.
        let favourite = self.random.below(4);
        loop {
            match self.random.below(24) {
                0..8 => self.append().await,
                8..11 => self.apply_some().await,
                11..13 => self.truncate().await,
                13..15 => self.snapshot_and_purge().await,
                15..17 => self.purge_fresh().await,
                17 => self.install().await,
                _ => match favourite {
                    0 => self.install().await,
                    1 => self.truncate().await,
                    2 => self.purge_fresh().await,
                    _ => self.snapshot_and_purge().await,
                },
            }
        }
    }
}

/// Kills this process when that many flushes have begun: right between two steps that must be in order.
fn die_at_flush(count: u64) {
    std::thread::spawn(move || {
        while flush::calls() < count {
            std::hint::spin_loop();
        }
        // SAFETY: no memory is involved.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
}

/// Not a test of its own: what the killed process runs.
#[test]
fn child() {
    let Ok(dir) = env::var(DIR) else { return };
    let seed = env::var(SEED).unwrap().parse().unwrap();
    die_at_flush(Random(seed).below(120) + 1);
    Runtime::new().unwrap().block_on(async {
        let stores = storage::open(Path::new(&dir), &identity()).unwrap();
        println!("@open");
        let bounds = stores.log.bounds();
        let purged = bounds.purged.map_or(0, |(index, _)| index.get());
        let last = bounds.last.map_or(purged, LogIndex::get);
        let term = stores.log.vote().map_or(FIRST_TERM, |vote| u64::from_be_bytes(vote[..].try_into().unwrap()));
        let at = stores.tables.applied().index;
        let flight = Arc::new(Semaphore::new(FLIGHT));
        let mut work = Work { stores, random: Random(seed), term, last, flight };
        if last < at {
            // As consensus does where the rows are ahead of the log.
            work.last = at;
            work.purge(at).await;
        }
        work.run().await;
    });
}

/// What the parent knows to be durable.
#[derive(Debug, Default)]
struct Known {
    /// Terms of acknowledged entries, by index of the last of an append.
    entries: BTreeMap<u64, u64>,
    vote: u64,
    purged: u64,
    /// The rows must be at least as new.
    rows: u64,
    opens: u64,
}

impl Known {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next().unwrap();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        match (what, &numbers[..]) {
            ("open", _) => self.opens += 1,
            ("a", [index, term]) => drop(self.entries.insert(*index, *term)),
            ("v", [vote]) => self.vote = *vote,
            // From here on these entries may be gone.
            ("T", [index]) => drop(self.entries.split_off(&(index + 1))),
            ("i" | "s", [index]) => self.rows = self.rows.max(*index),
            ("p", [index]) => self.purged = *index,
            _ => panic!("the child said {line}"),
        }
    }

    async fn check(&self, dir: &Path) {
        let stores = storage::open(dir, &identity()).unwrap_or_else(|error| panic!("{error}; known: {self:?}"));
        let bounds = stores.log.bounds();
        let purged = bounds.purged.as_ref().map_or(0, |(index, _)| index.get());
        let at = stores.tables.applied();
        assert!(purged >= self.purged, "the purge up to {} is forgotten: {bounds:?}", self.purged);
        if let Some((index, mark)) = &bounds.purged {
            assert_eq!(*mark, payload(index.get(), 0).slice(..20));
        }
        let vote = stores.log.vote().map_or(0, |vote| u64::from_be_bytes(vote[..].try_into().unwrap()));
        assert!(vote >= self.vote, "voted in term {}, now in {vote}", self.vote);

        let entries = read_all(&*stores.log).await;
        let mut newest_term = 0;
        for (expected, (index, entry)) in (purged + 1..).zip(&entries) {
            assert_eq!(*index, LogIndex(expected));
            assert_eq!(*entry, payload(expected, term_of(entry)), "entry {index} is torn");
            assert!(term_of(entry) >= newest_term && term_of(entry) <= vote.max(FIRST_TERM));
            newest_term = term_of(entry);
        }
        for (index, term) in self.entries.range(purged + 1..) {
            let found = entries.get((index - purged - 1) as usize);
            let found = found.unwrap_or_else(|| panic!("acknowledged entry {index} is missing: {bounds:?}"));
            assert_eq!(term_of(&found.1), *term, "entry {index} is another one");
        }

        assert!(at.index >= purged, "rows at {} cannot be replayed: the log begins behind {purged}", at.index);
        assert!(at.index >= self.rows, "rows at {}, but {} were durable", at.index, self.rows);
        if at.index > 0 {
            assert_eq!(at, applied(at.index));
        }
        assert!(all_rows(&*stores.tables) == rows_at(at.index), "the rows at {} are not what they must be", at.index);

        if let Some(snapshot) = stores.snapshots.current() {
            assert!(snapshot.applied.index <= at.index);
            let twin = memory::stores();
            let received = copy(&*stores.snapshots, &*twin.snapshots).await;
            twin.snapshots.install(received).await.unwrap();
            assert!(all_rows(&*twin.tables) == rows_at(snapshot.applied.index), "the snapshot is wrong");
        } else {
            assert_eq!(self.rows, 0, "the snapshot is gone");
        }
        stores.close.close().await.unwrap();
    }
}

/// Runs the child until it is killed, by itself at a flush or by us at any moment; what it said goes to `known`.
fn run_and_kill(dir: &Path, seed: u64, life: Option<Duration>, known: &mut Known) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let listening = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
    if let Some(life) = life {
        // The moment of the kill is what is random here; there is nothing to wait for.
        std::thread::sleep(life);
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "the child ended by itself: {status}");
    for line in listening.join().unwrap() {
        if let Some((_, said)) = line.split_once('@') {
            known.hear(said);
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_to_kills() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut known = Known::default();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for round in 0..KILLS {
        let life = match round % 4 {
            // While it starts: the open, with what the last kill left to be finished.
            0 => Some(random.below(40)),
            1 => Some(20 + random.below(200)),
            _ => None,
        };
        run_and_kill(dir.path(), 1 + random.below(u64::MAX), life.map(Duration::from_millis), &mut known);
        // Sometimes the next child finds the folder as the kill left it, not as a check has tidied it.
        if round % 5 != 1 {
            runtime.block_on(known.check(dir.path()));
        }
    }
    runtime.block_on(known.check(dir.path()));
    // Otherwise the kills came too early to show anything.
    assert!(known.opens > KILLS / 2 && known.purged > 0 && known.vote > 0, "{known:?}");
}
