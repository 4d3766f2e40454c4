//! `report.html`: one page that needs nothing else, also no network.

use std::fmt::Write;

use super::logs::LogTail;
use super::series::Series;
use super::{ReportData, chart, tables, words};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

pub(super) fn of(told: &ReportData<'_>, logs: &[LogTail]) -> String {
    let about = told.about;
    let holds = told.verdict.holds() && told.figures.ok > 0;
    let (headline, summary) = (esc(&words::headline(told)), esc(&words::summary(told)));
    let (class, name) = (if holds { "good" } else { "bad" }, esc(&about.scenario));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\
         <title>{name}: {headline}</title>\n<style>{STYLE}</style></head>\n<body><main>\n\
         <header class=\"{class}\"><p class=\"name\">{name}</p><h1>{headline}</h1><p class=\"sum\">{summary}</p></header>\n"
    );
    if !about.explained.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", esc(&about.explained));
    }
    if !holds {
        replay(&mut out, told);
    }
    section(&mut out, "What happened", &timeline(told));
    section(&mut out, "In figures", &tables::figures(told));
    let violations = tables::violations(told);
    if !violations.is_empty() {
        section(&mut out, "What is broken, and the proof", &violations);
    }
    section(&mut out, "What was checked", &tables::invariants(told));
    if let Some(attack) = &told.figures.attack {
        section(&mut out, "The attack", &tables::attack(attack));
    }
    section(&mut out, "Faults", &tables::faults(told));
    if !about.notes.is_empty() {
        let items: String = about.notes.iter().take(100).map(|note| format!("<li>{}</li>", esc(note))).collect();
        section(&mut out, "Notes", &format!("<ul>{items}</ul>"));
    }
    section(&mut out, "The run", &run(told));
    if !logs.is_empty() {
        section(&mut out, "The nodes' logs", &logs.iter().map(log).collect::<String>());
    }
    let _ = writeln!(out, "</main><script>{SCRIPT}</script></body></html>");
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    let _ = writeln!(out, "<section><h2>{title}</h2>{body}</section>");
}

fn replay(out: &mut String, told: &ReportData<'_>) {
    if !told.about.replay.is_empty() {
        let _ = writeln!(out, "<p>To see it again: <code class=\"command\">{}</code></p>", esc(&told.about.replay));
    }
}

fn timeline(told: &ReportData<'_>) -> String {
    let series = Series::for_picture(told.history, told.until_us);
    let picture = chart::of(told, &series);
    let every = words::took_us(series.every_us);
    format!(
        "<p class=\"hint\">A bar is {every}. Point at the picture, tap it, or go through it with the arrow keys.</p>\
         <div class=\"wide\" id=\"picture\" tabindex=\"0\" role=\"group\" aria-label=\"Timeline\">{picture}</div>\
         <p id=\"reading\" class=\"reading\" aria-live=\"polite\">&nbsp;</p>"
    )
}

fn run(told: &ReportData<'_>) -> String {
    let about = told.about;
    let nodes = about.nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut out = String::from("<dl class=\"run\">");
    let mut add = |what: &str, value: String| {
        if !value.is_empty() {
            let _ = write!(out, "<dt>{what}</dt><dd>{value}</dd>");
        }
    };
    add("started", esc(&about.started));
    add("took", words::took_us(about.duration_ms.saturating_mul(1_000)));
    add("nodes", esc(&nodes));
    add("seed", about.seed.to_string());
    add("Tillsync", esc(&about.version));
    add("how", esc(&about.machine));
    add("writes may pause for", words::took_us(about.gap_ms.saturating_mul(1_000)));
    let replay = esc(&about.replay);
    add("again", if replay.is_empty() { replay } else { format!("<code class=\"command\">{replay}</code>") });
    out + "</dl>"
}

fn log(tail: &LogTail) -> String {
    let cut = if tail.cut { " (its end)" } else { "" };
    format!("<details><summary>node {}{cut}</summary><pre>{}</pre></details>", tail.node, esc(&tail.text))
}

/// Text as it may stand in the page, in an element or in a quoted attribute.
pub(super) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What no page may hold: control characters, such as a terminal's colours in a log.
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
