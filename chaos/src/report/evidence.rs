//! The operations behind a violation. Its sentence names them (`operation 17`, `session 3`, `change 40`); here they are
//! looked up, with what else happened to the same record around then, and which faults were going on.

use serde::Serialize;
use tillsync::ids::UnixMs;
use tillsync::model::time::iso;

use super::words;
use crate::history::{History, Op, OpOutcome, OpRequest, SessionTold};

/// Operations and sessions shown for one violation, and neighbours of each record.
const MOST: usize = 8;
const NEIGHBOURS: usize = 6;
/// Characters of a sentence or a value.
const LONG: usize = 1_500;
const VALUE: usize = 120;

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Evidence {
    pub what: String,
    pub operations: Vec<ShownOperation>,
    /// Others on the same records, around the same time.
    pub around: Vec<ShownOperation>,
    pub sessions: Vec<String>,
    pub faults: Vec<String>,
}

/// An operation as a row of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ShownOperation {
    pub id: u64,
    pub from_us: u64,
    /// Absent: it was never answered.
    pub to_us: Option<u64>,
    pub device: String,
    pub node: u64,
    pub asked: String,
    pub answer: String,
}

impl Evidence {
    pub(super) fn of(history: &History, what: &str) -> Self {
        let named = NamedNumbers::read(what);
        let proves = |op: &&Op| named.ops.contains(&op.id) || wrote(op).is_some_and(|seq| named.changes.contains(&seq));
        let ops: Vec<&Op> = history.ops.iter().filter(proves).take(MOST).collect();
        let sessions = history.sessions.iter().filter(|session| named.sessions.contains(&session.session));
        let sessions: Vec<&SessionTold> = sessions.take(MOST).collect();
        let times = ops.iter().flat_map(|op| [op.invoked_us, end(op)]);
        let times: Vec<u64> = times.chain(sessions.iter().flat_map(|s| [s.began_us, s.ended_us])).collect();
        let faults = match (times.iter().min(), times.iter().max()) {
            (Some(from), Some(to)) => {
                let then = history.bands.iter().filter(|band| band.from_us <= *to && band.to_us >= *from);
                then.take(MOST).map(|band| format!("{} at {}", band.what, words::at_us(band.from_us))).collect()
            }
            _ => Vec::new(),
        };
        Self {
            what: words::cut(what, LONG),
            around: around(history, &ops).into_iter().map(ShownOperation::of).collect(),
            operations: ops.into_iter().map(ShownOperation::of).collect(),
            sessions: sessions.into_iter().map(tell).collect(),
            faults,
        }
    }
}

/// The numbers that a sentence names.
#[derive(Debug, Default, PartialEq, Eq)]
struct NamedNumbers {
    ops: Vec<u64>,
    sessions: Vec<u64>,
    changes: Vec<u64>,
}

impl NamedNumbers {
    fn read(what: &str) -> Self {
        let mut named = Self::default();
        let mut of = "";
        for word in what.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
            let number = word.parse::<u64>().ok();
            let list = match of {
                "operation" | "operations" | "sync" => &mut named.ops,
                "session" => &mut named.sessions,
                "change" | "changes" | "told" => &mut named.changes,
                _ => {
                    of = word;
                    continue;
                }
            };
            match number {
                Some(number) if list.len() < MOST => list.push(number),
                Some(_) => {}
                // `operations 3 and 4`, `change Some(5)`
                None if matches!(word, "and" | "Some" | "never") => {}
                None => of = word,
            }
        }
        named
    }
}

fn record(op: &Op) -> Option<(&str, i64)> {
    match &op.asked {
        OpRequest::Write { table, record, .. }
        | OpRequest::Delete { table, record, .. }
        | OpRequest::Read { table, record } => Some((table, *record)),
        _ => None,
    }
}

fn wrote(op: &Op) -> Option<u64> {
    if super::figures::is_write(&op.asked) { op.version } else { None }
}

fn end(op: &Op) -> u64 {
    if op.returned_us == u64::MAX { op.invoked_us } else { op.returned_us }
}

/// The operations on the same records that began last before, or first after, these did.
fn around<'a>(history: &'a History, ops: &[&Op]) -> Vec<&'a Op> {
    let mut records: Vec<_> = ops.iter().filter_map(|op| record(op)).collect();
    records.sort_unstable();
    records.dedup();
    let mut found = Vec::new();
    for record_of in records.into_iter().take(2) {
        let mine = || ops.iter().filter(|op| record(op) == Some(record_of));
        let (Some(first), Some(last)) = (mine().map(|op| op.invoked).min(), mine().map(|op| op.invoked).max()) else {
            continue;
        };
        let same = |op: &&Op| record(op) == Some(record_of) && ops.iter().all(|known| known.id != op.id);
        let mut others: Vec<&Op> = history.ops.iter().filter(same).collect();
        others.sort_by_key(|op| if op.invoked < first { first - op.invoked } else { op.invoked.saturating_sub(last) });
        others.truncate(NEIGHBOURS);
        found.extend(others);
    }
    found.sort_by_key(|op| op.invoked);
    found
}

