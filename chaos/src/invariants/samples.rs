//! A small history in which everything holds, for the tests of the checkers to break.

use crate::finding::Finding;
use crate::history::{
    AttackKind, Attacked, FaultWindow, FinalState, HeldRecord, History, LeaderClaim, NodeUse, Op, OpOutcome, OpRequest,
    Sample, SessionTold, ShownChange, ShownElection, Span,
};

/// The finding says so.
pub(crate) fn wrong(finding: &Finding, word: &str) {
    assert!(finding.violations.iter().any(|what| what.contains(word)), "{word:?} in {:?}", finding.violations);
}

pub(crate) fn row(seq: u64) -> ShownChange {
    ShownChange {
        seq,
        table: "stock".into(),
        record: 1,
        value: format!("v{seq}"),
        device: "till-1".into(),
        request_id: format!("r{seq}"),
    }
}

pub(crate) fn op(id: u64, asked: OpRequest) -> Op {
    let op = Op::new(id, "till-1", (1, 1), asked, (id * 10, id * 10));
    Op { returned: id * 10 + 5, returned_us: id * 10 + 5, outcome: OpOutcome::Ok, tries: 1, ..op }
}

fn write(id: u64, seq: u64, base: Option<u64>) -> Op {
    let ShownChange { table, record, value, request_id, .. } = row(seq);
    Op { version: Some(seq), ..op(id, OpRequest::Write { table, record, value, request_id, base }) }
}

fn sample(tick: u64, node: u64, applied: u64, master: &str) -> Sample {
    Sample {
        tick,
        us: tick,
        node,
        boot: 1,
        applied,
        digest: format!("d{applied}"),
        head: applied,
        master: master.into(),
        master_term: 1,
        masters: vec![master.into()],
        electing: 0,
        settled: 1,
        version: 1,
        knows: 1,
        ungated: 0,
    }
}

fn election(id: u64, previous: &str, new: &str) -> ShownElection {
    ShownElection { id, term: id, previous: previous.into(), new: new.into() }
}

pub(crate) fn good() -> History {
    let read = OpRequest::Read { table: "stock".into(), record: 1 };
    let node = |node| FinalState {
        node,
        applied: 9,
        digest: "d9".into(),
        rows: "r9".into(),
        head: 2,
        compacted: 0,
        changes: vec![row(1), row(2)],
        previous: vec![0, 1],
        elections: vec![election(1, "", "till-1"), election(2, "till-1", "till-2")],
        sync_states: vec![("till-1".into(), 2, true)],
        committed_ms: vec![100, 200],
        records: vec![HeldRecord { table: "stock".into(), record: 1, seq: 2, value: "v2".into() }],
        ..FinalState::default()
    };
    History {
        ops: vec![
            write(1, 1, None),
            write(2, 2, Some(1)),
            Op { version: Some(2), value: Some("v2".into()), ..op(3, read) },
            Op {
                pages: vec![vec![row(1)], vec![row(2)]],
                cursor: Some(2),
                ..op(4, OpRequest::Sync { after: Some(0) })
            },
            op(5, OpRequest::SyncComplete { cursor: 2 }),
        ],
        sessions: vec![SessionTold {
            session: 1,
            device: "till-1".into(),
            node: 1,
            ended_us: 99,
            position: Some(0),
            told: vec![row(1), row(2)],
            live_at_end: true,
            ..SessionTold::default()
        }],
        samples: vec![sample(1, 1, 1, "till-1"), sample(2, 2, 1, "till-1"), sample(3, 1, 2, "till-1")],
        led: vec![LeaderClaim { us: 1, node: 1, raft_term: 1 }, LeaderClaim { us: 2, node: 2, raft_term: 2 }],
        finals: vec![node(1), node(2)],
        bands: vec![FaultWindow {
            name: "crash".into(),
            what: "node 1 crashed".into(),
            from_us: 0,
            to_us: 50,
            majority: true,
        }],
        ..History::default()
    }
}

/// The same, in which the second half of the operations was done beside attackers.
pub(crate) fn attacked() -> History {
    let used = |node| NodeUse {
        node,
        honest_kb: 100,
        hostile_kb: 149,
        descriptors_before: 50,
        descriptors_most: 700,
        descriptors_after: 60,
    };
    let attacked = Attacked {
        honest: Span { from_us: 0, to_us: 30 },
        hostile: Span { from_us: 31, to_us: 90 },
        sockets: 100,
        sockets_most: 100,
        sockets_mean: 80,
        kinds: vec![AttackKind { name: "idle".into(), attempts: 10, answered: 0, ended: 10, least: 10 }],
        nodes: vec![used(1), used(2)],
        slow_ms: 1_000,
        memory_percent: 150,
        ..Attacked::default()
    };
    History { attacked: Some(attacked), ..good() }
}
