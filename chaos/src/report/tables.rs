//! The tables of the page.

use std::fmt::Write;

use super::ReportData;
use super::evidence::{Evidence, ShownOperation};
use super::figures::AttackFigures;
use super::page::esc;
use super::words::{self, at_us, thousands, took_us};
use crate::finding::Finding;

/// Faults listed one by one, at most.
const BANDS: usize = 500;

pub(super) fn figures(told: &ReportData<'_>) -> String {
    let f = &told.figures;
    let mut out = String::from("<dl class=\"figures\">");
    let mut add = |what: &str, value: String| {
        let _ = write!(out, "<div><dt>{what}</dt><dd>{value}</dd></div>");
    };
    add("operations", thousands(f.operations));
    add("succeeded", thousands(f.ok));
    add("refused, surely not done", thousands(f.failed));
    add("unanswered, perhaps done", thousands(f.unknown));
    for (what, latency) in [("write", f.write), ("read", f.read)] {
        if let Some(latency) = latency {
            add(&format!("{what}, half within"), took_us(latency.p50_us));
            add(&format!("{what}, 99 % within"), took_us(latency.p99_us));
        }
    }
    add("connections", thousands(f.sessions));
    add("changes told to devices", thousands(f.told));
    add("leadership moved", words::count(f.leaders, "time"));
    add("checks made", thousands(f.checked));
    out + "</dl>"
}

pub(super) fn invariants(told: &ReportData<'_>) -> String {
    let mut out = String::from(
        "<div class=\"wide\"><table><thead><tr><th scope=\"col\">What must hold</th><th scope=\"col\" class=\"n\">Checked</th>\
         <th scope=\"col\">Result</th></tr></thead><tbody>",
    );
    for (name, says, finding) in words::invariants(told.verdict) {
        let (class, word) = match (finding.violations.is_empty(), finding.checked) {
            (false, _) => ("bad", "BROKEN"),
            (true, 0) => ("none", "not checked"),
            (true, _) => ("good", "holds"),
        };
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{} <code>{}</code></th><td class=\"n\">{}</td><td><span class=\"word {class}\">{word}</span></td></tr>",
            esc(says),
            esc(name),
            thousands(finding.checked)
        );
    }
    out + "</tbody></table></div>"
}

/// Each violation with what proves it; empty if all hold.
pub(super) fn violations(told: &ReportData<'_>) -> String {
    let mut out = String::new();
    for (name, _, finding) in words::invariants(told.verdict) {
        if !finding.violations.is_empty() {
            broken(&mut out, told, name, finding);
        }
    }
    out
}

fn broken(out: &mut String, told: &ReportData<'_>, name: &str, finding: &Finding) {
    let _ = write!(out, "<h3><code>{}</code></h3>", esc(name));
    for what in &finding.violations {
        let evidence = Evidence::of(told.history, what);
        let _ = write!(out, "<article class=\"violation\"><p class=\"what\">{}</p>", esc(&evidence.what));
        operations(out, "The operations that prove it", &evidence.operations);
        operations(out, "Others on the same record around then", &evidence.around);
        list(out, "Connections", &evidence.sessions);
        list(out, "Faults at that time", &evidence.faults);
        out.push_str("</article>");
    }
    if finding.more > 0 {
        let _ = write!(out, "<p>… and {} more.</p>", thousands(finding.more));
    }
}

fn operations(out: &mut String, title: &str, ops: &[ShownOperation]) {
    if ops.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<div class=\"wide\"><table class=\"ops\"><caption>{title}</caption><thead><tr><th scope=\"col\">No.</th>\
         <th scope=\"col\">from</th><th scope=\"col\">to</th><th scope=\"col\">device</th><th scope=\"col\">node</th>\
         <th scope=\"col\">asked</th><th scope=\"col\">answer</th></tr></thead><tbody>"
    );
    for op in ops {
        let to = op.to_us.map_or("never".into(), at_us);
        let (from, device, asked, answer) = (at_us(op.from_us), esc(&op.device), esc(&op.asked), esc(&op.answer));
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{from}</td><td>{to}</td><td>{device}</td><td>{}</td><td>{asked}</td><td>{answer}</td></tr>",
            op.id, op.node
        );
    }
    out.push_str("</tbody></table></div>");
}

