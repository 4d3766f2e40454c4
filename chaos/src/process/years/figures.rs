//! What the nodes take at the end of each month, and whether that grows.

use std::fmt::Write as _;

/// At rest, the greatest of all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct MonthFigures {
    pub day: u64,
    pub changes: u64,
    /// Records that there are.
    pub records: u64,
    pub folder_mb: f64,
    pub memory_mb: f64,
    /// From the end of a node that stopped in good order until it serves again.
    pub start_ms: f64,
}

/// Months that count: the first ones fill what is kept.
const WARM: usize = 2;
/// Below that nothing is said.
const LEAST: usize = 4;
/// By how much the second half may be above the first one, as a factor and beyond it.
const FACTOR: f64 = 1.25;

/// What grows, in words.
pub(super) fn growing(all: &[MonthFigures]) -> Vec<String> {
    let all = all.get(WARM..).unwrap_or_default();
    if all.len() < LEAST {
        return Vec::new();
    }
    let (first, last) = all.split_at(all.len() / 2);
    let said = |what: &str, slack: f64, of: fn(&MonthFigures) -> f64| {
        let (before, after) = (median(first.iter().map(of)), median(last.iter().map(of)));
        let grows = after > before * FACTOR + slack;
        grows.then(|| format!("the {what} grow: from {before:.0} in the first months to {after:.0} in the last ones"))
    };
    let all = [
        said("MB of a folder", 2.0, |figures| figures.folder_mb),
        said("MB of memory", 4.0, |figures| figures.memory_mb),
        said("ms of a start", 500.0, |figures| figures.start_ms),
    ];
    all.into_iter().flatten().collect()
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

pub(super) fn table(all: &[MonthFigures]) -> String {
    let mut text =
        String::from("| day | changes | records | folder, MB | memory, MB | start, ms |\n|---|---|---|---|---|---|\n");
    for MonthFigures { day, changes, records, folder_mb, memory_mb, start_ms } in all {
        // It is a text in memory.
        let _ = writeln!(text, "| {day} | {changes} | {records} | {folder_mb:.1} | {memory_mb:.0} | {start_ms:.0} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn months(folder: impl Fn(u64) -> f64) -> Vec<MonthFigures> {
        let month = |day| MonthFigures {
            day,
            folder_mb: folder(day),
            memory_mb: 50.0,
            start_ms: 400.0,
            ..MonthFigures::default()
        };
        (0..12).map(month).collect()
    }

    #[test]
    fn growth_is_told_from_filling_and_from_noise() {
        assert_eq!(growing(&months(|month| 40.0 * month.min(2) as f64)), Vec::<String>::new());
        assert_eq!(growing(&months(|month| 60.0 + (month * 7 % 5) as f64)), Vec::<String>::new());
        // What a log without a bound in bytes came to in 240 days.
        let unbounded = [16.5, 21.0, 27.3, 29.6, 38.0, 38.7, 39.8, 43.7];
        assert_eq!(growing(&months(|month| unbounded.get(month as usize).copied().unwrap_or(0.0))[..8]).len(), 1);
        let grows = growing(&months(|month| 40.0 + 10.0 * month as f64));
        assert!(grows.len() == 1 && grows[0].contains("MB of a folder"), "{grows:?}");
        assert_eq!(growing(&months(|month| 40.0 * month as f64)[..5]), Vec::<String>::new(), "too few to say");
    }

    #[test]
    fn the_table_has_a_line_a_month() {
        assert_eq!(table(&months(|_| 1.25)).lines().count(), 14);
    }
}
