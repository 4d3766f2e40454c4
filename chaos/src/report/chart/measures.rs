//! What is measured in the picture: operations, those that did not succeed, and how long writes took.

use std::fmt::Write;

use super::{Chart, LEFT, PLOT, SPACE};
use crate::report::ReportData;
use crate::report::series::Series;
use crate::report::words::{self, took_us};

impl Chart {
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

    pub(super) fn operations(&mut self, told: &ReportData<'_>, series: &Series) {
        const HEIGHT: f64 = 130.0;
        self.y += SPACE;
        let gaps = [(told.figures.gap, "gap"), (told.figures.gap_without_majority, "gap away")];
        let gaps = gaps.into_iter().filter_map(|(gap, class)| Some((gap.filter(|gap| gap.us >= 50_000)?, class)));
        for (line, (gap, class)) in gaps.enumerate() {
            // Each has a line of its own: they may be at the same time.
            self.y += if line > 0 { 15.0 } else { 0.0 };
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
        let most = nice(series.ok.iter().map(|n| series.per_second(*n)).fold(1.0, f64::max));
        self.label(self.y + 10.0, "succeeded");
        self.label(self.y + 24.0, "a second");
        self.scale(HEIGHT, most, &[0.0, most / 2.0, most], plain);
        self.bars("ok", series, HEIGHT, most, |at| (0, series.ok[at]));
        self.y += HEIGHT;
    }

    pub(super) fn unsuccessful(&mut self, series: &Series) {
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
    pub(super) fn latency(&mut self, series: &Series) {
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
}

/// The next of 1, 2, 5, 10, 20, 50, …
fn nice(value: f64) -> f64 {
    let ten = 10f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * ten).find(|step| *step >= value).unwrap_or(value)
}

fn plain(value: f64) -> String {
    if value.fract() == 0.0 { words::thousands(value as u64) } else { format!("{value:.1}") }
}
