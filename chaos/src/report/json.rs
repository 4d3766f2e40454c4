//! `report.json`.

use serde_json::{Value, json};

use super::evidence::Evidence;
use super::series::Series;
use super::{ReportData, lanes, words};
use crate::finding::Finding;

/// Faults written out one by one, at most.
const BANDS: usize = 2_000;

pub(super) fn of(told: &ReportData<'_>) -> Value {
    let ReportData { about, history, verdict, figures, until_us } = told;
    let invariants: Vec<Value> = words::invariants(verdict)
        .into_iter()
        .map(|(name, says, finding)| invariant(told, name, says, finding))
        .collect();
    json!({
        "about": about,
        "holds": verdict.holds() && figures.ok > 0,
        "verdict": format!("{} {}", words::headline(told), words::summary(told)),
        "broken": verdict.broken(),
        "figures": figures,
        "invariants": invariants,
        "series": Series::by_second(history, *until_us),
        "leaders": lanes::thin(lanes::led(history, *until_us), *until_us),
        "masters": lanes::thin(lanes::masters(history, *until_us), *until_us),
        "faults": history.bands.iter().take(BANDS).collect::<Vec<_>>(),
    })
}

fn invariant(told: &ReportData<'_>, name: &str, says: &str, finding: &Finding) -> Value {
    let violations: Vec<Evidence> = finding.violations.iter().map(|what| Evidence::of(told.history, what)).collect();
    json!({
        "name": name, "says": says, "checked": finding.checked, "holds": finding.violations.is_empty(),
        "violations": violations, "more": finding.more,
    })
}
