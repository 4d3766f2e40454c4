//! The picture of a run, as SVG: faults as bands, operations, latency, who led, who was master, over one axis of time.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Told;
use super::lanes::{self, Span};
use super::page::esc;
use super::series::Series;
use super::words::{self, at_us, took_us};
use crate::history::Band;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 132.0;
const PLOT: f64 = WIDTH - LEFT - 10.0;
/// Between two parts.
const SPACE: f64 = 20.0;
const LANE: f64 = 17.0;
/// Fault lanes and faults drawn, at most.
const FAULT_LANES: usize = 6;
const BANDS: usize = 300;
/// Rows of leaders, at most.
const LEADERS: usize = 9;
/// Colours that faults and masters take turns in.
const COLOURS: usize = 8;
/// Width of a letter.
const LETTER: f64 = 6.6;

pub fn of(told: &Told<'_>, series: &Series) -> String {
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
fn described(told: &Told<'_>, led: &[Span], masters: &[Span], bands: &[&Band]) -> String {
    let list = |spans: &[Span]| {
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
fn drawn(bands: &[Band]) -> Vec<&Band> {
    let mut drawn: Vec<&Band> = bands.iter().collect();
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

    /// Lanes of faults; the columns that they throw on the parts below.
    fn faults(&mut self, bands: &[&Band], all: usize) -> Vec<(String, f64, f64)> {
        if bands.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<&str> = bands.iter().map(|band| band.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let class = |name: &str| match names.iter().position(|known| *known == name) {
            _ if name == words::NO_MAJORITY => "gone".to_owned(),
            place => format!("f{}", place.unwrap_or(0) % COLOURS),
        };
        let begin = self.y;
        self.label(begin + 12.0, "faults");
        // Where each lane's last band and its name end.
        let mut ends: Vec<f64> = Vec::new();
        let mut columns = Vec::new();
        for band in bands {
            let (x, name) = (self.x(band.from_us), words::fault(&band.name));
            let lane = match ends.iter().position(|end| *end <= x) {
                Some(lane) => lane,
                None if ends.len() < FAULT_LANES => {
                    ends.push(0.0);
                    ends.len() - 1
                }
                None => FAULT_LANES - 1,
            };
            let y = begin + lane as f64 * LANE;
            let lasted = took_us(band.to_us.saturating_sub(band.from_us));
            let title = format!("{name}, {} for {lasted}: {}", at_us(band.from_us), words::cut(&band.what, 200));
            let free = ends[lane] <= x;
            let width =
                self.bar(&format!("band {}", class(&band.name)), (band.from_us, band.to_us), y, LANE - 3.0, &title);
            let needs = name.chars().count() as f64 * LETTER + 6.0;
            let mut end = x + width + 1.0;
            // The name stands in the band or right of it; with few faults, always.
            if free && x + needs < LEFT + PLOT && (bands.len() <= 60 || needs <= width) {
                let _ = write!(
                    self.out,
                    "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + 3.0,
                    y + 11.0,
                    esc(&name)
                );
                end = end.max(x + needs);
            }
            ends[lane] = ends[lane].max(end);
            columns.push((class(&band.name), x, width));
        }
        self.y = begin + ends.len() as f64 * LANE + 4.0;
        if all > bands.len() {
            self.label(begin + 12.0 + LANE, &format!("{} of {all}", bands.len()));
        }
        columns
    }

    /// A part with an upright scale from 0 to `most`.
    fn scale(&mut self, height: f64, most: f64, lines: &[f64], words: impl Fn(f64) -> String) {
        let base = self.y + height;
        for value in lines {
            let y = base - height * value / most;
            let _ = write!(
                self.out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}h{PLOT}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                words(*value)
            );
        }
    }

    fn bars(&mut self, class: &str, series: &Series, height: f64, most: f64, of: impl Fn(usize) -> (u64, u64)) {
        let base = self.y + height;
        let mut path = String::new();
        for at in 0..series.len() {
            let (below, count) = of(at);
            if count == 0 {
                continue;
            }
            let y = |count: u64| base - height * (series.per_second(count) / most).min(1.0);
            let (x, end) = (self.x(at as u64 * series.every_us), self.x((at as u64 + 1) * series.every_us));
            let (bottom, top) = (y(below), y(below + count).min(y(below) - 1.5));
            let _ = write!(path, "M{x:.1} {bottom:.1}V{top:.1}H{:.1}V{bottom:.1}z", (end - 0.6).max(x + 0.8));
        }
        let _ = write!(self.out, "<path class=\"{class}\" d=\"{path}\"/>");
    }

    fn operations(&mut self, told: &Told<'_>, series: &Series) {
        const HEIGHT: f64 = 130.0;
        self.y += SPACE;
        let most = nice(series.ok.iter().map(|n| series.per_second(*n)).fold(1.0, f64::max));
        self.label(self.y + 10.0, "succeeded");
        self.label(self.y + 24.0, "a second");
        self.scale(HEIGHT, most, &[0.0, most / 2.0, most], plain);
        self.bars("ok", series, HEIGHT, most, |at| (0, series.ok[at]));
        for (gap, class) in [(told.figures.gap, "gap"), (told.figures.gap_without_majority, "gap away")] {
            let Some(gap) = gap.filter(|gap| gap.us >= 50_000) else { continue };
            let text = format!("{} without a write", took_us(gap.us));
            let (x, y) = (self.x(gap.from_us), self.y - 5.0);
            self.bar(class, (gap.from_us, gap.from_us + gap.us), y, 4.0, &text);
            let (anchor, x) = if x > LEFT + PLOT / 2.0 { ("end", x - 4.0) } else { ("start", x) };
            let _ = write!(
                self.out,
                "<text class=\"note\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
                y - 3.0
            );
        }
        self.y += HEIGHT;
    }

    fn unsuccessful(&mut self, series: &Series) {
        const HEIGHT: f64 = 44.0;
        self.y += SPACE;
        let both = series.failed.iter().zip(&series.unknown).map(|(a, b)| series.per_second(a + b));
        let most = nice(both.fold(1.0, f64::max));
        for (line, (class, text)) in [("failed", "refused"), ("unknown", "unanswered")].into_iter().enumerate() {
            let y = self.y + line as f64 * 16.0;
            let _ = write!(self.out, "<rect class=\"{class}\" x=\"0\" y=\"{y:.1}\" width=\"10\" height=\"10\"/>");
            let _ = write!(self.out, "<text class=\"label\" x=\"15\" y=\"{:.1}\">{text}</text>", y + 9.0);
        }
        self.scale(HEIGHT, most, &[0.0, most], plain);
        self.bars("failed", series, HEIGHT, most, |at| (0, series.failed[at]));
        self.bars("unknown", series, HEIGHT, most, |at| (series.failed[at], series.unknown[at]));
        self.y += HEIGHT;
    }

    /// How long writes took, on a scale that grows tenfold.
    fn latency(&mut self, series: &Series) {
        const HEIGHT: f64 = 110.0;
        self.y += SPACE;
        self.label(self.y + 10.0, "a write took");
        for (line, (class, text)) in [("p99", "99 % within"), ("p50", "half within")].into_iter().enumerate() {
            let y = self.y + 20.0 + line as f64 * 16.0;
            let _ = write!(self.out, "<path class=\"{class}\" d=\"M0 {y:.1}h10\"/>");
            let _ = write!(self.out, "<text class=\"label\" x=\"15\" y=\"{:.1}\">{text}</text>", y + 4.0);
        }
        let all = || series.p50_us.iter().chain(&series.p99_us).flatten().map(|us| *us.max(&1));
        let tens = |us: u64| (us as f64).log10();
        let least = all().min().map_or(3.0, |us| tens(us).floor());
        let most = all().max().map_or(6.0, |us| tens(us).ceil()).max(least + 1.0);
        let steps = (most - least).round() as u32;
        let lines: Vec<f64> = (0..=steps).map(f64::from).collect();
        self.scale(HEIGHT, most - least, &lines, |line| took_us(10f64.powf(least + line) as u64).replace(".0", ""));
        for (class, line) in [("p99", &series.p99_us), ("p50", &series.p50_us)] {
            let mut path = String::new();
            let mut before = false;
            for (at, us) in line.iter().enumerate() {
                if let Some(us) = us {
                    let y = self.y + HEIGHT * (1.0 - (tens(*us.max(&1)) - least) / (most - least));
                    let (x, end) = (self.x(at as u64 * series.every_us), self.x((at as u64 + 1) * series.every_us));
                    let _ =
                        if before { write!(path, "V{y:.1}H{end:.1}") } else { write!(path, "M{x:.1} {y:.1}H{end:.1}") };
                }
                before = us.is_some();
            }
            let _ = write!(self.out, "<path class=\"{class}\" d=\"{path}\"/>");
        }
        self.y += HEIGHT;
    }

    fn leaders(&mut self, told: &Told<'_>, led: &[Span]) {
        self.y += SPACE;
        let mut rows: Vec<String> = told.about.nodes.iter().map(|node| format!("node {node}")).collect();
        let unknown: Vec<_> = led.iter().map(|span| &span.who).filter(|who| !rows.contains(who)).cloned().collect();
        rows.extend(unknown);
        rows.sort();
        rows.dedup();
        for who in rows.iter().take(LEADERS) {
            self.label(self.y + 12.0, &format!("{who} led"));
            let (y, middle) = (self.y, self.y + LANE / 2.0 - 1.0);
            let _ = write!(self.out, "<path class=\"grid\" d=\"M{LEFT} {middle:.1}h{PLOT}\"/>");
            for span in led.iter().filter(|span| span.who == *who) {
                let title = format!("{who} led from {}", at_us(span.from_us));
                self.bar("led", (span.from_us, span.to_us), y, LANE - 3.0, &title);
            }
            self.y += LANE;
        }
    }

    fn masters(&mut self, masters: &[Span]) {
        if masters.is_empty() {
            return;
        }
        self.y += 6.0;
        self.label(self.y + 12.0, "master");
        let mut colours = BTreeMap::new();
        for span in masters {
            let next = colours.len() % COLOURS;
            let colour = *colours.entry(span.who.as_str()).or_insert(next);
            let title = format!("{} was master from {}", span.who, at_us(span.from_us));
            let (x, y) = (self.x(span.from_us), self.y);
            let width = self.bar(&format!("band f{colour}"), (span.from_us, span.to_us), y, LANE - 3.0, &title);
            if span.who.chars().count() as f64 * LETTER + 6.0 <= width {
                let _ = write!(
                    self.out,
                    "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + 3.0,
                    y + 11.0,
                    esc(&span.who)
                );
            }
        }
        self.y += LANE;
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
    fn readings(&mut self, series: &Series, led: &[Span], masters: &[Span], bands: &[&Band], bottom: f64) {
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
fn whoever(spans: &[Span], us: u64) -> Option<&str> {
    let at = spans.partition_point(|span| span.from_us < us).checked_sub(1)?;
    spans.get(at).map(|span| span.who.as_str())
}

/// The next of 1, 2, 5, 10, 20, 50, …
fn nice(value: f64) -> f64 {
    let ten = 10f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * ten).find(|step| *step >= value).unwrap_or(value)
}

fn plain(value: f64) -> String {
    if value.fract() == 0.0 { words::thousands(value as u64) } else { format!("{value:.1}") }
}

fn clock(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3_600, seconds / 60 % 60),
    }
}
