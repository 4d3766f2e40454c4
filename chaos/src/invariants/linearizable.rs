//! Each record behaves like one register: every operation seems to happen at one moment between its question and its
//! answer.
//!
//! Every write has a value of its own, so what each read saw names its write, and the check takes n log n steps instead
//! of a search (Gibbons and Korach, *Testing Shared Memories*, SIAM J. Comput. 26, 1997). The operations of one value
//! form a cluster, with a zone from its first answer to its last question. A zone that runs forward must have the value
//! alone; one that runs backward must not lie within another's forward zone.

use std::collections::{BTreeMap, HashMap};

use super::deletes::{self, Deletes};
use crate::finding::Finding;
use crate::history::{History, Op, OpOutcome, OpRequest};

/// One operation on one register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access<'a> {
    pub id: u64,
    pub from: u64,
    /// `u64::MAX`: never answered.
    pub to: u64,
    /// Written or seen; empty: nothing was written yet.
    pub value: &'a str,
    pub write: bool,
}

pub(crate) fn check(history: &History) -> Finding {
    let mut finding = Finding::default();
    let deletes = Deletes::of(history);
    let name_of = |op: &Op| match &op.asked {
        OpRequest::Delete { request_id, .. } => Some((op.id, deletes::name(&op.device, request_id))),
        _ => None,
    };
    let names: HashMap<u64, String> = history.ops.iter().filter_map(name_of).collect();
    for ((table, record), accesses) in accesses(history, &deletes, &names) {
        finding.checked += accesses.len() as u64;
        if let Err(why) = check_register(&accesses) {
            finding.wrong(format!("{table}/{record}: {why}"));
        }
    }
    finding
}

