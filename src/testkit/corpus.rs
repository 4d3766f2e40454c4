//! The kept corpus, without a fuzzer.

use std::cell::Cell;
use std::fs;
use std::panic;
use std::path::PathBuf;
use std::sync::Once;

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a case. A panic counts also if a task, a handler or the storage's guard catches it.
pub(super) fn holds(target: fn(&[u8]), input: &[u8]) -> bool {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.set(false);
    let ended = panic::catch_unwind(|| target(input)).is_ok();
    ended && !PANICKED.get()
}

pub(super) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

/// Every kept file of a target.
fn replay(name: &str, target: fn(&[u8])) {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(name)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 20, "{} files in the corpus of {name}", files.len());
    let failed: Vec<_> = files.iter().filter(|file| !holds(target, &fs::read(file).unwrap())).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn frames_of_the_corpus_hold() {
    replay("frames", super::frames);
}

#[test]
fn requests_of_the_corpus_hold() {
    replay("rest", super::rest);
}

#[test]
fn messages_of_peers_of_the_corpus_hold() {
    replay("peer", super::peer);
}

#[test]
fn rows_and_logs_of_the_corpus_hold() {
    replay("open", super::open);
}

#[test]
fn a_panic_counts_also_if_it_is_caught() {
    assert!(holds(|_| (), b""));
    assert!(!holds(|_| panic!("for this test"), b""));
    assert!(!holds(|_| drop(panic::catch_unwind(|| panic!("for this test"))), b""));
    let in_a_task = |_: &[u8]| super::run(async { drop(tokio::spawn(async { panic!("for this test") }).await) });
    assert!(!holds(in_a_task, b""));
}