fn list(out: &mut String, title: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let _ = write!(out, "<p class=\"sub\">{title}</p><ul>");
    for item in items {
        let _ = write!(out, "<li>{}</li>", esc(item));
    }
    out.push_str("</ul>");
}

/// What honest devices felt, what nodes took, and what attackers did.
pub(super) fn attack(attack: &AttackFigures) -> String {
    let head = |names: &[&str]| {
        let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
        for (at, name) in names.iter().enumerate() {
            let _ = write!(out, "<th scope=\"col\"{}>{name}</th>", if at > 0 { " class=\"n\"" } else { "" });
        }
        out + "</tr></thead><tbody>"
    };
    let row = |out: &mut String, name: &str, cells: &[String]| {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", esc(name));
        for cell in cells {
            let _ = write!(out, "<td class=\"n\">{}</td>", esc(cell));
        }
        out.push_str("</tr>");
    };
    let end = "</tbody></table></div>";
    let mut out = head(&["Honest devices", "half within, before", "99 %", "half within, beside", "99 %", "longest"]);
    let (before, beside) = (attack.before, attack.beside);
    for (name, a, b) in
        [("write", before.write, beside.write), ("read", before.read, beside.read), ("sync", before.sync, beside.sync)]
    {
        let cell = |us: Option<u64>| us.map_or("–".into(), took_us);
        let cells =
            [a.map(|l| l.p50_us), a.map(|l| l.p99_us), b.map(|l| l.p50_us), b.map(|l| l.p99_us), b.map(|l| l.max_us)];
        row(&mut out, name, &cells.map(cell));
    }
    out += end;
    out += &head(&["Node", "memory before", "beside", "descriptors before", "most", "after"]);
    for used in &attack.nodes {
        let counts = [used.descriptors_before, used.descriptors_most, used.descriptors_after].map(thousands);
        let [before, most, after] = counts;
        let memory = [used.honest_kb, used.hostile_kb].map(|kb| format!("{} MB", kb / 1_024));
        let [honest, hostile] = memory;
        row(&mut out, &used.node.to_string(), &[honest, hostile, before, most, after]);
    }
    out += end;
    out += &head(&["Attack", "connections", "answered", "ended by the node"]);
    for kind in &attack.kinds {
        row(&mut out, &kind.name, &[kind.attempts, kind.answered, kind.ended].map(thousands));
    }
    out + end
}

pub(super) fn faults(told: &ReportData<'_>) -> String {
    if told.figures.faults.is_empty() {
        return "<p>No fault was injected.</p>".into();
    }
    let mut out = String::from(
        "<div class=\"wide\"><table><thead><tr><th scope=\"col\">Fault</th><th scope=\"col\" class=\"n\">Times</th>\
         <th scope=\"col\" class=\"n\">Lasted in all</th><th scope=\"col\" class=\"n\">Longest time without a write around it</th>\
         </tr></thead><tbody>",
    );
    for row in &told.figures.faults {
        let gap = row.longest_gap_ms.map_or("–".into(), |ms| took_us(ms * 1_000));
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{gap}</td></tr>",
            esc(&words::fault(&row.name)),
            thousands(row.times),
            took_us(row.lasted_ms * 1_000)
        );
    }
    out.push_str("</tbody></table></div>");
    one_by_one(&mut out, told);
    out
}

fn one_by_one(out: &mut String, told: &ReportData<'_>) {
    let bands = &told.history.bands;
    let _ = write!(
        out,
        "<details><summary>One by one</summary><div class=\"wide\"><table><thead><tr><th scope=\"col\">from</th>\
         <th scope=\"col\">to</th><th scope=\"col\">fault</th><th scope=\"col\">what</th></tr></thead><tbody>"
    );
    let mut bands: Vec<_> = bands.iter().collect();
    bands.sort_by_key(|band| band.from_us);
    for band in bands.iter().take(BANDS) {
        let (name, what) = (esc(&words::fault(&band.name)), esc(&words::cut(&band.what, 200)));
        let (from, to) = (at_us(band.from_us), at_us(band.to_us));
        let _ = write!(out, "<tr><td>{from}</td><td>{to}</td><td>{name}</td><td>{what}</td></tr>");
    }
    out.push_str("</tbody></table></div>");
    if let Some(more) = bands.len().checked_sub(BANDS).filter(|more| *more > 0) {
        let _ = write!(out, "<p>… and {} more.</p>", thousands(more as u64));
    }
    out.push_str("</details>");
}
