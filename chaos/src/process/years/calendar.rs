//! What comes on which day of a shop's years.

use std::collections::BTreeMap;

use crate::rng::Rng;

const WEEK: u64 = 7;
const MONTH: u64 = 30;
const QUARTER: u64 = 90;
/// How long a node is away, in days.
const AWAY: u64 = 14;
/// Days of a hundred on which a node is killed.
const KILLS: u64 = 14;

/// In the order in which they come on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum YearEvent {
    /// A clock that was off is right again.
    ClockRight(u64),
    /// A machine that was off for weeks is there again.
    Back(u64),
    /// Another key signs tokens; the one before is still good.
    NewKey,
    OldKeyGone,
    /// Of a CA of their own, for all nodes, while they run.
    NewCertificates,
    ClockOff(u64),
    Away(u64),
    Kill(u64),
    /// All nodes, one after the other.
    Update,
    /// After the first one, which was an upgrade: none goes back any more.
    Finalize,
    /// All nodes at once.
    PowerCut,
    /// All disks are as good as full for a while.
    DisksFill,
    Backup {
        whole: bool,
    },
    /// The newest backup becomes a cluster, which has everything.
    Restore,
    Figures,
}

impl YearEvent {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ClockRight(_) => "clock set right",
            Self::Back(_) => "node back",
            Self::NewKey => "new key of tokens",
            Self::OldKeyGone => "old key gone",
            Self::NewCertificates => "new certificates",
            Self::ClockOff(_) => "clock off",
            Self::Away(_) => "node away for two weeks",
            Self::Kill(_) => "node killed",
            Self::Update => "all nodes restarted in turn",
            Self::Finalize => "upgrade finalized",
            Self::PowerCut => "all nodes killed",
            Self::DisksFill => "all disks full",
            Self::Backup { whole: true } => "whole backup",
            Self::Backup { whole: false } => "incremental backup",
            Self::Restore => "restore",
            Self::Figures => "figures",
        }
    }
}

/// The node that is spared, in the quarter of a day, all that is not done to all nodes.
pub(super) fn spared(day: u64) -> u64 {
    day / QUARTER % 3 + 1
}

/// The days that have events. In each quarter one node is spared all that is not done to all nodes: what it takes grows
/// undisturbed.
pub(super) fn calendar(days: u64, rng: &mut Rng) -> BTreeMap<u64, Vec<YearEvent>> {
    let mut all = BTreeMap::<u64, Vec<YearEvent>>::new();
    let mut away: Option<(u64, u64)> = None;
    for day in 0..days {
        let (month, quarter) = (day % MONTH, day % QUARTER);
        let spared = spared(day);
        let mut today = vec![YearEvent::Backup { whole: day % WEEK == 0 }];
        if let Some((node, until)) = away
            && day >= until
        {
            today.push(YearEvent::Back(node));
            away = None;
        }
        let others: Vec<u64> = (1..=3).filter(|node| *node != spared).collect();
        let other = rng.pick(&others).copied().unwrap_or(spared);
        if month == 3 {
            today.push(YearEvent::Away(other));
            away = Some((other, day + AWAY));
        } else if rng.percent(KILLS) && away.is_none_or(|(node, _)| node != other) {
            today.push(YearEvent::Kill(other));
        }
        match month {
            20 => today.push(YearEvent::Restore),
            23 => today.push(YearEvent::Figures),
            _ => {}
        }
        match quarter {
            30 => today.push(YearEvent::ClockOff(other)),
            32 => today.extend(others.iter().map(|node| YearEvent::ClockRight(*node))),
            40 => today.push(YearEvent::NewKey),
            47 => today.push(YearEvent::OldKeyGone),
            60 => today.push(YearEvent::NewCertificates),
            79 => today.push(YearEvent::DisksFill),
            85 => today.push(YearEvent::Update),
            87 => today.push(YearEvent::PowerCut),
            88 if day < QUARTER => today.push(YearEvent::Finalize),
            _ => {}
        }
        today.sort_unstable();
        all.insert(day, today);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_year_has_everything_and_leaves_most_nodes_up() {
        for seed in 0..50 {
            let year = calendar(365, &mut Rng::new(seed));
            let all: Vec<YearEvent> = year.values().flatten().copied().collect();
            let count = |is: fn(&YearEvent) -> bool| all.iter().filter(|event| is(event)).count();
            assert_eq!(count(|e| matches!(e, YearEvent::Backup { .. })), 365);
            assert_eq!(count(|e| *e == YearEvent::Figures), 12);
            assert_eq!(count(|e| *e == YearEvent::Restore), 12);
            assert_eq!(count(|e| matches!(e, YearEvent::Away(_))), 13);
            for event in [YearEvent::NewKey, YearEvent::OldKeyGone, YearEvent::NewCertificates, YearEvent::Update] {
                assert!(all.iter().filter(|e| **e == event).count() >= 4, "{event:?}");
            }
            assert!(count(|e| matches!(e, YearEvent::Kill(_))) > 20);
            let mut away = 0;
            for (day, today) in &year {
                assert!(today.is_sorted());
                for event in today {
                    match event {
                        YearEvent::Away(node) => away = *node,
                        YearEvent::Back(node) => {
                            assert_eq!(*node, away);
                            away = 0;
                        }
                        YearEvent::Kill(node) | YearEvent::ClockOff(node) => {
                            assert_ne!(*node, spared(*day), "it is spared");
                            assert!(away == 0 || *node != away);
                        }
                        YearEvent::DisksFill | YearEvent::Update | YearEvent::PowerCut => assert_eq!(away, 0),
                        _ => {}
                    }
                }
            }
        }
    }
}
