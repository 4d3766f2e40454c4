//! Which backup is due, and which node takes it. What is due follows from the names of what is there, so neither a restart nor
//! another node that goes on with it changes that.

use std::time::Duration;

use super::names::{BackupFolder, BackupName, ProofName};
use crate::cluster::NodeInfo;
use crate::config::BackupSettings;
use crate::ids::{LogIndex, NodeId, UnixMs};

/// A backup whose time is further ahead than this was named by a clock that was wrong: it does not count.
const AHEAD_MS: u64 = 3_600_000;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackupStep {
    /// Everything, in one file.
    Whole,
    /// What came after this entry.
    After(LogIndex),
    /// The newest backup is to be restored for a moment.
    Prove(BackupName),
}

/// What is there of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupsSeen {
    pub newest: Option<BackupName>,
    /// The last entry that can be restored with the newest backup, and the time of the newest file up to there.
    pub last: LogIndex,
    pub last_at: UnixMs,
    /// When a backup was proved last.
    pub proved: UnixMs,
}

/// The files of one cluster that count.
pub(crate) fn counted(folder: &BackupFolder, prefix: &str, now: UnixMs) -> BackupFolder {
    folder.of(prefix, now.plus_ms(AHEAD_MS))
}

impl BackupsSeen {
    pub(crate) fn of(folder: &BackupFolder, prefix: &str, now: UnixMs) -> Self {
        let folder = counted(folder, prefix, now);
        let proved = folder.proofs.iter().map(ProofName::moment).max().unwrap_or_default();
        let Some(newest) = folder.newest().cloned() else { return Self { proved, ..Self::default() } };
        let chain = folder.after(&newest.prefix, newest.entry);
        let last = chain.last().map_or(newest.entry, |segment| segment.last);
        // Entries without a command in them have no time.
        let last_at = chain.iter().map(|segment| segment.moment()).fold(newest.moment(), UnixMs::max);
        Self { newest: Some(newest), last: LogIndex(last), last_at, proved }
    }
}

/// What this process knows of its own doing, which no name tells: nothing is written when nothing came after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupsDone {
    pub whole: UnixMs,
    pub after: UnixMs,
    /// Something was wrong with the backups: a whole one is taken, whatever is there; not for every proof that fails, or
    /// those that were good would have to go for it.
    pub start_anew: bool,
    /// When one was taken for that.
    pub anew: UnixMs,
}

/// What is due, if anything. `applied`: the newest entry that the node has applied. A proof, if one `may_prove`, goes before
/// what came after: else it would never come where that is taken all the time.
pub(crate) fn due(
    seen: &BackupsSeen,
    done: &BackupsDone,
    settings: &BackupSettings,
    applied: LogIndex,
    may_prove: bool,
    now: UnixMs,
) -> Option<BackupStep> {
    let has_passed = |since: UnixMs, every: Duration| UnixMs(now.get().saturating_sub(ms(every))) >= since;
    let Some(newest) = &seen.newest else {
        // What was taken may not count: its name has the cluster's time, which may be ahead.
        return has_passed(done.whole, settings.every).then_some(BackupStep::Whole);
    };
    let goes_on = applied > seen.last;
    let whole_due = has_passed(newest.moment().max(done.whole), settings.every) && applied > LogIndex(newest.entry);
    if (done.start_anew && has_passed(done.anew, settings.every)) || whole_due {
        return Some(BackupStep::Whole);
    }
    if may_prove && settings.verify_every.is_some_and(|every| has_passed(seen.proved, every)) {
        return Some(BackupStep::Prove(newest.clone()));
    }
    let after = settings.incremental_every.filter(|every| goes_on && has_passed(seen.last_at.max(done.after), *every));
    after.map(|_| BackupStep::After(seen.last))
}

pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether it is for `me` to take the backups: of the nodes that can be reached and are set up for it, the one with the lowest
/// number that does not lead; the leader if there is no other. One that fails goes last: its disk or its network may be the
/// only one that does.
pub(crate) fn is_on_duty(me: NodeId, nodes: &[NodeInfo]) -> bool {
    let told = |node: &NodeInfo| node.said.as_ref().and_then(|said| said.backup.clone());
    let candidates = nodes.iter().filter_map(|node| {
        let told = if node.node == me || node.reachable { told(node) } else { None };
        Some(((told?.gives_way, node.leads, node.node), node.node))
    });
    candidates.min().is_some_and(|(_, node)| node == me)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::names::{SegmentName, prefix_of};
    use crate::proto::{BackupStatus, Meta, StatusResponse};

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const BEGIN: UnixMs = UnixMs(1_795_341_600_000);

    fn meta(at: UnixMs) -> Meta {
        Meta { cluster_id: "shop".into(), epoch: 1 << 32, now_ms: at.get(), ..Meta::default() }
    }

    fn settings() -> BackupSettings {
        BackupSettings {
            to: "/b".into(),
            every: Duration::from_secs(24 * 3_600),
            incremental_every: Some(Duration::from_secs(3_600)),
            keep: 14,
            verify_every: Some(Duration::from_secs(24 * 3_600)),
            scratch: None,
        }
    }

    #[test]
    fn proofs_that_fail_and_a_time_that_is_ahead_do_not_bring_one_whole_backup_after_the_other() {
        let settings = settings();
        let newest = BackupName::of(&meta(BEGIN), 10);
        let seen = BackupsSeen { newest: Some(newest), last: LogIndex(10), last_at: BEGIN, proved: UnixMs(0) };
        let at = |done: &BackupsDone, seen: &BackupsSeen, ms| {
            due(seen, done, &settings, LogIndex(10), true, BEGIN.plus_ms(ms))
        };
        let wrong = BackupsDone { start_anew: true, ..BackupsDone::default() };
        assert_eq!(at(&wrong, &seen, HOUR), Some(BackupStep::Whole));
        let again = BackupsDone { anew: BEGIN.plus_ms(HOUR), ..wrong };
        assert!(matches!(at(&again, &seen, 2 * HOUR), Some(BackupStep::Prove(_))));
        assert_eq!(at(&again, &seen, 25 * HOUR), Some(BackupStep::Whole));
        // What was just taken has a name of tomorrow, and does not count.
        let none = BackupsSeen::default();
        assert_eq!(at(&BackupsDone::default(), &none, 0), Some(BackupStep::Whole));
        let taken = BackupsDone { whole: BEGIN, ..BackupsDone::default() };
        assert_eq!((at(&taken, &none, HOUR), at(&taken, &none, 24 * HOUR)), (None, Some(BackupStep::Whole)));
    }

    #[test]
    fn what_is_due_follows_from_what_is_there() {
        let (settings, mut folder, prefix) = (settings(), BackupFolder::default(), prefix_of(&meta(BEGIN)));
        let step = |folder: &BackupFolder, done: &BackupsDone, applied, minutes: u64| {
            let now = BEGIN.plus_ms(minutes * MINUTE);
            due(&BackupsSeen::of(folder, &prefix, now), done, &settings, LogIndex(applied), true, now)
        };
        let none = BackupsDone::default();
        assert_eq!(step(&folder, &none, 0, 0), Some(BackupStep::Whole));
        let first = BackupName::of(&meta(BEGIN), 100);
        folder.backups.push(first.clone());
        assert_eq!(step(&folder, &none, 200, 1), Some(BackupStep::Prove(first.clone())));
        let seen = BackupsSeen::of(&folder, &prefix, BEGIN.plus_ms(HOUR));
        let next = due(&seen, &none, &settings, LogIndex(200), false, BEGIN.plus_ms(HOUR));
        assert_eq!(next, Some(BackupStep::After(LogIndex(100))), "while a proof is not tried again");
        folder.proofs.push(ProofName::of(&first, BEGIN.plus_ms(2 * MINUTE), 100));
        assert_eq!(step(&folder, &none, 200, 59), None);
        assert_eq!(step(&folder, &none, 200, 60), Some(BackupStep::After(LogIndex(100))));
        assert_eq!(step(&folder, &none, 100, 60), None, "nothing came after");
        folder.segments.push(SegmentName::of(&prefix, BEGIN.plus_ms(HOUR), 101, 150));
        assert_eq!(step(&folder, &none, 200, 61), None);
        assert_eq!(step(&folder, &none, 200, 120), Some(BackupStep::After(LogIndex(150))));
        let looked = BackupsDone { after: BEGIN.plus_ms(119 * MINUTE), ..none };
        assert_eq!(step(&folder, &looked, 200, 120), None);
        assert_eq!(step(&folder, &none, 200, 24 * 60), Some(BackupStep::Whole));
        let taken = BackupsDone { whole: BEGIN.plus_ms(23 * HOUR), after: BEGIN.plus_ms(23 * HOUR), ..none };
        assert_eq!(step(&folder, &taken, 200, 24 * 60), Some(BackupStep::After(LogIndex(150))), "its own clock");
        assert_eq!(step(&folder, &none, 100, 24 * 60), None, "an idle cluster");
        let anew = BackupsDone { start_anew: true, ..none };
        assert_eq!(step(&folder, &anew, 200, 61), Some(BackupStep::Whole));
        assert_eq!(step(&folder, &none, 150, 26 * 60), Some(BackupStep::Whole), "what came since is in segments alone");
        // What another cluster left there, and what a wrong clock named.
        let mut other = BackupFolder::default();
        other.backups.push(BackupName::of(&Meta { epoch: 2 << 32, ..meta(BEGIN) }, 5));
        other.backups.push(BackupName::of(&meta(BEGIN.plus_ms(9_999 * HOUR)), 7));
        assert_eq!(step(&other, &none, 200, 1), Some(BackupStep::Whole));
    }

    #[test]
    fn one_node_takes_them_and_another_one_when_it_is_gone() {
        let node = |id: u64, leads: bool, reachable: bool, set_up: bool| NodeInfo {
            node: NodeId(id),
            voter: true,
            leads,
            raft: String::new(),
            gateway: String::new(),
            reachable,
            silent_for: None,
            latency: None,
            said: Some(StatusResponse { backup: set_up.then(BackupStatus::default), ..StatusResponse::default() }),
            lag: None,
            differs_from: None,
            clock_ahead_ms: None,
        };
        let failing = |mut node: NodeInfo| {
            let backup = BackupStatus { gives_way: true, ..BackupStatus::default() };
            node.said = Some(StatusResponse { backup: Some(backup), ..StatusResponse::default() });
            node
        };
        let on_duty =
            |nodes: &[NodeInfo]| -> Vec<u64> { (1..=3).filter(|id| is_on_duty(NodeId(*id), nodes)).collect() };
        let all = [node(1, true, true, true), node(2, false, true, true), node(3, false, true, true)];
        assert_eq!(on_duty(&all), [2]);
        assert!(!is_on_duty(NodeId(9), &all), "no member");
        let one = [all[0].clone(), failing(all[1].clone()), all[2].clone()];
        let two = [all[0].clone(), failing(all[1].clone()), failing(all[2].clone())];
        let each = [failing(all[0].clone()), failing(all[1].clone()), failing(all[2].clone())];
        assert_eq!((on_duty(&one), on_duty(&two), on_duty(&each)), (vec![3], vec![1], vec![2]));
        // As node 3 sees it when node 2 is lost, and as node 1 does when it is the last that is there.
        let lost = [node(1, true, true, true), node(2, false, false, true), node(3, false, true, true)];
        assert!(is_on_duty(NodeId(3), &lost) && !is_on_duty(NodeId(1), &lost));
        let last = [node(1, true, true, true), node(2, false, true, false), node(3, false, false, true)];
        assert!(is_on_duty(NodeId(1), &last));
        assert!(is_on_duty(NodeId(1), &all[..1]));
    }
}