impl ShownOperation {
    fn of(op: &Op) -> Self {
        let base = |base: &Option<u64>| base.map_or(String::new(), |base| format!(" if it is version {base}"));
        let short = |text: &str| words::cut(text, VALUE);
        let asked = match &op.asked {
            OpRequest::Write { table, record, value, base: on, .. } => {
                format!("write {:?} to {table}/{record}{}", short(value), base(on))
            }
            OpRequest::Delete { table, record, base: on, .. } => format!("delete {table}/{record}{}", base(on)),
            OpRequest::Read { table, record } => format!("read {table}/{record}"),
            OpRequest::Sync { after: Some(after) } => format!("sync after change {after}"),
            OpRequest::Sync { after: None } => "full sync".into(),
            OpRequest::SyncComplete { cursor } => format!("sync completed at {cursor}"),
            OpRequest::SyncSince { since_ms, .. } => format!("sync since {}", iso(UnixMs(*since_ms))),
            OpRequest::CompleteEarly => "sync completed before its last page".into(),
            OpRequest::Repeat { queue, n, .. } => format!("entry {n} of queue {queue} again"),
            OpRequest::Reused { queue, n, .. } => format!("entry {n} of queue {queue} with other data"),
            OpRequest::Gap { queue, n, after, .. } => {
                format!("entry {n} of queue {queue} after {after}, which was never sent")
            }
        };
        let version = op.version.map_or(String::new(), |version| format!(", change {version}"));
        let answer = match (op.outcome, &op.asked) {
            (OpOutcome::Ok, OpRequest::Read { .. }) => {
                format!("saw {:?}{version}", op.value.as_deref().map_or(String::new(), short))
            }
            (OpOutcome::Ok, OpRequest::Sync { .. }) => {
                format!("{} rows, up to {:?}", op.pages.iter().map(Vec::len).sum::<usize>(), op.cursor)
            }
            (OpOutcome::Ok, _) => format!("ok{version}"),
            (OpOutcome::Failed, _) => format!("refused: {}", short(&op.error)),
            (OpOutcome::Unknown, _) => {
                format!("unknown: {}", if op.error.is_empty() { "no answer" } else { &op.error })
            }
        };
        Self {
            id: op.id,
            from_us: op.invoked_us,
            to_us: (op.returned_us != u64::MAX).then_some(op.returned_us),
            device: op.device.clone(),
            node: op.node,
            asked,
            answer: words::cut(&answer, 2 * VALUE),
        }
    }
}

fn tell(session: &SessionTold) -> String {
    let SessionTold { session: id, device, node, began_us, ended_us, resumed, position, told, early, .. } = session;
    let from = match (resumed, position) {
        (Some(cursor), _) => format!("resumed after change {cursor}"),
        (None, Some(at)) => format!("came new at change {at}"),
        (None, None) => "was refused".into(),
    };
    let last =
        told.last().map_or("nothing".into(), |row| format!("{} changes up to {}", told.len() + early.len(), row.seq));
    let (began, ended) = (words::at_us(*began_us), words::at_us(*ended_us));
    format!("session {id} of {device} on node {node}, {began} to {ended}: {from}, was told {last}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::good;

    #[test]
    fn the_numbers_of_a_sentence_are_read() {
        let read = NamedNumbers::read(
            "stock/1: operation 3 on node 7 gave version Some(2), but operation 4 had given Some(5)",
        );
        assert_eq!(read.ops, [3, 4]);
        assert_eq!(NamedNumbers::read("the values of operations 1 and 22 were each seen before").ops, [1, 22]);
        assert_eq!(NamedNumbers::read("operation 3 was acknowledged as change Some(40); the log has []").changes, [40]);
        let read = NamedNumbers::read("session 12 of till-1 on node 2 went on from 5 and was never told [6, 7]");
        assert_eq!((read.sessions, read.changes), (vec![12], vec![6, 7]));
        assert_eq!(NamedNumbers::read("the full sync 9 sent a/1 twice").ops, [9]);
        assert_eq!(NamedNumbers::read(""), NamedNumbers::default());
    }

    #[test]
    fn operations_and_what_went_on_around_them_are_found() {
        let evidence = Evidence::of(&good(), "stock/1: operation 3 on node 1 gave version Some(1)");
        assert_eq!(evidence.operations.len(), 1);
        assert_eq!(evidence.operations[0].answer, "saw \"v2\", change 2");
        assert_eq!(evidence.around.iter().map(|op| op.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(evidence.faults, ["node 1 crashed at 0.000 s"]);
        let evidence = Evidence::of(&good(), "session 1 of till-1 on node 1 was never told [1]");
        assert_eq!(evidence.operations[0].asked, "write \"v1\" to stock/1");
        assert!(evidence.sessions[0].contains("was told 2 changes up to 2"), "{:?}", evidence.sessions);
    }
}