/// Of every record. `names` are the values that deletes write.
fn accesses<'a>(
    history: &'a History,
    deletes: &'a Deletes<'_>,
    names: &'a HashMap<u64, String>,
) -> BTreeMap<(&'a str, i64), Vec<Access<'a>>> {
    let mut records: BTreeMap<(&str, i64), Vec<Access<'_>>> = BTreeMap::new();
    for op in &history.ops {
        let Op { id, invoked: from, returned: to, .. } = *op;
        match (&op.asked, op.outcome) {
            (_, OpOutcome::Failed) | (OpRequest::Read { .. }, OpOutcome::Unknown) => {}
            (OpRequest::Write { .. } | OpRequest::Delete { .. }, outcome) => {
                let Some((table, record, value, ..)) = op.asked.as_write() else { continue };
                let value = names.get(&id).map_or(value, String::as_str);
                let to = if outcome == OpOutcome::Ok { to } else { u64::MAX };
                records.entry((table, record)).or_default().push(Access { id, from, to, value, write: true });
            }
            (OpRequest::Read { table, record }, OpOutcome::Ok) => {
                let value = deletes.value(op);
                records.entry((table, *record)).or_default().push(Access { id, from, to, value, write: false });
            }
            _ => {}
        }
    }
    for deletes::Removed { table, record, name, from, to } in deletes.removed() {
        // Of a table that was removed: no operation of a device.
        let access = Access { id: 0, from: *from, to: *to, value: name, write: true };
        records.entry((table, *record)).or_default().push(access);
    }
    records
}

struct WriteCluster {
    /// Of the write.
    id: u64,
    written_from: u64,
    first_answer: u64,
    last_question: u64,
    read: bool,
    sure: bool,
}

/// Why these are no operations of one register.
pub(crate) fn check_register(accesses: &[Access<'_>]) -> Result<(), String> {
    let mut clusters: HashMap<&str, WriteCluster> = HashMap::new();
    // What was there before anything was written.
    let nothing = WriteCluster { id: 0, written_from: 0, first_answer: 0, last_question: 0, read: true, sure: true };
    clusters.insert("", nothing);
    for a in accesses.iter().filter(|a| a.write) {
        let sure = a.to != u64::MAX;
        let cluster = WriteCluster {
            id: a.id,
            written_from: a.from,
            first_answer: a.to,
            last_question: a.from,
            read: false,
            sure,
        };
        if clusters.insert(a.value, cluster).is_some() {
            return Err(format!("the value {:?} was written twice: the history is no evidence", a.value));
        }
    }
    for a in accesses.iter().filter(|a| !a.write) {
        let Some(cluster) = clusters.get_mut(a.value) else {
            return Err(format!("operation {} read {:?}, which nobody wrote", a.id, a.value));
        };
        if a.to < cluster.written_from {
            return Err(format!("operation {} read {:?} before operation {} wrote it", a.id, a.value, cluster.id));
        }
        cluster.first_answer = cluster.first_answer.min(a.to);
        cluster.last_question = cluster.last_question.max(a.from);
        cluster.read = true;
    }
    // A write that nobody was told of and nobody saw may never have happened.
    let mut forward = Vec::new();
    let mut backward = Vec::new();
    for (value, c) in clusters.iter().filter(|(_, c)| c.sure || c.read) {
        if c.first_answer < c.last_question {
            forward.push((c.first_answer, c.last_question, c.id, *value));
        } else {
            backward.push((c.last_question, c.first_answer, c.id, *value));
        }
    }
    forward.sort_unstable();
    backward.sort_unstable();
    for pair in forward.windows(2) {
        let ((_, end, a, _), (begin, _, b, _)) = (pair[0], pair[1]);
        if begin < end {
            return Err(format!("the values of operations {a} and {b} were each seen before and after the other"));
        }
    }
    for (from, to, id, _) in backward {
        let at = forward.partition_point(|(begin, ..)| *begin < from);
        if let Some((_, end, other, _)) = at.checked_sub(1).and_then(|at| forward.get(at))
            && to < *end
        {
            return Err(format!("operation {id} wrote between two sights of the value of operation {other}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{good, wrong};
    use super::*;
    use crate::rng::Rng;

    /// Tries every order.
    fn possible(left: &[Access<'_>], now: &str) -> bool {
        let sure = |a: &&Access<'_>| !(a.write && a.to == u64::MAX);
        if left.iter().filter(sure).count() == 0 {
            return true;
        }
        let first_end = left.iter().map(|a| a.to).min().unwrap_or(u64::MAX);
        (0..left.len()).any(|at| {
            let a = &left[at];
            if a.from > first_end || (!a.write && a.value != now) {
                return false;
            }
            let mut rest = left.to_vec();
            rest.remove(at);
            possible(&rest, a.value)
        })
    }

    fn random(rng: &mut Rng) -> Vec<Access<'static>> {
        const VALUES: [&str; 4] = ["a", "b", "c", "d"];
        let writes = rng.between(1, 4) as usize;
        let mut times: Vec<u64> = (1..=20).collect();
        let mut draw = |rng: &mut Rng| times.remove(rng.below(times.len() as u64) as usize);
        let mut all = Vec::new();
        for (n, value) in VALUES.into_iter().take(writes).enumerate() {
            let (a, b) = (draw(rng), draw(rng));
            let to = if rng.percent(15) { u64::MAX } else { a.max(b) };
            all.push(Access { id: n as u64 + 1, from: a.min(b), to, value, write: true });
        }
        for n in 0..rng.between(1, 4) {
            let (a, b) = (draw(rng), draw(rng));
            let value = match rng.below(writes as u64 + 1) {
                0 => "",
                at => VALUES[at as usize - 1],
            };
            all.push(Access { id: 10 + n, from: a.min(b), to: a.max(b), value, write: false });
        }
        all
    }

    #[test]
    fn zones_agree_with_trying_every_order() {
        let mut rng = Rng::new(7);
        let mut illegal = 0;
        for _ in 0..20_000 {
            let history = random(&mut rng);
            let (quick, slow) = (check_register(&history), possible(&history, ""));
            assert_eq!(quick.is_ok(), slow, "{quick:?} for {history:?}");
            illegal += usize::from(!slow);
        }
        assert!((2_000..18_000).contains(&illegal), "{illegal} of 20000 are illegal: one kind is hardly tried");
    }

    #[test]
    fn a_value_that_comes_back_is_found() {
        assert!(check(&good()).violations.is_empty());
        let mut back = good();
        back.ops[2].value = Some("v1".into());
        wrong(&check(&back), "wrote between two sights");
        back.ops[2].value = Some("x".into());
        wrong(&check(&back), "nobody wrote");
    }

    #[test]
    fn a_deleted_record_that_comes_back_is_found() {
        let mut deleted = good();
        deleted.ops[1].asked =
            OpRequest::Delete { table: "stock".into(), record: 1, request_id: "r2".into(), base: Some(1) };
        deleted.finals[0].changes[1].value.clear();
        (deleted.ops[2].version, deleted.ops[2].value) = (None, None);
        assert!(check(&deleted).violations.is_empty());
        let mut back = deleted.clone();
        (back.ops[2].version, back.ops[2].value) = (Some(1), Some("v1".into()));
        wrong(&check(&back), "wrote between two sights");
        // What was written after the delete is not there.
        let mut gone = good();
        (gone.ops[2].version, gone.ops[2].value) = (None, None);
        wrong(&check(&gone), "between two sights of the value of operation 0");
    }
}
