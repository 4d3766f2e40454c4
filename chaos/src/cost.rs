//! What checking costs: a legal history of any length, made up.

use crate::history::{FinalState, History, Op, OpOutcome, OpRequest, Sample, SessionTold, ShownChange};
use crate::rng::Rng;

const RECORDS: u64 = 50;
const DEVICES: u64 = 20;
const SESSION: u64 = 500;

/// `operations` writes and reads of overlapping devices, and sessions that were told of every write.
pub(crate) fn history(operations: u64) -> History {
    let mut rng = Rng::new(operations);
    let mut history = History::default();
    let mut newest: Vec<Option<ShownChange>> = vec![None; RECORDS as usize];
    let (mut changes, mut previous) = (Vec::new(), Vec::new());
    for id in 1..=operations {
        // It takes effect at its own moment; others overlap it on both sides.
        let moment = id * 100;
        let (from, to) = (moment - rng.below(1_000).min(moment), moment + rng.below(1_000));
        let record = rng.below(RECORDS);
        let place = &mut newest[record as usize];
        let device = format!("till-{}", rng.below(DEVICES));
        let read = OpRequest::Read { table: "stock".into(), record: record as i64 };
        let mut op = Op {
            returned: to,
            returned_us: to,
            outcome: OpOutcome::Ok,
            version: place.as_ref().map(|row| row.seq),
            value: place.as_ref().map(|row| row.value.clone()),
            tries: 1,
            // What overlaps was not sent one after another over one session.
            ..Op::new(id, &device, (id, id % 3 + 1), read, (from, from))
        };
        if rng.percent(60) {
            let seq = changes.len() as u64 + 1;
            let (value, request_id) = (format!("v{id}"), format!("r{id}"));
            let row = ShownChange {
                seq,
                table: "stock".into(),
                record: record as i64,
                value: value.clone(),
                device: op.device.clone(),
                request_id: request_id.clone(),
            };
            previous.push(place.as_ref().map_or(0, |row| row.seq));
            (op.version, op.value) = (Some(seq), None);
            op.asked = OpRequest::Write { table: "stock".into(), record: record as i64, value, request_id, base: None };
            changes.push(row.clone());
            *place = Some(row);
        }
        history.ops.push(op);
    }
    let head = changes.len() as u64;
    for (session, told) in changes.chunks(SESSION as usize).enumerate() {
        let first = told.first().map_or(0, |row| row.seq);
        for device in 0..DEVICES {
            history.sessions.push(SessionTold {
                session: session as u64 * DEVICES + device,
                device: format!("till-{device}"),
                node: 1,
                resumed: Some(first.saturating_sub(1)),
                position: Some(first.saturating_sub(1)),
                told: told.to_vec(),
                ..SessionTold::default()
            });
        }
    }
    for node in 1..=3 {
        for applied in 0..=head {
            history.samples.push(Sample {
                tick: applied,
                us: applied,
                node,
                boot: 1,
                applied,
                digest: format!("{applied:032x}"),
                head: applied,
                master: "till-1".into(),
                master_term: 1,
                masters: vec!["till-1".into()],
                electing: 0,
                settled: 1,
                version: 1,
                knows: 1,
                ungated: 0,
            });
        }
        history.finals.push(FinalState {
            node,
            applied: head,
            digest: "d".into(),
            rows: "r".into(),
            head,
            changes: changes.clone(),
            previous: previous.clone(),
            ..FinalState::default()
        });
    }
    history
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checker::{Expectations, check};

    #[test]
    fn what_is_made_up_is_legal() {
        let verdict = check(&history(3_000), Expectations { gap: Duration::from_secs(5) });
        assert!(verdict.holds(), "{verdict:?}");
        assert!(verdict.invariants["linearizable"].checked == 3_000);
    }
}
