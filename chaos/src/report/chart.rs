//! The picture of a run, as SVG: faults as bands, operations, latency, who led, who was master, over one axis of time.

use std::fmt::Write;

use super::ReportData;
use super::lanes::{self, LaneSpan};
use super::page::esc;
use super::series::Series;
use super::words::{self, at_us, took_us};
use crate::history::FaultWindow;

mod measures;
mod rows;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 132.0;
const PLOT: f64 = WIDTH - LEFT - 10.0;
/// Between two parts.
const SPACE: f64 = 20.0;
const LANE: f64 = 17.0;
/// Faults drawn, at most.
const BANDS: usize = 300;

pub(super) fn of(told: &ReportData<'_>, series: &Series) -> String {
    let mut chart = Chart { out: String::new(), y: 6.0, until_us: told.until_us };
    let led = lanes::thin(lanes::led(told.history, told.until_us), told.until_us);
    let masters = lanes::thin(lanes::masters(told.history, told.until_us), told.until_us);
    let bands = drawn(&told.history.bands);
    let columns = chart.faults(&bands, told.history.bands.len());
    let top = chart.y;
    chart.operations(told, series);
    chart.unsuccessful(series);
    chart.latency(series);
    chart.leaders(told, &led);
    chart.masters(&masters);
    let bottom = chart.y;
    chart.axis(top);
    chart.readings(series, &led, &masters, &bands, bottom);
    let columns: String = columns
        .iter()
        .map(|(class, x, width)| {
            format!(
                "<rect class=\"col {class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                bottom - top
            )
        })
        .collect();
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-labelledby=\"ct cd\"><title id=\"ct\">Timeline of {}</title>\
         <desc id=\"cd\">{}</desc>{columns}{}</svg>",
        chart.y,
        esc(&told.about.scenario),
        esc(&described(told, &led, &masters, &bands)),
        chart.out
    )
}

/// The picture in words, for who cannot see it.
fn described(told: &ReportData<'_>, led: &[LaneSpan], masters: &[LaneSpan], bands: &[&FaultWindow]) -> String {
    let list = |spans: &[LaneSpan]| {
        let shown = spans.iter().take(20).map(|span| format!("{} from {}", span.who, at_us(span.from_us)));
        let more = if spans.len() > 20 { ", and more" } else { "" };
        shown.collect::<Vec<_>>().join(", ") + more
    };
    let faults = bands
        .iter()
        .take(20)
        .map(|band| format!("{} from {} to {}", words::fault(&band.name), at_us(band.from_us), at_us(band.to_us)));
    let faults = faults.collect::<Vec<_>>().join(", ");
    format!(
        "{} From 0 to {}. Faults: {}. Leaders: {}. Masters: {}.",
        words::summary(told),
        at_us(told.until_us),
        if faults.is_empty() { "none" } else { &faults },
        list(led),
        list(masters)
    )
}

/// The longest faults, in order of time.
fn drawn(bands: &[FaultWindow]) -> Vec<&FaultWindow> {
    let mut drawn: Vec<&FaultWindow> = bands.iter().collect();
    drawn.sort_by_key(|band| std::cmp::Reverse(band.to_us.saturating_sub(band.from_us)));
    drawn.truncate(BANDS);
    drawn.sort_by_key(|band| (band.from_us, band.to_us));
    drawn
}

struct Chart {
    out: String,
    y: f64,
    until_us: u64,
}

impl Chart {
    fn x(&self, us: u64) -> f64 {
        LEFT + PLOT * (us.min(self.until_us) as f64 / self.until_us as f64)
    }

    fn label(&mut self, y: f64, text: &str) {
        let _ = write!(self.out, "<text class=\"label\" x=\"0\" y=\"{y:.1}\">{}</text>", esc(text));
    }

    fn bar(&mut self, class: &str, (from_us, to_us): (u64, u64), y: f64, height: f64, title: &str) -> f64 {
        let (x, end) = (self.x(from_us), self.x(to_us));
        let width = (end - x).max(2.0);
        let _ = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\"><title>{}</title></rect>",
            esc(title)
        );
        width
    }

    fn axis(&mut self, top: f64) {
        let every = TICKS.iter().find(|us| self.until_us / **us <= 12).copied().unwrap_or(self.until_us / 12 + 1);
        let (y, mut us) = (self.y, 0);
        while us <= self.until_us {
            let x = self.x(us);
            let text = if every < 1_000_000 { format!("{:.1} s", us as f64 / 1e6) } else { clock(us / 1_000_000) };
            let _ = write!(self.out, "<path class=\"grid\" d=\"M{x:.1} {top:.1}V{:.1}\"/>", y + 4.0);
            let _ = write!(self.out, "<text class=\"time\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>", y + 17.0);
            us += every;
        }
        self.y += 24.0;
    }

    /// What each moment was, for a pointer or a key.
    fn readings(
        &mut self,
        series: &Series,
        led: &[LaneSpan],
        masters: &[LaneSpan],
        bands: &[&FaultWindow],
        bottom: f64,
    ) {
        self.out.push_str("<g id=\"moments\">");
        for at in 0..series.len() {
            let (from, to) = (at as u64 * series.every_us, (at as u64 + 1) * series.every_us);
            let mut text = format!(
                "{} to {}: {} succeeded, {} refused, {} unanswered",
                at_us(from),
                at_us(to.min(self.until_us)),
                words::thousands(series.ok[at]),
                words::thousands(series.failed[at]),
                words::thousands(series.unknown[at])
            );
            if let (Some(p50), Some(p99)) = (series.p50_us[at], series.p99_us[at]) {
                let _ = write!(text, "; writes: half within {}, 99 % within {}", took_us(p50), took_us(p99));
            }
            for (what, spans) in [("led by", led), ("master", masters)] {
                if let Some(who) = whoever(spans, to) {
                    let _ = write!(text, "; {what} {who}");
                }
            }
            let mut now: Vec<String> = bands
                .iter()
                .filter(|band| band.from_us < to && band.to_us >= from)
                .map(|band| words::fault(&band.name))
                .collect();
            now.dedup();
            if !now.is_empty() {
                now.truncate(6);
                let _ = write!(text, "; {}", now.join(", "));
            }
            let (x, end) = (self.x(from), self.x(to));
            let _ = write!(
                self.out,
                "<rect x=\"{x:.1}\" y=\"0\" width=\"{:.1}\" height=\"{bottom:.1}\"><title>{}</title></rect>",
                (end - x).max(0.1),
                esc(&text)
            );
        }
        self.out.push_str("</g>");
    }
}

/// Steps of the time axis, microseconds.
const TICKS: [u64; 13] = [
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
    7_200_000_000,
];

/// Who it was at the end of a time.
fn whoever(spans: &[LaneSpan], us: u64) -> Option<&str> {
    let at = spans.partition_point(|span| span.from_us < us).checked_sub(1)?;
    spans.get(at).map(|span| span.who.as_str())
}

fn clock(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3_600, seconds / 60 % 60),
    }
}
