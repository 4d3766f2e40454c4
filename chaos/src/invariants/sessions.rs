//! Every session was told one order: each change once, none missing from where it began, and the same changes that the
//! log holds. A device that resumes with its cursor misses nothing, on whatever node.

use std::collections::{BTreeSet, HashMap};

use crate::finding::Finding;
use crate::history::{History, SessionTold, ShownChange};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let head = history.finals.iter().map(|node| node.head).max();
    for session in &history.sessions {
        check_order(session, &mut finding);
        if !session.late {
            check_gaps(history, session, &mut finding);
        }
        for row in session.early.iter().chain(&session.told) {
            let compacted = history.finals.first().is_none_or(|node| row.seq <= node.compacted);
            let same = history.change(row.seq).is_some_and(|change| change == row);
            finding.require(compacted || same, || {
                let change = history.change(row.seq);
                format!("session {} was told {row:?}, but the log has {change:?}", session.session)
            });
        }
        if session.live_at_end && session.position.is_some() {
            let last = session.early.iter().chain(&session.told).map(|row| row.seq).max().max(session.position);
            finding.require(last == head, || {
                format!("session {} was told up to {last:?} of {head:?} after everything healed", session.session)
            });
        }
    }
    finding
}

fn rising(rows: &[ShownChange]) -> bool {
    rows.windows(2).all(|pair| pair[0].seq < pair[1].seq)
}

fn check_order(session: &SessionTold, finding: &mut Finding) {
    let id = session.session;
    finding.require(rising(&session.early) && rising(&session.told), || {
        let pairs = session.early.windows(2).chain(session.told.windows(2)).map(|pair| (pair[0].seq, pair[1].seq));
        let wrong: Vec<_> = pairs.filter(|(a, b)| a >= b).take(10).collect();
        format!("session {id} was told changes out of order or twice: {wrong:?}")
    });
}

pub(crate) fn check_gaps(history: &History, session: &SessionTold, finding: &mut Finding) {
    // Events from before the answer to coming online are not the stream yet, but those are not told again.
    let early: BTreeSet<u64> = session.early.iter().map(|row| row.seq).collect();
    let told: BTreeSet<u64> = session.told.iter().map(|row| row.seq).collect();
    let again: Vec<_> = early.intersection(&told).collect();
    finding.require(again.is_empty(), || format!("session {} was told {again:?} twice", session.session));
    // New sessions are live from the position on, which they are told; resumed ones from their cursor on.
    let Some(from) = session.resumed.or(session.position) else { return };
    let stream: BTreeSet<u64> = told.union(&early).copied().filter(|seq| *seq > from).collect();
    let top = told.last().copied().unwrap_or(from);
    let mut missing: Vec<u64> = (from + 1..=top).filter(|seq| !stream.contains(seq)).take(MISSING).collect();
    if session.late && !missing.is_empty() {
        superseded(history, session, &mut missing);
    }
    check_pages(history, session, from, finding);
    missing.truncate(10);
    finding.require(missing.is_empty(), || {
        let (id, device, node) = (session.session, &session.device, session.node);
        format!("session {id} of {device} on node {node} went on from {from} and was never told {missing:?}")
    });
}

/// Missing changes looked at in one session.
const MISSING: usize = 10_000;

/// Whoever resumes late is not told again what was told of the same records in a newer state.
fn superseded(history: &History, session: &SessionTold, missing: &mut Vec<u64>) {
    let changes = history.every_change();
    let mut newest: HashMap<(&str, i64), u64> = HashMap::new();
    for row in session.rows() {
        let known = newest.entry((&row.table, row.record)).or_default();
        *known = row.seq.max(*known);
    }
    // A newer state that is still to come when the session ends is behind the place from which the device resumes.
    let top = newest.values().copied().max().unwrap_or(0);
    for (seq, row) in changes.range(top + 1..) {
        newest.insert((&row.table, row.record), *seq);
    }
    // What nobody was told, and is compacted, may have been of any record.
    missing.retain(|seq| {
        changes.get(seq).is_some_and(|row| newest.get(&(&*row.table, row.record)).is_none_or(|known| known < seq))
    });
}

/// Before the last page of a sync everything up to its cursor was told, so whoever keeps that cursor misses nothing.
fn check_pages(history: &History, session: &SessionTold, from: u64, finding: &mut Finding) {
    for page in &session.pages {
        let Some(cursor) = page.cursor else { continue };
        let before: BTreeSet<u64> = session.rows().take(page.at as usize).map(|row| row.seq).collect();
        let mut missing: Vec<u64> = (from + 1..=cursor).filter(|seq| !before.contains(seq)).take(MISSING).collect();
        if session.late && !missing.is_empty() {
            superseded(history, session, &mut missing);
        }
        missing.truncate(10);
        finding.require(missing.is_empty(), || {
            let id = session.session;
            format!("session {id} was sent the end of a sync to {cursor}, but was not told {missing:?} before")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, row, wrong};
    use super::*;
    use crate::history::PageTold;

    #[test]
    fn gaps_repeats_and_untruths_are_found() {
        assert!(check(&good()).violations.is_empty());
        let mut gap = good();
        gap.sessions[0].told.remove(0);
        wrong(&check(&gap), "never told [1]");
        let mut end = good();
        end.sessions[0].told.pop();
        wrong(&check(&end), "up to");
        let mut twice = good();
        let again = twice.sessions[0].told[0].clone();
        twice.sessions[0].told.insert(1, again);
        wrong(&check(&twice), "twice");
        let mut early = good();
        early.sessions[0].early = vec![early.sessions[0].told[0].clone()];
        wrong(&check(&early), "twice");
        let mut other = good();
        other.sessions[0].told[0].value = "other".into();
        wrong(&check(&other), "the log has");
    }

    #[test]
    fn the_end_of_a_sync_that_comes_before_a_change_is_found() {
        let mut page = good();
        let at = |at| vec![PageTold { at, full: true, number: 1, rows: vec![row(2)], cursor: Some(2) }];
        page.sessions[0].pages = at(2);
        assert!(check(&page).violations.is_empty());
        page.sessions[0].pages = at(1);
        wrong(&check(&page), "not told [2] before");
    }
}
