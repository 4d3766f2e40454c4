//! The figures of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::RunDescription;
use crate::checker::Verdict;
use crate::history::{AttackKind, Attacked, FaultWindow, History, NodeUse, Op, OpOutcome, OpRequest, Span};

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub operations: u64,
    pub ok: u64,
    /// Refused: surely not applied.
    pub failed: u64,
    /// No answer, so nobody knows.
    pub unknown: u64,
    pub writes: u64,
    pub reads: u64,
    pub sessions: u64,
    /// Changes that sessions were told.
    pub told: u64,
    pub checked: u64,
    pub duration_ms: u64,
    /// The longest time without a successful write while a majority was there.
    pub gap: Option<WriteGap>,
    /// The same while there was none.
    pub gap_without_majority: Option<WriteGap>,
    /// Of acknowledged writes, from question to answer.
    pub write: Option<Latency>,
    pub read: Option<Latency>,
    /// How often leadership went to another node.
    pub leaders: u64,
    pub faults: Vec<FaultRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack: Option<AttackFigures>,
}

/// What honest devices felt of an attack, and what the nodes took.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AttackFigures {
    /// Of acknowledged operations: before the attack, and beside it.
    pub before: PhaseFigures,
    pub beside: PhaseFigures,
    /// How often an honest device failed beside the attack.
    pub failures: u64,
    pub sockets_most: u64,
    pub sockets_mean: u64,
    pub nodes: Vec<NodeUse>,
    pub kinds: Vec<AttackKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PhaseFigures {
    pub lasted_ms: u64,
    pub write: Option<Latency>,
    pub read: Option<Latency>,
    pub sync: Option<Latency>,
}

impl AttackFigures {
    fn of(history: &History, attacked: &Attacked) -> Self {
        let phase = |span: Span| {
            let of = |is: fn(&OpRequest) -> bool| {
                let all = history.ops.iter().filter(move |op| op.outcome == OpOutcome::Ok && is(&op.asked));
                latency(all.filter(move |op| span.has(op.invoked_us)))
            };
            let is_sync = |asked: &OpRequest| matches!(asked, OpRequest::Sync { .. } | OpRequest::SyncSince { .. });
            let lasted_ms = span.to_us.saturating_sub(span.from_us) / 1_000;
            PhaseFigures { lasted_ms, write: of(is_write), read: of(is_read), sync: of(is_sync) }
        };
        let beside = |failed: &&crate::history::HonestFailure| failed.us >= attacked.hostile.from_us;
        Self {
            before: phase(attacked.honest),
            beside: phase(attacked.hostile),
            failures: attacked.failures.iter().filter(beside).count() as u64,
            sockets_most: attacked.sockets_most,
            sockets_mean: attacked.sockets_mean,
            nodes: attacked.nodes.clone(),
            kinds: attacked.kinds.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WriteGap {
    pub us: u64,
    pub from_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// One kind of fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FaultRow {
    pub name: String,
    pub times: u64,
    pub lasted_ms: u64,
    /// The longest time without a successful write that began in it or just before.
    pub longest_gap_ms: Option<u64>,
}

impl Figures {
    pub(crate) fn of(about: &RunDescription, history: &History, verdict: &Verdict) -> Self {
        let count = |outcome| history.ops.iter().filter(|op| op.outcome == outcome).count() as u64;
        let ok = |of: fn(&OpRequest) -> bool| {
            history.ops.iter().filter(move |op| op.outcome == OpOutcome::Ok && of(&op.asked))
        };
        let (gap, gap_without_majority) = gaps(history);
        Self {
            operations: history.ops.len() as u64,
            ok: count(OpOutcome::Ok),
            failed: count(OpOutcome::Failed),
            unknown: count(OpOutcome::Unknown),
            writes: ok(is_write).count() as u64,
            reads: ok(is_read).count() as u64,
            sessions: history.sessions.len() as u64,
            told: history.sessions.iter().map(|session| (session.early.len() + session.told.len()) as u64).sum(),
            checked: verdict.invariants.values().map(|finding| finding.checked).sum(),
            duration_ms: about.duration_ms,
            gap,
            gap_without_majority,
            write: latency(ok(is_write)),
            read: latency(ok(is_read)),
            leaders: super::lanes::led(history, u64::MAX).len().saturating_sub(1) as u64,
            faults: fault_rows(history, verdict),
            attack: history.attacked.as_ref().map(|attacked| AttackFigures::of(history, attacked)),
        }
    }
}

pub(crate) fn is_write(asked: &OpRequest) -> bool {
    matches!(asked, OpRequest::Write { .. } | OpRequest::Delete { .. })
}

fn is_read(asked: &OpRequest) -> bool {
    matches!(asked, OpRequest::Read { .. })
}

fn latency<'a>(ops: impl Iterator<Item = &'a Op>) -> Option<Latency> {
    let mut took: Vec<u64> = ops.map(|op| op.returned_us.saturating_sub(op.invoked_us)).collect();
    took.sort_unstable();
    Some(Latency { p50_us: rank(&took, 50)?, p99_us: rank(&took, 99)?, max_us: took.last().copied()? })
}

/// The smallest value that this many percent are not above.
pub(crate) fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied()
}

/// The longest times between two successful writes: with a majority all the time, and with one that was gone.
fn gaps(history: &History) -> (Option<WriteGap>, Option<WriteGap>) {
    let ok = history.ops.iter().filter(|op| op.outcome == OpOutcome::Ok && is_write(&op.asked));
    let mut done: Vec<u64> = ok.map(|op| op.returned_us).collect();
    done.sort_unstable();
    let gone: Vec<&FaultWindow> = history.bands.iter().filter(|band| !band.majority).collect();
    let (mut with, mut without) = (None::<WriteGap>, None::<WriteGap>);
    for pair in done.windows(2) {
        let gap = WriteGap { us: pair[1] - pair[0], from_us: pair[0] };
        let excused = gone.iter().any(|band| pair[0] <= band.to_us && pair[1] >= band.from_us);
        let longest = if excused { &mut without } else { &mut with };
        if longest.is_none_or(|longest| longest.us < gap.us) {
            *longest = Some(gap);
        }
    }
    (with, without)
}

fn fault_rows(history: &History, verdict: &Verdict) -> Vec<FaultRow> {
    let mut rows = BTreeMap::<&str, FaultRow>::new();
    for band in &history.bands {
        let row = rows.entry(&band.name).or_default();
        row.times += 1;
        row.lasted_ms += band.to_us.saturating_sub(band.from_us) / 1_000;
    }
    let named = rows.into_iter().map(|(name, row)| FaultRow {
        name: name.to_owned(),
        longest_gap_ms: verdict.gaps_ms.get(name).copied(),
        ..row
    });
    named.collect()
}
