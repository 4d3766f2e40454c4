//! A session never hears an older state of a record after a newer one: over live changes, what it is sent when it
//! resumes, and the pages of syncs together.

use std::collections::HashMap;

use crate::finding::Finding;
use crate::history::{History, SessionTold, ShownChange};

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    for session in history.sessions.iter().filter(|session| session.late || !session.pages.is_empty()) {
        let mut newest: HashMap<(&str, i64), u64> = HashMap::new();
        for (row, how) in arrivals(session) {
            let heard = newest.entry((&row.table, row.record)).or_default();
            finding.require(row.seq >= *heard, || {
                let (id, ShownChange { seq, table, record, .. }, heard) = (session.session, row, *heard);
                format!("session {id} heard of {table}/{record} change {heard}, and then change {seq} {how}")
            });
            *heard = row.seq.max(*heard);
        }
    }
    finding
}

/// All that the session was sent, in the order of arrival.
fn arrivals(session: &SessionTold) -> Vec<(&ShownChange, &'static str)> {
    let mut all = Vec::new();
    let mut pages = session.pages.iter().peekable();
    for (at, row) in session.rows().enumerate() {
        while let Some(page) = pages.next_if(|page| page.at <= at as u64) {
            all.extend(page.rows.iter().map(|row| (row, "on a page of a sync")));
        }
        all.push((row, "live"));
    }
    all.extend(pages.flat_map(|page| page.rows.iter().map(|row| (row, "on a page of a sync"))));
    all
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, row, wrong};
    use super::*;
    use crate::history::PageTold;

    #[test]
    fn an_older_state_after_a_newer_one_is_found() {
        let mut paged = good();
        let page = |at| PageTold { at, full: true, number: 1, rows: vec![row(1)], cursor: Some(2) };
        paged.sessions[0].pages = vec![page(1)];
        assert!(check(&paged).violations.is_empty());
        assert!(check(&paged).checked > 0);
        paged.sessions[0].pages = vec![page(2)];
        wrong(&check(&paged), "change 2, and then change 1 on a page");
        let mut late = good();
        late.sessions[0].late = true;
        late.sessions[0].early = vec![row(2)];
        late.sessions[0].told = vec![row(1)];
        wrong(&check(&late), "change 2, and then change 1 live");
    }
}
