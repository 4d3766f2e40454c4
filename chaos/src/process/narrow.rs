//! The history of honest devices' tables only, as if nobody else had written: what attackers and the catalogue wrote is
//! taken out, and changes are numbered anew. Order and content stay, so that every invariant means what it did.

use crate::history::{History, OpRequest, ShownChange};

/// Nothing of a history is changed whose log is not whole: then its invariants say so. The nodes' own log is looked at
/// before anything is taken out.
pub(super) fn narrow(history: &mut History, tables: &[&str]) -> Result<(), String> {
    for node in &history.finals {
        let whole = (1..=node.head).eq(node.changes.iter().map(|row| row.seq));
        if !whole {
            return Err(format!("node {}: the changes 1..={} are not all there once, in order", node.node, node.head));
        }
    }
    let Some(first) = history.finals.first() else { return Ok(()) };
    let ours = |table: &str| tables.contains(&table);
    let seqs: Vec<u64> = first.changes.iter().filter(|row| ours(&row.table)).map(|row| row.seq).collect();
    let at = |seq: u64| seqs.partition_point(|ours| *ours <= seq) as u64;
    let rows = |rows: &mut Vec<ShownChange>| {
        rows.retain(|row| ours(&row.table));
        rows.iter_mut().for_each(|row| row.seq = at(row.seq));
    };
    for op in &mut history.ops {
        match &mut op.asked {
            OpRequest::Write { base: Some(seq), .. }
            | OpRequest::Delete { base: Some(seq), .. }
            | OpRequest::Sync { after: Some(seq) }
            | OpRequest::SyncComplete { cursor: seq } => *seq = at(*seq),
            _ => {}
        }
        op.version = op.version.map(at);
        op.cursor = op.cursor.map(at);
        op.pages.iter_mut().for_each(rows);
    }
    for session in &mut history.sessions {
        session.resumed = session.resumed.map(at);
        session.position = session.position.map(at);
        for page in &mut session.pages {
            rows(&mut page.rows);
            page.cursor = page.cursor.map(at);
        }
        // Until it says which tables it wants a session is told of all.
        let early = session.early.len();
        session.early.retain(|row| ours(&row.table));
        let dropped = (early - session.early.len()) as u64;
        session.refused = session.refused.map(|told| told.saturating_sub(dropped));
        session.pages.iter_mut().for_each(|page| page.at = page.at.saturating_sub(dropped));
        // One that asked for our tables is told of no others: a stranger's row stays, and is found.
        for row in session.early.iter_mut().chain(&mut session.told).filter(|row| ours(&row.table)) {
            row.seq = at(row.seq);
        }
    }
    for store in &mut history.stores {
        store.records.retain(|held| ours(&held.table));
        store.records.iter_mut().for_each(|held| held.seq = at(held.seq));
    }
    history.samples.iter_mut().for_each(|sample| sample.head = at(sample.head));
    for node in &mut history.finals {
        let keep: Vec<bool> = node.changes.iter().map(|row| ours(&row.table)).collect();
        let mut place = keep.iter();
        node.previous.retain(|_| place.next() == Some(&true));
        let mut place = keep.iter();
        node.committed_ms.retain(|_| place.next() == Some(&true));
        node.previous.iter_mut().for_each(|seq| *seq = at(*seq));
        rows(&mut node.changes);
        node.head = at(node.head);
        node.sync_states.iter_mut().for_each(|(_, seq, _)| *seq = at(*seq));
        node.records.retain(|held| ours(&held.table));
        node.records.iter_mut().for_each(|held| held.seq = at(held.seq));
        node.conflicts.retain(|held| ours(&held.table));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Expectations, check};
    use crate::invariants::samples::{good, row};

    /// The good history with a stranger's change before each of its own.
    fn mixed() -> History {
        let mut history = good();
        let moved = |seq: &mut u64| *seq *= 2;
        for op in &mut history.ops {
            match &mut op.asked {
                OpRequest::Write { base: Some(seq), .. }
                | OpRequest::Sync { after: Some(seq) }
                | OpRequest::SyncComplete { cursor: seq } => moved(seq),
                _ => {}
            }
            op.version.iter_mut().chain(&mut op.cursor).for_each(moved);
            op.pages.iter_mut().flatten().for_each(|row| moved(&mut row.seq));
        }
        for session in &mut history.sessions {
            session.told.iter_mut().for_each(|row| moved(&mut row.seq));
        }
        history.samples.iter_mut().for_each(|sample| moved(&mut sample.head));
        for node in &mut history.finals {
            let theirs = |seq| ShownChange { table: "loot".into(), ..row(seq) };
            node.changes.iter_mut().for_each(|row| moved(&mut row.seq));
            node.changes.insert(1, theirs(3));
            node.changes.insert(0, theirs(1));
            (node.previous, node.committed_ms) = (vec![0, 0, 1, 2], vec![50, 100, 150, 200]);
            moved(&mut node.head);
            node.sync_states.iter_mut().for_each(|(_, seq, _)| moved(seq));
            node.records.iter_mut().for_each(|held| moved(&mut held.seq));
        }
        history
    }

    #[test]
    fn what_others_wrote_is_taken_out_and_the_rest_is_as_before() {
        let mut history = mixed();
        narrow(&mut history, &["stock"]).unwrap();
        assert_eq!(history, good());
        assert!(check(&history, Expectations { gap: std::time::Duration::from_secs(5) }).holds());
    }

    #[test]
    fn a_hole_in_the_nodes_log_is_no_stranger() {
        let mut history = mixed();
        history.finals[1].changes.remove(0);
        assert!(narrow(&mut history, &["stock"]).unwrap_err().contains("node 2"));
    }

    #[test]
    fn what_a_session_was_told_before_it_named_its_tables_is_taken_out() {
        let mut history = mixed();
        let (stranger, ours) = (ShownChange { table: "loot".into(), ..row(1) }, row(2));
        let session = &mut history.sessions[0];
        session.early = vec![stranger, ours];
        session.refused = Some(2);
        narrow(&mut history, &["stock"]).unwrap();
        let session = &history.sessions[0];
        assert_eq!((session.early.len(), session.early[0].seq, session.refused), (1, 1, Some(1)));
    }

    #[test]
    fn what_a_session_was_told_of_others_stays() {
        let mut history = mixed();
        history.sessions[0].told.insert(0, ShownChange { table: "loot".into(), ..row(1) });
        narrow(&mut history, &["stock"]).unwrap();
        assert_eq!(history.sessions[0].told.len(), 3);
    }
}
