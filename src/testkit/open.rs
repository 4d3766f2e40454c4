//! What a disk gives back at the start of a node: log entries, rows of every kind, snapshots, the identity file.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::alloc::measure;
use super::peer::messages;
use super::state::read;
use crate::consensus::{codec, state_machine};
use crate::ids::{LogIndex, RaftTerm};
use crate::model::state::{Position, State};
use crate::model::tables::{MemoryTables, Tables};
use crate::proto::Applied;
use crate::storage::fuzz::{FoundInFolder, FuzzedFolder, key, read_identity, read_snapshot};

/// What a case may take: so many times its length, and this. Bytes. A name in a row may ask for a ring of its own.
const PEAK_TIMES: isize = 1_024;
const PEAK: isize = 8 << 20;
const LEFT: isize = 1 << 20;
/// The engine's folder is made anew after so many cases: its file grows.
const CASES: u32 = 2_000;

thread_local! {
    static FOLDER: std::cell::RefCell<(u32, Option<FuzzedFolder>)> = const { std::cell::RefCell::new((0, None)) };
}

/// A case: a letter, then messages as those of [`super::peer()`].
///
/// `d`: what the engine's trees hold: a tree's number, the length of a key (`u8`), the key, the value. `s`: a snapshot.
/// `i`: the identity file. Else: rows, each the length of a key as in snapshots (`u8`), the key, the value.
pub fn open(input: &[u8]) {
    let Some((letter, rest)) = input.split_first() else { return };
    match letter {
        b'd' => FOLDER.with_borrow_mut(|(cases, folder)| {
            *cases += 1;
            if *cases % CASES == 1 {
                *folder = None;
            }
            let folder = folder.get_or_insert_with(|| FuzzedFolder::new().unwrap());
            fill(folder, rest);
            measured(input, || start(folder));
            folder.clear().unwrap();
        }),
        b's' => measured(input, || drop(read_snapshot(rest))),
        b'i' => measured(input, || {
            let _ = std::str::from_utf8(rest).map(read_identity);
        }),
        _ => measured(input, || rows(rest)),
    }
}

fn measured(input: &[u8], case: impl FnOnce()) {
    let ((), taken) = measure(case);
    let peak = PEAK + PEAK_TIMES * input.len() as isize;
    assert!(taken.peak < peak && taken.left < LEFT, "{taken:?} of {} bytes", input.len());
}

fn rows(input: &[u8]) {
    let mut rows = BTreeMap::new();
    for row in messages(input) {
        let Some((length, rest)) = row.split_first() else { continue };
        let Some((name, value)) = rest.split_at_checked(usize::from(*length)) else { continue };
        if let Some(key) = key(name) {
            rows.insert(key, Bytes::copy_from_slice(value));
        }
    }
    let tables = MemoryTables::default();
    tables.replace(rows, Applied::default());
    let _ = opened(Box::new(tables));
}

/// The rows are read, or refused with an error; and when they were read, so can be all that they say.
fn opened(tables: Box<dyn Tables>) -> Option<State> {
    let state = State::open(tables).ok()?;
    let _ = read(&state);
    Some(state)
}

fn fill(folder: &FuzzedFolder, input: &[u8]) {
    for put in messages(input) {
        let [tree, length, rest @ ..] = &put[..] else { continue };
        let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else { continue };
        folder.put(*tree, key, value).unwrap();
    }
}

/// As a node starts: what the engine holds, the state that its rows are, then the entries behind it.
fn start(folder: &FuzzedFolder) {
    let Ok(FoundInFolder { tables, entries, purged, vote, committed }) = folder.open() else { return };
    let _ = state_machine::decode_applied(&tables.applied());
    let _ = vote.map(|vote| codec::decode_vote(&vote));
    let _ = purged.map(|mark| codec::decode_log_id(&mark));
    let _ = committed.map(|id| codec::decode_log_id(&id));
    let has_rows = tables.applied() != Applied::default();
    let Some(mut state) = opened(tables) else { return };
    for (index, bytes) in entries {
        let Ok(entry) = codec::decode_entry(index, bytes) else { return };
        if let openraft::EntryPayload::Normal(batch) = entry.payload
            && !has_rows
            && index > LogIndex(0)
        {
            let at = Position { index, log_id: Bytes::new(), term: RaftTerm(1) };
            if state.apply(at, batch.0).is_err() {
                return;
            }
        }
    }
}
